"""What an outer weighting does about tasks that are not there."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Final

import torch

from mtl_axes.errors import OptionError
from mtl_axes.outer import OuterWeighting
from mtl_axes.signals import Signals
from mtl_axes.testing.case import close, difference, equal, numbers, same, snapshot
from mtl_axes.testing.outer_case import OuterCase, of_task
from mtl_axes.testing.problems import Problem, ordinary

__all__ = ["CHECKS"]


_WHY: Final[dict[str, Callable[[dict[str, Any], int], None]]] = {
    "inactive": lambda given, task: given["active"].__setitem__(task, False),
    "a NaN loss": lambda given, task: given["losses"].__setitem__(task, torch.nan),
    "an infinite loss": lambda given, task: given["losses"].__setitem__(task, torch.inf),
    "a zero norm": lambda given, task: _spoil(given, task, 0.0),
    "a NaN norm": lambda given, task: _spoil(given, task, torch.nan),
    "an infinite norm": lambda given, task: _spoil(given, task, torch.inf),
}


def _spoil(given: dict[str, Any], task: int, value: float) -> None:
    given["norms"][task] = value
    if given["gramian"] is not None:
        given["gramian"][task] = given["gramian"][:, task] = value


def _absent(problem: Problem, weighting: OuterWeighting, why: str, task: int, step: int) -> Signals:
    whole = problem.signals(weighting.needs)
    given = {name: getattr(whole, name) for name in ("losses", "norms", "gramian", "active")}
    given = {name: None if value is None else value.clone() for name, value in given.items()}
    _WHY[why](given, task)
    return Signals(**given, step=step)


def absent(case: OuterCase) -> None:
    """A task that is absent, not finite or without a gradient does not count.

    Memoryless: it has the weight 0 and the others what they have without it. Else it keeps its weight and its state.
    """
    count, task = case.count, case.task
    if count < 2:
        return
    first = case.build()
    for why in _WHY:
        if first.needs == "losses" and "norm" in why:
            continue
        weighting = case.driven()
        before, held = snapshot(weighting), weighting.weights().detach().clone()
        for step, problem in case.following():
            case.given = f"{problem.told(weighting.needs)} with task {task} absent ({why})"
            signals = _absent(problem, weighting, why, task, case.start + step)
            weights = weighting(signals).detach()
            case.after_step(weighting, problem, signals)
            if first.memoryless:
                case.require(
                    float(weights[task]) == 0,
                    "claims memoryless=True, so that an absent task weighs 0",
                    f"weights {numbers(weights)}",
                )
            else:
                case.require(
                    math.isclose(float(weights[task]), float(held[task]), rel_tol=1e-9),
                    "claims memoryless=False, so that an absent task keeps its weight",
                    f"{float(weights[task]):.10g} for task {task} after {float(held[task]):.10g}",
                )
                left, right = of_task(snapshot(weighting), task, count), of_task(before, task, count)
                case.require(
                    same(left, right),
                    "claims memoryless=False, so that an absent task keeps its state",
                    f"a change in {difference(left, right)}",
                )


def rest(case: OuterCase) -> None:
    """A memoryless weighting gives the others exactly what the sub-problem without the absent tasks gives."""
    first = case.build()
    if not first.memoryless or case.draws() or case.count < 2:
        return
    for gone in ({case.task}, set(range(case.count)) - {0, case.task if case.task else 1}, set(range(1, case.count))):
        here = [index for index in range(case.count) if index not in gone]
        try:
            smaller = case.bound(names=[case.names(case.count)[index] for index in here])
        except OptionError:
            continue
        whole = case.bound()
        for step in range(3):
            problem = ordinary(case.count, step, spread=1.0)
            expected = case.show(smaller, problem.of(here), step)
            for task in gone:
                problem = problem.without(task)
            found = case.show(whole, problem, step)
            case.require(
                close(found[here], expected, 1e-7),
                "claims memoryless=True, so that the others weigh what they weigh without the absent tasks",
                f"weights {numbers(found)} where {numbers(expected)} should be at {here}",
            )


def nothing_active(case: OuterCase) -> None:
    """With no active task at all, weights and the state of every task stay as they are."""
    count = case.count
    weighting = case.driven()
    before, held = snapshot(weighting), weighting.weights().detach().clone()
    problem = ordinary(count, 9)
    for task in range(count):
        problem = problem.without(task)
    weights = case.show(weighting, problem, 4).detach()
    told = "should keep its weights when no task is active"
    case.require(equal(weights, held), told, f"weights {numbers(weights)} after {numbers(held)}")
    after = snapshot(weighting)
    for task in range(count):
        left, right = of_task(after, task, count), of_task(before, task, count)
        case.require(
            same(left, right),
            "should keep the state of every task when none is active",
            f"a change in {difference(left, right)} of task {task}",
        )


CHECKS: Final[dict[str, Callable[[OuterCase], None]]] = {
    "absent": absent,
    "rest": rest,
    "nothing active": nothing_active,
}
