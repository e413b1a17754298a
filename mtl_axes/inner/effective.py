"""Weights of a class by its effective number of samples: class_balanced."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from mtl_axes.errors import DataError
from mtl_axes.inner.base import CLASSES, TargetWeight
from mtl_axes.inner.frequency import check_counts, count_labels, look_up
from mtl_axes.options import check_number

__all__ = ["ClassBalanced"]


class ClassBalanced(TargetWeight):
    """Weight of a class by its effective number of samples, which saturates at 1 / (1 - beta).

    ::

        w(y) = a (1 - beta) / (1 - beta^n_y),  a such that the weights of all C classes sum to C

    beta = 0 weighs all classes alike, beta -> 1 by 1/n. Computed with expm1: in float32 1 - 0.9999^1 is 1.00017e-4, not
    1e-4. ``ClassBalanced.from_labels(labels)`` counts the classes of a training set. As every weight, it stays out of the
    denominator of the mean: cross-entropy with it is torch's ``cross_entropy(weight=w, reduction="none").mean()``, and
    not its ``reduction="mean"``, which divides by the sum of weights.

    Args:
        counts: training samples of each class, > 0.
        beta: in [0, 1).

    Returns:
        weights > 0, in the shape of the target.

    Raises:
        OptionError: a class has no sample, or beta is outside [0, 1).
        DataError: in the first call, a target is no index of a count.

    >>> import torch
    >>> ClassBalanced(counts=(1000, 100, 10))(torch.tensor([0, 1, 2]))
    tensor([0.0284, 0.2713, 2.7004])

    References:
        Y. Cui, M. Jia, T.-Y. Lin, Y. Song, S. Belongie, "Class-Balanced Loss Based on Effective Number of Samples", 2019.
        The weights are those of vandit15/Class-balanced-loss-pytorch. Differs from its losses, which are binary
        cross-entropies of sigmoids or of a softmax: here the base is free.
    """

    kinds = CLASSES
    example: ClassVar[Mapping[str, Any]] = {"counts": (1000, 100, 10)}

    def __init__(self, counts: Sequence[float], *, beta: float = 0.9999) -> None:
        super().__init__()
        self.counts = check_counts(counts, positive=True)
        self.beta = check_number("beta", beta, low=0.0, high=1.0, high_open=True)
        raw = [1 / -math.expm1(count * math.log(beta)) if beta > 0 else 1.0 for count in self.counts]
        self._table = tuple(weight * len(raw) / math.fsum(raw) for weight in raw)

    @classmethod
    def from_labels(cls, labels: Tensor, *, classes: int | None = None, beta: float = 0.9999) -> ClassBalanced:
        """Return the weight with the counts of ``labels``, the class indices or bools of a training set.

        Args:
            labels: class indices, of any shape.
            classes: their number; None for as many as the largest index needs.
            beta: see the class.

        Raises:
            DataError: there is no label, or one below 0 or not below ``classes``.
            OptionError: a class has no label.
        """
        labels = torch.as_tensor(labels)
        if labels.is_floating_point():
            raise DataError(f"labels should be class indices or bools. Found {labels.dtype}. Use labels.long().")
        if labels.numel() and (int(labels.min()) < 0 or (classes is not None and int(labels.max()) >= classes)):
            raise DataError(
                f"labels should be class indices from 0 on, below classes={classes}. "
                f"Found {int(labels.min())}..{int(labels.max())}. Pass the labelled ones only."
            )
        return cls(count_labels(labels, 0.0, 1.0, classes), beta=beta)

    def check_values(self, target: Tensor) -> None:
        low, high = float(target.min()), float(target.max())
        if low < 0 or high >= len(self.counts) or (target.is_floating_point() and bool((target != target.floor()).any())):
            raise DataError(
                f"class_balanced has counts of {len(self.counts)} classes, and targets should be their indices. "
                f"Found {low:g}..{high:g}."
            )

    def forward(self, target: Tensor, /) -> Tensor:
        return look_up(self._table, target.long(), target)
