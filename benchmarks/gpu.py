"""Steps on a GPU: absolute times, peak memory, and how often a step waits for the device."""

from __future__ import annotations

import gc
import warnings
from collections.abc import Callable
from typing import Any

import torch

from benchmarks import memory, steps
from benchmarks.methods import EVERY, Method, quiet
from benchmarks.models import Workload, cnn_bilstm, large_transformer, mlp, transformer
from benchmarks.profiling import profiled, repeat

__all__ = ["run"]

# A weighting may check itself in its first steps; only the steady state is measured.
WARMUP = 30
# Not cudaDeviceSynchronize, which the profiler itself calls when it stops.
WAITS = ("cudaStreamSynchronize", "cudaEventSynchronize", "Memcpy DtoH")


def workloads() -> list[Workload]:
    return [
        *(mlp(count, device="cuda") for count in (2, 4, 8)),
        cnn_bilstm(device="cuda"),
        transformer(device="cuda"),
        large_transformer(),
    ]


def run(methods: list[Method], *, rounds: int) -> dict[str, Any] | None:
    """Return rows, duels, peaks and waits of every workload, or None without a CUDA device."""
    if not torch.cuda.is_available():
        return None
    result: dict[str, Any] = {"device": torch.cuda.get_device_name(), "rows": [], "duels": [], "memory": [], "waits": []}
    for workload in workloads():
        chosen = [method for method in methods if not method.extensive and (workload.batched or not method.batched)]
        rows, duels = steps.run(workload, chosen, rounds=rounds, wait=torch.cuda.synchronize)
        result["rows"] += rows
        result["duels"] += duels
        result["memory"] += memory.run([(workload, chosen)])
        result["waits"] += [_count(workload, method) for method in chosen if method.family != "gramian"]
        # Every method has a copy of the model.
        gc.collect()
        torch.cuda.empty_cache()
    return result


def _count(workload: Workload, method: Method) -> dict[str, Any]:
    """Count waits in a step in two ways: operators that torch reports to synchronise, and calls in the profile."""
    with quiet():
        step = method.build(workload)
        for _ in range(WARMUP):
            step()
    torch.cuda.synchronize()
    return {
        "model": workload.name,
        "tasks": len(workload.tasks),
        "method": method.name,
        "reported": _reported(step) / EVERY,
        "profiled": _profiled(step) / EVERY,
    }


def _reported(step: Callable[[], None]) -> int:
    always = torch.is_warn_always_enabled()
    torch.set_warn_always(True)
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            for _ in range(EVERY):
                step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
        torch.set_warn_always(always)
    return sum("synchronizing" in str(warning.message) for warning in caught)


def _profiled(step: Callable[[], None]) -> int:
    averages = profiled(repeat(step, EVERY), cuda=True).key_averages()
    return sum(event.count for event in averages if event.key.startswith(WAITS))
