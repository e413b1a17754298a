"""Advice does not depend on how fast a machine is: a clock that the tests set, and few rounds of timing but in its tests."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest
from advised import Clock

from mtl_axes.advise import costs


@pytest.fixture(autouse=True, scope="module")
def clock() -> Iterator[Clock]:
    """The clock that advice reads, on the wall and of the thread."""
    with pytest.MonkeyPatch.context() as patch:
        fake = Clock()
        for name in ("perf_counter", "thread_time"):
            patch.setattr(time, name, fake)
        yield fake


@pytest.fixture(autouse=True, scope="module")
def _few_rounds(request: pytest.FixtureRequest) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        if request.module.__name__ != "test_advice_cost":
            patch.setattr(costs, "ROUNDS", 1)
        yield
