"""What a study says, as sentences and as a table."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from mtl_axes.effects import FEW, Effect, number

if TYPE_CHECKING:
    from mtl_axes.results import Results

__all__ = ["sentences", "table"]

_TOLD = 6  # effects of one kind that are told one by one


def _plural(count: int, word: str) -> str:
    return f"{count} {word}" if count == 1 else f"{count} {word}s"


def sentences(results: Results, metrics: Iterable[str]) -> list[str]:
    """Return what a study says about some of its metrics."""
    return [*_what_there_is(results), *itertools.chain.from_iterable(_about(results, metric) for metric in metrics)]


def _what_there_is(results: Results) -> list[str]:
    seeds = {run.seed for run in results.runs}
    if not results.runs:
        told = ["No run has finished: nothing can be told."]
    elif len(seeds) == 1:
        told = [
            f"One seed: nothing can be told about any difference, because another seed may turn it round. Run {FEW} seeds or more."
        ]
    else:
        told = [f"{_plural(len(results.cells), 'cell')}, {len(seeds)} seeds; differences are taken within each seed."]
        if len(seeds) < FEW:
            told.append(
                f"{len(seeds)} seeds are few: only effects several times as large as the spread between seeds can be seen, and "
                f"how large that spread is, is hardly known. Run {FEW} seeds or more."
            )
    failed = Counter(f"{run.outer} x {run.inner}" for run in results.failures)
    told += [f"{_plural(count, 'run')} of {cell} failed and cannot be counted." for cell, count in failed.items()]
    if constants := results.constants:
        told.append(f"Constant weights, the baseline to beat: {', '.join(constants)}.")
    return told


def _about(results: Results, metric: str) -> list[str]:
    told = []
    summaries = results.summary(metric)
    for cell in summaries:
        if cell.not_finite:
            runs = cell.n + cell.not_finite
            told.append(
                f"{metric}: {cell.not_finite} of {_plural(runs, 'run')} of {cell.outer} x {cell.inner} gave no finite value "
                "(diverged?). Means and differences leave them out, which makes this cell look better than it is."
            )
    told += _cells(results, metric)
    for axis in ("outer", "inner"):
        told += _told(results.main_effect(metric, axis))
    seen = {(effect.label, effect.against) for effect in results.main_effect(metric, "outer")}
    told += _told([effect for effect in results.against_constants(metric) if (effect.label, effect.against) not in seen])
    return told + _told(results.interactions(metric))


def _cells(results: Results, metric: str) -> list[str]:
    """The cells against the reference: the best one in words, the others by name."""
    effects = results.compare(metric)
    if not effects:
        return []
    told = []
    compared = [effect for effect in effects if effect.n]
    direction = results.metrics.get(metric)
    if compared and direction is not None:
        best = min(compared, key=lambda effect: effect.mean if direction == "min" else -effect.mean)
        if best.relation == "better" and best.mean != 0:
            told.append(best.in_words())
    else:
        told += _told(effects)
        return told
    groups: dict[str, list[str]] = {}
    for effect in effects:
        groups.setdefault(effect.relation if effect.distinguishable else "not distinguishable", []).append(effect.label)
    base = effects[0].against
    told += [
        f"{metric}: {group} {'from' if group.startswith('not') else 'than'} {base}: {', '.join(names)}."
        for group, names in sorted(groups.items())
    ]
    return told


def _told(effects: Sequence[Effect]) -> list[str]:
    """Effects of one kind: all in words where they are few, else those that can be told apart, and the number of the others."""
    if len(effects) <= _TOLD:
        return [effect.in_words() for effect in effects]
    clear = [effect for effect in effects if effect.distinguishable]
    rest = [effect for effect in effects if not effect.distinguishable]
    told = [effect.in_words() for effect in clear]
    if rest:
        kind = {"interaction": "interactions", "cell": "cells"}.get(rest[0].kind, "comparisons")
        told.append(
            f"{rest[0].metric}: {len(rest)} of {len(effects)} {kind} are not distinguishable from no difference, which does not "
            "show that there is none."
        )
    return told


def table(results: Results, metric: str) -> str:
    """Return the cells with one metric as aligned text."""
    better = {"min": ", lower is better", "max": ", higher is better", None: ""}[results.metrics.get(metric)]
    effects = {effect.label: effect for effect in results.compare(metric)}
    base = " x ".join(results.reference)
    rows = [["outer", "inner", "n", "mean", "sd", f"minus {base}", "95 % interval", "p", "seeds needed"]]
    left_out = False
    for cell in results.summary(metric):
        star = "*" if cell.not_finite else ""
        left_out |= bool(star)
        row = [cell.outer, cell.inner, f"{cell.n}{star}", number(cell.mean, cell.sd), number(cell.sd, cell.sd)]
        effect = effects.get(f"{cell.outer} x {cell.inner}")
        if effect is None:
            row += ["", "", "", ""]
        else:
            low, high = (number(end, effect.sd, sign=True) for end in effect.interval)
            row += [
                number(effect.mean, effect.sd, sign=True),
                f"{low} to {high}" if math.isfinite(effect.interval[0]) else "-",
                f"{effect.p_adjusted:.3f}" if math.isfinite(effect.p_adjusted) else "-",
                "-" if effect.seeds_needed is None else str(effect.seeds_needed),
            ]
        rows.append(row)
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [
        "  ".join(
            text.ljust(width) if column < 2 else text.rjust(width)
            for column, (text, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]
    foot = [f"p is corrected for {_plural(len(effects), 'comparison')}."] if len(effects) > 1 else []
    if left_out:
        foot.append("* runs without a finite value are left out.")
    return "\n".join([f"{metric}{better}", *(line.rstrip() for line in lines), *foot])
