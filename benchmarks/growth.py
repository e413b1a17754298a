"""How the cost grows: with the number of tasks, with the parameters, with the batch."""

from __future__ import annotations

from typing import Any

from benchmarks import steps
from benchmarks.methods import EVERY, PLAIN, row
from benchmarks.models import mlp

__all__ = ["TASKS", "run"]

TASKS = (2, 4, 8, 16, 32, 64)
WIDTHS = (64, 128, 256, 512)
BATCHES = (8, 32, 128, 512)
METHODS = (
    PLAIN,
    "dwa",
    "gaba: lagged",
    "gaba: representation",
    f"gaba: rotate, every {EVERY}",
    f"gaba: exact, every {EVERY}",
    "gaba: rotate",
    "gaba: exact",
)


def run(
    *,
    rounds: int = 3,
    tasks: tuple[int, ...] = TASKS,
    widths: tuple[int, ...] = WIDTHS,
    batches: tuple[int, ...] = BATCHES,
) -> list[dict[str, Any]]:
    """Vary tasks, width or batch, one at a time, from four layers of 256 units, batch 128, K=4."""
    methods = [row(name) for name in METHODS]
    studies = [
        *(("tasks", count, mlp(count, batch=128, width=256, depth=4)) for count in tasks),
        *(("width", width, mlp(4, batch=128, width=width, depth=4)) for width in widths),
        *(("batch", batch, mlp(4, batch=batch, width=256, depth=4)) for batch in batches),
    ]
    return [
        {"along": along, "value": value, **record}
        for along, value, workload in studies
        for record in steps.run(workload, methods, rounds=rounds, repeats=2)[0]
    ]
