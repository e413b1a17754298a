"""Fast adaptive multitask optimization."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from mtl_axes._state import vector
from mtl_axes.options import check_number
from mtl_axes.outer.adam import adam_step
from mtl_axes.outer.base import OuterWeighting
from mtl_axes.outer.members import redistribute
from mtl_axes.outer.per_task import check_per_task, numbers_of, per_task
from mtl_axes.signals import Need, Signals, TaskInfo

__all__ = ["FAMO"]

_EPS = 1e-8


class FAMO(OuterWeighting):
    r"""Weights under which the logarithms of all losses fall alike, learned from what each optimizer step did to them.

    ::

        z      = softmax(w),  w starts at 0
        lambda = c z / (L - b + 1e-8),  1 / c = sum_i z_i / (L_i - b_i + 1e-8)
        d      = log(L - b + 1e-8) - log(L' - b + 1e-8)     L' the losses on the same batch after the optimizer step
        dw_i   = z_i (d_i - sum_j z_j d_j)                  through the softmax; then one step of Adam(lr, decay gamma) on w

    It needs the losses after the step, one more forward: an adapter of a trainer provides them, and in a loop of your own
    ``with torch.no_grad(), criterion.after_step(): criterion(model(x), y)`` after ``optimizer.step()``. Without them z stays
    uniform, and the weights are the inverse losses. With ``accumulate > 1`` the weights of a window use the losses after the
    step before it.

    Sums run over the active tasks. A task that is absent, not finite, or not above its bound, where log(L - b) ends, keeps
    its weight, its z and its moments, and the others share the mass that they had; w moves only where two tasks or more are
    active before and after the step. A loss that comes near its bound takes all the weight: give a ``min_losses`` below what
    can be reached, or reach for another weighting where a task may be solved exactly.

    Args:
        lr: learning rate of w, > 0.
        gamma: weight decay of w, >= 0: how strongly z is drawn to the uniform.
        min_losses: b, one finite number for all tasks, or one per task: a sequence in the order of the tasks or a mapping by
            name. One below 0 admits shapes whose losses can be negative; any but 0 has a unit, so that weights depend on
            the units of the losses.

    Returns:
        (K,) positive weights that sum to 1.

    Raises:
        OptionError: an option is outside its range; on binding, the number or the names of the tasks differ.

    >>> weighting = FAMO(lr=0.1)
    >>> weighting(Signals(torch.tensor([2.0, 0.5])))
    tensor([0.2000, 0.8000])
    >>> weighting.after_step(torch.tensor([1.0, 0.5]), torch.tensor([True, True]))  # the first task got better, by its step
    >>> weighting(Signals(torch.tensor([2.0, 0.5])))
    tensor([0.1699, 0.8301])

    References:
        B. Liu, Y. Feng, P. Stone, Q. Liu, "FAMO: Fast Adaptive Multitask Optimization", 2023. Differs from the reference in
        the total, sum_i lambda_i L_i instead of c sum_i z_i log(L_i - b_i), which has the same gradient. The official code
        and LibMTL leave z attached to their total, and replace the gradient that it gets there before they step: it is the
        same. ``gamma`` is 1e-3 as in LibMTL and TorchJD 0.18, where the official class has 0.01: after 15 steps on three
        least-squares tasks w is then (-0.31, -0.19, 0.34) instead of (-0.37, -0.35, 0.36). The official training clips the
        gradient of the shared part as well, which is yours to do. TorchJD gives losses of (0.5, 0) the weights (2e-8, 1),
        for a task that has nothing left to gain, and (0.5, -0.1) a w of NaN; here the second task is inactive in both.
        TorchJD and LibMTL do not save the moments of Adam.
    """

    needs: ClassVar[Need] = "losses"
    nonnegative: ClassVar[bool] = True
    total: ClassVar[Literal["1", "K"] | None] = "1"
    sign: ClassVar[Literal["positive", "nonnegative", "any"]] = "positive"
    scaling: ClassVar[Literal["invariant", "inverse"] | None] = "invariant"
    balances: ClassVar[bool] = True
    wants_after_step: ClassVar[bool] = True

    logits: Tensor
    moment1: Tensor
    moment2: Tensor
    updates: Tensor
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
        bounds = numbers_of(self.min_losses)
        if any(bound < 0 for bound in bounds):
            # What can be negative has a logarithm above such a bound.
            self.nonnegative = False  # type: ignore[misc]
        if any(bound != 0 for bound in bounds):
            # Bounds have the units of the losses.
            self.scaling = None  # type: ignore[misc]
            self.balances = False  # type: ignore[misc]
        if isinstance(self.min_losses, (list, dict)):
            self.symmetric = False  # type: ignore[misc]

    def options(self) -> dict[str, Any]:
        return {**super().options(), "min_losses": copy.copy(self.min_losses)}

    def bind(self, tasks: tuple[TaskInfo, ...]) -> None:
        values, count = per_task("Option `min_losses`", self.min_losses, tasks), len(tasks)
        super().bind(tasks)
        for name in ("logits", "moment1", "moment2", "updates", "before"):
            self.register_buffer(name, torch.zeros(count, dtype=self.dtype))
        # A task waits for its loss after the step where it was seen at this turn. Neither marks a task that is absent.
        self.register_buffer("seen_at", torch.full((count,), -1, dtype=torch.int64))
        self.register_buffer("turn", torch.zeros((), dtype=torch.int64))
        # Not persistent: the option, not a checkpoint, says what the bounds are.
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
        adam_step(self.logits, self.moment1, self.moment2, self.updates, gradient, moves, lr=self.lr, decay=self.gamma)
        self.turn.add_(1)
        self.current.copy_(self._shares(losses, both))

    def _log(self, losses: Tensor) -> Tensor:
        return (losses - self.bounds + _EPS).log()

    def _shares(self, losses: Tensor, active: Tensor) -> Tensor:
        """Return the weights: z / (L - b) of the active tasks, scaled to the mass that they have."""
        scores = self.logits - self._log(torch.where(active, losses, self.bounds + 1))
        return redistribute(torch.where(active, scores, -torch.inf).softmax(0), active, self.current, 1.0)

    def diagnostics(self) -> Mapping[str, Tensor]:
        return {"z": self.logits.softmax(0)}
