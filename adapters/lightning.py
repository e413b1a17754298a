"""Lightning: a callback that runs the criteria of a LightningModule in step with its trainer."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, Literal

from mtl_axes.adapters.replay import Replay
from mtl_axes.adapters.steps import calls_per_step, finish_step, loss_scale
from torch.optim import Optimizer

from mtl_axes import MultiTaskCriterion
from mtl_axes.errors import OptionError

try:
    from lightning.pytorch import Callback, LightningModule, Trainer
except ImportError as error:
    raise ImportError('mtl_axes.adapters.lightning needs Lightning: pip install "mtl_axes[lightning]".') from error

__all__ = ["MultiTaskCallback"]


class MultiTaskCallback(Callback):
    """Ends windows and epochs and logs metrics for the criteria among the submodules of a LightningModule.

    - Accumulation: ``criterion.accumulate`` follows ``accumulate_grad_batches``, including a
      ``GradientAccumulationScheduler``, and is restored after the run. A criterion composed with ``"manual"``, and every
      criterion under manual optimization, keeps its own.
    - A window ends with the batch in which an optimizer stepped. A step that a gradient scaler skipped drops its window.
    - An epoch ends with its last batch, before its validation and before a checkpoint is written.
    - A closure that one step evaluates several times (LBFGS) is recorded once: ``criterion.hold()`` covers its other
      evaluations. Under manual optimization that is up to the closure.
    - If a weighting needs the losses after the optimizer step (FAMO), ``training_step`` runs again on the batches of that
      step, without gradients, in training mode and with the same random numbers; the module's buffers are unchanged, and
      what it logs is not logged again. Anything else it counts would count twice: check ``criterion.replaying``, or name
      another method in ``replay``. Under manual optimization ``training_step`` steps the optimizer, so the module does this
      itself, with ``criterion.after_step()``.
    - Metrics: ``loss/TASK``, ``weight/TASK`` and ``norm/TASK``, means since they were last logged, through the module's
      ``log_dict`` every ``log_every_n_steps``; with several criteria after their names, as in ``aux/loss/TASK``; with a
      :class:`mtl_axes.History` also what it adds to ``criterion.log_dict()``. Under DDP the losses are this rank's, as for
      any ``self.log``. Only logging, and the loss scale of a pending window, wait for the device.

    Args:
        replay: the method of the module to run again after an optimizer step if a weighting needs the losses then. It takes
            the arguments of ``training_step`` and calls the criterion on the batch; its result is not used.

    Raises:
        OptionError: at the start of a run: the module has no criterion, one was composed with another number of calls per
            step than the trainer's, or ``replay`` names no method that can run again. Later: that method updates a metric.
        StateError: the trainer's number changes while a window is pending.
    """

    def __init__(self, *, replay: str = "training_step") -> None:
        self.replay = replay
        self._replay: Replay | None = None
        # By the prefix of their metrics, which is empty if there is one criterion.
        self._criteria: dict[str, MultiTaskCriterion] = {}
        self._composed: dict[str, int | Literal["manual"]] = {}
        self._holds = ExitStack()
        self._stepped = False
        self._scale = 0.0
        self._unended = False

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Collect the criteria of the module, and check that they can be trained."""
        criteria = {name: part for name, part in pl_module.named_modules() if isinstance(part, MultiTaskCriterion)}
        if not criteria:
            raise OptionError(
                f"{type(pl_module).__name__} has no criterion among its submodules. Assign one in its __init__: "
                "self.criterion = compose(...)."
            )
        self._criteria = {f"{name}/" if len(criteria) > 1 else "": criterion for name, criterion in criteria.items()}
        self._composed = {prefix: criterion.accumulate for prefix, criterion in self._criteria.items()}
        self._unended = False
        wants = any(criterion.outer.wants_after_step for criterion in criteria.values())
        self._replay = Replay(pl_module) if wants and pl_module.automatic_optimization else None
        if self._replay is not None:
            method = getattr(pl_module, self.replay, None)
            if not callable(method) or "dataloader_iter" in inspect.signature(method).parameters:
                given = "takes a dataloader_iter" if callable(method) else "does not exist"
                raise OptionError(
                    f"MultiTaskCallback(replay={self.replay!r}) cannot run {type(pl_module).__name__}.{self.replay} again "
                    f"after an optimizer step: it {given}. Name a method that takes a batch."
                )

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Continue a window that a checkpoint left pending with the trainer's number."""
        for prefix, criterion in self._criteria.items():
            if criterion.pending and self._composed[prefix] == 1 and pl_module.automatic_optimization:
                criterion._window.accumulate = trainer.accumulate_grad_batches

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Follow the trainer's accumulation."""
        if not pl_module.automatic_optimization:
            return
        calls = trainer.accumulate_grad_batches
        for prefix, criterion in self._criteria.items():
            criterion.accumulate = calls_per_step(self._composed[prefix], calls, "accumulate_grad_batches")
        if self._replay is not None:
            self._replay.remember(batch, batch_idx)

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Record that an optimizer steps in this batch, and hold the criteria during its closure."""
        if self._stepped:
            return
        self._stepped = True
        # Read only if a skipped step matters: it waits for the device.
        matters = any(criterion.pending or criterion.outer.wants_after_step for criterion in self._criteria.values())
        self._scale = loss_scale(trainer.scaler) if matters else 0.0
        if pl_module.automatic_optimization:
            for criterion in self._criteria.values():
                self._holds.enter_context(criterion.hold())

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Commit the window if an optimizer stepped, end the epoch with its last batch, and log."""
        stepped = self._stepped
        self._release()
        if stepped:
            skipped = self._scale > 0 and loss_scale(trainer.scaler) < self._scale
            repeat = partial(self._repeat, trainer, pl_module)
            finish_step(self._criteria.values(), self._replay, repeat, skipped=skipped)
        self._unended = not trainer.is_last_batch
        if trainer.is_last_batch:
            for criterion in self._criteria.values():
                criterion.end_epoch()
        # Lightning's own decision, which only its loggers see: a metric logged at other times is lost.
        if (stepped or not pl_module.automatic_optimization) and trainer._logger_connector.should_update_logs:
            for prefix, criterion in self._criteria.items():
                pl_module.log_dict({prefix + name: value for name, value in criterion.log_dict().items()})

    def _repeat(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Run a batch of the last step again, without logging."""
        method = getattr(pl_module, self.replay)
        parameters = inspect.signature(method).parameters.values()
        numbered = len(parameters) > 1 or any(parameter.kind is parameter.VAR_POSITIONAL for parameter in parameters)
        arguments = (batch, batch_idx) if numbered else (batch,)
        before = _updates(pl_module)
        with _no_logging(pl_module):
            if self.replay == "training_step":
                # Through the strategy, which applies the precision and any wrapper of the module.
                trainer.strategy.training_step(*arguments)
            else:
                with trainer.precision_plugin.train_step_context():
                    method(*arguments)
        changed = [name for name, updates in _updates(pl_module).items() if updates != before[name]]
        if changed:
            raise OptionError(
                f"{type(pl_module).__name__}.{self.replay}() runs again after each optimizer step, for a weighting that "
                f"needs the losses then, and updates {changed}, which would count each batch twice. Update them only if "
                "criterion.replaying is False, or compute the loss in a method without metrics and name it: "
                "MultiTaskCallback(replay=...)."
            )

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """End an epoch whose last batches the module skipped, and drop the window whose optimizer step it skipped."""
        if self._unended and trainer.is_last_batch:
            for criterion in self._criteria.values():
                criterion.step(skipped=True)
                criterion.end_epoch()
            if self._replay is not None:
                self._replay.forget()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Restore ``accumulate`` of the criteria."""
        self.teardown(trainer, pl_module, "fit")

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Restore ``accumulate`` of the criteria."""
        self._release()
        for prefix, criterion in self._criteria.items():
            # Even with a window pending: the run that it belongs to is over.
            criterion._window.accumulate = self._composed[prefix]
        self._criteria = {}
        self._replay = None

    def _release(self) -> None:
        self._holds.close()
        self._stepped = False


def _updates(module: LightningModule) -> dict[str, int]:
    """Return the update count of each torchmetrics metric among the submodules."""
    parts = module.named_modules()
    return {name: part.update_count for name, part in parts if isinstance(getattr(part, "update_count", None), int)}


@contextmanager
def _no_logging(module: LightningModule) -> Iterator[None]:
    """Disable ``log`` and ``log_dict`` of the module: attributes of the object hide the methods of its class."""
    names = ("log", "log_dict")
    own = {name: module.__dict__.pop(name) for name in names if name in module.__dict__}
    module.__dict__.update(dict.fromkeys(names, lambda *args, **kwargs: None))
    try:
        yield
    finally:
        for name in names:
            del module.__dict__[name]
        module.__dict__.update(own)
