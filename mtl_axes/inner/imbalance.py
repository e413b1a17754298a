"""Multiclass shapes that shift the logits for rare classes: balanced_softmax, ldam, logit_adjusted."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from mtl_axes.inner._values import check_count, check_numbers, constants
from mtl_axes.inner.classification import CrossEntropy
from mtl_axes.options import check_number

__all__ = ["LDAM", "BalancedSoftmax", "LogitAdjusted"]


class _Shifted(CrossEntropy):
    """Cross-entropy with logits x + tau log(n), with one number n per class, the option named in ``_numbers``."""

    _numbers: ClassVar[str]
    tau: float = 1.0

    def check(self, prediction: Tensor, target: Tensor) -> None:
        super().check(prediction, target)
        check_count(self._numbers, getattr(self, self._numbers), prediction.shape[1])

    def forward(self, prediction: Tensor, target: Tensor, /) -> Tensor:
        offsets = constants([self.tau * math.log(value) for value in getattr(self, self._numbers)], prediction)
        return super().forward(prediction + offsets.view(1, -1, *(1,) * (prediction.ndim - 2)), target)


class LogitAdjusted(_Shifted):
    """Logit adjustment: cross-entropy of logits plus tau times the log prior of each class.

    ::

        -log softmax(x + tau log prior)_y

    It trains x for the balanced error: the logit of a rare class must lead by its missing prior. At inference use the raw
    logits x. A class without a training sample would have the logit -inf: every entry must be > 0, so add one to each count.

    Args:
        prior: one number > 0 per class, its probability or count in the training set; a common factor changes nothing.
        tau: strength, >= 0; at 0 the loss is cross_entropy, at 1 balanced_softmax.

    Returns:
        (N, ...) losses >= 0, in nats, from (N, C, ...) logits and integer targets.

    Raises:
        OptionError: an entry of prior is not positive, there are fewer than two, or tau is negative.
        DataError: the number of entries of prior differs from the number of logits.

    >>> LogitAdjusted(prior=(1000, 100, 10))(torch.tensor([[2.0, -1.0, 0.5]]), torch.tensor([1]))
    tensor([5.3098])

    References:
        A. K. Menon et al., "Long-Tail Learning via Logit Adjustment", 2021.
    """

    _numbers = "prior"
    example: ClassVar[Mapping[str, Any]] = {"prior": (0.6, 0.3, 0.1)}

    def __init__(self, *, prior: Sequence[float], tau: float = 1.0) -> None:
        super().__init__()
        self.prior = check_numbers("prior", prior, least=2)
        self.tau = check_number("tau", tau, low=0.0)


class BalancedSoftmax(_Shifted):
    """Balanced softmax: cross-entropy of logits plus the log count of each class.

    ::

        -log softmax(x + log counts)_y

    Equals logit_adjusted at tau = 1. At inference use the raw logits x.

    Args:
        counts: one number > 0 per class, its count in the training set; a common factor changes nothing.

    Returns:
        (N, ...) losses >= 0, in nats, from (N, C, ...) logits and integer targets.

    Raises:
        OptionError: a count is not positive, or there are fewer than two.
        DataError: the number of counts differs from the number of logits.

    >>> BalancedSoftmax(counts=(1000, 100, 10))(torch.tensor([[2.0, -1.0, 0.5]]), torch.tensor([1]))
    tensor([5.3098])

    References:
        J. Ren et al., "Balanced Meta-Softmax for Long-Tailed Visual Recognition", 2020. Differs from the reference in having
        no meta sampler, which belongs to the data loader.
    """

    _numbers = "counts"
    example: ClassVar[Mapping[str, Any]] = {"counts": (60, 30, 10)}

    def __init__(self, *, counts: Sequence[float]) -> None:
        super().__init__()
        self.counts = check_numbers("counts", counts, least=2)


class LDAM(CrossEntropy):
    """Label-distribution-aware margins: cross-entropy minus a margin for the true class, larger for a rare class.

    ::

        -log softmax(s (x - m_y onehot_y))_y    m_c = max_m (min_j n_j / n_c)^(1/4)

    For cosine logits in [-1, 1], which s scales; with raw logits the losses are s times too large. The deferred
    reweighting of the paper belongs to a schedule, not to the shape.

    Args:
        counts: one number > 0 per class, its count in the training set; a common factor changes nothing.
        max_m: margin of the rarest class, >= 0.
        s: factor of the logits, > 0.

    Returns:
        (N, ...) losses >= 0, in nats, from (N, C, ...) logits and integer targets.

    Raises:
        OptionError: an option is outside its range, or there are fewer than two counts.
        DataError: the number of counts differs from the number of logits.

    >>> LDAM(counts=(1000, 100, 10))(torch.tensor([[0.3, 0.1, 0.2]]), torch.tensor([0]))
    tensor([1.9461])

    References:
        K. Cao et al., "Learning Imbalanced Datasets with Label-Distribution-Aware Margin Loss", 2019. Equal to the
        reference's code (kaidic/LDAM-DRW).
    """

    example: ClassVar[Mapping[str, Any]] = {"counts": (60, 30, 10), "s": 2.0}

    def __init__(self, *, counts: Sequence[float], max_m: float = 0.5, s: float = 30.0) -> None:
        super().__init__()
        self.counts = check_numbers("counts", counts, least=2)
        self.max_m = check_number("max_m", max_m, low=0.0)
        self.s = check_number("s", s, low=0.0, low_open=True)

    def check(self, prediction: Tensor, target: Tensor) -> None:
        super().check(prediction, target)
        check_count("counts", self.counts, prediction.shape[1])

    def forward(self, prediction: Tensor, target: Tensor, /) -> Tensor:
        least = min(self.counts)
        margins = constants([self.max_m * (least / count) ** 0.25 for count in self.counts], prediction)
        index = target.long()
        margin = margins[index].unsqueeze(1)
        held = torch.zeros_like(prediction).scatter(1, index.unsqueeze(1), margin)
        return super().forward(self.s * (prediction - held), target)
