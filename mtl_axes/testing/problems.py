"""Windows for an outer weighting: losses and gradients of K tasks, ordinary and hard."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from mtl_axes.signals import Need, Signals
from mtl_axes.testing.case import numbers

__all__ = ["Problem", "hard", "ordinary"]


@dataclass(frozen=True)
class Problem:
    """One window in float64: losses (K,), a Jacobian (K, D) of the shared parameters, active flags (K,)."""

    losses: Tensor
    jacobian: Tensor
    active: Tensor
    # (K,) factors by which the optimizer step changes the losses.
    change: Tensor

    @property
    def norms(self) -> Tensor:
        """(K,) norms of the task gradients."""
        norms: Tensor = self.jacobian.norm(dim=1)
        return norms

    def signals(self, needs: Need, step: int = 0, dtype: torch.dtype = torch.float64) -> Signals:
        """Return the signals that a weighting with these needs reads in this window, and no others."""
        gramian = (self.jacobian @ self.jacobian.T).to(dtype) if needs == "gramian" else None
        norms = None if needs == "losses" else self.norms.to(dtype)
        return Signals(self.losses.to(dtype), norms=norms, gramian=gramian, active=self.active, step=step)

    def of(self, tasks: Sequence[int]) -> Problem:
        """Return the window of only these tasks, in this order."""
        index = torch.tensor(tasks)
        return Problem(self.losses[index], self.jacobian[index], self.active[index], self.change[index])

    def times(self, factors: Tensor) -> Problem:
        """Return the window with the losses, and hence the gradients, multiplied by factors (K,) or ()."""
        return replace(self, losses=self.losses * factors, jacobian=self.jacobian * factors.reshape(-1, 1))

    def with_losses(self, losses: Tensor) -> Problem:
        """Return the window with other losses."""
        return replace(self, losses=losses)

    def without(self, task: int) -> Problem:
        """Return the window with one task absent."""
        return replace(self, active=self.active.clone().index_fill_(0, torch.tensor([task]), False))

    def text(self, needs: Need) -> str:
        """Return the window in words."""
        norms = "" if needs == "losses" else f", norms {numbers(self.norms)}"
        return f"losses {numbers(self.losses)}{norms}, active {numbers(self.active)}"


def ordinary(count: int, seed: int, *, spread: float = 0.3) -> Problem:
    """A seeded window; losses and norms differ by about ``exp(spread)`` from task to task."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    # Gradients of tasks on one trunk: a common direction and a direction of each task.
    directions = draw(count, count + 3) + 0.7 * draw(1, count + 3)
    rows = directions / directions.norm(dim=1, keepdim=True) * (spread * draw(count, 1)).exp()
    losses = (spread * draw(count)).exp()
    return Problem(losses, rows, torch.ones(count, dtype=torch.bool), (0.1 * draw(count)).exp())


def hard(count: int, *, negative: bool) -> Iterator[Problem]:
    """Extreme windows: norms 1e-12 to 1e12, losses 0 and 1e-6 to 1e6, parallel and opposed gradients, lone tasks.

    Args:
        count: number of tasks.
        negative: include negative losses.
    """
    base = ordinary(count, 7)
    units = base.jacobian / base.norms[:, None]
    first, sign = units[:1], torch.tensor([1.0, -1.0], dtype=torch.float64).repeat(count)[:count, None]
    directions = {
        "apart": units,
        "parallel": first.expand(count, -1).clone(),
        "nearly parallel": first + 1e-9 * units,
        "opposed": first * sign,
        "nearly opposed": first * sign + 1e-9 * units,
    }
    grades = torch.linspace(-1, 1, count, dtype=torch.float64) if count > 1 else torch.ones(1, dtype=torch.float64)
    for size in (10.0 ** (12 * grades), torch.full((count,), 1e-12), torch.full((count,), 1e12), torch.ones(count)):
        for rows in directions.values():
            yield replace(base, jacobian=rows * size.double()[:, None])
    for losses in (
        10.0 ** (6 * grades),
        torch.full((count,), 1e-6),
        torch.full((count,), 1e6),
        torch.zeros(count),
        grades + 1,
    ):
        yield base.with_losses(losses.double())
    if negative:
        yield base.with_losses(grades - 0.5)
        yield base.with_losses(-1e6 * torch.ones(count, dtype=torch.float64))
    for task in range(min(count, 3)):
        alone = torch.zeros(count, dtype=torch.bool)
        alone[task] = True
        yield replace(base, active=alone)
        zero = units.clone()
        zero[task] = 0
        yield replace(base, jacobian=zero)
    yield replace(base, jacobian=torch.zeros_like(units))
    yield replace(base, active=torch.zeros(count, dtype=torch.bool))
