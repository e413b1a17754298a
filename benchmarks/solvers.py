"""What the small solvers cost: microseconds per call, on one CPU thread.

python -m benchmarks.solvers                  K = 2, 4, 8, 16, 64
python -m benchmarks.solvers --rounds 500     for longer

Each number is the median over calls, each for another random Jacobian of K x (K + 3) whose rows have norms of 1e-3 to 1e3;
"conflict" has a common part with random signs, so that about half of the pairs of gradients are opposed.
"""

from __future__ import annotations

import argparse
import statistics
import timeit
from collections.abc import Callable

import torch
from torch import Tensor

from mtl_axes import Signals, create
from mtl_axes.outer.solvers import min_norm, nash, nnls

COUNTS = (2, 4, 8, 16, 64)
WEIGHTINGS = ("mgda", "dualproj", "upgrad", "cagrad", "nash_mtl", "fairgrad")
SOLVERS: dict[str, Callable[[Tensor], Tensor]] = {
    "nnls": lambda gramian: nnls(gramian, -gramian.mean(0)),
    "nnls, K targets": lambda gramian: nnls(gramian, -gramian),
    "min_norm": min_norm,
    "nash": nash,
    "nash, alpha = 2": lambda gramian: nash(gramian, alpha=2.0),
}


def gramians(count: int, rounds: int, *, conflict: bool) -> list[Tensor]:
    """Seeded Gramians."""
    generator = torch.Generator().manual_seed(count)
    found = []
    for _ in range(rounds):
        rows = torch.randn(count, count + 3, generator=generator, dtype=torch.float64)
        if conflict:
            rows = rows + 2 * torch.randn(count, 1, generator=generator, dtype=torch.float64).sign()
        rows *= 10 ** (6 * torch.rand(count, 1, generator=generator, dtype=torch.float64) - 3)
        found.append(rows @ rows.T)
    return found


def median(call: Callable[[Tensor], Tensor], inputs: list[Tensor]) -> float:
    """Microseconds per call."""
    call(inputs[0])
    return 1e6 * statistics.median(timeit.timeit(lambda matrix=matrix: call(matrix), number=1) for matrix in inputs)


def calls() -> dict[str, Callable[[Tensor], Tensor]]:
    """The solvers, and a window of each weighting that uses them."""
    found = dict(SOLVERS)
    for name in WEIGHTINGS:
        weightings: dict[int, Callable[[Signals], Tensor]] = {}

        def window(
            matrix: Tensor, name: str = name, weightings: dict[int, Callable[[Signals], Tensor]] = weightings
        ) -> Tensor:
            weighting = weightings.setdefault(len(matrix), create("outer", name))
            return weighting(Signals(torch.ones(len(matrix), dtype=matrix.dtype), gramian=matrix))

        found[name] = window
    return found


def main(arguments: list[str] | None = None) -> int:
    """Print the table; the return value is the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.solvers", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=100, help="calls of each, at most 20 of K = 64")
    rounds = parser.parse_args(arguments).rounds
    torch.set_num_threads(1)
    for conflict in (False, True):
        print(f"\nmicroseconds per call, {'conflict' if conflict else 'random'}")
        print(f"{'':18}" + "".join(f"{f'K = {count}':>10}" for count in COUNTS))
        for name, call in calls().items():
            times = [
                median(call, gramians(count, rounds if count < 64 else min(rounds, 20), conflict=conflict))
                for count in COUNTS
            ]
            print(f"{name:18}" + "".join(f"{time:10.0f}" for time in times))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
