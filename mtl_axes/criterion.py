"""The criterion: from outputs and targets to the one scalar that the user calls ``backward`` on."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from mtl_axes._state import WideState
from mtl_axes.after_step import AfterStep
from mtl_axes.agreement import Agreement
from mtl_axes.binding import Binding
from mtl_axes.checkpoint import describe_state, fit_state, try_to_load, warning_of_pending
from mtl_axes.explain import explain
from mtl_axes.inner import InnerShape
from mtl_axes.mode import Mode
from mtl_axes.options import check_choice
from mtl_axes.outer import OuterWeighting
from mtl_axes.probes import Probe, Shared
from mtl_axes.signals import StepReport
from mtl_axes.tasks import STACKED, TaskLosses, TaskSet
from mtl_axes.tasks.losses import weighted_sum
from mtl_axes.telemetry.journal import Journal
from mtl_axes.telemetry.records import Records
from mtl_axes.training import Training
from mtl_axes.warning import Once
from mtl_axes.window import Window

__all__ = ["MultiTaskCriterion"]


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
        self._journal = Journal(tasks, window)
        self._binding = Binding(tasks, outer, window, self._journal.tally, probe)
        self._agreement = Agreement(tasks, window, outer)
        self._warn = Once()
        self._after = AfterStep(outer, window)
        self._training = Training(tasks, outer, probe, shared, window, self._binding, self._journal, self._after, self._warn)
        self._eval_weights: Literal["reference", "current"] = "reference"
        self.history: Records | None = None
        self._held = 0
        self._on_trial = False

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
        self._window.set_accumulate(calls)

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
        return self._after.open

    @property
    def report(self) -> StepReport | None:
        """:class:`StepReport` of the last training call, or None; made when read, from the device if calls were compiled."""
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
        """Return the scalar to call ``backward`` on: 0-dim, in float32 or wider.

        Args:
            outputs: predictions by task, or a tuple in the order of the tasks. Outputs without a target are ignored.
            targets: targets by task, or a tuple. A target that is None or missing makes its task absent in this call.
            mask: True where a label is valid: bools by task or one for all, in the target's shape or its leading dimensions.
            sample_weight: weights >= 0, given as ``mask`` is. The mean still divides by the number of valid labels.
            extra: scalar losses computed elsewhere, by task.

        Raises:
            DataError: outputs, targets, masks or weights do not fit together.
            GraphError: gradients are to be measured and cannot be.
        """
        read = self._tasks.losses
        return self._call(self.forward, read, outputs, targets, mask=mask, sample_weight=sample_weight, extra=extra)

    def combine(self, losses: Mapping[str, Tensor | None] | Sequence[Tensor | None]) -> Tensor:
        """Return the scalar to call ``backward`` on, from task losses that were computed elsewhere.

        Args:
            losses: 0-dim losses by task, or a sequence in the order of the tasks; None makes a task absent. A stacked
                tensor (K,) is taken apart with a warning: its gradients pass through every head.

        Raises:
            DataError: a loss is not a scalar, or belongs to no task.
            GraphError: gradients are to be measured and cannot be.
        """
        if isinstance(losses, Tensor) and losses.ndim == 1:
            self._warn("stacked", STACKED)
        return self._call(self.combine, self._tasks.scalars, losses)

    def _call(self, method: Callable[..., Tensor], read: Callable[..., TaskLosses], *given: Any, **options: Any) -> Tensor:
        """Return the scalar of a call of ``method``, whose losses ``read`` returns."""
        mode = self._mode()
        if mode.compiled:
            from mtl_axes.compiling import detour

            combines = method == self.combine
            leave = detour(mode, self.outer, self._window, self._tasks, self._agreement, self.history, combines=combines)
            if leave is not None:
                return leave(method, *given, **options)
        elif not self._tasks.settled:
            with self._binding.undone_by_errors():
                return self._total(mode, read(*given, **options, compiled=False))
        return self._total(mode, read(*given, **options, compiled=mode.compiled))

    def _mode(self) -> Mode:
        compiled = torch.compiler.is_compiling()
        if self._after.open:
            return Mode("after_step", compiled)
        if not (self.training and torch.is_grad_enabled()):
            return Mode("evaluation", compiled)
        return Mode("held" if self._held else "training", compiled)

    def _total(self, mode: Mode, losses: TaskLosses) -> Tensor:
        if self._agreement.needed(mode):
            losses = self._agreement.reach(losses)
        if mode.kind == "training":
            return self._training.total(losses, compiled=mode.compiled)
        if mode.kind == "after_step":
            losses = self._after.shared_by_ranks(losses, held=bool(self._held))
        self._binding.prepare(losses.values)
        if mode.kind == "held":
            return self._training.assemble(losses, self._training.weights())
        if mode.kind == "after_step":
            self._after.add(losses)
            return weighted_sum(losses, self._training.weights().detach())
        weights = self.outer.weights() if self.eval_weights == "current" else self.outer.reference()
        # A copy, as in training: this loss may be differentiated after the buffer was updated.
        return weighted_sum(losses, weights.clone())

    def step(self, *, skipped: bool = False) -> None:
        """Commit the pending window, if there is one. With ``accumulate="manual"``: call it after each optimizer step.

        Args:
            skipped: True if the optimizer step did not happen, as when a GradScaler found an overflow: the pending window
                is dropped. With ``accumulate=1`` nothing is pending; the call has committed, from finite values only.
        """
        if skipped:
            self._window.drop(self.probe)
            if self.outer.wants_after_step:
                self._window.answer()
        else:
            self._training.commit()
        if self.history is not None:
            self.history.stepped(skipped=skipped)

    def end_epoch(self) -> None:
        """Tell the weighting that an epoch has ended. Needed by DWA without ``window=``; harmless otherwise."""
        if self._window.full:
            self._training.commit()
        self.outer.end_epoch()

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

        A call returns the sum with the current weights, without penalty, and updates nothing. When the block ends, the mean
        losses over its calls and the ranks are handed to the weighting, which compares them with the losses of the last
        committed window; a pending window is committed when the block begins. Run all batches of that window in one block,
        on all ranks. Nothing is handed over if the block raises or is empty, within ``hold()``, for a second block after one
        window, and after ``step(skipped=True)``. For a weighting that does not want these losses the block does nothing, so
        that any loop may have it: ``criterion.outer.wants_after_step`` says whether it is worth the forward.
        """
        if self._after.open:
            yield
            return
        with self._after.block(self._training.commit, lambda: self._held > 0):
            yield

    def log_dict(self) -> dict[str, float]:
        """Return means since the last call of this method, as floats: ``loss/TASK``, ``weight/TASK``, ``norm/TASK``.

        The only method that synchronises with the device. A task's loss is averaged over the calls in which it was
        labelled, its norm over the calls that measured it; what never happened is left out. With a :class:`mtl_axes.History`
        there are also the means of ``share/TASK``, ``cosine/A/B`` and ``floor/TASK`` over the windows that it recorded since
        the last call, and the number ``skipped``.
        """
        # Compiled calls, which count on the device, did not look.
        self._warn("after_step", self._after.warning_if_missing())
        return self._journal.means()

    def explain(self, model: nn.Module | None = None) -> str:
        """Return a text: the tasks, what is shared, how gradients are measured, at what cost, and what the weights do.

        Args:
            model: a module, which names the parameters in the text; those that no task reaches are added.

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

    def get_extra_state(self) -> dict[str, Any]:
        """Return the part of the state that is not tensors."""
        self._warn("pending", warning_of_pending(self._window))
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
            fit_state(state_dict, prefix, self._tasks, self._binding, self._journal)
            self._agreement.done = False
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def __getstate__(self) -> dict[str, Any]:
        self._journal.settle()
        # A copy made within hold() is not in it: nothing would ever release it. No copy of a module is compiled.
        return {**self.__dict__, "_held": 0, "_compiled_call_impl": None}

    def __repr__(self) -> str:
        inner = self.shapes or self._tasks.default
        return f"MultiTaskCriterion(outer={self.outer!r}, inner={inner!r}, probe={self.probe!r})"
