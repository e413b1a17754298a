"""Finished runs on disk: one JSON file each, written in one step, and ``results.csv`` made from them.

A run counts as finished when its file is whole and was made with the same configuration (method, seed, data, protocol,
recipe, versions). Anything else is trained again; runs of other configurations stay in the folder and are left out of
the study's table.
"""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import io
import json
import os
import re
from pathlib import Path
from typing import Any

import torch

import mtl_axes

from .data import Fleet
from .methods import Cell
from .train import Protocol, Recipe, Run

HEADER = (
    "cell", "outer", "inner", "subset", "seed", "rmse", "nasa", "health_accuracy", "lambda_rul", "lambda_health", "seconds",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Study:
    """What all runs of a study have in common."""

    subset: str
    digest: str
    protocol: Protocol
    recipe: Recipe

    @classmethod
    def of(cls, fleet: Fleet, subset: str, protocol: Protocol, recipe: Recipe) -> Study:
        """The study of a fleet that its tables call ``subset``."""
        return cls(subset, fleet.digest, protocol, recipe)

    def configuration(self, cell: Cell, seed: int) -> dict[str, Any]:
        """Everything a run's result depends on, as plain data."""
        return {
            **dataclasses.asdict(self),
            "cell": cell.name,
            "outer": cell.outer,
            "inner": cell.inner,
            "seed": seed,
            "versions": {"mtl_axes": mtl_axes.__version__, "torch": torch.__version__},
        }


class Store:
    """The finished runs of a study in ``folder/runs``."""

    def __init__(self, folder: Path, study: Study) -> None:
        self.folder, self.study = folder, study

    def path(self, cell: Cell, seed: int) -> Path:
        """Where a run is kept; the name ends in a fingerprint of its configuration, so that no two runs share a file."""
        text = json.dumps(self.study.configuration(cell, seed), sort_keys=True)
        fingerprint = hashlib.sha256(text.encode()).hexdigest()[:12]
        readable = re.sub(r"[^A-Za-z0-9]+", "-", cell.name).strip("-")[:40]
        return self.folder / "runs" / f"{self.study.subset}-{readable}-seed{seed}-{fingerprint}.json"

    def load(self, cell: Cell, seed: int) -> Run | None:
        """The finished run, or None when there is none or its file is not whole."""
        try:
            kept = json.loads(self.path(cell, seed).read_text(encoding="utf-8"))
            if kept["configuration"] != self.study.configuration(cell, seed):
                return None
            return Run(**kept["run"])
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def save(self, cell: Cell, seed: int, run: Run) -> None:
        """Keep a finished run."""
        kept = {"configuration": self.study.configuration(cell, seed), "run": dataclasses.asdict(run)}
        write_whole(self.path(cell, seed), json.dumps(kept))

    def write_results(self, runs: dict[tuple[Cell, int], Run]) -> Path:
        """Write ``results.csv`` with one row per finished run of the study."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(HEADER)
        for (cell, seed), run in runs.items():
            figures = (run.rmse, run.nasa, run.health_accuracy, *run.weights[-1])
            writer.writerow(
                [cell.name, cell.outer, cell.inner, self.study.subset, seed]
                + [f"{figure:.6f}" for figure in figures]
                + [f"{run.seconds:.1f}"]
            )
        path = self.folder / "results.csv"
        write_whole(path, text.getvalue())
        return path


def write_whole(path: Path, text: str) -> None:
    """Write a file so that a reader sees all of it or none, whenever the process is stopped."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}")
    with part.open("w", encoding="utf-8", newline="\n") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())
    part.replace(path)
