"""RMSE, NASA's score, health accuracy, and ridge regressions as baselines."""

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
    """Return predictions clipped to the range of the target: [0, 125] cycles."""
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
    """Return the share of engines with the right health class."""
    return float(np.mean(predicted == true))


def window_means(windows: NDArray[np.float32]) -> Array:
    """The mean of every channel: windows (N, 30, D) to features (N, D)."""
    return np.asarray(windows.mean(axis=1, dtype=np.float64))


def window_trends(windows: NDArray[np.float32]) -> Array:
    """Mean and slope of every channel, and their squares: windows (N, 30, D) to features (N, 4 D)."""
    time = np.arange(windows.shape[1]) - (windows.shape[1] - 1) / 2
    linear = np.concatenate([window_means(windows), np.einsum("ntd,t->nd", windows, time / (time @ time))], axis=1)
    return np.concatenate([linear, linear**2], axis=1)


BASELINES = {"ridge on window means": window_means, "ridge, also slopes and squares": window_trends}


class Ridge:
    """Ridge regression of the RUL on features of a window.

    Args:
        features: shape (N, D).
        rul: capped RUL, shape (N,).
        strength: penalty per sample on the squared coefficients of the standardised features; the intercept is free.
    """

    def __init__(self, features: Array, rul: Array, *, strength: float) -> None:
        self.centre = features.mean(axis=0)
        deviation = features.std(axis=0)
        self.scale = np.where(deviation > 1e-9, deviation, 1.0)
        self.intercept = float(rul.mean())
        standard = (features - self.centre) / self.scale
        normal = standard.T @ standard / len(standard) + strength * np.eye(standard.shape[1])
        self.coefficients = np.linalg.solve(normal, standard.T @ (rul - self.intercept) / len(standard))

    def __call__(self, features: Array) -> Array:
        """Predicted RUL within [0, 125]: shape (N, D) to (N,)."""
        return clip_rul((features - self.centre) / self.scale @ self.coefficients + self.intercept)
