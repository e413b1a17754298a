"""What is found on a graph, what is refused, and what explain() says of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch._functorch.config as functorch_config
from probing import REUSES
from torch import Tensor, nn

from mtl_axes import compose
from mtl_axes.errors import GraphError
from mtl_axes.probes.border import find_border
from mtl_axes.probes.graph import walk

GABA = {"name": "gaba", "warmup": 0}
# What an older torch lets be seen and done.
REUSED, ON_AVERAGE = ("2.33", "1.13") if REUSES else ("3.00", "1.20")
TELLS_SHAPES = hasattr(torch.ones(1, requires_grad=True).sum().grad_fn, "_input_metadata")


class Net(nn.Module):
    """Two trunk layers, with room for what a forward pass below does with them."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.first, self.second = nn.Linear(4, 6), nn.Linear(6, 6), nn.Linear(6, 6)
        self.a, self.b, self.c = nn.Linear(6, 1), nn.Linear(6, 1), nn.Linear(6, 1)
        self.unused, self.frozen = nn.Linear(2, 2), nn.Linear(2, 2).requires_grad_(False)

    def trunk(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        low = self.embed(x).tanh()
        middle = self.first(low).tanh()
        return low, middle, self.second(middle).tanh()


def plain(net: Net) -> dict[str, Tensor]:
    *_, z = net.trunk(torch.randn(5, 4))
    return {"a": net.a(z).square().mean(), "b": net.b(z).square().mean(), "c": net.c(z).square().mean()}


def skip(net: Net) -> dict[str, Tensor]:
    low, _, z = net.trunk(torch.randn(5, 4))
    return {"a": net.a(z + low).square().mean(), "b": net.b(z).square().mean()}


def depths(net: Net) -> dict[str, Tensor]:
    low, middle, z = net.trunk(torch.randn(5, 4))
    return {"a": net.a(z).square().mean(), "b": net.b(middle).square().mean(), "c": net.c(low).square().mean()}


def partly(net: Net) -> dict[str, Tensor]:
    low, _, z = net.trunk(torch.randn(5, 4))
    return {"a": net.a(z).square().mean(), "b": net.b(z).square().mean(), "c": net.c(low).square().mean()}


def tied(net: Net) -> dict[str, Tensor]:
    *_, z = net.trunk(torch.randn(5, 4))
    return {"a": net.a(z).square().mean(), "b": (z @ net.second.weight).square().mean()}


def inputs(net: Net) -> dict[str, Tensor]:
    return {name: head(net.trunk(torch.randn(5, 4))[2]).square().mean() for name, head in (("a", net.a), ("b", net.b))}


def chunked(net: Net) -> dict[str, Tensor]:
    left, right = net.trunk(torch.randn(5, 4))[2].chunk(2, dim=1)
    return {"a": left.square().mean(), "b": right.square().mean()}


def stranger(net: Net) -> dict[str, Tensor]:
    *_, z = net.trunk(torch.randn(5, 4))
    return {"a": net.a(z).square().mean(), "b": net.b(z).square().mean(), "c": net.c(torch.randn(5, 6)).square().mean()}


TRUNK = ("embed", "first", "second")


@pytest.mark.parametrize("forward", [plain, skip, depths, partly, tied, inputs, chunked, stranger])
def test_the_shared_part_is_what_two_tasks_reach(forward: Callable[[Net], dict[str, Tensor]]) -> None:
    """Every parameter is marked with exactly the tasks whose gradient reaches it."""
    net = Net()
    losses = forward(net)
    masks = walk(tuple(losses.values())).leaves
    for parameter in net.parameters():
        if not parameter.requires_grad:
            assert parameter not in masks
            continue
        mask = 0
        for bit, loss in enumerate(losses.values()):
            (row,) = torch.autograd.grad(loss, [parameter], retain_graph=True, allow_unused=True)
            mask |= (row is not None) << bit
        assert masks.get(parameter, 0) == mask


@pytest.mark.parametrize(
    ("forward", "reads", "skips"),
    [
        (plain, {0: 1, 1: 1, 2: 1}, False),
        (skip, {0: 2, 1: 1}, True),
        (depths, {0: 1, 1: 1, 2: 1}, True),
        (partly, {0: 1, 1: 1, 2: 1}, True),
        (tied, {0: 1, 1: 1}, False),
        (chunked, {0: 1, 1: 1}, False),
        (stranger, {0: 1, 1: 1}, False),
    ],
)
def test_the_border_of_every_form(forward: Callable[[Net], dict[str, Tensor]], reads: dict[int, int], skips: bool) -> None:
    """Each task reads as many tensors of the representation as its private part is given; skips are recognised."""
    border = find_border(tuple(forward(Net()).values()))
    assert {task: len(set(positions.values())) for task, positions in border.reads.items()} == reads
    assert border.skips is skips
    assert border.hidden is None and not border.dependent


@pytest.mark.parametrize("probe", ["representation", "lagged"])
class TestRefusals:
    def test_an_input_per_task_has_no_representation(self, probe: str) -> None:
        """Tasks with an input of their own have parameters in common, and no tensor."""
        with pytest.raises(GraphError, match=r"read a common tensor, the representation.*an input per task.*exact"):
            compose(GABA, probe=probe).combine(inputs(Net()))

    def test_a_loss_inside_another_has_no_part_of_its_own(self, probe: str) -> None:
        """A loss that is a term of another task's is named."""
        losses = plain(Net())
        with pytest.raises(GraphError, match=r"The loss of 'a' is part of the loss of another task"):
            compose(GABA, probe=probe).combine({"a": losses["a"], "b": losses["a"] + losses["b"]})

    @pytest.mark.skipif(not hasattr(functorch_config, "donated_buffer"), reason="this torch does not donate buffers")
    def test_a_compiled_model_hides_it(self, probe: str) -> None:
        """A model compiled with its heads shows an output per task, and nothing that they read in common."""
        torch._dynamo.reset()
        net = Net()
        model = torch.compile(lambda x: (net.a(net.trunk(x)[2]), net.b(net.trunk(x)[2])), backend="aot_eager")
        with functorch_config.patch(donated_buffer=False), pytest.raises(GraphError, match="CompiledFunctionBackward hides"):
            a, b = model(torch.randn(5, 4))
            compose(GABA, probe=probe).combine({"a": a.square().mean(), "b": b.square().mean()})

    @pytest.mark.skipif(not hasattr(functorch_config, "donated_buffer"), reason="this torch does not donate buffers")
    def test_a_compiled_trunk_does_not(self, probe: str) -> None:
        """A trunk compiled on its own ends in a tensor that eager heads read: measured like any other."""
        torch._dynamo.reset()
        net = Net()
        compiled = torch.compile(lambda x: net.trunk(x)[2], backend="aot_eager")
        criterion = compose(GABA, probe=probe)
        norms = []
        for trunk in (compiled, lambda x: net.trunk(x)[2]):
            torch.manual_seed(1)
            z = trunk(torch.randn(5, 4))
            criterion.combine({"a": net.a(z).square().mean(), "b": net.b(z).square().mean()}).backward()
            measurement = criterion.probe.collect() if probe == "lagged" else None
            norms.append(criterion.report.norms if measurement is None else measurement.norms)
        torch.testing.assert_close(norms[0], norms[1])


def test_no_task_alone_fixes_the_border() -> None:
    """A lone task is not measured by the representation probe, and is inactive; two are."""
    net = Net()
    criterion = compose(GABA, tasks=["a", "b"], probe="representation")
    losses = plain(net)
    criterion.combine({"a": losses["a"], "b": None})
    assert criterion.report.norms is None
    losses = plain(net)
    criterion.combine({"a": losses["a"], "b": losses["b"]})
    assert bool((criterion.report.norms > 0).all())


@pytest.mark.parametrize("probe", ["exact", "representation", "lagged"])
def test_a_single_task_has_weight_one(probe: str) -> None:
    """With one task no probe stands in the way."""
    criterion = compose(GABA, tasks=["a"], probe=probe)
    for _ in range(3):
        total = criterion.combine({"a": plain(Net())["a"]})
        total.backward()
    assert criterion.report.weights.tolist() == [1.0]


def explained(forward: Callable[[Net], dict[str, Tensor]], **options: Any) -> str:
    net = Net()
    criterion = compose(GABA, **options)
    for _ in range(2):
        criterion.combine(forward(net)).backward()
    return criterion.explain(net)


def test_explain_names_shared_private_unreached_and_frozen() -> None:
    """With the model at hand the text has names: what is shared, what is private, what no task reaches, what is frozen."""
    text = explained(plain)
    lines = dict(line.split(maxsplit=1) for line in text.splitlines() if not line.startswith(("private", "task", "now")))
    assert lines["shared"].startswith("6 parameters, 114 entries, found on the graph: ")
    assert set(lines["shared"].split(": ")[1].split(", ")) == {f"{m}.{p}" for m in TRUNK for p in ("weight", "bias")}
    for head in "abc":
        assert f"private {head}: 2 parameters: {head}.weight, {head}.bias" in text or f"{head}.bias, {head}.weight" in text
    assert "2 trainable parameters are reached by no task: unused.weight, unused.bias" in text
    assert "frozen  2 parameters: frozen.weight, frozen.bias" in text


def test_explain_says_who_shares_what() -> None:
    """Partial sharing, ties and tasks without a gradient on the shared part are said."""
    assert "4 of them by some of the tasks only" in explained(partly)
    assert "tied    b also used directly" in explained(tied)
    assert "nothing c has no gradient on the shared part, and is inactive" in explained(stranger)
    net = Net()
    criterion = compose(GABA, shared=nn.ModuleList([net.embed, net.unused]))
    criterion.combine(plain(net))
    assert "given by you" in criterion.explain() and "2 of them are reached by no task" in criterion.explain()


def test_explain_shows_the_representation() -> None:
    """The tensors of the representation are listed with their shapes and readers."""
    assert ("(5, 6) read by" if TELLS_SHAPES else "a tensor read by") in explained(plain, probe="representation")
    text = explained(skip, probe="lagged")
    assert "2 tensors: " in text and "each counts directly" in text and "recorded in your own backward" in text


@pytest.mark.parametrize(
    ("options", "cost", "lag"),
    [
        ({}, f"about {REUSED} plain ones", False),
        ({"probe": {"name": "exact", "reuse": False}}, "about 3.00 plain ones", False),
        ({"probe": {"name": "exact", "rotate": True}}, "about 1.67 plain ones", False),
        ({"every": 10}, f"about {REUSED} plain ones, {ON_AVERAGE} on average over 10 windows", False),
        ({"probe": "representation"}, "about 1.00 plain ones", False),
        ({"probe": "lagged"}, "about 1.00 plain ones", True),
        ({"accumulate": 2}, f"about {REUSED} plain ones", True),
    ],
)
def test_explain_says_what_it_costs_and_whether_it_lags(options: dict[str, Any], cost: str, lag: bool) -> None:
    """The expected cost follows from probe, K = 3 and schedule; lagging weights are said to come from windows before."""
    text = explained(plain, **options)
    assert cost in text
    assert ("come from the windows before it" in text) is lag
    assert ("use that step's own statistics" in text) is not lag


def test_explain_says_when_a_constant_would_do() -> None:
    """Weights that stayed within 1 % over 500 calls are called steady, with the constants; moving ones are not."""
    leaf = nn.Parameter(torch.ones(3))
    steady = compose({"name": "gaba", "warmup": 0, "beta": 0.0})
    moving = compose({"name": "gaba", "warmup": 0, "beta": 0.0})
    for step in range(640):
        steady.combine({"a": leaf.sum(), "b": 3 * leaf.sum()})
        moving.combine({"a": leaf.sum(), "b": (3 + step / 20) * leaf.sum()})
    text = steady.explain()
    assert "changed by less than 1 % in the last 640 calls" in text
    assert "{'a': 0.75, 'b': 0.25}" in text
    assert "steady" not in moving.explain()
    constant = compose("fixed")
    for _ in range(640):
        constant.combine({"a": leaf.sum(), "b": leaf.sum()})
    assert "steady" not in constant.explain()
