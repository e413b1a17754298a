"""Shapes that tell over- from under-prediction: expectile, linex, nasa."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from mtl_axes.errors import OptionError
from mtl_axes.inner.base import REGRESSION, InnerShape
from mtl_axes.options import check_number

__all__ = ["Expectile", "Linex", "Nasa"]

# exp(80) is 5.5e34: a gradient with it is finite in float32, also after a few factors.
_LARGEST_EXPONENT = 80.0


def check_exponent(value: float | None) -> float | None:
    """Return the option ``max_exponent`` when it is None or a number in (0, 80]."""
    if value is None:
        return None
    return check_number("max_exponent", value, low=0.0, high=_LARGEST_EXPONENT, low_open=True)


def with_tail(losses: Tensor, scaled: Tensor, end: float, value: float, slope: float) -> Tensor:
    """Return losses of the exponents ``scaled``, beyond ``end`` those of the line through its value with its slope.

    Chosen and not added: a term slope * (scaled - clamped) is 0 before the end, but its two gradients, slope and -slope,
    take every smaller one with them when they are summed: in float32 all below 16 at the end 20.
    """
    return torch.where(scaled > end, value + slope * (scaled - end), losses)


class Expectile(InnerShape):
    """Two-sided squared error whose minimiser is the tau-expectile, as the mean is that of the square.

    ::

        l = |tau - 1{e > 0}| e^2,  e = prediction - target
        dl/de = 2 |tau - 1{e > 0}| e

    tau < 0.5 punishes over-prediction and favours early (low) ones. With tau = 0.5 it is half of ``mse``, and
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
        # torch.where of two Python floats is float32 even in a float64 graph, hence the clamps.
        return (1 - self.tau) * error.clamp_min(0).square() + self.tau * error.clamp_max(0).square()


class Linex(InnerShape):
    """Linear-exponential loss: errors on one side cost exponentially, on the other about linearly.

    ::

        l = b (exp(z) - z - 1),  z = a e,  e = prediction - target
        dl/de = a b (exp(z) - 1)

    a > 0 punishes over-prediction (late for RUL). Near zero it is a^2 b e^2 / 2; 1/a is the error, in target units, at
    which the exponential sets in. In float32 the loss is infinite from z = 89 on, and its gradient with it: choose a to fit
    the largest errors at the start of the training, or set ``max_exponent``, beyond which the loss goes on along its
    tangent.

    Args:
        a: rate per target unit, any number but 0.
        b: factor of the whole, > 0.
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
            raise OptionError(f"Option `a` should not be 0, for which the loss is 0 everywhere. Found a={a!r}.")
        self.b = check_number("b", b, low=0.0, low_open=True)
        self.max_exponent = check_exponent(max_exponent)

    def forward(self, prediction: Tensor, target: Tensor, /) -> Tensor:
        scaled = self.a * (prediction - target)
        curved = scaled if self.max_exponent is None else scaled.clamp_max(self.max_exponent)
        # Where z is of the size of the rounding of 1, expm1(z) may be z less its last digit.
        losses = (curved.expm1() - curved).clamp_min(0)
        if self.max_exponent is not None:
            end = math.expm1(self.max_exponent)
            losses = with_tail(losses, scaled, self.max_exponent, end - self.max_exponent, end)
        return self.b * losses


class Nasa(InnerShape):
    """The score of the PHM 2008 challenge as a loss: exponential on both sides, steeper for late predictions.

    ::

        l = exp(e / late) - 1     where e >= 0 (too high: late),  e = prediction - target
          = exp(-e / early) - 1   where e < 0 (too low: early)
        dl/de = exp(e / late) / late, or -exp(-e / early) / early

    The challenge publishes the *sum* over units; a training loss is the mean. The slope does not vanish at e = 0, where it
    jumps from -1/early to 1/late. The loss grows exponentially: 5.2e21 at e = 500, and infinite in float32 from e = 888 on.
    ``max_exponent`` lets it go on along its tangent instead.

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
        Simulation", 2008. Differs from the reference in nothing but the reduction.
    """

    kinds = REGRESSION
    example: ClassVar[Mapping[str, Any]] = {"max_exponent": 20.0}

    def __init__(self, *, early: float = 13.0, late: float = 10.0, max_exponent: float | None = None) -> None:
        super().__init__()
        self.early = check_number("early", early, low=0.0, low_open=True)
        self.late = check_number("late", late, low=0.0, low_open=True)
        self.max_exponent = check_exponent(max_exponent)

    def forward(self, prediction: Tensor, target: Tensor, /) -> Tensor:
        error = prediction - target
        # At e = 0 both sides share the gradient, half of 1/late - 1/early: a subgradient.
        scaled = torch.maximum(error / self.late, -error / self.early)
        if self.max_exponent is None:
            return scaled.expm1()
        curved = scaled.clamp_max(self.max_exponent).expm1()
        return with_tail(curved, scaled, self.max_exponent, math.expm1(self.max_exponent), math.exp(self.max_exponent))
