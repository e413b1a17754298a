"""What all ranks must have in common, and what happens where one of them has something else."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from spawning import on_ranks
from strategies import Heads, batch_for, equal, model_for, quick
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

from mtl_axes import compose
from mtl_axes.errors import MtlAxesError

KINDS = {"a": "regression", "b": "regression", "c": "multiclass"}
OUTERS = ("gaba", "gradnorm", "dwa", "uncertainty")
SYNCS = ("norms", "gradients")
RANKS = 2


def error_of(rank: int, **options: Any) -> str:
    """The error of a first call in which the ranks differ."""
    differs = options.pop("differs")
    names = ["a", "b", "c"]
    criterion = compose(quick("gaba"), tasks=["b", "a", "c"] if rank and differs == "names" else names, **options)
    model = model_for(KINDS)
    inputs, targets = batch_for(KINDS, seed=rank)
    if differs == "windows" and rank:
        with torch.random.fork_rng():
            alone = compose(quick("gaba"), tasks=names, sync=None)
            alone(model(inputs), targets)
            criterion.load_state_dict(alone.state_dict())
    if differs == "tasks" and rank:
        targets = {**targets, "b": None, "c": None}
    try:
        criterion(model(inputs), targets)
    except MtlAxesError as error:
        return f"{type(error).__name__}: {error}"
    return ""


def with_nan(rank: int, outer: str, sync: str, where: str) -> dict[str, Any]:
    """A value that is not finite on rank 1 alone, in the loss or only in the gradient, in one step of several."""
    model = model_for(KINDS)
    criterion = compose(quick(outer), tasks=list(KINDS), sync=sync)
    weights = []
    for step in range(4):
        inputs, targets = batch_for(KINDS, seed=10 * rank + step)
        outputs = model(inputs)
        if rank and step == 2:
            if where == "loss":
                outputs["b"] = outputs["b"] + torch.inf
            else:  # the value is that of the output, the gradient is not finite
                outputs["b"] = outputs["b"] + 0 * (outputs["b"] - outputs["b"].detach()).abs().sqrt()
        criterion(outputs, targets)
        weights.append(criterion.report.weights)
    state = {name: value for name, value in criterion.outer.state_dict().items() if isinstance(value, Tensor)}
    return {"weights": weights, "state": state, "dropped": criterion.report.dropped}


def learned(rank: int, sync: str | None) -> dict[str, Any]:
    """Gradients of the log variances in three calls, with "b" missing on rank 1 in the second, and the value of the loss."""
    model, found = model_for(KINDS), []
    for variant in ("kendall", "revised"):
        criterion = compose({"name": "uncertainty", "variant": variant}, tasks=list(KINDS), sync=sync)
        with torch.no_grad():
            criterion.outer.log_variance.copy_(torch.tensor([0.3, -0.2, 0.1]))
        for step in range(3):
            inputs, targets = batch_for(KINDS, seed=10 * rank + step)
            criterion.zero_grad()
            loss = criterion(model(inputs), {**targets, "b": None} if rank and step == 1 else targets)
            (3 * loss).backward()
            found.append({"loss": loss.detach(), "gradient": criterion.outer.log_variance.grad})
    return {"found": found}


class Sorted(nn.Module):
    """Returns what models return beside tensors with a gradient, and one head's output nested and unused."""

    def __init__(self) -> None:
        super().__init__()
        self.heads = model_for(KINDS)

    def forward(self, inputs: Tensor) -> dict[str, Any]:
        outputs = self.heads(inputs)
        indices = torch.arange(len(inputs))
        return {"nothing": None, "index": indices, "a": outputs["a"], "size": 3, "rest": (inputs, [outputs["b"]]), **outputs}


class Shapes(nn.Module):
    """A trunk alone; the heads are outside the wrapper."""

    def __init__(self, heads: Heads) -> None:
        super().__init__()
        self.trunk = heads.trunk

    def forward(self, inputs: Tensor) -> Tensor:
        return torch.tanh(self.trunk(inputs))


def unused(rank: int, model: str, probe: str, missing: bool) -> dict[str, Any]:
    """Norms with find_unused_parameters and without any wrapper, and the averaged gradient; "b" may be absent on rank 1."""
    heads = model_for(KINDS)
    whole: nn.Module = {"sorted": Sorted(), "trunk": Shapes(heads)}[model]
    if model == "sorted":
        heads = whole.heads
    plain = copy.deepcopy(whole)
    wrapped = DistributedDataParallel(whole, find_unused_parameters=True)
    inputs, targets = batch_for(KINDS, seed=rank)
    targets = {**targets, "b": None} if missing and rank else targets
    norms, found = [], []
    for module, sync in ((wrapped, "norms"), (plain, None)):
        criterion = compose(quick("gaba"), tasks=list(KINDS), sync=sync, probe=probe)
        for _ in range(2):
            outputs = module(inputs)
            if model == "trunk":
                outputs = {name: heads.heads[name](outputs) for name in KINDS}
                outputs = {name: out if name == "c" else out.squeeze(-1) for name, out in outputs.items()}
            module.zero_grad()
            criterion(outputs, targets).backward()
            norms.append(criterion.report.norms)
    parameters = [parameter for parameter in whole.parameters() if parameter.grad is not None]
    gradient = torch.cat([parameter.grad.reshape(-1) for parameter in parameters])
    every = [torch.zeros_like(gradient) for _ in range(RANKS)]
    distributed.all_gather(every, gradient)
    found = all(torch.equal(each, gradient) for each in every)
    return {"wrapped": norms[0], "plain": norms[2], "agree": found, "size": gradient.numel()}


UNUSED = [
    (model, probe, missing)
    for model in ("sorted", "trunk")
    for probe in ("exact", "representation")
    for missing in (False, True)
]
DIFFERENCES: dict[str, dict[str, Any]] = {
    "names": {"differs": "names"},
    "windows": {"differs": "windows"},
    "tasks": {"differs": "tasks", "sync": "gradients"},
}


def everything(rank: int) -> dict[str, Any]:
    return {
        "errors": {name: error_of(rank, **options) for name, options in DIFFERENCES.items()},
        "nan": {
            f"{outer} {sync} {where}": with_nan(rank, outer, sync, where)
            for outer in OUTERS
            for sync in SYNCS
            for where in ("loss", "gradient")
        },
        "learned": {str(sync): learned(rank, sync) for sync in (*SYNCS, None)},
        "unused": {f"{model} {probe} {missing}": unused(rank, model, probe, missing) for model, probe, missing in UNUSED},
    }


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder: Path = tmp_path_factory.mktemp("ranks")
    return on_ranks(everything, folder, RANKS)


@pytest.mark.parametrize(
    ("difference", "message"),
    [
        (
            "names",
            "DataError: All ranks should have the same tasks in the same order. Found rank 0: ['a', 'b', 'c']; rank 1: ",
        ),
        ("windows", "StateError: All ranks should have committed the same number of windows. Found [0, 1]. Load the"),
        ("tasks", 'GraphError: With sync="gradients" every rank should know the shared parameters when the first gradient'),
    ],
)
def test_a_difference_is_an_error_on_every_rank(ranks: list[dict[str, Any]], difference: str, message: str) -> None:
    """The first call of each rank says what differs, so that none is left waiting."""
    assert all(rank["errors"][difference].startswith(message) for rank in ranks)
    if difference == "tasks":
        assert all("rank 1 has not had all tasks in one call. Pass shared=" in rank["errors"]["tasks"] for rank in ranks)


@pytest.mark.parametrize("where", ["loss", "gradient"])
@pytest.mark.parametrize("sync", SYNCS)
@pytest.mark.parametrize("outer", OUTERS)
def test_a_nan_on_one_rank_leaves_all_with_the_same_weights(
    ranks: list[dict[str, Any]], outer: str, sync: str, where: str
) -> None:
    """A loss or a gradient that is not finite on one rank moves no rank's weights away from the others'."""
    one, other = (rank["nan"][f"{outer} {sync} {where}"] for rank in ranks)
    assert equal(one["weights"], other["weights"]) and equal(one["state"], other["state"])
    assert all(bool(torch.isfinite(weights).all()) for weights in one["weights"])
    if where == "loss":
        assert other["dropped"].tolist() == [0, 1, 0]


@pytest.mark.parametrize("call", range(6))
def test_learned_weights_get_the_mean_gradient(ranks: list[dict[str, Any]], call: int) -> None:
    """Both ranks hold the mean of the gradients that each would have had alone, and the value of their own sum."""
    alone = torch.stack([rank["learned"]["None"]["found"][call]["gradient"] for rank in ranks])
    for rank in ranks:
        norms = rank["learned"]["norms"]["found"][call]
        torch.testing.assert_close(norms["gradient"], alone.mean(0))
        torch.testing.assert_close(norms["loss"], rank["learned"]["None"]["found"][call]["loss"])
        assert torch.equal(norms["gradient"], ranks[0]["learned"]["norms"]["found"][call]["gradient"])
        gradients = rank["learned"]["gradients"]["found"][call]["gradient"]
        assert torch.equal(gradients, ranks[0]["learned"]["gradients"]["found"][call]["gradient"])
        # Equal numbers of labels: the same but for "b", which counts in full with the gradients of the whole batch.
        expected = alone.mean(0)
        if call % 3 == 1:
            expected[1] = alone[0][1]
        torch.testing.assert_close(gradients, expected)


@pytest.mark.parametrize(("model", "probe", "missing"), UNUSED)
def test_unused_parameters_need_no_shared(ranks: list[dict[str, Any]], model: str, probe: str, missing: bool) -> None:
    """find_unused_parameters hides nothing: norms are those of the bare model, gradients are equal over ranks."""
    for rank in ranks:
        run = rank["unused"][f"{model} {probe} {missing}"]
        torch.testing.assert_close(run["wrapped"], run["plain"])
        assert run["agree"] and run["size"] == ranks[0]["unused"][f"{model} {probe} {missing}"]["size"]
