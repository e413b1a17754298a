"""The criterion: from outputs and targets to the one scalar that the user calls ``backward`` on."""

from __future__ import annotations

import contextlib
import copy
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from mtl_axes._state import WideState
from mtl_axes.agreement import Agreement
from mtl_axes.binding import Binding
from mtl_axes.checkpoint import check_state, describe_state, fit_probe, split_history, try_to_load
from mtl_axes.distributed import ranks
from mtl_axes.errors import StateError
from mtl_axes.explain import explain, warning_of_cost
from mtl_axes.inner import InnerShape
from mtl_axes.mode import Mode
from mtl_axes.options import check_choice
from mtl_axes.outer import OuterWeighting
from mtl_axes.probes import Measurement, Probe, Shared, Tape
from mtl_axes.signals import StepReport
from mtl_axes.tasks import STACKED, TaskLosses, TaskSet
from mtl_axes.tasks.losses import over_ranks, weighted_sum, with_penalty
from mtl_axes.telemetry.journal import Journal
from mtl_axes.telemetry.records import Records
from mtl_axes.window import AfterStep, Plan, Window, check_accumulate

__all__ = ["MultiTaskCriterion"]

# Calls without step() under accumulate="manual", and windows without after_step(), before a warning.
_PATIENCE = 1_000
_UNANSWERED = 20


class MultiTaskCriterion(WideState):
    """The weighted sum of K task losses, as one module. Build it with :func:`mtl_axes.compose`.

    In training mode with gradients enabled a call returns ``sum_i lambda_i L_i`` plus the weighting's penalty, and updates
    the weighting. In ``eval()`` or without gradients it returns the sum with reference weights (those of ``fixed``, else
    1/K) without penalty, and no state is updated.

    Attributes:
        outer: the weighting.
        probe: how gradients are measured.
        history: the :class:`mtl_axes.History` that records its windows, or None.
    """

    def __init__(
        self,
        outer: OuterWeighting,
        tasks: TaskSet,
        *,
        probe: Probe,
        shared: Shared,
        window: Window,
        config: Callable[..., dict[str, Any]],
    ) -> None:
        super().__init__()
        self.outer = outer
        self.probe = probe
        self._tasks = tasks
        self._window = window
        self._shared = shared
        self._config = config
        self._journal = Journal(window)
        self._binding = Binding(tasks, outer, window, self._journal.tally, probe)
        self._agreement = Agreement(tasks, window, outer)
        self._eval_weights: Literal["reference", "current"] = "reference"
        self.history: Records | None = None
        self._earlier_history: dict[str, Any] | None = None
        # From a commit between two calls: the next call reports it.
        self._collected: Measurement | None = None
        self._held = 0
        self._after: AfterStep | None = None
        self._on_trial = False
        self._probed = False
        self._warned: set[str] = set()

    @property
    def tasks(self) -> tuple[str, ...]:
        """Names of the tasks, in the order of every (K,) tensor; empty until they are known."""
        return self._tasks.names

    @property
    def shapes(self) -> dict[str, InnerShape]:
        """The inner shape of every task for which it is known."""
        return self._tasks.shapes

    @property
    def accumulate(self) -> int | Literal["manual"]:
        """Calls per optimizer step. An adapter sets it to what its trainer does, between two windows."""
        return self._window.accumulate

    @accumulate.setter
    def accumulate(self, calls: int | Literal["manual"]) -> None:
        check_accumulate(calls)
        if calls != self._window.accumulate and self._window.calls:
            raise StateError(
                f"`accumulate` cannot change within a window: {self._window.calls} calls are pending. "
                "Call criterion.step() after the optimizer step first."
            )
        self._window.accumulate = calls

    @property
    def eval_weights(self) -> Literal["reference", "current"]:
        """Weights in evaluation: ``"reference"`` (those of ``fixed``, else 1/K) or ``"current"``."""
        return self._eval_weights

    @eval_weights.setter
    def eval_weights(self, weights: Literal["reference", "current"]) -> None:
        check_choice("eval_weights", weights, ("reference", "current"))
        self._eval_weights = weights

    @property
    def debug(self) -> bool:
        """Whether the values of targets and weights are checked in every call, not only in the first of each task."""
        return self._tasks.debug

    @debug.setter
    def debug(self, debug: bool) -> None:
        check_choice("debug", debug, (False, True))
        self._tasks.debug = debug

    @property
    def pending(self) -> int:
        """Calls of the window that is not committed yet; 0 between two windows."""
        return self._window.calls

    @property
    def replaying(self) -> bool:
        """True within :meth:`after_step`, for a model that is run a second time and should not count it."""
        return self._after is not None

    @property
    def report(self) -> StepReport | None:
        """:class:`StepReport` of the last training call, or None. It is made when it is read; it costs nothing otherwise.

        Making it reads the device only if calls were compiled, which count their steps there.
        """
        return self._journal.report()

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
        options = {"mask": mask, "sample_weight": sample_weight, "extra": extra}
        return self._call(self.forward, self._tasks.losses, (outputs, targets), options)

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
            self._warn_once("stacked", STACKED)
        return self._call(self.combine, self._tasks.scalars, (losses,), {})

    def _call(
        self,
        method: Callable[..., Tensor],
        read: Callable[..., TaskLosses],
        given: tuple[Any, ...],
        options: dict[str, Any],
    ) -> Tensor:
        """Return the scalar of a call of ``method``, whose losses ``read`` returns."""
        mode = self._mode()
        if mode.compiled:
            from mtl_axes.compiling import detour

            leave = detour(
                mode,
                self.outer,
                self._window,
                recorded=self.history is not None,
                debug=self.debug,
                over_ranks=self._agreement.needed(mode),
                legible=read == self._tasks.scalars or self._tasks.legible,
            )
            if leave is not None:
                return leave(method, *given, **options)
        elif not self._tasks.settled:
            with self._binding.undone_by_errors():
                return self._total(mode, read(*given, **options, compiled=False))
        return self._total(mode, read(*given, **options, compiled=mode.compiled))

    def _mode(self) -> Mode:
        compiled = torch.compiler.is_compiling()
        if self._after is not None:
            return Mode("after_step", compiled)
        if not (self.training and torch.is_grad_enabled()):
            return Mode("evaluation", compiled)
        return Mode("held" if self._held else "training", compiled)

    def _total(self, mode: Mode, losses: TaskLosses) -> Tensor:
        if self._agreement.needed(mode):
            losses = self._agreement.reach(losses)
        if mode.kind == "training":
            if self.outer.needs == "losses":
                return self._train(losses, compiled=mode.compiled)
            with _no_autocast(losses.values.device.type):
                return self._train(losses, compiled=mode.compiled)
        if mode.kind == "after_step":
            return self._total_after_step(losses)
        self._binding.prepare(losses.values)
        if mode.kind == "held":
            return self._assemble(losses, self._weights())
        weights = self.outer.weights() if self.eval_weights == "current" else self.outer.reference()
        # A copy, as in training: this loss may be differentiated after the buffer was updated.
        return weighted_sum(losses, weights.clone())

    def _total_after_step(self, losses: TaskLosses) -> Tensor:
        if self._window.sync == "gradients" and ranks("gradients") > 1 and self._hears_after_step():
            losses = over_ranks(losses, "gradients")
        self._binding.prepare(losses.values)
        assert self._after is not None
        self._after.add(losses, self._window.loss_sum.dtype)
        return weighted_sum(losses, self._weights().detach())

    def _train(self, losses: TaskLosses, *, compiled: bool) -> Tensor:
        window, outer, probe = self._window, self.outer, self.probe
        collected = (self._commit_window() if window.full else None) or self._collected
        self._collected = None
        if outer.wants_after_step and not compiled:
            self._warn_without_after_step()
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
            self._warn_once(
                "manual",
                f'accumulate="manual" and criterion.step() was not called in {_PATIENCE} calls, so the weights are not '
                "updated. Call it after each optimizer step.",
            )
        weights = self._weights() if weights is None else weights
        total = self._assemble(losses, weights, tape)
        # Asked for now: a backward, an optimizer step or the end of an epoch may change what the strategies know.
        extra = {**outer.diagnostics(), **probe.diagnostics()}
        self._journal.note(self.tasks, losses, weights, measurement, collected, extra, compiled=compiled)
        return total

    def _measure(self, losses: TaskLosses, plan: Plan) -> tuple[Tape, Tensor | None, Measurement | None]:
        """Return the tape of a call, its weights if they are known before it is measured, and what was measured."""
        window, outer, probe = self._window, self.outer, self.probe
        known = window.allocated
        if known:
            self._binding.prepare(losses.values)
        weights = self._weights() if known and not plan.immediate else None
        tape = Tape(
            self.tasks,
            losses.losses,
            self._shared,
            weights=weights,
            exponents=window.exponents,
            turn=window.turn,
            due=plan.due,
            whole=losses.whole,
        )
        if not self._probed:
            # Even in a warm-up: a graph that cannot be measured should fail now and not when the warm-up ends.
            self._probed = probe.check(tape)
            tape.describe_shared()
            self._warn_once("cost", warning_of_cost(outer, probe, len(self.tasks), window.every))
        measurement = probe.measure(tape, outer.needs) if plan.due else None
        if not known:
            # Only now: a graph that cannot be measured must not leave the names of its tasks behind.
            self._binding.prepare(losses.values)
        return tape, weights, measurement

    def _assemble(self, losses: TaskLosses, weights: Tensor, tape: Tape | None = None) -> Tensor:
        """Return the scalar of a call, coupled to the probe if it has a tape."""
        constant = weights if losses.together is None else weights.detach()
        total = weighted_sum(losses, constant)
        if tape is not None:
            total = self.probe.couple(tape, constant, total)
        return with_penalty(losses, total, weights, self.outer.penalty(), learnable=self.outer.learnable)

    def _weights(self) -> Tensor:
        weights = self.outer.weights()
        # A copy: the buffer is updated in place, and autograd still needs these values in the user's backward.
        return weights if weights.requires_grad else weights.clone()

    def step(self, *, skipped: bool = False) -> None:
        """Commit the pending window, if there is one. With ``accumulate="manual"``: call it after each optimizer step.

        Args:
            skipped: True if the optimizer step did not happen, as when a GradScaler found an overflow; the pending window
                is then dropped. With ``accumulate=1`` nothing is pending: the call itself has committed, from finite
                losses and norms only.
        """
        if skipped:
            self._window.drop(self.probe)
            if self.outer.wants_after_step:
                self._window.answer()
        else:
            self._commit()
        if self.history is not None:
            self.history.stepped(skipped=skipped)

    def end_epoch(self) -> None:
        """Tell the weighting that an epoch has ended. Needed by DWA without ``window=``; harmless otherwise."""
        if self._window.full:
            self._commit()
        self.outer.end_epoch()

    def _commit(self) -> None:
        if self._window.calls and not self.probe.same_step:
            # What the commit collects may be dropped, and is not of the last call.
            self._journal.report()
        self._collected = self._commit_window() or self._collected

    def _commit_window(self) -> Measurement | None:
        """Commit the pending window, if there is one; return what a lagged probe collected in it."""
        collected = self._window.collect(self.outer, self.probe)
        if self.history is not None:
            self._journal.note_window(self.tasks, self._weights())
        self._window.commit(self.outer, self.probe)
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

        A call returns the sum with the current weights, without penalty, and updates nothing: no window, no report, no log,
        no gradient is measured, in training mode or not. When the block ends, the losses of its calls are averaged like
        those of a window, over its calls and over the ranks, and handed to the weighting, which compares them with the
        losses of the window that was committed last. The block says that the optimizer has stepped: a pending window, as
        with ``accumulate > 1``, is committed first. Run all batches of that window in one block, on all ranks.

        Nothing is handed over if the block raises or is empty, within ``hold()``, for a second block after one window, and
        for a window whose step was skipped (``step(skipped=True)``). For a weighting that does not want these losses the
        block does nothing, so that any loop may have it: ``criterion.outer.wants_after_step`` says whether it is worth the
        forward. A block within another belongs to it.
        """
        if self._after is not None:
            yield
            return
        after = self._after = AfterStep()
        try:
            if self._hears_after_step():
                self._commit()
            yield
        finally:
            self._after = None
        if self._hears_after_step() and self._window.allocated:
            with torch.no_grad(), _no_autocast(self._window.loss_sum.device.type):
                self._window.hand_over(self.outer, after)

    def _hears_after_step(self) -> bool:
        return self.outer.wants_after_step and not self._held

    def _warn_without_after_step(self) -> None:
        if self._window.unanswered() >= _UNANSWERED:
            self._warn_once(
                "after_step",
                f"{type(self.outer).__name__} needs the loss after the optimizer step, and has not had it for {_UNANSWERED} "
                "windows. Add after optimizer.step(): with torch.no_grad(), criterion.after_step(): criterion(model(x), y), "
                "on the batch of that step.",
            )

    def _warn_once(self, key: str, message: str | None) -> None:
        if message is not None and key not in self._warned:
            self._warned.add(key)
            warnings.warn(message, stacklevel=3)

    def log_dict(self) -> dict[str, float]:
        """Return means since the last call of this method, as floats: ``loss/TASK``, ``weight/TASK``, ``norm/TASK``.

        The only method that synchronises with the device. A task's loss is averaged over the calls in which it was
        labelled, its norm over the calls that measured it; what never happened is left out. With a :class:`mtl_axes.History`
        there are also the means of ``share/TASK``, ``cosine/A/B`` and ``floor/TASK`` over the windows that it recorded since
        the last call, and the number ``skipped``.
        """
        if self.outer.wants_after_step:
            # Compiled calls, which count on the device, did not look.
            self._warn_without_after_step()
        return self._journal.means(self.tasks)

    def explain(self, model: nn.Module | None = None) -> str:
        """Return a text: the tasks, what is shared, how gradients are measured, at what cost, and what the weights do.

        Args:
            model: names the parameters in the text, and adds those that no task reaches.

        Raises:
            DataError: ``model`` is no module.
        """
        steady = self._journal.steady_calls()
        return explain(self._tasks, self.outer, self.probe, self._window, self._shared, self.report, steady, model)

    def param_groups(self, **options: Any) -> list[dict[str, Any]]:
        """Return parameter groups of the learnable parameters, without weight decay; an empty list if there are none.

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
            strict: False to show and compare rather than build: a strategy without a name is then ``{"class": repr}``.

        Raises:
            MtlAxesError: a strategy is not registered, or was built from an object, so that no name stands for it.
        """
        return self._config(self.outer, self._tasks, self.probe, self._window, strict=strict)

    def _record(self, history: Records) -> None:
        """Write every committed window into a :class:`mtl_axes.History`, and make it a part of the state."""
        self._journal.record(history)
        self.history = history
        earlier, self._earlier_history = self._earlier_history, None
        if earlier is not None:
            history.set_extra_state(earlier)

    def get_extra_state(self) -> dict[str, Any]:
        """Return the part of the state that is not tensors."""
        if self._window.calls and ranks(self._window.sync) > 1:
            self._warn_once(
                "pending",
                "The state holds a pending window, which is this rank's own. Loaded on every rank it would count as the "
                "window of all ranks. Call criterion.step() on every rank before one of them saves.",
            )
        return describe_state(self._tasks, self.outer, self.probe)

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Do nothing: names and kinds were needed, and taken over, before the buffers could be loaded."""

    def _save_to_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self._journal.settle()
        super()._save_to_state_dict(*args, **kwargs)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        self._journal.settle()  # its counts are replaced
        own = {key[len(prefix) :]: value for key, value in state_dict.items() if key.startswith(prefix)}
        # The state of a module around this one may leave it out, and that module then says so.
        if own or not prefix:
            if not self._on_trial:
                trial = copy.deepcopy(self)
                trial._on_trial = True
                try_to_load(trial, own)
            saved = check_state(state_dict, prefix, self._tasks, self.outer, self._window)
            self._binding.restore(saved, state_dict.get(prefix + "_window.loss_sum"))
            fit_probe(state_dict, prefix, self._window, self.probe, other=saved["probe"] != type(self.probe).__name__)
            self._earlier_history = split_history(state_dict, prefix, self.history)
            self._agreement.done = False
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def __getstate__(self) -> dict[str, Any]:
        self._journal.settle()
        # A copy made within hold() or after_step() is in neither: nothing would ever release it. Like the copy of any module
        # it is not compiled.
        return {**self.__dict__, "_held": 0, "_after": None, "_probed": False, "_compiled_call_impl": None}

    def __repr__(self) -> str:
        shapes = self.shapes or self._tasks.default
        return f"MultiTaskCriterion(outer={self.outer!r}, inner={shapes!r}, probe={self.probe!r})"


def _no_autocast(device: str) -> contextlib.AbstractContextManager[object]:
    """Return a context without autocast, which would run backwards and matrix products in half precision."""
    on = torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)
    return torch.autocast(device, enabled=False) if on else contextlib.nullcontext()
