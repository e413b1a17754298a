"""The contracts of a target weight, one function each."""

from __future__ import annotations

import copy
from typing import Any, Final

import torch
from torch import Tensor

from mtl_axes.inner import InnerShape, Reweighted, TargetWeight
from mtl_axes.signals import Kind
from mtl_axes.tasks import standard_shape
from mtl_axes.testing import inner_criterion, inner_losses
from mtl_axes.testing.case import Case, named, numbers, run
from mtl_axes.testing.inner_case import InnerCase, served

__all__ = ["CHECKS", "WeightCase"]


class WeightCase(Case[TargetWeight]):
    """A target weight under test."""

    def __init__(self, factory: Any) -> None:
        super().__init__("weight", TargetWeight, factory)
        self.kinds = served(self)

    def targets(self, kind: Kind, size: tuple[int, ...] = (9,), dtype: torch.dtype = torch.float64) -> Tensor:
        """Return seeded targets of a kind as a shape passes them on, and show them in the next failure."""
        _, target = standard_shape(kind).sample(kind, size, torch.Generator().manual_seed(0), dtype)
        self.given = f"a {kind} target {tuple(target.shape)} = {numbers(target)}"
        return target


def structure(case: WeightCase) -> None:
    """One finite weight >= 0 per label, in a floating dtype, for each kind and size."""
    for kind in case.kinds:
        for size in ((1,), (9,), (4, 3), (2, 3, 4)):
            for dtype in (torch.float64, torch.float32):
                target = case.targets(kind, size, dtype)
                weights = case.build()(target)
                case.require(isinstance(weights, Tensor), "should return a tensor of weights", type(weights).__name__)
                claim = f"should give one weight per label {size}"
                case.require(weights.shape == target.shape, claim, f"the shape {tuple(weights.shape)}")
                holds = weights.is_floating_point() or weights.dtype is torch.bool
                case.require(holds, "should give floating point weights", str(weights.dtype))
                holds = not target.is_floating_point() or weights.dtype is dtype
                case.require(holds, "should give weights in the dtype of the target", str(weights.dtype))
                case.require_finite(weights, "should give finite weights")
                case.require(bool((weights >= 0).all()), "should give weights >= 0", numbers(weights))


def independent(case: WeightCase) -> None:
    """A weight depends only on its own label, leaves the labels unchanged, and is the same in every call."""
    for kind in case.kinds:
        weight = case.build()
        target = case.targets(kind)
        before = target.clone()
        first = weight(target)
        case.require_equal(target, before, "should leave the target unchanged", "{} instead of {}")
        index = torch.randperm(len(target), generator=torch.Generator().manual_seed(3))
        claim = "should weigh a label on its own, whatever labels are beside it"
        for part in (index, index[:4]):
            case.require_close(weight(target[part]), first[part], claim, "weights {} instead of {}")
        weight.eval()
        case.require_equal(weight(target), first, "should give the same weights again, even in eval mode", "{} after {}")


def values(case: WeightCase) -> None:
    """forward reads no value: it runs on the meta device, which has none."""
    for kind in case.kinds:
        weight = case.build().to("meta")
        case.claim = "should read no value in forward, which would wait for the device"
        weights = weight(case.targets(kind).to("meta"))
        case.require(weights.device.type == "meta", case.claim, f"weights on {weights.device}")


def copies(case: WeightCase) -> None:
    """deepcopy, pickle, the state, the repr and the options give the same weight."""
    for kind in case.kinds:
        weight = case.build()
        target = case.targets(kind)
        expected = weight(target)
        for twins in (case.copies(weight), case.rebuilt(weight)):
            for way, twin in twins:
                case.require_equal(twin(target), expected, f"should give the same weights after {way}")
                case.require(repr(twin) == repr(weight), f"should have the same repr after {way}", repr(twin))


def reweighted(case: WeightCase) -> None:
    """Around the standard loss of each of its kinds, it makes a shape that keeps every contract of a shape."""
    for kind in case.kinds:
        base = standard_shape(kind)

        def around(base: InnerShape = base) -> Reweighted:
            return Reweighted(copy.deepcopy(base), case.build())

        around.__name__ = f"{case.name} around {type(base).__name__}"
        inner = InnerCase(around)
        inner.name = around.__name__
        for part in (inner_losses, inner_criterion):
            run(inner, part.CHECKS, ())


CHECKS: Final = named(structure, independent, values, copies, reweighted)
