"""Half precision: what float16 and bfloat16 do to the gradients of a model they do not do to norms, weights and state."""

from __future__ import annotations

import copy
import io
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from mtl_axes.adapters.loop import Loop
from sampling import covering, tiered
from strategies import PROBES, Heads, batch_for, crossed, equal, measurable, quick, same, snapshot
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.amp.grad_scaler import GradScaler

from mtl_axes import MultiTaskCriterion, compose
from mtl_axes.probes import Exact

KINDS = {"a": "regression", "b": "regression", "c": "regression"}
TASKS = list(KINDS)
f16, bf16, f32, f64 = torch.float16, torch.bfloat16, torch.float32, torch.float64
TELLS_DTYPES = hasattr(torch.ones(1, requires_grad=True).sum().grad_fn, "_input_metadata")
SAME_STEP = {name: options for name, options in PROBES.items() if name != "lagged"}


def model_of(width: int = 48) -> Heads:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Heads(KINDS, width=width)


def losses_of(model: nn.Module, sizes: tuple[float, ...], how: str = "plain", *, seed: int = 0) -> dict[str, Tensor]:
    """Losses of three tasks, times a size each, on far targets; ``how`` is "plain", an autocast or a cast of the model."""
    inputs, targets = batch_for(KINDS, seed=seed, size=32)
    with torch.autocast("cpu", dtype=bf16 if "bfloat16" in how else f16, enabled="autocast" in how):
        outputs = model(inputs.to(next(model.parameters()).dtype))
    wide = {name: output if output.dtype is f64 else output.float() for name, output in outputs.items()}
    return {
        name: size * (wide[name] - targets[name].to(wide[name].dtype) - 4).square().mean()
        for name, size in zip(TASKS, sizes, strict=True)
    }


def cast(how: str, model: nn.Module) -> nn.Module:
    return {"half": model.half, "bfloat16": model.bfloat16}.get(how, lambda: model)()


def true_norms(model: nn.Module, sizes: tuple[float, ...], probe: str = "exact", *, seed: int = 0) -> Tensor:
    """What the norms are in float64 for the same parameters and data."""
    options = PROBES["representation" if probe in ("representation", "lagged") else "no reuse"]
    criterion = compose(quick("gaba"), tasks=TASKS, **options)
    criterion.combine(losses_of(copy.deepcopy(model).double(), sizes, seed=seed))
    return criterion.report.norms


def sizes_for(model: nn.Module, norms: tuple[float, ...], probe: str = "exact") -> tuple[float, ...]:
    """Sizes of the losses with which the true norms are the given ones."""
    return tuple((torch.tensor(norms, dtype=f64) / true_norms(model, (1.0,) * 3, probe)).tolist())


def error(found: Tensor, true: tuple[float, ...] | Tensor) -> Tensor:
    """The relative error, by task."""
    true = torch.as_tensor(true, dtype=f64)
    return ((found - true) / true).abs()


def plain_norms(model: nn.Module, losses: Mapping[str, Tensor], scale: float) -> Tensor:
    """Norms taken by autograd.grad of the losses times one scale for all."""
    norms = []
    for loss in losses.values():
        gradients = torch.autograd.grad(loss * scale, list(model.trunk.parameters()), retain_graph=True)
        norms.append(torch.cat([gradient.float().flatten() for gradient in gradients]).norm() / scale)
    return torch.stack(norms)


TINY = (1e-3, 1e-5, 1e-7)
APART = (0.1, 50.0, 1e5)  # the published imbalance of 500, and 1e6
NORMS = {"tiny": TINY, "apart": APART, "all of it": (3e-9, 2.0, 4e6)}


def test_one_scale_does_not_serve_all_tasks() -> None:
    """The reason for a scale per task: a norm of 1e-5 is 10 % off and one of 1e-7 is 0, where 2^16 makes others overflow."""
    model = model_of()
    found = plain_norms(model, losses_of(model, sizes_for(model, TINY), "autocast"), 1.0)
    assert 0.1 < error(found, TINY)[1] < 0.5
    assert found[2] == 0
    found = plain_norms(model, losses_of(model, sizes_for(model, APART), "autocast"), 2.0**16)
    assert found.isfinite().tolist() == [True, False, False]


@pytest.mark.parametrize("probe", SAME_STEP)
@pytest.mark.parametrize("how", ["autocast", "half"])
@pytest.mark.parametrize("norms", NORMS)
def test_norms_are_right_in_float16(probe: str, how: str, norms: str) -> None:
    """Once the scales have found their place the norms equal those of float64 to 0.05 %, over fifteen orders of magnitude.

    In a model that is cast the forward pass is rounded too, which costs some more.
    """
    model = cast(how, model_of())
    sizes = sizes_for(model, NORMS[norms], probe)
    criterion = compose(quick("gaba", beta=0.0, floor=0.0, form="inverse"), tasks=TASKS, **SAME_STEP[probe])
    seen = torch.full((3,), torch.nan)
    for _ in range(16):
        criterion.combine(losses_of(model, sizes, how))
        report = criterion.report
        if report.norms is not None:
            seen = torch.where(report.measured, report.norms, seen)
    limit = 5e-4 if how == "autocast" else 5e-3
    assert float(error(seen, NORMS[norms]).max()) < limit
    balanced = report.weights * torch.tensor(NORMS[norms])
    assert float(error(balanced / balanced[0], (1.0,) * 3).max()) < 2 * limit


def test_a_gramian_is_right_in_float16() -> None:
    """Inner products of scaled gradients are divided by both scales."""

    class Gram(type(quick("fixed"))):
        needs = "gramian"
        moves = True

    model = model_of()
    sizes = sizes_for(model, APART)
    cosines = []
    for how in ("plain", "autocast"):
        criterion = compose(Gram(), tasks=TASKS)
        for _ in range(5):
            criterion.combine(losses_of(model, sizes, how))
        cosines.append(criterion.report.cosines)
        assert float(error(criterion.report.norms, APART).max()) < 5e-4
    torch.testing.assert_close(cosines[1], cosines[0], rtol=0, atol=1e-3)


def test_a_first_measurement_is_right_or_none() -> None:
    """What overflows before its scale is found is inactive and counted, and enters neither state nor weights."""
    model = model_of()
    sizes = sizes_for(model, APART)
    criterion = compose(quick("gaba"), tasks=TASKS)
    for window in range(5):
        criterion.combine(losses_of(model, sizes, "autocast"))
        report = criterion.report
        assert bool((error(report.norms, APART)[report.active] < 5e-4).all()), window
        assert criterion.outer.ema.isfinite().all()
    assert report.active.tolist() == [True, True, True]
    assert 0 == report.dropped[0] < report.dropped[1] < report.dropped[2] <= 3


def test_no_gradient_and_a_gradient_again() -> None:
    """A task that had no gradient for long is measured again a few windows after it has one."""
    model = model_of()
    sizes = sizes_for(model, (1.0, 1.0, 1.0))
    criterion = compose(quick("gaba"), tasks=TASKS)
    for _ in range(20):
        losses = losses_of(model, sizes, "autocast")
        criterion.combine({**losses, "b": 0 * losses["b"]})
    assert criterion.report.active.tolist() == [True, False, True]
    for _ in range(5):
        criterion.combine(losses_of(model, sizes, "autocast"))
    assert float(error(criterion.report.norms, (1.0,) * 3).max()) < 5e-4


def test_scales_are_powers_of_two_and_only_in_float16() -> None:
    """In float32 and bfloat16 no loss is scaled, however small its norm; hooks on activations see what they always saw."""
    # In an older torch a cast does not say to what, and bfloat16 is scaled too.
    for how in ("plain", "autocast bfloat16") if TELLS_DTYPES else ("plain",):
        model = model_of()
        sizes = sizes_for(model, TINY)
        criterion = compose(quick("gaba"), tasks=TASKS, probe=Exact(reuse=False))
        before, seen = None, []
        for _ in range(3):
            losses = losses_of(model, sizes, how)
            criterion.combine(losses)
            before = criterion._window.scale_exponents.tolist() if before is None else before
            losses["a"].register_hook(seen.append)
        assert criterion._window.scale_exponents.tolist() == before
        criterion.combine(losses)
        assert seen[0] == 1
    model = model_of()
    criterion = compose(quick("gaba"), tasks=TASKS)
    seen = []
    for _ in range(3):
        losses = losses_of(model, sizes, "autocast")
        for loss in losses.values():
            loss.register_hook(lambda gradient: seen.append(float(gradient)))
        criterion.combine(losses)
    assert len(set(seen)) > 1
    assert all(float(torch.tensor(value).log2()).is_integer() for value in seen)


@pytest.mark.parametrize("probe", PROBES)
@pytest.mark.parametrize("dtype", [f16, bf16])
def test_a_criterion_within_autocast_measures_as_one_outside(probe: str, dtype: torch.dtype) -> None:
    """Autocast around the call does not round the gradients of layers that ran in float32, also where they are reused."""
    found = []
    for within in (False, True):
        model = model_of()
        criterion = compose(quick("gaba"), tasks=TASKS, **PROBES[probe])
        for number in range(4):
            losses = losses_of(model, TINY, seed=number)
            with torch.autocast("cpu", dtype=dtype, enabled=within):
                total = criterion.combine(losses)
            model.zero_grad()
            total.backward()
        found.append([criterion.report.norms, criterion.report.weights, *(p.grad for p in model.parameters())])
    assert equal(*found)


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("probe", ["exact", "rotate", "representation"])
def test_a_float16_run_resumes_bit_for_bit(probe: str, accumulate: int) -> None:
    """The scales, and the votes of a pending window, are in the state."""
    model = model_of()
    sizes = sizes_for(model, APART)
    build = lambda: compose(quick("gaba"), tasks=TASKS, accumulate=accumulate, **PROBES[probe])  # noqa: E731
    criterion = build()
    for number in range(9):
        criterion.combine(losses_of(model, sizes, "autocast", seed=number))
        if number in (0, 1, 2, 5):
            file = io.BytesIO()
            torch.save(criterion.state_dict(), file)
            file.seek(0)
            twin = build()
            twin.load_state_dict(torch.load(file, weights_only=True))
            original = copy.deepcopy(criterion)
            for later in range(number + 1, number + 5):
                totals = [each.combine(losses_of(model, sizes, "autocast", seed=later)) for each in (original, twin)]
                assert torch.equal(*totals)
            assert same(snapshot(original), snapshot(twin))


@pytest.mark.parametrize("probe", SAME_STEP)
def test_float16_does_not_wait_for_the_device(probe: str) -> None:
    """Choosing and moving the scales reads no value."""
    model = model_of()
    criterion = compose(quick("gaba"), tasks=TASKS, **PROBES[probe])
    criterion.combine(losses_of(model, (1.0, 2.0, 3.0), "autocast")).backward()
    model.zero_grad()
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        for part in (*model.modules(), *criterion.modules()):
            for name, buffer in list(part._buffers.items()):
                part._buffers[name] = mode.from_tensor(buffer)
            for name, parameter in list(part._parameters.items()):
                part._parameters[name] = nn.Parameter(mode.from_tensor(parameter.detach()))
        for seed in range(4):
            criterion.combine(losses_of(model, (1.0, 2.0, 3.0), "autocast", seed=seed)).backward()


@pytest.mark.parametrize("how", ["autocast", "half"])
def test_lagged_measures_behind_a_grad_scaler(how: str) -> None:
    """Norms recorded in the user's scaled backward are those of float64; what overflows there is inactive in its window."""
    model = cast(how, model_of())
    wanted = (1e-4, 1e-2, 1.0)
    sizes = sizes_for(model, wanted, "lagged")
    criterion = compose(quick("gaba"), tasks=TASKS, probe="lagged")
    for scale in (2.0**12, 2.0**12, 2.0**40, 2.0**12, 2.0**12):
        (criterion.combine(losses_of(model, sizes, how)) * scale).backward()
        before = criterion.report
    criterion.combine(losses_of(model, sizes, how))
    limit = 5e-4 if how == "autocast" else 5e-3
    assert float(error(criterion.report.norms, wanted).max()) < limit
    assert before.dropped.tolist() == [1, 1, 1]
    assert before.active.all() and criterion.outer.ema.isfinite().all()


def optimizer_of(model: nn.Module, criterion: MultiTaskCriterion) -> torch.optim.Optimizer:
    return torch.optim.AdamW([{"params": list(model.parameters())}, *criterion.param_groups()], lr=1e-3)


BAD = {6, 13}
CALLS = 24


def overflowing(number: int) -> tuple[float, ...]:
    """Sizes of the losses of a call: in some, the gradient of task "a" overflows float16, though its loss is finite."""
    return (2.0**100 if number in BAD else 0.1, 1.0, 3.0)


def first_measured(criterion: MultiTaskCriterion) -> int:
    """The window in which gradients are measured first, behind a warm-up."""
    return next(step for step in range(CALLS) if criterion.outer.measures(step))


# Weights that do not fall to nothing in the call of an overflow.
STEADY = ("Fixed", "Uncertainty", "DWA", "GABA", "GradNorm")


def assert_went_on(model: nn.Module, criterion: MultiTaskCriterion, scaler: GradScaler, reports: list[Any]) -> None:
    """The overflow has left no trace in parameters and weights, and the last norms are right."""
    assert all(parameter.isfinite().all() for parameter in model.parameters())
    assert all(bool(report.weights.isfinite().all()) for report in reports)
    assert criterion._window.step > 0 and all(tensor.isfinite().all() for tensor in criterion.buffers())
    assert all(parameter.isfinite().all() and parameter.dtype is f32 for parameter in criterion.parameters())
    assert reports[-1].active.all()
    # A weighting that divides by the very loss leaves nothing that could overflow.
    overflows = sum(float(reports[number].weights[0]) * 2.0**100 > 2.0**20 for number in BAD)
    assert scaler.get_scale() == 2.0**8 / 2.0**overflows, "the steps that overflow should have been skipped"
    # Nor does one that leaves the task out in the very call in which its loss or its gradient overflows.
    same_call = criterion._window.accumulate == 1 and (criterion.probe.same_step or criterion.outer.needs == "losses")
    assert overflows == len(BAD) or (same_call and type(criterion.outer).__name__ not in STEADY)


@pytest.mark.parametrize(
    ("outer", "probe", "accumulate"), covering(measurable(["exact", "representation", "lagged"], [1, 2]), strength=2)
)
def test_an_overflow_drops_a_window_and_not_the_run(outer: str, probe: str, accumulate: int) -> None:
    """A handwritten loop with autocast and a GradScaler, and criterion.step() told what the scaler did."""
    model = model_of()
    criterion = compose(quick(outer), tasks=TASKS, accumulate=accumulate, probe=probe)
    optimizer, scaler = optimizer_of(model, criterion), GradScaler("cpu", init_scale=2.0**8)
    reports = []
    for number in range(CALLS):
        loss = criterion.combine(losses_of(model, overflowing(number), "autocast", seed=number))
        reports.append(criterion.report)
        scaler.scale(loss / accumulate).backward()
        if (number + 1) % accumulate == 0:
            before = scaler.get_scale()
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
            criterion.step(skipped=scaler.get_scale() < before)
            if criterion.outer.wants_after_step:
                with torch.no_grad(), criterion.after_step():
                    for again in range(number + 1 - accumulate, number + 1):
                        criterion.combine(losses_of(model, overflowing(again), "autocast", seed=again))
    assert_went_on(model, criterion, scaler, reports)
    first = first_measured(criterion)
    if probe == "exact" and criterion.outer.needs == "norms" and accumulate == 1:
        assert [number for number in range(2 + first, CALLS) if not reports[number].active.all()] == sorted(BAD)
        assert not any(reports[number].active[0] for number in BAD)
        assert (reports[-1].dropped - reports[1 + first].dropped).tolist() == [len(BAD), 0, 0]


@pytest.mark.parametrize(("outer", "probe", "accumulate"), covering(measurable(["exact", "lagged"], [1, 2]), strength=2))
def test_an_overflow_in_the_plain_loop(outer: str, probe: str, accumulate: int) -> None:
    """The same in mtl_axes.adapters.loop."""
    model = model_of()
    criterion = compose(quick(outer), tasks=TASKS, accumulate=accumulate, probe=probe)
    scaler = GradScaler("cpu", init_scale=2.0**8)
    reports = []

    def loss(batch: tuple[int, None]) -> Tensor:
        total = criterion.combine(losses_of(model, overflowing(batch[0]), "autocast", seed=batch[0]))
        if not criterion.replaying:
            reports.append(criterion.report)
        return total

    build = lambda groups: torch.optim.AdamW(groups, lr=1e-3)  # noqa: E731
    loop = Loop(model, criterion, build, scaler=scaler, compute_loss=loss, progress=False, log_every=100)
    loop.run([(number, None) for number in range(CALLS)])
    assert_went_on(model, criterion, scaler, reports)
    assert criterion._window.step == CALLS // accumulate - (
        0 if accumulate == 1 and (probe == "exact" or criterion.outer.needs == "losses") else len(BAD)
    )


HALF = ("autocast", "half", "autocast bfloat16", "bfloat16")


@pytest.mark.parametrize(("outer", "probe", "how"), tiered(covering(measurable(PROBES, HALF), strength=2)))
def test_every_weighting_trains_in_half_precision(outer: str, probe: str, how: str) -> None:
    """Norms are within 1 % of those in float64, weights follow, and the state is float32 to the last buffer."""
    model = cast(how, model_of())
    sizes = (1.0, 0.1, 3.0)
    criterion = compose(quick(outer), tasks=TASKS, **PROBES[probe])
    optimizer = torch.optim.SGD([{"params": list(model.parameters())}, *criterion.param_groups()], lr=1e-3)
    expected: dict[int, Tensor] = {}
    turns = 3 if probe == "rotate" else 1
    for number in range(7):
        expected[number] = true_norms(model, sizes, probe, seed=number)
        optimizer.zero_grad()
        (criterion.combine(losses_of(model, sizes, how, seed=number)) * 1024).backward()
        report = criterion.report
        if report.norms is not None:
            here = number - 1 if probe == "lagged" else number
            usable = report.measured & report.norms.isfinite()
            assert usable[report.measured].all() or number < turns + first_measured(criterion), (
                "only the first measurement may overflow"
            )
            assert bool((error(report.norms, expected[here])[usable] < 0.01).all())
        for parameter in (*model.parameters(), *criterion.parameters()):
            parameter.grad /= 1024
        optimizer.step()
    assert criterion.report.active.all() and criterion.report.weights.isfinite().all()
    assert {tensor.dtype for tensor in (*criterion.buffers(), *criterion.parameters()) if tensor.is_floating_point()} == {
        f32
    }
    assert (criterion.outer.needs == "losses") == (criterion.report.norms is None)


@pytest.mark.parametrize(("outer", "how", "calls"), covering(crossed(["half", "bfloat16"], [3, 0]), strength=2))
def test_a_criterion_in_a_module_that_is_cast_trains_as_one_outside(outer: str, how: str, calls: int) -> None:
    """A cast before the first call or after some leaves state and learnable parameters in float32, their gradients too."""
    models = [model_of(), model_of()]
    criteria = [compose(quick(outer), tasks=TASKS) for _ in models]
    whole = nn.ModuleDict({"model": models[0], "criterion": criteria[0]})

    def train(numbers: range) -> None:
        for model, criterion in zip(models, criteria, strict=True):
            for number in numbers:
                optimizer_of(model, criterion).zero_grad()
                criterion.combine(losses_of(model, (1.0, 2.0, 3.0), how, seed=number)).backward()
                torch.optim.SGD([*model.parameters(), *criterion.parameters()], lr=1e-2).step()

    train(range(calls))
    cast(how, whole)
    cast(how, models[1])
    train(range(calls, calls + 4))
    assert next(models[0].parameters()).dtype is not f32
    assert same(snapshot(criteria[0]), snapshot(criteria[1]))
    assert equal(models[0].state_dict(), models[1].state_dict())
    assert all(parameter.dtype is f32 and parameter.grad.dtype is f32 for parameter in criteria[0].parameters())
