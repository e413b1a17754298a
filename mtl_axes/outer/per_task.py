"""Options with one number per task: a sequence in the order of the tasks, or a mapping by name."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TypeAlias

from mtl_axes.errors import OptionError
from mtl_axes.options import check_number
from mtl_axes.signals import TaskInfo

__all__ = ["PerTask", "check_per_task", "numbers_of", "per_task"]

# Plain data: what such an option is kept as.
PerTask: TypeAlias = float | list[float] | dict[str, float]


def check_per_task(
    name: str,
    given: float | Sequence[float] | Mapping[str, float],
    *,
    low: float = -math.inf,
    low_open: bool = False,
    common: bool = False,
) -> PerTask:
    """Return a copy of an option as plain data.

    Args:
        name: of the option.
        given: its value.
        low: lower end of the interval of the numbers.
        low_open: whether the interval begins above it.
        common: whether one number may stand for all tasks.

    Raises:
        OptionError: it is of another kind or empty, or a number is not finite or outside the interval.
    """
    if isinstance(given, (str, bytes)) or not isinstance(given, (Sequence, Mapping)):
        if common and not isinstance(given, (str, bytes)):
            return check_number(name, given, low=low, low_open=low_open)
        one = "a number, or a sequence or a mapping" if common else "a sequence or a mapping"
        raise OptionError(f"Option `{name}` should be {one} of numbers, one number per task. Found {name}={given!r}.")
    if not given:
        raise OptionError(f"Option `{name}` should have one number per task. Found none.")
    if isinstance(given, Mapping):
        return {task: check_number(name, value, low=low, low_open=low_open) for task, value in given.items()}
    return [check_number(name, value, low=low, low_open=low_open) for value in given]


def numbers_of(given: PerTask) -> list[float]:
    """Return the numbers of a checked option, in the order in which they were given."""
    if isinstance(given, dict):
        return list(given.values())
    return given if isinstance(given, list) else [given]


def per_task(what: str, given: PerTask, tasks: tuple[TaskInfo, ...]) -> list[float]:
    """Return the numbers of a checked option in the order of the tasks.

    Args:
        what: the option, as the sentence of an error begins.
        given: what :func:`check_per_task` returned.
        tasks: those that the weighting is bound to.

    Raises:
        OptionError: there is not one number for each task.
    """
    names = [task.name for task in tasks]
    if isinstance(given, dict):
        if set(given) != set(names):
            raise OptionError(f"{what} should name the tasks {names}. Found {list(given)}.")
        return [float(given[name]) for name in names]
    if not isinstance(given, list):
        return [float(given)] * len(names)
    if len(given) != len(names):
        raise OptionError(f"{what} should be {len(names)} numbers, one for each of {names}. Found {given!r}.")
    return [float(value) for value in given]
