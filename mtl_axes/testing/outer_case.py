"""A weighting under test, and its inputs."""

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
# Windows are counted from the first one that measures, so that a warm-up is skipped. The search ends at this window.
_LATEST_START = 100_000

f64: Final = torch.float64


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
