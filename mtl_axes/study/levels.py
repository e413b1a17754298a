"""The levels of a study's axes: their labels, and constant weights as levels of the outer axis."""

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
from mtl_axes.study.runs import Axis, Run

__all__ = ["ended", "label", "levels", "mean_ends", "tuned"]

# Weight of the first of two tasks over the weight of the second: decades on either side of equal weights.
_RATIOS = (0.01, 0.1, 10.0, 100.0)
# With more tasks: how many times the weight of the others each task has in turn.
_FACTORS = (0.1, 10.0)
# The last tenth of the steps of a run, over which weights are averaged: the weights of one step can be noise.
_END = 0.1


def levels(axis: Axis, given: Sequence[Any] | Mapping[str, Any]) -> dict[str, Any]:
    """Return the levels of an axis by label, from a list of whatever ``compose`` takes or a mapping from labels to such."""
    if isinstance(given, Mapping) and not isinstance(given.get("name"), str):
        named = [(str(key), level) for key, level in given.items()]
    elif isinstance(given, Sequence) and not isinstance(given, str):
        named = [(label(axis, level), level) for level in given]
    else:
        raise OptionError(
            f"`{axis}` should be a list of levels, or a mapping from labels to levels. Found {given!r}. Put a single level "
            "into a list."
        )
    if not named:
        raise OptionError(f"`{axis}` has no levels. Pass at least one.")
    labels = [key for key, _ in named]
    twice = sorted({key for key in labels if labels.count(key) > 1})
    if twice:
        raise OptionError(f"`{axis}` has several levels labelled {', '.join(twice)}. Pass a mapping from labels to levels.")
    return dict(named)


def label(axis: Axis | Literal["weight"], level: Any) -> str:
    """Return what tables and pictures call a level: for objects, options that have their default are left out.

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
    """Return constant weights by label: two tasks at four ratios; of more tasks each in turn up and down."""
    two = len(tasks) == 2
    pairs = [(task, factor) for task in (tasks[:1] if two else tasks) for factor in (_RATIOS if two else _FACTORS)]
    return {
        f"{task} times {factor:g}": _constant(
            {other: (factor if other == task else 1.0) / (factor + len(tasks) - 1) for other in tasks}
        )
        for task, factor in pairs
    }


def ended(ends: Iterable[Mapping[str, float]]) -> dict[str, Any] | None:
    """Return constants at the mean of the weights at which runs ended, to four digits; None if no run has finite ones."""
    known = [weights for weights in ends if weights and all(map(math.isfinite, weights.values()))]
    if not known:
        return None
    return _constant({task: float(f"{sum(weights[task] for weights in known) / len(known):.4g}") for task in known[0]})


def mean_ends(run: Run) -> dict[str, float]:
    """Return the weights at the end of a run by task, averaged over the last tenth of those in its history."""
    ends = {}
    for name, column in run.history.items():
        values = [value for value in column if value is not None]
        if name.startswith("weight/") and values:
            last = values[-max(1, int(_END * len(values))) :]
            ends[name.removeprefix("weight/")] = sum(last) / len(last)
    return ends


def _constant(weights: Mapping[str, float]) -> dict[str, Any]:
    return {"name": "fixed", "weights": dict(weights)}
