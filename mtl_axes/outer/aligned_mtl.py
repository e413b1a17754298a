"""Aligned-MTL: gradients made orthogonal and equally long before they are averaged."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from mtl_axes.options import check_choice
from mtl_axes.outer.geometry import principal_axes, resolution
from mtl_axes.outer.gramian import GramianWeighting, Problem


class AlignedMTL(GramianWeighting):
    r"""Weights of the mean gradient after all principal axes of the gradients were given the same length.

    ::

        G      = V diag(s) V',  s_1 >= ... >= s_r > 0       of the Gramian G (K, K), r its rank
        lambda = sqrt(scale) V diag(s)^(-1/2) V' 1/K
        scale  = s_r                                        "min"
               = lower median of s                          "median"
               = mean of s                                  "rmse"
        lambda = 1/K                                        if V' 1 = 0: opposed gradients of one norm

    A step is then as stable as with K orthogonal gradients of length sqrt(scale). ``"min"`` takes the shortest axis: it cuts
    the largest gradients, and the step, down to the smallest. Weights can be negative. The rank is the rank of the cosines,
    and each s is exact to 1e-12 of itself: orthogonal gradients of norms 1e12 and 1e-12 have the weights (5e-25, 0.5) with
    ``"min"``.

    Args:
        scale: ``"min"``, ``"median"`` or ``"rmse"``: the common squared length.

    Returns:
        (K,) weights; 0 for an absent task, and 1/k in place of 1/K for the k others. With one task it is 1.

    Raises:
        OptionError: ``scale`` is none of the three.

    >>> from mtl_axes import Signals
    >>> jacobian = torch.tensor([[-4.0, 1.0, 1.0], [6.0, 1.0, 1.0]])
    >>> AlignedMTL()(Signals(torch.ones(2), gramian=jacobian @ jacobian.T))
    tensor([0.5591, 0.4083])

    References:
        D. Senushkin et al., "Independent Component Alignment for Multi-Task Learning", 2023. TorchJD 0.18 has the same
        preference 1/K and agrees to 1e-11 on gradients of similar size. It decides the rank on G itself: orthogonal
        gradients of norms 1 and 1e-9 get (0.5, 0) there, (5e-10, 0.5) here. LibMTL and the authors' code sum instead of
        averaging, so that weights are K times these, (1.1181, 0.8165) in the example. The authors' default is ``"rmse"``,
        LibMTL's ``"min"``; LibMTL's code calls a function that torch no longer has.
    """

    sign = "any"
    scaling = "invariant"

    def __init__(self, *, scale: Literal["min", "median", "rmse"] = "min") -> None:
        super().__init__()
        self.scale = check_choice("scale", scale, ("min", "median", "rmse"))

    def solve(self, problem: Problem, /) -> Tensor:
        values, vectors = principal_axes(problem.gramian, self.current.dtype)
        common = values.mean() if self.scale == "rmse" else values.median() if self.scale == "median" else values.min()
        mean = vectors.mean(0)
        count = len(vectors)
        if mean.norm() <= resolution(self.current.dtype) * count**-0.5:
            return torch.full((count,), 1 / count, dtype=torch.float64)
        weights: Tensor = vectors @ ((common / values).sqrt() * mean)
        return weights
