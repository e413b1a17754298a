"""The main task of weightings that have one."""

from __future__ import annotations

import torch
from torch import Tensor

from mtl_axes.errors import OptionError
from mtl_axes.signals import TaskInfo

__all__ = ["check_main", "find_main", "with_main_at_one"]


def check_main(main: str | int) -> None:
    """Raise :class:`OptionError` unless ``main`` could be the name of a task, or its position."""
    position = isinstance(main, int) and not isinstance(main, bool) and main >= 0
    if not position and not (isinstance(main, str) and main):
        raise OptionError(f"Option `main` should be the name of a task, or its position from 0 on. Found main={main!r}.")


def find_main(main: str | int, tasks: tuple[TaskInfo, ...]) -> int:
    """Return the position of the main task.

    Raises:
        OptionError: there is no such task.
    """
    names = [task.name for task in tasks]
    position = names.index(main) if main in names else main
    if isinstance(position, str) or position >= len(names):
        raise OptionError(
            f"Option `main` should be one of the tasks {names}, or a position among them. Found main={main!r}."
        )
    return position


def with_main_at_one(weights: Tensor, position: int) -> Tensor:
    """Return the weights (K,) with that of the main task 1, which a sum of parts of 1 may miss by a rounding.

    Differences from 1 would keep it exact by themselves, but take the digits of all weights that are small beside it.
    """
    return torch.where(torch.arange(len(weights), device=weights.device) == position, 1.0, weights)
