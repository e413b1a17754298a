"""What a weighting would do, were the losses and gradients of the batches to come again and again."""

from __future__ import annotations

import copy
import time
import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from mtl_axes.advise.facts import Candidate, Norm
from mtl_axes.advise.measuring import Observation
from mtl_axes.errors import MtlAxesError
from mtl_axes.outer import OuterWeighting
from mtl_axes.registry import resolve
from mtl_axes.signals import Signals, TaskInfo

__all__ = ["label_of", "weigh"]

# Steps after which weights that still move are shown as they are, and before which a warm-up may make them look still.
_LONGEST, _SHORTEST = 2_000, 250
_STILL, _STILL_FOR = 1e-3, 100
# Windows of a weighting without memory, whose draws are averaged.
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
    found: Observation,
    norms: tuple[Norm, ...],
    deadline: float,
) -> Candidate:
    """Return what a weighting would do on the batches, as far as it can be told before the deadline."""
    names, label = found.tasks, label_of(outer)
    nothing: dict[str, float] = {}
    weighting: OuterWeighting | None = None
    try:
        weighting = resolve("outer", copy.deepcopy(outer))
        weighting.dtype = torch.float64
        weighting.bind(infos)
        if weighting.needs != "losses" and not norms:
            note = "needs gradients, which could not be measured"
            return Candidate(label, weighting.needs, nothing, nothing, nothing, None, (), None, note)
        signals = found.signals()
        if weighting.needs != "losses":
            signals = [signal for signal, gramian in zip(signals, found.gramians, strict=True) if gramian is not None]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a training, which this is not
            if weighting.learnable:
                first, last, windows = _learned(weighting, signals)
            else:
                first, last, windows = _moved(weighting, signals, deadline)
    except MtlAxesError as error:
        reads = weighting.needs if weighting is not None else None
        return Candidate(label, reads, nothing, nothing, nothing, None, (), None, str(error))
    pulls = {norm.task: last[index] * norm.mean for index, norm in enumerate(norms) if norm.mean is not None}
    whole = sum(abs(pull) for pull in pulls.values())
    floored = weighting.diagnostics().get("floor_active")
    return Candidate(
        label=label,
        reads=weighting.needs,
        first=dict(zip(names, first, strict=True)),
        weights=dict(zip(names, last, strict=True)),
        shares={task: pull / whole for task, pull in pulls.items()} if whole > 0 else nothing,
        windows=windows,
        at_floor=tuple(name for name, flag in zip(names, floored.tolist(), strict=True) if flag)
        if floored is not None
        else (),
        cost=None,
        note=_note(weighting, windows),
    )


def _note(weighting: OuterWeighting, windows: int | None) -> str:
    if weighting.wants_after_step:
        return "moves by the losses after each step, which were not measured: the weights are those of the start"
    if weighting.learnable:
        return "learned: where its optimizer would lead were the losses to stay"
    if windows is None:
        return "the weights still moved when this ended"
    return ""


@torch.no_grad()
def _moved(
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
        if weighting.memoryless:
            if window >= max(_DRAWS, count) or time.perf_counter() > deadline:
                return first.tolist(), torch.stack(passed).mean(0).tolist(), 0
            continue
        mean = torch.stack(passed[-count:]).mean(0)
        # Held against where they were at the first of these, as slow weights move little from one pass to the next.
        near = anchor is not None and bool(((mean - anchor).abs() <= _STILL * anchor.abs()).all())
        if not near or not weighting.measures(window):
            anchor, since = mean, window
        if window >= _SHORTEST and window - since >= _STILL_FOR:
            return first.tolist(), mean.tolist(), since
        if window >= _LONGEST or time.perf_counter() > deadline:
            return first.tolist(), mean.tolist(), None


def _learned(weighting: OuterWeighting, signals: list[Signals]) -> tuple[list[float], list[float], int | None]:
    """Return the weights at the start, and where their optimizer leads while the losses stay at their means."""
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
