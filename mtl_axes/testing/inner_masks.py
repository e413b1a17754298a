"""Masked labels: as if they were deleted, whatever lies there."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import torch
from torch import Tensor

from mtl_axes.errors import DataError
from mtl_axes.inner import InnerShape
from mtl_axes.testing.case import close, numbers
from mtl_axes.testing.inner_case import InnerCase, per_kind, total_of

__all__ = ["CHECKS"]


def masks(case: InnerCase) -> None:
    """In a criterion a mask equals deletion, in value and gradient, and what lies at masked places does not matter."""
    prediction, target = case.several()
    count = len(target)
    keep = torch.arange(count) % 3 != 1
    for garbage in (False, True):
        leaf, other = prediction.clone(), target.clone()
        if garbage:
            leaf[~keep] = torch.nan
            if other.is_floating_point():
                other[~keep] = torch.nan
            elif other.dtype is not torch.bool:
                other[~keep] = -100
        what = "NaN at masked places" if garbage else "masked samples"
        case.tell(prediction, target, f", {what}, mask {numbers(keep)}")
        total, gradient = total_of(case, leaf, other, keep)
        wanted, slope = total_of(case, prediction[keep], target[keep], None)
        claim = "should treat masked samples as deleted ones"
        case.require(close(total, wanted, 1e-9), claim, f"the loss {numbers(total)} and {numbers(wanted)} without them")
        case.require(close(gradient[keep], slope, 1e-9), claim, f"gradients {numbers(gradient[keep])} and {numbers(slope)}")
        rest = gradient[~keep]
        case.require(not bool(rest.any()), claim, f"gradients {numbers(rest)} at masked places")


def entries(case: InnerCase) -> None:
    """Masks of single entries: their values do not matter; a column masked throughout is a column deleted."""
    shape = case.build()
    for size in case.sizes():
        if len(size) < 2 or size[0] < 2 or (shape.coupling == "batch" and not shape.pooled):
            continue
        prediction, target = case.sample(size, shape=shape)
        if target.shape != torch.Size(size):
            continue
        dim = target.ndim - 1
        within = _dimension(prediction, target, shape, dim)
        valid = torch.ones(target.shape, dtype=torch.bool)
        valid.select(dim, 1).fill_(False)
        here = torch.tensor([index for index in range(size[-1]) if index != 1])
        less, fewer = prediction.index_select(within, here), target.index_select(dim, here)
        try:
            shape.check(less, fewer)
        except DataError:
            continue  # one whose number of entries is fixed
        spoiled, other = prediction.clone(), target.clone()
        spoiled.select(within, 1).fill_(torch.nan)
        if other.is_floating_point():
            other.select(dim, 1).fill_(torch.nan)
        case.tell(prediction, target, ", NaN in a masked column")
        total, gradient = total_of(case, spoiled, other, valid)
        wanted, slope = total_of(case, less, fewer, None)
        claim = "should treat a masked column as a deleted one"
        case.require(close(total, wanted, 1e-9), claim, f"the loss {numbers(total)} and {numbers(wanted)} without it")
        found = gradient.index_select(within, here)
        case.require(close(found, slope, 1e-9), claim, f"gradients {numbers(found)} and {numbers(slope)}")


def _dimension(prediction: Tensor, target: Tensor, shape: InnerShape, dim: int) -> int:
    """Return the dimension of the prediction that belongs to a dimension of the target: classes at 1, parameters last."""
    return dim if prediction.ndim == target.ndim or shape.trailing else dim + 1


def valid_entries(case: InnerCase) -> None:
    """A shape that couples entries leaves masked ones out by itself, down to a batch where nothing counts."""
    shape = case.build()
    if not shape.masks:
        return
    prediction, target = case.several()
    keep = torch.arange(len(target)) % 3 != 1
    valid = keep.reshape(-1, *[1] * (target.ndim - 1)).expand(target.shape).contiguous()
    hidden, other = _zeroed(prediction, target, valid, shape)
    case.tell(hidden, other, f", valid {numbers(keep)}")
    found, expected = shape(hidden, other, valid)[keep], shape(prediction[keep], target[keep])
    claim = "should leave out what is not valid, as if it were deleted"
    case.require(close(found, expected, 1e-9), claim, f"losses {numbers(found)} and {numbers(expected)} without it")
    whole = torch.ones_like(valid)
    case.tell(prediction, target, ", all valid")
    found, expected = shape(prediction, target, whole), shape(prediction, target)
    told = "should take a mask of True throughout for none"
    case.require(close(found, expected, 1e-9), told, f"losses {numbers(found)} and {numbers(expected)}")
    for first in (0, 1):
        some = torch.zeros_like(valid)
        some[:first] = True
        hidden, other = _zeroed(prediction, target, some, shape)
        case.tell(hidden, other, f", {first} valid samples")
        leaf = hidden.requires_grad_()
        losses = shape(leaf, other, some)
        (gradient,) = torch.autograd.grad(losses.sum(), leaf, allow_unused=True)
        finite = bool(torch.isfinite(losses).all()) and (gradient is None or bool(torch.isfinite(gradient).all()))
        told = f"should stay finite with {first} valid samples"
        case.require(finite, told, f"losses {numbers(losses)} and gradients {numbers(gradient)}")


def _zeroed(prediction: Tensor, target: Tensor, valid: Tensor, shape: InnerShape) -> tuple[Tensor, Tensor]:
    """Return what a criterion hands over: 0 where an entry does not count."""
    keep = valid.unsqueeze(-1 if shape.trailing else 1) if prediction.ndim > valid.ndim else valid
    return torch.where(keep, prediction, 0.0), torch.where(valid, target, torch.zeros((), dtype=target.dtype))


CHECKS: Final[dict[str, Callable[[InnerCase], None]]] = {
    "masks": per_kind(masks),
    "entries": per_kind(entries),
    "valid entries": per_kind(valid_entries),
}
