"""What a criterion did over the steps of a run: losses, weights, gradient norms, shares, conflicts, floors, skipped steps."""

from __future__ import annotations

import csv
import io
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from mtl_axes._state import vector
from mtl_axes.criterion import MultiTaskCriterion
from mtl_axes.errors import DataError, OptionError
from mtl_axes.logs import Recorder, Seen

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["History"]

# Rows that wait on the device until they come to the host in one transfer.
_BLOCK = 64


class _Block(NamedTuple):
    """Rows that are on the host, or on their way there until ``arrived``.

    Attributes:
        head: (n, 2) float64: step, and optimizer steps skipped before it.
        body: (n, 5K + K^2) float64: losses, weights, norms, floored, dropped, cosines; NaN where there is none.
        arrived: None once it is there.
    """

    head: Tensor
    body: Tensor
    arrived: torch.cuda.Event | None = None


class History(Recorder):
    """Records what a criterion does, step by step, without waiting for the device.

    Attached to a criterion when it is made, and a part of its state from then on: ``criterion.state_dict()`` holds the rows, a
    resumed run goes on with them, in whatever order the state is loaded and the history attached. Nothing is recorded in
    ``eval()``, without gradients, within ``hold()`` and ``after_step()``.

    A row is a training call; of several calls between two optimizer steps each has a row, with one value of ``step``. Values are
    kept where the losses are, and come to the host in one transfer for 64 rows, asynchronously on a GPU. Of ``capacity`` rows
    every second is dropped and from then on every second step recorded, so that memory is bounded and the whole run is seen. On
    several ranks every rank has its own: the weights are the same, the losses those of its samples. A criterion that
    torch.compile traces leaves the graph for it.

    Args:
        criterion: from ``compose``.
        every: record every n-th step.
        capacity: rows at most, 2 or more.

    Raises:
        OptionError: ``every`` or ``capacity`` is out of range, or the criterion has a history.

    >>> import torch
    >>> from mtl_axes import compose
    >>> criterion = compose("dwa", "mse", tasks=["a", "b"])
    >>> history = History(criterion)
    >>> for scale in (2.0, 1.0):
    ...     x = torch.full((4,), scale, requires_grad=True)
    ...     _ = criterion({"a": x, "b": 3 * x}, {"a": torch.zeros(4) + 0.5, "b": torch.zeros(4)})
    >>> history.columns()["loss/b"]
    [36.0, 9.0]
    """

    def __init__(self, criterion: MultiTaskCriterion, every: int = 1, *, capacity: int = 10_000) -> None:
        super().__init__()
        if not isinstance(every, int) or every < 1:
            raise OptionError(f"`every` should be a whole number of steps, 1 or more. Found {every!r}.")
        if not isinstance(capacity, int) or capacity < 2:
            raise OptionError(f"`capacity` should be a whole number of rows, 2 or more. Found {capacity!r}.")
        self.every, self.capacity = every, capacity
        self._tasks: tuple[str, ...] = ()
        self._stride = every
        # On the device; and on the host, or on their way there.
        self._seen: list[tuple[int, int, Seen]] = []
        self._blocks: list[_Block] = []
        self._count = 0
        criterion.record(self)

    def __len__(self) -> int:
        """Return the number of rows."""
        return self._count

    def __getstate__(self) -> dict[str, Any]:
        """Return what a copy or a pickle is made of: nothing of it is on its way."""
        self._settle()
        return self.__dict__.copy()

    def wants(self, step: int, /) -> bool:
        """Return whether calls of this step, counted from 1, are recorded."""
        return (step - 1) % self._stride == 0

    def see(self, tasks: tuple[str, ...], step: int, seen: Seen, /) -> None:
        """Add a call. The criterion calls it."""
        self._tasks = tasks
        self._seen.append((step, self.skipped, seen))
        self._count += 1
        if self._count > self.capacity:
            self._thin()
        elif len(self._seen) >= _BLOCK:
            self._send()

    def _send(self) -> None:
        """Bring what waits on the device on its way to the host, in one transfer."""
        if not self._seen:
            return
        seen, self._seen = self._seen, []
        head = torch.tensor([(step, skipped) for step, skipped, _ in seen], dtype=torch.float64)
        like = seen[-1][2].call.losses
        body = torch.stack([_row(each, like) for _, _, each in seen]).double()
        if not body.is_cuda:
            self._blocks.append(_Block(head, body.cpu()))
            return
        target = torch.empty(body.shape, dtype=body.dtype, pin_memory=True)
        target.copy_(body, non_blocking=True)
        arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]
        arrived.record()
        self._blocks.append(_Block(head, target, arrived))

    def _settle(self) -> _Block:
        """Return all rows as one block on the host; waits for those that are on their way."""
        self._send()
        if len(self._blocks) > 1 or (self._blocks and self._blocks[0].arrived is not None):
            for block in self._blocks:
                if block.arrived is not None:
                    block.arrived.synchronize()
            self._blocks = [
                _Block(torch.cat([block.head for block in self._blocks]), torch.cat([block.body for block in self._blocks]))
            ]
        return self._blocks[0] if self._blocks else _Block(torch.empty(0, 2), torch.empty(0, 0))

    def _thin(self) -> None:
        """Keep the rows of every second recorded step, until there are few enough."""
        rows = self._settle()
        while self._count > self.capacity:
            self._stride *= 2
            kept = (rows.head[:, 0] - 1) % self._stride == 0
            rows = _Block(rows.head[kept], rows.body[kept])
            if kept.all():  # calls of one step, as of a window that nobody commits
                kept[: self._count // 2] = False
            rows = _Block(rows.head[kept], rows.body[kept])
            self._count = rows.head.shape[0]
        self._blocks = [rows]

    def get_extra_state(self) -> dict[str, Any]:
        """Return the rows and the schedule."""
        rows = self._settle()
        return {
            "tasks": list(self._tasks),
            "head": rows.head.clone(),
            "body": rows.body.clone(),
            "every": self.every,
            "stride": self._stride,
            "skipped": self.skipped,
        }

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Become the history that was saved; from here on with the ``every`` of this one, if they differ."""
        self._tasks = tuple(state["tasks"])
        self._seen, self._blocks = [], [_Block(state["head"].cpu(), state["body"].cpu())]
        self._count, self.skipped = len(state["head"]), state["skipped"]
        self._stride = state["stride"] if state["every"] == self.every else self.every
        if self._count > self.capacity:
            self._thin()

    def columns(self) -> dict[str, list[float | None]]:
        """Return the rows by column; None where a value was not measured. Reads the device.

        Returns:
            ``step`` (committed windows; from 1 where a call commits its own), ``loss/TASK``, ``weight/TASK``, ``norm/TASK``,
            ``share/TASK`` (lambda_i n_i / sum_j lambda_j n_j, from the norms last measured), ``cosine/A/B``, ``floor/TASK`` (1
            where a floor holds the weight), ``dropped/TASK`` (calls so far whose value was not finite), ``skipped`` (optimizer
            steps skipped so far). A column that nothing was ever measured of is left out.
        """
        rows = self._settle()
        count = len(self._tasks)
        table: dict[str, Tensor] = {"step": rows.head[:, 0]}
        if count and self._count:
            losses, weights, norms, floored, dropped, cosines = torch.split(rows.body, [count] * 5 + [count * count], dim=1)
            pulls = weights.abs() * _carried(norms)
            shares = pulls / pulls.sum(1, keepdim=True)
            for kind, values in (
                ("loss", losses),
                ("weight", weights),
                ("norm", norms),
                ("share", shares),
                ("floor", floored),
                ("dropped", dropped),
            ):
                table |= {f"{kind}/{task}": values[:, at] for at, task in enumerate(self._tasks)}
            for first, one in enumerate(self._tasks):
                for second in range(first + 1, count):
                    table[f"cosine/{one}/{self._tasks[second]}"] = cosines[:, first * count + second]
        table["skipped"] = rows.head[:, 1]
        return {
            name: [None if math.isnan(value) else value for value in values.tolist()]
            for name, values in table.items()
            if not len(values) or not values.isnan().all()
        }

    def to_csv(self, path: str | Path) -> Path:
        """Write :meth:`columns` as a table with a heading; empty where a value was not measured. Returns the path."""
        columns = self.columns()
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        with target.open("w", encoding="utf-8", newline="") as stream:
            writer = csv.writer(stream, lineterminator="\n")
            writer.writerow(columns)
            writer.writerows(zip(*columns.values(), strict=True))
        return target

    def plot(self, path: str | Path | None = None) -> Figure:
        """Draw weights (dotted where a floor holds them), losses, norms, shares and conflicts over the steps.

        Args:
            path: where to write the picture, as PNG, SVG or PDF by its ending. None: nowhere.

        Raises:
            DataError: nothing has been recorded.
            ModuleNotFoundError: matplotlib is not installed.
        """
        from mtl_axes.history_plot import draw

        columns = self.columns()
        if not self._count:
            raise DataError(
                "A history should have rows before it is drawn. Found none: call the criterion in training mode."
            )
        figure = draw(self._tasks, columns)
        if path is not None:
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            figure.savefig(path, dpi=130)
        return figure

    def _repr_png_(self) -> bytes | None:
        """Show itself in a notebook."""
        if not self._count:
            return None
        stream = io.BytesIO()
        self.plot().savefig(stream, format="png", dpi=100)
        return stream.getvalue()

    def extra_repr(self) -> str:
        """Return the options and the number of rows."""
        return f"every={self.every}, capacity={self.capacity}, rows={self._count}"


def _row(seen: Seen, like: Tensor) -> Tensor:
    """Return one row (5K + K^2,) on the device of ``like``."""
    call, count = seen.call, like.shape[0]
    nothing = torch.full_like(like, math.nan)
    losses = call.losses if call.labelled is None else torch.where(call.labelled, call.losses, math.nan)
    norms = nothing
    if call.norms is not None:
        norms = torch.where(vector(call.measured, torch.bool, call.norms.device), call.norms, math.nan)
    cosines = torch.full((count * count,), math.nan, device=like.device) if seen.cosines is None else seen.cosines.flatten()
    parts = (losses, call.weights, norms, nothing if seen.floored is None else seen.floored, seen.dropped, cosines)
    return torch.cat([part.to(like) for part in parts])


def _carried(values: Tensor) -> Tensor:
    """Return values (n, K) with each gap filled by what was there last."""
    known = ~values.isnan()
    places = torch.where(known, torch.arange(len(values))[:, None], 0).cummax(0).values
    return values.gather(0, places)
