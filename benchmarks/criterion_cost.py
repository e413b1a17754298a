"""What a call of the criterion itself costs: microseconds over `0.5 * mse + 0.5 * ce` written by hand.

The model is tiny, so that the criterion dominates: 64 samples, four features, a trunk of eight units, two heads. Timed are
the criterion and the backward, not the forward pass of the model.
"""

from __future__ import annotations

import cProfile
import gc
import pstats
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from benchmarks.methods import EVERY, FLOOR, quiet
from benchmarks.models import MultiTask
from benchmarks.profiling import profiled, repeat
from benchmarks.timing import Spread
from mtl_axes import compose
from mtl_axes.probes import Exact

__all__ = ["run"]

Call = Callable[[], float]
HAND = "0.5 * mse + 0.5 * ce"
TASKS = ("value", "state")
GABA = {"name": "gaba", "warmup": 0, "floor": FLOOR}
# A stateful weighting checks itself more often in its first 20 steps.
WARMUP = 60
PROFILED = 12


class _Rig:
    """A tiny model, its batch, and one way to sum its losses."""

    def __init__(self, join: Callable[[dict[str, Tensor], dict[str, Tensor]], Tensor]) -> None:
        torch.manual_seed(0)
        trunk = nn.Sequential(nn.Linear(4, 8), nn.Tanh())
        self.model = MultiTask(trunk, {"value": nn.Linear(8, 1), "state": nn.Linear(8, 3)})
        self.inputs = torch.randn(64, 4)
        self.targets = {"value": torch.randn(64), "state": torch.randint(3, (64,))}
        self.join = join
        learnable = join.parameters() if isinstance(join, nn.Module) else ()
        self.optimizer = torch.optim.SGD([*self.model.parameters(), *learnable], lr=1e-3)

    def __call__(self) -> float:
        """Return the seconds of one criterion and its backward."""
        outputs = self.model(self.inputs)
        start = time.perf_counter()
        self.join(outputs, self.targets).backward()  # type: ignore[no-untyped-call]
        elapsed = time.perf_counter() - start
        self.optimizer.step()
        self.optimizer.zero_grad()
        return elapsed


def _by_hand(outputs: dict[str, Tensor], targets: dict[str, Tensor]) -> Tensor:
    return 0.5 * F.mse_loss(outputs["value"], targets["value"]) + 0.5 * F.cross_entropy(outputs["state"], targets["state"])


def _rigs() -> dict[str, _Rig]:
    def ours(outer: Any, probe: Any = "exact", every: int = 1) -> _Rig:
        return _Rig(compose(outer, "mse", tasks=TASKS, probe=probe, every=every))

    return {
        HAND: _Rig(_by_hand),
        "fixed": ours("fixed"),
        "uncertainty": ours("uncertainty"),
        "dwa": ours({"name": "dwa", "window": EVERY}),
        "gaba: lagged": ours(GABA, "lagged"),
        "gaba: representation": ours(GABA, "representation"),
        f"gaba: rotate, every {EVERY}": ours(GABA, Exact(rotate=True), EVERY),
        f"gaba: exact, every {EVERY}": ours(GABA, every=EVERY),
        "gaba: exact": ours(GABA),
    }


def run(*, rounds: int = 100) -> dict[str, Any]:
    """Return the cost of every row, with a profile of `fixed` and of `dwa`, which has state and no gradients."""
    with quiet():
        rigs = _rigs()
        for rig in rigs.values():
            for _ in range(WARMUP):
                rig()
        seconds = _interleave(rigs, rounds)
        rows = [_record(name, values, seconds[HAND]) for name, values in seconds.items()]
        return {"rows": rows, "profile": {name: _profile(rigs[name], rigs[HAND]) for name in ("fixed", "dwa")}}


def _interleave(rigs: dict[str, _Rig], rounds: int) -> dict[str, list[float]]:
    """Return means over one period of every row in every round, run in shuffled order."""
    seconds: dict[str, list[float]] = {name: [] for name in rigs}
    order, shuffle = list(rigs), random.Random(0).shuffle
    for _ in tqdm(range(rounds), desc="criterion", leave=False):
        shuffle(order)
        gc.collect()
        gc.disable()
        try:
            for name in order:
                seconds[name].append(sum(rigs[name]() for _ in range(EVERY)) / EVERY)
        finally:
            gc.enable()
    return seconds


def _record(name: str, values: list[float], hand: list[float]) -> dict[str, Any]:
    extra = Spread.of([1e6 * (value - base) for value, base in zip(values, hand, strict=True)])
    return {
        "method": name,
        "us": 1e6 * Spread.of(values).median,
        "extra_us": [extra.low, extra.median, extra.high],
    }


def _profile(rig: _Rig, hand: _Rig, calls: int = 50) -> dict[str, list[list[Any]]]:
    """Return where the time of a call goes: operators beyond the sum by hand, and Python functions of the criterion."""
    base = {name: (count, us) for name, count, us in _operators(hand, calls)}
    extra: list[list[Any]] = [
        [name, count - base.get(name, (0.0, 0.0))[0], us - base.get(name, (0.0, 0.0))[1]]
        for name, count, us in _operators(rig, calls)
    ]
    profiler = cProfile.Profile()
    for _ in range(calls):
        outputs = rig.model(rig.inputs)
        total = profiler.runcall(rig.join, outputs, rig.targets)
        total.backward()  # type: ignore[no-untyped-call]
        rig.optimizer.zero_grad()
    stats: Any = pstats.Stats(profiler)
    functions: list[list[Any]] = [
        [function if line == 0 else f"{Path(file).name}: {function}", count / calls, 1e6 * own / calls]
        for (file, line, function), (_, count, own, _, _) in stats.stats.items()
    ]
    return {
        "operators": sorted((entry for entry in extra if entry[1] > 0), key=lambda entry: -entry[2])[:PROFILED],
        "functions": sorted(functions, key=lambda entry: -entry[2])[:PROFILED],
    }


def _operators(rig: _Rig, calls: int) -> list[tuple[str, float, float]]:
    """Return name, number of calls and own microseconds of every operator in a call."""
    averages = profiled(repeat(rig, calls)).key_averages()
    return [(event.key, event.count / calls, event.self_cpu_time_total / calls) for event in averages]
