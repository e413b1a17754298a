"""Advice before training: what a few batches say about the weighting of tasks, and what they cannot say."""

from __future__ import annotations

from mtl_axes.advise.advising import CANDIDATES, advise
from mtl_axes.advise.facts import Advice, Candidate, Cosine, Cost, Finding, Norm, Ratio, Rule, TaskLoss

__all__ = [
    "CANDIDATES",
    "Advice",
    "Candidate",
    "Cosine",
    "Cost",
    "Finding",
    "Norm",
    "Ratio",
    "Rule",
    "TaskLoss",
    "advise",
]
