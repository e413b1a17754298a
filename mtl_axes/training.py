"""A training call: from the losses to their weighted sum, with the weighting updated on the way; and a window's commit."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from mtl_axes.after_step import AfterStep
from mtl_axes.binding import Binding
from mtl_axes.explain import warning_of_cost
from mtl_axes.outer import OuterWeighting
from mtl_axes.probes import Measurement, Probe, Shared, Tape
from mtl_axes.probes.hooks import remember
from mtl_axes.tasks import TaskLosses, TaskSet
from mtl_axes.tasks.losses import weighted_sum, with_penalty
from mtl_axes.telemetry.journal import Journal
from mtl_axes.warning import Once
from mtl_axes.window import Plan, Window, no_autocast

__all__ = ["Training"]

# Calls without step() under accumulate="manual" before a warning.
_PATIENCE = 1_000


class Training:
    """Runs the training calls of a criterion.

    Args:
        tasks: the tasks.
        outer: the weighting.
        probe: how gradients are measured.
        shared: where they are measured.
        window: the schedule and the statistics.
        binding: binds weighting and window to the tasks.
        journal: takes note of each call.
        after: the losses after the optimizer step.
        warn: shows a warning once.
    """

    def __init__(
        self,
        tasks: TaskSet,
        outer: OuterWeighting,
        probe: Probe,
        shared: Shared,
        window: Window,
        binding: Binding,
        journal: Journal,
        after: AfterStep,
        warn: Once,
    ) -> None:
        self._tasks = tasks
        self._outer = outer
        self._probe = probe
        self._shared = shared
        self._window = window
        self._binding = binding
        self._journal = journal
        self._after = after
        self._warn = warn
        self._probed = False
        # From a commit between two calls: the next call reports it.
        self._collected: Measurement | None = None

    def total(self, losses: TaskLosses, *, compiled: bool) -> Tensor:
        """Return the scalar of a training call, after the weighting was updated if a window ends.

        Args:
            losses: the losses of the call.
            compiled: whether torch.compile traces the call.
        """
        if self._outer.needs == "losses":
            return self._total(losses, compiled)
        with no_autocast(losses.values.device.type):
            return self._total(losses, compiled)

    def _total(self, losses: TaskLosses, compiled: bool) -> Tensor:
        window, outer, probe = self._window, self._outer, self._probe
        collected = (self._commit_window() if window.full else None) or self._collected
        self._collected = None
        if outer.wants_after_step and not compiled:
            self._warn("after_step", self._after.warning_if_missing())
        plan = window.plan(outer, probe, compiled=compiled)
        tape: Tape | None = None
        weights: Tensor | None = None
        measurement: Measurement | None = None
        if outer.needs == "losses":
            self._binding.prepare(losses.values)
        else:
            tape, weights, measurement = self._measure(losses, plan)
        window.take(plan, outer, probe, losses, measurement)
        if window.accumulate == "manual" and window.calls == _PATIENCE:
            self._warn(
                "manual",
                f'accumulate="manual" and criterion.step() was not called in {_PATIENCE} calls, so the weights are not '
                "updated. Call it after each optimizer step.",
            )
        weights = self.weights() if weights is None else weights
        total = self.assemble(losses, weights, tape)
        # Asked for now: a backward, an optimizer step or the end of an epoch may change what the strategies know.
        extra = {**outer.diagnostics(), **probe.diagnostics()}
        self._journal.note(losses, weights, measurement, collected, extra, compiled=compiled)
        if not compiled:
            # A weighting may have registered a hook on its parameters, which says nothing about graphs that are begun now.
            remember()
        return total

    def _measure(self, losses: TaskLosses, plan: Plan) -> tuple[Tape, Tensor | None, Measurement | None]:
        """Return the tape of a call, its weights if they are known before it is measured, and what was measured."""
        window, outer, probe = self._window, self._outer, self._probe
        known = window.allocated
        if known:
            self._binding.prepare(losses.values)
        weights = self.weights() if known and not plan.immediate else None
        tape = Tape(
            self._tasks.names,
            losses.losses,
            self._shared,
            weights=weights,
            exponents=window.exponents,
            turn=window.turn,
            due=plan.due,
            whole=losses.whole,
            outputs=losses.outputs,
        )
        if not self._probed:
            # Even in a warm-up: a graph that cannot be measured should fail now and not when the warm-up ends.
            self._probed = probe.check(tape)
            tape.describe_shared()
            self._warn("cost", warning_of_cost(outer, probe, len(losses.losses), window.every))
        measurement = probe.measure(tape, outer.needs) if plan.due else None
        if not known:
            # Only now: a graph that cannot be measured must not leave the names of its tasks behind.
            self._binding.prepare(losses.values)
        return tape, weights, measurement

    def assemble(self, losses: TaskLosses, weights: Tensor, tape: Tape | None = None) -> Tensor:
        """Return the weighted sum plus the penalty, coupled to the probe if there is a tape."""
        constant = weights if losses.together is None else weights.detach()
        total = weighted_sum(losses, constant)
        if tape is not None:
            total = self._probe.couple(tape, constant, total)
        return with_penalty(losses, total, weights, self._outer.penalty(), learnable=self._outer.learnable)

    def weights(self) -> Tensor:
        """Return the weights (K,) of the next sum, with a graph if they are learned."""
        weights = self._outer.weights()
        # A copy: the buffer is updated in place, and autograd still needs these values in the user's backward.
        return weights if weights.requires_grad else weights.clone()

    def commit(self) -> None:
        """Commit the pending window between two calls, if there is one."""
        if self._window.calls and not self._probe.same_step:
            # What the commit collects may be dropped, and is not of the last call.
            self._journal.report()
        self._collected = self._commit_window() or self._collected

    def _commit_window(self) -> Measurement | None:
        """Commit the pending window, if there is one; return what a lagged probe collected in it."""
        collected = self._window.collect(self._outer, self._probe)
        if self._journal.history is not None:
            self._journal.note_window(self.weights())
        self._window.commit(self._outer, self._probe)
        return collected

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_probed": False}
