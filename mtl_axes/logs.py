"""Means of what a criterion reported since they were last asked for, gathered on the device without synchronising."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from mtl_axes._state import vector

__all__ = ["Call", "LossLog", "Steadiness"]

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
        total = torch.where(counted, values, 0.0).sum(0)
        counts = counted.sum(0)
        if self._sum is not None and self._count is not None:
            total, counts = total + self._sum.to(total.device), counts + self._count.to(counts.device)
        self._sum, self._count, self._calls = total, counts, []

    def drain(self, names: tuple[str, ...]) -> dict[str, float]:
        """Return the means by name, and begin anew. Reads the device once."""
        self._fold()
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
        steady = torch.zeros((), device=last.device) if self._steady is None else self._steady.to(last.device)
        held = ((rows - anchor).abs() <= _STEADY_WITHIN * anchor.abs()).all()
        self._steady = torch.where(held, steady + len(rows), 0.0)
        self._anchor = torch.where(held, anchor, last)
        self._calls = []

    def calls(self) -> int:
        """Return the number of calls, in whole blocks of 64 and what has come since. Reads the device."""
        self._fold()
        return 0 if self._steady is None else int(self._steady)


def _as(values: Tensor, like: Tensor) -> Tensor:
    # A conversion that changes nothing is not free, and there are hundreds in a fold.
    return values if values.dtype is like.dtype and values.device == like.device else values.to(like)
