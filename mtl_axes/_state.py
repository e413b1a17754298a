"""State of the criterion and its parts: float32 or wider even if the model is cast, and on the device of the losses."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mtl_axes.signals import wide

__all__ = ["WideState", "vector"]


class WideState(nn.Module):
    """A module whose floating point state is never narrowed below float32, by ``.half()``, ``.bfloat16()`` or ``.to()``."""

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        def keep_wide(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            narrowed = tensor.is_floating_point() and moved.dtype.itemsize < torch.float32.itemsize
            # The values come from the original: a round trip through bfloat16 would lose them.
            return tensor.to(moved.device) if narrowed else moved

        return super()._apply(keep_wide, recurse)  # type: ignore[no-untyped-call]

    def follow(self, like: Tensor) -> None:
        """Move the state to the device of ``like``, and widen it where ``like`` is wider; it is never narrowed."""
        device, size = like.device, like.dtype.itemsize
        moves = widens = False
        for state in (self._buffers, self._parameters):
            for tensor in state.values():
                if tensor is not None:
                    moves = moves or tensor.device != device
                    widens = widens or (tensor.dtype.itemsize < size and tensor.is_floating_point())
        if moves or widens:
            # Outside inference mode: state that a validation pass moves must stay trainable.
            with torch.inference_mode(False):
                self.to(device if moves else None, wide(like.dtype) if widens else None)


def vector(values: Sequence[float | bool], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return host values as a 1-d tensor, filled on the device: a copy from the host would wait for the device."""
    if len(set(values)) == 1:
        return torch.full((len(values),), values[0], dtype=dtype, device=device)
    return torch.stack([torch.full((), value, dtype=dtype, device=device) for value in values])
