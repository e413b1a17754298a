"""Contrasts between the cells of a study, taken within each seed and computed from its runs.

The statistics need numpy and scipy (``mtl_axes[study]``), so they are imported when a number is asked for.
"""

from __future__ import annotations

import math
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Literal, NamedTuple

from mtl_axes.study.effects import Effect, Summary
from mtl_axes.study.runs import Axis, Cell, Direction, Run

__all__ = [
    "Contrast", "Values", "best_constant", "between", "cells_of", "crossed", "effects", "finite_values", "front",
    "pairwise", "summary",
]  # fmt: skip

Values = Mapping[Cell, Mapping[int, float]]

_LARGEST = 1e300  # a run whose metric exceeds it has diverged like one whose metric is infinite: sums of several overflow
_ROUNDING = 5e-7  # float32 accuracies that all differ by 0.01 do so only to within this; it is no spread between seeds


class Contrast(NamedTuple):
    """A sum of cells with signs, and how an :class:`Effect` names it."""

    label: str
    against: str
    kind: Literal["cell", "outer", "inner", "interaction"]
    outer: tuple[str, ...]
    inner: tuple[str, ...]
    plus: tuple[Cell, ...]
    minus: tuple[Cell, ...]


def cells_of(runs: Iterable[Run], outer: Iterable[str], inner: Sequence[str]) -> list[Cell]:
    """Return the cells that have runs: outer by outer, inner by inner."""
    known = {run.cell for run in runs}
    return [(level, shape) for level in outer for shape in inner if (level, shape) in known]


def finite_values(runs: Iterable[Run], metric: str, seeds: Sequence[int]) -> dict[Cell, dict[int, float]]:
    """Return the finite values of a metric by cell and seed, seeds in order. A cell without any is left out."""
    values: dict[Cell, dict[int, float]] = {}
    for run in sorted((run for run in runs if run.seed in seeds), key=lambda run: seeds.index(run.seed)):
        if _counts(value := run.metrics.get(metric, math.nan)):
            values.setdefault(run.cell, {})[run.seed] = value
    return values


def summary(cell: Cell, values: Sequence[float]) -> Summary:
    """Return n, mean and standard deviation of the values of a cell, diverged ones counted and left out."""
    from mtl_axes.study import statistics

    finite = [value for value in values if _counts(value)]
    mean, sd = statistics.mean_and_sd(finite)
    return Summary(*cell, len(finite), float(mean), float(sd), len(values) - len(finite))


def pairwise(cell: Cell, base: Cell) -> Contrast:
    """Return a cell minus another."""
    return Contrast(_name(cell), _name(base), "cell", (base[0], cell[0]), (base[1], cell[1]), (cell,), (base,))


def crossed(outer: tuple[str, str], inner: tuple[str, str]) -> Contrast:
    """Return (D - C) - (B - A) of the four cells A, B, C, D of two outer and two inner levels."""
    a, b, c, d = ((level, shape) for level in outer for shape in inner)
    return Contrast(_name(d), _name(a), "interaction", outer, inner, (d, a), (c, b))


def between(
    axis: Axis, pairs: Iterable[tuple[str, str]], others: Iterable[str], tried: Container[Cell], values: Container[Cell]
) -> list[Contrast]:
    """Return level minus base for every pair (level, base) of an axis, averaged over those of the other levels at which both
    have values. A pair is left out if both were tried at none of them."""

    def of(level: str, other: str) -> Cell:
        return (level, other) if axis == "outer" else (other, level)

    contrasts = []
    for level, base in pairs:
        both = [other for other in others if of(level, other) in tried and of(base, other) in tried]
        shared = tuple(other for other in both if of(level, other) in values and of(base, other) in values)
        outer, inner = ((base, level), shared) if axis == "outer" else (shared, (base, level))
        plus, minus = tuple(of(level, other) for other in shared), tuple(of(base, other) for other in shared)
        contrasts += [Contrast(level, base, axis, outer, inner, plus, minus)] if both else []
    return contrasts


def effects(contrasts: Iterable[Contrast], values: Values, metric: str, direction: Direction | None) -> list[Effect]:
    """Return the effects of contrasts in a metric, corrected as one family of comparisons."""
    from mtl_axes.study import statistics

    family = []
    for contrast in contrasts:
        cells = [values.get(cell, {}) for cell in (*contrast.plus, *contrast.minus)]
        signs = [1] * len(contrast.plus) + [-1] * len(contrast.minus)
        share = 1 if contrast.kind == "interaction" else max(len(contrast.plus), 1)
        differences = {
            seed: math.fsum(sign * cell[seed] for sign, cell in zip(signs, cells, strict=True)) / share
            for seed in (cells[0] if cells else ())
            if all(seed in cell for cell in cells)
        }
        numbers = list(differences.values())
        size = max((abs(cell[seed]) for cell in cells for seed in differences), default=0.0)
        if numbers and max(numbers) - min(numbers) <= _ROUNDING * size:
            numbers = [math.fsum(numbers) / len(numbers)] * len(numbers)
        mean, sd = (float(value) for value in statistics.mean_and_sd(numbers))
        low, high = statistics.t_interval(numbers)
        effect = Effect(
            label=contrast.label,
            against=contrast.against,
            kind=contrast.kind,
            outer=contrast.outer,
            inner=contrast.inner,
            metric=metric,
            direction=direction,
            differences=differences,
            mean=mean,
            sd=sd,
            n=len(numbers),
            interval=(float(low), float(high)),
            p=float(statistics.p_value(numbers)),
            p_adjusted=math.nan,
            family=0,
            seeds_needed=statistics.seeds_needed(mean / sd) if sd > 0 else None,
        )
        family.append(effect)
    count = sum(math.isfinite(effect.p) for effect in family)
    adjusted = statistics.holm([effect.p for effect in family])
    return [replace(effect, p_adjusted=float(p), family=count) for effect, p in zip(family, adjusted, strict=True)]


def best_constant(
    values: Values, constants: Iterable[str], inner: Sequence[str], tried: Sequence[Cell], seeds: int, direction: Direction
) -> str | None:
    """Return the constant with the best mean, of those with a value for all seeds in every cell that was tried; the mean is
    over the inner levels that all of these have. None without such constants."""
    whole = [level for level in constants if all(len(values.get(cell, ())) == seeds for cell in tried if cell[0] == level)]
    shared = [shape for shape in inner if whole and all((level, shape) in values for level in whole)]
    if not shared:
        return None
    totals = {level: sum(sum(values[level, shape].values()) for shape in shared) for level in whole}
    return (min if direction == "min" else max)(whole, key=lambda level: totals[level])


def front(first: Values, second: Values, cells: Iterable[Cell], directions: Sequence[Direction]) -> list[Cell]:
    """Return the cells on the Pareto front of the means of two metrics, among those that lack no seed."""
    both = (first, second)
    seeds = {seed for metric in both for cell in metric.values() for seed in cell}
    signs = [1 if direction == "min" else -1 for direction in directions]
    costs = {
        cell: [sign * math.fsum(metric[cell].values()) / len(seeds) for sign, metric in zip(signs, both, strict=True)]
        for cell in cells
        if seeds and all(metric.get(cell, {}).keys() == seeds for metric in both)
    }

    def dominated(cost: list[float]) -> bool:
        return any(other != cost and other[0] <= cost[0] and other[1] <= cost[1] for other in costs.values())

    return [cell for cell, cost in costs.items() if not dominated(cost)]


def _counts(value: float) -> bool:
    return abs(value) <= _LARGEST  # False for NaN


def _name(cell: Cell) -> str:
    return f"{cell[0]} x {cell[1]}"
