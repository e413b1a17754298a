"""Accelerate: one call, after ``prepare``, and the loop that you have stays as it is."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from types import MethodType

from torch import nn

from mtl_axes import MultiTaskCriterion
from mtl_axes.errors import OptionError

try:
    from accelerate import Accelerator  # type: ignore[import-untyped]
    from accelerate.optimizer import AcceleratedOptimizer  # type: ignore[import-untyped]
except ImportError as error:
    raise ImportError('This adapter needs accelerate. Install it with: pip install "mtl_axes[accelerate]"') from error

__all__ = ["attach"]


def attach(accelerator: Accelerator, criterion: MultiTaskCriterion, optimizer: AcceleratedOptimizer) -> None:
    """Let an accelerator save and resume the criterion, and an optimizer's steps end the criterion's windows.

    Call it once, after ``accelerator.prepare`` and before ``accelerator.load_state``. The criterion moves to the
    accelerator's device, takes part in ``save_state`` and ``load_state``, and accumulates as the accelerator does; where
    ``gradient_accumulation_steps`` changes, ``accelerator.accumulate`` lets the next window follow. Every
    ``optimizer.step()`` that synchronises gradients then commits the pending window, also an epoch's shorter last one, and
    one that the GradScaler skips drops it. An epoch's end stays yours: ``criterion.end_epoch()``. So does the loss after the
    optimizer step, for a weighting that wants it: where ``accelerator.sync_gradients``, run the batches of the window again
    within ``with torch.no_grad(), criterion.after_step():``. After a step that was skipped that block does nothing.

    Args:
        accelerator: with or without ``gradient_accumulation_steps``.
        criterion: from ``compose``, not prepared: it belongs into no DistributedDataParallel, and all ranks hold the same
            state without. ``accumulate="manual"`` is left as it is, for several calls of the criterion per batch.
        optimizer: from ``accelerator.prepare``, with ``criterion.param_groups()`` among its groups.

    Raises:
        OptionError: the criterion is attached already, is none or was prepared, the optimizer was not, the criterion's
            parameters are not in it, or the criterion was composed to accumulate otherwise than the accelerator.
    """
    if not isinstance(getattr(criterion, "module", criterion), MultiTaskCriterion):
        raise OptionError(
            f"The criterion should come from compose(). Found {type(criterion).__name__}. Call "
            "attach(accelerator, criterion, optimizer)."
        )
    if not isinstance(criterion, MultiTaskCriterion) or getattr(criterion, "_is_accelerate_prepared", False):
        raise OptionError(
            "The criterion should not pass through accelerator.prepare(), which wraps and saves it as a model. Found a "
            f"prepared {type(criterion).__name__}. Prepare model, optimizer and data, and attach what compose() returned."
        )
    if not isinstance(optimizer, AcceleratedOptimizer):
        raise OptionError(
            f"The optimizer should be the one that accelerator.prepare() returned. Found {type(optimizer).__name__}."
        )
    optimized = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    if any(id(parameter) not in optimized for parameter in criterion.parameters()):
        raise OptionError(
            f"The parameters of {criterion.outer!r} should be in the optimizer. Found them missing. Add "
            "criterion.param_groups() to its groups before accelerator.prepare()."
        )
    if any(known is criterion for known in accelerator._custom_objects):
        raise OptionError("A criterion should be attached to an accelerator once. Found it attached. Drop the second call.")
    composed = criterion.accumulate
    _accumulate(criterion, composed, accelerator.gradient_accumulation_steps)
    # Before a state is loaded: the optimizer's state goes to where its parameters are then.
    criterion.to(accelerator.device)
    accelerator.register_for_checkpointing(criterion)
    step, accumulate = optimizer.step, accelerator.accumulate

    def step_and_commit(self: AcceleratedOptimizer, closure: Callable[[], float] | None = None) -> None:
        step(closure)
        if accelerator.sync_gradients:
            criterion.step(skipped=self.step_was_skipped)

    def follow_and_accumulate(*models: nn.Module) -> AbstractContextManager[None]:
        if not criterion._window.calls:
            _accumulate(criterion, composed, accelerator.gradient_accumulation_steps)
        context: AbstractContextManager[None] = accumulate(*models)
        return context

    # Not a hook of the torch optimizer: a GradScaler that skips a step calls none. A method, as schedulers wrap it.
    optimizer.step = MethodType(step_and_commit, optimizer)
    # Where Accelerate itself reads the number.
    accelerator.accumulate = follow_and_accumulate


def _accumulate(criterion: MultiTaskCriterion, composed: int | str, calls: int) -> None:
    if composed not in (1, calls, "manual"):
        raise OptionError(
            f"The criterion and the accelerator should accumulate alike. Found accumulate={composed} and "
            f"gradient_accumulation_steps={calls}. Leave accumulate= out of compose(), or set criterion.accumulate = 1: "
            "attach() sets it."
        )
    if composed != "manual":
        criterion.accumulate = calls
