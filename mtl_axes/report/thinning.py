"""Fewer points of long series, so that the file of a report stays small."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from mtl_axes.study.runs import Run

__all__ = ["histories", "predictions", "rounded"]

# Points of one series, and numbers in a whole report: about 7 characters each, of the 4 MB that the scripts leave.
MOST, FEWEST = 150, 8
HISTORY_NUMBERS, PREDICTION_NUMBERS = 200_000, 100_000
FAMILIES = ("weight", "loss", "norm")


def rounded(value: float | None, digits: int = 4) -> float | None:
    """Return a number with some significant digits; None where it is missing, NaN or infinite, which JSON cannot write."""
    return float(f"{value:.{digits}g}") if value is not None and math.isfinite(value) else None


def histories(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """Return of each run ``step`` and, for weights, losses and norms, ``{task: values}``, at no more than 150 rows.

    Rows are evenly spaced, the last one included. A value that was not measured in a row is the last one that was measured
    since the row before, so that a measurement in every tenth step is not lost between rows.
    """
    kept = [_families(run.history) for run in runs]
    columns = sum(1 + sum(map(len, families.values())) for families in kept)
    points = _points(HISTORY_NUMBERS, columns)
    return [_history(run.history, families, points) for run, families in zip(runs, kept, strict=True)]


def _families(history: Mapping[str, Sequence[float | None]]) -> dict[str, dict[str, Sequence[float | None]]]:
    found: dict[str, dict[str, Sequence[float | None]]] = {}
    for name, values in history.items():
        family, slash, task = name.partition("/")
        if slash and family in FAMILIES and any(value is not None for value in values):
            found.setdefault(family, {})[task] = values
    return found


def _history(
    history: Mapping[str, Sequence[float | None]],
    families: Mapping[str, Mapping[str, Sequence[float | None]]],
    points: int,
) -> dict[str, Any]:
    if not families:
        return {}
    length = min(len(values) for tasks in families.values() for values in tasks.values())
    steps = history.get("step") or range(length)
    ends = _evenly(length, points)
    thinned: dict[str, Any] = {"step": [steps[end] for end in ends]}
    for family, tasks in families.items():
        thinned[family] = {task: _last_known(values, ends) for task, values in tasks.items()}
    held = {task: _share_held(history[f"floor/{task}"]) for task in families.get("weight", ()) if f"floor/{task}" in history}
    return {**thinned, "floor": {task: share for task, share in held.items() if share}}


def _last_known(values: Sequence[float | None], ends: Iterable[int]) -> list[float | None]:
    kept, start = [], 0
    for end in ends:
        known = [value for value in values[start : end + 1] if value is not None]
        kept.append(rounded(known[-1]) if known else None)
        start = end + 1
    return kept


def _share_held(values: Sequence[float | None]) -> float:
    known = [value for value in values if value is not None]
    return round(sum(known) / len(known), 3) if known else 0.0


def predictions(runs: Sequence[Run]) -> list[dict[str, list[list[float | None]]]]:
    """Return of each run ``{task: [predicted, true]}``, at no more than 150 samples, evenly spaced in the order of the true
    values, so that rare large and small ones stay."""
    points = _points(PREDICTION_NUMBERS, 2 * sum(len(run.predictions) for run in runs))
    return [{task: _scatter(pair, points) for task, pair in run.predictions.items()} for run in runs]


def _scatter(pair: Mapping[str, Sequence[float]], points: int) -> list[list[float | None]]:
    both = sorted(
        (
            (predicted, true)
            for predicted, true in zip(pair["predicted"], pair["true"], strict=True)
            if math.isfinite(predicted) and math.isfinite(true)
        ),
        key=lambda sample: sample[1],
    )
    kept = [both[index] for index in _evenly(len(both), points)]
    return [[rounded(predicted) for predicted, _ in kept], [rounded(true) for _, true in kept]]


def _points(numbers: int, columns: int) -> int:
    return max(FEWEST, min(MOST, numbers // max(columns, 1)))


def _evenly(length: int, points: int) -> list[int]:
    """Return at most ``points`` indices of a sequence, evenly spaced, the first and the last among them."""
    if length <= points:
        return list(range(length))
    return [round(index * (length - 1) / (points - 1)) for index in range(points)]
