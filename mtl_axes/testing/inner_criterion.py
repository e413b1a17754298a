"""An inner shape with masks, copied, built again, and in a criterion: half precision, the sum, its gradient, the config."""

from __future__ import annotations

import json
from typing import Any, Final

import torch
from torch import Tensor, nn

from mtl_axes.composition import compose
from mtl_axes.errors import DataError
from mtl_axes.inner import InnerShape
from mtl_axes.testing.case import nameable, numbers
from mtl_axes.testing.inner_case import KINDS, InnerCase, f64, per_kind, total_of

__all__ = ["CHECKS"]


def masks(case: InnerCase) -> None:
    """In a criterion a mask equals deletion, in value and gradient, whatever values the masked places hold."""
    prediction, target = case.several()
    keep = torch.arange(len(target)) % 3 != 1
    claim = "should treat masked samples as deleted ones"
    for garbage in (False, True):
        leaf, label = prediction.clone(), target.clone()
        if garbage:
            leaf[~keep] = torch.nan
            if label.is_floating_point():
                label[~keep] = torch.nan
            elif label.dtype is not torch.bool:
                label[~keep] = -100
        what = "NaN at masked places" if garbage else "masked samples"
        case.show(prediction, target, f", {what}, mask {numbers(keep)}")
        total, gradient = total_of(case, leaf, label, keep)
        expected, slope = total_of(case, prediction[keep], target[keep], None)
        case.require_close(total, expected, claim, "the loss {} and {} without them")
        case.require_close(gradient[keep], slope, claim, "gradients {} and {}")
        rest = gradient[~keep]
        case.require(not bool(rest.any()), claim, f"gradients {numbers(rest)} at masked places")


def entries(case: InnerCase) -> None:
    """A column that is masked throughout counts as deleted, whatever values it holds."""
    shape = case.build()
    claim = "should treat a masked column as a deleted one"
    for size in case.sizes():
        if len(size) < 2 or size[0] < 2 or (shape.coupling == "batch" and not shape.pooled):
            continue
        prediction, target = case.sample(size, shape=shape)
        if target.shape != torch.Size(size):
            continue
        dim = target.ndim - 1
        # Classes lie at dimension 1 of the prediction, parameters in the last one.
        within = dim if prediction.ndim == target.ndim or shape.trailing else dim + 1
        valid = torch.ones(target.shape, dtype=torch.bool)
        valid.select(dim, 1).fill_(False)
        rest = torch.tensor([index for index in range(size[-1]) if index != 1])
        less, fewer = prediction.index_select(within, rest), target.index_select(dim, rest)
        try:
            shape.check(less, fewer)
        except DataError:
            continue  # the shape takes a fixed number of entries
        spoiled, label = prediction.clone(), target.clone()
        spoiled.select(within, 1).fill_(torch.nan)
        if label.is_floating_point():
            label.select(dim, 1).fill_(torch.nan)
        case.show(prediction, target, ", NaN in a masked column")
        total, gradient = total_of(case, spoiled, label, valid)
        expected, slope = total_of(case, less, fewer, None)
        case.require_close(total, expected, claim, "the loss {} and {} without it")
        case.require_close(gradient.index_select(within, rest), slope, claim, "gradients {} and {}")


def valid_entries(case: InnerCase) -> None:
    """A shape that couples entries leaves masked ones out itself, even in a batch without any valid one."""
    shape = case.build()
    if not shape.masks:
        return
    prediction, target = case.several()
    keep = torch.arange(len(target)) % 3 != 1
    valid = keep.reshape(-1, *[1] * (target.ndim - 1)).expand(target.shape).contiguous()
    hidden, label = _zeroed(prediction, target, valid, shape)
    case.show(hidden, label, f", valid {numbers(keep)}")
    losses, expected = shape(hidden, label, valid)[keep], shape(prediction[keep], target[keep])
    claim = "should leave out what is not valid, as if it were deleted"
    case.require_close(losses, expected, claim, "losses {} and {} without it")
    case.show(prediction, target, ", all valid")
    losses, expected = shape(prediction, target, torch.ones_like(valid)), shape(prediction, target)
    case.require_close(losses, expected, "should treat a mask that is True throughout as no mask", "losses {} and {}")
    for count in (0, 1):
        some = torch.zeros_like(valid)
        some[:count] = True
        hidden, label = _zeroed(prediction, target, some, shape)
        case.show(hidden, label, f", {count} valid samples")
        leaf = hidden.requires_grad_()
        losses = shape(leaf, label, some)
        claim = f"should stay finite with {count} valid samples"
        case.require_finite(losses, claim, "losses {}")
        (gradient,) = torch.autograd.grad(losses.sum(), leaf, allow_unused=True)
        if gradient is not None:
            case.require_finite(gradient, claim, "gradients {}")


def _zeroed(prediction: Tensor, target: Tensor, valid: Tensor, shape: InnerShape) -> tuple[Tensor, Tensor]:
    """Return what a criterion passes to a shape: 0 where an entry does not count."""
    keep = valid.unsqueeze(-1 if shape.trailing else 1) if prediction.ndim > valid.ndim else valid
    return torch.where(keep, prediction, 0.0), torch.where(valid, target, torch.zeros((), dtype=target.dtype))


def copies(case: InnerCase) -> None:
    """deepcopy, pickle and load_state_dict keep the function."""
    shape = case.build()
    prediction, target = case.several()
    expected = shape(prediction, target)
    for way, twin in case.copies(shape):
        case.require_equal(twin(prediction, target), expected, f"should give the same losses after {way}")


def rebuilt(case: InnerCase) -> None:
    """The repr is the constructor call, and the options are its arguments."""
    shape = case.build()
    prediction, target = case.several()
    expected = shape(prediction, target)
    for _, twin in case.rebuilt(shape):
        case.require_equal(twin(prediction, target), expected, case.claim, "losses {} and {}")


def half(case: InnerCase) -> None:
    """A criterion computes shapes in float32 or wider, whatever the dtype of the model."""
    prediction, target = case.several(dtype=torch.float32)
    narrow = prediction.bfloat16()
    case.show(narrow, target, " in bfloat16")
    total, gradient = total_of(case, narrow, target, None)
    expected, _ = total_of(case, narrow.float(), target, None)
    claim = "should be computed in float32 by a criterion, for a prediction in bfloat16"
    case.require(total.dtype is torch.float32, claim, str(total.dtype))
    case.require_equal(total, expected, claim, "the loss {} and {} in float32")
    case.require(gradient.dtype is torch.bfloat16, claim, f"a gradient in {gradient.dtype}")


class _Plain(InnerShape):
    """A quarter of the squared prediction: a shape that takes every prediction, to compare another shape with."""

    kinds = frozenset(KINDS)

    def check(self, prediction: Tensor, target: Tensor) -> None:
        pass

    def forward(self, prediction: Tensor, target: Tensor, /) -> Tensor:
        square = prediction.square() / 4
        if prediction.ndim <= target.ndim:
            return square
        # Which dimension holds several numbers per entry does not matter for a mean over all of them.
        classes_last = square.movedim(1, -1)
        return (classes_last if classes_last.shape[:-1] == target.shape else square).mean(-1)


def in_a_criterion(case: InnerCase) -> None:
    """A criterion returns the weighted mean losses and their gradient, and the two axes enter the total bilinearly."""
    prediction, target = case.several()
    case.claim = "should go into a criterion"
    scale = nn.Parameter(torch.ones((), dtype=f64))
    other = prediction.flatten(1).sum(1) if prediction.ndim > 1 else prediction
    outputs = {"x": prediction * scale, "y": other * scale}
    targets = {"x": target, "y": torch.linspace(-1, 1, len(target), dtype=f64)}
    fixed = [0.3, 0.7]

    def total(outer: dict[str, Any], shape: InnerShape) -> tuple[Tensor, Any]:
        criterion = compose(outer, {"x": shape, "y": "mse"})
        return criterion(outputs, targets), criterion.report

    whole, report = total({"name": "gaba", "warmup": 0, "beta": 0.5}, case.build())
    weights = report.weights
    at_live, _ = total({"name": "fixed", "weights": weights.tolist()}, _Plain())
    first, _ = total({"name": "fixed", "weights": fixed}, _Plain())
    second, _ = total({"name": "fixed", "weights": fixed}, case.build())
    mean, plain = (shape(outputs["x"], target).mean() for shape in (case.build(), _Plain()))
    left = float(((whole - at_live) - (second - first)).detach())
    right = float(((weights[0] - fixed[0]) * (mean - plain)).detach())
    case.require(
        abs(left - right) <= 1e-9 * (1 + float((mean.abs() + plain.abs()).detach())),
        "should enter a total bilinearly, (L_D - L_C) - (L_B - L_A) = (lambda - mu) (S - P)",
        f"{left:.12g} and {right:.12g}",
    )
    rest = (outputs["y"] - targets["y"]).square().mean()
    (gradient,) = torch.autograd.grad(whole, scale, retain_graph=True)
    (expected,) = torch.autograd.grad(weights[0] * mean + weights[1] * rest, scale)
    claim = "should have the weighted gradient of its mean as its part of the total's"
    case.require_close(gradient, expected, claim, rtol=1e-8, atol=1e-12)


def config(case: InnerCase) -> None:
    """A registered shape is named in the config of a criterion, plain data that builds the same criterion."""
    shape = case.build()
    if not nameable(shape):
        return
    prediction, target = case.several()
    criterion = compose("fixed", {"task": shape})
    case.claim = "should be built again from the config of a criterion"
    twin = compose(**json.loads(json.dumps(criterion.config())))
    case.require(twin.config() == criterion.config(), case.claim, repr(twin.shapes))
    left, right = (each((prediction,), (target,)) for each in (criterion, twin))
    case.require_equal(left, right, case.claim, "the totals {} and {}")


CHECKS: Final = per_kind(masks, entries, valid_entries, copies, rebuilt, half, in_a_criterion, config)
