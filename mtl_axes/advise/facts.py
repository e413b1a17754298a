"""What advice consists of: values that were measured, and sentences with the reason and the source of each."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from mtl_axes.signals import Kind, Need

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Advice", "Candidate", "Cosine", "Cost", "Finding", "Norm", "Ratio", "Rule", "TaskLoss", "signed", "sized"]

Rule = Literal[
    "one task",
    "not measured",
    "loss not finite",
    "no gradient",
    "conflict",
    "beyond the floor",
    "adaptive",
    "unrelated",
    "equal",
    "more batches",
    "inner axis",
]
"""Names of the rules. Of those that hold the first is the recommendation: what is broken before what is weighed."""


class OverBatches:
    """What has ``values``, one in every batch or None."""

    values: tuple[float | None, ...]

    @property
    def mean(self) -> float | None:
        """Mean over the batches that have one; None without any."""
        return _mean(self.values)

    @property
    def sd(self) -> float | None:
        """Standard deviation over the batches (n - 1); None below two of them."""
        return _sd(self.values)


@dataclass(frozen=True)
class TaskLoss(OverBatches):
    """The loss of one task over the batches.

    Attributes:
        task: its name.
        kind: its kind, None for a loss computed elsewhere, and for a task without a label in any batch.
        shape: ``repr`` of its inner shape, None as for ``kind``.
        values: the loss in every batch; None where the task was absent or its loss not finite.
        absent: batches without a label of the task.
        not_finite: batches in which its loss, or its gradient, was NaN or infinite.
        target_range: smallest and largest target of a regression, None otherwise.
        exponent: p such that a target and a prediction in units that make their numbers c times as large make loss and
            gradient about c^p times as large, for c near 1: 2 for squared errors, 1 for absolute ones. None where
            there are no units, or where it cannot be measured.
    """

    task: str
    kind: Kind | None
    shape: str | None
    values: tuple[float | None, ...]
    absent: int
    not_finite: int
    target_range: tuple[float, float] | None
    exponent: float | None

    @property
    def unlabelled(self) -> bool:
        """Whether no batch had a label of the task."""
        return self.absent == len(self.values)


@dataclass(frozen=True)
class Norm(OverBatches):
    """The L2 norm of one task's gradient on the shared parameters.

    Attributes:
        task: its name.
        values: the norm in every batch; None where it was not measured.
        zeros: batches in which it was 0.
    """

    task: str
    values: tuple[float | None, ...]
    zeros: int

    @property
    def signal_to_noise(self) -> float | None:
        """``mean / sd``; None where the sd is unknown or 0."""
        mean, sd = self.mean, self.sd
        return mean / sd if mean is not None and sd else None


@dataclass(frozen=True)
class Cosine(OverBatches):
    """The cosine between the gradients of two tasks on the shared parameters.

    Attributes:
        first, second: the tasks.
        values: the cosine in every batch; None where one of the two gradients was missing or 0.
    """

    first: str
    second: str
    values: tuple[float | None, ...]

    @property
    def conflicts(self) -> float | None:
        """Share of the batches, of those that have a cosine, in which it was negative."""
        known = _known(self.values)
        return sum(value < 0 for value in known) / len(known) if known else None

    def side_of(self, bound: float) -> Literal["above", "below", "open"]:
        """Return on which side of a bound the mean lies, ``"open"`` within two standard errors of it."""
        return _side(_known(self.values), bound)


@dataclass(frozen=True)
class Ratio:
    """How far apart the gradient norms are: of the task with the largest norm over that with the smallest.

    Attributes:
        largest, smallest: the two tasks, by their geometric means.
        values: the ratio in every batch in which both norms were measured.
        floor: the floor of GABA, as given in the criterion or in a candidate, else its default.
    """

    largest: str
    smallest: str
    values: tuple[float, ...]
    floor: float

    @property
    def median(self) -> float:
        """Median over the batches."""
        ordered = sorted(self.values)
        half = len(ordered) // 2
        return ordered[half] if len(ordered) % 2 else (ordered[half - 1] + ordered[half]) / 2

    @property
    def low(self) -> float:
        """Smallest over the batches."""
        return min(self.values)

    @property
    def high(self) -> float:
        """Largest over the batches."""
        return max(self.values)

    @property
    def limit(self) -> float:
        """What the floor can compensate: its weights are at most ``1 / floor`` apart. Infinite without a floor."""
        return 1 / self.floor if self.floor > 0 else math.inf

    @property
    def over(self) -> float:
        """The median ratio over :attr:`limit`: how far apart the pulls ``lambda_i n_i`` stay at the floor, where above 1."""
        return self.median / self.limit

    def side_of(self, bound: float) -> Literal["above", "below", "open"]:
        """Return on which side of a bound the geometric mean lies, ``"open"`` within two standard errors (of the log)."""
        return _side([math.log(value) for value in self.values], math.log(bound))


@dataclass(frozen=True)
class Cost:
    """The time of a step here: forward, criterion and backward, on the user's model and batches.

    Attributes:
        label: the weighting, and the variant of the measurement.
        seconds: median over the rounds.
        ratio: median over the rounds of the time over that of the plain weighted sum in the same round.
        rounds: number of them.
        problem: why it was not measured, else None.
    """

    label: str
    seconds: float | None
    ratio: float | None
    rounds: int
    problem: str | None = None


@dataclass(frozen=True)
class Candidate:
    """What one weighting would do were losses and gradients to stay as they are on these batches.

    Attributes:
        label: its name, with options where they were given.
        reads: ``"losses"``, ``"norms"`` or ``"gramian"``; None where it could not be built.
        first: by task, its weights right after these batches; of one that is learned, before them.
        weights: by task, where its weights go as the batches come again and again: the mean over the last pass.
        shares: by task, ``lambda_i n_i / sum_j |lambda_j n_j|`` with the mean norms; empty without norms.
        windows: steps until the weights stayed within 0.1 %; None where they had not in the steps that were tried, and
            where an optimizer learns them, whose pace is its own.
        at_floor: tasks whose weight a floor holds up in the end.
        cost: of a step, None where it was not measured in the seconds given.
        note: what to know about it, or why it could not be told; "" when there is nothing.
    """

    label: str
    reads: Need | None
    first: Mapping[str, float]
    weights: Mapping[str, float]
    shares: Mapping[str, float]
    windows: int | None
    at_floor: tuple[str, ...]
    cost: Cost | None
    note: str = ""


@dataclass(frozen=True)
class Finding:
    """One rule that holds here.

    Attributes:
        rule: which.
        says: what follows from it.
        because: the numbers.
        source: where the rule comes from.
        evidence: how much is behind it.
    """

    rule: Rule
    says: str
    because: str
    source: str
    evidence: str


@dataclass(frozen=True)
class Advice:
    """What :func:`mtl_axes.advise.advise` found. ``print`` shows it as a text of at most 100 columns.

    Attributes:
        tasks: their names, in order.
        primary: the task that matters, None when all do.
        batches: number of batches that were seen.
        shared: number of entries of the shared parameters, None when they were not found.
        seconds: what it took.
        losses: by task, in order.
        norms: by task, in order; empty when no gradient could be measured.
        cosines: of every pair.
        ratio: None with one task, or without two norms.
        obstacle: why no gradient could be measured, else None.
        candidates: what weightings would do.
        costs: of a step: of every candidate, and of the cheaper ways to measure norms.
        plain: seconds of a step with the plain weighted sum, None when it was not measured.
        findings: the rules that hold; the first is the recommendation.
        unknown: what this cannot tell.
        code: Python that settles it.
    """

    tasks: tuple[str, ...]
    primary: str | None
    batches: int
    shared: int | None
    seconds: float
    losses: tuple[TaskLoss, ...]
    norms: tuple[Norm, ...]
    cosines: tuple[Cosine, ...]
    ratio: Ratio | None
    obstacle: str | None
    candidates: tuple[Candidate, ...]
    costs: tuple[Cost, ...]
    plain: float | None
    findings: tuple[Finding, ...]
    unknown: tuple[str, ...]
    code: str

    @property
    def recommendation(self) -> Finding:
        """The first of the findings."""
        return self.findings[0]

    def __str__(self) -> str:
        from mtl_axes.advise.text import told

        return told(self)

    def plot(self, path: str | Path | None = None) -> Figure:
        """Return a picture: norms with their noise, cosines, shares by weighting, cost by weighting.

        Args:
            path: also save it there; the ending says in which format.

        Raises:
            MtlAxesError: matplotlib is not installed.
        """
        from mtl_axes.advise.picture import drawn

        return drawn(self, path)


def sized(value: float | None) -> str:
    """Return a number as a reader wants it: 6,540 and not 6.54e+03; ``"-"`` for None."""
    if value is None:
        return "-"
    return f"{value:,.0f}" if 1e3 <= abs(value) < 1e6 else f"{value:.3g}"


def signed(value: float) -> str:
    """Return a cosine with its sign, which a value that is shown as zero does not have."""
    return f"{value:+.2f}".replace("-0.00", "0.00").replace("+0.00", "0.00")


def _known(values: tuple[float | None, ...]) -> list[float]:
    return [value for value in values if value is not None]


def _mean(values: tuple[float | None, ...]) -> float | None:
    known = _known(values)
    return sum(known) / len(known) if known else None


def _sd(values: tuple[float | None, ...]) -> float | None:
    known = _known(values)
    if len(known) < 2:
        return None
    mean = sum(known) / len(known)
    return math.sqrt(sum((value - mean) ** 2 for value in known) / (len(known) - 1))


def _side(values: list[float], bound: float) -> Literal["above", "below", "open"]:
    # Two batches have a spread, but one that says nothing.
    if len(values) < 3:
        return "open"
    mean = sum(values) / len(values)
    error = math.sqrt(sum((value - mean) ** 2 for value in values) / (len(values) - 1) / len(values))
    if abs(mean - bound) <= 2 * error:
        return "open"
    return "above" if mean > bound else "below"
