"""What the losses and gradients of an inner shape are, against what its class claims of them."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Final

import torch
from torch import Tensor

from mtl_axes.errors import DataError
from mtl_axes.inner import InnerShape
from mtl_axes.signals import Kind
from mtl_axes.testing.case import both, close, equal, numbers
from mtl_axes.testing.inner_case import InnerCase, expected_size, f64, per_kind

__all__ = ["CHECKS"]

_ROUNDING = 1e-12
# Residuals, of the size of the sample's own and this small.
_NEAR = 1e-3
# Rounding of float32 is 6e-8, and 6e-5 of a residual of 1e-3 where terms of size 1 make it up. A loss that is quadratic
# there and computed from such terms has lost 6e-2: between the two lies what cannot be helped and what a formula can.
_SINGLE = 1e-3


def declarations(case: InnerCase) -> None:
    """Claims have values that the contract knows."""
    shape = case.build()
    case.require(shape.coupling in ("sample", "batch"), "should claim coupling as 'sample' or 'batch'", repr(shape.coupling))
    for claim in ("pooled", "trailing", "detaches"):
        value = getattr(shape, claim)
        case.require(isinstance(value, bool), f"should claim {claim} as True or False", repr(value))
    bound = shape.lower_bound
    case.require(
        bound is None or (isinstance(bound, float) and math.isfinite(bound)),
        "should claim lower_bound as a finite float, or None where there is none",
        repr(bound),
    )
    for claim in ("target_range", "prediction_range"):
        value = getattr(shape, claim)
        holds = isinstance(value, tuple) and len(value) == 2 and value[0] < value[1]
        case.require(holds, f"should claim {claim} as (low, high)", repr(value))


def sampling(case: InnerCase) -> None:
    """Its own sample() draws what it takes: seeded, of the dtype, within its ranges, and passed by both checks."""
    shape = case.build()
    for size in case.sizes():
        prediction, target = case.sample(size, shape=shape)
        again = case.sample(size, shape=shape)
        case.require(
            equal(prediction, again[0]) and equal(target, again[1]),
            "sample() should draw from the generator alone",
            "other values for the same seed",
        )
        case.require(prediction.dtype is f64, "sample() should draw predictions of the dtype", str(prediction.dtype))
        case.require(target.shape[:1] == (size[0],), "sample() should draw as many targets as asked for", str(target.shape))
        if case.kind == "regression":
            for what, values, bounds in (
                ("target", target, shape.target_range),
                ("prediction", prediction, shape.prediction_range),
            ):
                low, high = float(values.min()), float(values.max())
                holds = bounds[0] <= low and high <= bounds[1]
                case.require(holds, f"claims {what}_range={bounds}", f"samples in [{low:g}, {high:g}]")
        case.claim = "check_values() should pass what sample() draws"
        with warnings.catch_warnings():
            # In a criterion the prediction has a graph, and torch warns whoever reads a value off it: detach() first.
            warnings.filterwarnings("error", message="Converting a tensor with requires_grad=True")
            shape.check_values(prediction.requires_grad_(), target)


def structure(case: InnerCase) -> None:
    """A shape does not reduce: one finite loss per entry, or per sample when pooled, in the prediction's dtype."""
    shape = case.build()
    for size in case.sizes():
        for dtype in (f64, torch.float32):
            prediction, target = case.sample(size, dtype=dtype, shape=shape)
            losses = shape(prediction, target)
            case.require(isinstance(losses, Tensor), "should return a tensor of losses", type(losses).__name__)
            wanted = expected_size(shape, target)
            claim = (
                "claims pooled=True, so that it gives one loss per sample"
                if shape.pooled
                else "should give one loss per entry"
            )
            case.require(losses.shape == wanted, f"{claim} {tuple(wanted)}", f"the shape {tuple(losses.shape)}")
            case.require(
                losses.dtype is dtype, f"should give losses in the dtype of the prediction, {dtype}", str(losses.dtype)
            )
            case.require(bool(torch.isfinite(losses).all()), "should give finite losses", numbers(losses))
    if shape.masks:
        claimed = "pooled=True" if shape.pooled else "coupling='batch'"
        case.about(f"claims {claimed}, so that forward takes the mask of valid entries as a third argument", case.given)
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
            case.tell(prediction, target)
            losses = shape(prediction, target)
            least = float(losses.min())
            size = float(losses.abs().max())
            case.require(
                least >= bound - _ROUNDING * max(1.0, size), f"claims lower_bound={bound}", f"a loss of {least:.6g}"
            )


def _scales(shape: InnerShape, kind: Kind) -> tuple[float, ...]:
    # What is bounded from above cannot be large.
    return (1.0,) if kind == "regression" and shape.prediction_range[1] < math.inf else (1.0, 1e4)


def _larger(prediction: Tensor, scale: float, shape: InnerShape) -> Tensor:
    """Return predictions that many times as far from where their range begins."""
    low = shape.prediction_range[0]
    return scale * prediction if low == -math.inf else low + scale * (prediction - low)


def gradients(case: InnerCase) -> None:
    """Gradients are finite for ordinary and for large predictions, and reach the prediction."""
    shape = case.build()
    for scale in _scales(shape, case.kind):
        for size in case.sizes():
            prediction, target = case.sample(size, shape=shape)
            prediction = _larger(prediction, scale, shape).requires_grad_()
            case.tell(prediction, target)
            losses = shape(prediction, target)
            case.require(
                bool(torch.isfinite(losses).all()), "should give finite losses for large predictions", numbers(losses)
            )
            case.require(losses.requires_grad, "should give losses with a graph to the prediction", "none")
            (gradient,) = torch.autograd.grad(losses.sum(), prediction)
            case.require(bool(torch.isfinite(gradient).all()), "should have finite gradients", numbers(gradient))
            if scale == 1.0 and size[0] > 2:
                case.require(bool(gradient.any()), "should have a gradient that reaches the prediction", "zeros everywhere")
    if case.kind == "regression":
        prediction, target = case.several()
        if prediction.shape == target.shape:
            prediction = target.clamp(*shape.prediction_range).requires_grad_()
            case.tell(prediction, target)
            (gradient,) = torch.autograd.grad(shape(prediction, target).sum(), prediction)
            told = "should have finite gradients where the prediction is the target"
            case.require(bool(torch.isfinite(gradient).all()), told, numbers(gradient))


def gradcheck(case: InnerCase) -> None:
    """The gradient is that of the losses: against differences, in float64. One that says it detaches says that it is not."""
    shape = case.build()
    if shape.detaches:
        return
    prediction, target = case.several()
    leaf = prediction.requires_grad_()
    case.claim = "should have the derivative of its losses as their gradient, or claim detaches=True (gradcheck)"
    torch.autograd.gradcheck(lambda value: shape(value, target), (leaf,), fast_mode=False)


def precision(case: InnerCase) -> None:
    """Losses and gradients in float32 are those of float64, relative to the largest: no formula cancels its digits."""
    for size in case.sizes():
        for seed in range(2):
            shape = case.build()
            prediction, target = case.sample(size, seed, shape=shape)
            for values in (prediction, _nearer(prediction, target, shape, case.kind)):
                if values is not None:
                    _compare_precisions(case, values.float(), target.float() if target.is_floating_point() else target)


def _nearer(prediction: Tensor, target: Tensor, shape: InnerShape, kind: Kind) -> Tensor | None:
    """Return predictions whose residuals are 1e-3 of the sample's, logits if they are any, or None where there are none."""
    if kind != "regression":
        return _NEAR * prediction
    low, high = shape.prediction_range
    # A prediction of several parameters has no residual, and a target need not be a prediction.
    if prediction.shape != target.shape or bool((target < low).any()) or bool((target > high).any()):
        return None
    return target + _NEAR * (prediction - target)


def _compare_precisions(case: InnerCase, prediction: Tensor, target: Tensor) -> None:
    case.tell(prediction, target)
    found: list[tuple[Tensor, Tensor]] = []
    for dtype in (torch.float32, f64):
        leaf = prediction.to(dtype).requires_grad_()
        losses = case.build()(leaf, target.to(dtype) if target.is_floating_point() else target)
        (gradient,) = torch.autograd.grad(losses.sum(), leaf)
        found.append((losses.detach(), gradient))
    for what, single, double in zip(("losses", "gradients"), *found, strict=True):
        case.require(
            close(single, double, _SINGLE),
            f"should give in float32 the {what} of float64, to {_SINGLE:g} of the largest",
            f"{numbers(single)} and {numbers(double)}",
        )


def order(case: InnerCase) -> None:
    """Permuting the samples permutes the losses."""
    shape = case.build()
    prediction, target = case.several()
    index = torch.randperm(len(target), generator=torch.Generator().manual_seed(3))
    found, expected = shape(prediction[index], target[index]), shape(prediction, target)[index]
    case.require(
        close(found, expected, 1e-9),
        "should not depend on the order of the samples",
        f"losses {numbers(found)} where the permutation {index.tolist()} gives {numbers(expected)}",
    )


def coupling(case: InnerCase) -> None:
    """coupling="sample" says that samples are independent: those of two batches have the losses of one."""
    shape = case.build()
    if shape.coupling != "sample":
        return
    (first, target), (second, other) = case.several(0), case.several(1)
    case.tell(torch.cat([first, second]), torch.cat([target, other]))
    leaf = torch.cat([first, second]).requires_grad_()
    together = shape(leaf, torch.cat([target, other]))
    apart = torch.cat([shape(first, target), shape(second, other)])
    case.require(
        close(together, apart, 1e-12),
        "claims coupling='sample'",
        f"losses {numbers(together)} in one batch and {numbers(apart)} in two",
    )
    (gradient,) = torch.autograd.grad(together[0].sum(), leaf)
    others = gradient[1:]
    case.require(
        not bool(others.any()),
        "claims coupling='sample'",
        f"a gradient of the first loss at other samples, {numbers(others)}",
    )


def inputs(case: InnerCase) -> None:
    """Prediction and target are left alone, and no call changes the next."""
    shape = case.build()
    prediction, target = case.several()
    kept = prediction.clone(), target.clone()
    first = shape(prediction, target)
    case.require(equal(prediction, kept[0]), "should leave the prediction alone", numbers(prediction))
    case.require(equal(target, kept[1]), "should leave the target alone", numbers(target))
    shape(*case.several(4))
    shape.eval()
    case.tell(prediction, target)
    again = shape(prediction, target)
    case.require(
        equal(again, first),
        "should give the same losses again, in eval mode too",
        " after ".join(both(again, first)),
    )


def values(case: InnerCase) -> None:
    """check and forward read no value: they run on the meta device, where there are none."""
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
        case.require(False, "check() should refuse shapes that do not match with a DataError", "none")


CHECKS: Final[dict[str, Callable[[InnerCase], None]]] = {
    "declarations": declarations,
    "sampling": per_kind(sampling),
    "structure": per_kind(structure),
    # Before the gradients, which an input that was changed makes wrong in ways that are harder to read.
    "inputs": per_kind(inputs),
    "lower bound": per_kind(lower_bound),
    "gradients": per_kind(gradients),
    "gradcheck": per_kind(gradcheck),
    "precision": per_kind(precision),
    "order": per_kind(order),
    "coupling": per_kind(coupling),
    "values": per_kind(values),
    "broadcasting": per_kind(broadcasting),
}
