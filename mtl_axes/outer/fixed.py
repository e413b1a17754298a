"""Fixed weights."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from mtl_axes.options import check_per_task, numbers_by_task
from mtl_axes.outer.base import OuterWeighting
from mtl_axes.signals import Signals, TaskInfo


class Fixed(OuterWeighting):
    """Constant weights: the given ones, or 1/K. Tuned constants are the baseline that an adaptive weighting has to beat.

    Args:
        weights: one finite number per task, as a sequence in the order of the tasks or as a mapping by task name;
            None gives 1/K to each. They are not normalised.

    Returns:
        (K,) the weights, whatever the signals. An absent task keeps its weight.

    Raises:
        OptionError: a weight is not a finite number; on binding, the number or the names of the tasks differ.

    >>> weighting = Fixed(weights=[1.0, 3.0])
    >>> weighting(Signals(torch.tensor([2.0, 0.5])))
    tensor([1., 3.])
    """

    reads_signals = False
    moves = False
    sign = "any"
    symmetric = False
    scaling = "invariant"

    def __init__(self, *, weights: Sequence[float] | Mapping[str, float] | None = None) -> None:
        super().__init__()
        self._given = None if weights is None else check_per_task("weights", weights)

    def options(self) -> dict[str, Any]:
        return {"weights": copy.copy(self._given)}

    def bind(self, tasks: tuple[TaskInfo, ...]) -> None:
        given = 1.0 / len(tasks) if self._given is None else self._given
        values = numbers_by_task("Fixed weights", given, [task.name for task in tasks])
        super().bind(tasks)
        # Not persistent: fixed weights come from the option, not from a checkpoint.
        self.register_buffer("current", torch.tensor(values, dtype=self.dtype), persistent=False)

    def forward(self, signals: Signals, /) -> Tensor:
        return self.current.clone()

    def reference(self) -> Tensor:
        return self.current
