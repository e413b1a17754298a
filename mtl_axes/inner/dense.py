"""Overlap of regions, one loss per image: dice, tversky. For a loss per pixel use shapes such as cross_entropy."""

from __future__ import annotations

import torch
from torch import Tensor

from mtl_axes.errors import DataError
from mtl_axes.inner._values import check_one_positive
from mtl_axes.inner.base import CLASSES, InnerShape
from mtl_axes.inner.classification import check_class_range, check_probability, require_classes
from mtl_axes.options import check_number

__all__ = ["Dice", "Tversky"]


class _Regions(InnerShape):
    """The base of dice and tversky: images of labels, with one loss per image."""

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
            check_class_range(target, prediction.shape[1], f"the {prediction.shape[1]} logits")


class Tversky(_Regions):
    """Tversky loss: one minus the overlap of a region with its prediction, with weights for false positives and negatives.

    ::

        1 - (TP + smooth) / (TP + alpha FP + beta FN + smooth)

        TP = sum p y,  FP = sum p (1 - y),  FN = sum (1 - p) y      over the valid pixels of one image

    In a binary task logits and targets have one shape, and p = sigmoid(x). In a multiclass task the logits have a class
    dimension at 1, and p = softmax(x); the loss is the mean over all classes, including the background. The sums run
    over the valid pixels, so the loss of an image is not the mean of the losses of its parts. An image counts as one
    sample: sample weights have the shape (N,).

    In an image without the region the loss is alpha FP / (alpha FP + smooth), which is 0 if nothing is predicted. With a
    small smooth the first false pixels cost almost everything, and the gradient of further ones vanishes. The computed
    form (alpha FP + beta FN) / denominator does not cancel near 0. Its gradient vanishes where all probabilities
    saturate; many add a loss per pixel.

    Args:
        alpha: weight of false positives, >= 0.
        beta: weight of false negatives, >= 0. Not both may be 0. beta > alpha favours recall.
        smooth: added to both sums, in pixels, > 0.

    Returns:
        (N,) losses in [0, 1), from targets (N, ...) with at least two dimensions: bool or 0..1, or class indices.

    Raises:
        OptionError: an option is outside its range.
        DataError: the target has no dimension besides the samples.

    >>> Tversky(smooth=0.5)(torch.tensor([[0.0, 0.0, 9.0], [-9.0, -9.0, -9.0]]), torch.tensor([[1, 0, 1], [0, 0, 0]]) == 1)
    tensor([0.2000, 0.0002])

    References:
        S. S. M. Salehi, D. Erdogmus, A. Gholipour, "Tversky Loss Function for Image Segmentation Using 3D Fully
        Convolutional Deep Networks", 2017. Differs from segmentation_models_pytorch 0.6, whose default pools the pixels of
        the whole batch, drops classes without a true pixel, and sums |p - y|, which differs only for soft targets; and from
        MONAI in smooth, which is 1e-5 in both sums by default there.
    """

    def __init__(self, *, alpha: float = 0.3, beta: float = 0.7, smooth: float = 1.0) -> None:
        super().__init__()
        self.alpha = check_number("alpha", alpha, low=0.0)
        self.beta = check_number("beta", beta, low=0.0)
        self.smooth = check_number("smooth", smooth, low=0.0, low_open=True)
        check_one_positive(alpha=alpha, beta=beta)

    def forward(self, prediction: Tensor, target: Tensor, valid: Tensor | None = None, /) -> Tensor:
        hit, false_positive, false_negative = _counts(prediction, target, valid)
        miss = self.alpha * false_positive + self.beta * false_negative
        return (miss / (hit + miss + self.smooth)).mean(1)


class Dice(_Regions):
    """Dice loss: one minus the overlap of a region with its prediction, a smooth F1 score of pixels.

    ::

        1 - (2 sum p y + smooth) / (sum p + sum y + smooth)         over the valid pixels of one image

    Equals tversky with alpha = beta = 1/2 and half the smooth. See there for kinds, masks, empty regions and sample weights.

    Args:
        smooth: added to both sums, in pixels, > 0.

    Returns:
        (N,) losses in [0, 1), from targets (N, ...) with at least two dimensions: bool or 0..1, or class indices.

    Raises:
        OptionError: smooth is not a positive number.
        DataError: the target has no dimension besides the samples.

    >>> Dice()(torch.tensor([[0.0, 0.0, 9.0], [-9.0, -9.0, -9.0]]), torch.tensor([[1, 0, 1], [0, 0, 0]]) == 1)
    tensor([0.2000, 0.0004])

    References:
        F. Milletari, N. Navab, S.-A. Ahmadi, "V-Net: Fully Convolutional Neural Networks for Volumetric Medical Image
        Segmentation", 2016. Differs from the reference in the denominator, which sums p and y instead of their squares. For
        other libraries see tversky.
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
        # The true class lacks the probability of the others: 1 - p would cancel.
        false_negative = false_positive.sum(1, keepdim=True) * y
    pixels = [hit, false_positive, false_negative]
    if valid is not None:
        pixels = [torch.where(valid.unsqueeze(1), each, 0.0) for each in pixels]
    hit, false_positive, false_negative = (each.flatten(2).sum(2) for each in pixels)
    return hit, false_positive, false_negative
