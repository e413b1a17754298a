"""GLS: geometric loss strategy."""

from __future__ import annotations

from torch import Tensor

from mtl_axes.outer.base import OuterWeighting
from mtl_axes.outer.members import positive_losses, subproblem
from mtl_axes.signals import Signals


class GLS(OuterWeighting):
    r"""Weights of the gradient of the geometric mean of the losses: every task counts by its relative change.

    ::

        GLS      = exp(mean_A(log L)) = (prod_A L_i)^(1/k)
        lambda_i = d GLS / d L_i = GLS / (k L_i)

    A are the k active tasks with a positive loss, every other task gets 0. All lambda_i L_i are equal, and rescaling one
    loss changes no ratio between the tasks' contributions. The sum of the weights is not fixed: it is the geometric over the
    harmonic mean of the losses, at least 1. A loss of exactly 0 has no gradient; its task is left out of the mean, which
    would be 0 with it. Losses below 1e-30 count as 1e-30, and weights end at 1e30.

    Returns:
        (K,) weights, positive for positive losses.

    >>> import torch
    >>> GLS()(Signals(torch.tensor([2.0, 0.5])))
    tensor([0.2500, 1.0000])

    References:
        S. Chennupati, G. Sistu, S. Yogamani, S. A. Rawashdeh, "MultiNet++: Multi-Stream Feature Aggregation and Geometric
        Loss Strategy for Multi-Task Learning", 2019. TorchJD 0.18 (GeometricMean) and LibMTL have the same gradient.
        Differs from them: for the losses (1, 2, 0.5, 8) LibMTL reports the weights (0.03, 0.06, 0.02, 0.25), which are
        L_i / (K prod L), although its gradient has (0.42, 0.21, 0.84, 0.05) as here; its product of eight losses of 1e-6
        underflows in float32; a loss of exactly 0 makes both of their gradients NaN.
    """

    needs = "losses"
    nonnegative = True
    memoryless = True
    scaling = "invariant"
    balances = True

    def forward(self, signals: Signals, /) -> Tensor:
        losses, members = positive_losses(signals)
        count = members.sum().clamp_min(1)
        log = losses.log()  # 0 beside the members
        return subproblem((log.sum() / count - log).exp() / count, members, self.current)
