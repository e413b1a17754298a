"""What a criterion tells of its windows to: rows on the device, brought to the host in blocks, bounded in number."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from mtl_axes.options import check_number
from mtl_axes.rows import Block, Row, Rows, beside, joined, packed, row_of

__all__ = ["Held", "Records"]

# Rows that wait on the device until they come to the host in one transfer.
_BLOCK = 64


class Held(NamedTuple):
    """What the calls of a window share, of which the window tells when it is committed: detached, never written again.

    Attributes:
        weights: (K,) the weights that multiplied the losses.
        floored: (K,) bool, True where a floor holds the weight; None without a floor.
    """

    weights: Tensor
    floored: Tensor | None = None


class Records(nn.Module):
    """What a criterion tells of its windows to, and saves with its own state. :class:`mtl_axes.History` shows it.

    Args:
        every: keep every n-th window, and the last one.
        capacity: rows at most. When there are more, every second one is dropped, and every second one kept from then on.

    Attributes:
        gives_way: True where another may take its place, of a criterion that has one only in case that nobody asks for it.
    """

    gives_way = False
    # It has no parameters, buffers or modules, and is written in every step: past what a module does for those.
    __setattr__ = object.__setattr__  # type: ignore[assignment]

    def __init__(self, *, every: int, capacity: int) -> None:
        super().__init__()
        self.every = int(check_number("every", every, low=1, integer=True))
        self.capacity = int(check_number("capacity", capacity, low=2, integer=True))
        self._begin()

    def _begin(self) -> None:
        self.tasks: tuple[str, ...] = ()
        self.skipped = 0
        self.held: Held | None = None
        self._stride = self.every
        # Windows so far; None before one is seen, whose number may have to be read from the device.
        self._step: int | None = None
        self._open = False
        # The last window where it is between two that are kept.
        self._tail: Row | None = None
        self._seen: list[Row] = []
        self._sent: list[Block] = []
        self._pieces: list[Rows] = []
        self._count = 0
        # What is told of, and the norms (K,) that were measured last until there; None where no row is told of.
        self._told = 0
        self._norms: Tensor | None = None

    def __len__(self) -> int:
        """Return the number of rows."""
        return self._count + (self._tail is not None)

    def note(self, held: Held) -> None:
        """Take note of a call whose window is committed later."""
        self.held, self._open = held, True

    def stepped(self, *, skipped: bool) -> None:
        """Take note that the optimizer has stepped, or that the step of the calls since the last one was skipped."""
        self.skipped += skipped and self._open
        self._open = False

    def add(
        self,
        tasks: tuple[str, ...],
        step: int | Tensor,
        held: Held,
        losses: Tensor,
        labelled: Tensor | None,
        norms: Tensor | None,
        cosines: Tensor | None,
    ) -> None:
        """Add a window that is committed.

        Args:
            tasks: names of the K tasks.
            step: windows committed so far, with this one; read where the device counts them, and only for the first one.
            held: what its calls shared.
            losses: (K,)
            labelled: (K,) bool, False where a loss is none. None: all are.
            norms: (K,) NaN where not measured, or None.
            cosines: (K, K) or None.
        """
        self.tasks, self.held, self._open = tasks, None, True
        self._step = int(step) if self._step is None else self._step + 1
        before = self._tail
        if before is not None:
            # Measured since the last row that is kept, for which this one stands.
            norms, cosines = _newest(norms, before.norms), _newest(cosines, before.cosines)
        row = Row(self._step, self.skipped, losses, held.weights, labelled, norms, held.floored, cosines)
        if not self._keeps(row.step):
            self._tail = row
        else:
            self._tail = None
            self._seen.append(row)
            self._count += 1
        while len(self) > self.capacity:
            self._thin()
        if len(self._seen) >= _BLOCK:
            self._send()

    def _keeps(self, step: int) -> bool:
        return (step - 1) % self._stride == 0

    def _thin(self) -> None:
        """Drop every second row. Waits for the device, which in a whole run it does a few times: ever more rarely."""
        self._stride *= 2
        self._take(self.rows())

    def _take(self, rows: Rows) -> None:
        """Have what the stride leaves of these rows, and the last one."""
        kept = (rows.step - 1) % self._stride == 0
        between = not kept[-1]
        kept[-1] = True
        rows = rows.thinned(kept)
        self._tail = row_of(rows.at(slice(-1, None))) if between else None
        self._pieces = [rows.at(slice(-1)) if between else rows]
        self._count = len(self._pieces[0].step)

    def _send(self) -> None:
        """Bring the rows on the device on their way to the host, in one transfer."""
        if self._seen:
            block = packed(self._seen)
            self._seen = []
            self._sent.append(block)
        # Out of pinned memory, which is scarce, what has come by now.
        while self._sent and self._sent[0].there():
            self._pieces.append(self._sent.pop(0).rows())

    def _settle(self) -> list[Rows]:
        """Return all rows but the tail on the host; waits for those that are on their way."""
        # Outside inference mode, wherever it is read: rows are put together with others outside of it.
        with torch.inference_mode(False), torch.no_grad():
            self._send()
            for block in self._sent:
                assert block.arrived is not None
                block.arrived.synchronize()
            self._send()
        return self._pieces

    def rows(self) -> Rows:
        """Return all rows. Reads the device."""
        pieces = self._settle()
        if len(pieces) > 1:
            self._pieces = pieces = [joined(pieces)]
        return joined([*pieces, *self._last()])

    def latest(self) -> Rows:
        """Return the rows of the windows since the last call of it. Reads the device."""
        pieces = [rows for rows in self._last() if rows.step > self._told]
        for piece in reversed(self._settle()):
            new = piece.at(piece.step > self._told)
            pieces.insert(0, new)
            if len(new.step) < len(piece.step):
                break
        self._told = self._step or self._told
        return joined(pieces)

    def news(self) -> dict[str, float]:
        """Return means of ``share/TASK``, ``cosine/A/B`` and ``floor/TASK`` over the rows since the last call; ``skipped``.

        ``criterion.log_dict()`` asks for it, so that trainers log it. Reads the device.
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
        """Return what a copy or a pickle is made of: nothing of it is on its way."""
        self._settle()
        return self.__dict__.copy()

    def get_extra_state(self) -> dict[str, Any]:
        """Return the rows, the schedule, and what is known of the window that is pending."""
        tail = [rows._asdict() for rows in self._last()]
        self._settle()
        held = (
            None
            if self.held is None
            else {name: part for name, part in zip(Held._fields, self.held, strict=True) if part is not None}
        )
        return {
            "tasks": list(self.tasks),
            "rows": {name: part.clone() for name, part in joined(self._pieces)._asdict().items()},
            "tail": tail[0] if tail else None,
            "held": held,
            "every": self.every,
            "stride": self._stride,
            "skipped": self.skipped,
            "open": self._open,
        }

    def set_extra_state(self, state: dict[str, Any] | None) -> None:
        """Become what was saved, from here on with the ``every`` and ``capacity`` of this one; None: begin anew."""
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
        if len(self):
            kept = rows if tail is None else joined([rows, tail])
            self._told, self._norms = int(kept.step[-1]), kept.last_norms()
        while len(self) > self.capacity:
            self._thin()

    def extra_repr(self) -> str:
        """Return the options and the number of rows."""
        return f"every={self.every}, capacity={self.capacity}, rows={len(self)}"


def _loaded(state: dict[str, Tensor]) -> Rows:
    host = torch.device("cpu")
    return Rows(**{name: part.to(host) for name, part in state.items()})


def _newest(values: Tensor | None, before: Tensor | None) -> Tensor | None:
    """Return what was measured last, NaN being nothing."""
    if values is None or before is None:
        return before if values is None else values
    return torch.where(values.isnan(), beside(before, values), values)
