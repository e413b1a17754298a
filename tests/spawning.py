"""Starting ranks for a test: processes that talk through gloo, with a bound on their time."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import limits
import torch
from torch import distributed, multiprocessing


def _rank(rank: int, body: Callable[..., Any], folder: str, count: int, arguments: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo",
        init_method=f"file://{folder}/store",
        rank=rank,
        world_size=count,
        timeout=timedelta(seconds=limits.PROCESS),
    )
    result = body(rank, *arguments)
    torch.save(result, f"{folder}/{rank}.pt")
    distributed.barrier()
    distributed.destroy_process_group()


def on_ranks(body: Callable[..., Any], folder: Path, count: int, *arguments: Any) -> list[Any]:
    """Return ``body(rank, *arguments)`` of every rank, each in a process of its own."""
    context = multiprocessing.start_processes(
        _rank, (body, str(folder), count, arguments), nprocs=count, join=False, start_method="spawn"
    )
    assert context is not None
    try:
        # join() returns True once all have ended, and False whenever one of them has.
        ended = any(context.join(timeout=limits.PROCESS) for _ in range(count + 1))
        assert ended, f"{count} ranks should end in {limits.PROCESS:.0f} s"
    finally:
        for process in context.processes:
            if process.is_alive():
                process.kill()
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(count)]
