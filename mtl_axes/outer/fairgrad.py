"""FairGrad: alpha-fair gains of the tasks."""

from __future__ import annotations

from torch import Tensor

from mtl_axes.options import check_number
from mtl_axes.outer.gramian import GramianWeighting, Problem
from mtl_axes.outer.solvers import nash


class FairGrad(GramianWeighting):
    r"""Weights of the direction whose gains for the tasks are alpha-fair.

    ::

        (G lambda)_i = lambda_i^(-1 / alpha),  lambda > 0

    The gain of task i, g_i'd along d = J'lambda, is then lambda_i^(-1/alpha), and d maximises
    sum_i gain_i^(1 - alpha) / (1 - alpha) among directions of its length. alpha -> 0 is the plain sum of the losses,
    alpha = 1 Nash-MTL without its clipping, alpha -> infinity the largest smallest gain, which is MGDA's direction. For
    orthogonal gradients lambda_i = g_i^(-2 alpha / (1 + alpha)). There is no solution if a non-negative combination of the
    gradients is 0: for opposed gradients of length 1, lambda_i g_i ends at 1e10^(alpha / (1 + alpha)), as in ``nash_mtl``.

    Args:
        alpha: in [0.1, 10].

    Returns:
        (K,) positive weights; 0 for a task that is absent or has no gradient.

    Raises:
        OptionError: an option is outside its range.

    >>> import torch
    >>> from mtl_axes import Signals
    >>> FairGrad(alpha=2.0)(Signals(torch.ones(2), gramian=torch.tensor([[18.0, -22.0], [-22.0, 38.0]])))
    tensor([0.4714, 0.3195])

    References:
        H. Ban, K. Ji, "Fair Resource Allocation in Multi-Task Learning", 2024. Solved by Newton's method; the authors,
        TorchJD 0.18 and LibMTL use scipy's ``least_squares``, whose weights agree to 1e-7 on well-scaled 3 x 5 Jacobians.
    """

    sign = "positive"

    def __init__(self, *, alpha: float = 1.0) -> None:
        super().__init__()
        self.alpha = check_number("alpha", alpha, low=0.1, high=10.0)

    def solve(self, problem: Problem, /) -> Tensor:
        return nash(problem.gramian, alpha=self.alpha)
