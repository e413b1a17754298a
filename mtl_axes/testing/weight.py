"""The contracts of a target weight, one function each."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any, Final

import torch
from torch import Tensor

from mtl_axes.inner import InnerShape, Reweighted, TargetWeight
from mtl_axes.signals import Kind
from mtl_axes.tasks import standard_shape
from mtl_axes.testing import inner_criterion, inner_losses, inner_masks, inner_state
from mtl_axes.testing.case import Case, close, constructors, equal, numbers, run
from mtl_axes.testing.inner_case import InnerCase, served

__all__ = ["CHECKS", "WeightCase"]


class WeightCase(Case[TargetWeight]):
    """A target weight under test."""

    def __init__(self, factory: Any) -> None:
        super().__init__("weight", TargetWeight, factory)
        self.kinds = served(self)

    def targets(self, kind: Kind, size: tuple[int, ...] = (9,), seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
        """Return seeded targets of a kind as a shape hands them over, and have them told in whatever fails next."""
        _, target = standard_shape(kind).sample(kind, size, torch.Generator().manual_seed(seed), dtype)
        self.given = f"a {kind} target {tuple(target.shape)} = {numbers(target)}"
        return target


def structure(case: WeightCase) -> None:
    """One finite weight >= 0 per label, in a floating dtype, for each kind and size."""
    for kind in case.kinds:
        for size in ((1,), (9,), (4, 3), (2, 3, 4)):
            for dtype in (torch.float64, torch.float32):
                weights = case.build()(target := case.targets(kind, size, dtype=dtype))
                case.require(isinstance(weights, Tensor), "should return a tensor of weights", type(weights).__name__)
                told = "should give one weight per label"
                case.require(weights.shape == target.shape, f"{told} {size}", f"the shape {tuple(weights.shape)}")
                holds = weights.is_floating_point() or weights.dtype is torch.bool
                case.require(holds, "should give floating point weights", str(weights.dtype))
                holds = not target.is_floating_point() or weights.dtype is dtype
                case.require(holds, "should give weights in the dtype of the target", str(weights.dtype))
                case.require(bool(torch.isfinite(weights).all()), "should give finite weights", numbers(weights))
                case.require(bool((weights >= 0).all()), "should give weights >= 0", numbers(weights))


def independent(case: WeightCase) -> None:
    """A weight depends on its own label alone, leaves the labels as they are, and is the same in every call."""
    for kind in case.kinds:
        weight = case.build()
        target = case.targets(kind)
        kept = target.clone()
        first = weight(target)
        case.require(equal(target, kept), "should leave the target alone", numbers(target))
        index = torch.randperm(len(target), generator=torch.Generator().manual_seed(3))
        for part in (index, index[:4]):
            found, expected = weight(target[part]), first[part]
            claim = "should weigh a label by itself, whatever stands beside it"
            case.require(close(found, expected, 1e-9), claim, f"weights {numbers(found)} where {numbers(expected)} was")
        weight.eval()
        again = weight(target)
        case.require(
            equal(again, first), "should weigh the same again, in eval mode too", f"{numbers(again)} after {numbers(first)}"
        )


def values(case: WeightCase) -> None:
    """forward reads no value: it runs on the meta device, where there are none."""
    for kind in case.kinds:
        weight = case.build().to("meta")
        case.claim = "should read no value in forward, which would wait for the device"
        weights = weight(case.targets(kind).to("meta"))
        case.require(weights.device.type == "meta", case.claim, f"weights on {weights.device}")


def copies(case: WeightCase) -> None:
    """deepcopy, pickle, the repr and the options give the same weight."""
    for kind in case.kinds:
        weight = case.build()
        target = case.targets(kind)
        case.claim = "should survive deepcopy"
        twins = {"deepcopy": copy.deepcopy(weight)}
        if "<locals>" not in type(weight).__qualname__:
            case.claim = "should survive pickle"
            twins["pickle"] = pickle.loads(pickle.dumps(weight))
        case.require_options(weight)
        case.claim = f"should have the constructor call as its repr, {weight!r}"
        twins["the repr"] = eval(repr(weight), constructors(weight))
        case.claim = "should have the constructor's arguments as its options"
        twins["options()"] = type(weight)(**weight.options())
        fresh = case.build()
        fresh.load_state_dict(weight.state_dict())
        twins["load_state_dict"] = fresh
        for how, twin in twins.items():
            found, expected = twin(target), weight(target)
            told = f"should weigh the same after {how}"
            case.require(equal(found, expected), told, f"{numbers(found)} and {numbers(expected)}")
            case.require(repr(twin) == repr(weight), f"should have the same repr after {how}", repr(twin))


def reweighted(case: WeightCase) -> None:
    """Around the standard loss of each of its kinds, it is a shape that keeps every contract of a shape."""
    for kind in case.kinds:
        base = standard_shape(kind)

        def around(base: InnerShape = base) -> Reweighted:
            return Reweighted(copy.deepcopy(base), case.build())

        around.__name__ = f"{case.name} around {type(base).__name__}"
        inner = InnerCase(around)
        inner.name = around.__name__
        for part in (inner_losses, inner_masks, inner_state, inner_criterion):
            run(inner, part.CHECKS, ())


CHECKS: Final[dict[str, Callable[[WeightCase], None]]] = {
    "structure": structure,
    "independent": independent,
    "values": values,
    "copies": copies,
    "reweighted": reweighted,
}
