"""Barron's family of robust shapes: barron."""

from __future__ import annotations

from torch import Tensor

from mtl_axes.inner.base import REGRESSION, InnerShape
from mtl_axes.options import check_number

__all__ = ["Barron"]


class Barron(InnerShape):
    """Barron's family: one number alpha runs from the square over Charbonnier, Cauchy and Geman-McClure towards Welsch.

    ::

        l = |alpha - 2| / alpha ((u^2 / |alpha - 2| + 1)^(alpha/2) - 1),  u = e / c,  e = prediction - target
          = log(1 + u^2/2)   alpha = 0        = u^2/2   alpha = 2

    alpha = 2: half the square; 1: Charbonnier, ``pseudo_huber`` / c^2; 0: ``cauchy``; -2: ``geman_mcclure``; the limit at
    minus infinity is ``welsch``. For alpha <= 1 the pull of an outlier is bounded, for alpha < 1 it falls again. For large
    alpha (beyond 2) outliers count more than in a square.

    Args:
        alpha: the shape, any finite number.
        c: size of an ordinary error, in target units, > 0. Within it every alpha looks like u^2/2.

    Returns:
        (N, ...) losses >= 0.

    Raises:
        OptionError: alpha is not finite, or c is not positive.

    >>> import torch
    >>> Barron(alpha=1.0, c=5.0)(torch.tensor([15.0, 26.0]), torch.tensor([10.0, 30.0]))
    tensor([0.4142, 0.2806])

    References:
        J. T. Barron, "A General and Adaptive Robust Loss Function", 2019. alpha is an option and is not learned. Computed
        as expm1(alpha/2 log1p(.)), in float32 to 3e-6 also next to the removable singularities 0 and 2. Differs there from
        robust_loss_pytorch, which computes pow(.) - 1 and keeps alpha at least 1.2e-7 away from 0 and 2: at u = 1 in
        float32 it gives 0.477 at alpha = 1e-6 and 0 at 2e-7, where the loss is 0.405.
    """

    kinds = REGRESSION

    def __init__(self, *, alpha: float = 1.0, c: float = 1.0) -> None:
        super().__init__()
        self.alpha = check_number("alpha", alpha)
        self.c = check_number("c", c, low=0.0, low_open=True)

    def forward(self, prediction: Tensor, target: Tensor, /) -> Tensor:
        square = ((prediction - target) / self.c).square()
        if self.alpha == 2:
            return 0.5 * square
        # Below 1e-30 the quotient by alpha would overflow in float32, and the limit is exact in any dtype.
        if abs(self.alpha) < 1e-30:
            return (0.5 * square).log1p()
        bend = abs(self.alpha - 2)
        return bend / self.alpha * (self.alpha / 2 * (square / bend).log1p()).expm1()
