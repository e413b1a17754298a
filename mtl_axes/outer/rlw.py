"""Random loss weighting."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from mtl_axes.options import check_choice, check_number
from mtl_axes.outer.base import OuterWeighting
from mtl_axes.outer.draws import Draws
from mtl_axes.outer.members import subproblem
from mtl_axes.signals import Signals

__all__ = ["RLW"]


class RLW(OuterWeighting):
    r"""Weights drawn anew in every window: the baseline that asks whether an adaptive weighting adapts to anything.

    ::

        lambda = softmax(z), z_i ~ N(0, 1)        distribution="normal"
        lambda ~ uniform on the simplex           distribution="dirichlet"

    In expectation every weight is 1/K; one draw of the normal kind spreads by 0.222 around 0.333 for K = 3, the other by
    0.236. The generator belongs to the weighting: it is seeded alike on every rank, saved with the state, and untouched by
    what else draws random numbers. An absent task gets 0, the others a draw of the smaller problem.

    Args:
        distribution: ``"normal"`` (the published default) or ``"dirichlet"``, with concentration 1.
        seed: of the sequence of draws, an integer >= 0.

    Returns:
        (K,) positive weights that sum to 1.

    Raises:
        OptionError: an option is outside its range.

    >>> weighting = RLW(seed=0)
    >>> weighting(Signals(torch.ones(3)))
    tensor([0.8446, 0.1349, 0.0205])

    References:
        B. Lin, F. Ye, Y. Zhang, I. W. Tsang, "Reasonable Effectiveness of Random Weighting: A Litmus Test for Multi-Task
        Learning", 2022. The draws of seed 0 are those of LibMTL and of TorchJD 0.18 after ``torch.manual_seed(0)`` in
        float64, (0.8446, 0.1349, 0.0205) first. Differs from both in that its generator is its own and part of the state;
        theirs is the global one, so that a data loader or a dropout layer changes the weights and a resumed run draws
        others. As there, weights sum to 1, and the step is 1/K of that of the plain sum.
    """

    needs = "losses"
    total = "1"
    sign = "positive"
    memoryless = True
    symmetric = False
    scaling = "invariant"
    traceable = False

    def __init__(self, *, distribution: Literal["normal", "dirichlet"] = "normal", seed: int = 0) -> None:
        super().__init__()
        check_choice("distribution", distribution, ("normal", "dirichlet"))
        self.distribution = distribution
        self.seed = int(check_number("seed", seed, low=0, integer=True))
        self.draws = Draws(self.seed)

    def forward(self, signals: Signals, /) -> Tensor:
        active, losses = signals.active, signals.losses
        if self.distribution == "normal":
            logits = self.draws.normal((signals.size,), losses)
        else:
            # Exponential variates over their sum are uniform on the simplex, those of a subset on its own simplex. The
            # ends of the interval, where one is infinite or all could be 0, are left out.
            logits = (-self.draws.uniform((signals.size,), losses).clamp(1e-12, 1 - 1e-7).log()).log()
        return subproblem(torch.where(active, logits, -torch.inf).softmax(0), active, self.current)
