"""Studies as a training on two tasks would leave them: paired by seed, with histories and predictions."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from mtl_axes import compose
from mtl_axes.study import Results, Run

OUTER = {
    "equal": {"name": "fixed"},
    "uncertainty": {"name": "uncertainty"},
    "gaba": {"name": "gaba", "warmup": 20, "beta": 0.95},
}
INNER = {
    "mse": {"rul": "mse", "health": "cross_entropy"},
    "asymmetric": {"rul": {"name": "asymmetric", "over": 2.0}, "health": "cross_entropy"},
    "failure_biased": {"rul": "failure_biased", "health": {"name": "focal", "gamma": 2.0}},
}
METRICS: dict[str, Any] = {"rmse": "min", "nasa": "min", "accuracy": "max"}
TASKS = ("rul", "health")


def study(
    outer: Mapping[str, Any] = OUTER,
    inner: Mapping[str, Any] = INNER,
    seeds: int = 5,
    *,
    tasks: Sequence[str] = TASKS,
    metrics: Mapping[str, Any] = METRICS,
    steps: int = 400,
    samples: int = 260,
    failed: Sequence[tuple[str, str, int]] = (("uncertainty", "asymmetric", 3),),
    title: str = "Remaining life of engines: weights and shapes",
) -> Results:
    """A study of ``outer`` x ``inner`` x ``seeds`` runs: the cells differ by parts of the spread between seeds, which
    they share in part; the runs in ``failed`` diverged."""
    runs, failures = [], []
    for row, (weighting, given) in enumerate(outer.items()):
        for column, (shape, shapes) in enumerate(inner.items()):
            config = {
                "criterion": _config(given, shapes, tasks),
                "study": {"optimizer": "AdamW", "learning rate": 1e-3, "epochs": 20},
                "versions": {"python": "3.11.2", "torch": "2.13.0", "mtl_axes": "0.5.0"},
            }
            for seed in range(seeds):
                if (weighting, shape, seed) in failed:
                    error = "FloatingPointError: the loss of task 'rul' is not finite at step 212\n  in train(), line 41"
                    failures.append(Run(weighting, shape, seed, config=config, seconds=8.1, error=error))
                    continue
                generator = np.random.default_rng([seed, row, column])
                shared = np.random.default_rng(seed).normal()
                size = (
                    14.6 - 0.35 * (column == 1) - 0.7 * (column == 2) - 0.25 * row + 0.5 * shared + 0.2 * generator.normal()
                )
                values = (size, 470 - 60 * column + 9 * row + 40 * shared + 30 * generator.normal(), 0.91 - size / 400)
                runs.append(
                    Run(
                        weighting,
                        shape,
                        seed,
                        metrics=dict(zip(metrics, map(float, values), strict=False)),
                        history=history(generator, tasks, steps, floor=weighting.startswith("gaba")) if steps else {},
                        predictions=_predictions(generator, tasks, samples, size) if samples else {},
                        config=config,
                        seconds=float(40 + 3 * generator.normal()),
                    )
                )
    return Results(
        outer=tuple(outer),
        inner=tuple(inner),
        seeds=tuple(range(seeds)),
        metrics=dict(metrics),
        reference=(next(iter(outer)), next(iter(inner))),
        runs=tuple(runs),
        failures=tuple(failures),
        constants=tuple(label for label, level in outer.items() if level in ("fixed", {"name": "fixed"})),
        about={
            "title": title,
            "created": "2026-11-20T08:15:30+00:00",
            "config": {"data": "simulated fleet", "batch size": 64},
            "versions": {"python": "3.11.2", "torch": "2.13.0", "mtl_axes": "0.5.0"},
        },
    )


def _config(outer: Any, inner: Any, tasks: Sequence[str]) -> dict[str, Any]:
    shapes = {
        task: inner[own] if isinstance(inner, Mapping) and own in inner else inner
        for task, own in zip(tasks, TASKS, strict=True)
    }
    return compose(outer, shapes).config()


def history(
    generator: np.random.Generator, tasks: Sequence[str], steps: int, *, floor: bool
) -> dict[str, list[float | None]]:
    """Columns as a History records them: norms in every fourth step only."""
    step = np.arange(steps)
    columns: dict[str, list[float | None]] = {"step": step.tolist()}
    end = 0.05 if floor else 1 / len(tasks) - 0.12
    falling = end + (1 / len(tasks) - end) * np.exp(-step / 60)
    for place, task in enumerate(tasks):
        weight = falling if place == 0 else (1 - falling) / (len(tasks) - 1)
        noise = generator.normal(size=(3, steps))
        columns[f"weight/{task}"] = (weight * (1 + 0.02 * noise[0])).tolist()
        columns[f"loss/{task}"] = ((900 if place == 0 else 1.1) * np.exp(-step / 150 + 0.1 * noise[1])).tolist()
        norm = ((2000 if place == 0 else 2.0) * np.exp(-step / 300 + 0.15 * noise[2])).tolist()
        columns[f"norm/{task}"] = [value if index % 4 == 0 else None for index, value in enumerate(norm)]
        columns[f"floor/{task}"] = [float(floor and place == 0 and index > 120) for index in range(steps)]
    return columns


def _predictions(
    generator: np.random.Generator, tasks: Sequence[str], samples: int, size: float
) -> dict[str, dict[str, list[float]]]:
    true = np.clip(generator.uniform(0, 180, samples), None, 125)
    first = {"predicted": np.clip(true + size * generator.normal(size=samples), 0, 130).tolist(), "true": true.tolist()}
    state = (true < 80).astype(float) + (true < 30)
    other = {"predicted": np.clip(state + 0.25 * generator.normal(size=samples), -0.3, 2.3).tolist(), "true": state.tolist()}
    return {task: first if place == 0 else other for place, task in enumerate(tasks)}


HOSTILE = "<script>alert(1)</script>"
AWKWARD = 'C:\\users\n" b\\"'


def studies() -> dict[str, Results]:
    """Studies by name, for pages."""
    scores = (math.nan, 1.0, math.inf)
    diverged = [
        Run(o, "mse", seed, metrics={"score": score}) for o in ("equal", "gaba") for seed, score in enumerate(scores)
    ]
    return {
        "usual": study(),
        "baselines": replace(study(), baselines=("gaba",)),
        "crossed": study({"equal": "fixed", "a x b": "gaba"}, {"mse": "mse", "mae": "mae"}, 3),
        "plain": plain(),
        "unfinished": plain(runs=()),
        "diverged": plain(outer=("equal", "gaba"), seeds=(0, 1, 2), runs=tuple(diverged)),
        "hostile": study(
            {HOSTILE: "fixed", "b": "gaba"},
            {HOSTILE: "mse", "</script><b>": "mae"},
            3,
            tasks=(HOSTILE, '"><img src=x onerror=alert(1)>'),
            metrics={HOSTILE: "min", "<b>n</b>": "max"},
            failed=((HOSTILE, "</script><b>", 1),),
            title=HOSTILE,
        ),
        # Of two metrics without a direction nothing is dominated; a backslash, a quote and a newline are text, too.
        "awkward": study(
            {AWKWARD: "fixed", "gaba": "gaba"}, {"mse": "mse", "mae": "mae"}, 3, metrics={AWKWARD: None, "other": None}
        ),
        "many": plain(
            metrics={f"metric {index}": "min" for index in range(9)},
            runs=(Run("equal", "mse", 0, metrics={f"metric {index}": float(index) for index in range(9)}),),
        ),
    }


def plain(**changes: Any) -> Results:
    """One cell, one seed, one metric without a direction, nothing else kept."""
    given: dict[str, Any] = {
        "outer": ("equal",),
        "inner": ("mse",),
        "seeds": (0,),
        "metrics": {"score": None},
        "reference": ("equal", "mse"),
        "runs": (Run("equal", "mse", 0, metrics={"score": 1.25}),),
    }
    return Results(**{**given, **changes})
