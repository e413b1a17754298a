"""IMTL-G: the sum of gradients with the same projection on each of them."""

from __future__ import annotations

from torch import Tensor

from mtl_axes.outer.geometry import cosines, equal_projections, resolution
from mtl_axes.outer.gramian import GramianWeighting, Problem


class IMTLG(GramianWeighting):
    r"""Weights under which the summed gradient has the same projection on the direction of every task's gradient.

    ::

        n_i    = sqrt(G_ii),   C_ij = G_ij / (n_i n_j)      norms and cosines of the gradients, G (K, K) their Gramian
        z      = C^+ 1                                      pseudo-inverse: C z = 1 if that is possible
        lambda = (z / n) / sum_j (z_j / n_j)
        lambda = (1 / n) / sum_j (1 / n_j)                  if the sum above is not positive

    The common projection is 1 / sum_j (z_j / n_j). If the sum is zero, the weights do not exist. If it is negative, weights
    that sum to 1 make the projection negative, and a step raises every loss. Both happen if gradients conflict or are long
    and alike, never for K = 2. The weights are then the inverse norms, as they always are for K = 2. A sum counts as not
    positive below sqrt(eps) times sum_j |z_j / n_j|, with the eps of the measured Gramian.

    Weights can be negative. Gradients of any norms count as linearly dependent if their cosines are singular to within the
    rounding of the measured Gramian.

    Returns:
        (K,) weights that sum to 1; 0 for an absent task.

    >>> import torch
    >>> from mtl_axes import Signals
    >>> jacobian = torch.tensor([[-4.0, 1.0, 1.0], [6.0, 1.0, 1.0]])
    >>> IMTLG()(Signals(torch.ones(2), gramian=jacobian @ jacobian.T))
    tensor([0.5923, 0.4077])

    References:
        L. Liu et al., "Towards Impartial Multi-task Learning", 2021, the gradient part of it. Differs from the reference in
        the pseudo-inverse instead of an inverse, and in the fallback. TorchJD 0.18 agrees to 1e-12 if gradients are
        independent and the sum is positive. It takes G^+ n, which jumps where gradients become dependent: parallel ones of
        norms 10 and 0.1 get (0.9901, 0.0099) and not (0.0099, 0.9901) as at every other angle, opposed ones
        (1.0101, -0.0101). It returns 0 for all tasks if the sum vanishes, and keeps negative sums: 24 % of 3000 Jacobians of
        5 x 6 normal entries plus three times a common normal row, with norms of rows spread by exp(N(0, 1)), and 0.1 % of
        5 x 50 ones. LibMTL inverts: three gradients, one the sum of the others, get (1, 1, -1), whose step is 0.
    """

    total = "1"
    sign = "any"
    scaling = "invariant"

    def solve(self, problem: Problem, /) -> Tensor:
        norms, unit = cosines(problem.gramian)
        weights = equal_projections(unit, self.current.dtype) / norms
        total = weights.sum()
        if total <= resolution(self.current.dtype) * weights.abs().sum():
            weights = 1 / norms
            total = weights.sum()
        return weights / total
