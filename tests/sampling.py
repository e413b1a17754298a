"""Fewer cases than a cross product has, where its combinations cannot fail separately: the same ones in every run."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import combinations, product
from typing import Any

import pytest

Case = tuple[Any, ...]


def pairwise(*factors: Iterable[Any]) -> list[Case]:
    """Cases in which any two values of any two factors occur together."""
    return covering(product(*factors), strength=2)


def covering(cases: Iterable[Case], *, strength: int = 1, times: int = 1) -> list[Case]:
    """Some of the cases, in their order, that cover what all of them cover.

    Args:
        cases: tuples of one value per factor; what is left out of a product is never chosen.
        strength: 1 covers every value of every factor, 2 every pair of values of two factors.
        times: how often each of these is covered, where there are as many cases with it.
    """
    everything = list(cases)
    parts = [_parts(case, strength) for case in everything]
    missing = Counter({part: min(times, count) for part, count in Counter(p for each in parts for p in each).items()})
    # Which of several equally good cases is taken is drawn, so that factors of equal length do not go in step.
    waiting = list(range(len(everything)))
    random.Random(0).shuffle(waiting)
    chosen = []
    while missing:
        best = max(waiting, key=lambda index: sum(part in missing for part in parts[index]))
        waiting.remove(best)
        chosen.append(best)
        missing -= Counter(parts[best])
    return [everything[index] for index in sorted(chosen)]


def slowly(cases: Iterable[Case]) -> list[Any]:
    """The cases as parameters that run in the slow tier alone."""
    return [pytest.param(*case, marks=pytest.mark.slow) for case in cases]


def tiered(cases: Iterable[Case], **options: Any) -> list[Any]:
    """What :func:`covering` chooses of the cases, and the others in the slow tier."""
    everything = list(cases)
    chosen = covering(everything, **options)
    return [*chosen, *slowly(case for case in everything if case not in chosen)]


def _parts(case: Sequence[Any], strength: int) -> list[tuple[tuple[int, Any], ...]]:
    """What a case covers: values, or pairs of values, each with the place of its factor."""
    return list(combinations(enumerate(case), min(strength, len(case))))
