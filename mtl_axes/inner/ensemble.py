"""Shapes of an ensemble, its members in a last dimension: crps_ensemble."""

from __future__ import annotations

import torch
from torch import Tensor

from mtl_axes.errors import DataError
from mtl_axes.inner.base import REGRESSION, InnerShape
from mtl_axes.options import check_choice
from mtl_axes.signals import Kind

__all__ = ["CRPSEnsemble"]


class CRPSEnsemble(InnerShape):
    """Continuous ranked probability score of an ensemble: its mean error, less half of its mean spread.

    ::

        l = 1/M sum_i |x_i - y| - 1/(2 M^2) sum_ij |x_i - x_j|
                                - 1/(2 M (M - 1)) sum_ij |x_i - x_j|   fair=True
        dl/dx_i = sign(x_i - y) / M - (#{j: x_j < x_i} - #{j: x_j > x_i}) / M^2

    The members lie in the last dimension. The sum over pairs is read off the ranks, in M log M operations; equal members
    get equal gradients. The plain form scores the ensemble as the distribution that it is, and prefers it too narrow when
    its members are draws from another one; the fair form is unbiased for that one. Its minimum for two members is a whole
    interval.

    Args:
        fair: divide the spread by M (M - 1) and not by M^2.
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
        scores for ensemble forecasts", 2014. Equal to properscoring.crps_ensemble, to 2e-16, which has no fair form.
    """

    kinds = REGRESSION
    trailing = True

    def __init__(self, *, fair: bool = False) -> None:
        super().__init__()
        check_choice("fair", fair, (False, True))
        self.fair = fair

    def check(self, prediction: Tensor, target: Tensor) -> None:
        if prediction.shape[:-1] != target.shape or prediction.ndim == 0 or prediction.shape[-1] < 2:
            raise DataError(
                "prediction should have the shape of target with at least 2 members in an extra last dimension. "
                f"Found prediction {tuple(prediction.shape)} and target {tuple(target.shape)}."
            )

    def sample(
        self, kind: Kind, size: tuple[int, ...], generator: torch.Generator, dtype: torch.dtype, /
    ) -> tuple[Tensor, Tensor]:
        target = super().sample(kind, size, generator, dtype)[1]
        return super().sample(kind, (*size, 5), generator, dtype)[0], target

    def forward(self, prediction: Tensor, target: Tensor, /) -> Tensor:
        # Of errors, not of members: where these are large and close, their ranks times them would cancel.
        errors = (prediction - target.unsqueeze(-1)).contiguous()
        ordered = errors.detach().sort(-1).values
        smaller = torch.searchsorted(ordered, errors.detach())
        not_larger = torch.searchsorted(ordered, errors.detach(), right=True)
        count = errors.shape[-1]
        rank = (smaller + not_larger - count).to(errors.dtype)
        pairs = count * (count - 1) if self.fair else count * count
        # Rounding may leave an ensemble around its target a digit below 0.
        return (errors.abs().mean(-1) - (rank * errors).sum(-1) / pairs).clamp_min(0)
