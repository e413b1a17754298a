"""The values that advice consists of: measurements over batches, candidates, costs, and rules that hold."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean, median, stdev
from typing import Literal

from mtl_axes.signals import Kind, Need

__all__ = ["Candidate", "Cosine", "Cost", "Finding", "Norm", "Ratio", "Rule", "TaskLoss", "signed", "sized"]

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
"""Names of the rules. The first that holds is the recommendation: what is broken comes before what is weighted."""

Side = Literal["above", "below", "open"]


class OverBatches:
    """Statistics of ``values``, one per batch, or None."""

    values: tuple[float | None, ...]

    @property
    def known(self) -> list[float]:
        """The values without None."""
        return [value for value in self.values if value is not None]

    @property
    def mean(self) -> float | None:
        """Mean over the batches with a value; None without any."""
        return fmean(self.known) if self.known else None

    @property
    def sd(self) -> float | None:
        """Standard deviation over the batches (n - 1); None with fewer than two values."""
        return stdev(self.known) if len(self.known) > 1 else None


@dataclass(frozen=True)
class TaskLoss(OverBatches):
    """The losses of one task, by batch.

    Attributes:
        task: its name.
        kind: its kind; None for a loss computed elsewhere, and for a task without a label in any batch.
        shape: ``repr`` of its inner shape; None as for ``kind``.
        values: the loss in each batch; None if the task was absent or its loss not finite.
        absent: number of batches without a label of the task.
        not_finite: number of batches in which its loss or its gradient was NaN or infinite.
        target_range: smallest and largest target of a regression, else None.
        exponent: p such that loss and gradient grow about c^p times if targets and predictions are in units that make
            their numbers c times as large, for c near 1: 2 for squared errors, 1 for absolute ones. None if there are no
            units, or if it cannot be measured.
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
        """True if no batch had a label of the task."""
        return self.absent == len(self.values)


@dataclass(frozen=True)
class Norm(OverBatches):
    """The L2 norms of one task's gradient on the shared parameters, by batch.

    Attributes:
        task: its name.
        values: the norm in each batch; None if it was not measured.
        zeros: number of batches in which it was 0.
    """

    task: str
    values: tuple[float | None, ...]
    zeros: int

    @property
    def signal_to_noise(self) -> float | None:
        """``mean / sd``; None if the sd is unknown or 0."""
        mean, sd = self.mean, self.sd
        return mean / sd if mean is not None and sd else None


@dataclass(frozen=True)
class Cosine(OverBatches):
    """The cosines between two tasks' gradients on the shared parameters, by batch.

    Attributes:
        first, second: the tasks.
        values: the cosine in each batch; None if one of the two gradients was missing or 0.
    """

    first: str
    second: str
    values: tuple[float | None, ...]

    @property
    def conflicts(self) -> float | None:
        """Share of negative cosines among the batches with a cosine."""
        return sum(value < 0 for value in self.known) / len(self.known) if self.known else None

    def side_of(self, bound: float) -> Side:
        """Return on which side of a bound the mean lies: ``"open"`` within two standard errors of it."""
        return _side(self.known, bound)


@dataclass(frozen=True)
class Ratio:
    """The ratio of the largest to the smallest task's gradient norm.

    Attributes:
        largest, smallest: the two tasks, by their geometric means.
        values: the ratio in each batch in which both norms were measured.
        floor: the floor of GABA, as given in the criterion or in a candidate, else its default.
    """

    largest: str
    smallest: str
    values: tuple[float, ...]
    floor: float

    @property
    def median(self) -> float:
        """Median over the batches."""
        return median(self.values)

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
        """Largest ratio that GABA's weights can compensate, ``1 / floor``; infinite without a floor."""
        return 1 / self.floor if self.floor > 0 else math.inf

    @property
    def over(self) -> float:
        """The median ratio over :attr:`limit`. Above 1 it is the ratio of the pulls ``lambda_i n_i`` at the floor."""
        return self.median / self.limit

    def side_of(self, bound: float) -> Side:
        """Return on which side of a bound the geometric mean lies: ``"open"`` within two standard errors (of the log)."""
        return _side([math.log(value) for value in self.values], math.log(bound))


@dataclass(frozen=True)
class Cost:
    """The time of a step with one weighting: forward, criterion and backward, on the user's model and batches.

    Attributes:
        label: the weighting, and how it measures.
        seconds: median over the rounds; None if there was no time to measure it.
        ratio: the time relative to the plain weighted sum in the same round; median over the rounds.
        rounds: their number.
        problem: why it could not be measured, else None.
    """

    label: str
    seconds: float | None
    ratio: float | None
    rounds: int
    problem: str | None = None


@dataclass(frozen=True)
class Candidate:
    """What one weighting would do if losses and gradients stayed as they are in these batches.

    Attributes:
        label: its name, with the options that were given.
        reads: ``"losses"``, ``"norms"`` or ``"gramian"``; None if it could not be built.
        first: its weights by task after one pass over the batches; before it for learned weights.
        weights: its weights by task after many passes over the batches: the mean over the last pass.
        shares: ``lambda_i n_i / sum_j |lambda_j n_j|`` by task, with the mean norms; empty without norms.
        windows: steps until the weights stay within 0.1 %. None if they did not in the steps that were tried, and for
            learned weights, whose pace depends on their optimizer.
        at_floor: tasks whose weight is held by a floor in the end.
        cost: of a step; None if there was no time to measure it.
        note: what to know about it, or why it could not be tried; "" otherwise.
    """

    label: str
    reads: Need | None
    first: Mapping[str, float] = field(default_factory=dict)
    weights: Mapping[str, float] = field(default_factory=dict)
    shares: Mapping[str, float] = field(default_factory=dict)
    windows: int | None = None
    at_floor: tuple[str, ...] = ()
    cost: Cost | None = None
    note: str = ""


@dataclass(frozen=True)
class Finding:
    """A rule that holds for these batches.

    Attributes:
        rule: its name.
        says: what to do.
        because: the numbers.
        source: where the rule comes from.
        evidence: how well it is supported.
    """

    rule: Rule
    says: str
    because: str
    source: str
    evidence: str


def sized(value: float | None) -> str:
    """Return a number with three digits or as a whole number, 6,540 and not 6.54e+03; ``"-"`` for None."""
    if value is None:
        return "-"
    return f"{value:,.0f}" if 1e3 <= abs(value) < 1e6 else f"{value:.3g}"


def signed(value: float) -> str:
    """Return a cosine with its sign, which is left out if it rounds to zero."""
    return f"{value:+.2f}".replace("-0.00", "0.00").replace("+0.00", "0.00")


def _side(values: Sequence[float], bound: float) -> Side:
    # Two batches have a spread, but it says nothing.
    if len(values) < 3:
        return "open"
    distance = fmean(values) - bound
    if abs(distance) <= 2 * stdev(values) / math.sqrt(len(values)):
        return "open"
    return "above" if distance > 0 else "below"
