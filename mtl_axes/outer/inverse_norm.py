"""Weights from the inverse of the gradient norms, without memory."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from mtl_axes.options import check_choice
from mtl_axes.outer.base import OuterWeighting
from mtl_axes.signals import Signals


class InverseNorm(OuterWeighting):
    r"""Weights that fall with a task's gradient norm n_i on the shared parameters, computed for each window alone.

    ::

        lambda_i = (1 / n_i) / sum_j (1 / n_j)                form="inverse"
                 = (S - n_i) / ((K - 1) S),  S = sum_j n_j    form="complement"

    The inverse makes all products lambda_i n_i equal: every task pulls the shared parameters with the same force. The
    complement, GABA's published form, does so for K = 2 only, where both forms agree; for K > 2 it never exceeds
    1 / (K - 1). A task that is absent or has no gradient gets 0, and the sums run over the others; a single task gets 1.
    Without memory the weights follow the noise of single windows; the stages ``ema`` and ``floor`` reduce it.

    Args:
        form: ``"inverse"`` or ``"complement"``.

    Returns:
        (K,) weights >= 0 that sum to 1.

    Raises:
        OptionError: the form is neither of the two.

    >>> weighting = InverseNorm()
    >>> weighting(Signals(torch.ones(3), norms=torch.tensor([10.0, 1.0, 0.1])))
    tensor([0.0090, 0.0901, 0.9009])

    References:
        The inverse norm is folklore. Up to scale it is the grad_norm scheme of jaxpi (S. Wang et al., "An Expert's Guide
        to Training Physics-informed Neural Networks", 2023), which multiplies it by the sum of the norms and the sum of
        their inverses, and, for K = 2, IMTL-G, ConFIG, Nash-MTL and DB-MTL. The complement is from "Gradient-Aware
        Multi-Task Learning for Predictive Maintenance", chapter 17.
    """

    needs = "norms"
    total = "1"
    memoryless = True
    scaling = "invariant"

    def __init__(self, *, form: Literal["inverse", "complement"] = "inverse") -> None:
        super().__init__()
        self.form = check_choice("form", form, ("complement", "inverse"))

    @property
    def balances(self) -> bool:  # type: ignore[override]
        """True for the inverse."""
        return self.form == "inverse"

    def forward(self, signals: Signals, /) -> Tensor:
        norms, active = signals.norms, signals.active
        assert norms is not None
        members = active.to(norms.dtype)
        if self.form == "inverse":
            inverse = norms.reciprocal() * members
            return torch.where(active.any(), inverse / inverse.sum(), self.current)
        count, total = members.sum(), (norms * members).sum()
        # NaN for a single task, and then not used.
        complement = (total - norms) / ((count - 1) * total) * members
        return torch.where(count > 1, complement, torch.where(count > 0, members, self.current))
