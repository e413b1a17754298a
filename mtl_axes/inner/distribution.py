"""Shapes of a predicted distribution, in a last dimension: gaussian_nll, beta_nll, crps_gaussian, crps_ensemble."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from mtl_axes.inner._values import check_optional
from mtl_axes.inner.base import REGRESSION, InnerShape, Pair, require_last_dimension
from mtl_axes.options import check_choice, check_number
from mtl_axes.signals import Kind

__all__ = ["BetaNLL", "CRPSEnsemble", "CRPSGaussian", "GaussianNLL"]


class _Gaussian(InnerShape):
    """The base of Gaussian shapes: a prediction (..., 2) holds the mean and the logarithm of the variance."""

    kinds = REGRESSION
    trailing = True
    example: ClassVar[Mapping[str, Any]] = {"clamp": 10.0}

    def __init__(self, *, clamp: float | None = None) -> None:
        super().__init__()
        self.clamp = check_optional("clamp", clamp, low=0.0, low_open=True)

    def check(self, prediction: Tensor, target: Tensor) -> None:
        require_last_dimension(prediction, target, 2, "(mean, log variance)")

    def sample(self, kind: Kind, size: tuple[int, ...], generator: torch.Generator, dtype: torch.dtype, /) -> Pair:
        mean, target = super().sample(kind, size, generator, dtype)
        return torch.stack([mean, super().sample(kind, size, generator, dtype)[1]], -1), target

    def _read(self, prediction: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Return the error of the mean, and the clamped log variance."""
        mean, log_variance = prediction.unbind(-1)
        if self.clamp is not None:
            log_variance = log_variance.clamp(-self.clamp, self.clamp)
        return mean - target, log_variance


def _likelihood(error: Tensor, log_variance: Tensor) -> Tensor:
    """Return the negative log likelihood, up to its constant."""
    return 0.5 * (log_variance + (error * (-0.5 * log_variance).exp()).square())


class GaussianNLL(_Gaussian):
    """Negative log likelihood of a Gaussian with predicted mean and log variance.

    ::

        l = (s + e^2 exp(-s)) / 2 [+ log(2 pi) / 2],  e = mean - target,  s = log v = log variance
        dl/dmean = e / v,  dl/ds = (1 - e^2 / v) / 2

    The loss has no lower bound: it falls on as error and variance go to 0 together, so weightings that take ratios or
    logarithms of losses refuse it. In float32 exp(-s) is infinite from s = -89 on, and the loss is NaN at e = 0. ``clamp``
    bounds s and the gradient of the mean. Where it clamps, s has no gradient.

    Args:
        full: add log(2 pi) / 2, so that exp(-l) is a density.
        clamp: clamps s to [-clamp, clamp], > 0; None does not clamp.
        prediction: (N, ..., 2), the mean in target units and the logarithm of the variance.
        target: (N, ...) floats.

    Returns:
        (N, ...) losses, in nats.

    Raises:
        OptionError: full is not a bool, or clamp is not positive.
        DataError: the prediction has no last dimension of 2.

    >>> GaussianNLL()(torch.tensor([[15.0, 0.0], [26.0, 2.0]]), torch.tensor([10.0, 30.0]))
    tensor([12.5000,  2.0827])

    References:
        D. A. Nix, A. S. Weigend, "Estimating the mean and variance of the target probability distribution", 1994. Equal to
        torch.nn.functional.gaussian_nll_loss of exp(s). Differs from it in predicting log v, which needs no positive head,
        and in having no eps = 1e-6, to which torch raises a smaller variance: at v = e = 0 torch's loss is -6.9078, with a
        gradient of 5e5 in v.
    """

    lower_bound = None

    def __init__(self, *, full: bool = False, clamp: float | None = None) -> None:
        super().__init__(clamp=clamp)
        check_choice("full", full, (False, True))
        self.full = full

    def forward(self, prediction: Tensor, target: Tensor, /) -> Tensor:
        losses = _likelihood(*self._read(prediction, target))
        return losses + 0.5 * math.log(2 * math.pi) if self.full else losses


class BetaNLL(_Gaussian):
    """Gaussian negative log likelihood times the constant v^beta, so that badly predicted samples keep their pull.

    ::

        l = [v^beta] (s + e^2 / v) / 2,  e = mean - target,  v = exp(s);  [.] has no gradient
        dl/dmean = v^(beta - 1) e,  dl/ds = v^beta (1 - e^2 / v) / 2

    With beta = 0 it is ``gaussian_nll``, where a sample with a large variance is hardly fitted. With beta = 1 the mean
    has the gradient of half of ``mse``. The stopped gradient is part of the definition.

    Args:
        beta: exponent of the variance, in [0, 1].
        clamp: clamps s to [-clamp, clamp], > 0; None does not clamp. See ``gaussian_nll``.
        prediction: (N, ..., 2), the mean in target units and the logarithm of the variance.
        target: (N, ...) floats.

    Returns:
        (N, ...) losses, which can be negative.

    Raises:
        OptionError: beta is outside [0, 1], or clamp is not positive.
        DataError: the prediction has no last dimension of 2.

    >>> BetaNLL()(torch.tensor([[15.0, 0.0], [26.0, 2.0]]), torch.tensor([10.0, 30.0]))
    tensor([12.5000,  5.6613])

    References:
        M. Seitzer, A. Tavakoli, D. Antic, G. Martius, "On the Pitfalls of Heteroscedastic Uncertainty Estimation with
        Probabilistic Neural Networks", 2022. Differs from martius-lab/beta-nll, which predicts v, adds log(2 pi) / 2 inside
        the bracket (0.9189 v^beta more, without a gradient) and sums over the last axis of the target.
    """

    lower_bound = None
    detaches = True

    def __init__(self, *, beta: float = 0.5, clamp: float | None = None) -> None:
        super().__init__(clamp=clamp)
        self.beta = check_number("beta", beta, low=0.0, high=1.0)

    def forward(self, prediction: Tensor, target: Tensor, /) -> Tensor:
        error, log_variance = self._read(prediction, target)
        return (self.beta * log_variance.detach()).exp() * _likelihood(error, log_variance)


class CRPSGaussian(_Gaussian):
    """Continuous ranked probability score of a predicted Gaussian: proper like the likelihood, but >= 0 and in target units.

    ::

        l = s (z (2 Phi(z) - 1) + 2 phi(z) - 1/sqrt(pi)),  z = (target - mean) / s,  s = sqrt(variance)
        dl/dmean = 1 - 2 Phi(z),  dl/ds = 2 phi(z) - 1/sqrt(pi)

    It is twice the pinball loss integrated over all levels, and tends to ``mae`` as s goes to 0. An outlier pulls the mean
    with a slope of at most 1. In float32 a log variance above 176 in absolute value overflows; ``clamp`` prevents that.

    Args:
        clamp: clamps the log variance to [-clamp, clamp], > 0; None does not clamp.
        prediction: (N, ..., 2), the mean in target units and the logarithm of the variance.
        target: (N, ...) floats.

    Returns:
        (N, ...) losses >= 0, in target units.

    Raises:
        OptionError: clamp is not positive.
        DataError: the prediction has no last dimension of 2.

    >>> CRPSGaussian()(torch.tensor([[15.0, 0.0], [26.0, 2.0]]), torch.tensor([10.0, 30.0]))
    tensor([4.4358, 2.6363])

    References:
        T. Gneiting, A. E. Raftery, "Strictly Proper Scoring Rules, Prediction, and Estimation", 2007. Equal to
        properscoring.crps_gaussian of s = exp(log variance / 2), to 9e-16.
    """

    def forward(self, prediction: Tensor, target: Tensor, /) -> Tensor:
        error, log_variance = self._read(prediction, target)
        score = error * (-0.5 * log_variance).exp()
        density = (-0.5 * score.square()).exp() * math.sqrt(2 / math.pi)
        # The error itself instead of z times s, which may be infinity times 0.
        return error * torch.erf(score / math.sqrt(2)) + (0.5 * log_variance).exp() * (density - 1 / math.sqrt(math.pi))


class CRPSEnsemble(InnerShape):
    """Continuous ranked probability score of an ensemble: its mean error, less half of its mean spread.

    ::

        l = 1/M sum_i |x_i - y| - 1/(2 M^2) sum_ij |x_i - x_j|
                                - 1/(2 M (M - 1)) sum_ij |x_i - x_j|   fair=True
        dl/dx_i = sign(x_i - y) / M - (#{j: x_j < x_i} - #{j: x_j > x_i}) / M^2

    The members lie in the last dimension. The sum over pairs is computed from the ranks, in M log M operations; equal
    members get equal gradients. The plain form treats the ensemble as the whole distribution. If the members are draws
    from a distribution, it prefers too narrow an ensemble, while the fair form is unbiased. The minimum of the fair form
    for two members is a whole interval.

    Args:
        fair: divide the spread by M (M - 1) instead of M^2.
        prediction: (N, ..., M) members, M >= 2.
        target: (N, ...) floats.

    Returns:
        (N, ...) losses >= 0, in target units.

    Raises:
        OptionError: fair is not a bool.
        DataError: the prediction has no last dimension of at least 2.

    >>> CRPSEnsemble()(torch.tensor([[8.0, 12.0, 15.0], [29.0, 30.0, 31.0]]), torch.tensor([10.0, 30.0]))
    tensor([1.4444, 0.2222])

    References:
        T. Gneiting, A. E. Raftery, "Strictly Proper Scoring Rules, Prediction, and Estimation", 2007; C. A. T. Ferro, "Fair
        scores for ensemble forecasts", 2014. The plain form is equal to properscoring.crps_ensemble, to 2e-16, which has no
        fair form.
    """

    kinds = REGRESSION
    trailing = True

    def __init__(self, *, fair: bool = False) -> None:
        super().__init__()
        check_choice("fair", fair, (False, True))
        self.fair = fair

    def check(self, prediction: Tensor, target: Tensor) -> None:
        require_last_dimension(prediction, target, None, "one entry per member")

    def sample(self, kind: Kind, size: tuple[int, ...], generator: torch.Generator, dtype: torch.dtype, /) -> Pair:
        target = super().sample(kind, size, generator, dtype)[1]
        return super().sample(kind, (*size, 5), generator, dtype)[0], target

    def forward(self, prediction: Tensor, target: Tensor, /) -> Tensor:
        # Ranks times errors, not times members: large and close members would cancel.
        errors = (prediction - target.unsqueeze(-1)).contiguous()
        ordered = errors.detach().sort(-1).values
        smaller = torch.searchsorted(ordered, errors.detach())
        not_larger = torch.searchsorted(ordered, errors.detach(), right=True)
        count = errors.shape[-1]
        rank = (smaller + not_larger - count).to(errors.dtype)
        pairs = count * (count - 1) if self.fair else count * count
        # Rounding may give a value just below 0.
        return (errors.abs().mean(-1) - (rank * errors).sum(-1) / pairs).clamp_min(0)
