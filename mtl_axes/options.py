"""Options of strategies: checks for the constructor, and reading them back for ``repr`` and ``config``.

Every check returns the value, so that a constructor checks and keeps an option in one line.
"""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias, TypeVar

from torch import nn

from mtl_axes.errors import OptionError

__all__ = [
    "PerTask",
    "check_bool",
    "check_choice",
    "check_integer",
    "check_number",
    "check_per_task",
    "check_task",
    "constructor_options",
    "constructor_repr",
    "numbers_by_task",
    "read_options",
    "steady_repr",
    "task_position",
]

_T = TypeVar("_T")
# One number for all tasks, one per task in their order, or one per task by name.
PerTask: TypeAlias = float | list[float] | dict[str, float]


def check_number(
    name: str,
    value: float,
    *,
    low: float = -math.inf,
    high: float = math.inf,
    low_open: bool = False,
    high_open: bool = False,
    integer: bool = False,
) -> float:
    """Return ``value`` if it is a finite number in the interval, else raise :class:`OptionError`."""
    kind = "an integer" if integer else "a number"
    allowed = int if integer else (int, float)
    inside = (
        isinstance(value, allowed)
        and not isinstance(value, bool)
        and math.isfinite(value)
        and (low < value if low_open else low <= value)
        and (value < high if high_open else value <= high)
    )
    if not inside:
        left = "(" if low_open or low == -math.inf else "["
        right = ")" if high_open or high == math.inf else "]"
        raise OptionError(f"Option `{name}` should be {kind} in {left}{low}, {high}{right}. Found {name}={value!r}.")
    # A numpy float passes for a float, but its repr is no literal and a config with it is not plain.
    return value if type(value) in (int, float) else float(value)


def check_integer(name: str, value: int, *, low: int = 0) -> int:
    """Return ``value`` if it is an integer from ``low`` on, else raise :class:`OptionError`."""
    return int(check_number(name, value, low=low, integer=True))


def check_bool(name: str, value: bool) -> bool:
    """Return ``value`` if it is True or False, else raise :class:`OptionError`."""
    if not isinstance(value, bool):
        raise OptionError(f"Option `{name}` should be True or False. Found {name}={value!r}.")
    return value


def check_choice(name: str, value: _T, choices: tuple[object, ...]) -> _T:
    """Return ``value`` if it is one of ``choices``, else raise :class:`OptionError`."""
    if not any(value is choice or (type(value) is type(choice) and value == choice) for choice in choices):
        listed = ", ".join(repr(choice) for choice in choices)
        raise OptionError(f"Option `{name}` should be one of {listed}. Found {name}={value!r}.")
    return value


def check_per_task(
    name: str,
    value: float | Sequence[float] | Mapping[str, float],
    *,
    low: float = -math.inf,
    low_open: bool = False,
    common: bool = False,
) -> PerTask:
    """Return a copy, as plain data, of an option with one number per task: a sequence, or a mapping by name.

    With ``common``, a single number for all tasks is allowed, too.

    Raises:
        OptionError: it is of another kind or empty, or a number is not finite or outside the interval.
    """
    single = isinstance(value, (str, bytes)) or not isinstance(value, (Sequence, Mapping))
    if single and common and not isinstance(value, (str, bytes)):
        return check_number(name, value, low=low, low_open=low_open)  # type: ignore[arg-type]
    if single:
        kinds = "a number, or a sequence or a mapping" if common else "a sequence or a mapping"
        raise OptionError(f"Option `{name}` should be {kinds} of numbers, one number per task. Found {name}={value!r}.")
    if not value:
        raise OptionError(f"Option `{name}` is empty. Give one number per task.")
    if isinstance(value, Mapping):
        return {task: check_number(name, number, low=low, low_open=low_open) for task, number in value.items()}
    return [check_number(name, number, low=low, low_open=low_open) for number in value]  # type: ignore[union-attr]


def numbers_by_task(what: str, given: PerTask, names: list[str]) -> list[float]:
    """Return the numbers of a checked option in the order of the tasks.

    Args:
        what: the option, as the sentence of an error begins.
        given: what :func:`check_per_task` returned.
        names: the tasks.

    Raises:
        OptionError: there is not one number for each task.
    """
    if isinstance(given, dict):
        if set(given) != set(names):
            raise OptionError(f"{what} should name the tasks {names}. Found {list(given)}.")
        return [float(given[name]) for name in names]
    if not isinstance(given, list):
        return [float(given)] * len(names)
    if len(given) != len(names):
        raise OptionError(f"{what} should be {len(names)} numbers, one for each of {names}. Found {given!r}.")
    return [float(value) for value in given]


def check_task(name: str, value: str | int) -> str | int:
    """Return ``value`` if it can be the name or the position of a task, else raise :class:`OptionError`."""
    position = isinstance(value, int) and not isinstance(value, bool) and value >= 0
    if not position and not (isinstance(value, str) and value):
        raise OptionError(
            f"Option `{name}` should be the name of a task, or its position from 0 on. Found {name}={value!r}."
        )
    return value


def task_position(name: str, value: str | int, names: list[str]) -> int:
    """Return the position of a task that an option names, or raise :class:`OptionError` if there is no such task."""
    position = names.index(value) if value in names else value
    if isinstance(position, str) or position >= len(names):
        raise OptionError(
            f"Option `{name}` should be one of the tasks {names}, or a position among them. Found {name}={value!r}."
        )
    return position


def constructor_options(cls: type) -> dict[str, Any]:
    """Return the constructor's arguments of a class, name -> default, or ``inspect.Parameter.empty`` if it has none."""
    # A class without a constructor of its own shows the (*args, **kwargs) of nn.Module, and takes nothing.
    if cls.__init__ is nn.Module.__init__:  # type: ignore[misc]
        return {}
    skipped = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    parameters = inspect.signature(cls).parameters
    return {name: parameter.default for name, parameter in parameters.items() if parameter.kind not in skipped}


def read_options(strategy: object) -> dict[str, Any]:
    """Return the constructor's arguments of a strategy, read from the attributes of the same names."""
    return {name: getattr(strategy, name) for name in constructor_options(type(strategy)) if hasattr(strategy, name)}


def constructor_repr(strategy: object) -> str:
    """Return the constructor call that builds ``strategy``, for example ``GABA(beta=0.99, floor=0.05)``."""
    options = strategy.options() if hasattr(strategy, "options") else read_options(strategy)
    inside = ", ".join(f"{name}={value!r}" for name, value in options.items())
    return f"{type(strategy).__name__}({inside})"


def steady_repr(value: object) -> str:
    """Return the repr of an object without its address, which differs between processes."""
    return re.sub(r" at 0x[0-9a-fA-F]+", "", repr(value))
