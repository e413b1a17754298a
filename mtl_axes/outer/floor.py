"""A stage that lifts every weight to a share of the sum."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from mtl_axes.errors import OptionError
from mtl_axes.options import check_number
from mtl_axes.outer.base import OuterWeighting
from mtl_axes.outer.stages import Stage
from mtl_axes.signals import TaskInfo

__all__ = ["Floor", "check_floor"]


def check_floor(method: str, floor: float, count: int) -> None:
    """Raise :class:`OptionError` if ``count`` tasks cannot all have this share of the sum."""
    if floor * count >= 1 and count > 1:
        raise OptionError(
            f"Option `floor` of {method} should be below 1/K = {1 / count:.4g} for the {count} tasks. Found floor={floor!r}."
        )


class Floor(Stage):
    r"""The weights of another weighting, each lifted to a share of their sum.

    ::

        lambda = S max(w, floor S) / sum_j max(w_j, floor S),  S = sum_j w_j

    ``w`` are the weights of the base, which never gets the floored ones back. The sum stays. A task has at least the share
    floor / (1 + (K - 1) floor), a little less than the floor itself, because the others are not cut. If the base gives
    absent tasks the weight 0, they keep it, and the floor holds for the others. If absent tasks keep their weight in the
    base, their floored weight changes a little with the sums, as in GABA.

    Args:
        base: the weighting to floor: a name, ``{"name": ..., **options}``, or an instance that was not called yet.
        floor: smallest share of the sum before the last normalisation, in [0, 1/K).

    Returns:
        (K,) weights with the same sum as the weights of the base.

    Raises:
        OptionError: the floor is outside its range; the base can have negative weights, was called already, or its weights
            are learned; on binding, floor >= 1/K.

    >>> import torch
    >>> from mtl_axes import Signals
    >>> weighting = Floor("inverse_norm", floor=0.1)
    >>> weighting(Signals(torch.ones(2), norms=torch.tensor([100.0, 1.0])))
    tensor([0.0917, 0.9083])
    """

    example: ClassVar[Mapping[str, Any]] = {"base": "inverse_norm", "floor": 0.1}

    present: Tensor

    def __init__(self, base: OuterWeighting | Mapping[str, Any] | str, *, floor: float = 0.05) -> None:
        super().__init__(base)
        self.floor = check_number("floor", floor, low=0.0, high=1.0, high_open=True)
        if self.base.sign == "any":
            raise OptionError(
                f"Floor cannot be put around {self.base!r}, whose weights can be negative: a share of their sum would mean "
                "nothing. Use the stage `clip`, which bounds the weights themselves."
            )

    @property
    def sign(self) -> Literal["positive", "nonnegative", "any"]:  # type: ignore[override]
        """Positive if the floor is."""
        return "positive" if self.floor > 0 else self.base.sign

    @property
    def scaling(self) -> Literal["invariant", "inverse"] | None:  # type: ignore[override]
        """As the base: a share of the sum scales with the sum."""
        return self.base.scaling

    def bind(self, tasks: tuple[TaskInfo, ...]) -> None:
        check_floor("Floor", self.floor, len(tasks))
        super().bind(tasks)
        if self._base_memoryless:
            self.register_buffer("present", torch.ones(len(tasks), dtype=torch.bool))

    def reshaped(self, weights: Tensor, members: Tensor | None, /) -> Tensor:
        if members is not None:
            self.present.copy_(torch.where(members.any(), members, self.present))
        if self._base_total == "1":
            floored = weights.clamp_min(self.floor)
            return floored / floored.sum() if members is None else _shared_by(members, floored, 1.0, weights)
        total = weights.sum()
        floored = torch.maximum(weights, self.floor * total)
        if members is not None:
            return _shared_by(members, floored, total, weights)
        # There are no shares if all weights are zero.
        return torch.where(total > 0, floored * (total / floored.sum()), weights)

    def diagnostics(self) -> Mapping[str, Tensor]:
        weights = self.base.current
        below = weights < (self.floor if self._base_total == "1" else self.floor * weights.sum())
        if self._base_memoryless:
            below = below & self.present
        return {**self.base.diagnostics(), "floor_active": below}


def _shared_by(members: Tensor, floored: Tensor, total: Tensor | float, weights: Tensor) -> Tensor:
    """Return the floored weights of the members, scaled to the total, and 0 for the others.

    If all members weigh 0, as tasks with a loss of 0 can, the weights are returned unchanged.
    """
    shares = torch.where(members, floored, 0.0)
    mass = shares.sum()
    return torch.where(mass > 0, shares * (total / mass), weights)
