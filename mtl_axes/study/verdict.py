"""The verdict of a study as sentences, and its cells as a table."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from typing import NamedTuple

from mtl_axes._text import first_of, names_or_count, plural
from mtl_axes._text import table as aligned
from mtl_axes.study.effects import FEW, LEVEL, MOST_SEEDS, Effect, Summary, number
from mtl_axes.study.runs import Cell, Direction, Run

__all__ = ["CAUTION", "Answers", "about_metric", "about_runs", "diverged", "table"]

_LISTED = 3  # levels or cells that a sentence names one by one
_BETTER = {"min": "lower", "max": "higher"}
CAUTION = (
    '"No significant difference" does not mean no difference: the 95 % interval in brackets shows how large it may still '
    'be. Intervals are not corrected for the number of comparisons; "better" and "worse" are.'
)


class Answers(NamedTuple):
    """What a study says about one metric: summaries of its cells, and each family of its effects."""

    metric: str
    direction: Direction | None
    summaries: Sequence[Summary]
    cells: Sequence[Effect]
    outer: Sequence[Effect]
    inner: Sequence[Effect]
    best: str | None
    against_best: Sequence[Effect]
    against_ended: Sequence[Effect]
    interactions: Sequence[Effect]


def about_runs(
    runs: Sequence[Run],
    failures: Sequence[Run],
    *,
    seeds: int,
    levels: int,
    constants: Sequence[str],
    copies: Collection[str],
) -> list[str]:
    """Return how many runs there are, whether the seeds are enough, and which runs are missing.

    ``seeds`` and ``levels`` are numbers in the study, of seeds and of outer levels; ``copies`` are the outer levels without
    runs of their own.
    """
    trained = len({run.seed for run in runs})
    cells = len({run.cell for run in runs})
    sentences = [f"{plural(cells, 'cell')}, {plural(trained, 'seed')}; differences are taken within each seed."]
    if trained == 0:
        sentences = ["No run has finished: there is nothing to compare."]
    elif trained == 1:
        sentences.append(f"One seed cannot show a difference: another seed may reverse it. Run {FEW} seeds or more.")
    elif trained < FEW:
        sentences.append(
            f"{trained} seeds are few: they show only effects well above the spread between seeds, and that spread is "
            f"itself hardly known. Run {FEW} or more."
        )
    failed = Counter(" x ".join(run.cell) for run in failures)
    if failed:
        where = _where([f"{count} of {cell}" for cell, count in failed.items()])
        sentences.append(f"{plural(failed.total(), 'run')} failed and {_is(failed.total())} not counted: {where}.")
    own = [run.cell for run in (*runs, *failures) if run.outer not in copies]
    if missing := len(set(own)) * seeds - len(own):
        sentences.append(f"{plural(missing, 'run')} of these cells {_is(missing)} still to be trained.")
    if constants:
        many = f"{len(constants)} of {levels} levels of the outer axis"
        names = ", ".join(constants) if len(constants) <= _LISTED else many
        sentences.append(f"Constant weights, the baseline to beat: {names}.")
    return sentences


def _is(count: int) -> str:
    return "is" if count == 1 else "are"


def _where(parts: Sequence[str]) -> str:
    return f"{'in ' if len(parts) > _LISTED else ''}{names_or_count(parts, _LISTED, 'cell')}"


def diverged(metric: str, summaries: Iterable[Summary]) -> list[str]:
    """Return which cells have runs without a finite value."""
    cells = [cell for cell in summaries if cell.not_finite]
    if not cells:
        return []
    where = _where([f"{cell.not_finite} of {cell.n + cell.not_finite} of {cell.name}" for cell in cells])
    look = "this cell looks better than it is" if len(cells) == 1 else "these cells look better than they are"
    runs = plural(sum(cell.not_finite for cell in cells), "run")
    left_out = f"Means and differences leave them out, so {look}."
    return [f"{metric}: {runs} gave no finite value (diverged?): {where}. {left_out}"]


def about_metric(
    answers: Answers,
    *,
    seeds: int,
    reference: Cell,
    inner: Sequence[str],
    weightings: Sequence[str],
    constants: Sequence[str],
    copies: Collection[str],
) -> list[str]:
    """Return the best cell, each axis, the adaptive weightings against constants, and the interactions."""
    metric, (outer, shape) = answers.metric, reference
    sentences = []
    if answers.outer and answers.inner:  # else the cells are the levels of one axis
        sentences += _best(answers, seeds, copies) + _cells(answers.cells)
    sentences += _family(answers.outer, f"{metric}, outer axis against {outer}", inner)
    sentences += _family(answers.inner, f"{metric}, inner axis against {shape}", weightings)
    if answers.best is not None and (tuple(constants) != (outer,) or answers.best != outer):
        how = "chosen on these same seeds, which favours it"
        how = "chosen for each seed on the others" if answers.best in copies else how
        head = f"{metric}, adaptive weightings against the best constant ({answers.best}, {how})"
        sentences += _family(answers.against_best, head, inner)
    head = f"{metric}, adaptive weightings against the constants where they ended"
    sentences += _family(answers.against_ended, head, inner)
    return sentences + _family(answers.interactions, f"{metric}, interactions with {outer} and {shape}", ())


def _best(answers: Answers, seeds: int, copies: Collection[str]) -> list[str]:
    """The best of the cells with a value for every seed: the mean of another may leave out a seed that is hard for all."""
    own = [cell for cell in answers.summaries if cell.outer not in copies]
    whole = [cell for cell in own if cell.n and cell.n == seeds]
    if answers.direction is None or not whole:
        return []
    best = (min if answers.direction == "min" else max)(whole, key=lambda cell: cell.mean)
    among = " of the cells with a value for every seed" if any(cell.n < seeds for cell in own) else ""
    better = f"{answers.metric} ({_BETTER[answers.direction]} is better)"
    sentence = f"{better}: {best.name} has the best mean{among}, {number(best.mean, best.sd)}"
    for effect in answers.cells:
        if effect.label == best.name and effect.n > 1 and effect.sd > 0:
            differs = f"is {effect.relation} than" if effect.distinguishable else "does not differ significantly from"
            sentence += f"; it {differs} {effect.against}, {_size(effect)}"
    return [f"{sentence}."]


def _cells(effects: Sequence[Effect]) -> list[str]:
    """The cells against the reference, in one sentence."""
    groups: dict[str, list[str]] = {}
    for effect in effects:
        relation = effect.relation if effect.distinguishable else "no significant difference"
        groups.setdefault(relation if effect.n > 1 else "too few seeds in common", []).append(effect.label)
    parts = [f"{relation}: {names_or_count(names, _LISTED, 'cell')}" for relation, names in sorted(groups.items())]
    return [f"{effects[0].metric}, cells against {effects[0].against}: {'; '.join(parts)}."]


def _size(effect: Effect) -> str:
    mean, low, high = (number(value, effect.sd, sign=True) for value in (effect.mean, *effect.interval))
    return f"{mean} ({low} to {high})"


def _family(effects: Sequence[Effect], head: str, over: Sequence[str]) -> list[str]:
    """Effects of one family in one sentence: the significant ones, the clearest of the others, those without a test. An
    effect that is not averaged over the levels ``over`` says so."""
    if not effects:
        return []
    if len(effects) == 1:
        return [f"{head}: {effects[0].in_words(caution=False).removeprefix(f'{effects[0].metric}: ')}"]

    def named(effect: Effect) -> str:
        other = {"outer": effect.inner, "inner": effect.outer}.get(effect.kind, ())
        apart = f" over {names_or_count(other, _LISTED, 'level')}" if set(other) != set(over) and other else ""
        return effect.label + apart

    untested = [effect for effect in effects if math.isnan(effect.p)]
    ordered = sorted((effect for effect in effects if not math.isnan(effect.p)), key=lambda effect: effect.p)
    groups: dict[str, list[str]] = {}
    for effect in ordered:
        if effect.distinguishable:
            relation = "the axes interact" if effect.kind == "interaction" else effect.relation
            groups.setdefault(relation, []).append(f"{named(effect)} {_size(effect)}")
    parts = [f"{relation}: {first_of(names, _LISTED)}" for relation, names in sorted(groups.items())]
    hidden = [effect for effect in ordered if effect.p_adjusted >= LEVEL]
    if hidden:
        first = hidden[0]
        many = "" if len(hidden) == 1 else f"{len(hidden)} of {len(effects)}, the clearest "
        takes = f", which takes {first.seeds_in_words} to detect" if first.seeds_needed else ""
        takes = ", significant as the only comparison" if first.p < LEVEL else takes
        parts.append(f"no significant difference: {many}{named(first)} {_size(first)}{takes}")
    for what, some in (
        ("too few seeds in common", [effect for effect in untested if effect.n < 2]),
        ("the same values", [effect for effect in untested if effect.n > 1 and effect.mean == 0]),
        (
            "the same difference with each seed (does the training function use its seed?)",
            [effect for effect in untested if effect.n > 1 and effect.mean != 0],
        ),
    ):
        if some:
            parts.append(f"{what}: {names_or_count([named(effect) for effect in some], _LISTED, 'comparison')}")
    return [f"{head}: {'; '.join(parts)}."]


def table(
    metric: str, direction: Direction | None, reference: Cell, summaries: Sequence[Summary], effects: Sequence[Effect]
) -> str:
    """Return the cells with one metric, and their differences to the reference, as aligned text."""
    against = {(effect.outer[1], effect.inner[1]): effect for effect in effects}
    spread, noise = _typical(cell.sd for cell in summaries), _typical(effect.sd for effect in effects)
    heads = ["outer", "inner", "n", "mean", "sd", f"minus {' x '.join(reference)}", "95 % interval", "p", "seeds needed"]
    rows = [heads]
    for cell in summaries:
        count = f"{cell.n}*" if cell.not_finite else str(cell.n)
        effect = against.get((cell.outer, cell.inner))
        difference = _row(effect, noise) if effect else [""] * 4
        rows.append([cell.outer, cell.inner, count, number(cell.mean, spread), number(cell.sd, spread), *difference])
    lines = [f"{metric}{'' if direction is None else f', {_BETTER[direction]} is better'}", aligned(rows, left=(0, 1))]
    if effects and effects[0].family > 1:
        lines.append(f"p is corrected for {effects[0].family} comparisons.")
    for cell in summaries:
        if cell.not_finite:
            lines.append(f"* {cell.name}: {plural(cell.not_finite, 'run')} without a finite value left out")
    return "\n".join(lines)


def _typical(spreads: Iterable[float]) -> float:
    """The spread whose digits a column shows."""
    known = [spread for spread in spreads if spread > 0]
    return statistics.median_low(known) if known else 0.0


def _row(effect: Effect, noise: float) -> list[str]:
    difference = number(effect.mean, noise, sign=True)
    if math.isnan(effect.p):
        return [difference, "-", "-", "-"]
    low, high = (number(end, noise, sign=True) for end in effect.interval)
    p = f"{effect.p_adjusted:.3f}" if effect.p_adjusted >= 0.001 else "<0.001"
    needed = effect.seeds_needed
    seeds = "-" if needed is None else str(needed) if needed <= MOST_SEEDS else f">{MOST_SEEDS}"
    return [difference, f"{low} to {high}", p, seeds]
