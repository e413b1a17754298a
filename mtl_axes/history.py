"""The history of a criterion: losses, weights, gradient norms, conflicts, floors and skipped windows, by step."""

from __future__ import annotations

import csv
import io
import math
from pathlib import Path
from typing import TYPE_CHECKING

from mtl_axes.criterion import MultiTaskCriterion
from mtl_axes.errors import DataError, OptionError
from mtl_axes.telemetry.records import Records

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["History"]


class History(Records):
    """The history of a criterion: what it does in each window, recorded almost without waiting for the device.

    A row is a committed window, and ``step`` is its number, as in ``criterion.report``. With ``accumulate=1`` and a probe of
    the same step, a window is a training call. Otherwise it is the calls between two optimizer steps, with means over them,
    and is recorded when the next call or ``criterion.step()`` commits it. Nothing is recorded in ``eval()``, without
    gradients, and within ``hold()`` and ``after_step()``. Windows dropped by ``criterion.step(skipped=True)`` have no row
    but are counted.

    Values stay on the device until there are 64 rows and are then copied to the host together; on CUDA the copy is
    asynchronous, so the run does not wait. If there are more than ``capacity`` rows, every second one is dropped, for which
    the run waits once, and from then on only every second window is recorded, so the rows span the whole run. The last
    window is always included. A norm or a cosine of a window that is not recorded is in the next row, unless there is a
    newer one.

    The history becomes a part of the criterion: of its ``state_dict()``, its copies and its pickles. A resumed run has one
    history, whether the state is loaded before or after this object is made. A state with a history can be loaded into a
    criterion without one, and a state without into a criterion with one, whose history then starts again.

    On several ranks each has its own, and none waits for another. Weights and floors are the same on all of them. Losses,
    norms and cosines are from the rank's own samples, except with ``sync="gradients"``, where they are from the whole batch.

    Inside a region compiled by torch.compile, a training call runs in Python, behind a graph break. With ``fullgraph=True``
    this is an error: compile only the model, and call the criterion outside.

    Args:
        criterion: from :func:`mtl_axes.compose`, at any time; also wrapped by torch.compile.
        every: record every n-th window, 1 or more.
        capacity: maximum number of rows, 2 or more.

    Raises:
        OptionError: an option is out of range, ``criterion`` is not a criterion, or it has a history already.

    >>> import torch
    >>> from mtl_axes import compose
    >>> criterion = compose("fixed", tasks=["a", "b"])
    >>> history = History(criterion)
    >>> for scale in (1.0, 0.5):
    ...     x = torch.tensor(scale, requires_grad=True)
    ...     criterion.combine({"a": x.square(), "b": 3 * x}).backward()
    >>> history.columns()["loss/b"]
    [3.0, 1.5]
    """

    def __init__(self, criterion: MultiTaskCriterion, every: int = 1, *, capacity: int = 10_000) -> None:
        super().__init__(every=every, capacity=capacity)
        # torch.compile wraps a module in another one.
        inner = getattr(criterion, "_orig_mod", criterion)
        if not isinstance(inner, MultiTaskCriterion):
            raise OptionError(f"`criterion` should be what compose() returned. Found {type(criterion).__name__}.")
        inner._record(self)

    def columns(self) -> dict[str, list[float | None]]:
        """Return the rows by column, all of one length; None for a value that was not measured or not finite.

        Reads the device. A column without any measured value is left out.

        Returns:
            the columns by name, for the tasks in their order.

            - ``step``: number of the window, from 1.
            - ``loss/TASK``: mean loss as it entered the sum.
            - ``weight/TASK``: the weight that multiplied it.
            - ``norm/TASK``: norm of its gradient on the shared part.
            - ``share/TASK``: ``|lambda_i| n_i / sum_j |lambda_j| n_j`` over the active tasks, in rows with a measured norm;
              for a task that was not measured in this row, with its last norm.
            - ``floor/TASK``: 1 if a floor holds the weight, else 0.
            - ``cosine/A/B``: between the gradients of two tasks.
            - ``skipped``: number of windows skipped before this one.
        """
        return {
            name: [value if math.isfinite(value) else None for value in values]
            for name, values in self.rows().by_name(self.tasks).items()
        }

    def to_csv(self, path: str | Path) -> Path:
        """Write :meth:`columns` as a table with a heading and empty cells for None; return the path."""
        columns, target = self.columns(), Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        with target.open("w", encoding="utf-8", newline="") as stream:
            writer = csv.writer(stream, lineterminator="\n")
            writer.writerow(columns)
            writer.writerows(zip(*columns.values(), strict=True))
        return target

    def plot(self, path: str | Path | None = None) -> Figure:
        """Draw weights with the floor marked, losses, norms, shares and cosines over the steps, as far as measured.

        Args:
            path: the file to write, as PNG, SVG or PDF by its ending. None: no file.

        Raises:
            DataError: nothing has been recorded.
            ImportError: matplotlib is not installed.
        """
        if not len(self):
            raise DataError("This history has no rows to draw. Call the criterion in training mode first.")
        try:
            from mtl_axes.telemetry.history_plot import draw
        except ModuleNotFoundError as error:
            raise ImportError("History.plot() needs matplotlib: pip install 'mtl_axes[report]'.") from error
        figure = draw(self.tasks, self.columns())
        if path is not None:
            target = Path(path)
            target.parent.mkdir(parents=True, exist_ok=True)
            figure.savefig(target, dpi=130)
        return figure

    def _repr_png_(self) -> bytes | None:
        """Return the picture for a notebook; None, so that text is shown, without rows or matplotlib."""
        if not len(self):
            return None
        try:
            figure = self.plot()
        except ImportError:
            return None
        stream = io.BytesIO()
        figure.savefig(stream, format="png", dpi=100)
        return stream.getvalue()
