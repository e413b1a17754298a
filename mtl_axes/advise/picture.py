"""Advice as a picture."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import TYPE_CHECKING

from mtl_axes._text import shorten, without_math
from mtl_axes.advise.facts import Advice, signed, sized
from mtl_axes.errors import MtlAxesError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure

__all__ = ["drawn"]

# Told apart by the colour-blind, too (Okabe and Ito); more tasks than that begin anew.
_COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442", "#7F7F7F")
_DARK = ("#0072B2", "#009E73", "#D55E00", "#7F7F7F")


def drawn(advice: Advice, path: str | Path | None) -> Figure:
    """Return four panels: norms with their noise, cosines, shares by weighting, cost by weighting."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MtlAxesError(
            "A picture of advice is drawn by matplotlib, which is not installed. pip install 'mtl_axes[report]', or print "
            "the advice."
        ) from error
    rows = max(len(advice.candidates), len(advice.costs), 4)
    lower = 1.3 + 0.27 * rows
    figure = Figure(figsize=(12, 4.2 + lower), layout="constrained")
    # Each row for itself: long labels below are not to narrow the panels above.
    grid = figure.add_gridspec(2, 1, height_ratios=(3.8, lower))
    above, below = figure.add_subfigure(grid[0, 0]), figure.add_subfigure(grid[1, 0])
    norms, cosines = above.subplots(1, 2, width_ratios=(5, 4))
    shares, costs = below.subplots(1, 2)
    _norms(norms, advice)
    _cosines(cosines, advice, above)
    _shares(shares, advice)
    _costs(costs, advice)
    says = without_math(f"{advice.recommendation.rule}: {advice.recommendation.says}")
    figure.suptitle("\n".join(textwrap.wrap(says, 120, max_lines=3, placeholder=" ...")), fontsize=10, ha="left", x=0.01)
    if path is not None:
        figure.savefig(path, dpi=150)
    return figure


def _norms(axes: Axes, advice: Advice) -> None:
    axes.set_title("Gradient norm on the shared part, by batch")
    if not _any(axes, advice.norms and any((norm.mean or 0) > 0 for norm in advice.norms), "no gradient was measured"):
        return
    crowded = len(advice.norms) > 5
    names = []
    for place, norm in enumerate(advice.norms):
        sd = "" if norm.sd is None else f" ± {sized(float(f'{norm.sd:.2g}'))}"
        names.append(_short(norm.task) + ("" if crowded else f"\n{sized(norm.mean)}{sd}"))
        # Batches side by side, in their order, so that a drift shows; a log axis has no place for 0.
        values = [(index, value) for index, value in enumerate(norm.values) if value]
        spread = [place + 0.4 * ((index + 0.5) / len(norm.values) - 0.5) for index, _ in values]
        axes.plot(spread, [value for _, value in values], "o", color=_colour(place), alpha=0.6, markersize=5)
        if values:
            axes.hlines(norm.mean or 0, place - 0.28, place + 0.28, color="black", linewidth=1.2)
    known = [value for norm in advice.norms for value in norm.values if value]
    if max(known) > 5 * min(known):
        axes.set_yscale("log")
        axes.margins(y=0.15)
    else:
        axes.set_ylim(0, 1.15 * max(known))
    axes.set_xlim(-0.5, len(advice.norms) - 0.5)
    axes.set_xticks(range(len(names)), names, rotation=45 if crowded else 0, ha="right" if crowded else "center")
    axes.grid(axis="y", alpha=0.25)
    if advice.ratio is not None:
        ratio = advice.ratio
        pair = f"{_short(ratio.largest)} / {_short(ratio.smallest)}"
        makes_up = f"; GABA's floor makes up for {sized(ratio.limit)}" if ratio.floor > 0 else ""
        axes.set_xlabel(f"{pair} = {sized(ratio.median)}{makes_up}")


def _cosines(axes: Axes, advice: Advice, figure: SubFigure) -> None:
    axes.set_title("Cosine of the gradients: mean ± sd over batches")
    if not _any(axes, any(cosine.mean is not None for cosine in advice.cosines), "no two gradients were measured"):
        return
    tasks = advice.tasks
    place = {task: index for index, task in enumerate(tasks)}
    # Not known where a pair never met; a task with itself says nothing.
    matrix = [[float("nan")] * len(tasks) for _ in tasks]
    small = len(tasks) > 8
    for cosine in advice.cosines:
        if cosine.mean is None:
            continue
        first, second = place[cosine.first], place[cosine.second]
        for row, column in ((first, second), (second, first)):
            matrix[row][column] = cosine.mean
            told = signed(cosine.mean) + ("" if cosine.sd is None or small else f"\n± {cosine.sd:.2f}")
            dark = abs(cosine.mean) > 0.6
            colour, size = "white" if dark else "black", 6 if small else 9
            axes.text(column, row, told, ha="center", va="center", fontsize=size, color=colour)
    image = axes.imshow(matrix, cmap="PuOr", vmin=-1, vmax=1)
    names = [_short(task) for task in tasks]
    crowded = len(tasks) > 4
    axes.set_xticks(range(len(tasks)), names, rotation=45 if crowded else 0, ha="right" if crowded else "center")
    axes.set_yticks(range(len(tasks)), names)
    axes.set_facecolor("#eeeeee")
    figure.colorbar(image, ax=axes, shrink=0.8, label="conflict < 0 < agreement")


def _shares(axes: Axes, advice: Advice) -> None:
    axes.set_title("Share of the pull, |λ n|, were norms to stay")
    shown = [one for one in advice.candidates if one.shares]
    if not _any(axes, shown, "no shares: no gradient was measured"):
        return
    for row, one in enumerate(shown):
        whole = sum(abs(share) for share in one.shares.values())
        left = 0.0
        for index, task in enumerate(advice.tasks):
            share = abs(one.shares.get(task, 0.0)) / whole
            name = _short(task) if row == 0 else None
            axes.barh(row, share, left=left, color=_colour(index), label=name)
            if share >= 0.08:
                told = f"{share:.0%}" if share < 0.995 else f"{share:.1%}"
                white = _colour(index) in _DARK
                middle = left + share / 2
                axes.text(middle, row, told, ha="center", va="center", fontsize=8, color="white" if white else "black")
            left += share
    axes.set_yticks(range(len(shown)), [_short(one.label, 24) for one in shown])
    axes.invert_yaxis()
    axes.set_xlim(0, 1)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    columns = max(1, 64 // (4 + max(len(_short(task)) for task in advice.tasks)))
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.09), ncols=columns, fontsize=9, frameon=False)


def _costs(axes: Axes, advice: Advice) -> None:
    axes.set_title("Time of a step here, over that of the plain sum")
    shown = [(cost.label, cost.ratio) for cost in advice.costs if cost.ratio is not None]
    if not _any(axes, shown, "nothing was timed"):
        return
    ratios = [ratio for _, ratio in shown]
    axes.barh(range(len(shown)), ratios, color="#9aa7b1")
    over = {"boxstyle": "square,pad=0.15", "facecolor": "white", "edgecolor": "none"}  # the line at 1 is not to cross it
    for row, ratio in enumerate(ratios):
        axes.annotate(
            f"{ratio:.2f}", (ratio, row), xytext=(4, 0), textcoords="offset points", va="center", fontsize=8, bbox=over
        )
    axes.axvline(1, color="black", linewidth=1, linestyle="--")
    axes.set_yticks(range(len(shown)), [_short(label, 28) for label, _ in shown])
    axes.invert_yaxis()
    axes.set_xlim(0, max(*ratios, 1) * 1.12)
    if advice.plain is not None:
        axes.set_xlabel(f"1 = {1e3 * advice.plain:.3g} ms: forward, criterion, backward")


def _colour(index: int) -> str:
    return _COLOURS[index % len(_COLOURS)]


def _any(axes: Axes, there: object, otherwise: str) -> bool:
    """Return whether there is something to draw, and say in the panel what is missing when there is not."""
    if not there:
        axes.text(0.5, 0.5, otherwise, ha="center", va="center", transform=axes.transAxes, color="dimgrey")
        axes.set_xticks([])
        axes.set_yticks([])
    return bool(there)


def _short(text: str, length: int = 16) -> str:
    return without_math(shorten(text, length))
