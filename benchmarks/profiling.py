"""torch's profiler, and the peak number of bytes alive, read from a profile."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import accumulate
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

__all__ = ["peak_bytes", "profiled", "repeat"]


def repeat(step: Callable[[], object], times: int) -> Callable[[], None]:
    """Return a call that takes a step several times."""

    def steps() -> None:
        for _ in range(times):
            step()

    return steps


def profiled(steps: Callable[[], object], *, memory: bool = False, cuda: bool = False) -> profile:
    """Return the profile of a call."""
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]
    profiler = profile(activities=activities, profile_memory=memory)
    with profiler:
        steps()
        if cuda:
            torch.cuda.synchronize()
    return profiler


def peak_bytes(steps: Callable[[], object], device: torch.device) -> int:
    """Return the largest number of bytes that were alive during a call beyond those alive before it.

    On the CPU every allocation and release of torch's allocator is summed up, including temporaries inside an operator. A
    release of memory from before the call is not in the profile, so the caller has to release `.grad`.
    """
    if device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        steps()
        torch.cuda.synchronize()
        peak: int = torch.cuda.max_memory_allocated() - before
        return peak
    changes = sorted((event.start_ns(), order, event.nbytes()) for order, event in enumerate(_memory_events(steps)))
    peak = max(accumulate((change for _, _, change in changes), initial=0))
    return int(peak)


def _memory_events(steps: Callable[[], object]) -> Iterable[Any]:
    # The public events are per operator, without the temporaries inside it.
    profiler: Any = profiled(steps, memory=True).profiler
    return [event for event in profiler.kineto_results.events() if event.name() == "[memory]"]
