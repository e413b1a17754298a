"""Shapes for targets with rare values: focal_r focuses on large errors, bmc compares with other targets of the batch."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from mtl_axes.inner.base import REGRESSION, InnerShape
from mtl_axes.options import check_choice, check_number

__all__ = ["BMC", "FocalR"]


class FocalR(InnerShape):
    """Focal loss for regression: the error times a factor that grows from 0 to 1 with the error.

    ::

        l = base(e) m^gamma,  e = prediction - target,  base = e^2 or |e|
        m = 2 sigmoid(beta |e|) - 1 = tanh(beta |e| / 2)   activate="sigmoid"
          = tanh(beta |e|)                                 activate="tanh"

    Easy samples count less. The factor depends on the prediction and has a gradient. With gamma = 0 the loss is the base.

    Args:
        base: ``"mse"`` or ``"mae"``.
        beta: steepness of the factor per target unit, > 0.
        gamma: focus, >= 0.
        activate: ``"sigmoid"`` or ``"tanh"``, which equals sigmoid with twice the beta.

    Returns:
        (N, ...) losses >= 0, in the unit of the base.

    Raises:
        OptionError: an option is outside its range.

    >>> FocalR()(torch.tensor([15.0, 26.0]), torch.tensor([10.0, 30.0]))
    tensor([11.5529,  6.0792])

    References:
        Y. Yang, K. Zha, Y.-C. Chen, H. Wang, D. Katabi, "Delving into Deep Imbalanced Regression", 2021. Equal to its
        repository, imbalanced-regression, to 1.5e-14. Differs from the paper, which prints sigmoid(|beta e|)^gamma, 0.5 at
        e = 0, and from the repository in the gradient for gamma < 1 at e = 0: finite, not NaN.
    """

    kinds = REGRESSION

    def __init__(
        self,
        *,
        base: Literal["mse", "mae"] = "mse",
        beta: float = 0.2,
        gamma: float = 1.0,
        activate: Literal["sigmoid", "tanh"] = "sigmoid",
    ) -> None:
        super().__init__()
        check_choice("base", base, ("mse", "mae"))
        check_choice("activate", activate, ("sigmoid", "tanh"))
        self.base = base
        self.beta = check_number("beta", beta, low=0.0, low_open=True)
        self.gamma = check_number("gamma", gamma, low=0.0)
        self.activate = activate

    def forward(self, prediction: Tensor, target: Tensor, /) -> Tensor:
        size = (prediction - target).abs()
        base = size.square() if self.base == "mse" else size
        if self.gamma == 0:
            return base
        factor = ((self.beta / 2 if self.activate == "sigmoid" else self.beta) * size).tanh()
        # The slope of m^gamma at 0 is infinite for gamma < 1, and 0 times infinity is NaN.
        return base * factor.clamp_min(torch.finfo(factor.dtype).tiny) ** self.gamma


class BMC(InnerShape):
    """Balanced squared error by batch Monte Carlo: treats all target values as equally likely.

    ::

        l_j = 2 s^2 (-log softmax_k(-(p_j - y_k)^2 / (2 s^2)))_j       k over the samples of the batch
            = e_j^2 + 2 s^2 logsumexp_k(-(p_j - y_k)^2 / (2 s^2)),     e_j = p_j - y_j
        dl_j/dp_j = 2 (sum_k w_jk y_k - y_j),  w_jk the softmax over k

    A prediction is compared with all targets of the batch: it should be closer to its own target than to the others.
    Where many targets are close together, the comparison counts little. Equal targets share their mass: with m equal
    targets the loss is at least 2 s^2 log m. The loss couples the samples of a batch. Masked samples are left out of the
    sum, so that the loss equals the loss of the batch without them. A single sample has the loss 0. Each trailing
    position of targets (N, ...) is a separate variable, with a separate sum over N. The loss needs N^2 numbers per
    position, and batches large enough to show the distribution of the targets. Under data parallelism the batch is the
    batch of one process.

    Args:
        noise: s, the standard deviation of a typical error in target units, > 0. As s grows, the targets weigh more equally.
        prediction: (N, ...) floats.
        target: (N, ...) floats.
        valid: (N, ...) bools, the entries that count; None for all.

    Returns:
        (N, ...) losses >= 0, in squared target units.

    Raises:
        OptionError: noise is not a positive number.

    >>> BMC(noise=8.0)(torch.tensor([15.0, 26.0, 68.0]), torch.tensor([10.0, 30.0, 60.0]))
    tensor([2.4358e+01, 1.8277e+01, 2.6550e-03])

    References:
        J. Ren, M. Zhang, C. Yu, Z. Liu, "Balanced MSE for Imbalanced Visual Regression", 2022. Differs from its repository,
        BalancedMSE, in three ways: the noise is an option and not learned; targets may have several dimensions; and it
        computes a logsumexp of (y_k - y_j)(p_j - y_k + e_j) / (2 s^2), whose term k = j is exactly 0. The original subtracts
        two numbers of 1e8 at e = 1e4 and s = 1, in float32 an error of 1 in a loss of 19999.
    """

    kinds = REGRESSION
    coupling = "batch"

    def __init__(self, *, noise: float = 1.0) -> None:
        super().__init__()
        self.noise = check_number("noise", noise, low=0.0, low_open=True)

    def forward(self, prediction: Tensor, target: Tensor, valid: Tensor | None = None, /) -> Tensor:
        # Differences of unsigned integers would wrap around.
        target = target.to(prediction.dtype)
        error = prediction - target
        twice = 2 * self.noise**2
        # Rows are predictions j, columns targets k. The product is e_j^2 - (p_j - y_k)^2.
        columns = target.unsqueeze(0)
        logits = (columns - target.unsqueeze(1)) * (prediction.unsqueeze(1) - columns + error.unsqueeze(1)) / twice
        if valid is not None:
            # A masked sample keeps its own column, so that no row is empty.
            own = torch.eye(len(target), dtype=torch.bool, device=target.device)
            keep = valid.unsqueeze(0) | own.reshape(own.shape + (1,) * (target.ndim - 1))
            logits = torch.where(keep, logits, -torch.inf)
        return twice * logits.logsumexp(1)
