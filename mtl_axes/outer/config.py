"""ConFIG: the conflict-free direction, as long as the gradients project on it."""

from __future__ import annotations

from torch import Tensor

from mtl_axes.outer.geometry import cosines, equal_projections, resolution
from mtl_axes.outer.gramian import GramianWeighting, Problem

__all__ = ["ConFIG"]


class ConFIG(GramianWeighting):
    r"""The direction with the same positive projection on every gradient's direction, times the sum of their projections.

    ::

        n_i    = sqrt(G_ii),   C_ij = G_ij / (n_i n_j)      norms and cosines of the gradients, G (K, K) their Gramian
        z      = C^+ 1                                      pseudo-inverse; u = sum_i z_i g_i / n_i has the direction
        length = sum_i n_i (C z)_i / sqrt(z' C z)           sum of the projections of all g_i on it
        lambda = length (z / n) / sqrt(z' C z)
        lambda = mean(n) / n                                where there is no such direction

    The direction is that of ``imtl_g``, the length another. Gradients that are exactly opposed, or depend on each other so
    that all projections cannot be positive, have none; then the weights are those of orthogonal gradients, which for K = 2
    they are at any angle: (n_1 + n_2) / (2 n_i). Weights can be negative. Linearly dependent gradients are those whose
    cosines are singular to within the rounding of the measured Gramian, whatever their norms.

    Returns:
        (K,) weights; 0 for an absent task. With one task it is 1.

    >>> import torch
    >>> from mtl_axes import Signals
    >>> jacobian = torch.tensor([[-4.0, 1.0, 1.0], [6.0, 1.0, 1.0]])
    >>> ConFIG()(Signals(torch.ones(2), gramian=jacobian @ jacobian.T))
    tensor([1.2265, 0.8441])

    References:
        Q. Liu, M. Chu, N. Thuerey, "ConFIG: Towards Conflict-free Training of Physics Informed Neural Networks", 2024,
        without the momentum variant. Differs from the reference in needing the Gramian only, and in the fallback. TorchJD
        0.18 and the authors' conflictfree take the pseudo-inverse of the K x P matrix of unit gradients: the vector agrees
        to 1e-13 while its singular values are above 1e-7 of the largest, below which a Gramian does not show them. For
        opposed gradients TorchJD returns what rounding leaves: 0, or a vector in no particular direction.
    """

    sign = "any"
    scaling = "invariant"
    balances = True

    def solve(self, problem: Problem, /) -> Tensor:
        norms, unit = cosines(problem.gramian)
        coefficients = equal_projections(unit, self.current.dtype)
        projections = unit @ coefficients
        square = coefficients @ projections
        length = norms @ projections
        if min(square / len(norms), length / norms.sum()) <= resolution(self.current.dtype):
            return norms.mean() / norms
        return length / square * coefficients / norms
