"""Effects of simulated studies against scipy and statsmodels, and what becomes of runs that are missing or diverged."""

from __future__ import annotations

import csv
import dataclasses
import itertools
import math
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import statsmodels.formula.api as smf
from scipy import stats
from statsmodels.stats.anova import AnovaRM
from statsmodels.stats.multitest import multipletests

from mtl_axes.errors import OptionError, UnknownNameError
from mtl_axes.study import Results, Run

OUTER, INNER = ("fixed", "dwa", "gaba"), ("mse", "huber")


def study(
    value: Callable[[str, str, int], Mapping[str, float]],
    outer: tuple[str, ...] = OUTER,
    inner: tuple[str, ...] = INNER,
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4),
    **metrics: str,
) -> Results:
    """A study whose runs have the metrics that ``value`` returns; None for a run that failed."""
    runs, failures = [], []
    for level, shape, seed in itertools.product(outer, inner, reversed(seeds)):  # as runs end: in any order
        found = value(level, shape, seed)
        if found is None:
            failures.append(Run(level, shape, seed, error="ValueError: no"))
        else:
            runs.append(Run(level, shape, seed, found))
    known = metrics or {"rmse": "min"}
    constants = tuple(level for level in outer if level in ("fixed", "ended"))
    made = (tuple(runs), tuple(failures), constants)
    return Results(outer, inner, seeds, known, (outer[0], inner[0]), *made)  # type: ignore[arg-type]


def simulated(seed: int = 0, noise: float = 0.4) -> Results:
    """rmse: 14, the seed's own +-5, -1 for huber, +0.3 for gaba, another -0.5 for both."""
    generator = np.random.default_rng(seed)
    of_seed = 5 * generator.normal(size=5)

    def value(outer: str, inner: str, seed: int) -> dict[str, float]:
        effect = -1.0 * (inner == "huber") + 0.3 * (outer == "gaba") - 0.5 * (inner == "huber" and outer == "gaba")
        return {"rmse": float(14 + of_seed[seed] + effect + noise * generator.normal())}

    return study(value)


def frame(results: Results) -> pd.DataFrame:
    return pd.DataFrame([{"outer": r.outer, "inner": r.inner, "seed": r.seed, **r.metrics} for r in results.runs])


def test_cells_are_compared_as_scipy_and_statsmodels_do() -> None:
    """Every cell minus the reference: scipy's paired test by seed, statsmodels' Holm over all of them."""
    results = simulated()
    effects = results.compare("rmse")
    assert [effect.label for effect in effects] == [f"{o} x {i}" for o, i in itertools.product(OUTER, INNER)][1:]
    wide = frame(results).pivot(index="seed", columns=["outer", "inner"], values="rmse")
    for effect in effects:
        cell = wide[(effect.outer[1], effect.inner[1])]
        theirs = stats.ttest_rel(cell, wide[("fixed", "mse")])
        assert effect.p == pytest.approx(theirs.pvalue, rel=1e-9)
        assert effect.interval == pytest.approx(tuple(theirs.confidence_interval()), rel=1e-9)
        assert list(effect.differences) == [0, 1, 2, 3, 4]
        assert list(effect.differences.values()) == pytest.approx(list(cell - wide[("fixed", "mse")]))
    adjusted = multipletests([effect.p for effect in effects], method="holm")[1]
    assert [effect.p_adjusted for effect in effects] == pytest.approx(list(adjusted), rel=1e-9)
    assert {effect.family for effect in effects} == {5}


def test_another_reference() -> None:
    """Against another cell, differences are of that cell; the other way round their sign changes."""
    results = simulated()
    (back,) = [e for e in results.compare("rmse", ("gaba", "huber")) if e.label == "fixed x mse"]
    (there,) = [e for e in results.compare("rmse") if e.label == "gaba x huber"]
    assert back.mean == pytest.approx(-there.mean)
    assert back.against == "gaba x huber" and len(results.compare("rmse", ("gaba", "huber"))) == 5


def test_main_effects_and_interaction_are_those_of_the_analysis_of_variance() -> None:
    """In the 2 x 2 study of two levels with seeds as blocks, F of statsmodels' repeated measures is t^2 of each effect, and
    the coefficients of its linear model are their means."""
    results = simulated(1)
    results = dataclasses.replace(
        results, outer=("fixed", "gaba"), runs=tuple(run for run in results.runs if run.outer in ("fixed", "gaba"))
    )
    table = AnovaRM(frame(results), "rmse", "seed", within=["outer", "inner"]).fit().anova_table
    model = smf.ols("rmse ~ C(seed) + C(outer, Sum) * C(inner, Sum)", frame(results)).fit().params
    (outer,), (inner,) = results.main_effect("rmse", "outer"), results.main_effect("rmse", "inner")
    (interaction,) = results.interactions("rmse")
    for effect, row in ((outer, "outer"), (inner, "inner"), (interaction, "outer:inner")):
        assert effect.p == pytest.approx(table.loc[row, "Pr > F"], rel=1e-6)
        assert (effect.mean / (effect.sd / math.sqrt(5))) ** 2 == pytest.approx(table.loc[row, "F Value"], rel=1e-6)
    # A coefficient of sum coding is the first level of the alphabet minus the mean: fixed, huber.
    assert outer.mean == pytest.approx(-2 * model["C(outer, Sum)[S.fixed]"])
    assert inner.mean == pytest.approx(2 * model["C(inner, Sum)[S.huber]"])
    assert interaction.mean == pytest.approx(-4 * model["C(outer, Sum)[S.fixed]:C(inner, Sum)[S.huber]"])


def test_effects_that_are_known_are_found() -> None:
    """With little noise every effect is the one that the study was made with."""
    results = simulated(noise=1e-3)
    compared = {effect.label: effect.mean for effect in results.compare("rmse")}
    assert compared == pytest.approx(
        {"fixed x huber": -1, "dwa x mse": 0, "dwa x huber": -1, "gaba x mse": 0.3, "gaba x huber": -1.2}, abs=3e-3
    )
    outer = {effect.label: effect for effect in results.main_effect("rmse", "outer")}
    assert {label: effect.mean for label, effect in outer.items()} == pytest.approx({"dwa": 0, "gaba": 0.05}, abs=3e-3)
    assert outer["gaba"].inner == INNER and outer["gaba"].outer == ("fixed", "gaba")
    (inner,) = results.main_effect("rmse", "inner")
    assert inner.mean == pytest.approx(-1 - 0.5 / 3, abs=3e-3)
    assert inner.outer == OUTER and inner.inner == INNER
    interactions = {effect.label: effect.mean for effect in results.interactions("rmse")}
    assert interactions == pytest.approx({"dwa x huber": 0, "gaba x huber": -0.5}, abs=6e-3)
    turned = results.interaction("rmse", outer=("gaba", "dwa"), inner=("mse", "huber"))
    assert turned.mean == pytest.approx(0.5, abs=6e-3)
    assert turned.p_adjusted == turned.p and turned.family == 1


def test_only_seeds_that_both_cells_finished_are_compared() -> None:
    """A seed that one of the two lacks, by a failure or a metric that was not returned, is in no difference."""

    def value(outer: str, inner: str, seed: int) -> dict[str, float] | None:
        if (outer, seed) == ("gaba", 1):
            return None
        return {} if (outer, inner, seed) == ("fixed", "mse", 3) else {"rmse": 10.0 + seed**2 - (outer == "gaba") * seed}

    results = study(value)
    effects = {effect.label: effect for effect in results.compare("rmse")}
    assert effects["gaba x mse"].differences == {0: 0.0, 2: -2.0, 4: -4.0}
    assert effects["dwa x mse"].differences == {0: 0.0, 1: 0.0, 2: 0.0, 4: 0.0}
    (gaba,) = [effect for effect in results.main_effect("rmse", "outer") if effect.label == "gaba"]
    assert gaba.differences == {0: 0.0, 2: -2.0, 4: -4.0}
    assert results.interaction("rmse", ("fixed", "gaba"), INNER).differences == {0: 0.0, 2: 0.0, 4: 0.0}
    by_cell = {(cell.outer, cell.inner): cell for cell in results.summary("rmse")}
    assert by_cell["fixed", "mse"].n == 4 and by_cell["fixed", "mse"].not_finite == 0
    assert by_cell["gaba", "huber"].n == 4


@pytest.mark.parametrize("broken", [math.nan, math.inf, -math.inf, 1.7e308, -1.1e300])
def test_runs_that_diverged_are_counted_and_left_out(broken: float) -> None:
    """A value that is not finite, or so large that sums overflow, is in no mean and no difference, and is counted."""

    def value(outer: str, inner: str, seed: int) -> dict[str, float]:
        return {"rmse": broken if (outer, inner) == ("gaba", "mse") and seed in (1, 4) else 10.0 + seed}

    results = study(value)
    cell = next(cell for cell in results.summary("rmse") if (cell.outer, cell.inner) == ("gaba", "mse"))
    assert (cell.n, cell.not_finite, cell.mean, cell.sd) == (
        3,
        2,
        pytest.approx(35 / 3),
        pytest.approx(np.std([0, 2, 3], ddof=1)),
    )
    assert list(next(e for e in results.compare("rmse") if e.label == "gaba x mse").differences) == [0, 2, 3]
    assert list(next(e for e in results.main_effect("rmse", "outer") if e.label == "gaba").differences) == [0, 2, 3]


def test_a_cell_that_always_diverged_is_still_there() -> None:
    """It is compared over no seed, and the axes over what is left of them."""

    def value(outer: str, inner: str, seed: int) -> dict[str, float]:
        if (outer, inner) == ("gaba", "mse"):
            return {"rmse": math.nan}
        return {"rmse": 10 + seed + (outer == "gaba") * (1 + seed % 2) + 0.01 * seed * (3 * len(outer) + len(inner))}

    results = study(value)
    (effect,) = [e for e in results.compare("rmse") if e.label == "gaba x mse"]
    assert effect.n == 0 and math.isnan(effect.mean) and effect.seeds_needed is None and not effect.distinguishable
    assert effect.family == 4
    (gaba,) = [e for e in results.main_effect("rmse", "outer") if e.label == "gaba"]
    assert gaba.inner == ("huber",) and gaba.n == 5 and gaba.mean == pytest.approx(1.4 - 0.03 * 2)
    assert [cell.n for cell in results.summary("rmse")] == [5, 5, 5, 5, 0, 5]


def test_cells_that_were_not_tried_are_in_no_effect() -> None:
    """In a study of some cells, levels and interactions that share none with the reference are not asked about."""
    results = simulated()
    cells = [("fixed", "mse"), ("fixed", "huber"), ("gaba", "mse"), ("dwa", "huber")]
    results = dataclasses.replace(
        results, inner=(*INNER, "mae"), runs=tuple(run for run in results.runs if run.cell in cells)
    )
    assert [effect.label for effect in results.compare("rmse")] == ["fixed x huber", "dwa x huber", "gaba x mse"]
    assert [(e.label, e.inner) for e in results.main_effect("rmse", "outer")] == [("dwa", ("huber",)), ("gaba", ("mse",))]
    assert [(e.label, e.outer) for e in results.main_effect("rmse", "inner")] == [("huber", ("fixed",))]
    assert [effect.label for effect in results.against_constants("rmse")] == ["dwa", "gaba"]
    assert results.interactions("rmse") == []
    without = dataclasses.replace(results, runs=tuple(run for run in results.runs if run.cell != ("fixed", "huber")))
    assert [effect.label for effect in without.against_constants("rmse")] == ["gaba"]


def test_identical_runs_and_one_seed_tell_nothing() -> None:
    """Without a spread nothing is distinguishable, whatever the mean, and nothing warns."""
    accuracies = [0.81, 0.83, 0.79, 0.80, 0.85]
    for results in (
        study(lambda outer, inner, seed: {"rmse": float(np.float32(accuracies[seed] + 0.01 * (len(outer) + len(inner))))}),
        study(lambda outer, inner, seed: {"rmse": 0.1}),
        study(lambda outer, inner, seed: {"rmse": 0.1 + 0.3 * (inner == "huber")}),
        study(lambda outer, inner, seed: {"rmse": 0.1 * len(outer)}, seeds=(7,)),
    ):
        for effect in (*results.compare("rmse"), *results.main_effect("rmse", "outer"), *results.interactions("rmse")):
            assert math.isnan(effect.p_adjusted) and math.isnan(effect.interval[0])
            assert effect.seeds_needed is None and not effect.distinguishable and effect.in_words()
        assert results.table() and results.verdict()


def test_constants_are_the_weights_that_never_move() -> None:
    """Each adaptive weighting is compared with each of them."""
    results = study(
        lambda outer, inner, seed: {
            "rmse": 10.0 + seed + {"fixed": 0, "ended": 0.5, "gaba": 1, "dwa": 2}[outer] * (1 + seed / 9)
        },
        outer=("fixed", "ended", "gaba", "dwa"),
    )
    found = {(effect.label, effect.against): effect.mean for effect in results.against_constants("rmse")}
    assert {pair: round(mean / (1 + 2 / 9), 9) for pair, mean in found.items()} == {
        ("gaba", "fixed"): 1.0, ("gaba", "ended"): 0.5, ("dwa", "fixed"): 2.0, ("dwa", "ended"): 1.5,
    }  # fmt: skip
    assert {effect.family for effect in results.against_constants("rmse")} == {4}


def test_the_front_of_two_metrics() -> None:
    """Each metric counts in its own direction; a cell without a finite value is on no front."""
    values = {
        ("fixed", "mse"): (3, 0.9),
        ("fixed", "huber"): (2, 0.8),
        ("dwa", "mse"): (2.5, 0.7),
        ("dwa", "huber"): (9, 0.1),
    }

    def value(outer: str, inner: str, seed: int) -> dict[str, float]:
        rmse, accuracy = values.get((outer, inner), (math.nan, 1.0))
        return {"rmse": rmse, "accuracy": accuracy, "loss": rmse}

    results = study(value, rmse="min", accuracy="max")
    assert results.pareto("rmse", "accuracy") == [("fixed", "mse"), ("fixed", "huber")]
    with pytest.raises(OptionError, match="'loss' has no direction, so there is no Pareto front"):
        results.pareto("rmse", "loss")


def test_a_cell_that_lacks_the_hard_seed_is_not_on_the_front() -> None:
    """It is worse with every seed that it has, and its means are better for the one that it has not."""
    hard = {0: 10.0, 1: 11.0, 2: 30.0}

    def value(outer: str, inner: str, seed: int) -> dict[str, float] | None:
        worse = (outer, inner) != ("fixed", "mse")
        if worse and seed == 2:
            return None
        return {"rmse": hard.get(seed, 12.0) + worse, "mae": hard.get(seed, 12.0) + worse}

    results = study(value, rmse="min", mae="min")
    means = {(cell.outer, cell.inner): cell.mean for cell in results.summary("rmse")}
    assert means["fixed", "mse"] > means["fixed", "huber"]
    assert results.pareto("rmse", "mae") == [("fixed", "mse")]


def test_unknown_names_are_errors() -> None:
    """An unknown metric, label or axis is an error that lists those that there are."""
    results = simulated()
    for ask in (
        results.summary,
        results.compare,
        results.interactions,
        results.against_constants,
        results.table,
        results.verdict,
    ):
        with pytest.raises(UnknownNameError, match=r"The study has no metric 'mse'\. Its metrics: rmse\."):
            ask("mse")
    with pytest.raises(UnknownNameError, match=r"The outer axis has no level 'mse'\. Its levels: fixed, dwa, gaba\."):
        results.compare("rmse", ("mse", "fixed"))
    with pytest.raises(UnknownNameError, match=r"The inner axis has no level 'focal'\. Its levels: mse, huber\."):
        results.interaction("rmse", ("fixed", "gaba"), ("mse", "focal"))
    with pytest.raises(OptionError, match=r""""outer" or "inner"\. Found 'both'"""):
        results.main_effect("rmse", "both")  # type: ignore[arg-type]


def test_the_csv_file_has_every_run(tmp_path: Path) -> None:
    """Finished, diverged and failed runs are lines; numbers come back exactly."""

    def value(outer: str, inner: str, seed: int) -> dict[str, float] | None:
        if outer == "dwa":
            return None
        return {"rmse": math.nan if outer == "gaba" else 1 / 3 + seed, **({"loss": 2.0} if seed == 0 else {})}

    results = study(value, seeds=(0, 1))
    results.to_csv(tmp_path / "runs.csv")
    with (tmp_path / "runs.csv").open(newline="", encoding="utf-8") as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == 12
    for run, line in zip((*results.runs, *results.failures), lines, strict=True):
        assert (line["outer"], line["inner"], int(line["seed"])) == (*run.cell, run.seed)
        assert line["error"] == (run.error or "")
        assert line["loss"] == ("2.0" if "loss" in run.metrics else "")
        if run.error is None:
            assert float(line["rmse"]) == pytest.approx(run.metrics["rmse"], rel=0, nan_ok=True)
