"""SoftAdapt: weights from the slopes of the losses."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from mtl_axes.options import check_choice, check_number
from mtl_axes.outer.base import OuterWeighting
from mtl_axes.outer.members import LEAST, MOST, redistribute
from mtl_axes.signals import Signals, TaskInfo

__all__ = ["SoftAdapt"]

Variant = Literal["plain", "normalized", "loss_weighted"]


class SoftAdapt(OuterWeighting):
    r"""A softmax of how fast each loss rises: tasks that get worse, or better more slowly than others, gain.

    ::

        s_i      = L_i(t) - L_i(t - 1)                                        slope
        lambda_i = exp(beta s_i) / sum_j exp(beta s_j)                        variant="plain"
        lambda_i = the same of s_i / sum_j |s_j|                              variant="normalized"
        lambda_i = f_i exp(beta s_i) / sum_j f_j exp(beta s_j)                variant="loss_weighted"
        f_i      = (L_i(t) + L_i(t - 1)) / 2

    Slopes have the unit of the loss: in the plain variant a loss of large units decides alone. The normalized one is free of
    a common unit, and with its slopes within [-1, 1] the ratio of two weights ends at exp(2 beta). Losses of single batches
    make noisy slopes; a window of several batches (``accumulate``) averages them.

    Weights are 1/K until a task has had two windows. A task that is absent keeps its last loss and its weight, and the
    others share the mass that they had. Slopes of 0 everywhere make even weights.

    Args:
        beta: a number; above 0 slow tasks gain, below 0 they lose.
        variant: ``"plain"``, ``"normalized"`` or ``"loss_weighted"``, which refuses losses that can be negative.

    Returns:
        (K,) weights, not negative, that sum to 1.

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
        where the package fits up to five points; slopes are normalised by the sum of their absolute values, as in the
        paper, and not by their sum, which turns the order of the tasks around when losses fall. physicsnemo-sym calls
        "SoftAdapt" K softmax(L(t) / L(t - 1)), which is ``relobralo`` with beta = 0 and temperature = 1. TorchJD 0.18
        and LibMTL have no such method.
    """

    needs = "losses"
    total = "1"

    last: Tensor
    seen: Tensor

    def __init__(self, *, beta: float = 0.1, variant: Variant = "plain") -> None:
        super().__init__()
        self.beta = check_number("beta", beta)
        check_choice("variant", variant, ("plain", "normalized", "loss_weighted"))
        self.variant = variant
        # Claims of the variants beyond what all of them promise.
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
            # Scaled before they are summed, so that the sum of large slopes stays finite and that of small ones exact.
            slopes = slopes / slopes.abs().amax().clamp_min(torch.finfo(slopes.dtype).tiny)
            slopes = slopes / slopes.abs().sum().clamp_min(1.0)
        # Of logits that far apart a softmax keeps the larger one in any case.
        logits = (self.beta * slopes).clamp(-MOST, MOST)
        if self.variant == "loss_weighted":
            logits = logits + ((losses + self.last) / 2).clamp_min(LEAST).log()
        torch.where(active, losses, self.last, out=self.last)
        self.seen.logical_or_(active)
        logits = torch.where(moves, logits, -torch.inf)
        return redistribute(logits.softmax(0), moves, self.current, 1.0)
