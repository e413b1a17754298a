"""Advice before training: what a few batches say about the weighting of tasks, and what they cannot say."""

from __future__ import annotations

from mtl_axes.advise.advice import CANDIDATES, Advice, advise
from mtl_axes.advise.facts import Candidate, Cosine, Cost, Finding, Norm, Ratio, Rule, TaskLoss

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
