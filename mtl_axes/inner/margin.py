"""Shapes that ignore samples that are right by a margin: hinge, squared_hinge, multi_margin."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from mtl_axes.inner.base import BINARY, InnerShape
from mtl_axes.inner.classification import CrossEntropy, check_hard
from mtl_axes.options import check_choice, check_number

__all__ = ["Hinge", "MultiMargin", "SquaredHinge"]


class Hinge(InnerShape):
    """Hinge loss of support vector machines: samples that are right by a margin cost nothing.

    ::

        max(0, margin - s)                      s = (2 y - 1) x, the signed margin

    Args:
        margin: signed margin from which on a sample costs nothing, > 0.

    Returns:
        (N, ...) losses >= 0. Targets are bool, or 0 and 1. The subgradient at s = margin is 0.

    Raises:
        OptionError: margin is not a positive number.
        DataError: a target is neither 0 nor 1.

    >>> Hinge()(torch.tensor([-1.0, 0.3, 1.5]), torch.tensor([True, True, True]))
    tensor([2.0000, 0.7000, 0.0000])

    References:
        C. Cortes, V. Vapnik, "Support-Vector Networks", 1995. Differs from the reference, scikit-learn and torch in the
        targets: 0 and 1, not -1 and 1.
    """

    kinds = BINARY

    def __init__(self, *, margin: float = 1.0) -> None:
        super().__init__()
        self.margin = check_number("margin", margin, low=0.0, low_open=True)

    def check_values(self, prediction: Tensor, target: Tensor) -> None:
        check_hard(target)

    def forward(self, prediction: Tensor, target: Tensor, /) -> Tensor:
        margin = torch.where(target.bool(), prediction, -prediction)
        return F.relu(self.margin - margin)  # the gradient of clamp_min would be 1 at the kink


class SquaredHinge(Hinge):
    """Squared hinge loss: smooth at the kink of hinge, and steeper far from it.

    ::

        max(0, margin - s)^2                    s = (2 y - 1) x, the signed margin

    Args:
        margin: signed margin from which on a sample costs nothing, > 0.

    Returns:
        (N, ...) losses >= 0. Targets are bool, or 0 and 1.

    Raises:
        OptionError: margin is not a positive number.
        DataError: a target is neither 0 nor 1.

    >>> SquaredHinge()(torch.tensor([-1.0, 0.5, 1.5]), torch.tensor([True, True, True]))
    tensor([4.0000, 0.2500, 0.0000])

    References:
        Y. Tang, "Deep Learning using Linear Support Vector Machines", 2013. Differs from scikit-learn's LinearSVC in
        the targets: 0 and 1, not -1 and 1.
    """

    def forward(self, prediction: Tensor, target: Tensor, /) -> Tensor:
        return super().forward(prediction, target).square()


class MultiMargin(CrossEntropy):
    """Multiclass hinge loss: every other logit should stay a margin below the logit of the true class.

    ::

        1/C  sum_{c != y} max(0, margin - x_y + x_c)^p

    Args:
        margin: by which the true class should lead, > 0.
        p: power, 1 or 2.

    Returns:
        (N, ...) losses >= 0, from (N, C, ...) logits and integer targets. The subgradient at the kinks is 0.

    Raises:
        OptionError: margin is not a positive number, or p neither 1 nor 2.

    >>> MultiMargin()(torch.tensor([[0.1, 0.2, 0.3]]), torch.tensor([2]))
    tensor([0.5667])

    References:
        K. Crammer, Y. Singer, "On the Algorithmic Implementation of Multiclass Kernel-based Vector Machines", 2001.
        Differs from the reference, whose hinge reads only the largest other logit. Equal to torch's multi_margin_loss, which
        sums over all, but takes no trailing dimensions.
    """

    def __init__(self, *, margin: float = 1.0, p: int = 1) -> None:
        super().__init__()
        self.margin = check_number("margin", margin, low=0.0, low_open=True)
        check_choice("p", p, (1, 2))
        self.p = p

    def forward(self, prediction: Tensor, target: Tensor, /) -> Tensor:
        index = target.long().unsqueeze(1)
        gaps = F.relu(self.margin - prediction.gather(1, index) + prediction)
        gaps = gaps.scatter(1, index, 0.0)  # the entry of the true class, the margin itself
        return (gaps if self.p == 1 else gaps.square()).mean(1)
