"""The levels of a study's axes: what they are called, and constant weights as levels of the outer one."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

from torch import nn

from mtl_axes.errors import OptionError
from mtl_axes.inner import InnerShape, TargetWeight
from mtl_axes.options import constructor_options
from mtl_axes.outer import OuterWeighting
from mtl_axes.registry import name_of
from mtl_axes.study.runs import Run

__all__ = ["ended", "label", "levels", "mean_ends", "tuned"]

Axis = Literal["outer", "inner"]

# Weight of the first of two tasks over that of the second: decades to either side of the equal one.
_RATIOS = (0.01, 0.1, 10.0, 100.0)
# With more tasks: how many times the weight of the others each task has in turn.
_FACTORS = (0.1, 10.0)
# Of the steps of a run, the share at its end over which the weights are averaged: those of one step can be noise.
_END = 0.1


def levels(axis: Axis, given: Sequence[Any] | Mapping[str, Any]) -> dict[str, Any]:
    """Return the levels of an axis by label.

    Args:
        axis: ``"outer"`` or ``"inner"``.
        given: levels, each whatever ``compose`` takes, or a mapping from labels to levels.

    Raises:
        OptionError: it is neither, it is empty, or two levels have one label.
    """
    if isinstance(given, Mapping) and not isinstance(given.get("name"), str):
        named = [(str(key), level) for key, level in given.items()]
    elif isinstance(given, Sequence) and not isinstance(given, str):
        named = [(label(axis, level), level) for level in given]
    else:
        raise OptionError(
            f"`{axis}` should be a list of levels, or a mapping from labels to levels. Found {given!r}. A single level "
            "stands in a list, too."
        )
    found = [key for key, _ in named]
    twice = sorted({key for key in found if found.count(key) > 1})
    if twice or not named:
        raise OptionError(
            f"`{axis}` should hold at least one level, each with a label of its own. Found "
            f"{', '.join(twice) + ' more than once' if twice else 'none'}. Name levels by a mapping from labels to levels."
        )
    return dict(named)


def label(axis: Axis | Literal["weight"], level: Any) -> str:
    """Return what tables and pictures call a level: options that have their default are left out of objects.

    >>> label("outer", {"name": "gaba", "beta": 0.9}), label("inner", {"rul": "huber", "state": {"name": "focal"}})
    ('gaba(beta=0.9)', 'rul: huber, state: focal')
    """
    if isinstance(level, nn.Module):
        defaults = constructor_options(type(level))
        options = level.options() if isinstance(level, (OuterWeighting, InnerShape, TargetWeight)) else {}
        given = {name: value for name, value in options.items() if not _same(value, defaults.get(name))}
        return _call(name_of(axis, type(level)) or type(level).__name__, given)
    if not isinstance(level, Mapping):
        return str(level)
    if not isinstance(level.get("name"), str):
        return ", ".join(f"{task}: {label(axis, shape)}" for task, shape in level.items())
    return _call(level["name"], {name: value for name, value in level.items() if name != "name"})


def _call(name: str, options: Mapping[str, Any]) -> str:
    inside = ", ".join(f"{option}={_value(option, value)}" for option, value in options.items())
    return f"{name}({inside})" if inside else name


def _value(option: str, value: Any) -> str:
    if isinstance(value, nn.Module) or (isinstance(value, Mapping) and isinstance(value.get("name"), str)):
        return label("weight" if option == "weight" else "outer", value)
    return repr(value)


def _same(value: Any, default: Any) -> bool:
    return type(value) is type(default) and bool(value == default)


def tuned(tasks: Sequence[str]) -> dict[str, Any]:
    """Return a small set of constant weights by label: two tasks at four ratios, of more each up and down in turn."""
    pairs = (
        [(tasks[0], ratio) for ratio in _RATIOS]
        if len(tasks) == 2
        else [(task, factor) for task in tasks for factor in _FACTORS]
    )
    return {
        f"{task} times {factor:g}": _constant(
            {other: (factor if other == task else 1.0) / (factor + len(tasks) - 1) for other in tasks}
        )
        for task, factor in pairs
    }


def ended(ends: Iterable[Mapping[str, float]]) -> dict[str, Any] | None:
    """Return constants at the mean of the weights at which runs ended, to four digits; None where no run has finite ones."""
    known = [weights for weights in ends if weights and all(map(math.isfinite, weights.values()))]
    if not known:
        return None
    return _constant({task: float(f"{sum(weights[task] for weights in known) / len(known):.4g}") for task in known[0]})


def mean_ends(run: Run) -> dict[str, float]:
    """Return the weights at the end of a run by task, averaged over the last tenth of what its history has of them."""
    found = {}
    for name, column in run.history.items():
        values = [value for value in column if value is not None]
        if name.startswith("weight/") and values:
            last = values[-max(1, int(_END * len(values))) :]
            found[name.removeprefix("weight/")] = sum(last) / len(last)
    return found


def _constant(weights: Mapping[str, float]) -> dict[str, Any]:
    return {"name": "fixed", "weights": dict(weights)}
