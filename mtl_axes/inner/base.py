"""The contract of an inner shape and of a target weight."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar, Final, Literal, TypeAlias

import torch
from torch import Tensor, nn

from mtl_axes.errors import DataError
from mtl_axes.options import constructor_repr, read_options
from mtl_axes.signals import Kind

__all__ = [
    "BINARY",
    "CLASSES",
    "MULTICLASS",
    "REGRESSION",
    "InnerShape",
    "Pair",
    "TargetWeight",
    "require_last_dimension",
    "require_same_shape",
]

# The kinds of task that shapes serve.
REGRESSION: Final[frozenset[Kind]] = frozenset({"regression"})
BINARY: Final[frozenset[Kind]] = frozenset({"binary"})
MULTICLASS: Final[frozenset[Kind]] = frozenset({"multiclass"})
CLASSES: Final[frozenset[Kind]] = BINARY | MULTICLASS

# A prediction and a target.
Pair: TypeAlias = tuple[Tensor, Tensor]


def require_same_shape(prediction: Tensor, target: Tensor) -> None:
    """Raise :class:`DataError` unless the shapes are equal: broadcasting (N, 1) against (N,) would give N x N losses."""
    if prediction.shape != target.shape:
        hint = ""
        if prediction.ndim == target.ndim + 1 and prediction.shape[-1] == 1:
            hint = " Use prediction.squeeze(-1)."
        elif target.ndim == prediction.ndim + 1 and target.shape[-1] == 1:
            hint = " Use target.squeeze(-1)."
        elif prediction.ndim > 1 and prediction.shape[:1] + prediction.shape[2:] == target.shape:
            one = prediction.shape[1] == 1
            hint = " Use prediction.squeeze(1)." if one else " If these are logits of classes, use target.long()."
        raise DataError(
            "prediction and target should have one shape. "
            f"Found prediction {tuple(prediction.shape)} and target {tuple(target.shape)}.{hint}"
        )


def require_last_dimension(prediction: Tensor, target: Tensor, size: int | None, holds: str) -> None:
    """Raise :class:`DataError` unless ``prediction`` is ``target`` with a last dimension of ``size``, at least 2 if None."""
    last = max([2, *prediction.shape[-1:]]) if size is None else size
    if prediction.shape != (*target.shape, last):
        raise DataError(
            f"prediction should have the shape of target with an extra last dimension of {size or 'at least 2'}, {holds}. "
            f"Found prediction {tuple(prediction.shape)} and target {tuple(target.shape)}."
        )


def _into(bounds: tuple[float, float], values: Tensor) -> Tensor:
    """Return values moved into bounds."""
    low, high = bounds
    if low > -math.inf and high < math.inf:
        return low + (high - low) * values.sigmoid()
    if low > -math.inf:
        return low + values.abs()
    return high - values.abs() if high < math.inf else values


class InnerShape(nn.Module):
    """The inner axis: the loss of one sample as a function of its prediction and target.

    A shape never reduces over samples and never sees sample weights or, unless it couples entries, a mask: the criterion
    applies them. A shape can be called alone: ``create("inner", "huber", delta=2.0)(prediction, target)`` returns one loss
    per target entry.

    A shape that couples the entries of a batch (``coupling = "batch"``) or of a sample (``pooled``) must leave out masked
    entries itself: its ``forward`` takes ``valid`` as a third argument, a bool tensor in the shape of the target, or None if
    all entries count. Where ``valid`` is False the criterion passes 0 as prediction and target, and ignores the loss.

    Attributes:
        kinds: kinds of task that it serves, of ``"regression"``, ``"binary"``, ``"multiclass"``.
        coupling: ``"sample"`` if the loss of a sample depends only on that sample, else ``"batch"``. A batch then means the
            samples of one call on one process: losses of micro-batches, or of the ranks of a process group, do not add up to
            the loss of the whole batch, even with ``sync="gradients"``.
        lower_bound: smallest loss, or None if it can be negative without bound. Weightings that take ratios or
            logarithms of losses refuse None.
        trailing: True if a prediction holds several parameters in an extra last dimension.
        pooled: True if ``forward`` gives one loss (N,) per sample, from all entries of its trailing dimensions, for example
            of an image or a list. A sample without a valid entry does not count.
        target_range: bounds, inclusive, within which regression targets make sense.
        prediction_range: the same for predictions.
        detaches: True if it deliberately holds a factor of its loss constant, so that its gradient is not the derivative of
            its value.
        example: options for examples and tests, if the constructor needs some.
    """

    kinds: ClassVar[frozenset[Kind]]
    coupling: ClassVar[Literal["sample", "batch"]] = "sample"
    lower_bound: ClassVar[float | None] = 0.0
    trailing: ClassVar[bool] = False
    pooled: ClassVar[bool] = False
    detaches: ClassVar[bool] = False
    target_range: ClassVar[tuple[float, float]] = (-math.inf, math.inf)
    prediction_range: ClassVar[tuple[float, float]] = (-math.inf, math.inf)
    example: ClassVar[Mapping[str, Any]] = {}

    @property
    def masks(self) -> bool:
        """True if ``forward`` takes the mask of valid entries, because it couples them."""
        return self.pooled or self.coupling == "batch"

    def check(self, prediction: Tensor, target: Tensor) -> None:
        """Check shapes. Runs in every call and must not read values.

        Raises:
            DataError: the shapes do not fit.
        """
        require_same_shape(prediction, target)

    def check_values(self, prediction: Tensor, target: Tensor) -> None:
        """Check the values of valid samples, in the first call of a task and with ``criterion.debug``; it may synchronise.

        Args:
            prediction: predictions, as given to ``forward``; the prediction of a valid entry replaces masked ones.
            target: the target; the label of that entry replaces masked ones.

        Raises:
            DataError: a value is outside what the shape is defined for.
        """

    def weighed(self, target: Tensor) -> Tensor:
        """Return the part of a target that a :class:`TargetWeight` reads, by default the target itself."""
        return target

    def options(self) -> dict[str, Any]:
        """Return the constructor's arguments."""
        return read_options(self)

    def sample(self, kind: Kind, size: tuple[int, ...], generator: torch.Generator, dtype: torch.dtype, /) -> Pair:
        """Draw a typical prediction and target of a kind, for conformance checks and pictures.

        Args:
            kind: one of ``kinds``.
            size: shape of the target, (N, ...). A pooled shape extends (N,) to (N, 4).
            generator: on the CPU.
            dtype: of the prediction, and of a float target.

        Returns:
            the prediction and the target. Override this if inputs are not one number per entry, or for a multiclass task
            three logits at dimension 1.
        """

        def draw(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)

        if self.pooled and len(size) == 1:
            size = (*size, 4)
        noise = draw(*size)
        if kind == "multiclass":
            return 3 * draw(size[0], 3, *size[1:]), (2 * noise.abs()).long().clamp_max(2)
        if kind == "binary":
            return 3 * draw(*size), noise > 0
        return _into(self.prediction_range, 3 * draw(*size)), _into(self.target_range, 2 * noise)

    def forward(self, prediction: Tensor, target: Tensor, /) -> Tensor:
        """Return the unreduced losses, one per target entry, or one per sample if ``pooled``."""
        raise NotImplementedError(f"{type(self).__name__} should define forward(prediction, target)")

    def __call__(self, prediction: Tensor, target: Tensor, valid: Tensor | None = None, /) -> Tensor:
        """Check the shapes and run ``forward``, so that a shape never broadcasts, even if called alone."""
        self.check(prediction, target)
        return self.unchecked(prediction, target, valid)

    def unchecked(self, prediction: Tensor, target: Tensor, valid: Tensor | None = None, /) -> Tensor:
        """Run ``forward`` on tensors that have passed :meth:`check`."""
        call = super().__call__
        losses: Tensor = call(prediction, target) if valid is None else call(prediction, target, valid)
        return losses

    def __repr__(self) -> str:
        return constructor_repr(self)


class TargetWeight(nn.Module):
    """A weight per sample that depends only on the target, for :class:`Reweighted`."""

    kinds: ClassVar[frozenset[Kind]] = REGRESSION
    example: ClassVar[Mapping[str, Any]] = {}

    def options(self) -> dict[str, Any]:
        """Return the constructor's arguments."""
        return read_options(self)

    def check_values(self, target: Tensor) -> None:
        """Check the values of labelled targets, floats in a regression; see :meth:`InnerShape.check_values`."""

    def forward(self, target: Tensor, /) -> Tensor:
        """Return weights >= 0, in the shape of ``target``."""
        raise NotImplementedError(f"{type(self).__name__} should define forward(target)")

    def __repr__(self) -> str:
        return constructor_repr(self)
