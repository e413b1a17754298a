"""Fixed weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from mtl_axes.errors import OptionError
from mtl_axes.options import check_number
from mtl_axes.outer.base import OuterWeighting
from mtl_axes.signals import Need, Signals, TaskInfo

__all__ = ["Fixed"]


class Fixed(OuterWeighting):
    """Constant weights, as given, or 1/K. Tuned constants are the baseline that an adaptive weighting has to beat.

    Args:
        weights: one finite number per task, as a sequence in the order of the tasks or as a mapping by task name;
            None gives 1/K to each. They are not normalised.

    Returns:
        (K,) the weights, whatever the signals. An absent task keeps its own.

    Raises:
        OptionError: a weight is not a finite number; on binding, the number or the names of the tasks differ.

    >>> weighting = Fixed(weights=[1.0, 3.0])
    >>> weighting(Signals(torch.tensor([2.0, 0.5])))
    tensor([1., 3.])
    """

    needs: ClassVar[Need] = "losses"
    reads_signals: ClassVar[bool] = False
    moves: ClassVar[bool] = False
    sign: ClassVar[Literal["positive", "nonnegative", "any"]] = "any"
    symmetric: ClassVar[bool] = False
    scaling: ClassVar[Literal["invariant", "inverse"] | None] = "invariant"

    def __init__(self, *, weights: Sequence[float] | Mapping[str, float] | None = None) -> None:
        super().__init__()
        values: list[float] = []
        if isinstance(weights, Mapping):
            values = list(weights.values())
        elif weights is not None:
            if isinstance(weights, str) or not isinstance(weights, Sequence):
                raise OptionError(
                    f"Option `weights` should be a sequence or a mapping of numbers. Found weights={weights!r}."
                )
            values = list(weights)
        for value in values:
            check_number("weights", value)
        if weights is not None and not values:
            raise OptionError("Option `weights` should have one number per task. Found none.")
        self._given = weights

    def options(self) -> dict[str, Any]:
        given = self._given
        return {"weights": dict(given) if isinstance(given, Mapping) else given if given is None else list(given)}

    def bind(self, tasks: tuple[TaskInfo, ...]) -> None:
        names = [task.name for task in tasks]
        given = self._given
        if isinstance(given, Mapping):
            if set(given) != set(names):
                raise OptionError(f"Fixed weights should name the tasks {names}. Found {list(given)}.")
            values = [float(given[name]) for name in names]
        elif given is not None:
            if len(given) != len(names):
                raise OptionError(f"Fixed weights should be {len(names)} numbers, one for each of {names}. Found {given!r}.")
            values = [float(value) for value in given]
        else:
            values = [1.0 / len(names)] * len(names)
        super().bind(tasks)
        # Not persistent: the option, not a checkpoint, says what a fixed weight is.
        self.register_buffer("current", torch.tensor(values, dtype=self.dtype), persistent=False)

    def forward(self, signals: Signals, /) -> Tensor:
        return self.current.clone()

    def reference(self) -> Tensor:
        return self.current
