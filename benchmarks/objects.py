"""What a call costs beside many Python objects: its time over that of a call without them, interleaved in one process.

python -m benchmarks.objects                     about a minute
python -m benchmarks.objects --quick             does it run? The numbers mean nothing

Beside it live 400,000 objects that the garbage collector tracks, and 10,000 are made for every batch. Only the criterion
and the backward are timed, on a model so small that nothing else counts; making the objects is not.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.methods import FLOOR, quiet
from benchmarks.models import MultiTask
from benchmarks.timing import Spread
from mtl_axes import compose

__all__ = ["main", "ratio"]

LIVE, NEW = 400_000, 10_000
GABA = {"name": "gaba", "warmup": 0, "floor": FLOOR}
PROBES: dict[str, Any] = {
    "exact": "exact",
    "exact, no reuse": {"name": "exact", "reuse": False},
    "representation": "representation",
    "lagged": "lagged",
}


class _Rig:
    """A tiny model with its criterion."""

    def __init__(self, probe: Any) -> None:
        trunk = nn.Sequential(nn.Linear(4, 8), nn.Tanh())
        self.model = MultiTask(trunk, {"value": nn.Linear(8, 1), "other": nn.Linear(8, 1)})
        self.inputs, self.target = torch.randn(64, 4), torch.randn(64)
        self.criterion = compose(GABA, tasks=["value", "other"], probe=probe)

    def seconds(self, calls: int, new: int) -> float:
        """Return the median time of a call and its backward, with ``new`` objects made for every batch."""
        times = []
        batch: list[list[int]] = []
        for _ in range(calls):
            batch = [[index] for index in range(new)]
            losses = {name: F.mse_loss(each, self.target) for name, each in self.model(self.inputs).items()}
            start = time.perf_counter()
            total: Tensor = self.criterion.combine(losses)
            total.backward()  # type: ignore[no-untyped-call]
            times.append(time.perf_counter() - start)
            self.model.zero_grad()
        del batch
        return statistics.median(times)


def ratio(probe: Any, *, rounds: int, calls: int = 20, live: int = LIVE, new: int = NEW) -> Spread:
    """Return the ratio over the rounds."""
    rig = _Rig(probe)
    rig.seconds(calls, 0)
    values = []
    for _ in range(rounds):
        alone = rig.seconds(calls, 0)
        others = [[index] for index in range(live)]
        values.append(rig.seconds(calls, new) / alone)
        del others
    return Spread.of(values)


def main(arguments: list[str] | None = None) -> int:
    """Print the table; the return value is the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.objects", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one round beside few objects")
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    few = {"rounds": 1, "calls": 2, "live": 100, "new": 10} if options.quick else {"rounds": options.rounds}
    print("| probe | beside many objects | quartiles |\n|---|---|---|")
    with quiet():
        for name, probe in PROBES.items():
            spread = ratio(probe, **few)
            print(f"| {name} | {spread.median:.2f} | {spread.low:.2f}-{spread.high:.2f} |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
