"""Labels of several tasks as functions of values: packing the rows of a batch, and filling in missing labels."""

from __future__ import annotations

from collections.abc import Mapping
from functools import reduce
from typing import Any

import torch
from torch import Tensor

from mtl_axes.errors import DataError
from mtl_axes.tasks import TaskSet, as_mapping

__all__ = ["as_label", "complete", "stack"]

_MISSING_CLASS = -100


def as_label(task: str, value: Any) -> Tensor | None:
    """Return a label as a tensor: floats of the default dtype, int64 or bool; tensors and None unchanged.

    Raises:
        DataError: it is neither a number nor an array.
    """
    if value is None or isinstance(value, Tensor):
        return value
    try:
        tensor = torch.as_tensor(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise DataError(f"A label of task {task!r} should be a number or an array. Found {value!r}.") from error
    if tensor.is_floating_point():
        return tensor.to(torch.get_default_dtype())
    return tensor if tensor.dtype is torch.bool else tensor.long()


def stack(task: str, labels: list[Tensor | None], missing: str) -> Tensor | None:
    """Return a task's labels of a batch as one tensor, missing ones as NaN or -100; None if all are missing.

    Raises:
        DataError: some are missing although ``missing="error"``, or they differ in shape.
    """
    present = [label for label in labels if label is not None]
    if not present:
        return None
    some_missing = len(present) < len(labels)
    if some_missing and missing != "ignore":
        raise DataError(
            f"{len(labels) - len(present)} of {len(labels)} labels of task {task!r} in a batch are None. Use "
            'compose(..., missing="ignore"), or give all rows of a batch a label or none.'
        )
    shapes = sorted({tuple(label.shape) for label in present})
    if len(shapes) > 1:
        raise DataError(f"The labels of task {task!r} should have one shape in a batch. Found {shapes}. Pad them.")
    dtype = reduce(torch.promote_types, (label.dtype for label in present))
    if dtype is torch.bool and some_missing:
        dtype = torch.get_default_dtype()
    blank = torch.full(shapes[0], torch.nan if dtype.is_floating_point else _MISSING_CLASS, dtype=dtype)
    return torch.stack([blank if label is None else _cast(label, dtype, missing) for label in labels])


def complete(labels: Mapping[str, Tensor | None], outputs: Any, tasks: TaskSet) -> dict[str, Tensor | None]:
    """Return labels of every task that has an output: a missing label as NaN or -100, or None if its shape is unknown.

    Labels are floats, except integers for classes, so that batches and ranks agree on the dtype.
    """
    output_of = as_mapping("outputs", outputs, tasks.names)
    completed: dict[str, Tensor | None] = {}
    for task in tasks.names:
        label, output = labels.get(task), output_of.get(task)
        if output is None:
            continue
        if label is None:
            label = _blank(task, output, tasks)
        elif label.ndim == output.ndim and not label.is_floating_point():
            label = _cast(label, torch.get_default_dtype(), tasks.missing)
        completed[task] = label
    return completed


def _blank(task: str, output: Tensor, tasks: TaskSet) -> Tensor | None:
    kind, given = tasks.known_kinds().get(task), tasks.given.get(task)
    kinds = {kind} if kind is not None else given.kinds if given is not None else {"regression", "multiclass"}
    if "multiclass" not in kinds or output.ndim == 1:
        return torch.full_like(output, torch.nan, dtype=torch.get_default_dtype())
    if kinds == {"multiclass"}:
        return torch.full_like(output.select(1, 0), _MISSING_CLASS, dtype=torch.int64)
    return None


def _cast(label: Tensor, dtype: torch.dtype, missing: str) -> Tensor:
    """Return a label in another dtype; -100 among integers becomes NaN among floats."""
    if missing == "ignore" and dtype.is_floating_point and not label.is_floating_point():
        return label.to(dtype).masked_fill(label == _MISSING_CLASS, torch.nan)
    return label.to(dtype)
