"""Nash-MTL: the bargaining solution between the tasks."""

from __future__ import annotations

import math

from torch import Tensor

from mtl_axes.options import check_number
from mtl_axes.outer.gramian import GramianWeighting, Problem
from mtl_axes.outer.solvers import nash


class NashMTL(GramianWeighting):
    r"""Weights of the direction that maximises the product of the tasks' gains, for losses of any scale.

    ::

        (G x)_i = 1 / x_i,  x > 0
        lambda  = x min(1, max_norm / sqrt(K))

    Every such x gives x'Gx = sum_i x_i / x_i = K: the common gradient J'x always has the length sqrt(K). Clipping it, as the
    authors' program does, is therefore a constant factor. Multiplying a loss by c divides its weight by c. For K = 2,
    x_i = 1 / (g_i sqrt(1 + cos)); for orthogonal gradients 1 / g_i. If only k tasks are active, K is k. The authors also
    reuse weights for several steps: ``compose(..., every=n)``.

    There is no solution for opposed gradients, or others with a non-negative combination that is 0: x would be infinite. It
    ends at x_i g_i = 1e5 sqrt(K) (see :func:`mtl_axes.outer.solvers.nash`), for K = 2 at a cosine below -1 + 1e-10. Long
    before, weights of 1 / sqrt(1 + cos) multiply the heads' gradients, too.

    Args:
        max_norm: > 0, the largest norm of the common gradient; None leaves it sqrt(K).

    Returns:
        (K,) positive weights; 0 for a task that is absent or has no gradient.

    Raises:
        OptionError: an option is outside its range.

    >>> import torch
    >>> from mtl_axes import Signals
    >>> NashMTL(max_norm=None)(Signals(torch.ones(2), gramian=torch.tensor([[18.0, -22.0], [-22.0, 38.0]])))
    tensor([0.5915, 0.4071])

    References:
        A. Navon et al., "Multi-Task Learning as a Bargaining Game", 2022. Solved exactly; the authors, TorchJD 0.18 and
        LibMTL run up to 20 rounds of a concave-convex procedure through cvxpy and ECOS, whose weights agree to 7e-8 on
        well-scaled 3 x 5 Jacobians. LibMTL clips the shared gradients only; its heads receive the unclipped weights.
        FairGrad with alpha = 1 is this without a clip.
    """

    sign = "positive"
    scaling = "inverse"
    balances = True

    def __init__(self, *, max_norm: float | None = 1.0) -> None:
        super().__init__()
        self.max_norm = None if max_norm is None else check_number("max_norm", max_norm, low=0.0, low_open=True)

    def solve(self, problem: Problem, /) -> Tensor:
        solution = nash(problem.gramian)
        if self.max_norm is None:
            return solution
        return solution * min(1.0, self.max_norm / math.sqrt(len(solution)))
