"""Overlap of regions, one loss per image: dice, tversky. (Shapes per pixel, as cross_entropy, need nothing of their own.)"""

from __future__ import annotations

import torch
from torch import Tensor

from mtl_axes.errors import DataError, OptionError
from mtl_axes.inner.base import CLASSES, InnerShape
from mtl_axes.inner.classification import check_class_range, check_probability, require_classes
from mtl_axes.options import check_number
from mtl_axes.signals import Kind

__all__ = ["Dice", "Tversky"]


class _Regions(InnerShape):
    """What dice and tversky have in common: images of labels, one loss each."""

    kinds = CLASSES
    pooled = True

    def check(self, prediction: Tensor, target: Tensor) -> None:
        if target.ndim < 2:
            raise DataError(
                "targets should have the shape (N, ...), one image per sample with its pixels in further dimensions. "
                f"Found target {tuple(target.shape)}. For labels of single samples use bce or cross_entropy."
            )
        if prediction.shape != target.shape:
            require_classes(prediction, target)

    def check_values(self, prediction: Tensor, target: Tensor) -> None:
        if prediction.shape == target.shape:
            check_probability(target)
        else:
            check_class_range(prediction, target)

    def sample(
        self, kind: Kind, size: tuple[int, ...], generator: torch.Generator, dtype: torch.dtype, /
    ) -> tuple[Tensor, Tensor]:
        return super().sample(kind, size if len(size) > 1 else (*size, 4), generator, dtype)


class Tversky(_Regions):
    """Tversky loss: one minus the overlap of a region with its prediction, false positives and negatives weighted apart.

    ::

        1 - (TP + smooth) / (TP + alpha FP + beta FN + smooth)

        TP = sum p y,  FP = sum p (1 - y),  FN = sum (1 - p) y      over the valid pixels of one image

    A binary task has logits and targets of one shape and p = sigmoid(x). A multiclass task has the class dimension of its
    logits at 1 and p = softmax(x); its loss is the mean over all classes, a background class included. The sums are a
    function of the set of pixels: the loss of a whole is not the mean of its parts', and pixels that are masked leave the
    sums. An image counts as one sample: sample weights have the shape (N,).

    Where an image holds nothing of a region and nothing is predicted, the loss is 0, and
    alpha FP / (alpha FP + smooth) otherwise: with a small smooth the first false pixels cost everything, and the gradient
    beyond them vanishes. The computed form is (alpha FP + beta FN) / (denominator), which does not cancel near 0. Its
    gradient vanishes where all probabilities saturate: it is often added to a loss per pixel.

    Args:
        alpha: weight of false positives, >= 0.
        beta: weight of false negatives, >= 0. Not both may be 0. beta > alpha favours recall.
        smooth: added to both sums, in pixels, > 0.

    Returns:
        (N,) losses in [0, 1), from bool or 0..1 targets (N, ...) with at least two dimensions, or integer ones.

    Raises:
        OptionError: an option is outside its range.
        DataError: the target has no dimension beside that of the samples.

    >>> Tversky(smooth=0.5)(torch.tensor([[0.0, 0.0, 9.0], [-9.0, -9.0, -9.0]]), torch.tensor([[1, 0, 1], [0, 0, 0]]) == 1)
    tensor([0.2000, 0.0002])

    References:
        S. S. M. Salehi, D. Erdogmus, A. Gholipour, "Tversky Loss Function for Image Segmentation Using 3D Fully
        Convolutional Deep Networks", 2017. Differs from segmentation_models_pytorch 0.6, whose default pools the pixels of
        the whole batch, drops classes without a true pixel, and takes sums of |p - y| that differ for soft targets only;
        from MONAI in smooth, there 1e-5 in both sums by default.
    """

    def __init__(self, *, alpha: float = 0.3, beta: float = 0.7, smooth: float = 1.0) -> None:
        super().__init__()
        self.alpha = check_number("alpha", alpha, low=0.0)
        self.beta = check_number("beta", beta, low=0.0)
        self.smooth = check_number("smooth", smooth, low=0.0, low_open=True)
        if alpha == 0 and beta == 0:
            raise OptionError("One of `alpha` and `beta` should be positive. Found alpha=0 and beta=0.")

    def forward(self, prediction: Tensor, target: Tensor, valid: Tensor | None = None, /) -> Tensor:
        hit, false_positive, false_negative = _counts(prediction, target, valid)
        miss = self.alpha * false_positive + self.beta * false_negative
        return (miss / (hit + miss + self.smooth)).mean(1)


class Dice(_Regions):
    """Dice loss: one minus the overlap of a region with its prediction, the F1 score of pixels made smooth.

    ::

        1 - (2 sum p y + smooth) / (sum p + sum y + smooth)         over the valid pixels of one image

    Kinds, masks, empty regions and sample weights are as in tversky, which it equals at alpha = beta = 1/2 and half the
    smooth.

    Args:
        smooth: added to both sums, in pixels, > 0.

    Returns:
        (N,) losses in [0, 1), from bool or 0..1 targets (N, ...) with at least two dimensions, or integer ones.

    Raises:
        OptionError: smooth is not a positive number.
        DataError: the target has no dimension beside that of the samples.

    >>> Dice()(torch.tensor([[0.0, 0.0, 9.0], [-9.0, -9.0, -9.0]]), torch.tensor([[1, 0, 1], [0, 0, 0]]) == 1)
    tensor([0.2000, 0.0004])

    References:
        F. Milletari, N. Navab, S.-A. Ahmadi, "V-Net: Fully Convolutional Neural Networks for Volumetric Medical Image
        Segmentation", 2016. Differs from the reference in the denominator: sums of p and y, not of their squares. Peers:
        see tversky.
    """

    def __init__(self, *, smooth: float = 1.0) -> None:
        super().__init__()
        self.smooth = check_number("smooth", smooth, low=0.0, low_open=True)

    def forward(self, prediction: Tensor, target: Tensor, valid: Tensor | None = None, /) -> Tensor:
        hit, false_positive, false_negative = _counts(prediction, target, valid)
        miss = false_positive + false_negative
        return (miss / (2 * hit + miss + self.smooth)).mean(1)


def _counts(prediction: Tensor, target: Tensor, valid: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Return the true positives, false positives and false negatives, each (N, C), with C = 1 for a binary task."""
    if prediction.shape == target.shape:
        p, other = prediction.sigmoid().unsqueeze(1), (-prediction).sigmoid().unsqueeze(1)
        y = target.to(prediction.dtype).unsqueeze(1)
        hit, false_positive, false_negative = p * y, p * (1 - y), other * y
    else:
        classes = torch.arange(prediction.shape[1], device=target.device).view(1, -1, *(1,) * (target.ndim - 1))
        p, y = prediction.softmax(1), (target.unsqueeze(1) == classes).to(prediction.dtype)
        hit, false_positive = p * y, p * (1 - y)
        # What the true class lacks is what the others have: 1 - p would cancel.
        false_negative = false_positive.sum(1, keepdim=True) * y
    pixels = [hit, false_positive, false_negative]
    if valid is not None:
        pixels = [torch.where(valid.unsqueeze(1), each, 0.0) for each in pixels]
    hit, false_positive, false_negative = (each.flatten(2).sum(2) for each in pixels)
    return hit, false_positive, false_negative
