"""Ensemble shapes, with the members in a last dimension: crps_ensemble."""

from __future__ import annotations

import torch
from torch import Tensor

from mtl_axes.inner.base import REGRESSION, InnerShape, require_last_dimension
from mtl_axes.options import check_choice
from mtl_axes.signals import Kind

__all__ = ["CRPSEnsemble"]


class CRPSEnsemble(InnerShape):
    """Continuous ranked probability score of an ensemble: its mean error, less half of its mean spread.

    ::

        l = 1/M sum_i |x_i - y| - 1/(2 M^2) sum_ij |x_i - x_j|
                                - 1/(2 M (M - 1)) sum_ij |x_i - x_j|   fair=True
        dl/dx_i = sign(x_i - y) / M - (#{j: x_j < x_i} - #{j: x_j > x_i}) / M^2

    The members lie in the last dimension. The sum over pairs is computed from the ranks, in M log M operations; equal
    members get equal gradients. The plain form treats the ensemble as the whole distribution. If the members are draws
    from a distribution, it prefers too narrow an ensemble, while the fair form is unbiased. The minimum of the fair form
    for two members is a whole interval.

    Args:
        fair: divide the spread by M (M - 1) instead of M^2.
        prediction: (N, ..., M) members, M >= 2.
        target: (N, ...) floats.

    Returns:
        (N, ...) losses >= 0, in target units.

    Raises:
        OptionError: fair is not a bool.
        DataError: the prediction has no last dimension of at least 2.

    >>> CRPSEnsemble()(torch.tensor([[8.0, 12.0, 15.0], [29.0, 30.0, 31.0]]), torch.tensor([10.0, 30.0]))
    tensor([1.4444, 0.2222])

    References:
        T. Gneiting, A. E. Raftery, "Strictly Proper Scoring Rules, Prediction, and Estimation", 2007; C. A. T. Ferro, "Fair
        scores for ensemble forecasts", 2014. The plain form is equal to properscoring.crps_ensemble, to 2e-16, which has no
        fair form.
    """

    kinds = REGRESSION
    trailing = True

    def __init__(self, *, fair: bool = False) -> None:
        super().__init__()
        check_choice("fair", fair, (False, True))
        self.fair = fair

    def check(self, prediction: Tensor, target: Tensor) -> None:
        require_last_dimension(prediction, target, None, "one entry per member")

    def sample(
        self, kind: Kind, size: tuple[int, ...], generator: torch.Generator, dtype: torch.dtype, /
    ) -> tuple[Tensor, Tensor]:
        target = super().sample(kind, size, generator, dtype)[1]
        return super().sample(kind, (*size, 5), generator, dtype)[0], target

    def forward(self, prediction: Tensor, target: Tensor, /) -> Tensor:
        # Ranks times errors, not times members: large and close members would cancel.
        errors = (prediction - target.unsqueeze(-1)).contiguous()
        ordered = errors.detach().sort(-1).values
        smaller = torch.searchsorted(ordered, errors.detach())
        not_larger = torch.searchsorted(ordered, errors.detach(), right=True)
        count = errors.shape[-1]
        rank = (smaller + not_larger - count).to(errors.dtype)
        pairs = count * (count - 1) if self.fair else count * count
        # Rounding may give a value just below 0.
        return (errors.abs().mean(-1) - (rank * errors).sum(-1) / pairs).clamp_min(0)
