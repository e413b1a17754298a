"""The picture of a history. Needs matplotlib."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from mtl_axes._text import without_math

__all__ = ["draw"]

_INK, _PALE, _CONFLICT = "#3a3a3a", "#d8d8d8", "#f3ece9"
# Of more tasks the lines are dashed.
_COLOURS = (
    *("#2f6690", "#b5654a", "#4f7f5b", "#8c6bb1", "#c08a2e", "#5f6b73"),
    *("#45a3a3", "#c178a8", "#8c3b4a", "#8fa13c", "#74aed6", "#a3805a"),
)
_DASHES = ("-", "--", ":")
_PANELS = {
    "weight": "weight",
    "loss": "loss",
    "norm": "gradient norm on the shared part",
    "share": "share of the weighted norms",
    "cosine": "cosine between gradients",
}
# A ratio between values above which a linear axis hides the small ones.
_LOG_ABOVE = 20.0
# Rows above which a line is drawn through medians, with the rows pale behind it; and the number of medians.
_MANY, _MEDIANS = 300, 100
# Pairs above which only those that conflict most have a colour.
_PAIRS = 6

Columns = Mapping[str, Sequence["float | None"]]
Values = Any  # arrays of numpy, whose types are those of another extra


def draw(tasks: Sequence[str], columns: Columns) -> Figure:
    """Draw every panel that there are values for: tasks by colour, over the steps."""
    table = {name: np.array([np.nan if value is None else value for value in values]) for name, values in columns.items()}
    lines = {
        kind: {name.removeprefix(f"{kind}/"): values for name, values in table.items() if name.startswith(f"{kind}/")}
        for kind in _PANELS
    }
    kinds = [kind for kind in _PANELS if lines[kind]]
    across = min(2, len(kinds))
    down = -(-len(kinds) // across)
    figure = Figure(figsize=(5.6 * across, 2.9 * down + 0.5), layout="constrained")
    grid = figure.subplots(down, across, squeeze=False)
    styles = {
        task: {"color": _COLOURS[at % len(_COLOURS)], "linestyle": _DASHES[at // len(_COLOURS) % len(_DASHES)]}
        for at, task in enumerate(tasks)
    }
    for kind, axes in zip(kinds, grid.flat, strict=False):
        steps = table["step"]
        if kind == "share":
            _areas(axes, steps, lines[kind], styles)
        elif kind == "cosine":
            _pairs(axes, steps, lines[kind])
        else:
            for order, (task, values) in enumerate(lines[kind].items()):
                # Weights are often the same: of every second one dashed, the one beneath shows.
                dashes = {"dashes": (4, 2)} if kind == "weight" and order % 2 else {}
                _line(axes, steps, values, **{**styles[task], **dashes})
            _scale(axes, kind, np.concatenate(list(lines[kind].values())))
        if kind == "weight":
            _mark_floors(axes, table, lines[kind], styles)
        if kind == "loss":
            _mark_skipped(axes, steps, table["skipped"])
        margin = max(0.02 * (steps[-1] - steps[0]), 0.5)
        axes.set_xlim(steps[0] - margin, steps[-1] + margin)
        axes.set_title(_PANELS[kind], fontsize=10, color=_INK, loc="left")
        _plain(axes)
    for axes in grid.flat[len(kinds) :]:
        axes.set_axis_off()
    for axes in grid.flat[max(0, len(kinds) - across) : len(kinds)]:
        axes.set_xlabel("window", fontsize=9)
    for task, style in styles.items():
        grid[0, 0].plot([], [], linewidth=2.2, label=_plain_text(task), **style)
    handles, labels = grid[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(6, len(labels)), frameon=False, fontsize=9)
    return figure


def _line(axes: Axes, steps: Values, values: Values, **style: Any) -> None:
    """Draw the values that there are; of many the medians, and the values pale behind them."""
    known = np.isfinite(values)
    steps, values = steps[known], values[known]
    if len(steps) > _MANY:
        axes.plot(steps, values, color=style["color"], linewidth=0.6, alpha=0.22, zorder=2)
        steps, values = (np.array([np.median(part) for part in np.array_split(of, _MEDIANS)]) for of in (steps, values))
    # A measurement now and then shows where it was taken.
    axes.plot(steps, values, linewidth=1.6, zorder=3, marker="." if len(steps) < 40 else None, **style)


def _areas(axes: Axes, steps: Values, shares: Mapping[str, Values], styles: Mapping[str, Mapping[str, Any]]) -> None:
    """Draw shares one on top of the other."""
    stack = np.nan_to_num(np.array(list(shares.values())))
    measured = stack.sum(0) > 0
    steps, stack = steps[measured], stack[:, measured]
    if len(steps) > _MANY:
        steps = np.array([part.mean() for part in np.array_split(steps, _MEDIANS)])
        stack = np.array([[part.mean() for part in np.array_split(line, _MEDIANS)] for line in stack])
    colours = [styles[task]["color"] for task in shares]
    axes.stackplot(steps, stack, colors=colours, alpha=0.85, edgecolor="white", linewidth=0.5)
    axes.set_ylim(0, 1)


def _pairs(axes: Axes, steps: Values, cosines: Mapping[str, Values]) -> None:
    """Draw cosines over the half in which tasks conflict; of many pairs those that conflict most have a colour."""
    order = sorted(cosines, key=lambda pair: float(np.nanmean(cosines[pair])))
    named = order if len(order) <= _PAIRS else order[: _PAIRS - 1]
    for pair in order[len(named) :]:
        axes.plot(steps, cosines[pair], color=_INK, linewidth=0.5, alpha=0.18, zorder=1)
    for at, pair in enumerate(named):
        _line(axes, steps, cosines[pair], color=_COLOURS[-1 - at], linestyle="-")
        axes.plot([], [], color=_COLOURS[-1 - at], linewidth=2.2, label=_plain_text(pair))
    if len(order) > len(named):
        axes.plot([], [], color=_INK, alpha=0.4, label=f"{len(order) - len(named)} other pairs")
    axes.set_ylim(-1.05, 1.05)
    axes.axhspan(-1.05, 0, color=_CONFLICT, zorder=0, linewidth=0)
    axes.axhline(0, color=_INK, linewidth=0.8)
    axes.text(0.99, 0.03, "conflict", transform=axes.transAxes, ha="right", fontsize=8, color=_INK)
    legend = axes.legend(fontsize=7.5, ncols=2 if len(named) > 3 else 1, loc="best", framealpha=0.8, edgecolor="none")
    legend.set_zorder(5)


def _scale(axes: Axes, kind: str, values: Values) -> None:
    """Choose the axis: logarithmic where the small values would not show, a few that are smaller yet left aside."""
    values = values[np.isfinite(values)]
    least = np.quantile(values, 0.02)
    if (kind == "norm" and values.max() > 0) or (values.min() > 0 and np.quantile(values, 0.98) > _LOG_ABOVE * least):
        axes.set_yscale("log")
        low, high = axes.get_ylim()
        if high < 300 * low:
            axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        # Numbers, and not powers in mathematical type.
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.yaxis.set_minor_formatter(NullFormatter())
    elif kind == "weight" and values.min() >= 0:
        axes.set_ylim(0, 1.08 * values.max())


def _mark_floors(
    axes: Axes, table: Mapping[str, Values], weights: Mapping[str, Values], styles: Mapping[str, Mapping[str, Any]]
) -> None:
    """A thick pale line where a floor holds the weight, and its value at the end of it."""
    floored = [task for task in weights if (table.get(f"floor/{task}", 0) == np.array(1)).any()]
    levels: list[float] = []
    for task in floored:
        values, held = weights[task], table[f"floor/{task}"]
        axes.plot(
            table["step"],
            np.where(held == 1, values, np.nan),
            color=styles[task]["color"],
            linewidth=7,
            alpha=max(0.08, 0.3 / len(floored)),
            solid_capstyle="butt",
            zorder=1,
        )
        last = np.flatnonzero(held == 1)[-1]
        level = float(values[last])
        # Tasks that one floor holds have one weight, and one note.
        if any(abs(level - other) < 0.01 * level for other in levels):
            continue
        levels.append(level)
        axes.annotate(
            f"held by the floor: {level:.3g}",
            (table["step"][last], level),
            xytext=(-4, 6),
            textcoords="offset points",
            ha="right",
            fontsize=8,
            color=_INK,
        )


def _mark_skipped(axes: Axes, steps: Values, skipped: Values) -> None:
    """Ticks where windows were skipped, and how many."""
    if not skipped.any():
        return
    at = steps[np.diff(skipped, prepend=0) > 0]
    axes.plot(at, np.full(len(at), 0.02), "|", color=_INK, markersize=9, transform=axes.get_xaxis_transform())
    axes.text(
        0.99, 0.95, f"| {int(skipped[-1])} skipped", transform=axes.transAxes, ha="right", va="top", fontsize=8, color=_INK
    )


def _plain_text(name: str) -> str:
    """Return a name that matplotlib shows as it is: no formula between dollars, not hidden by an underscore."""
    return (" " if name.startswith("_") else "") + without_math(name)


def _plain(axes: Axes) -> None:
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=7))
    axes.grid(color=_PALE, linewidth=0.5)
    axes.set_axisbelow(True)
    axes.tick_params(which="both", labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)
