"""A study that is killed: called with its folder, a number of workers and the name of a function of `training`."""

from __future__ import annotations

import sys
from pathlib import Path

import training

from mtl_axes.study import Study


def study(folder: Path) -> Study:
    """Two cells with three seeds."""
    return Study(
        outer=["fixed", {"name": "gaba", "warmup": 2}],
        inner=["mse"],
        seeds=3,
        out=folder,
        metrics={"rmse": "min"},
        compose={"tasks": ["a", "b"]},
    )


if __name__ == "__main__":
    study(Path(sys.argv[1])).run(getattr(training, sys.argv[3]), workers=int(sys.argv[2]))
