"""Intervals, tests and the number of seeds for paired differences, on arrays whose last axis is the seeds.

The functions of differences accept leading axes, so that a thousand simulated studies are one call. Fewer than two
differences, or equal ones, have no spread to judge by: what needs one is NaN. ``python -m benchmarks.coverage`` and
``tests/study`` measure how often the intervals hold the true mean.
"""

from __future__ import annotations

import math
from typing import Any

try:
    import numpy as np
    from numpy.typing import ArrayLike, NDArray
    from scipy import stats  # type: ignore[import-untyped]
except ImportError as error:
    raise ImportError(
        'The statistics of a study need numpy and scipy. Install them with: pip install "mtl_axes[study]"'
    ) from error

__all__ = ["holm", "mean_and_sd", "p_value", "power", "seeds_needed", "t_interval"]

Floats = NDArray[np.float64]

_FAINTEST, _MOST_STEADY = 1e-6, 50.0  # effects in standard deviations; beyond them power is 5 % and 1
_ALPHA = 0.05
_MANY = 100_000


def mean_and_sd(values: ArrayLike, /) -> tuple[Floats, Floats]:
    """Return the mean and the standard deviation (n - 1 in the denominator) over the last axis.

    Args:
        values: (..., n), finite.

    Returns:
        Two arrays (...). The mean is NaN if n = 0. The deviation is NaN if n < 2, and exactly 0 if all values are equal.
    """
    x = np.asarray(values, dtype=np.float64)
    if x.shape[-1] == 0:
        return np.full(x.shape[:-1], np.nan), np.full(x.shape[:-1], np.nan)
    unit, scale = _scaled(x)
    if x.shape[-1] == 1:
        return scale * unit[..., 0], np.full(x.shape[:-1], np.nan)
    return scale * unit.mean(-1), scale * unit.std(-1, ddof=1)


def _scaled(x: Floats) -> tuple[Floats, Floats]:
    """Values over the largest of their row, and that one: runs that reached 1e200 are finite and their squares are not,
    and equal values become 1, whose deviation is exactly 0."""
    scale = np.abs(x).max(-1)
    scale = np.where(scale == 0, 1.0, scale)
    return x / scale[..., None], scale


def _t_test(differences: ArrayLike) -> tuple[Any, Floats]:
    """scipy's test of differences over the largest, and the largest. Rows without a spread are NaN."""
    x = np.asarray(differences, dtype=np.float64)
    if x.shape[-1] < 2:
        x = np.zeros((*x.shape[:-1], 2))
    unit, scale = _scaled(x)
    unit = np.where(np.ptp(unit, axis=-1, keepdims=True) > 0, unit, np.nan)
    return stats.ttest_1samp(unit, 0.0, axis=-1), scale


def t_interval(differences: ArrayLike, /, *, level: float = 0.95) -> tuple[Floats, Floats]:
    r"""Student's interval for the mean of paired differences: mean -+ t sd / sqrt(n), with t the quantile at (1 + level) / 2
    of the t distribution with n - 1 degrees of freedom.

    Args:
        differences: (..., n), finite.
        level: how often the interval should hold the true mean, in (0, 1).

    Returns:
        Its two ends, (...) each; NaN if n < 2 or all differences are equal.

    >>> low, high = t_interval([-0.4, 0.1, -0.6, -0.3])
    >>> print(f"{low:.3f} {high:.3f}")
    -0.768 0.168

    References:
        Student, "The probable error of a mean", Biometrika 6, 1908.
    """
    test, scale = _t_test(differences)
    interval = test.confidence_interval(level)
    return scale * interval.low, scale * interval.high


def p_value(differences: ArrayLike, /) -> Floats:
    r"""Two-sided p-value of the paired t test: how often differences whose true mean is 0 would give a mean as far from 0.

    Args:
        differences: (..., n), finite.

    Returns:
        (...), in [0, 1]; NaN if n < 2 or all differences are equal.

    >>> print(f"{p_value([-0.4, 0.1, -0.6, -0.3]):.3f}")
    0.134
    """
    return np.asarray(_t_test(differences)[0].pvalue)


def holm(p_values: ArrayLike, /) -> Floats:
    r"""Holm's correction of the p-values of a family of comparisons: among the comparisons of what is in truth equal, any
    falls below 0.05 in at most 5 % of all studies, however they depend on each other.

    With p sorted upwards, p~_(j) = max over i <= j of min(1, (m - i + 1) p_(i)).

    Args:
        p_values: (..., m). NaN marks a comparison without a test: it stays NaN and does not count in m.

    Returns:
        (..., m), each at least as large as its p-value.

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


def power(effect: float, n: int, /) -> float:
    """Chance that the two-sided paired t test with n seeds gives p < 0.05 for an effect.

    Args:
        effect: the true mean of the differences over their true standard deviation.
        n: seeds, at least 2.

    Returns:
        P(|T| > t), T noncentral t with n - 1 degrees of freedom and noncentrality effect sqrt(n); t is the two-sided bound
        of the test at 5 %.

    >>> print(f"{power(1.0, 10):.3f}")
    0.803
    """
    size = min(max(abs(effect), _FAINTEST), _MOST_STEADY)
    # T^2 is noncentral F. scipy's noncentral t is NaN in its far tail, and its noncentral F is wrong at exactly 0.
    return float(stats.ncf.sf(stats.t.isf(_ALPHA / 2, n - 1) ** 2, 1, n - 1, n * size**2))


def seeds_needed(effect: float, /, *, chance: float = 0.8) -> int | None:
    """Fewest seeds with which :func:`power` reaches ``chance``.

    Args:
        effect: mean of the differences over their standard deviation.
        chance: the requested power, in (0, 1).

    Returns:
        The number, at least 2; None for NaN or an effect below 1e-6, which no feasible number of seeds would show.

    >>> seeds_needed(1.0), seeds_needed(0.2)
    (10, 199)
    """
    size = abs(effect)
    if not size >= _FAINTEST:
        return None
    bound = float(stats.norm.isf(_ALPHA / 2))
    normal = ((bound + float(stats.norm.ppf(chance))) / size) ** 2
    if normal > _MANY:
        return math.ceil(normal + bound**2 / 2)  # with the t quantile's first correction
    n = max(2, math.floor(normal))  # the normal approximation never asks for too many
    while power(effect, n) < chance:
        n += 1
    return n
