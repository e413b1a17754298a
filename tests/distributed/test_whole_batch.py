"""With sync="gradients" several ranks do what one process does with all their samples."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from spawning import on_ranks
from strategies import batch_for, model_for, quick
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from mtl_axes import MultiTaskCriterion, OuterWeighting, Signals, compose

pytestmark = pytest.mark.slow

KINDS = {"a": "regression", "b": "regression", "c": "multiclass"}
STEPS, CALLS, SIZE = 10, 2, 12


class GramWeights(OuterWeighting):
    """Weights that need every entry of the Gramian."""

    needs = "gramian"

    def forward(self, signals: Signals, /) -> Tensor:
        assert signals.gramian is not None
        return (1 + signals.gramian.abs().sum(1).sqrt()).reciprocal().softmax(0)


# What is composed, beside sync="gradients"; and whether targets of a task are left out on a rank, or masked.
CASES: dict[str, dict[str, Any]] = {
    "gaba": {"outer": "gaba"},
    "gaba rotate": {"outer": "gaba", "probe": {"name": "exact", "rotate": True}},
    "gaba no reuse": {"outer": "gaba", "probe": {"name": "exact", "reuse": False}},
    "gaba representation": {"outer": "gaba", "probe": "representation"},
    "gaba lagged": {"outer": "gaba", "probe": "lagged"},
    "gaba every": {"outer": "gaba", "every": 3},
    "gaba accumulate": {"outer": "gaba", "accumulate": CALLS},
    "lagged accumulate": {"outer": "gaba", "probe": "lagged", "accumulate": CALLS},
    "gramian": {"outer": "gramian"},
    "gradnorm": {"outer": "gradnorm"},
    "dwa": {"outer": "dwa"},
    "dwa accumulate": {"outer": "dwa", "accumulate": CALLS},
    "uncertainty": {"outer": "uncertainty"},
    "uncertainty accumulate": {"outer": "uncertainty", "accumulate": CALLS},
    "fixed": {"outer": "fixed"},
    "weighted mean": {"outer": "gaba", "reduction": "weighted_mean"},
}


def composed(case: str, **options: Any) -> MultiTaskCriterion:
    given = {**CASES[case], **options}
    name = given.pop("outer")
    return compose(GramWeights() if name == "gramian" else quick(name), tasks=list(KINDS), missing="ignore", **given)


def parts(step: int, call: int, ranks: int, dtype: torch.dtype) -> list[tuple[Tensor, dict[str, Any], Tensor]]:
    """The batch of a call by rank, in unequal parts: inputs, targets where a missing one is NaN or -100, sample weights."""
    inputs, targets = batch_for(KINDS, seed=10 * step + call, size=SIZE * ranks, dtype=dtype, scale=5.0)
    weights = torch.rand(SIZE * ranks, generator=torch.Generator().manual_seed(step), dtype=dtype)
    # Each rank labels another part of its samples, rank 1 none of "b" in some steps; "c" is nowhere labelled in others.
    ends = [0, *(SIZE * rank - 3 * (rank % 2) for rank in range(1, ranks)), SIZE * ranks]
    for rank, (begin, end) in enumerate(pairwise(ends)):
        targets["a"][begin : begin + 2 * rank] = torch.nan
        if rank == 1 and step % 3 == 1:
            targets["b"][begin:end] = torch.nan
        targets["c"][begin + 3 : end - rank] = -100
    if step % 7 == 6:
        targets["c"][:] = -100
    spans = [slice(begin, end) for begin, end in pairwise(ends)]
    return [(inputs[span], {name: target[span] for name, target in targets.items()}, weights[span]) for span in spans]


def train(case: str, dtype: torch.dtype, ranks: int, rank: int | None, *, absent: bool) -> dict[str, Any]:
    """Train on the part of a rank, or with None on the whole batch. ``absent``: a task without any label is left out."""
    model = model_for(KINDS, dtype=dtype)
    wrapped: nn.Module = model if rank is None else DistributedDataParallel(model, find_unused_parameters=absent)
    criterion = composed(case, sync="gradients")
    groups = [{"params": model.parameters()}, *criterion.param_groups()]
    optimizer = torch.optim.SGD(groups, lr=0.02)
    calls = CALLS if criterion.accumulate == CALLS else 1
    seen = []
    for step in range(STEPS):
        optimizer.zero_grad()
        for call in range(calls):
            batches = parts(step, call, ranks, dtype)
            if rank is None:
                inputs = torch.cat([batch[0] for batch in batches])
                targets: dict[str, Any] = {name: torch.cat([batch[1][name] for batch in batches]) for name in KINDS}
                weights = torch.cat([batch[2] for batch in batches])
            else:
                inputs, targets, weights = batches[rank]
            if absent and rank is not None and step and step % 3 == 1 and rank == 1:
                targets = {**targets, "b": None}
            weight = weights if case == "weighted mean" else None
            if rank is not None:
                wrapped.require_backward_grad_sync = call == calls - 1
            loss = criterion(wrapped(inputs), targets, sample_weight=weight)
            (loss / calls).backward()
        report = criterion.report
        gradients = torch.cat([parameter.grad.reshape(-1) for parameter in model.parameters()])
        seen.append({"weights": report.weights, "losses": report.losses, "norms": report.norms, "gradients": gradients})
        optimizer.step()
        criterion.step()
    final = {name: value.detach().clone() for name, value in model.named_parameters()}
    final |= {f"criterion {name}": value.detach().clone() for name, value in criterion.named_parameters()}
    state = {name: value for name, value in criterion.outer.state_dict().items() if isinstance(value, Tensor)}
    return {"seen": seen, "final": final, "state": state}


# Three ranks for what the number of ranks enters differently; two for all that is above.
WITH_THREE = ("gaba", "gradnorm", "dwa", "uncertainty", "lagged accumulate")
SETTINGS = [("float64", False), ("float64", True), ("float32", False)]


def all_cases(rank: int, ranks: int) -> dict[str, Any]:
    return {
        f"{case} {dtype} {absent}": train(case, getattr(torch, dtype), ranks, rank, absent=absent)
        for case in (CASES if ranks == 2 else WITH_THREE)
        for dtype, absent in SETTINGS
    }


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[int, list[dict[str, Any]]]:
    return {ranks: on_ranks(all_cases, tmp_path_factory.mktemp("ranks"), ranks, ranks) for ranks in (2, 3)}


def difference(left: Any, right: Any) -> float:
    """The largest difference of two tensors, in units of the largest entry, or of 1 where that is smaller."""
    return float((left.double() - right.double()).abs().max() / right.double().abs().max().clamp_min(1.0))


@pytest.mark.parametrize(("dtype", "absent"), SETTINGS)
@pytest.mark.parametrize(("ranks", "case"), [*((2, case) for case in CASES), *((3, case) for case in WITH_THREE)])
def test_ranks_do_what_one_process_does(
    runs: dict[int, list[dict[str, Any]]], ranks: int, case: str, dtype: str, absent: bool
) -> None:
    """Weights, losses, norms, gradients in each of 10 steps, then parameters and state, are those of the whole batch."""
    found = runs[ranks]
    alone = train(case, getattr(torch, dtype), ranks, None, absent=absent)
    bound = 1e-6 if dtype == "float32" else 1e-12
    for rank in range(ranks):
        run = found[rank][f"{case} {dtype} {absent}"]
        for here, there in zip(run["seen"], alone["seen"], strict=True):
            for quantity, expected in there.items():
                if expected is not None:
                    assert difference(here[quantity], expected) < bound, (rank, quantity)
        for kind in ("final", "state"):
            assert run[kind].keys() == alone[kind].keys()
            assert all(difference(run[kind][name], value) < bound for name, value in alone[kind].items())
            # Bit for bit between ranks.
            assert all(torch.equal(run[kind][name], found[0][f"{case} {dtype} {absent}"][kind][name]) for name in run[kind])
    weights = torch.stack([each["weights"] for each in alone["seen"]])
    assert (len(weights.unique(dim=0)) > 2) is (case != "fixed"), "the weights should move"
