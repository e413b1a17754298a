"""A training that is killed at random moments and started again ends as the one that nobody disturbed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import killed_training
import pytest
import torch
from killing import train_through_kills
from strategies import equal

pytestmark = pytest.mark.slow

SCRIPT = Path(killed_training.__file__)
NAMES = tuple(killed_training.runs())


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], dict[str, Any]]:
    """Final states of the undisturbed training and of the one that was killed three times."""
    undisturbed, killed = tmp_path_factory.mktemp("undisturbed"), tmp_path_factory.mktemp("killed")
    through = killed_training.train(undisturbed)
    train_through_kills(SCRIPT, killed, kills=3, steps=killed_training.CALLS, seed=4)
    return through, torch.load(killed / "final.pt", weights_only=True)


@pytest.mark.parametrize("name", NAMES)
def test_a_killed_training_ends_as_the_undisturbed_one(results: tuple[dict[str, Any], dict[str, Any]], name: str) -> None:
    """Model, criterion, optimizer, GradScaler and pending gradients agree bit for bit."""
    through, killed = (result[name] for result in results)
    for part in through:
        assert equal(through[part], killed[part]), part


def test_the_training_is_one_that_could_differ(results: tuple[dict[str, Any], dict[str, Any]]) -> None:
    """Weights have moved, a scaler has skipped steps, and two runs that differ in an option have different models."""
    through, _ = results
    assert all(float(state["criterion"]["outer.current"].std()) > 1e-4 for name, state in through.items() if "gaba" in name)
    skipped = through["gaba, exact, float16, accumulate=1"]
    steps = next(iter(skipped["optimizer"]["state"].values()))["step"]
    assert 0 < steps < killed_training.CALLS
    models = [through[f"{outer}, accumulate=1"]["model"] for outer in ("fixed", "gaba", "gradnorm", "dwa", "uncertainty")]
    assert not any(equal(models[0], other) for other in models[1:])
