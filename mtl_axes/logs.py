"""Means of what a criterion reported since they were last asked for, gathered on the device without synchronising."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["LossLog", "Steadiness"]

_FOLD_AT = 64
_STEADY_WITHIN = 0.01
_ROWS = ("loss", "weight", "norm")


class LossLog:
    """Running sums and counts of losses, weights and norms, (3, K) each.

    Calls are kept as they are and folded into the sums now and then: appending costs no kernel.
    """

    def __init__(self) -> None:
        self._calls: list[tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor]] = []
        self._sum: Tensor | None = None
        self._count: Tensor | None = None

    def add(self, losses: Tensor, labelled: Tensor, weights: Tensor, norms: Tensor | None, measured: Tensor) -> None:
        """Add one call; every argument is (K,) and detached."""
        self._calls.append((losses, labelled, weights, norms, measured))
        if len(self._calls) >= _FOLD_AT:
            self._fold()

    def _fold(self) -> None:
        if not self._calls:
            return
        # One device and one dtype: a run may move or widen between two calls of drain.
        like = self._calls[-1][0]
        values = torch.stack(
            [
                part.to(like)
                for losses, _, weights, norms, _ in self._calls
                for part in (losses, weights, losses if norms is None else norms)
            ]
        ).view(-1, len(_ROWS), like.shape[0])
        counted = torch.stack(
            [
                part.to(like.device)
                for _, labelled, _, _, measured in self._calls
                for part in (labelled, torch.ones_like(labelled), measured)
            ]
        ).view(-1, len(_ROWS), like.shape[0])
        total = torch.where(counted, values, 0.0).sum(0)
        count = counted.sum(0)
        if self._sum is not None and self._count is not None:
            total, count = total + self._sum.to(total.device), count + self._count.to(count.device)
        self._sum, self._count, self._calls = total, count, []

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
        rows = torch.stack([weights.to(last) for weights in self._calls])
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
