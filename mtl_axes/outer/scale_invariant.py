"""The sum of the logarithms of the losses."""

from __future__ import annotations

from torch import Tensor

from mtl_axes.outer.base import OuterWeighting
from mtl_axes.outer.members import positive_losses, subproblem
from mtl_axes.signals import Signals

__all__ = ["ScaleInvariant"]


class ScaleInvariant(OuterWeighting):
    r"""The gradient of sum_i log L_i: units of the losses play no part.

    ::

        lambda_i = d log L_i / d L_i = 1 / L_i

    Every lambda_i L_i is 1, so that the step does not shrink as the losses do: lower the learning rate with a schedule.
    Also the optimum of uncertainty weighting (up to its factor of 1/2), of IMTL-L, and what UW-O uses in closed form.
    An absent task gets 0, and so does one whose loss is exactly 0, which has no gradient. Losses below 1e-30 count as 1e-30.

    Returns:
        (K,) weights, positive for positive losses, with no fixed sum; with K = 1 it is 1 / L as well.

    >>> import torch
    >>> ScaleInvariant()(Signals(torch.tensor([2.0, 0.5])))
    tensor([0.5000, 2.0000])

    References:
        The "scale-invariant" baseline of A. Navon et al., "Multi-Task Learning as a Bargaining Game", 2022; UW-O of
        L. Kirchdorfer et al., "Analytical Uncertainty-Based Loss Weighting in Multi-Task Learning", 2024. Differs from
        the references at a loss of 0, where log L is not finite. TorchJD 0.18 and LibMTL have no such method; LibMTL
        uses it in the warm-up of STCH, with log(L + 1e-20).
    """

    needs = "losses"
    nonnegative = True
    memoryless = True
    scaling = "inverse"
    balances = True

    def forward(self, signals: Signals, /) -> Tensor:
        losses, members = positive_losses(signals)
        return subproblem(1 / losses, members, self.current)
