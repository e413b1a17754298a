"""Shapes whose pull decreases for large errors: tukey, cauchy, welsch, geman_mcclure, and barron, a family of them."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor

from mtl_axes.inner.base import REGRESSION, InnerShape
from mtl_axes.options import check_number

__all__ = ["Barron", "Cauchy", "GemanMcClure", "Tukey", "Welsch"]


class Tukey(InnerShape):
    """Tukey's biweight: beyond c standard deviations the loss of an error is constant.

    ::

        l = c^2/6 (1 - (1 - v^2)^3)   where |v| <= 1,  v = e / (c scale),  e = prediction - target
          = c^2/6                     elsewhere
        dl/de = e / scale^2 (1 - v^2)^2   inside, 0 outside

    A sample outside has no gradient, so that a model that starts far from its targets learns nothing. Start from ``huber``,
    or choose ``scale`` after a first fit. The first call warns if every error is outside.

    Args:
        c: number of scales beyond which an error is an outlier, > 0. 4.685 keeps 95 % efficiency on normal errors.
        scale: typical error in target units, > 0: the standard deviation, or 1.4826 times the median of |e|.

    Returns:
        (N, ...) losses in [0, c^2/6], in units of the scale.

    Raises:
        OptionError: c or scale is not a positive number.

    >>> Tukey(scale=5.0)(torch.tensor([15.0, 26.0, 500.0]), torch.tensor([10.0, 30.0, 60.0]))
    tensor([0.4776, 0.3108, 3.6582])

    References:
        A. E. Beaton, J. W. Tukey, "The Fitting of Power Series, Meaning Polynomials, Illustrated on Band-Spectroscopic
        Data", 1974; V. Belagiannis et al., "Robust Optimization for Deep Regression", 2015. Differs from the second in the
        scale, an option instead of 1.4826 times the median absolute deviation of each batch, which would couple its samples.
    """

    kinds = REGRESSION

    def __init__(self, *, c: float = 4.685, scale: float = 1.0) -> None:
        super().__init__()
        self.c = check_number("c", c, low=0.0, low_open=True)
        self.scale = check_number("scale", scale, low=0.0, low_open=True)

    def check_values(self, prediction: Tensor, target: Tensor) -> None:
        reach = self.c * self.scale
        if bool(((prediction - target).abs() > reach).all()):
            warnings.warn(
                f"tukey: every error exceeds c * scale = {reach:g}, so no sample has a gradient. Pass the size of a typical "
                "error as scale, or start from huber.",
                stacklevel=2,
            )

    def forward(self, prediction: Tensor, target: Tensor, /) -> Tensor:
        inside = ((prediction - target) / (self.c * self.scale)).square().clamp_max(1)
        # 1 - (1 - w)^3 without cancellation. The slope 3 (1 - w)^2 is 0 at w = 1, where the clamp begins.
        return self.c**2 / 6 * (inside * (3 - 3 * inside + inside.square()))


class _Scaled(InnerShape):
    """The base of shapes of u = e / c."""

    kinds = REGRESSION

    def __init__(self, *, c: float = 1.0) -> None:
        super().__init__()
        self.c = check_number("c", c, low=0.0, low_open=True)


class Cauchy(_Scaled):
    """Negative log density of a Cauchy error, up to a constant: grows like a logarithm.

    ::

        l = log(1 + u^2/2),  u = e / c,  e = prediction - target
        dl/de = (u / c) / (1 + u^2/2)

    It is ``barron(alpha=0)``. The pull is largest at |e| = sqrt(2) c and falls like 1/|e| beyond.

    Args:
        c: size of a typical error, in target units, > 0.

    Returns:
        (N, ...) losses >= 0.

    Raises:
        OptionError: c is not a positive number.

    >>> Cauchy(c=5.0)(torch.tensor([15.0, 26.0]), torch.tensor([10.0, 30.0]))
    tensor([0.4055, 0.2776])

    References:
        M. J. Black, P. Anandan, "The robust estimation of multiple motions: Parametric and piecewise-smooth flow fields",
        1996 (Lorentzian). Equal to kornia.losses.cauchy_loss. Differs from scipy.optimize.least_squares(loss="cauchy"),
        whose cost is f_scale^2 / 2 log(1 + (e / f_scale)^2): c = f_scale / sqrt(2), and a factor f_scale^2 / 2.
    """

    def forward(self, prediction: Tensor, target: Tensor, /) -> Tensor:
        return (0.5 * ((prediction - target) / self.c).square()).log1p()


class Welsch(_Scaled):
    """One minus a Gaussian bell: the loss of an outlier tends to 1, and its pull falls exponentially.

    ::

        l = 1 - exp(-u^2/2),  u = e / c,  e = prediction - target
        dl/de = (u / c) exp(-u^2/2)

    It is the limit of ``barron`` as alpha goes to minus infinity. Beyond about 5 c a sample has almost no gradient (a factor
    of 3.7e-6 at u = 5), so that c must fit the errors at the start of training.

    Args:
        c: size of a typical error, in target units, > 0.

    Returns:
        (N, ...) losses in [0, 1].

    Raises:
        OptionError: c is not a positive number.

    >>> Welsch(c=5.0)(torch.tensor([15.0, 26.0]), torch.tensor([10.0, 30.0]))
    tensor([0.3935, 0.2739])

    References:
        J. E. Dennis, R. E. Welsch, "Techniques for nonlinear least squares and robust regression", 1978. Equal to
        kornia.losses.welsch_loss.
    """

    def forward(self, prediction: Tensor, target: Tensor, /) -> Tensor:
        return -(-0.5 * ((prediction - target) / self.c).square()).expm1()


class GemanMcClure(_Scaled):
    """Bounded rational loss: the loss of an outlier tends to 2, and its pull falls like 1/|e|^3.

    ::

        l = 2 u^2 / (u^2 + 4),  u = e / c,  e = prediction - target
        dl/de = 16 (u / c) / (u^2 + 4)^2

    It is ``barron(alpha=-2)``.

    Args:
        c: size of a typical error, in target units, > 0.

    Returns:
        (N, ...) losses in [0, 2].

    Raises:
        OptionError: c is not a positive number.

    >>> GemanMcClure(c=5.0)(torch.tensor([15.0, 26.0]), torch.tensor([10.0, 30.0]))
    tensor([0.4000, 0.2759])

    References:
        S. Geman, D. E. McClure, "Bayesian image analysis: An application to single photon emission tomography", 1985.
        Equal to kornia.losses.geman_mcclure_loss, which has Barron's scale. The original is u^2 / (1 + u^2), with another u.
    """

    def forward(self, prediction: Tensor, target: Tensor, /) -> Tensor:
        scaled = (prediction - target) / self.c
        # The square of a ratio, not the ratio of squares: inf / inf is NaN.
        return 2 * (scaled / torch.hypot(scaled, scaled.new_full((), 2.0))).square()


class Barron(_Scaled):
    """Barron's family: alpha selects a loss from the square to Charbonnier, Cauchy, Geman-McClure and Welsch.

    ::

        l = |alpha - 2| / alpha ((u^2 / |alpha - 2| + 1)^(alpha/2) - 1),  u = e / c,  e = prediction - target
          = log(1 + u^2/2)   alpha = 0        = u^2/2   alpha = 2

    alpha = 2 is half the square; 1 is Charbonnier, ``pseudo_huber`` / c^2; 0 is ``cauchy``; -2 is ``geman_mcclure``; the
    limit at minus infinity is ``welsch``. For alpha <= 1 the pull of an outlier is bounded, and for alpha < 1 it
    decreases with the error. For alpha > 2 outliers count more than in a square.

    Args:
        alpha: the shape, any finite number.
        c: size of a typical error, in target units, > 0. For smaller errors the loss is about u^2/2, whatever alpha.

    Returns:
        (N, ...) losses >= 0.

    Raises:
        OptionError: alpha is not finite, or c is not positive.

    >>> Barron(alpha=1.0, c=5.0)(torch.tensor([15.0, 26.0]), torch.tensor([10.0, 30.0]))
    tensor([0.4142, 0.2806])

    References:
        J. T. Barron, "A General and Adaptive Robust Loss Function", 2019. alpha is an option and is not learned. Computed
        as expm1(alpha/2 log1p(.)), exact to 3e-6 in float32 even next to the removable singularities 0 and 2. Differs there
        from robust_loss_pytorch, which computes pow(.) - 1 and keeps alpha at least 1.2e-7 away from 0 and 2: at u = 1 in
        float32 it gives 0.477 at alpha = 1e-6 and 0 at 2e-7, while the loss is 0.405.
    """

    def __init__(self, *, alpha: float = 1.0, c: float = 1.0) -> None:
        super().__init__(c=c)
        self.alpha = check_number("alpha", alpha)

    def forward(self, prediction: Tensor, target: Tensor, /) -> Tensor:
        square = ((prediction - target) / self.c).square()
        if self.alpha == 2:
            return 0.5 * square
        # Below 1e-30 the division by alpha would overflow in float32, and the limit is exact in every dtype.
        if abs(self.alpha) < 1e-30:
            return (0.5 * square).log1p()
        bend = abs(self.alpha - 2)
        return bend / self.alpha * (self.alpha / 2 * (square / bend).log1p()).expm1()
