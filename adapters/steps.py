"""What the adapters do alike around an optimizer step."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any, Literal

from mtl_axes.adapters.replay import Replay

from mtl_axes import MultiTaskCriterion
from mtl_axes.errors import OptionError

__all__ = ["calls_per_step", "finish_step", "loss_scale"]


def calls_per_step(composed: int | str, calls: int, option: str) -> int | Literal["manual"]:
    """Return the calls per optimizer step under a trainer: its number, unless the criterion was composed with ``"manual"``.

    Args:
        composed: the criterion's ``accumulate``; 1, the default, stands for any number.
        calls: the trainer's number.
        option: the trainer's name for it.

    Raises:
        OptionError: the criterion was composed with another number.
    """
    if composed == "manual":
        return "manual"
    if composed not in (1, calls):
        raise OptionError(
            f"compose(accumulate={composed}) contradicts the trainer's {option}={calls}. Leave accumulate= out of "
            "compose(), or set criterion.accumulate = 1: the adapter then sets it to the trainer's number."
        )
    return calls


def loss_scale(scaler: Any) -> float:
    """Return the scale of the loss, 1 without a GradScaler. It falls when the scaler skips a step."""
    return 1.0 if scaler is None else float(scaler.get_scale())


def finish_step(
    criteria: Collection[MultiTaskCriterion], replay: Replay | None, call: Callable[..., object], *, skipped: bool
) -> None:
    """End the criteria's windows after an optimizer step, then repeat its calls for weightings that need the losses now.

    A step that the GradScaler skipped drops both the windows and the recorded calls.
    """
    for criterion in criteria:
        criterion.step(skipped=skipped)
    waiting = [criterion for criterion in criteria if criterion.outer.wants_after_step]
    if replay is None or not waiting:
        return
    if skipped:
        replay.forget()
    else:
        replay.run(call, waiting)
