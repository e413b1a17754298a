"""Tasks: their names, kinds, valid labels, and the losses of a call."""

from __future__ import annotations

from mtl_axes.tasks.kinds import infer_kind, is_standard, standard_shape
from mtl_axes.tasks.losses import TaskLosses
from mtl_axes.tasks.masks import Reduction, sample_losses, stand_in, valid_labels
from mtl_axes.tasks.task_set import STACKED, TaskSet, as_mapping

__all__ = [
    "STACKED",
    "Reduction",
    "TaskLosses",
    "TaskSet",
    "as_mapping",
    "infer_kind",
    "is_standard",
    "sample_losses",
    "stand_in",
    "standard_shape",
    "valid_labels",
]
