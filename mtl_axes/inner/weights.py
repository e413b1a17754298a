"""Sample weights that are a curve over the target: failure_biased, ramp, step, exponential."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from mtl_axes.errors import OptionError
from mtl_axes.inner._values import check_one_positive
from mtl_axes.inner.base import TargetWeight
from mtl_axes.options import check_number

__all__ = ["Exponential", "FailureBias", "Ramp", "Step"]


class FailureBias(TargetWeight):
    """Weight that rises from 1 to 2 as the remaining life falls to zero, as in the shape ``failure_biased`` and GRACE.

    ::

        w(y) = 1 + clip(1 - y / r_max, 0, 1)

    It equals ``ramp(low=0, high=r_max, at_low=2, at_high=1)``; ``ramp`` takes other weights at the ends.

    Args:
        r_max: remaining life from which on the weight is 1, in target units, > 0. For a target divided by 125 pass r_max=1.

    Returns:
        weights in [1, 2], in the shape of the target.

    Raises:
        OptionError: r_max is not a positive number.

    >>> FailureBias()(torch.tensor([-10.0, 0.0, 62.5, 125.0, 300.0]))
    tensor([2.0000, 2.0000, 1.5000, 1.0000, 1.0000])
    """

    def __init__(self, r_max: float = 125.0) -> None:
        super().__init__()
        self.r_max = check_number("r_max", r_max, low=0.0, low_open=True)

    def check_values(self, target: Tensor) -> None:
        largest = float(target.abs().max())
        if 0 < largest <= 1e-2 * self.r_max:
            warnings.warn(
                f"failure_biased: every target is at most {largest:g}, below 1 % of r_max={self.r_max:g}, so every sample "
                "has almost the weight 2. If the target is scaled, pass r_max in the scaled unit.",
                stacklevel=2,
            )

    def forward(self, target: Tensor, /) -> Tensor:
        return 1 + (1 - target / self.r_max).clamp(0, 1)


class Ramp(TargetWeight):
    """Weight that changes linearly from one value to another, and is constant outside.

    ::

        w(y) = at_low + (at_high - at_low) clip((y - low) / (high - low), 0, 1)

    With at_high > at_low large targets count more (extreme events), else small ones (remaining life).

    Args:
        low: start of the line, in target units.
        high: end of the line, in target units, > low.
        at_low: weight at and below low, >= 0.
        at_high: weight at and above high, >= 0. At least one must be positive.

    Returns:
        weights between at_low and at_high, in the shape of the target.

    Raises:
        OptionError: high is not above low, a weight is negative, or both are 0.

    >>> Ramp(low=10.0, high=20.0, at_low=0.5, at_high=3.5)(torch.tensor([0.0, 10.0, 15.0, 20.0, 99.0]))
    tensor([0.5000, 0.5000, 2.0000, 3.5000, 3.5000])
    """

    def __init__(self, *, low: float = 0.0, high: float = 1.0, at_low: float = 1.0, at_high: float = 2.0) -> None:
        super().__init__()
        self.low = check_number("low", low)
        self.high = check_number("high", high)
        if high <= low:
            raise OptionError(f"Option `high` should be above `low`. Found low={low!r} and high={high!r}.")
        self.at_low = check_number("at_low", at_low, low=0.0)
        self.at_high = check_number("at_high", at_high, low=0.0)
        check_one_positive(at_low=at_low, at_high=at_high)

    def forward(self, target: Tensor, /) -> Tensor:
        part = ((target - self.low) / (self.high - self.low)).clamp(0, 1)
        # Exact at both ends, which at_low + (at_high - at_low) is not.
        return self.at_low * (1 - part) + self.at_high * part


class Step(TargetWeight):
    """One weight below a threshold, another from the threshold on.

    ::

        w(y) = below   where y < threshold
             = above   elsewhere

    Args:
        threshold: in target units; a target equal to it counts as above.
        below: weight of smaller targets, >= 0.
        above: weight of the others, >= 0. At least one must be positive.

    Returns:
        the weights below and above, in the shape of the target.

    Raises:
        OptionError: a weight is negative, or both are 0.

    >>> Step(threshold=30.0, below=5.0, above=1.0)(torch.tensor([10.0, 30.0, 60.0]))
    tensor([5., 1., 1.])
    """

    def __init__(self, *, threshold: float = 0.0, below: float = 1.0, above: float = 2.0) -> None:
        super().__init__()
        self.threshold = check_number("threshold", threshold)
        self.below = check_number("below", below, low=0.0)
        self.above = check_number("above", above, low=0.0)
        check_one_positive(below=below, above=above)

    def forward(self, target: Tensor, /) -> Tensor:
        dtype = target.dtype if target.is_floating_point() else torch.get_default_dtype()
        # Tensors, because torch.where of two Python floats is float32 even in a float64 graph.
        below, above = (target.new_full((), weight, dtype=dtype) for weight in (self.below, self.above))
        return torch.where(target < self.threshold, below, above)


class Exponential(TargetWeight):
    """Weight that falls exponentially on one side of a target.

    ::

        w(y) = floor + gain exp(-max(0, (y - origin) / scale))

    With scale > 0 it is largest at and below the origin (remaining life), with scale < 0 at and above it (extreme events).

    Args:
        scale: distance over which the gain falls to 37 %, in target units, not 0; its sign is the side of the fall.
        origin: target from which the weight falls, in target units.
        floor: weight far from the origin, >= 0.
        gain: extra weight at the origin, > 0.

    Returns:
        weights in [floor, floor + gain], in the shape of the target.

    Raises:
        OptionError: scale is 0, floor is negative, or gain is not positive.

    >>> Exponential(scale=30.0)(torch.tensor([-10.0, 0.0, 30.0, 300.0]))
    tensor([2.0000, 2.0000, 1.3679, 1.0000])
    """

    example: ClassVar[Mapping[str, Any]] = {"scale": -2.0, "origin": 3.0, "floor": 0.5, "gain": 4.0}

    def __init__(self, *, scale: float = 1.0, origin: float = 0.0, floor: float = 1.0, gain: float = 1.0) -> None:
        super().__init__()
        self.scale = check_number("scale", scale)
        if scale == 0:
            raise OptionError(f"Option `scale` should not be 0. Found scale={scale!r}.")
        self.origin = check_number("origin", origin)
        self.floor = check_number("floor", floor, low=0.0)
        self.gain = check_number("gain", gain, low=0.0, low_open=True)

    def forward(self, target: Tensor, /) -> Tensor:
        return self.floor + self.gain * (-((target - self.origin) / self.scale).clamp_min(0)).exp()
