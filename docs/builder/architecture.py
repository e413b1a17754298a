"""Draws the picture of docs/architecture.md, the life of one call: ``python docs/builder/architecture.py``.

A real training call is followed through the library; a stop that it does not pass, or not in this order, is an error.
"""

from __future__ import annotations

import sys
from pathlib import Path
from types import FrameType
from typing import NamedTuple

import torch
from drawing import COLOURS, INK, PALE, plt
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch
from torch import nn

import mtl_axes
from mtl_axes import compose

FOLDER = Path(__file__).parents[1] / "images"
PACKAGE = Path(mtl_axes.__file__).parent


class Stop(NamedTuple):
    """A function that a call passes.

    Attributes:
        module: where it is, inside mtl_axes.
        function: its name.
        does: what happens there.
    """

    module: str
    function: str
    does: str


STOPS = (
    Stop("criterion", "forward", "decides the mode of the call: training, held, evaluation, after a step; compiled or not"),
    Stop("tasks.task_set", "losses", "names, kinds, masks"),
    Stop("inner.regression", "forward", "the shape: one loss per sample"),
    Stop("tasks.masks", "reduce_losses", "the masked mean: one loss per task"),
    Stop("tasks.losses", "seal", "losses, their values and who is labelled, computed once"),
    Stop("criterion", "_total", "by mode; ranks agree here"),
    Stop("training", "total", "a training call"),
    Stop("window", "plan", "is a gradient due? does the window end with this call?"),
    Stop("probes.exact", "measure", "what the weighting needs to see"),
    Stop("probes.shared", "resolve", "what the tasks share: given, or the parameters that two or more tasks reach"),
    Stop("probes.graph", "walk", "from the losses to the parameters that they reach"),
    Stop("probes.leaves", "gradients_at", "one gradient per task"),
    Stop("window", "take", "adds the call to its window"),
    Stop("window", "commit", "the window ends: means over calls and ranks"),
    Stop("outer.base", "__call__", "the weighting updates its state from the signals"),
    Stop("training", "weights", "read for this sum"),
    Stop("tasks.losses", "weighted_sum", "the loss"),
    Stop("probes.exact", "couple", "hands measured gradients to the user's backward"),
    Stop("tasks.losses", "with_penalty", "the weighting's own term"),
    Stop("telemetry.journal", "note", "what the call did, for report, log and history"),
)


def functions_of_a_call() -> list[tuple[str, str]]:
    """Return the functions that a training call of GABA x MSE passes, in order, as (module, function)."""
    torch.manual_seed(0)
    trunk, first, second = nn.Linear(4, 8), nn.Linear(8, 1), nn.Linear(8, 1)
    criterion = compose({"name": "gaba", "warmup": 0}, tasks=["a", "b"])
    functions: list[tuple[str, str]] = []

    def profile(frame: FrameType, event: str, argument: object) -> None:
        path = Path(frame.f_code.co_filename)
        if event == "call" and path.is_relative_to(PACKAGE):
            functions.append((".".join(path.relative_to(PACKAGE).with_suffix("").parts), frame.f_code.co_name))

    for _ in range(4):  # from the second on, gradients are reused
        x = torch.randn(32, 4)
        z = trunk(x).tanh()
        functions.clear()
        sys.setprofile(profile)
        try:
            total = criterion({"a": first(z), "b": second(z)}, {"a": x[:, :1], "b": x[:, 1:2]})
        finally:
            sys.setprofile(None)
        total.backward()
    return functions


def check(functions: list[tuple[str, str]]) -> None:
    """Raise :class:`LookupError` unless the stops are passed in their order."""
    passed = iter(functions)
    for stop in STOPS:
        if (stop.module, stop.function) not in passed:
            raise LookupError(f"The call does not pass {stop.module}.{stop.function}, or not at this place.")


def picture() -> Figure:
    """Draw the stops from top to bottom, one column per part of the library."""
    columns = list(dict.fromkeys(stop.module.split(".")[0] for stop in STOPS))
    figure, ax = plt.subplots(figsize=(10.0, 0.4 * len(STOPS) + 0.6), layout="constrained")
    ax.set_xlim(-0.05, len(columns) + 3.9)
    ax.set_ylim(len(STOPS) - 0.1, -0.9)
    ax.axis("off")
    for column, part in enumerate(columns):
        ax.text(column + 0.45, -0.5, part, ha="center", va="center", fontsize=9, color=INK, fontweight="bold")
        ax.plot([column + 0.45] * 2, [-0.2, len(STOPS) - 0.2], color=PALE, linewidth=0.8, zorder=0)
    for row, stop in enumerate(STOPS):
        column = columns.index(stop.module.split(".")[0])
        colour = COLOURS[column % len(COLOURS)]
        style = "round,pad=0,rounding_size=0.06"
        ax.add_patch(
            FancyBboxPatch((column + 0.02, row + 0.1), 0.86, 0.66, boxstyle=style, facecolor=colour, edgecolor="none")
        )
        ax.text(
            column + 0.45,
            row + 0.43,
            stop.function,
            ha="center",
            va="center",
            fontsize=6.5 if len(stop.function) < 11 else 5.2,
            color="w",
        )
        ax.text(len(columns) + 0.05, row + 0.43, stop.does, ha="left", va="center", fontsize=7.5, color=INK)
        if row:
            before = columns.index(STOPS[row - 1].module.split(".")[0])
            way = {"arrowstyle": "-|>", "color": INK, "linewidth": 0.8, "shrinkA": 0, "shrinkB": 0}
            ax.annotate("", (column + 0.45, row + 0.1), (before + 0.45, row - 0.24), arrowprops=way)
    return figure


def main() -> None:
    """Check the stops, and draw them."""
    check(functions_of_a_call())
    picture().savefig(FOLDER / "architecture.png", dpi=130, metadata={"Software": None})


if __name__ == "__main__":
    main()
