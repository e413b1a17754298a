"""RMSE, NASA's score and health accuracy, and the ridge regression that networks are compared with."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

RUL_CAP = 125
HEALTHY_ABOVE = 80
CRITICAL_UP_TO = 30
HEALTH_CLASSES = ("healthy", "degrading", "critical")


def health_class(rul: Array) -> NDArray[np.int64]:
    """0 above 80 cycles, 1 from there down to more than 30, 2 at 30 or less."""
    return np.where(rul > HEALTHY_ABOVE, 0, np.where(rul > CRITICAL_UP_TO, 1, 2)).astype(np.int64)


def clip_rul(predicted: Array) -> Array:
    """Predictions within what the target can be: [0, 125] cycles."""
    return np.clip(predicted, 0, RUL_CAP)


def rmse(predicted: Array, true: Array) -> float:
    """Root mean squared error, in cycles."""
    return float(np.sqrt(np.mean((predicted - true) ** 2)))


def nasa_score(predicted: Array, true: Array) -> float:
    """Sum over engines of exp(-d/13) - 1 for early (d < 0) and exp(d/10) - 1 for late predictions, d = predicted - true.

    Lower is better; a late prediction costs more than an equally early one, and the sum grows with the number of engines.
    """
    late = predicted - true
    return float(np.sum(np.expm1(np.where(late < 0, -late / 13, late / 10))))


def accuracy(predicted: NDArray[np.int64], true: NDArray[np.int64]) -> float:
    """Share of engines put into their health class."""
    return float(np.mean(predicted == true))


class Ridge:
    """Ridge regression of the RUL on the means of a window's channels.

    Args:
        means: window means, shape (N, D).
        rul: capped RUL, shape (N,).
        strength: penalty per sample on the squared coefficients of the standardised means; the intercept is free.
    """

    def __init__(self, means: Array, rul: Array, *, strength: float) -> None:
        self.centre = means.mean(axis=0)
        deviation = means.std(axis=0)
        self.scale = np.where(deviation > 1e-9, deviation, 1.0)
        self.intercept = float(rul.mean())
        features = (means - self.centre) / self.scale
        normal = features.T @ features / len(features) + strength * np.eye(features.shape[1])
        self.coefficients = np.linalg.solve(normal, features.T @ (rul - self.intercept) / len(features))

    def __call__(self, means: Array) -> Array:
        """Predicted RUL within [0, 125]: shape (N, D) to (N,)."""
        return clip_rul((means - self.centre) / self.scale @ self.coefficients + self.intercept)
