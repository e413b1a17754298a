"""What a study says about one difference, as numbers and in words."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

__all__ = ["FEW", "LEVEL", "MOST_SEEDS", "Direction", "Effect", "Summary", "number"]

Direction = Literal["min", "max"]
Interval = tuple[float, float]

LEVEL = 0.05
FEW = 5
MOST_SEEDS = 10_000
_LISTED = 4  # levels that a sentence names one by one


def number(value: float, scale: float, *, sign: bool = False) -> str:
    """Write a number with as many digits as show ``scale``, mostly its standard deviation, with two.

    >>> number(14.4512, 0.45), number(-0.02, 0.0031, sign=True), number(1165.2, 151.0), number(3e-9, 1e-9)
    ('14.45', '-0.0200', '1165', '3e-09')
    """
    if not math.isfinite(value):
        return "-" if math.isnan(value) else str(value)
    scale = scale if scale > 0 and math.isfinite(scale) else abs(value) / 10
    digits = 1 - math.floor(math.log10(scale)) if scale > 0 else 0
    plus = "+" if sign else ""
    plain = digits <= 6 and abs(value) < 1e7
    return f"{value:{plus}.{max(digits, 0)}f}" if plain else f"{value:{plus}.3g}"


@dataclass(frozen=True)
class Summary:
    """One metric in one cell.

    Attributes:
        outer, inner: labels of the cell.
        n: finite values; the mean and the deviation are over these.
        mean: NaN where n = 0.
        sd: standard deviation between seeds (n - 1 in the denominator); NaN where n < 2.
        not_finite: finished runs whose value is NaN or infinite, left out of the mean.
    """

    outer: str
    inner: str
    n: int
    mean: float
    sd: float
    not_finite: int


@dataclass(frozen=True, eq=False)
class Effect:
    """A difference between cells in one metric, taken within each seed.

    Attributes:
        label: what is compared: ``"OUTER x INNER"`` for a cell and for an interaction, the level for a main effect.
        against: what it is compared with, in the same form.
        kind: ``"cell"``: a cell minus another. ``"outer"``, ``"inner"``: a level of that axis minus another, averaged within
            a seed over levels of the other axis. ``"interaction"``: (D - C) - (B - A).
        outer: the two levels (from, to); for a main effect of the inner axis the levels that it is averaged over.
        inner: the same for the inner axis.
        metric: name of the metric.
        direction: whether lower ("min") or higher ("max") is better, None where the study does not say.
        differences: by seed, over the seeds in which all the cells that it is made of have a finite value.
        n: their number.
        mean, sd: of the differences; NaN where n = 0, and n < 2.
        interval: Student's 95 % interval for the mean. It, and all that follows, is NaN where n < 2 or all differences are
            equal to float32 rounding of the metric: they have no spread to judge by.
        bootstrap: 95 % interval of the smoothed studentised bootstrap.
        p: two-sided p-value of the paired t test.
        p_adjusted: the same after Holm's correction for the comparisons that it was made with.
        family: how many these were.
        seeds_needed: with how many seeds an effect of exactly this size has an 80 % chance of p < 0.05; None where n < 2,
            where sd = 0, and where the mean is below a millionth of sd.
    """

    label: str
    against: str
    kind: Literal["cell", "outer", "inner", "interaction"]
    outer: tuple[str, ...]
    inner: tuple[str, ...]
    metric: str
    direction: Direction | None
    differences: Mapping[int, float]
    mean: float
    sd: float
    n: int
    interval: Interval
    bootstrap: Interval
    p: float
    p_adjusted: float
    family: int
    seeds_needed: int | None

    @property
    def distinguishable(self) -> bool:
        """Whether the corrected p-value is below 0.05."""
        return self.p_adjusted < LEVEL

    @property
    def relation(self) -> str:
        """What the sign of the mean says: "better" or "worse" where the metric has a direction, else "higher" or "lower"."""
        if self.direction is None:
            return "higher" if self.mean > 0 else "lower"
        return "better" if (self.mean > 0) == (self.direction == "max") else "worse"

    @property
    def seeds_in_words(self) -> str:
        """How many seeds an effect of this size would take, such as "about 34 seeds"; "" where that is not known."""
        if self.seeds_needed is None:
            return ""
        many = self.seeds_needed > MOST_SEEDS
        return f"more than {MOST_SEEDS:,} seeds" if many else f"about {self.seeds_needed:,} seeds"

    def in_words(self, *, caution: bool = True) -> str:
        """Return one or two sentences: what differs, by how much, how sure that is, and how many seeds it would take.

        Args:
            caution: say that what does not show may be there; False where it has been said.
        """
        if self.n < 2 or self.sd == 0:
            return f"{self.metric}: {self._without_spread()}"
        few = "only " if self.n < FEW else ""
        low, high = (number(end, self.sd, sign=True) for end in self.interval)
        told = f"95 % interval {low} to {high}, {few}{self.n} seeds"
        if self.distinguishable:
            corrected = f", corrected for {self.family} comparisons" if self.family > 1 else ""
            p = f"p = {self.p_adjusted:.3f}" if self.p_adjusted >= 0.001 else "p < 0.001"
            return f"{self.metric}: {self._claim()} ({told}; {p}{corrected})."
        return f"{self.metric}: {self._no_claim()} ({told}). {self._what_it_would_take(caution)}".rstrip()

    def _difference(self) -> str:
        return number(self.mean, self.sd, sign=True)

    def _sides(self) -> tuple[str, str]:
        """The two things that are told apart, as they read in "X is not distinguishable from Y"."""
        if self.kind == "interaction":
            change = f"the effect of {self.inner[1]} instead of {self.inner[0]}"
            return f"{change} under {self.outer[1]}", f"that under {self.outer[0]}"
        return self.label, self.against

    def _averaged(self) -> str:
        over = {"outer": self.inner, "inner": self.outer}.get(self.kind, ())
        if len(over) < 2:
            return ""
        other = "inner" if self.kind == "outer" else "outer"
        return f", averaged over {', '.join(over) if len(over) <= _LISTED else f'{len(over)} levels of the {other} axis'}"

    def _claim(self) -> str:
        this, other = self._sides()
        if self.kind == "interaction":
            return f"the axes interact: {this} minus {other} is {self._difference()}"
        return f"{this} is {self.relation} than {other}{self._averaged()}: {self._difference()}"

    def _no_claim(self) -> str:
        this, other = self._sides()
        return f"{this} is not distinguishable from {other}{self._averaged()}: {self._difference()}"

    def _what_it_would_take(self, caution: bool) -> str:
        if self.p < LEVEL:
            return (
                f"Alone it would pass, but it is one of {self.family} comparisons, and among so many some look like this by "
                "chance. More seeds would tell."
            )
        if self.seeds_needed is None:
            return "That none shows does not mean that there is none." if caution else ""
        end = f"; that {self.n} do not show one does not mean that there is none." if caution else "."
        return f"An effect of this size would take {self.seeds_in_words} to show{end}"

    def _without_spread(self) -> str:
        this, other = self._sides()
        if self.n == 0:
            return f"{this} cannot be compared with {other}: no seed gave a finite value for all of their runs."
        if self.n == 1:
            seed, difference = next(iter(self.differences.items()))
            return (
                f"nothing can be told from one seed about {this} and {other}{self._averaged()}: {difference:+.4g} with seed "
                f"{seed}, and the next seed may turn it round."
            )
        if self.mean == 0:
            return f"{this} and {other} gave the same value with each of {self.n} seeds{self._averaged()}."
        return (
            f"{this} minus {other} is {self.mean:+.4g} with each of {self.n} seeds{self._averaged()}. Without any spread "
            "chance cannot be judged: see that the training function uses its seed, or take a metric with finer steps."
        )
