"""Shapes whose pull falls again for large errors: tukey, cauchy, welsch, geman_mcclure."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor

from mtl_axes.inner.base import REGRESSION, InnerShape
from mtl_axes.options import check_number

__all__ = ["Cauchy", "GemanMcClure", "Tukey", "Welsch"]


class Tukey(InnerShape):
    """Tukey's biweight: beyond c standard deviations an error costs a constant and pulls no more.

    ::

        l = c^2/6 (1 - (1 - v^2)^3)   where |v| <= 1,  v = e / (c scale),  e = prediction - target
          = c^2/6                     elsewhere
        dl/de = e / scale^2 (1 - v^2)^2   inside, 0 outside

    A sample outside has no gradient at all, so that a model that starts far from its targets learns nothing. Start from
    ``huber``, or choose ``scale`` after a first fit; the first call warns when every error is outside.

    Args:
        c: number of scales beyond which an error is an outlier, > 0. 4.685 keeps 95 % efficiency on normal errors.
        scale: size of an ordinary error in target units, > 0: its standard deviation, or 1.4826 times the median of |e|.

    Returns:
        (N, ...) losses in [0, c^2/6], in units of the scale.

    Raises:
        OptionError: c or scale is not a positive number.

    >>> Tukey(scale=5.0)(torch.tensor([15.0, 26.0, 500.0]), torch.tensor([10.0, 30.0, 60.0]))
    tensor([0.4776, 0.3108, 3.6582])

    References:
        A. E. Beaton, J. W. Tukey, "The Fitting of Power Series, Meaning Polynomials, Illustrated on Band-Spectroscopic
        Data", 1974; V. Belagiannis et al., "Robust Optimization for Deep Regression", 2015. Differs from the second in the
        scale, which is an option and not 1.4826 times the median absolute deviation of each batch: that would couple its
        samples.
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
                f"tukey: every error exceeds c * scale = {reach:g}, so that no sample has a gradient. Pass the size of an "
                "ordinary error as scale, or start from huber.",
                stacklevel=2,
            )

    def forward(self, prediction: Tensor, target: Tensor, /) -> Tensor:
        inside = ((prediction - target) / (self.c * self.scale)).square().clamp_max(1)
        # 1 - (1 - w)^3 without its cancellation; the slope 3 (1 - w)^2 is 0 at w = 1, where the clamp ends.
        return self.c**2 / 6 * (inside * (3 - 3 * inside + inside.square()))


class Cauchy(InnerShape):
    """The negative log density of a Cauchy error, up to a constant: it grows like a logarithm.

    ::

        l = log(1 + u^2/2),  u = e / c,  e = prediction - target
        dl/de = (u / c) / (1 + u^2/2)

    It is ``barron(alpha=0)``. The pull is largest at |e| = sqrt(2) c and falls like 1/|e| beyond.

    Args:
        c: size of an ordinary error, in target units, > 0.

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

    kinds = REGRESSION

    def __init__(self, *, c: float = 1.0) -> None:
        super().__init__()
        self.c = check_number("c", c, low=0.0, low_open=True)

    def forward(self, prediction: Tensor, target: Tensor, /) -> Tensor:
        return (0.5 * ((prediction - target) / self.c).square()).log1p()


class Welsch(InnerShape):
    """One minus a Gaussian bell: the cost of an outlier tends to 1, and its pull falls exponentially.

    ::

        l = 1 - exp(-u^2/2),  u = e / c,  e = prediction - target
        dl/de = (u / c) exp(-u^2/2)

    The limit of ``barron`` for alpha to minus infinity. Beyond about 5 c a sample has practically no gradient (3.7e-6 of
    its size at u = 5), so that c has to fit the errors at the start of the training.

    Args:
        c: size of an ordinary error, in target units, > 0.

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

    kinds = REGRESSION

    def __init__(self, *, c: float = 1.0) -> None:
        super().__init__()
        self.c = check_number("c", c, low=0.0, low_open=True)

    def forward(self, prediction: Tensor, target: Tensor, /) -> Tensor:
        return -(-0.5 * ((prediction - target) / self.c).square()).expm1()


class GemanMcClure(InnerShape):
    """A bounded rational loss: the cost of an outlier tends to 2, and its pull falls like 1/|e|^3.

    ::

        l = 2 u^2 / (u^2 + 4),  u = e / c,  e = prediction - target
        dl/de = 16 (u / c) / (u^2 + 4)^2

    It is ``barron(alpha=-2)``.

    Args:
        c: size of an ordinary error, in target units, > 0.

    Returns:
        (N, ...) losses in [0, 2].

    Raises:
        OptionError: c is not a positive number.

    >>> GemanMcClure(c=5.0)(torch.tensor([15.0, 26.0]), torch.tensor([10.0, 30.0]))
    tensor([0.4000, 0.2759])

    References:
        S. Geman, D. E. McClure, "Bayesian image analysis: An application to single photon emission tomography", 1985.
        Equal to kornia.losses.geman_mcclure_loss, which has Barron's scale; the original is u^2 / (1 + u^2) of another u.
    """

    kinds = REGRESSION

    def __init__(self, *, c: float = 1.0) -> None:
        super().__init__()
        self.c = check_number("c", c, low=0.0, low_open=True)

    def forward(self, prediction: Tensor, target: Tensor, /) -> Tensor:
        scaled = (prediction - target) / self.c
        # The square of a ratio, not the ratio of squares: inf / inf is NaN.
        return 2 * (scaled / torch.hypot(scaled, scaled.new_full((), 2.0))).square()
