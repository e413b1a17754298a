"""Draws the pictures of docs/concepts.md: ``python docs/builder/concepts.py``.

The library computes the numbers of the first two; the third is a sketch.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import torch
from drawing import COLOURS, INK, PALE, plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch, Rectangle
from torch import nn

from mtl_axes import Signals, compose, create

FOLDER = Path(__file__).parents[1] / "images"
FADED = "#9a9a9a"

# Norms of RUL and health in examples/two_axes_torch.py: GABA's floor cannot even out a ratio of about 700.
NORMS = torch.tensor([26.4016, 0.037833])


def axes_weights(outer: str) -> torch.Tensor:
    """Return the weights of a weighting after many windows with these norms."""
    options = {"warmup": 0, "beta": 0.0} if outer == "gaba" else {}
    return create("outer", outer, **options)(Signals(torch.ones(2), norms=NORMS))


def two_axes() -> Figure:
    """Draw what a sample of one task adds to the loss in the four cells of two weightings and two shapes."""
    figure, grid = plt.subplots(2, 2, figsize=(8.0, 5.2), layout="constrained", sharex=True, sharey=True)
    errors = torch.linspace(-40, 40, 161)
    for row, outer in enumerate(("fixed", "gaba")):
        weight = float(axes_weights(outer)[0])
        for column, inner in enumerate(("mse", "failure_biased")):
            ax, shape = grid[row][column], create("inner", inner)
            for order, (rul, name) in enumerate(((110.0, "far from failure, RUL 110"), (10.0, "near failure, RUL 10"))):
                target = torch.full_like(errors, rul)
                ax.plot(
                    errors, weight * shape(target + errors, target), "--" if order else "-", color=COLOURS[order], label=name
                )
            ax.set_yscale("log")
            ax.set_ylim(0.3, 3000)
            ax.set_title(f"{'ABCD'[2 * row + column]}: {outer} x {inner}", fontsize=10, color=INK)
            ax.text(0, 1700, f"λ = {weight:.3f}", ha="center", va="top", fontsize=9, color=INK)
            ax.grid(color=PALE, linewidth=0.6)
            ax.spines[["top", "right"]].set_visible(False)
            ax.tick_params(labelsize=8)
    for ax in grid[1]:
        ax.set_xlabel("predicted minus true RUL, cycles", fontsize=9)
    for ax in grid[:, 0]:
        ax.set_ylabel("what one sample adds: λ · l", fontsize=9)
    handles, names = grid[1][1].get_legend_handles_labels()
    figure.legend(handles, names, frameon=False, fontsize=9, loc="outside lower center", ncols=2)
    return figure


def windows() -> Figure:
    """Draw twelve calls of a criterion with two calls per window, every second window measured: a real run."""
    torch.manual_seed(0)
    trunk, first, second = nn.Linear(4, 8), nn.Linear(8, 1), nn.Linear(8, 1)
    criterion = compose({"name": "gaba", "warmup": 0, "beta": 0.5}, tasks=["a", "b"], accumulate=2, every=2)
    weights, measured = [], []
    for _ in range(12):
        x = torch.randn(32, 4)
        z = trunk(x).tanh()
        criterion({"a": 9 * first(z), "b": second(z)}, {"a": 9 * x[:, :1], "b": x[:, 1:2]}).backward()
        weights.append(criterion.report.weights.tolist())
        measured.append(bool(criterion.report.measured.any()))
    figure, (above, below) = plt.subplots(
        2, 1, figsize=(8.0, 3.9), layout="constrained", sharex=True, height_ratios=(1, 1.7)
    )
    for call, is_measured in enumerate(measured):
        colour, ink, text = (COLOURS[0], "w", "measured") if is_measured else (PALE, INK, "call")
        above.add_patch(Rectangle((call + 0.06, 0), 0.88, 0.8, facecolor=colour, edgecolor="none"))
        above.text(call + 0.5, 0.4, text, ha="center", va="center", fontsize=7, color=ink)
        if call % 2:
            above.annotate("", (call + 1, -0.35), (call + 1, 0.8), arrowprops={"arrowstyle": "->", "color": INK})
            above.text(call, 1.0, f"window {call // 2}", ha="center", va="bottom", fontsize=9, color=INK)
    above.text(2.1, -0.3, "optimizer.step()", fontsize=8, color=INK, va="center")
    above.set_ylim(-0.45, 1.35)
    above.axis("off")
    for task, name in enumerate(("task a, the larger gradient", "task b")):
        values = [weight[task] for weight in weights]
        below.step(range(13), [*values, values[-1]], "--" if task else "-", where="post", color=COLOURS[task], label=name)
    for edge in range(0, 13, 2):
        below.axvline(edge, color=PALE, linewidth=0.8, zorder=0)
    below.set_xlim(0, 12)
    below.set_ylim(0, 1)
    below.set_xlabel("calls of the criterion", fontsize=9)
    below.set_ylabel("weight", fontsize=9)
    below.tick_params(labelsize=8)
    below.spines[["top", "right"]].set_visible(False)
    # Opaque, so that the edges of windows do not cross the text.
    below.legend(facecolor="w", edgecolor="none", framealpha=1, fontsize=8, loc="center right")
    return figure


def box(ax: Axes, left: float, low: float, width: float, height: float, text: str, colour: str, ink: str = "w") -> None:
    """Draw a named part of a model."""
    style = "round,pad=0,rounding_size=0.08"
    ax.add_patch(FancyBboxPatch((left, low), width, height, boxstyle=style, facecolor=colour, edgecolor="none"))
    ax.text(left + width / 2, low + height / 2, text, ha="center", va="center", fontsize=9, color=ink)


def arrow(ax: Axes, start: tuple[float, float], end: tuple[float, float], colour: str, style: str = "-") -> None:
    """Draw an arrow."""
    # A filled head: an open one would be dotted too.
    ax.annotate("", end, start, arrowprops={"arrowstyle": "-|>", "color": colour, "linestyle": style, "linewidth": 1.5})


def shared_and_probes() -> Figure:
    """Draw a trunk with two heads: what is shared, what is private, and how far back each probe differentiates."""
    figure, ax = plt.subplots(figsize=(8.0, 4.7), layout="constrained")
    ax.set_xlim(0, 10)
    ax.set_ylim(-2.75, 3.25)
    ax.axis("off")
    box(ax, 0.0, 1.2, 0.9, 0.7, "inputs", PALE, INK)
    box(ax, 1.5, 0.9, 2.6, 1.3, "trunk\nshared by both tasks", COLOURS[0])
    box(ax, 4.75, 1.2, 0.55, 0.7, "z", INK)
    for low, task, colour in ((2.1, "1", COLOURS[1]), (0.3, "2", COLOURS[2])):
        box(ax, 6.1, low, 1.9, 0.7, f"head {task}, private", colour)
        box(ax, 8.7, low, 1.2, 0.7, f"loss {task}", PALE, INK)
        arrow(ax, (5.35, 1.55), (6.05, low + 0.35), INK)
        arrow(ax, (8.05, low + 0.35), (8.65, low + 0.35), INK)
    arrow(ax, (0.95, 1.55), (1.45, 1.55), INK)
    arrow(ax, (4.15, 1.55), (4.7, 1.55), INK)
    ax.text(5.02, 2.05, "representation", ha="center", va="bottom", fontsize=8, color=INK)
    rows = (
        (-0.6, 1.5, "exact", "each loss back through the whole trunk, before your backward", "-"),
        (-1.35, 4.75, "representation", "each loss back to z, before your backward", "-"),
        (-2.1, 4.75, "lagged", "read at z while your own backward passes; used in the next step", ":"),
    )
    for edge in (1.5, 4.75):
        ax.plot([edge, edge], [-2.3, 0.75], color=FADED, linewidth=0.8, linestyle=(0, (3, 3)))
    for low, stop, name, text, style in rows:
        arrow(ax, (9.9, low), (stop, low), COLOURS[3], style)
        ax.text(9.9, low + 0.08, name, ha="right", va="bottom", fontsize=9, color=INK, family="monospace")
        ax.text(9.9, low - 0.1, text, ha="right", va="top", fontsize=8, color=INK)
    return figure


PICTURES: dict[str, Callable[[], Figure]] = {
    "concepts_axes": two_axes,
    "concepts_windows": windows,
    "concepts_shared": shared_and_probes,
}


def draw_all(folder: Path) -> None:
    """Draw every picture into a folder."""
    for name, picture in PICTURES.items():
        figure = picture()
        figure.savefig(folder / f"{name}.png", dpi=130, metadata={"Software": None})
        plt.close(figure)


if __name__ == "__main__":
    sys.exit(draw_all(FOLDER))
