"""The state of a criterion: what it says about itself, whether a saved one fits, and how one from another probe is fitted.

Functions of a state dict and the parts of a criterion. A state dict is changed in place, as ``_load_from_state_dict`` may.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from mtl_axes.errors import MtlAxesError, StateError
from mtl_axes.outer import OuterWeighting
from mtl_axes.probes import Probe
from mtl_axes.tasks import TaskSet
from mtl_axes.window import Window

__all__ = ["check_state", "describe_state", "fit_probe", "split_history", "try_to_load"]

_VERSION = 4


def describe_state(tasks: TaskSet, outer: OuterWeighting, probe: Probe) -> dict[str, Any]:
    """Return what is not a tensor: the tasks, their kinds, the class of the weighting and of the probe."""
    return {
        "version": _VERSION,
        "tasks": list(tasks.names),
        "kinds": tasks.known_kinds(),
        "outer": _lineage(outer),
        "probe": type(probe).__name__,
    }


def _lineage(outer: OuterWeighting) -> str:
    """Return the class of a weighting and of the one that it wraps: ``Ema(InverseNorm)``."""
    base, name = outer.options().get("base"), type(outer).__name__
    return f"{name}({_lineage(base)})" if isinstance(base, OuterWeighting) else name


def check_state(
    state: Mapping[str, Any], prefix: str, tasks: TaskSet, outer: OuterWeighting, window: Window
) -> Mapping[str, Any]:
    """Return the description of a state, see :func:`describe_state`, after a check that the state fits a criterion.

    Args:
        state: the state dict.
        prefix: of the criterion's keys.
        tasks: the tasks of the criterion that loads it.
        outer: its weighting.
        window: its window.

    Raises:
        StateError: it is no state of a criterion, or of another version, weighting, or other tasks.
    """
    saved: Any = state.get(prefix + "_extra_state")
    if not isinstance(saved, Mapping) or "version" not in saved:
        raise StateError(
            'This is not the state_dict() of a criterion: the tasks and the version are missing under "_extra_state". Pass '
            "the criterion's own part of the checkpoint."
        )
    if saved["version"] != _VERSION:
        raise StateError(
            f"The state has the version {saved['version']!r}; this mtl_axes reads version {_VERSION}. Resume with the "
            "mtl_axes that saved it, or start the criterion anew: weights adapt again within a few hundred steps."
        )
    if saved["outer"] != _lineage(outer):
        raise StateError(
            f"The state is of the weighting {saved['outer']}, this criterion has {_lineage(outer)}. Compose it with the "
            "weighting of the state, or start it anew."
        )
    if tasks.names and saved["tasks"] and list(tasks.names) != saved["tasks"]:
        raise StateError(
            f"The state is of the tasks {saved['tasks']}, this criterion has {list(tasks.names)}. Compose it with the "
            "tasks of the state, in the same order."
        )
    if window.allocated and prefix + "_window.loss_sum" not in state:
        raise StateError(
            "The state was saved before the criterion's first call, and this criterion has been called. Load it into a fresh "
            "one."
        )
    return saved


def try_to_load(trial: nn.Module, state: dict[str, Any]) -> None:
    """Load a state into a copy of a criterion, so that a state that does not fit is an error before any of it is loaded."""
    try:
        trial.load_state_dict(state)
    except MtlAxesError:
        raise
    except Exception as error:
        raise StateError(
            "The state does not fit this criterion. It should be the whole state_dict() of a criterion of the same tasks "
            f"and weighting. {error}"
        ) from error


def fit_probe(state: dict[str, Any], prefix: str, window: Window, probe: Probe, *, other: bool) -> None:
    """Let a state load that was saved with another probe: leave out that probe's part, and start this probe's anew.

    Args:
        state: the state dict.
        prefix: of the criterion's keys.
        window: the window of the criterion that loads it.
        probe: its probe.
        other: whether the state was saved with a probe of another class.
    """
    for name, fresh in (("latest_norms", 1), ("known_norms", 0)):
        key, own = f"{prefix}_window.{name}", window._buffers.get(name)
        if own is None:
            state.pop(key, None)
        elif key not in state:
            state[key] = torch.full_like(own, fresh)
    if other:
        probe.discard()
        for name in [name for name in state if name.startswith(prefix + "probe.")]:
            del state[name]
        probe.state_dict(destination=state, prefix=prefix + "probe.")


def split_history(state: dict[str, Any], prefix: str, history: nn.Module | None) -> dict[str, Any] | None:
    """Let a state load with or without a history; return the saved one that has no History to go to yet.

    A criterion with a History that loads a state without one begins its history anew.
    """
    key = f"{prefix}history._extra_state"
    if history is None:
        saved: dict[str, Any] | None = state.pop(key, None)
        return saved
    if key not in state:
        # Whatever its windows were, they are not the windows of the state.
        history.set_extra_state(None)
        state[key] = history.get_extra_state()
    return None
