"""IMTL-L: the loss-balancing half of impartial multi-task learning."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mtl_axes.outer.learned import LearnedWeighting


class IMTLL(LearnedWeighting):
    r"""Learned scales s_i that bring every loss to the same size, in the total exp(s_i) L_i - s_i.

    ::

        lambda_i  = exp(s_i), s starts at 0
        penalty_i = -s_i

    At the optimum of s the scaled loss exp(s_i) L_i is 1 for every task, and the weight 1 / L_i: the gradient of
    sum_i log L_i, as in ``scale_invariant``, which computes it without learning. The total can become negative; the report
    and ``log_dict`` give the task losses themselves. It is uncertainty weighting in another parameter: with
    exp(-s) L / 2 + s / 2 there, this is twice the total at -s.

    The parameters belong to the criterion: give ``criterion.param_groups()`` to your optimizer. Gradients reach s
    through ``weights()`` and ``penalty()``.

    Returns:
        (K,) positive weights, with no fixed sum. An absent task's s receives a zero gradient. For a loss that stays at 0,
        s grows without bound, by the learning rate in every step.

    >>> from mtl_axes import Signals
    >>> weighting = IMTLL()
    >>> weighting(Signals(torch.tensor([2.0, 0.5]))).detach(), weighting.penalty().detach()
    (tensor([1., 1.]), tensor([-0., -0.]))

    References:
        L. Liu, Y. Li, Z. Kuang, J.-H. Xue, Y. Chen, W. Yang, Q. Liao, W. Zhang, "Towards Impartial Multi-Task Learning",
        2021. Equals IMTLL of TorchJD 0.18: at s = (0.1, -0.4, 0) and the losses (1, 2, 0.5) the total is 3.2458 and its
        gradient in s (0.105, 0.341, -0.5). LibMTL has it only together with IMTL-G, in one method.
    """

    nonnegative = True
    sign = "positive"
    parameter_name = "log_scale"
    called = "imtl_l: the log scales"

    log_scale: nn.Parameter

    def read(self) -> Tensor:
        return torch.exp(self.log_scale)

    def penalty(self) -> Tensor:
        return -self.log_scale
