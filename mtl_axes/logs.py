"""Means of what a criterion reported since they were last asked for, gathered on the device without synchronising."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from mtl_axes._state import WideState, vector

__all__ = ["Call", "LossLog", "Steadiness", "Tally"]

_FOLD_AT = 64
_STEADY_WITHIN = 0.01
_ROWS = ("loss", "weight", "norm")


class Call(NamedTuple):
    """What one training call is remembered by. Its tensors are (K,), detached, and never written again.

    Attributes:
        losses: the task losses, 0 where a task was absent.
        labelled: True where a task had a label; None when all had.
        weights: the weights that multiplied them.
        norms: gradient norms, or None when nothing was measured.
        measured: K host bools, True where this call measured the task.
    """

    losses: Tensor
    labelled: Tensor | None
    weights: Tensor
    norms: Tensor | None
    measured: tuple[bool, ...]


class Tally(WideState):
    """What compiled calls leave behind, as sums on the device: a graph that read a host counter or a list would be compiled
    again for each of its values.

    No part of any state: what is saved of it is added to the counts of the host first.

    Attributes:
        windows: (), windows that compiled calls have committed.
        sums: (3, K) sums of losses, weights and norms since they were last taken.
        counts: (3, K) how many values they hold.
        anchor: (K,) the weights from which the latest ones do not stray.
        steady: () for how many calls.
    """

    windows: Tensor
    sums: Tensor
    counts: Tensor
    anchor: Tensor
    steady: Tensor

    def bind(self, count: int, dtype: torch.dtype) -> None:
        """Allocate it for ``count`` tasks."""
        for name, shape, kind in (
            ("windows", (), torch.int64),
            ("sums", (len(_ROWS), count), dtype),
            ("counts", (len(_ROWS), count), torch.int64),
            ("anchor", (count,), dtype),
            ("steady", (), torch.float32),
        ):
            self.register_buffer(name, torch.zeros(shape, dtype=kind), persistent=False)

    def add(self, call: Call) -> None:
        """Add one call that measured nothing, as a part of a graph."""
        losses, labelled, weights = call.losses, call.labelled, call.weights
        every = torch.ones_like(losses, dtype=torch.bool)
        here = every if labelled is None else labelled
        self.sums.add_(torch.stack([torch.where(here, losses, 0.0), weights.to(losses.dtype), torch.zeros_like(losses)]))
        self.counts.add_(torch.stack([here, every, ~every]))
        anchor, steady = _steadier(weights[None], self.anchor, self.steady)
        self.anchor.copy_(anchor)
        self.steady.copy_(steady)


class LossLog:
    """Running sums and counts of losses, weights and norms, (3, K) each.

    Calls are kept as they are and folded into the sums now and then: appending costs no kernel.
    """

    def __init__(self) -> None:
        self._calls: list[Call] = []
        self._sum: Tensor | None = None
        self._count: Tensor | None = None

    def add(self, call: Call) -> None:
        """Add one call."""
        self._calls.append(call)
        if len(self._calls) >= _FOLD_AT:
            self._fold()

    def _fold(self) -> None:
        if not self._calls:
            return
        # One device and one dtype: a run may move or widen between two calls of drain.
        like = self._calls[-1][0]
        count, device = like.shape[0], like.device
        flags = {call.measured: vector(call.measured, torch.bool, device) for call in self._calls}
        every = vector((True,) * count, torch.bool, device)
        values = torch.stack(
            [
                _as(part, like)
                for call in self._calls
                for part in (call.losses, call.weights, call.losses if call.norms is None else call.norms)
            ]
        ).view(-1, len(_ROWS), count)
        counted = torch.stack(
            [
                part
                for call in self._calls
                for part in (
                    every if call.labelled is None else call.labelled.to(device),
                    every,
                    flags[call.measured],
                )
            ]
        ).view(-1, len(_ROWS), count)
        self._calls = []
        self._add_sums(torch.where(counted, values, 0.0).sum(0), counted.sum(0))

    def _add_sums(self, total: Tensor, counts: Tensor) -> None:
        if self._sum is not None and self._count is not None:
            total, counts = total + self._sum.to(total.device), counts + self._count.to(counts.device)
        self._sum, self._count = total, counts

    def drain(self, names: tuple[str, ...], tally: Tally | None) -> dict[str, float]:
        """Return the means by name, those of a tally included, and begin anew. Reads the device once."""
        self._fold()
        if tally is not None:
            self._add_sums(tally.sums.clone(), tally.counts.clone())
            tally.sums.zero_()
            tally.counts.zero_()
        if self._sum is None or self._count is None:
            return {}
        rows = torch.stack([self._sum, self._count.to(self._sum.dtype)]).tolist()
        self._sum = self._count = None
        return {
            f"{row}/{name}": total / count
            for row, totals, counts in zip(_ROWS, *rows, strict=True)
            for name, total, count in zip(names, totals, counts, strict=True)
            if count
        }


class Steadiness:
    """For how many calls the weights have stayed within 1 % of each other, kept on the device and read when asked for."""

    def __init__(self) -> None:
        self._calls: list[Tensor] = []
        self._anchor: Tensor | None = None
        self._steady: Tensor | None = None

    def add(self, weights: Tensor) -> None:
        """Add the weights (K,) of one call, detached."""
        self._calls.append(weights)
        if len(self._calls) >= _FOLD_AT:
            self._fold()

    def _fold(self) -> None:
        if not self._calls:
            return
        last = self._calls[-1]
        rows = torch.stack([_as(weights, last) for weights in self._calls])
        anchor = last if self._anchor is None else self._anchor.to(last)
        steady = (
            torch.zeros((), dtype=torch.float32, device=last.device)
            if self._steady is None
            else self._steady.to(last.device)
        )
        self._anchor, self._steady = _steadier(rows, anchor, steady)
        self._calls = []

    def calls(self, tally: Tally | None) -> int:
        """Return the number of calls, in whole blocks of 64 and what has come since; those of a tally where there is one.

        Reads the device.
        """
        if tally is not None:
            return int(tally.steady)
        self._fold()
        return 0 if self._steady is None else int(self._steady)


def _steadier(rows: Tensor, anchor: Tensor, steady: Tensor) -> tuple[Tensor, Tensor]:
    """Return the anchor and the number of steady calls after the weights of some more, in rows."""
    held = ((rows - anchor).abs() <= _STEADY_WITHIN * anchor.abs()).all()
    return torch.where(held, anchor, rows[-1]), torch.where(held, steady + rows.shape[0], 0.0)


def _as(values: Tensor, like: Tensor) -> Tensor:
    # A conversion that changes nothing is not free, and there are hundreds in a fold.
    return values if values.dtype is like.dtype and values.device == like.device else values.to(like)
