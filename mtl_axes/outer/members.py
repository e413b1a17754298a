"""Helpers of loss-based weightings: the tasks that take part in a window, and how they share their weights.

No value is read on the host.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mtl_axes.signals import Signals

__all__ = ["LEAST", "MOST", "positive_losses", "redistribute", "subproblem"]

# Beyond what training in float32 resolves, and so far from the ends of its range that sums over tasks and products with
# losses stay finite.
LEAST, MOST = 1e-30, 1e30


def positive_losses(signals: Signals) -> tuple[Tensor, Tensor]:
    """Return the losses (K,), 1 for a task that is not a member, and the members (K,): active tasks with a loss above 0.

    A non-negative loss of exactly 0 has no gradient, so there is nothing for a weight to scale, and its logarithm or
    reciprocal would take all the weight from the other tasks. Losses below 1e-30 count as 1e-30.
    """
    members = signals.active & (signals.losses > 0)
    return torch.where(members, signals.losses.clamp_min(LEAST), 1.0), members


def subproblem(weights: Tensor, members: Tensor, current: Tensor) -> Tensor:
    """Return the weights of a weighting without memory: at most 1e30, 0 for non-members; without members, the current."""
    return torch.where(members.any(), torch.where(members, weights.clamp_max(MOST), 0.0), current)


def redistribute(shares: Tensor, members: Tensor, current: Tensor, total: float) -> Tensor:
    """Return the weights of a weighting with memory: the members share the sum that they had, the others keep theirs.

    Args:
        shares: (K,) non-negative, of any scale, with a positive sum over the members.
        members: (K,) bool.
        current: (K,) weights so far.
        total: the sum of all K weights.
    """
    # The sum over all tasks is the total by definition: its rounding must not enter the weights window after window.
    mass = torch.where(members.all(), total, torch.where(members, current, 0.0).sum())
    shares = torch.where(members, shares, 0.0)
    return torch.where(members, shares / shares.sum() * mass, current)
