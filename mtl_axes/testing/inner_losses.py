"""Losses and gradients of an inner shape against the claims of its class."""

from __future__ import annotations

import math
import warnings
from typing import Final

import torch
from torch import Tensor

from mtl_axes.errors import DataError
from mtl_axes.inner import InnerShape
from mtl_axes.signals import Kind
from mtl_axes.testing.case import equal, named, numbers
from mtl_axes.testing.inner_case import InnerCase, f64, per_kind

__all__ = ["CHECKS"]

_ROUNDING = 1e-12
# Factor of the sample's residuals for the small ones.
_NEAR = 1e-3
# Rounding of float32 is 6e-8, or 6e-5 of a residual of 1e-3 that is a difference of terms of size 1: unavoidable. A loss
# that is quadratic there and computed from such terms is off by 6e-2: avoidable. This limit lies between the two.
_SINGLE = 1e-3


def declarations(case: InnerCase) -> None:
    """Claims have values that the contract knows."""
    shape = case.build()
    case.require(shape.coupling in ("sample", "batch"), "should claim coupling as 'sample' or 'batch'", repr(shape.coupling))
    for claim in ("pooled", "trailing", "detaches"):
        value = getattr(shape, claim)
        case.require(isinstance(value, bool), f"should claim {claim} as True or False", repr(value))
    bound = shape.lower_bound
    holds = bound is None or (isinstance(bound, float) and math.isfinite(bound))
    case.require(holds, "should claim lower_bound as a finite float, or None for no bound", repr(bound))
    for claim in ("target_range", "prediction_range"):
        value = getattr(shape, claim)
        holds = isinstance(value, tuple) and len(value) == 2 and value[0] < value[1]
        case.require(holds, f"should claim {claim} as (low, high)", repr(value))


def sampling(case: InnerCase) -> None:
    """sample() draws what the shape takes: seeded, of the dtype, within its ranges, and accepted by both checks."""
    shape = case.build()
    for size in case.sizes():
        prediction, target = case.sample(size, shape=shape)
        again = case.sample(size, shape=shape)
        holds = equal((prediction, target), again)
        case.require(holds, "sample() should draw only from the generator", "other values for the same seed")
        case.require(prediction.dtype is f64, "sample() should draw predictions of the dtype", str(prediction.dtype))
        case.require(target.shape[:1] == (size[0],), "sample() should draw as many targets as asked for", str(target.shape))
        if case.kind == "regression":
            for what, drawn in (("target", target), ("prediction", prediction)):
                bounds = getattr(shape, f"{what}_range")
                low, high = float(drawn.min()), float(drawn.max())
                holds = bounds[0] <= low and high <= bounds[1]
                case.require(holds, f"claims {what}_range={bounds}", f"samples in [{low:g}, {high:g}]")
        case.claim = "check_values() should accept what sample() draws"
        with warnings.catch_warnings():
            # In a criterion the prediction has a graph, and torch warns if a value is read without detach().
            warnings.filterwarnings("error", message="Converting a tensor with requires_grad=True")
            shape.check_values(prediction.requires_grad_(), target)


def structure(case: InnerCase) -> None:
    """A shape does not reduce: one finite loss per entry, or per sample if pooled, in the prediction's dtype."""
    shape = case.build()
    for size in case.sizes():
        for dtype in (f64, torch.float32):
            prediction, target = case.sample(size, dtype=dtype, shape=shape)
            losses = shape(prediction, target)
            case.require(isinstance(losses, Tensor), "should return a tensor of losses", type(losses).__name__)
            expected = target.shape[:1] if shape.pooled else target.shape
            claim = "claims pooled=True, one loss per sample" if shape.pooled else "should give one loss per entry"
            case.require(losses.shape == expected, f"{claim} {tuple(expected)}", f"the shape {tuple(losses.shape)}")
            claim = f"should give losses in the dtype of the prediction, {dtype}"
            case.require(losses.dtype is dtype, claim, str(losses.dtype))
            case.require_finite(losses, "should give finite losses")
    if shape.masks:
        claimed = "pooled=True" if shape.pooled else "coupling='batch'"
        case.about(f"claims {claimed}: forward should take the mask of valid entries as a third argument", case.given)
        shape(prediction, target, torch.ones_like(target, dtype=torch.bool))


def lower_bound(case: InnerCase) -> None:
    """No loss lies below the bound, for ordinary and for large predictions."""
    shape = case.build()
    bound = shape.lower_bound
    if bound is None:
        return
    for scale in _scales(shape, case.kind):
        for seed in range(4):
            prediction, target = case.several(seed)
            prediction = _larger(prediction, scale, shape)
            case.show(prediction, target)
            losses = shape(prediction, target)
            least = float(losses.min())
            holds = least >= bound - _ROUNDING * max(1.0, float(losses.abs().max()))
            case.require(holds, f"claims lower_bound={bound}", f"a loss of {least:.6g}")


def _scales(shape: InnerShape, kind: Kind) -> tuple[float, ...]:
    # Predictions with an upper bound cannot be large.
    return (1.0,) if kind == "regression" and shape.prediction_range[1] < math.inf else (1.0, 1e4)


def _larger(prediction: Tensor, scale: float, shape: InnerShape) -> Tensor:
    """Return predictions whose distance from the start of their range is multiplied by ``scale``."""
    low = shape.prediction_range[0]
    return scale * prediction if low == -math.inf else low + scale * (prediction - low)


def gradients(case: InnerCase) -> None:
    """Gradients are finite for ordinary and for large predictions, and reach the prediction."""
    shape = case.build()
    for scale in _scales(shape, case.kind):
        for size in case.sizes():
            prediction, target = case.sample(size, shape=shape)
            prediction = _larger(prediction, scale, shape).requires_grad_()
            case.show(prediction, target)
            losses = shape(prediction, target)
            case.require_finite(losses, "should give finite losses for large predictions")
            case.require(losses.requires_grad, "should give losses with a graph to the prediction", "requires_grad=False")
            (gradient,) = torch.autograd.grad(losses.sum(), prediction)
            case.require_finite(gradient, "should have finite gradients")
            if scale == 1.0 and size[0] > 2:
                case.require(bool(gradient.any()), "should have a gradient that reaches the prediction", "zeros everywhere")
    if case.kind == "regression":
        prediction, target = case.several()
        if prediction.shape == target.shape:
            prediction = target.clamp(*shape.prediction_range).requires_grad_()
            case.show(prediction, target)
            (gradient,) = torch.autograd.grad(shape(prediction, target).sum(), prediction)
            case.require_finite(gradient, "should have finite gradients where the prediction is the target")


def gradcheck(case: InnerCase) -> None:
    """The gradient is the derivative of the losses, by differences in float64, unless the shape claims detaches=True."""
    shape = case.build()
    if shape.detaches:
        return
    prediction, target = case.several()
    leaf = prediction.requires_grad_()
    case.claim = "should have the derivative of its losses as their gradient, or claim detaches=True (gradcheck)"
    torch.autograd.gradcheck(lambda value: shape(value, target), (leaf,), fast_mode=False)


def precision(case: InnerCase) -> None:
    """Losses and gradients in float32 agree with float64, relative to the largest: no formula cancels its digits."""
    for size in case.sizes():
        for seed in range(2):
            shape = case.build()
            prediction, target = case.sample(size, seed, shape=shape)
            for values in (prediction, _nearer(prediction, target, shape, case.kind)):
                if values is not None:
                    _compare_precisions(case, values.float(), target.float() if target.is_floating_point() else target)


def _nearer(prediction: Tensor, target: Tensor, shape: InnerShape, kind: Kind) -> Tensor | None:
    """Return predictions with residuals, or logits, 1e-3 as large as the sample's; None if there are no residuals."""
    if kind != "regression":
        return _NEAR * prediction
    low, high = shape.prediction_range
    # A prediction of several parameters has no residual, and a target may be no possible prediction.
    if prediction.shape != target.shape or bool((target < low).any()) or bool((target > high).any()):
        return None
    return target + _NEAR * (prediction - target)


def _compare_precisions(case: InnerCase, prediction: Tensor, target: Tensor) -> None:
    case.show(prediction, target)
    results: list[tuple[Tensor, Tensor]] = []
    for dtype in (torch.float32, f64):
        leaf = prediction.to(dtype).requires_grad_()
        losses = case.build()(leaf, target.to(dtype) if target.is_floating_point() else target)
        (gradient,) = torch.autograd.grad(losses.sum(), leaf)
        results.append((losses.detach(), gradient))
    for what, single, double in zip(("losses", "gradients"), *results, strict=True):
        claim = f"should give in float32 the {what} of float64, to {_SINGLE:g} of the largest"
        case.require_close(single, double, claim, rtol=_SINGLE)


def order(case: InnerCase) -> None:
    """Permuting the samples permutes the losses."""
    shape = case.build()
    prediction, target = case.several()
    index = torch.randperm(len(target), generator=torch.Generator().manual_seed(3))
    losses, expected = shape(prediction[index], target[index]), shape(prediction, target)[index]
    text = f"losses {{}} where the permutation {index.tolist()} gives {{}}"
    case.require_close(losses, expected, "should not depend on the order of the samples", text)


def coupling(case: InnerCase) -> None:
    """coupling="sample" means independent samples: two batches have the losses of one."""
    shape = case.build()
    if shape.coupling != "sample":
        return
    claim = "claims coupling='sample'"
    (first, target), (second, other) = case.several(0), case.several(1)
    leaf, targets = torch.cat([first, second]), torch.cat([target, other])
    case.show(leaf, targets)
    together = shape(leaf.requires_grad_(), targets)
    apart = torch.cat([shape(first, target), shape(second, other)])
    case.require_close(together, apart, claim, "losses {} in one batch and {} in two", rtol=1e-12)
    (gradient,) = torch.autograd.grad(together[0].sum(), leaf)
    others = gradient[1:]
    case.require(not bool(others.any()), claim, f"a gradient of the first loss at other samples, {numbers(others)}")


def inputs(case: InnerCase) -> None:
    """Prediction and target are unchanged, and no call changes the next."""
    shape = case.build()
    prediction, target = case.several()
    before = prediction.clone(), target.clone()
    first = shape(prediction, target)
    case.require_equal(prediction, before[0], "should leave the prediction unchanged", "{} instead of {}")
    case.require_equal(target, before[1], "should leave the target unchanged", "{} instead of {}")
    shape(*case.several(4))
    shape.eval()
    case.show(prediction, target)
    again = shape(prediction, target)
    case.require_equal(again, first, "should give the same losses again, even in eval mode", "{} after {}")


def values(case: InnerCase) -> None:
    """check and forward read no value: they run on the meta device, which has none."""
    shape = case.build()
    prediction, target = (tensor.to("meta") for tensor in case.several())
    case.claim = "should read no value in check and forward, which would wait for the device"
    shape.to("meta")
    shape.check(prediction, target)
    losses = shape(prediction, target)
    case.require(losses.device.type == "meta", case.claim, f"losses on {losses.device}")
    if shape.masks:
        valid = torch.ones(target.shape, dtype=torch.bool, device="meta")
        case.require(shape(prediction, target, valid).shape == losses.shape, case.claim, "another shape with a mask")


def broadcasting(case: InnerCase) -> None:
    """Shapes match exactly: (N, 1) against (N,), or another number of samples, is an error."""
    shape = case.build()
    prediction, target = case.several()
    for wrong in (target.unsqueeze(-1), target[:-1], target[:1], target.unsqueeze(0)):
        case.given = f"a {case.kind} task, prediction {tuple(prediction.shape)}, target {tuple(wrong.shape)}"
        try:
            shape.check(prediction, wrong)
        except DataError:
            continue
        case.require(False, "check() should raise a DataError for shapes that do not match", "no error")


# inputs comes before gradients: an input that was changed makes them wrong in ways that are harder to read.
CHECKS: Final = named(declarations) | per_kind(
    sampling, structure, inputs, lower_bound, gradients, gradcheck, precision, order, coupling, values, broadcasting
)
