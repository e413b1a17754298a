"""Timing: methods interleaved in one process, whole periods in a round, and ratios within a round.

A shared machine drifts by more than the measured differences. Within a round all methods run under about the same
conditions, so the ratio to the plain sum of the *same* round is taken first, and the median over the rounds afterwards.
"""

from __future__ import annotations

import gc
import random
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from tqdm import tqdm

__all__ = ["Block", "Spread", "interleave", "ratios"]

# Steps before the first round, for Adam's moments, the allocator's blocks and the first calls of a criterion.
WARMUP = 3


@dataclass(frozen=True)
class Block:
    """Mean seconds of a step over one round's steps of a method."""

    wall: float
    cpu: float


@dataclass(frozen=True)
class Spread:
    """Quartiles over the rounds."""

    low: float
    median: float
    high: float

    @classmethod
    def of(cls, values: list[float]) -> Spread:
        if len(values) < 2:
            return cls(values[0], values[0], values[0])
        low, median, high = statistics.quantiles(values, n=4, method="inclusive")
        return cls(low, median, high)


def interleave(
    steps: Mapping[str, Callable[[], None]],
    *,
    rounds: int,
    period: int,
    title: str,
    repeated: str | None = None,
    repeats: int = 1,
    wait: Callable[[], None] = lambda: None,
) -> list[dict[str, Block]]:
    """Time `period` steps of every method in every round, in shuffled order.

    Args:
        steps: one training step by method.
        period: steps in a round, a multiple of every schedule, so that a round holds whole periods.
        repeated: a method that is timed `repeats` times in a round and averaged: the denominator of all ratios.
        wait: blocks until the device is done.

    Returns:
        a mapping from method to its block, for each round.
    """
    rng = random.Random(0)
    order = [name for name in steps for _ in range(repeats if name == repeated else 1)]
    results = []
    # The methods themselves are never garbage, and a collection that walks them would take longer than a block.
    gc.collect()
    gc.freeze()
    for step in steps.values():
        for _ in range(WARMUP):
            step()
    try:
        with tqdm(total=rounds * len(order), desc=title, leave=False) as bar:
            for _ in range(rounds):
                rng.shuffle(order)
                blocks: dict[str, list[Block]] = {name: [] for name in steps}
                for name in order:
                    blocks[name].append(_block(steps[name], period, wait))
                    bar.update()
                results.append({name: _mean(times) for name, times in blocks.items()})
    finally:
        gc.unfreeze()
    return results


def _block(step: Callable[[], None], period: int, wait: Callable[[], None]) -> Block:
    # The collector would run in whichever method happens to reach its threshold.
    gc.collect()
    gc.disable()
    try:
        wait()
        wall, cpu = time.perf_counter(), time.process_time()
        for _ in range(period):
            step()
        wait()
        return Block((time.perf_counter() - wall) / period, (time.process_time() - cpu) / period)
    finally:
        gc.enable()


def _mean(blocks: list[Block]) -> Block:
    return Block(statistics.fmean(block.wall for block in blocks), statistics.fmean(block.cpu for block in blocks))


def ratios(rounds: list[dict[str, Block]], name: str, base: str) -> tuple[Spread, Spread]:
    """Return the spreads of wall time and of CPU time of a method over those of another, ratio by ratio."""
    return (
        Spread.of([blocks[name].wall / blocks[base].wall for blocks in rounds]),
        Spread.of([blocks[name].cpu / blocks[base].cpu for blocks in rounds]),
    )
