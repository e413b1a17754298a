"""Sums of what training calls did: (3, K) losses, weights and norms, and for how many calls the weights have been steady."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from mtl_axes._state import WideState, vector
from mtl_axes.signals import is_finite

__all__ = ["Call", "Tally", "dropped_in", "means_of", "steadier_calls", "sums_of"]

_STEADY_WITHIN = 0.01
_ROWS = ("loss", "weight", "norm")


class Call(NamedTuple):
    """The values of one training call. Its tensors are (K,), detached, and never written again.

    Attributes:
        losses: the task losses, 0 where a task was absent.
        labelled: True where a task had a label; None if all had one.
        weights: the weights that multiplied the losses.
        norms: gradient norms, or None if nothing was measured.
        measured: K host bools, True where the task was measured.
        lagged: True if the norms are those of the calls before, which a lagged probe collected.
    """

    losses: Tensor
    labelled: Tensor | None
    weights: Tensor
    norms: Tensor | None
    measured: tuple[bool, ...]
    lagged: bool = False


class Tally(WideState):
    """The sums of compiled calls, on the device.

    A graph that read a host counter or a list would be compiled again for each of its values. The tally is no part of any
    state.

    Attributes:
        sums: (3, K) sums of losses, weights and norms since they were last taken.
        counts: (3, K) how many values they hold.
        anchor: (K,) the weights that the latest ones are compared with.
        steady: () number of calls for which they have stayed within 1 % of the anchor.
    """

    sums: Tensor
    counts: Tensor
    anchor: Tensor
    steady: Tensor

    def bind(self, count: int, dtype: torch.dtype) -> None:
        """Allocate the sums for ``count`` tasks."""
        for name, shape, kind in (
            ("sums", (len(_ROWS), count), dtype),
            ("counts", (len(_ROWS), count), torch.int64),
            ("anchor", (count,), dtype),
            ("steady", (), torch.float32),
        ):
            self.register_buffer(name, torch.zeros(shape, dtype=kind), persistent=False)

    def add(self, call: Call) -> None:
        """Add one call that measured nothing, within a graph."""
        losses, labelled, weights = call.losses, call.labelled, call.weights
        every = torch.ones_like(losses, dtype=torch.bool)
        here = every if labelled is None else labelled
        self.sums.add_(torch.stack([torch.where(here, losses, 0.0), weights.to(losses.dtype), torch.zeros_like(losses)]))
        self.counts.add_(torch.stack([here, every, ~every]))
        anchor, steady = _steadier(weights[None], self.anchor, self.steady)
        self.anchor.copy_(anchor)
        self.steady.copy_(steady)

    def take(self) -> tuple[Tensor, Tensor]:
        """Return the sums and counts (3, K) since the last call of this method."""
        taken = self.sums.clone(), self.counts.clone()
        self.sums.zero_()
        self.counts.zero_()
        return taken


def sums_of(calls: list[Call]) -> tuple[Tensor, Tensor]:
    """Return sums and counts (3, K) of the losses, weights and norms of some calls, on the device of the last one."""
    # One device and one dtype: a run may move or widen between two calls.
    like = calls[-1].losses
    count, device = like.shape[0], like.device
    flags = {call.measured: vector(call.measured, torch.bool, device) for call in calls}
    every = vector((True,) * count, torch.bool, device)
    values = torch.stack(
        [
            _as(part, like)
            for call in calls
            for part in (call.losses, call.weights, call.losses if call.norms is None else call.norms)
        ]
    ).view(-1, len(_ROWS), count)
    counted = torch.stack(
        [
            part
            for call in calls
            for part in (every if call.labelled is None else call.labelled.to(device), every, flags[call.measured])
        ]
    ).view(-1, len(_ROWS), count)
    return torch.where(counted, values, 0.0).sum(0), counted.sum(0)


def means_of(sums: Tensor, counts: Tensor, tasks: tuple[str, ...]) -> dict[str, float]:
    """Return the means by name, ``loss/TASK`` and so on; what never happened is left out. Reads the device."""
    rows = torch.stack([sums, counts.to(sums.dtype)]).tolist()
    return {
        f"{row}/{task}": total / count
        for row, totals, numbers in zip(_ROWS, *rows, strict=True)
        for task, total, count in zip(tasks, totals, numbers, strict=True)
        if count
    }


def dropped_in(calls: list[Call], device: torch.device) -> Tensor:
    """Return in how many calls a labelled task had a loss or a norm of this very call that was not finite, (K,) int64."""
    every = torch.ones(calls[-1].losses.shape, dtype=torch.bool, device=device)
    losses = torch.stack([call.losses.to(device) for call in calls])
    norms = [call.losses if call.norms is None or call.lagged else call.norms for call in calls]
    labelled = torch.stack([every if call.labelled is None else call.labelled.to(device) for call in calls])
    finite = is_finite(losses) & is_finite(torch.stack([norm.to(device) for norm in norms]))
    return (labelled & ~finite).sum(0)


def _steadier(rows: Tensor, anchor: Tensor, steady: Tensor) -> tuple[Tensor, Tensor]:
    """Return the anchor (K,) and the number of steady calls after some more calls with the weights ``rows`` (n, K)."""
    held = ((rows - anchor).abs() <= _STEADY_WITHIN * anchor.abs()).all()
    return torch.where(held, anchor, rows[-1]), torch.where(held, steady + rows.shape[0], 0.0)


def steadier_calls(calls: list[Call], anchor: Tensor | None, steady: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return the anchor (K,) and the number of steady calls after some more calls; None stands for those before any call."""
    last = calls[-1].weights
    rows = torch.stack([_as(call.weights, last) for call in calls])
    fresh = torch.zeros((), dtype=torch.float32, device=last.device)
    return _steadier(rows, last if anchor is None else anchor.to(last), fresh if steady is None else steady.to(last.device))


def _as(values: Tensor, like: Tensor) -> Tensor:
    # A conversion that changes nothing is not free, and there are hundreds in a fold.
    return values if values.dtype is like.dtype and values.device == like.device else values.to(like)
