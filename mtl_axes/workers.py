"""Runs of a study, one after the other or in processes of their own; each is kept on disk by whoever trained it."""

from __future__ import annotations

import copy
import multiprocessing
import os
import pickle
import random
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any

import torch

from mtl_axes.composition import compose
from mtl_axes.criterion import MultiTaskCriterion
from mtl_axes.errors import DataError, StudyError
from mtl_axes.history import History
from mtl_axes.results import Run

__all__ = ["Job", "Outcome", "Train", "run_jobs", "write_whole"]

# Rows of the history that a study keeps of a run by itself.
_ROWS = 512
_TRACEBACK_LINES = 12


@dataclass(frozen=True, eq=False)
class Outcome:
    """What a training function may return instead of its metrics alone.

    Attributes:
        metrics: a number for each name.
        history: a :class:`mtl_axes.History`, or its columns by name; None: that which the study keeps by itself.
        predictions: by task ``(predicted, true)``, two sequences or 1-d tensors of one length, for the report.
    """

    metrics: Mapping[str, float]
    history: Any = None
    predictions: Mapping[str, tuple[Any, Any]] = field(default_factory=dict)


Train = Callable[[MultiTaskCriterion, int], Mapping[str, float] | Outcome]


@dataclass(frozen=True, eq=False)
class Job:
    """A run that is to be made: the two levels, the seed, what else its criterion is built from, and where it is kept."""

    outer: str
    inner: str
    seed: int
    levels: tuple[Any, Any]
    options: Mapping[str, Any]
    metrics: tuple[str, ...]
    config: Mapping[str, Any]
    path: Path

    @property
    def title(self) -> str:
        """What messages call it."""
        return f"{self.outer} x {self.inner}, seed {self.seed}"

    def criterion(self) -> MultiTaskCriterion:
        """A fresh criterion; strategies that were given as objects are copied."""
        return compose(*copy.deepcopy(self.levels), **copy.deepcopy(dict(self.options)))

    def run(self, train: Train) -> Run:
        """Train it and keep what came of it; an error of the training is a part of that."""
        begin = time.perf_counter()
        _seed(self.seed)
        try:
            run = self._measured(train)
        except Exception as error:
            told = traceback.format_exc().splitlines()[-_TRACEBACK_LINES:]
            run = self.failed(f"{type(error).__name__}: {error}\n" + "\n".join(told))
        run = replace(run, seconds=time.perf_counter() - begin)
        write_whole(self.path, run.to_json())
        return run

    def failed(self, error: str) -> Run:
        """The record of a run that came to nothing."""
        return Run(self.outer, self.inner, self.seed, config=self.config, error=error)

    def _measured(self, train: Train) -> Run:
        criterion = self.criterion()
        kept = History(criterion, capacity=_ROWS)
        returned = train(criterion, self.seed)
        outcome = returned if isinstance(returned, Outcome) else Outcome(returned)
        history = kept if outcome.history is None else outcome.history
        return Run(
            self.outer,
            self.inner,
            self.seed,
            metrics=self._checked(outcome.metrics),
            history=history if isinstance(history, Mapping) else history.columns(),
            predictions={task: _pair(task, given) for task, given in outcome.predictions.items()},
            config=self.config,
        )

    def _checked(self, metrics: Any) -> dict[str, float]:
        if not isinstance(metrics, Mapping):
            raise DataError(
                f"The training function should return a mapping from metrics to numbers, or an Outcome. Found {metrics!r}."
            )
        missing = [name for name in self.metrics if name not in metrics]
        if missing:
            raise DataError(
                f"The training function should return every metric that the study names: {', '.join(self.metrics)}. Found "
                f"{', '.join(map(str, metrics)) or 'none'}."
            )
        numbers = {}
        for name, value in metrics.items():
            try:
                numbers[str(name)] = float(value)
            except (TypeError, ValueError) as error:
                raise DataError(f"The metric `{name}` should be a number. Found {value!r}.") from error
        return numbers


def run_jobs(jobs: Sequence[Job], train: Train, *, workers: int, progress: bool, threads: int, done: int) -> None:
    """Run every job; the first ``done`` runs of the bar were finished before."""
    if workers > 1 and jobs:
        _check_reachable(train)
    finished = _in_processes(jobs, train, workers, threads) if workers > 1 else _in_turn(jobs, train, threads)
    with _bar(len(jobs) + done, done, progress) as tell:
        for job, run in finished:
            tell(None if run.error is None else f"{job.title}: failed, {run.error.splitlines()[0]}")


def write_whole(path: Path, text: str) -> None:
    """Write a file so that a reader sees all of it or none, whenever the process is stopped."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}")
    with part.open("w", encoding="utf-8", newline="\n") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())
    part.replace(path)


def _in_turn(jobs: Sequence[Job], train: Train, threads: int) -> Iterator[tuple[Job, Run]]:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for job in jobs:
            yield job, job.run(train)
    finally:
        torch.set_num_threads(before)


def _in_processes(jobs: Sequence[Job], train: Train, workers: int, threads: int) -> Iterator[tuple[Job, Run]]:
    left, workers = list(jobs), min(workers, len(jobs))
    while left:
        suspects = []
        for job, run in _in_one_pool(left, train, workers, threads):
            if run is None:
                suspects.append(job)
            else:
                left.remove(job)
                yield job, run
        # A worker that dies takes the whole pool with it. Alone, a run can only take itself.
        for job in suspects:
            left.remove(job)
            for _, run in _in_one_pool([job], train, 1, threads):
                if run is None:
                    run = job.failed("its process died (out of memory?)")
                    write_whole(job.path, run.to_json())
                yield job, run


def _in_one_pool(jobs: Sequence[Job], train: Train, workers: int, threads: int) -> Iterator[tuple[Job, Run | None]]:
    """Yield finished runs; and None for those that were under way when a worker died. Those that had not begun are left."""
    # Spawned, not forked: a fork of a process whose torch threads already ran can hang.
    context = multiprocessing.get_context("spawn")
    stop = context.Event()
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_start, initargs=(threads, stop))
    waiting: dict[Future[Run], Job] = {}
    queue = iter(jobs)
    try:
        broken = False
        while True:
            # No more than are trained at once: whatever was handed over counts as begun when the pool breaks.
            while not broken and len(waiting) < workers and (job := next(queue, None)) is not None:
                waiting[pool.submit(job.run, train)] = job
            if not waiting:
                return
            for future in wait(waiting, return_when=FIRST_COMPLETED).done:
                job = waiting.pop(future)
                try:
                    yield job, future.result()
                except BrokenProcessPool:
                    broken = True
                    yield job, None
    finally:
        if waiting:
            stop.set()
        pool.shutdown(wait=True, cancel_futures=True)


def _start(threads: int, stop: Event) -> None:
    # Ctrl-C reaches the whole process group; the parent decides, and tells the workers through the event.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(threads)
    parent = multiprocessing.parent_process()
    assert parent is not None
    for end in (stop.wait, parent.join):
        threading.Thread(target=_leave_after, args=(end,), daemon=True).start()


def _leave_after(end: Callable[[], object]) -> None:
    end()
    # Nothing is lost: files of runs appear whole or not at all.
    os._exit(1)


def _check_reachable(train: Train) -> None:
    main = sys.modules["__main__"]
    try:
        pickle.dumps(train)
        if getattr(train, "__module__", None) == "__main__" and not hasattr(main, "__file__"):
            raise StudyError("it is defined in an interactive session")
    except Exception as error:
        raise StudyError(
            "With workers > 1 the training function should be one that another process can import: at the top level of a "
            f"module. Found {train!r} ({error}). Move it into a file, or use workers=1."
        ) from error


def _seed(seed: int) -> None:
    random.seed(seed)
    torch.manual_seed(seed)
    numpy = sys.modules.get("numpy")
    if numpy is not None:
        numpy.random.seed(seed)


def _pair(task: str, given: tuple[Any, Any]) -> dict[str, list[float]]:
    predicted, true = ([float(value) for value in values] for values in given)
    if len(predicted) != len(true):
        raise DataError(
            f"The predictions of `{task}` should be as many as its true values. Found {len(predicted)} and {len(true)}."
        )
    return {"predicted": predicted, "true": true}


@contextmanager
def _bar(total: int, done: int, progress: bool) -> Iterator[Callable[[str | None], None]]:
    """A bar that moves by one with each call, and shows what it is told above itself."""
    try:
        from tqdm.auto import tqdm
    except ImportError:
        progress = False
    if not progress:
        yield lambda text: None
        return
    with tqdm(total=total, initial=done, unit="run", desc="study", mininterval=0.0) as bar:

        def tell(text: str | None) -> None:
            if text is not None:
                bar.write(text)
            bar.update()

        yield tell
