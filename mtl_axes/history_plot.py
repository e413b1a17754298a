"""The picture of a history. Needs matplotlib."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

__all__ = ["draw"]

_INK, _PALE = "#3a3a3a", "#d8d8d8"
# Told apart by those who do not see all colours; the dashes tell a second round apart.
_COLOURS = ("#2f6690", "#b5654a", "#4f7f5b", "#8c6bb1", "#c08a2e", "#5f6b73")
_DASHES = ("-", "--", ":")
_PANELS = (
    ("weight", "weight"),
    ("loss", "loss"),
    ("norm", "gradient norm on the shared part"),
    ("share", "share of the weighted norms"),
    ("cosine", "cosine between gradients"),
)
# A ratio between values above which a linear axis hides the small ones.
_LOG_ABOVE = 20.0

Columns = Mapping[str, Sequence["float | None"]]


def draw(tasks: Sequence[str], columns: Columns) -> Figure:
    """Draw every panel that there are values for: tasks by colour, over the steps."""
    panels = [(kind, title) for kind, title in _PANELS if any(name.startswith(f"{kind}/") for name in columns)]
    across = min(2, len(panels))
    down = -(-len(panels) // across)
    figure = Figure(figsize=(5.4 * across, 2.9 * down + 0.5), layout="constrained")
    grid = figure.subplots(down, across, squeeze=False)
    for (kind, title), axes in zip(panels, grid.flat, strict=False):
        _lines(axes, kind, tasks, columns)
        axes.set_title(title, fontsize=10, color=_INK, loc="left")
    for axes in list(grid.flat)[len(panels) :]:
        axes.set_axis_off()
    handles, labels = grid[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(6, len(labels)), frameon=False, fontsize=9)
    return figure


def _lines(axes: Axes, kind: str, tasks: Sequence[str], columns: Columns) -> None:
    names = {name.removeprefix(f"{kind}/"): values for name, values in columns.items() if name.startswith(f"{kind}/")}
    seen: list[float] = []
    for order, (name, values) in enumerate(names.items()):
        known = [
            (step, value)
            for step, value in zip(columns["step"], values, strict=True)
            if step is not None and value is not None
        ]
        steps, heights = [step for step, _ in known], [value for _, value in known]
        seen += heights
        # A measurement now and then shows where it was taken.
        marker = "." if len(known) < 60 else None
        colour, dash = _COLOURS[order % len(_COLOURS)], _DASHES[order // len(_COLOURS) % len(_DASHES)]
        axes.plot(steps, heights, dash, color=colour, linewidth=1.5, marker=marker, label=name)
        if kind == "weight":
            _mark_floor(axes, steps, heights, columns.get(f"floor/{name}"), colour)
    axes.set_xlabel("optimizer step", fontsize=9)
    axes.grid(color=_PALE, linewidth=0.5)
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    if kind == "norm" or (kind == "loss" and min(seen) > 0 and max(seen) > _LOG_ABOVE * min(seen)):
        axes.set_yscale("log")
    elif kind == "share" or (kind == "weight" and min(seen) >= 0 and max(seen) <= 1):
        axes.set_ylim(-0.03, 1.03)
    elif kind == "cosine":
        axes.set_ylim(-1.05, 1.05)
        axes.axhspan(-1.05, 0, color="#f3ece9", zorder=0, linewidth=0)
        axes.axhline(0, color=_INK, linewidth=0.8)
        axes.legend(frameon=False, fontsize=8, title="below 0: a conflict", title_fontsize=8)


def _mark_floor(
    axes: Axes, steps: Sequence[float], heights: Sequence[float], held: Sequence[float | None] | None, colour: str
) -> None:
    """A thick pale line over the steps where a floor holds the weight."""
    if held is None or not any(held):
        return
    floored = [height if flag else float("nan") for height, flag in zip(heights, held, strict=True)]
    axes.plot(steps, floored, color=colour, linewidth=6, alpha=0.3, solid_capstyle="butt")
    last = max(at for at, flag in enumerate(held) if flag)
    axes.annotate(
        "held by the floor",
        (steps[last], heights[last]),
        xytext=(-4, 7),
        textcoords="offset points",
        ha="right",
        fontsize=8,
        color=_INK,
    )
