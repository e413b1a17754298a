"""mtl_axes: multi-task losses with two independent axes, a weight per task and a shape per sample."""

from __future__ import annotations

from mtl_axes import errors, probes
from mtl_axes.__about__ import version
from mtl_axes.advise import advise
from mtl_axes.composition import compose
from mtl_axes.criterion import MultiTaskCriterion
from mtl_axes.history import History
from mtl_axes.inner import InnerShape, Reweighted, TargetWeight
from mtl_axes.outer import OuterWeighting
from mtl_axes.probes import Probe
from mtl_axes.registry import available, create, hookimpl, register_inner, register_outer, register_weight
from mtl_axes.signals import Signals, StepReport, TaskInfo
from mtl_axes.study import Outcome, Results, Study

__version__ = version

__all__ = [
    "History",
    "InnerShape",
    "MultiTaskCriterion",
    "Outcome",
    "OuterWeighting",
    "Probe",
    "Results",
    "Reweighted",
    "Signals",
    "StepReport",
    "Study",
    "TargetWeight",
    "TaskInfo",
    "advise",
    "available",
    "compose",
    "create",
    "errors",
    "hookimpl",
    "probes",
    "register_inner",
    "register_outer",
    "register_weight",
]
