"""A training that is killed with SIGKILL goes on from its trainer's checkpoint and ends as the one that nobody disturbed."""

from __future__ import annotations

import functools
from collections.abc import Callable
from itertools import combinations
from pathlib import Path
from typing import Any

import limits
import pytest
import torch
from killing import start
from lives import SOME, TRAININGS
from strategies import equal

HERE = Path(__file__).resolve().parent
# Every weighting in the plain loop, and some in the trainers.
TRAINERS = {"loop": tuple(TRAININGS), "huggingface": SOME, "lightning": SOME, "accelerate": SOME}
SEED = 4


def killed_in(trainer: str, folder: Path, *names: str) -> dict[str, list[dict[str, Any]]]:
    """Final states by training: of the undisturbed one, and of the one that was killed twice."""
    process = start(HERE / f"killed_{trainer}.py", str(folder), str(SEED), *names)
    try:
        print(process.communicate(timeout=limits.PROCESS)[0])
    finally:
        process.kill()
    assert process.returncode == 0
    result: dict[str, list[dict[str, Any]]] = torch.load(folder / "final.pt", weights_only=True)
    return result


def assert_undisturbed(through: dict[str, Any], killed: dict[str, Any]) -> None:
    """Model, criterion and optimizer agree bit for bit."""
    for part in through:
        assert equal(through[part], killed[part]), part


@pytest.fixture(scope="module")
def trainings(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], dict[str, list[dict[str, Any]]]]:
    """All trainings of a trainer, which run once."""
    return functools.cache(lambda trainer: killed_in(trainer, tmp_path_factory.mktemp(trainer), *TRAINERS[trainer]))


def test_one_killed_training_ends_as_the_undisturbed_one(tmp_path: Path) -> None:
    """The one of the default tier: GABA in the plain loop."""
    assert_undisturbed(*killed_in("loop", tmp_path, "gaba")["gaba"])


@pytest.mark.slow
@pytest.mark.parametrize(("trainer", "name"), [(trainer, name) for trainer, names in TRAINERS.items() for name in names])
def test_a_killed_training_ends_as_the_undisturbed_one(trainings: Any, trainer: str, name: str) -> None:
    """Whatever the trainer and the mechanism of the weighting."""
    assert_undisturbed(*trainings(trainer)[name])


@pytest.mark.slow
@pytest.mark.parametrize("trainer", TRAINERS)
def test_the_trainings_could_differ(trainings: Any, trainer: str) -> None:
    """Under any two weightings the models end differently, so that the state of the criterion matters."""
    pairs = trainings(trainer)
    models = {name: through["model"] for name, (through, _) in pairs.items()}
    assert not [pair for pair in combinations(models, 2) if equal(models[pair[0]], models[pair[1]])]
