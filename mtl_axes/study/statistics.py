"""Intervals, tests and the number of seeds for paired differences, on arrays whose last axis is the seeds.

The functions of differences take leading axes too, so that a thousand simulated studies are one call. Differences that are
fewer than two, or all equal, have no spread to judge by: what needs one is NaN for them. How often the intervals hold the
true mean is measured by ``python -m benchmarks.coverage`` and in ``tests/study``.
"""

from __future__ import annotations

import functools
import math

try:
    import numpy as np
    from numpy.typing import ArrayLike, NDArray
    from scipy import stats  # type: ignore[import-untyped]
except ImportError as error:
    raise ImportError(
        'The statistics of a study need numpy and scipy. Install them with: pip install "mtl_axes[study]"'
    ) from error

__all__ = ["bootstrap_interval", "holm", "mean_and_sd", "p_value", "pareto", "power", "seeds_needed", "t_interval"]

Floats = NDArray[np.float64]

DRAWS = 10_000
_ROWS = 100  # studies that are resampled at a time: 100 x DRAWS floats are 8 MB
_FAINTEST, _MOST_STEADY = 1e-6, 50.0  # effects in standard deviations; beyond them power is alpha and 1
_MANY = 100_000


def mean_and_sd(values: ArrayLike, /) -> tuple[Floats, Floats]:
    """Return the mean and the standard deviation (n - 1 in the denominator) over the last axis.

    Args:
        values: (..., n), finite.

    Returns:
        Two arrays (...). The mean is NaN where n = 0. The deviation is NaN where n < 2, and exactly 0 where all values are
        equal.
    """
    x = np.asarray(values, dtype=np.float64)
    if x.shape[-1] == 0:
        return np.full(x.shape[:-1], np.nan), np.full(x.shape[:-1], np.nan)
    # Runs that blew up to 1e200 are finite, their squares are not; and equal values become 1, whose deviation is exactly 0.
    scale = np.abs(x).max(-1)
    scale = np.where(scale == 0, 1.0, scale)
    unit = x / scale[..., None]
    mean = unit.mean(-1)
    if x.shape[-1] == 1:
        return scale * mean, np.full(x.shape[:-1], np.nan)
    return scale * mean, scale * unit.std(-1, ddof=1)


def _standard_error(values: ArrayLike) -> tuple[Floats, Floats, int]:
    """Return the mean, its standard error (NaN without a spread) and n."""
    mean, sd = mean_and_sd(values)
    n = np.asarray(values).shape[-1]
    return mean, np.where(sd > 0, sd, np.nan) / math.sqrt(max(n, 1)), n


def t_interval(differences: ArrayLike, /, *, level: float = 0.95) -> tuple[Floats, Floats]:
    r"""Student's interval for the mean of paired differences: mean -+ t sd / sqrt(n), with t the quantile at (1 + level) / 2
    of the t distribution with n - 1 degrees of freedom.

    Args:
        differences: (..., n), finite.
        level: how often the interval should hold the true mean, in (0, 1).

    Returns:
        Its two ends, (...) each; NaN where n < 2 or all differences are equal.

    >>> low, high = t_interval([-0.4, 0.1, -0.6, -0.3])
    >>> print(f"{low:.3f} {high:.3f}")
    -0.768 0.168

    References:
        Student, "The probable error of a mean", Biometrika 6, 1908.
    """
    mean, error, n = _standard_error(differences)
    half = stats.t.ppf((1 + level) / 2, max(n - 1, 1)) * error
    return mean - half, mean + half


def p_value(differences: ArrayLike, /) -> Floats:
    r"""Two-sided p-value of the paired t test: how often differences whose true mean is 0 would give a mean as far from 0.

    Args:
        differences: (..., n), finite.

    Returns:
        (...), in [0, 1]; NaN where n < 2 or all differences are equal.

    >>> print(f"{p_value([-0.4, 0.1, -0.6, -0.3]):.3f}")
    0.134
    """
    mean, error, n = _standard_error(differences)
    p: Floats = 2 * stats.t.sf(np.abs(mean) / error, max(n - 1, 1))
    return p


@functools.lru_cache(maxsize=32)
def _resamples(n: int) -> tuple[Floats, Floats, Floats, Floats, float]:
    """Return what DRAWS resamples of n values, each plus h times normal noise e, are made of, the same at every call.

    Returns:
        How often each value is drawn (DRAWS, n); the sum of the noise that each value was given (DRAWS, n); the sums of e
        and of e^2 in each resample (DRAWS,); h.
    """
    generator = np.random.default_rng(n)
    drawn = generator.integers(n, size=(DRAWS, n))
    noise = generator.standard_normal((DRAWS, n))
    rows = np.arange(DRAWS)[:, None]
    counts, added = np.zeros((DRAWS, n)), np.zeros((DRAWS, n))
    np.add.at(counts, (rows, drawn), 1.0)
    np.add.at(added, (rows, drawn), noise)
    return counts, added, noise.sum(1), (noise**2).sum(1), 0.9 * n**-0.2


def bootstrap_interval(differences: ArrayLike, /, *, level: float = 0.95) -> tuple[Floats, Floats]:
    r"""Smoothed studentised bootstrap interval for the mean of paired differences.

    10,000 times, n differences are drawn with replacement, normal noise of standard deviation h sd, h = 0.9 n^(-1/5), is
    added to each, and t* = (mean* - mean) / (sd* / sqrt(n)) is kept. The interval is [mean - t*_(1 - a) sd / sqrt(n),
    mean - t*_a sd / sqrt(n)] with a = (1 - level) / 2. The draws are the same at every call with the same n.

    With ten seeds or fewer other bootstraps do not hold what they promise. The percentile interval, BCa or expanded
    (Hesterberg) too, never leaves the range of the differences, and that of three holds the true median in 75 % of all
    studies. Without the noise, a ninth of the resamples of three have no spread to divide by.

    Args:
        differences: (..., n), finite.
        level: how often the interval should hold the true mean, in (0, 1).

    Returns:
        Its two ends, (...) each; NaN where n < 2 or all differences are equal.

    References:
        Hall, "Theoretical comparison of bootstrap confidence intervals", Annals of Statistics 16, 1988 (studentised).
        Polansky and Schucany, "Kernel smoothing to improve bootstrap confidence intervals", J. R. Statist. Soc. B 59, 1997.
        Silverman, "Density estimation for statistics and data analysis", 1986, eq. 3.31 (the bandwidth).
        Hesterberg, "What teachers should know about the bootstrap", The American Statistician 69, 2015 (few values).
    """
    x = np.asarray(differences, dtype=np.float64)
    mean, error, n = _standard_error(x)
    if n < 2:
        return mean * np.nan, mean * np.nan
    counts, added, noise, squares, h = _resamples(n)
    _, sd = mean_and_sd(x)
    z = np.where(sd[..., None] > 0, (x - mean[..., None]) / np.where(sd > 0, sd, 1.0)[..., None], 0.0).reshape(-1, n)
    tail = (1 - level) / 2
    quantiles = np.empty((2, len(z)))
    for start in range(0, len(z), _ROWS):
        part = z[start : start + _ROWS]
        sums = part @ counts.T + h * noise
        of_squares = part**2 @ counts.T + 2 * h * (part @ added.T) + h**2 * squares
        variance = (of_squares - sums**2 / n) / (n - 1)
        quantiles[:, start : start + _ROWS] = np.quantile(sums / np.sqrt(n * variance), (tail, 1 - tail), axis=1)
    low, high = quantiles.reshape(2, *mean.shape)
    return mean - high * error, mean - low * error


def holm(p_values: ArrayLike, /) -> Floats:
    r"""Holm's correction of the p-values of a family of comparisons: among all that compare what is in truth the same, any
    falls below 0.05 in at most 5 % of all studies, however they depend on each other.

    With p sorted upwards, p~_(j) = max over i <= j of min(1, (m - i + 1) p_(i)).

    Args:
        p_values: (..., m). NaN stands for a comparison that could not be made; it stays NaN and does not count in m.

    Returns:
        (..., m), each at least as large as before.

    >>> print(holm([0.01, 0.04, 0.03]))
    [0.03 0.06 0.06]

    References:
        Holm, "A simple sequentially rejective multiple test procedure", Scandinavian Journal of Statistics 6, 1979.
    """
    p = np.asarray(p_values, dtype=np.float64)
    order = np.argsort(p, axis=-1)  # NaN last
    left = np.isfinite(p).sum(-1, keepdims=True) - np.arange(p.shape[-1])
    ordered = np.minimum(1.0, np.take_along_axis(p, order, -1) * left)
    adjusted = np.empty_like(p)
    np.put_along_axis(adjusted, order, np.where(left > 0, np.maximum.accumulate(ordered, axis=-1), np.nan), -1)
    return adjusted


def power(effect: float, n: int, /, *, alpha: float = 0.05) -> float:
    """Chance that the two-sided paired t test with n seeds finds an effect.

    Args:
        effect: the true mean of the differences over their true standard deviation.
        n: seeds, at least 2.
        alpha: chance of finding one where there is none.

    Returns:
        P(|T| > t), T noncentral t with n - 1 degrees of freedom and noncentrality effect sqrt(n); t is the two-sided bound
        of the test.

    >>> print(f"{power(1.0, 10):.3f}")
    0.803
    """
    size = min(max(abs(effect), _FAINTEST), _MOST_STEADY)
    # T^2 is noncentral F. scipy's noncentral t is NaN in its far tail, and its noncentral F is wrong at exactly 0.
    return float(stats.ncf.sf(stats.t.isf(alpha / 2, n - 1) ** 2, 1, n - 1, n * size**2))


def seeds_needed(effect: float, /, *, chance: float = 0.8, alpha: float = 0.05) -> int | None:
    """Fewest seeds with which :func:`power` reaches ``chance``.

    Args:
        effect: mean of the differences over their standard deviation.
        chance: the power that is asked for, in (0, 1).
        alpha: chance of finding an effect where there is none.

    Returns:
        The number, at least 2; None for an effect below 1e-6 or NaN, which no number of seeds that one could run would show.

    >>> seeds_needed(1.0), seeds_needed(0.2)
    (10, 199)
    """
    size = abs(effect)
    if not size >= _FAINTEST:
        return None
    normal = (float(stats.norm.isf(alpha / 2) + stats.norm.ppf(chance)) / size) ** 2
    if normal > _MANY:
        return math.ceil(normal + float(stats.norm.isf(alpha / 2)) ** 2 / 2)  # with the t quantile's first correction
    n = max(2, math.floor(normal))  # the normal approximation never asks for too many
    while power(effect, n, alpha=alpha) < chance:
        n += 1
    return n


def pareto(costs: ArrayLike, /) -> NDArray[np.bool_]:
    """Which points no other point dominates: none is at least as good in every column and better in one.

    Args:
        costs: (points, criteria), finite, lower is better.

    Returns:
        (points,); equal points are kept or dropped together.

    >>> pareto([[1.0, 3.0], [2.0, 2.0], [2.0, 4.0]]).tolist()
    [True, True, False]
    """
    x = np.asarray(costs, dtype=np.float64)
    no_worse = np.all(x[:, None] <= x[None], axis=-1)
    better = np.any(x[:, None] < x[None], axis=-1)
    front: NDArray[np.bool_] = np.logical_not(np.any(no_worse & better, axis=0))
    return front
