"""A plain PyTorch training loop around a criterion. The criterion works without it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Any

import torch
from mtl_axes.adapters.replay import Replay
from mtl_axes.adapters.steps import finish_step, loss_scale
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from mtl_axes import MultiTaskCriterion
from mtl_axes.errors import DataError, OptionError

__all__ = ["Loop"]

Batch = tuple[Any, Any]


class Loop:
    """Trains a model on ``(inputs, targets)`` batches with a criterion.

    If the weighting needs the losses after the optimizer step (FAMO), the batches of the step run again, without gradients,
    in training mode and with the same random numbers; the model's buffers are unchanged.

    Args:
        model: called as ``model(inputs)``; its result goes to the criterion as the outputs.
        criterion: from ``compose``; with ``accumulate=n`` the optimizer steps once in n batches, on their mean gradient.
        optimizer: builds the optimizer from parameter groups: ``lambda groups: torch.optim.AdamW(groups, lr=1e-3)``. The
            groups are the model's parameters and, without weight decay, the criterion's.
        scheduler: builds a learning rate scheduler from the optimizer; it steps with every optimizer step.
        scaler: for fp16. A step that it skips drops the criterion's pending window, if there is one (``accumulate > 1``).
        clip: largest norm of the model's gradient.
        compute_loss: replaces ``criterion(model(inputs), targets)``, for example to run under autocast. It takes the batch,
            and is called a second time if the weighting needs the losses after the step.
        after_step: called with the loop after every optimizer step.
        log_every: optimizer steps per row of ``history``; an epoch ends with a row. Each row waits for the device.
        progress: show a progress bar, if tqdm is installed.

    Attributes:
        history: one dict per row: ``epoch``, ``step`` (optimizer steps so far), and ``criterion.log_dict()``.
        step: optimizer steps so far.
    """

    def __init__(
        self,
        model: nn.Module,
        criterion: MultiTaskCriterion,
        optimizer: Callable[[list[dict[str, Any]]], Optimizer],
        *,
        scheduler: Callable[[Optimizer], LRScheduler] | None = None,
        scaler: GradScaler | None = None,
        clip: float | None = None,
        compute_loss: Callable[[Batch], Tensor] | None = None,
        after_step: Callable[[Loop], None] | None = None,
        log_every: int = 10,
        progress: bool = True,
    ) -> None:
        if not isinstance(criterion.accumulate, int):
            raise OptionError("Loop needs a number of calls per step: compose(accumulate=n). Found accumulate='manual'.")
        self.model, self.criterion = model, criterion
        own = set(criterion.parameters())  # the criterion may be inside the model
        self._parameters = [parameter for parameter in model.parameters() if parameter not in own]
        self.optimizer = optimizer([{"params": self._parameters}, *criterion.param_groups()])
        self.scheduler = scheduler(self.optimizer) if scheduler is not None else None
        self.scaler, self.clip = scaler, clip
        self.compute_loss = compute_loss if compute_loss is not None else self._loss
        self.after_step, self.log_every, self.progress = after_step, log_every, progress
        self._replay = Replay(model)
        self.history: list[dict[str, float]] = []
        self.step = self.epoch = 0

    def run(self, batches: Iterable[Batch], epochs: int = 1) -> list[dict[str, float]]:
        """Train for some epochs and return the history so far. Call it again to continue."""
        for _ in range(epochs):
            self.model.train()
            self.criterion.train()
            begin = self.step
            bar = self._bar(batches)
            for window in _windows(bar, int(self.criterion.accumulate)):
                self._step(window)
                if self.step % self.log_every == 0:
                    self._log(bar)
            if self.step == begin:
                raise DataError(
                    f"Epoch {self.epoch} has no batches. Pass a DataLoader or a list: a generator is empty after one epoch."
                )
            if self.step % self.log_every:
                self._log(bar)
            self.criterion.end_epoch()
            self.epoch += 1
        return self.history

    def _log(self, bar: Any) -> None:
        row = {"epoch": self.epoch, "step": self.step, **self.criterion.log_dict()}
        self.history.append(row)
        if hasattr(bar, "set_postfix"):
            bar.set_postfix({key: f"{value:.3g}" for key, value in row.items() if "/" in key})

    def _step(self, window: list[Batch]) -> None:
        self.model.zero_grad()
        self.criterion.zero_grad()
        self._replay.forget()
        for batch in window:
            if self.criterion.outer.wants_after_step:
                self._replay.remember(batch)
            loss = self.compute_loss(batch) / len(window)
            torch.autograd.backward(loss if self.scaler is None else self.scaler.scale(loss))
        if self.clip is not None:
            if self.scaler is not None:
                self.scaler.unscale_(self.optimizer)
            torch.nn.utils.clip_grad_norm_(self._parameters, self.clip)
        skipped = self._optimize()
        finish_step([self.criterion], self._replay, self.compute_loss, skipped=skipped)
        if self.scheduler is not None and not skipped:
            self.scheduler.step()
        self.step += 1
        if self.after_step is not None:
            self.after_step(self)

    def _optimize(self) -> bool:
        """Step the optimizer; return whether the scaler skipped it."""
        if self.scaler is None:
            self.optimizer.step()
            return False
        before = loss_scale(self.scaler)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return loss_scale(self.scaler) < before

    def _loss(self, batch: Batch) -> Tensor:
        inputs, targets = batch
        loss: Tensor = self.criterion(self.model(inputs), targets)
        return loss

    def _bar(self, batches: Iterable[Batch]) -> Any:
        if self.progress:
            try:
                from tqdm.auto import tqdm
            except ImportError:
                return batches
            return tqdm(batches, desc=f"epoch {self.epoch}", leave=False)
        return batches


def _windows(batches: Iterable[Batch], size: int) -> Iterator[list[Batch]]:
    """Group batches by optimizer step; the last group of an epoch may be shorter."""
    iterator = iter(batches)
    while window := list(islice(iterator, size)):
        yield window
