"""Training functions of the tests: two small tasks that share one layer. Workers import them from here."""

from __future__ import annotations

import itertools
import os
import random
import signal
import time
from pathlib import Path
from typing import Any

import limits
import numpy as np
import torch
from torch import nn

from mtl_axes import MultiTaskCriterion, OuterWeighting, Signals
from mtl_axes.study import Outcome

STEPS = 12


def train(criterion: MultiTaskCriterion, seed: int) -> Outcome:
    """Two regressions whose scales differ by 30; the error of each on data that were not trained on."""
    shared, heads = nn.Linear(4, 8), nn.ModuleDict({"a": nn.Linear(8, 1), "b": nn.Linear(8, 1)})
    parameters = [*shared.parameters(), *heads.parameters()]
    optimizer = torch.optim.SGD([{"params": parameters}, *criterion.param_groups()], lr=1e-3)

    def batch(count: int) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
        x = torch.randn(count, 4)
        hidden = torch.tanh(shared(x))
        outputs = {name: head(hidden).squeeze(-1) for name, head in heads.items()}
        return outputs, {"a": 30 * x[:, 0], "b": x[:, 1]}

    for _ in range(STEPS):
        criterion(*batch(16)).backward()
        optimizer.step()
        optimizer.zero_grad()
    with torch.no_grad():
        outputs, targets = batch(64)
    errors = {name: (outputs[name] - targets[name]).square().mean().sqrt() for name in outputs}
    return Outcome(
        {"rmse": errors["a"], "other": errors["b"].item()}, predictions={"a": (outputs["a"], targets["a"].tolist())}
    )


def draw(criterion: MultiTaskCriterion, seed: int) -> dict[str, float]:
    """The first number of each generator."""
    return {"torch": torch.rand(()), "numpy": np.random.rand(), "random": random.random()}


def threads(criterion: MultiTaskCriterion, seed: int) -> dict[str, float]:
    """How many threads torch has."""
    return {"rmse": torch.get_num_threads()}


def slow(criterion: MultiTaskCriterion, seed: int) -> dict[str, float]:
    """A run that lasts long enough to be killed."""
    time.sleep(0.3)
    return {"rmse": torch.rand(())}


def endless(criterion: MultiTaskCriterion, seed: int) -> dict[str, float]:
    """Seed 0 is quick, the others outlast every test."""
    if seed:
        _wait()
    return {"rmse": 1.0}


def _wait() -> None:
    """Wait for longer than any test does."""
    time.sleep(2 * limits.PROCESS)


_begun = itertools.count(1)


def stopping(criterion: MultiTaskCriterion, seed: int) -> Outcome:
    """As `train`, but the fourth run in a process never ends."""
    if next(_begun) > 3:
        _wait()
    return train(criterion, seed)


stopping.__qualname__ = train.__qualname__


def fragile(criterion: MultiTaskCriterion, seed: int) -> dict[str, float]:
    """Seed 1 cannot be trained."""
    if seed == 1:
        return _deeper()
    return {"rmse": float(seed)}


def _deeper() -> dict[str, float]:
    raise ValueError("no data\nat all")


def repaired(criterion: MultiTaskCriterion, seed: int) -> dict[str, float]:
    """What `fragile` is once its error is found."""
    return {"rmse": float(seed)}


repaired.__qualname__ = fragile.__qualname__


def leaving(criterion: MultiTaskCriterion, seed: int) -> dict[str, float]:
    """Seed 1 ends the program."""
    if seed == 1:
        raise SystemExit("enough")
    return {"rmse": float(seed)}


def dying(criterion: MultiTaskCriterion, seed: int) -> dict[str, float]:
    """Seed 1 takes its process with it, as the kernel does where memory ends; seed 2 raises."""
    if seed == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return _deeper() if seed == 2 else {"rmse": float(seed)}


def counting(criterion: MultiTaskCriterion, seed: int) -> dict[str, float]:
    """Leaves a line in the file that COUNT names."""
    with Path(os.environ["COUNT"]).open("a") as stream:
        stream.write(f"{seed}\n")
    return {"rmse": float(seed)}


class Own(OuterWeighting):
    """A weighting that is not registered."""

    def __init__(self, *, power: float = 1.0, how: Any = None) -> None:
        super().__init__()
        self.power, self.how = power, how

    def forward(self, signals: Signals, /) -> torch.Tensor:
        return torch.full_like(signals.losses, self.power)
