"""Ordinal shapes, for classes 0..K-1 with an order: coral, corn, emd2."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from mtl_axes.errors import DataError
from mtl_axes.inner._values import check_count, check_values_option, constants
from mtl_axes.inner.base import MULTICLASS, InnerShape
from mtl_axes.inner.classification import CrossEntropy
from mtl_axes.signals import Kind

__all__ = ["EMD2", "Coral", "Corn"]


class _Ladder(InnerShape):
    """What coral and corn have in common: K - 1 logits at dimension 1, of the questions "is y > k?"."""

    kinds = MULTICLASS

    def check(self, prediction: Tensor, target: Tensor) -> None:
        if prediction.ndim < 2 or prediction.shape[:1] + prediction.shape[2:] != target.shape:
            raise DataError(
                "logits should have the shape of target with a dimension of K - 1 logits at 1, for the classes 0..K-1: "
                f"(N, K - 1, ...) for targets (N, ...). Found logits {tuple(prediction.shape)} and target "
                f"{tuple(target.shape)}."
            )
        if target.is_floating_point() or target.is_complex() or target.dtype is torch.bool:
            raise DataError(f"class targets should be integers. Found {target.dtype}. Use target.long().")

    def check_values(self, prediction: Tensor, target: Tensor) -> None:
        low, high, logits = int(target.min()), int(target.max()), prediction.shape[1]
        if low < 0 or high > logits:
            raise DataError(
                f"class indices should lie in [0, {logits}], one more class than the {logits} logits. Found {low}..{high}. "
                'With missing="ignore" the index -100 counts as unlabelled.'
            )

    def sample(
        self, kind: Kind, size: tuple[int, ...], generator: torch.Generator, dtype: torch.dtype, /
    ) -> tuple[Tensor, Tensor]:
        prediction = 3 * torch.randn(size[0], 2, *size[1:], generator=generator, dtype=torch.float64)
        return prediction.to(dtype), torch.randint(3, size, generator=generator)


class Coral(_Ladder):
    """CORAL: an ordinal class as the sum of K - 1 binary questions "is y > k?".

    ::

        sum_k importance_k bce(x_k, 1{y > k})           k = 0 .. K - 2

    The rank is the number of questions with p_k > 1/2. The head should be one score with K - 1 biases,
    x_k = score + b_k: then the answers cannot contradict each other.

    Args:
        importance: K - 1 weights >= 0 of the questions, or None for 1.

    Returns:
        (N, ...) losses >= 0, in nats, from (N, K - 1, ...) logits and integer targets in [0, K - 1].

    Raises:
        OptionError: a weight is negative.
        DataError: the number of logits is not that of the weights.

    >>> Coral()(torch.tensor([[2.0, -1.0], [2.0, -1.0]]), torch.tensor([1, 2]))
    tensor([0.4402, 1.4402])

    References:
        W. Cao, V. Mirjalili, S. Raschka, "Rank consistent ordinal regression for neural networks with application to age
        estimation", 2020. Equal to coral_pytorch's coral_loss, with classes for targets where that takes levels.
    """

    def __init__(self, *, importance: Sequence[float] | None = None) -> None:
        super().__init__()
        self.importance = (
            None if importance is None else check_values_option("importance", importance, least=1, low_open=False)
        )

    def check(self, prediction: Tensor, target: Tensor) -> None:
        super().check(prediction, target)
        if self.importance is not None:
            check_count("importance", self.importance, prediction.shape[1])

    def forward(self, prediction: Tensor, target: Tensor, /) -> Tensor:
        losses = _answers(prediction, target)
        if self.importance is not None:
            losses = losses * constants(self.importance, losses).view(1, -1, *(1,) * (losses.ndim - 2))
        return losses.sum(1)


class Corn(_Ladder):
    """CORN: an ordinal class by conditional questions "is y > k, given y > k - 1?", each asked where its condition holds.

    ::

        sum_{k <= y} bce(x_k, 1{y > k})                 k = 0 .. K - 2

    So x_k is the logit of P(y > k | y > k - 1), and the loss of a sample is the negative logarithm of the probability of
    its class: P(y > k) is the product of the conditionals, consistent whatever the head.

    Returns:
        (N, ...) losses >= 0, in nats, from (N, K - 1, ...) logits and integer targets in [0, K - 1].

    >>> Corn()(torch.tensor([[2.0, -1.0], [2.0, -1.0]]), torch.tensor([0, 2]))
    tensor([2.1269, 1.4402])

    References:
        X. Shi, W. Cao, S. Raschka, "Deep Neural Networks for Rank-Consistent Ordinal Regression Based On Conditional
        Probabilities", 2021. Differs from the reference in the denominator: coral_pytorch's corn_loss divides the sum by
        the number of questions asked, sum_k #{y >= k}, and a task's mean by the number of samples. With three classes of
        one size the mean here is 5/3 of theirs.
    """

    def forward(self, prediction: Tensor, target: Tensor, /) -> Tensor:
        asked = target.unsqueeze(1) >= _places(prediction)
        return torch.where(asked, _answers(prediction, target), 0.0).sum(1)


class EMD2(CrossEntropy):
    """Squared earth mover's distance between the predicted distribution over ordered classes and the label.

    ::

        sum_k (P(class <= k) - 1{y <= k})^2             k = 0 .. K - 1, P = softmax(x)

    A mistake costs more the further off it is. The ranked probability score of forecasting. Bounded by K - 1; its gradient
    vanishes where the softmax saturates, on the wrong class as well.

    Returns:
        (N, ...) losses in [0, K - 1], from (N, K, ...) logits and integer targets in [0, K - 1].

    >>> EMD2()(torch.zeros(2, 3), torch.tensor([0, 1]))
    tensor([0.5556, 0.2222])

    References:
        L. Hou, C.-P. Yu, D. Samaras, "Squared Earth Mover's Distance-based Loss for Training Deep Neural Networks", 2016.
        Without the cross-entropy that the reference adds, and the distances between classes that it learns.
    """

    def forward(self, prediction: Tensor, target: Tensor, /) -> Tensor:
        p = prediction.softmax(1)
        below = p.cumsum(1)
        # Summed from above where the label lies at or below k: 1 - P(class <= k) cancels.
        tail = p[:, 1:].flip(1).cumsum(1).flip(1)
        above = torch.cat([tail, torch.zeros_like(p[:, :1])], 1)
        reached = target.unsqueeze(1) <= _places(prediction)
        return torch.where(reached, above, below).square().sum(1)


def _places(prediction: Tensor) -> Tensor:
    """0, 1, ... along dimension 1."""
    places = torch.arange(prediction.shape[1], device=prediction.device)
    return places.view(1, -1, *(1,) * (prediction.ndim - 2))


def _answers(prediction: Tensor, target: Tensor) -> Tensor:
    """The binary cross-entropy of each question "is y > k?"."""
    passed = target.unsqueeze(1) > _places(prediction)
    return -F.logsigmoid(torch.where(passed, prediction, -prediction))
