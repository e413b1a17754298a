"""Options that hold one number per class or interval, and the tensors they become in a call."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence, Set

import torch
from torch import Tensor

from mtl_axes.errors import DataError, OptionError
from mtl_axes.options import check_number

__all__ = ["as_floats", "check_count", "check_values_option", "constants"]


def check_values_option(name: str, values: Sequence[float], *, least: int, low_open: bool = True) -> tuple[float, ...]:
    """Return ``values`` as a tuple of at least ``least`` finite numbers > 0 (>= 0), else raise :class:`OptionError`."""
    # The entries of a mapping would be its keys, and a set has no order.
    if isinstance(values, (str, bytes, Mapping, Set)) or not isinstance(values, Iterable):
        raise OptionError(f"Option `{name}` should be a sequence of numbers. Found {name}={values!r}.")
    # A tensor or an array yields 0-dim ones of its own type, and so does a list made of one.
    found = tuple(value.item() if hasattr(value, "item") and getattr(value, "ndim", 1) == 0 else value for value in values)
    if len(found) < least:
        raise OptionError(f"Option `{name}` should have at least {least} entries. Found {name}={found!r}.")
    return tuple(check_number(name, value, low=0.0, low_open=low_open) for value in found)


def as_floats(target: Tensor, prediction: Tensor) -> Tensor:
    """Return integer targets in the dtype of the prediction, float ones as they are.

    A logarithm of integers would be in the default dtype.
    """
    return target if target.is_floating_point() else target.to(prediction.dtype)


def check_count(name: str, values: Sequence[float], logits: int) -> None:
    """Raise :class:`DataError` unless an option has one entry for each logit of a prediction."""
    if len(values) != logits:
        raise DataError(
            f"`{name}` should have one entry per logit, {logits}. Found {len(values)}: {name}={tuple(values)!r}."
        )


def constants(values: Sequence[float], like: Tensor) -> Tensor:
    """Return host numbers as a 1-d tensor in the dtype and on the device of ``like``.

    The copy is from pageable memory, which is read before it returns: non_blocking is safe, and spares the wait for the
    device that ``like.new_tensor`` would be.
    """
    return torch.tensor(values, dtype=like.dtype).to(like.device, non_blocking=True)
