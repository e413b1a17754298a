"""What a step costs here: methods interleaved in one process, each over the plain weighted sum of the same round."""

from __future__ import annotations

import statistics
import time
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from mtl_axes.advise.facts import Cost
from mtl_axes.advise.measuring import Observation
from mtl_axes.advise.trial import Guard, Trial
from mtl_axes.advise.weighing import label_of
from mtl_axes.composition import compose
from mtl_axes.criterion import MultiTaskCriterion
from mtl_axes.errors import MtlAxesError

__all__ = ["PLAIN", "Method", "methods", "timed"]

PLAIN = "plain weighted sum"
_EVERY = 10
_ROUNDS = 30
# After every warm-up, and a multiple of `every`.
_LATE = 1_000_000
_CHEAPER: dict[str, dict[str, Any]] = {
    "one task in turn": {"probe": {"name": "exact", "rotate": True}},
    'probe="representation"': {"probe": "representation"},
    'probe="lagged"': {"probe": "lagged"},
}


class Method:
    """A criterion to be timed.

    Attributes:
        held: True to time only steps between two measurements.
        seconds: of each round; the first is a warm-up. On a CPU those that this thread was running, so that other programs
            do not count, whose share a longer step meets more often; elsewhere by the clock on the wall.
        wall: what the last step took by the clock on the wall.
        problem: why it cannot be used here.
    """

    def __init__(self, label: str, criterion: MultiTaskCriterion | None, problem: str | None = None, *, held: bool = False):
        self.label, self.criterion, self.problem, self.held = label, criterion, problem, held
        self.seconds: list[float] = []
        self.wall = 0.0

    def step(self, trial: Trial, batch: object, device: torch.device) -> None:
        """Take one step and note its time: forward, criterion, backward; and one more forward where a weighting asks."""
        criterion = self.criterion
        assert criterion is not None
        if self.held:
            criterion._window.step = _LATE + 1
        clock = time.thread_time if device.type == "cpu" else time.perf_counter
        _wait(device)
        begin = clock()
        trial.total(criterion, trial.forward(batch)).backward()  # type: ignore[no-untyped-call]
        if criterion.outer.wants_after_step:
            with torch.no_grad(), criterion.after_step():
                trial.total(criterion, trial.forward(batch))
        _wait(device)
        self.seconds.append(clock() - begin)


def methods(trial: Trial, found: Observation, candidates: Sequence[str | Mapping[str, Any]]) -> list[Method]:
    """Return what is to be timed: the plain sum, every candidate, and for one that reads norms the cheaper measurements."""
    chosen = [Method(PLAIN, _criterion(trial, found, "fixed"))]
    norm_based = None
    for outer in candidates:
        if outer == "fixed":  # which is the plain sum
            continue
        chosen.append(_method(label_of(outer), trial, found, outer))
        criterion = chosen[-1].criterion
        if norm_based is None and criterion is not None and criterion.outer.needs == "norms":
            norm_based = outer
        if label_of(outer) == "gaba":
            norm_based = outer
    if norm_based is not None and found.obstacle is None:
        name = label_of(norm_based)
        chosen.append(_method(f"{name}, every={_EVERY}", trial, found, norm_based, held=True, every=_EVERY))
        for told, options in _CHEAPER.items():
            chosen.append(_method(f"{name}, {told}", trial, found, norm_based, **options))
    return chosen


def _method(label: str, trial: Trial, found: Observation, outer: Any, *, held: bool = False, **options: Any) -> Method:
    try:
        return Method(label, _criterion(trial, found, outer, **options), held=held)
    except MtlAxesError as error:
        return Method(label, None, str(error))


def _criterion(trial: Trial, found: Observation, outer: Any, **options: Any) -> MultiTaskCriterion:
    """Return a criterion with another weighting and the user's shapes, past every warm-up."""
    own = trial.criterion
    tasks = own.task_set
    inner = {name: shape for name, shape in tasks.shapes.items() if name in tasks.kinds}
    shared = found.shared.parameters if own._shared.given and found.shared is not None else None
    criterion = compose(
        outer,
        inner or "mse",
        tasks=found.tasks,
        shared=shared,
        reduction=tasks.reduction,
        missing=tasks.missing,
        sync=None,
        **options,
    )
    criterion.to(found.device)
    criterion._window.step = _LATE
    return criterion


def timed(trial: Trial, guard: Guard, found: Observation, chosen: list[Method], deadline: float) -> tuple[Cost, ...]:
    """Time the methods in turn until the deadline, and return what a step of each costs; nothing where there was no time."""
    rounds = 0
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of costs, and of what the first run of the model has warned of
            while rounds <= _ROUNDS and _round(trial, guard, found, chosen, rounds, deadline):
                rounds += 1
    finally:
        guard.clear_gradients()
    return tuple(_cost(method, chosen[0], chosen) for method in chosen)


def _round(trial: Trial, guard: Guard, found: Observation, chosen: list[Method], number: int, deadline: float) -> bool:
    """Let every method take one step; False when there is no time for the next one."""
    batch = found.kept[number % len(found.kept)]
    # Another one begins each round: none is always the one to follow a certain other.
    start = number % len(chosen)
    for method in chosen[start:] + chosen[:start]:
        if method.problem is not None:
            continue
        # The first step of a method may take a backward for each task.
        expected = method.wall or (1 + len(found.tasks)) * chosen[0].wall
        begin = time.perf_counter()
        if begin + expected > deadline:
            return False
        guard.clear_gradients()
        try:
            method.step(trial, batch, found.device)
            method.wall = time.perf_counter() - begin
        except (MtlAxesError, RuntimeError) as error:
            method.problem = str(error)
    return True


def _cost(method: Method, plain: Method, chosen: list[Method]) -> Cost:
    if method.problem is not None:
        return Cost(method.label, None, None, 0, method.problem)
    # A first step warms caches up; it counts where there was time for no other.
    skip = 1 if len(method.seconds) > 1 else 0
    pairs = list(zip(method.seconds[skip:], plain.seconds[skip:], strict=False))
    if not pairs:
        return Cost(method.label, None, None, 0)
    seconds = statistics.median(mine for mine, _ in pairs)
    ratio = statistics.median(mine / other for mine, other in pairs)
    if method.held:
        # Of ten steps one measures, as in every step of the method without `every`.
        measuring = next(other for other in chosen if method.label == f"{other.label}, every={_EVERY}")
        full = _cost(measuring, plain, chosen)
        if full.ratio is None or full.seconds is None:
            return Cost(method.label, None, None, 0)
        ratio = (full.ratio + (_EVERY - 1) * ratio) / _EVERY
        seconds = (full.seconds + (_EVERY - 1) * seconds) / _EVERY
    return Cost(method.label, seconds, ratio, len(pairs))


def _wait(device: torch.device) -> None:
    if device.type != "cpu":
        getattr(torch, device.type).synchronize()
