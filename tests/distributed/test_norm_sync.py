"""Two processes on different data hold the same weights with sync="norms", and different ones without."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from spawning import on_ranks
from strategies import batch_for, equal, model_for, quick

from mtl_axes import compose

pytestmark = pytest.mark.slow

KINDS = {"a": "regression", "b": "regression", "c": "multiclass"}
OUTERS = ("gaba", "gradnorm", "dwa")
SYNCS = ("norms", None)
RANKS = 2


def rank_of_two(rank: int) -> dict[str, Any]:
    """Train on this rank's own data; task "b" is missing on rank 1 for a while, by its target and by a mask."""
    result: dict[str, Any] = {}
    for outer in OUTERS:
        for sync in SYNCS:
            for accumulate in (1, 2):
                model = model_for(KINDS)
                criterion = compose(quick(outer), tasks=list(KINDS), sync=sync, accumulate=accumulate, shared=model.trunk)
                seen = []
                for step in range(10):
                    inputs, targets = batch_for(KINDS, seed=100 * rank + step, scale=1 + 3 * rank)
                    mask = None
                    if rank == 1 and step in (3, 4):
                        targets = {**targets, "b": None}
                    if rank == 1 and step in (6, 7):
                        mask = {"b": torch.zeros(8, dtype=torch.bool)}
                    criterion(model(inputs), targets, mask=mask).backward()
                    seen.append(criterion.report.weights.clone())
                state = {key: value.clone() for key, value in criterion.outer.state_dict().items() if value is not None}
                state |= {"measured_at": criterion._window.measured_at} if outer != "dwa" else {}
                losses = criterion.report.losses
                result[f"{outer} {sync} {accumulate}"] = {"weights": torch.stack(seen), "state": state, "losses": losses}
    criterion = compose(quick("gaba"), tasks=list(KINDS))
    model = model_for(KINDS)
    inputs, targets = batch_for(KINDS, seed=rank)
    criterion(model(inputs), targets)
    if rank == 0:  # a collective that only one rank enters would hang until the timeout
        with criterion.hold():
            criterion(model(inputs), targets)
        criterion.eval()
        criterion(model(inputs), targets)
        criterion.train()
        with torch.no_grad():
            criterion(model(inputs), targets)
        criterion.log_dict(), criterion.state_dict()
        # Constant weights depend on no statistics, so that ranks may have uneven data.
        compose("fixed", tasks=list(KINDS))(model(inputs), targets)
    return result


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of two processes saw."""
    return on_ranks(rank_of_two, tmp_path_factory.mktemp("ranks"), RANKS)


@pytest.mark.parametrize("outer", OUTERS)
@pytest.mark.parametrize("accumulate", [1, 2])
def test_ranks_agree(ranks: list[dict[str, Any]], outer: str, accumulate: int) -> None:
    """Weights and state are equal on both ranks in every step, also when a task is missing on one of them."""
    first, second = (rank[f"{outer} norms {accumulate}"] for rank in ranks)
    assert torch.equal(first["weights"], second["weights"])
    assert equal(first["state"], second["state"])
    assert not torch.equal(first["losses"], second["losses"]), "the ranks should see different data"
    assert len(first["weights"].unique(dim=0)) > 1, "the weights should move"


@pytest.mark.parametrize("outer", OUTERS)
@pytest.mark.parametrize("accumulate", [1, 2])
def test_ranks_go_their_own_way_without_sync(ranks: list[dict[str, Any]], outer: str, accumulate: int) -> None:
    """With sync=None each rank follows its own data."""
    first, second = (rank[f"{outer} None {accumulate}"] for rank in ranks)
    assert not torch.equal(first["weights"], second["weights"])


def test_the_mean_is_that_of_all_ranks(ranks: list[dict[str, Any]]) -> None:
    """DWA's last mean equals the mean over the losses of both ranks, recomputed in this process."""
    model = model_for(KINDS)
    losses = []
    for rank in range(RANKS):
        for step in (8, 9):
            inputs, targets = batch_for(KINDS, seed=100 * rank + step, scale=1 + 3 * rank)
            criterion = compose("fixed", tasks=list(KINDS))
            criterion(model(inputs), targets)
            losses.append(criterion.report.losses)
    torch.testing.assert_close(ranks[0]["dwa norms 1"]["state"]["mean_last"], torch.stack(losses).mean(0))
