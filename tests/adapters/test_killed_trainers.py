"""A training that is killed with SIGKILL goes on from its trainer's checkpoint and ends as the one that nobody disturbed."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path
from typing import Any

import limits
import pytest
import torch
from killing import start
from lives import TRAININGS
from strategies import equal

pytestmark = pytest.mark.slow

HERE = Path(__file__).resolve().parent
TRAINERS = ("loop", "huggingface", "lightning", "accelerate")
SEED = 4


@pytest.fixture(scope="module", params=TRAINERS)
def pairs(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict[str, Any]]]:
    """Final states by training: of the undisturbed one, and of the one that was killed twice."""
    folder = tmp_path_factory.mktemp(request.param)
    process = start(HERE / f"killed_{request.param}.py", str(folder), str(SEED))
    try:
        print(process.communicate(timeout=limits.PROCESS)[0])
    finally:
        process.kill()
    assert process.returncode == 0
    result: dict[str, list[dict[str, Any]]] = torch.load(folder / "final.pt", weights_only=True)
    return result


@pytest.mark.parametrize("name", TRAININGS)
def test_a_killed_training_ends_as_the_undisturbed_one(pairs: dict[str, list[dict[str, Any]]], name: str) -> None:
    """Model, criterion and optimizer agree bit for bit."""
    through, killed = pairs[name]
    for part in through:
        assert equal(through[part], killed[part]), part


def test_the_trainings_could_differ(pairs: dict[str, list[dict[str, Any]]]) -> None:
    """Under any two weightings the models end differently, so that the state of the criterion matters."""
    models = {name: through["model"] for name, (through, _) in pairs.items()}
    assert not [pair for pair in combinations(models, 2) if equal(models[pair[0]], models[pair[1]])]
