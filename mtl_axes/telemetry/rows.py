"""Committed windows as rows: on the device, in transfer to the host, and there."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["Block", "Row", "Rows", "beside", "joined", "packed", "row_of"]

# The parts of a row, each (K,) except the cosines (K, K); and their places among the values of a row on the host.
_PARTS = ("losses", "weights", "labelled", "norms", "floored", "cosines")
_LOSS, _WEIGHT, _NORM, _FLOOR = range(4)


class Row(NamedTuple):
    """A committed window, on the device. Its tensors are detached and never written again.

    Attributes:
        step: its number, counted from 1; a tensor if windows are counted on the device.
        skipped: windows that were skipped before it.
        losses: (K,)
        weights: (K,)
        labelled: (K,) bool, False where the loss is none; None if all are losses.
        norms: (K,) NaN where not measured, or None.
        floored: (K,) bool or None.
        cosines: (K, K) or None.
    """

    step: int | Tensor
    skipped: int
    losses: Tensor
    weights: Tensor
    labelled: Tensor | None
    norms: Tensor | None
    floored: Tensor | None
    cosines: Tensor | None


class Rows(NamedTuple):
    """Committed windows, on the host.

    Attributes:
        step: (n,) int64
        skipped: (n,) int64
        values: (n, 4, K) losses, weights, norms, and 1 or 0 for a floor that holds the weight or does not; NaN if missing.
        cosines: (n, K (K - 1) / 2) for each pair of tasks, or (n, 0) where none were ever measured.
    """

    step: Tensor
    skipped: Tensor
    values: Tensor
    cosines: Tensor

    def at(self, kept: Tensor | slice) -> Rows:
        """Return some of them."""
        return Rows(*(part[kept] for part in self))

    def thinned(self, kept: Tensor) -> Rows:
        """Return the rows that are kept (n,), with the norms and cosines measured last since the kept row before."""
        places = kept.nonzero().flatten()
        before = torch.cat([torch.tensor([-1]), places[:-1]])[:, None]

        def newest(values: Tensor) -> Tensor:
            latest = torch.where(values.isnan(), -1, torch.arange(len(values))[:, None]).cummax(0).values[places]
            return torch.where(latest > before, values.gather(0, latest.clamp_min(0)), math.nan)

        values = self.values[kept]
        values[:, _NORM] = newest(self.values[:, _NORM])
        return Rows(self.step[kept], self.skipped[kept], values, newest(self.cosines))

    def last_norms(self, before: Tensor | None = None) -> Tensor:
        """Return the norms (K,) that were measured last; ``before`` for tasks that these rows have not measured."""
        return _carried(self.values[:, _NORM], before)[-1]

    def by_name(self, tasks: tuple[str, ...], before: Tensor | None = None) -> dict[str, list[float]]:
        """Return the columns of :meth:`mtl_axes.History.columns`, not finite where there is no value.

        Args:
            tasks: their names.
            before: (K,) norms that were measured last before these rows, for shares where tasks are measured in turn.
        """
        table = {"step": self.step}
        losses, weights, norms, floored = self.values.unbind(1)
        for kind, values in (
            ("loss", losses),
            ("weight", weights),
            ("norm", norms),
            ("share", _shares(losses, weights, norms, before)),
            ("floor", floored),
        ):
            table |= {f"{kind}/{task}": column for task, column in zip(tasks, values.unbind(1), strict=True)}
        pairs = [f"cosine/{one}/{other}" for at, one in enumerate(tasks) for other in tasks[at + 1 :]]
        # No columns at all where none were measured.
        table |= dict(zip(pairs, self.cosines.unbind(1), strict=False))
        table["skipped"] = self.skipped
        return {name: column.tolist() for name, column in table.items() if not len(column) or column.isfinite().any()}


class Block(NamedTuple):
    """Rows in transfer to the host.

    Attributes:
        step: of each row.
        skipped: of each row.
        places: for each of ``_PARTS``, which rows have it.
        flat: the parts one after the other.
        tasks: the number of tasks.
        arrived: the event that ends the transfer; None if there is nothing to wait for.
    """

    step: list[int]
    skipped: list[int]
    places: list[list[int]]
    flat: Tensor
    tasks: int
    arrived: torch.cuda.Event | None

    def there(self) -> bool:
        """Return whether the rows have arrived, without waiting."""
        return self.arrived is None or bool(self.arrived.query())  # type: ignore[no-untyped-call]

    def rows(self) -> Rows:
        """Return the rows, once they have arrived."""
        total, count, flat = len(self.step), self.tasks, self.flat
        widths = [count * count if name == "cosines" else count for name in _PARTS]
        parts = torch.split(flat, [len(places) * width for places, width in zip(self.places, widths, strict=True)])
        losses, weights, labelled, norms, floored, cosines = (
            part.view(len(places), width) for part, places, width in zip(parts, self.places, widths, strict=True)
        )
        of_labelled, of_norms, of_floored, of_cosines = self.places[2:]
        values = flat.new_full((total, 4, count), math.nan)
        values[:, _LOSS], values[:, _WEIGHT] = losses, weights
        values[of_labelled, _LOSS] = torch.where(labelled > 0, losses[of_labelled], math.nan)
        values[of_norms, _NORM], values[of_floored, _FLOOR] = norms, floored
        first, second = torch.triu_indices(count, count, 1)
        pairs = flat.new_full((total, len(first) if of_cosines else 0), math.nan)
        if of_cosines:
            pairs[of_cosines] = cosines.view(-1, count, count)[:, first, second]
        return Rows(torch.tensor(self.step), torch.tensor(self.skipped), values, pairs)


def packed(rows: list[Row]) -> Block:
    """Start the transfer of rows to the host; return the block."""
    like, host = rows[-1].losses, torch.device("cpu")
    places = [[at for at, row in enumerate(rows) if getattr(row, name) is not None] for name in _PARTS]
    parts = [
        torch.stack([beside(getattr(rows[at], name), like) for at in having]).flatten().to(like.dtype)
        for name, having in zip(_PARTS, places, strict=True)
        if having
    ]
    flat, arrived = torch.cat(parts), None
    if flat.is_cuda:
        target = torch.empty(flat.shape, dtype=flat.dtype, pin_memory=True)
        target.copy_(flat, non_blocking=True)
        arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]
        arrived.record(torch.cuda.current_stream(flat.device))
        flat = target
    return Block(
        [int(row.step) for row in rows], [row.skipped for row in rows], places, flat.to(host), like.shape[0], arrived
    )


def beside(part: Tensor, like: Tensor) -> Tensor:
    """Return a part on the device and in the dtype of ``like``; flags stay bool. A run may move or widen between windows."""
    dtype = like.dtype if part.is_floating_point() else part.dtype
    # A conversion that changes nothing is not free.
    return part if part.device == like.device and part.dtype is dtype else part.to(like.device, dtype)


def row_of(rows: Rows) -> Row:
    """Return a single row in the form that it has on the device."""
    losses, weights, norms, floored = rows.values[0]
    count = len(losses)
    cosines = None
    if rows.cosines.shape[1]:
        cosines = losses.new_full((count, count), math.nan)
        first, second = torch.triu_indices(count, count, 1)
        cosines[first, second] = rows.cosines[0]
    held = None if floored.isnan().any() else floored > 0
    return Row(int(rows.step), int(rows.skipped), losses, weights, None, norms, held, cosines)


def joined(pieces: list[Rows]) -> Rows:
    """Return rows one after the other, with as many cosines as any of them has."""
    pieces = [piece for piece in pieces if len(piece.step)]
    if len(pieces) == 1:
        return pieces[0]
    if not pieces:
        nothing = torch.empty(0, dtype=torch.int64)
        return Rows(nothing, nothing, torch.empty(0, 4, 0), torch.empty(0, 0))
    width = max(piece.cosines.shape[1] for piece in pieces)
    cosines = [
        piece.cosines if piece.cosines.shape[1] == width else piece.values.new_full((len(piece.step), width), math.nan)
        for piece in pieces
    ]
    step, skipped, values = (torch.cat(parts) for parts in list(zip(*pieces, strict=True))[:3])
    return Rows(step, skipped, values, torch.cat(cosines))


def _shares(losses: Tensor, weights: Tensor, norms: Tensor, before: Tensor | None) -> Tensor:
    """Return each task's share of the weighted norms, (n, K); NaN in rows that measured none."""
    here = ~losses.isnan()
    pulls = torch.where(here, weights.abs() * _carried(norms, before), 0.0)
    shares = pulls / pulls.sum(1, keepdim=True)
    return torch.where(here & ~norms.isnan().all(1, keepdim=True), shares, math.nan)


def _carried(values: Tensor, before: Tensor | None) -> Tensor:
    """Return values (n, K) with each gap filled by the last value above it, at first by ``before`` (K,)."""
    if before is not None:
        return _carried(torch.cat([before[None], values]), None)[1:]
    known = ~values.isnan()
    places = torch.where(known, torch.arange(len(values))[:, None], 0).cummax(0).values
    return values.gather(0, places)
