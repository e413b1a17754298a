"""Peak memory of a step: the most bytes that torch holds at once, beyond those alive between steps."""

from __future__ import annotations

from typing import Any

from tqdm import tqdm

from benchmarks.methods import PLAIN, Method, quiet
from benchmarks.models import Workload
from benchmarks.profiling import peak_bytes, repeat

__all__ = ["run"]


def run(studies: list[tuple[Workload, list[Method]]], *, warmup: int = 2) -> list[dict[str, Any]]:
    """Measure the peak over one period of the schedule, in the steady state: Adam's moments exist, gradients do not."""
    records = []
    with quiet(), tqdm(total=sum(len(methods) for _, methods in studies), desc="memory", leave=False) as bar:
        for workload, methods in studies:
            peaks: dict[str, int] = {}
            for method in methods:
                peaks[method.name] = _peak(workload, method, warmup)
                bar.update()
            records += [
                {
                    "model": workload.name,
                    "tasks": len(workload.tasks),
                    "method": method.name,
                    "library": method.library,
                    "mib": peaks[method.name] / 2**20,
                    "ratio": peaks[method.name] / peaks[PLAIN],
                }
                for method in methods
            ]
    return records


def _peak(workload: Workload, method: Method, warmup: int) -> int:
    step = method.build(workload)
    for _ in range(warmup):
        step()
    return peak_bytes(repeat(step, method.every), workload.inputs.device)
