"""Scaled loss approximate weighting."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from mtl_axes.options import check_number
from mtl_axes.outer.base import OuterWeighting
from mtl_axes.outer.members import positive_losses, redistribute
from mtl_axes.signals import Signals, TaskInfo

__all__ = ["SLAW"]

# Relative to the mean loss: a task whose loss stands still does not take every weight.
_STILL = 1e-5


class SLAW(OuterWeighting):
    r"""Inverse spread of each loss: an estimate of inverse gradient norms that needs no gradient.

    ::

        b_i      = b_i + r (L_i - b_i)                       mean of the loss;  r = max(1/n, 1 - beta) in its n-th window
        a_i      = a_i + r (L_i^2 - a_i)                     mean of its square
        s_i      = max(sqrt(a_i - b_i^2), 1e-5 b_i)          spread
        lambda_i = K (1 / s_i) / sum_j (1 / s_j)

    How much a loss varies from window to window stands for how steep it is. The noise of the batches enters as well, so that
    it is a guide to the sizes of gradients and no measurement: ``inverse_norm`` and ``gaba`` measure them.

    Weights are 1 until a task has had two windows. A task without a loss in a window, or with a loss of exactly 0, keeps
    its means and its weight, and the others share the mass that they had.

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
        the start of the means as in the authors' code. Differs from it: the variance is carried on without the difference
        a - b^2, which in float32 loses every digit of a spread below 3e-4 of the mean; spreads end at 1e-5 of the mean
        and not at 1e-5 in the unit of the loss, which gave losses of 1e-6 and 1e-9 the same weight. TorchJD 0.18 and
        LibMTL have no such method.
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
        # At either end of the rate, and across orders of magnitude, this stays between the two; a sum may round to 0.
        mean = torch.lerp(self.mean, losses, rate)
        # a - b^2 obeys v <- (1 - r) (v + r d^2) for d = L - b. Its root, because squares of small losses underflow.
        deviation = (1 - rate).sqrt() * torch.hypot(self.deviation, rate.sqrt() * step)
        torch.where(members, mean, self.mean, out=self.mean)
        torch.where(members, deviation, self.deviation, out=self.deviation)
        spread = torch.maximum(self.deviation, _STILL * self.mean)
        moves = members & (self.windows > 1)
        return redistribute(1 / torch.where(moves, spread, 1.0), moves, self.current, float(signals.size))

    def diagnostics(self) -> Mapping[str, Tensor]:
        return {"deviation": self.deviation.clone()}
