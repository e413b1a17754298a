"""Multiclass shapes from logits: gce, label_smoothing, poly1, symmetric_ce."""

from __future__ import annotations

import torch
from torch import Tensor

from mtl_axes.inner._values import check_one_positive
from mtl_axes.inner.classification import CrossEntropy
from mtl_axes.options import check_number

__all__ = ["GCE", "LabelSmoothing", "Poly1", "SymmetricCE"]


class GCE(CrossEntropy):
    """Generalised cross-entropy, robust to wrong labels: between cross-entropy (q -> 0) and 1 - p (q = 1).

    ::

        (1 - p^q) / q                           p = softmax(x)_y

    Its gradient is p^q times the gradient of the cross-entropy, and fades where the label looks wrong. The value is bounded,
    and logits that start far off learn slowly. The cross-entropy times a constant p^q has the same gradient, but another
    value, so that weightings that read losses treat it differently.

    Args:
        q: robustness, in (0, 1].

    Returns:
        (N, ...) losses in [0, 1 / q], from (N, C, ...) logits and integer targets.

    Raises:
        OptionError: q is outside (0, 1].

    >>> GCE()(torch.tensor([[2.0, -1.0, 0.5]]), torch.tensor([0]))
    tensor([0.2220])

    References:
        Z. Zhang, M. Sabuncu, "Generalized Cross Entropy Loss for Training Deep Neural Networks with Noisy Labels", 2018.
        Differs from the reference, which also truncates the loss at a threshold k per training sample: a shape has no state
        per sample.
    """

    def __init__(self, *, q: float = 0.7) -> None:
        super().__init__()
        self.q = check_number("q", q, low=0.0, high=1.0, low_open=True)

    def forward(self, prediction: Tensor, target: Tensor, /) -> Tensor:
        return -torch.expm1(-self.q * super().forward(prediction, target)) / self.q  # 1 - p^q cancels near p = 1


class LabelSmoothing(CrossEntropy):
    """Cross-entropy with a smoothed label: epsilon of its mass is spread over all classes, including the true one.

    ::

        (1 - epsilon) (-log p_y) + epsilon / C  sum_c (-log p_c)            p = softmax(x)

    It is never 0, which bounds the confidence that training aims for.

    Args:
        epsilon: mass that is spread, in [0, 1); at 0 the loss is cross_entropy.

    Returns:
        (N, ...) losses >= 0, in nats, from (N, C, ...) logits and integer targets.

    Raises:
        OptionError: epsilon is outside [0, 1).

    >>> LabelSmoothing()(torch.tensor([[2.0, -1.0, 0.5]]), torch.tensor([0]))
    tensor([0.3913])

    References:
        C. Szegedy et al., "Rethinking the Inception Architecture for Computer Vision", 2016. Equal to torch's
        cross_entropy(label_smoothing=epsilon).
    """

    def __init__(self, *, epsilon: float = 0.1) -> None:
        super().__init__()
        self.epsilon = check_number("epsilon", epsilon, low=0.0, high=1.0, high_open=True)

    def forward(self, prediction: Tensor, target: Tensor, /) -> Tensor:
        log_p = prediction.log_softmax(1)  # its own log_softmax
        entropy = super().forward(log_p, target)
        return entropy if self.epsilon == 0 else (1 - self.epsilon) * entropy - self.epsilon * log_p.mean(1)


class Poly1(CrossEntropy):
    """PolyLoss with one term: the cross-entropy, with epsilon added to its first polynomial coefficient.

    ::

        -log p + epsilon (1 - p)                p = softmax(x)_y

    Its gradient is 1 + epsilon p times the gradient of the cross-entropy.

    Args:
        epsilon: added to the coefficient 1 of 1 - p, >= -1; at 0 it is cross_entropy.

    Returns:
        (N, ...) losses >= 0, in nats, from (N, C, ...) logits and integer targets.

    Raises:
        OptionError: epsilon is below -1, where the loss could be negative.

    >>> Poly1()(torch.tensor([[2.0, -1.0, 0.5]]), torch.tensor([0]))
    tensor([0.4557])

    References:
        Z. Leng et al., "PolyLoss: A Polynomial Expansion Perspective of Classification Loss Functions", 2022. Equal to
        optax's poly_loss_cross_entropy, whose default is epsilon=2.
    """

    def __init__(self, *, epsilon: float = 1.0) -> None:
        super().__init__()
        self.epsilon = check_number("epsilon", epsilon, low=-1.0)

    def forward(self, prediction: Tensor, target: Tensor, /) -> Tensor:
        entropy = super().forward(prediction, target)
        return entropy - self.epsilon * torch.expm1(-entropy)


class SymmetricCE(CrossEntropy):
    """Symmetric cross-entropy, robust to wrong labels: the cross-entropy plus its reverse, with the prediction as the label.

    ::

        alpha (-log p) + beta (-log_zero) (1 - p)           p = softmax(x)_y

    The reverse term is -sum_c p_c log q_c of the one-hot label q, with log_zero for log 0.

    Args:
        alpha: factor of the cross-entropy, >= 0.
        beta: factor of the reverse one, >= 0. At least one must be positive.
        log_zero: stands for log 0, < 0.

    Returns:
        (N, ...) losses >= 0, in nats, from (N, C, ...) logits and integer targets.

    Raises:
        OptionError: a factor is negative, both are 0, or log_zero is not negative.

    >>> SymmetricCE()(torch.tensor([[2.0, -1.0, 0.5]]), torch.tensor([0]))
    tensor([0.8817])

    References:
        Y. Wang et al., "Symmetric Cross Entropy for Robust Learning with Noisy Labels", 2019. Differs from the reference's
        code, which clamps the labels of the reverse term at 1e-4, so that its log_zero is -9.21, and p of the cross-entropy
        at 1e-7, below which it has no gradient.
    """

    def __init__(self, *, alpha: float = 0.1, beta: float = 1.0, log_zero: float = -4.0) -> None:
        super().__init__()
        self.alpha = check_number("alpha", alpha, low=0.0)
        self.beta = check_number("beta", beta, low=0.0)
        self.log_zero = check_number("log_zero", log_zero, high=0.0, high_open=True)
        check_one_positive(alpha=alpha, beta=beta)

    def forward(self, prediction: Tensor, target: Tensor, /) -> Tensor:
        entropy = super().forward(prediction, target)
        return self.alpha * entropy + self.beta * self.log_zero * torch.expm1(-entropy)
