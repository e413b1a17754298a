"""The losses after an optimizer step, for weightings that want them."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from mtl_axes.distributed import ranks
from mtl_axes.outer import OuterWeighting
from mtl_axes.signals import active_tasks
from mtl_axes.tasks import TaskLosses
from mtl_axes.tasks.losses import over_ranks
from mtl_axes.window import Window, no_autocast

__all__ = ["AfterStep"]

# Windows without the losses after their steps before a warning.
_UNANSWERED = 20


class AfterStep:
    """The block ``criterion.after_step()``: sums the losses of its calls, and hands their means to the weighting.

    Args:
        outer: the weighting.
        window: the window, which knows whether the weighting waits for these losses.

    Attributes:
        open: True within the block.
    """

    def __init__(self, outer: OuterWeighting, window: Window) -> None:
        self._outer = outer
        self._window = window
        self.open = False
        self._loss_sum: Tensor | None = None
        self._loss_count: Tensor | None = None

    @contextlib.contextmanager
    def block(self, commit: Callable[[], None], held: Callable[[], bool]) -> Iterator[None]:
        """Within this context losses are added.

        Args:
            commit: commits the pending window, which the optimizer step has ended.
            held: whether the criterion is within ``hold()``.
        """
        self.open, self._loss_sum, self._loss_count = True, None, None
        try:
            if self._outer.wants_after_step and not held():
                commit()
            yield
        finally:
            self.open = False
        if self._outer.wants_after_step and not held() and self._window.allocated:
            with torch.no_grad(), no_autocast(self._window.loss_sum.device.type):
                self._hand_over()

    def shared_by_ranks(self, losses: TaskLosses, *, held: bool) -> TaskLosses:
        """Return the losses of a call within the block, those of the whole batch under ``sync="gradients"``."""
        whole = self._window.sync == "gradients" and ranks("gradients") > 1 and self._outer.wants_after_step and not held
        return over_ranks(losses, "gradients") if whole else losses

    def add(self, losses: TaskLosses) -> None:
        """Add the losses of one call."""
        dtype = self._window.loss_sum.dtype
        active = active_tasks(losses.values, losses.labelled)
        total, count = torch.where(active, losses.values.to(dtype), 0.0), active.to(dtype)
        if self._loss_sum is not None and self._loss_count is not None:
            total, count = self._loss_sum + total, self._loss_count + count
        self._loss_sum, self._loss_count = total, count

    def _hand_over(self) -> None:
        total, count = self._loss_sum, self._loss_count
        if total is None or count is None:
            if ranks(self._window.sync) == 1:
                return
            # Other ranks had calls, and wait.
            total = count = torch.zeros_like(self._window.loss_sum)
        self._window.hand_over(self._outer, total, count)

    def warning_if_missing(self) -> str | None:
        """Return a warning if a weighting that wants these losses has not had them for many windows."""
        if not self._outer.wants_after_step or self._window.unanswered() < _UNANSWERED:
            return None
        return (
            f"{type(self._outer).__name__} needs the loss after the optimizer step, and has not had it for {_UNANSWERED} "
            "windows. Add after optimizer.step(): with torch.no_grad(), criterion.after_step(): criterion(model(x), y), "
            "on the batch of that step."
        )

    def __getstate__(self) -> dict[str, Any]:
        # A copy made within the block is not in it: nothing would ever release it.
        return {**self.__dict__, "open": False, "_loss_sum": None, "_loss_count": None}
