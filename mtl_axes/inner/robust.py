"""Convex shapes that grow linearly and so bound the pull of an outlier: pseudo_huber, smooth_l1, log_cosh."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from mtl_axes.inner.base import REGRESSION, InnerShape
from mtl_axes.inner.regression import Huber
from mtl_axes.options import check_number

__all__ = ["LogCosh", "PseudoHuber", "SmoothL1"]


class PseudoHuber(Huber):
    """Smooth Huber loss: a square near zero, lines of slope delta far from zero, and no knot.

    ::

        l = delta^2 (sqrt(1 + u^2) - 1),  u = e / delta,  e = prediction - target
        dl/de = e / sqrt(1 + u^2)

    Computed as delta e u / (sqrt(1 + u^2) + 1), which neither cancels for small errors nor overflows for large ones. With
    delta = 1 it is ``barron(alpha=1)``, Charbonnier's loss minus its constant.

    Args:
        delta: error at which the square becomes a line, in target units, > 0.

    Returns:
        (N, ...) losses >= 0, in squared target units.

    Raises:
        OptionError: delta is not a positive number.

    >>> PseudoHuber(delta=5.0)(torch.tensor([15.0, 26.0]), torch.tensor([10.0, 30.0]))
    tensor([10.3553,  7.0156])

    References:
        P. Charbonnier, L. Blanc-Feraud, G. Aubert, M. Barlaud, "Two deterministic half-quadratic regularization algorithms
        for computed imaging", 1994. Equal to scipy.special.pseudo_huber.
    """

    def forward(self, prediction: Tensor, target: Tensor, /) -> Tensor:
        error = prediction - target
        scaled = error / self.delta
        # hypot avoids scaled^2, which would overflow in float32 at 2e19.
        root = torch.hypot(scaled, scaled.new_ones(()))
        return self.delta * error * (scaled / (root + 1))


class SmoothL1(InnerShape):
    """Smooth L1: the absolute error, with a parabola where |e| < beta.

    ::

        l = e^2 / (2 beta)      where |e| < beta,  e = prediction - target
          = |e| - beta / 2      elsewhere
        dl/de = clip(e / beta, -1, 1)

    It is ``huber(delta=beta) / beta``: its slope far from zero is 1 for every beta, the slope of Huber's loss is delta.

    Args:
        beta: error at which the parabola ends, in target units, >= 0. With 0 the loss is ``mae``.

    Returns:
        (N, ...) losses >= 0, in target units.

    Raises:
        OptionError: beta is negative.

    >>> SmoothL1(beta=5.0)(torch.tensor([11.0, 26.0, 68.0]), torch.tensor([10.0, 30.0, 60.0]))
    tensor([0.1000, 1.6000, 5.5000])

    References:
        R. Girshick, "Fast R-CNN", 2015, with beta = 1. Equal to torch.nn.functional.smooth_l1_loss, in value and gradient.
    """

    kinds = REGRESSION

    def __init__(self, *, beta: float = 1.0) -> None:
        super().__init__()
        self.beta = check_number("beta", beta, low=0.0)

    def forward(self, prediction: Tensor, target: Tensor, /) -> Tensor:
        size = (prediction - target).abs()
        if self.beta == 0:
            return size
        near = size.clamp_max(self.beta)
        # The gradient of this product is near / beta. The gradient of a sum, 1 + (near / beta - 1), would round it off.
        return near / self.beta * (size - 0.5 * near)


class LogCosh(InnerShape):
    """Logarithm of the hyperbolic cosine: e^2 / 2 near zero, |e| - log 2 far from zero, smooth everywhere.

    ::

        l = log cosh e,  e = prediction - target
        dl/de = tanh e

    Computed as log(1 + 2 sinh^2(e/2)) where |e| < 1 and as |e| + log(1 + exp(-2|e|)) - log 2 beyond: the plain formula
    overflows beyond |e| = 89 in float32, and the second form alone returns 0 below |e| = 1e-4. The square becomes a line at
    one target unit. If errors have another size, scale the target or use ``pseudo_huber``.

    Returns:
        (N, ...) losses >= 0.

    >>> LogCosh()(torch.tensor([700.0, 0.5, 1e-4]), torch.tensor([0.0, 0.0, 0.0]))
    tensor([6.9931e+02, 1.2011e-01, 5.0000e-09])

    References:
        P. Chen, G. Chen, S. Zhang, "Log Hyperbolic Cosine Loss Improves Variational Auto-Encoder", 2019. Differs from
        optax.log_cosh and from torchmetrics' LogCoshError in float32 at small errors: at e = 1e-4, 5.0e-9 (exact)
        instead of 0.
    """

    kinds = REGRESSION

    def forward(self, prediction: Tensor, target: Tensor, /) -> Tensor:
        error = prediction - target
        size = error.abs()
        near = (2 * (error.clamp(-1, 1) / 2).sinh().square()).log1p()
        # Softplus would drop its exponential beyond 20, an error of 2e-9.
        far = size + (-2 * size).exp().log1p() - math.log(2)
        return torch.where(size < 1, near, far)
