"""What a step costs: methods interleaved in one process, each relative to the plain weighted sum in the same round."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

import torch

from mtl_axes.advise import clock
from mtl_axes.advise.candidates import label_of
from mtl_axes.advise.facts import Cost
from mtl_axes.advise.measuring import Observation
from mtl_axes.advise.trial import Guard, Trial, total
from mtl_axes.composition import compose
from mtl_axes.criterion import MultiTaskCriterion
from mtl_axes.errors import MtlAxesError

__all__ = ["PLAIN", "measure_costs"]

PLAIN = "plain weighted sum"
ROUNDS = 30
_EVERY = 10
# After every warm-up, and a multiple of `every`.
_LATE = 1_000_000
_CHEAPER: dict[str, dict[str, Any]] = {
    "one task in turn": {"probe": {"name": "exact", "rotate": True}},
    'probe="representation"': {"probe": "representation"},
    'probe="lagged"': {"probe": "lagged"},
}


@dataclass
class _Method:
    """A criterion to be timed.

    Attributes:
        measuring: for ``every``: the same method measuring in each step; only the steps in between are timed for this one.
        seconds: of each round; the first is a warm-up. On a CPU the time that this thread was running: other programs do not
            count, whose share a longer step meets more often. Elsewhere the time on the wall clock.
        wall: duration of the last step on the wall clock.
        problem: why it cannot be used.
    """

    label: str
    criterion: MultiTaskCriterion | None
    problem: str | None = None
    measuring: _Method | None = None
    seconds: list[float] = field(default_factory=list)
    wall: float = 0.0

    def step(self, trial: Trial, batch: object, device: torch.device) -> None:
        """Take one step and note its time: forward, criterion, backward, and the forward after the step if it is needed."""
        criterion = self.criterion
        assert criterion is not None
        if self.measuring is not None:
            criterion._window.step = _LATE + 1
        time = clock.busy if device.type == "cpu" else clock.now
        _wait(device)
        begin = time()
        total(criterion, trial.forward(batch)).backward()  # type: ignore[no-untyped-call]
        if criterion.outer.wants_after_step:
            with torch.no_grad(), criterion.after_step():
                total(criterion, trial.forward(batch))
        _wait(device)
        self.seconds.append(time() - begin)

    def cost(self, plain: _Method) -> Cost:
        """Return the median over the rounds."""
        # A first step warms caches up; it counts only if there was no time for another one.
        skip = 1 if len(self.seconds) > 1 else 0
        pairs = list(zip(self.seconds[skip:], plain.seconds[skip:], strict=False))
        if self.problem is not None or not pairs:
            return Cost(self.label, None, None, 0, self.problem)
        seconds, ratio = median(mine for mine, _ in pairs), median(mine / other for mine, other in pairs)
        if self.measuring is not None:
            full = self.measuring.cost(plain)
            if full.ratio is None or full.seconds is None:
                return Cost(self.label, None, None, 0)
            ratio = (full.ratio + (_EVERY - 1) * ratio) / _EVERY
            seconds = (full.seconds + (_EVERY - 1) * seconds) / _EVERY
        return Cost(self.label, seconds, ratio, len(pairs))


def measure_costs(
    trial: Trial,
    guard: Guard,
    observation: Observation,
    candidates: Sequence[str | Mapping[str, Any]],
    deadline: float,
) -> tuple[Cost, ...]:
    """Time the plain sum, the candidates, and cheaper ways to measure norms, in turn until the deadline."""
    methods = _methods(trial, observation, candidates)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about costs, and those that the first run of the model has shown already
            for number in range(ROUNDS + 1):
                if not _round(trial, guard, observation, methods, number, deadline):
                    break
    finally:
        guard.clear_gradients()
    return tuple(method.cost(methods[0]) for method in methods)


def _methods(trial: Trial, observation: Observation, candidates: Sequence[str | Mapping[str, Any]]) -> list[_Method]:
    def method(label: str, outer: Any, measuring: _Method | None = None, **options: Any) -> _Method:
        try:
            return _Method(label, _criterion(trial, observation, outer, **options), measuring=measuring)
        except MtlAxesError as error:
            return _Method(label, None, str(error))

    methods = [method(PLAIN, "fixed")]
    norm_based: tuple[_Method, Any] | None = None
    for outer in candidates:
        if outer == "fixed":  # the plain sum
            continue
        one = method(label_of(outer), outer)
        methods.append(one)
        reads_norms = one.criterion is not None and one.criterion.outer.needs == "norms"
        if one.label == "gaba" or (norm_based is None and reads_norms):
            norm_based = one, outer
    if norm_based is not None and observation.obstacle is None:
        one, outer = norm_based
        methods.append(method(f"{one.label}, every={_EVERY}", outer, one, every=_EVERY))
        methods += [method(f"{one.label}, {how}", outer, **options) for how, options in _CHEAPER.items()]
    return methods


def _criterion(trial: Trial, observation: Observation, outer: Any, **options: Any) -> MultiTaskCriterion:
    """Return a criterion with another weighting and the user's shapes, past every warm-up."""
    own = trial.criterion
    tasks = own._tasks
    inner = {name: shape for name, shape in tasks.shapes.items() if name in tasks.kinds}
    shared = observation.shared.parameters if own._shared.given and observation.shared is not None else None
    criterion = compose(
        outer,
        inner or "mse",
        tasks=observation.tasks,
        shared=shared,
        reduction=tasks.reduction,
        missing=tasks.missing,
        sync=None,
        **options,
    )
    criterion.to(observation.device)
    criterion._window.step = _LATE
    return criterion


def _round(
    trial: Trial, guard: Guard, observation: Observation, methods: list[_Method], number: int, deadline: float
) -> bool:
    """Let every method take one step; False if there is no time for the next one."""
    batch = observation.batches[number % len(observation.batches)]
    # Another one begins each round, so that none always follows the same other one.
    start = number % len(methods)
    for method in methods[start:] + methods[:start]:
        if method.problem is not None:
            continue
        # The first step of a method may take a backward for each task.
        expected = method.wall or (1 + len(observation.tasks)) * methods[0].wall
        begin = clock.now()
        if begin + expected > deadline:
            return False
        guard.clear_gradients()
        try:
            method.step(trial, batch, observation.device)
            method.wall = clock.now() - begin
        except (MtlAxesError, RuntimeError) as error:
            method.problem = str(error)
    return True


def _wait(device: torch.device) -> None:
    if device.type != "cpu":
        getattr(torch, device.type).synchronize()
