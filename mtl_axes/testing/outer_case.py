"""A weighting under test, and how it is fed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import torch
from torch import Tensor

from mtl_axes.errors import OptionError
from mtl_axes.outer import OuterWeighting
from mtl_axes.outer.draws import Draws
from mtl_axes.signals import Signals, TaskInfo
from mtl_axes.testing.case import Case
from mtl_axes.testing.problems import Problem, ordinary

__all__ = ["OuterCase", "f64", "of_task", "spread"]

_COUNTS = (4, 2, 1, 3, 5)
# A warm-up is passed over: windows are counted from the first that measures, looked for up to here.
_LATEST_START = 100_000

f64: Final = torch.float64


class OuterCase(Case[OuterWeighting]):
    """A weighting under test.

    Attributes:
        counts: numbers of tasks that its options allow, of 1 to 5, the preferred one first.
        start: the window from which it moves.
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
            "an OptionError for each. Pass tasks=[...] where options name tasks",
        )
        self.start = 0
        weighting = self.bound()
        while not weighting.measures(self.start) and self.start < _LATEST_START:
            self.start += 1

    @property
    def count(self) -> int:
        """The number of tasks that checks use which need one only."""
        return self.counts[0]

    @property
    def task(self) -> int:
        """The task that goes away: one in the middle; the last where tasks have roles, which the first tends to have."""
        return min(1, self.count - 1) if self.build().symmetric else self.count - 1

    def names(self, count: int) -> tuple[str, ...]:
        """Names of that many tasks."""
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
        """Return the weights for a window, and have it told in whatever fails next.

        One that wants the losses after the optimizer step is then shown these, too.
        """
        self.given = problem.told(weighting.needs)
        signals = problem.signals(weighting.needs, self.start + step, dtype)
        weights = weighting(signals)
        self.after_step(weighting, problem, signals)
        return weights

    def after_step(self, weighting: OuterWeighting, problem: Problem, signals: Signals) -> None:
        """Show what an optimizer step has done to the losses of a window, where the weighting wants it."""
        if weighting.wants_after_step:
            after = torch.where(signals.active, signals.losses * problem.change.to(signals.losses), 1.0)
            weighting.after_step(after, signals.active)

    def driven(self, count: int | None = None, *, windows: int = 4, dtype: torch.dtype = f64) -> OuterWeighting:
        """Return a weighting in the middle of its life."""
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
        """Return whether the weighting draws random numbers of its own."""
        return any(isinstance(part, Draws) for part in self.build().modules())


def spread(weighting: OuterWeighting) -> None:
    """Move learnable parameters off their start, as an optimizer would."""
    with torch.no_grad():
        for parameter in weighting.parameters():
            parameter.add_(torch.linspace(-0.7, 0.9, parameter.numel()).to(parameter).view_as(parameter))


def of_task(state: dict[str, Any], task: int, count: int) -> dict[str, Tensor]:
    """Return what a snapshot holds of one task: its entries of every tensor with a dimension of the tasks."""
    return {
        name: value.select(value.shape.index(count), task)
        for name, value in state.items()
        if name.rpartition(".")[2] != "current" and isinstance(value, Tensor) and count in value.shape
    }
