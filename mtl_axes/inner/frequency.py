"""Sample weights by the frequency of the target in the training labels: inverse_frequency, lds, class_balanced."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal, TypeVar

import torch
from torch import Tensor

from mtl_axes.errors import DataError, OptionError
from mtl_axes.inner._values import check_numbers, constants
from mtl_axes.inner.base import CLASSES, REGRESSION, TargetWeight
from mtl_axes.options import check_choice, check_number

__all__ = ["LDS", "ClassBalanced", "InverseFrequency"]

# The class index that marks an unlabelled sample, as in torch.
_UNLABELLED = -100
Binned = TypeVar("Binned", bound="InverseFrequency")


def check_counts(counts: Sequence[float], *, positive: bool = False) -> tuple[float, ...]:
    """Return the option ``counts`` as a tuple of numbers, at least one of them positive."""
    numbers = check_numbers("counts", counts, least=1, low_open=positive)
    if not any(numbers):
        raise OptionError(f"Option `counts` should hold a positive count. Found counts={counts!r}.")
    return numbers


def check_clip(clip: Sequence[float] | None) -> tuple[float, float] | None:
    """Return the option ``clip`` as a pair of numbers 0 < low <= high, or None."""
    if clip is None:
        return None
    if isinstance(clip, str) or not isinstance(clip, Sequence) or len(clip) != 2:
        raise OptionError(f"Option `clip` should be None or two counts, the smallest and the largest. Found clip={clip!r}.")
    low = check_number("clip", clip[0], low=0.0, low_open=True)
    return low, check_number("clip", clip[1], low=low)


def bin_index(target: Tensor, low: float, width: float, bins: int) -> Tensor:
    """Return the bin floor((y - low) / width) of each target; a target outside the bins gets the first or the last."""
    values = target if target.is_floating_point() else target.to(torch.get_default_dtype())
    return ((values - low) / width).nan_to_num().floor().clamp(0, bins - 1).long()


def count_labels(labels: Tensor, low: float, width: float, bins: int | None) -> list[int]:
    """Return the number of labels in each bin, of ``bins`` bins or as many as the largest label needs."""
    check_number("width", width, low=0.0, low_open=True)
    labels = torch.as_tensor(labels).detach().flatten()
    finite = int(torch.isfinite(labels).sum())
    if not 0 < finite == labels.numel():
        raise DataError(
            f"labels should be finite numbers, at least one. Found {labels.numel()} labels, {finite} of them finite. "
            "Leave out unlabelled samples."
        )
    if not labels.is_floating_point() and low > _UNLABELLED and bool((labels == _UNLABELLED).any()):
        raise DataError(f"A label is {_UNLABELLED}, which marks unlabelled samples. Leave these out.")
    if bins is not None:
        check_number("bins", bins, low=1, integer=True)
    else:
        bins = max(1, 1 + math.floor((float(labels.max()) - low) / width))
    return torch.bincount(bin_index(labels, low, width, bins), minlength=bins).tolist()


def inverse(counts: Sequence[float], sizes: Sequence[float]) -> tuple[float, ...]:
    """Return 1 / size of each bin, or the largest weight for an empty bin, scaled to a mean of 1 over the counted labels."""
    largest = max(1 / size for size in sizes if size > 0)
    weights = [1 / size if size > 0 else largest for size in sizes]
    mean = math.fsum(count * weight for count, weight in zip(counts, weights, strict=True)) / math.fsum(counts)
    return tuple(weight / mean for weight in weights)


def look_up(table: Sequence[float], index: Tensor, target: Tensor) -> Tensor:
    """Return the entries of a table at ``index``, in the dtype of a float target, else in the default dtype."""
    like = target if target.is_floating_point() else target.new_empty(0, dtype=torch.get_default_dtype())
    return constants(table, like)[index]


class InverseFrequency(TargetWeight):
    """Weight inverse to the number of training labels in the bin, or the class, of a target.

    ::

        w(y) = a / n_b^power,  b = floor((y - low) / width),  n_b = counts[b], clipped to clip;
               a such that the mean over the counted labels is 1

    With ``power=1`` every bin has the same total weight; ``power=0.5`` takes the square root of this correction. A
    regression target outside the bins gets the weight of the first or last bin; a class outside them is an error. A bin
    without labels gets the largest weight of the others. Counts are options, not counted in the batch:
    ``InverseFrequency.from_labels(labels, width=5.0)`` counts the labels of a training set. For class indices and bools
    leave the width at 1.

    Args:
        counts: training labels in each bin, >= 0.
        low: lower end of the first bin, in target units.
        width: width of a bin, in target units, > 0.
        power: exponent of the count, in [0, 1].
        clip: two counts between which the counts of the bins are clipped, as (5, 1000); None does not clip.

    Returns:
        weights > 0, in the shape of the target.

    Raises:
        OptionError: no count is positive, or another option is outside its range.
        DataError: in the first call, a class has no bin.

    >>> InverseFrequency(counts=(6, 3, 1), width=10.0)(torch.tensor([4.0, 12.0, 25.0, 99.0]))
    tensor([0.5556, 1.1111, 3.3333, 3.3333])

    References:
        Equal to the weights of imbalanced-regression (see ``lds``) without smoothing: its ``sqrt_inv`` is power=0.5, its
        ``inverse`` is power=1 with clip=(5, 1000).
    """

    kinds = frozenset({"regression", "binary", "multiclass"})
    example: ClassVar[Mapping[str, Any]] = {"counts": (40, 10, 2)}

    def __init__(
        self,
        counts: Sequence[float],
        *,
        low: float = 0.0,
        width: float = 1.0,
        power: float = 1.0,
        clip: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        self.counts = check_counts(counts)
        self.low = check_number("low", low)
        self.width = check_number("width", width, low=0.0, low_open=True)
        self.power = check_number("power", power, low=0.0, high=1.0)
        self.clip = check_clip(clip)
        self._table = inverse(self.counts, self._sizes())

    @classmethod
    def from_labels(
        cls: type[Binned], labels: Tensor, *, low: float = 0.0, width: float = 1.0, bins: int | None = None, **options: Any
    ) -> Binned:
        """Return the weight with the counts of ``labels``, the labelled targets of a training set.

        Args:
            labels: finite numbers, of any shape.
            low: lower end of the first bin.
            width: width of a bin.
            bins: number of bins, the last of which is open; None for as many as the largest label needs.
            **options: other options of the constructor.

        Raises:
            DataError: there is no label, a label is not finite, or a class index is -100.
        """
        return cls(count_labels(labels, low, width, bins), low=low, width=width, **options)

    def _sizes(self) -> list[float]:
        low, high = self.clip or (0.0, math.inf)
        return [min(max(count, low), high) ** self.power if count or self.clip else 0.0 for count in self.counts]

    def check_values(self, target: Tensor) -> None:
        if target.is_floating_point() or "multiclass" not in self.kinds:
            return
        low, high = int(target.min()), int(target.max())
        if low < self.low or math.floor((high - self.low) / self.width) >= len(self.counts):
            raise DataError(
                f"inverse_frequency has counts for {len(self.counts)} classes, so class targets should be their indices. "
                f"Found {low}..{high}."
            )

    def forward(self, target: Tensor, /) -> Tensor:
        return look_up(self._table, bin_index(target, self.low, self.width, len(self._table)), target)


class LDS(InverseFrequency):
    """Label distribution smoothing: inverse frequencies of a histogram smoothed by a kernel.

    ::

        w(y) = a / (sum_i k_i n_(b+i)^power),  b = floor((y - low) / width),  i = -(size-1)/2 ... (size-1)/2;
               a such that the mean over the counted labels is 1

    A rare value next to frequent ones does not count as rare. The power is taken before smoothing, and bins beyond the ends
    count as 0. ``LDS.from_labels(labels, bins=121)`` counts the labels of a training set; see ``inverse_frequency``.

    Args:
        counts: training labels in each bin, >= 0.
        low: lower end of the first bin, in target units.
        width: width of a bin, in target units, > 0.
        power: exponent of the count, in [0, 1].
        clip: two counts between which the counts of the bins are clipped; None does not clip.
        kernel: ``"gaussian"``, ``"triangular"`` or ``"laplace"``.
        size: number of bins that the kernel covers, odd.
        sigma: width of a gaussian or laplace kernel, in bins, > 0.

    Returns:
        weights > 0, in the shape of the target.

    Raises:
        OptionError: no count is positive, size is even, or another option is outside its range.

    >>> LDS(counts=(0, 9, 16, 1, 4))(torch.tensor([1.0, 2.0, 3.0, 4.0]))
    tensor([1.0914, 0.8779, 0.9016, 1.3074])

    References:
        Y. Yang, K. Zha, Y.-C. Chen, H. Wang, D. Katabi, "Delving into Deep Imbalanced Regression", 2021. Equal to its
        repository, imbalanced-regression, to the 1e-7 of its float32 weights: its ``sqrt_inv`` is power=0.5 (the default
        of both), its ``inverse`` is power=1 with clip=(5, 1000), its ``triang`` is triangular, its max_target is the
        number of bins. Its gaussian kernel filters a window of ``size`` numbers with reflection at the ends, so that
        with size 5 and sigma 2 it is (0.858, 0.946, 1, 0.946, 0.858), not the bell (0.607, 0.882, 1, 0.882, 0.607).
        Differs from it where the smoothed count is 0: the weight is finite, the largest of the others.
    """

    kinds = REGRESSION
    example: ClassVar[Mapping[str, Any]] = {"counts": (40, 10, 2, 0, 1), "low": -2.0}

    def __init__(
        self,
        counts: Sequence[float],
        *,
        low: float = 0.0,
        width: float = 1.0,
        power: float = 0.5,
        clip: Sequence[float] | None = None,
        kernel: Literal["gaussian", "triangular", "laplace"] = "gaussian",
        size: int = 5,
        sigma: float = 2.0,
    ) -> None:
        check_choice("kernel", kernel, ("gaussian", "triangular", "laplace"))
        if check_number("size", size, low=1, integer=True) % 2 == 0:
            raise OptionError(f"Option `size` should be odd. Found size={size!r}.")
        super().__init__(counts, low=low, width=width, power=power, clip=clip)
        self.kernel = kernel
        self.size = size
        self.sigma = check_number("sigma", sigma, low=0.0, low_open=True)
        self._table = inverse(self.counts, self._smoothed())

    def _smoothed(self) -> list[float]:
        sizes, half = self._sizes(), self.size // 2
        window = {shift: self._kernel(shift) for shift in range(-half, half + 1)}
        places = range(len(sizes))
        return [sum(k * sizes[b + shift] for shift, k in window.items() if b + shift in places) for b in places]

    def _kernel(self, shift: int) -> float:
        """Return the height at a distance, up to a common factor, which the scaling of the weights removes."""
        if self.kernel == "triangular":
            return 1 - abs(shift) / (self.size // 2 + 1)
        if self.kernel == "laplace":
            return math.exp(-abs(shift) / self.sigma)
        # The reference's filter ends at 4 sigma. By reflection at the ends of the window its peak repeats every `size` bins.
        reach = int(4 * self.sigma + 0.5)
        images = [
            shift - copy * self.size
            for copy in range(-reach // self.size - 1, reach // self.size + 2)
            if abs(shift - copy * self.size) <= reach
        ]
        return math.fsum(math.exp(-0.5 * (image / self.sigma) ** 2) for image in images)


class ClassBalanced(TargetWeight):
    """Weight of a class by the effective number of its samples, which saturates at 1 / (1 - beta).

    ::

        w(y) = a (1 - beta) / (1 - beta^n_y),  a such that the weights of all C classes sum to C

    With beta = 0 all classes have the same weight, with beta -> 1 the weight is proportional to 1/n. Computed with expm1: in
    float32 1 - 0.9999^1 is 1.00017e-4, not 1e-4. ``ClassBalanced.from_labels(labels)`` counts the classes of a training set.
    Like every target weight, it does not enter the denominator of the mean: cross-entropy with it equals torch's
    ``cross_entropy(weight=w, reduction="none").mean()``, while torch's ``reduction="mean"`` divides by the sum of weights.

    Args:
        counts: training samples of each class, > 0.
        beta: in [0, 1).

    Returns:
        weights > 0, in the shape of the target.

    Raises:
        OptionError: a class has no sample, or beta is outside [0, 1).
        DataError: in the first call, a target is not the index of a count.

    >>> ClassBalanced(counts=(1000, 100, 10))(torch.tensor([0, 1, 2]))
    tensor([0.0284, 0.2713, 2.7004])

    References:
        Y. Cui, M. Jia, T.-Y. Lin, Y. Song, S. Belongie, "Class-Balanced Loss Based on Effective Number of Samples", 2019.
        Equal to the weights of vandit15/Class-balanced-loss-pytorch. Differs from its losses, which are binary
        cross-entropies of sigmoids or of a softmax: here any base is possible.
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
            labels: class indices or bools, of any shape.
            classes: number of classes; None for as many as the largest index needs.
            beta: see the class.

        Raises:
            DataError: there is no label, a label is a float, or one is below 0 or not below ``classes``.
            OptionError: a class has no label.
        """
        labels = torch.as_tensor(labels)
        if labels.is_floating_point():
            raise DataError(f"labels should be class indices or bools. Found {labels.dtype}. Use labels.long().")
        if labels.numel() and (int(labels.min()) < 0 or (classes is not None and int(labels.max()) >= classes)):
            raise DataError(
                f"labels should be class indices from 0 on, below classes={classes}. "
                f"Found {int(labels.min())}..{int(labels.max())}. Leave out unlabelled samples."
            )
        return cls(count_labels(labels, 0.0, 1.0, classes), beta=beta)

    def check_values(self, target: Tensor) -> None:
        low, high = float(target.min()), float(target.max())
        if low < 0 or high >= len(self.counts) or (target.is_floating_point() and bool((target != target.floor()).any())):
            raise DataError(
                f"class_balanced has counts for {len(self.counts)} classes, so targets should be class indices in "
                f"[0, {len(self.counts) - 1}]. Found {low:g}..{high:g}."
            )

    def forward(self, target: Tensor, /) -> Tensor:
        return look_up(self._table, target.long(), target)
