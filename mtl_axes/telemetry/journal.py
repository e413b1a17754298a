"""The journal of a criterion: what its training calls did, kept on the device until somebody reads it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mtl_axes._state import vector
from mtl_axes.errors import OptionError
from mtl_axes.probes import Measurement
from mtl_axes.signals import StepReport, active_tasks, is_finite
from mtl_axes.tasks import TaskLosses, TaskSet
from mtl_axes.telemetry.records import Held, Records
from mtl_axes.telemetry.rows import Row
from mtl_axes.telemetry.tally import Call, Tally, dropped_in, means_of, steadier_calls, sums_of
from mtl_axes.window import Window

__all__ = ["Journal"]

_FOLD_AT = 64


class _Unread(NamedTuple):
    """The last training call: its report is made when it is read."""

    tasks: tuple[str, ...]
    call: Call
    measurement: Measurement | None
    collected: Measurement | None
    step: int | Tensor
    extra: Mapping[str, Tensor]


class Journal:
    """Gathers calls without a kernel each, and folds them now and then into the log, the drop counts and the history.

    Args:
        tasks: the tasks, for their names.
        window: the window, for its counts.

    Attributes:
        tally: the sums of compiled calls.
        history: the rows of committed windows; None unless somebody made a History.
        earlier_history: the saved rows of a state that was loaded before a History was made.
    """

    def __init__(self, tasks: TaskSet, window: Window) -> None:
        self._tasks = tasks
        self._window = window
        self.tally = Tally()
        self.history: Records | None = None
        self.earlier_history: dict[str, Any] | None = None
        self._entries: list[tuple[Call | None, Row | None]] = []
        self._log: tuple[Tensor, Tensor] | None = None
        self._anchor: Tensor | None = None
        self._steady: Tensor | None = None
        self._unread: _Unread | None = None
        self._report: StepReport | None = None

    def note(
        self,
        losses: TaskLosses,
        weights: Tensor,
        measurement: Measurement | None,
        collected: Measurement | None,
        extra: Mapping[str, Tensor],
        *,
        compiled: bool,
    ) -> None:
        """Take note of a training call, after the commit if it was a window of its own.

        Args:
            losses: the losses of the call.
            weights: (K,) the weights that multiplied them.
            measurement: what this call measured.
            collected: what a lagged probe collected in the window before.
            extra: diagnostics of the strategies.
            compiled: whether the call is traced by torch.compile.
        """
        # A lagged probe has nothing of this call to show.
        shown = collected if measurement is None else measurement
        norms, measured = (None, (False,) * len(losses.losses)) if shown is None else (shown.norms, shown.measured)
        call = Call(losses.values, losses.labelled, weights.detach(), norms, measured, lagged=measurement is None)
        step = self._window.clock()
        if compiled:
            self.tally.add(call)
        else:
            row = None if self.history is None else self._row(self.history, call, step, shown, extra.get("floor_active"))
            self._add(call, row)
        self._unread = _Unread(self._tasks.names, call, measurement, collected, step, extra)

    def note_window(self, weights: Tensor) -> None:
        """Take note of the pending window of several calls, before its commit; ``weights`` (K,) if no call was noted."""
        history = self.history
        if history is not None and self._window.calls:
            with torch.no_grad():
                losses, norms, cosines = self._window.means()
                held = history.held or Held(weights.detach())
                step = self._window.clock() + 1
                self._add(None, Row(step, history.skipped, losses, held.weights, None, norms, held.floored, cosines))
                history.note(None)

    def _row(
        self, history: Records, call: Call, step: int | Tensor, shown: Measurement | None, floored: Tensor | None
    ) -> Row | None:
        floored = None if floored is None else floored.detach()
        if self._window.calls:
            # Pending: its row holds the means over all its calls.
            history.note(Held(call.weights, floored))
            return None
        history.note(None)
        norms = call.norms
        if norms is not None and not all(call.measured):
            norms = torch.where(vector(call.measured, torch.bool, norms.device), norms, torch.nan)
        cosines = None if shown is None else _cosines(shown)
        return Row(step, history.skipped, call.losses, call.weights, call.labelled, norms, floored, cosines)

    def _add(self, call: Call | None, row: Row | None) -> None:
        self._entries.append((call, row))
        if len(self._entries) >= _FOLD_AT:
            self.fold()

    def fold(self) -> None:
        """Bring log, steadiness, drop counts and history up to date, on the device."""
        entries, self._entries = self._entries, []
        if not entries:
            return
        calls = [call for call, _ in entries if call is not None]
        rows = [row for _, row in entries if row is not None]
        # Outside inference mode, wherever it is read: later calls are added to these values.
        with torch.inference_mode(False), torch.no_grad():
            if calls:
                self._add_sums(*sums_of(calls))
                self._anchor, self._steady = steadier_calls(calls, self._anchor, self._steady)
                dropped = self._window.dropped
                dropped.add_(dropped_in(calls, dropped.device))
            if rows and self.history is not None:
                self.history.write(self._tasks.names, rows)

    def _add_sums(self, sums: Tensor, counts: Tensor) -> None:
        if self._log is not None:
            sums, counts = sums + self._log[0].to(sums.device), counts + self._log[1].to(counts.device)
        self._log = sums, counts

    def means(self) -> dict[str, float]:
        """Return the means since the last call of this method, by name. Reads the device."""
        self.fold()
        if self._window.compiled:
            self._add_sums(*self.tally.take())
        log, self._log = self._log, None
        means = {} if log is None else means_of(*log, self._tasks.names)
        return means if self.history is None else {**means, **self.history.means()}

    def steady_calls(self) -> int:
        """Return for how many calls the weights have stayed within 1 % of each other. Reads the device."""
        self.fold()
        steady = self.tally.steady if self._window.compiled else self._steady
        return 0 if steady is None else int(steady)

    def report(self) -> StepReport | None:
        """Return the report of the last training call, made now if it was not read before."""
        unread, self._unread = self._unread, None
        if unread is not None:
            # Outside inference mode, wherever it is read: the call itself was outside, too.
            with torch.inference_mode(False), torch.no_grad():
                self.fold()
                self._report = _report_of(unread, self._window.dropped.clone())
        return self._report

    def settle(self) -> None:
        """Make the report and fold everything, before the counts are saved or replaced."""
        self.report()
        self.fold()

    def record(self, history: Records) -> None:
        """Write committed windows into ``history`` from now on.

        Raises:
            OptionError: there is a history that does not give way.
        """
        if self.history is not None and not self.history.gives_way:
            raise OptionError(
                "This criterion already has a History. Read `criterion.history`, or compose the criterion anew."
            )
        self.fold()
        self.history = history
        history.flush = self.fold
        earlier, self.earlier_history = self.earlier_history, None
        if earlier is not None:
            history.set_extra_state(earlier)

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        if self.history is not None:
            self.history.flush = self.fold


def _report_of(unread: _Unread, dropped: Tensor) -> StepReport:
    call, measurement = unread.call, unread.measurement
    device = call.losses.device
    measured = vector(call.measured, torch.bool, device)
    active = active_tasks(call.losses, call.labelled)
    if measurement is not None:
        usable = is_finite(measurement.norms) & (measurement.norms > 0)
        active = active & (usable | ~measured)
    shown = unread.collected if measurement is None else measurement
    return StepReport(
        tasks=unread.tasks,
        losses=call.losses,
        weights=call.weights,
        norms=call.norms,
        cosines=None if shown is None else _cosines(shown),
        active=active,
        measured=measured,
        dropped=dropped,
        step=int(unread.step),
        extra=unread.extra,
    )


def _cosines(measurement: Measurement) -> Tensor | None:
    """Return the (K, K) cosines between the gradients of the tasks, None if no Gramian was measured."""
    if measurement.gramian is None:
        return None
    return measurement.gramian / (measurement.norms[:, None] * measurement.norms[None, :])
