"""How the ranks of a process group agree on a training call."""

from __future__ import annotations

from mtl_axes.distributed import Notes, agree, ranks
from mtl_axes.mode import Mode
from mtl_axes.outer import OuterWeighting
from mtl_axes.tasks import TaskLosses, TaskSet
from mtl_axes.tasks.losses import over_ranks
from mtl_axes.window import Window

__all__ = ["Agreement"]


class Agreement:
    """Compares tasks and schedule over the ranks in the first calls, and shares what all ranks know of the losses.

    Args:
        tasks: the tasks.
        window: the window, for its schedule.
        outer: the weighting.

    Attributes:
        done: True once all ranks are known to mean the same.
    """

    def __init__(self, tasks: TaskSet, window: Window, outer: OuterWeighting) -> None:
        self._tasks = tasks
        self._window = window
        self._outer = outer
        self.done = False

    def needed(self, mode: Mode) -> bool:
        """Return whether other ranks matter to a call."""
        sync, outer = self._window.sync, self._outer
        if mode.kind not in ("training", "held") or ranks(sync) == 1:
            return False
        # Constants need no other rank; statistics are of no use to a held call.
        return sync == "gradients" or outer.learnable or (outer.reads_signals and mode.kind == "training")

    def reach(self, losses: TaskLosses) -> TaskLosses:
        """Return the losses of a call with what the ranks know together of them, as far as the weighting needs it."""
        tasks, window = self._tasks, self._window
        if not self.done:
            options = {"every": window.every, "accumulate": window.accumulate, "sync": window.sync}
            self.done = tasks.adopt(agree(Notes(tasks.names, window.step, options, tasks.settled_kinds())))
        return over_ranks(losses, window.sync) if window.sync == "gradients" or self._outer.learnable else losses

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "done": False}
