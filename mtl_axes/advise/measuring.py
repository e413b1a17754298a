"""What the batches show: losses, units, gradient norms and cosines."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from mtl_axes.advise.facts import Cosine, Norm, Ratio, TaskLoss
from mtl_axes.advise.trial import Call, Guard, Trial
from mtl_axes.errors import DataError, GraphError
from mtl_axes.inner import InnerShape
from mtl_axes.probes import Shared, SharedPart, Tape
from mtl_axes.probes.exact import Exact
from mtl_axes.signals import Signals
from mtl_axes.tasks import TaskLosses, TaskSet, sample_losses, valid_labels

__all__ = ["Observation", "observe"]

# Batches that are kept to time steps on.
_KEPT = 4
# By how much units are changed to see what a loss does with them.
_FACTOR = 1.1


@dataclass
class Observation:
    """What every batch showed, on the host in float64.

    Attributes:
        tasks: names of the K tasks.
        losses: per batch (K,), NaN where a task was absent or its loss not finite.
        gramians: per batch (K, K) inner products of the gradients, NaN where there was none; None for a batch in which
            nothing could be measured.
        absent: (K,) batches without the task.
        not_finite: (K,) batches in which its loss or gradient was not finite.
        kept: the first batches.
        obstacle: why no gradient could be measured.
        shared: what the tasks share.
        exponents, ranges: by task, see :class:`TaskLoss`.
        hooks: True where a leaf has a hook that fires in a backward.
        device: where the losses are.
    """

    tasks: tuple[str, ...] = ()
    losses: list[Tensor] = field(default_factory=list)
    gramians: list[Tensor | None] = field(default_factory=list)
    absent: list[int] = field(default_factory=list)
    not_finite: list[int] = field(default_factory=list)
    kept: list[object] = field(default_factory=list)
    obstacle: str | None = None
    shared: SharedPart | None = None
    exponents: dict[str, float] = field(default_factory=dict)
    ranges: dict[str, tuple[float, float]] = field(default_factory=dict)
    hooks: bool = False
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    def task_losses(self, tasks: TaskSet) -> tuple[TaskLoss, ...]:
        """Return the losses by task."""
        return tuple(
            TaskLoss(
                task=name,
                kind=tasks.kinds.get(name),
                shape=repr(tasks.shapes[name]) if name in tasks.kinds and name in tasks.shapes else None,
                values=tuple(_number(batch[index]) for batch in self.losses),
                absent=self.absent[index],
                not_finite=self.not_finite[index],
                target_range=self.ranges.get(name),
                exponent=self.exponents.get(name),
            )
            for index, name in enumerate(self.tasks)
        )

    @property
    def norms_of(self) -> list[Tensor]:
        """Per batch (K,) norms, NaN where there is none."""
        nothing = torch.full((len(self.tasks),), math.nan, dtype=torch.float64)
        return [nothing if gramian is None else gramian.diagonal().sqrt() for gramian in self.gramians]

    def norms(self) -> tuple[Norm, ...]:
        """Return the norms by task; none at all when no batch could be measured."""
        if all(gramian is None for gramian in self.gramians):
            return ()
        found = self.norms_of
        return tuple(
            Norm(name, tuple(_number(batch[index]) for batch in found), sum(float(batch[index]) == 0 for batch in found))
            for index, name in enumerate(self.tasks)
        )

    def cosines(self) -> tuple[Cosine, ...]:
        """Return the cosines of every pair of tasks, as :meth:`norms` does."""
        if all(gramian is None for gramian in self.gramians):
            return ()
        pairs = [(first, second) for second in range(len(self.tasks)) for first in range(second)]
        return tuple(
            Cosine(self.tasks[first], self.tasks[second], tuple(_cosine(found, first, second) for found in self.gramians))
            for first, second in sorted(pairs)
        )

    def ratio(self, floor: float) -> Ratio | None:
        """Return how far apart the norms are; None where fewer than two tasks have one above 0."""
        found = self.norms_of
        means = {}
        for index in range(len(self.tasks)):
            logs = [math.log(norm) for batch in found if (norm := float(batch[index])) > 0]
            if logs:
                means[index] = sum(logs) / len(logs)
        if len(means) < 2:
            return None
        largest, smallest = max(means, key=means.__getitem__), min(means, key=means.__getitem__)
        if largest == smallest:  # all of them equal
            largest, smallest = list(means)[:2]
        both = [(float(batch[largest]), float(batch[smallest])) for batch in found]
        values = tuple(top / bottom for top, bottom in both if top > 0 and bottom > 0)
        return Ratio(self.tasks[largest], self.tasks[smallest], values, floor) if values else None

    def signals(self) -> list[Signals]:
        """Return what a weighting sees of every batch."""
        found = []
        for losses, gramian in zip(self.losses, self.gramians, strict=True):
            active = torch.isfinite(losses)
            if gramian is not None:
                active = active & torch.isfinite(gramian.diagonal())
            found.append(Signals(losses, gramian=gramian, active=active))
        return found


def observe(trial: Trial, guard: Guard, batches: Iterable[object], limit: int, deadline: float) -> Observation:
    """Run up to ``limit`` batches, at least one, as long as the next one is expected to end before the deadline.

    Raises:
        DataError: there is no batch; a batch, an output or a target is not what it should be.
    """
    found, probe, shared = Observation(), Exact(reuse=False), trial.criterion._shared
    if not isinstance(batches, Iterable):
        raise DataError(f"The batches should be something to iterate over, as a DataLoader. Found {type(batches).__name__}.")
    begin = time.perf_counter()
    for number, batch in enumerate(batches, 1):
        with guard.watching():
            call = trial.forward(batch)
        losses = trial.losses(call)
        if number <= _KEPT:
            found.kept.append(batch)
        _add(found, trial, call, losses)
        leaves = Tape(found.tasks, losses.losses, Shared(None)).graph().leaves
        guard.see_leaves(leaves)
        found.hooks = found.hooks or any(getattr(leaf, "_post_accumulate_grad_hooks", None) for leaf in leaves)
        present = _finite(losses)
        if found.obstacle is None and any(loss is not None for loss in present):
            _measure(found, Tape(found.tasks, present, shared), probe)
        else:
            found.gramians.append(None)
        now = time.perf_counter()
        if number >= limit or now + (now - begin) / number > deadline:
            break
    if not found.losses:
        raise DataError("advise() should be given at least one batch. Found none: an iterator that was used up before?")
    found.shared = shared.last
    return found


def _add(found: Observation, trial: Trial, call: Call, losses: TaskLosses) -> None:
    """Add the losses of a batch, and what its targets tell of their units."""
    tasks = trial.criterion.task_set
    if not found.tasks:
        found.tasks = tasks.names
        found.absent, found.not_finite = [0] * len(tasks.names), [0] * len(tasks.names)
        found.device = next(loss.device for loss in losses.losses if loss is not None)
    labelled = losses.labelled()
    here = [True] * len(found.tasks) if labelled is None else labelled.tolist()
    values = losses.values().double().cpu()
    for index, name in enumerate(found.tasks):
        found.absent[index] += not here[index]
        found.not_finite[index] += here[index] and not math.isfinite(values[index])
        if here[index] and call.losses is None and tasks.kinds.get(name) == "regression":
            _see_units(found, name, call, tasks)
    missing = torch.tensor([not flag for flag in here]) | ~torch.isfinite(values)
    found.losses.append(torch.where(missing, math.nan, values))


def _see_units(found: Observation, name: str, call: Call, tasks: TaskSet) -> None:
    position = tasks.names.index(name)
    prediction, target = (
        values[name] if isinstance(values, Mapping) else values[position] for values in (call.outputs, call.targets)
    )
    mask = call.options.get("mask")
    valid = valid_labels(name, target, mask.get(name) if isinstance(mask, Mapping) else mask, tasks.missing)
    counted = target if valid is None else target[valid]
    low, high = found.ranges.get(name, (math.inf, -math.inf))
    found.ranges[name] = (min(low, float(counted.min())), max(high, float(counted.max())))
    if name not in found.exponents:
        exponent = _exponent(tasks.shapes[name], prediction.detach(), target.detach(), valid)
        if exponent is not None:
            found.exponents[name] = exponent


@torch.no_grad()
def _exponent(shape: InnerShape, prediction: Tensor, target: Tensor, valid: Tensor | None) -> float | None:
    """Return d log(loss) / d log(c) for predictions and targets times c, at c = 1, by a central difference."""
    # Where a prediction is several numbers, of a distribution, they do not all have the unit of the target.
    if shape.trailing or not target.is_floating_point():
        return None
    up, down = (
        float(sample_losses(shape, prediction * factor, target * factor, valid).mean()) for factor in (_FACTOR, 1 / _FACTOR)
    )
    if not (up > 0 and down > 0 and math.isfinite(up) and math.isfinite(down)):
        return None
    return math.log(up / down) / (2 * math.log(_FACTOR))


def _finite(losses: TaskLosses) -> tuple[Tensor | None, ...]:
    """Return the losses with None for a task without a label, or whose loss is not finite."""
    labelled = losses.labelled()
    here = [True] * len(losses.losses) if labelled is None else labelled.tolist()
    return tuple(
        loss if loss is not None and flag and bool(torch.isfinite(loss.detach())) else None
        for loss, flag in zip(losses.losses, here, strict=True)
    )


def _measure(found: Observation, tape: Tape, probe: Exact) -> None:
    """Add the Gramian of a batch, or learn that there is an obstacle."""
    try:
        if all(gramian is None for gramian in found.gramians):
            probe.check(tape)
        with torch.autocast(found.device.type, enabled=False):
            measurement = probe.measure(tape, "gramian")
    except GraphError as error:
        found.obstacle = str(error)
        found.gramians.append(None)
        return
    if measurement is None or measurement.gramian is None:  # one task alone does not tell what it shares
        found.gramians.append(None)
        return
    gramian = measurement.gramian.double().cpu()
    measured = torch.tensor([loss is not None for loss in tape.losses])
    usable = measured & torch.isfinite(gramian.diagonal())
    for index in (measured & ~usable).nonzero().flatten().tolist():
        found.not_finite[index] += 1
    found.gramians.append(torch.where(usable[:, None] & usable[None, :], gramian, math.nan))


def _cosine(gramian: Tensor | None, first: int, second: int) -> float | None:
    if gramian is None:
        return None
    size = math.sqrt(float(gramian[first, first])) * math.sqrt(float(gramian[second, second]))
    if not size > 0:
        return None
    return max(-1.0, min(1.0, float(gramian[first, second]) / size))


def _number(value: Tensor) -> float | None:
    number = float(value)
    return number if math.isfinite(number) else None
