"""DB-MTL: logarithms of the losses, and gradients made as large as the largest."""

from __future__ import annotations

import torch
from torch import Tensor

from mtl_axes.outer.base import OuterWeighting
from mtl_axes.signals import Signals

_SMALLEST = 1e-12


class DBMTL(OuterWeighting):
    r"""Weights that give the gradient of every log-loss the size of the largest one.

    ::

        lambda_i = max_j(n_j / L_j) / n_i

    n_i is the gradient norm on the shared parameters, L_i the loss, so that n_i / L_i is the gradient norm of log L_i. The
    logarithm cancels from the direction: the weights are the inverse norm, times a step size that grows while the losses
    fall, because log L has no bound. Counter it with a learning rate schedule, or with the stage ``rescaled``, which leaves
    the inverse norm. The maximum runs over the active tasks; the others get 0.

    Returns:
        (K,) positive weights; all lambda_i n_i are equal.

    >>> weighting = DBMTL()
    >>> weighting(Signals(torch.tensor([2.0, 0.5]), norms=torch.tensor([4.0, 6.0])))
    tensor([3., 2.])

    References:
        B. Lin et al., "Dual-Balancing for Multi-Task Learning", 2023. Differs from the reference in beta = 0: the average of
        whole gradients over the steps, which is no weight per task, is left out (with LibMTL's beta = 0.9 the first update
        is a tenth of this one, because its average starts at zero). Losses below 1e-12 count as 1e-12, while LibMTL adds
        1e-8 to every loss. The heads get the weights, too; in LibMTL they get the gradient of the log-loss.
    """

    needs = "norms"
    nonnegative = True
    sign = "positive"
    memoryless = True
    scaling = "inverse"
    balances = True

    def forward(self, signals: Signals, /) -> Tensor:
        norms, active = signals.norms, signals.active
        assert norms is not None
        largest = torch.where(active, norms / signals.losses.clamp_min(_SMALLEST), 0.0).max()
        return torch.where(active.any(), torch.where(active, largest / norms, 0.0), self.current)
