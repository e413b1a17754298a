"""Lightning: a callback that keeps the criterion of a LightningModule in step with its trainer."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Literal, NamedTuple

from mtl_axes.adapters.replay import Replay
from torch.optim import Optimizer

from mtl_axes import MultiTaskCriterion
from mtl_axes.errors import OptionError

try:
    from lightning.pytorch import Callback, LightningModule, Trainer
except ImportError as error:
    raise ImportError(
        'mtl_axes.adapters.lightning should find Lightning. Install it with: pip install "mtl_axes[lightning]"'
    ) from error

__all__ = ["MultiTaskCallback"]


class _Member(NamedTuple):
    """A criterion of the module.

    Attributes:
        prefix: goes before the names of its metrics; empty when the module has one criterion only.
        composed: the calls per optimizer step that it was composed with.
    """

    prefix: str
    criterion: MultiTaskCriterion
    composed: int | Literal["manual"]


class MultiTaskCallback(Callback):
    """Tells the criteria among the submodules of a LightningModule what its trainer does.

    - Accumulation: ``criterion.accumulate`` follows ``accumulate_grad_batches``, also where a
      ``GradientAccumulationScheduler`` changes it, and is put back after the run. A criterion composed with ``"manual"``,
      and every criterion under manual optimization, keeps its own.
    - Windows end with the batch in which an optimizer stepped. A step that a gradient scaler skipped drops its window.
    - Epochs end with their last batch, before its validation and before a checkpoint is written.
    - A closure that one step evaluates several times, as LBFGS does, is recorded once: ``criterion.hold()`` covers its
      other evaluations. Under manual optimization that is up to the closure.
    - For a weighting that wants the losses after the optimizer step, ``training_step`` runs again on the batches of that
      step, without gradients and in training mode, with the random numbers of the first time; the module's buffers stay as
      the first time left them, and what it logs is not logged again. Anything else that it counts would count twice:
      ``criterion.replaying`` is True then, or name a method for it in ``replay``. Under manual optimization, where
      ``training_step`` steps the optimizer, the module does it itself, with ``criterion.after_step()``.
    - Metrics: ``loss/TASK``, ``weight/TASK`` and ``norm/TASK``, means since they were last logged, through ``log_dict`` of
      the module at every ``log_every_n_steps``; with several criteria after their names, as in ``aux/loss/TASK``; with a
      :class:`mtl_axes.History` also what it adds to ``criterion.log_dict()``. Under DDP
      the losses are those of each rank, as for any ``self.log``. Only then does it wait for the device, and for the loss
      scale of a window that is pending.

    Args:
        replay: the method of the module that runs again after an optimizer step, where a weighting wants the losses then. It
            is given what ``training_step`` is given and calls the criterion on the batch; what it returns is not used.

    Raises:
        OptionError: at the start of a run, the module has no criterion, or one was composed with another number of calls
            per optimizer step than the trainer has; or the method to be run again cannot be, or updates a metric.
        StateError: the trainer's number changes while a window is pending.
    """

    def __init__(self, *, replay: str = "training_step") -> None:
        self.replay = replay
        self._replay: Replay | None = None
        self._members: list[_Member] = []
        self._holds = ExitStack()
        self._stepped = False
        self._scale: float | None = None
        self._unended = False

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Find the criteria, and refuse what cannot be."""
        found = {name: part for name, part in pl_module.named_modules() if isinstance(part, MultiTaskCriterion)}
        if not found:
            raise OptionError(
                "MultiTaskCallback should find a criterion among the submodules of the LightningModule. Found none in "
                f"{type(pl_module).__name__}. Assign one there: self.criterion = compose(...)."
            )
        self._members = [
            _Member(f"{name}/" if len(found) > 1 else "", criterion, criterion.accumulate)
            for name, criterion in found.items()
        ]
        self._unended = False
        wants = any(member.criterion.outer.wants_after_step for member in self._members)
        self._replay = Replay(pl_module) if wants and pl_module.automatic_optimization else None
        if self._replay is not None:
            method = getattr(pl_module, self.replay, None)
            if not callable(method) or "dataloader_iter" in inspect.signature(method).parameters:
                given = "one that takes a dataloader_iter" if callable(method) else "none of that name"
                raise OptionError(
                    f"MultiTaskCallback(replay={self.replay!r}) should name a method of {type(pl_module).__name__} that "
                    f"takes a batch, to be run again after an optimizer step. Found {given}."
                )

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Let a window that a checkpoint left pending go on under the trainer's number."""
        for _, criterion, composed in self._members:
            if criterion._window.calls and composed == 1 and pl_module.automatic_optimization:
                criterion._window.accumulate = trainer.accumulate_grad_batches

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Follow the trainer's accumulation."""
        if not pl_module.automatic_optimization:
            return
        calls = trainer.accumulate_grad_batches
        for _, criterion, composed in self._members:
            if composed not in (1, "manual", calls):
                raise OptionError(
                    "compose(accumulate=...) should be what the trainer does, or be left out. Found "
                    f"accumulate={composed} and accumulate_grad_batches={calls}."
                )
            if composed != "manual":
                criterion.accumulate = calls
        if self._replay is not None:
            self._replay.remember(batch, batch_idx)

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Take note that an optimizer steps in this batch."""
        if self._stepped:
            return
        self._stepped = True
        self._scale = self._loss_scale(trainer)
        if pl_module.automatic_optimization:
            for _, criterion, _ in self._members:
                self._holds.enter_context(criterion.hold())

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Commit the window when an optimizer stepped, end the epoch with its last batch, and log."""
        stepped = self._stepped
        self._release()
        if stepped:
            scale = self._loss_scale(trainer)
            skipped = scale is not None and self._scale is not None and scale < self._scale
            for _, criterion, _ in self._members:
                criterion.step(skipped=skipped)
            if self._replay is not None:
                self._after_step(trainer, pl_module, self._replay, skipped=skipped)
        self._unended = not trainer.is_last_batch
        if trainer.is_last_batch:
            for _, criterion, _ in self._members:
                criterion.end_epoch()
        # Lightning's own decision, which others than its loggers see nowhere else: what is logged at other times is lost.
        if (stepped or not pl_module.automatic_optimization) and trainer._logger_connector.should_update_logs:
            for prefix, criterion, _ in self._members:
                pl_module.log_dict({prefix + name: value for name, value in criterion.log_dict().items()})

    def _after_step(self, trainer: Trainer, pl_module: LightningModule, replay: Replay, *, skipped: bool) -> None:
        """Run the batches of the step again, for the weightings that want their losses now."""
        if skipped:
            replay.forget()
            return
        method = getattr(pl_module, self.replay)
        parameters = inspect.signature(method).parameters.values()
        numbered = len(parameters) > 1 or any(parameter.kind is parameter.VAR_POSITIONAL for parameter in parameters)

        def again(batch: Any, batch_idx: int) -> None:
            arguments = (batch, batch_idx) if numbered else (batch,)
            if self.replay == "training_step":
                # Through the strategy, which knows of precision and of the module that wraps this one.
                trainer.strategy.training_step(*arguments)
            else:
                with trainer.precision_plugin.train_step_context():
                    method(*arguments)

        counted = _updates(pl_module)
        with _no_logging(pl_module):
            replay.run(again, [criterion for _, criterion, _ in self._members if criterion.outer.wants_after_step])
        changed = [name for name, updates in _updates(pl_module).items() if updates != counted[name]]
        if changed:
            raise OptionError(
                f"{type(pl_module).__name__}.{self.replay}() runs again after each optimizer step, for a weighting that "
                f"wants the losses then, and should update no metric. Found that it updates {changed}, which would count "
                "each batch twice. Update them where criterion.replaying is False, or move the loss into a method of its "
                "own and name that: MultiTaskCallback(replay=...)."
            )

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """End an epoch of which the module skipped the rest, without the window whose optimizer step it skipped, too."""
        if self._unended and trainer.is_last_batch:
            for _, criterion, _ in self._members:
                criterion.step(skipped=True)
                criterion.end_epoch()
            if self._replay is not None:
                self._replay.forget()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Give the criteria back as they were composed."""
        self.teardown(trainer, pl_module, "fit")

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Give the criteria back as they were composed."""
        self._release()
        for _, criterion, composed in self._members:
            # Whatever is pending: the run that it belonged to is over.
            criterion._window.accumulate = composed
        self._members = []
        self._replay = None

    def _release(self) -> None:
        self._holds.close()
        self._stepped = False

    def _loss_scale(self, trainer: Trainer) -> float | None:
        """Return the loss scale, which falls when a step is skipped; None when nobody has to know."""
        pending = any(criterion._window.calls or criterion.outer.wants_after_step for _, criterion, _ in self._members)
        return float(trainer.scaler.get_scale()) if pending and trainer.scaler is not None else None


def _updates(module: LightningModule) -> dict[str, int]:
    """Return how often each metric of torchmetrics among the submodules was updated."""
    parts = module.named_modules()
    return {name: part.update_count for name, part in parts if isinstance(getattr(part, "update_count", None), int)}


@contextmanager
def _no_logging(module: LightningModule) -> Iterator[None]:
    """Within this context the module logs nothing."""

    def ignore(*args: Any, **kwargs: Any) -> None: ...

    names = ("log", "log_dict")
    # The attributes of the object stand before the methods of its class.
    kept = {name: module.__dict__[name] for name in names if name in module.__dict__}
    module.__dict__.update(dict.fromkeys(names, ignore))
    try:
        yield
    finally:
        for name in names:
            del module.__dict__[name]
        module.__dict__.update(kept)
