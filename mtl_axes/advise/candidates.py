"""What a weighting would do if the losses and gradients of the batches came again and again."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from mtl_axes.advise import clock
from mtl_axes.advise.facts import Candidate, Norm
from mtl_axes.advise.measuring import Observation
from mtl_axes.errors import MtlAxesError
from mtl_axes.outer import OuterWeighting
from mtl_axes.registry import resolve
from mtl_axes.signals import Signals, TaskInfo

__all__ = ["label_of", "weigh"]

# Steps after which weights that still change are shown as they are, and before which a warm-up may keep them constant.
_LONGEST, _SHORTEST = 2_000, 250
_STILL, _STILL_FOR = 1e-3, 100
# Windows over which a weighting without memory, whose weights may be random, is averaged.
_DRAWS = 64
_LEARNING_STEPS = 200


def label_of(outer: str | Mapping[str, Any]) -> str:
    """Return ``gaba``, or ``gaba(beta=0.9)``."""
    if isinstance(outer, str):
        return outer
    options = ", ".join(f"{key}={value!r}" for key, value in outer.items() if key != "name")
    return f"{outer.get('name')}({options})" if options else str(outer.get("name"))


def weigh(
    outer: str | Mapping[str, Any],
    infos: tuple[TaskInfo, ...],
    observation: Observation,
    norms: tuple[Norm, ...],
    deadline: float,
) -> Candidate:
    """Return what a weighting would do on the batches, as far as it is known before the deadline."""
    names, label = observation.tasks, label_of(outer)
    weighting: OuterWeighting | None = None
    try:
        weighting = resolve("outer", copy.deepcopy(outer))
        weighting.dtype = torch.float64
        weighting.bind(infos)
        if weighting.needs != "losses" and not norms:
            return Candidate(label, weighting.needs, note="needs gradients, which could not be measured")
        signals = observation.signals(weighting.needs)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # they are about training, and this is none
            if weighting.learnable:
                first, last, windows = _learned(weighting, signals)
            else:
                first, last, windows = _repeated(weighting, signals, deadline)
    except MtlAxesError as error:
        return Candidate(label, weighting.needs if weighting is not None else None, note=str(error))
    pulls = {norm.task: last[index] * norm.mean for index, norm in enumerate(norms) if norm.mean is not None}
    whole = sum(abs(pull) for pull in pulls.values())
    floored = weighting.diagnostics().get("floor_active")
    return Candidate(
        label=label,
        reads=weighting.needs,
        first=dict(zip(names, first, strict=True)),
        weights=dict(zip(names, last, strict=True)),
        shares={task: pull / whole for task, pull in pulls.items()} if whole > 0 else {},
        windows=windows,
        at_floor=() if floored is None else tuple(name for name, at in zip(names, floored.tolist(), strict=True) if at),
        note=_note(weighting, windows),
    )


def _note(weighting: OuterWeighting, windows: int | None) -> str:
    if weighting.wants_after_step:
        return "updated by the losses after each step, which were not measured: these are its initial weights"
    if weighting.learnable:
        return "learned: the optimum for these losses"
    return "" if windows is not None else "the weights were still changing at the end"


@torch.no_grad()
def _repeated(
    weighting: OuterWeighting, signals: list[Signals], deadline: float
) -> tuple[list[float], list[float], int | None]:
    """Return the weights after one pass, their means over the last pass, and the windows until these stayed."""
    count = len(signals)
    passed: list[Tensor] = []
    first: Tensor | None = None
    anchor: Tensor | None = None
    window = since = 0
    while True:
        for signal in signals:
            signal.step.fill_(window)
            passed.append(weighting(signal).clone())
            window += 1
        weighting.end_epoch()
        first = weighting.weights().detach().clone() if first is None else first
        if not weighting.moves:
            return first.tolist(), first.tolist(), 0
        late = clock.now() > deadline
        if weighting.memoryless:
            if window >= max(_DRAWS, count) or late:
                return first.tolist(), torch.stack(passed).mean(0).tolist(), 0
            continue
        mean = torch.stack(passed[-count:]).mean(0)
        # Compared with the first mean of this stretch, as slow weights change little from one pass to the next.
        near = anchor is not None and bool(((mean - anchor).abs() <= _STILL * anchor.abs()).all())
        if not near or not weighting.measures(window):
            anchor, since = mean, window
        if window >= _SHORTEST and window - since >= _STILL_FOR:
            return first.tolist(), mean.tolist(), since
        if window >= _LONGEST or late:
            return first.tolist(), mean.tolist(), None


def _learned(weighting: OuterWeighting, signals: list[Signals]) -> tuple[list[float], list[float], None]:
    """Return the weights at the start, and at the optimum of their parameters for the mean losses."""
    losses = torch.stack([torch.where(signal.active, signal.losses, torch.nan) for signal in signals]).nanmean(0)
    losses = torch.where(torch.isfinite(losses), losses, 1.0)
    first = weighting.weights().detach().clone()
    parameters = [parameter for parameter in weighting.parameters() if parameter.requires_grad]
    # Signs and not sizes of the gradients (M. Riedmiller, H. Braun, "RPROP", 1993), as losses are decades apart; and not
    # torch.optim, whose first step imports a compiler and takes seconds.
    sizes = [torch.full_like(parameter, 0.1) for parameter in parameters]
    before = [torch.zeros_like(parameter) for parameter in parameters]
    for _ in range(_LEARNING_STEPS):
        penalty = weighting.penalty()
        total = (weighting.weights() * losses).sum() + (0 if penalty is None else penalty.sum())
        gradients = torch.autograd.grad(total, parameters)
        with torch.no_grad():
            for parameter, size, last, gradient in zip(parameters, sizes, before, gradients, strict=True):
                turn = gradient.sign() * last
                size.mul_(torch.where(turn > 0, 1.2, torch.where(turn < 0, 0.5, 1.0))).clamp_(1e-8, 1.0)
                last.copy_(torch.where(turn < 0, 0.0, gradient.sign()))
                parameter.sub_(last * size)
    return first.tolist(), weighting.weights().detach().tolist(), None
