"""What a study says, as sentences and as a table."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from mtl_axes.study.effects import FEW, LEVEL, MOST_SEEDS, Effect, number

if TYPE_CHECKING:
    from mtl_axes.study.results import Results

__all__ = ["sentences", "table"]

_LISTED = 3  # levels or cells that a sentence names one by one
_BETTER = {"min": "lower", "max": "higher"}
_CAUTION = (
    '"Not distinguishable" does not mean that there is no difference: the 95 % interval in brackets says how large one may '
    "still be. Intervals are not corrected for the number of comparisons; what is called better or worse is."
)


def _plural(count: int, word: str) -> str:
    return f"{count} {word}" if count == 1 else f"{count} {word}s"


def _names(names: Sequence[str], word: str) -> str:
    """The names where they are few, else how many there are."""
    return ", ".join(names) if len(names) <= _LISTED else _plural(len(names), word)


def sentences(results: Results, metrics: Iterable[str]) -> list[str]:
    """Return what a study says about some of its metrics."""
    told: list[str] = []
    for metric in metrics:
        told += _not_finite(results, metric)
        if len({run.seed for run in results.runs}) > 1:
            told += _differences(results, metric)
    hidden = any("not distinguishable" in sentence for sentence in told)
    return [*_what_there_is(results), *[_CAUTION] * hidden, *told]


def _what_there_is(results: Results) -> list[str]:
    seeds = len({run.seed for run in results.runs})
    told = [f"{_plural(len(results.cells), 'cell')}, {_plural(seeds, 'seed')}; differences are taken within each seed."]
    if seeds == 0:
        told = ["No run has finished: nothing can be told."]
    elif seeds == 1:
        told.append(
            "Nothing can be told about any difference from one seed: the next one may turn it round. "
            f"Run {FEW} seeds or more."
        )
    elif seeds < FEW:
        told.append(
            f"{seeds} seeds are few: only effects well above the spread between seeds can show, and that spread is itself "
            f"hardly known. Run {FEW} or more."
        )
    return told + _missing(results) + _constants(results)


def _missing(results: Results) -> list[str]:
    """Runs that failed, and runs of a study that is not at its end."""
    told = []
    failed = Counter(f"{run.outer} x {run.inner}" for run in results.failures)
    if failed:
        where = _names([f"{count} of {cell}" for cell, count in failed.items()], "cell")
        where = where if len(failed) <= _LISTED else f"in {where}"
        told.append(f"{_plural(failed.total(), 'run')} failed and cannot be counted: {where}.")
    of_its_own = {run.cell for run in (*results.runs, *results.failures) if run.outer not in results.copies}
    made = sum(run.cell in of_its_own for run in (*results.runs, *results.failures))
    if missing := len(of_its_own) * len(results.seeds) - made:
        told.append(f"{_plural(missing, 'run')} of these cells {'is' if missing == 1 else 'are'} still to be made.")
    return told


def _constants(results: Results) -> list[str]:
    levels = results.constants
    if not levels:
        return []
    names = (
        ", ".join(levels) if len(levels) <= _LISTED else f"{len(levels)} of {len(results.outer)} levels of the outer axis"
    )
    return [f"Constant weights, the baseline to beat: {names}."]


def _not_finite(results: Results, metric: str) -> list[str]:
    cells = [cell for cell in results.summary(metric) if cell.not_finite]
    if not cells:
        return []
    runs = sum(cell.not_finite for cell in cells)
    where = [f"{cell.not_finite} of {cell.n + cell.not_finite} of {cell.outer} x {cell.inner}" for cell in cells]
    named = _names(where, "cell") if len(where) <= _LISTED else f"in {_names(where, 'cell')}"
    look = "this cell then looks" if len(cells) == 1 else "these cells then look"
    return [
        f"{metric}: {_plural(runs, 'run')} gave no finite value (diverged?): {named}. Means and differences leave them out, "
        f"and {look} better than {'it is' if len(cells) == 1 else 'they are'}."
    ]


def _differences(results: Results, metric: str) -> list[str]:
    outer, inner = results.main_effect(metric, "outer"), results.main_effect(metric, "inner")
    told = []
    if outer and inner:  # else the cells are the levels of one axis
        told += _best(results, metric) + _cells(results.compare(metric))
    base = results.reference
    told += _told(outer, f"{metric}, outer axis against {base[0]}", results.inner)
    told += _told(inner, f"{metric}, inner axis against {base[1]}", results.weightings)
    best, constants = results.best_constant(metric), results.constants
    if best is not None and (constants != (base[0],) or best != base[0]):
        how = (
            "chosen for each seed on the others"
            if best in results.copies
            else "chosen on these same seeds, which favours it"
        )
        head = f"{metric}, adaptive weightings against the best constant ({best}, {how})"
        told += _told(results.against_constants(metric, "best"), head, results.inner)
    ended = results.against_constants(metric, "ended")
    told += _told(ended, f"{metric}, adaptive weightings against the constants where they ended", results.inner)
    return told + _told(results.interactions(metric), f"{metric}, interactions with {base[0]} and {base[1]}", ())


def _best(results: Results, metric: str) -> list[str]:
    """The best cell of those that have a value with every seed: the mean of others is over seeds that may be easier."""
    direction = results.metrics.get(metric)
    cells = [cell for cell in results.summary(metric) if cell.n]
    whole = [cell for cell in cells if cell.n == len(results.seeds) and cell.outer not in results.copies]
    if direction is None or not whole:
        return []
    best = (min if direction == "min" else max)(whole, key=lambda cell: cell.mean)
    name = f"{best.outer} x {best.inner}"
    lacking = any(cell.n < len(results.seeds) and cell.outer not in results.copies for cell in results.summary(metric))
    among = " of the cells with a value for every seed" if lacking else ""
    told = f"{metric} ({_BETTER[direction]} is better): {name} has the best mean{among}, {number(best.mean, best.sd)}"
    for effect in results.compare(metric):
        if effect.label == name and effect.n > 1 and effect.sd > 0:
            how = effect.relation if effect.distinguishable else "not distinguishable"
            than = "than" if effect.distinguishable else "from"
            told += f"; it is {how} {than} {effect.against}, {_size(effect)}"
    return [f"{told}."]


def _cells(effects: Sequence[Effect]) -> list[str]:
    """The cells against the reference, in one sentence."""
    groups: dict[str, list[str]] = {}
    for effect in effects:
        relation = effect.relation if effect.distinguishable else "not distinguishable"
        groups.setdefault(relation if effect.n > 1 else "without two seeds in common", []).append(effect.label)
    parts = [f"{how}: {_names(names, 'cell')}" for how, names in sorted(groups.items())]
    return [f"{effects[0].metric}, cells against {effects[0].against}: {'; '.join(parts)}."]


def _size(effect: Effect) -> str:
    low, high = (number(end, effect.sd, sign=True) for end in effect.interval)
    return f"{number(effect.mean, effect.sd, sign=True)} ({low} to {high})"


def _told(effects: Sequence[Effect], head: str, over: Sequence[str]) -> list[str]:
    """Effects of one kind in one sentence: which show, how many do not and the nearest of these, which tell nothing.

    Args:
        effects: of one family.
        head: what it is about.
        over: the levels that they are averaged over; where one is averaged over others, it is said.
    """
    if not effects:
        return []
    if len(effects) == 1:
        words = effects[0].in_words(caution=False).removeprefix(f"{effects[0].metric}: ")
        return [f"{head}: {words}"]

    def named(effect: Effect) -> str:
        other = {"outer": effect.inner, "inner": effect.outer}.get(effect.kind, ())
        apart = f" over {_names(other, 'level')}" if set(other) != set(over) and other else ""
        return effect.label + apart

    shown = sorted((effect for effect in effects if effect.distinguishable), key=lambda effect: effect.p)
    hidden = sorted((effect for effect in effects if effect.p_adjusted >= LEVEL), key=lambda effect: effect.p)
    parts = []
    groups: dict[str, list[Effect]] = {}
    for effect in shown:
        groups.setdefault("the axes interact" if effect.kind == "interaction" else effect.relation, []).append(effect)
    for how, same in sorted(groups.items()):
        more = f" and {len(same) - _LISTED} more" if len(same) > _LISTED else ""
        parts.append(f"{how}: {', '.join(f'{named(effect)} {_size(effect)}' for effect in same[:_LISTED])}{more}")
    if hidden:
        first = hidden[0]
        many = "" if len(hidden) == 1 else f"{len(hidden)} of {len(effects)}, the clearest "
        takes = f", of a size that takes {first.seeds_in_words} to show" if first.seeds_needed else ""
        alone = ", which would pass as the only comparison" if first.p < LEVEL else takes
        parts.append(f"not distinguishable: {many}{named(first)} {_size(first)}{alone}")
    rest = [effect for effect in effects if math.isnan(effect.p)]
    spreadless = [effect for effect in rest if effect.n > 1]
    for what, some in (
        ("without two seeds in common", [effect for effect in rest if effect.n < 2]),
        ("the same values", [effect for effect in spreadless if effect.mean == 0]),
        (
            "a difference that is the same with each seed (does the training function use its seed?)",
            [effect for effect in spreadless if effect.mean != 0],
        ),
    ):
        if some:
            parts.append(f"{what}: {_names([named(effect) for effect in some], 'comparison')}")
    return [f"{head}: {'; '.join(parts)}."]


def _typical(spreads: Iterable[float]) -> float:
    """The spread whose digits a column shows."""
    known = [spread for spread in spreads if spread > 0]
    return statistics.median_low(known) if known else 0.0


def table(results: Results, metric: str) -> str:
    """Return the cells with one metric as aligned text."""
    direction = results.metrics.get(metric)
    better = "" if direction is None else f", {_BETTER[direction]} is better"
    summaries, compared = results.summary(metric), results.compare(metric)
    effects = {(effect.outer[1], effect.inner[1]): effect for effect in compared}
    spread, noise = _typical(cell.sd for cell in summaries), _typical(effect.sd for effect in compared)
    base = " x ".join(results.reference)
    head = ["outer", "inner", "n", "mean", "sd", f"minus {base}", "95 % interval", "p", "seeds needed"]
    rows = [head]
    for cell in summaries:
        count = f"{cell.n}*" if cell.not_finite else str(cell.n)
        row = [cell.outer, cell.inner, count, number(cell.mean, spread), number(cell.sd, spread)]
        effect = effects.get((cell.outer, cell.inner))
        rows.append(row + (_row(effect, noise) if effect else [""] * 4))
    widths = [max(len(row[column]) for row in rows) for column in range(len(head))]
    lines = [
        "  ".join(text.ljust(width) for text, width in zip(row[:2], widths[:2], strict=True))
        + "".join(f"  {text:>{width}}" for text, width in zip(row[2:], widths[2:], strict=True))
        for row in rows
    ]
    family = compared[0].family if compared else 0
    foot = [f"p is corrected for {family} comparisons."] if family > 1 else []
    foot += [
        f"* {cell.outer} x {cell.inner}: {_plural(cell.not_finite, 'run')} without a finite value left out"
        for cell in summaries
        if cell.not_finite
    ]
    return "\n".join([f"{metric}{better}", *(line.rstrip() for line in lines), *foot])


def _row(effect: Effect, noise: float) -> list[str]:
    difference = number(effect.mean, noise, sign=True)
    if math.isnan(effect.p):
        return [difference, "-", "-", "-"]
    low, high = (number(end, noise, sign=True) for end in effect.interval)
    p = f"{effect.p_adjusted:.3f}" if effect.p_adjusted >= 0.001 else "<0.001"
    needed = effect.seeds_needed
    seeds = "-" if needed is None else str(needed) if needed <= MOST_SEEDS else f">{MOST_SEEDS}"
    return [difference, f"{low} to {high}", p, seeds]
