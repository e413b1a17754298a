"""Problems whose gradients are known: a batch holds them, one row per task, and the losses are linear in the parameter."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from mtl_axes import MultiTaskCriterion, compose
from mtl_axes.advise import Advice, advise

Rows = Sequence[Sequence[float] | None]


class Clock:
    """A clock that stands still until a test adds seconds, except for a tick with every reading."""

    def __init__(self) -> None:
        self.now, self.tick = 0.0, 1e-6

    def __call__(self) -> float:
        self.now += self.tick
        return self.now

    def __deepcopy__(self, memo: object) -> Clock:
        """The copy of a model has the clock of the model."""
        return self


class Linear(nn.Module):
    """One shared parameter w; the loss of a task is 5 + <w, row>, so that its gradient is the row."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.full((size,), 0.1, dtype=torch.float64))

    def forward(self, rows: Rows) -> dict[str, Tensor | None]:
        names = "abcdefgh"
        return {
            names[index]: None if row is None else 5 + (self.w * torch.tensor(row, dtype=torch.float64)).sum()
            for index, row in enumerate(rows)
        }


def linear(
    batches: Sequence[Rows],
    *,
    criterion: MultiTaskCriterion | None = None,
    candidates: Sequence[str] = ("fixed",),
    primary: str | None = None,
    steps: int = 64,
    seconds: float = 30.0,
) -> Advice:
    """Return the advice on batches of gradients."""
    size = next(len(row) for row in batches[0] if row is not None)
    names = list("abcdefgh"[: len(batches[0])])
    step: Callable[[Rows], dict[str, Tensor | None]] = Linear(size)
    return advise(
        criterion or compose(tasks=names),
        lambda rows: step(rows),
        batches,
        candidates=candidates,
        primary=primary,
        seconds=seconds,
        steps=steps,
    )


def spread(rows: Sequence[Sequence[float]], count: int = 6, noise: float = 0.02) -> list[list[list[float]]]:
    """Return batches whose rows are the given ones times factors around 1."""
    factors = [1 + noise * (index - (count - 1) / 2) for index in range(count)]
    return [[[factor * value for value in row] for row in rows] for factor in factors]


class Engine(nn.Module):
    """A trunk with batch norm and dropout, a float head and a class head, and a count that only Python knows."""

    def __init__(self, scale: float = 40.0) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.trunk = nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.2))
            self.rul, self.health = nn.Linear(16, 1), nn.Linear(16, 3)
        self.scale, self.calls = scale, 0

    def forward(self, sensors: Tensor) -> dict[str, Tensor]:
        self.calls += 1
        shared = self.trunk(sensors)
        return {"rul": 60 + self.scale * self.rul(shared).squeeze(-1), "health": self.health(shared)}


def engine_batches(count: int = 4, size: int = 16) -> list[tuple[Tensor, dict[str, Tensor]]]:
    """Return batches (inputs, targets) for it, with RUL in cycles."""
    generator = torch.Generator().manual_seed(1)
    found = []
    for _ in range(count):
        sensors = torch.randn(size, 6, generator=generator)
        rul = (60 + 40 * sensors[:, 0]).clamp(0, 125)
        found.append((sensors, {"rul": rul, "health": (rul < 80).long() + (rul <= 30).long()}))
    return found
