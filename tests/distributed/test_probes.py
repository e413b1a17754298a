"""Under DistributedDataParallel every probe leaves the ranks with one gradient: the mean of the locally weighted ones."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from spawning import on_ranks
from strategies import batch_for, model_for
from torch import distributed
from torch.nn.parallel import DistributedDataParallel

from mtl_axes import compose
from mtl_axes.errors import GraphError

pytestmark = pytest.mark.slow

KINDS = {"a": "regression", "b": "regression", "c": "regression"}
PROBES: dict[str, Any] = {
    "exact": "exact",
    "no reuse": {"name": "exact", "reuse": False},
    "rotate": {"name": "exact", "rotate": True},
    "representation": "representation",
    "lagged": "lagged",
}
WRAPPERS: dict[str, dict[str, bool]] = {
    "default": {},
    "buckets": {"gradient_as_bucket_view": True},
    "unused": {"find_unused_parameters": True},
    "both": {"find_unused_parameters": True, "gradient_as_bucket_view": True},
}
RANKS, STEPS = 2, 5
GABA = {"name": "gaba", "warmup": 0, "beta": 0.3}


def flat(model: torch.nn.Module) -> torch.Tensor:
    return torch.cat([parameter.grad.reshape(-1) for parameter in model.parameters() if parameter.grad is not None])


def train(rank: int, probe: Any, accumulate: int, *, shared: bool = False, **wrapper: bool) -> dict[str, Any]:
    """Gradients of every step, those of the mean of the plain weighted sums, weights, and whether they were handed over."""
    model = model_for(KINDS)
    wrapped = DistributedDataParallel(model, **wrapper)
    given = model.trunk if shared else None
    criterion = compose(GABA, tasks=list(KINDS), shared=given, probe=probe, accumulate=accumulate)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
    found, expected, weights, reused = [], [], [], []
    for step in range(STEPS):
        optimizer.zero_grad()
        plain = copy.deepcopy(model)
        for call in range(accumulate):
            inputs, targets = batch_for(KINDS, seed=100 * rank + 10 * step + call, scale=1 + 3 * rank)
            wrapped.require_backward_grad_sync = call == accumulate - 1
            total = criterion(wrapped(inputs), targets)
            reused.append(type(total.grad_fn).__name__ == "_HandOverBackward")
            total.backward()
            outputs = plain(inputs)
            losses = [(outputs[name] - target).square().mean() for name, target in targets.items()]
            sum(weight * loss for weight, loss in zip(criterion.report.weights, losses, strict=True)).backward()
        mean = flat(plain)
        distributed.all_reduce(mean)
        found.append(flat(model))
        expected.append(mean / RANKS)
        weights.append(criterion.report.weights)
        optimizer.step()
    return {"found": found, "expected": expected, "weights": weights, "reused": reused}


def rank_of_two(rank: int) -> dict[str, Any]:
    result: dict[str, Any] = {
        f"{name} {wrapper} {accumulate}": train(rank, probe, accumulate, **WRAPPERS[wrapper])
        for name, probe in PROBES.items()
        for wrapper in WRAPPERS
        for accumulate in (1, 2)
    }
    result["lagged static 1"] = train(rank, "lagged", 1, static_graph=True)
    for name, probe in PROBES.items():
        try:
            train(rank, probe, 1, shared=True, static_graph=True)
        except GraphError as error:
            result[f"{name} static"] = str(error)
    return result


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return on_ranks(rank_of_two, tmp_path_factory.mktemp("ranks"), RANKS)


CASES = [(probe, wrapper, accumulate) for probe in PROBES for wrapper in WRAPPERS for accumulate in (1, 2)]


@pytest.mark.parametrize(("probe", "wrapper", "accumulate"), [*CASES, ("lagged", "static", 1)])
def test_ranks_have_the_mean_gradient(ranks: list[dict[str, Any]], probe: str, wrapper: str, accumulate: int) -> None:
    """Both ranks hold the mean over ranks of the gradient of the plain sum with the same weights, in every step."""
    one, other = (rank[f"{probe} {wrapper} {accumulate}"] for rank in ranks)
    for step in range(STEPS):
        assert torch.equal(one["found"][step], other["found"][step])
        assert torch.equal(one["weights"][step], other["weights"][step])
        error = (one["found"][step] - one["expected"][step]).norm() / one["expected"][step].norm()
        assert float(error) < 1e-6
    assert one["weights"][0].tolist() != one["weights"][-1].tolist()
    # In the first call a graph of an earlier run may still be there with hooks; the wrapper itself is no reason to refuse.
    may = hasattr(torch._C._autograd, "_get_current_graph_task_keep_graph")  # not in an older torch
    assert all(one["reused"][1:]) is (may and probe == "exact")


@pytest.mark.parametrize("probe", [probe for probe in PROBES if probe != "lagged"])
def test_a_static_graph_is_refused_before_it_goes_wrong(ranks: list[dict[str, Any]], probe: str) -> None:
    """static_graph=True would stop the averaging of gradients silently: the first call refuses it."""
    for rank in ranks:
        assert "with static_graph=True does not allow a gradient" in rank[f"{probe} static"]
