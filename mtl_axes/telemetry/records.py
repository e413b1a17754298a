"""The committed windows of a run: rows that come to the host in blocks, bounded in number."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from mtl_axes.options import check_number
from mtl_axes.telemetry.rows import Block, Row, Rows, beside, joined, packed, row_of

__all__ = ["Held", "Records"]


class Held(NamedTuple):
    """What the calls of a pending window share: detached, never written again.

    Attributes:
        weights: (K,) the weights that multiplied the losses.
        floored: (K,) bool, True where a floor holds the weight; None without a floor.
    """

    weights: Tensor
    floored: Tensor | None = None


class Records(nn.Module):
    """The rows of a run, saved with the state of its criterion. :class:`mtl_axes.History` shows them.

    The criterion's journal writes them now and then; whatever reads them asks it first to write what is pending.

    Args:
        every: keep every n-th window, and the last one.
        capacity: rows at most. When there are more, every second one is dropped, and every second one kept from then on.

    Attributes:
        gives_way: True if another History may replace this one.
        flush: writes the rows that the journal holds; None without a criterion.
        held: what the calls of the pending window share; None if no window is pending.
    """

    gives_way = False
    # It has no parameters, buffers or modules, and is written in every step: skip what a module does for those.
    __setattr__ = object.__setattr__  # type: ignore[assignment]

    def __init__(self, *, every: int, capacity: int) -> None:
        super().__init__()
        self.flush: Callable[[], None] | None = None
        self.every = int(check_number("every", every, low=1, integer=True))
        self.capacity = int(check_number("capacity", capacity, low=2, integer=True))
        self._begin()

    def _begin(self) -> None:
        self.tasks: tuple[str, ...] = ()
        self.skipped = 0
        self.held: Held | None = None
        self._stride = self.every
        # Windows so far; None before the first, whose number may have to be read from the device.
        self._step: int | None = None
        self._open = False
        # The last window if it lies between two that are kept.
        self._tail: Row | None = None
        self._sent: list[Block] = []
        self._pieces: list[Rows] = []
        self._count = 0
        # The last step that was logged, and the norms (K,) that were measured last until there; None if nothing was logged.
        self._logged = 0
        self._norms: Tensor | None = None

    def __len__(self) -> int:
        """Return the number of rows."""
        self._write_pending()
        return self._length()

    def _length(self) -> int:
        return self._count + (self._tail is not None)

    def _write_pending(self) -> None:
        if self.flush is not None:
            self.flush()

    def note(self, held: Held | None) -> None:
        """Take note of a training call: of what its window shares if it is pending, None if it was committed."""
        self.held, self._open = held, True

    def stepped(self, *, skipped: bool) -> None:
        """Take note that the optimizer has stepped, or that it skipped the step of the calls since the last one."""
        self.skipped += skipped and self._open
        self._open = False

    def write(self, tasks: tuple[str, ...], rows: list[Row]) -> None:
        """Add committed windows, and start their transfer to the host.

        Only the first row's ``step`` is read, from the device if windows are counted there.
        """
        self.tasks = tasks
        kept = []
        for row in rows:
            self._step = int(row.step) if self._step is None else self._step + 1
            norms, cosines = row.norms, row.cosines
            if self._tail is not None:
                # Measured since the last row that is kept, which this row replaces.
                norms, cosines = _newest(norms, self._tail.norms), _newest(cosines, self._tail.cosines)
            row = row._replace(step=self._step, norms=norms, cosines=cosines)
            if self._keeps(self._step):
                self._tail = None
                self._count += 1
                kept.append(row)
            else:
                self._tail = row
        if kept:
            self._sent.append(packed(kept))
        self._take_arrived()
        while self._length() > self.capacity:
            self._thin()

    def _keeps(self, step: int) -> bool:
        return (step - 1) % self._stride == 0

    def _thin(self) -> None:
        """Drop every second row. Waits for the device, which happens ever more rarely in a run."""
        self._stride *= 2
        rows = joined([*self._arrived(), *self._last()])
        kept = (rows.step - 1) % self._stride == 0
        between = not kept[-1]
        kept[-1] = True
        rows = rows.thinned(kept)
        self._tail = row_of(rows.at(slice(-1, None))) if between else None
        self._pieces = [rows.at(slice(-1)) if between else rows]
        self._count = len(self._pieces[0].step)

    def _take_arrived(self) -> None:
        """Take the blocks that have arrived out of pinned memory, which is scarce."""
        while self._sent and self._sent[0].there():
            self._pieces.append(self._sent.pop(0).rows())

    def _arrived(self) -> list[Rows]:
        """Return all rows but the tail on the host; waits for blocks in transfer."""
        # Outside inference mode, wherever they are read: they are joined with rows made outside of it.
        with torch.inference_mode(False), torch.no_grad():
            for block in self._sent:
                if block.arrived is not None:
                    block.arrived.synchronize()
            self._take_arrived()
        return self._pieces

    def rows(self) -> Rows:
        """Return all rows. Reads the device."""
        self._write_pending()
        pieces = self._arrived()
        if len(pieces) > 1:
            self._pieces = pieces = [joined(pieces)]
        return joined([*pieces, *self._last()])

    def latest(self) -> Rows:
        """Return the rows of the windows since the last call of this method. Reads the device."""
        self._write_pending()
        pieces = [rows for rows in self._last() if rows.step > self._logged]
        for piece in reversed(self._arrived()):
            new = piece.at(piece.step > self._logged)
            pieces.insert(0, new)
            if len(new.step) < len(piece.step):
                break
        self._logged = self._step or self._logged
        return joined(pieces)

    def means(self) -> dict[str, float]:
        """Return means of ``share/TASK``, ``cosine/A/B`` and ``floor/TASK`` over the rows since the last call; ``skipped``.

        ``criterion.log_dict()`` includes them, so that trainers log them. Reads the device.
        """
        rows = self.latest()
        if not len(rows.step):
            return {}
        means: dict[str, float] = {}
        for name, values in rows.by_name(self.tasks, self._norms).items():
            known = [value for value in values if math.isfinite(value)]
            if name.startswith(("share/", "cosine/", "floor/")) and known:
                means[name] = sum(known) / len(known)
        self._norms = rows.last_norms(self._norms)
        return {**means, "skipped": float(self.skipped)}

    def _last(self) -> Iterable[Rows]:
        if self._tail is None:
            return
        block = packed([self._tail])
        if block.arrived is not None:
            block.arrived.synchronize()
        yield block.rows()

    def __getstate__(self) -> dict[str, Any]:
        """Return what a copy or a pickle is made of. The journal of a copied criterion connects itself to its copy."""
        self._write_pending()
        self._arrived()
        return {**self.__dict__, "flush": None}

    def get_extra_state(self) -> dict[str, Any]:
        """Return the rows, the schedule, and what is known of the pending window."""
        self._write_pending()
        tail = [rows._asdict() for rows in self._last()]
        held = (
            None
            if self.held is None
            else {name: part for name, part in zip(Held._fields, self.held, strict=True) if part is not None}
        )
        return {
            "tasks": list(self.tasks),
            "rows": {name: part.clone() for name, part in joined(self._arrived())._asdict().items()},
            "tail": tail[0] if tail else None,
            "held": held,
            "every": self.every,
            "stride": self._stride,
            "skipped": self.skipped,
            "open": self._open,
        }

    def set_extra_state(self, state: dict[str, Any] | None) -> None:
        """Take over what was saved, with this object's own ``every`` and ``capacity``; None: begin anew."""
        self._begin()
        if state is None:
            return
        self.tasks = tuple(state["tasks"])
        self.skipped, self._open = state["skipped"], state["open"]
        if state["held"] is not None:
            self.held = Held(**state["held"])
        if state["every"] == self.every:
            self._stride = state["stride"]
        rows, tail = (None if kept is None else _loaded(kept) for kept in (state["rows"], state["tail"]))
        assert rows is not None
        self._pieces, self._count = [rows], len(rows.step)
        self._tail = None if tail is None else row_of(tail)
        if self._length():
            kept = rows if tail is None else joined([rows, tail])
            self._logged, self._norms = int(kept.step[-1]), kept.last_norms()
        while self._length() > self.capacity:
            self._thin()

    def extra_repr(self) -> str:
        """Return the options and the number of rows."""
        return f"every={self.every}, capacity={self.capacity}, rows={len(self)}"


def _loaded(state: dict[str, Tensor]) -> Rows:
    host = torch.device("cpu")
    return Rows(**{name: part.to(host) for name, part in state.items()})


def _newest(values: Tensor | None, before: Tensor | None) -> Tensor | None:
    """Return what was measured last; NaN stands for nothing."""
    if values is None or before is None:
        return before if values is None else values
    return torch.where(values.isnan(), beside(before, values), values)
