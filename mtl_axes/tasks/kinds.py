"""The kind of a task (regression, binary, multiclass), inferred from its first targets, and the standard shape of a kind."""

from __future__ import annotations

import torch
from torch import Tensor

from mtl_axes.errors import DataError
from mtl_axes.inner import BCE, MSE, CrossEntropy, InnerShape
from mtl_axes.registry import name_of
from mtl_axes.signals import Kind

__all__ = ["infer_kind", "is_standard", "standard_shape"]

_STANDARD: dict[Kind, type[InnerShape]] = {"regression": MSE, "binary": BCE, "multiclass": CrossEntropy}
_STANDARD_NAMES: dict[Kind, str] = {"regression": "mse", "binary": "bce", "multiclass": "cross_entropy"}


def standard_shape(kind: Kind) -> InnerShape:
    """Return the standard loss of a kind: mse, bce or cross_entropy."""
    return _STANDARD[kind]()


def is_standard(shape: InnerShape) -> bool:
    """Return whether ``shape`` is the standard loss of a kind."""
    return type(shape) in _STANDARD.values()


def infer_kind(
    name: str,
    prediction: Tensor,
    target: Tensor,
    shape: InnerShape | None,
    labels: Tensor | None,
    default: InnerShape | None = None,
) -> Kind:
    """Return the kind of a task from its first targets.

    Args:
        name: the task, for the message.
        prediction: its prediction.
        target: its target.
        shape: the shape that the user gave for this very task, which narrows the choice to its kinds; else None.
        labels: the labelled target values, to tell 0/1 floats; None when there are none yet.
        default: the shape that the user gave for all tasks, for the message.

    Raises:
        DataError: more than one kind fits, or none.
    """
    one_more = prediction.ndim == target.ndim + 1
    # Integer targets of a shape whose predictions have several numbers per target are numbers, not classes.
    classes = one_more and not (shape is not None and shape.trailing)
    if target.dtype is torch.bool:
        fits: list[Kind] = ["binary"]
        why = "bool targets"
    elif target.is_floating_point():
        zero_one = labels is not None and bool(((labels == 0) | (labels == 1)).all())
        fits = ["regression", "binary"] if zero_one else ["regression"]
        why = "float targets that hold only 0 and 1" if zero_one else "float targets"
        if shape is not None and "binary" in shape.kinds and "regression" not in shape.kinds:
            soft = labels is None or bool(((labels >= 0) & (labels <= 1)).all())
            # A shape for nothing else says itself which values it wants.
            fits = ["binary"] if soft or shape.kinds == {"binary"} else fits
    elif target.is_complex():
        raise DataError(f"Targets of task {name!r} should be float, integer or bool. Found {target.dtype}.")
    elif classes:
        fits, why = ["multiclass"], "integer targets"
    else:
        fits, why = ["regression", "binary"], "integer targets with a prediction of the same number of dimensions"
    if shape is not None:
        possible = [kind for kind in fits if kind in shape.kinds]
        if not possible:
            raise DataError(
                f"Task {name!r} has the shape {shape!r} for {', '.join(sorted(shape.kinds))} tasks. Found {why} "
                f"{tuple(target.shape)} ({target.dtype}) with a prediction {tuple(prediction.shape)}, which fit "
                f"{' or '.join(fits)}.{_label_hint(prediction, target, shape)}"
            )
        fits = possible
    if len(fits) > 1:
        number, label = (_shape_name(kind, default) for kind in ("regression", "binary"))
        raise DataError(
            f"The kind of task {name!r} should be clear from its targets. Found {why}, which may be "
            f"{' or '.join(fits)}. Name the task's shape: inner={{{name!r}: {number!r}, ...}} for regression, "
            f"inner={{{name!r}: {label!r}, ...}} for a binary task."
        )
    return fits[0]


def _label_hint(prediction: Tensor, target: Tensor, shape: InnerShape) -> str:
    if "multiclass" not in shape.kinds or not target.is_floating_point():
        return ""
    if prediction.ndim == target.ndim + 1:
        return " For class indices use target.long()."
    return " For one column per class use target.argmax(1)." if prediction.shape == target.shape and target.ndim > 1 else ""


def _shape_name(kind: Kind, default: InnerShape | None) -> str:
    own = name_of("inner", type(default)) if default is not None and kind in default.kinds else None
    return own or _STANDARD_NAMES[kind]
