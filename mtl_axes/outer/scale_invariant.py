"""The scale-invariant weighting: the sum of the logarithms of the losses."""

from __future__ import annotations

from torch import Tensor

from mtl_axes.outer.base import OuterWeighting
from mtl_axes.outer.members import positive_losses, subproblem
from mtl_axes.signals import Signals


class ScaleInvariant(OuterWeighting):
    r"""Weights of the gradient of sum_i log L_i: the units of the losses do not matter.

    ::

        lambda_i = d log L_i / d L_i = 1 / L_i

    Every lambda_i L_i is 1, so that the step does not shrink with the losses: lower the learning rate with a schedule. It is
    also the optimum of uncertainty weighting (up to a factor of 1/2) and of IMTL-L, and the closed form of UW-O. An absent
    task gets 0, and so does a loss of exactly 0, which has no gradient. Losses below 1e-30 count as 1e-30.

    Returns:
        (K,) weights, positive for positive losses, with no fixed sum; 1 / L for K = 1, too.

    >>> import torch
    >>> ScaleInvariant()(Signals(torch.tensor([2.0, 0.5])))
    tensor([0.5000, 2.0000])

    References:
        The "scale-invariant" baseline of A. Navon et al., "Multi-Task Learning as a Bargaining Game", 2022; UW-O of
        L. Kirchdorfer et al., "Analytical Uncertainty-Based Loss Weighting in Multi-Task Learning", 2024. Differs from
        the references at a loss of 0, where log L is not finite. LibMTL uses it in the warm-up of STCH, with
        log(L + 1e-20).
    """

    needs = "losses"
    nonnegative = True
    memoryless = True
    scaling = "inverse"
    balances = True

    def forward(self, signals: Signals, /) -> Tensor:
        losses, members = positive_losses(signals)
        return subproblem(1 / losses, members, self.current)
