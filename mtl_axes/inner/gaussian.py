"""Shapes of a predicted Gaussian, mean and log variance in a last dimension: gaussian_nll, beta_nll, crps_gaussian."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from mtl_axes.errors import DataError
from mtl_axes.inner.base import REGRESSION, InnerShape
from mtl_axes.options import check_choice, check_number
from mtl_axes.signals import Kind

__all__ = ["BetaNLL", "CRPSGaussian", "GaussianNLL"]


def check_clamp(clamp: float | None) -> float | None:
    """Return the option ``clamp`` when it is None or a positive number."""
    return None if clamp is None else check_number("clamp", clamp, low=0.0, low_open=True)


class _Gaussian(InnerShape):
    """What the shapes of a Gaussian share: a prediction (..., 2) of its mean and the logarithm of its variance."""

    kinds = REGRESSION
    trailing = True
    example: ClassVar[Mapping[str, Any]] = {"clamp": 10.0}
    clamp: float | None

    def check(self, prediction: Tensor, target: Tensor) -> None:
        if prediction.shape != (*target.shape, 2):
            raise DataError(
                "prediction should have the shape of target with (mean, log variance) in an extra last dimension. "
                f"Found prediction {tuple(prediction.shape)} and target {tuple(target.shape)}."
            )

    def sample(
        self, kind: Kind, size: tuple[int, ...], generator: torch.Generator, dtype: torch.dtype, /
    ) -> tuple[Tensor, Tensor]:
        mean, target = super().sample(kind, size, generator, dtype)
        return torch.stack([mean, super().sample(kind, size, generator, dtype)[1]], -1), target

    def _read(self, prediction: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        mean, log_variance = prediction.unbind(-1)
        if self.clamp is not None:
            log_variance = log_variance.clamp(-self.clamp, self.clamp)
        return mean - target, log_variance


class GaussianNLL(_Gaussian):
    """Negative log likelihood of a Gaussian whose mean and log variance are predicted.

    ::

        l = (s + e^2 exp(-s)) / 2 [+ log(2 pi) / 2],  e = mean - target,  s = log v = log variance
        dl/dmean = e / v,  dl/ds = (1 - e^2 / v) / 2

    It falls without bound where errors vanish together with the variance, and is negative for v < 1: weightings that take
    ratios or logarithms of losses refuse it. In float32 exp(-s) is infinite from s = -89 on, and NaN follows at e = 0;
    ``clamp`` keeps s, and the gradient of the mean, within bounds. Where it clamps, s has no gradient.

    Args:
        full: add log(2 pi) / 2, so that exp(-l) is a density.
        clamp: s is clamped to [-clamp, clamp]; None leaves it alone.
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
        and in having no eps = 1e-6 to which a smaller variance is raised: at v = e = 0 that one is -6.9078, with a gradient
        of 5e5 in v.
    """

    lower_bound = None

    def __init__(self, *, full: bool = False, clamp: float | None = None) -> None:
        super().__init__()
        check_choice("full", full, (False, True))
        self.full = full
        self.clamp = check_clamp(clamp)

    def forward(self, prediction: Tensor, target: Tensor, /) -> Tensor:
        error, log_variance = self._read(prediction, target)
        losses = 0.5 * (log_variance + (error * (-0.5 * log_variance).exp()).square())
        return losses + 0.5 * math.log(2 * math.pi) if self.full else losses


class BetaNLL(_Gaussian):
    """Gaussian negative log likelihood times v^beta as a constant, so that badly predicted samples keep their pull.

    ::

        l = [v^beta] (s + e^2 / v) / 2,  e = mean - target,  v = exp(s);  [.] has no gradient
        dl/dmean = v^(beta - 1) e,  dl/ds = v^beta (1 - e^2 / v) / 2

    With beta = 0 it is ``gaussian_nll``, in which a large variance excuses a sample from being fitted; with beta = 1 the
    mean has the gradient of half of ``mse``. The stop of the gradient is part of the definition.

    Args:
        beta: exponent of the variance, in [0, 1].
        clamp: s is clamped to [-clamp, clamp]; None leaves it alone. See ``gaussian_nll``.
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
        Probabilistic Neural Networks", 2022. Differs from martius-lab/beta-nll, which predicts v, adds log(2 pi) / 2 within
        the bracket (0.9189 v^beta more, without a gradient) and sums over the last axis of the target.
    """

    lower_bound = None
    detaches = True

    def __init__(self, *, beta: float = 0.5, clamp: float | None = None) -> None:
        super().__init__()
        self.beta = check_number("beta", beta, low=0.0, high=1.0)
        self.clamp = check_clamp(clamp)

    def forward(self, prediction: Tensor, target: Tensor, /) -> Tensor:
        error, log_variance = self._read(prediction, target)
        likelihood = 0.5 * (log_variance + (error * (-0.5 * log_variance).exp()).square())
        return (self.beta * log_variance.detach()).exp() * likelihood


class CRPSGaussian(_Gaussian):
    """Continuous ranked probability score of a predicted Gaussian: as proper as the likelihood, in target units, and >= 0.

    ::

        l = s (z (2 Phi(z) - 1) + 2 phi(z) - 1/sqrt(pi)),  z = (target - mean) / s,  s = sqrt(variance)
        dl/dmean = 1 - 2 Phi(z),  dl/ds = 2 phi(z) - 1/sqrt(pi)

    It is the pinball loss integrated over all levels, times 2, and tends to ``mae`` as s falls. An outlier pulls the mean
    with a slope of at most 1. In float32 a log variance beyond 176 in size overflows; ``clamp`` prevents it.

    Args:
        clamp: the log variance is clamped to [-clamp, clamp]; None leaves it alone.
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

    def __init__(self, *, clamp: float | None = None) -> None:
        super().__init__()
        self.clamp = check_clamp(clamp)

    def forward(self, prediction: Tensor, target: Tensor, /) -> Tensor:
        error, log_variance = self._read(prediction, target)
        score = error * (-0.5 * log_variance).exp()
        density = (-0.5 * score.square()).exp() * math.sqrt(2 / math.pi)
        # z times s is the error itself: no product of something infinite and 0.
        return error * torch.erf(score / math.sqrt(2)) + (0.5 * log_variance).exp() * (density - 1 / math.sqrt(math.pi))
