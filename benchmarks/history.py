"""What a History costs: a training step with one over the same step without, interleaved in one process.

python -m benchmarks.history                     about five minutes; prints the table of docs/history.md
python -m benchmarks.history --quick             does it run? The numbers are meaningless

A round holds whole blocks of 64 rows; each block is one transfer to the host. The row `noise` compares the same criterion
with itself, without a history.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from typing import Any

import torch

from benchmarks.methods import FLOOR, Composed, quiet
from benchmarks.models import mlp
from benchmarks.timing import Spread, interleave, ratios
from mtl_axes import History, compose

__all__ = ["main"]

BLOCK = 64
GABA = {"name": "gaba", "warmup": 0, "floor": FLOOR}
OUTER: dict[str, Any] = {"fixed": "fixed", "dwa": {"name": "dwa", "window": 10}, "gaba: exact": GABA, "upgrad": "upgrad"}
# By model: its options, the numbers of tasks, and the share of the rounds, because a step of the large one takes longer.
MODELS: dict[str, tuple[dict[str, int], tuple[int, ...], float]] = {
    "two layers of 64, batch 32": ({"batch": 32, "width": 64, "depth": 2}, (2, 8), 1.0),
    "six layers of 512, batch 256": ({}, (2,), 0.25),
}


def times(*, rounds: int, quick: bool = False) -> Iterator[tuple[str, int, str, Spread, float]]:
    """Yield model, number of tasks, weighting, the ratio over the rounds, and the median of the added microseconds."""
    for model, (options, tasks, share) in list(MODELS.items())[: 1 if quick else None]:
        for count in tasks[: 1 if quick else None]:
            workload = mlp(count, **options)

            def run(outer: Any, recorded: bool, workload: Any = workload) -> Composed:
                made = Composed(workload, compose(outer, "mse", tasks=workload.tasks))
                if recorded:
                    History(made.criterion)
                return made

            steps = {f"{name}{with_}": run(outer, bool(with_)) for name, outer in OUTER.items() for with_ in ("", " +")}
            steps["noise"], steps["noise +"] = run("fixed", False), run("fixed", False)
            timed = interleave(steps, rounds=max(1, round(share * rounds)), period=BLOCK, title=f"{count} tasks")
            for name in ("noise", *OUTER):
                added = Spread.of([1e6 * (blocks[f"{name} +"].wall - blocks[name].wall) for blocks in timed])
                yield model, count, name, ratios(timed, f"{name} +", name)[0], added.median


def main(arguments: list[str] | None = None) -> int:
    """Print the table; the return value is the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.history", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one round of a tiny model")
    parser.add_argument("--rounds", type=int, default=30)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    print("| model | K | weighting | with a history | quartiles | adds, us |\n|---|---|---|---|---|---|")
    with quiet():
        for model, count, name, ratio, added in times(rounds=1 if options.quick else options.rounds, quick=options.quick):
            quartiles = f"{ratio.low:.3f}-{ratio.high:.3f}"
            print(f"| {model} | {count} | {name} | {ratio.median:.3f} | {quartiles} | {added:.0f} |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
