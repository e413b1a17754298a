"""Lightning: a callback that keeps the criterion of a LightningModule in step with its trainer."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any, Literal, NamedTuple

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
    - Metrics: ``loss/TASK``, ``weight/TASK`` and ``norm/TASK``, means since they were last logged, through ``log_dict`` of
      the module at every ``log_every_n_steps``; with several criteria after their names, as in ``aux/loss/TASK``. Under DDP
      the losses are those of each rank, as for any ``self.log``. Only then does it wait for the device, and for the loss
      scale of a window that is pending.

    Raises:
        OptionError: at the start of a run, the module has no criterion, or one was composed with another number of calls
            per optimizer step than the trainer has.
        StateError: the trainer's number changes while a window is pending.
    """

    def __init__(self) -> None:
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

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Let a window that a checkpoint left pending go on under the trainer's number."""
        for _, criterion, composed in self._members:
            if criterion.window.calls and composed == 1 and pl_module.automatic_optimization:
                criterion.window.accumulate = trainer.accumulate_grad_batches

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
        self._unended = not trainer.is_last_batch
        if trainer.is_last_batch:
            for _, criterion, _ in self._members:
                criterion.end_epoch()
        # Lightning's own decision, which others than its loggers see nowhere else: what is logged at other times is lost.
        if (stepped or not pl_module.automatic_optimization) and trainer._logger_connector.should_update_logs:
            for prefix, criterion, _ in self._members:
                pl_module.log_dict({prefix + name: value for name, value in criterion.log_dict().items()})

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """End an epoch of which the module skipped the rest, without the window whose optimizer step it skipped, too."""
        if self._unended and trainer.is_last_batch:
            for _, criterion, _ in self._members:
                criterion.step(skipped=True)
                criterion.end_epoch()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Give the criteria back as they were composed."""
        self.teardown(trainer, pl_module, "fit")

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Give the criteria back as they were composed."""
        self._release()
        for _, criterion, composed in self._members:
            # Whatever is pending: the run that it belonged to is over.
            criterion.window.accumulate = composed
        self._members = []

    def _release(self) -> None:
        self._holds.close()
        self._stepped = False

    def _loss_scale(self, trainer: Trainer) -> float | None:
        """Return the loss scale, which falls when a step is skipped; None when no window could be dropped."""
        pending = any(criterion.window.calls for _, criterion, _ in self._members)
        return float(trainer.scaler.get_scale()) if pending and trainer.scaler is not None else None
