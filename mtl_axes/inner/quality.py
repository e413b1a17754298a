"""Binary shapes for soft targets that measure a quality, as detectors use them: quality_focal, varifocal."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from mtl_axes.inner.base import BINARY, InnerShape
from mtl_axes.inner.binary import signed_error
from mtl_axes.inner.classification import BCE, check_probability
from mtl_axes.options import check_number

__all__ = ["QualityFocal", "Varifocal"]


class QualityFocal(BCE):
    """Quality focal loss: the binary cross-entropy times |y - p|^beta, a focal loss that takes soft targets.

    ::

        |y - p|^beta (softplus(x) - x y)                p = sigmoid(x), y in [0, 1]

    For a target that is both a label and its quality, such as the overlap of a box. It is 0 at p = y, where bce is the
    entropy of y. With hard targets it is focal(gamma=beta).

    Args:
        beta: focus, >= 0; at 0 the loss is bce.

    Returns:
        (N, ...) losses >= 0, in nats. Targets are bool, or floats in [0, 1].

    Raises:
        OptionError: beta is negative.
        DataError: a target lies outside [0, 1].

    >>> QualityFocal()(torch.tensor([0.0, 0.0, 1.5]), torch.tensor([1.0, 0.5, 0.5]))
    tensor([0.1733, 0.0000, 0.0960])

    References:
        X. Li et al., "Generalized Focal Loss: Learning Qualified and Distributed Bounding Boxes for Dense Object
        Detection", 2020. Differs from mmdet's quality_focal_loss in the gradient where p = y at beta < 1: 0, not NaN.
    """

    def __init__(self, *, beta: float = 2.0) -> None:
        super().__init__()
        self.beta = check_number("beta", beta, low=0.0)

    def forward(self, prediction: Tensor, target: Tensor, /) -> Tensor:
        entropy = super().forward(prediction, target)
        if self.beta == 0:
            return entropy
        distance = signed_error(prediction, target).abs()
        apart = distance > 0
        # Replaced before the power, whose slope at 0 is infinite for beta < 1.
        return torch.where(apart, torch.where(apart, distance, 1.0) ** self.beta * entropy, 0.0)


class Varifocal(InnerShape):
    """Varifocal loss: negatives are focused as in focal, positives weighted by their quality.

    ::

        y > 0:  y (softplus(x) - x y)
        y = 0:  alpha p^gamma softplus(x)               p = sigmoid(x)

    A positive's loss at p = y is y times the entropy of y, not 0.

    Args:
        alpha: factor of negatives, >= 0.
        gamma: focus of negatives, >= 0.

    Returns:
        (N, ...) losses >= 0, in nats. Targets are bool, or floats in [0, 1].

    Raises:
        OptionError: alpha or gamma is negative.
        DataError: a target lies outside [0, 1].

    >>> Varifocal()(torch.tensor([0.0, 0.0, 0.0]), torch.tensor([1.0, 0.5, 0.0]))
    tensor([0.6931, 0.3466, 0.1300])

    References:
        H. Zhang et al., "VarifocalNet: An IoU-aware Dense Object Detector", 2021. Differs from mmdet's varifocal_loss
        (iou_weighted=True) in the gradient of a negative at gamma < 1 where p rounds to 0: 0, not NaN.
    """

    kinds = BINARY

    def __init__(self, *, alpha: float = 0.75, gamma: float = 2.0) -> None:
        super().__init__()
        self.alpha = check_number("alpha", alpha, low=0.0)
        self.gamma = check_number("gamma", gamma, low=0.0)

    def check_values(self, prediction: Tensor, target: Tensor) -> None:
        check_probability(target)

    def forward(self, prediction: Tensor, target: Tensor, /) -> Tensor:
        target = target.to(prediction.dtype)
        log_p, log_other = F.logsigmoid(prediction), F.logsigmoid(-prediction)
        positive = -target * (target * log_p + (1 - target) * log_other)
        negative = -self.alpha * (self.gamma * log_p).exp() * log_other
        return torch.where(target > 0, positive, negative)
