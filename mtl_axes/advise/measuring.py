"""What the batches show: losses, units, gradient norms and cosines."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from mtl_axes.advise import clock
from mtl_axes.advise.facts import Cosine, Norm, Ratio, TaskLoss
from mtl_axes.advise.trial import Call, Guard, Trial
from mtl_axes.errors import DataError, GraphError
from mtl_axes.inner import InnerShape
from mtl_axes.probes import Shared, SharedPart, Tape
from mtl_axes.probes.exact import Exact
from mtl_axes.signals import Need, Signals
from mtl_axes.tasks import TaskSet, sample_losses, valid_labels

__all__ = ["Observation", "observe"]

# Batches that are kept to time steps on.
_KEPT = 4
# Units are changed by this factor to see what a loss does with them.
_FACTOR = 1.1


@dataclass
class Observation:
    """What the batches showed, on the host in float64.

    Attributes:
        tasks: names of the K tasks.
        losses: per batch (K,), NaN if a task was absent or its loss not finite.
        gramians: per batch (K, K) inner products of the gradients, NaN if there was none.
        absent: (K,) numbers of batches without the task.
        not_finite: (K,) numbers of batches in which its loss or gradient was not finite.
        batches: the first batches.
        obstacle: why no gradient could be measured.
        shared: what the tasks share.
        exponents, ranges: by task, see :class:`TaskLoss`.
        hooks: True if a leaf has a hook that runs in a backward.
        device: the device of the losses.
    """

    tasks: tuple[str, ...] = ()
    losses: list[Tensor] = field(default_factory=list)
    gramians: list[Tensor] = field(default_factory=list)
    absent: list[int] = field(default_factory=list)
    not_finite: list[int] = field(default_factory=list)
    batches: list[object] = field(default_factory=list)
    obstacle: str | None = None
    shared: SharedPart | None = None
    exponents: dict[str, float] = field(default_factory=dict)
    ranges: dict[str, tuple[float, float]] = field(default_factory=dict)
    hooks: bool = False
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @property
    def measured(self) -> bool:
        """True if a gradient was measured in any batch."""
        return bool(torch.stack(self.gramians).isfinite().any())

    def task_losses(self, tasks: TaskSet) -> tuple[TaskLoss, ...]:
        """Return the losses by task."""
        losses = torch.stack(self.losses)
        return tuple(
            TaskLoss(
                task=name,
                kind=tasks.kinds.get(name),
                shape=repr(tasks.shapes[name]) if name in tasks.kinds and name in tasks.shapes else None,
                values=_or_none(losses[:, index]),
                absent=self.absent[index],
                not_finite=self.not_finite[index],
                target_range=self.ranges.get(name),
                exponent=self.exponents.get(name),
            )
            for index, name in enumerate(self.tasks)
        )

    def norms(self) -> tuple[Norm, ...]:
        """Return the norms by task; none if no gradient was measured."""
        norms = self._norms()
        return tuple(
            Norm(name, _or_none(norms[:, index]), int((norms[:, index] == 0).sum()))
            for index, name in enumerate(self.tasks)
            if self.measured
        )

    def cosines(self) -> tuple[Cosine, ...]:
        """Return the cosines of every pair of tasks; none if no gradient was measured."""
        norms, gramians = self._norms(), torch.stack(self.gramians)
        pairs = itertools.combinations(range(len(self.tasks)), 2) if self.measured else ()
        return tuple(
            Cosine(
                self.tasks[first],
                self.tasks[second],
                _or_none((gramians[:, first, second] / (norms[:, first] * norms[:, second])).clamp(-1, 1)),
            )
            for first, second in pairs
        )

    def ratio(self, floor: float) -> Ratio | None:
        """Return how far apart the norms are; None if fewer than two tasks have a norm above 0."""
        norms = self._norms()
        logs = norms.log()
        means = torch.where(logs.isfinite(), logs, math.nan).nanmean(0).tolist()
        known = [index for index, mean in enumerate(means) if math.isfinite(mean)]
        if len(known) < 2:
            return None
        largest, smallest = max(known, key=means.__getitem__), min(known, key=means.__getitem__)
        if largest == smallest:  # all of them equal
            largest, smallest = known[:2]
        top, bottom = norms[:, largest], norms[:, smallest]
        values = tuple((top / bottom)[(top > 0) & (bottom > 0)].tolist())
        return Ratio(self.tasks[largest], self.tasks[smallest], values, floor) if values else None

    def signals(self, needs: Need) -> list[Signals]:
        """Return what a weighting sees in each batch; if it needs gradients, in the batches in which they were measured."""
        signals = []
        for losses, gramian in zip(self.losses, self.gramians, strict=True):
            active, usable = losses.isfinite(), gramian.diagonal().isfinite()
            if usable.any():
                signals.append(Signals(losses, gramian=gramian, active=active & usable))
            elif needs == "losses":
                signals.append(Signals(losses, active=active))
        return signals

    def _norms(self) -> Tensor:
        """Norms by batch and task, NaN if not measured."""
        return torch.stack(self.gramians).diagonal(dim1=1, dim2=2).sqrt()


def observe(trial: Trial, guard: Guard, batches: Iterable[object], limit: int, deadline: float) -> Observation:
    """Run up to ``limit`` batches, at least one, as long as the next one is expected to end before the deadline.

    Raises:
        DataError: there is no batch; a batch, an output or a target is not as documented.
    """
    if not isinstance(batches, Iterable):
        raise DataError(f"The batches should be iterable, such as a DataLoader. Found {type(batches).__name__}.")
    observation, probe, shared = Observation(), Exact(reuse=False), trial.criterion._shared
    begin = clock.now()
    for number, batch in enumerate(batches, 1):
        with guard.watching():
            call = trial.forward(batch)
        if number <= _KEPT:
            observation.batches.append(batch)
        losses = _add(observation, trial, call)
        leaves = Tape(observation.tasks, losses, Shared(None)).graph().leaves
        guard.take_gradients(leaves)
        observation.hooks = observation.hooks or any(getattr(leaf, "_post_accumulate_grad_hooks", None) for leaf in leaves)
        observation.gramians.append(_gramian(observation, losses, shared, probe))
        now = clock.now()
        if number >= limit or now + (now - begin) / number > deadline:
            break
    if not observation.losses:
        raise DataError("advise() got no batch. Pass a loader that is not empty, or an iterator that is not used up.")
    observation.shared = shared.last
    return observation


def _add(observation: Observation, trial: Trial, call: Call) -> tuple[Tensor | None, ...]:
    """Add the losses of a batch and the units of its targets; return the losses, None if absent or not finite."""
    tasks, result = trial.criterion._tasks, trial.losses(call)
    if not observation.tasks:
        observation.tasks = tasks.names
        observation.absent, observation.not_finite = [0] * len(tasks.names), [0] * len(tasks.names)
        observation.device = next(loss.device for loss in result.losses if loss is not None)
    values, labelled = result.values.double().cpu(), result.labelled
    present = torch.ones(len(values), dtype=torch.bool) if labelled is None else labelled.cpu()
    finite = present & values.isfinite()
    observation.losses.append(torch.where(finite, values, math.nan))
    for index, (name, here, usable) in enumerate(zip(observation.tasks, present.tolist(), finite.tolist(), strict=True)):
        observation.absent[index] += not here
        observation.not_finite[index] += here and not usable
        if here and call.losses is None and tasks.kinds.get(name) == "regression":
            _add_units(observation, name, call, tasks)
    return tuple(loss if flag else None for loss, flag in zip(result.losses, finite.tolist(), strict=True))


def _add_units(observation: Observation, name: str, call: Call, tasks: TaskSet) -> None:
    position = tasks.names.index(name)
    prediction, target = (
        values[name] if isinstance(values, Mapping) else values[position] for values in (call.outputs, call.targets)
    )
    mask = call.options.get("mask")
    valid = valid_labels(name, target, mask.get(name) if isinstance(mask, Mapping) else mask, tasks.missing)
    counted = target if valid is None else target[valid]
    low, high = observation.ranges.get(name, (math.inf, -math.inf))
    observation.ranges[name] = (min(low, float(counted.min())), max(high, float(counted.max())))
    if name not in observation.exponents:
        exponent = _exponent(tasks.shapes[name], prediction.detach(), target.detach(), valid)
        if exponent is not None:
            observation.exponents[name] = exponent


@torch.no_grad()
def _exponent(shape: InnerShape, prediction: Tensor, target: Tensor, valid: Tensor | None) -> float | None:
    """Return d log(loss) / d log(c) for predictions and targets times c, at c = 1, by a central difference."""
    # If a prediction is several numbers, of a distribution, they do not all have the unit of the target.
    if shape.trailing or not target.is_floating_point():
        return None
    up, down = (
        float(sample_losses(shape, prediction * factor, target * factor, valid).mean()) for factor in (_FACTOR, 1 / _FACTOR)
    )
    if not (up > 0 and down > 0 and math.isfinite(up) and math.isfinite(down)):
        return None
    return math.log(up / down) / (2 * math.log(_FACTOR))


def _gramian(observation: Observation, losses: tuple[Tensor | None, ...], shared: Shared, probe: Exact) -> Tensor:
    """Return the Gramian of a batch, NaN where it was not measured; note an obstacle, and gradients that are not finite."""
    nothing = torch.full((len(losses), len(losses)), math.nan, dtype=torch.float64)
    measured = torch.tensor([loss is not None for loss in losses])
    if observation.obstacle is not None or not measured.any():
        return nothing
    tape = Tape(observation.tasks, losses, shared)
    try:
        if all(gramian.isnan().all() for gramian in observation.gramians):
            probe.check(tape)
        with torch.autocast(observation.device.type, enabled=False):
            measurement = probe.measure(tape, "gramian")
    except GraphError as error:
        observation.obstacle = str(error)
        return nothing
    if measurement is None or measurement.gramian is None:  # one task alone does not tell what it shares
        return nothing
    gramian = measurement.gramian.double().cpu()
    usable = measured & gramian.diagonal().isfinite()
    for index in (measured & ~usable).nonzero().flatten().tolist():
        observation.not_finite[index] += 1
    return torch.where(usable[:, None] & usable[None, :], gramian, math.nan)


def _or_none(values: Tensor) -> tuple[float | None, ...]:
    return tuple(value if math.isfinite(value) else None for value in values.tolist())
