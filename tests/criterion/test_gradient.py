"""What reaches the parameters, and what a weighting is shown: against torch.autograd.grad and explicit products."""

from __future__ import annotations

import copy
from typing import Any, ClassVar

import pytest
import torch
import torch._functorch.config as functorch_config
from strategies import batch_for, crossed, model_for, quick
from torch import Tensor, nn

from mtl_axes import OuterWeighting, Signals, compose
from mtl_axes.errors import GraphError
from mtl_axes.outer import Rescaled

f64 = torch.float64
EXTREME = (1e-3, 0.0, 7.0, 40.0, 0.5)


class Recorder(OuterWeighting):
    """A third-party weighting that defines what it needs and a forward, and keeps what it was shown."""

    needs: ClassVar[str] = "norms"

    def __init__(self) -> None:
        super().__init__()
        self.shown: list[Signals] = []

    def forward(self, signals: Signals, /) -> Tensor:
        self.shown.append(signals)
        return torch.arange(1.0, signals.size + 1, dtype=signals.losses.dtype)


class GramianRecorder(Recorder):
    needs: ClassVar[str] = "gramian"


class LossRecorder(Recorder):
    needs: ClassVar[str] = "losses"


def names(count: int) -> tuple[str, ...]:
    return tuple("abcde"[:count])


def setting(count: int, *, spread: float = 1.0) -> tuple[Any, Tensor, dict[str, Tensor]]:
    """A model in float64, inputs and targets whose sizes differ by ``spread`` from task to task."""
    kinds = dict.fromkeys(names(count), "regression")
    model, (inputs, targets) = model_for(kinds, dtype=f64), batch_for(kinds, dtype=f64)
    return model, inputs, {name: target * spread**index for index, (name, target) in enumerate(targets.items())}


def losses_of(model: Any, inputs: Tensor, targets: dict[str, Tensor]) -> list[Tensor]:
    outputs = model(inputs)
    return [(outputs[name] - target).square().mean() for name, target in targets.items()]


def gradients(model: nn.Module, losses: list[Tensor]) -> list[list[Tensor]]:
    """Gradient of every loss at every parameter, zero where it does not reach."""
    rows = []
    for loss in losses:
        row = torch.autograd.grad(loss, list(model.parameters()), retain_graph=True, allow_unused=True)
        rows.append([torch.zeros_like(p) if g is None else g for p, g in zip(model.parameters(), row, strict=True)])
    return rows


def flat(model: Any, losses: list[Tensor], parameters: list[Tensor]) -> Tensor:
    """The task gradients at some parameters as the rows of a matrix."""
    rows = []
    for loss in losses:
        row = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
        parts = [torch.zeros_like(p) if g is None else g.to_dense() for p, g in zip(parameters, row, strict=True)]
        rows.append(torch.cat([part.reshape(-1) for part in parts]))
    return torch.stack(rows)


def drive(criterion: Any, model: Any, inputs: Tensor, targets: dict[str, Tensor], calls: int = 1) -> None:
    for _ in range(calls):
        criterion(model(inputs), targets)


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5])
def test_gradient_is_the_weighted_sum_for_weights_far_from_even(count: int) -> None:
    """With weights from 0 to 40 every shared and private parameter gets sum lambda_i grad_i, norms 500 times apart."""
    model, inputs, targets = setting(count, spread=2e3)
    weights = EXTREME[:count]
    rows = gradients(model, losses_of(model, inputs, targets))
    sizes = [float(torch.stack([g.norm() for g in row[:2]]).norm()) for row in rows]
    assert count < 2 or max(sizes) / min(sizes) > 500
    criterion = compose({"name": "fixed", "weights": list(weights)}, tasks=names(count))
    criterion(model(inputs), targets).backward()
    for index, (name, parameter) in enumerate(model.named_parameters()):
        expected = sum(weight * row[index] for weight, row in zip(weights, rows, strict=True))
        torch.testing.assert_close(
            parameter.grad, expected, rtol=1e-12, atol=1e-14, msg=lambda text, name=name: f"{name}: {text}"
        )
    if count > 1:
        assert not model.heads["b"].weight.grad.any(), "a weight of 0 silences the task's head too"


@pytest.mark.parametrize(
    ("outer", "total_weight", "count"),
    [case for case in crossed([None, "1", "K"], [2, 1, 4]) if case[1] is None or not quick(case[0]).learnable],
)
def test_gradient_is_the_weighted_sum_for_every_weighting(outer: str, count: int, total_weight: Any) -> None:
    """Gradient and value of (total - penalty) are those of the reported weights, which are constants to autograd."""
    weighting = quick(outer) if total_weight is None else Rescaled(quick(outer), total=total_weight)
    model, inputs, targets = setting(count, spread=25.0)
    criterion = compose(weighting, tasks=names(count))
    drive(criterion, model, inputs, targets, 5)
    total = criterion(model(inputs), targets)
    penalty = weighting.penalty()
    without = total if penalty is None else total - penalty.sum()
    without.backward()
    losses = losses_of(model, inputs, targets)
    weights = criterion.report.weights
    assert not weights.requires_grad
    torch.testing.assert_close(without.detach(), (weights * torch.stack(losses).detach()).sum(), rtol=1e-12, atol=1e-12)
    rows = gradients(model, losses)
    for index, parameter in enumerate(model.parameters()):
        expected = sum(weight * row[index] for weight, row in zip(weights, rows, strict=True))
        torch.testing.assert_close(parameter.grad, expected, rtol=1e-11, atol=1e-12)
    if total_weight is not None:
        assert float(weights.sum()) == pytest.approx({"1": 1, "K": count}[total_weight], rel=1e-12)


def test_measuring_writes_no_gradient() -> None:
    """Calling the criterion leaves every .grad as it was: None, or the value of an earlier backward."""
    model, inputs, targets = setting(2)
    criterion = compose("gaba")
    drive(criterion, model, inputs, targets)
    criterion_with_norms = compose(GramianRecorder())
    drive(criterion_with_norms, model, inputs, targets)
    assert all(parameter.grad is None for parameter in model.parameters())
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, 3.0)
    drive(criterion_with_norms, model, inputs, targets)
    assert all(bool((parameter.grad == 3.0).all()) for parameter in model.parameters())


def test_a_third_party_weighting_gets_its_weights_into_the_total() -> None:
    """What forward returns multiplies the losses of the same step."""
    model, inputs, targets = setting(3)
    total = compose(Recorder())(model(inputs), targets)
    expected = sum((index + 1) * loss for index, loss in enumerate(losses_of(model, inputs, targets)))
    torch.testing.assert_close(total, expected, rtol=1e-13, atol=0)


@pytest.mark.parametrize("given", ["found", "module", "list", "one parameter"])
@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_norms_are_those_of_autograd(given: str, count: int) -> None:
    """The norms shown are those of dL_i at exactly the shared parameters, found or given."""
    model, inputs, targets = setting(count, spread=25.0)
    trunk = list(model.trunk.parameters())
    shared = {"found": None, "module": model.trunk, "list": trunk, "one parameter": model.trunk.weight}[given]
    here = {"found": trunk if count > 1 else list(model.parameters()), "one parameter": [model.trunk.weight]}.get(
        given, trunk
    )
    recorder = Recorder()
    drive(compose(recorder, shared=shared), model, inputs, targets)
    losses = losses_of(model, inputs, targets)
    signals = recorder.shown[0]
    torch.testing.assert_close(signals.norms, flat(model, losses, here).norm(dim=1), rtol=1e-13, atol=0)
    torch.testing.assert_close(signals.losses, torch.stack(losses).detach(), rtol=1e-14, atol=0)
    assert signals.gramian is None
    assert signals.active.tolist() == [True] * count
    assert signals.elapsed.tolist() == [1.0] * count
    assert int(signals.step) == 0
    assert not any(value.requires_grad for value in (signals.norms, signals.losses))


@pytest.mark.parametrize("count", [1, 2, 4])
def test_gramian_is_the_explicit_product(count: int) -> None:
    """The Gramian shown is J J^T of the shared gradients, and the norms are its diagonal's roots."""
    model, inputs, targets = setting(count, spread=5.0)
    recorder = GramianRecorder()
    criterion = compose(recorder, shared=model.trunk)
    drive(criterion, model, inputs, targets)
    jacobian = flat(model, losses_of(model, inputs, targets), list(model.trunk.parameters()))
    torch.testing.assert_close(recorder.shown[0].gramian, jacobian @ jacobian.T, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(recorder.shown[0].norms, jacobian.norm(dim=1), rtol=1e-13, atol=0)
    unit = jacobian / jacobian.norm(dim=1, keepdim=True)
    torch.testing.assert_close(criterion.report.cosines, unit @ unit.T, rtol=1e-12, atol=1e-12)


def test_a_weighting_of_losses_costs_no_measurement(monkeypatch: pytest.MonkeyPatch) -> None:
    """A weighting that needs losses is shown neither norms nor a Gramian, and no gradient is taken for it."""
    model, inputs, targets = setting(2)
    recorder = LossRecorder()
    monkeypatch.setattr(torch.autograd, "grad", lambda *args, **kwargs: pytest.fail("a gradient was measured"))
    drive(compose(recorder), model, inputs, targets)
    assert recorder.shown[0].norms is None and recorder.shown[0].gramian is None


@pytest.mark.parametrize("every", [1, 3, 4])
def test_step_and_elapsed_count_windows(every: int) -> None:
    """step is the number of windows before, elapsed the windows since the last measurement: n with every=n, 1 at first."""
    model, inputs, targets = setting(2)
    recorder = Recorder()
    drive(compose(recorder, every=every), model, inputs, targets, 3 * every + 1)
    assert [int(signals.step) for signals in recorder.shown] == [0, every, 2 * every, 3 * every]
    assert [signals.elapsed.tolist() for signals in recorder.shown] == [[1.0] * 2] + [[float(every)] * 2] * 3


@pytest.mark.parametrize("how", ["no target", "masked"])
def test_a_returning_task_has_waited(how: str) -> None:
    """A task that was absent for two windows, without a target or all masked, comes back with three windows elapsed."""
    model, inputs, targets = setting(3)
    recorder = Recorder()
    criterion = compose(recorder, shared=model.trunk)
    for step in range(5):
        here, mask = dict(targets), None
        if step in (2, 3):
            if how == "masked":
                mask = {"b": torch.zeros(8, dtype=torch.bool)}
            else:
                here["b"] = None
        criterion(model(inputs), here, mask=mask)
    assert [signals.active.tolist() for signals in recorder.shown] == [[True, step not in (2, 3), True] for step in range(5)]
    assert recorder.shown[4].elapsed.tolist() == [1.0, 3.0, 1.0]


def test_absent_masked_and_non_finite_tasks_are_inactive() -> None:
    """A task without target, valid label, finite loss or gradient is shown as inactive and finite."""
    model, inputs, targets = setting(5)
    recorder = GramianRecorder()
    criterion = compose(recorder, shared=model.trunk)
    drive(criterion, model, inputs, targets)
    outputs = model(inputs)
    outputs["c"] = outputs["c"] * torch.nan
    outputs["d"] = outputs["d"] * 0.0
    mask = {"b": torch.zeros(8, dtype=torch.bool)}
    criterion(outputs, {**targets, "a": None}, mask=mask)
    signals = recorder.shown[1]
    assert signals.active.tolist() == [False, False, False, False, True]
    for values in (signals.losses, signals.norms, signals.gramian):
        assert bool(torch.isfinite(values).all())
    assert signals.norms[:4].tolist() == [1.0] * 4
    assert torch.equal(signals.gramian[:4, :4], torch.eye(4, dtype=f64))
    assert not signals.gramian[4, :4].any()


class Odd(nn.Module):
    """Three tasks around a trunk: a skip connection, tied weights, a sparse embedding, and a task that shares nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(6, 4, sparse=True)
        self.trunk = nn.Linear(4, 4)
        self.head_a = nn.Linear(4, 1)
        self.alone = nn.Linear(4, 1)

    def forward(self, tokens: Tensor, inputs: Tensor) -> dict[str, Tensor]:
        e = self.embed(tokens) + inputs
        z = torch.tanh(self.trunk(e)) + e
        tied = torch.tanh(z @ self.trunk.weight)
        return {"a": self.head_a(z).squeeze(-1), "b": tied.sum(-1), "c": self.alone(inputs).squeeze(-1)}


def odd() -> tuple[Odd, tuple[Tensor, Tensor], dict[str, Tensor]]:
    torch.manual_seed(3)
    model = Odd().double()
    return (
        model,
        (torch.tensor([0, 1, 1, 5, 0]), torch.randn(5, 4, dtype=f64)),
        {name: torch.randn(5, dtype=f64) for name in "abc"},
    )


@pytest.mark.parametrize("recorder", [Recorder(), GramianRecorder()], ids=["norms", "gramian"])
def test_skips_ties_sparse_gradients_and_strangers(recorder: Recorder) -> None:
    """Embedding and trunk are found as shared, repeated tokens count once, and the task that shares nothing is inactive."""
    recorder = copy.deepcopy(recorder)
    model, inputs, targets = odd()
    criterion = compose(recorder)
    outputs = model(*inputs)
    total = criterion(outputs, targets)
    losses = [(outputs[name] - target).square().mean() for name, target in targets.items()]
    shared = [model.embed.weight, model.trunk.weight, model.trunk.bias]
    jacobian = flat(model, losses, shared)
    signals = recorder.shown[0]
    assert signals.active.tolist() == [True, True, False]
    torch.testing.assert_close(signals.norms[:2], jacobian[:2].norm(dim=1), rtol=1e-12, atol=0)
    if signals.gramian is not None:
        torch.testing.assert_close(signals.gramian[:2, :2], (jacobian @ jacobian.T)[:2, :2], rtol=1e-12, atol=1e-13)
    summed = losses[0] + 2.0 * losses[1] + 3.0 * losses[2]
    everything = list(model.parameters())
    expected = flat(model, [summed], everything)[0]
    total.backward()
    assert model.embed.weight.grad.is_sparse
    reached = torch.cat([parameter.grad.to_dense().reshape(-1) for parameter in everything])
    torch.testing.assert_close(reached, expected, rtol=1e-12, atol=1e-13)


def test_a_frozen_trunk_leaves_what_is_trainable() -> None:
    """Frozen parameters are not measured; a trunk frozen as a whole is an error that says so."""
    model, inputs, targets = setting(2)
    model.trunk.weight.requires_grad_(False)
    recorder = Recorder()
    drive(compose(recorder), model, inputs, targets)
    expected = flat(model, losses_of(model, inputs, targets), [model.trunk.bias]).norm(dim=1)
    torch.testing.assert_close(recorder.shown[0].norms, expected, rtol=1e-13, atol=0)
    model.trunk.bias.requires_grad_(False)
    with pytest.raises(GraphError, match="share a trunk, and is it trainable"):
        drive(compose(Recorder()), model, inputs, targets)


def test_an_input_that_requires_a_gradient_is_not_shared() -> None:
    """Inputs of residual losses or attacks carry gradients too, but are no parameters of the model."""
    model, inputs, targets = setting(2)
    inputs = inputs.requires_grad_()
    recorder = Recorder()
    total = compose(recorder)(model(inputs), targets)
    expected = flat(model, losses_of(model, inputs, targets), list(model.trunk.parameters())).norm(dim=1)
    torch.testing.assert_close(recorder.shown[0].norms, expected, rtol=1e-13, atol=0)
    total.backward()
    assert inputs.grad is not None


def test_losses_computed_elsewhere_are_measured_too() -> None:
    """combine() and extra= show a weighting the same losses and norms as the call with targets does."""
    model, inputs, targets = setting(3)
    recorders = [Recorder(), Recorder(), Recorder()]
    called, combined, mixed = (compose(recorder, tasks=names(3)) for recorder in recorders)
    totals = [
        called(model(inputs), targets),
        combined.combine(dict(zip(names(3), losses_of(model, inputs, targets), strict=True))),
        mixed(model(inputs), {"a": targets["a"], "c": targets["c"]}, extra={"b": losses_of(model, inputs, targets)[1]}),
    ]
    reference = recorders[0].shown[0]
    for total, recorder in zip(totals, recorders, strict=True):
        torch.testing.assert_close(total, totals[0], rtol=1e-13, atol=0)
        torch.testing.assert_close(recorder.shown[0].losses, reference.losses, rtol=1e-13, atol=0)
    torch.testing.assert_close(recorders[1].shown[0].norms, reference.norms, rtol=1e-13, atol=0)


def test_statistics_of_half_precision_models_are_wide() -> None:
    """Losses and norms of a bfloat16 model are shown in float32."""
    model, inputs, targets = setting(2)
    recorder = Recorder()
    drive(compose(recorder), model.bfloat16(), inputs.bfloat16(), targets)
    assert recorder.shown[0].losses.dtype == recorder.shown[0].norms.dtype == torch.float32


def test_norms_of_half_precision_gradients_are_summed_in_float32() -> None:
    """The norm of bfloat16 gradients has more digits than bfloat16 holds."""
    weight = nn.Parameter(torch.ones(943, dtype=torch.bfloat16))
    norms = []

    class Seen(OuterWeighting):
        needs = "norms"

        def forward(self, signals: Signals, /) -> Tensor:
            norms.append(signals.norms)
            return torch.ones_like(signals.losses)

    compose(Seen()).combine({"a": weight.sum(), "b": 2 * weight.sum()})
    expected = torch.tensor([943.0, 4 * 943.0]).sqrt()
    assert norms[0].dtype is torch.float32
    torch.testing.assert_close(norms[0], expected, rtol=1e-6, atol=0)


def test_a_call_that_misses_the_given_shared_part_does_not_discard_it() -> None:
    """A lone task that has nothing to do with shared= is inactive there, and the next call measures at shared= again."""
    trunk, private = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(2))
    criterion = compose({"name": "gaba", "warmup": 0}, tasks=["a", "b", "kl"], shared=[trunk])

    def losses() -> dict[str, Tensor]:
        return {"a": trunk.sum(), "b": 2 * trunk.sum()}

    criterion.combine(losses())
    before = criterion.report
    criterion.combine({"kl": private.sum()})
    assert criterion.report is not None
    assert before is not None
    assert not criterion.report.active.any()
    criterion.combine(losses())
    assert criterion.report.norms is not None
    assert before.norms is not None
    assert torch.equal(criterion.report.norms, before.norms)


def test_frozen_shared_parameters_hold_the_weights_and_say_so() -> None:
    """A trunk given as shared= may be frozen for a while: a warning once, no movement, and measurements when it thaws."""
    trunk, head = nn.Linear(2, 2), nn.Linear(2, 2)
    trunk.requires_grad_(False)
    criterion = compose({"name": "gaba", "warmup": 0, "beta": 0.0}, shared=trunk)

    def call() -> None:
        out = head(trunk(torch.ones(1, 2)))
        criterion.combine({"a": out.sum(), "b": 9 * out.sum()})

    with pytest.warns(UserWarning, match="All parameters given as shared= are frozen"):
        call()
    assert criterion.report is not None
    assert criterion.report.weights.tolist() == [0.5, 0.5]
    trunk.requires_grad_(True)
    call()
    torch.testing.assert_close(criterion.report.weights, torch.tensor([0.9, 0.1]))


@pytest.mark.skipif(not hasattr(functorch_config, "donated_buffer"), reason="this torch does not donate buffers")
def test_a_compiled_model_is_refused_in_the_first_call_or_measured() -> None:
    """Compiled backwards must survive being run twice: said in the first call of a warm-up, and right when they do."""

    def step(warmup: int) -> tuple[list[Tensor], list[Tensor], list[float]]:
        torch._dynamo.reset()
        kinds = {"rul": "regression", "health": "multiclass"}
        model = model_for(kinds)
        inputs, targets = batch_for(kinds)
        compiled = torch.compile(model, backend="aot_eager")
        criterion = compose({"name": "gaba", "warmup": warmup}, "mse", shared=model.trunk)
        plain = compose("fixed", "mse")
        plain(model(inputs), targets).backward()
        expected = [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]
        model.zero_grad()
        criterion(compiled(inputs), targets).backward()
        return expected, [p.grad for p in model.parameters() if p.grad is not None], criterion.report.weights.tolist()

    with functorch_config.patch(donated_buffer=True), pytest.raises(GraphError, match="donated_buffer = True"):
        step(warmup=100)
    with functorch_config.patch(donated_buffer=False):
        expected, found, weights = step(warmup=3)
    assert weights == [0.5, 0.5]
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("probe", ["exact", {"name": "exact", "reuse": False}, "representation", "lagged"])
def test_retained_gradients_of_outputs_are_those_of_the_weighted_sum(probe: Any) -> None:
    """Measuring leaves no trace in the .grad of an output that retains it: after backward it is lambda dL / d(output)."""
    model, inputs, targets = setting(2, spread=5.0)
    criterion = compose(Recorder(), tasks=names(2), probe=probe)
    for _ in range(3):
        outputs = model(inputs)
        for output in outputs.values():
            output.retain_grad()
        criterion(outputs, targets).backward()
        for weight, (name, target) in zip(criterion.report.weights, targets.items(), strict=True):
            expected = weight * 2 * (outputs[name].detach() - target) / target.numel()
            torch.testing.assert_close(outputs[name].grad, expected, rtol=1e-12, atol=1e-14)
        model.zero_grad()
