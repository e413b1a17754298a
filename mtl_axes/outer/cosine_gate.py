"""Cosine gating: an auxiliary task counts by how far its gradient agrees with the main task's."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from mtl_axes.outer.geometry import cosines
from mtl_axes.outer.main_task import MainTaskWeighting
from mtl_axes.signals import Signals


class CosineGate(MainTaskWeighting):
    r"""Weight 1 for the main task; for every other the cosine of its gradient with the main one's, or 0 if negative.

    ::

        lambda_main = 1
        lambda_i    = max(0, G_im / sqrt(G_ii G_mm))        G (K, K) the Gramian, m the main task

    Use it if one task is what matters and the others should help it: an auxiliary task is shut out while it is in conflict.
    It does not balance magnitudes, so that a long auxiliary gradient with a small cosine may still dominate.

    Gates start at 1. A gate is updated if the main task and its own task are active. If the main task is absent, has no
    gradient or is not finite, all gates stay unchanged; the gate of an absent auxiliary task stays, too. Nothing is read on
    the host.

    Args:
        main: name of the main task, or its position.

    Returns:
        (K,) weights in [0, 1].

    Raises:
        OptionError: ``main`` is neither a name nor a position; on binding, no task is called ``main``.

    >>> import torch
    >>> jacobian = torch.tensor([[3.0, 4.0], [0.0, 2.0], [0.0, -5.0]])
    >>> CosineGate(main=0)(Signals(torch.ones(3), gramian=jacobian @ jacobian.T))
    tensor([1.0000, 0.8000, 0.0000])

    References:
        Y. Du et al., "Adapting Auxiliary Losses Using Gradient Similarity", 2018, its weighted version; the unweighted one
        has 1 in place of every positive cosine.
    """

    needs = "gramian"

    def __init__(self, *, main: str | int) -> None:
        super().__init__(main)

    def forward(self, signals: Signals, /) -> Tensor:
        assert signals.gramian is not None
        _, unit = cosines(signals.gramian)
        return self.beside_main(unit[self._position].clamp(0, 1), self.moving(signals))

    def diagnostics(self) -> Mapping[str, Tensor]:
        return {"gated": self.current == 0}
