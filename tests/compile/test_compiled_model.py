"""A compiled model, whole or in parts, under each probe: measured as without a compiler, or refused in the first call."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch._functorch.config as functorch_config
from strategies import batch_for, equal
from torch import Tensor, nn

from mtl_axes import MultiTaskCriterion, compose
from mtl_axes.errors import GraphError
from mtl_axes.probes.compiled import check_runs_twice

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not hasattr(functorch_config, "donated_buffer"), reason="this torch does not donate buffers"),
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning"),
]

KINDS = {"rul": "regression", "health": "multiclass"}
GABA = {"name": "gaba", "warmup": 3, "beta": 0.5}
HIDDEN = r"CompiledFunctionBackward hides the representation.*keep the heads out of that module"
DONATED = r"A compiled module gives its buffers away.*Set it to False before torch.compile"
Forward = Callable[[Tensor], dict[str, Tensor]]


@pytest.fixture(autouse=True)
def _fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    with functorch_config.patch(donated_buffer=True):
        yield


class Net(nn.Module):
    """A trunk and two heads, deep enough that their backwards keep buffers."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 8), nn.Tanh())
        self.rul = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 1))
        self.health = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 3))

    def forward(self, inputs: Tensor) -> dict[str, Tensor]:
        z = self.trunk(inputs)
        return {"rul": self.rul(z).squeeze(-1), "health": self.health(z)}

    def compiled(self, part: str) -> Forward:
        """The forward pass with some part of it compiled."""
        if part == "nothing":
            return self
        if part == "whole":
            return torch.compile(self, backend="aot_eager")  # type: ignore[return-value]
        parts = {"trunk": ["trunk"], "heads": ["rul", "health"], "each part": ["trunk", "rul", "health"]}[part]
        trunk, rul, health = (
            torch.compile(getattr(self, name), backend="aot_eager") if name in parts else getattr(self, name)
            for name in ("trunk", "rul", "health")
        )

        def forward(inputs: Tensor) -> dict[str, Tensor]:
            z = trunk(inputs)
            return {"rul": rul(z).squeeze(-1), "health": health(z)}

        return forward


def train(part: str, probe: Any, *, shared: bool = True, steps: int = 6) -> tuple[list[Tensor], dict[str, Tensor]]:
    """Weights of each step and the final parameters of a run in which the warm-up ends after three of the steps."""
    torch.manual_seed(0)
    net = Net()
    forward = net.compiled(part)
    criterion = compose(GABA, "mse", probe=probe, shared=net.trunk if shared else None)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
    weights = []
    for seed in range(steps):
        inputs, targets = batch_for(KINDS, seed=seed)
        criterion(forward(inputs), targets).backward()
        optimizer.step()
        optimizer.zero_grad()
        weights.append(criterion.report.weights)
    return weights, net.state_dict()


# probe, compiled part, donated_buffer: what works.
WORKS = [
    *(("exact", part, False) for part in ("trunk", "heads", "each part", "whole")),
    *(("representation", part, False) for part in ("heads", "each part")),
    ("representation", "trunk", True),
    *(("lagged", part, True) for part in ("trunk", "heads", "each part")),
]


@pytest.mark.parametrize(("probe", "part", "donates"), WORKS)
def test_a_compiled_model_is_measured_as_an_eager_one(probe: str, part: str, donates: bool) -> None:
    """Weights and parameters are those of the model without a compiler, in the warm-up and after it."""
    with functorch_config.patch(donated_buffer=donates):
        weights, parameters = train(part, probe)
    expected, eager = train("nothing", probe)
    assert not torch.equal(weights[-1], weights[0])
    torch.testing.assert_close(weights, expected)
    torch.testing.assert_close(parameters, eager)


# probe, compiled part, donated_buffer, whether shared= is given: what cannot work, and the error of the first call.
REFUSED = [
    *(("exact", part, True, True, DONATED) for part in ("trunk", "heads", "whole")),
    ("exact", "trunk", False, False, r"cannot be found on the autograd graph.*a compiled module.*Pass shared="),
    ("exact", "whole", False, False, r"cannot be found on the autograd graph.*a compiled module.*Pass shared="),
    ("representation", "heads", True, True, DONATED),
    ("representation", "whole", False, True, HIDDEN),
    ("lagged", "whole", True, True, HIDDEN),
]


@pytest.mark.parametrize(("probe", "part", "donates", "shared", "message"), REFUSED)
def test_what_cannot_be_measured_is_refused_in_the_first_call(
    probe: Any, part: str, donates: bool, shared: bool, message: str
) -> None:
    """The error comes before the first backward, in a warm-up that measures nothing, and says what to do."""
    with functorch_config.patch(donated_buffer=donates), pytest.raises(GraphError, match=message):
        train(part, probe, shared=shared, steps=1)


@pytest.mark.parametrize("probe", ["exact", "representation"])
def test_a_model_compiled_in_mid_run_is_explained_too(probe: str) -> None:
    """After an eager first call nothing is checked any more; torch's own error then becomes one that says what to do."""
    torch.manual_seed(0)
    net = Net()
    criterion = compose({**GABA, "warmup": 0}, "mse", probe=probe, shared=net.trunk)
    inputs, targets = batch_for(KINDS)
    criterion(net(inputs), targets).backward()
    forward = net.compiled("heads")
    sum(output.square().mean() for output in forward(inputs).values()).backward()
    with pytest.raises(GraphError, match=DONATED):
        criterion(forward(inputs), targets)


class CompiledFunction(torch.autograd.Function):
    """Stands for a compiled backward that writes into what it has saved, as one does with donated buffers."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor) -> Tensor:
        ctx.kept = torch.ones_like(inputs)
        return inputs.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient * ctx.kept.mul_(2)


def test_a_backward_that_spoils_its_buffers_is_noticed() -> None:
    """Where the setting came after torch.compile, the second gradient is another one: an error that names the cache too."""
    inputs = torch.ones(3, requires_grad=True)
    loss = CompiledFunction.apply(inputs).sum()
    message = r"another gradient the second time.*donated_buffer = True, now or in an earlier run.*TORCHINDUCTOR_CACHE_DIR"
    with functorch_config.patch(donated_buffer=False), pytest.raises(GraphError, match=message):
        check_runs_twice(loss, [inputs])
    with functorch_config.patch(donated_buffer=False):
        check_runs_twice(inputs.square().sum(), [inputs])


@pytest.mark.parametrize("outer", [GABA, {"name": "gradnorm", "lr": 0.1}])
def test_a_compiled_loss_function_measures_behind_a_graph_break(outer: dict[str, Any]) -> None:
    """The criterion within a compiled function: the model is compiled, the measuring runs in Python, the numbers agree."""
    torch.manual_seed(0)
    net = Net()
    twin = copy.deepcopy(net)

    def loss_function(criterion: MultiTaskCriterion, model: nn.Module, inputs: Tensor, targets: Any) -> Tensor:
        return criterion(model(inputs), targets)

    seen: list[list[Tensor]] = []
    for model, compiles in ((net, True), (twin, False)):
        call = torch.compile(loss_function, backend="aot_eager") if compiles else loss_function
        with functorch_config.patch(donated_buffer=False):
            criterion = compose(outer, "mse", shared=model.trunk)
            optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
            seen.append([])
            for seed in range(6):
                inputs, targets = batch_for(KINDS, seed=seed)
                total = call(criterion, model, inputs, targets)
                total.backward()
                optimizer.step()
                optimizer.zero_grad()
                seen[-1] += [total.detach(), criterion.report.weights]
    torch.testing.assert_close(*seen)
    assert not equal(seen[0][1], seen[0][-1])
