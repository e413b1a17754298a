"""Grid studies: outer weightings x inner shapes x seeds over the user's training function."""

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
from collections.abc import Mapping, Sequence
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
    counts as finished if its file is complete and everything it is known to depend on is unchanged: labels, seed, the
    configuration of the criterion, ``config``, the name of the training function with the numbers and texts that
    ``functools.partial`` has bound to it, the versions of mtl_axes and torch. So a killed study continues when it is run
    again, and a study with another level or seed trains only the new runs. A change in the code of the training function is
    not detected: name it in ``config``, or use another folder.

    Args:
        outer: levels of the outer axis: a list of whatever ``compose`` takes, or a mapping from labels to such.
        inner: levels of the inner axis, likewise.
        seeds: a number n, for the seeds 0 to n - 1, or the seeds, each in [0, 2^32). Comparisons are paired by seed, so let
            it draw the split of the data and the initial weights of the model.
        out: folder of the results.
        metrics: by name whether a lower ("min") or a higher ("max") value is better; None if neither is. The training
            function must return all of these and may return more.
        reference: the cell that others are compared with, a pair of labels. None: equal weights if they are a baseline,
            else the first level; and the first inner level.
        baselines: constant weights as further levels of the outer axis, each with every inner level.

            - ``"equal"``: 1/K each. If ``outer`` has ``"fixed"`` without weights, it is that level.
            - ``"ended"``: for every adaptive weighting and every inner level, the mean over its seeds of the weights in the
              last tenth of its runs. It changes, and is trained anew, when seeds are added.
            - ``"tuned"``: the first task at 0.01, 0.1, 10 and 100 times the weight of the second; with more than two tasks
              each in turn at 0.1 and 10 times the weight of the others. The row ``tuned constant`` is, for each seed, the
              constant level that was best on the *other* seeds by the first metric with a direction, so that no constant is
              judged on the seeds it was chosen by. It shows the figures of that level's runs. A constant is not chosen if
              one of these runs failed or gave no finite value.
        cells: the pairs of labels to train, if not every pair of the given levels.
        compose: further options for ``compose``, such as ``{"tasks": ["rul", "health"], "every": 10}``.
        config: whatever else the results depend on, as plain data: the learning rate, the number of steps, a digest of the
            data.
        title: heading of the report.

    Raises:
        OptionError: a seed, a metric, a baseline or a label is invalid.
        StudyError: ``compose`` cannot build a cell. Every criterion is built here, so that an unknown name fails before the
            first run.
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
        added: dict[str, Any] = {}
        # The label of equal weights, if they are a baseline: the label of a given level, or of an added one.
        self._equal: str | None = None
        if "equal" in self.baselines:
            self._equal = next((label for label, level in given.items() if label_of("outer", level) == "fixed"), None)
            if self._equal is None:
                self._equal, added = "equal", {"equal": "fixed"}
        self._tuned = self._tuned_levels() if "tuned" in self.baselines else {}
        taken = [label for label in given if label in {*added, *self._tuned, *self._later(given)}]
        if taken:
            raise OptionError(
                f"Levels of `outer` have the labels of baselines: {', '.join(taken)}. Give them other labels by a mapping "
                "from labels to levels."
            )
        self.outer = {**added, **given, **self._tuned}
        self.cells = self._cells([*given], cells)
        self.reference = self._reference(reference)
        self._adaptive: list[str] = []
        self._configs = {cell: self._checked(cell) for cell in self.cells}

    def run(
        self, train: Train, *, workers: int = 1, progress: bool = True, retry: bool = False, threads: int = 1
    ) -> Results:
        """Train what is missing and return the results. Finished runs are not repeated.

        A run that raises is recorded with its error, and the study continues; so does it after a run whose process dies. The
        results are the same for any number of workers.

        Args:
            train: called as ``train(criterion, seed)``; returns its metrics, or an :class:`Outcome`.
            workers: processes. With more than one, ``train`` must be a function that another process can import, and a
                script needs ``if __name__ == "__main__":`` around its own part.
            progress: show a bar with the remaining time, if tqdm is installed.
            retry: train failed runs again.
            threads: torch's threads in each run, also with one worker. The last digits may depend on it.

        Raises:
            StudyError: ``train`` is not a function of a criterion and a seed; it does not return what the study needs, and
                no run has finished yet; it cannot be sent to another process.
            KeyboardInterrupt: after the workers have stopped; finished runs are kept.
        """
        if not callable(train) or not _takes_two(train):
            raise StudyError(f"`train` should be a function of a criterion and a seed. Found {train!r}.")
        check_number("workers", workers, low=1, integer=True)
        check_number("threads", threads, low=1, integer=True)
        settings = {"workers": workers, "threads": threads}
        grid = [self._job(cell, seed, train) for seed in self.seeds for cell in self.cells]
        self._write(grid)
        earlier = [job.load() for job in grid]
        missing = _missing(grid, earlier, retry)
        ends = "ended" in self.baselines
        further = ends * len(self.seeds) * sum(cell[0] in self._adaptive for cell in self.cells)
        with Bar(len(missing) + further * bool(missing), progress) as bar:
            _announce_skipped(earlier, retry, bar)
            known = any(run is not None and run.error is None for run in earlier)
            _train(missing, train, known=known, bar=bar, **settings)
            more = self._ended_jobs(train) if ends else []
            self._write(grid + more)
            missing = _missing(more, [job.load() for job in more], retry)
            bar.plan(len(missing))
            _train(missing, train, known=True, bar=bar, **settings)
        self._write(grid + more, self._tuned_rows() if self._tuned else [])
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

    def _later(self, adaptive: Sequence[str] | Mapping[str, Any]) -> list[str]:
        """Labels of the constants that are known only after runs."""
        ends = [ENDED.format(label) for label in adaptive] if "ended" in self.baselines else []
        return [TUNED] * bool(self._tuned) + ends

    def _cells(self, given: Sequence[str], cells: Sequence[Cell] | None) -> list[Cell]:
        """The requested cells, or all, and the baselines at each inner level of these."""
        wanted = [(outer, inner) for outer in given for inner in self.inner] if cells is None else list(cells)
        if not wanted:
            raise OptionError("`cells` is empty. Pass pairs of labels, or None for every pair.")
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

    def _checked(self, cell: Cell) -> dict[str, Any]:
        """Build a criterion of a cell, note whether its weights are adaptive, and return its configuration."""
        outer, inner = cell
        try:
            criterion = composed(self.outer[outer], self.inner[inner], self.options)
        except (MtlAxesError, TypeError) as error:
            hint = "" if "tasks" in self.options else ' Pass the names of the tasks as `compose={"tasks": [...]}`.'
            message = str(error).rstrip(".")
            raise StudyError(f"`compose` cannot build the cell {outer} x {inner}: {message}.{hint}") from error
        if criterion.outer.moves and outer not in self._adaptive:
            self._adaptive.append(outer)
        return criterion.config(strict=False)

    def _job(self, cell: Cell, seed: int, train: Train, level: Any = None) -> Job:
        """A run of a cell of the grid; with a level, a run of a weighting that the grid does not have."""
        pair = (self.outer[cell[0]] if level is None else level, self.inner[cell[1]])
        criterion = self._configs[cell] if level is None else composed(*pair, self.options).config(strict=False)
        config = as_read(
            {"criterion": criterion, "study": self.config, "train": _name(train), "seed": seed, "versions": _VERSIONS}
        )
        return Job(*cell, seed, pair, self.options, tuple(self.metrics), config, self._path(cell, seed, config))

    def _path(self, cell: Cell, seed: int, config: Any) -> Path:
        """The file of a run. Its name ends in a fingerprint of all that the run depends on: no two runs share a file."""
        text = json.dumps([cell, seed, config], sort_keys=True)
        fingerprint = hashlib.sha256(text.encode()).hexdigest()[:16]
        readable = re.sub(r"[^A-Za-z0-9.]+", "-", "-".join(cell)).strip("-.")[:60]
        return self.out / RUNS_FOLDER / f"{readable}-seed{seed}-{fingerprint}.json"

    def _ended_jobs(self, train: Train) -> list[Job]:
        """Runs with the constants at which the runs of the grid ended."""
        runs = self.results().runs
        jobs = []
        for outer, inner in self.cells:
            own = [run for run in runs if run.cell == (outer, inner)] if outer in self._adaptive else []
            if not own:
                continue
            level = ended(map(mean_ends, own))
            if level is None:
                warnings.warn(
                    f'The histories of {outer} x {inner} hold no weights, so the baseline "ended" leaves out its constant. '
                    "Train with the criterion that is passed in, or return Outcome(metrics, history=History(criterion)) "
                    "with the criterion that trains, and use another folder.",
                    stacklevel=3,
                )
            else:
                jobs += [self._job((ENDED.format(outer), inner), seed, train, level) for seed in self.seeds]
        return jobs

    def _tuned_levels(self) -> dict[str, Any]:
        tasks = composed("fixed", next(iter(self.inner.values())), self.options).tasks
        if len(tasks) < 2 or not any(self.metrics.values()):
            raise OptionError(
                f'The baseline "tuned" needs at least two named tasks and a metric with a direction. Found tasks '
                f'{list(tasks)} and metrics {self.metrics}. Pass compose={{"tasks": [...]}} and metrics={{"rmse": "min"}}.'
            )
        return tuned(tasks)

    def _tuned_rows(self) -> list[str]:
        """Write the row of the tuned constant, and return the names of its files."""
        results = self.results()
        runs = {(run.outer, run.inner, run.seed): run for run in (*results.runs, *results.failures)}
        names = []
        for inner in self.inner:
            constants = [outer for outer, at in self.cells if at == inner and outer not in self._adaptive]
            for seed in self.seeds if constants and len(self.seeds) > 1 else ():
                others = [[runs[outer, inner, at] for at in self.seeds if at != seed] for outer in constants]
                chosen = self._best(others)
                if chosen is not None:
                    run = runs[constants[chosen], inner, seed]
                    config = {**run.config, CHOSEN: constants[chosen]}
                    path = self._path((TUNED, inner), seed, config)
                    write_whole(path, replace(run, outer=TUNED, seconds=0.0, config=config).to_json())
                    names.append(path.name)
        return names

    def _best(self, constants: Sequence[Sequence[Run]]) -> int | None:
        """The place of the constant whose runs have the best mean. A constant with a run that failed, or whose value is not
        finite, is left out."""
        metric, direction = next((name, way) for name, way in self.metrics.items() if way is not None)
        sign = 1 if direction == "min" else -1
        totals = [sign * sum(run.metrics.get(metric, math.nan) for run in runs) for runs in constants]
        finite = [(total, place) for place, total in enumerate(totals) if math.isfinite(total)]
        return min(finite)[1] if finite else None

    def _write(self, jobs: Sequence[Job], further: Sequence[str] = ()) -> None:
        """Write what the study is, so that its folder can be read without it."""
        later = self._later(self._adaptive)
        path = self.out / STUDY_FILE
        study = {
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
            write_whole(path, json.dumps(study, indent=1))
        except OSError as error:
            raise StudyError(
                f"The folder `{self.out}` cannot be written ({error.strerror}). Pass another one as `out`."
            ) from error


def _missing(jobs: Sequence[Job], earlier: Sequence[Run | None], retry: bool) -> list[Job]:
    pairs = zip(jobs, earlier, strict=True)
    return [job for job, run in pairs if run is None or (retry and run.error is not None)]


def _announce_skipped(earlier: Sequence[Run | None], retry: bool, bar: Bar) -> None:
    errors = [run.error for run in earlier if run is not None]
    failed = sum(error is not None for error in errors)
    if len(errors) > failed:
        bar.say(
            f"{len(errors) - failed} of {len(earlier)} runs were finished before and are not repeated. If the training "
            "function has changed, name the change in `config=` or use another folder."
        )
    if failed and not retry:
        bar.say(f"{failed} of {len(earlier)} runs failed before and are not repeated; `retry=True` trains them again.")


def _train(jobs: Sequence[Job], train: Train, *, known: bool, workers: int, threads: int, bar: Bar) -> None:
    """Train. A return value that a study cannot use stops it, unless a run has finished before (``known``)."""
    if workers > 1:
        ending = in_processes(jobs, train, workers=workers, threads=threads, bar=bar)
    else:
        ending = in_turn(jobs, train, threads=threads, bar=bar)
    with contextlib.closing(ending) as ends:
        for job, end in ends:
            if end.misused and not known:
                raise StudyError(f"{end.error} It was called for {job.title}.")
            if end.unsaved and end.error is not None:
                job.save(job.failed(end.error))
            known = known or end.error is None
            bar.end(job, end)


def _created(path: Path) -> str | None:
    try:
        return str(json.loads(path.read_text(encoding="utf-8"))["about"]["created"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _takes_two(train: Train) -> bool:
    try:
        inspect.signature(train).bind(None, 0)
    except TypeError:
        return False
    except ValueError:  # it has no signature that Python can see
        return True
    return True


def _name(train: Any) -> str:
    """The name of a training function, and the plain data that functools.partial has bound to it."""
    bound: list[str] = []
    while isinstance(train, functools.partial):
        given = [("", value) for value in train.args] + [
            (f"{name}=", value) for name, value in sorted(train.keywords.items())
        ]
        bound += [f"{name}{value!r}" for name, value in given if isinstance(value, (bool, int, float, str, type(None)))]
        train = train.func
    name = str(getattr(train, "__qualname__", type(train).__qualname__))
    return f"{name}({', '.join(bound)})" if bound else name
