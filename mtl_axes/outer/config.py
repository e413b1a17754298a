"""ConFIG: the conflict-free direction, with the length of the projections on it."""

from __future__ import annotations

from torch import Tensor

from mtl_axes.outer.geometry import cosines, equal_projections, resolution
from mtl_axes.outer.gramian import GramianWeighting, Problem


class ConFIG(GramianWeighting):
    r"""Weights of the direction with the same positive projection on every gradient's direction.

    ::

        n_i    = sqrt(G_ii),   C_ij = G_ij / (n_i n_j)      norms and cosines of the gradients, G (K, K) their Gramian
        z      = C^+ 1                                      pseudo-inverse; u = sum_i z_i g_i / n_i has the direction
        length = sum_i n_i (C z)_i / sqrt(z' C z)           sum of the projections of all g_i on it
        lambda = length (z / n) / sqrt(z' C z)
        lambda = mean(n) / n                                if there is no such direction

    The direction is the same as in ``imtl_g``; the length differs. There is none for gradients that are exactly opposed, or
    linearly dependent so that not all projections can be positive. The weights are then as for orthogonal gradients; for
    K = 2 they are so at any angle: (n_1 + n_2) / (2 n_i). Weights can be negative. Gradients of any norms count as linearly
    dependent if their cosines are singular to within the rounding of the measured Gramian.

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
        to 1e-13 while its singular values are above 1e-7 of the largest; smaller ones do not show in a Gramian. For opposed
        gradients TorchJD returns 0, or by rounding a vector in an arbitrary direction.
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
