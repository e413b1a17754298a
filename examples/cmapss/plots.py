"""The pictures of a study: weights, gradient norms, predictions, and the 2x2 grid."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from .methods import FLOOR_WEIGHTS, Cell
from .metrics import CRITICAL_UP_TO, HEALTHY_ABOVE, RUL_CAP
from .report import by_name, cells_of, figures, gaba_floor, paired, signed, spread
from .runs import Run, Runs

RUL_COLOUR, HEALTH_COLOUR, INK, PALE = "#2f6690", "#b5654a", "#3a3a3a", "#d8d8d8"
CELL_COLOURS = {"A": "#7a7a7a", "B": "#2f6690", "C": "#c08a2e", "D": "#8c3b4a", "control": "#4f7f5b"}
MORE_COLOURS = ("#6a5a8c", "#3f8f8f", "#9a7b4f", "#b06a9a", "#5c6b2f")


def draw_all(runs: Runs, folder: Path, heading: str) -> list[Path]:
    """Draw what the runs allow; the grid only when all four cells have runs."""
    pictures = {
        "lambdas.png": weights_over_steps(runs, heading),
        "gradient_norms.png": gradient_norms(runs, heading),
        "predictions.png": predictions(runs, heading),
    }
    if all(by_name(runs, name) for name in "ABCD"):
        pictures["grid.png"] = grid(runs, heading)
    paths = []
    for name, figure in pictures.items():
        part = folder / f".{name}"
        figure.savefig(part, dpi=130, format="png")
        plt.close(figure)
        part.replace(folder / name)
        paths.append(folder / name)
    return paths


def weights_over_steps(runs: Runs, heading: str) -> Figure:
    """Both weights of every cell and seed over the optimizer steps, with GABA's floor marked."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.6), layout="constrained")
    cells = cells_of(runs)
    for order, (cell, colour) in enumerate(_colours(cells).items()):
        # Cells often have the same weights: constants are wide and beneath, every second cell is dashed, so that each shows.
        style: dict[str, Any] = (
            {"linewidth": 3.4, "alpha": 0.55, "zorder": 2} if _constant(runs, cell) else {"linewidth": 1.6, "zorder": 3}
        )
        if order % 2:
            style["dashes"] = (3, 2)
        for index, run in enumerate(_runs_of(runs, cell)):
            weights = np.array(run.weights)
            steps = np.arange(1, len(weights) + 1)
            for axes, column in ((left, 0), (right, 1)):
                axes.plot(steps, weights[:, column], color=colour, label=cell.title if index == 0 else None, **style)
    floored = any(gaba_floor(cell) == 0.05 for cell in cells) or by_name(runs, "control") is not None
    for axes, task, name in ((left, "rul", "RUL"), (right, "health", "health")):
        if floored:
            axes.axhline(FLOOR_WEIGHTS[task], color=INK, linewidth=0.9, linestyle=":", zorder=4)
            bound = FLOOR_WEIGHTS[task]
            axes.annotate(
                f"GABA's floor: {bound:.4f}",
                (0.01, bound),
                xycoords=axes.get_yaxis_transform(),
                xytext=(2, 4 if task == "rul" else -4),
                textcoords="offset points",
                va="bottom" if task == "rul" else "top",
                fontsize=9,
                color=INK,
            )
        axes.set_xlabel("optimizer step")
        axes.set_ylabel(f"weight of the {name} loss")
        _plain(axes)
        low, high = axes.get_ylim()
        axes.set_ylim(min(0.0, low), max(1.0, high))
    handles, labels = left.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(3, len(labels)), frameon=False, fontsize=9)
    figure.suptitle(f"Task weights over training, one line per seed: {heading}", fontsize=11)
    return figure


def gradient_norms(runs: Runs, heading: str) -> Figure:
    """Norms on the shared parameters of every cell (top, log axis) and their ratio (bottom, log axis)."""
    cells = cells_of(runs)
    figure, panels = plt.subplots(
        2,
        len(cells),
        figsize=(1.2 + 2.7 * max(2, len(cells)), 5.6),
        sharex=True,
        sharey="row",
        squeeze=False,
        layout="constrained",
    )
    for column, cell in enumerate(cells):
        top, bottom = panels[0, column], panels[1, column]
        for index, run in enumerate(_runs_of(runs, cell)):
            norms = np.maximum(np.array(run.norms), 1e-12)
            labels = ("RUL", "health") if index == 0 else (None, None)
            top.plot(run.norm_steps, norms[:, 0], color=RUL_COLOUR, linewidth=1.1, label=labels[0])
            top.plot(run.norm_steps, norms[:, 1], color=HEALTH_COLOUR, linewidth=1.1, label=labels[1])
            bottom.plot(run.norm_steps, norms[:, 0] / norms[:, 1], color=INK, linewidth=1.1)
        bottom.axhline(1, color=INK, linewidth=0.8, linestyle=":")
        for axes in (top, bottom):
            axes.set_yscale("log")
            _plain(axes)
        top.set_title(_wrapped(cell), fontsize=9)
        bottom.set_xlabel("optimizer step")
    panels[0, 0].set_ylabel("gradient norm,\nshared parameters")
    panels[1, 0].set_ylabel("ratio RUL / health")
    panels[0, 0].legend(frameon=False, fontsize=8, loc="center right")
    figure.suptitle(f"Gradient norms of the unweighted task losses, one line per seed: {heading}", fontsize=11)
    return figure


def predictions(runs: Runs, heading: str) -> Figure:
    """Predicted against true RUL of every test engine, all seeds, one panel per cell."""
    cells = cells_of(runs)
    columns = min(3, len(cells))
    rows = -(-len(cells) // columns)
    figure, panels = plt.subplots(
        rows,
        columns,
        figsize=(3.5 * columns + 0.4, 3.6 * rows + 0.5),
        sharex=True,
        sharey=True,
        squeeze=False,
        layout="constrained",
    )
    for axes, cell in zip(panels.flat, cells, strict=False):
        axes.axvspan(0, CRITICAL_UP_TO, color="#f3ece9", zorder=0, linewidth=0)
        axes.axvspan(HEALTHY_ABOVE, RUL_CAP + 4, color="#edf2f0", zorder=0, linewidth=0)
        axes.plot([0, RUL_CAP], [0, RUL_CAP], color=INK, linewidth=0.9)
        mine = _runs_of(runs, cell)
        for run in mine:
            axes.scatter(run.true, run.predicted, s=9, color=_colours(cells)[cell], alpha=0.45, linewidths=0)
        axes.set_title(f"{_wrapped(cell)}\nRMSE {spread([run.rmse for run in mine], 1)} cycles", fontsize=9)
        axes.set_aspect("equal")
        axes.set_xlim(-4, RUL_CAP + 4)
        axes.set_ylim(-4, RUL_CAP + 4)
        axes.set_xticks(range(0, RUL_CAP + 1, 25))
        axes.set_yticks(range(0, RUL_CAP + 1, 25))
        _plain(axes)
    for index in range(len(cells), panels.size):
        panels.flat[index].set_visible(False)
        panels.flat[index - columns].tick_params(labelbottom=True)
    figure.supxlabel(f"true RUL of the test engine, capped at {RUL_CAP} (cycles); shaded: critical, healthy", fontsize=9)
    figure.supylabel("predicted RUL (cycles); above the line = late", fontsize=9)
    figure.suptitle(f"Last window of each test engine: {heading}", fontsize=11)
    return figure


def grid(runs: Runs, heading: str) -> Figure:
    """The four cells as a 2x2 table of figures, and the control beneath."""
    figure = plt.figure(figsize=(8.8, 6.6))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_xlim(-0.1, 10.2)
    axes.set_ylim(0, 7.7)
    axes.axis("off")
    axes.text(5, 7.4, f"Test engines: {heading}", ha="center", va="center", fontsize=11, color=INK)
    for x, inner, note in (
        (3.7, "mse", "every sample counts the same"),
        (7.9, "failure_biased", "near failure counts up to twice"),
    ):
        axes.text(x, 6.97, f"inner: {inner}", ha="center", va="center", fontsize=11, weight="bold", color=INK)
        axes.text(x, 6.67, note, ha="center", va="center", fontsize=8.5, color=INK)
    for y, outer, note in ((5.2, "fixed", "0.5 and 0.5"), (2.85, "gaba", "weights from\ngradient norms")):
        axes.text(0.8, y + 0.2, f"outer:\n{outer}", ha="center", va="bottom", fontsize=11, weight="bold", color=INK)
        axes.text(0.8, y + 0.05, note, ha="center", va="top", fontsize=8.5, color=INK)
    for name, x, y in (("A", 3.7, 5.2), ("B", 7.9, 5.2), ("C", 3.7, 2.85), ("D", 7.9, 2.85)):
        _grid_cell(axes, runs, name, x, y, f"{name}  (GRACE)" if name == "D" else name)
    control = by_name(runs, "control")
    if control is not None:
        mine = _runs_of(runs, control)
        line = (
            f"control, constant at GABA's floor ({FLOOR_WEIGHTS['rul']:.4f}, {FLOOR_WEIGHTS['health']:.4f}), "
            "failure_biased:\n"
            f"RMSE {spread([run.rmse for run in mine], 2)}    NASA {spread([run.nasa for run in mine], 0)}    "
            f"health accuracy {spread([run.health_accuracy for run in mine], 3)}"
        )
        axes.text(5, 1.12, line, ha="center", va="center", fontsize=9, color=INK, linespacing=1.6)
    seeds = len(_runs_of(runs, next(iter(cells_of(runs)))))
    axes.text(
        5,
        0.42,
        f"mean ± standard deviation over {seeds} seeds; RMSE and NASA: lower is better; differences to A are paired by seed"
        if seeds > 1
        else "one seed: no spread; lower is better for RMSE and NASA",
        ha="center",
        va="center",
        fontsize=8.5,
        color=INK,
    )
    return figure


def _grid_cell(axes: Axes, runs: Runs, name: str, x: float, y: float, title: str) -> None:
    cell, reference = by_name(runs, name), by_name(runs, "A")
    assert cell is not None and reference is not None
    axes.add_patch(
        Rectangle((x - 2.0, y - 1.08), 4.0, 2.16, facecolor="#f6f6f4", edgecolor=CELL_COLOURS[name], linewidth=1.4)
    )
    axes.text(x - 1.85, y + 0.85, title, ha="left", va="center", fontsize=11, weight="bold", color=CELL_COLOURS[name])
    for row, (label, digits, unit, figure) in enumerate(
        (
            ("RMSE", 2, " cycles", lambda run: run.rmse),
            ("NASA", 0, "", lambda run: run.nasa),
            ("health accuracy", 3, "", lambda run: run.health_accuracy),
        )
    ):
        height = y + 0.42 - 0.54 * row
        axes.text(x - 1.85, height, label, ha="left", va="center", fontsize=9.5, color=INK)
        values = list(figures(runs, cell, figure).values())
        axes.text(x + 1.85, height, f"{spread(values, digits)}{unit}", ha="right", va="center", fontsize=9.5, color=INK)
        if cell != reference:
            change = f"vs A: {signed(paired(runs, cell, reference, figure), digits)}"
            axes.text(x + 1.85, height - 0.24, change, ha="right", va="center", fontsize=8, color="#6b6b6b")


def _runs_of(runs: Runs, cell: Cell) -> list[Run]:
    return [run for (of, _), run in runs.items() if of == cell]


def _constant(runs: Runs, cell: Cell) -> bool:
    return all(np.ptp(np.array(run.weights), axis=0).max() == 0 for run in _runs_of(runs, cell))


def _colours(cells: list[Cell]) -> dict[Cell, str]:
    spare = iter(MORE_COLOURS * (1 + len(cells) // len(MORE_COLOURS)))
    return {cell: CELL_COLOURS.get(cell.name) or next(spare) for cell in cells}


def _wrapped(cell: Cell) -> str:
    return cell.title.replace(", ", ",\n", 1) if len(cell.title) > 18 else cell.title


def _plain(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color=PALE, linewidth=0.5)
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=8)
