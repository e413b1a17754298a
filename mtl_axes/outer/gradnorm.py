"""GradNorm, without second derivatives and with positive weights."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from mtl_axes.options import check_number
from mtl_axes.outer.adam import LogitsWeighting
from mtl_axes.signals import Signals, TaskInfo


class GradNorm(LogitsWeighting):
    r"""Weights that pull the weighted gradient norms lambda_i n_i towards a common rate of training.

    ::

        lambda = K softmax(v),  v starts at 0
        r_i    = (L_i / L0_i) / mean_A(L / L0)              relative inverse training rate
        T_i    = mean_A(lambda n) r_i^alpha                 target, a constant
        u_i    = sign(lambda_i n_i - T_i) n_i               gradient of sum_i |lambda_i n_i - T_i| in lambda_i
        dv_i   = lambda_i (u_i - sum_j lambda_j u_j / K)    through the softmax; then one Adam(lr) step on v

    L0_i is the loss of the task's first finite window. Means and sums run over the active tasks A. A task outside A keeps
    its weight, its v and its moments, and the others share the sum that they had.

    Args:
        alpha: how strongly slow tasks are favoured, >= 0. At 0 the norms lambda_i n_i are equalised.
        lr: learning rate of v, > 0.

    Returns:
        (K,) positive weights that sum to K.

    Raises:
        OptionError: an option is outside its range.

    >>> weighting = GradNorm(lr=0.1)
    >>> weighting(Signals(torch.ones(2), norms=torch.tensor([10.0, 1.0])))
    tensor([0.9003, 1.0997])

    References:
        Z. Chen et al., "GradNorm: Gradient Normalization for Adaptive Loss Balancing in Deep Multitask Networks", 2018.
        Differs from the reference: a softmax replaces the free weights, which become negative; the moments of Adam
        belong to the weighting, not to the model's optimizer; norms are taken on all shared parameters unless ``shared=``
        names the last shared layer, as in the paper.
    """

    needs = "norms"
    nonnegative = True
    total = "K"
    sign = "positive"

    first_loss: Tensor
    seen: Tensor

    def __init__(self, *, alpha: float = 1.5, lr: float = 0.025) -> None:
        super().__init__()
        self.alpha = check_number("alpha", alpha, low=0.0)
        self.lr = check_number("lr", lr, low=0.0, low_open=True)

    def bind(self, tasks: tuple[TaskInfo, ...]) -> None:
        super().bind(tasks)
        self.current.fill_(1.0)
        self.register_buffer("first_loss", torch.ones(len(tasks), dtype=self.dtype))
        self.register_buffer("seen", torch.zeros(len(tasks), dtype=torch.bool))

    def forward(self, signals: Signals, /) -> Tensor:
        norms, active = signals.norms, signals.active
        assert norms is not None
        self.first_loss.copy_(torch.where(active & ~self.seen, signals.losses, self.first_loss))
        self.seen.logical_or_(active)
        gradient = self._gradient(norms, signals.losses, active)
        moves = active & (active.sum() > 1) & torch.isfinite(gradient)
        self.adam_step(torch.where(moves, gradient, 0.0), moves, lr=self.lr)
        return self._softmax()

    def _softmax(self) -> Tensor:
        return self.logits.softmax(0) * self.logits.shape[0]

    def _gradient(self, norms: Tensor, losses: Tensor, active: Tensor) -> Tensor:
        count = active.sum().clamp_min(1)

        def mean(values: Tensor) -> Tensor:
            return torch.where(active, values, 0.0).sum() / count

        weights = self._softmax()
        tiny = torch.finfo(losses.dtype).tiny
        ratio = losses / self.first_loss.clamp_min(tiny)
        rate = ratio / mean(ratio).clamp_min(tiny)
        target = mean(weights * norms) * rate**self.alpha
        pull = torch.where(active, torch.sign(weights * norms - target) * norms, 0.0)
        # The active weights sum to K, minus the weights of the absent tasks.
        mass = torch.where(active, weights, 0.0).sum()
        return weights * (pull - (weights * pull).sum() / mass)

    def diagnostics(self) -> Mapping[str, Tensor]:
        return {"first_loss": self.first_loss.clone()}
