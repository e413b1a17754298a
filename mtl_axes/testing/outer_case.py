"""A weighting under test, and its windows: losses and gradients of K tasks, ordinary and hard."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import torch
from torch import Tensor

from mtl_axes.errors import OptionError
from mtl_axes.outer import OuterWeighting
from mtl_axes.outer.draws import Draws
from mtl_axes.signals import Need, Signals, TaskInfo
from mtl_axes.testing.case import Case, numbers

__all__ = ["OuterCase", "Problem", "f64", "hard", "of_task", "ordinary", "spread"]

_COUNTS = (4, 2, 1, 3, 5)
# Windows are counted from the first one that measures, so that a warm-up is skipped. The search ends at this window.
_LATEST_START = 100_000

f64: Final = torch.float64


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


class OuterCase(Case[OuterWeighting]):
    """A weighting under test.

    Attributes:
        counts: numbers of tasks, from 1 to 5, that its options allow, the preferred one first.
        start: the first window that updates its state.
    """

    def __init__(self, factory: Any, tasks: Sequence[str] | None = None) -> None:
        super().__init__("outer", OuterWeighting, factory)
        self.tasks = None if tasks is None else tuple(tasks)
        candidates = _COUNTS if self.tasks is None else (len(self.tasks),)
        self.about("should bind to tasks")
        self.counts = tuple(count for count in candidates if self._binds(count))
        self.require(
            bool(self.counts),
            f"should bind to {'some number of tasks' if tasks is None else f'the tasks {list(tasks)}'}",
            "an OptionError for each. Pass tasks=[...] if its options name tasks",
        )
        self.start = 0
        weighting = self.bound()
        while not weighting.measures(self.start) and self.start < _LATEST_START:
            self.start += 1

    @property
    def count(self) -> int:
        """The number of tasks for checks that need only one."""
        return self.counts[0]

    @property
    def task(self) -> int:
        """The task that becomes absent: one in the middle, or the last if tasks have roles, as the first often has one."""
        return min(1, self.count - 1) if self.build().symmetric else self.count - 1

    def names(self, count: int) -> tuple[str, ...]:
        """Return names for this number of tasks."""
        return tuple(str(index) for index in range(count)) if self.tasks is None else self.tasks[:count]

    def _binds(self, count: int) -> bool:
        try:
            self.bound(count)
        except OptionError:
            return False
        except Exception as error:
            raise self.blame(error) from error
        return True

    def bound(
        self, count: int | None = None, dtype: torch.dtype = f64, names: Sequence[str] | None = None
    ) -> OuterWeighting:
        """Return a fresh weighting that knows its tasks."""
        weighting = self.build()
        weighting.dtype = dtype
        names = self.names(self.count if count is None else count) if names is None else names
        weighting.bind(tuple(TaskInfo(name) for name in names))
        return weighting

    def show(self, weighting: OuterWeighting, problem: Problem, step: int = 0, dtype: torch.dtype = f64) -> Tensor:
        """Return the weights for a window, and show the window in the next failure.

        A weighting that reads the losses after the optimizer step gets them, too.
        """
        self.given = problem.text(weighting.needs)
        signals = problem.signals(weighting.needs, self.start + step, dtype)
        weights = weighting(signals)
        self.after_step(weighting, problem, signals)
        return weights

    def after_step(self, weighting: OuterWeighting, problem: Problem, signals: Signals) -> None:
        """Pass on the losses after the optimizer step, if the weighting reads them."""
        if weighting.wants_after_step:
            after = torch.where(signals.active, signals.losses * problem.change.to(signals.losses), 1.0)
            weighting.after_step(after, signals.active)

    def driven(self, count: int | None = None, *, windows: int = 4, dtype: torch.dtype = f64) -> OuterWeighting:
        """Return a weighting that has seen some windows."""
        count = self.count if count is None else count
        weighting = self.bound(count, dtype)
        for step in range(windows):
            self.show(weighting, ordinary(count, step), step, dtype)
        spread(weighting)
        return weighting

    def following(self, *, start: int = 4, windows: int = 3) -> list[tuple[int, Problem]]:
        """Return the windows after those of :meth:`driven`, with their steps."""
        return [(step, ordinary(self.count, 100 + step)) for step in range(start, start + windows)]

    def draws(self) -> bool:
        """Return whether the weighting draws random numbers."""
        return any(isinstance(part, Draws) for part in self.build().modules())


def spread(weighting: OuterWeighting) -> None:
    """Change learnable parameters, as an optimizer would."""
    with torch.no_grad():
        for parameter in weighting.parameters():
            parameter.add_(torch.linspace(-0.7, 0.9, parameter.numel()).to(parameter).view_as(parameter))


def of_task(state: dict[str, Any], task: int, count: int) -> dict[str, Tensor]:
    """Return the entries of one task in a snapshot, from every tensor that has a dimension of the tasks."""
    return {
        name: value.select(value.shape.index(count), task)
        for name, value in state.items()
        if name.rpartition(".")[2] != "current" and isinstance(value, Tensor) and count in value.shape
    }
