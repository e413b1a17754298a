"""SLAW: scaled loss approximate weighting."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from mtl_axes.options import check_number
from mtl_axes.outer.base import OuterWeighting
from mtl_axes.outer.members import positive_losses, redistribute
from mtl_axes.signals import Signals, TaskInfo

# Relative to the mean loss, so that a task with a constant loss does not take all the weight.
_STILL = 1e-5


class SLAW(OuterWeighting):
    r"""Weights by the inverse spread of each loss, which estimates the inverse gradient norm without a gradient.

    ::

        b_i      = b_i + r (L_i - b_i)                       mean of the loss;  r = max(1/n, 1 - beta) in its n-th window
        a_i      = a_i + r (L_i^2 - a_i)                     mean of its square
        s_i      = max(sqrt(a_i - b_i^2), 1e-5 b_i)          spread
        lambda_i = K (1 / s_i) / sum_j (1 / s_j)

    The variation of a loss from window to window stands for its steepness. It includes the noise of the batches, so that it
    only indicates the sizes of gradients; ``inverse_norm`` and ``gaba`` measure them.

    Weights are 1 until a task has had two windows. A task without a loss in a window, or with a loss of exactly 0, keeps
    its means and its weight, and the others share the sum that they had.

    Args:
        beta: decay of the means, in [0, 1). They are plain means over the first 1 / (1 - beta) windows.

    Returns:
        (K,) positive weights that sum to K.

    Raises:
        OptionError: beta is outside its range.

    >>> weighting = SLAW()
    >>> for losses in ([2.0, 50.0], [1.0, 40.0]):
    ...     weights = weighting(Signals(torch.tensor(losses)))
    >>> weights
    tensor([1.8182, 0.1818])

    References:
        M. Crawshaw, J. Kosecka, "SLAW: Scaled Loss Approximate Weighting for Efficient Multi-Task Learning", 2021, with
        the start of the means as in the authors' code. Differs from it: the variance is updated without the difference
        a - b^2, which in float32 loses every digit of a spread below 3e-4 of the mean; spreads are at least 1e-5 of the
        mean, instead of 1e-5 in the unit of the loss, which gave losses of 1e-6 and 1e-9 the same weight.
    """

    needs = "losses"
    nonnegative = True
    total = "K"
    sign = "positive"
    scaling = "invariant"
    balances = True

    mean: Tensor
    deviation: Tensor
    windows: Tensor

    def __init__(self, *, beta: float = 0.99) -> None:
        super().__init__()
        self.beta = check_number("beta", beta, low=0.0, high=1.0, high_open=True)

    def bind(self, tasks: tuple[TaskInfo, ...]) -> None:
        super().bind(tasks)
        self.current.fill_(1.0)
        for name in ("mean", "deviation", "windows"):
            self.register_buffer(name, torch.zeros(len(tasks), dtype=self.dtype))

    def forward(self, signals: Signals, /) -> Tensor:
        losses, members = positive_losses(signals)
        self.windows.add_(members)
        rate = (1 / self.windows.clamp_min(1)).clamp_min(1 - self.beta)
        step = losses - self.mean
        # At both ends of the rate, and across orders of magnitude, lerp stays between the two; a sum may round to 0.
        mean = torch.lerp(self.mean, losses, rate)
        # a - b^2 obeys v <- (1 - r) (v + r d^2) for d = L - b. This is its root, because squares of small losses underflow.
        deviation = (1 - rate).sqrt() * torch.hypot(self.deviation, rate.sqrt() * step)
        torch.where(members, mean, self.mean, out=self.mean)
        torch.where(members, deviation, self.deviation, out=self.deviation)
        spread = torch.maximum(self.deviation, _STILL * self.mean)
        moves = members & (self.windows > 1)
        return redistribute(1 / torch.where(moves, spread, 1.0), moves, self.current, float(signals.size))

    def diagnostics(self) -> Mapping[str, Tensor]:
        return {"deviation": self.deviation.clone()}
