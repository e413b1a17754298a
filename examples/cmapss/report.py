"""The table at the end of a study, and what only this example knows about its runs, in sentences."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from .methods import Cell, parse_strategy
from .runs import Run, Runs

Baselines = Sequence[Mapping[str, Mapping[str, float]]]
"""Per seed: RMSE and NASA score by name of the baseline."""
REFERENCE = "A"


def spread(values: Sequence[float], digits: int) -> str:
    """``mean ± standard deviation``; of a single value only the value."""
    mean = f"{np.mean(values):.{digits}f}"
    return f"{mean} ± {np.std(values, ddof=1):.{digits}f}" if len(values) > 1 else mean


def signed(values: Sequence[float], digits: int) -> str:
    """A difference with its sign, as ``spread``."""
    text = spread(values, digits)
    if float(text.split()[0]) == 0:
        return text.removeprefix("-")
    return text if text.startswith("-") else f"+{text}"


def cells_of(runs: Runs) -> list[Cell]:
    """The cells that have runs, in order."""
    return list(dict.fromkeys(cell for cell, _ in runs))


def figures(runs: Runs, cell: Cell, figure: Callable[[Run], float]) -> dict[int, float]:
    """One figure of a cell by seed."""
    return {seed: figure(run) for (of, seed), run in runs.items() if of == cell}


def paired(runs: Runs, cell: Cell, other: Cell, figure: Callable[[Run], float]) -> list[float]:
    """Differences ``cell - other`` over the seeds that both finished."""
    own, others = figures(runs, cell, figure), figures(runs, other, figure)
    return [own[seed] - others[seed] for seed in own if seed in others]


def by_name(runs: Runs, name: str) -> Cell | None:
    """The cell of this name, if it has runs."""
    return next((cell for cell in cells_of(runs) if cell.name == name), None)


def floored_from(run: Run, floor: float) -> int | None:
    """The first step from which GABA's floor holds one of the two weights up to the end of training, or None."""
    # A floored weight is floor / (floor + other) with other >= 1 - floor: below the floor, which no free weight can be.
    away = np.array(run.weights).min(axis=1) > floor
    last_away = int(np.flatnonzero(away)[-1]) + 1 if away.any() else 0
    return None if last_away == len(away) else last_away


def gaba_floor(cell: Cell) -> float | None:
    """The floor of a GABA cell, None for other weightings."""
    options = parse_strategy(cell.outer)
    floor = options.get("floor", 0.05)
    return float(floor) if options["name"] == "gaba" and isinstance(floor, (int, float)) else None


def table(runs: Runs, baselines: Baselines) -> str:
    """Mean and standard deviation over seeds, and differences to cell A paired by seed."""
    header = ["cell", "seeds", "RMSE", "NASA", "health acc.", "lambda_health", "RMSE - A", "NASA - A"]
    reference = by_name(runs, REFERENCE)
    rows = []
    for cell in cells_of(runs):
        row = [
            cell.title,
            str(len(figures(runs, cell, _rmse))),
            spread(list(figures(runs, cell, _rmse).values()), 2),
            spread(list(figures(runs, cell, _nasa).values()), 0),
            spread(list(figures(runs, cell, _accuracy).values()), 3),
            spread(list(figures(runs, cell, _lambda_health).values()), 3),
        ]
        for figure, digits in ((_rmse, 2), (_nasa, 0)):
            differences = paired(runs, cell, reference, figure) if reference and cell != reference else []
            row.append(signed(differences, digits) if differences else "")
        rows.append(row)
    for name in baselines[0]:
        figures_of = [
            spread([fits[name][figure] for fits in baselines], digits) for figure, digits in (("rmse", 2), ("nasa", 0))
        ]
        rows.append([name, str(len(baselines)), *figures_of, *[""] * 4])
    widths = [max(len(row[at]) for row in [header, *rows]) for at in range(len(header))]
    lines = [
        "  ".join(
            text.ljust(width) if at == 0 else text.rjust(width)
            for at, (text, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in [header, *rows]
    ]
    return "\n".join(line.rstrip() for line in [lines[0], "-" * len(lines[0]), *lines[1:]])


def in_words(runs: Runs, baselines: Baselines) -> list[str]:
    """One sentence or two on each of: gradients, GABA's floor, the control, the ridge baseline."""
    sentences = [_on_gradients(runs), *_on_floor(runs), _on_control(runs), _on_ridge(runs, baselines)]
    return [sentence for sentence in sentences if sentence]


def _on_gradients(runs: Runs) -> str:
    cell = by_name(runs, REFERENCE) or next(iter(cells_of(runs)), None)
    if cell is None:
        return ""
    early, late = [], []
    for (of, _), run in runs.items():
        if of == cell:
            norms = np.array(run.norms)
            ratio = norms[:, 0] / np.maximum(norms[:, 1], 1e-30)
            early.append(ratio[0])
            late.append(float(np.median(ratio[-max(1, len(ratio) // 4) :])))
    return (
        f"Gradients in cell {cell.name}: the norm of the RUL gradient is {np.mean(early):.0f} times that of the health "
        f"gradient at the first step and {np.mean(late):.0f} times in the last quarter (RUL in cycles; other units give "
        "another ratio)."
    )


def _on_floor(runs: Runs) -> list[str]:
    sentences = []
    for cell in cells_of(runs):
        floor = gaba_floor(cell)
        own = [run for (of, _), run in runs.items() if of == cell]
        if floor is None or not own:
            continue
        reached = [step for step in (floored_from(run, floor) for run in own) if step is not None]
        end = np.mean([run.weights[-1] for run in own], axis=0)
        held, free = ("rul", "health") if end[0] < end[1] else ("health", "rul")
        weights = (
            f"lambda_{held} = {end.min():.4f} (lowest possible {floor / (1 + floor):.4f}), lambda_{free} = {end.max():.4f}"
        )
        chosen = np.mean([run.chosen_step for run in own])
        then = np.mean([run.weights[run.chosen_step - 1][1] for run in own])
        tested = f" The tested checkpoints are of step {chosen:.0f} on average, when lambda_health was {then:.4f}."
        if len(reached) == len(own):
            change = max(
                float(np.ptp(np.array(run.weights)[step:], axis=0).max()) for run, step in zip(own, reached, strict=True)
            )
            sentences.append(
                f"GABA in cell {cell.name} sits at its floor at the end of all {len(own)} runs: {weights}. From step "
                f"{max(reached) + 1} on its weights change by {change:.4f} at most.{tested}"
            )
        elif reached:
            sentences.append(
                f"GABA in cell {cell.name} ends at its floor in {len(reached)} of {len(own)} runs: on average {weights}."
                f"{tested}"
            )
        else:
            sentences.append(
                f"GABA in cell {cell.name} has not reached its floor after {len(own[0].weights)} steps: {weights}.{tested}"
            )
    return sentences


def _on_control(runs: Runs) -> str:
    adaptive, control = by_name(runs, "D"), by_name(runs, "control")
    if adaptive is None or control is None:
        return ""
    parts = []
    for figure, name, digits in ((_rmse, "RMSE", 2), (_nasa, "NASA", 0)):
        differences = paired(runs, adaptive, control, figure)
        if not differences:
            return ""
        lower = sum(difference < 0 for difference in differences)
        parts.append(f"{name} {signed(differences, digits)} (lower in {lower} of {len(differences)} seeds)")
    return f"Control: D (GABA) minus the constant at GABA's floor, paired by seed: {', '.join(parts)}."


def _on_ridge(runs: Runs, baselines: Baselines) -> str:
    strongest = min(baselines[0], key=lambda name: np.mean([fits[name]["rmse"] for fits in baselines]))
    parts = []
    for name, figure in (("rmse", _rmse), ("nasa", _nasa)):
        line = np.mean([fits[strongest][name] for fits in baselines])
        better = [cell.name for cell in cells_of(runs) if np.mean(list(figures(runs, cell, figure).values())) < line]
        parts.append(f"{name.upper()} {', '.join(better) or 'no cell'}")
    return f"Cells with a lower mean than the better linear model ({strongest}): {'; '.join(parts)}."


def _rmse(run: Run) -> float:
    return run.rmse


def _nasa(run: Run) -> float:
    return run.nasa


def _accuracy(run: Run) -> float:
    return run.health_accuracy


def _lambda_health(run: Run) -> float:
    return run.weights[-1][1]
