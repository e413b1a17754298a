"""FSDP2: parameters are sharded, the graph's leaves are not; no gradient is lost without a word."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import pytest
import torch
from spawning import on_ranks
from strategies import batch_for, model_for
from torch import Tensor, distributed, nn

from mtl_axes import compose
from mtl_axes.errors import MtlAxesError

pytestmark = pytest.mark.slow

try:
    from torch.distributed.fsdp import fully_shard
except ImportError:
    pytest.skip("FSDP2 came to torch under this name in 2.6", allow_module_level=True)

KINDS = {"a": "regression", "b": "regression", "c": "multiclass"}
RANKS, STEPS = 2, 4
PROBES: dict[str, Any] = {
    "exact": "exact",
    "rotate": {"name": "exact", "rotate": True},
    "representation": "representation",
    "lagged": "lagged",
}
RESHARD = (True, False, None)
GABA = {"name": "gaba", "warmup": 0, "beta": 0.3}


class Deep(nn.Module):
    """A trunk of two blocks, sharded one by one, and the heads."""

    def __init__(self) -> None:
        super().__init__()
        self.below = nn.Sequential(nn.Linear(4, 4), nn.Tanh())
        self.heads = model_for(KINDS)

    def forward(self, inputs: Tensor) -> dict[str, Tensor]:
        return self.heads(self.below(inputs))


def deep() -> Deep:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Deep()


def train(rank: int, probe: Any, reshard: bool | None, sync: str, accumulate: int = 1) -> dict[str, Any]:
    """Train a sharded model, and beside it an ordinary copy with the same criterion and gradients averaged by hand."""
    plain = deep()
    model = copy.deepcopy(plain)
    for part in (model.below, model.heads.trunk):
        fully_shard(part, reshard_after_forward=reshard)
    fully_shard(model, reshard_after_forward=reshard)
    found: dict[str, list[Any]] = {"norms": [], "expected norms": [], "weights": [], "expected weights": [], "error": []}
    criteria = [
        compose(GABA, tasks=list(KINDS), sync=sync, probe=each, accumulate=accumulate)
        for each in (probe, {**probe, "reuse": False} if isinstance(probe, dict) else probe)
    ]
    optimizers = [torch.optim.SGD(module.parameters(), lr=0.05) for module in (model, plain)]
    for step in range(STEPS):
        for call in range(accumulate):
            inputs, targets = batch_for(KINDS, seed=100 * rank + 10 * step + call, scale=1 + 3 * rank)
            model.set_requires_gradient_sync(call == accumulate - 1)
            for module, criterion in zip((model, plain), criteria, strict=True):
                criterion(module(inputs), targets).backward()
        assert all(parameter.grad is not None for parameter in model.parameters()), "no gradient may be lost"
        for parameter in plain.parameters():
            distributed.all_reduce(parameter.grad)
            parameter.grad /= RANKS
        pairs = zip(model.parameters(), plain.parameters(), strict=True)
        errors = [float((sharded.grad.full_tensor() - full.grad).norm() / full.grad.norm()) for sharded, full in pairs]
        for name, criterion in zip(("", "expected "), criteria, strict=True):
            found[name + "norms"].append(criterion.report.norms)
            found[name + "weights"].append(criterion.report.weights)
        found["error"].append(max(errors))
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
    return found


def given(rank: int) -> dict[str, Any]:
    """``shared=`` names sharded parameters, which are not on the graph."""
    model = deep()
    fully_shard(model.below)
    fully_shard(model)
    inputs, targets = batch_for(KINDS, seed=rank)
    criterion = compose(GABA, tasks=list(KINDS), shared=model.below)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            criterion(model(inputs), targets).backward()
        except MtlAxesError as error:
            return {"message": str(error)}
    plain = compose(GABA, tasks=list(KINDS))
    plain(deep()(inputs), targets)
    message = next(str(each.message) for each in caught if "shared=" in str(each.message))
    return {"message": message, "norms": criterion.report.norms, "expected": plain.report.norms}


CASES = [
    *((name, reshard, sync, 1) for name in PROBES for reshard in RESHARD for sync in ("norms", "gradients")),
    *((name, True, "norms", 2) for name in PROBES),
]


def everything(rank: int) -> dict[str, Any]:
    runs: dict[str, Any] = {str(case): train(rank, PROBES[case[0]], *case[1:]) for case in CASES}
    return {"runs": runs, "given": given(rank)}


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return on_ranks(everything, tmp_path_factory.mktemp("ranks"), RANKS)


@pytest.mark.parametrize("case", CASES)
def test_a_sharded_model_is_weighted_as_a_whole_one(ranks: list[dict[str, Any]], case: tuple[Any, ...]) -> None:
    """Norms, weights and averaged gradients are those of an ordinary model; every sharded parameter has a gradient."""
    for rank in ranks:
        run = rank["runs"][str(case)]
        assert max(run["error"]) < 1e-5
        for quantity in ("norms", "weights"):
            for found, expected in zip(run[quantity], run["expected " + quantity], strict=True):
                assert (found is None) is (expected is None)
                if expected is not None:
                    torch.testing.assert_close(found, expected)
        assert run["weights"][0].tolist() != run["weights"][-1].tolist()
        assert all(map(torch.equal, run["weights"], ranks[0]["runs"][str(case)]["weights"]))


def test_given_parameters_that_are_sharded(ranks: list[dict[str, Any]]) -> None:
    """They are on no graph: the call says so, searches, and measures what is found."""
    for rank in ranks:
        assert "so the shared parameters are searched on the graph instead. Under FSDP2" in rank["given"]["message"]
        torch.testing.assert_close(rank["given"]["norms"], rank["given"]["expected"])
