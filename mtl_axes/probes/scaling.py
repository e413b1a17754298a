"""Loss scales for gradients that pass through float16: a power of two per task, adapted on the device, never read.

float16 holds 6e-8 to 65504. A scale that saves the gradient of one task from vanishing may overflow for another, so each
task's loss has a scale of its own while it is measured, and the norms are divided by it in float32. The exponents are
integers, which no cast of the model can narrow.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["fresh_exponents", "moved_exponents", "scales_of", "vote"]

# As high as GradScaler begins: a scale that is too high costs the first measurements, one that is too low makes them wrong.
_START = 16
# A scale stays while the exponent of the scaled norm is between these. The upper one is near the largest number of float16,
# because an overflow is visible and an underflow is not; the step leads well into the range from either side.
_LOW, _HIGH = -2, 14
_STEP = 8
_LIMIT = 32


def fresh_exponents(count: int, device: torch.device | None = None) -> Tensor:
    """Return the exponents (K,) to begin with."""
    return torch.full((count,), _START, dtype=torch.int32, device=device)


def scales_of(exponents: Tensor) -> Tensor:
    """Return the scales 2^e (K,) in float32, put together from their bits and so exact on every device."""
    return ((exponents + 127) << 23).view(torch.float32)


def vote(norms: Tensor) -> Tensor:
    """Return which way the scale of a gradient should change: 1 up, -1 down, 0 not at all.

    Args:
        norms: (K,) norms of the scaled gradients. Infinity or NaN, after an overflow, votes for down; 0 votes for up.
    """
    exponents = (norms.to(torch.float32).view(torch.int32) >> 23 & 0xFF) - 127
    return (exponents < _LOW).to(torch.int32) - (exponents >= _HIGH).to(torch.int32)


def moved_exponents(exponents: Tensor, votes: Tensor) -> Tensor:
    """Return the exponents (K,) after one step in the direction of the votes, (K,) sums over calls and ranks."""
    return (exponents + _STEP * votes.sign().to(torch.int32)).clamp(-_LIMIT, _LIMIT)
