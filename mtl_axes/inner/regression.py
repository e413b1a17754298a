"""Regression shapes of the residual e = prediction - target: mse, mae, huber, asymmetric, quantile."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from mtl_axes.errors import OptionError
from mtl_axes.inner._values import check_one_positive
from mtl_axes.inner.base import REGRESSION, InnerShape, Pair, require_last_dimension, require_same_shape
from mtl_axes.options import check_number
from mtl_axes.signals import Kind

__all__ = ["MAE", "MSE", "Asymmetric", "Huber", "Quantile"]


class MSE(InnerShape):
    """Squared error e^2, without the factor 1/2.

    Args:
        prediction: (N, ...) floats.
        target: (N, ...) floats, in the prediction's unit.

    Returns:
        (N, ...) losses >= 0, in squared target units.

    >>> MSE()(torch.tensor([15.0, 26.0]), torch.tensor([10.0, 30.0]))
    tensor([25., 16.])
    """

    kinds = REGRESSION

    def forward(self, prediction: Tensor, target: Tensor, /) -> Tensor:
        return (prediction - target).square()


class MAE(InnerShape):
    """Absolute error |e|. The subgradient at e = 0 is 0.

    Args:
        prediction: (N, ...) floats.
        target: (N, ...) floats, in the prediction's unit.

    Returns:
        (N, ...) losses >= 0, in target units.

    >>> MAE()(torch.tensor([15.0, 26.0]), torch.tensor([10.0, 30.0]))
    tensor([5., 4.])
    """

    kinds = REGRESSION

    def forward(self, prediction: Tensor, target: Tensor, /) -> Tensor:
        return (prediction - target).abs()


class Huber(InnerShape):
    """Huber's loss: e^2 / 2 where |e| <= delta, else delta (|e| - delta / 2).

    Args:
        delta: error at which the square becomes a line, in target units, > 0.

    Returns:
        (N, ...) losses >= 0, in squared target units.

    Raises:
        OptionError: delta is not a positive number.

    >>> Huber(delta=5.0)(torch.tensor([15.0, 68.0]), torch.tensor([10.0, 60.0]))
    tensor([12.5000, 27.5000])

    References:
        P. J. Huber, "Robust Estimation of a Location Parameter", 1964.
    """

    kinds = REGRESSION

    def __init__(self, *, delta: float = 1.0) -> None:
        super().__init__()
        self.delta = check_number("delta", delta, low=0.0, low_open=True)

    def forward(self, prediction: Tensor, target: Tensor, /) -> Tensor:
        size = (prediction - target).abs()
        near = size.clamp_max(self.delta)
        # One product for both branches. A `where` would double the gradient work and split it at the knot. The gradient of a
        # sum would be near + (delta - delta), which rounds off values that are small beside delta.
        return near * (size - 0.5 * near)


class Asymmetric(InnerShape):
    """Asymmetric squared error: over * e^2 where e > 0 (prediction too high, late for RUL), else under * e^2.

    Equals (over + under) times the expectile loss at under / (over + under).

    Args:
        over: factor of over-prediction, >= 0.
        under: factor of under-prediction, >= 0. At least one must be positive.

    Returns:
        (N, ...) losses >= 0, in squared target units.

    Raises:
        OptionError: a factor is negative, or both are 0.

    >>> Asymmetric(over=2.0)(torch.tensor([15.0, 26.0]), torch.tensor([10.0, 30.0]))
    tensor([50., 16.])

    References:
        W. K. Newey, J. L. Powell, "Asymmetric Least Squares Estimation and Testing", 1987 (up to the scale above).
    """

    kinds = REGRESSION

    def __init__(self, *, over: float = 1.0, under: float = 1.0) -> None:
        super().__init__()
        self.over = check_number("over", over, low=0.0)
        self.under = check_number("under", under, low=0.0)
        check_one_positive(over=over, under=under)

    def forward(self, prediction: Tensor, target: Tensor, /) -> Tensor:
        error = prediction - target
        # Clamps, because torch.where of two Python floats is float32 even in a float64 graph.
        return self.over * error.clamp_min(0).square() + self.under * error.clamp_max(0).square()


class Quantile(InnerShape):
    """Pinball loss max(q u, (q - 1) u) of u = target - prediction; its minimiser is the q-quantile.

    With several quantiles the prediction has one entry per quantile in an extra last dimension, and the loss of a sample
    is the mean over them. Predicted quantiles can cross; a head that predicts increments prevents that.

    Args:
        q: a level in (0, 1), or a strictly increasing sequence of levels. q < 0.5 favours early (low) predictions.

    Returns:
        (N, ...) losses >= 0, in target units, in the shape of the target.

    Raises:
        OptionError: a level is outside (0, 1), or the levels do not increase.
        DataError: the last dimension of the prediction is not the number of levels.

    >>> Quantile(q=0.1)(torch.tensor([15.0, 26.0]), torch.tensor([10.0, 30.0]))
    tensor([4.5000, 0.4000])

    References:
        R. Koenker, G. Bassett, "Regression Quantiles", 1978.
    """

    kinds = REGRESSION

    def __init__(self, *, q: float | Sequence[float] = 0.5) -> None:
        super().__init__()
        levels = list(q) if isinstance(q, Iterable) else [q]
        for level in levels:
            check_number("q", level, low=0.0, high=1.0, low_open=True, high_open=True)
        if not levels or any(first >= second for first, second in pairwise(levels)):
            raise OptionError(f"Option `q` should be a level or strictly increasing levels. Found q={q!r}.")
        self.q: float | tuple[float, ...] = tuple(levels) if isinstance(q, Iterable) else q

    @property
    def trailing(self) -> bool:  # type: ignore[override]
        """True if the prediction has one entry per level."""
        return isinstance(self.q, tuple)

    def check(self, prediction: Tensor, target: Tensor) -> None:
        if isinstance(self.q, tuple):
            require_last_dimension(prediction, target, len(self.q), "one entry per quantile")
        else:
            require_same_shape(prediction, target)

    def sample(self, kind: Kind, size: tuple[int, ...], generator: torch.Generator, dtype: torch.dtype, /) -> Pair:
        prediction, target = super().sample(kind, size, generator, dtype)
        if isinstance(self.q, tuple):
            steps = torch.linspace(-1, 1, len(self.q), dtype=torch.float64).to(dtype)
            prediction = prediction.unsqueeze(-1) + steps
        return prediction, target

    def forward(self, prediction: Tensor, target: Tensor, /) -> Tensor:
        if not isinstance(self.q, tuple):
            return _pinball(target - prediction, self.q)
        error = target.unsqueeze(-1) - prediction
        columns = [_pinball(column, q) for column, q in zip(error.unbind(-1), self.q, strict=True)]
        return torch.stack(columns, -1).mean(-1)


def _pinball(error: Tensor, q: float) -> Tensor:
    return torch.maximum(q * error, (q - 1) * error)
