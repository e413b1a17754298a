"""Options of strategies: checking them in the constructor and reading them back for ``repr`` and ``config``."""

from __future__ import annotations

import inspect
import math
import re
from typing import Any

from torch import nn

from mtl_axes.errors import OptionError

__all__ = [
    "check_bool",
    "check_choice",
    "check_number",
    "constructor_options",
    "constructor_repr",
    "read_options",
    "steady_repr",
]


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
    """Return ``value`` when it is a finite number in the interval, else raise :class:`OptionError`."""
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


def check_bool(name: str, value: bool) -> bool:
    """Return ``value`` when it is True or False, else raise :class:`OptionError`."""
    if not isinstance(value, bool):
        raise OptionError(f"Option `{name}` should be True or False. Found {name}={value!r}.")
    return value


def check_choice(name: str, value: object, choices: tuple[object, ...]) -> None:
    """Raise :class:`OptionError` unless ``value`` is one of ``choices``."""
    if not any(value is choice or (type(value) is type(choice) and value == choice) for choice in choices):
        listed = ", ".join(repr(choice) for choice in choices)
        raise OptionError(f"Option `{name}` should be one of {listed}. Found {name}={value!r}.")


def constructor_options(cls: type) -> dict[str, Any]:
    """Return the constructor's arguments of a class, name -> default, or ``inspect.Parameter.empty`` where it has none."""
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
    """Return the repr of an object without its address, which is another one in every process."""
    return re.sub(r" at 0x[0-9a-fA-F]+", "", repr(value))
