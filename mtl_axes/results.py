"""What a study measured: its runs as they lie on disk, and the questions that they answer.

The numbers are computed by :mod:`mtl_axes.statistics`, which needs numpy and scipy (``pip install 'mtl_axes[study]'``) and is
imported where a method asks for them; docs/statistics.md says which number is for what.
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from mtl_axes.errors import DataError, OptionError, UnknownNameError

if TYPE_CHECKING:
    from types import ModuleType

__all__ = ["STUDY_FILE", "Direction", "Effect", "Results", "Run", "Summary"]

Axis = Literal["outer", "inner"]
Cell = tuple[str, str]
Direction = Literal["min", "max"]

STUDY_FILE = "study.json"
RUNS_FOLDER = "runs"


@dataclass(frozen=True, eq=False)
class Run:
    """One training of one cell with one seed.

    Attributes:
        outer: label of the outer weighting in its study.
        inner: label of the inner shape in its study.
        seed: what the run was seeded with; runs of one seed are compared with each other.
        metrics: what the training function returned, by name.
        history: columns by name, all of one length: ``step``, ``loss/TASK``, ``weight/TASK``, ``norm/TASK``, ...; None where
            a value was not measured. Empty where nothing was recorded.
        predictions: by task ``{"predicted": [...], "true": [...]}``; empty where none were kept.
        config: everything that the result depends on, as plain data: the criterion's own ``config()`` under ``"criterion"``,
            the study's under ``"study"``, and ``"versions"``.
        seconds: how long it took.
        error: why it failed, None when it finished. A failed run has no metrics.
    """

    outer: str
    inner: str
    seed: int
    metrics: Mapping[str, float] = field(default_factory=dict)
    history: Mapping[str, Sequence[float | None]] = field(default_factory=dict)
    predictions: Mapping[str, Mapping[str, Sequence[float]]] = field(default_factory=dict)
    config: Mapping[str, Any] = field(default_factory=dict)
    seconds: float = 0.0
    error: str | None = None

    @property
    def cell(self) -> tuple[str, str]:
        """The labels of the two axes."""
        return self.outer, self.inner

    def to_json(self) -> str:
        """Return the run as one JSON text; values that are not finite are written as JavaScript's NaN and Infinity."""
        return json.dumps(asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> Run:
        """Return the run that :meth:`to_json` wrote.

        Raises:
            ValueError, TypeError: the text is not whole, or not of a run.
        """
        return cls(**json.loads(text))


@dataclass(frozen=True, eq=False)
class Results:
    """All runs of a study.

    Attributes:
        outer: labels of the outer axis, in order.
        inner: labels of the inner axis, in order.
        seeds: the seeds, in order.
        metrics: by name whether a lower ("min") or higher ("max") value is better; None where the study does not say.
        reference: the cell that others are compared with.
        runs: the finished runs.
        failures: the runs that failed.
        about: what the study says of itself, as plain data: ``title``, ``config``, ``versions``, ``created``.
    """

    outer: tuple[str, ...]
    inner: tuple[str, ...]
    seeds: tuple[int, ...]
    metrics: Mapping[str, Direction | None]
    reference: tuple[str, str]
    runs: tuple[Run, ...]
    failures: tuple[Run, ...] = ()
    about: Mapping[str, Any] = field(default_factory=dict)

    @property
    def cells(self) -> list[tuple[str, str]]:
        """The cells that have finished runs: outer by outer, inner by inner."""
        found = {run.cell for run in self.runs}
        return [(outer, inner) for outer in self.outer for inner in self.inner if (outer, inner) in found]

    def values(self, metric: str, outer: str, inner: str) -> dict[int, float]:
        """Return a metric of one cell by seed, in the order of the seeds."""
        found = {run.seed: run.metrics[metric] for run in self.runs if run.cell == (outer, inner) and metric in run.metrics}
        return {seed: found[seed] for seed in self.seeds if seed in found}

    @classmethod
    def load(cls, folder: str | Path) -> Results:
        """Return the results of the study in a folder. A run that is half-written does not count.

        Raises:
            DataError: the folder holds no study.
        """
        path = Path(folder) / STUDY_FILE
        try:
            kept = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise DataError(
                f"A study's folder should hold a readable {STUDY_FILE}. Found none in `{folder}` ({error}). Pass the folder "
                "that `Study(out=...)` was given."
            ) from error
        runs: list[Run] = []
        failures: list[Run] = []
        for name in kept["runs"]:
            try:
                run = Run.from_json((path.parent / RUNS_FOLDER / name).read_text(encoding="utf-8"))
            except (OSError, ValueError, TypeError):
                continue
            (runs if run.error is None else failures).append(run)
        return cls(
            outer=tuple(kept["outer"]),
            inner=tuple(kept["inner"]),
            seeds=tuple(kept["seeds"]),
            metrics=kept["metrics"],
            reference=tuple(kept["reference"]),
            runs=tuple(runs),
            failures=tuple(failures),
            about=kept["about"],
        )
