"""Advice leaves no trace: parameters, gradients, buffers, modes, random numbers and the criterion stay what they were."""

from __future__ import annotations

import copy
import pickle
import random
from collections.abc import Callable

import numpy as np
import pytest
import torch
from advised import Engine, engine_batches
from torch import Tensor, nn
from torch.utils.data import DataLoader

from mtl_axes import MultiTaskCriterion, compose
from mtl_axes.advise import advise
from mtl_axes.errors import DataError

Batch = tuple[Tensor, dict[str, Tensor]]
MODES = ("model", "step")
SOME = ("uncertainty", "gaba", "pcgrad")


def train(model: Engine, criterion: MultiTaskCriterion, sensors: Tensor, targets: dict[str, Tensor]) -> None:
    """A step of gradient descent, which leaves its gradients behind."""
    model.zero_grad()
    criterion(model(sensors), targets).backward()
    with torch.no_grad():
        for parameter in model.parameters():
            assert parameter.grad is not None
            parameter -= 1e-4 * parameter.grad


def used() -> tuple[Engine, MultiTaskCriterion]:
    """A model and a criterion in the middle of a training: with gradients, statistics and state."""
    model, criterion = Engine(), compose({"name": "gaba", "warmup": 1}, "failure_biased", tasks=["rul", "health"])
    for sensors, targets in engine_batches(3):
        train(model, criterion, sensors, targets)
    model.rul.bias.grad = None  # one without a gradient is to stay without
    # Within a block of NumPy's numbers, where a draw moves the position alone; of two normal ones the second is waiting.
    np.random.seed(0)
    np.random.normal()
    return model, criterion


def everything(model: Engine, criterion: MultiTaskCriterion) -> bytes:
    """All that advice could have changed, as bytes."""
    tensors = [*model.state_dict().values(), *(parameter.grad for parameter in model.parameters())]
    modes = [module.training for module in [*model.modules(), *criterion.modules()]]
    state = {key: value for key, value in criterion.state_dict().items() if isinstance(value, Tensor)}
    _, keys, *position = np.random.get_state()
    random_state = (torch.get_rng_state(), random.getstate(), keys.tolist(), position)  # type: ignore[union-attr]
    report = criterion.report
    assert report is not None
    plain = [
        *(None if tensor is None else tensor.tolist() for tensor in tensors),
        modes,
        {key: value.tolist() for key, value in state.items()},
        criterion.state_dict()["_extra_state"],
        (report.step, report.weights.tolist()),
        random_state[0].tolist(),
        random_state[1:],
    ]
    return pickle.dumps(plain)


def test_the_order_of_the_next_epoch_does_not_change() -> None:
    """A DataLoader shuffles by a generator of its own, which advice reads batches with and puts back."""
    generator = torch.Generator().manual_seed(5)
    data = torch.randn(24, 3)
    loader = DataLoader(data, batch_size=8, shuffle=True, generator=generator)
    before, weight = generator.get_state(), nn.Parameter(torch.ones(3))
    advice = advise(
        compose(tasks=["a", "b"]), lambda rows: {"a": (rows @ weight).square().mean(), "b": weight.sum()}, loader,
        candidates=[], seconds=30,
    )  # fmt: skip
    assert advice.batches == 3
    assert torch.equal(generator.get_state(), before)


def noisy(model: Engine) -> Callable[[Batch], tuple[dict[str, Tensor], dict[str, Tensor]]]:
    """A step that draws from every source of random numbers."""

    def step(batch: Batch) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        noise = random.random() + np.random.random()
        return model(batch[0] + 1e-3 * noise * torch.randn_like(batch[0])), batch[1]

    return step


@pytest.mark.parametrize("mode", MODES)
def test_nothing_of_the_users_changes(mode: str) -> None:
    """With a model and with a step everything is as before, bit for bit, and tensors are the same objects."""
    model, criterion = used()
    gradients = [parameter.grad for parameter in model.parameters()]
    before = everything(model, criterion)
    advice = advise(criterion, model if mode == "model" else noisy(model), engine_batches(), candidates=SOME, seconds=30)
    assert everything(model, criterion) == before
    for parameter, gradient in zip(model.parameters(), gradients, strict=True):
        assert parameter.grad is gradient
    assert advice.norms
    assert advice.plain is not None  # there were backwards
    if mode == "model":
        assert model.calls == 3  # a copy ran


@pytest.mark.parametrize("mode", MODES)
def test_nothing_changes_where_a_batch_is_bad(mode: str) -> None:
    """An error in the third batch also leaves everything as it was."""
    model, criterion = used()
    batches = engine_batches()
    batches[2][1].pop("health")
    batches[2][1]["helth"] = torch.zeros(16, dtype=torch.long)
    before = everything(model, criterion)
    with pytest.raises(DataError, match=r"Found \['helth'\]"):
        advise(criterion, model if mode == "model" else noisy(model), batches, seconds=30)
    assert everything(model, criterion) == before


def test_training_goes_on_as_if_nothing_had_been_asked() -> None:
    """A run with advice before and in the middle equals the run without, bit for bit."""

    def run(*, asking: bool) -> list[Tensor]:
        torch.manual_seed(3)
        model, criterion = Engine(), compose({"name": "gaba", "warmup": 2}, "failure_biased")
        for number, (sensors, targets) in enumerate(engine_batches(6)):
            if asking and number in (0, 3):
                step = (lambda batch: (model(batch[0]), batch[1])) if number else model
                advise(criterion, step, engine_batches(2), candidates=["gaba"], seconds=30)
            train(model, criterion, sensors, targets)
        return [*model.state_dict().values(), *(v for v in criterion.state_dict().values() if isinstance(v, Tensor))]

    for plain, asked in zip(run(asking=False), run(asking=True), strict=True):
        assert torch.equal(plain, asked)


def test_shared_of_the_criterion_leads_into_the_copy() -> None:
    """A criterion with shared= measures on the copy of these parameters, and keeps its own."""
    model = Engine()
    criterion = compose("gaba", shared=model.trunk[0])
    advice = advise(criterion, model, engine_batches(), candidates=["gaba"], seconds=30)
    assert advice.shared == 6 * 16 + 16
    assert all(norm.mean for norm in advice.norms)
    criterion(model(engine_batches()[0][0]), engine_batches()[0][1])
    assert criterion.explain(model).count("trunk.0.weight") == 1


def test_a_parameter_outside_every_module_keeps_its_gradient() -> None:
    """A functional step whose parameters are in no module leaves their gradients alone."""
    weight = torch.ones(3, requires_grad=True)
    weight.grad = torch.full((3,), 7.0)
    kept = weight.grad

    def step(batch: Tensor) -> dict[str, Tensor]:
        z = batch @ weight
        return {"a": z.square().mean(), "b": (z - 1).abs().mean()}

    advice = advise(compose(tasks=["a", "b"]), step, [torch.randn(8, 3) for _ in range(3)], candidates=["gaba"], seconds=30)
    assert advice.plain is not None
    assert weight.grad is kept
    assert torch.equal(kept, torch.full((3,), 7.0))


def test_an_optimizer_in_the_backward_is_not_run() -> None:
    """Where a hook steps an optimizer in the backward no backward is run, parameters stay, and the advice says so."""
    model = Engine()

    def descend(parameter: Tensor) -> None:
        with torch.no_grad():
            parameter -= 0.1 * parameter.grad  # type: ignore[operator]

    for parameter in model.parameters():
        parameter.register_post_accumulate_grad_hook(descend)
    before = copy.deepcopy(model.state_dict())
    advice = advise(compose(), lambda batch: (model(batch[0]), batch[1]), engine_batches(), candidates=["gaba"], seconds=30)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert advice.plain is None
    assert any("a hook that runs in the backward" in text for text in advice.unknown)


def test_a_buffer_that_a_step_replaces_comes_back() -> None:
    """A module that puts a new tensor in the place of a buffer has its old one back."""

    class Counting(nn.Module):
        count: Tensor

        def __init__(self) -> None:
            super().__init__()
            self.engine = Engine()
            self.register_buffer("count", torch.zeros(()))

        def forward(self, sensors: Tensor) -> dict[str, Tensor]:
            self.count = self.count + 1
            return self.engine(sensors)  # type: ignore[no-any-return]

    model = Counting()
    buffer = model.count
    advise(compose(), lambda batch: (model(batch[0]), batch[1]), engine_batches(), candidates=[], seconds=30)
    assert model.count is buffer
    assert buffer.item() == 0
