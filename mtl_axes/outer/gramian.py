"""The base class of weightings that solve a small problem in the Gramian, on the host."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mtl_axes.outer.base import OuterWeighting
from mtl_axes.outer.geometry import cosines
from mtl_axes.signals import Signals

__all__ = ["GramianWeighting", "Problem"]

# Relative to a unit diagonal. Averaging over calls with different active tasks can make a Gramian more indefinite.
_INDEFINITE = 1e-10


@dataclass(frozen=True)
class Problem:
    """The active tasks of a window, in float64 on the CPU.

    Attributes:
        gramian: (k, k) inner products of their gradients, symmetric positive semi-definite with a positive diagonal.
        index: (k,) their positions among all tasks.
        count: number K of all tasks.
    """

    gramian: Tensor
    index: Tensor
    count: int


class GramianWeighting(OuterWeighting):
    """A weighting that solves a small problem for the Gramian of the active tasks.

    A subclass defines :meth:`solve`. Tasks that are absent or have no gradient are left out and get the weight 0; with no
    active task the weights stay unchanged. The problem is solved in float64 on the CPU, so that a measured window waits for
    the device; other windows do not.
    """

    needs = "gramian"
    memoryless = True
    on_host = True
    traceable = False

    def solve(self, problem: Problem, /) -> Tensor:
        """Return the weights (k,) of the active tasks, float64 on the CPU. Called with at least one task."""
        raise NotImplementedError

    def forward(self, signals: Signals, /) -> Tensor:
        assert signals.gramian is not None
        index = signals.active.cpu().nonzero().squeeze(1)
        if not len(index):
            return self.current.clone()
        gramian = _semidefinite(signals.gramian.cpu().double()[index][:, index])
        solution = self.solve(Problem(gramian, index, signals.size))
        weights = torch.zeros(signals.size, dtype=torch.float64).index_put((index,), solution)
        return weights.to(signals.losses)


def _semidefinite(gramian: Tensor) -> Tensor:
    """Return the Gramian symmetric, and without the negative eigenvalues that an average over calls may have."""
    gramian = (gramian + gramian.T) / 2
    norms, unit = cosines(gramian)
    values, vectors = torch.linalg.eigh(unit)
    if values[0] >= -_INDEFINITE:
        return gramian
    # Clipping eigenvalues raises the diagonal, so the measured norms are restored.
    _, nearest = cosines((vectors * values.clamp_min(0)) @ vectors.T)
    return nearest * norms * norms[:, None]
