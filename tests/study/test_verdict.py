"""What a study says in words and in its table."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

import numpy as np
import pytest

from mtl_axes.study.results import Effect, Results, Run

LEVELS = (("fixed", "mse"), ("fixed", "huber"), ("gaba", "mse"), ("gaba", "huber"))


def study(
    values: Mapping[tuple[str, str], list[float]], direction: str | None = "min", failures: tuple[Run, ...] = ()
) -> Results:
    """One metric by cell and seed."""
    runs = tuple(
        Run(*cell, seed, {"rmse": value}, config={"criterion": {"outer": {"name": cell[0]}}})
        for cell, found in values.items()
        for seed, value in enumerate(found)
    )
    outer, inner = (tuple(dict.fromkeys(cell[axis] for cell in values)) for axis in (0, 1))
    seeds = tuple(range(max(map(len, values.values()))))
    return Results(outer, inner, seeds, {"rmse": direction}, ("fixed", "mse"), runs, failures)  # type: ignore[dict-item]


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
    """It is not distinguishable, which is not called equal; the interval and the seeds that it would take are given."""
    told = effect([-1.0, 0.4, -0.5, 0.3, -0.2])
    assert told.in_words() == (
        "rmse: gaba x mse is not distinguishable from fixed x mse: -0.20 (95 % interval -0.92 to +0.52, 5 seeds). "
        f"An effect of this size would take about {told.seeds_needed} seeds to show; that 5 do not show one does not mean "
        "that there is none."
    )
    assert "more than 10,000 seeds" in effect([1.0, -1.0, 0.5, -0.5, 0.001]).in_words()
    balanced = effect([1.0, -1.0, 0.5, -0.5]).in_words()
    assert "is not distinguishable" in balanced and "does not mean that there is none" in balanced


@pytest.mark.parametrize("count", [2, 3, 4, 5, 6])
def test_few_seeds_are_said(count: int) -> None:
    """Fewer than five seeds are called few in the sentence and in the verdict."""
    differences = [0.1 * (-1) ** seed + seed for seed in range(count)]
    assert ("only" in effect(differences).in_words()) == (count < 5)
    base = [1.0 * seed for seed in range(count)]
    told = study(
        {("fixed", "mse"): base, ("gaba", "mse"): [b + d for b, d in zip(base, differences, strict=True)]}
    ).verdict()
    assert any("seeds are few" in sentence for sentence in told) == (count < 5)


def test_one_seed_tells_nothing() -> None:
    """A study of one seed is told so once, and nothing is said about any difference."""
    results = study({cell: [1.0 + place] for place, cell in enumerate(LEVELS)})
    told = results.verdict()
    assert any(sentence.startswith("Nothing can be told about any difference from one seed") for sentence in told)
    assert not re.search("better|worse|distinguishable|best", " ".join(told))
    assert results.compare("rmse")[1].in_words() == (
        "rmse: nothing can be told from one seed about gaba x mse and fixed x mse: +2 with seed 0, and the next seed may "
        "turn it round."
    )


def test_no_seed_and_no_spread_are_said() -> None:
    """Nothing in common, the same values, and a difference that never varies are told apart."""
    assert "cannot be compared with fixed x mse: no seed gave a finite value" in effect([math.nan, math.nan]).in_words()
    assert "gave the same value with each of 3 seeds" in effect([0.0, 0.0, 0.0]).in_words()
    told = effect([0.5, 0.5, 0.5]).in_words()
    assert "is +0.5 with each of 3 seeds" in told and "see that the training function uses its seed" in told
    assert Results(("fixed",), ("mse",), (0,), {"rmse": "min"}, ("fixed", "mse"), ()).verdict() == [
        "No run has finished: nothing can be told."
    ]


def test_one_among_many_comparisons_is_not_enough() -> None:
    """A cell whose own p-value is below 0.05 but not after the correction: not distinguishable, and why is said plainly."""
    noise = np.random.default_rng(0).normal(size=(7, 5))
    base = [10.0, 13.0, 16.0, 19.0, 22.0]
    cells = {("fixed", "mse"): base} | {
        (f"w{k}", "mse"): [b + e for b, e in zip(base, noise[k], strict=True)] for k in range(7)
    }
    cells["w0", "mse"] = [b + d for b, d in zip(base, [-1.0, -0.2, -1.6, -0.4, -1.3], strict=True)]
    told = next(e for e in study(cells).compare("rmse") if e.label == "w0 x mse")
    assert told.p < 0.05 < told.p_adjusted
    assert told.in_words().endswith(
        "Alone it would pass, but it is one of 7 comparisons, and among so many some look like this by chance. More seeds "
        "would tell."
    )


def grid(seed: int, inner: float = 0.0, interaction: float = 0.0, seeds: int = 5) -> Results:
    generator = np.random.default_rng(seed)
    of_seed = 14 + 5 * generator.normal(size=seeds)
    effects = dict(zip(LEVELS, (0.0, inner, 0.0, inner + interaction), strict=True))
    return study({cell: list(of_seed + effect + 0.3 * generator.normal(size=seeds)) for cell, effect in effects.items()})


def test_the_verdict_of_two_axes() -> None:
    """It names the constants, the best cell, what each axis does and that the axes do not visibly interact."""
    told = grid(0, inner=-3.0).verdict("rmse")
    assert told[0] == "4 cells, 5 seeds; differences are taken within each seed."
    assert told[1] == "Constant weights, the baseline to beat: fixed."
    assert re.fullmatch(r"rmse \(lower is better\): (fixed|gaba) x huber has the best mean, [0-9.]+\.", told[2])
    assert "rmse: better than fixed x mse: fixed x huber, gaba x huber." in told
    assert "rmse: not distinguishable from fixed x mse: gaba x mse." in told
    assert any("gaba is not distinguishable from fixed, averaged over mse, huber" in sentence for sentence in told)
    assert any("huber is better than mse, averaged over fixed, gaba: -" in sentence for sentence in told)
    assert any(
        "the effect of huber instead of mse under gaba is not distinguishable from that under fixed" in sentence
        for sentence in told
    )


def test_the_verdict_of_an_interaction() -> None:
    """Axes that interact are said to, with the sign of (D - C) - (B - A)."""
    (sentence,) = [sentence for sentence in grid(0, inner=-1.0, interaction=4.0).verdict() if "interact" in sentence]
    assert re.match(
        r"rmse: the axes interact: the effect of huber instead of mse under gaba minus that under fixed is \+[34]\.",
        sentence,
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


def test_one_axis_alone_is_told_once() -> None:
    """With one level on an axis, cells are levels of the other, and are told once."""
    base = [10.0, 13.0, 16.0, 19.0, 22.0]
    told = study({("fixed", "mse"): base, ("fixed", "huber"): [b - 1 + 0.1 * k for k, b in enumerate(base)]}).verdict()
    assert len([sentence for sentence in told if "huber" in sentence]) == 1


def test_many_levels_are_told_in_few_words() -> None:
    """Of more than six differences of a kind only those that show are told, and the others are counted."""
    generator = np.random.default_rng(1)
    of_seed = 14 + 5 * generator.normal(size=6)
    outer, inner = ("fixed", *(f"w{k}" for k in range(7))), ("mse", *(f"s{k}" for k in range(7)))
    cells = {(o, i): list(of_seed - 9.0 * (i == "s3") + 0.3 * generator.normal(size=6)) for o in outer for i in inner}
    told = study(cells).verdict()
    assert any("s3 is better than mse, averaged over 8 levels of the outer axis: -" in sentence for sentence in told)
    assert any(sentence.startswith("rmse: 49 of 49 interactions are not distinguishable from none") for sentence in told)
    assert any(sentence.startswith("rmse: 7 of 7 levels of the outer axis are not disting") for sentence in told)
    assert any(sentence.startswith("rmse: 6 of 7 levels of the inner axis are not disting") for sentence in told)
    assert any("not distinguishable from fixed x mse: 55 cells" in sentence for sentence in told)
    assert len(told) == 10


def test_what_is_missing_is_said() -> None:
    """Runs that diverged and runs that failed are in the verdict, and the former in the table."""
    cells = {("fixed", "mse"): [1.0, 2.0, 3.5], ("gaba", "mse"): [1.5, math.nan, math.inf]}
    results = study(cells, failures=(Run("gaba", "huber", 0, error="no"), Run("gaba", "huber", 1, error="no")))
    results = Results(
        ("fixed", "gaba"), ("mse", "huber"), (0, 1, 2), {"rmse": "min"}, ("fixed", "mse"), results.runs, results.failures
    )
    told = results.verdict()
    assert "2 runs of gaba x huber failed and cannot be counted." in told
    assert any(sentence.startswith("rmse: 2 of 3 runs of gaba x mse gave no finite value (diverged?).") for sentence in told)
    assert any("without two seeds in common with fixed x mse: gaba x mse, gaba x huber" in sentence for sentence in told)
    table = results.table()
    assert re.search(r"gaba +mse +1\* +1\.5", table) and re.search(r"gaba +huber +0 +-", table)
    assert "* gaba x mse: 2 runs without a finite value left out" in table


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
