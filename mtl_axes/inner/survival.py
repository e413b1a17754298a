"""Survival shapes, for times of which some are censored: cox, discrete_hazard, aft.

A target is one signed time per sample: y > 0 is an event at y, y < 0 a sample that was censored at |y|, without an event
until then. XGBoost's survival:cox takes the same targets.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from mtl_axes.errors import DataError, OptionError
from mtl_axes.inner._values import check_numbers, check_optional, constants
from mtl_axes.inner.base import REGRESSION, InnerShape, Pair, require_last_dimension
from mtl_axes.options import check_choice
from mtl_axes.signals import Kind

__all__ = ["AFT", "Cox", "DiscreteHazard"]

# Beyond it, exp(z) continues as its tangent. exp(30) is 1e13, while exp(89) is inf in float32.
_LARGEST_EXPONENT = 30.0
# Keeps sigma between 5e-5 and 2e4.
_LARGEST_LOG_SIGMA = 10.0


class _Survival(InnerShape):
    """The base of survival shapes: targets are signed times."""

    kinds = REGRESSION

    def check(self, prediction: Tensor, target: Tensor) -> None:
        # With integers, missing="ignore" would treat the time -100 as unlabelled.
        if not target.is_floating_point():
            raise DataError(f"survival targets should be floats, signed times. Found {target.dtype}. Use target.float().")
        if not self.trailing:
            super().check(prediction, target)

    def weighed(self, target: Tensor) -> Tensor:
        return target.abs()  # the time: a sample censored late is not one that fails early

    def check_values(self, prediction: Tensor, target: Tensor) -> None:
        if not bool((target != 0).all()):
            raise DataError(
                "survival targets should be signed times, y > 0 for an event at y and y < 0 for a sample censored at -y. "
                "Found 0. Shift the times, or mask the sample."
            )

    def sample(self, kind: Kind, size: tuple[int, ...], generator: torch.Generator, dtype: torch.dtype, /) -> Pair:
        prediction, noise = super().sample(kind, size, generator, dtype)
        events = torch.rand(size, generator=generator) < 0.7
        time = noise.abs() + 0.1
        return prediction, torch.where(events, time, -time)


class Cox(_Survival):
    """Cox's partial likelihood: at each event, its sample should have the highest hazard of all samples still at risk.

    ::

        y_i > 0:  log sum_{j: t_j >= t_i} exp(x_j) - x_i        t = |y|, over the valid samples of the batch
        y_i < 0:  0

    x is the logarithm of a relative hazard: a high score means an early event. The loss couples the batch: censored samples
    count only in the sums, masked ones not at all. Tied events share one sum, over all samples at risk (Breslow). A batch
    without an event, or with a single sample, has the loss 0. Each position in further dimensions is a separate batch. A
    sample weight multiplies the term of its event, but not the sums. A small batch, and in data parallel training the batch
    of a rank, sums over fewer samples than the data set has.

    Returns:
        (N, ...) losses >= 0, in nats, in the shape of the signed times.

    Raises:
        DataError: a time is 0.

    >>> Cox()(torch.tensor([0.0, 1.0, 0.5]), torch.tensor([2.0, 3.0, -4.0]))
    tensor([1.6803, 0.4741, 0.0000])

    References:
        D. R. Cox, "Regression Models and Life-Tables", 1972; N. Breslow, "Covariance Analysis of Censored Survival Data",
        1974. Differs from pycox and torchsurv in the denominator: a task's mean divides by all valid samples, not by the
        events, so that with 30 % events it is 0.3 times theirs. Differs from torchsurv in ties, where Efron's form is the
        default there. Differs from pycox's cox_ph_loss, which breaks ties by the order of the batch and adds 1e-7 to sums
        relative to the largest exp(x): a sum whose scores lie 17 below the highest score of the batch keeps 0.29 of its
        gradient.
    """

    coupling = "batch"

    def forward(self, prediction: Tensor, target: Tensor, valid: Tensor | None = None, /) -> Tensor:
        time = target.to(prediction.dtype).abs()
        if valid is not None:
            # Below every time, so never at risk.
            time = torch.where(valid, time, -torch.inf)
        # Along the last dimension, from late to early: the samples at risk at a time come before it.
        scores, earliness = prediction.movedim(0, -1), -time.movedim(0, -1).contiguous()
        ordered, order = earliness.sort(-1)
        summed = scores.gather(-1, order).logcumsumexp(-1)
        # Ties share the sum up to the last of them.
        last = torch.searchsorted(ordered, earliness, right=True) - 1
        at_risk = summed.gather(-1, last).movedim(-1, 0)
        return torch.where(target > 0, at_risk - prediction, 0.0)


class DiscreteHazard(_Survival):
    """Discrete-time hazards: one logit per interval of time, for the event of a sample that reached the interval.

    ::

        event in interval m:    sum_{k < m} softplus(x_k) + softplus(-x_m)
        censored at c:          sum_{k: edge_k <= c} softplus(x_k)

    Interval k is (edge_{k-1}, edge_k], and the first starts at 0. The hazard is sigmoid(x_k), survival the product of
    1 - hazard, and the loss the negative log-likelihood, which depends only on the interval of a time. A sample counts for
    the intervals that it is known to have survived completely, so that a sample censored in the first has the loss 0. A time
    beyond the last edge survived all intervals.

    Args:
        edges: the upper ends of the K intervals, in the unit of the times, > 0 and strictly increasing.

    Returns:
        (N, ...) losses >= 0, in nats, from (N, ..., K) logits and signed times (N, ...).

    Raises:
        OptionError: the edges are not positive or do not increase.
        DataError: the last dimension of the prediction is not the number of edges, or a time is 0.

    >>> DiscreteHazard(edges=(10.0, 20.0))(torch.tensor([[0.0, 1.0], [0.0, 1.0]]), torch.tensor([15.0, -15.0]))
    tensor([1.0064, 0.6931])

    References:
        M. F. Gensheimer, B. Narasimhan, "A scalable discrete-time survival model for neural networks", 2019. Differs
        from the reference, which counts a censored sample for an interval from its middle on, here from its end. Pycox's
        LogisticHazard has the same sum, but one more logit, for the time 0, and cuts times to its grid beforehand.
    """

    trailing = True
    example: ClassVar[Mapping[str, Any]] = {"edges": (0.5, 1.0, 2.0)}

    def __init__(self, *, edges: Sequence[float]) -> None:
        super().__init__()
        self.edges = check_numbers("edges", edges, least=1)
        if any(first >= second for first, second in pairwise(self.edges)):
            raise OptionError(f"Option `edges` should strictly increase. Found edges={self.edges!r}.")

    def check(self, prediction: Tensor, target: Tensor) -> None:
        super().check(prediction, target)
        require_last_dimension(prediction, target, len(self.edges), "one logit per interval")

    def forward(self, prediction: Tensor, target: Tensor, /) -> Tensor:
        ends = constants(self.edges, prediction)
        time = target.to(prediction.dtype).abs().unsqueeze(-1)
        # An event at t means that the intervals that end before t were survived; an interval that ends at t holds it.
        event = (target > 0).unsqueeze(-1)
        survived = torch.where(event, ends < time, ends <= time)
        starts = F.pad(ends[:-1], (1, 0))
        failed = event & (starts < time) & (time <= ends)
        losses = torch.where(survived, -F.logsigmoid(-prediction), torch.where(failed, -F.logsigmoid(prediction), 0.0))
        return losses.sum(-1)

    def sample(self, kind: Kind, size: tuple[int, ...], generator: torch.Generator, dtype: torch.dtype, /) -> Pair:
        _, target = super().sample(kind, size, generator, dtype)
        logits = 3 * torch.randn(*size, len(self.edges), generator=generator, dtype=torch.float64)
        return logits.to(dtype), target


class AFT(_Survival):
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

    def sample(self, kind: Kind, size: tuple[int, ...], generator: torch.Generator, dtype: torch.dtype, /) -> Pair:
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
