"""PCGrad: each gradient is projected off the gradients that it conflicts with."""

from __future__ import annotations

import torch
from torch import Tensor

from mtl_axes.options import check_integer
from mtl_axes.outer.draws import Draws
from mtl_axes.outer.gramian import GramianWeighting, Problem


class PCGrad(GramianWeighting):
    r"""Weights of the sum of gradients after each was projected off those that it conflicts with, in random order.

    ::

        w_i  = e_i                                          (K,) coefficients of task i's gradient
        for j != i in a random order, drawn for each i:
            p = (G w_i)_j                                   inner product with g_j; G (K, K) the Gramian
            w_ij = w_ij - p / G_jj   if p < 0
        lambda = sum_i w_i

    Every weight is at least 1, and without a conflict exactly 1: the step is the *sum* of the gradients, K times longer than
    their mean (the stage ``rescaled`` gives weights of sum 1 or K). Two tasks in conflict get
    (1 - c n_2 / n_1, 1 - c n_1 / n_2), with their cosine c < 0 and n_i = sqrt(G_ii): weights have no bound if norms differ.

    Args:
        seed: of the orders. They are drawn in every window, from a generator that is a part of the state.

    Returns:
        (K,) positive weights; 0 for an absent task.

    Raises:
        OptionError: ``seed`` is not an integer >= 0.

    >>> from mtl_axes import Signals
    >>> jacobian = torch.tensor([[-4.0, 1.0, 1.0], [6.0, 1.0, 1.0]])
    >>> PCGrad()(Signals(torch.ones(2), gramian=jacobian @ jacobian.T))
    tensor([2.2222, 1.5789])

    References:
        T. Yu et al., "Gradient Surgery for Multi-Task Learning", 2020. TorchJD 0.18 agrees to 1e-14, and draws the same
        orders after ``torch.manual_seed(seed)``; it draws them from torch's global generator, which differs between ranks.
        LibMTL adds 1e-8 to G_jj, which changes the weights by 1e-9 relative to gradients of norm 1.
    """

    sign = "positive"
    symmetric = False
    scaling = "invariant"

    def __init__(self, *, seed: int = 0) -> None:
        super().__init__()
        self.seed = check_integer("seed", seed)
        self.draws = Draws(self.seed)

    def solve(self, problem: Problem, /) -> Tensor:
        gramian = problem.gramian
        count = len(gramian)
        orders = torch.stack([self.draws.permutation(count) for _ in range(count)])
        squares, every = gramian.diagonal(), torch.arange(count)
        coefficients = torch.eye(count, dtype=torch.float64)
        # All tasks make their n-th projection together, because they do not depend on each other.
        for other in orders.unbind(1):
            inner = (coefficients * gramian[other]).sum(1)
            conflicts = (inner < 0) & (other != every)
            coefficients[every, other] -= torch.where(conflicts, inner / squares[other], 0.0)
        return coefficients.sum(0)
