"""Absent tasks of an outer weighting."""

from __future__ import annotations

import math
from typing import Final

from torch import Tensor

from mtl_axes.errors import OptionError
from mtl_axes.outer import OuterWeighting
from mtl_axes.signals import Signals
from mtl_axes.testing.case import named, numbers, snapshot
from mtl_axes.testing.outer_case import OuterCase, of_task
from mtl_axes.testing.problems import Problem, ordinary

__all__ = ["CHECKS"]

# Why a task does not take part: the signal that says so, and its value.
_WHY: Final[dict[str, tuple[str, float]]] = {
    "inactive": ("active", False),
    "a NaN loss": ("losses", math.nan),
    "an infinite loss": ("losses", math.inf),
    "a zero norm": ("norms", 0.0),
    "a NaN norm": ("norms", math.nan),
    "an infinite norm": ("norms", math.inf),
}


def _absent(problem: Problem, weighting: OuterWeighting, why: str, task: int, step: int) -> Signals:
    whole = problem.signals(weighting.needs)
    names = ("losses", "norms", "gramian", "active")
    given: dict[str, Tensor] = {name: value.clone() for name in names if (value := getattr(whole, name)) is not None}
    signal, value = _WHY[why]
    given[signal][task] = value
    if signal == "norms" and "gramian" in given:
        given["gramian"][task] = given["gramian"][:, task] = value
    return Signals(**given, step=step)


def absent(case: OuterCase) -> None:
    """A task that is absent, not finite or without a gradient does not count.

    A memoryless weighting gives it the weight 0, and the others their weights without it. Any other keeps its weight and
    its state.
    """
    count, task = case.count, case.task
    if count < 2:
        return
    first = case.build()
    claim = f"claims memoryless={first.memoryless}, so that an absent task"
    for why, (signal, _) in _WHY.items():
        if first.needs == "losses" and signal == "norms":
            continue
        weighting = case.driven()
        before, held = snapshot(weighting), weighting.weights().detach().clone()
        for step, problem in case.following():
            case.given = f"{problem.text(weighting.needs)} with task {task} absent ({why})"
            signals = _absent(problem, weighting, why, task, case.start + step)
            weights = weighting(signals).detach()
            case.after_step(weighting, problem, signals)
            if first.memoryless:
                case.require(float(weights[task]) == 0, f"{claim} weighs 0", f"weights {numbers(weights)}")
                continue
            weight, kept = float(weights[task]), float(held[task])
            holds = math.isclose(weight, kept, rel_tol=1e-9)
            case.require(holds, f"{claim} keeps its weight", f"{weight:.10g} for task {task} after {kept:.10g}")
            left, right = of_task(snapshot(weighting), task, count), of_task(before, task, count)
            case.require_unchanged(left, right, f"{claim} keeps its state")


def rest(case: OuterCase) -> None:
    """A memoryless weighting gives the others exactly their weights in the sub-problem without the absent tasks."""
    first = case.build()
    if not first.memoryless or case.draws() or case.count < 2:
        return
    for gone in ({case.task}, set(range(case.count)) - {0, case.task if case.task else 1}, set(range(1, case.count))):
        others = [index for index in range(case.count) if index not in gone]
        try:
            smaller = case.bound(names=[case.names(case.count)[index] for index in others])
        except OptionError:
            continue
        whole = case.bound()
        for step in range(3):
            problem = ordinary(case.count, step, spread=1.0)
            expected = case.show(smaller, problem.of(others), step)
            for task in gone:
                problem = problem.without(task)
            weights = case.show(whole, problem, step)
            claim = "claims memoryless=True, so that the others keep the weights that they have without the absent tasks"
            text = f"weights {numbers(weights)}, at {others} {{}} instead of {{}}"
            case.require_close(weights[others], expected, claim, text, rtol=1e-7)


def nothing_active(case: OuterCase) -> None:
    """Without any active task, the weights and the state of every task are unchanged."""
    count = case.count
    weighting = case.driven()
    before, held = snapshot(weighting), weighting.weights().detach().clone()
    problem = ordinary(count, 9)
    for task in range(count):
        problem = problem.without(task)
    weights = case.show(weighting, problem, 4).detach()
    case.require_equal(weights, held, "should keep its weights when no task is active", "weights {} after {}")
    after = snapshot(weighting)
    claim = "should keep the state of every task when none is active"
    for task in range(count):
        case.require_unchanged(of_task(after, task, count), of_task(before, task, count), claim, f" of task {task}")


CHECKS: Final = named(absent, rest, nothing_active)
