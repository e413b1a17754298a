"""MetaBalance: auxiliary tasks scaled towards the gradient norm of a main task, as far as one likes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from mtl_axes.options import check_number
from mtl_axes.outer.base import OuterWeighting
from mtl_axes.outer.roles import check_main, find_main, with_main_at_one
from mtl_axes.signals import Need, Signals, TaskInfo

__all__ = ["MetaBalance"]


class MetaBalance(OuterWeighting):
    r"""Weights that bring auxiliary tasks a part of the way to the gradient norm of a main task.

    ::

        m_i      = mean of n_i over the windows, weighted by beta^age
        lambda_i = r m_main / m_i + (1 - r)

    n_i is the gradient norm on the shared parameters. At r = 1 all averaged norms become that of the main task, at r = 0 the
    weights are 1. The main task has the weight 1. An absent task keeps its average and its weight; without the main task
    all of them do.

    Args:
        main: name of the main task, or its position.
        r: how far to go, in [0, 1]; the paper's relax factor.
        beta: decay of the averages per window, in [0, 1).

    Returns:
        (K,) positive weights, that of the main task being 1.

    Raises:
        OptionError: an option is outside its range; on binding, no task is called ``main``.

    >>> weighting = MetaBalance(main=0, r=0.5)
    >>> weighting(Signals(torch.ones(3), norms=torch.tensor([3.0, 1.0, 6.0])))
    tensor([1.0000, 2.0000, 0.7500])

    References:
        Y. He et al., "MetaBalance: Improving Multi-Task Recommendations via Adapting Gradient Magnitudes of Auxiliary
        Tasks", 2022; its variant that both enlarges and reduces. Differs from the reference: it scales each layer, and
        here one weight per task is found from the norms over all shared parameters. Its averages start at zero, which
        cancels from the ratio while no task is absent; here they are means, so that a task may join later.
    """

    needs: ClassVar[Need] = "norms"
    sign: ClassVar[Literal["positive", "nonnegative", "any"]] = "positive"
    symmetric: ClassVar[bool] = False
    scaling: ClassVar[Literal["invariant", "inverse"] | None] = "invariant"
    example: ClassVar[Mapping[str, Any]] = {"main": 0}

    norm_sum: Tensor
    norm_share: Tensor

    def __init__(self, *, main: str | int, r: float = 0.7, beta: float = 0.9) -> None:
        super().__init__()
        check_main(main)
        self.main = main
        self.r = check_number("r", r, low=0.0, high=1.0)
        self.beta = check_number("beta", beta, low=0.0, high=1.0, high_open=True)

    def bind(self, tasks: tuple[TaskInfo, ...]) -> None:
        self._position = find_main(self.main, tasks)
        super().bind(tasks)
        self.current.fill_(1.0)
        for name in ("norm_sum", "norm_share"):
            self.register_buffer(name, torch.zeros(len(tasks), dtype=self.dtype))

    def forward(self, signals: Signals, /) -> Tensor:
        norms, active, main = signals.norms, signals.active, self._position
        assert norms is not None
        moves = active & active[main]
        decay = self.beta**signals.elapsed
        norm_sum, norm_share = self.norm_sum, self.norm_share
        norm_sum.copy_(torch.where(moves, decay * norm_sum + (1 - decay) * norms, norm_sum))
        norm_share.copy_(torch.where(moves, decay * norm_share + (1 - decay), norm_share))
        mean = norm_sum / norm_share
        weights = self.r * (mean[main] / mean) + (1 - self.r)
        return torch.where(moves, with_main_at_one(weights, main), self.current)
