"""Shapes that treat over- and under-prediction differently: expectile, linex, nasa."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar, Final

import torch
from torch import Tensor

from mtl_axes.errors import OptionError
from mtl_axes.inner._values import check_optional
from mtl_axes.inner.base import REGRESSION, InnerShape
from mtl_axes.options import check_number

__all__ = ["Expectile", "Linex", "Nasa"]

# exp(80) is 5.5e34: a gradient of this size is finite in float32, even after a few factors.
_EXPONENTS: Final[dict[str, Any]] = {"low": 0.0, "high": 80.0, "low_open": True}


def with_tail(losses: Tensor, scaled: Tensor, end: float, value: float, slope: float) -> Tensor:
    """Return losses, replaced beyond ``end`` of their exponents ``scaled`` by a line with this value there and this slope.

    The line is selected, not added. A term slope * (scaled - clamped) is 0 before the end, but has the two gradients slope
    and -slope, whose sum with a smaller gradient rounds that off: in float32, gradients below 16 at the end 20.
    """
    return torch.where(scaled > end, value + slope * (scaled - end), losses)


class Expectile(InnerShape):
    """Asymmetric squared error whose minimiser is the tau-expectile, just as the mean minimises the squared error.

    ::

        l = |tau - 1{e > 0}| e^2,  e = prediction - target
        dl/de = 2 |tau - 1{e > 0}| e

    tau < 0.5 penalises over-prediction and so favours early (low) predictions. With tau = 0.5 it is half of ``mse``.
    ``asymmetric(over, under)`` is over + under times the expectile loss at tau = under / (over + under).

    Args:
        tau: the level, in (0, 1).

    Returns:
        (N, ...) losses >= 0, in squared target units.

    Raises:
        OptionError: tau is outside (0, 1).

    >>> Expectile(tau=0.1)(torch.tensor([15.0, 26.0]), torch.tensor([10.0, 30.0]))
    tensor([22.5000,  1.6000])

    References:
        W. K. Newey, J. L. Powell, "Asymmetric Least Squares Estimation and Testing", 1987.
    """

    kinds = REGRESSION

    def __init__(self, *, tau: float = 0.5) -> None:
        super().__init__()
        self.tau = check_number("tau", tau, low=0.0, high=1.0, low_open=True, high_open=True)

    def forward(self, prediction: Tensor, target: Tensor, /) -> Tensor:
        error = prediction - target
        # Clamps, because torch.where of two Python floats is float32 even in a float64 graph.
        return (1 - self.tau) * error.clamp_min(0).square() + self.tau * error.clamp_max(0).square()


class Linex(InnerShape):
    """Linear-exponential loss: exponential for errors of one sign, about linear for the other.

    ::

        l = b (exp(z) - z - 1),  z = a e,  e = prediction - target
        dl/de = a b (exp(z) - 1)

    a > 0 penalises over-prediction (late for RUL). Near zero the loss is a^2 b e^2 / 2; from the error 1/a on, in target
    units, the exponential dominates. In float32 the loss and its gradient are infinite from z = 89 on. Choose a to fit the
    largest errors at the start of training, or set ``max_exponent``, beyond which the loss continues along its tangent.

    Args:
        a: rate per target unit, any number except 0.
        b: factor of the loss, > 0.
        max_exponent: z from which on the loss is a straight line, in (0, 80]; None for the loss as published.

    Returns:
        (N, ...) losses >= 0, in the unit of b.

    Raises:
        OptionError: a is 0, b is not positive, or max_exponent is outside (0, 80].

    >>> Linex(a=0.1)(torch.tensor([15.0, 26.0]), torch.tensor([10.0, 30.0]))
    tensor([0.1487, 0.0703])

    References:
        H. R. Varian, "A Bayesian Approach to Real Estate Assessment", 1975; A. Zellner, "Bayesian Estimation and Prediction
        Using Asymmetric Loss Functions", 1986. Computed with expm1: at z = 1e-4 in float32 exp(z) - z - 1 is 0, not 5e-9.
    """

    kinds = REGRESSION
    example: ClassVar[Mapping[str, Any]] = {"a": 0.5, "max_exponent": 20.0}

    def __init__(self, *, a: float = 1.0, b: float = 1.0, max_exponent: float | None = None) -> None:
        super().__init__()
        self.a = check_number("a", a)
        if a == 0:
            raise OptionError(f"Option `a` should not be 0, which makes every loss 0. Found a={a!r}.")
        self.b = check_number("b", b, low=0.0, low_open=True)
        self.max_exponent = check_optional("max_exponent", max_exponent, **_EXPONENTS)

    def forward(self, prediction: Tensor, target: Tensor, /) -> Tensor:
        scaled = self.a * (prediction - target)
        curved = scaled if self.max_exponent is None else scaled.clamp_max(self.max_exponent)
        # For a tiny z, expm1(z) may be rounded to below z.
        losses = (curved.expm1() - curved).clamp_min(0)
        if self.max_exponent is not None:
            end = math.expm1(self.max_exponent)
            losses = with_tail(losses, scaled, self.max_exponent, end - self.max_exponent, end)
        return self.b * losses


class Nasa(InnerShape):
    """Score of the PHM 2008 challenge as a loss: exponential on both sides, steeper for late predictions.

    ::

        l = exp(e / late) - 1     where e >= 0 (too high: late),  e = prediction - target
          = exp(-e / early) - 1   where e < 0 (too low: early)
        dl/de = exp(e / late) / late, or -exp(-e / early) / early

    The challenge publishes the *sum* over units; a training loss is the mean. At e = 0 the slope jumps from -1/early to
    1/late. The loss grows exponentially: it is 5.2e21 at e = 500, and infinite in float32 from e = 888 on. Beyond
    ``max_exponent`` it continues along its tangent instead.

    Args:
        early: scale of early predictions, in target units, > 0.
        late: scale of late predictions, in target units, > 0.
        max_exponent: exponent from which on the loss is a straight line, in (0, 80]; None for the score as published.

    Returns:
        (N, ...) losses >= 0.

    Raises:
        OptionError: early or late is not positive, or max_exponent is outside (0, 80].

    >>> Nasa()(torch.tensor([15.0, 26.0]), torch.tensor([10.0, 30.0]))
    tensor([0.6487, 0.3603])

    References:
        A. Saxena, K. Goebel, D. Simon, N. Eklund, "Damage Propagation Modeling for Aircraft Engine Run-to-Failure
        Simulation", 2008. Differs from the reference only in the reduction.
    """

    kinds = REGRESSION
    example: ClassVar[Mapping[str, Any]] = {"max_exponent": 20.0}

    def __init__(self, *, early: float = 13.0, late: float = 10.0, max_exponent: float | None = None) -> None:
        super().__init__()
        self.early = check_number("early", early, low=0.0, low_open=True)
        self.late = check_number("late", late, low=0.0, low_open=True)
        self.max_exponent = check_optional("max_exponent", max_exponent, **_EXPONENTS)

    def forward(self, prediction: Tensor, target: Tensor, /) -> Tensor:
        error = prediction - target
        # At e = 0 the gradient is the mean of both sides, (1/late - 1/early) / 2: a subgradient.
        scaled = torch.maximum(error / self.late, -error / self.early)
        if self.max_exponent is None:
            return scaled.expm1()
        curved = scaled.clamp_max(self.max_exponent).expm1()
        return with_tail(curved, scaled, self.max_exponent, math.expm1(self.max_exponent), math.exp(self.max_exponent))
