"""Sample weights at their edges: with a gradient of their own, and infinite ones."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from mtl_axes import MultiTaskCriterion, compose
from mtl_axes.errors import DataError

INF = float("inf")


def call(criterion: MultiTaskCriterion, weight: Tensor, **options: Any) -> tuple[float, list[float]]:
    """Total and gradient of squared errors 1 and 4."""
    prediction = torch.tensor([1.0, 2.0], requires_grad=True)
    total = criterion({"a": prediction}, {"a": torch.zeros(2)}, sample_weight=weight, **options)
    total.backward()
    assert prediction.grad is not None
    return total.item(), prediction.grad.tolist()


def test_a_sample_weight_that_requires_a_gradient_is_a_constant() -> None:
    """(2 * 1 + 3 * 4) / 2 = 7 has the gradient 2 w p / 2 in the predictions and none in the weights."""
    weight = torch.tensor([2.0, 3.0], requires_grad=True)
    assert call(compose("fixed", {"a": "mse"}), weight) == (7.0, [2.0, 6.0])
    assert weight.grad is None


def test_an_infinite_sample_weight_is_refused() -> None:
    """Where a label counts its weight is finite; at a masked one any number may stand, which reaches nothing."""
    weight = torch.tensor([2.0, INF])
    with pytest.raises(DataError, match="sample_weight of task 'a' should be finite and >= 0"):
        call(compose("fixed", {"a": "mse"}), weight)
    mask = torch.tensor([True, False])
    assert call(compose("fixed", {"a": "mse"}), weight, mask=mask) == (2.0, [4.0, 0.0])
    assert call(compose("fixed", {"a": "mse"}, reduction="weighted_mean"), weight, mask=mask) == (1.0, [2.0, 0.0])
