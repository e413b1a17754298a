"""Accelerate: one call after ``prepare``; the training loop stays unchanged."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from types import MethodType

from mtl_axes.adapters.steps import calls_per_step
from torch import nn

from mtl_axes import MultiTaskCriterion
from mtl_axes.errors import OptionError, StateError

try:
    from accelerate import Accelerator  # type: ignore[import-untyped]
    from accelerate.optimizer import AcceleratedOptimizer  # type: ignore[import-untyped]
except ImportError as error:
    raise ImportError('mtl_axes.adapters.accelerate needs accelerate: pip install "mtl_axes[accelerate]".') from error

__all__ = ["attach"]


def attach(accelerator: Accelerator, criterion: MultiTaskCriterion, optimizer: AcceleratedOptimizer) -> None:
    """Save and resume the criterion with the accelerator, and end its windows with the optimizer's steps.

    Call it once, after ``accelerator.prepare`` and before ``accelerator.load_state``. The criterion is moved to the
    accelerator's device, is part of ``save_state`` and ``load_state``, and accumulates as the accelerator does; after a
    change of ``gradient_accumulation_steps``, ``accelerator.accumulate`` applies the new number to the next window. Every
    ``optimizer.step()`` that synchronises gradients commits the pending window, including an epoch's shorter last one; a
    step that the GradScaler skips drops it.

    Two calls stay in your loop: ``criterion.end_epoch()``, and, for a weighting that needs the losses after the optimizer
    step (FAMO), the batches of the window once more if ``accelerator.sync_gradients``, within
    ``with torch.no_grad(), criterion.after_step():``. After a skipped step that block does nothing.

    Args:
        accelerator: with or without ``gradient_accumulation_steps``.
        criterion: from ``compose``, not prepared: all ranks hold the same state without DistributedDataParallel.
            ``accumulate="manual"`` is left unchanged, for several calls of the criterion per batch.
        optimizer: from ``accelerator.prepare``, with ``criterion.param_groups()`` among its groups.

    Raises:
        OptionError: the criterion is already attached, is not a criterion, or was prepared; the optimizer was not prepared
            or lacks the criterion's parameters; or the criterion was composed with another number of calls per step.
    """
    if not isinstance(getattr(criterion, "module", criterion), MultiTaskCriterion):
        raise OptionError(
            f"The criterion should come from compose(). Found {type(criterion).__name__}. Call "
            "attach(accelerator, criterion, optimizer)."
        )
    if not isinstance(criterion, MultiTaskCriterion) or getattr(criterion, "_is_accelerate_prepared", False):
        raise OptionError(
            f"The criterion is a prepared {type(criterion).__name__}: accelerator.prepare() wraps and saves it as a model. "
            "Prepare model, optimizer and data only, and attach what compose() returned."
        )
    if not isinstance(optimizer, AcceleratedOptimizer):
        raise OptionError(
            f"The optimizer should be the one that accelerator.prepare() returned. Found {type(optimizer).__name__}."
        )
    optimized = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    if any(id(parameter) not in optimized for parameter in criterion.parameters()):
        raise OptionError(
            f"The optimizer lacks the parameters of {criterion.outer!r}. Add criterion.param_groups() to its groups before "
            "accelerator.prepare()."
        )
    if any(known is criterion for known in accelerator._custom_objects):
        raise OptionError("This criterion is already attached to this accelerator. Drop the second call of attach().")
    composed = criterion.accumulate

    def follow() -> None:
        calls = accelerator.gradient_accumulation_steps
        criterion.accumulate = calls_per_step(composed, calls, "gradient_accumulation_steps")

    follow()
    # Before a state is loaded: the optimizer's state is loaded to the device of its parameters.
    criterion.to(accelerator.device)
    accelerator.register_for_checkpointing(criterion)
    step, accumulate = optimizer.step, accelerator.accumulate

    def step_and_commit(self: AcceleratedOptimizer, closure: Callable[[], float] | None = None) -> None:
        step(closure)
        if accelerator.sync_gradients:
            criterion.step(skipped=self.step_was_skipped)

    def follow_and_accumulate(*models: nn.Module) -> contextlib.AbstractContextManager[None]:
        # A pending window keeps its number; the next one follows.
        with contextlib.suppress(StateError):
            follow()
        context: contextlib.AbstractContextManager[None] = accumulate(*models)
        return context

    # Not a hook of the torch optimizer: a GradScaler that skips a step calls none. A method, because schedulers wrap it.
    optimizer.step = MethodType(step_and_commit, optimizer)
    # Accelerate itself reads the number here.
    accelerator.accumulate = follow_and_accumulate
