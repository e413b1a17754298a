"""Classification shapes from logits: bce, cross_entropy, focal."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from mtl_axes.errors import DataError
from mtl_axes.inner._values import check_numbers, check_optional, constants
from mtl_axes.inner.base import BINARY, CLASSES, MULTICLASS, InnerShape
from mtl_axes.options import check_number

__all__ = ["BCE", "CrossEntropy", "Focal"]

# Torch's default, -100, would silently drop labels that only missing="ignore" treats as unlabelled.
_NO_CLASS = torch.iinfo(torch.int32).min


def require_classes(
    prediction: Tensor, target: Tensor, layout: str = "(N, C, ...) for targets (N, ...)", least: int = 2
) -> None:
    """Raise :class:`DataError` unless ``prediction`` is integer ``target`` with a class dimension inserted at 1."""
    if prediction.ndim < 2 or prediction.shape[:1] + prediction.shape[2:] != target.shape:
        raise DataError(
            f"logits should have the shape of target with a class dimension at 1: {layout}. "
            f"Found logits {tuple(prediction.shape)} and target {tuple(target.shape)}."
        )
    if prediction.shape[1] < least:
        raise DataError(
            f"a multiclass task needs at least 2 logits. Found logits {tuple(prediction.shape)}. For one logit or value per "
            "sample use prediction.squeeze(1)."
        )
    if target.is_floating_point() or target.is_complex() or target.dtype is torch.bool:
        raise DataError(f"class targets should be integers. Found {target.dtype}. Use target.long().")


def check_class_range(target: Tensor, classes: int, logits: str) -> None:
    """Raise :class:`DataError` if a class index is below 0 or not below ``classes``."""
    low, high = int(target.min()), int(target.max())
    if low < 0 or high >= classes:
        raise DataError(
            f"class indices should lie in [0, {classes - 1}], {logits}. "
            f'Found {low}..{high}. With missing="ignore" the index -100 counts as unlabelled.'
        )


def check_probability(target: Tensor) -> None:
    """Raise :class:`DataError` if a binary target lies outside [0, 1]."""
    low, high = float(target.min()), float(target.max())
    if low < 0 or high > 1:
        raise DataError(f"binary targets should lie in [0, 1]. Found {low:g}..{high:g}.")


def check_hard(target: Tensor) -> None:
    """Raise :class:`DataError` if a binary target is neither 0 nor 1."""
    if not bool(((target == 0) | (target == 1)).all()):
        low, high = float(target.min()), float(target.max())
        hint = "For -1 and 1 use target > 0." if low == -1 else "For soft targets use bce or brier."
        raise DataError(f"targets should be 0 or 1. Found others in {low:g}..{high:g}. {hint}")


class BCE(InnerShape):
    """Binary cross-entropy from a logit x: softplus(x) - x y; with pos_weight c: c y softplus(-x) + (1 - y) softplus(x).

    Args:
        pos_weight: factor of the positive class, > 0.

    Returns:
        (N, ...) losses >= 0, in nats. Targets are bool, or floats in [0, 1].

    Raises:
        OptionError: pos_weight is not a positive number.

    >>> BCE()(torch.tensor([0.0, 1.5]), torch.tensor([True, True]))
    tensor([0.6931, 0.2014])
    """

    kinds = BINARY

    def __init__(self, *, pos_weight: float = 1.0) -> None:
        super().__init__()
        self.pos_weight = check_number("pos_weight", pos_weight, low=0.0, low_open=True)

    def check_values(self, prediction: Tensor, target: Tensor) -> None:
        check_probability(target)

    def forward(self, prediction: Tensor, target: Tensor, /) -> Tensor:
        target = target.to(prediction.dtype)
        return -self.pos_weight * target * F.logsigmoid(prediction) - (1 - target) * F.logsigmoid(-prediction)


class CrossEntropy(InnerShape):
    """Cross-entropy -log softmax(x)_y of logits x with the class dimension at 1.

    Args:
        prediction: (N, C, ...) logits.
        target: (N, ...) integer class indices in [0, C - 1].

    Returns:
        (N, ...) losses >= 0, in nats.

    >>> CrossEntropy()(torch.tensor([[2.0, -1.0, 0.5]]), torch.tensor([0]))
    tensor([0.2413])
    """

    kinds = MULTICLASS

    def check(self, prediction: Tensor, target: Tensor) -> None:
        require_classes(prediction, target)

    def check_values(self, prediction: Tensor, target: Tensor) -> None:
        check_class_range(target, prediction.shape[1], f"the {prediction.shape[1]} logits")

    def forward(self, prediction: Tensor, target: Tensor, /) -> Tensor:
        return F.nll_loss(prediction.log_softmax(1), target.long(), reduction="none", ignore_index=_NO_CLASS)


class Focal(InnerShape):
    """Focal loss (1 - p)^gamma (-log p), p the probability of the true class, from logits.

    A binary task has logits and targets of one shape, a multiclass task has the class dimension of its logits at 1.
    log p and log (1 - p) are computed from the logits, so that no gradient is NaN where p rounds to 1, even at gamma < 1.

    Args:
        gamma: focus, >= 0; at 0 the loss is the (alpha-weighted) cross-entropy.
        alpha: None for no weights; for a binary task the weight in [0, 1] of the positive class, while the negative class
            has 1 - alpha; for a multiclass task a sequence of C weights >= 0.

    Returns:
        (N, ...) losses >= 0, in nats.

    Raises:
        OptionError: gamma is negative or alpha outside its range.
        DataError: alpha does not fit the kind of the task, or a binary target is soft, for which three conventions exist.

    >>> Focal(gamma=2.0)(torch.tensor([0.0, 1.5]), torch.tensor([True, True]))
    tensor([0.1733, 0.0067])

    References:
        T.-Y. Lin et al., "Focal Loss for Dense Object Detection", 2017. Differs from the reference in the default of
        alpha (None instead of 0.25), so that gamma=0 is the plain cross-entropy.
    """

    kinds = CLASSES

    def __init__(self, *, gamma: float = 2.0, alpha: float | Sequence[float] | None = None) -> None:
        super().__init__()
        self.gamma = check_number("gamma", gamma, low=0.0)
        self.alpha: float | tuple[float, ...] | None
        if alpha is None or isinstance(alpha, (int, float)):
            self.alpha = check_optional("alpha", alpha, low=0.0, high=1.0)
        else:
            self.alpha = check_numbers("alpha", alpha, least=2, low_open=False)

    def check(self, prediction: Tensor, target: Tensor) -> None:
        if prediction.shape == target.shape:
            if isinstance(self.alpha, tuple):
                raise DataError(f"alpha of a binary task should be one number. Found alpha={self.alpha!r}.")
            return
        require_classes(prediction, target)
        if self.alpha is not None and (not isinstance(self.alpha, tuple) or len(self.alpha) != prediction.shape[1]):
            raise DataError(
                f"alpha of a multiclass task should be {prediction.shape[1]} weights, one per class. "
                f"Found alpha={self.alpha!r}."
            )

    def check_values(self, prediction: Tensor, target: Tensor) -> None:
        if prediction.shape != target.shape:
            check_class_range(target, prediction.shape[1], f"the {prediction.shape[1]} logits")
        else:
            check_hard(target)

    def forward(self, prediction: Tensor, target: Tensor, /) -> Tensor:
        if prediction.shape == target.shape:
            margin = torch.where(target.bool(), prediction, -prediction)
            log_p, log_other = F.logsigmoid(margin), F.logsigmoid(-margin)
        else:
            index = target.long().unsqueeze(1)
            chosen = prediction.gather(1, index).squeeze(1)
            others = prediction.scatter(1, index, -torch.inf).logsumexp(1)
            # With d = chosen - logsumexp(others): log p = logsigmoid(d) and log(1 - p) = logsigmoid(-d).
            log_p, log_other = F.logsigmoid(chosen - others), F.logsigmoid(others - chosen)
        # Softplus would drop its exponential beyond 20, an error of 2e-9.
        loss = -log_p if self.gamma == 0 else -(self.gamma * log_other).exp() * log_p
        return loss if self.alpha is None else self._class_weight(target, loss) * loss

    def _class_weight(self, target: Tensor, like: Tensor) -> Tensor:
        if isinstance(self.alpha, tuple):
            return constants(self.alpha, like)[target.long()]
        assert self.alpha is not None
        positive = target.to(like.dtype)
        return self.alpha * positive + (1 - self.alpha) * (1 - positive)
