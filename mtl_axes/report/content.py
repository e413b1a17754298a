"""The content of a report, as plain data that JSON can write."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Mapping
from dataclasses import replace
from datetime import datetime
from typing import Any

from mtl_axes.__about__ import version
from mtl_axes.report.strategies import strategies
from mtl_axes.report.thinning import histories, predictions, rounded
from mtl_axes.study.effects import Effect
from mtl_axes.study.results import Results

__all__ = ["content"]

Content = dict[str, Any]


def content(results: Results) -> Content:
    """Return everything that a report shows. Cells are written as ``[outer index, inner index]``; a number that is not
    finite is None."""
    runs = results.runs
    about = _plain(results.about)
    axes = {"outer": list(results.outer), "inner": list(results.inner), "seeds": list(results.seeds)}
    return {
        **axes,
        "title": str(about.get("title") or "Study of two axes"),
        "made_with": version,
        "created": _moment(str(about.get("created") or "")),
        "baselines": [index for index, level in enumerate(results.outer) if level not in results.weightings],
        "reference": _cell(results, results.reference),
        "metrics": [_metric(results, name) for name in results.metric_names],
        "fronts": _fronts(results),
        "cells": _cells(results),
        "runs": [
            {
                "cell": _cell(results, run.cell),
                "seed": run.seed,
                "metrics": {name: rounded(value, 6) for name, value in run.metrics.items()},
                "seconds": rounded(run.seconds, 3),
                "history": history,
                "predictions": scatter,
            }
            for run, history, scatter in zip(runs, histories(runs), predictions(runs), strict=True)
        ],
        "failures": [
            {"cell": _cell(results, run.cell), "seed": run.seed, "error": str(run.error)} for run in results.failures
        ],
        "study": {**axes, "metrics": dict(results.metrics), "reference": list(results.reference), **about},
    }


def _cell(results: Results, cell: tuple[str, str]) -> list[int]:
    return [results.outer.index(cell[0]), results.inner.index(cell[1])]


def _metric(results: Results, name: str) -> Content:
    return {
        "name": name,
        "direction": results.metrics.get(name),
        "verdict": results.verdict(name),
        "cells": [
            {
                "cell": _cell(results, (cell.outer, cell.inner)),
                "n": cell.n,
                "mean": rounded(cell.mean, 6),
                "sd": rounded(cell.sd, 6),
                "not_finite": cell.not_finite,
            }
            for cell in results.summary(name)
        ],
        "compare": _effects(results, results.compare(name)),
        "outer": _effects(results, results.main_effect(name, "outer")),
        "inner": _effects(results, results.main_effect(name, "inner")),
        "interactions": _effects(results, results.interactions(name)),
        # Along one row only the inner shape changes, along one column only the outer weighting.
        "rows": [_along(results, name, (level,), results.inner) for level in results.outer],
        "columns": [_along(results, name, results.outer, (level,)) for level in results.inner],
    }


def _along(results: Results, metric: str, outer: tuple[str, ...], inner: tuple[str, ...]) -> list[Content]:
    """The cells of a row or column minus its cell at the reference's other level: a family of its own. What only the plot of
    differences shows is left out, which would be most of a large report."""
    base = (
        results.reference[0] if results.reference[0] in outer else outer[0],
        results.reference[1] if results.reference[1] in inner else inner[0],
    )
    runs = tuple(run for run in results.runs if run.outer in outer and run.inner in inner)
    if not any(metric in run.metrics for run in runs):
        return []
    part = replace(results, outer=outer, inner=inner, reference=base, runs=runs, failures=())
    effects = _effects(results, part.compare(metric))
    return [{key: value for key, value in effect.items() if key not in ("differences", "words")} for effect in effects]


def _effects(results: Results, effects: Iterable[Effect]) -> list[Content]:
    return [
        {
            "label": effect.label,
            "against": effect.against,
            "cell": _cell(results, (effect.outer[-1], effect.inner[-1])) if effect.kind in ("cell", "interaction") else None,
            "mean": rounded(effect.mean, 6),
            "low": rounded(effect.interval[0], 6),
            "high": rounded(effect.interval[1], 6),
            "n": effect.n,
            "p": rounded(effect.p_adjusted),
            "clear": effect.distinguishable,
            "seeds_needed": effect.seeds_needed,
            "differences": [[seed, rounded(difference)] for seed, difference in effect.differences.items()],
            "words": effect.in_words().removeprefix(f"{effect.metric}: "),
        }
        for effect in effects
    ]


def _fronts(results: Results) -> dict[str, list[list[int]]]:
    """The cells of the Pareto front of every two metrics that have a direction, by ``"index,index"``."""
    directed = [(i, name) for i, name in enumerate(results.metric_names) if results.metrics.get(name) is not None]
    return {
        f"{i},{j}": [_cell(results, cell) for cell in results.pareto(first, second)]
        for (i, first), (j, second) in itertools.combinations(directed, 2)
    }


def _cells(results: Results) -> list[Content]:
    """The strategies and the configuration of every cell that was tried, from its first run that has one."""
    configs: dict[tuple[str, str], Mapping[str, Any]] = {}
    for run in (*results.runs, *results.failures):
        configs[run.cell] = configs.get(run.cell) or _plain(run.config)
    return [
        {"cell": _cell(results, cell), "strategies": strategies(config.get("criterion") or {}), "config": config}
        for cell, config in configs.items()
    ]


def _moment(text: str) -> str:
    """An ISO 8601 time to the minute; any other text unchanged."""
    try:
        return f"{datetime.fromisoformat(text):%Y-%m-%d %H:%M %Z}".strip()
    except ValueError:
        return text


def _plain(value: Any) -> Any:
    """Plain data without NaN and infinities, and with the text of whatever JSON does not know."""
    text = json.dumps(value, default=str)
    return json.loads(text, parse_constant=lambda name: name.replace("Infinity", "inf").lower())
