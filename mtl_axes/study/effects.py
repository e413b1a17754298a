"""What a study says about one difference, as numbers and in words."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from mtl_axes.study.runs import Direction

__all__ = ["FEW", "LEVEL", "MOST_SEEDS", "Effect", "Summary", "number"]

LEVEL = 0.05
FEW = 5
MOST_SEEDS = 10_000
_LISTED = 4  # levels that a sentence names one by one


def number(value: float, scale: float, *, sign: bool = False) -> str:
    """Write a number with as many digits as show two digits of ``scale``, mostly its standard deviation.

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
        n: number of finite values.
        mean: mean of the finite values; NaN if n = 0.
        sd: standard deviation between seeds (n - 1 in the denominator); NaN if n < 2.
        not_finite: number of finished runs whose value is NaN or infinite, which the mean leaves out.
    """

    outer: str
    inner: str
    n: int
    mean: float
    sd: float
    not_finite: int

    @property
    def name(self) -> str:
        """What sentences call the cell."""
        return f"{self.outer} x {self.inner}"


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
        direction: whether lower ("min") or higher ("max") is better, None if the study does not say.
        differences: by seed, for the seeds with a finite value in every cell involved.
        n: number of differences.
        mean, sd: mean (NaN if n = 0) and standard deviation (NaN if n < 2) of the differences.
        interval: Student's 95 % interval for the mean. The interval and all that follows is NaN if n < 2, or if all
            differences are equal to float32 rounding of the metric, which leaves no spread to judge by.
        p: two-sided p-value of the paired t test.
        p_adjusted: the same after Holm's correction for the comparisons of its family.
        family: number of comparisons in the family.
        seeds_needed: number of seeds with which an effect of exactly this size has an 80 % chance of p < 0.05; None if
            n < 2, if sd = 0, or if the mean is below a millionth of sd.
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
    interval: tuple[float, float]
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
        """What the sign of the mean says: "better" or "worse" if the metric has a direction, else "higher" or "lower"."""
        if self.direction is None:
            return "higher" if self.mean > 0 else "lower"
        return "better" if (self.mean > 0) == (self.direction == "max") else "worse"

    @property
    def seeds_in_words(self) -> str:
        """How many seeds it takes to detect an effect of this size, such as "about 34 seeds"; "" if that is not known."""
        if self.seeds_needed is None:
            return ""
        many = self.seeds_needed > MOST_SEEDS
        return f"more than {MOST_SEEDS:,} seeds" if many else f"about {self.seeds_needed:,} seeds"

    def in_words(self, *, caution: bool = True) -> str:
        """Return one or two sentences: what differs, by how much, how sure that is, and how many seeds it would take.

        Args:
            caution: say that no significant difference does not mean no difference; False if that has been said.
        """
        this, other = self._sides()
        if self.n < 2 or self.sd == 0:
            return f"{self.metric}: {self._without_spread(this, other)}"
        difference, low, high = (number(value, self.sd, sign=True) for value in (self.mean, *self.interval))
        few = "only " if self.n < FEW else ""
        details = f"95 % interval {low} to {high}, {few}{self.n} seeds"
        averaged = self._averaged()
        if not self.distinguishable:
            claim = f"{this} does not differ significantly from {other}{averaged}: {difference}"
            return f"{self.metric}: {claim} ({details}). {self._what_it_would_take(caution)}".rstrip()
        claim = f"{this} is {self.relation} than {other}{averaged}: {difference}"
        if self.kind == "interaction":
            claim = f"the axes interact: {this} minus {other} is {difference}"
        p = f"p = {self.p_adjusted:.3f}" if self.p_adjusted >= 0.001 else "p < 0.001"
        corrected = f", corrected for {self.family} comparisons" if self.family > 1 else ""
        return f"{self.metric}: {claim} ({details}; {p}{corrected})."

    def _sides(self) -> tuple[str, str]:
        if self.kind == "interaction":
            change = f"the effect of {self.inner[1]} instead of {self.inner[0]}"
            return f"{change} under {self.outer[1]}", f"the effect under {self.outer[0]}"
        return self.label, self.against

    def _averaged(self) -> str:
        over = {"outer": self.inner, "inner": self.outer}.get(self.kind, ())
        if len(over) < 2:
            return ""
        other = "inner" if self.kind == "outer" else "outer"
        return f", averaged over {', '.join(over) if len(over) <= _LISTED else f'{len(over)} levels of the {other} axis'}"

    def _what_it_would_take(self, caution: bool) -> str:
        if self.p < LEVEL:
            return (
                f"As the only comparison it would be significant; among {self.family} comparisons, some look like this by "
                "chance. Run more seeds."
            )
        words = [f"Detecting an effect of this size takes {self.seeds_in_words}."] if self.seeds_needed else []
        words += ["No significant difference does not mean no difference."] if caution else []
        return " ".join(words)

    def _without_spread(self, this: str, other: str) -> str:
        if self.n == 0:
            return f"{this} cannot be compared with {other}: no seed has a finite value in all of their runs."
        seeds = f"with each of {self.n} seeds{self._averaged()}"
        if self.n == 1:
            seed, difference = next(iter(self.differences.items()))
            return (
                f"{this} minus {other}{self._averaged()} is {difference:+.4g} with seed {seed}, the only one; another seed "
                "may reverse the sign."
            )
        if self.mean == 0:
            return f"{this} and {other} have the same value {seeds}."
        return (
            f"{this} minus {other} is {self.mean:+.4g} {seeds}. Without any spread, chance cannot be judged: check that the "
            "training function uses its seed, or use a metric with finer steps."
        )
