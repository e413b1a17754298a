"""RLW: random loss weighting."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from mtl_axes.options import check_choice, check_integer
from mtl_axes.outer.base import OuterWeighting
from mtl_axes.outer.draws import Draws
from mtl_axes.outer.members import subproblem
from mtl_axes.signals import Signals


class RLW(OuterWeighting):
    r"""Random weights in every window: the baseline that shows whether an adaptive weighting adapts to anything.

    ::

        lambda = softmax(z), z_i ~ N(0, 1)        distribution="normal"
        lambda ~ uniform on the simplex           distribution="dirichlet"

    In expectation every weight is 1/K. For K = 3 the standard deviation around 0.333 is 0.222 for ``"normal"``, 0.236 for
    ``"dirichlet"``. The generator belongs to the weighting: it has the same seed on every rank, is saved with the state, and
    no other random draws change it. An absent task gets 0, the others a draw of the smaller problem.

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
        Learning", 2022. Seed 0 draws what LibMTL and TorchJD 0.18 draw after ``torch.manual_seed(0)`` in float64,
        (0.8446, 0.1349, 0.0205) first. Differs from both in having its own generator in the state; they use the global one,
        so that a data loader or a dropout layer changes the weights and a resumed run draws others. As there, weights sum
        to 1, and the step is 1/K of the step of the plain sum.
    """

    total = "1"
    sign = "positive"
    memoryless = True
    symmetric = False
    scaling = "invariant"
    traceable = False

    def __init__(self, *, distribution: Literal["normal", "dirichlet"] = "normal", seed: int = 0) -> None:
        super().__init__()
        self.distribution = check_choice("distribution", distribution, ("normal", "dirichlet"))
        self.seed = check_integer("seed", seed)
        self.draws = Draws(self.seed)

    def forward(self, signals: Signals, /) -> Tensor:
        active, losses = signals.active, signals.losses
        if self.distribution == "normal":
            logits = self.draws.normal((signals.size,), losses)
        else:
            # Exponential variates over their sum are uniform on the simplex, and those of a subset on its simplex. The ends
            # of the interval are left out, because a variate could be infinite, or all 0.
            logits = (-self.draws.uniform((signals.size,), losses).clamp(1e-12, 1 - 1e-7).log()).log()
        return subproblem(torch.where(active, logits, -torch.inf).softmax(0), active, self.current)
