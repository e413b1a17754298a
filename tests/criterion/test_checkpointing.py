"""Activation checkpointing: what runs under it measures what it measures without, and the rest is an error with advice."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from strategies import PROBES, batch_for, model_for, quick
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from mtl_axes import compose
from mtl_axes.errors import GraphError

KINDS = {"a": "regression", "b": "regression", "c": "multiclass"}
pytestmark = pytest.mark.filterwarnings("ignore:.torch.cpu.amp.autocast")  # torch's own, before 2.6
ADVICE = r'use_reentrant=False avoids and probe="lagged" allows'


def trained(how: str, precision: str, probe: dict[str, Any]) -> tuple[list[Tensor], list[Tensor]]:
    """Weights after every call, and the gradients of the last, with a trunk that is checkpointed or not."""
    model, weights = model_for(KINDS), []
    criterion = compose(quick("gaba"), tasks=list(KINDS), **probe)
    for call in range(5):
        inputs, targets = batch_for(KINDS, seed=call)
        inputs.requires_grad_()  # as reentrant checkpointing needs it
        with torch.autocast("cpu", dtype=torch.float16, enabled=precision == "float16"):
            read = torch.tanh(model.trunk(inputs)) if how == "plain" else None
            if read is None:
                read = checkpoint(lambda x: torch.tanh(model.trunk(x)), inputs, use_reentrant=how == "reentrant")
            outputs = {name: head(read) for name, head in model.heads.items()}
        model.zero_grad()
        criterion({name: out if name == "c" else out.squeeze(-1) for name, out in outputs.items()}, targets).backward()
        weights.append(criterion.report.weights)
    return weights, [parameter.grad for parameter in model.parameters()]


@pytest.mark.parametrize("probe", PROBES)
@pytest.mark.parametrize("precision", ["float32", "float16"])
@pytest.mark.parametrize("how", ["reentrant", "not reentrant"])
def test_checkpointing_changes_nothing_or_is_refused(how: str, precision: str, probe: str) -> None:
    """Exact probes need use_reentrant=False; at the representation both ways give the weights and gradients of none."""
    if how == "reentrant" and probe not in ("representation", "lagged"):
        with pytest.raises(GraphError, match=ADVICE):
            trained(how, precision, PROBES[probe])
        return
    for found, expected in zip(
        trained(how, precision, PROBES[probe]), trained("plain", precision, PROBES[probe]), strict=True
    ):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-7)
        assert len({tuple(weights.flatten().tolist()) for weights in found}) > 1
