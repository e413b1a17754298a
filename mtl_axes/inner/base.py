"""The contract of an inner shape and of a target weight."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from torch import Tensor, nn

from mtl_axes.errors import DataError
from mtl_axes.options import constructor_repr, read_options
from mtl_axes.signals import Kind

__all__ = ["InnerShape", "TargetWeight", "require_same_shape"]


def require_same_shape(prediction: Tensor, target: Tensor) -> None:
    """Raise :class:`DataError` unless both have one shape. Broadcasting (N, 1) against (N,) would give N x N losses."""
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


class InnerShape(nn.Module):
    """The inner axis: the loss of one sample as a function of its prediction and target.

    A shape never reduces, never masks and never sees sample weights; the criterion does that around it. It may be called
    on its own: ``create("inner", "huber", delta=2.0)(prediction, target)`` returns one loss per target entry.

    Attributes:
        kinds: kinds of task that it serves, of ``"regression"``, ``"binary"``, ``"multiclass"``.
        coupling: ``"sample"`` when the loss of a sample depends on that sample alone, else ``"batch"``.
        lower_bound: smallest loss, or None when it can be negative without bound. Weightings that take ratios or
            logarithms of losses refuse None.
        trailing: True when several parameters of a prediction lie in an extra last dimension.
    """

    kinds: ClassVar[frozenset[Kind]]
    coupling: ClassVar[Literal["sample", "batch"]] = "sample"
    lower_bound: ClassVar[float | None] = 0.0
    trailing: ClassVar[bool] = False

    def check(self, prediction: Tensor, target: Tensor) -> None:
        """Check shapes, from metadata alone: it runs in every call and must not read values.

        Raises:
            DataError: the shapes do not fit.
        """
        require_same_shape(prediction, target)

    def check_values(self, prediction: Tensor, target: Tensor) -> None:
        """Check the values of valid samples. Runs in the first call of a task and with ``debug=True``; it may synchronise.

        Args:
            prediction: predictions, as given to ``forward``.
            target: the target; where it is masked, a label from another place stands in.

        Raises:
            DataError: a value is outside what the shape is defined for.
        """

    def options(self) -> dict[str, Any]:
        """Return the constructor's arguments."""
        return read_options(self)

    def forward(self, prediction: Tensor, target: Tensor, /) -> Tensor:
        """Return the unreduced loss, one per target entry."""
        raise NotImplementedError

    def __call__(self, prediction: Tensor, target: Tensor, /) -> Tensor:
        """Check the shapes and run ``forward``: used on its own, a shape must not broadcast either."""
        self.check(prediction, target)
        return self.unchecked(prediction, target)

    def unchecked(self, prediction: Tensor, target: Tensor, /) -> Tensor:
        """Run ``forward`` on tensors that have passed :meth:`check` already."""
        losses: Tensor = super().__call__(prediction, target)
        return losses

    def __repr__(self) -> str:
        return constructor_repr(self)


class TargetWeight(nn.Module):
    """A weight per sample that depends on the target alone, for :class:`Reweighted`."""

    kinds: ClassVar[frozenset[Kind]] = frozenset({"regression"})

    def check_values(self, target: Tensor) -> None:
        """Check the values of labelled targets; see :meth:`InnerShape.check_values`."""

    def forward(self, target: Tensor, /) -> Tensor:
        """Return weights >= 0, in the shape of ``target``."""
        raise NotImplementedError

    def __repr__(self) -> str:
        return constructor_repr(self)
