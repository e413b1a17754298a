"""The base class of weightings that learn logits by an Adam of their own, without the user's optimizer."""

from __future__ import annotations

import torch
from torch import Tensor

from mtl_axes.outer.base import OuterWeighting
from mtl_axes.signals import TaskInfo

_BETAS = (0.9, 0.999)
_EPS = 1e-8


class LogitsWeighting(OuterWeighting):
    """A weighting from the softmax of logits (K,) that start at 0. The moments of Adam are a part of its state."""

    logits: Tensor
    moment1: Tensor
    moment2: Tensor
    updates: Tensor

    def bind(self, tasks: tuple[TaskInfo, ...]) -> None:
        super().bind(tasks)
        for name in ("logits", "moment1", "moment2", "updates"):
            self.register_buffer(name, torch.zeros(len(tasks), dtype=self.dtype))

    def adam_step(self, gradient: Tensor, moves: Tensor, *, lr: float, decay: float = 0.0) -> None:
        """Take one step of Adam on the logits.

        Args:
            gradient: (K,), finite; 0 for a task that is not in ``moves``.
            moves: (K,) bool. Any other task keeps its moments and its part of the softmax.
            lr: learning rate.
            decay: added to the gradient, times the logits, as the ``weight_decay`` of ``torch.optim.Adam``.
        """
        logits, (beta1, beta2) = self.logits, _BETAS
        if decay:
            gradient = gradient + decay * logits
        first = beta1 * self.moment1 + (1 - beta1) * gradient
        second = beta2 * self.moment2 + (1 - beta2) * gradient.square()
        count = self.updates + 1
        step = lr * (first / (1 - beta1**count)) / ((second / (1 - beta2**count)).sqrt() + _EPS)
        moved = torch.where(moves, logits - step, logits)
        # Softmax ignores a common shift. This one leaves the weights of the other tasks unchanged.
        shift = _log_mass(logits, moves) - _log_mass(moved, moves)
        moved = torch.where(moves & ~moves.all(), moved + shift, moved)
        logits.copy_(moved)
        for state, value in ((self.moment1, first), (self.moment2, second), (self.updates, count)):
            state.copy_(torch.where(moves, value, state))


def _log_mass(logits: Tensor, members: Tensor) -> Tensor:
    # -1e30 instead of -inf: without members the difference of two such masses is 0 and not NaN.
    return torch.where(members, logits, -1e30).logsumexp(0)
