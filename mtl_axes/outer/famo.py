"""FAMO: fast adaptive multitask optimization."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from mtl_axes._state import vector
from mtl_axes.options import check_number, check_per_task, numbers_by_task
from mtl_axes.outer.adam import LogitsWeighting
from mtl_axes.outer.members import redistribute
from mtl_axes.signals import Signals, TaskInfo

_EPS = 1e-8


class FAMO(LogitsWeighting):
    r"""Weights under which all log-losses fall at the same rate, learned from the change of the losses in each step.

    ::

        z      = softmax(w),  w starts at 0
        lambda = c z / (L - b + 1e-8),  1 / c = sum_i z_i / (L_i - b_i + 1e-8)
        d      = log(L - b + 1e-8) - log(L' - b + 1e-8)     L' the losses on the same batch after the optimizer step
        dw_i   = z_i (d_i - sum_j z_j d_j)                  through the softmax; then one step of Adam(lr, decay gamma) on w

    FAMO needs the losses after the step, which cost one more forward. The adapters of trainers provide them. In your own
    loop, write ``with torch.no_grad(), criterion.after_step(): criterion(model(x), y)`` after ``optimizer.step()``. Without
    them z stays uniform, and the weights are the inverse losses. With ``accumulate > 1`` the weights of a window use the
    losses after the previous step.

    Sums run over the active tasks. A task keeps its weight, its z and its moments while it is absent, not finite, or not
    above its bound, where log(L - b) is undefined; the others share the sum that they had. w is updated only for two or more
    tasks that are active before and after the step. A loss near its bound takes all the weight: give a ``min_losses`` below
    what can be reached, or use another weighting if a task may be solved exactly.

    Args:
        lr: learning rate of w, > 0.
        gamma: weight decay of w, >= 0: how strongly z is drawn to the uniform.
        min_losses: b, one finite number for all tasks, or one per task: a sequence in the order of the tasks or a mapping by
            name. Below 0, it allows shapes whose losses can be negative. Any bound except 0 has a unit, so that weights
            depend on the units of the losses.

    Returns:
        (K,) positive weights that sum to 1.

    Raises:
        OptionError: an option is outside its range; on binding, the number or the names of the tasks differ.

    >>> weighting = FAMO(lr=0.1)
    >>> weighting(Signals(torch.tensor([2.0, 0.5])))
    tensor([0.2000, 0.8000])
    >>> weighting.after_step(torch.tensor([1.0, 0.5]), torch.tensor([True, True]))  # the step improved the first task
    >>> weighting(Signals(torch.tensor([2.0, 0.5])))
    tensor([0.1699, 0.8301])

    References:
        B. Liu, Y. Feng, P. Stone, Q. Liu, "FAMO: Fast Adaptive Multitask Optimization", 2023. Differs from the reference in
        the total, sum_i lambda_i L_i instead of c sum_i z_i log(L_i - b_i), which has the same gradient. The official code
        and LibMTL leave z attached to their total, and replace its gradient before they step, with the same result.
        ``gamma`` is 1e-3 as in LibMTL and TorchJD 0.18; the official class has 0.01, with which w after 15 steps on three
        least-squares tasks is (-0.31, -0.19, 0.34) instead of (-0.37, -0.35, 0.36). The official training also clips the
        gradient of the shared part, which is left to your loop. TorchJD gives losses of (0.5, 0) the weights (2e-8, 1),
        although the second task has nothing left to gain, and (0.5, -0.1) a w of NaN; here the second task is inactive in
        both. TorchJD and LibMTL do not save the moments of Adam.
    """

    needs = "losses"
    nonnegative = True
    total = "1"
    sign = "positive"
    scaling = "invariant"
    balances = True
    wants_after_step = True

    before: Tensor
    seen_at: Tensor
    turn: Tensor
    bounds: Tensor

    def __init__(
        self,
        *,
        lr: float = 0.025,
        gamma: float = 1e-3,
        min_losses: float | Sequence[float] | Mapping[str, float] = 0.0,
    ) -> None:
        super().__init__()
        self.lr = check_number("lr", lr, low=0.0, low_open=True)
        self.gamma = check_number("gamma", gamma, low=0.0)
        self.min_losses = check_per_task("min_losses", min_losses, common=True)
        given = self.min_losses
        bounds = [given] if isinstance(given, (int, float)) else list(given.values() if isinstance(given, dict) else given)
        if any(bound < 0 for bound in bounds):
            # Above such a bound a negative loss has a logarithm.
            self.nonnegative = False  # type: ignore[misc]
        if any(bound != 0 for bound in bounds):
            # Bounds have the unit of the losses.
            self.scaling = None  # type: ignore[assignment, misc]
            self.balances = False  # type: ignore[misc]
        if isinstance(given, (list, dict)):
            self.symmetric = False  # type: ignore[misc]

    def options(self) -> dict[str, Any]:
        return {**super().options(), "min_losses": copy.copy(self.min_losses)}

    def bind(self, tasks: tuple[TaskInfo, ...]) -> None:
        values = numbers_by_task("Option `min_losses`", self.min_losses, [task.name for task in tasks])
        super().bind(tasks)
        count = len(tasks)
        self.register_buffer("before", torch.zeros(count, dtype=self.dtype))
        # A task waits for its loss after the step if `seen_at` is the present turn, which an absent task never reaches.
        self.register_buffer("seen_at", torch.full((count,), -1, dtype=torch.int64))
        self.register_buffer("turn", torch.zeros((), dtype=torch.int64))
        # Not persistent: the bounds come from the option, not from a checkpoint.
        self.register_buffer("bounds", vector(values, self.dtype, self.current.device), persistent=False)

    def forward(self, signals: Signals, /) -> Tensor:
        active = signals.active & (signals.losses > self.bounds)
        self.turn.add_(1)
        self.before.copy_(torch.where(active, signals.losses, self.before))
        self.seen_at.copy_(torch.where(active, self.turn, self.seen_at))
        return self._shares(signals.losses, active)

    def after_step(self, losses: Tensor, active: Tensor, /) -> None:
        both = active & (losses > self.bounds) & (self.seen_at == self.turn)
        moves = both & (both.sum() > 1)
        change = torch.where(moves, self._log(self.before) - self._log(losses), 0.0)
        z = torch.where(moves, self.logits.softmax(0), 0.0)
        mass = z.sum().clamp_min(torch.finfo(z.dtype).tiny)
        gradient = z * (change - (z * change).sum() / mass)
        self.adam_step(gradient, moves, lr=self.lr, decay=self.gamma)
        self.turn.add_(1)
        self.current.copy_(self._shares(losses, both))

    def _log(self, losses: Tensor) -> Tensor:
        return (losses - self.bounds + _EPS).log()

    def _shares(self, losses: Tensor, active: Tensor) -> Tensor:
        """Return the weights: z / (L - b) of the active tasks, scaled to the sum that these tasks had."""
        scores = self.logits - self._log(torch.where(active, losses, self.bounds + 1))
        return redistribute(torch.where(active, scores, -torch.inf).softmax(0), active, self.current, 1.0)

    def diagnostics(self) -> Mapping[str, Tensor]:
        return {"z": self.logits.softmax(0)}
