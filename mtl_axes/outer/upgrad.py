"""UPGrad: the mean of the gradients after each was projected so that it conflicts with no task."""

from __future__ import annotations

import torch
from torch import Tensor

from mtl_axes.outer.gramian import GramianWeighting, Problem
from mtl_axes.outer.solvers import nnls


class UPGrad(GramianWeighting):
    r"""Weights of the mean of the gradients after each has been projected so that it conflicts with no task.

    ::

        v_i    = argmin v'Gv  over  v >= e_i              the i-th projection, in weights
        lambda = 1/K sum_i v_i

    J'v_i is the projection of g_i on the dual cone {d : g_j'd >= 0 for every task j}. The sum is in it, too, so
    (G lambda)_i >= 0: a step that is short enough raises no loss. Without any conflict lambda is 1/K. Every gradient is
    projected alone, so that its remainder grows with that gradient only, which ``dualproj`` (one projection of the mean)
    does not promise. If only k tasks are active, K is k. For opposed gradients of two tasks both projections are 0.

    Returns:
        (K,) weights >= 1/K; 0 for a task that is absent or has no gradient.

    >>> import torch
    >>> from mtl_axes import Signals
    >>> UPGrad()(Signals(torch.ones(2), gramian=torch.tensor([[18.0, -22.0], [-22.0, 38.0]])))
    tensor([1.1111, 0.7895])

    References:
        P. Quinton, V. Rey, "Jacobian Descent for Multi-Objective Optimization", 2024. Exact, while TorchJD 0.18 and LibMTL
        add 1e-4 to the diagonal of G / trace(G): 1.1109 and 0.7894 for the weights above, 0.6375 for 0.6383 on a
        well-scaled 3 x 5 Jacobian, and 2 % of the common gradient on an ill-scaled one.
    """

    sign = "positive"
    scaling = "invariant"

    def solve(self, problem: Problem, /) -> Tensor:
        gramian = problem.gramian
        eye = torch.eye(len(gramian), dtype=gramian.dtype)
        return (eye + nnls(gramian, -gramian)).mean(0)
