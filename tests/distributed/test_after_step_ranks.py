"""The losses after an optimizer step, on two ranks: all of them come to the same state, from the losses of all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from spawning import on_ranks
from strategies import batch_for, model_for
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from mtl_axes import MultiTaskCriterion, compose

pytestmark = pytest.mark.slow

KINDS = {"a": "regression", "b": "regression", "c": "multiclass"}
SYNCS = ("norms", "gradients")
RANKS, STEPS, SIZE = 2, 4, 8


def batch_of(rank: int | None, step: int) -> tuple[Tensor, dict[str, Tensor]]:
    """The part of a rank of a batch, or the whole batch; on rank 1 half of the labels of "b" are missing."""
    inputs, targets = batch_for(KINDS, seed=step, size=RANKS * SIZE, dtype=torch.float64)
    targets["b"][SIZE : SIZE + SIZE // 2] = torch.nan
    here = slice(None) if rank is None else slice(rank * SIZE, (rank + 1) * SIZE)
    return inputs[here], {name: target[here] for name, target in targets.items()}


def train(model: nn.Module, criterion: MultiTaskCriterion, rank: int | None, *, broken: bool = False) -> list[list[float]]:
    """Some steps; where it is broken rank 1 has a NaN after the second step, and no batch at all after the third."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    found = []
    for step in range(STEPS):
        inputs, targets = batch_of(rank, step)
        criterion(model(inputs), targets).backward()
        optimizer.step()
        optimizer.zero_grad()
        with torch.no_grad(), criterion.after_step():
            if not (broken and rank and step == 2):
                outputs = model(inputs)
                if broken and rank and step == 1:
                    outputs["a"] = outputs["a"] * torch.nan
                criterion(outputs, targets)
        found.append(criterion.outer.logits.tolist())
    return found


def body(rank: int) -> dict[str, Any]:
    result = {}
    for name, sync, broken in (("norms", "norms", False), ("gradients", "gradients", False), ("broken", "norms", True)):
        model = DistributedDataParallel(model_for(KINDS, dtype=torch.float64))
        criterion = compose("famo", tasks=list(KINDS), sync=sync, missing="ignore")
        logits = train(model, criterion, rank, broken=broken)
        result[name] = {"logits": logits, "state": {key: tensor.clone() for key, tensor in criterion.outer.named_buffers()}}
    return result


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each rank came to."""
    return on_ranks(body, Path(tmp_path_factory.mktemp("ranks")), RANKS)


@pytest.mark.parametrize("case", [*SYNCS, "broken"])
def test_all_ranks_come_to_the_same_state(found: list[dict[str, Any]], case: str) -> None:
    """Bit for bit, every buffer of the weighting; also where one rank has a NaN, or nothing to run again."""
    one, other = (rank[case] for rank in found)
    assert one["logits"] == other["logits"]
    assert all(torch.equal(one["state"][key], other["state"][key]) for key in one["state"])
    assert len({tuple(logits) for logits in one["logits"]}) == STEPS
    assert all(torch.isfinite(torch.tensor(logits)).all() for logits in one["logits"])


def test_with_gradients_the_run_is_that_of_the_whole_batch(found: list[dict[str, Any]]) -> None:
    """One process with all samples gets the same logits after every step."""
    model = model_for(KINDS, dtype=torch.float64)
    criterion = compose("famo", tasks=list(KINDS), missing="ignore")
    expected = train(model, criterion, None)
    logits, wanted = (torch.tensor(rows, dtype=torch.float64) for rows in (found[0]["gradients"]["logits"], expected))
    torch.testing.assert_close(logits, wanted, rtol=1e-9, atol=1e-12)


def losses_of_ranks(model: nn.Module, criterion: MultiTaskCriterion, step: int) -> list[dict[str, Tensor]]:
    """The task losses of each rank's part of a batch."""
    rows = []
    for rank in range(RANKS):
        inputs, targets = batch_of(rank, step)
        losses = criterion._tasks.losses(model(inputs), targets, None, None, None).losses
        rows.append(dict(zip(KINDS, losses, strict=True)))
    return rows


@pytest.mark.parametrize("case", ["norms", "broken"])
def test_with_norms_the_losses_are_the_means_over_ranks(found: list[dict[str, Any]], case: str) -> None:
    """Two parts side by side, averaged by hand, give the same logits after every step; a broken rank leaves the mean."""
    model, criterion = model_for(KINDS, dtype=torch.float64), compose("famo", tasks=list(KINDS), missing="ignore")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    for step in range(STEPS):
        one, other = losses_of_ranks(model, criterion, step)
        criterion.combine({name: (one[name] + other[name]) / 2 for name in KINDS}).backward()
        optimizer.step()
        optimizer.zero_grad()
        with torch.no_grad(), criterion.after_step():
            one, other = losses_of_ranks(model, criterion, step)
            mean = {name: (one[name] + other[name]) / 2 for name in KINDS}
            if case == "broken" and step == 1:
                mean["a"] = one["a"]
            if case == "broken" and step == 2:
                mean = one
            criterion.combine(mean)
        logits = torch.tensor(found[0][case]["logits"][step], dtype=torch.float64)
        torch.testing.assert_close(criterion.outer.logits, logits, rtol=1e-9, atol=1e-12)
