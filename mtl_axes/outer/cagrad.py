"""CAGrad: the direction near the mean gradient that helps the worst task most."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from mtl_axes.options import check_number
from mtl_axes.outer.gramian import GramianWeighting, Problem
from mtl_axes.outer.solvers import min_norm, nnls

_STEPS = 100
# Rounding of the squared length of the shortest convex combination, relative to the gradients in it.
_STATIONARY = 1e-13


class CAGrad(GramianWeighting):
    r"""Weights of the direction, in a ball around the mean gradient g0, along which the slowest task gains most.

    ::

        max_d min_i g_i'd   over   |d - g0| <= c |g0|
        d = J'lambda,   lambda = 1/K + (c |g0| / |g_w|) w,   w = argmin g_w'g0 + c |g0| |g_w|,   g_w = J'w on the simplex

    c = 0 is the mean gradient. With c >= 1 the ball contains the origin, and no task loses: (G lambda)_i >= 0. lambda sums
    to 1 + c |g0| / |g_w|, and |d| is at most (1 + c) |g0|. If only k tasks are active, K is k.

    If a convex combination of the gradients is 0, as for opposed ones, no direction improves all tasks, |g_w| can be 0 and
    the formula is undefined. Among the best directions the one nearest to g0 is taken. If the ball reaches a direction with
    (G lambda)_i >= 0, it is the direction of ``dualproj``; otherwise it is on the edge of the ball, as above.

    Solved by the conditions of optimality: lambda - 1/K is the v >= 0 that minimises 1/2 v'Gv - sum_i v_i (t - g_i'g0) for
    the gain t at which |J'v| = c |g0|. |J'v| is convex in t. Newton's method descends to that t from a bound by duality, in
    3 to 6 problems of non-negative least squares.

    Args:
        c: >= 0, the radius of the ball relative to |g0|.

    Returns:
        (K,) weights >= 1/K; 0 for a task that is absent or has no gradient.

    Raises:
        OptionError: an option is outside its range.

    >>> import torch
    >>> from mtl_axes import Signals
    >>> CAGrad(c=0.5)(Signals(torch.ones(2), gramian=torch.tensor([[18.0, -22.0], [-22.0, 38.0]])))
    tensor([0.7041, 0.5000])

    References:
        B. Liu, X. Liu, X. Jin, P. Stone, Q. Liu, "Conflict-Averse Gradient Descent for Multi-task Learning", 2021. Exact,
        while on well-scaled 3 x 5 Jacobians TorchJD 0.18 (Clarabel) is off by up to 1.3e-4 and LibMTL (SLSQP) by up to
        3.9e-4 (in J'lambda). Differs from TorchJD, which returns 0 for all tasks if the shortest combination is below 1e-4
        of |J|, for example because one task has no gradient. Does not divide by 1 + c^2 as LibMTL does by default
        (``rescale=1``); LibMTL reports w as the weights, not lambda.
    """

    sign = "positive"
    scaling = "invariant"

    def __init__(self, *, c: float = 0.5) -> None:
        super().__init__()
        self.c = check_number("c", c, low=0.0)

    def solve(self, problem: Problem, /) -> Tensor:
        gramian = problem.gramian
        mean = torch.full_like(gramian[0], 1.0 / len(gramian))
        along = gramian @ mean
        radius = self.c * _length(mean, gramian)
        gain = self._bound(gramian, along, radius)
        extra = nnls(gramian, gain - along)
        for _ in range(_STEPS):
            length = _length(extra, gramian)
            if length <= radius * (1 + 1e-10):
                break
            # d|J'v|/dt = sum(v) / |J'v|.
            lower = gain - (length - radius) * length / float(extra.sum())
            if lower >= gain:
                break
            gain = lower
            extra = nnls(gramian, gain - along)
        return mean + extra

    def _bound(self, gramian: Tensor, along: Tensor, radius: float) -> float:
        """Return a gain that the slowest task cannot exceed: g_w'g0 + radius |g_w|, for some w on the simplex."""
        norms = gramian.diagonal().sqrt()
        alone = float((along + radius * norms).min())
        if alone <= 0:
            return alone
        shortest = min_norm(gramian)
        length = _length(shortest, gramian)
        if length**2 <= _STATIONARY * float(shortest @ norms) ** 2:
            return 0.0
        return min(alone, float(shortest @ along) + radius * length)


def _length(weights: Tensor, gramian: Tensor) -> float:
    """Return |J'weights|."""
    return math.sqrt(max(float(weights @ gramian @ weights), 0.0))
