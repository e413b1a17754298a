"""Time of a whole training step over that of the plain weighted sum."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from benchmarks.methods import EVERY, PLAIN, Method, quiet
from benchmarks.models import Workload
from benchmarks.timing import Block, Spread, interleave, ratios

__all__ = ["run"]


def run(
    workload: Workload,
    methods: list[Method],
    *,
    rounds: int,
    period: int = EVERY,
    repeats: int = 3,
    wait: Callable[[], None] = lambda: None,
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return the rows of a workload, and its duels with TorchJD: the same mathematics in both libraries.

    Args:
        repeats: blocks of the plain sum in a round; they are averaged.
    """
    title = f"{workload.name}, K={len(workload.tasks)}"
    with quiet():
        steps = {method.name: method.build(workload) for method in methods}
        timed = interleave(steps, rounds=rounds, period=period, title=title, repeated=PLAIN, repeats=repeats, wait=wait)
    head = {"model": workload.name, "tasks": len(workload.tasks), "parameters": workload.parameters, "rounds": rounds}
    return [{**head, **_row(timed, method)} for method in methods], [{**head, **duel} for duel in _duels(timed, methods)]


def _row(rounds: list[dict[str, Block]], method: Method) -> dict[str, Any]:
    wall, cpu = ratios(rounds, method.name, PLAIN)
    return {
        "method": method.name,
        "family": method.family,
        "library": method.library,
        "ms": 1e3 * Spread.of([blocks[method.name].wall for blocks in rounds]).median,
        "cpu_ms": 1e3 * Spread.of([blocks[method.name].cpu for blocks in rounds]).median,
        "wall": [wall.low, wall.median, wall.high],
        "cpu": [cpu.low, cpu.median, cpu.high],
    }


def _duels(rounds: list[dict[str, Block]], methods: list[Method]) -> list[dict[str, Any]]:
    """Time of ours over theirs, for every Gramian weighting and each of TorchJD's forms."""
    duels = []
    for ours in (method for method in methods if method.family == "gramian" and method.library == "mtl_axes"):
        for theirs in methods:
            if theirs.library == "TorchJD" and theirs.mathematics == ours.mathematics:
                wall, cpu = ratios(rounds, ours.name, theirs.name)
                duels.append(
                    {
                        "mathematics": ours.mathematics,
                        "rival": theirs.name,
                        "wall": [wall.low, wall.median, wall.high],
                        "cpu": [cpu.low, cpu.median, cpu.high],
                    }
                )
    return duels
