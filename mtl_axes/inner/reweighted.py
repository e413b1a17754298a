"""A base shape times a weight that depends on the target alone, and failure-biased MSE, its best known member."""

from __future__ import annotations

import warnings
from typing import ClassVar, Literal

import torch
from torch import Tensor

from mtl_axes.errors import OptionError
from mtl_axes.inner.base import InnerShape, TargetWeight
from mtl_axes.options import check_number
from mtl_axes.registry import create
from mtl_axes.signals import Kind

__all__ = ["FailureBias", "FailureBiased", "Reweighted"]


class FailureBias(TargetWeight):
    """Weight w(y) = 1 + clip(1 - y / r_max, 0, 1): 2 at failure (y <= 0), falling to 1 at y = r_max and beyond.

    Args:
        r_max: remaining life from which on samples are not emphasised, in target units, > 0. A target that was divided
            by 125 needs r_max=1.

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
                f"failure_biased: every target is at most {largest:g}, below 1 % of r_max={self.r_max:g}, so that every "
                "sample gets almost the weight 2. If the target is scaled, pass r_max in the scaled unit.",
                stacklevel=2,
            )

    def forward(self, target: Tensor, /) -> Tensor:
        return 1 + (1 - target / self.r_max).clamp(0, 1)


class Reweighted(InnerShape):
    """w(y) * base(prediction, target): a base shape whose samples are weighted by their target.

    The weights do not enter the mean's denominator, which stays the number of valid samples.

    Args:
        base: an inner shape, or a registered name.
        weight: a target weight.

    Returns:
        (N, ...) losses, in the unit of the base.

    Raises:
        OptionError: the base and the weight serve no common kind of task.

    >>> Reweighted("mse", FailureBias())(torch.tensor([15.0, 112.0]), torch.tensor([10.0, 110.0]))
    tensor([48.0000,  4.4800])
    """

    def __init__(self, base: InnerShape | str, weight: TargetWeight) -> None:
        super().__init__()
        self.base = create("inner", base) if isinstance(base, str) else base
        self.weight = weight
        if not isinstance(self.base, InnerShape) or not isinstance(weight, TargetWeight):
            raise OptionError(f"Reweighted needs an inner shape and a target weight. Found {base!r} and {weight!r}.")
        if not self.kinds:
            raise OptionError(f"{self.base!r} and {weight!r} should serve a common kind of task. Found none.")

    @property
    def kinds(self) -> frozenset[Kind]:  # type: ignore[override]
        """Kinds that both the base and the weight serve."""
        return self.base.kinds & self.weight.kinds

    @property
    def coupling(self) -> Literal["sample", "batch"]:  # type: ignore[override]
        """That of the base."""
        return self.base.coupling

    @property
    def lower_bound(self) -> float | None:  # type: ignore[override]
        """0 when the base is never negative, else unknown."""
        return 0.0 if self.base.lower_bound is not None and self.base.lower_bound >= 0 else None

    @property
    def trailing(self) -> bool:  # type: ignore[override]
        """That of the base."""
        return self.base.trailing

    def check(self, prediction: Tensor, target: Tensor) -> None:
        self.base.check(prediction, target)

    def check_values(self, prediction: Tensor, target: Tensor) -> None:
        self.base.check_values(prediction, target)
        self.weight.check_values(target)

    def forward(self, prediction: Tensor, target: Tensor, /) -> Tensor:
        with torch.no_grad():
            # An integer target would have its weight computed in float32.
            weight = self.weight(target.to(prediction.dtype) if self.kinds == {"regression"} else target)
        losses: Tensor = self.base(prediction, target) * weight
        return losses


class FailureBiased(Reweighted):
    """Failure-biased squared error w(y) e^2 with w(y) = 1 + clip(1 - y / r_max, 0, 1), the inner axis of GRACE.

    Emphasises samples near failure up to twice; it weighs both signs of the error alike. Lies between mse and 2 mse.

    Args:
        r_max: remaining life from which on the loss is the plain squared error, in target units, > 0.

    Returns:
        (N, ...) losses >= 0, in squared target units.

    Raises:
        OptionError: r_max is not a positive number.

    >>> FailureBiased()(torch.tensor([15.0, 26.0]), torch.tensor([10.0, 30.0]))
    tensor([48.0000, 28.1600])

    References:
        "Gradient-Aware Multi-Task Learning for Predictive Maintenance" (AMNL, GRACE), chapters 14 and 21. For y < 0 the
        book also prints a form that exceeds 2; this is the clipped one.
    """

    kinds: ClassVar[frozenset[Kind]] = frozenset({"regression"})

    def __init__(self, *, r_max: float = 125.0) -> None:
        super().__init__("mse", FailureBias(r_max))
        self.r_max = r_max
