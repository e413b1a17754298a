"""What a study measured: its runs as they lie on disk, and the questions that they answer.

The numbers are computed by :mod:`mtl_axes.study.statistics`, which needs numpy and scipy (``mtl_axes[study]``) and
is imported where a method asks for them; docs/statistics.md says which number is for what.
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

from mtl_axes.errors import DataError, OptionError, UnknownNameError
from mtl_axes.study.effects import Direction, Effect, Summary

__all__ = ["CHOSEN", "ENDED", "STUDY_FILE", "TUNED", "Direction", "Effect", "Results", "Run", "Summary"]

Axis = Literal["outer", "inner"]
Cell = tuple[str, str]

STUDY_FILE = "study.json"
RUNS_FOLDER = "runs"
TUNED = "tuned constant"
ENDED = "constant where {} ended"
CHOSEN = "chosen"  # in the configuration of a run that the tuned constant copies: the level that it is a run of
_LARGEST = 1e300  # a run whose metric is beyond it has diverged, as one whose metric is infinite: sums of several overflow
_ROUNDING = 5e-7  # accuracies in float32 that all differ by 0.01 do so to within this; it is no spread between seeds


class _Contrast(NamedTuple):
    """A sum of cells with signs, and how an :class:`Effect` names it."""

    label: str
    against: str
    kind: Literal["cell", "outer", "inner", "interaction"]
    outer: tuple[str, ...]
    inner: tuple[str, ...]
    plus: tuple[Cell, ...]
    minus: tuple[Cell, ...]


def _counts(value: float) -> bool:
    """Whether a metric is one that means are taken of."""
    return abs(value) <= _LARGEST  # not for NaN


def _name(cell: Cell) -> str:
    return f"{cell[0]} x {cell[1]}"


@dataclass(frozen=True, eq=False)
class Run:
    """One training of one cell with one seed.

    Attributes:
        outer: label of the outer weighting in its study.
        inner: label of the inner shape in its study.
        seed: what the run was seeded with; runs of one seed are compared with each other.
        metrics: what the training function returned, by name.
        history: columns by name, all of one length: ``step``, ``loss/TASK``, ``weight/TASK``, ``norm/TASK``, ...; None where
            a value was not measured. Empty where nothing was recorded.
        predictions: by task ``{"predicted": [...], "true": [...]}``; empty where none were kept.
        config: everything that the result depends on, as plain data: the criterion's own ``config()`` under ``"criterion"``,
            the study's under ``"study"``, and ``"versions"``.
        seconds: how long it took.
        error: why it failed, None when it finished. A failed run has no metrics.
    """

    outer: str
    inner: str
    seed: int
    metrics: Mapping[str, float] = field(default_factory=dict)
    history: Mapping[str, Sequence[float | None]] = field(default_factory=dict)
    predictions: Mapping[str, Mapping[str, Sequence[float]]] = field(default_factory=dict)
    config: Mapping[str, Any] = field(default_factory=dict)
    seconds: float = 0.0
    error: str | None = None

    @property
    def cell(self) -> tuple[str, str]:
        """The labels of the two axes."""
        return self.outer, self.inner

    def to_json(self) -> str:
        """Return the run as one JSON text; values that are not finite are written as JavaScript's NaN and Infinity."""
        return json.dumps(asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> Run:
        """Return the run that :meth:`to_json` wrote.

        Raises:
            ValueError, TypeError: the text is not whole, or not of a run.
        """
        return cls(**json.loads(text))


@dataclass(frozen=True, eq=False)
class Results:
    """All runs of a study.

    Attributes:
        outer: labels of the outer axis, in order.
        inner: labels of the inner axis, in order.
        seeds: the seeds, in order.
        metrics: by name whether a lower ("min") or higher ("max") value is better; None where the study does not say.
        reference: the cell that others are compared with.
        runs: the finished runs.
        failures: the runs that failed.
        constants: the levels of the outer axis with runs whose weights never move.
        baselines: of these, the ones that the study itself added to compare with, beside the equal one: tuned constants, and
            those where runs ended.
        about: what the study says of itself, as plain data: ``title``, ``config``, ``versions``, ``created``.
    """

    outer: tuple[str, ...]
    inner: tuple[str, ...]
    seeds: tuple[int, ...]
    metrics: Mapping[str, Direction | None]
    reference: tuple[str, str]
    runs: tuple[Run, ...]
    failures: tuple[Run, ...] = ()
    constants: tuple[str, ...] = ()
    baselines: tuple[str, ...] = ()
    about: Mapping[str, Any] = field(default_factory=dict)

    @property
    def cells(self) -> list[tuple[str, str]]:
        """The cells that have finished runs: outer by outer, inner by inner."""
        found = {run.cell for run in self.runs}
        return [(outer, inner) for outer in self.outer for inner in self.inner if (outer, inner) in found]

    def values(self, metric: str, outer: str, inner: str) -> dict[int, float]:
        """Return a metric of one cell by seed, in the order of the seeds."""
        found = {run.seed: run.metrics[metric] for run in self.runs if run.cell == (outer, inner) and metric in run.metrics}
        return {seed: found[seed] for seed in self.seeds if seed in found}

    @property
    def metric_names(self) -> list[str]:
        """Every metric that the study names or a run has."""
        return list(dict.fromkeys([*self.metrics, *(name for run in self.runs for name in run.metrics)]))

    @property
    def weightings(self) -> list[str]:
        """The levels of the outer axis that the study is about: all but its baselines, and the reference's."""
        return [level for level in self.outer if level not in self.baselines or level == self.reference[0]]

    @property
    def copies(self) -> list[str]:
        """The levels of the outer axis whose runs are those of other levels: the tuned constant."""
        runs = (*self.runs, *self.failures)
        return [level for level in self.outer if any(CHOSEN in run.config for run in runs if run.outer == level)]

    def best_constant(self, metric: str) -> str | None:
        """Return the constant weights that an adaptive weighting has to beat in a metric.

        The tuned constant, for the metric that it was chosen by: the study's first with a direction. Else, of the constants
        with a finite value in every run, the one with the best mean over the inner levels that all of these have. It is
        chosen by the values that it is then judged by, and is somewhat worse than it looks.

        Returns:
            its label; None without constants of which each run has a finite value, and where the metric has no direction.

        Raises:
            UnknownNameError: no such metric.
        """
        found, direction = self._finite(metric), self.metrics.get(metric)
        if direction is None:
            return None
        copies, tried = self.copies, self._tried()
        if metric == next(name for name, way in self.metrics.items() if way is not None):
            for level in copies:
                if any(cell[0] == level for cell in found):
                    return level
        whole = [
            level
            for level in self.constants
            if level not in copies and all(len(found.get(cell, ())) == len(self.seeds) for cell in tried if cell[0] == level)
        ]
        shared = [inner for inner in self.inner if whole and all((level, inner) in found for level in whole)]
        if not shared:
            return None
        sign = 1 if direction == "min" else -1
        totals = {level: sum(sum(found[level, inner].values()) for inner in shared) for level in whole}
        return min(whole, key=lambda level: sign * totals[level])

    def summary(self, metric: str) -> list[Summary]:
        """Return n, mean and standard deviation of a metric in every cell that was tried.

        Values that are not finite or beyond 1e300, of runs that diverged, are counted and left out: the mean of a cell that
        has some is better than the cell.

        Raises:
            UnknownNameError: no such metric.
        """
        from mtl_axes.study import statistics

        self._check_metric(metric)
        told = []
        for cell in self._tried():
            values = list(self.values(metric, *cell).values())
            finite = [value for value in values if _counts(value)]
            mean, sd = statistics.mean_and_sd(finite)
            told.append(Summary(*cell, len(finite), float(mean), float(sd), len(values) - len(finite)))
        return told

    def compare(self, metric: str, reference: Cell | None = None) -> list[Effect]:
        """Return every other cell minus the reference cell, paired by seed, corrected for their number.

        Args:
            metric: its name.
            reference: labels (outer, inner); the study's own when None.

        Raises:
            UnknownNameError: no such metric or label.
        """
        base = self._checked(reference or self.reference)
        return self._effects(
            metric,
            [
                _Contrast(_name(cell), _name(base), "cell", (base[0], cell[0]), (base[1], cell[1]), (cell,), (base,))
                for cell in self._tried()
                if cell != base
            ],
        )

    def main_effect(self, metric: str, axis: Axis) -> list[Effect]:
        """Return every other level of an axis minus the reference's level, averaged over the other axis, corrected for their
        number.

        The average is taken within each seed, over the levels of the other axis in which both have a finite value with some
        seed, and over the seeds in which they have one with all of these levels. Inner levels are averaged over the
        :attr:`weightings`, and not over the baselines, whose weights nobody chose to train with. A level that was tried with
        no level of the other axis that the reference's was tried with is left out.

        Args:
            metric: its name.
            axis: "outer" or "inner".

        Raises:
            OptionError: no such axis.
            UnknownNameError: no such metric.
        """
        if axis not in ("outer", "inner"):
            raise OptionError(f'`axis` should be "outer" or "inner". Found {axis!r}.')
        base = self.reference[axis == "inner"]
        found, tried = self._finite(metric), self._tried()
        levels = self.outer if axis == "outer" else self.inner
        others = [level for level in levels if level != base and self._between(axis, base, level, tried).plus]
        return self._effects(metric, [self._between(axis, base, level, found) for level in others])

    def against_constants(self, metric: str, which: Literal["all", "best", "ended"] = "all") -> list[Effect]:
        """Return every adaptive weighting minus constant ones, averaged over the inner axis as in :meth:`main_effect`,
        corrected for their number: whether it beats weights that never move.

        Args:
            metric: its name.
            which: "all": minus each constant. "best": minus :meth:`best_constant`. "ended": minus the constant at which its
                own runs ended.

        Raises:
            OptionError: ``which`` is none of these.
            UnknownNameError: no such metric.
        """
        if which not in ("all", "best", "ended"):
            raise OptionError(f'`which` should be "all", "best" or "ended". Found {which!r}.')
        found, tried, constants = self._finite(metric), self._tried(), self.constants
        best = self.best_constant(metric) if which == "best" else None
        pairs = [
            (constant, level)
            for level in self.outer
            if level not in constants and level not in self.copies
            for constant in constants
            if which == "all" or constant == (best if which == "best" else ENDED.format(level))
        ]
        shared = [pair for pair in pairs if self._between("outer", *pair, tried).plus]
        return self._effects(metric, [self._between("outer", *pair, found) for pair in shared])

    def interactions(self, metric: str) -> list[Effect]:
        """Return the interaction of every pair of levels with the reference's levels, where all four cells were tried,
        corrected for their number. The baselines, whose weights nobody chose to train with, are left out.

        Raises:
            UnknownNameError: no such metric.
        """
        outer, inner = self.reference
        pairs = [(b, d) for b in self.weightings if b != outer for d in self.inner if d != inner]
        crossed = [self._crossed((outer, b), (inner, d)) for b, d in pairs]
        tried = set(self._tried())
        return self._effects(metric, [contrast for contrast in crossed if {*contrast.plus, *contrast.minus} <= tried])

    def interaction(self, metric: str, outer: tuple[str, str], inner: tuple[str, str]) -> Effect:
        """Return (D - C) - (B - A), taken within each seed, with the cells A = (outer[0], inner[0]),
        B = (outer[0], inner[1]), C = (outer[1], inner[0]) and D = (outer[1], inner[1]).

        It is how much more the second inner shape does under the second outer weighting than under the first, and the same
        with the axes exchanged. It is 0 where the axes simply add up.

        Raises:
            UnknownNameError: no such metric or label.
        """
        for cell in zip(outer, inner, strict=True):
            self._checked(cell)
        return self._effects(metric, [self._crossed(outer, inner)])[0]

    def pareto(self, first: str, second: str) -> list[Cell]:
        """Return the cells that no other cell dominates in the means of two metrics: is at least as good in both and better
        in one. It describes these means; whether two cells differ is what :meth:`compare` says. A cell that lacks a finite
        value with a seed that others have one with is left out: its means are not of the same seeds.

        Raises:
            UnknownNameError: no such metric.
            OptionError: the study does not say which direction of a metric is better.
        """
        from mtl_axes.study import statistics

        signs = []
        for metric in (first, second):
            self._check_metric(metric)
            direction = self.metrics.get(metric)
            if direction is None:
                raise OptionError(
                    f'A Pareto front needs to know whether lower ("min") or higher ("max") is better. Found no direction of '
                    f"{metric!r}. Pass it to the study: `metrics={{{metric!r}: 'min'}}`."
                )
            signs.append(1 if direction == "min" else -1)
        found = [self._finite(metric) for metric in (first, second)]
        seeds = {seed for cells in found for values in cells.values() for seed in values}
        whole = [cell for cell in self.cells if all(cells.get(cell, {}).keys() == seeds for cells in found)]
        if not whole:
            return []
        means = [[math.fsum(cells[cell].values()) / len(seeds) for cells in found] for cell in whole]
        front = statistics.pareto([[sign * mean for sign, mean in zip(signs, both, strict=True)] for both in means])
        return [cell for cell, kept in zip(whole, front, strict=True) if kept]

    def verdict(self, metric: str | None = None) -> list[str]:
        """Return what the study says, in plain sentences: what could not be counted, whether there are seeds enough, the
        best cell, each axis, the adaptive weightings against constants, the interaction. All metrics when None.

        Raises:
            UnknownNameError: no such metric.
        """
        from mtl_axes.study import verdict

        return verdict.sentences(self, self.metric_names if metric is None else [metric])

    def table(self, metric: str | None = None) -> str:
        """Return the cells as an aligned text table: n, mean, standard deviation, and the difference to the reference cell.
        All metrics, one below the other, when None.

        Raises:
            UnknownNameError: no such metric.
        """
        from mtl_axes.study import verdict

        names = self.metric_names if metric is None else [metric]
        return "\n\n".join(verdict.table(self, name) for name in names)

    def to_csv(self, path: str | Path) -> None:
        """Write one line per run, failed ones too: outer, inner, seed, each metric, seconds, error."""
        names = self.metric_names
        with Path(path).open("w", encoding="utf-8", errors="backslashreplace", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["outer", "inner", "seed", *names, "seconds", "error"])
            for run in (*self.runs, *self.failures):
                values = [run.metrics.get(name, "") for name in names]
                writer.writerow([run.outer, run.inner, run.seed, *values, run.seconds, run.error or ""])

    def _tried(self) -> list[Cell]:
        """The cells that have finished or failed runs."""
        found = {run.cell for run in (*self.runs, *self.failures)}
        return [(outer, inner) for outer in self.outer for inner in self.inner if (outer, inner) in found]

    def _check_metric(self, metric: str) -> None:
        if metric not in self.metric_names:
            raise UnknownNameError(
                f"`metric` should be one of the study's metrics: {', '.join(self.metric_names)}. Found {metric!r}."
            )

    def _checked(self, cell: Sequence[str]) -> Cell:
        for axis, level, levels in zip(("outer", "inner"), cell, (self.outer, self.inner), strict=True):
            if level not in levels:
                raise UnknownNameError(
                    f"A cell should have the study's labels. Those of the {axis} axis: {', '.join(levels)}. Found {level!r}."
                )
        return cell[0], cell[1]

    def _finite(self, metric: str) -> dict[Cell, dict[int, float]]:
        """The finite values of all cells by seed; cells without any are left out."""
        self._check_metric(metric)
        found: dict[Cell, dict[int, float]] = {}
        for run in self.runs:
            value = run.metrics.get(metric, math.nan)
            if _counts(value):
                found.setdefault(run.cell, {})[run.seed] = value
        return found

    def _between(self, axis: Axis, base: str, level: str, found: Iterable[Cell]) -> _Contrast:
        """A level minus another of the same axis, over the levels of the other axis that both have."""
        known = set(found)
        if axis == "outer":
            shared = tuple(inner for inner in self.inner if {(base, inner), (level, inner)} <= known)
            plus, minus = tuple((level, inner) for inner in shared), tuple((base, inner) for inner in shared)
            return _Contrast(level, base, "outer", (base, level), shared, plus, minus)
        shared = tuple(outer for outer in self.weightings if {(outer, base), (outer, level)} <= known)
        plus, minus = tuple((outer, level) for outer in shared), tuple((outer, base) for outer in shared)
        return _Contrast(level, base, "inner", shared, (base, level), plus, minus)

    @staticmethod
    def _crossed(outer: tuple[str, str], inner: tuple[str, str]) -> _Contrast:
        (a, b, c, d) = ((level, shape) for level in outer for shape in inner)
        return _Contrast(_name(d), _name(a), "interaction", outer, inner, (d, a), (c, b))

    def _effects(self, metric: str, contrasts: Sequence[_Contrast]) -> list[Effect]:
        """One family of comparisons."""
        from mtl_axes.study import statistics

        found = self._finite(metric)
        effects = []
        for contrast in contrasts:
            cells = [found.get(cell, {}) for cell in (*contrast.plus, *contrast.minus)]
            signs = [1] * len(contrast.plus) + [-1] * len(contrast.minus)
            share = 1 if contrast.kind == "interaction" else max(len(contrast.plus), 1)
            differences = {
                seed: math.fsum(sign * cell[seed] for sign, cell in zip(signs, cells, strict=True)) / share
                for seed in self.seeds
                if cells and all(seed in cell for cell in cells)
            }
            values = list(differences.values())
            size = max((abs(cell[seed]) for cell in cells for seed in differences), default=0.0)
            if values and max(values) - min(values) <= _ROUNDING * size:
                values = [math.fsum(values) / len(values)] * len(values)
            mean, sd = (float(value) for value in statistics.mean_and_sd(values))
            low, high = statistics.t_interval(values)
            bottom, top = statistics.bootstrap_interval(values)
            effects.append(
                Effect(
                    label=contrast.label,
                    against=contrast.against,
                    kind=contrast.kind,
                    outer=contrast.outer,
                    inner=contrast.inner,
                    metric=metric,
                    direction=self.metrics.get(metric),
                    differences=differences,
                    mean=mean,
                    sd=sd,
                    n=len(values),
                    interval=(float(low), float(high)),
                    bootstrap=(float(bottom), float(top)),
                    p=float(statistics.p_value(values)),
                    p_adjusted=math.nan,
                    family=0,
                    seeds_needed=statistics.seeds_needed(mean / sd) if sd > 0 else None,
                )
            )
        family = sum(math.isfinite(effect.p) for effect in effects)
        adjusted = statistics.holm([effect.p for effect in effects])
        return [replace(effect, p_adjusted=float(p), family=family) for effect, p in zip(effects, adjusted, strict=True)]

    @classmethod
    def load(cls, folder: str | Path) -> Results:
        """Return the results of the study in a folder. A run that is half-written does not count.

        Raises:
            DataError: the folder holds no study.
        """
        path = Path(folder) / STUDY_FILE
        try:
            return cls._read(path, json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(
                f"A study's folder should hold a readable {STUDY_FILE}. Found none in `{folder}` "
                f"({type(error).__name__}: {error}). Pass the folder that `Study(out=...)` was given."
            ) from error

    @classmethod
    def _read(cls, path: Path, kept: Mapping[str, Any]) -> Results:
        runs: list[Run] = []
        failures: list[Run] = []
        for name in kept["runs"]:
            try:
                run = Run.from_json((path.parent / RUNS_FOLDER / name).read_text(encoding="utf-8"))
            except (OSError, ValueError, TypeError):
                continue
            (runs if run.error is None else failures).append(run)
        return cls(
            outer=tuple(kept["outer"]),
            inner=tuple(kept["inner"]),
            seeds=tuple(kept["seeds"]),
            metrics=kept["metrics"],
            reference=tuple(kept["reference"]),
            runs=tuple(runs),
            failures=tuple(failures),
            # Where runs ended is not known before they have.
            constants=tuple(level for level in kept["constants"] if any(run.outer == level for run in (*runs, *failures))),
            baselines=tuple(kept["baselines"]),
            about=kept["about"],
        )
