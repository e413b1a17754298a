"""A script that forgets `if __name__ == "__main__":`; called with a folder."""

from __future__ import annotations

import sys

import training

from mtl_axes.study import Study

Study(["fixed"], ["mse"], 2, sys.argv[1]).run(training.train, workers=2)
