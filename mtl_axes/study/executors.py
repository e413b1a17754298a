"""Executors: they train the runs of a study one after the other, or in worker processes that save their own runs."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import pickle
import signal
import sys
import threading
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from multiprocessing import connection
from typing import Any

import torch

from mtl_axes.errors import StudyError
from mtl_axes.study.jobs import End, Job, Train

__all__ = ["Bar", "in_processes", "in_turn"]

_TICK = 1.0  # seconds between updates of the bar's clock
_LEAVE = 5.0  # seconds that a worker may take to exit


class Bar:
    """Progress on stderr: a bar of runs with the remaining time, and lines above it. No bar if tqdm is missing, and no
    output at all unless ``shown``."""

    def __init__(self, total: int, shown: bool) -> None:
        self._bar: Any = None
        self._shown = shown
        if shown and total:
            with contextlib.suppress(ModuleNotFoundError):
                from tqdm.auto import tqdm

                # The mean of all runs so far: cells differ in cost, and the next is not like the last.
                self._bar = tqdm(total=total, unit="run", desc="study", smoothing=0.0, mininterval=0.0)

    def plan(self, left: int) -> None:
        """Set how many runs are still to be trained."""
        if self._bar is not None:
            self._bar.total = self._bar.n + left
            self._bar.refresh()

    def say(self, text: str) -> None:
        """Show a line above the bar."""
        if self._bar is not None:
            self._bar.write(text, file=sys.stderr)
        elif self._shown:
            print(text, file=sys.stderr)

    def begin(self, job: Job) -> None:
        """Show which run has begun."""
        if self._bar is not None:
            self._bar.set_postfix_str(job.title)

    def tick(self) -> None:
        """Update the clock on a terminal; a log would get a line each time."""
        if self._bar is not None and sys.stderr.isatty():
            self._bar.refresh()

    def end(self, job: Job, end: End) -> None:
        """Count a run, and show why it failed."""
        if end.error is not None:
            self.say(f"{job.title} failed: {end.error.splitlines()[0]}")
        if self._bar is not None:
            self._bar.update()

    def __enter__(self) -> Bar:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()


def in_turn(jobs: Sequence[Job], train: Train, *, threads: int, bar: Bar) -> Generator[tuple[Job, End], None, None]:
    """Train in this process and yield each run as it ends."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for job in jobs:
            bar.begin(job)
            yield job, job.run(train)
    finally:
        torch.set_num_threads(before)


def in_processes(
    jobs: Sequence[Job], train: Train, *, workers: int, threads: int, bar: Bar
) -> Generator[tuple[Job, End], None, None]:
    """Train in spawned processes and yield each run as it ends. A process that dies is a failure of its run alone.

    If the caller stops early, for example at Ctrl-C, the processes end with their runs unfinished.
    """
    payload = _packed(jobs, train) if jobs else b""
    waiting = deque(range(len(jobs)))
    crew: list[_Worker] = []
    try:
        crew += [_Worker(payload, threads) for _ in range(min(workers, len(jobs)))]
        while crew:
            ready = connection.wait([source for worker in crew for source in worker.sources], timeout=_TICK)
            if not ready:
                bar.tick()
            for worker in [worker for worker in crew if any(source in ready for source in worker.sources)]:
                at, end = worker.listen()
                if end is not None:
                    assert at is not None
                    yield jobs[at], end
                if not worker.alive:
                    crew.remove(worker)
                    if waiting:
                        crew.append(_Worker(payload, threads))
                elif waiting:
                    bar.begin(jobs[waiting[0]])
                    worker.give(waiting.popleft())
                else:
                    worker.dismiss()
                    crew.remove(worker)
    finally:
        for worker in crew:
            worker.stop()


class _Worker:
    """A worker process, seen from the process that runs the study."""

    def __init__(self, payload: bytes, threads: int) -> None:
        # Spawned, not forked: a fork of a process whose torch threads already ran can hang.
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, payload, threads))
        with _ignoring_sigint():
            self._process.start()
        theirs.close()
        self._job: int | None = None
        self._began = False
        self.alive = True

    @property
    def sources(self) -> tuple[Any, Any]:
        """What to wait for: a message, and the end of the process."""
        return self._connection, self._process.sentinel

    def give(self, job: int) -> None:
        """Send the number of the next run."""
        self._job = job
        with contextlib.suppress(OSError):  # dead already, which listen() will notice
            self._connection.send(job)

    def listen(self) -> tuple[int | None, End | None]:
        """Return the run that has ended and how; (None, None) if the worker has only started.

        Raises:
            StudyError: it could not start.
        """
        job, self._job = self._job, None
        try:
            message = self._connection.recv() if self._connection.poll() else None
        except (EOFError, OSError):
            message = None
        if isinstance(message, str):
            raise StudyError(
                f"A worker process cannot load the training function or the levels: {message} Define them at the top level "
                "of a module in a file, or use workers=1."
            )
        if message is None:
            self.alive = False
            self._process.join(_LEAVE)
            code = self._process.exitcode
            if not self._began:
                raise StudyError(
                    f"A worker process ended with code {code} before its first run; its error is above. A script that runs "
                    'a study with workers > 1 needs `if __name__ == "__main__":` around that call.'
                )
            return job, None if job is None else End(f"its process died ({_ending(code)})", unsaved=True)
        self._began, self.alive = True, self._process.is_alive()
        return job, message if job is not None else None

    def dismiss(self) -> None:
        """Let the process exit, because no run is left."""
        self._connection.close()
        self._process.join(_LEAVE)
        self.stop()

    def stop(self) -> None:
        """End the process. Only its current run is lost: files of runs are complete or do not exist."""
        self._process.terminate()
        self._process.join(_LEAVE)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()


def _serve(parent: Any, payload: bytes, threads: int) -> None:
    """Train the runs whose numbers arrive, until the other end is closed."""
    # Ctrl-C reaches the whole process group; the parent decides.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(threads)
    threading.Thread(target=_leave_with_parent, daemon=True).start()
    try:
        train, jobs = pickle.loads(payload)
    except Exception as error:
        parent.send(f"{type(error).__name__}: {error}.")
        return
    parent.send(True)
    with contextlib.suppress(EOFError):
        while True:
            parent.send(jobs[parent.recv()].run(train))


def _leave_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


@contextlib.contextmanager
def _ignoring_sigint() -> Iterator[None]:
    """Processes started within ignore Ctrl-C from the start, so that none dies of it with a traceback."""
    if threading.current_thread() is not threading.main_thread():  # only the main thread may set signal handlers
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _packed(jobs: Sequence[Job], train: Train) -> bytes:
    for what, value in (("the training function", train), ("the levels or options", [job.levels for job in jobs])):
        try:
            pickle.dumps(value)
        except Exception as error:
            raise StudyError(
                f"pickle cannot send {what} to a worker process: {value!r:.200} ({error}). Define it at the top level of a "
                "module, or use workers=1."
            ) from error
    return pickle.dumps((train, list(jobs)))


def _ending(code: int | None) -> str:
    if code is None or code >= 0:
        return f"code {code}"
    name = signal.Signals(-code).name
    return f"{name}: out of memory?" if name == "SIGKILL" else name
