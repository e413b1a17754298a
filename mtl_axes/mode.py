"""The mode of a call, decided once at its start."""

from __future__ import annotations

from typing import Literal, NamedTuple

__all__ = ["Mode"]


class Mode(NamedTuple):
    """What a call of a criterion is.

    Attributes:
        kind: ``"training"`` updates the weighting; ``"held"`` is a training call within ``hold()``, ``"after_step"`` any
            call within ``after_step()``, and ``"evaluation"`` a call in ``eval()`` or without gradients.
        compiled: True if torch.compile traces the call.
    """

    kind: Literal["training", "held", "evaluation", "after_step"]
    compiled: bool
