"""Learning rate annealing: tasks scaled towards the gradient norm of a main task, for physics-informed networks."""

from __future__ import annotations

from torch import Tensor

from mtl_axes.options import check_number
from mtl_axes.outer.main_task import MainTaskWeighting
from mtl_axes.signals import Signals


class LRAnnealing(MainTaskWeighting):
    r"""Weights that give every task, on average, the gradient norm of a main task.

    ::

        lambda_i = b_i lambda_i + (1 - b_i) n_main / n_i,  b_i = beta^elapsed_i      from 1 on

    n_i is the gradient norm on the shared parameters. The main task has the weight 1; in the paper it is the residual of the
    equation. An absent task keeps its weight. If the main task is absent, all do.

    Args:
        main: name of the main task, or its position.
        beta: decay of the average per window, in [0, 1).

    Returns:
        (K,) positive weights, 1 for the main task.

    Raises:
        OptionError: an option is outside its range; on binding, no task is called ``main``.

    >>> import torch
    >>> weighting = LRAnnealing(main=0, beta=0.5)
    >>> weighting(Signals(torch.ones(3), norms=torch.tensor([3.0, 1.0, 6.0])))
    tensor([1.0000, 2.0000, 0.7500])

    References:
        S. Wang, Y. Teng, P. Perdikaris, "Understanding and Mitigating Gradient Flow Pathologies in Physics-Informed Neural
        Networks", 2021. Differs from the reference: it divides the largest absolute entry of the main gradient by the mean
        absolute entry of the other, which no norm gives; here both are L2 norms over all shared parameters. PhysicsNeMo
        takes means on both sides, which agrees with norms if gradients are spread alike. The paper's alpha is 1 - beta;
        its text recommends alpha = 0.9, its code keeps nine tenths of the average, which is the default here.
    """

    needs = "norms"
    sign = "positive"

    def __init__(self, *, main: str | int, beta: float = 0.9) -> None:
        super().__init__(main)
        self.beta = check_number("beta", beta, low=0.0, high=1.0, high_open=True)

    def forward(self, signals: Signals, /) -> Tensor:
        norms = signals.norms
        assert norms is not None
        decay = self.beta**signals.elapsed
        average = decay * self.current + (1 - decay) * (norms[self._position] / norms)
        return self.beside_main(average, self.moving(signals))
