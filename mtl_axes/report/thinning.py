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
    """Return a number with some significant digits; None if it is missing, NaN or infinite, which JSON cannot write."""
    return float(f"{value:.{digits}g}") if value is not None and math.isfinite(value) else None


def histories(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """Return for each run ``step`` and, for weights, losses and norms, ``{task: values}``, in at most 150 rows.

    Rows are evenly spaced and include the last one. A value that was not measured in a row is the last one measured since
    the row before, so that a measurement at every tenth step is not lost between rows.
    """
    recorded = [_families(run.history) for run in runs]
    points = _points(HISTORY_NUMBERS, sum(1 + sum(map(len, families.values())) for families in recorded))
    return [_history(run.history, families, points) for run, families in zip(runs, recorded, strict=True)]


def _families(history: Mapping[str, Sequence[float | None]]) -> dict[str, dict[str, Sequence[float | None]]]:
    families: dict[str, dict[str, Sequence[float | None]]] = {}
    for name, values in history.items():
        family, slash, task = name.partition("/")
        if slash and family in FAMILIES and any(value is not None for value in values):
            families.setdefault(family, {})[task] = values
    return families


def _history(
    history: Mapping[str, Sequence[float | None]],
    families: Mapping[str, Mapping[str, Sequence[float | None]]],
    points: int,
) -> dict[str, Any]:
    if not families:
        return {}
    length = min(len(values) for tasks in families.values() for values in tasks.values())
    steps = history.get("step") or range(length)
    rows = _evenly(length, points)
    thinned: dict[str, Any] = {"step": [steps[row] for row in rows]}
    for family, tasks in families.items():
        thinned[family] = {task: _last_known(values, rows) for task, values in tasks.items()}
    floors = {task: _known(history.get(f"floor/{task}", ())) for task in families.get("weight", ())}
    shares = {task: round(sum(held) / len(held), 3) for task, held in floors.items() if held}
    return {**thinned, "floor": {task: share for task, share in shares.items() if share}}


def _known(values: Iterable[float | None]) -> list[float]:
    return [value for value in values if value is not None]


def _last_known(values: Sequence[float | None], rows: Iterable[int]) -> list[float | None]:
    last, start = [], 0
    for row in rows:
        known = _known(values[start : row + 1])
        last.append(rounded(known[-1]) if known else None)
        start = row + 1
    return last


def predictions(runs: Sequence[Run]) -> list[dict[str, list[list[float | None]]]]:
    """Return for each run ``{task: [predicted, true]}``, with at most 150 samples, evenly spaced in the order of the true
    values, so that rare large and small ones stay."""
    points = _points(PREDICTION_NUMBERS, 2 * sum(len(run.predictions) for run in runs))
    return [{task: _scatter(pair, points) for task, pair in run.predictions.items()} for run in runs]


def _scatter(pair: Mapping[str, Sequence[float]], points: int) -> list[list[float | None]]:
    pairs = zip(pair["predicted"], pair["true"], strict=True)
    samples = sorted((sample for sample in pairs if all(map(math.isfinite, sample))), key=lambda sample: sample[1])
    thinned = [samples[index] for index in _evenly(len(samples), points)]
    return [[rounded(sample[column]) for sample in thinned] for column in (0, 1)]


def _points(numbers: int, columns: int) -> int:
    return max(FEWEST, min(MOST, numbers // max(columns, 1)))


def _evenly(length: int, points: int) -> list[int]:
    """Return at most ``points`` indices of a sequence, evenly spaced, with the first and the last among them."""
    if length <= points:
        return list(range(length))
    return [round(index * (length - 1) / (points - 1)) for index in range(points)]
