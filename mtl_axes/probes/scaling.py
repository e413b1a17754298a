"""Loss scales for gradients that pass through float16: a power of two per task, adapted on the device, never read.

float16 holds 6e-8 to 65504. One scale for all tasks overflows for one of them where it saves another from vanishing, so
each task's loss has its own while it is measured, and the norms are divided by it in float32. The exponents of the scales
are integers, which no cast of the model can narrow.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["fresh_exponents", "moved_exponents", "scales_of", "vote"]

# As high as GradScaler begins: too high costs the first measurements of a task, too low would make them wrong.
_START = 16
# The exponents of a scaled norm with which its scale stays. The upper one is near the largest number that there is,
# because an overflow shows itself and an underflow does not; the step leads well into the range from either side.
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
    """Return by norm of a scaled gradient which way its scale should go: 1 up, -1 down, 0 where it is.

    Args:
        norms: (K,) with infinity or NaN after an overflow, which votes for down; 0 votes for up.
    """
    exponents = (norms.to(torch.float32).view(torch.int32) >> 23 & 0xFF) - 127
    return (exponents < _LOW).to(torch.int32) - (exponents >= _HIGH).to(torch.int32)


def moved_exponents(exponents: Tensor, votes: Tensor) -> Tensor:
    """Return the exponents (K,) after one step in the direction of the votes, (K,) sums over calls and ranks."""
    return (exponents + _STEP * votes.sign().to(torch.int32)).clamp(-_LIMIT, _LIMIT)
