"""MetaBalance: auxiliary tasks scaled a part of the way to the gradient norm of a main task."""

from __future__ import annotations

import torch
from torch import Tensor

from mtl_axes.options import check_number
from mtl_axes.outer.main_task import MainTaskWeighting
from mtl_axes.signals import Signals, TaskInfo


class MetaBalance(MainTaskWeighting):
    r"""Weights that bring auxiliary tasks a part of the way to the gradient norm of a main task.

    ::

        m_i      = mean of n_i over the windows, weighted by beta^age
        lambda_i = r m_main / m_i + (1 - r)

    n_i is the gradient norm on the shared parameters. At r = 1 all averaged norms become equal to the main task's, at r = 0
    the weights are 1. The main task has the weight 1. An absent task keeps its average and its weight. If the main task is
    absent, all do.

    Args:
        main: name of the main task, or its position.
        r: how far to go, in [0, 1]; the paper's relax factor.
        beta: decay of the averages per window, in [0, 1).

    Returns:
        (K,) positive weights, 1 for the main task.

    Raises:
        OptionError: an option is outside its range; on binding, no task is called ``main``.

    >>> weighting = MetaBalance(main=0, r=0.5)
    >>> weighting(Signals(torch.ones(3), norms=torch.tensor([3.0, 1.0, 6.0])))
    tensor([1.0000, 2.0000, 0.7500])

    References:
        Y. He et al., "MetaBalance: Improving Multi-Task Recommendations via Adapting Gradient Magnitudes of Auxiliary
        Tasks", 2022; its variant that both enlarges and reduces. Differs from the reference: it scales each layer, and
        here one weight per task is computed from the norms over all shared parameters. Its averages start at zero, which
        cancels from the ratio while no task is absent; here they are means, so that a task may join later.
    """

    needs = "norms"
    sign = "positive"

    norm_sum: Tensor
    norm_share: Tensor

    def __init__(self, *, main: str | int, r: float = 0.7, beta: float = 0.9) -> None:
        super().__init__(main)
        self.r = check_number("r", r, low=0.0, high=1.0)
        self.beta = check_number("beta", beta, low=0.0, high=1.0, high_open=True)

    def bind(self, tasks: tuple[TaskInfo, ...]) -> None:
        super().bind(tasks)
        for name in ("norm_sum", "norm_share"):
            self.register_buffer(name, torch.zeros(len(tasks), dtype=self.dtype))

    def forward(self, signals: Signals, /) -> Tensor:
        norms, moving = signals.norms, self.moving(signals)
        assert norms is not None
        decay = self.beta**signals.elapsed
        norm_sum, norm_share = self.norm_sum, self.norm_share
        norm_sum.copy_(torch.where(moving, decay * norm_sum + (1 - decay) * norms, norm_sum))
        norm_share.copy_(torch.where(moving, decay * norm_share + (1 - decay), norm_share))
        mean = norm_sum / norm_share
        return self.beside_main(self.r * (mean[self._position] / mean) + (1 - self.r), moving)
