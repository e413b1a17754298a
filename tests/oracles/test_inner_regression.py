"""Regression shapes and class weights against frozen numbers and against live implementations in other libraries."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import mpmath
import numpy as np
import pytest
import torch
from golden import golden_inputs, load
from scipy import integrate, optimize, special, stats
from sklearn import metrics
from torch import Tensor
from torch.nn import functional as F
from torchmetrics.functional.regression import log_cosh_error, mean_squared_log_error

from mtl_axes import compose, create

GOLDEN = load("regression_golden.json")
CASES = sorted(GOLDEN["cases"])


def frozen_part(gradient: Tensor, expected: dict[str, Any]) -> Tensor:
    return gradient[..., 0] if expected.get("of") == "mean" else gradient.flatten()


def close(actual: Tensor, expected: Any, rtol: float = 1e-9, atol: float = 1e-9) -> None:
    torch.testing.assert_close(
        actual.detach(), torch.as_tensor(expected, dtype=torch.float64).reshape(actual.shape), rtol=rtol, atol=atol
    )


def residuals(size: int = 60, spread: float = 8.0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(5)
    target = 60 * torch.rand(size, generator=generator, dtype=torch.float64)
    return (target + spread * torch.randn(size, generator=generator, dtype=torch.float64)).requires_grad_(), target


def gaussians(size: int = 40) -> tuple[Tensor, Tensor]:
    mean, target = residuals(size)
    generator = torch.Generator().manual_seed(6)
    log_variance = 3 * torch.randn(size, generator=generator, dtype=torch.float64)
    return torch.stack([mean.detach(), log_variance], -1).requires_grad_(), target


def same_loss(ours: Tensor, theirs: Tensor, prediction: Tensor, rtol: float = 1e-12, atol: float = 1e-12) -> None:
    """Values and gradients agree."""
    torch.testing.assert_close(ours, theirs, rtol=rtol, atol=atol)
    gradients = [torch.autograd.grad(loss.sum(), prediction, retain_graph=True)[0] for loss in (ours, theirs)]
    torch.testing.assert_close(*gradients, rtol=rtol, atol=atol)


# ---- frozen


@pytest.mark.parametrize("case", CASES)
def test_golden_values_and_gradients(case: str) -> None:
    """The loss of each sample, and its gradient in the prediction, are the frozen ones."""
    prediction, target, expected = golden_inputs(GOLDEN, case)
    loss = create("inner", expected["shape"], **expected["options"])(prediction, target)
    (gradient,) = torch.autograd.grad(loss.sum(), prediction)
    close(loss, expected["value"])
    close(frozen_part(gradient, expected), expected["gradient"])


@pytest.mark.parametrize("case", CASES)
def test_golden_means(case: str) -> None:
    """A criterion of one task returns the frozen mean, and its gradient is the frozen one divided by the samples."""
    prediction, target, expected = golden_inputs(GOLDEN, case)
    criterion = compose(inner={"task": {"name": expected["shape"], **expected["options"]}})
    loss = criterion({"task": prediction}, {"task": target})
    loss.backward()
    close(loss, expected["mean"])
    assert prediction.grad is not None
    close(len(target) * frozen_part(prediction.grad, expected), expected["gradient"])


def test_golden_class_weights() -> None:
    """The weights of class_balanced are the frozen ones."""
    frozen = GOLDEN["weights"]["class_balanced"]
    weight = create("weight", "class_balanced", **frozen["options"])
    close(weight(torch.arange(3).double()), frozen["value"], rtol=1e-13)


# ---- torch


@pytest.mark.parametrize("beta", [0.0, 0.3, 1.0, 9.0])
def test_smooth_l1_agrees_with_torch(beta: float) -> None:
    """smooth_l1 is torch's, also at beta 0."""
    prediction, target = residuals()
    oracle = F.smooth_l1_loss(prediction, target, reduction="none", beta=beta)
    same_loss(create("inner", "smooth_l1", beta=beta)(prediction, target), oracle, prediction)


def test_poisson_agrees_with_torch() -> None:
    """poisson is torch's poisson_nll_loss of a log mean."""
    prediction, target = residuals()
    prediction = (prediction.detach() / 20).requires_grad_()
    oracle = F.poisson_nll_loss(prediction, target.round(), log_input=True, reduction="none")
    same_loss(create("inner", "poisson")(prediction, target.round()), oracle, prediction)


@pytest.mark.parametrize("full", [False, True])
def test_gaussian_nll_agrees_with_torch(full: bool) -> None:
    """gaussian_nll is torch's gaussian_nll_loss of exp(log variance), with and without its constant."""
    prediction, target = gaussians()
    mean, log_variance = prediction.unbind(-1)
    oracle = F.gaussian_nll_loss(mean, target, log_variance.exp(), full=full, eps=1e-300, reduction="none")
    same_loss(create("inner", "gaussian_nll", full=full)(prediction, target), oracle, prediction, rtol=1e-11)


@pytest.mark.parametrize("noise", [0.5, 8.0, 100.0])
def test_bmc_agrees_with_the_cross_entropy_of_its_repository(noise: float) -> None:
    """bmc is 2 s^2 times torch's cross-entropy of -(p_j - y_k)^2 / (2 s^2) with the class j, as BalancedMSE computes it."""
    prediction, target = residuals()
    logits = -0.5 * (prediction.unsqueeze(1) - target.unsqueeze(0)).square() / noise**2
    oracle = 2 * noise**2 * F.cross_entropy(logits, torch.arange(len(target)), reduction="none")
    same_loss(create("inner", "bmc", noise=noise)(prediction, target), oracle, prediction, rtol=1e-9, atol=1e-9)


def test_class_balanced_cross_entropy_agrees_with_torch() -> None:
    """Cross-entropy with class weights is torch's without reduction; in its mean torch divides by the sum of the weights."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(30, 3, generator=generator, dtype=torch.float64, requires_grad=True)
    target = torch.randint(3, (30,), generator=generator)
    weights = create("weight", "class_balanced", counts=[1000, 100, 10])(torch.arange(3).double())
    shape = create("inner", "reweighted", base="cross_entropy", weight={"name": "class_balanced", "counts": [1000, 100, 10]})
    oracle = F.cross_entropy(logits, target, weight=weights, reduction="none")
    same_loss(shape(logits, target), oracle, logits)
    mean = compose(inner={"task": shape})({"task": logits}, {"task": target})
    assert mean.item() == pytest.approx(oracle.mean().item(), rel=1e-12)
    assert mean.item() != pytest.approx(F.cross_entropy(logits, target, weight=weights).item(), rel=0.01)


# ---- scikit-learn and torchmetrics


def one_by_one(metric: Callable[..., float], target: Tensor, prediction: Tensor, **options: Any) -> list[float]:
    """A mean metric of single samples is the loss of each."""
    pairs = zip(target.tolist(), prediction.tolist(), strict=True)
    return [metric([y], [p], **options) for y, p in pairs]


def test_msle_agrees_with_sklearn_and_torchmetrics() -> None:
    """msle is the mean_squared_log_error of scikit-learn sample by sample, and that of torchmetrics in the mean."""
    prediction, target = residuals()
    prediction = prediction.detach().abs()
    loss = create("inner", "msle")(prediction, target)
    close(loss, one_by_one(metrics.mean_squared_log_error, target, prediction), rtol=1e-12)
    close(loss.mean(), mean_squared_log_error(prediction, target), rtol=1e-12)


def test_log_cosh_agrees_with_torchmetrics() -> None:
    """log_cosh is torchmetrics' LogCoshError in the range where its exponentials do not overflow."""
    prediction, target = residuals()
    close(create("inner", "log_cosh")(prediction, target).mean(), log_cosh_error(prediction.detach(), target), rtol=1e-12)


@pytest.mark.parametrize("power", [1.0001, 1.2, 1.5, 1.9])
def test_tweedie_agrees_with_sklearn(power: float) -> None:
    """tweedie is scikit-learn's mean_tweedie_deviance of exp(x), also of targets that are 0."""
    prediction, target = residuals()
    prediction, target = prediction.detach() / 30, (target - 20).clamp_min(0)
    assert bool((target == 0).any())
    loss = create("inner", "tweedie", power=power)(prediction, target)
    oracle = one_by_one(metrics.mean_tweedie_deviance, target, prediction.exp(), power=power)
    # The library's three terms cancel where 1 - power is small.
    close(loss, oracle, rtol=1e-12 / (power - 1), atol=1e-12 / (power - 1))


def test_poisson_deviance_and_gamma_agree_with_sklearn() -> None:
    """poisson(deviance=True) and gamma are scikit-learn's deviances of exp(x)."""
    prediction, target = residuals()
    prediction = prediction.detach() / 30
    counts = (target / 5).floor()
    assert bool((counts == 0).any())
    deviance = create("inner", "poisson", deviance=True)(prediction, counts)
    close(deviance, one_by_one(metrics.mean_poisson_deviance, counts, prediction.exp()), rtol=1e-12, atol=1e-12)
    close(
        create("inner", "gamma")(prediction, target),
        one_by_one(metrics.mean_gamma_deviance, target, prediction.exp()),
        rtol=1e-11,
        atol=1e-12,
    )


# ---- scipy and mpmath


@pytest.mark.parametrize("delta", [0.2, 1.0, 30.0])
def test_pseudo_huber_agrees_with_scipy(delta: float) -> None:
    """pseudo_huber is scipy.special.pseudo_huber, and the soft_l1 cost of scipy.optimize.least_squares."""
    prediction, target = residuals()
    loss = create("inner", "pseudo_huber", delta=delta)(prediction, target)
    error = (prediction - target).detach().numpy()
    close(loss, special.pseudo_huber(delta, error), rtol=1e-12)
    close(loss.sum(), least_squares_cost(error, "soft_l1", delta), rtol=1e-11)


def least_squares_cost(error: np.ndarray, loss: str, scale: float) -> float:
    """The cost that scipy's robust least squares reports of fixed residuals."""
    return float(optimize.least_squares(lambda x: error + 0 * x[0], [0.0], loss=loss, f_scale=scale).cost)


@pytest.mark.parametrize("c", [0.5, 4.0])
def test_cauchy_agrees_with_scipy(c: float) -> None:
    """cauchy is the cost of scipy's robust least squares, at f_scale = sqrt(2) c and divided by c^2."""
    prediction, target = residuals()
    error = (prediction - target).detach().numpy()
    loss = create("inner", "cauchy", c=c)(prediction, target).sum()
    close(loss, least_squares_cost(error, "cauchy", math.sqrt(2) * c) / c**2, rtol=1e-12)


def test_tukey_is_the_integral_of_its_influence() -> None:
    """The loss of tukey is the integral of u (1 - (u / c)^2)^2 from 0 to the error, as scipy integrates it."""
    prediction, target = residuals(12)
    scale, c = 3.0, 4.685
    scaled = ((prediction - target) / scale).detach().abs().tolist()
    assert min(scaled) < c
    oracle = [integrate.quad(lambda u: u * (1 - (u / c) ** 2) ** 2, 0, min(u, c))[0] for u in scaled]
    close(create("inner", "tukey", scale=scale)(prediction, target), oracle, rtol=1e-12)
    far = create("inner", "tukey", scale=scale)(torch.tensor([15.0]), torch.tensor([0.0]))
    assert far.item() == pytest.approx(c**2 / 6)


@pytest.mark.parametrize(
    "alpha", [-30.0, -2.0, -1e-9, 0.0, 1e-310, -1e-29, 1e-12, 1e-6, 0.5, 1.0, 2 - 1e-9, 2.0, 2 + 1e-6, 3.0]
)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_barron_is_its_formula_in_many_digits(alpha: float, dtype: torch.dtype) -> None:
    """barron is the printed formula in 400 digits, in value and slope, next to its removable singularities as well."""
    error = torch.tensor([-40.0, -3.0, -0.25, 1e-3, 1.0, 7.5], dtype=dtype, requires_grad=True)
    c = 2.0
    loss = create("inner", "barron", alpha=alpha, c=c)(error, torch.zeros_like(error))
    (slope,) = torch.autograd.grad(loss.sum(), error)
    expected, slopes = [], []
    with mpmath.workdps(400):
        bend = abs(mpmath.mpf(alpha) - 2)
        for value in error.tolist():
            u = mpmath.mpf(value) / c
            if alpha == 2:
                exact = u**2 / 2
            elif alpha == 0:
                exact = mpmath.log(1 + u**2 / 2)
            else:
                exact = bend / alpha * ((u**2 / bend + 1) ** (mpmath.mpf(alpha) / 2) - 1)
            expected.append(float(exact))
            slopes.append(float(u / c * (1 if alpha == 2 else (u**2 / bend + 1) ** (mpmath.mpf(alpha) / 2 - 1))))
    digits = 200 * torch.finfo(dtype).eps
    close(loss.double(), expected, rtol=digits, atol=0)
    # The slope of expm1 is 1 + expm1: exact to a digit of 1.
    close(slope.double(), slopes, rtol=digits, atol=torch.finfo(dtype).eps)


@pytest.mark.parametrize("value", [1e-6, 1e-4, 0.3, 0.999, 1.0, 1.001, 20.0, 700.0, 3e5])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_log_cosh_is_its_formula_in_fifty_digits(value: float, dtype: torch.dtype) -> None:
    """log_cosh has the digits of its dtype for errors of every size and either sign, and so has its slope."""
    error = torch.tensor([value, -value], dtype=dtype, requires_grad=True)
    loss = create("inner", "log_cosh")(error, torch.zeros_like(error))
    (slope,) = torch.autograd.grad(loss.sum(), error)
    with mpmath.workdps(50):
        # The error as the dtype holds it; cosh of 3e5 needs no more digits than its logarithm.
        exact = mpmath.mpf(error[0].item())
        expected, tangent = float(mpmath.log(mpmath.cosh(exact))), float(mpmath.tanh(exact))
    digits = 8 * torch.finfo(dtype).eps
    close(loss.double(), [expected, expected], rtol=digits, atol=0)
    close(slope.double(), [tangent, -tangent], rtol=digits, atol=0)


def test_gaussian_nll_agrees_with_scipy() -> None:
    """gaussian_nll(full=True) is minus the log density of scipy.stats.norm."""
    prediction, target = gaussians()
    mean, log_variance = prediction.detach().unbind(-1)
    oracle = -stats.norm.logpdf(target.numpy(), mean.numpy(), (log_variance / 2).exp().numpy())
    close(create("inner", "gaussian_nll", full=True)(prediction, target), oracle, rtol=1e-11)


def test_crps_gaussian_is_its_integral() -> None:
    """crps_gaussian is the integral of (Phi((x - mean) / s) - 1{x >= y})^2 over x, as scipy integrates it."""
    prediction, target = gaussians(8)
    oracle = []
    for (mean, log_variance), y in zip(prediction.tolist(), target.tolist(), strict=True):
        norm = stats.norm(mean, math.exp(log_variance / 2))
        low, high = min(mean, y) - 12 * norm.std(), max(mean, y) + 12 * norm.std()
        options = {"points": [mean], "limit": 200}
        below = integrate.quad(lambda x, law=norm: law.cdf(x) ** 2, low, y, **options)[0]
        above = integrate.quad(lambda x, law=norm: law.sf(x) ** 2, y, high, **options)[0]
        oracle.append(below + above)
    close(create("inner", "crps_gaussian")(prediction, target), oracle, rtol=1e-7, atol=1e-8)


def test_crps_ensemble_is_half_a_squared_energy_distance() -> None:
    """crps_ensemble is half the squared energy distance of scipy between the members and the target."""
    generator = torch.Generator().manual_seed(7)
    members = 5 * torch.randn(20, 9, generator=generator, dtype=torch.float64)
    target = 5 * torch.randn(20, generator=generator, dtype=torch.float64)
    pairs = zip(members.tolist(), target.tolist(), strict=True)
    oracle = [0.5 * stats.energy_distance(ensemble, [y]) ** 2 for ensemble, y in pairs]
    close(create("inner", "crps_ensemble")(members, target), oracle, rtol=1e-12)
