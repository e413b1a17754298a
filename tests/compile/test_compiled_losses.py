"""Weightings of the losses within a compiled call: one graph, with the numbers and the state of an eager one."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from mtl_axes import compose
from mtl_axes.compiling import TRACES_STATE

# Of torch, which looks at the gradient of every input of a graph.
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning"),
    pytest.mark.skipif(not TRACES_STATE, reason="this torch does not trace the state of a weighting"),
]

WAYS: list[dict[str, Any]] = [
    *({"name": name} for name in ("cov", "gls", "imtl_l", "scale_invariant", "slaw", "softadapt", "uw_so")),
    {"name": "softadapt", "variant": "normalized"},
    {"name": "stch", "warmup": 2},
    {"name": "stch", "form": "linear"},
]


def trained(outer: dict[str, Any], *, compiled: bool) -> tuple[list[list[float]], dict[str, Any]]:
    """Weights after each of six steps, of which the first is eager in any case, and totals, model and state afterwards."""
    torch._dynamo.reset()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model, inputs = nn.Linear(3, 2), torch.randn(6, 3)
    criterion = compose(outer, tasks=["a", "b"])

    def total(factor: torch.Tensor) -> torch.Tensor:
        a, b = model(inputs * factor).unbind(1)
        return criterion.combine({"a": a.square().mean(), "b": (b - 1).square().mean()})

    optimizer = torch.optim.SGD([{"params": list(model.parameters())}, *criterion.param_groups()], lr=0.05)
    call, seen, totals = total, [], []
    for step in range(6):
        optimizer.zero_grad()
        loss = call(torch.tensor(1 + step / 3))
        loss.backward()
        optimizer.step()
        totals.append(loss.item())
        seen.append(criterion.outer.weights().tolist())
        if compiled:
            call = torch.compile(total, backend="eager", fullgraph=True) if step == 0 else call
    return seen, {**criterion.outer.state_dict(), **model.state_dict(), "totals": totals}


@pytest.mark.parametrize("outer", WAYS, ids=lambda outer: " ".join(str(value) for value in outer.values()))
def test_one_graph_with_the_numbers_of_an_eager_call(outer: dict[str, Any]) -> None:
    """Without a break in the graph, weights, totals, model and state are those of eager calls bit for bit."""
    (eager, state), (compiled, other) = trained(outer, compiled=False), trained(outer, compiled=True)
    assert eager == compiled
    assert state.keys() == other.keys()
    assert all(torch.equal(torch.as_tensor(value), torch.as_tensor(other[key])) for key, value in state.items())
    assert len(set(map(tuple, eager))) > 3
