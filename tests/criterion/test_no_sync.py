"""From its second call on a criterion never waits for the device.

Two guards: FakeTensorMode, where a value does not exist and reading one raises; and the meta device, where it is the same
for every copy to the host. Both are first shown to catch a deliberate read.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from sampling import tiered
from strategies import (
    INNER_KINDS,
    INNERS,
    REPRESENTATIVE,
    STANDARD,
    Heads,
    batch_for,
    drawn,
    kinds_of,
    model_for,
    quick,
    shaped,
)
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from mtl_axes import MultiTaskCriterion, OuterWeighting, Signals, compose
from mtl_axes.outer import Rescaled

KINDS = {"x": "regression", "y": "multiclass", "z": "binary"}


class Reading(OuterWeighting):
    """A weighting that reads a value in one of the ways that synchronise."""

    def __init__(self, how: str = "item") -> None:
        super().__init__()
        self.how = how

    def forward(self, signals: Signals, /) -> Tensor:
        losses = signals.losses
        if self.how == "item":
            losses.sum().item()
        elif self.how == "bool":
            bool((losses > 0).all())
        elif self.how == "tolist":
            losses.tolist()
        elif self.how == "index":
            losses[losses > 0].sum().backward if losses[losses > 0].numel() else None
        elif self.how == "cpu":
            losses.cpu().numpy()
        elif self.how == "nonzero":
            [int(index) for index in losses.nonzero()]
        return self.current.clone()


def setting(outer: Any, inner: Any, kinds: dict[str, str] = KINDS, **options: Any) -> tuple[Heads, MultiTaskCriterion]:
    """A model and a criterion after a real first call of every task, which may read values."""
    model = model_for(kinds)
    criterion = compose(outer, inner, tasks=list(kinds), **options)
    inputs, targets = batch_for(kinds)
    criterion(model(inputs), targets).backward()
    model.zero_grad()
    criterion.zero_grad()
    return model, criterion


def on(device: str, kinds: dict[str, str], seed: int) -> tuple[Tensor, dict[str, Tensor]]:
    inputs, targets = batch_for(kinds, seed=seed)
    return inputs.to(device), {name: target.to(device) for name, target in targets.items()}


def calls(model: Heads, criterion: MultiTaskCriterion, kinds: dict[str, str], device: str, *, rounds: int = 2) -> None:
    """Calls of every sort: plain, masked, weighted, absent task, extra, combined, held, evaluated, after a step."""
    first = next(iter(kinds))
    for seed in range(rounds):
        inputs, targets = on(device, kinds, seed)
        keep = torch.ones(8, dtype=torch.bool, device=device)
        half = torch.full((8,), 0.5, device=device)
        extra = torch.ones((), device=device, requires_grad=True)
        criterion(model(inputs), targets).backward()
        criterion(model(inputs), targets, mask=keep, sample_weight=half).backward()
        criterion(model(inputs), targets, mask={first: keep}, sample_weight={first: half}).backward()
        if len(kinds) > 2:
            criterion(model(inputs), {**targets, first: None}).backward()
            rest = {name: target for name, target in targets.items() if name != first}
            criterion(model(inputs), rest, extra={first: extra * model(inputs)[first].sum()}).backward()
        outputs = model(inputs)
        criterion.combine({name: output.square().mean() for name, output in outputs.items()}).backward()
        with criterion.hold():
            criterion(model(inputs), targets).backward()
        criterion.eval()
        with torch.no_grad():
            criterion(model(inputs), targets)
        criterion.train()
        criterion.step(skipped=seed == 1)
        with torch.no_grad(), criterion.after_step():
            criterion(model(inputs), targets)
        criterion.end_epoch()
        assert criterion.report is not None and criterion.report.losses.shape == (len(kinds),)
        assert criterion.outer.weights().shape == (len(kinds),)
        criterion.outer.diagnostics(), repr(criterion), criterion.state_dict()


def under_fake(model: Heads, criterion: MultiTaskCriterion, kinds: dict[str, str]) -> None:
    """Run calls under FakeTensorMode, with the real parameters and state let in as fakes."""
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        for module in (model, criterion):
            for part in module.modules():
                for name, buffer in list(part._buffers.items()):
                    part._buffers[name] = mode.from_tensor(buffer)
                for name, parameter in list(part._parameters.items()):
                    part._parameters[name] = torch.nn.Parameter(mode.from_tensor(parameter.detach()))
        calls(model, criterion, kinds, "cpu")


def on_meta(model: Heads, criterion: MultiTaskCriterion, kinds: dict[str, str]) -> None:
    """Run calls on the meta device."""
    model.to("meta")
    calls(model, criterion, kinds, "meta")
    assert criterion.report.weights.device.type == "meta"


GUARDS = {"fake": under_fake, "meta": on_meta}
every_guard = pytest.mark.parametrize("guard", GUARDS.values(), ids=GUARDS.keys())


@every_guard
@pytest.mark.parametrize("how", ["item", "bool", "tolist", "index", "cpu", "nonzero"])
def test_the_guard_catches_a_deliberate_read(guard: Any, how: str) -> None:
    """A weighting that reads a value by item, bool, tolist, indexing, a host copy or nonzero fails under both guards."""
    model, criterion = setting(Reading(how), "mse")
    # torch 2.4 trips over its own missing symbols in a fake tolist().
    with pytest.raises((RuntimeError, NotImplementedError, TypeError, AttributeError)) as caught:
        guard(model, criterion, KINDS)
    assert "unbacked_symint" in str(caught.value) or type(caught.value).__name__ in (
        "DataDependentOutputException",
        "DynamicOutputShapeException",
        "GuardOnDataDependentSymNode",
        "NotImplementedError",
        "RuntimeError",
        "UnsupportedOperatorException",
    )


@every_guard
def test_the_guard_lets_an_innocent_weighting_through(guard: Any) -> None:
    """The same weighting without the read passes both guards."""
    model, criterion = setting(Reading("not at all"), "mse")
    guard(model, criterion, KINDS)


# Those that solve a small problem on the host say so; every registered one is held to its word by its contracts.
WAITING_FOR_NOTHING = [outer for outer in REPRESENTATIVE if not quick(outer).on_host]
SCHEDULES = [{}, {"accumulate": 3}, {"accumulate": "manual"}, {"every": 2}, {"missing": "ignore"}]


WAYS = [(on_meta, at) for at in range(len(SCHEDULES))] + [(under_fake, at) for at in range(2)]


@pytest.mark.parametrize(
    ("outer", "guard", "at"),
    tiered((outer, *way) for outer in WAITING_FOR_NOTHING for way in WAYS),
    ids=lambda value: getattr(value, "__name__", str(value)),
)
def test_no_weighting_waits(outer: str, guard: Any, at: int) -> None:
    """Every weighting, in every schedule, runs without a host synchronisation from the second call on."""
    options = SCHEDULES[at]
    model, criterion = setting(quick(outer), "mse", **options)
    guard(model, criterion, KINDS)


@pytest.mark.parametrize("outer", [outer for outer in WAITING_FOR_NOTHING if not quick(outer).learnable])
def test_no_option_waits(outer: str) -> None:
    """Normalisation, the weighted mean and current weights in evaluation read no value either."""
    model, criterion = setting(Rescaled(quick(outer), total="K"), "mse", reduction="weighted_mean")
    criterion.eval_weights = "current"
    on_meta(model, criterion, KINDS)


@pytest.mark.parametrize(("inner", "kind"), INNER_KINDS)
def test_no_shape_waits(inner: str, kind: str) -> None:
    """Every shape, for every kind that it serves, runs under GABA without a host synchronisation, masked and unmasked."""
    criterion = compose(quick("gaba"), {"x": shaped(inner), "y": "mse"})
    for device in ("cpu", "meta"):
        prediction, target = (tensor.to(device) for tensor in drawn(inner, kind))
        scale = torch.ones((), device=device, requires_grad=True)
        others = torch.linspace(-1, 1, len(target), device=device, dtype=prediction.dtype)
        keep = torch.ones(len(target), dtype=torch.bool, device=device)
        for mask in (None, {"x": keep}):
            total = criterion({"x": prediction * scale, "y": others * scale}, {"x": target, "y": others}, mask=mask)
            total.backward()
    assert criterion.outer.weights().device.type == "meta"


def test_a_long_log_does_not_wait() -> None:
    """The log of a run that never asks for it is folded on the device."""
    model, criterion = setting(quick("gaba"), "mse")
    model.to("meta")
    inputs, targets = on("meta", KINDS, 0)
    for _ in range(70):
        criterion(model(inputs), targets)


def test_debug_reads_values_on_purpose() -> None:
    """With criterion.debug every call checks values, which the guard notices: the checks are really off without it."""
    model, criterion = setting(quick("gaba"), "mse")
    criterion.debug = True
    with pytest.raises((RuntimeError, NotImplementedError)):
        on_meta(model, criterion, KINDS)


def test_every_shape_and_kind_is_covered() -> None:
    """The table of shapes and kinds above leaves no registered shape out."""
    assert {inner for inner, _ in INNER_KINDS} == set(INNERS)
    assert {kind for _, kind in INNER_KINDS} == set(STANDARD)
    assert all(kinds_of(shaped(inner)) for inner in INNERS)
