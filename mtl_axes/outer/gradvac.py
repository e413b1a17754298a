"""GradVac: gradients are turned towards each other until their cosines are what they usually are."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from mtl_axes.options import check_integer, check_number
from mtl_axes.outer.draws import Draws
from mtl_axes.outer.geometry import resolution
from mtl_axes.outer.gramian import GramianWeighting, Problem
from mtl_axes.signals import TaskInfo


class GradVac(GramianWeighting):
    r"""Weights of the sum of gradients after each was turned towards those whose cosine with it is below its average.

    ::

        w_i = e_i                                           (K,) coefficients of task i's gradient
        for j != i in a random order, drawn for each i:
            m   = sqrt(w_i' G w_i)                          its norm so far; G (K, K) the Gramian, n_j = sqrt(G_jj)
            phi = (G w_i)_j / (m n_j)                       its cosine with g_j
            w_ij   = w_ij + (m / n_j) (rho_ij sqrt(1 - phi^2) / sqrt(1 - rho_ij^2) - phi)   if phi < rho_ij
            rho_ij = (1 - beta) rho_ij + beta phi           from 0 on
        lambda = sum_i w_i

    With rho = 0 this is PCGrad. The targets then follow the usual cosines of the tasks, so that positive cosines below them
    are raised, too. Every weight is at least 1: the step is the *sum* of the gradients.

    ``rho`` is state. Pairs with an absent task are not updated, and the others are updated as without it. A target is at
    most the cosine of the smallest angle that the measured Gramian resolves, sqrt(eps), because a target of 1 would need an
    infinite weight. A gradient that the turns have made zero has no cosine and is left unchanged.

    Args:
        beta: how fast the targets follow, in [0, 1].
        seed: of the orders. They are drawn in every window, from a generator that is a part of the state.

    Returns:
        (K,) positive weights; 0 for an absent task.

    Raises:
        OptionError: an option is outside its range.

    >>> from mtl_axes import Signals
    >>> jacobian = torch.tensor([[-4.0, 1.0, 1.0], [6.0, 1.0, 1.0]])
    >>> weighting, signals = GradVac(beta=0.5), Signals(torch.ones(2), gramian=jacobian @ jacobian.T)
    >>> weighting(signals), weighting(signals)
    (tensor([2.2222, 1.5789]), tensor([1.8580, 1.4064]))

    References:
        Z. Wang et al., "Gradient Vaccine: Investigating and Improving Multi-task Optimization in Massively Multilingual
        Models", 2021, on all shared parameters as one group. The paper's beta is 0.01, the default here; TorchJD 0.18 and
        LibMTL have 0.5. TorchJD draws the same orders after ``torch.manual_seed(seed)`` and agrees to 1e-8 for gradients
        of norm 1 (to 1e-15 with its eps=0). It adds 1e-8 to products of norms, which for norms of 1e-6 makes every cosine
        1e4 times too small, and weights wrong by up to a factor of 8 in 60 random problems. LibMTL reports the weight 1 for
        every task, whatever its gradients became.
    """

    sign = "positive"
    symmetric = False
    scaling = "invariant"

    rho: Tensor

    def __init__(self, *, beta: float = 0.01, seed: int = 0) -> None:
        super().__init__()
        self.beta = check_number("beta", beta, low=0.0, high=1.0)
        self.seed = check_integer("seed", seed)
        self.draws = Draws(self.seed)

    def bind(self, tasks: tuple[TaskInfo, ...]) -> None:
        super().bind(tasks)
        self.register_buffer("rho", torch.zeros(len(tasks), len(tasks), dtype=self.dtype))

    def solve(self, problem: Problem, /) -> Tensor:
        gramian, index = problem.gramian, problem.index
        count = len(gramian)
        norms, every = gramian.diagonal().sqrt(), torch.arange(count)
        targets = self.rho.cpu().double()[index][:, index]
        coefficients = torch.eye(count, dtype=torch.float64)
        smallest = resolution(self.rho.dtype)
        # All tasks make their n-th turn together, because they do not depend on each other.
        for other in self._orders(count).unbind(1):
            own = coefficients @ gramian
            size = (own * coefficients).sum(1).clamp_min(0).sqrt()
            left = size > smallest * (coefficients.abs() @ norms)
            cosine = (own[every, other] / size / norms[other]).clamp(-1, 1)
            target = targets[every, other]
            lifted = target.clamp(-1, 1 - smallest**2 / 2)
            turn = lifted * (1 - cosine.square()).sqrt() / (1 - lifted.square()).sqrt() - cosine
            coefficients[every, other] += torch.where(left & (cosine < lifted), size / norms[other] * turn, 0.0)
            targets[every, other] = torch.where(left, target + self.beta * (cosine - target), target)
        index = index.to(self.rho.device)
        self.rho[index[:, None], index] = targets.to(self.rho)
        return coefficients.sum(0)

    def _orders(self, count: int) -> Tensor:
        """Return (k, k - 1): the other tasks, in a random order for each."""
        drawn = torch.stack([self.draws.permutation(count - 1) for _ in range(count)])
        return drawn + (drawn >= torch.arange(count)[:, None])

    def diagnostics(self) -> Mapping[str, Tensor]:
        return {"rho": self.rho.clone()}
