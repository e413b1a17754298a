"""A finished run, as the pictures and sentences of this example read it and as a study keeps it."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mtl_axes.study import Outcome, Results
from mtl_axes.study import Run as Kept

from .methods import TASKS, Cell

METRICS = ("rmse", "nasa", "health_accuracy")
HEADER = (
    "cell", "outer", "inner", "subset", "seed", *METRICS, "lambda_rul", "lambda_health", "seconds",
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class Run:
    """What a finished run measured.

    ``weights`` and ``losses`` are per step, ``norms`` at ``norm_steps``, which count from 0; ``selection`` pairs a step,
    from 1 on, with the RMSE of its checkpoint.
    """

    rmse: float
    nasa: float
    health_accuracy: float
    seconds: float
    predicted: list[float]
    true: list[float]
    weights: list[list[float]]
    losses: list[list[float]]
    norm_steps: list[int]
    norms: list[list[float]]
    selection: list[tuple[int, float]]

    @property
    def chosen_step(self) -> int:
        """The step whose checkpoint was tested: the first with the lowest RMSE of the selection."""
        return min(self.selection, key=lambda row: row[1])[0]

    def outcome(self) -> Outcome:
        """What a study keeps: the history has a row per step."""
        steps = list(range(1, len(self.weights) + 1))
        norms = {at + 1: row for at, row in zip(self.norm_steps, self.norms, strict=True)}
        chosen = dict(self.selection)
        history: dict[str, Sequence[float | None]] = {"step": steps, "selection": [chosen.get(step) for step in steps]}
        for at, task in enumerate(TASKS):
            history[f"weight/{task}"] = [row[at] for row in self.weights]
            history[f"loss/{task}"] = [row[at] for row in self.losses]
            history[f"norm/{task}"] = [norms[step][at] if step in norms else None for step in steps]
        metrics = {name: getattr(self, name) for name in METRICS}
        return Outcome(metrics, history, {"rul": (self.predicted, self.true)})

    @classmethod
    def of(cls, kept: Kept) -> Run:
        """The run that a study kept."""
        history = kept.history
        steps = [int(step) for step in history["step"] if step is not None]
        measured = [at for at, norm in enumerate(history["norm/rul"]) if norm is not None]

        def rows(kind: str, at: Sequence[int]) -> list[list[float]]:
            return [[float(history[f"{kind}/{task}"][row] or 0.0) for task in TASKS] for row in at]

        return cls(
            **{name: kept.metrics[name] for name in METRICS},
            seconds=kept.seconds,
            predicted=list(kept.predictions["rul"]["predicted"]),
            true=list(kept.predictions["rul"]["true"]),
            weights=rows("weight", range(len(steps))),
            losses=rows("loss", range(len(steps))),
            norm_steps=[steps[at] - 1 for at in measured],
            norms=rows("norm", measured),
            selection=[(step, error) for step, error in zip(steps, history["selection"], strict=True) if error is not None],
        )


Runs = Mapping[tuple[Cell, int], Run]


def runs_of(results: Results, cells: Sequence[Cell]) -> Runs:
    """The finished runs of a study, seed by seed, in the order of its cells."""
    kept = {(run.cell, run.seed): run for run in results.runs}
    keys = [(cell, seed) for seed in results.seeds for cell in cells]
    return {(cell, seed): Run.of(kept[cell.labels, seed]) for cell, seed in keys if (cell.labels, seed) in kept}


def write_results(runs: Runs, subset: str, path: Path) -> Path:
    """Write one row per finished run."""
    with path.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(HEADER)
        for (cell, seed), run in runs.items():
            figures = (run.rmse, run.nasa, run.health_accuracy, *run.weights[-1])
            writer.writerow(
                [cell.name, cell.outer, cell.inner, subset, seed]
                + [f"{figure:.6f}" for figure in figures]
                + [f"{run.seconds:.1f}"]
            )
    return path
