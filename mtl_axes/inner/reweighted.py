"""A base shape times a weight of the target: reweighted, and its best known member, failure_biased."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from mtl_axes.errors import OptionError
from mtl_axes.inner.base import REGRESSION, InnerShape, TargetWeight
from mtl_axes.inner.weights import FailureBias
from mtl_axes.registry import resolve
from mtl_axes.signals import Kind, wide

__all__ = ["FailureBiased", "Reweighted"]


def _of_base(name: str) -> Any:
    return property(lambda shape: getattr(shape.base, name), doc=f"``{name}`` of the base.")


class Reweighted(InnerShape):
    """Base shape whose samples are weighted by their target.

    ::

        l = w(target) base(prediction, target),  w without a gradient

    Any shape goes with any weight of its kind. The weights do not enter the denominator of the mean, which is the number of
    valid samples: a sample with the weight 2 pulls twice as hard. If the base couples the batch, the weights multiply the
    losses of the base, and the base gets the mask. For the signed times of a survival base the weight depends on the time,
    whether it ends in an event or is censored. A base that pools the entries of a sample is refused: it has no loss per
    target.

    Args:
        base: an inner shape: a registered name, ``{"name": ..., **options}`` or an instance.
        weight: a target weight, in the same forms.

    Returns:
        (N, ...) losses, in the unit of the base.

    Raises:
        OptionError: base or weight has another form, they serve no common kind of task, or the base pools.
        UnknownNameError: no shape or weight has this name.

    >>> Reweighted("mse", FailureBias())(torch.tensor([15.0, 112.0]), torch.tensor([10.0, 110.0]))
    tensor([48.0000,  4.4800])
    >>> Reweighted("mae", {"name": "step", "threshold": 30.0, "below": 3.0})
    Reweighted(base=MAE(), weight=Step(threshold=30.0, below=3.0, above=2.0))

    References:
        Differs from torch's mse_loss(weight=), l1_loss(weight=) and cross_entropy(weight=), whose mean divides by the sum of
        the weights: on the eight residuals of the golden file, failure-biased squares have the mean 84.115 here, and 52.572
        in torch. torch's huber_loss(weight=) and bce(weight=) divide by the number of samples, as here.
    """

    example: ClassVar[Mapping[str, Any]] = {
        "base": {"name": "huber", "delta": 0.7},
        "weight": {"name": "ramp", "low": -1.0, "high": 2.0, "at_low": 0.5, "at_high": 3.0},
    }

    def __init__(
        self,
        base: InnerShape | Mapping[str, Any] | str = "mse",
        weight: TargetWeight | Mapping[str, Any] | str = "failure_biased",
    ) -> None:
        super().__init__()
        self.base = resolve("inner", base, option="base")
        self.weight = resolve("weight", weight, option="weight")
        if self.base.pooled:
            raise OptionError(
                f"{self.base!r} pools the entries of a sample, but Reweighted needs a base with one loss per target. "
                "Pass sample_weight to the criterion instead."
            )
        if not self.kinds:
            kinds = [f"{part!r} serves {', '.join(sorted(part.kinds))}" for part in (self.base, self.weight)]
            raise OptionError(f"{kinds[0]}, but {kinds[1]}. Pass a base and a weight for one kind of task.")

    @property
    def kinds(self) -> frozenset[Kind]:  # type: ignore[override]
        """Kinds that both the base and the weight serve."""
        return self.base.kinds & self.weight.kinds

    @property
    def lower_bound(self) -> float | None:  # type: ignore[override]
        """0 if the base is never negative, else unknown."""
        return 0.0 if self.base.lower_bound is not None and self.base.lower_bound >= 0 else None

    coupling = _of_base("coupling")
    trailing = _of_base("trailing")
    # The weight is constant, but depends on nothing that has a gradient.
    detaches = _of_base("detaches")
    check = _of_base("check")
    weighed = _of_base("weighed")
    sample = _of_base("sample")
    target_range = _of_base("target_range")
    prediction_range = _of_base("prediction_range")

    def check_values(self, prediction: Tensor, target: Tensor) -> None:
        self.base.check_values(prediction, target)
        labels = self.weighed(target)
        # Floats, as in forward: integers of a regression would be checked as classes.
        self.weight.check_values(labels.to(wide(prediction.dtype)) if self.kinds == REGRESSION else labels)

    def forward(self, prediction: Tensor, target: Tensor, valid: Tensor | None = None, /) -> Tensor:
        with torch.no_grad():
            # Floats even for integer labels, whose weight would be computed in the default dtype.
            weight: Tensor = self.weight(self.weighed(target).to(wide(prediction.dtype)))
        losses = self.base.unchecked(prediction, target, valid)
        return losses * weight.to(losses.dtype)


class FailureBiased(Reweighted):
    """Failure-biased squared error, the inner axis of GRACE.

    ::

        l = (1 + clip(1 - y / r_max, 0, 1)) e^2,  e = prediction - y

    Emphasises samples near failure by a factor of up to 2, for both signs of the error. Lies between mse and 2 mse.

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
        book also prints a form that exceeds 2; this is the clipped form.
    """

    kinds = REGRESSION
    example: ClassVar[Mapping[str, Any]] = {}

    def __init__(self, *, r_max: float = 125.0) -> None:
        super().__init__("mse", FailureBias(r_max))
        self.r_max = r_max
