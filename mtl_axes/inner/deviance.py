"""Shapes for targets >= 0: msle, and the deviances poisson, gamma and tweedie of a predicted log mean."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from mtl_axes.errors import DataError
from mtl_axes.inner._values import as_floats
from mtl_axes.inner.base import REGRESSION, InnerShape
from mtl_axes.options import check_choice, check_number

__all__ = ["MSLE", "Gamma", "Poisson", "Tweedie"]


class _LogMean(InnerShape):
    """The base of deviances: the prediction is the logarithm of the mean of a target >= 0."""

    kinds = REGRESSION
    target_range = (0.0, math.inf)
    prediction_range = (-20.0, 20.0)  # exp(20) is 5e8, so that nothing overflows, even when squared

    def check_values(self, prediction: Tensor, target: Tensor) -> None:
        low, positive = float(target.min()), self.target_range[0] > 0
        if low < 0 or (positive and low == 0):
            name = type(self).__name__.lower()
            raise DataError(f"Targets of {name} should be {'> 0' if positive else '>= 0'}. Found {low:g}.")


class Poisson(_LogMean):
    """Poisson negative log likelihood of a count, from the logarithm of its mean.

    ::

        l = exp(x) - y x                               x = log mean, the prediction
          = 2 (y log y - y x - y + exp(x))             deviance=True; 0 log 0 = 0
        dl/dx = exp(x) - y, twice that for the deviance

    Both have the same minimiser. The likelihood omits log y!, and is negative for large counts; weightings that take ratios
    or logarithms of losses need the deviance. exp(x) is infinite in float32 from x = 89 on, a count of 1e38.

    Args:
        deviance: return the deviance, which is >= 0 and 0 for a perfect prediction.

    Returns:
        (N, ...) losses; >= 0 with deviance=True.

    Raises:
        OptionError: deviance is not a bool.
        DataError: in the first call, a target is negative.

    >>> Poisson()(torch.tensor([0.5, 1.0]), torch.tensor([10.0, 0.0]))
    tensor([-3.3513,  2.7183])
    >>> Poisson(deviance=True)(torch.tensor([0.5, 1.0]), torch.tensor([10.0, 0.0]))
    tensor([19.3491,  5.4366])

    References:
        J. A. Nelder, R. W. M. Wedderburn, "Generalized Linear Models", 1972. Equal to
        torch.nn.functional.poisson_nll_loss(log_input=True), and to sklearn.metrics.mean_poisson_deviance of exp(x) before
        its mean. Differs from the first, which can also take the mean: here pass ``mean.log()``.
    """

    def __init__(self, *, deviance: bool = False) -> None:
        super().__init__()
        check_choice("deviance", deviance, (False, True))
        self.deviance = deviance

    @property
    def lower_bound(self) -> float | None:  # type: ignore[override]
        """0 for the deviance; the likelihood can be negative."""
        return 0.0 if self.deviance else None

    def forward(self, prediction: Tensor, target: Tensor, /) -> Tensor:
        target = as_floats(target, prediction)
        likelihood = prediction.exp() - target * prediction
        if not self.deviance:
            return likelihood
        # The difference of likelihoods cancels near its minimum: at y = 1e5 in float32, within 1 % of the mean.
        gap = prediction - target.log()
        small = gap.clamp(-1, 1)
        near = target * (small.expm1() - small).clamp_min(0)
        return 2 * torch.where(gap.abs() < 1, near, likelihood - (target - torch.xlogy(target, target)))


class Gamma(_LogMean):
    """Gamma deviance of a positive target, from the logarithm of its mean: errors count relative to the mean.

    ::

        l = 2 (exp(d) - d - 1),  d = log y - x,  x = log mean, the prediction
        dl/dx = 2 (1 - y exp(-x))

    Args:
        prediction: (N, ...) logarithms of the mean.
        target: (N, ...) floats > 0.

    Returns:
        (N, ...) losses >= 0, without unit: scaling y and exp(x) changes nothing.

    Raises:
        DataError: in the first call, a target is not positive.

    >>> Gamma()(torch.tensor([0.5, 1.0]), torch.tensor([1.0, 10.0]))
    tensor([0.2131, 2.7524])

    References:
        P. McCullagh, J. A. Nelder, "Generalized Linear Models", 1989. Equal to sklearn.metrics.mean_gamma_deviance of
        exp(x) before its mean. xgboost's reg:gamma is half of it, without the terms that depend only on y.
    """

    target_range = (torch.finfo(torch.bfloat16).tiny, math.inf)

    def forward(self, prediction: Tensor, target: Tensor, /) -> Tensor:
        ratio = as_floats(target, prediction).log() - prediction
        return 2 * (ratio.expm1() - ratio).clamp_min(0)


class Tweedie(_LogMean):
    """Tweedie deviance, between Poisson and gamma, for targets that are often 0 and otherwise positive and skewed.

    ::

        l = 2 (y^(2-p) / ((1-p)(2-p)) - y m^(1-p) / (1-p) + m^(2-p) / (2-p)),  m = exp(x),  x the prediction
        dl/dx = 2 (m^(2-p) - y m^(1-p))

    For a target in unit c it has the unit c^(2-p). Typical targets are insurance claims, rainfall and costs.

    Args:
        power: p, in (1, 2). Near 1 it tends to ``poisson(deviance=True)``, near 2 to ``gamma``.

    Returns:
        (N, ...) losses >= 0.

    Raises:
        OptionError: power is outside (1, 2).
        DataError: in the first call, a target is negative.

    >>> Tweedie(power=1.5)(torch.tensor([0.5, 1.0]), torch.tensor([0.0, 10.0]))
    tensor([5.1361, 5.5579])

    References:
        B. Jorgensen, "Exponential Dispersion Models", 1987. Equal to sklearn.metrics.mean_tweedie_deviance of exp(x) before
        its mean. xgboost's reg:tweedie is half of it, without the term that depends only on y.
    """

    def __init__(self, *, power: float = 1.5) -> None:
        super().__init__()
        self.power = check_number("power", power, low=1.0, high=2.0, low_open=True, high_open=True)

    def forward(self, prediction: Tensor, target: Tensor, /) -> Tensor:
        more, rest = self.power - 1, 2 - self.power
        ratio = as_floats(target, prediction).log() - prediction
        # With r = log(y / m), which is minus infinity for a target of 0, the three terms are m^(2-p) times this sum. Only
        # numbers that are as small as 1 - p and 2 - p are divided by them.
        bent = (rest * ratio).exp() * (more * ratio).expm1() / more - (rest * ratio).expm1() / rest
        return 2 * (rest * prediction).exp() * bent.clamp_min(0)


class MSLE(InnerShape):
    """Squared error of log(1 + y): a squared relative error, for targets over several orders of magnitude.

    ::

        l = (log(1 + p) - log(1 + y))^2
        dl/dp = 2 (log(1 + p) - log(1 + y)) / (1 + p)

    An under-prediction costs more than an over-prediction of the same size. Predictions must be > -1: end the head in
    softplus or relu. Otherwise the loss is NaN, and the first call raises an error.

    Args:
        prediction: (N, ...) floats > -1.
        target: (N, ...) floats > -1.

    Returns:
        (N, ...) losses >= 0.

    Raises:
        DataError: in the first call, a target or a prediction is <= -1.

    >>> MSLE()(torch.tensor([15.0, 26.0]), torch.tensor([10.0, 30.0]))
    tensor([0.1404, 0.0191])

    References:
        Equal to sklearn.metrics.mean_squared_log_error and torchmetrics' MeanSquaredLogError, before their mean.
    """

    kinds = REGRESSION
    # The smallest bfloat16 above -1.
    target_range = (-1 + 2**-8, math.inf)
    prediction_range = (-1 + 2**-8, math.inf)

    def check_values(self, prediction: Tensor, target: Tensor) -> None:
        for role, values in (("Targets", target), ("Predictions", prediction)):
            low = float(values.detach().min())
            if low <= -1:
                hint = " End the head in softplus or relu." if role == "Predictions" else ""
                raise DataError(f"{role} of msle should be > -1. Found {low:g}.{hint}")

    def forward(self, prediction: Tensor, target: Tensor, /) -> Tensor:
        return (prediction.log1p() - as_floats(target, prediction).log1p()).square()
