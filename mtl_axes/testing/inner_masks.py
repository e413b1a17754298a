"""Masked labels count as deleted, whatever values they hold."""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor

from mtl_axes.errors import DataError
from mtl_axes.inner import InnerShape
from mtl_axes.testing.case import numbers
from mtl_axes.testing.inner_case import InnerCase, per_kind, total_of

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


CHECKS: Final = per_kind(masks, entries, valid_entries)
