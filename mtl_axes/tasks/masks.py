"""Valid labels, sample weights, and the masked mean that turns losses per sample into the loss of a task."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from mtl_axes.errors import DataError
from mtl_axes.inner import InnerShape
from mtl_axes.signals import wide

__all__ = ["Reduction", "align", "check_tensors", "counting", "reduce_losses", "sample_losses", "stand_in", "valid_labels"]

Reduction = Literal["mean", "weighted_mean"]

_IGNORED_CLASS = -100


def check_tensors(name: str, prediction: object, target: object) -> None:
    """Raise :class:`DataError` unless both are tensors of a usable dtype, on one device and not empty."""
    if not isinstance(prediction, Tensor) or not isinstance(target, Tensor):
        role, value = ("target", target) if isinstance(prediction, Tensor) else ("output", prediction)
        raise DataError(f"The {role} of task {name!r} should be a tensor. Found {type(value).__name__}.")
    if not prediction.is_floating_point():
        raise DataError(f"The output of task {name!r} should be floating point. Found {prediction.dtype}.")
    if prediction.device != target.device:
        raise DataError(
            f"Output and target of task {name!r} should be on one device. Found {prediction.device} and {target.device}."
        )
    if target.numel() == 0 or prediction.numel() == 0:
        raise DataError(
            f"Task {name!r} should have at least one sample. Found output {tuple(prediction.shape)} and target "
            f"{tuple(target.shape)}. Pass None as its target to leave the task out of this call."
        )


def align(role: str, name: str, values: Tensor, shape: torch.Size, *, of: str = "its target") -> Tensor:
    """Return ``values``, of the target's shape or of its leading dimensions, in the target's shape.

    Args:
        role: what they are, for the message.
        name: the task, for the message.
        values: the tensor.
        shape: that of the target, or of what else they belong to.
        of: what has this shape, for the message.

    Raises:
        DataError: the shapes do not match from the left.
    """
    if not isinstance(values, Tensor):
        raise DataError(
            f"The {role} of task {name!r} should be a tensor, given for all tasks or in a mapping by task. "
            f"Found {type(values).__name__}."
        )
    if values.shape != shape[: values.ndim] or values.ndim == 0:
        raise DataError(
            f"The {role} of task {name!r} should have the shape of {of} {tuple(shape)}, or of its leading dimensions. "
            f"Found {tuple(values.shape)}."
        )
    return values.reshape(values.shape + (1,) * (len(shape) - values.ndim)).expand(shape)


def valid_labels(name: str, target: Tensor, mask: Tensor | None, missing: str) -> Tensor | None:
    """Return a bool mask of the labels that count, in the shape of the target, or None when all do."""
    valid = None
    if mask is not None:
        valid = align("mask", name, mask, target.shape)
        if valid.dtype is not torch.bool:
            raise DataError(f"The mask of task {name!r} should be bool, True where a label is valid. Found {mask.dtype}.")
    if missing == "ignore" and target.dtype is not torch.bool:
        labelled = ~torch.isnan(target) if target.is_floating_point() else target != _IGNORED_CLASS
        valid = labelled if valid is None else valid & labelled
    return valid


def sample_losses(shape: InnerShape, prediction: Tensor, target: Tensor, valid: Tensor | None) -> Tensor:
    """Return the unreduced losses, in float32 or wider, with 0 at places that do not count; the shapes are checked already.

    Predictions and targets at those places are replaced by 0 *before* the shape, and their losses by 0 after it: a NaN
    there would otherwise come back in the gradient as NaN * 0. A pooled shape gives one loss per sample, the others one per
    entry of the target.
    """
    dtype = wide(prediction.dtype)
    # A conversion to the dtype that a tensor has already is not free.
    if prediction.dtype is not dtype:
        prediction = prediction.to(dtype)
    if target.dtype is not dtype and target.is_floating_point():
        target = target.to(dtype)
    if valid is None:
        return shape.unchecked(prediction, target)
    target = torch.where(valid, target, torch.zeros((), dtype=target.dtype, device=target.device))
    keep = valid.unsqueeze(-1 if shape.trailing else 1) if prediction.ndim > valid.ndim else valid
    prediction = torch.where(keep, prediction, 0.0)
    losses = shape.unchecked(prediction, target, valid) if shape.masks else shape.unchecked(prediction, target)
    return torch.where(counting(shape, valid), losses, 0.0)


def stand_in(shape: InnerShape, prediction: Tensor, target: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
    """Return both in their own shapes, at places that do not count with what another place holds, to check their values."""
    dim = -1 if shape.trailing else 1
    one_more = prediction.ndim > target.ndim
    entries = prediction.movedim(dim, -1) if one_more else prediction.unsqueeze(-1)
    filled = torch.where(valid.unsqueeze(-1), entries, entries[valid][0])
    return filled.movedim(-1, dim) if one_more else filled.squeeze(-1), torch.where(valid, target, target[valid][0])


def counting(shape: InnerShape, valid: Tensor) -> Tensor:
    """Return which losses of a shape count: those of valid entries, or of samples with a valid entry when it pools them."""
    return valid.flatten(1).any(1) if shape.pooled and valid.ndim > 1 else valid


def reduce_losses(
    losses: Tensor, valid: Tensor | None, sample_weight: Tensor | None, reduction: Reduction
) -> tuple[Tensor, Tensor | None, Tensor | int]:
    """Return the loss of a task, its number of valid labels (None when all are valid), and what the loss was divided by.

    ``"mean"`` divides by the number of valid labels, never by the sum of weights: a weight of 2 doubles a sample's
    gradient. ``"weighted_mean"`` divides by the sum of the weights of the valid labels. Without any valid label the loss is
    0 and stays attached to the graph, so that every head gets a (zero) gradient.
    """
    if sample_weight is not None:
        weight = sample_weight.to(losses.dtype)
        if valid is not None:
            weight = torch.where(valid, weight, 0.0)
        losses = losses * weight
    if valid is None and (reduction == "mean" or sample_weight is None):
        return losses.mean(), None, losses.numel()
    count = valid.sum() if valid is not None else None
    if reduction == "weighted_mean" and sample_weight is not None:
        denominator = weight.sum()
        # All valid weights may be 0; the loss is then 0 too.
        return losses.sum() / torch.where(denominator > 0, denominator, 1.0), count, denominator
    assert count is not None
    return losses.sum() / count.clamp_min(1), count, count
