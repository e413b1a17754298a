"""What is said of a problem does not depend on how often a step is timed: only the tests of costs take many rounds."""

from __future__ import annotations

import pytest

from mtl_axes.advise import timing


@pytest.fixture(autouse=True)
def _few_rounds(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.module.__name__ != "test_advice_cost":
        monkeypatch.setattr(timing, "_ROUNDS", 1)
