"""Binary and multilabel shapes from logits: asl, brier, quality_focal, varifocal. Each of (N, C) labels has its own loss."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from mtl_axes.inner.base import BINARY, InnerShape
from mtl_axes.inner.classification import BCE, check_hard, check_probability
from mtl_axes.options import check_choice, check_number

__all__ = ["ASL", "Brier", "QualityFocal", "Varifocal"]


def _signed_error(prediction: Tensor, target: Tensor) -> Tensor:
    """Return y - sigmoid(x) without cancellation, which would give 0 where the sigmoid rounds to y = 1."""
    target = target.to(prediction.dtype)
    return target * (-prediction).sigmoid() - (1 - target) * prediction.sigmoid()


class ASL(InnerShape):
    """Asymmetric loss: a focal loss with one focus per class, and a margin that drops easy negatives.

    ::

        y = 1:  (1 - p)^gamma_pos (-log p)              p = sigmoid(x)
        y = 0:  p_m^gamma_neg (-log(1 - p_m))           p_m = max(p - clip, 0)

    For multilabel tasks, targets (N, C), with mostly negative labels. The loss of a task is the mean over all entries.
    Negatives with p <= clip have no loss and no gradient. With clip > 0 the loss of a negative is at most -log(clip),
    and its gradient vanishes where p rounds to 1; with clip = 0 the slope there is 1. No gradient is NaN, even at a
    focus below 1. With all options at 0 it is bce.

    Args:
        gamma_neg: focus of negatives, >= 0.
        gamma_pos: focus of positives, >= 0.
        clip: the margin, in [0, 1).
        detach_focus: treat the factors (1 - p)^gamma_pos and p_m^gamma_neg as constants in the gradient.

    Returns:
        (N, ...) losses >= 0, in nats. Targets are bool, or 0 and 1.

    Raises:
        OptionError: an option is outside its range.
        DataError: a target is neither 0 nor 1.

    >>> ASL()(torch.tensor([-1.0, -4.0, 0.0]), torch.tensor([True, False, False]))
    tensor([0.9601, 0.0000, 0.0245])

    References:
        T. Ridnik et al., "Asymmetric Loss For Multi-Label Classification", 2021. Differs from the reference in three
        ways. It sums over the batch (timm 1.0.31 sums over labels and takes the mean over samples: C times the loss
        here). It clamps p at 1e-8, so that a positive with x = -120 has the loss 18.42 and no gradient; here, from the
        logit, the loss is 120 with slope -1. With disable_torch_grad_focal_loss it enables gradients even inside a
        caller's ``no_grad``; here no global state changes.
    """

    kinds = BINARY

    def __init__(
        self, *, gamma_neg: float = 4.0, gamma_pos: float = 1.0, clip: float = 0.05, detach_focus: bool = False
    ) -> None:
        super().__init__()
        self.gamma_neg = check_number("gamma_neg", gamma_neg, low=0.0)
        self.gamma_pos = check_number("gamma_pos", gamma_pos, low=0.0)
        self.clip = check_number("clip", clip, low=0.0, high=1.0, high_open=True)
        check_choice("detach_focus", detach_focus, (False, True))
        self.detach_focus = detach_focus

    @property
    def detaches(self) -> bool:  # type: ignore[override]
        """True if detach_focus is set."""
        return self.detach_focus

    def check_values(self, prediction: Tensor, target: Tensor) -> None:
        check_hard(target)

    def forward(self, prediction: Tensor, target: Tensor, /) -> Tensor:
        log_p, log_other = F.logsigmoid(prediction), F.logsigmoid(-prediction)
        positive = self._focused((self.gamma_pos * log_other).exp(), -log_p)
        if self.clip == 0:
            negative = self._focused((self.gamma_neg * log_p).exp(), -log_other)
        else:
            shifted = prediction.sigmoid() - self.clip
            counts = shifted > 0
            # Replace values <= 0 before the power, whose slope at 0 is infinite for gamma_neg < 1: times 0 it would be NaN.
            shifted = torch.where(counts, shifted, 0.5)
            # 1 - p_m as sigmoid(-x) + clip, because p_m may round to 1.
            far = torch.logaddexp(log_other, torch.full_like(log_other, math.log(self.clip)))
            log_rest = torch.where(shifted > 0.5, far, torch.log1p(-shifted.clamp_max(0.5)))
            negative = torch.where(counts, self._focused(shifted**self.gamma_neg, -log_rest), 0.0)
        return torch.where(target.bool(), positive, negative)

    def _focused(self, focus: Tensor, loss: Tensor) -> Tensor:
        return (focus.detach() if self.detach_focus else focus) * loss


class Brier(InnerShape):
    """Brier score: the squared error of a probability, a bounded proper score.

    ::

        (sigmoid(x) - y)^2

    Its gradient vanishes where the sigmoid saturates, even on the wrong side, so that outliers have little effect.

    Returns:
        (N, ...) losses in [0, 1]. Targets are bool, or floats in [0, 1].

    Raises:
        DataError: a target lies outside [0, 1].

    >>> Brier()(torch.tensor([0.0, 1.5]), torch.tensor([True, True]))
    tensor([0.2500, 0.0333])

    References:
        G. W. Brier, "Verification of Forecasts Expressed in Terms of Probability", 1950. Differs from the reference, which
        sums over both classes, by the factor 1/2, as does scikit-learn's brier_score_loss for a binary task.
    """

    kinds = BINARY

    def check_values(self, prediction: Tensor, target: Tensor) -> None:
        check_probability(target)

    def forward(self, prediction: Tensor, target: Tensor, /) -> Tensor:
        return _signed_error(prediction, target).square()


class QualityFocal(BCE):
    """Quality focal loss: the binary cross-entropy times |y - p|^beta, a focal loss for soft targets.

    ::

        |y - p|^beta (softplus(x) - x y)                p = sigmoid(x), y in [0, 1]

    For a target that is both a label and its quality, such as the overlap of a box. At p = y it is 0, while bce is the
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
        distance = _signed_error(prediction, target).abs()
        apart = distance > 0
        # Replace 0 before the power, whose slope at 0 is infinite for beta < 1.
        return torch.where(apart, torch.where(apart, distance, 1.0) ** self.beta * entropy, 0.0)


class Varifocal(InnerShape):
    """Varifocal loss: negatives have a focus as in focal, positives a weight by their quality.

    ::

        y > 0:  y (softplus(x) - x y)
        y = 0:  alpha p^gamma softplus(x)               p = sigmoid(x)

    The loss of a positive at p = y is y times the entropy of y, not 0.

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
