"""ReLoBRaLo: relative loss balancing with random lookback."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from mtl_axes.options import check_integer, check_number
from mtl_axes.outer.base import OuterWeighting
from mtl_axes.outer.draws import Draws
from mtl_axes.outer.members import MOST, positive_losses, redistribute
from mtl_axes.signals import Signals, TaskInfo


class ReLoBRaLo(OuterWeighting):
    r"""Weights that grow with how slowly a loss falls, compared with the previous window or, at random, with the first.

    ::

        bal(t, t') = K softmax(L(t) / (temperature L(t')))
        hist       = lambda(t - 1) with probability rho, else bal(t, 0)
        lambda(t)  = beta hist + (1 - beta) bal(t, t - 1),  lambda(0) = 1

    One draw in each window decides for all tasks. The unit of a loss cancels: only its rate counts, as in ``dwa``, but
    without epochs. At a low temperature the largest ratio takes all the weight of bal; ratios over the temperature are
    clamped to 1e30.

    L(0) is the loss of a task's first window. A task without a loss in a window, or with a loss of exactly 0, keeps its
    losses and its weight, and the others share the sum that they had.

    Args:
        beta: decay of the weights per window, in [0, 1]; the paper's alpha.
        temperature: > 0; the larger, the more even the weights. The paper's tau.
        rho: probability of comparing with the previous window only, in [0, 1].
        seed: of the draws, an integer >= 0.

    Returns:
        (K,) non-negative weights that sum to K.

    Raises:
        OptionError: an option is outside its range.

    >>> weighting = ReLoBRaLo(beta=0.5, temperature=1.0, rho=1.0)
    >>> for losses in ([2.0, 5.0], [1.0, 5.0]):
    ...     weights = weighting(Signals(torch.tensor(losses)))
    >>> weights
    tensor([0.8775, 1.1225])

    References:
        R. Bischof, M. A. Kraus, "Multi-Objective Loss Balancing for Physics-Informed Deep Learning", 2021. Differs from
        ports of the authors' code, in which beta is 1 and then 0 in the first two windows, so that the weights start at
        bal(1, 0): here they start at 1, as in physicsnemo-sym. With beta = 0 and temperature = 1 it is what physicsnemo-sym
        calls SoftAdapt: the weights agree to 6e-8, the size of its guards against 0/0.
    """

    needs = "losses"
    nonnegative = True
    total = "K"
    scaling = "invariant"
    traceable = False

    first: Tensor
    last: Tensor
    seen: Tensor

    def __init__(self, *, beta: float = 0.999, temperature: float = 0.1, rho: float = 0.999, seed: int = 0) -> None:
        super().__init__()
        self.beta = check_number("beta", beta, low=0.0, high=1.0)
        self.temperature = check_number("temperature", temperature, low=0.0, low_open=True)
        self.rho = check_number("rho", rho, low=0.0, high=1.0)
        self.seed = check_integer("seed", seed)
        self.draws = Draws(self.seed)

    def bind(self, tasks: tuple[TaskInfo, ...]) -> None:
        super().bind(tasks)
        self.current.fill_(1.0)
        self.register_buffer("first", torch.ones(len(tasks), dtype=self.dtype))
        self.register_buffer("last", torch.ones(len(tasks), dtype=self.dtype))
        self.register_buffer("seen", torch.zeros(len(tasks), dtype=torch.bool))

    def forward(self, signals: Signals, /) -> Tensor:
        losses, members = positive_losses(signals)
        moves = members & self.seen
        recent = self.draws.uniform((), losses) < self.rho
        history = torch.where(recent, self.current, self._balance(losses, self.first, moves))
        weights = self.beta * history + (1 - self.beta) * self._balance(losses, self.last, moves)
        torch.where(members & ~self.seen, losses, self.first, out=self.first)
        torch.where(members, losses, self.last, out=self.last)
        self.seen.logical_or_(members)
        return torch.where(moves, weights, self.current)

    def _balance(self, losses: Tensor, before: Tensor, moves: Tensor) -> Tensor:
        ratio = (losses / before / self.temperature).clamp_max(MOST)
        shares = torch.where(moves, ratio, -torch.inf).softmax(0)
        return redistribute(shares, moves, self.current, float(losses.shape[0]))

    def diagnostics(self) -> Mapping[str, Tensor]:
        return {"first_loss": self.first.clone()}
