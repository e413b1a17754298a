"""The schedule and the commit: when gradients are measured, what is averaged, and when the weighting moves.

A window is the calls between two optimizer steps. With one call per window and a probe that answers in the same step, the
commit happens inside the forward pass and the weights of a step use that step's norms. Otherwise a full window commits
when the next one begins (or at ``step()``), and the weights of a window come from the windows before it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from mtl_axes._state import WideState
from mtl_axes.distributed import Sync, ranks, sum_over_ranks
from mtl_axes.errors import OptionError
from mtl_axes.logs import Call, Tally
from mtl_axes.options import check_number
from mtl_axes.outer.base import OuterWeighting
from mtl_axes.probes import Measurement, Probe
from mtl_axes.probes.scaling import fresh_exponents, moved_exponents
from mtl_axes.signals import Need, Signals, is_finite

__all__ = ["Window", "check_accumulate"]

_COUNT_AT = 64


def check_accumulate(accumulate: int | str) -> None:
    """Raise :class:`OptionError` unless ``accumulate`` is a number of calls per optimizer step, or ``"manual"``."""
    if accumulate == "manual":
        return
    if isinstance(accumulate, str):
        raise OptionError(f'Option `accumulate` should be an integer >= 1 or "manual". Found accumulate={accumulate!r}.')
    check_number("accumulate", accumulate, low=1, integer=True)


class _Seen(NamedTuple):
    """Where a value may have been dropped: a call's losses, which tasks were labelled (None: all), and its norms if any."""

    losses: Tensor
    labelled: Tensor | None
    norms: Tensor | None


class Window(WideState):
    """Collects the statistics of a window and commits them to the weighting.

    The counts are host integers, so that nothing has to be read from the device; what is averaged are buffers. Calls within
    a compiled graph count on the device instead, in ``tally``, and so does every call after the first of these: the host
    integer is then a constant of the graph.

    Attributes:
        compiled: True once a call within a compiled graph has counted.
    """

    loss_sum: Tensor
    loss_count: Tensor
    norm_sum: Tensor
    norm_count: Tensor
    gramian_sum: Tensor
    gramian_count: Tensor
    measured_at: Tensor
    latest_norms: Tensor
    known_norms: Tensor
    scale_exponents: Tensor
    scale_votes: Tensor
    dropped: Tensor

    def __init__(self, *, every: int, accumulate: int | Literal["manual"], sync: Sync) -> None:
        super().__init__()
        self.every = every
        self.accumulate = accumulate
        self.sync = sync
        self.tally = Tally()
        self.compiled = False
        self.calls = 0
        self._step = 0
        self._answered: int | Tensor = 0
        self._uncounted: list[_Seen] = []

    @property
    def step(self) -> int:
        """Number of committed windows. Reads the device once compiled calls have counted there."""
        return int(self.clock())

    @step.setter
    def step(self, step: int) -> None:
        if self.compiled:
            self.tally.windows.fill_(step - self._step)
        else:
            self._step = step

    def clock(self) -> int | Tensor:
        """Return the number of committed windows without reading the device: as a tensor where it is counted there."""
        return self._step + self.tally.windows if self.compiled else self._step

    def _advance(self) -> None:
        if self.compiled:
            self.tally.windows.add_(1)
        else:
            # Past the __setattr__ of a module, which costs more than a kernel.
            self.__dict__["_step"] += 1

    def unanswered(self) -> int | Tensor:
        """Return the number of windows committed since :meth:`answer`; a tensor where windows are counted on the device."""
        return self.clock() - self._answered

    def answer(self) -> None:
        """Take note that what the optimizer step of the last window did is known by now, or that it was skipped."""
        self._answered = self.clock()

    @property
    def allocated(self) -> bool:
        """True once the number of tasks is known."""
        return "loss_sum" in self._buffers

    def bind(self, count: int, need: Need, dtype: torch.dtype, *, partial: bool = False) -> None:
        """Allocate the sums for ``count`` tasks; ``partial`` when a window measures only some of them."""
        self.register_buffer("loss_sum", torch.zeros(count, dtype=dtype))
        self.register_buffer("loss_count", torch.zeros(count, dtype=dtype))
        self.register_buffer("dropped", torch.zeros(count, dtype=torch.int64))
        self.tally.bind(count, dtype)
        if need != "losses":
            self.register_buffer("norm_sum", torch.zeros(count, dtype=dtype))
            self.register_buffer("norm_count", torch.zeros(count, dtype=dtype))
            # On the device, because only there, and only after the ranks have agreed, it is known who was active.
            self.register_buffer("measured_at", torch.full((count,), -1, dtype=torch.int64))
            self.register_buffer("scale_exponents", fresh_exponents(count))
            self.register_buffer("scale_votes", torch.zeros(count, dtype=dtype))
            if partial:
                self.register_buffer("latest_norms", torch.ones(count, dtype=dtype))
                self.register_buffer("known_norms", torch.zeros(count, dtype=torch.bool))
        if need == "gramian":
            self.register_buffer("gramian_sum", torch.zeros(count, count, dtype=dtype))
            self.register_buffer("gramian_count", torch.zeros(count, count, dtype=dtype))

    def immediate(self, probe: Probe, need: Need) -> bool:
        """Return whether every call is a window of its own whose statistics are there before its weights are needed."""
        return self.accumulate == 1 and (need == "losses" or probe.same_step)

    @property
    def full(self) -> bool:
        """True when the pending window has all its calls."""
        return isinstance(self.accumulate, int) and self.calls >= self.accumulate

    @property
    def exponents(self) -> Tensor | None:
        """Exponents (K,) of the scales that losses are measured with in float16; None while there are none."""
        return self._buffers.get("scale_exponents")

    @property
    def turn(self) -> int:
        """Number of the pending window among those that ``every`` lets measure: whose turn it is follows from it."""
        return self.step // self.every

    def due(self, outer: OuterWeighting) -> bool:
        """Return whether gradients are measured in the pending window.

        Decided by the schedule alone, so that all ranks agree on it whatever tasks they have.
        """
        return outer.needs != "losses" and self._measured(self.step, outer)

    def _measured(self, step: int, outer: OuterWeighting) -> bool:
        return step % self.every == 0 and outer.measures(step)

    def see(self, losses: Tensor, labelled: Tensor | None, measurement: Measurement | None) -> None:
        """Remember the values of one call, to count the tasks of which one was not finite."""
        self._uncounted.append(_Seen(losses, labelled, None if measurement is None else measurement.norms))
        if len(self._uncounted) >= _COUNT_AT:
            self.count_dropped()

    def count_dropped(self) -> Tensor:
        """Bring ``dropped`` up to date, and return it. Most calls need not know it, so that it is counted now and then."""
        if self._uncounted:
            calls, self._uncounted = self._uncounted, []
            device = self.dropped.device
            every = torch.ones(self.dropped.shape, dtype=torch.bool, device=device)
            losses = torch.stack([call.losses.to(device) for call in calls])
            norms = torch.stack([(call.losses if call.norms is None else call.norms).to(device) for call in calls])
            labelled = torch.stack([every if call.labelled is None else call.labelled.to(device) for call in calls])
            self.dropped.add_((labelled & ~(is_finite(losses) & is_finite(norms))).sum(0))
        return self.dropped

    def commits_alone(self, outer: OuterWeighting) -> bool:
        """Return whether every call is a window of its own, and its losses on this rank are all that it has to say."""
        alone = outer.needs == "losses" and self.accumulate == 1
        return alone and (not outer.reads_signals or self.sync == "gradients" or ranks(self.sync) == 1)

    def commit_losses(self, outer: OuterWeighting, losses: Tensor, labelled: Tensor | None) -> None:
        """Hand the losses of one call to the weighting as a window of their own: nothing is summed, nothing cleared."""
        if outer.moves:
            dtype = self.loss_sum.dtype
            outer(Signals.of_losses(losses if losses.dtype is dtype else losses.to(dtype), labelled, self.clock()))
        self._advance()

    def commit_compiled(self, outer: OuterWeighting, losses: Tensor, labelled: Tensor | None) -> None:
        """Do within a graph what :meth:`see` and :meth:`commit_losses` do."""
        windows = self.tally.windows
        if outer.moves:
            outer(Signals(losses.to(self.loss_sum.dtype), active=labelled, step=self._step + windows))
        dropped = ~is_finite(losses)
        self.dropped.add_(dropped if labelled is None else labelled & dropped)
        windows.add_(1)

    def note_compiled(self, call: Call) -> Tensor:
        """Add one call to the tally within a graph; return the number of committed windows."""
        self.tally.add(call)
        # Written and never read within a graph, which would otherwise be compiled again when it changes.
        self.compiled = True
        return self._step + self.tally.windows

    def skip(self) -> None:
        """Let one call pass as a window in which nothing is due."""
        self._advance()

    def add(self, losses: Tensor, active: Tensor, measurement: Measurement | None) -> None:
        """Add the statistics of one call to the pending window. Non-finite values are left out."""
        self.calls += 1
        self.loss_sum.add_(torch.where(active, losses, 0.0))
        self.loss_count.add_(active)
        self._add_measurement(active, measurement)

    def _add_measurement(self, active: Tensor, measurement: Measurement | None) -> None:
        if measurement is None:
            return
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
        """Add what a lagged probe has collected in the pending window, and return it. To be called before :meth:`commit`."""
        collected = None if self.calls == 0 or outer.needs == "losses" or probe.same_step else probe.collect()
        if collected is not None:
            here = self.loss_count > 0
            self._uncounted.append(_Seen(collected.norms, here, None))
            self._add_measurement(here, collected)
        return collected

    def means(self) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Return what this rank saw in the pending window: losses (K,), norms (K,) and cosines (K, K) of the mean Gramian.

        NaN where there is none, None for what no window has.
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
        if outer.moves and (outer.needs == "losses" or self.due(outer)):
            signals = self._signals(outer.needs, self._sync_of(outer))
            before = outer.current.clone() if outer.memoryless and self._holds(outer, probe) else None
            outer(signals)
            if before is not None:
                outer.current.copy_(torch.where(signals.active, outer.current, before))
            if outer.needs != "losses":
                self.measured_at.copy_(torch.where(signals.active, self.clock(), self.measured_at))
        self._advance()
        self._begin()

    def _holds(self, outer: OuterWeighting, probe: Probe) -> bool:
        """Return whether the weights of a window are those of later calls, in which other tasks may take part.

        There a task that was absent must not have the weight 0 that a weighting without memory gives it: one with labels in
        every other window would never be trained, and a lagged probe never sees a gradient behind the weight 0 again.
        """
        return not self.immediate(probe, outer.needs) or (outer.needs != "losses" and self.every > 1)

    def drop(self, probe: Probe) -> None:
        """Forget the pending window, as when its optimizer step was skipped: it does not count as a window."""
        if self.calls:
            probe.discard()
            self._begin()

    def _sync_of(self, outer: OuterWeighting) -> Sync:
        """Return how statistics are summed in a commit: with the losses of the whole batch they are those of all ranks."""
        return "norms" if self.sync == "norms" and outer.reads_signals else None

    def hand_over(self, outer: OuterWeighting, loss_sum: Tensor, loss_count: Tensor) -> None:
        """Show a weighting the losses after the step of the last window, unless it was shown them, or never that window.

        Args:
            outer: a weighting that wants them.
            loss_sum: (K,) sum of the finite losses of this rank's calls.
            loss_count: (K,) their number.
        """
        waiting = self.unanswered()
        if isinstance(waiting, int) and waiting == 0:
            return
        if outer.needs != "losses" and not self._measured(self.step - 1, outer):
            return
        total, count = sum_over_ranks(self._sync_of(outer), loss_sum, loss_count)
        assert total is not None and count is not None
        losses = total / count.clamp_min(1)
        active = (count > 0) & is_finite(losses) & (waiting > 0)
        outer.after_step(torch.where(active, losses, 1.0), active)
        self.answer()

    def _begin(self) -> None:
        self.calls = 0
        for name in ("loss_sum", "loss_count", "norm_sum", "norm_count", "scale_votes", "gramian_sum", "gramian_count"):
            pending = self._buffers.get(name)
            if pending is not None:
                pending.zero_()

    def _signals(self, need: Need, sync: Sync) -> Signals:
        norm_sum = self.norm_sum if need != "losses" else None
        norm_count = self.norm_count if need != "losses" else None
        scale_votes = self.scale_votes if need != "losses" else None
        gramian_sum = self.gramian_sum if need == "gramian" else None
        gramian_count = self.gramian_count if need == "gramian" else None
        loss_sum, loss_count, norm_sum, norm_count, scale_votes, gramian_sum, gramian_count = sum_over_ranks(
            sync, self.loss_sum, self.loss_count, norm_sum, norm_count, scale_votes, gramian_sum, gramian_count
        )
        assert loss_sum is not None and loss_count is not None
        norms, gramian, active = None, None, loss_count > 0
        if norm_sum is not None and norm_count is not None:
            norms, known = norm_sum / norm_count.clamp_min(1), norm_count > 0
            if "latest_norms" in self._buffers:
                norms, known = self._completed(norms, known)
            active = active & known
        if scale_votes is not None:
            self.scale_exponents.copy_(moved_exponents(self.scale_exponents, scale_votes))
        if gramian_sum is not None and gramian_count is not None:
            # Pairs that never met in one call have no inner product; 0 says the least about them.
            gramian = gramian_sum / gramian_count.clamp_min(1)
        losses = loss_sum / loss_count.clamp_min(1)
        return Signals(losses, norms=norms, gramian=gramian, active=active, elapsed=self._elapsed(need), step=self.clock())

    def _completed(self, norms: Tensor, known: Tensor) -> tuple[Tensor, Tensor]:
        """Fill in the latest norms of the tasks whose turn it was not, after the ranks have agreed on this window's."""
        self.latest_norms.copy_(torch.where(known, norms, self.latest_norms))
        self.known_norms.logical_or_(known)
        return self.latest_norms, self.known_norms

    def _elapsed(self, need: Need) -> Tensor | None:
        if need == "losses":
            return None
        return torch.where(self.measured_at < 0, 1, self.clock() - self.measured_at)

    def __getstate__(self) -> dict[str, Any]:
        if self.allocated:
            self.count_dropped()
        return self.__dict__

    def _save_to_state_dict(self, *args: Any, **kwargs: Any) -> None:
        if self.allocated:
            self.count_dropped()
        super()._save_to_state_dict(*args, **kwargs)

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        if self.allocated:
            # What this state does not replace, as one from before the first call, stays complete.
            self.count_dropped()
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def get_extra_state(self) -> dict[str, Any]:
        """Return the host part of the schedule."""
        return {"step": self.step, "calls": self.calls, "answered": int(self._answered)}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Take over the host part of the schedule."""
        self.step = state["step"]
        self.calls = state["calls"]
        self._answered = state.get("answered", state["step"])
