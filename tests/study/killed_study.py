"""A study that is killed: called with its folder and the number of workers; prints a line for each finished run."""

from __future__ import annotations

import sys
from pathlib import Path

import training

from mtl_axes.study import Study


def main() -> None:
    """Run the study, or go on with it."""
    study = Study(
        outer=["fixed", {"name": "gaba", "warmup": 2}],
        inner=["mse"],
        seeds=int(sys.argv[4]) if len(sys.argv) > 4 else 3,
        out=Path(sys.argv[1]),
        metrics={"rmse": "min"},
        compose={"tasks": ["a", "b"]},
    )
    study.run(getattr(training, sys.argv[3]), workers=int(sys.argv[2]))


if __name__ == "__main__":
    main()
