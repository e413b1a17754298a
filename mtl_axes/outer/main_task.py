"""The base class of weightings that measure every task against a main one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from mtl_axes.options import check_task, task_position
from mtl_axes.outer.base import OuterWeighting
from mtl_axes.signals import Signals, TaskInfo


class MainTaskWeighting(OuterWeighting):
    """A weighting in which a main task has the weight 1 and the others start at 1.

    Args:
        main: name of the main task, or its position.

    Raises:
        OptionError: ``main`` is neither a name nor a position; on binding, no task is called ``main``.
    """

    symmetric = False
    scaling = "invariant"
    example: ClassVar[Mapping[str, Any]] = {"main": 0}

    def __init__(self, main: str | int) -> None:
        super().__init__()
        self.main = check_task("main", main)

    def bind(self, tasks: tuple[TaskInfo, ...]) -> None:
        self._position = task_position("main", self.main, [task.name for task in tasks])
        super().bind(tasks)
        self.current.fill_(1.0)

    def moving(self, signals: Signals) -> Tensor:
        """Return the tasks (K,) that get a new weight: the active ones, if the main task is active."""
        return signals.active & signals.active[self._position]

    def beside_main(self, weights: Tensor, moving: Tensor) -> Tensor:
        """Return the weights (K,) of the tasks that move, exactly 1 for the main one, and the last weight of the others.

        The main weight may be a sum of parts of 1, which can miss 1 by a rounding. Computing differences from 1 would
        avoid that, but would lose the digits of small weights.
        """
        main = torch.arange(len(weights), device=weights.device) == self._position
        return torch.where(moving, torch.where(main, 1.0, weights), self.current)
