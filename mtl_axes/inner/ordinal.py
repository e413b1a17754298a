"""Ordinal shapes, for ordered classes 0..K-1: coral, corn, emd2."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from mtl_axes.inner._values import check_count, check_numbers, constants
from mtl_axes.inner.base import MULTICLASS, InnerShape, Pair
from mtl_axes.inner.classification import CrossEntropy, check_class_range, require_classes
from mtl_axes.signals import Kind

__all__ = ["EMD2", "Coral", "Corn"]


class _Ladder(InnerShape):
    """The base of coral and corn: K - 1 logits at dimension 1, for the questions "is y > k?"."""

    kinds = MULTICLASS

    def check(self, prediction: Tensor, target: Tensor) -> None:
        require_classes(prediction, target, "(N, K - 1, ...) for targets (N, ...) of K classes", least=0)

    def check_values(self, prediction: Tensor, target: Tensor) -> None:
        logits = prediction.shape[1]
        check_class_range(target, logits + 1, f"one more class than the {logits} logits")

    def sample(self, kind: Kind, size: tuple[int, ...], generator: torch.Generator, dtype: torch.dtype, /) -> Pair:
        prediction = 3 * torch.randn(size[0], 2, *size[1:], generator=generator, dtype=torch.float64)
        return prediction.to(dtype), torch.randint(3, size, generator=generator)


class Coral(_Ladder):
    """CORAL: an ordinal class as K - 1 binary questions "is y > k?", whose losses are summed.

    ::

        sum_k importance_k bce(x_k, 1{y > k})           k = 0 .. K - 2

    The predicted rank is the number of questions with p_k > 1/2. Let the head be one score with K - 1 biases,
    x_k = score + b_k, so that the answers cannot contradict each other.

    Args:
        importance: K - 1 weights >= 0, one per question; None for 1 each.

    Returns:
        (N, ...) losses >= 0, in nats, from (N, K - 1, ...) logits and integer targets in [0, K - 1].

    Raises:
        OptionError: a weight is negative.
        DataError: the number of logits differs from the number of weights.

    >>> Coral()(torch.tensor([[2.0, -1.0], [2.0, -1.0]]), torch.tensor([1, 2]))
    tensor([0.4402, 1.4402])

    References:
        W. Cao, V. Mirjalili, S. Raschka, "Rank consistent ordinal regression for neural networks with application to age
        estimation", 2020. Equal to coral_pytorch's coral_loss, which takes levels instead of classes as targets.
    """

    def __init__(self, *, importance: Sequence[float] | None = None) -> None:
        super().__init__()
        self.importance = None if importance is None else check_numbers("importance", importance, least=1, low_open=False)

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
    """CORN: an ordinal class as conditional questions "is y > k, given y > k - 1?", each asked where its condition holds.

    ::

        sum_{k <= y} bce(x_k, 1{y > k})                 k = 0 .. K - 2

    x_k is the logit of P(y > k | y > k - 1), and the loss of a sample is the negative log probability of its class. P(y > k)
    is the product of the conditionals, so that any head is consistent.

    Returns:
        (N, ...) losses >= 0, in nats, from (N, K - 1, ...) logits and integer targets in [0, K - 1].

    >>> Corn()(torch.tensor([[2.0, -1.0], [2.0, -1.0]]), torch.tensor([0, 2]))
    tensor([2.1269, 1.4402])

    References:
        X. Shi, W. Cao, S. Raschka, "Deep Neural Networks for Rank-Consistent Ordinal Regression Based On Conditional
        Probabilities", 2021. Differs from the reference in the denominator: coral_pytorch's corn_loss divides the sum by
        the number of questions asked, sum_k #{y >= k}, a task's mean by the number of samples. With three classes of
        equal size the mean is 5/3 times theirs.
    """

    def forward(self, prediction: Tensor, target: Tensor, /) -> Tensor:
        asked = target.unsqueeze(1) >= _places(prediction)
        return torch.where(asked, _answers(prediction, target), 0.0).sum(1)


class EMD2(CrossEntropy):
    """Squared earth mover's distance between the predicted distribution over ordered classes and the label.

    ::

        sum_k (P(class <= k) - 1{y <= k})^2             k = 0 .. K - 1, P = softmax(x)

    The further off a mistake is, the more it costs. Known in forecasting as the ranked probability score. The loss is at
    most K - 1, and its gradient vanishes where the softmax saturates, even on the wrong class.

    Returns:
        (N, ...) losses in [0, K - 1], from (N, K, ...) logits and integer targets in [0, K - 1].

    >>> EMD2()(torch.zeros(2, 3), torch.tensor([0, 1]))
    tensor([0.5556, 0.2222])

    References:
        L. Hou, C.-P. Yu, D. Samaras, "Squared Earth Mover's Distance-based Loss for Training Deep Neural Networks", 2016.
        Differs from the reference, which adds the cross-entropy and learns distances between classes.
    """

    def forward(self, prediction: Tensor, target: Tensor, /) -> Tensor:
        p = prediction.softmax(1)
        below = p.cumsum(1)
        # Where the label lies at or below k, sum from above: 1 - P(class <= k) would cancel.
        tail = p[:, 1:].flip(1).cumsum(1).flip(1)
        above = torch.cat([tail, torch.zeros_like(p[:, :1])], 1)
        reached = target.unsqueeze(1) <= _places(prediction)
        return torch.where(reached, above, below).square().sum(1)


def _places(prediction: Tensor) -> Tensor:
    """Return 0, 1, ... along dimension 1."""
    places = torch.arange(prediction.shape[1], device=prediction.device)
    return places.view(1, -1, *(1,) * (prediction.ndim - 2))


def _answers(prediction: Tensor, target: Tensor) -> Tensor:
    """Return the binary cross-entropy of each question "is y > k?"."""
    passed = target.unsqueeze(1) > _places(prediction)
    return -F.logsigmoid(torch.where(passed, prediction, -prediction))
