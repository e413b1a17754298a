"""Learning rate annealing: tasks scaled towards the gradient of a main task, for physics-informed networks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from mtl_axes.options import check_number
from mtl_axes.outer.base import OuterWeighting
from mtl_axes.outer.roles import check_main, find_main, with_main_at_one
from mtl_axes.signals import Need, Signals, TaskInfo

__all__ = ["LRAnnealing"]


class LRAnnealing(OuterWeighting):
    r"""Weights that give every task, on average, the gradient norm of a main task.

    ::

        lambda_i = b_i lambda_i + (1 - b_i) n_main / n_i,  b_i = beta^elapsed_i      from 1 on

    n_i is the gradient norm on the shared parameters. The main task, the residual of the equation in the paper, has the
    weight 1. An absent task keeps its weight; without the main task all of them do.

    Args:
        main: name of the main task, or its position.
        beta: decay of the average per window, in [0, 1).

    Returns:
        (K,) positive weights, that of the main task being 1.

    Raises:
        OptionError: an option is outside its range; on binding, no task is called ``main``.

    >>> weighting = LRAnnealing(main=0, beta=0.5)
    >>> weighting(Signals(torch.ones(3), norms=torch.tensor([3.0, 1.0, 6.0])))
    tensor([1.0000, 2.0000, 0.7500])

    References:
        S. Wang, Y. Teng, P. Perdikaris, "Understanding and Mitigating Gradient Flow Pathologies in Physics-Informed Neural
        Networks", 2021. Differs from the reference: it divides the largest absolute entry of the main gradient by the mean
        absolute entry of the other, which no norm gives; here both are L2 norms over all shared parameters. PhysicsNeMo
        takes means on both sides, which agrees with norms where gradients are spread alike. The paper's alpha is 1 - beta;
        its text recommends alpha = 0.9, its code keeps nine tenths of the average, which is the default here.
    """

    needs: ClassVar[Need] = "norms"
    sign: ClassVar[Literal["positive", "nonnegative", "any"]] = "positive"
    symmetric: ClassVar[bool] = False
    scaling: ClassVar[Literal["invariant", "inverse"] | None] = "invariant"
    example: ClassVar[Mapping[str, Any]] = {"main": 0}

    def __init__(self, *, main: str | int, beta: float = 0.9) -> None:
        super().__init__()
        check_main(main)
        self.main = main
        self.beta = check_number("beta", beta, low=0.0, high=1.0, high_open=True)

    def bind(self, tasks: tuple[TaskInfo, ...]) -> None:
        self._position = find_main(self.main, tasks)
        super().bind(tasks)
        self.current.fill_(1.0)

    def forward(self, signals: Signals, /) -> Tensor:
        norms, active, main = signals.norms, signals.active, self._position
        assert norms is not None
        decay = self.beta**signals.elapsed
        moved = decay * self.current + (1 - decay) * (norms[main] / norms)
        return torch.where(active & active[main], with_main_at_one(moved, main), self.current)
