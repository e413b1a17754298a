"""Auxiliary tasks count as far as their gradient points where the main task's does."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from mtl_axes.outer.base import OuterWeighting
from mtl_axes.outer.geometry import cosines
from mtl_axes.outer.roles import check_main, find_main
from mtl_axes.signals import Need, Signals, TaskInfo

__all__ = ["CosineGate"]


class CosineGate(OuterWeighting):
    r"""The main task has the weight 1, every other the cosine between its gradient and the main one's, or 0 below 0.

    ::

        lambda_main = 1
        lambda_i    = max(0, G_im / sqrt(G_ii G_mm))        G (K, K) the Gramian, m the main task

    Use it where one task is what matters and the others should help it: an auxiliary task in conflict is shut out for as
    long as it is. It does not balance magnitudes, so that a long auxiliary gradient with a small cosine may still dominate.

    Gates start at 1 and move when both the main task and their own are active. Where the main task is absent, without a
    gradient or not finite, nothing is gated anew: every gate stays as it is, and so does that of an absent auxiliary task.
    Nothing is read on the host.

    Args:
        main: name of the main task, or its position.

    Returns:
        (K,) weights in [0, 1].

    Raises:
        OptionError: ``main`` is neither a name nor a position; on binding, no task is called ``main``.

    >>> jacobian = torch.tensor([[3.0, 4.0], [0.0, 2.0], [0.0, -5.0]])
    >>> CosineGate(main=0)(Signals(torch.ones(3), gramian=jacobian @ jacobian.T))
    tensor([1.0000, 0.8000, 0.0000])

    References:
        Y. Du et al., "Adapting Auxiliary Losses Using Gradient Similarity", 2018, its weighted version; the unweighted one
        has 1 in place of every positive cosine. Neither TorchJD 0.18 nor LibMTL has it.
    """

    needs: ClassVar[Need] = "gramian"
    symmetric: ClassVar[bool] = False
    scaling: ClassVar[Literal["invariant", "inverse"] | None] = "invariant"
    example: ClassVar[Mapping[str, Any]] = {"main": 0}

    def __init__(self, *, main: str | int) -> None:
        super().__init__()
        check_main(main)
        self.main = main

    def bind(self, tasks: tuple[TaskInfo, ...]) -> None:
        self._position = find_main(self.main, tasks)
        super().bind(tasks)
        self.current.fill_(1.0)

    def forward(self, signals: Signals, /) -> Tensor:
        gramian, active, main = signals.gramian, signals.active, self._position
        assert gramian is not None
        _, unit = cosines(gramian)
        return torch.where(active & active[main], unit[main].clamp(0, 1), self.current)

    def diagnostics(self) -> Mapping[str, Tensor]:
        return {"gated": self.current == 0}
