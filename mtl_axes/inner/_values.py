"""Checks of options that several shapes share, and the tensors that numbers per class or interval become in a call."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence, Set
from typing import Any

import torch
from torch import Tensor

from mtl_axes.errors import DataError, OptionError
from mtl_axes.options import check_number

__all__ = ["as_floats", "check_count", "check_numbers", "check_one_positive", "check_optional", "constants"]


def check_numbers(name: str, values: Sequence[float], *, least: int, low_open: bool = True) -> tuple[float, ...]:
    """Return ``values`` as a tuple of at least ``least`` finite numbers > 0 (>= 0), else raise :class:`OptionError`."""
    # The entries of a mapping would be its keys, and a set has no order.
    if isinstance(values, (str, bytes, Mapping, Set)) or not isinstance(values, Iterable):
        raise OptionError(f"Option `{name}` should be a sequence of numbers. Found {name}={values!r}.")
    # Tensors and arrays, and lists made of one, yield 0-dim tensors and arrays.
    plain = tuple(value.item() if hasattr(value, "item") and getattr(value, "ndim", 1) == 0 else value for value in values)
    if len(plain) < least:
        raise OptionError(f"Option `{name}` should have at least {least} entries. Found {name}={plain!r}.")
    return tuple(check_number(name, value, low=0.0, low_open=low_open) for value in plain)


def check_optional(name: str, value: float | None, **limits: Any) -> float | None:
    """Return ``value`` if it is None or passes :func:`check_number` with these limits."""
    return None if value is None else check_number(name, value, **limits)


def check_one_positive(**options: float) -> None:
    """Raise :class:`OptionError` if all of these options, two numbers >= 0, are 0."""
    if not any(options.values()):
        names = " and ".join(f"`{name}`" for name in options)
        raise OptionError(f"One of {names} should be positive. Found {' and '.join(f'{name}=0' for name in options)}.")


def as_floats(target: Tensor, prediction: Tensor) -> Tensor:
    """Return integer targets in the dtype of the prediction, and float targets unchanged.

    The logarithm of integers would have the default dtype.
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

    The copy reads pageable memory before it returns. So non_blocking is safe, and avoids the wait for the device in
    ``like.new_tensor``.
    """
    return torch.tensor(values, dtype=like.dtype).to(like.device, non_blocking=True)
