"""A stage that fixes the sum of the weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from mtl_axes.options import check_choice
from mtl_axes.outer.base import OuterWeighting
from mtl_axes.outer.stages import Stage


class Rescaled(Stage):
    r"""The weights of another weighting, scaled to the sum 1 or K, so that methods share an effective learning rate.

    ::

        lambda = w T / sum_j w_j,  T = 1 or K      if the sum is positive
               = w                                 otherwise

    ``w`` are the weights of the base; the ratios between them stay. Weights of both signs can have a sum that is zero or
    negative. They are left unchanged then, because dividing by a negative sum would reverse every gradient. Reference
    weights, which evaluation uses, are scaled in the same way. If the base gives absent tasks the weight 0, K is the number
    of tasks that take part.

    Args:
        base: the weighting to rescale: a name, ``{"name": ..., **options}``, or an instance that was not called yet.
        total: ``"1"`` or ``"K"``, the number of tasks.

    Returns:
        (K,) weights that sum to 1 or K.

    Raises:
        OptionError: the total is neither; the base was called already, or its weights are learned.

    >>> import torch
    >>> from mtl_axes import Signals
    >>> weighting = Rescaled("db_mtl", total="K")
    >>> weighting(Signals(torch.tensor([4.0, 1.0]), norms=torch.tensor([8.0, 1.0])))
    tensor([0.2222, 1.7778])
    """

    example: ClassVar[Mapping[str, Any]] = {"base": "db_mtl", "total": "1"}

    def __init__(self, base: OuterWeighting | Mapping[str, Any] | str, *, total: Literal["1", "K"] = "1") -> None:
        super().__init__(base)
        check_choice("total", total, ("1", "K"))
        self._total = total

    def options(self) -> dict[str, Any]:
        return {**super().options(), "total": self._total}

    @property
    def total(self) -> Literal["1", "K"] | None:  # type: ignore[override]
        """None if weights can be negative, because their sum can be negative, too."""
        return None if self.base.sign == "any" else self._total

    @property
    def scaling(self) -> Literal["invariant", "inverse"] | None:  # type: ignore[override]
        """Invariant even if the weights of the base are divided by c, because their sum is, too."""
        return "invariant" if self.total and self.base.scaling == "inverse" else super().scaling

    def reshaped(self, weights: Tensor, members: Tensor | None, /) -> Tensor:
        scale: Tensor | float = 1.0
        if self._total == "K":
            scale = float(weights.shape[0]) if members is None else members.sum()
        total = weights.sum()
        # A single weight times its reciprocal can miss 1 by a rounding.
        scaled = weights * (total.reciprocal() * scale) if weights.shape[0] > 1 else torch.ones_like(weights)
        return torch.where(total > 0, scaled, weights)

    def reference(self) -> Tensor:
        return self.reshaped(self.base.reference(), None)
