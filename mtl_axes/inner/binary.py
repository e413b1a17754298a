"""Binary and multilabel shapes from logits: asl, brier. Each of (N, C) labels has its own loss."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from mtl_axes.errors import OptionError
from mtl_axes.inner.base import BINARY, InnerShape
from mtl_axes.inner.classification import check_hard, check_probability
from mtl_axes.options import check_number

__all__ = ["ASL", "Brier", "signed_error"]


def signed_error(prediction: Tensor, target: Tensor) -> Tensor:
    """Return y - sigmoid(x), without the cancellation that would round it to 0 where the sigmoid rounds to y = 1."""
    target = target.to(prediction.dtype)
    return target * (-prediction).sigmoid() - (1 - target) * prediction.sigmoid()


class ASL(InnerShape):
    """Asymmetric loss: a focal loss with a focus of its own for each class, and a margin that drops easy negatives.

    ::

        y = 1:  (1 - p)^gamma_pos (-log p)              p = sigmoid(x)
        y = 0:  p_m^gamma_neg (-log(1 - p_m))           p_m = max(p - clip, 0)

    For multilabel tasks, targets (N, C), in which most labels are negative. The loss of a task is the mean over all
    entries. Negatives with p <= clip have no loss and no gradient. With clip > 0 the loss of a negative is at most
    -log(clip) and its gradient vanishes where p rounds to 1; with clip = 0 it keeps the slope 1. No gradient is NaN, also
    at focuses below 1. All at 0: bce.

    Args:
        gamma_neg: focus of negatives, >= 0.
        gamma_pos: focus of positives, >= 0.
        clip: the margin, in [0, 1).
        detach_focus: take the factors (1 - p)^gamma_pos and p_m^gamma_neg for constants in the gradient.

    Returns:
        (N, ...) losses >= 0, in nats. Targets are bool, or 0 and 1.

    Raises:
        OptionError: an option is outside its range.
        DataError: a target is neither 0 nor 1.

    >>> ASL()(torch.tensor([-1.0, -4.0, 0.0]), torch.tensor([True, False, False]))
    tensor([0.9601, 0.0000, 0.0245])

    References:
        T. Ridnik et al., "Asymmetric Loss For Multi-Label Classification", 2021. Differs from the reference, which sums
        over the batch, in the mean (timm 1.0.31 sums over labels and takes the mean over samples: C times ours); in log p
        from the logit, where the reference clamps p at 1e-8 and so has the gradient 0 at a positive with x = -120 (its
        loss 18.42, ours 120 with slope -1); and in touching no global state: with its disable_torch_grad_focal_loss
        the reference switches gradients on inside a caller's ``no_grad``.
    """

    kinds = BINARY

    def __init__(
        self, *, gamma_neg: float = 4.0, gamma_pos: float = 1.0, clip: float = 0.05, detach_focus: bool = False
    ) -> None:
        super().__init__()
        self.gamma_neg = check_number("gamma_neg", gamma_neg, low=0.0)
        self.gamma_pos = check_number("gamma_pos", gamma_pos, low=0.0)
        self.clip = check_number("clip", clip, low=0.0, high=1.0, high_open=True)
        if not isinstance(detach_focus, bool):
            raise OptionError(f"Option `detach_focus` should be True or False. Found detach_focus={detach_focus!r}.")
        self.detach_focus = detach_focus

    @property
    def detaches(self) -> bool:  # type: ignore[override]
        """True with detach_focus."""
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
            # Replaced before the power: at gamma_neg < 1 its slope at 0 is infinite, and would meet a 0 of the clamp.
            shifted = torch.where(counts, shifted, 0.5)
            # 1 - p_m = sigmoid(-x) + clip, where p_m may round to 1.
            far = torch.logaddexp(log_other, torch.full_like(log_other, math.log(self.clip)))
            log_rest = torch.where(shifted > 0.5, far, torch.log1p(-shifted.clamp_max(0.5)))
            negative = torch.where(counts, self._focused(shifted**self.gamma_neg, -log_rest), 0.0)
        return torch.where(target.bool(), positive, negative)

    def _focused(self, focus: Tensor, loss: Tensor) -> Tensor:
        return (focus.detach() if self.detach_focus else focus) * loss


class Brier(InnerShape):
    """Brier score: the squared error of the probability of a logit, a bounded proper score.

    ::

        (sigmoid(x) - y)^2

    Its gradient vanishes where the sigmoid saturates, on the wrong side as well: it forgives outliers.

    Returns:
        (N, ...) losses in [0, 1]. Targets are bool, or floats in [0, 1].

    Raises:
        DataError: a target lies outside [0, 1].

    >>> Brier()(torch.tensor([0.0, 1.5]), torch.tensor([True, True]))
    tensor([0.2500, 0.0333])

    References:
        G. W. Brier, "Verification of Forecasts Expressed in Terms of Probability", 1950. Differs from the reference,
        which sums over both classes, in the factor 1/2, as does scikit-learn's brier_score_loss of a binary task.
    """

    kinds = BINARY

    def check_values(self, prediction: Tensor, target: Tensor) -> None:
        check_probability(target)

    def forward(self, prediction: Tensor, target: Tensor, /) -> Tensor:
        return signed_error(prediction, target).square()
