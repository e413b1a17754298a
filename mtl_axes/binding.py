"""When a criterion learns its tasks: names and kinds from the first calls, state for them, on the device of the losses."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from mtl_axes.errors import StateError
from mtl_axes.outer import OuterWeighting
from mtl_axes.probes import Probe
from mtl_axes.signals import Kind, wide
from mtl_axes.tasks import TaskSet
from mtl_axes.telemetry.tally import Tally
from mtl_axes.window import Window

__all__ = ["Binding"]


class Binding:
    """Binds the weighting and the window of a criterion to its tasks.

    Args:
        tasks: the tasks, as far as they are known.
        outer: the weighting.
        window: the window.
        tally: the sums of compiled calls.
        probe: how gradients are measured.
    """

    def __init__(self, tasks: TaskSet, outer: OuterWeighting, window: Window, tally: Tally, probe: Probe) -> None:
        self._tasks = tasks
        self.outer = outer
        self.window = window
        self._tally = tally
        self.probe = probe
        # The kinds that the weighting knows.
        self._kinds: dict[str, Kind] = {}
        if outer.learnable and tasks.names:
            self._bind(torch.float32)

    def prepare(self, values: Tensor) -> None:
        """Allocate state in the first call; keep it on the device of the losses, and as wide as they are.

        Raises:
            StateError: the weighting is bound to other tasks.
        """
        window, outer, tasks = self.window, self.outer, self._tasks
        if not window.allocated:
            self._bind(wide(values.dtype))
        if tasks.kinds != self._kinds:
            self._kinds = dict(tasks.kinds)
            if any(info.kind is None for info in outer.tasks):
                outer.tasks = tasks.infos()
        window.follow(values)
        self._tally.follow(values)
        outer.follow(values)

    def _bind(self, dtype: torch.dtype) -> None:
        # Outside inference mode: a state allocated in a validation pass before training must be trainable state.
        with torch.inference_mode(False):
            infos, outer = self._tasks.infos(), self.outer
            if not outer.bound:
                outer.dtype = dtype
                outer.bind(infos)
            elif tuple(info.name for info in outer.tasks) != self._tasks.names:
                raise StateError(
                    f"The weighting is bound to the tasks {[info.name for info in outer.tasks]}, this criterion has "
                    f"{list(self._tasks.names)}. Give each criterion a weighting of its own."
                )
            self.window.bind(len(infos), outer.needs, dtype, partial=self.probe.partial)
            self._tally.bind(len(infos), dtype)

    def restore(self, saved: Mapping[str, Any], sums: Tensor | None) -> None:
        """Take over the tasks of a saved state, before its tensors are loaded.

        Args:
            saved: the description of the state, see :func:`mtl_axes.checkpoint.describe_state`.
            sums: (K,) a tensor of the saved window, for its dtype; None if the state was saved before the first call.
        """
        if not saved["tasks"]:
            return
        window, outer, tasks = self.window, self.outer, self._tasks
        with self.undone_by_errors():
            tasks.restore(tuple(saved["tasks"]), saved["kinds"])
            if sums is not None and not window.allocated:
                self._bind(sums.dtype)
        if sums is not None:
            window.follow(sums.to(window.loss_sum.device))
        outer.tasks = tasks.infos() if outer.bound else ()
        self._kinds = dict(tasks.kinds)

    @contextlib.contextmanager
    def undone_by_errors(self) -> Iterator[None]:
        """Within this context an error takes back what was learned of the tasks, unless state was allocated for them."""
        before, allocated = self._tasks.snapshot(), self.window.allocated
        try:
            yield
        except BaseException:
            if self.window.allocated == allocated:
                self._tasks.go_back(before)
            raise
