"""Run the missing runs of a study, in this process or in worker processes, each on one thread.

A run depends on its own configuration only, so the results are the same for any number of workers and after any
interruption.
"""

from __future__ import annotations

import multiprocessing
import os
import queue
import signal
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import lru_cache
from multiprocessing.queues import Queue
from multiprocessing.synchronize import Event
from typing import Any

import torch
from tqdm import tqdm

from mtl_axes.errors import MtlAxesError

from .data import Fleet
from .errors import RunError
from .methods import Cell
from .store import Store
from .train import Prepared, Run, prepare, train_run

Key = tuple[Cell, int]
STEPS_PER_MESSAGE = 5


class _StopError(Exception):
    """The study was interrupted while this run was under way."""


@dataclass
class Outcome:
    """Finished runs in the order of the study, and the reasons of those that could not be finished."""

    runs: dict[Key, Run]
    failures: list[str]


def run_study(
    fleet: Fleet,
    store: Store,
    keys: list[Key],
    *,
    workers: int,
    say: Callable[[str], None] = lambda text: tqdm.write(text),
) -> Outcome:
    """Train every run that ``store`` does not hold yet; ``results.csv`` grows with every finished run.

    Raises:
        KeyboardInterrupt: after the workers have stopped; runs finished until then are kept.
    """
    known = {key: store.load(*key) for key in keys}
    missing = [key for key in keys if known[key] is None]
    if len(missing) < len(keys):
        say(f"{len(keys) - len(missing)} of {len(keys)} runs were finished before and are not repeated.")
    failures: list[str] = []
    if missing:
        with tqdm(total=len(missing) * store.study.recipe.steps, unit="step", desc="training", mininterval=0.5) as bar:
            finished = _in_workers if workers > 1 and len(missing) > 1 else _in_process
            for key, result in finished(fleet, store, missing, min(workers, len(missing)), bar):
                if isinstance(result, Run):
                    known[key] = result
                    store.write_results(_finished(known))
                    say(
                        f"{key[0].title}, seed {key[1]}: test RMSE {result.rmse:.2f}, NASA {result.nasa:.0f}, "
                        f"checkpoint of step {result.chosen_step}, {result.seconds:.0f} s"
                    )
                else:
                    failures.append(result)
    return Outcome(_finished(known), failures)


def _finished(known: dict[Key, Run | None]) -> dict[Key, Run]:
    return {key: run for key, run in known.items() if run is not None}


def _in_process(
    fleet: Fleet, store: Store, keys: list[Key], workers: int, bar: tqdm[Any]
) -> Iterable[tuple[Key, Run | str]]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        trainer = _Trainer(fleet, store)
        for key in keys:
            yield key, trainer(key, lambda: _count(bar))
    finally:
        torch.set_num_threads(threads)


def _in_workers(
    fleet: Fleet, store: Store, keys: list[Key], workers: int, bar: tqdm[Any]
) -> Iterable[tuple[Key, Run | str]]:
    # Spawned, not forked: a fork of a process whose torch threads already ran can hang.
    context = multiprocessing.get_context("spawn")
    steps: Queue[int] = context.Queue()
    stop = context.Event()
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_start_worker, initargs=(fleet, store, steps, stop))
    try:
        waiting: dict[Future[Run | str], Key] = {pool.submit(_work, key): key for key in keys}
        while waiting:
            done, _ = wait(waiting, timeout=0.2, return_when=FIRST_COMPLETED)
            _drain(steps, bar)
            for future in done:
                key = waiting.pop(future)
                try:
                    yield key, future.result()
                except BrokenProcessPool:
                    yield (
                        key,
                        f"{key[0].title}, seed {key[1]}: its process died (out of memory?); run again with `--workers 1`",
                    )
        time.sleep(0.05)
        _drain(steps, bar)
    finally:
        stop.set()
        pool.shutdown(wait=True, cancel_futures=True)


def _count(bar: tqdm[Any]) -> None:
    bar.update(1)


def _drain(steps: Queue[int], bar: tqdm[Any]) -> None:
    while True:
        try:
            bar.update(steps.get_nowait())
        except queue.Empty:
            return


class _Trainer:
    """Trains a run, keeps it, and says in words why it failed."""

    def __init__(self, fleet: Fleet, store: Store) -> None:
        self.store = store
        # The last seeds' windows: neighbours in the order of runs share them.
        self.prepared: Callable[[int], Prepared] = lru_cache(maxsize=1)(
            lambda seed: prepare(fleet, seed, store.study.protocol)
        )

    def __call__(self, key: Key, on_step: Callable[[], None]) -> Run | str:
        cell, seed = key
        try:
            run = train_run(cell, seed, self.prepared(seed), self.store.study.recipe, on_step)
        except (RunError, MtlAxesError) as failure:
            return f"{cell.title}, seed {seed}: {failure}"
        self.store.save(cell, seed, run)
        return run


class _Worker:
    trainer: _Trainer
    steps: Queue[int]
    stop: Event


def _start_worker(fleet: Fleet, store: Store, steps: Queue[int], stop: Event) -> None:
    # Ctrl-C reaches the whole process group; the parent decides, and tells the workers through the event.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)
    # A worker that leaves early must not wait for someone to read its last messages.
    steps.cancel_join_thread()
    _Worker.trainer, _Worker.steps, _Worker.stop = _Trainer(fleet, store), steps, stop
    threading.Thread(target=_leave_with_parent, daemon=True).start()


def _leave_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        # Nothing is lost: run files appear whole or not at all, and nobody is left to read this process's messages.
        os._exit(1)


def _work(key: Key) -> Run | str:
    pending = 0

    def on_step() -> None:
        nonlocal pending
        pending += 1
        if pending == STEPS_PER_MESSAGE:
            _Worker.steps.put(pending)
            pending = 0
            if _Worker.stop.is_set():
                raise _StopError

    try:
        return _Worker.trainer(key, on_step)
    finally:
        if pending:
            _Worker.steps.put(pending)
