"""The results of a study: its runs, and the comparisons between them."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from mtl_axes.errors import DataError, OptionError, UnknownNameError
from mtl_axes.study import contrasts, verdict
from mtl_axes.study.effects import Effect, Summary
from mtl_axes.study.runs import CHOSEN, ENDED, RUNS_FOLDER, STUDY_FILE, Axis, Cell, Direction, Run

__all__ = ["Results"]


@dataclass(frozen=True, eq=False)
class Results:
    """All runs of a study, and the comparisons between its cells, which need numpy and scipy (``mtl_axes[study]``).

    Attributes:
        outer: labels of the outer axis, in order.
        inner: labels of the inner axis, in order.
        seeds: the seeds, in order.
        metrics: by name whether a lower ("min") or higher ("max") value is better; None if the study does not say.
        reference: the cell that others are compared with.
        runs: the finished runs.
        failures: the runs that failed.
        constants: the levels of the outer axis that have runs and constant weights.
        baselines: the constants that the study added for comparison, except the equal weights: tuned constants, and
            constants where runs ended.
        about: what the study says about itself, as plain data: ``title``, ``config``, ``versions``, ``created``.
    """

    outer: tuple[str, ...]
    inner: tuple[str, ...]
    seeds: tuple[int, ...]
    metrics: Mapping[str, Direction | None]
    reference: Cell
    runs: tuple[Run, ...]
    failures: tuple[Run, ...] = ()
    constants: tuple[str, ...] = ()
    baselines: tuple[str, ...] = ()
    about: Mapping[str, Any] = field(default_factory=dict)

    @property
    def cells(self) -> list[Cell]:
        """The cells that have finished runs: outer by outer, inner by inner."""
        return contrasts.cells_of(self.runs, self.outer, self.inner)

    @property
    def metric_names(self) -> list[str]:
        """Every metric that the study names or a run has."""
        return list(dict.fromkeys([*self.metrics, *(name for run in self.runs for name in run.metrics)]))

    @property
    def weightings(self) -> list[str]:
        """The levels of the outer axis without the baselines; the reference's level is always among them."""
        return [level for level in self.outer if level not in self.baselines or level == self.reference[0]]

    @property
    def copies(self) -> list[str]:
        """The levels of the outer axis whose runs are copies of other levels' runs: the tuned constant."""
        runs = (*self.runs, *self.failures)
        return [level for level in self.outer if any(CHOSEN in run.config for run in runs if run.outer == level)]

    def values(self, metric: str, outer: str, inner: str) -> dict[int, float]:
        """Return a metric of one cell by seed, in the order of the seeds."""
        by_seed = {
            run.seed: run.metrics[metric] for run in self.runs if run.cell == (outer, inner) and metric in run.metrics
        }
        return {seed: by_seed[seed] for seed in self.seeds if seed in by_seed}

    def best_constant(self, metric: str) -> str | None:
        """Return the constant weights that an adaptive weighting has to beat in a metric.

        For the metric that the tuned constant was chosen by, the study's first with a direction, it is the tuned constant.
        Otherwise it is the constant with the best mean, of those with a finite value in every run; the mean is over the
        inner levels that all of these have. This one is chosen on the values that it is then judged by, so it is somewhat
        worse than it looks.

        Returns:
            its label; None if no constant has a finite value in every run, or if the metric has no direction.

        Raises:
            UnknownNameError: no such metric.
        """
        values, direction, copies = self._values(metric), self.metrics.get(metric), self.copies
        if direction is None:
            return None
        if metric == next(name for name, way in self.metrics.items() if way is not None):
            for level in copies:
                if any(cell[0] == level for cell in values):
                    return level
        own = [level for level in self.constants if level not in copies]
        return contrasts.best_constant(values, own, self.inner, self._tried, len(self.seeds), direction)

    def summary(self, metric: str) -> list[Summary]:
        """Return n, mean and standard deviation of a metric in every cell that was tried.

        Runs that diverged, with a value that is not finite or beyond 1e300, are counted and left out. The mean of a cell
        that has such runs looks better than the cell is.

        Raises:
            UnknownNameError: no such metric.
        """
        self._check(metric)
        return [contrasts.summary(cell, list(self.values(metric, *cell).values())) for cell in self._tried]

    def compare(self, metric: str, reference: Cell | None = None) -> list[Effect]:
        """Return every other cell minus the reference cell, paired by seed, corrected for the number of comparisons.

        Args:
            metric: its name.
            reference: labels (outer, inner); the study's reference if None.

        Raises:
            UnknownNameError: no such metric or label.
        """
        base = self._known(reference or self.reference)
        return self._effects(metric, [contrasts.pairwise(cell, base) for cell in self._tried if cell != base])

    def main_effect(self, metric: str, axis: Axis) -> list[Effect]:
        """Return every other level of an axis minus the reference's level, averaged over the other axis, corrected for the
        number of comparisons.

        The average is taken within each seed, over the levels of the other axis at which both have a finite value, and over
        the seeds that have a finite value at all of these. Inner levels are averaged over the :attr:`weightings` only, since
        nobody would train with most baselines. A level that shares no tried level of the other axis with the reference's
        level is left out.

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
        levels, others = (self.outer, self.inner) if axis == "outer" else (self.inner, self.weightings)
        pairs = [(level, base) for level in levels if level != base]
        return self._effects(metric, contrasts.between(axis, pairs, others, self._tried, self._values(metric)))

    def against_constants(self, metric: str, which: Literal["all", "best", "ended"] = "all") -> list[Effect]:
        """Return every adaptive weighting minus constant ones, averaged over the inner axis as in :meth:`main_effect`,
        corrected for the number of comparisons: does it beat constant weights?

        Args:
            metric: its name.
            which: "all": minus each constant. "best": minus :meth:`best_constant`. "ended": minus the constant where its
                runs ended.

        Raises:
            OptionError: ``which`` is none of these.
            UnknownNameError: no such metric.
        """
        if which not in ("all", "best", "ended"):
            raise OptionError(f'`which` should be "all", "best" or "ended". Found {which!r}.')
        best = self.best_constant(metric) if which == "best" else None
        pairs = [
            (level, constant)
            for level in self.outer
            if level not in self.constants and level not in self.copies
            for constant in self.constants
            if which == "all" or constant == (best if which == "best" else ENDED.format(level))
        ]
        return self._effects(metric, contrasts.between("outer", pairs, self.inner, self._tried, self._values(metric)))

    def interactions(self, metric: str) -> list[Effect]:
        """Return the interaction of every pair of levels with the reference's levels, if all four cells were tried,
        corrected for the number of comparisons. Baselines are left out, since nobody would train with most of them.

        Raises:
            UnknownNameError: no such metric.
        """
        outer, inner = self.reference
        pairs = [(b, d) for b in self.weightings if b != outer for d in self.inner if d != inner]
        crossed = [contrasts.crossed((outer, b), (inner, d)) for b, d in pairs]
        tried = set(self._tried)
        return self._effects(metric, [contrast for contrast in crossed if {*contrast.plus, *contrast.minus} <= tried])

    def interaction(self, metric: str, outer: tuple[str, str], inner: tuple[str, str]) -> Effect:
        """Return (D - C) - (B - A), taken within each seed, with the cells A = (outer[0], inner[0]),
        B = (outer[0], inner[1]), C = (outer[1], inner[0]) and D = (outer[1], inner[1]).

        It is how much more the second inner shape does under the second outer weighting than under the first, and likewise
        with the axes exchanged. It is 0 if the effects of the axes add up.

        Raises:
            UnknownNameError: no such metric or label.
        """
        for cell in zip(outer, inner, strict=True):
            self._known(cell)
        return self._effects(metric, [contrasts.crossed(outer, inner)])[0]

    def pareto(self, first: str, second: str) -> list[Cell]:
        """Return the cells that no other cell dominates in the means of two metrics: no other is at least as good in both
        and better in one. It describes these means; :meth:`compare` says whether two cells differ. A cell that lacks a
        finite value with a seed for which others have one is left out: its means are not over the same seeds.

        Raises:
            UnknownNameError: no such metric.
            OptionError: the study does not say which direction of a metric is better.
        """
        directions = []
        for metric in (first, second):
            self._check(metric)
            direction = self.metrics.get(metric)
            if direction is None:
                raise OptionError(
                    f"The metric {metric!r} has no direction, so there is no Pareto front. Pass its direction to the study: "
                    f"`metrics={{{metric!r}: 'min'}}`, or 'max' if higher is better."
                )
            directions.append(direction)
        return contrasts.front(self._values(first), self._values(second), self.cells, directions)

    def verdict(self, metric: str | None = None) -> list[str]:
        """Return what the study says, in plain sentences: failed and missing runs, whether the seeds are enough, the best
        cell, each axis, the adaptive weightings against constants, the interactions. All metrics if None.

        Raises:
            UnknownNameError: no such metric.
        """
        sentences: list[str] = []
        for name in self.metric_names if metric is None else [metric]:
            summaries = self.summary(name)
            sentences += verdict.diverged(name, summaries)
            if len({run.seed for run in self.runs}) > 1:
                sentences += verdict.about_metric(
                    verdict.Answers(
                        name,
                        self.metrics.get(name),
                        summaries,
                        cells=self.compare(name),
                        outer=self.main_effect(name, "outer"),
                        inner=self.main_effect(name, "inner"),
                        best=self.best_constant(name),
                        against_best=self.against_constants(name, "best"),
                        against_ended=self.against_constants(name, "ended"),
                        interactions=self.interactions(name),
                    ),
                    seeds=len(self.seeds),
                    reference=self.reference,
                    inner=self.inner,
                    weightings=self.weightings,
                    constants=self.constants,
                    copies=self.copies,
                )
        about_runs = verdict.about_runs(
            self.runs,
            self.failures,
            seeds=len(self.seeds),
            levels=len(self.outer),
            constants=self.constants,
            copies=self.copies,
        )
        caution = [verdict.CAUTION] if any("significant" in sentence for sentence in sentences) else []
        return [*about_runs, *caution, *sentences]

    def table(self, metric: str | None = None) -> str:
        """Return the cells as an aligned text table: n, mean, standard deviation, and the difference to the reference cell.
        All metrics, one below the other, if None.

        Raises:
            UnknownNameError: no such metric.
        """
        names = self.metric_names if metric is None else [metric]
        return "\n\n".join(
            verdict.table(name, self.metrics.get(name), self.reference, self.summary(name), self.compare(name))
            for name in names
        )

    def to_csv(self, path: str | Path) -> None:
        """Write one line per run, including failed ones: outer, inner, seed, each metric, seconds, error."""
        names = self.metric_names
        with Path(path).open("w", encoding="utf-8", errors="backslashreplace", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["outer", "inner", "seed", *names, "seconds", "error"])
            for run in (*self.runs, *self.failures):
                values = [run.metrics.get(name, "") for name in names]
                writer.writerow([run.outer, run.inner, run.seed, *values, run.seconds, run.error or ""])

    @property
    def _tried(self) -> list[Cell]:
        return contrasts.cells_of((*self.runs, *self.failures), self.outer, self.inner)

    def _values(self, metric: str) -> dict[Cell, dict[int, float]]:
        self._check(metric)
        return contrasts.finite_values(self.runs, metric, self.seeds)

    def _effects(self, metric: str, family: Sequence[contrasts.Contrast]) -> list[Effect]:
        return contrasts.effects(family, self._values(metric), metric, self.metrics.get(metric))

    def _check(self, metric: str) -> None:
        if metric not in self.metric_names:
            raise UnknownNameError(
                f"The study has no metric {metric!r}. Its metrics: {', '.join(self.metric_names) or 'none'}."
            )

    def _known(self, cell: Cell) -> Cell:
        for axis, level, levels in zip(("outer", "inner"), cell, (self.outer, self.inner), strict=True):
            if level not in levels:
                raise UnknownNameError(f"The {axis} axis has no level {level!r}. Its levels: {', '.join(levels)}.")
        return cell

    @classmethod
    def load(cls, folder: str | Path) -> Results:
        """Return the results of the study in a folder. A half-written run does not count.

        Raises:
            DataError: the folder holds no study.
        """
        path = Path(folder) / STUDY_FILE
        try:
            study = json.loads(path.read_text(encoding="utf-8"))
            runs = []
            for name in study["runs"]:
                try:
                    runs.append(Run.from_json((path.parent / RUNS_FOLDER / name).read_text(encoding="utf-8")))
                except (OSError, ValueError, TypeError):
                    continue
            trained = {run.outer for run in runs}
            return cls(
                outer=tuple(study["outer"]),
                inner=tuple(study["inner"]),
                seeds=tuple(study["seeds"]),
                metrics=study["metrics"],
                reference=tuple(study["reference"]),
                runs=tuple(run for run in runs if run.error is None),
                failures=tuple(run for run in runs if run.error is not None),
                # The constants where runs end are unknown until those runs have ended.
                constants=tuple(level for level in study["constants"] if level in trained),
                baselines=tuple(study["baselines"]),
                about=study["about"],
            )
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(
                f"The folder `{folder}` holds no readable {STUDY_FILE} ({type(error).__name__}: {error}). Pass the folder "
                "that `Study(out=...)` was given."
            ) from error
