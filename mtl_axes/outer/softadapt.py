"""SoftAdapt: weights from the slopes of the losses."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from mtl_axes.options import check_choice, check_number
from mtl_axes.outer.base import OuterWeighting
from mtl_axes.outer.members import LEAST, MOST, redistribute
from mtl_axes.signals import Signals, TaskInfo

Variant = Literal["plain", "normalized", "loss_weighted"]


class SoftAdapt(OuterWeighting):
    r"""Softmax of how fast each loss rises: tasks that get worse, or improve more slowly than others, gain.

    ::

        s_i      = L_i(t) - L_i(t - 1)                                        slope
        lambda_i = exp(beta s_i) / sum_j exp(beta s_j)                        variant="plain"
        lambda_i = the same of s_i / sum_j |s_j|                              variant="normalized"
        lambda_i = f_i exp(beta s_i) / sum_j f_j exp(beta s_j)                variant="loss_weighted"
        f_i      = (L_i(t) + L_i(t - 1)) / 2

    Slopes have the unit of the loss: in the plain variant a loss in large units decides alone. The normalized variant does
    not depend on a common unit; its slopes are in [-1, 1], so that the ratio of two weights is at most exp(2 beta). Losses
    of single batches make noisy slopes; a window of several batches (``accumulate``) averages them.

    Weights are 1/K until a task has had two windows. An absent task keeps its last loss and its weight, and the others share
    the sum that they had. If all slopes are 0, weights are even.

    Args:
        beta: a number; above 0 slow tasks gain, below 0 they lose.
        variant: ``"plain"``, ``"normalized"`` or ``"loss_weighted"``, which refuses losses that can be negative.

    Returns:
        (K,) non-negative weights that sum to 1.

    Raises:
        OptionError: an option is outside its range.

    >>> weighting = SoftAdapt(variant="normalized", beta=1.0)
    >>> for losses in ([2.0, 5.0], [1.0, 4.5]):
    ...     weights = weighting(Signals(torch.tensor(losses)))
    >>> weights
    tensor([0.4174, 0.5826])

    References:
        A. A. Heydari, C. A. Thompson, A. Mehmood, "SoftAdapt: Techniques for Adaptive Loss Weighting of Neural Networks
        with Multi-Part Loss Functions", 2019. Differs from the authors' package: slopes are differences of two windows,
        while the package fits up to five points; slopes are normalised by the sum of their absolute values, as in the
        paper, and not by their sum, which reverses the order of the tasks when losses fall. In physicsnemo-sym "SoftAdapt"
        is K softmax(L(t) / L(t - 1)), which is ``relobralo`` with beta = 0 and temperature = 1.
    """

    needs = "losses"
    total = "1"

    last: Tensor
    seen: Tensor

    def __init__(self, *, beta: float = 0.1, variant: Variant = "plain") -> None:
        super().__init__()
        self.beta = check_number("beta", beta)
        self.variant = check_choice("variant", variant, ("plain", "normalized", "loss_weighted"))
        # What a variant claims beyond the others.
        if variant == "loss_weighted":
            self.nonnegative = True  # type: ignore[misc]
        elif variant == "normalized":
            self.scaling = "invariant"  # type: ignore[misc]

    def bind(self, tasks: tuple[TaskInfo, ...]) -> None:
        super().bind(tasks)
        self.register_buffer("last", torch.zeros(len(tasks), dtype=self.dtype))
        self.register_buffer("seen", torch.zeros(len(tasks), dtype=torch.bool))

    def forward(self, signals: Signals, /) -> Tensor:
        losses, active = signals.losses, signals.active
        moves = active & self.seen
        slopes = torch.where(moves, losses - self.last, 0.0)
        if self.variant == "normalized":
            # Scaled first, so that a sum of large slopes stays finite and a sum of small ones exact.
            slopes = slopes / slopes.abs().amax().clamp_min(torch.finfo(slopes.dtype).tiny)
            slopes = slopes / slopes.abs().sum().clamp_min(1.0)
        # The clamp avoids an overflow and changes nothing: of logits so far apart a softmax keeps the larger one only.
        logits = (self.beta * slopes).clamp(-MOST, MOST)
        if self.variant == "loss_weighted":
            logits = logits + ((losses + self.last) / 2).clamp_min(LEAST).log()
        torch.where(active, losses, self.last, out=self.last)
        self.seen.logical_or_(active)
        logits = torch.where(moves, logits, -torch.inf)
        return redistribute(logits.softmax(0), moves, self.current, 1.0)
