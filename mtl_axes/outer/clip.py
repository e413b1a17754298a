"""A stage that bounds weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from mtl_axes.errors import OptionError
from mtl_axes.options import check_number
from mtl_axes.outer.base import OuterWeighting
from mtl_axes.outer.stages import Stage


class Clip(Stage):
    r"""The weights of another weighting, cut to an interval.

    ::

        lambda = min(max(w, low), high)

    ``w`` are the weights of the base. They are not normalised afterwards, so that the bounds hold; the stage ``floor`` keeps
    the sum instead. If the base gives absent tasks the weight 0, they keep it, whatever the bounds.

    Args:
        base: the weighting to bound: a name, ``{"name": ..., **options}``, or an instance that was not called yet.
        low: smallest weight, or None for no such bound.
        high: largest weight, >= low, or None for no such bound.

    Returns:
        (K,) weights in [low, high].

    Raises:
        OptionError: both bounds are None, or low > high; the base was called already, or its weights are learned.

    >>> import torch
    >>> from mtl_axes import Signals
    >>> weighting = Clip("inverse_norm", low=0.1, high=0.8)
    >>> weighting(Signals(torch.ones(2), norms=torch.tensor([100.0, 1.0])))
    tensor([0.1000, 0.8000])
    """

    example: ClassVar[Mapping[str, Any]] = {"base": "inverse_norm", "low": 0.1, "high": 0.8}
    total = None

    def __init__(
        self,
        base: OuterWeighting | Mapping[str, Any] | str,
        *,
        low: float | None = None,
        high: float | None = None,
    ) -> None:
        super().__init__(base)
        self.low = None if low is None else check_number("low", low)
        self.high = None if high is None else check_number("high", high)
        if self.low is None and self.high is None:
            raise OptionError("Clip has no bound: low and high are None. Give one of them, or both.")
        if self.low is not None and self.high is not None and self.low > self.high:
            raise OptionError(f"Option `low` of Clip should not exceed `high`. Found low={low!r} and high={high!r}.")

    @property
    def sign(self) -> Literal["positive", "nonnegative", "any"]:  # type: ignore[override]
        """The signs that are possible within the bounds."""
        low, high, base = self.low, self.high, self.base.sign
        if high is not None and high <= 0:
            return "nonnegative" if high == 0 and (base != "any" or low == 0) else "any"
        if low is None or (low <= 0 and base == "positive"):
            return base
        return "positive" if low > 0 else "nonnegative" if low == 0 or base != "any" else "any"

    def reshaped(self, weights: Tensor, members: Tensor | None, /) -> Tensor:
        clipped = weights.clamp(self.low, self.high)
        return clipped if members is None else torch.where(members, clipped, 0.0)
