"""What the lagged probe records of a window, for known gradients at the representation: 5 for a, 2 for b, 1 for c."""

from __future__ import annotations

import math

import torch
from probing import Recorder, f64
from torch import Tensor, nn

from mtl_axes import compose

ROWS = {
    "a": torch.tensor([3.0, 4.0], dtype=f64),
    "b": torch.tensor([0.0, 2.0], dtype=f64),
    "c": torch.tensor([1.0, 0.0], dtype=f64),
}


class Lagged:
    """Tasks that read one representation, each through a factor of its own, in windows of two calls."""

    def __init__(self, *tasks: str) -> None:
        self.shared = nn.Parameter(torch.ones(2, dtype=f64))
        self.factors = {name: nn.Parameter(torch.ones((), dtype=f64)) for name in ROWS}
        self.recorder = Recorder()
        self.criterion = compose(self.recorder, tasks=list(tasks), probe="lagged", accumulate=2, missing="ignore")
        self.tasks = tasks
        self.read: dict[str, Tensor] = {}

    def call(self, *, spoilt: str = "", **sizes: float) -> Tensor:
        """The total of a call with the tasks that have a size; the gradient of a spoilt one is NaN, its loss is not."""
        z = torch.tanh(0 * self.shared) + self.shared
        self.read = {name: z * ROWS[name] for name in sizes}
        losses: dict[str, Tensor | None] = dict.fromkeys(self.tasks)
        for name, size in sizes.items():
            loss = size * self.factors[name] * self.read[name].sum()
            losses[name] = loss + 0 * (z - z.detach()).abs().sqrt().sum() if name == spoilt else loss
        return self.criterion.combine(losses)

    def shown(self) -> tuple[list[float], list[bool], list[int]]:
        """Norms and who was active in the window before, and what was dropped; commits it."""
        self.call(**dict.fromkeys(self.tasks, 1.0))
        assert self.criterion.report is not None
        signals = self.recorder.shown[-1]
        return signals.norms.tolist(), signals.active.tolist(), self.criterion.report.dropped.tolist()


def test_the_mean_of_a_task_is_over_the_calls_that_it_was_in() -> None:
    """a in both calls with 5 and 15, b in the second alone with 2, c in the first alone with 1."""
    lagged = Lagged("a", "b", "c")
    lagged.call(a=1.0, c=1.0).backward()
    lagged.call(a=3.0, b=1.0).backward()
    assert lagged.shown() == ([10.0, 2.0, 1.0], [True, True, True], [0, 0, 0])


def test_a_norm_that_is_nan_stays_visible() -> None:
    """One of two calls makes the norm of b NaN: b is out for the window and counted, a is not touched."""
    lagged = Lagged("a", "b")
    lagged.call(a=1.0, b=1.0, spoilt="b").backward()
    lagged.call(a=3.0, b=1.0).backward()
    norms, active, dropped = lagged.shown()
    assert (norms[0], active, dropped) == (10.0, [True, False], [0, 1])


def test_a_backward_of_nothing_records_nothing() -> None:
    """With a scale of 0, or of infinity, no norm is known; nothing is counted, and the other call is the window's."""
    for scale in (0.0, math.inf):
        lagged = Lagged("a", "b")
        (scale * lagged.call(a=1.0, b=1.0)).backward()
        lagged.call(a=3.0, b=1.0).backward()
        assert lagged.shown() == ([15.0, 2.0], [True, True], [0, 0])


def test_a_second_backward_is_not_added() -> None:
    """The last backward of a call counts, whatever its scale."""
    lagged = Lagged("a", "b")
    for _ in range(2):
        total = lagged.call(a=1.0, b=1.0)
        total.backward(retain_graph=True)
        (8 * total).backward()
    assert lagged.shown() == ([5.0, 2.0], [True, True], [0, 0])


def test_a_foreign_backward_is_not_taken_for_the_own_one() -> None:
    """A gradient of the factor alone begins at the loss of a and does not reach the representation. Another loss of the
    user's own then passes there, which is none of the task's."""
    lagged = Lagged("a", "b")
    torch.autograd.grad(lagged.call(a=1.0, b=1.0), [lagged.factors["a"]], retain_graph=True)
    (100 * lagged.read["a"].sum()).backward()
    lagged.call(a=3.0, b=1.0).backward()
    assert lagged.shown() == ([15.0, 2.0], [True, True], [0, 0])
