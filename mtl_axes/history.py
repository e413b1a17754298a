"""What a criterion did in the steps of a run: losses, weights, gradient norms, conflicts, floors, skipped windows."""

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
    """Records what a criterion does, window by window, with hardly ever a wait for the device.

    A row is a committed window, and ``step`` its number, as in ``criterion.report``: a training call, with ``accumulate=1``
    and a probe of the same step; otherwise the calls between two optimizer steps, with means over them, once the next call
    or ``criterion.step()`` has committed it. Nothing is recorded in ``eval()``, without gradients, and within ``hold()`` and
    ``after_step()``. What ``criterion.step(skipped=True)`` drops has no row; it is counted.

    Values stay on the device until there are 64 rows, which come to the host in one transfer: on CUDA asynchronously, and
    the run does not wait for it. Rows are bounded: when there are more than ``capacity``, every second one is dropped, for
    which the run waits once, and from then on every second window kept, so that they span the whole run. The last window is
    always there. A norm or a cosine of a window that is not kept is in the next row, unless a newer one is.

    From here on the history is a part of the criterion: of its ``state_dict()``, its copies and its pickles. A resumed run
    has one history, whether the state is loaded before or after this object is made. A state with a history loads into a
    criterion without one, and a state without into a criterion with one, whose history then begins anew.

    On several ranks each has its own, and none waits for another. Weights and floors are the same on all of them; losses,
    norms and cosines are those of the rank's own samples, but with ``sync="gradients"`` those of the whole batch.

    A training call within what torch.compile compiles runs in Python, behind a graph break. With ``fullgraph=True`` that is
    an error: then compile the model, and call the criterion outside.

    Args:
        criterion: from :func:`mtl_axes.compose`, at any time; also one that torch.compile has wrapped.
        every: record every n-th window, 1 or more.
        capacity: rows at most, 2 or more.

    Raises:
        OptionError: an option is out of range; the criterion is none, or has a history already.

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
        # What torch.compile returns for a module is another one around it.
        inner = getattr(criterion, "_orig_mod", criterion)
        if not isinstance(inner, MultiTaskCriterion):
            raise OptionError(f"`criterion` should be what compose() returned. Found {type(criterion).__name__}.")
        inner._record(self)

    def columns(self) -> dict[str, list[float | None]]:
        """Return the rows by column, all of one length; None where a value was not measured, or was not finite.

        Reads the device. A column that nothing was ever measured of is left out.

        Returns:
            the columns by name, for the tasks in their order.

            - ``step``: number of the window, counted from 1.
            - ``loss/TASK``: mean loss as it entered the sum.
            - ``weight/TASK``: the weight that multiplied it.
            - ``norm/TASK``: norm of its gradient on the shared part.
            - ``share/TASK``: ``|lambda_i| n_i / sum_j |lambda_j| n_j`` over the tasks that took part, in rows that measured
              a norm; of a task whose turn it was not with the norm that was measured last.
            - ``floor/TASK``: 1 where a floor holds the weight, else 0.
            - ``cosine/A/B``: between the gradients of two tasks.
            - ``skipped``: windows that were skipped before this one, in all.
        """
        return {
            name: [value if math.isfinite(value) else None for value in values]
            for name, values in self.rows().by_name(self.tasks).items()
        }

    def to_csv(self, path: str | Path) -> Path:
        """Write :meth:`columns` as a table with a heading, empty where a value was not measured; return the path."""
        columns, target = self.columns(), Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        with target.open("w", encoding="utf-8", newline="") as stream:
            writer = csv.writer(stream, lineterminator="\n")
            writer.writerow(columns)
            writer.writerows(zip(*columns.values(), strict=True))
        return target

    def plot(self, path: str | Path | None = None) -> Figure:
        """Draw weights with the floor marked, losses, norms, shares and cosines over the steps, as far as there are any.

        Args:
            path: where to write the picture, as PNG, SVG or PDF by its ending. None: nowhere.

        Raises:
            DataError: nothing has been recorded.
            ImportError: matplotlib is not installed.
        """
        if not len(self):
            raise DataError("A history should have rows to be drawn. Found none. Call the criterion in training mode first.")
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
        """Show itself in a notebook; as text where there is nothing to draw, or nothing to draw with."""
        if not len(self):
            return None
        try:
            figure = self.plot()
        except ImportError:
            return None
        stream = io.BytesIO()
        figure.savefig(stream, format="png", dpi=100)
        return stream.getvalue()
