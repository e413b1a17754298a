"""What all ranks must have in common, and what happens where one of them has something else."""

from __future__ import annotations

import copy
import warnings
from contextlib import nullcontext
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

pytestmark = pytest.mark.slow

KINDS = {"a": "regression", "b": "regression", "c": "multiclass"}
OUTERS = ("gaba", "gradnorm", "dwa", "uncertainty")
SYNCS = ("norms", "gradients")
RANKS = 2


def error_of(rank: int, **options: Any) -> str:
    """The error of a first call in which the ranks differ."""
    differs = options.pop("differs")
    names = ["a", "b", "c"]
    if differs == "schedule":
        options["every"] = 2 + rank
    criterion = compose(quick("gaba"), tasks=["b", "a", "c"] if rank and differs == "names" else names, **options)
    model = model_for(KINDS)
    inputs, targets = batch_for(KINDS, seed=rank)
    if differs == "windows" and rank:
        with torch.random.fork_rng():
            alone = compose(quick("gaba"), tasks=names, sync=None)
            alone(model(inputs), targets)
            criterion.load_state_dict(alone.state_dict())
    if differs == "kinds" and rank:
        targets = {**targets, "a": targets["a"] > 0}
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


def late_labels(rank: int, sync: str) -> dict[str, Any]:
    """Learned weights where rank 1 has no label of "b" at all in its first calls, and none of "c" ever."""
    model = model_for(KINDS)
    criterion = compose("uncertainty", tasks=list(KINDS), sync=sync)
    optimizer = torch.optim.SGD([*model.parameters(), *criterion.parameters()], lr=0.1)
    for step in range(5):
        inputs, targets = batch_for(KINDS, seed=10 * rank + step)
        targets = {**targets, "b": targets["b"] if not rank or step > 2 else None, "c": None if rank else targets["c"]}
        optimizer.zero_grad()
        criterion(model(inputs), targets).backward()
        optimizer.step()
    return {"log variance": criterion.outer.log_variance.detach(), "kinds": [info.kind for info in criterion.outer.tasks]}


def held(rank: int, outer: str, sync: str) -> dict[str, Any]:
    """Averaged gradients of a call, and of the same call held; labels of "b" are few on rank 1."""
    model = model_for(KINDS)
    wrapped = DistributedDataParallel(model)
    criterion = compose(outer, tasks=list(KINDS), sync=sync, missing="ignore")
    inputs, targets = batch_for(KINDS, seed=rank)
    if rank:
        targets["b"][1:] = torch.nan
    found = []
    for hold in (False, True):
        model.zero_grad()
        criterion.zero_grad()
        with criterion.hold() if hold else nullcontext():
            criterion(wrapped(inputs), targets).backward()
        found.append([parameter.grad for parameter in (*model.parameters(), *criterion.parameters())])
    return {"called": found[0], "held": found[1]}


class Dropping(nn.Module):
    """Leaves out one of three layers, which one differs by rank in its second call."""

    def __init__(self, rank: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(3))
        self.heads = model_for(KINDS)
        self.left_out = [0, rank]

    def forward(self, inputs: Tensor) -> dict[str, Tensor]:
        out = self.left_out.pop(0)
        for number, layer in enumerate(self.layers):
            inputs = inputs if number == out else torch.tanh(layer(inputs))
        return self.heads(inputs)


def dropping(rank: int) -> str:
    torch.manual_seed(0)
    model = Dropping(rank)
    criterion = compose(quick("gaba"), tasks=list(KINDS), sync="gradients")
    inputs, targets = batch_for(KINDS, seed=rank)
    criterion(model(inputs), targets)
    if not rank:  # the part of its second call that the other's meets before it raises
        distributed.all_reduce(torch.zeros(2 * len(KINDS)))
        return ""
    try:
        criterion(model(inputs), targets)
    except MtlAxesError as error:
        return str(error)
    return ""


def alone(rank: int) -> dict[str, Any]:
    """Rank 0 alone saves, drops a pending window and loads a state of another probe; then all go on."""
    model = model_for(KINDS)
    inputs, targets = batch_for(KINDS, seed=rank)
    lagged = compose(quick("gaba"), tasks=list(KINDS), sync="gradients", probe="lagged")
    lagged(model(inputs), targets).backward()
    exact = compose(quick("gaba"), tasks=list(KINDS), sync=None)
    exact(model(inputs), targets)
    warned = ""
    if rank == 0:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            lagged.state_dict()
        warned = str(caught[0].message)
        lagged.step(skipped=True)
        other = compose(quick("gaba"), tasks=list(KINDS), sync="gradients", probe="lagged")
        other.load_state_dict(exact.state_dict())
    return {"warned": warned}


def reloaded(rank: int) -> str:
    """In the middle of a run rank 0 loads an older state than rank 1."""
    model = model_for(KINDS)
    criterion = compose(quick("gaba"), tasks=list(KINDS))
    inputs, targets = batch_for(KINDS, seed=rank)
    states = []
    for _ in range(3):
        criterion(model(inputs), targets)
        states.append(copy.deepcopy(criterion.state_dict()))
    criterion.load_state_dict(states[1 + rank])
    try:
        criterion(model(inputs), targets)
    except MtlAxesError as error:
        return str(error)
    return ""


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
HELD = [("fixed", "gradients"), ("uncertainty", "norms"), ("uncertainty", "gradients")]
DIFFERENCES: dict[str, dict[str, Any]] = {
    "names": {"differs": "names"},
    "windows": {"differs": "windows"},
    "schedule": {"differs": "schedule"},
    "kinds": {"differs": "kinds"},
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
        "late": {sync: late_labels(rank, sync) for sync in SYNCS},
        "held": {f"{outer} {sync}": held(rank, outer, sync) for outer, sync in HELD},
        "alone": alone(rank),
        "dropping": dropping(rank),
        "reloaded": reloaded(rank),
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
            "DataError: The ranks have different tasks or another order: rank 0: ['a', 'b', 'c']; rank 1: ",
        ),
        ("windows", "StateError: The ranks have committed different numbers of windows: [0, 1]. Load the"),
        ("schedule", "OptionError: The ranks have different schedules: [{'every': 2, "),
        ("kinds", "DataError: Task 'a' has the kind regression on one rank and binary on another, inferred from"),
        ("tasks", 'GraphError: sync="gradients" needs the shared parameters on every rank when the first gradient'),
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


@pytest.mark.parametrize("sync", SYNCS)
def test_kinds_that_one_rank_has_seen_are_known_to_all(ranks: list[dict[str, Any]], sync: str) -> None:
    """Learned weights, whose form depends on the kinds, are equal where a rank lacks the first labels of a task, or all."""
    one, other = (rank["late"][sync] for rank in ranks)
    assert one["kinds"] == other["kinds"] == list(KINDS.values())
    assert torch.equal(one["log variance"], other["log variance"])


@pytest.mark.parametrize(("outer", "sync"), HELD)
def test_a_held_call_has_the_gradient_of_a_call(ranks: list[dict[str, Any]], outer: str, sync: str) -> None:
    """Within hold() the gradient is the same, of the model and of what is learned, on both ranks."""
    one, other = (rank["held"][f"{outer} {sync}"] for rank in ranks)
    assert equal(one, other)
    torch.testing.assert_close(one["held"], one["called"])


def test_layers_that_are_dropped_need_shared(ranks: list[dict[str, Any]]) -> None:
    """What is averaged over ranks are the same parameters on each, or there is an error."""
    assert "did not share in the first measured call" in ranks[1]["dropping"]


def test_states_loaded_in_mid_run_are_compared_again(ranks: list[dict[str, Any]]) -> None:
    """Ranks that load different states say so in the next call."""
    assert all("committed different numbers of windows: [2, 3]" in rank["reloaded"] for rank in ranks)


def test_a_rank_alone_may_save_drop_and_load(ranks: list[dict[str, Any]]) -> None:
    """None of it runs a collective; saving while a window is pending is warned about."""
    assert "a pending window, which is this rank's own" in ranks[0]["alone"]["warned"]


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
