"""What a study says in words and in its table."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from mtl_axes.errors import OptionError
from mtl_axes.study import Effect, Results, Run

LEVELS = (("fixed", "mse"), ("fixed", "huber"), ("gaba", "mse"), ("gaba", "huber"))


def study(
    values: Mapping[tuple[str, str], list[float]], direction: str | None = "min", failures: tuple[Run, ...] = ()
) -> Results:
    """One metric by cell and seed."""
    runs = tuple(Run(*cell, seed, {"rmse": value}) for cell, found in values.items() for seed, value in enumerate(found))
    outer, inner = (tuple(dict.fromkeys(cell[axis] for cell in values)) for axis in (0, 1))
    seeds = tuple(range(max(map(len, values.values()))))
    constants = tuple(level for level in outer if level == "fixed")
    known: dict[str, Any] = {"rmse": direction}
    return Results(outer, inner, seeds, known, ("fixed", "mse"), runs, failures, constants)


def effect(differences: list[float], direction: str | None = "min") -> Effect:
    """gaba x mse minus fixed x mse."""
    base = [10.0 + 3 * seed for seed in range(len(differences))]
    cells = {("fixed", "mse"): base, ("gaba", "mse"): [b + d for b, d in zip(base, differences, strict=True)]}
    return study(cells, direction).compare("rmse")[0]


def test_a_difference_that_shows() -> None:
    """It is called by its direction, with its size, interval, seeds and p-value."""
    assert effect([-1.0, -1.2, -0.9, -1.1, -0.8]).in_words() == (
        "rmse: gaba x mse is better than fixed x mse: -1.00 (95 % interval -1.20 to -0.80, 5 seeds; p < 0.001)."
    )
    assert "is worse than" in effect([-1.0, -1.2, -0.9, -1.1, -0.8], "max").in_words()
    assert "is lower than" in effect([-1.0, -1.2, -0.9, -1.1, -0.8], None).in_words()
    assert "is worse than" in effect([1.0, 1.2, 0.9, 1.1, 0.8]).in_words()


def test_a_difference_that_does_not_show() -> None:
    """It does not differ significantly, which is not called equal; the interval and the seeds that it would take are
    given."""
    difference = effect([-1.0, 0.4, -0.5, 0.3, -0.2])
    assert difference.in_words() == (
        "rmse: gaba x mse does not differ significantly from fixed x mse: -0.20 (95 % interval -0.92 to +0.52, 5 seeds). "
        f"Detecting an effect of this size takes about {difference.seeds_needed} seeds. No significant difference does not "
        "mean no difference."
    )
    assert "more than 10,000 seeds" in effect([1.0, -1.0, 0.5, -0.5, 0.001]).in_words()
    balanced = effect([1.0, -1.0, 0.5, -0.5]).in_words()
    assert "does not differ significantly" in balanced and "does not mean no difference" in balanced


@pytest.mark.parametrize("count", [2, 3, 4, 5, 6])
def test_few_seeds_are_said(count: int) -> None:
    """Fewer than five seeds are called few in the sentence and in the verdict."""
    differences = [0.1 * (-1) ** seed + seed for seed in range(count)]
    assert ("only" in effect(differences).in_words()) == (count < 5)
    base = [1.0 * seed for seed in range(count)]
    sentences = study(
        {("fixed", "mse"): base, ("gaba", "mse"): [b + d for b, d in zip(base, differences, strict=True)]}
    ).verdict()
    assert any("seeds are few" in sentence for sentence in sentences) == (count < 5)


def test_one_seed_shows_nothing() -> None:
    """A study of one seed says so once, and says nothing about any difference."""
    results = study({cell: [1.0 + place] for place, cell in enumerate(LEVELS)})
    sentences = results.verdict()
    assert any(sentence.startswith("One seed cannot show a difference") for sentence in sentences)
    assert not re.search("better|worse|distinguishable|significant|best", " ".join(sentences))
    assert results.compare("rmse")[1].in_words() == (
        "rmse: gaba x mse minus fixed x mse is +2 with seed 0, the only one; another seed may reverse the sign."
    )


def test_no_seed_and_no_spread_are_said() -> None:
    """Nothing in common, the same values, and a difference that never varies are distinguished."""
    assert "cannot be compared with fixed x mse: no seed has a finite value" in effect([math.nan, math.nan]).in_words()
    assert "have the same value with each of 3 seeds" in effect([0.0, 0.0, 0.0]).in_words()
    words = effect([0.5, 0.5, 0.5]).in_words()
    assert "is +0.5 with each of 3 seeds" in words and "check that the training function uses its seed" in words
    assert Results(("fixed",), ("mse",), (0,), {"rmse": "min"}, ("fixed", "mse"), ()).verdict() == [
        "No run has finished: there is nothing to compare."
    ]


def test_one_among_many_comparisons_is_not_enough() -> None:
    """A cell whose own p-value is below 0.05 but not after the correction: no significant difference, and why is said."""
    noise = np.random.default_rng(0).normal(size=(7, 5))
    base = [10.0, 13.0, 16.0, 19.0, 22.0]
    cells = {("fixed", "mse"): base} | {
        (f"w{k}", "mse"): [b + e for b, e in zip(base, noise[k], strict=True)] for k in range(7)
    }
    cells["w0", "mse"] = [b + d for b, d in zip(base, [-1.0, -0.2, -1.6, -0.4, -1.3], strict=True)]
    effect = next(e for e in study(cells).compare("rmse") if e.label == "w0 x mse")
    assert effect.p < 0.05 < effect.p_adjusted
    assert effect.in_words().endswith(
        "As the only comparison it would be significant; among 7 comparisons, some look like this by chance. Run more seeds."
    )


def grid(seed: int, inner: float = 0.0, interaction: float = 0.0, seeds: int = 5) -> Results:
    generator = np.random.default_rng(seed)
    of_seed = 14 + 5 * generator.normal(size=seeds)
    effects = dict(zip(LEVELS, (0.0, inner, 0.0, inner + interaction), strict=True))
    return study({cell: list(of_seed + effect + 0.3 * generator.normal(size=seeds)) for cell, effect in effects.items()})


def test_the_verdict_of_two_axes() -> None:
    """It names the constants, the best cell, what each axis does and that the axes do not visibly interact."""
    sentences = grid(0, inner=-3.0).verdict("rmse")
    assert sentences[0] == "4 cells, 5 seeds; differences are taken within each seed."
    assert sentences[1] == "Constant weights, the baseline to beat: fixed."
    assert sentences[2].startswith('"No significant difference" does not mean no difference')
    best = (
        r"rmse \(lower is better\): (fixed|gaba) x huber has the best mean, [0-9.]+; it is better than fixed x mse, -3\.\d+ "
    )
    assert re.match(best, sentences[3])
    assert (
        sentences[4]
        == "rmse, cells against fixed x mse: better: fixed x huber, gaba x huber; no significant difference: gaba x mse."
    )
    assert sentences[5].startswith(
        "rmse, outer axis against fixed: gaba does not differ significantly from fixed, averaged over mse, huber"
    )
    assert sentences[6].startswith("rmse, inner axis against mse: huber is better than mse, averaged over fixed, gaba: -")
    assert (
        "huber instead of mse under gaba does not differ significantly from the effect under fixed" in sentences[7]
        and len(sentences) == 8
    )


def test_the_verdict_of_an_interaction() -> None:
    """Axes that interact are said to, with the sign of (D - C) - (B - A)."""
    (sentence,) = [sentence for sentence in grid(0, inner=-1.0, interaction=4.0).verdict() if "interact" in sentence]
    assert re.match(
        r"rmse, interactions with fixed and mse: the axes interact: the effect of huber instead of mse under gaba minus "
        r"the effect under fixed is \+[34]\.",
        sentence,
    )


ADAPTIVE = ("gaba", "dwa", "imtl")
TUNED = ("rul times 0.01", "rul times 0.1", "rul times 10", "rul times 100")


def large(spread: float = 0.3, best: str = "rul times 10") -> Results:
    """Three adaptive weightings with all baselines, two shapes, five seeds and two metrics; gaba and one constant are
    better than all others, by as much in both metrics."""
    generator = np.random.default_rng(0)
    outer = ("fixed", *ADAPTIVE, *TUNED, "tuned constant", *(f"constant where {name} ended" for name in ADAPTIVE))
    better = {"gaba": 2.0, best: 1.0, "tuned constant": 1.0, "rul times 0.01": -3.0}
    runs = []
    for seed in range(5):
        for level in outer:
            chosen = {"chosen": best} if level == "tuned constant" else {}
            for shape in ("mse", "huber"):
                value = better.get(level, 0.0) + spread * generator.normal()
                metrics = {"rmse": 14.0 + seed - value, "auc": 0.1 * value + 0.01 * seed}
                runs.append(Run(level, shape, seed, metrics, config=chosen))
    directions: dict[str, Any] = {"rmse": "min", "auc": "max"}
    added = tuple(level for level in outer if level not in ("fixed", *ADAPTIVE))
    made = (tuple(runs), (), ("fixed", *added), added)
    return Results(outer, ("mse", "huber"), (0, 1, 2, 3, 4), directions, ("fixed", "mse"), *made)


def test_the_verdict_on_a_grid_of_real_size_can_be_read() -> None:
    """At most ten sentences for a metric, each below 350 letters, and the caution once, also of both metrics."""
    for spread in (0.3, 3.0):
        results = large(spread)
        for metric in results.metrics:
            sentences = results.verdict(metric)
            assert len(sentences) <= 10 and max(map(len, sentences)) < 350 and sum(map(len, sentences)) < 2_000
        both = results.verdict()
        assert len(both) <= 17 and sum("does not mean" in sentence for sentence in both) == 1
        assert len(set(both)) == len(both)


def test_adaptive_weightings_are_compared_with_the_best_constant_alone() -> None:
    """That is the tuned constant for the metric that it was chosen by, and for others the best on the same seeds, which is
    said; and the constants where their own runs ended. Each is a family of its own."""
    results = large()
    assert results.best_constant("rmse") == "tuned constant" and results.best_constant("auc") == "rul times 10"
    best, ended = results.against_constants("auc", "best"), results.against_constants("rmse", "ended")
    assert [(effect.label, effect.against, effect.family) for effect in best] == [(n, "rul times 10", 3) for n in ADAPTIVE]
    assert [(e.label, e.against, e.family) for e in ended] == [(n, f"constant where {n} ended", 3) for n in ADAPTIVE]
    assert len(results.against_constants("rmse")) == 27
    text = "\n".join(results.verdict())
    how = r"rmse, adaptive weightings against the best constant \(tuned constant, chosen for each seed on the others\): "
    assert re.search(how + r"better: gaba -[01]\.\d+ \(.*\); worse: ", text)
    how = (
        r"auc, adaptive weightings against the best constant \(rul times 10, chosen on these same seeds, which favours it\)"
    )
    assert re.search(how + r": better: gaba \+0\.1\d+ \(.*\); worse: ", text)
    assert "rmse, adaptive weightings against the constants where they ended: better: gaba -" in text
    with pytest.raises(OptionError, match='`which` should be "all", "best" or "ended"'):
        results.against_constants("rmse", "tuned")  # type: ignore[arg-type]


def test_the_best_constant_has_a_value_in_every_run() -> None:
    """One that diverged with a seed is not the best, whatever its mean; without a direction there is none."""
    results = large()
    runs = [
        replace(run, metrics={"rmse": math.inf, "auc": math.nan}) if (run.outer, run.seed) == ("rul times 10", 3) else run
        for run in results.runs
    ]
    best = replace(results, runs=tuple(runs)).best_constant("auc")
    assert best in results.constants and best != "rul times 10"
    assert replace(results, metrics={"rmse": "min", "auc": None}).best_constant("auc") is None
    assert not any("best constant" in sentence for sentence in replace(results, metrics={"auc": None}).verdict("auc"))


def test_baselines_are_compared_with_and_not_averaged_over() -> None:
    """Inner shapes are averaged over the weightings that the study is about, which the reference's is one of, and
    interactions are theirs; the baselines are levels of the outer axis like any other. The tuned constant, whose runs are
    those of other levels, is not the best cell."""
    results = large()
    (effect,) = results.main_effect("rmse", "inner")
    assert effect.outer == ("fixed", *ADAPTIVE)
    assert [effect.label for effect in results.interactions("rmse")] == [f"{name} x huber" for name in ADAPTIVE]
    (other,) = replace(results, reference=("rul times 10", "mse")).main_effect("rmse", "inner")
    assert other.outer == ("fixed", *ADAPTIVE, "rul times 10")
    assert "tuned constant" in [effect.label for effect in results.main_effect("rmse", "outer")]
    raised = [
        replace(run, metrics={"rmse": 0.0 + run.seed}) if run.outer == "tuned constant" else run for run in results.runs
    ]
    assert "gaba x" in next(line for line in replace(results, runs=tuple(raised)).verdict("rmse") if "best mean" in line)


def test_a_mean_over_other_seeds_is_not_the_best() -> None:
    """A cell that lacks the seed that is hard for all has a lower mean, and is not called the best for it."""
    base = [10.0, 11.0, 30.0]
    cells = {cell: [value + 0.1 * place for value in base] for place, cell in enumerate(LEVELS)}
    cells["gaba", "huber"][2] = math.nan
    sentences = study(cells).verdict()
    assert any(
        "fixed x mse has the best mean of the cells with a value for every seed, 17" in sentence for sentence in sentences
    )


def test_verdicts_over_cells_that_are_equal() -> None:
    """In 200 studies of four equal cells, a cell is called better or worse in at most 5 % (and three binomial errors of 1.5
    points), and no sentence calls any two equal."""
    called = 0
    for seed in range(200):
        effects = grid(seed).compare("rmse")
        called += any(effect.distinguishable for effect in effects)
        assert not any(re.search(r"\b(equal|same|identical)\b", effect.in_words()) for effect in effects)
    assert 0 < called <= 200 * (0.05 + 3 * 0.015)


def test_one_axis_alone_is_described_once() -> None:
    """With one level on an axis, cells are levels of the other, and are described once."""
    base = [10.0, 13.0, 16.0, 19.0, 22.0]
    sentences = study({("fixed", "mse"): base, ("fixed", "huber"): [b - 1 + 0.1 * k for k, b in enumerate(base)]}).verdict()
    assert len([sentence for sentence in sentences if "huber" in sentence]) == 1


def test_many_levels_take_few_words() -> None:
    """Significant effects have their size, and of the others the number and the clearest are named."""
    generator = np.random.default_rng(1)
    of_seed = 14 + 5 * generator.normal(size=6)
    outer, inner = ("fixed", *(f"w{k}" for k in range(7))), ("mse", *(f"s{k}" for k in range(7)))
    cells = {(o, i): list(of_seed - 9.0 * (i == "s3") + 0.3 * generator.normal(size=6)) for o in outer for i in inner}
    sentences = study(cells).verdict()
    assert any(
        re.search(r"axis against mse: better: s3 -\d.*; no significant difference: 6 of 7, the clearest s", t)
        for t in sentences
    )
    assert any(
        sentence.startswith("rmse, interactions with fixed and mse: no significant difference: 49 of 49")
        for sentence in sentences
    )
    assert any(
        sentence.startswith("rmse, outer axis against fixed: no significant difference: 7 of 7, ") for sentence in sentences
    )
    assert any("better: 8 cells; no significant difference: 55 cells." in sentence for sentence in sentences)
    assert len(sentences) <= 8


def test_differences_without_a_spread_are_distinguished() -> None:
    """Levels with the same values, with a difference that never varies and with too few seeds are not among those without
    a significant difference."""
    base = [10.0, 13.0, 17.0]
    cells = {
        ("fixed", "mse"): base,
        ("same", "mse"): base,
        ("stiff", "mse"): [value + 1 for value in base],
        ("gone", "mse"): [1.0, math.nan, math.nan],
        ("near", "mse"): [10.5, 12.0, 17.75],
    }
    (sentence,) = [sentence for sentence in study(cells).verdict() if "outer axis" in sentence]
    assert re.fullmatch(
        r"rmse, outer axis against fixed: no significant difference: near \+0\.08 \(.*\), which takes about [0-9,]+ seeds "
        r"to detect; too few seeds in common: gone; the same values: same; the same difference with each seed "
        r"\(does the training function use its seed\?\): stiff\.",
        sentence,
    )


def test_what_is_missing_is_said() -> None:
    """Runs that diverged, that failed and that are still to be trained are in the verdict, and the first in the table."""
    cells = {("fixed", "mse"): [1.0, 2.0, 3.5], ("gaba", "mse"): [1.5, math.nan, math.inf]}
    results = study(cells, failures=(Run("gaba", "huber", 0, error="no"), Run("gaba", "huber", 1, error="no")))
    results = Results(
        ("fixed", "gaba"), ("mse", "huber"), (0, 1, 2), {"rmse": "min"}, ("fixed", "mse"), results.runs, results.failures
    )
    sentences = results.verdict()
    assert "2 runs failed and are not counted: 2 of gaba x huber." in sentences
    assert "1 run of these cells is still to be trained." in sentences
    assert any(
        sentence.startswith("rmse: 2 runs gave no finite value (diverged?): 2 of 3 of gaba x mse. Means")
        for sentence in sentences
    )
    assert any("too few seeds in common: gaba x mse, gaba x huber" in sentence for sentence in sentences)
    table = results.table()
    assert re.search(r"gaba +mse +1\* +1\.5", table) and re.search(r"gaba +huber +0 +-", table)
    assert "* gaba x mse: 2 runs without a finite value left out" in table


def test_failures_of_many_cells_are_one_sentence() -> None:
    """Their number, and the number of the cells."""
    cells = {(f"w{k}", "mse"): [1.0, 2.0] for k in range(6)}
    results = replace(
        study(cells), reference=("w0", "mse"), failures=tuple(Run(f"w{k}", "huber", 0, error="no") for k in range(6))
    )
    results = replace(results, inner=("mse", "huber"))
    assert "6 runs failed and are not counted: in 6 cells." in results.verdict()


def test_the_table() -> None:
    """Columns are aligned, and hold mean, deviation and the difference with its interval, corrected p-value and seeds."""
    cells = {
        ("fixed", "mse"): [10.0, 13.0, 17.0],
        ("gaba", "mse"): [9.0, 11.0, 14.0],
        ("gaba", "huber"): [11.0, 14.5, 18.25],
    }
    assert study(cells).table() == "\n".join(
        [
            "rmse, lower is better",
            "outer  inner  n  mean   sd  minus fixed x mse   95 % interval      p  seeds needed",
            "fixed  mse    3  13.3  3.5",
            "gaba   mse    3  11.3  2.5              -2.00  -4.48 to +0.48  0.074             5",
            "gaba   huber  3  14.6  3.6              +1.25  +0.63 to +1.87  0.026             3",
            "p is corrected for 2 comparisons.",
        ]
    )
