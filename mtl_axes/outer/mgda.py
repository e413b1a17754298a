"""MGDA: the shortest convex combination of the gradients."""

from __future__ import annotations

from torch import Tensor

from mtl_axes.outer.gramian import GramianWeighting, Problem
from mtl_axes.outer.solvers import min_norm


class MGDA(GramianWeighting):
    r"""Weights of the shortest vector in the convex hull of the gradients, along which every loss falls.

    ::

        lambda = argmin w'Gw  over  w >= 0, sum_i w_i = 1

    At the minimum (G lambda)_i >= lambda'G lambda for every task: the common gradient conflicts with none. If its length is
    0, as for opposed gradients, no direction improves all tasks; lambda is still on the simplex, and shows how they cancel.
    Equal gradients share their weight equally.

    A task with a small gradient dominates: for orthogonal gradients lambda_i is proportional to 1 / g_i^2, so that a nearly
    solved task takes all the weight and the step of the shared parameters shrinks with it. If that matters, balance the
    losses first, or use ``nash_mtl`` or ``upgrad``.

    Returns:
        (K,) non-negative weights that sum to 1; 0 for a task that is absent or has no gradient.

    >>> import torch
    >>> from mtl_axes import Signals
    >>> MGDA()(Signals(torch.ones(2), gramian=torch.tensor([[18.0, -22.0], [-22.0, 38.0]])))
    tensor([0.6000, 0.4000])

    References:
        J.-A. Desideri, "Multiple-gradient descent algorithm (MGDA) for multiobjective optimization", 2012; O. Sener,
        V. Koltun, "Multi-Task Learning as Multi-Objective Optimization", 2018. Exact, while the second paper iterates by
        Frank-Wolfe: TorchJD 0.18 stops at a step of 1e-3 or after 100, which leaves weights off by up to 0.013 and a
        length of 0.2998 for 0.2984 on a well-scaled 3 x 5 Jacobian, and 0.039 for 0 on opposed gradients; LibMTL bounds the
        step by 0.001 and 0.999. Differs from both in leaving out a task without a gradient: there it takes the weight 1
        and training stops. LibMTL's normalisations by norm or loss are not included.
    """

    total = "1"
    scaling = "invariant"

    def solve(self, problem: Problem, /) -> Tensor:
        return min_norm(problem.gramian)
