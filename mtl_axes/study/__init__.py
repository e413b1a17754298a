"""Grid studies with honest statistics: training, the runs on disk, and the comparisons between them."""

from __future__ import annotations

from mtl_axes.study.effects import Effect, Summary
from mtl_axes.study.grid import Study
from mtl_axes.study.jobs import Outcome, Train
from mtl_axes.study.plan import Baseline
from mtl_axes.study.results import Results
from mtl_axes.study.runs import Direction, Run

__all__ = ["Baseline", "Direction", "Effect", "Outcome", "Results", "Run", "Study", "Summary", "Train"]
