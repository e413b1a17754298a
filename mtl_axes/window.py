"""The schedule and the commit: when gradients are measured, what is averaged, and when the weighting is updated.

A window is the calls between two optimizer steps. With one call per window and a probe that answers in the same step, the
commit happens within the forward pass and the weights of a step use that step's norms. Otherwise a full window is committed
when the next one begins (or at ``step()``), and the weights of a window come from the windows before it.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from mtl_axes._state import WideState
from mtl_axes.distributed import Sync, ranks, sum_over_ranks
from mtl_axes.errors import OptionError
from mtl_axes.options import check_number
from mtl_axes.outer.base import OuterWeighting
from mtl_axes.probes import Measurement, Probe
from mtl_axes.probes.scaling import fresh_exponents, moved_exponents
from mtl_axes.signals import Need, Signals, active_tasks, is_finite
from mtl_axes.tasks import TaskLosses

__all__ = ["AfterStep", "Plan", "Window", "check_accumulate"]

# What is summed over the calls of a window and over the ranks, in the order of the collective.
_SUMS = ("loss_sum", "loss_count", "norm_sum", "norm_count", "scale_votes", "gramian_sum", "gramian_count")


def check_accumulate(accumulate: int | str) -> None:
    """Raise :class:`OptionError` unless ``accumulate`` is a number of calls per optimizer step, or ``"manual"``."""
    if accumulate == "manual":
        return
    if isinstance(accumulate, str):
        raise OptionError(f'Option `accumulate` should be an integer >= 1 or "manual". Found accumulate={accumulate!r}.')
    check_number("accumulate", accumulate, low=1, integer=True)


class Plan(NamedTuple):
    """How a window treats one training call, decided before anything is measured.

    Attributes:
        due: gradients are measured. The schedule alone decides, so that all ranks agree whatever tasks they have.
        immediate: the call is a window of its own, committed before its weights are read.
        passes: the window ends without a commit, because gradients would be needed and are not due.
        alone: the losses of the call on this rank are all that its window holds: nothing is summed, nothing cleared.
        compiled: torch.compile traces the call.
    """

    due: bool
    immediate: bool
    passes: bool
    alone: bool
    compiled: bool


class AfterStep:
    """The calls within one ``after_step()``.

    Attributes:
        loss_sum: (K,) sum of their finite losses; None before the first call.
        loss_count: (K,) number of finite losses.
    """

    def __init__(self) -> None:
        self.loss_sum: Tensor | None = None
        self.loss_count: Tensor | None = None

    def add(self, losses: TaskLosses, dtype: torch.dtype) -> None:
        """Add the losses of one call, in the dtype of the statistics."""
        values, active = losses.values.to(dtype), active_tasks(losses.values, losses.labelled)
        finite, count = torch.where(active, values, 0.0), active.to(dtype)
        first = self.loss_sum is None or self.loss_count is None
        self.loss_sum = finite if first else self.loss_sum + finite
        self.loss_count = count if first else self.loss_count + count


class Window(WideState):
    """Collects the statistics of a window and commits them to the weighting.

    The counts are host integers, so that nothing has to be read from the device; what is averaged are buffers. Calls within
    a compiled graph count on the device instead, in ``compiled_windows``, and so do all calls after the first of these: the
    host integer is then a constant of the graph.

    Attributes:
        compiled: True once a call within a compiled graph has counted.
    """

    loss_sum: Tensor
    loss_count: Tensor
    norm_sum: Tensor
    norm_count: Tensor
    measured_at: Tensor
    latest_norms: Tensor
    known_norms: Tensor
    scale_exponents: Tensor
    scale_votes: Tensor
    gramian_sum: Tensor
    gramian_count: Tensor
    dropped: Tensor
    compiled_windows: Tensor

    def __init__(self, *, every: int, accumulate: int | Literal["manual"], sync: Sync) -> None:
        super().__init__()
        self.every = every
        self.accumulate = accumulate
        self.sync = sync
        self.compiled = False
        self.calls = 0
        self._step = 0
        self._answered: int | Tensor = 0

    @property
    def step(self) -> int:
        """Number of committed windows. Reads the device once compiled calls have counted there."""
        return int(self.clock())

    @step.setter
    def step(self, step: int) -> None:
        if self.compiled:
            self.compiled_windows.fill_(step - self._step)
        else:
            self._step = step

    def clock(self) -> int | Tensor:
        """Return the number of committed windows without reading the device: as a tensor if it is counted there."""
        return self._step + self.compiled_windows if self.compiled else self._step

    def _advance(self) -> None:
        if self.compiled:
            self.compiled_windows.add_(1)
        else:
            # Not through the __setattr__ of a module, which costs more than a kernel.
            self.__dict__["_step"] += 1

    def unanswered(self) -> int | Tensor:
        """Return the number of windows committed since :meth:`answer`; a tensor if windows are counted on the device."""
        return self.clock() - self._answered

    def answer(self) -> None:
        """Take note that the effect of the last window's optimizer step is known, or that the step was skipped."""
        self._answered = self.clock()

    @property
    def allocated(self) -> bool:
        """True once the number of tasks is known."""
        return "loss_sum" in self._buffers

    def bind(self, count: int, need: Need, dtype: torch.dtype, *, partial: bool = False) -> None:
        """Allocate the sums for ``count`` tasks; ``partial`` if a window measures only some of them."""
        zeros = {"loss_sum": dtype, "loss_count": dtype, "dropped": torch.int64}
        if need != "losses":
            zeros |= {"norm_sum": dtype, "norm_count": dtype, "scale_votes": dtype}
        for name, kind in zeros.items():
            self.register_buffer(name, torch.zeros(count, dtype=kind))
        self.register_buffer("compiled_windows", torch.zeros((), dtype=torch.int64), persistent=False)
        if need != "losses":
            # On the device: only there, and only after the ranks have agreed, it is known who was active.
            self.register_buffer("measured_at", torch.full((count,), -1, dtype=torch.int64))
            self.register_buffer("scale_exponents", fresh_exponents(count))
            if partial:
                self.register_buffer("latest_norms", torch.ones(count, dtype=dtype))
                self.register_buffer("known_norms", torch.zeros(count, dtype=torch.bool))
        if need == "gramian":
            self.register_buffer("gramian_sum", torch.zeros(count, count, dtype=dtype))
            self.register_buffer("gramian_count", torch.zeros(count, count, dtype=dtype))

    def plan(self, outer: OuterWeighting, probe: Probe, *, compiled: bool) -> Plan:
        """Decide what happens to a training call that begins now."""
        reads_losses = outer.needs == "losses"
        due = not reads_losses and self._updates(outer, self.step)
        immediate = self.immediate(outer, probe)
        alone = reads_losses and immediate and (not outer.reads_signals or self.sync == "gradients" or ranks(self.sync) == 1)
        return Plan(due, immediate, immediate and not (reads_losses or due), alone, compiled)

    def immediate(self, outer: OuterWeighting, probe: Probe) -> bool:
        """Return whether every call is a window of its own whose statistics are there before its weights are needed."""
        return self.accumulate == 1 and (outer.needs == "losses" or probe.same_step)

    def _updates(self, outer: OuterWeighting, step: int) -> bool:
        """Return whether window ``step`` updates the weighting: a loss-based one always, others when gradients are due."""
        return outer.needs == "losses" or (step % self.every == 0 and outer.measures(step))

    @property
    def full(self) -> bool:
        """True if the pending window has all its calls."""
        return isinstance(self.accumulate, int) and self.calls >= self.accumulate

    @property
    def exponents(self) -> Tensor | None:
        """Exponents (K,) of the scales that losses are measured with in float16; None before there are any."""
        return self._buffers.get("scale_exponents")

    @property
    def turn(self) -> int:
        """Number of the pending window among those that ``every`` selects: it decides whose turn it is."""
        return self.step // self.every

    def take(
        self, plan: Plan, outer: OuterWeighting, probe: Probe, losses: TaskLosses, measurement: Measurement | None
    ) -> None:
        """Add a training call to the pending window; commit the window if the call is one of its own."""
        if plan.alone:
            self._commit_losses(plan, outer, losses)
        elif plan.passes:
            self._advance()
        else:
            self._add(losses, measurement)
            if plan.immediate:
                self.commit(outer, probe)

    def _commit_losses(self, plan: Plan, outer: OuterWeighting, losses: TaskLosses) -> None:
        values, labelled, dtype = losses.values, losses.labelled, self.loss_sum.dtype
        values = values if values.dtype is dtype else values.to(dtype)
        if not plan.compiled:
            if outer.moves:
                outer(Signals.of_losses(values, labelled, self.clock()))
            self._advance()
            return
        if outer.moves:
            outer(Signals(values, active=labelled, step=self._step + self.compiled_windows))
        dropped = ~is_finite(values)
        self.dropped.add_(dropped if labelled is None else labelled & dropped)
        self.compiled_windows.add_(1)
        # Written and never read within a graph, which would otherwise be compiled again when it changes.
        self.compiled = True

    def _add(self, losses: TaskLosses, measurement: Measurement | None) -> None:
        """Add the statistics of one call to the pending window. Non-finite values are left out."""
        active = active_tasks(losses.values, losses.labelled)
        self.calls += 1
        self.loss_sum.add_(torch.where(active, losses.values, 0.0))
        self.loss_count.add_(active)
        if measurement is not None:
            self._add_measurement(active, measurement)

    def _add_measurement(self, active: Tensor, measurement: Measurement) -> None:
        if measurement.votes is not None:
            self.scale_votes.add_(measurement.votes)
        usable = active & is_finite(measurement.norms) & (measurement.norms > 0)
        self.norm_sum.add_(torch.where(usable, measurement.norms, 0.0))
        self.norm_count.add_(usable)
        if measurement.gramian is not None:
            pairs = usable[:, None] & usable[None, :]
            self.gramian_sum.add_(torch.where(pairs, measurement.gramian, 0.0))
            self.gramian_count.add_(pairs)

    def collect(self, outer: OuterWeighting, probe: Probe) -> Measurement | None:
        """Add what a lagged probe has collected in the pending window, and return it. Call it before :meth:`commit`."""
        collected = None if self.calls == 0 or outer.needs == "losses" or probe.same_step else probe.collect()
        if collected is not None:
            active = self.loss_count > 0
            self.dropped.add_(active & ~is_finite(collected.norms))
            self._add_measurement(active, collected)
        return collected

    def means(self) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Return this rank's means over the pending window: losses (K,), norms (K,) and cosines (K, K) of the mean Gramian.

        NaN where a task has none, None for what no window has.
        """
        norms = cosines = None
        if "norm_sum" in self._buffers:
            norms = self.norm_sum / self.norm_count
        if "gramian_sum" in self._buffers:
            gramian = self.gramian_sum / self.gramian_count
            sizes = gramian.diagonal().sqrt()
            cosines = gramian / (sizes[:, None] * sizes[None, :])
        return self.loss_sum / self.loss_count, norms, cosines

    def commit(self, outer: OuterWeighting, probe: Probe) -> None:
        """Hand the pending window to the weighting, if there is one, and begin the next."""
        if self.calls == 0:
            return
        if outer.moves and self._updates(outer, self.step):
            signals = self._signals(_sync_of(self.sync, outer))
            before = outer.current.clone() if outer.memoryless and self._holds(outer, probe) else None
            outer(signals)
            if before is not None:
                outer.current.copy_(torch.where(signals.active, outer.current, before))
            if "measured_at" in self._buffers:
                self.measured_at.copy_(torch.where(signals.active, self.clock(), self.measured_at))
        self._advance()
        self._begin()

    def _holds(self, outer: OuterWeighting, probe: Probe) -> bool:
        """Return whether the weights of a window are used in later calls, in which other tasks may take part.

        An absent task must not have the weight 0 there, which a weighting without memory gives it: a task with labels in
        every other window would never be trained, and a lagged probe never sees a gradient behind the weight 0 again.
        """
        return not self.immediate(outer, probe) or (outer.needs != "losses" and self.every > 1)

    def drop(self, probe: Probe) -> None:
        """Forget the pending window, whose optimizer step was skipped: it does not count as a window."""
        if self.calls:
            probe.discard()
            self._begin()

    def hand_over(self, outer: OuterWeighting, after: AfterStep) -> None:
        """Give a weighting the losses after the step of the last window, unless it has them or never got that window."""
        loss_sum, loss_count = after.loss_sum, after.loss_count
        if loss_sum is None or loss_count is None:
            if ranks(self.sync) == 1:
                return
            # Other ranks had calls, and wait.
            loss_sum = loss_count = torch.zeros_like(self.loss_sum)
        waiting = self.unanswered()
        if isinstance(waiting, int) and waiting == 0:
            return
        if not self._updates(outer, self.step - 1):
            return
        total, count = sum_over_ranks(_sync_of(self.sync, outer), loss_sum, loss_count)
        assert total is not None and count is not None
        losses = total / count.clamp_min(1)
        active = (count > 0) & is_finite(losses) & (waiting > 0)
        outer.after_step(torch.where(active, losses, 1.0), active)
        self.answer()

    def _begin(self) -> None:
        self.calls = 0
        for name in _SUMS:
            pending = self._buffers.get(name)
            if pending is not None:
                pending.zero_()

    def _signals(self, sync: Sync) -> Signals:
        """Return the means of the pending window over its calls and the ranks."""
        names = [name for name in _SUMS if name in self._buffers]
        sums = dict(zip(names, sum_over_ranks(sync, *(self._buffers[name] for name in names)), strict=True))
        losses, active = _mean(sums, "loss")
        assert losses is not None and active is not None
        norms, known = _mean(sums, "norm")
        elapsed = None
        if norms is not None and known is not None:
            if "latest_norms" in self._buffers:
                norms, known = self._completed(norms, known)
            active = active & known
            self.scale_exponents.copy_(moved_exponents(self.scale_exponents, sums["scale_votes"]))
            elapsed = torch.where(self.measured_at < 0, 1, self.clock() - self.measured_at)
        # Pairs that never met in one call have no inner product; 0 says the least about them.
        gramian, _ = _mean(sums, "gramian")
        return Signals(losses, norms=norms, gramian=gramian, active=active, elapsed=elapsed, step=self.clock())

    def _completed(self, norms: Tensor, known: Tensor) -> tuple[Tensor, Tensor]:
        """Fill in the latest norms of the tasks whose turn it was not, after the ranks have agreed on this window's."""
        self.latest_norms.copy_(torch.where(known, norms, self.latest_norms))
        self.known_norms.logical_or_(known)
        return self.latest_norms, self.known_norms

    def get_extra_state(self) -> dict[str, Any]:
        """Return the host part of the schedule."""
        return {"step": self.step, "calls": self.calls, "answered": int(self._answered)}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Take over the host part of the schedule."""
        self.step = state["step"]
        self.calls = state["calls"]
        self._answered = state["answered"]


def _mean(sums: dict[str, Tensor | None], kind: str) -> tuple[Tensor | None, Tensor | None]:
    """Return the mean of a statistic and where there is one; None if it is not collected."""
    total, count = sums.get(f"{kind}_sum"), sums.get(f"{kind}_count")
    return (None, None) if total is None or count is None else (total / count.clamp_min(1), count > 0)


def _sync_of(sync: Sync, outer: OuterWeighting) -> Sync:
    """Return how statistics are summed in a commit: the losses of the whole batch are already those of all ranks."""
    return "norms" if sync == "norms" and outer.reads_signals else None
