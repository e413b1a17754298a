"""DualProj: the vector nearest to the mean gradient that conflicts with no task."""

from __future__ import annotations

import torch
from torch import Tensor

from mtl_axes.outer.gramian import GramianWeighting, Problem
from mtl_axes.outer.solvers import nnls


class DualProj(GramianWeighting):
    r"""Weights of the vector nearest to the mean gradient that conflicts with no task.

    ::

        lambda = argmin v'Gv  over  v >= 1/K
               = 1/K + argmin_{z >= 0} (z + 1/K)'G(z + 1/K)

    The common gradient J'lambda is the projection of the mean gradient on the dual cone {d : g_i'd >= 0 for every task i},
    so (G lambda)_i >= 0. Without a conflict with the mean, lambda is 1/K. If only k tasks are active, K is k. For opposed
    gradients the projection is 0, and lambda_i g_i is equal for both.

    Returns:
        (K,) weights >= 1/K; 0 for a task that is absent or has no gradient.

    >>> import torch
    >>> from mtl_axes import Signals
    >>> DualProj()(Signals(torch.ones(2), gramian=torch.tensor([[18.0, -22.0], [-22.0, 38.0]])))
    tensor([0.6111, 0.5000])

    References:
        D. Lopez-Paz, M. Ranzato, "Gradient Episodic Memory for Continual Learning", 2017, equation 11, applied to the mean
        gradient. Exact, while TorchJD 0.18 adds 1e-4 to the diagonal of G / trace(G): 0.6109 for the first weight above,
        0.5368 for 0.5371 on a well-scaled 3 x 5 Jacobian.
    """

    sign = "positive"
    scaling = "invariant"

    def solve(self, problem: Problem, /) -> Tensor:
        gramian = problem.gramian
        mean = torch.full_like(gramian[0], 1.0 / len(gramian))
        return mean + nnls(gramian, -(gramian @ mean))
