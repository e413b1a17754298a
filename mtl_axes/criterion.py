"""The criterion: from outputs and targets to the one scalar that the user calls ``backward`` on."""

from __future__ import annotations

import contextlib
import copy
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from mtl_axes._state import WideState, vector
from mtl_axes.distributed import Notes, agree, ranks
from mtl_axes.errors import DataError, MtlAxesError, OptionError, StateError
from mtl_axes.explain import explain, mean_cost, often
from mtl_axes.inner import InnerShape, TargetWeight
from mtl_axes.logs import Call, LossLog, Steadiness, Tally
from mtl_axes.options import steady_repr
from mtl_axes.outer import OuterWeighting
from mtl_axes.probes import Measurement, Probe, Shared, Tape, probe_config
from mtl_axes.records import Held, Records
from mtl_axes.registry import Axis, name_of
from mtl_axes.signals import Kind, StepReport, is_finite, wide
from mtl_axes.tasks import TaskLosses, TaskSet
from mtl_axes.window import Window, check_accumulate

__all__ = ["MultiTaskCriterion"]

Normalise = Literal["sum1", "sumK"] | None

_STATE_VERSION = 3
_PATIENCE = 1_000
# Times a plain step, above which a cheaper probe is worth a warning.
_DEAR = 4.0
# Windows without the losses after their steps, after which a weighting that wants them is worth a warning.
_UNANSWERED = 20


class _Unread(NamedTuple):
    """What a training call leaves for its report, which is only made when it is read."""

    call: Call
    measurement: Measurement | None
    collected: Measurement | None
    step: int | Tensor
    extra: Mapping[str, Tensor]


class _AfterStep:
    """The calls within one ``after_step()``: sums (K,) of their finite losses and how many there were; None before any."""

    def __init__(self) -> None:
        self.loss_sum: Tensor | None = None
        self.loss_count: Tensor | None = None

    def add(self, losses: Tensor, active: Tensor) -> None:
        """Add the losses of one call."""
        here, count = torch.where(active, losses, 0.0), active.to(losses.dtype)
        if self.loss_sum is None or self.loss_count is None:
            self.loss_sum, self.loss_count = here, count
        else:
            self.loss_sum, self.loss_count = self.loss_sum + here, self.loss_count + count


class MultiTaskCriterion(WideState):
    """The weighted sum of K task losses, as one module. Build it with :func:`mtl_axes.compose`.

    In training mode with gradients enabled a call returns ``sum_i lambda_i L_i`` plus the weighting's penalty, and moves
    the weighting by what it saw. In ``eval()`` or without gradients it returns the sum with reference weights (those of
    ``fixed``, else 1/K) without penalty, and nothing moves.

    Attributes:
        outer: the weighting.
        task_set: the tasks and their shapes.
        probe: how gradients are measured.
        window: the schedule and the statistics of the pending window.
    """

    def __init__(
        self,
        outer: OuterWeighting,
        task_set: TaskSet,
        *,
        probe: Probe,
        shared: Shared,
        window: Window,
        normalise: Normalise = None,
        eval_weights: Literal["reference", "current"] = "reference",
    ) -> None:
        super().__init__()
        self.outer = outer
        self.task_set = task_set
        self.probe = probe
        self.window = window
        self.normalise = normalise
        self.eval_weights = eval_weights
        self._shared = shared
        self._report: StepReport | None = None
        self._unread: _Unread | None = None
        # By a commit between two calls: the next one tells of it.
        self._collected: Measurement | None = None
        self._kinds_shown: dict[str, Kind] = {}
        self._log = LossLog()
        self._steadiness = Steadiness()
        self.history: Records | None = None
        self._earlier_history: dict[str, Any] | None = None
        self._held = 0
        self._after: _AfterStep | None = None
        self._on_trial = False
        self._probed = False
        self._met = False
        self._warned: set[str] = set()
        if outer.learnable and task_set.names:
            self._bind(torch.float32)

    @property
    def tasks(self) -> tuple[str, ...]:
        """Names of the tasks, in the order of every (K,) tensor; empty until they are known."""
        return self.task_set.names

    @property
    def accumulate(self) -> int | Literal["manual"]:
        """Calls per optimizer step. An adapter sets it to what its trainer does; not while a window is pending."""
        return self.window.accumulate

    @accumulate.setter
    def accumulate(self, calls: int | Literal["manual"]) -> None:
        check_accumulate(calls)
        if calls == self.window.accumulate:
            return
        if self.window.calls:
            raise StateError(
                f"The calls per optimizer step should change between two windows. Found {self.window.calls} calls pending. "
                "Call criterion.step() after the optimizer step."
            )
        self.window.accumulate = calls

    @property
    def shapes(self) -> dict[str, InnerShape]:
        """The inner shape of every task for which it is known."""
        return self.task_set.shapes

    @property
    def report(self) -> StepReport | None:
        """:class:`StepReport` of the last training call, or None. It is made when it is read; it costs nothing otherwise.

        Making it reads the device only where calls were compiled, which count their steps there.
        """
        self._make_report()
        return self._report

    def forward(
        self,
        outputs: Mapping[str, Tensor] | Sequence[Tensor],
        targets: Mapping[str, Tensor | None] | Sequence[Tensor | None],
        *,
        mask: Mapping[str, Tensor] | Tensor | None = None,
        sample_weight: Mapping[str, Tensor] | Tensor | None = None,
        extra: Mapping[str, Tensor] | None = None,
    ) -> Tensor:
        """Return the scalar to call ``backward`` on.

        Args:
            outputs: predictions by task, or a tuple in the order of the tasks. Outputs without a target are ignored.
            targets: targets by task, or a tuple. A target that is None or missing makes its task absent in this call.
            mask: True where a label is valid: bools by task, or one (N,) tensor for all, in the shape of the target or of
                its leading dimensions.
            sample_weight: weights >= 0, given as ``mask`` is. The mean still divides by the number of valid labels.
            extra: scalar losses computed elsewhere, by task.

        Returns:
            0-dim tensor in float32 or wider.

        Raises:
            DataError: outputs, targets, masks or weights do not fit together.
            GraphError: gradients are to be measured and cannot be.
        """
        tasks = self.task_set
        if torch.compiler.is_compiling():
            leave = self._leaves_graph(tasks.legible)
            if leave is not None:
                return leave(self.forward, outputs, targets, mask=mask, sample_weight=sample_weight, extra=extra)
        elif not tasks.settled:
            with self._undone_by_errors():
                return self._total(tasks.losses(outputs, targets, mask, sample_weight, extra))
        return self._total(tasks.losses(outputs, targets, mask, sample_weight, extra))

    def combine(self, losses: Mapping[str, Tensor | None] | Sequence[Tensor | None]) -> Tensor:
        """Return the scalar to call ``backward`` on, from task losses that were computed elsewhere.

        Args:
            losses: 0-dim losses by task, or a sequence in the order of the tasks; None makes a task absent. A stacked
                tensor (K,) is taken apart with a warning: its gradients pass through every head.

        Raises:
            DataError: a loss is not a scalar, or belongs to no task.
            GraphError: gradients are to be measured and cannot be.
        """
        if isinstance(losses, Tensor):
            if losses.ndim != 1:
                raise DataError(f"Stacked losses should have the shape (K,). Found {tuple(losses.shape)}.")
            self._warn_once(
                "stacked",
                "combine() got stacked losses: measuring each then sends zero gradients through every head. Pass a mapping "
                "or a tuple of scalars.",
            )
            losses = losses.unbind()
        if torch.compiler.is_compiling():
            leave = self._leaves_graph(True)
            return self._total(self.task_set.scalars(losses)) if leave is None else leave(self.combine, losses)
        with self._undone_by_errors():
            return self._total(self.task_set.scalars(losses))

    def _leaves_graph(self, legible: bool) -> Callable[..., Tensor] | None:
        """Return what runs a call in Python where torch.compile cannot trace it; else None."""
        from mtl_axes import uncompiled

        window, outer = self.window, self.outer
        if self.task_set.debug:
            return uncompiled.debugging
        if self._after is not None:
            return uncompiled.replaying
        training = self.training and torch.is_grad_enabled()
        if training and not self._held:
            if self.history is not None:
                return uncompiled.recording
            if outer.needs != "losses":
                return uncompiled.measuring
            if window.accumulate != 1:
                return uncompiled.accumulating
            if outer.moves and not uncompiled.TRACES_STATE:
                return uncompiled.moving
            if not outer.traceable:
                return uncompiled.drawing
        if training and ranks(window.sync) > 1 and self._must_agree():
            return uncompiled.summing
        return None if legible and window.allocated else uncompiled.first_call

    def _total(self, found: TaskLosses) -> Tensor:
        if self._after is not None:
            return self._total_after_step(found, self._after)
        training = self.training and torch.is_grad_enabled()
        if training and ranks(self.window.sync) > 1 and self._must_agree():
            found = self._over_ranks(found)
        values = found.values()
        if training and not self._held:
            if self.outer.needs == "losses":
                return self._train(found, values)
            with _no_autocast(values.device.type):
                return self._train(found, values)
        self._prepare(values)
        if not training:
            weights = self.outer.weights() if self.eval_weights == "current" else self.outer.reference()
            # A copy, as in training: this loss may be differentiated after the buffer has moved.
            return self._sum(found, self._normalised(weights.clone()))
        return self._assemble(found, self._weights())

    def _total_after_step(self, found: TaskLosses, after: _AfterStep) -> Tensor:
        if self.window.sync == "gradients" and ranks("gradients") > 1 and self._shows_after_step():
            found = found.over_ranks("gradients")
        values = found.values()
        self._prepare(values)
        after.add(values.to(self.window.loss_sum.dtype), _active(values, found.labelled()))
        return self._sum(found, self._weights().detach())

    def _assemble(self, found: TaskLosses, weights: Tensor, tape: Tape | None = None) -> Tensor:
        """Return the scalar of a call, coupled to the probe where it has a tape."""
        constant = weights if found.together is None else weights.detach()
        total = self._sum(found, constant)
        if tape is not None:
            total = self.probe.couple(tape, constant, total)
        return self._penalised(found, total, weights)

    def _must_agree(self) -> bool:
        """Return whether other ranks matter to this call."""
        if self.window.sync == "gradients" or self.outer.learnable:
            return True
        # Constants need no one else; statistics are of no use to a held call.
        return self.outer.reads_signals and not self._held

    def _over_ranks(self, found: TaskLosses) -> TaskLosses:
        """Compare notes with the other ranks in the first calls, and add what all of them know of this call's losses."""
        window, tasks = self.window, self.task_set
        if not self._met:
            options = {"every": window.every, "accumulate": window.accumulate, "sync": window.sync}
            kinds = agree(Notes(tasks.names, window.step, options, tasks.settled_kinds()))
            self._met = tasks.adopt(kinds)
        return found.over_ranks(window.sync) if window.sync == "gradients" or self.outer.learnable else found

    def _train(self, found: TaskLosses, values: Tensor) -> Tensor:
        window, outer, probe = self.window, self.outer, self.probe
        collected = self._commit_window() if window.full else None
        if outer.wants_after_step and not torch.compiler.is_compiling():
            self._warn_without_after_step()
        if window.commits_alone(outer):
            return self._train_on_losses(found, values)
        collected, self._collected = collected or self._collected, None
        labelled, due, immediate = found.labelled(), window.due(outer), window.immediate(probe, outer.needs)
        known = window.allocated
        if known:
            self._prepare(values)
        # Known before anything is measured, unless this very call's statistics move them.
        early = known and outer.needs != "losses" and not immediate
        held = self._weights() if early else None
        tape = Tape(
            self.tasks,
            found.losses,
            self._shared,
            weights=held,
            exponents=window.exponents,
            turn=window.turn,
            due=due,
            whole=found.whole,
        )
        if not self._probed:
            # Also in a warm-up: a graph that cannot be measured should show now and not when the warm-up ends.
            self._probed = outer.needs == "losses" or probe.check(tape)
            if outer.needs != "losses":
                tape.describe_shared()
                self._warn_of_cost()
        measurement = probe.measure(tape, outer.needs) if due else None
        if not known:
            # Only now: a graph that cannot be measured must not leave the names of its tasks behind.
            self._prepare(values)
        window.see(values, labelled, measurement)
        if immediate and outer.needs != "losses" and not due:
            window.skip()
        else:
            window.add(values, _active(values, labelled), measurement)
        if immediate:
            window.commit(outer, probe)
        elif window.accumulate == "manual" and window.calls == _PATIENCE:
            self._warn_once(
                "manual",
                f'accumulate="manual" and criterion.step() was not called in {_PATIENCE} calls, so the weights do not move. '
                "Call it after each optimizer step.",
            )
        weights = self._weights() if held is None else held
        total = self._assemble(found, weights, tape)
        self._note(values, labelled, weights, measurement, collected)
        return total

    def _train_on_losses(self, found: TaskLosses, values: Tensor) -> Tensor:
        """A window of one call whose weighting needs losses alone: no probe takes part, and nothing waits for a commit."""
        window, labelled = self.window, found.labelled()
        self._prepare(values)
        if torch.compiler.is_compiling():
            window.commit_compiled(self.outer, values, labelled)
        else:
            window.see(values, labelled, None)
            window.commit_losses(self.outer, values, labelled)
        weights = self._weights()
        total = self._assemble(found, weights)
        self._note(values, labelled, weights, None, None)
        return total

    def _warn_of_cost(self) -> None:
        count, every = len(self.tasks), self.window.every
        cost = mean_cost(self.probe, count, every)
        if cost <= _DEAR:
            return
        spared = f"every=10 about {mean_cost(self.probe, count, 10 * every):.1f}"
        if self.outer.needs == "norms":
            spared = f'probe={{"name": "exact", "rotate": True}} costs about 1.7, {spared}, probe="representation" about 1.1'
        else:
            spared = f"With {spared}"
        self._warn_once(
            "cost",
            f"{self.probe!r} measures {count} tasks {often(every)}, which costs about {cost:.1f} times a plain step where "
            f"the shared part takes most of it. {spared}; see docs/cost.md.",
        )

    def _warn_without_after_step(self) -> None:
        if self.window.unanswered() >= _UNANSWERED:
            self._warn_once(
                "after_step",
                f"{type(self.outer).__name__} needs the loss after the optimizer step, and has not had it for {_UNANSWERED} "
                "windows. Add after optimizer.step(): with torch.no_grad(), criterion.after_step(): criterion(model(x), y), "
                "on the batch of that step.",
            )

    def _weights(self) -> Tensor:
        weights = self.outer.weights()
        # A copy: the buffer moves in place, and autograd still needs these values in the user's backward.
        return self._normalised(weights if weights.requires_grad else weights.clone())

    def _normalised(self, weights: Tensor) -> Tensor:
        if self.normalise is None:
            return weights
        total = weights.sum()
        scale = 1.0 if self.normalise == "sum1" else float(weights.shape[0])
        # A sum that is negative, as weights of either sign may have, would turn every gradient around.
        return torch.where(total > 0, weights * (scale / total), weights)

    @staticmethod
    def _sum(found: TaskLosses, weights: Tensor) -> Tensor:
        terms = [
            (weight if weight.dtype is loss.dtype else weight.to(loss.dtype)) * loss
            for weight, loss in zip(weights.unbind(), found.losses, strict=True)
            if loss is not None
        ]
        total = terms[0]
        for term in terms[1:]:
            total = total + term
        return total

    def _penalised(self, found: TaskLosses, total: Tensor, weights: Tensor) -> Tensor:
        """Add the penalty; and, with several ranks, what learned weights learn from: the same on each of them.

        A weight's own gradient is the loss that it multiplies. With the losses of all ranks in their place, which are known
        before the backward, every rank comes to the same gradient and none has to be averaged.
        """
        penalty, together = self.outer.penalty(), found.together
        if penalty is not None:
            mine = penalty
            if penalty.ndim:
                labelled = found.labelled()
                mine = (penalty if labelled is None else torch.where(labelled, penalty, 0.0)).sum()
            total = total + (mine if together is None else mine.detach()).to(total.dtype)
        if together is None or not self.outer.learnable:
            return total
        terms = weights * together.losses.to(weights)
        if penalty is not None and penalty.ndim:
            terms = terms + penalty
        learned = torch.where(together.fraction > 0, terms * together.fraction, 0.0).sum()
        if penalty is not None and not penalty.ndim:
            learned = learned + penalty
        # Worth nothing, so that the value stays that of this rank's own sum.
        return total + (learned - learned.detach()).to(total.dtype)

    def _note(
        self,
        values: Tensor,
        labelled: Tensor | None,
        weights: Tensor,
        measurement: Measurement | None,
        collected: Measurement | None,
    ) -> None:
        # A lagged probe has nothing of this call to show; what it collected belongs to the window before.
        shown = collected if measurement is None else measurement
        norms, measured = (None, (False,) * values.shape[0]) if shown is None else (shown.norms, shown.measured)
        call = Call(values, labelled, weights.detach(), norms, measured)
        # What the strategies tell is asked for now: a backward, an optimizer step or the end of an epoch may change it.
        extra = {**self.outer.diagnostics(), **self.probe.diagnostics()}
        if torch.compiler.is_compiling():
            step: int | Tensor = self.window.note_compiled(call)
        else:
            step = self.window.clock()
            self._log.add(call)
            self._steadiness.add(call.weights)
            if self.history is not None:
                self._record(self.history, call, shown, extra.get("floor_active"))
        self._unread = _Unread(call, measurement, collected, step, extra)

    def _record(self, history: Records, call: Call, shown: Measurement | None, floored: Tensor | None) -> None:
        held = Held(call.weights, None if floored is None else floored.detach())
        if self.window.calls:
            # Not committed yet: its row has the means over all its calls.
            history.note(held)
            return
        norms, cosines = call.norms, None if shown is None else _cosines(shown)
        if norms is not None and not all(call.measured):
            norms = torch.where(vector(call.measured, torch.bool, norms.device), norms, torch.nan)
        history.add(self.tasks, self.window.clock(), held, call.losses, call.labelled, norms, cosines)

    def record(self, history: Records) -> None:
        """Show every committed window to a :class:`mtl_axes.History`, and make it a part of the state. It calls this itself.

        Raises:
            OptionError: the criterion has a history, which does not give way.
        """
        if self.history is not None and not self.history.gives_way:
            raise OptionError(
                "A criterion should have one history. Found one already, and a second to record. Read `criterion.history`, "
                "or compose the criterion anew."
            )
        self.history = history
        earlier, self._earlier_history = self._earlier_history, None
        if earlier is not None:
            history.set_extra_state(earlier)

    def _make_report(self) -> None:
        unread, self._unread = self._unread, None
        if unread is not None:
            # Outside inference mode, wherever it is read: the call that it tells of was outside, too.
            with torch.inference_mode(False), torch.no_grad():
                self._report = self._report_of(unread)

    def _report_of(self, unread: _Unread) -> StepReport:
        call, measurement = unread.call, unread.measurement
        values = call.losses
        active = _active(values, call.labelled)
        if measurement is not None:
            measured = vector(measurement.measured, torch.bool, values.device)
            usable = is_finite(measurement.norms) & (measurement.norms > 0)
            active = active & (usable | ~measured)
        shown = unread.collected if measurement is None else measurement
        cosines = None if shown is None else _cosines(shown)
        return StepReport(
            tasks=self.tasks,
            losses=values,
            weights=call.weights,
            norms=call.norms,
            cosines=cosines,
            active=active,
            measured=vector(call.measured, torch.bool, values.device),
            dropped=self.window.count_dropped().clone(),
            step=int(unread.step),
            extra=unread.extra,
        )

    @contextlib.contextmanager
    def _undone_by_errors(self) -> Iterator[None]:
        """Within this context an error takes back what was learned of the tasks, unless state was allocated for them."""
        before, allocated = self.task_set.snapshot(), self.window.allocated
        try:
            yield
        except BaseException:
            if self.window.allocated == allocated:
                self.task_set.go_back(before)
            raise

    def _prepare(self, values: Tensor) -> None:
        window, outer = self.window, self.outer
        if not window.allocated:
            self._bind(wide(values.dtype))
        kinds = self.task_set.kinds
        if kinds != self._kinds_shown:
            self._kinds_shown = dict(kinds)
            if any(info.kind is None for info in outer.tasks):
                outer.tasks = self.task_set.infos()
        window.follow(values)
        outer.follow(values)

    def _bind(self, dtype: torch.dtype) -> None:
        # Outside inference mode: a state allocated in a validation pass before training must be trainable state.
        with torch.inference_mode(False):
            infos = self.task_set.infos()
            if not self.outer.bound:
                self.outer.dtype = dtype
                self.outer.bind(infos)
            elif tuple(info.name for info in self.outer.tasks) != self.tasks:
                raise StateError(
                    f"The weighting should be unbound, or bound to the tasks {list(self.tasks)}. "
                    f"Found it bound to {[info.name for info in self.outer.tasks]}. Give each criterion a weighting of its "
                    "own."
                )
            self.window.bind(len(infos), self.outer.needs, dtype, partial=self.probe.partial)

    def get_extra_state(self) -> dict[str, Any]:
        """Return what is not a tensor: the tasks, their kinds, the class of the weighting."""
        if self.window.calls and ranks(self.window.sync) > 1:
            self._warn_once(
                "pending",
                "The state holds a window that is pending, and what is pending is this rank's own. Loaded on every rank it "
                "would count as that of all. Call criterion.step() on every rank before one of them saves.",
            )
        return {
            "version": _STATE_VERSION,
            "tasks": list(self.tasks),
            "kinds": self.task_set.known_kinds(),
            "outer": _lineage(self.outer),
            "probe": type(self.probe).__name__,
        }

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Do nothing: names and kinds were needed, and taken over, before the buffers could be loaded."""

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        self._make_report()  # it shows the counts that are replaced
        own = {key[len(prefix) :]: value for key, value in state_dict.items() if key.startswith(prefix)}
        # A state of the module around this one may leave it out, and that module then says so.
        if own or not prefix:
            if not self._on_trial:
                self._try(own)
            self._prepare_to_load(state_dict, prefix)
            self._met = False
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def _try(self, state: dict[str, Any]) -> None:
        """Load a state into a copy, so that one that does not fit is an error before any of it is here."""
        trial = copy.deepcopy(self)
        trial._on_trial = True
        try:
            trial.load_state_dict(state)
        except MtlAxesError:
            raise
        except Exception as error:
            raise StateError(
                "The state should be the whole state_dict() of a criterion of the same tasks and weighting. Found one that "
                f"does not fit: {error}"
            ) from error

    def _prepare_to_load(self, state: dict[str, Any], prefix: str) -> None:
        """Become a criterion of the tasks that a state is of, and let it fit this criterion's probe."""
        saved: Any = state.get(prefix + "_extra_state")
        sums = state.get(prefix + "window.loss_sum")
        self._check_state(saved, called=sums is not None)
        if saved["tasks"]:
            with self._undone_by_errors():
                self.task_set.restore(tuple(saved["tasks"]), saved["kinds"])
                if sums is not None and not self.window.allocated:
                    self._bind(sums.dtype)
            if sums is not None:
                self.window.follow(sums.to(self.window.loss_sum.device))
            self.outer.tasks = self.task_set.infos() if self.outer.bound else ()
            self._kinds_shown = dict(self.task_set.kinds)
        self._fit_probe(state, prefix, other=saved["probe"] != type(self.probe).__name__)
        self._fit_history(state, prefix)

    def _fit_history(self, state: dict[str, Any], prefix: str) -> None:
        """Let a state load that has a history where this criterion has none yet, or none where it has one."""
        key = f"{prefix}history._extra_state"
        if self.history is None:
            self._earlier_history = state.pop(key, None)
        elif key not in state:
            # Whatever its windows were, they are not those of the state.
            self.history.set_extra_state(None)
            state[key] = self.history.get_extra_state()

    def _fit_probe(self, state: dict[str, Any], prefix: str, *, other: bool) -> None:
        """Let a state load that was saved under another probe: that probe's own part is left out, this one's begins anew."""
        for name, fresh in (("latest_norms", 1), ("known_norms", 0)):
            key, own = f"{prefix}window.{name}", self.window._buffers.get(name)
            if own is None:
                state.pop(key, None)
            elif key not in state:
                state[key] = torch.full_like(own, fresh)
        if other:
            self.probe.discard()
            for name in [name for name in state if name.startswith(prefix + "probe.")]:
                del state[name]
            self.probe.state_dict(destination=state, prefix=prefix + "probe.")

    def _check_state(self, saved: Any, *, called: bool) -> None:
        if not isinstance(saved, Mapping) or "version" not in saved:
            raise StateError(
                "The state should be what criterion.state_dict() returned. Found one without the tasks and the version that "
                'it names under "_extra_state". Pass the criterion\'s own part of a checkpoint.'
            )
        if saved["version"] != _STATE_VERSION:
            raise StateError(
                f"The state should be of version {_STATE_VERSION}. Found version {saved['version']!r}. Go on with the "
                "mtl_axes that saved it, or begin anew: weights adapt again within a few hundred steps."
            )
        if saved["outer"] != _lineage(self.outer):
            raise StateError(f"The state should be of {_lineage(self.outer)}. Found one of {saved['outer']}.")
        if self.tasks and saved["tasks"] and list(self.tasks) != saved["tasks"]:
            raise StateError(f"The state should be of the tasks {list(self.tasks)}. Found {saved['tasks']}.")
        if self.window.allocated and not called:
            raise StateError("The state should be of a criterion that was called. Found one saved before its first call.")

    def step(self, *, skipped: bool = False) -> None:
        """Commit the pending window, if there is one. With ``accumulate="manual"``: call it after each optimizer step.

        Args:
            skipped: True when the optimizer step did not happen, as when a GradScaler found an overflow; the pending
                window is then dropped. With ``accumulate=1`` nothing is pending: the call itself has committed, from
                finite losses and norms only.
        """
        if skipped:
            self.window.drop(self.probe)
            if self.outer.wants_after_step:
                self.window.answer()
        else:
            self._commit()
        if self.history is not None:
            self.history.stepped(skipped=skipped)

    def end_epoch(self) -> None:
        """Tell the weighting that an epoch has ended. Needed by DWA without ``window=``; harmless otherwise."""
        if self.window.full:
            self._commit()
        self.outer.end_epoch()

    def _commit(self) -> None:
        if self.window.calls and not self.probe.same_step:
            # What the commit collects may be dropped, and is not of the last call.
            self._make_report()
        self._collected = self._commit_window() or self._collected

    def _commit_window(self) -> Measurement | None:
        """Commit a window that is pending, if there is one; return what a lagged probe collected in it."""
        window, history = self.window, self.history
        collected = window.collect(self.outer, self.probe)
        if history is not None and window.calls:
            with torch.no_grad():
                losses, norms, cosines = window.means()
                held = history.held or Held(self._weights().detach())
                history.add(self.tasks, window.clock() + 1, held, losses, None, norms, cosines)
        window.commit(self.outer, self.probe)
        return collected

    @contextlib.contextmanager
    def hold(self) -> Iterator[None]:
        """Within this context the weights are fixed and nothing is recorded: for closures, line searches and trial calls."""
        self._held += 1
        try:
            yield
        finally:
            self._held -= 1

    @contextlib.contextmanager
    def after_step(self) -> Iterator[None]:
        """Within this context calls compute the losses after the optimizer step, for a weighting that wants them.

        ::

            loss.backward()
            optimizer.step()
            with torch.no_grad(), criterion.after_step():
                criterion(model(x), y)  # the same batch

        A call returns the sum with the current weights, without penalty, and moves nothing: no window, no report, no log, no
        gradient is measured; in training mode or not. When the block ends, the losses of its calls are averaged as those of
        a window are, over its calls and over the ranks, and handed to the weighting, which compares them with the losses of
        the window that was committed last. The block says that the optimizer has stepped: a window that is pending, as with
        ``accumulate > 1``, is committed first. Run all batches of that window in one block, on all ranks.

        Nothing is handed over where the block raises or is empty, within ``hold()``, for a second block after one window,
        and for a window whose step was skipped, of which ``step(skipped=True)`` tells. For a weighting that does not want
        these losses the block does nothing, so that any loop may have it: ``criterion.outer.wants_after_step`` tells whether
        it is worth the forward. A block within another belongs to it.
        """
        if self._after is not None:
            yield
            return
        after = self._after = _AfterStep()
        try:
            if self._shows_after_step():
                self._commit()
            yield
        finally:
            self._after = None
        if self._shows_after_step() and self.window.allocated:
            self._hand_over(after)

    @property
    def replaying(self) -> bool:
        """True within :meth:`after_step`, as to a model that is run a second time and should not count it."""
        return self._after is not None

    def _shows_after_step(self) -> bool:
        return self.outer.wants_after_step and not self._held

    def _hand_over(self, after: _AfterStep) -> None:
        window = self.window
        loss_sum, loss_count = after.loss_sum, after.loss_count
        if loss_sum is None or loss_count is None:
            if ranks(window.sync) == 1:
                return
            # Other ranks had calls, and wait.
            loss_sum = loss_count = torch.zeros_like(window.loss_sum)
        with torch.no_grad(), _no_autocast(loss_sum.device.type):
            window.hand_over(self.outer, loss_sum, loss_count)

    def log_dict(self) -> dict[str, float]:
        """Return means since the last call of it, as floats: ``loss/TASK``, ``weight/TASK``, ``norm/TASK``.

        The only method that synchronises with the device. A task's loss is averaged over the calls in which it was
        labelled, its norm over those that measured it; what never happened is left out. With a :class:`mtl_axes.History`
        there are also the means of ``share/TASK``, ``cosine/A/B`` and ``floor/TASK`` over the windows that it recorded since
        the last call, and the number ``skipped``.
        """
        if self.outer.wants_after_step:
            # Compiled calls, which count on the device, did not look.
            self._warn_without_after_step()
        means = self._log.drain(self.tasks, self._tally())
        return means if self.history is None else {**means, **self.history.news()}

    def _tally(self) -> Tally | None:
        return self.window.tally if self.window.compiled else None

    def explain(self, model: nn.Module | None = None) -> str:
        """Return a text: the tasks, what is shared, how gradients are measured, at what cost, and what the weights do.

        Args:
            model: names the parameters in the text, and adds those that no task reaches.

        Raises:
            DataError: ``model`` is no module.
        """
        steady = self._steadiness.calls(self._tally())
        return explain(self.task_set, self.outer, self.probe, self.window, self._shared, self.report, steady, model)

    def param_groups(self, **options: Any) -> list[dict[str, Any]]:
        """Return parameter groups of the learnable parameters, without weight decay; an empty list when there are none.

        Args:
            **options: further options of the group, such as ``lr``.

        >>> from mtl_axes import compose
        >>> compose("uncertainty", tasks=["a", "b"]).param_groups(lr=0.01)[0]["weight_decay"]
        0.0
        """
        parameters = [parameter for parameter in self.parameters() if parameter.requires_grad]
        return [{"params": parameters, "weight_decay": 0.0, **options}] if parameters else []

    def config(self, *, strict: bool = True) -> dict[str, Any]:
        """Return a plain dict such that ``compose(**config)`` builds the same criterion, without its state and ``shared``.

        Args:
            strict: False to be told of a strategy for which no name stands as ``{"class": repr}``: to show and to compare,
                and not to build from.

        Raises:
            MtlAxesError: a strategy is not registered, so that no name stands for it; one built from an object has none.
        """
        tasks, window = self.task_set, self.window

        def named(axis: Axis, strategy: OuterWeighting | InnerShape) -> Any:
            return _or_repr(strategy, lambda: _named(axis, strategy), strict=strict)

        inner: Any
        if tasks.default is not None:
            inner = named("inner", tasks.default)
        else:
            inner = {name: named("inner", shape) for name, shape in tasks.given.items()}
        return {
            "outer": named("outer", self.outer),
            "inner": inner,
            "tasks": list(tasks.names) or None,
            "probe": _or_repr(self.probe, lambda: probe_config(self.probe), strict=strict),
            "every": window.every,
            "accumulate": window.accumulate,
            "normalise": self.normalise,
            "reduction": tasks.reduction,
            "sync": window.sync,
            "missing": tasks.missing,
            "eval_weights": self.eval_weights,
            "debug": tasks.debug,
        }

    def __getstate__(self) -> dict[str, Any]:
        self._make_report()
        # A copy made within hold() or after_step() is in neither: nothing would ever release it. Nor is it compiled, as no
        # module's copy is.
        return {**self.__dict__, "_held": 0, "_after": None, "_probed": False, "_met": False, "_compiled_call_impl": None}

    def _warn_once(self, key: str, message: str) -> None:
        if key not in self._warned:
            self._warned.add(key)
            warnings.warn(message, stacklevel=3)

    def __repr__(self) -> str:
        shapes = self.shapes or self.task_set.default
        return f"MultiTaskCriterion(outer={self.outer!r}, inner={shapes!r}, probe={self.probe!r})"


def _no_autocast(device: str) -> contextlib.AbstractContextManager[object]:
    """Within this context autocast is off: it would run backwards and matrix products in half precision that are not."""
    on = torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)
    return torch.autocast(device, enabled=False) if on else contextlib.nullcontext()


def _cosines(measurement: Measurement) -> Tensor | None:
    """Return the (K, K) cosines between the gradients of the tasks, None where no Gramian was measured."""
    if measurement.gramian is None:
        return None
    return measurement.gramian / (measurement.norms[:, None] * measurement.norms[None, :])


def _active(losses: Tensor, labelled: Tensor | None) -> Tensor:
    finite = is_finite(losses)
    return finite if labelled is None else labelled & finite


def _lineage(outer: OuterWeighting) -> str:
    """Return the class of a weighting, with that of the one it is a stage of: ``Ema(InverseNorm)``."""
    base, name = outer.options().get("base"), type(outer).__name__
    return f"{name}({_lineage(base)})" if isinstance(base, OuterWeighting) else name


def _or_repr(value: object, config: Callable[[], Any], *, strict: bool) -> Any:
    try:
        return config()
    except MtlAxesError:
        if strict:
            raise
        return {"class": steady_repr(value)}


def _named(axis: Axis, strategy: OuterWeighting | InnerShape | TargetWeight) -> dict[str, Any]:
    name = name_of(axis, type(strategy))
    if name is None:
        objects = [option for option, value in strategy.options().items() if not _is_plain(value)]
        if objects:
            what = {"outer": "weighting", "inner": "shape", "weight": "target weight"}[axis]
            raise MtlAxesError(
                f"{strategy!r} should have plain options to be named in a config. Found an object as its "
                f"`{'`, `'.join(objects)}`: a {what} built from an object cannot be named in a config. Keep the call of "
                "compose() instead."
            )
        raise MtlAxesError(
            f"{strategy!r} should be registered to be named in a config. Use register_{axis}('a_name') on its class."
        )
    return {"name": name, **{key: _plain(value) for key, value in strategy.options().items()}}


def _is_plain(value: Any) -> bool:
    """Return whether a config can hold the value of an option: plain data, or a strategy, which has its own name to give."""
    if isinstance(value, Mapping):
        return all(isinstance(key, str) and _is_plain(item) for key, item in value.items())
    if isinstance(value, (list, tuple)):
        return all(_is_plain(item) for item in value)
    return value is None or isinstance(value, (bool, int, float, str, OuterWeighting, InnerShape, TargetWeight))


def _plain(value: Any) -> Any:
    """Return the value of an option as plain data: a strategy within a strategy by its name."""
    if isinstance(value, OuterWeighting):
        return _named("outer", value)
    if isinstance(value, InnerShape):
        return _named("inner", value)
    if isinstance(value, TargetWeight):
        return _named("weight", value)
    return list(value) if isinstance(value, tuple) else value
