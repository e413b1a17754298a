"""Results as Markdown tables and one picture, from the JSON files of the parts."""

from __future__ import annotations

import json
import os
import platform
import statistics
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import torch

matplotlib.use("Agg")

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator

from benchmarks.methods import EVERY, PLAIN

__all__ = ["draw", "load", "machine", "save", "tables"]

Record = dict[str, Any]
PARTS = ("steps", "memory", "criterion", "growth", "quality", "gpu")
INK, PALE = "#3a3a3a", "#d8d8d8"
COLOURS = {2: "#2f6690", 4: "#c08a2e", 8: "#8c3b4a"}
# Rows of the picture, from the cheapest to the dearest.
PICTURE = {
    "fixed": "fixed, no gradients",
    "dwa": "dwa, no gradients",
    "gaba: lagged": "gaba, lagged probe",
    "gaba: representation": "gaba, representation probe",
    f"gaba: rotate, every {EVERY}": f"gaba, exact, one task in turn, every {EVERY} steps",
    f"gaba: exact, every {EVERY}": f"gaba, exact, every {EVERY} steps",
    "gaba: rotate": "gaba, exact, one task in turn",
    "gaba: exact": "gaba, exact in every step",
    "gaba: naive": "gaba, naive, by hand",
    "UPGrad": "UPGrad, mtl_axes",
    "UPGrad, tuned": "UPGrad, TorchJD tuned",
    "UPGrad, default": "UPGrad, TorchJD default",
}


def machine() -> str:
    """Return a general description of the machine."""
    try:
        guest = "hypervisor" in Path("/proc/cpuinfo").read_text()
    except OSError:
        guest = False
    kind = f"{os.cpu_count()}-core {platform.machine().replace('_', '-')} {'virtual machine' if guest else 'machine'}"
    threads = torch.get_num_threads()
    return f"{kind}, {threads} thread{'s' if threads > 1 else ''}, torch {torch.__version__.split('+')[0]} CPU"


def save(folder: Path, part: str, result: Any, *, where: str) -> None:
    (folder / f"{part}.json").write_text(json.dumps({"machine": where, "found": result}, indent=1) + "\n")


def load(folder: Path) -> dict[str, Record]:
    """Return the results in a folder, by part."""
    files = {part: folder / f"{part}.json" for part in PARTS}
    return {part: json.loads(file.read_text()) for part, file in files.items() if file.exists()}


def tables(results: dict[str, Record]) -> str:
    """Return everything as one page of Markdown."""
    pages: dict[str, Callable[[Any], Iterable[str]]] = {
        "steps": lambda result: [*_steps(result["rows"]), *_duels(result["duels"])],
        "memory": _memory,
        "criterion": _criterion,
        "growth": _growth,
        "quality": _quality,
        "gpu": _gpu,
    }
    blocks = ["# What a step costs: all tables"]
    for part, result in results.items():
        blocks += [f"<!-- {part}: {result['machine']} -->", *pages[part](result["found"])]
    return "\n\n".join(blocks) + "\n"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _grid(records: list[Record], column: Callable[[Record], str], cell: Callable[[Record], str], corner: str) -> str:
    """Return a table with one row per method, in order of appearance, and one column per value."""
    columns = list(dict.fromkeys(map(column, records)))
    methods = list(dict.fromkeys(record["method"] for record in records))
    cells = {(record["method"], column(record)): cell(record) for record in records}
    return _table(
        [corner, *columns],
        [[_label(method, records), *(cells.get((method, one), "-") for one in columns)] for method in methods],
    )


def _label(method: str, records: list[Record]) -> str:
    library = next(record.get("library") for record in records if record["method"] == method)
    return method if library in (None, "mtl_axes") or method == PLAIN else f"{method} ({library})"


def _by_model(rows: list[Record]) -> dict[str, list[Record]]:
    models = list(dict.fromkeys(row["model"] for row in rows))
    return {model: [row for row in rows if row["model"] == model] for model in models}


def _spread(values: Sequence[float]) -> str:
    low, median, high = values
    return f"{median:.2f} ({low:.2f}-{high:.2f})"


def _plain(rows: list[Record]) -> str:
    plain = [row for row in rows if row["method"] == PLAIN]
    times = ", ".join(f"{row['ms']:.1f} ms for K={row['tasks']}" for row in plain)
    share = min(row["cpu_ms"] / row["ms"] for row in plain)
    title = f"{PLAIN.capitalize()}, {rows[0]['rounds']} rounds"
    return f"{title}: {times}. The process had a core for at least {100 * share:.0f} % of that time."


def _steps(rows: list[Record]) -> Iterable[str]:
    for model, group in _by_model(rows).items():
        yield f"**{model}**: time of a step over the plain weighted sum, median (quartiles over the rounds); [CPU time]"
        yield _grid(
            group, lambda row: f"K={row['tasks']}", lambda row: f"{_spread(row['wall'])} [{row['cpu'][1]:.2f}]", "method"
        )
        yield _plain(group)


def _duels(duels: list[Record]) -> Iterable[str]:
    if not duels:
        return
    yield "**The same mathematics in both libraries**: time of a step here over TorchJD's, median (quartiles); [CPU time]"
    forms = list(dict.fromkeys(duel["rival"].rpartition(", ")[2] for duel in duels))
    cells: dict[tuple[str, int, str], dict[str, Record]] = {}
    for duel in duels:
        row = cells.setdefault((duel["model"], duel["tasks"], duel["mathematics"]), {})
        row[duel["rival"].rpartition(", ")[2]] = duel
    yield _table(
        ["model", "K", "weighting", *(f"over TorchJD, {form}" for form in forms)],
        [
            [
                model,
                str(tasks),
                name,
                *(f"{_spread(row[form]['wall'])} [{row[form]['cpu'][1]:.2f}]" if form in row else "-" for form in forms),
            ]
            for (model, tasks, name), row in cells.items()
        ],
    )
    for form in forms:
        group = [row[form] for row in cells.values() if form in row]
        wall, cpu = (statistics.median(duel[clock][1] for duel in group) for clock in ("wall", "cpu"))
        yield f"Over TorchJD, {form}, the median of the {len(group)} rows is {wall:.2f} [{cpu:.2f}]."
    best = [max(row.values(), key=lambda duel: duel["wall"][1]) for row in cells.values()]
    wall, cpu = (statistics.median(duel[clock][1] for duel in best) for clock in ("wall", "cpu"))
    yield f"Over whichever form of TorchJD is faster in a row, it is {wall:.2f} [{cpu:.2f}]."


def _memory(records: list[Record]) -> Iterable[str]:
    for model, group in _by_model(records).items():
        yield f"**{model}**: peak memory of a step over the plain weighted sum (MiB)"
        yield _grid(group, lambda row: f"K={row['tasks']}", lambda row: f"{row['ratio']:.2f} ({row['mib']:.1f})", "method")


def _criterion(result: Record) -> Iterable[str]:
    yield "**The criterion itself**, K=2, tiny model: microseconds of the criterion and its backward, median (quartiles)"
    yield _table(
        ["method", "µs", "µs over the sum by hand"],
        [
            [
                row["method"],
                f"{row['us']:.0f}",
                f"{row['extra_us'][1]:.0f} ({row['extra_us'][0]:.0f}-{row['extra_us'][2]:.0f})",
            ]
            for row in result["rows"]
        ],
    )
    for name, profile in result["profile"].items():
        yield f"Operators of `{name}` beyond those of the sum by hand, per call (the profiler slows them down):"
        yield _table(
            ["operator", "calls", "µs"],
            [[f"`{key}`", f"{calls:.1f}", f"{us:.1f}"] for key, calls, us in profile["operators"]],
        )
        yield f"Functions of a call of `{name}` by their own time (cProfile slows them down):"
        yield _table(
            ["function", "calls", "µs"],
            [[f"`{key}`", f"{calls:.1f}", f"{us:.1f}"] for key, calls, us in profile["functions"]],
        )


def _growth(records: list[Record]) -> Iterable[str]:
    titles = {
        "tasks": ("the number of tasks, MLP 4x256, batch 128", "K={}"),
        "width": ("the width (parameters), MLP of four layers, K=4, batch 128", "{}"),
        "batch": ("the batch, MLP 4x256, K=4", "{}"),
    }
    for along, (title, column) in titles.items():
        group = [record for record in records if record["along"] == along]
        if group:
            yield f"**Growth with {title}**: time of a step over the plain weighted sum, median [CPU time]"
            yield _grid(
                group,
                lambda row, column=column: _size(row, column),  # type: ignore[misc]
                lambda row: f"{row['wall'][1]:.2f} [{row['cpu'][1]:.2f}]",
                "method",
            )


def _size(row: Record, column: str) -> str:
    title = column.format(row["value"])
    return f"{title} ({row['parameters'] / 1e6:.2f} M)" if row["along"] == "width" else title


def _quality(records: list[Record]) -> Iterable[str]:
    for model, group in _by_model(records).items():
        yield (
            f"**{model}**: error of GABA's weights against those of exact norms in every step, max over the tasks of "
            "|log(w / w_exact)|, median over the steps (90th percentile). 0.7 is a factor of 2"
        )
        yield _grid(
            [{**record, "method": record["probe"]} for record in group],
            lambda row: f"{row['form']}, {row['average']}",
            lambda row: f"{row['median']:.2f} ({row['p90']:.2f})",
            "probe",
        )


def _gpu(result: Record) -> Iterable[str]:
    yield f"**On {result['device']}**"
    for model, rows in _by_model(result["rows"]).items():
        yield f"**{model}**: milliseconds of a step, and over the plain weighted sum, median (quartiles)"
        yield _grid(
            rows, lambda row: f"K={row['tasks']}", lambda row: f"{row['ms']:.2f} ms, {_spread(row['wall'])}", "method"
        )
    yield from _duels(result["duels"])
    yield from _memory(result["memory"])
    for model, rows in _by_model(result["waits"]).items():
        yield f"**{model}**: waits for the device in a step, as torch reports them / as the profiler sees them"
        yield _grid(
            rows, lambda row: f"K={row['tasks']}", lambda row: f"{row['reported']:g} / {row['profiled']:g}", "method"
        )


def draw(result: Record, path: Path) -> None:
    """Draw the first model's rows: one line per method, one dot per number of tasks."""
    rows = next(iter(_by_model(result["found"]["rows"]).values()))
    figure = _picture(rows, result["machine"])
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def _picture(rows: list[Record], where: str) -> Figure:
    names = [name for name in PICTURE if any(row["method"] == name for row in rows)]
    counts = sorted({row["tasks"] for row in rows})
    figure, axes = plt.subplots(figsize=(1200 / 130, 1.5 + 0.36 * len(names)), layout="constrained", facecolor="white")
    lowest = highest = 1.0
    for height, name in enumerate(reversed(names)):
        spreads = {row["tasks"]: row["wall"] for row in rows if row["method"] == name}
        medians = [median for _, median, _ in spreads.values()]
        furthest = max(high for _, _, high in spreads.values())
        lowest = min(lowest, *(low for low, _, _ in spreads.values()))
        highest = max(highest, furthest)
        axes.plot([min(medians), max(medians)], [height, height], color=PALE, linewidth=3, zorder=1, solid_capstyle="round")
        for count, (low, median, high) in spreads.items():
            shifted = height - 0.16 * (counts.index(count) - (len(counts) - 1) / 2)
            colour = COLOURS.get(count, INK)
            axes.plot([low, high], [shifted, shifted], color=colour, linewidth=1.2, zorder=2)
            axes.plot(median, shifted, "o", color=colour, markersize=6.5, zorder=3)
        _note(axes, f"{max(medians):.2f}", furthest, height)
    for count in counts:
        axes.plot([], [], "o", color=COLOURS.get(count, INK), markersize=6.5, label=f"K = {count} tasks")
    axes.legend(frameon=False, loc="upper right", fontsize=9.5)
    _ratio_axis(axes, min(0.95, 0.98 * lowest), 1.3 * highest)
    axes.set_ylim(-0.6, len(names) - 0.4)
    axes.set_yticks(range(len(names)), [PICTURE[name] for name in reversed(names)], fontsize=9.5)
    axes.set_xlabel(
        "time of a training step, plain weighted sum = 1 (log axis)\ndots: medians, lines: quartiles, numbers: largest"
    )
    figure.suptitle(f"What a step costs: {rows[0]['model']}\n{where}", fontsize=10.5, color=INK)
    return figure


def _note(axes: Axes, text: str, at: float, height: float) -> None:
    axes.annotate(text, (at, height), xytext=(8, 0), textcoords="offset points", va="center", fontsize=8.5, color=INK)


def _ratio_axis(axes: Axes, start: float, limit: float) -> None:
    ticks = [tick for tick in (1, 1.1, 1.25, 1.5, 2, 3, 4, 6, 8, 12, 16) if tick <= limit]
    axes.set_xscale("log")
    axes.set_xlim(start, limit)
    axes.xaxis.set_major_locator(FixedLocator(ticks))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xticklabels([f"{tick:g}" for tick in ticks])
    axes.axvline(1, color=INK, linewidth=1, zorder=0)
    axes.grid(axis="x", color=PALE, linewidth=0.7, zorder=0)
    axes.set_axisbelow(True)
    axes.tick_params(axis="y", length=0)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
