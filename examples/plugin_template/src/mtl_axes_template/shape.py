"""An inner shape: errors within a tolerance cost almost nothing, larger errors cost their excess."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from mtl_axes import InnerShape
from mtl_axes.options import check_number

__all__ = ["Tolerance"]


class Tolerance(InnerShape):
    """Smooth band around the target: s softplus((e - over) / s) + s softplus((-e - under) / s), e = prediction - target.

    Beyond the band the loss grows linearly with the excess; within the band it is nearly flat: in the middle, for
    over = under = a, it is 2 s log(1 + exp(-a / s)). As ``softness`` s goes to 0 it becomes the epsilon-insensitive loss.
    The two sides may differ, for example if a late prediction is worse than an early one.

    Args:
        over: tolerance for a prediction above its target, in target units, >= 0.
        under: tolerance for a prediction below its target, in target units, >= 0.
        softness: width of the bend at both ends, in target units, > 0.

    Returns:
        (N, ...) losses > 0, in target units.

    Raises:
        OptionError: a limit is negative, or softness is not positive.

    >>> import torch
    >>> Tolerance(over=5.0, under=10.0, softness=1.0)(torch.tensor([12.0, 25.0, 0.0]), torch.tensor([10.0, 10.0, 20.0]))
    tensor([ 0.0486, 10.0000, 10.0000])

    References:
        O. Dekel, S. Shalev-Shwartz, Y. Singer, "Smooth Epsilon-Insensitive Regression by Loss Symmetrization", 2005.
        Differs from the reference in having two limits and a softness, which is 1 there.
    """

    kinds = frozenset({"regression"})

    def __init__(self, *, over: float = 1.0, under: float = 1.0, softness: float = 0.5) -> None:
        super().__init__()
        self.over = check_number("over", over, low=0.0)
        self.under = check_number("under", under, low=0.0)
        self.softness = check_number("softness", softness, low=0.0, low_open=True)

    def forward(self, prediction: Tensor, target: Tensor, /) -> Tensor:
        error = prediction - target
        above = F.softplus((error - self.over) / self.softness)
        below = F.softplus((-error - self.under) / self.softness)
        return self.softness * (above + below)
