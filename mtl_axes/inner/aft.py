"""Accelerated failure time, the parametric survival shape: aft."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from mtl_axes.inner._values import check_optional
from mtl_axes.inner.base import require_last_dimension
from mtl_axes.inner.survival import SurvivalShape
from mtl_axes.options import check_choice
from mtl_axes.signals import Kind

__all__ = ["AFT"]

# Beyond it, exp(z) continues as its tangent. exp(30) is 1e13, while exp(89) is inf in float32.
_LARGEST_EXPONENT = 30.0
# Keeps sigma between 5e-5 and 2e4.
_LARGEST_LOG_SIGMA = 10.0


class AFT(SurvivalShape):
    """Accelerated failure time: negative log-likelihood of a parametric time to an event, with censored samples.

    ::

        log t = mu + sigma eps,  z = (log t - mu) / sigma,  t = |y|
        y > 0:  -log f(z) + log sigma + log t           the density of t
        y < 0:  -log S(z)                               the probability of a time beyond t

        weibull (the exponential at sigma = 1):  log f = z - e^z,                  log S = -e^z
        lognormal:                               log f = -z^2/2 - log(2 pi)/2,     log S = log Phi(-z)
        loglogistic:                             log f = z - 2 log(1 + e^z),       log S = -log(1 + e^z)

    The prediction is mu, or (mu, log sigma) in an extra last dimension if sigma is None. exp(mu) is the median time, for
    weibull the time by which 63 % have failed. Losses and gradients stay finite: beyond z = 30, e^z continues as its
    tangent, and log sigma is clamped to [-10, 10]. A density can exceed 1, so that the loss can be negative.

    Args:
        distribution: ``"weibull"``, ``"lognormal"`` or ``"loglogistic"``, of the time.
        sigma: scale of log t, > 0, or None to predict its logarithm.

    Returns:
        (N, ...) losses of any sign, in nats, in the shape of the signed times.

    Raises:
        OptionError: the distribution is unknown, or sigma is not positive.
        DataError: the prediction does not fit the target, or a time is 0.

    >>> AFT()(torch.tensor([1.0, 1.0]), torch.tensor([2.0, -2.0]))
    tensor([1.7358, 0.7358])

    References:
        L. J. Wei, "The Accelerated Failure Time Model: A Useful Alternative to the Cox Regression Model in Survival
        Analysis", 1992; A. Barnwal, H. Cho, T. Hocking, "Survival Regression with Accelerated Failure Time Model in
        XGBoost", 2022. Differs from XGBoost's survival:aft, which clips gradients to [-15, 15] and takes time intervals.
    """

    lower_bound = None

    def __init__(
        self, *, distribution: Literal["weibull", "lognormal", "loglogistic"] = "weibull", sigma: float | None = 1.0
    ) -> None:
        super().__init__()
        check_choice("distribution", distribution, ("weibull", "lognormal", "loglogistic"))
        self.distribution = distribution
        self.sigma = check_optional("sigma", sigma, low=0.0, low_open=True)

    @property
    def trailing(self) -> bool:  # type: ignore[override]
        """True if log sigma is predicted."""
        return self.sigma is None

    def check(self, prediction: Tensor, target: Tensor) -> None:
        super().check(prediction, target)
        if self.sigma is None:
            require_last_dimension(prediction, target, 2, "(mu, log sigma)")

    def forward(self, prediction: Tensor, target: Tensor, /) -> Tensor:
        target = target.to(prediction.dtype)
        # A masked time is 0, and the infinity of its logarithm would make the gradient NaN.
        log_t = target.abs().clamp_min(torch.finfo(target.dtype).tiny).log()
        if self.sigma is None:
            mu, log_sigma = prediction.unbind(-1)
            log_sigma = log_sigma.clamp(-_LARGEST_LOG_SIGMA, _LARGEST_LOG_SIGMA)
            z = (log_t - mu) * (-log_sigma).exp()
            log_density, log_survival = self._logs(z)
            return -torch.where(target > 0, log_density - log_sigma - log_t, log_survival)
        log_density, log_survival = self._logs((log_t - prediction) / self.sigma)
        return -torch.where(target > 0, log_density - math.log(self.sigma) - log_t, log_survival)

    def _logs(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Return log f(z) and log S(z)."""
        if self.distribution == "weibull":
            capped = z.clamp_max(_LARGEST_EXPONENT)
            hazard = capped.exp() * (1 + (z - capped))
            return z - hazard, -hazard
        if self.distribution == "lognormal":
            return -0.5 * z.square() - 0.5 * math.log(2 * math.pi), _log_upper_tail(z)
        log_survival = F.logsigmoid(-z)
        return F.logsigmoid(z) + log_survival, log_survival

    def sample(
        self, kind: Kind, size: tuple[int, ...], generator: torch.Generator, dtype: torch.dtype, /
    ) -> tuple[Tensor, Tensor]:
        mu, target = super().sample(kind, size, generator, dtype)
        if self.sigma is not None:
            return mu, target
        log_sigma = 0.5 * torch.randn(size, generator=generator, dtype=torch.float64).to(dtype)
        return torch.stack([mu, log_sigma], -1), target


def _log_upper_tail(z: Tensor) -> Tensor:
    """Return log Phi(-z). The gradient of torch's log_ndtr is 6 times too large at z = 1e4 in float32."""
    above = z > 0
    # Each branch gets only its side: erfcx overflows on the other.
    high, low = torch.where(above, z, 0.0), torch.where(above, 0.0, z)
    tail = (0.5 * torch.special.erfcx(high * math.sqrt(0.5))).log() - 0.5 * high.square()
    return torch.where(above, tail, torch.log1p(-0.5 * torch.special.erfc(-low * math.sqrt(0.5))))
