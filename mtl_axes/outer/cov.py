"""CoV: weighting by the coefficient of variation."""

from __future__ import annotations

import torch
from torch import Tensor

from mtl_axes.outer.base import OuterWeighting
from mtl_axes.outer.members import positive_losses, redistribute
from mtl_axes.signals import Signals, TaskInfo

_HIGH = 1e15
_EPS = 1e-8


class CoV(OuterWeighting):
    r"""Weights in proportion to the variation of each loss relative to its mean: a constant loss needs no more work.

    ::

        l_i      = L_i(t) / mean_i(L before t)               loss ratio, clamped to 1e15
        c_i      = sqrt(var_i(l) + 1e-8) / mean_i(l)         coefficient of variation, over all windows so far
        lambda_i = c_i / sum_j c_j

    Means and variances are updated by Welford's algorithm. The unit of a loss cancels, while the weights multiply the losses
    themselves: losses of different magnitude are not balanced. A loss that varies by noise alone gains, too.

    The first ratio of a task is 1, and one window has no variance (0/0 in the formula): weights are 1/K until a task has had
    two. A task without a loss in a window, or with a loss of exactly 0, keeps its statistics and its weight, and the others
    share the sum that they had.

    Returns:
        (K,) positive weights that sum to 1.

    >>> weighting = CoV()
    >>> for losses in ([2.0, 5.0], [1.0, 4.0], [0.5, 4.0]):
    ...     weights = weighting(Signals(torch.tensor(losses)))
    >>> weights
    tensor([0.8355, 0.1645])

    References:
        R. Groenendijk, S. Karaoglu, T. Gevers, T. Mensink, "Multi-Loss Weighting with Coefficient of Variations", 2021.
        Differs from the authors' code: weights use the statistics of their own window, as in the paper, while the code is
        one window late (its weights in window t + 1 equal these in window t to 1e-12). The 1e-8 is from the code; it gives
        a constant loss a variation of 1e-4.
    """

    needs = "losses"
    nonnegative = True
    total = "1"
    sign = "positive"
    scaling = "invariant"

    mean_loss: Tensor
    mean_ratio: Tensor
    spread: Tensor
    windows: Tensor

    def bind(self, tasks: tuple[TaskInfo, ...]) -> None:
        super().bind(tasks)
        for name in ("mean_loss", "mean_ratio", "spread", "windows"):
            self.register_buffer(name, torch.zeros(len(tasks), dtype=self.dtype))

    def forward(self, signals: Signals, /) -> Tensor:
        losses, members = positive_losses(signals)
        ratio = torch.where(self.windows > 0, losses / self.mean_loss, 1.0).clamp_max(_HIGH)
        self.windows.add_(members)
        count = self.windows.clamp_min(1)
        off = ratio - self.mean_ratio
        mean_ratio = self.mean_ratio + off / count
        spread = self.spread + off * (ratio - mean_ratio)
        for state, value in (
            (self.mean_loss, self.mean_loss + (losses - self.mean_loss) / count),
            (self.mean_ratio, mean_ratio),
            (self.spread, spread),
        ):
            torch.where(members, value, state, out=state)
        variation = (self.spread / count + _EPS).sqrt() / torch.where(self.windows > 0, self.mean_ratio, 1.0)
        return redistribute(variation, members & (self.windows > 1), self.current, 1.0)
