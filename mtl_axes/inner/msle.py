"""Squared error of logarithms: msle."""

from __future__ import annotations

import math

from torch import Tensor

from mtl_axes.errors import DataError
from mtl_axes.inner._values import as_floats
from mtl_axes.inner.base import REGRESSION, InnerShape

__all__ = ["MSLE"]


class MSLE(InnerShape):
    """Squared error of log(1 + y): a squared relative error, for targets over several orders of magnitude.

    ::

        l = (log(1 + p) - log(1 + y))^2
        dl/dp = 2 (log(1 + p) - log(1 + y)) / (1 + p)

    An under-prediction costs more than an over-prediction of the same size. Predictions must be > -1: end the head in
    softplus or relu. Otherwise the loss is NaN, and the first call raises an error.

    Args:
        prediction: (N, ...) floats > -1.
        target: (N, ...) floats > -1.

    Returns:
        (N, ...) losses >= 0.

    Raises:
        DataError: in the first call, a target or a prediction is <= -1.

    >>> import torch
    >>> MSLE()(torch.tensor([15.0, 26.0]), torch.tensor([10.0, 30.0]))
    tensor([0.1404, 0.0191])

    References:
        Equal to sklearn.metrics.mean_squared_log_error and torchmetrics' MeanSquaredLogError, before their mean.
    """

    kinds = REGRESSION
    # The smallest bfloat16 above -1.
    target_range = (-1 + 2**-8, math.inf)
    prediction_range = (-1 + 2**-8, math.inf)

    def check_values(self, prediction: Tensor, target: Tensor) -> None:
        for role, values in (("Targets", target), ("Predictions", prediction)):
            low = float(values.detach().min())
            if low <= -1:
                hint = " End the head in softplus or relu." if role == "Predictions" else ""
                raise DataError(f"{role} of msle should be > -1. Found {low:g}.{hint}")

    def forward(self, prediction: Tensor, target: Tensor, /) -> Tensor:
        return (prediction.log1p() - as_floats(target, prediction).log1p()).square()
