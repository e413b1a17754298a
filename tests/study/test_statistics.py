"""The arithmetic of paired differences against scipy and statsmodels, and where there is nothing to compute."""

from __future__ import annotations

import importlib
import math
import sys

import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.power import TTestPower

from mtl_axes.study import contrasts, statistics

SCALES = (1e-200, 1e-9, 1.0, 1e9, 1e200)


def differences(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0.4, 1.0, size=shape)


@pytest.mark.parametrize("n", [2, 3, 5, 10, 40])
def test_the_t_interval_and_the_p_value_are_scipys(n: int) -> None:
    """Twenty studies at once give scipy's p-values of the paired test and its intervals."""
    first, second = differences(20, n), differences(20, n, seed=1)
    theirs = stats.ttest_rel(first, second, axis=-1)
    ends = theirs.confidence_interval(0.95)
    low, high = statistics.t_interval(first - second)
    np.testing.assert_allclose(statistics.p_value(first - second), theirs.pvalue, rtol=1e-10)
    np.testing.assert_allclose((low, high), (ends.low, ends.high), rtol=1e-10)
    row = (first - second)[3]
    np.testing.assert_allclose(
        statistics.t_interval(row, level=0.8), stats.t.interval(0.8, n - 1, row.mean(), stats.sem(row)), rtol=1e-10
    )


@pytest.mark.parametrize("scale", SCALES)
def test_scale_and_sign_do_not_matter(scale: float) -> None:
    """Intervals scale with their differences, p-values do not change, at sizes whose squares a float cannot hold."""
    x = differences(6)
    np.testing.assert_allclose(statistics.t_interval(scale * x), scale * np.array(statistics.t_interval(x)), rtol=1e-9)
    np.testing.assert_allclose(statistics.p_value(-scale * x), statistics.p_value(x), rtol=1e-9)


@pytest.mark.parametrize("values", [[], [0.3], [0.3, 0.3], [0.1, 0.1, 0.1], [0.0, 0.0, 0.0]])
def test_without_a_spread_there_is_no_interval(values: list[float]) -> None:
    """No, one or equal differences: NaN and no warning; the deviation of equal ones is exactly 0."""
    assert np.isnan(statistics.t_interval(values)).all()
    assert np.isnan(statistics.p_value(values))
    mean, sd = statistics.mean_and_sd(values)
    assert sd == 0 if len(values) > 1 else np.isnan(sd)
    assert mean == values[0] if values else np.isnan(mean)


def test_rows_without_a_spread_do_not_touch_their_neighbours() -> None:
    """Among many studies, one of equal differences is NaN and the others are what they are alone."""
    x = differences(3, 5)
    x[1] = 0.7
    ends = np.array(statistics.t_interval(x))
    assert np.isnan(ends[:, 1]).all()
    np.testing.assert_allclose(ends[:, 2], statistics.t_interval(x[2]), rtol=1e-12)


@pytest.mark.parametrize("m", [1, 7, 63])
def test_holm_is_statsmodels(m: int) -> None:
    """Adjusted p-values are statsmodels', for each family of a batch, ties included."""
    p = np.random.default_rng(m).uniform(size=(3, m)) ** 3
    p[0] = 0.02
    ours = statistics.holm(p)
    for row, expected in zip(ours, p, strict=True):
        np.testing.assert_allclose(row, multipletests(expected, method="holm")[1], rtol=1e-12)


def test_holm_leaves_out_what_could_not_be_compared() -> None:
    """NaN stays NaN and does not make the family larger."""
    found = statistics.holm([0.04, np.nan, 0.01, np.nan])
    np.testing.assert_allclose(found, [0.04, np.nan, 0.02, np.nan])
    assert np.isnan(statistics.holm([np.nan, np.nan])).all()
    assert statistics.holm([]).shape == (0,)


@pytest.mark.parametrize("effect", [0.05, 0.2, 0.5, 1.0, 2.0])
def test_power_and_seeds_are_statsmodels(effect: float) -> None:
    """The power is statsmodels', the number of seeds is its solution, rounded up, for either sign."""
    theirs = TTestPower()
    for n in (2, 3, 5, 10, 100):
        if math.isfinite(expected := theirs.power(effect, n, 0.05)):  # theirs is NaN where it is 1
            assert statistics.power(effect, n) == pytest.approx(expected, abs=1e-9)
    for chance in (0.8, 0.95):
        needed = int(np.ceil(theirs.solve_power(effect, None, 0.05, chance)))
        assert statistics.seeds_needed(effect, chance=chance) == statistics.seeds_needed(-effect, chance=chance) == needed


@pytest.mark.parametrize("effect", [0.1, 0.5, 2.0])
def test_a_low_chance_takes_few_seeds(effect: float) -> None:
    """For a chance below one half, whose normal quantile is negative, the number is the first whose power reaches it."""
    for chance in (0.3, 0.4):
        n = statistics.seeds_needed(effect, chance=chance)
        assert n is not None and statistics.power(effect, n) >= chance
        assert n == 2 or statistics.power(effect, n - 1) < chance


@pytest.mark.parametrize("effect", [2e-3, 0.005, 0.1, 0.7, 4.0, 40.0])
def test_fewer_seeds_would_not_do(effect: float) -> None:
    """The number of seeds has the power that was asked for and the one below it has not, also where the number is so large
    that a formula gives it."""
    n = statistics.seeds_needed(effect)
    assert n is not None
    assert statistics.power(effect, n) >= 0.8
    assert n == 2 or statistics.power(effect, n - 1) < 0.8 + 1e-6


def test_no_number_of_seeds_shows_nothing() -> None:
    """An effect of 0 or NaN needs no number of seeds, and a test finds 0 as often as it errs; one without bounds needs the
    two seeds that a spread takes."""
    assert statistics.power(0.0, 5) == pytest.approx(0.05, abs=1e-9)
    assert statistics.seeds_needed(0.0) is None
    assert statistics.seeds_needed(float("nan")) is None
    assert statistics.seeds_needed(1e300) == 2


def test_the_front_is_what_nobody_beats() -> None:
    """The front of random and of tied points is that of the definition, point by point."""
    generator = np.random.default_rng(0)
    for points in (generator.normal(size=(30, 2)), generator.integers(4, size=(30, 2)).astype(float)):
        expected = [not any((q <= p).all() and (q < p).any() for q in points) for p in points]
        cells = [(str(place), "mse") for place in range(30)]
        first, second = ({cell: {0: value} for cell, value in zip(cells, column, strict=True)} for column in points.T)
        on_front = contrasts.front(first, second, cells, ("min", "min"))
        assert [cell in on_front for cell in cells] == expected
        assert 0 < sum(expected) < 30


def test_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without scipy the error says what to install."""
    monkeypatch.setitem(sys.modules, "scipy", None)
    monkeypatch.delitem(sys.modules, "mtl_axes.study.statistics")
    with pytest.raises(ImportError, match=r'pip install "mtl_axes\[study\]"'):
        importlib.import_module("mtl_axes.study.statistics")
