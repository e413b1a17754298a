"""Grid studies: outer weightings x inner shapes x seeds over a training function of the user's own."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import inspect
import json
import math
import platform
import re
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

from mtl_axes.__about__ import version
from mtl_axes.errors import MtlAxesError, OptionError, StudyError
from mtl_axes.options import check_number
from mtl_axes.study.executors import Bar, in_processes, in_turn
from mtl_axes.study.jobs import Job, Outcome, Train, as_read, composed, write_whole
from mtl_axes.study.levels import ended, levels, mean_ends, tuned
from mtl_axes.study.levels import label as label_of
from mtl_axes.study.plan import Baseline, as_baselines, as_metrics, as_options, as_plain, as_seeds
from mtl_axes.study.results import Results
from mtl_axes.study.runs import CHOSEN, ENDED, RUNS_FOLDER, STUDY_FILE, TUNED, Cell, Direction, Run

__all__ = ["Baseline", "Outcome", "Study", "Train"]

_VERSIONS = {"mtl_axes": version, "torch": torch.__version__}


class Study:
    """Every pair of levels of the two axes, trained with every seed, kept on disk and compared.

    Each run calls ``train(criterion, seed)`` with a fresh criterion; ``random``, NumPy and torch are seeded before. A run
    counts as finished when its file is whole and all that it is known to depend on is the same: labels, seed, the
    configuration of the criterion, ``config``, the name of the training function with the numbers and texts that
    ``functools.partial`` has bound to it, the versions of mtl_axes and torch. So a study that was killed goes on where it
    stopped when it is run again, and one that gains a level or a seed trains what is new. A change
    in the code of the training function is not seen: name it in ``config``, or take another folder.

    Args:
        outer: levels of the outer axis: a list of whatever ``compose`` takes, or a mapping from labels to such.
        inner: levels of the inner axis, likewise.
        seeds: a number n, for the seeds 0 to n - 1, or the seeds, each in [0, 2^32). Comparisons are paired by seed, so let
            it draw the split of the data and the initial weights of the model.
        out: folder of the results.
        metrics: by name whether a lower ("min") or a higher ("max") value is better; None where neither is. The training
            function must return all of these and may return more.
        reference: the cell that others are compared with, a pair of labels. None: equal weights where they are a baseline,
            else the first level; and the first inner level.
        baselines: constant weights as further levels of the outer axis, each with every inner level.

            - ``"equal"``: 1/K each. Where ``outer`` has ``"fixed"`` without weights, it is that level.
            - ``"ended"``: for every weighting that moves, and every inner level, the mean over its seeds of the weights in
              the last tenth of its runs. It changes, and is trained anew, when seeds are added.
            - ``"tuned"``: the first task at 0.01, 0.1, 10 and 100 times the weight of the second; of more than two tasks
              each in turn at 0.1 and 10 times the weight of the others. Beside them stands the row ``tuned constant``: for
              each seed the constant level that was best on the *other* seeds by the first metric with a direction, so that
              no constant is judged by what it was chosen by. Its figures are those of the runs of that level. A constant of
              which one of these runs failed, or gave no finite value, is not chosen.
        cells: pairs of labels, where not every pair of the given levels is to be trained.
        compose: further options for ``compose``, such as ``{"tasks": ["rul", "health"], "every": 10}``.
        config: whatever else the results depend on, as plain data: the learning rate, the number of steps, a digest of the
            data.
        title: heading of the report.

    Raises:
        OptionError: a seed, a metric, a baseline or a label is not what it should be.
        StudyError: ``compose`` cannot build a cell. Every criterion is built here, so that a name that does not exist shows
            before the first run.
    """

    def __init__(
        self,
        outer: Sequence[Any] | Mapping[str, Any],
        inner: Sequence[Any] | Mapping[str, Any],
        seeds: int | Sequence[int] = 5,
        out: str | Path = "runs/study",
        *,
        metrics: Mapping[str, Direction | None] | None = None,
        reference: Cell | None = None,
        baselines: Sequence[Baseline] = (),
        cells: Sequence[Cell] | None = None,
        compose: Mapping[str, Any] | None = None,
        config: Mapping[str, Any] | None = None,
        title: str = "",
    ) -> None:
        self.seeds = as_seeds(seeds)
        self.out, self.title = Path(out), title
        self.metrics, self.baselines = as_metrics(metrics), as_baselines(baselines)
        self.options, self.config = as_options(compose), as_plain("config", config or {})
        self.inner = levels("inner", inner)
        given = levels("outer", outer)
        # The label of the equal weights that are a baseline: of a level that is given, or of one that is added.
        self._equal: str | None = None
        added: dict[str, Any] = {}
        if "equal" in self.baselines:
            found = [label for label, level in given.items() if label_of("outer", level) == "fixed"]
            self._equal, added = (found[0], {}) if found else ("equal", {"equal": "fixed"})
        self._tuned = self._tuned_levels() if "tuned" in self.baselines else {}
        later = [TUNED] * bool(self._tuned) + [ENDED.format(label) for label in given if self._ends]
        taken = [label for label in given if label in {*added, *self._tuned, *later}]
        if taken:
            raise OptionError(
                "The levels of `outer` should have other labels than the baselines. Found "
                f"{', '.join(taken)}. Name levels by a mapping from labels to levels."
            )
        self.outer = {**added, **given, **self._tuned}
        self.cells = self._cells(given, cells)
        self.reference = self._reference(reference)
        self._adaptive: list[str] = []
        self._configs = {cell: self._tried(cell) for cell in self.cells}

    def run(
        self, train: Train, *, workers: int = 1, progress: bool = True, retry: bool = False, threads: int = 1
    ) -> Results:
        """Train what is missing and return the results. Finished runs are not repeated.

        A run that raises is recorded with its error, and the study goes on; so is one whose process dies. The results are
        the same for any number of workers.

        Args:
            train: called as ``train(criterion, seed)``; returns its metrics, or an :class:`Outcome`.
            workers: processes. With more than one, ``train`` must be a function that another process can import, and a
                script needs ``if __name__ == "__main__":`` around its own part.
            progress: show a bar with the remaining time, where tqdm is installed.
            retry: train again what failed before.
            threads: torch's threads in each run, also with one worker. The last digits may depend on it.

        Raises:
            StudyError: ``train`` is no function of a criterion and a seed; it does not return what the study needs, and no
                run has yet; it cannot be handed to another process.
            KeyboardInterrupt: after the workers have stopped; finished runs are kept.
        """
        if not callable(train) or not _takes_two(train):
            raise StudyError(f"`train` should be a function of a criterion and a seed. Found {train!r}.")
        check_number("workers", workers, low=1, integer=True)
        check_number("threads", threads, low=1, integer=True)
        settings = {"workers": workers, "threads": threads}
        grid = [self._job(cell, seed, train) for seed in self.seeds for cell in self.cells]
        self._write(grid)
        kept = [job.load() for job in grid]
        missing = self._missing(grid, kept, retry)
        further = len([cell for cell in self.cells if cell[0] in self._adaptive]) * len(self.seeds) * self._ends
        with Bar(len(missing) + further * bool(missing), progress) as bar:
            self._tell(kept, retry, bar)
            known = any(run is not None and run.error is None for run in kept)
            self._train(missing, train, known=known, bar=bar, **settings)
            more = self._ended_jobs(train) if self._ends else []
            self._write(grid + more)
            missing = self._missing(more, [job.load() for job in more], retry)
            bar.plan(len(missing))
            self._train(missing, train, known=True, bar=bar, **settings)
        self._write(grid + more, self._tuned_rows(train))
        return self.results()

    def results(self) -> Results:
        """Return what has been measured so far.

        Raises:
            DataError: nothing has been run.
        """
        return Results.load(self.out)

    def report(self, path: str | Path | None = None) -> Path:
        """Write what has been measured so far as one interactive page, and return its path.

        Args:
            path: of the page; None: ``report.html`` in the study's folder.

        Raises:
            DataError: nothing has been run.
        """
        from mtl_axes.report import write_report

        return write_report(self.results(), self.out / "report.html" if path is None else path)

    @property
    def _ends(self) -> bool:
        return "ended" in self.baselines

    def _cells(self, given: Iterable[str], cells: Sequence[Cell] | None) -> list[Cell]:
        """The cells of the grid: those that were asked for, or all; the baselines with each inner level of these."""
        wanted = [(outer, inner) for outer in given for inner in self.inner] if cells is None else list(cells)
        if not wanted:
            raise OptionError("`cells` should hold at least one pair of labels. Found none.")
        for cell in wanted:
            if not isinstance(cell, (tuple, list)) or len(cell) != 2 or cell[0] not in given or cell[1] not in self.inner:
                raise OptionError(
                    f"`cells` should hold pairs of a label of `outer` ({', '.join(given)}) and one of `inner` "
                    f"({', '.join(self.inner)}). Found {cell!r}."
                )
        wanted = [(outer, inner) for outer, inner in wanted]
        used = {inner for _, inner in wanted}
        own = set(given) - {self._equal}
        return [
            (outer, inner)
            for outer in self.outer
            for inner in self.inner
            if ((outer, inner) in wanted if outer in own else inner in used)
        ]

    def _reference(self, reference: Cell | None) -> Cell:
        if reference is None:
            return next((cell for cell in self.cells if cell[0] == self._equal), self.cells[0])
        if not isinstance(reference, (tuple, list)) or tuple(reference) not in self.cells:
            raise OptionError(
                f"`reference` should be one of the study's cells: {', '.join(map(repr, self.cells))}. Found {reference!r}."
            )
        return reference

    def _tried(self, cell: Cell) -> dict[str, Any]:
        """Build a criterion of a cell, note whether its weights move, and return its configuration."""
        outer, inner = cell
        try:
            criterion = composed(self.outer[outer], self.inner[inner], self.options)
        except (MtlAxesError, TypeError) as error:
            hint = "" if "tasks" in self.options else ' The names of the tasks go into `compose={"tasks": [...]}`.'
            raise StudyError(
                f"Every cell should be one that `compose` can build. Found {outer} x {inner}, of which it says: "
                f"{str(error).rstrip('.')}.{hint}"
            ) from error
        if criterion.outer.moves and outer not in self._adaptive:
            self._adaptive.append(outer)
        return criterion.config(strict=False)

    def _job(self, cell: Cell, seed: int, train: Train, level: Any = None) -> Job:
        """A run of a cell of the grid; or, with a level, of a weighting that the grid does not have."""
        pair = (self.outer[cell[0]] if level is None else level, self.inner[cell[1]])
        criterion = self._configs[cell] if level is None else composed(*pair, self.options).config(strict=False)
        config = as_read(
            {"criterion": criterion, "study": self.config, "train": _name(train), "seed": seed, "versions": _VERSIONS}
        )
        path = self._path(cell, seed, config)
        return Job(*cell, seed, pair, self.options, tuple(self.metrics), config, path)

    def _path(self, cell: Cell, seed: int, config: Any) -> Path:
        """Where a run is kept. The name ends in a fingerprint of all that the run depends on: no two runs share a file."""
        text = json.dumps([cell, seed, config], sort_keys=True)
        fingerprint = hashlib.sha256(text.encode()).hexdigest()[:16]
        readable = re.sub(r"[^A-Za-z0-9.]+", "-", "-".join(cell)).strip("-.")[:60]
        return self.out / RUNS_FOLDER / f"{readable}-seed{seed}-{fingerprint}.json"

    @staticmethod
    def _missing(jobs: Sequence[Job], kept: Sequence[Run | None], retry: bool) -> list[Job]:
        pairs = zip(jobs, kept, strict=True)
        return [job for job, run in pairs if run is None or (retry and run.error is not None)]

    @staticmethod
    def _tell(kept: Sequence[Run | None], retry: bool, bar: Bar) -> None:
        """Say what was done before."""
        errors = [run.error for run in kept if run is not None]
        failed = sum(error is not None for error in errors)
        if len(errors) > failed:
            bar.say(
                f"{len(errors) - failed} of {len(kept)} runs were finished before and are not repeated. Name what has "
                "changed in the training function in `config=`, or take another folder."
            )
        if failed and not retry:
            bar.say(f"{failed} of {len(kept)} runs failed before and are not repeated; `retry=True` trains them again.")

    @staticmethod
    def _train(jobs: Sequence[Job], train: Train, *, known: bool, workers: int, threads: int, bar: Bar) -> None:
        """Train; what the training function returns against its contract stops the study while no run has ever kept it."""
        if workers > 1:
            ending = in_processes(jobs, train, workers=workers, threads=threads, bar=bar)
        else:
            ending = in_turn(jobs, train, threads=threads, bar=bar)
        with contextlib.closing(ending) as ends:
            for job, end in ends:
                if end.misused and not known:
                    raise StudyError(f"{end.error} It was called for {job.title}.")
                if end.unkept and end.error is not None:
                    job.save(job.failed(end.error))
                known = known or end.error is None
                bar.end(job, end)

    def _ended_jobs(self, train: Train) -> list[Job]:
        """Runs with the constants at which the runs of the grid ended."""
        runs = self.results().runs
        jobs = []
        for cell in self.cells:
            if cell[0] in self._adaptive:
                mine = [run for run in runs if run.cell == cell]
                level = ended(map(mean_ends, mine))
                if level is None and mine:
                    warnings.warn(
                        f'The baseline "ended" needs the weights of {cell[0]} x {cell[1]}. Found none in its histories, and '
                        "leaves that constant out. Train with the criterion that is passed in, or return "
                        "Outcome(metrics, history=History(criterion)) of the one that trains, and take another folder.",
                        stacklevel=3,
                    )
                if level is not None:
                    at = (ENDED.format(cell[0]), cell[1])
                    jobs += [self._job(at, seed, train, level) for seed in self.seeds]
        return jobs

    def _tuned_levels(self) -> dict[str, Any]:
        tasks = composed("fixed", next(iter(self.inner.values())), self.options).tasks
        if len(tasks) < 2 or not any(self.metrics.values()):
            raise OptionError(
                'The baseline "tuned" needs two tasks or more that are known beforehand and a metric with a direction. '
                f"Found tasks {list(tasks)} and metrics {self.metrics}. "
                'Pass compose={"tasks": [...]} and metrics={"rmse": "min"}.'
            )
        return tuned(tasks)

    def _tuned_rows(self, train: Train) -> list[str]:
        """Write the row of the tuned constant, and return the names of its files."""
        if not self._tuned:
            return []
        results = self.results()
        runs = {(run.outer, run.inner, run.seed): run for run in (*results.runs, *results.failures)}
        names = []
        for inner in self.inner:
            constants = [outer for outer, at in self.cells if at == inner and outer not in self._adaptive]
            for seed in self.seeds if constants else ():
                others = [[runs[outer, inner, at] for outer in constants] for at in self.seeds if at != seed]
                chosen = self._best(constants, others)
                if chosen is not None:
                    run = runs[chosen, inner, seed]
                    kept = replace(run, outer=TUNED, seconds=0.0, config={**run.config, CHOSEN: chosen})
                    path = self._path(kept.cell, seed, kept.config)
                    write_whole(path, kept.to_json())
                    names.append(path.name)
        return names

    def _best(self, constants: Sequence[str], rows: Sequence[Sequence[Run]]) -> str | None:
        """The constant with the best mean over rows, one of which is a seed; None where each has a run that failed or whose
        value is not finite."""
        metric, direction = next((name, way) for name, way in self.metrics.items() if way is not None)
        sign = 1 if direction == "min" else -1
        totals = [sign * sum(run.metrics.get(metric, math.nan) for run in column) for column in zip(*rows, strict=True)]
        finite = [(total, at) for at, total in enumerate(totals) if math.isfinite(total)]
        return constants[min(finite)[1]] if finite else None

    def _write(self, jobs: Sequence[Job], further: Sequence[str] = ()) -> None:
        """Keep what the study is, so that its folder can be read without it."""
        later = [TUNED] * bool(self._tuned) + [ENDED.format(label) for label in self._adaptive if self._ends]
        path = self.out / STUDY_FILE
        kept = {
            "outer": [*self.outer, *later],
            "inner": [*self.inner],
            "seeds": self.seeds,
            "metrics": self.metrics,
            "reference": self.reference,
            "constants": [*(label for label in self.outer if label not in self._adaptive), *later],
            "baselines": [*self._tuned, *later],
            "runs": [job.path.name for job in jobs] + list(further),
            "about": {
                "title": self.title,
                "config": self.config,
                "versions": {**_VERSIONS, "python": platform.python_version()},
                "created": _created(path) or datetime.now(timezone.utc).isoformat(timespec="seconds"),
            },
        }
        try:
            write_whole(path, json.dumps(kept, indent=1))
        except OSError as error:
            raise StudyError(
                f"`out` should be a folder that can be written. Found `{self.out}` ({error.strerror}). Name another one."
            ) from error


def _created(path: Path) -> str | None:
    try:
        return str(json.loads(path.read_text(encoding="utf-8"))["about"]["created"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _takes_two(train: Train) -> bool:
    """Whether it can be called with a criterion and a seed, as far as that shows."""
    try:
        inspect.signature(train).bind(None, 0)
    except TypeError:
        return False
    except ValueError:  # it has no signature that Python can see
        return True
    return True


def _name(train: Any) -> str:
    """The name of a training function, and what functools.partial has bound to it as far as that is plain data."""
    bound: list[str] = []
    while isinstance(train, functools.partial):
        given = [("", value) for value in train.args] + [
            (f"{name}=", value) for name, value in sorted(train.keywords.items())
        ]
        bound += [f"{name}{value!r}" for name, value in given if isinstance(value, (bool, int, float, str, type(None)))]
        train = train.func
    name = str(getattr(train, "__qualname__", type(train).__qualname__))
    return f"{name}({', '.join(bound)})" if bound else name
