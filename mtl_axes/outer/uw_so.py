"""UW-SO: soft optimal uncertainty weighting."""

from __future__ import annotations

import torch
from torch import Tensor

from mtl_axes.options import check_number
from mtl_axes.outer.base import OuterWeighting
from mtl_axes.outer.members import LEAST, positive_losses, subproblem
from mtl_axes.signals import Signals


class UWSO(OuterWeighting):
    r"""Softmax of the inverse losses: uncertainty weighting at its optimum, with the sum 1.

    ::

        lambda_i = softmax_A((1 / L_i) / temperature)

    A are the active tasks with a positive loss, every other task gets 0. The optimum of uncertainty weighting, 1 / (2 L), is
    computed and not learned, so that nothing lags and the optimizer needs no parameter. The temperature has the unit of
    1 / L: it has to be tuned, and a task whose loss falls far below 1 / temperature takes all the weight. A loss of exactly
    0 has no gradient and is left out of the softmax.

    Args:
        temperature: > 0; the larger, the more even the weights. The paper tunes it for each data set.

    Returns:
        (K,) non-negative weights that sum to 1.

    Raises:
        OptionError: the temperature is not positive.

    >>> UWSO(temperature=1.0)(Signals(torch.tensor([2.0, 0.5])))
    tensor([0.1824, 0.8176])
    >>> UWSO(temperature=10.0)(Signals(torch.tensor([2.0, 0.5])))
    tensor([0.4626, 0.5374])

    References:
        L. Kirchdorfer, C. Elich, S. Kutsche, H. Stuckenschmidt, L. Schott, J. M. Koehler, "Analytical Uncertainty-Based
        Loss Weighting in Multi-Task Learning", 2024. Differs from the reference at a loss of 0, where 1 / L is
        not finite.
    """

    needs = "losses"
    nonnegative = True
    total = "1"
    memoryless = True

    def __init__(self, *, temperature: float = 1.0) -> None:
        super().__init__()
        self.temperature = check_number("temperature", temperature, low=0.0, low_open=True)

    def forward(self, signals: Signals, /) -> Tensor:
        losses, members = positive_losses(signals)
        # The clamp avoids an overflow at a low temperature, and changes nothing: a softmax then keeps the largest only.
        logits = 1 / (losses * self.temperature).clamp_min(LEAST)
        return subproblem(torch.where(members, logits, -torch.inf).softmax(0), members, self.current)
