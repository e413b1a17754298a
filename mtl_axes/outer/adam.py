"""Adam for weightings that move logits by themselves: its moments are state of the weighting, and saved with it."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["adam_step"]

_BETAS = (0.9, 0.999)
_EPS = 1e-8


def adam_step(
    logits: Tensor,
    moment1: Tensor,
    moment2: Tensor,
    updates: Tensor,
    gradient: Tensor,
    moves: Tensor,
    *,
    lr: float,
    decay: float = 0.0,
) -> None:
    """Take one step of Adam on the logits of a softmax, in place, for the entries that move.

    Args:
        logits: (K,).
        moment1: (K,) running mean of the gradients, zeros at first.
        moment2: (K,) running mean of their squares, zeros at first.
        updates: (K,) steps that each entry has taken, zeros at first.
        gradient: (K,), finite; 0 where an entry does not move.
        moves: (K,) bool. An entry that does not move keeps its moments and its part of the softmax.
        lr: learning rate.
        decay: added to the gradient, times the logits, as the ``weight_decay`` of ``torch.optim.Adam``.
    """
    beta1, beta2 = _BETAS
    if decay:
        gradient = gradient + decay * logits
    first = beta1 * moment1 + (1 - beta1) * gradient
    second = beta2 * moment2 + (1 - beta2) * gradient.square()
    count = updates + 1
    step = lr * (first / (1 - beta1**count)) / ((second / (1 - beta2**count)).sqrt() + _EPS)
    moved = torch.where(moves, logits - step, logits)
    # Softmax ignores a common shift. This one keeps the weights of the tasks that do not move where they are.
    shift = _log_mass(logits, moves) - _log_mass(moved, moves)
    moved = torch.where(moves & ~moves.all(), moved + shift, moved)
    logits.copy_(moved)
    moment1.copy_(torch.where(moves, first, moment1))
    moment2.copy_(torch.where(moves, second, moment2))
    updates.copy_(torch.where(moves, count, updates))


def _log_mass(logits: Tensor, members: Tensor) -> Tensor:
    # -1e30 instead of -inf: with no member the difference of two such masses is 0 and not NaN.
    return torch.where(members, logits, -1e30).logsumexp(0)
