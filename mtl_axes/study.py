"""Grid studies: outer weightings x inner shapes x seeds over a training function of the user's own."""

from __future__ import annotations

import copy
import hashlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Literal, get_args

import torch

from mtl_axes.__about__ import version
from mtl_axes.composition import compose
from mtl_axes.errors import OptionError
from mtl_axes.outer import OuterWeighting
from mtl_axes.results import RUNS_FOLDER, STUDY_FILE, Direction, Results, Run
from mtl_axes.workers import Job, Outcome, Train, run_jobs, write_whole

__all__ = ["Baseline", "Outcome", "Study", "Train"]

Baseline = Literal["equal", "ended", "tuned"]

# Weight of the first of two tasks over that of the second: decades to either side of the equal one.
_RATIOS = (0.01, 0.1, 10.0, 100.0)
# With more tasks: how many times the weight of the others each task has in turn.
_FACTORS = (0.1, 10.0)
_TUNED = "tuned constant"
_ENDED = "constant where {} ended"
_VERSIONS = {"mtl_axes": version, "torch": torch.__version__}


class Study:
    """Every pair of levels of the two axes, trained with every seed, kept on disk and compared.

    Each run calls ``train(criterion, seed)`` with a fresh criterion; ``random``, NumPy (where it is loaded) and torch are seeded
    before. A run is finished when its file is whole and all that it depends on is the same: the criterion's configuration, the
    seed, ``config``, the versions of mtl_axes and torch. So a study that was interrupted or killed goes on where it stopped when
    it is run again, and one that gains a level or a seed trains what is new.

    Args:
        outer: levels of the outer axis: whatever ``compose`` takes, or a mapping from labels to such.
        inner: levels of the inner axis, likewise.
        seeds: a number n, for the seeds 0 to n - 1, or the seeds. Comparisons are paired by seed, so let the seed draw the split
            of the data and the initial weights of the model.
        out: folder of the results.
        metrics: by name whether a lower ("min") or a higher ("max") value is better; None where neither is. The training
            function must return all of these and may return more.
        reference: the cell that others are compared with, a pair of labels. None: equal weights where they are a baseline, else
            the first level; and the first inner level.
        baselines: constant weights as further levels of the outer axis. ``"equal"``: 1/K each. ``"ended"``: for every weighting
            that moves, and every inner level, the mean of the weights at which its runs ended. ``"tuned"``: the first task at
            0.01, 0.1, 10 and 100 times the weight of the second (of more than two tasks each in turn at 0.1 and 10 times the
            weight of the others), and beside them the row ``tuned constant``: for each seed the constant that was best on the
            *other* seeds by the first metric with a direction, so that no constant is judged by what it was chosen by.
        compose: further options for ``compose``, such as ``{"tasks": ["rul", "health"], "every": 10}``.
        config: whatever else the results depend on, as plain data: the learning rate, the number of steps, a digest of the data.
        title: heading of the report.

    Raises:
        OptionError: a level, a seed, a metric or a baseline is not what it should be. Every criterion is built here, so that a
            name that does not exist shows before the first run.
    """

    def __init__(
        self,
        outer: Sequence[Any] | Mapping[str, Any],
        inner: Sequence[Any] | Mapping[str, Any],
        seeds: int | Sequence[int] = 5,
        out: str | Path = "runs/study",
        *,
        metrics: Mapping[str, Direction | None] | None = None,
        reference: tuple[str, str] | None = None,
        baselines: Sequence[Baseline] = (),
        compose: Mapping[str, Any] | None = None,
        config: Mapping[str, Any] | None = None,
        title: str = "",
    ) -> None:
        self.seeds = _seeds(seeds)
        self.out, self.title = Path(out), title
        self.metrics, self.baselines = dict(metrics or {}), tuple(baselines)
        self.options, self.config = dict(compose or {}), _plain_data("config", config or {})
        self._check_choices()
        self.inner = _levels("inner", inner)
        given = _levels("outer", outer)
        self._adaptive = [label for label, level in given.items() if self._outer_of(level).moves]
        self._tuned = self._ratios() if "tuned" in self.baselines else {}
        self.outer = {**({"equal": "fixed"} if "equal" in self.baselines else {}), **given, **self._tuned}
        if len(self.outer) < len(given) + len(self._tuned) + ("equal" in self.baselines):
            raise OptionError(
                f"The levels of `outer` should have other labels than the baselines. Found {', '.join(given)}. Name them by a "
                "mapping from labels to levels."
            )
        for job in self._grid():
            job.criterion()
        self.reference = (next(iter(self.outer)), next(iter(self.inner))) if reference is None else reference
        if self.reference[0] not in self.outer or self.reference[1] not in self.inner:
            raise OptionError(
                f"The reference should be a pair of labels of {', '.join(self.outer)} and {', '.join(self.inner)}. "
                f"Found {self.reference!r}."
            )

    def run(
        self, train: Train, *, workers: int = 1, progress: bool = True, retry: bool = False, threads: int = 1
    ) -> Results:
        """Train what is missing and return the results. Finished runs are not repeated.

        A run that raises is recorded with its error, and the study goes on.

        Args:
            train: called as ``train(criterion, seed)``; returns its metrics, or an :class:`Outcome`.
            workers: processes. With more than one, ``train`` must be a function that another process can import, and a script
                needs ``if __name__ == "__main__":`` around its own part.
            progress: show a bar with the remaining time, where tqdm is installed.
            retry: train again what failed before.
            threads: torch's threads in each run. The last digits may depend on it; nothing depends on ``workers``.

        Raises:
            StudyError: ``train`` cannot be handed to another process.
            KeyboardInterrupt: after the workers have stopped; finished runs are kept.
        """
        jobs = self._grid()
        for further in (self._ended, list):
            self._write([job.path.name for job in jobs])
            missing = [job for job in jobs if not _is_finished(job, retry)]
            done = len(jobs) - len(missing)
            run_jobs(missing, train, workers=workers, progress=progress, threads=threads, done=done)
            jobs += further()
        self._write([job.path.name for job in jobs] + self._choose_constants())
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

    def _grid(self) -> list[Job]:
        return [
            self._job(outer, level, inner, seed)
            for seed in self.seeds
            for outer, level in self.outer.items()
            for inner in self.inner
        ]

    def _job(self, outer: str, level: Any, inner: str, seed: int) -> Job:
        levels = (level, self.inner[inner])
        criterion = compose(*copy.deepcopy(levels), **copy.deepcopy(self.options))
        config = {"criterion": criterion.config(), "study": self.config, "seed": seed, "versions": _VERSIONS}
        text = json.dumps(config, sort_keys=True)
        fingerprint = hashlib.sha256(text.encode()).hexdigest()[:12]
        path = self.out / RUNS_FOLDER / f"{_readable(f'{outer}-{inner}')}-seed{seed}-{fingerprint}.json"
        # As it will be read: a tuple in a configuration comes back as a list.
        return Job(outer, inner, seed, levels, self.options, tuple(self.metrics), json.loads(text), path)

    def _ended(self) -> list[Job]:
        """Runs with the constants at which the runs of the grid ended."""
        if "ended" not in self.baselines:
            return []
        jobs = []
        results = self.results()
        for outer in self._adaptive:
            for inner in self.inner:
                ends = [_last_weights(run) for run in results.runs if run.cell == (outer, inner)]
                found = [weights for weights in ends if weights and all(map(math.isfinite, weights.values()))]
                if found:
                    constant = {task: sum(weights[task] for weights in found) / len(found) for task in found[0]}
                    level = {"name": "fixed", "weights": constant}
                    jobs += [self._job(_ENDED.format(outer), level, inner, seed) for seed in self.seeds]
        return jobs

    def _choose_constants(self) -> list[str]:
        """Write the row of the tuned constant, and return the names of its files."""
        if not self._tuned:
            return []
        metric, direction = next((name, way) for name, way in self.metrics.items() if way is not None)
        best = min if direction == "min" else max
        runs = {(run.outer, run.inner, run.seed): run for run in self.results().runs}
        names = []
        for inner in self.inner:
            # Seeds that every constant finished with a number: the others would favour whoever failed there.
            constants = [outer for outer in self.outer if outer not in self._adaptive]
            figures = {
                seed: {outer: runs[outer, inner, seed].metrics[metric] for outer in constants}
                for seed in self.seeds
                if all((outer, inner, seed) in runs for outer in constants)
            }
            for seed in figures if len(figures) > 1 else ():
                others = [figures[other] for other in figures if other != seed]
                means = {outer: sum(row[outer] for row in others) for outer in constants}
                finite = {outer: mean for outer, mean in means.items() if math.isfinite(mean)}
                if finite:
                    chosen = best(finite, key=lambda outer: finite[outer])
                    run = runs[chosen, inner, seed]
                    kept = replace(run, outer=_TUNED, seconds=0.0, config={**run.config, "chosen": chosen})
                    names.append(f"tuned-constant-{_readable(inner)}-seed{seed}.json")
                    write_whole(self.out / RUNS_FOLDER / names[-1], kept.to_json())
        return names

    def _write(self, names: list[str]) -> None:
        """Keep what the study is, so that its folder can be read without it."""
        outer = [*self.outer]
        if "ended" in self.baselines:
            outer += [_ENDED.format(label) for label in self._adaptive]
        kept = {
            "outer": outer + [_TUNED] * bool(self._tuned),
            "inner": [*self.inner],
            "seeds": self.seeds,
            "metrics": self.metrics,
            "reference": self.reference,
            "runs": names,
            "about": {
                "title": self.title,
                "config": self.config,
                "versions": _VERSIONS,
                "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            },
        }
        write_whole(self.out / STUDY_FILE, json.dumps(kept, indent=1))

    def _outer_of(self, level: Any) -> OuterWeighting:
        return compose(
            copy.deepcopy(level), copy.deepcopy(next(iter(self.inner.values()))), **copy.deepcopy(self.options)
        ).outer

    def _ratios(self) -> dict[str, Any]:
        """The levels of the small tuned set, by label."""
        tasks = compose("fixed", copy.deepcopy(next(iter(self.inner.values()))), **copy.deepcopy(self.options)).tasks
        if len(tasks) < 2 or not any(self.metrics.values()):
            raise OptionError(
                'The baseline "tuned" needs at least two tasks that are known beforehand and a metric with a direction. Found '
                f'tasks {list(tasks)} and metrics {self.metrics}. Pass compose={{"tasks": [...]}} and metrics={{"rmse": "min"}}.'
            )
        pairs = (
            [(tasks[0], ratio) for ratio in _RATIOS]
            if len(tasks) == 2
            else [(task, factor) for task in tasks for factor in _FACTORS]
        )
        return {
            f"{task} x {factor:g}": {
                "name": "fixed",
                "weights": {other: (factor if other == task else 1.0) / (factor + len(tasks) - 1) for other in tasks},
            }
            for task, factor in pairs
        }

    def _check_choices(self) -> None:
        for name, direction in self.metrics.items():
            if direction not in ("min", "max", None):
                raise OptionError(
                    f'The metric `{name}` should be better when lower ("min"), when higher ("max") or neither (None). Found '
                    f"{direction!r}."
                )
        unknown = [baseline for baseline in self.baselines if baseline not in get_args(Baseline)]
        if isinstance(self.baselines, str) or unknown:
            raise OptionError(f'`baselines` should hold some of "equal", "ended" and "tuned". Found {self.baselines!r}.')


def _is_finished(job: Job, retry: bool) -> bool:
    try:
        run = Run.from_json(job.path.read_text(encoding="utf-8"))
    except (OSError, ValueError, TypeError):
        return False
    return run.config == job.config and set(job.metrics) <= set(run.metrics) if run.error is None else not retry


def _last_weights(run: Run) -> dict[str, float]:
    """The weights at the end of a run by task, as far as its history has them."""
    columns = {name.removeprefix("weight/"): values for name, values in run.history.items() if name.startswith("weight/")}
    ends = {task: [value for value in values if value is not None] for task, values in columns.items()}
    return {task: values[-1] for task, values in ends.items() if values}


def _levels(axis: str, given: Sequence[Any] | Mapping[str, Any]) -> dict[str, Any]:
    if isinstance(given, Mapping) and "name" not in given:
        levels = [(str(label), level) for label, level in given.items()]
    elif isinstance(given, Sequence) and not isinstance(given, str):
        levels = [(_label(level), level) for level in given]
    else:
        raise OptionError(f"`{axis}` should be a list of levels, or a mapping from labels to levels. Found {given!r}.")
    labels = [label for label, _ in levels]
    twice = sorted({label for label in labels if labels.count(label) > 1})
    if twice or not levels:
        raise OptionError(
            f"`{axis}` should hold at least one level, each with a label of its own. Found {', '.join(twice) or 'none'}"
            f"{' more than once' if twice else ''}. Name levels by a mapping from labels to levels."
        )
    return dict(levels)


def _label(level: Any) -> str:
    """What tables and pictures call a level: ``gaba``, ``gaba(beta=0.9)``, ``rul: huber, health: focal``."""
    if not isinstance(level, Mapping):
        return str(level)
    if "name" not in level:
        return ", ".join(f"{task}: {_label(shape)}" for task, shape in level.items())
    options = ", ".join(
        f"{name}={_label(value) if isinstance(value, Mapping) else repr(value)}"
        for name, value in level.items()
        if name != "name"
    )
    return f"{level['name']}({options})" if options else str(level["name"])


def _seeds(given: int | Sequence[int]) -> tuple[int, ...]:
    seeds = tuple(range(given)) if isinstance(given, int) else tuple(given)
    if not seeds or len(set(seeds)) < len(seeds) or not all(isinstance(seed, int) and seed >= 0 for seed in seeds):
        raise OptionError(f"`seeds` should be a number of seeds, or distinct whole numbers from 0 on. Found {given!r}.")
    return seeds


def _plain_data(name: str, given: Mapping[str, Any]) -> dict[str, Any]:
    try:
        plain: dict[str, Any] = json.loads(json.dumps(given))
    except (TypeError, ValueError) as error:
        raise OptionError(
            f"`{name}` should be plain data: numbers, texts, lists, mappings. Found {given!r} ({error})."
        ) from error
    return plain


def _readable(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9.]+", "-", text).strip("-")[:60]
