"""What is said of a problem does not depend on how often a step is timed: only the tests of costs take many rounds."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from mtl_axes.advise import costs


@pytest.fixture(autouse=True, scope="module")
def _few_rounds(request: pytest.FixtureRequest) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        if request.module.__name__ != "test_advice_cost":
            patch.setattr(costs, "ROUNDS", 1)
        yield
