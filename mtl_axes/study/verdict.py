"""What a study says, as sentences and as a table."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from mtl_axes.study.effects import FEW, MOST_SEEDS, Effect, number

if TYPE_CHECKING:
    from mtl_axes.study.results import Results

__all__ = ["sentences", "table"]

_ONE_BY_ONE = 6  # effects of one kind that are all told in words
_NAMED = 10
_BETTER = {"min": "lower", "max": "higher"}


def _plural(count: int, word: str) -> str:
    return f"{count} {word}" if count == 1 else f"{count} {word}s"


def sentences(results: Results, metrics: Iterable[str]) -> list[str]:
    """Return what a study says about some of its metrics."""
    told = _what_there_is(results)
    for metric in metrics:
        told += _not_finite(results, metric)
        if len({run.seed for run in results.runs}) > 1:
            told += _differences(results, metric)
    return told


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
    failed = Counter(f"{run.outer} x {run.inner}" for run in results.failures)
    told += [f"{_plural(count, 'run')} of {cell} failed and cannot be counted." for cell, count in failed.items()]
    if constants := results.constants:
        told.append(f"Constant weights, the baseline to beat: {', '.join(constants)}.")
    return told


def _not_finite(results: Results, metric: str) -> list[str]:
    return [
        f"{metric}: {cell.not_finite} of {_plural(cell.n + cell.not_finite, 'run')} of {cell.outer} x {cell.inner} gave no "
        "finite value (diverged?). Means and differences leave them out, and this cell then looks better than it is."
        for cell in results.summary(metric)
        if cell.not_finite
    ]


def _differences(results: Results, metric: str) -> list[str]:
    outer, inner = results.main_effect(metric, "outer"), results.main_effect(metric, "inner")
    told = []
    if outer and inner:  # else the cells are the levels of one axis
        told += _cells(results, metric)
    told += _effects(outer, f"levels of the outer axis are not distinguishable from {results.reference[0]}")
    told += _effects(inner, f"levels of the inner axis are not distinguishable from {results.reference[1]}")
    known = {(effect.label, effect.against) for effect in outer}
    others = [effect for effect in results.against_constants(metric) if (effect.label, effect.against) not in known]
    told += _effects(others, "pairs of an adaptive and a constant weighting are not distinguishable")
    return told + _effects(results.interactions(metric), "interactions are not distinguishable from none")


def _cells(results: Results, metric: str) -> list[str]:
    """The best cell, and the cells against the reference: the best of them in words, all by name."""
    told = []
    effects = results.compare(metric)
    direction = results.metrics.get(metric)
    summaries = [cell for cell in results.summary(metric) if cell.n]
    if direction is not None and summaries:
        best = (min if direction == "min" else max)(summaries, key=lambda cell: cell.mean)
        name = f"{best.outer} x {best.inner}"
        told.append(f"{metric} ({_BETTER[direction]} is better): {name} has the best mean, {number(best.mean, best.sd)}.")
        told += [effect.in_words() for effect in effects if effect.label == name]
    groups: dict[str, list[str]] = {}
    for effect in effects:
        relation = f"{effect.relation} than" if effect.distinguishable else "not distinguishable from"
        groups.setdefault(relation if effect.n > 1 else "without two seeds in common with", []).append(effect.label)
    return told + [
        f"{metric}: {how} {effects[0].against}: {', '.join(names) if len(names) <= _NAMED else f'{len(names)} cells'}."
        for how, names in sorted(groups.items())
    ]


def _effects(effects: Sequence[Effect], rest: str) -> list[str]:
    """Effects of one kind: all in words where they are few, else those that are distinguishable, and how many are not."""
    if len(effects) <= _ONE_BY_ONE:
        return [effect.in_words() for effect in effects]
    told = [effect.in_words() for effect in effects if effect.distinguishable]
    if others := len(effects) - len(told):
        told.append(
            f"{effects[0].metric}: {others} of {len(effects)} {rest}, which does not mean that there is no difference."
        )
    return told


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
