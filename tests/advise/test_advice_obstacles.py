"""Where gradients cannot be measured, advice says why and gives what it has."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from advised import Engine, engine_batches
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

from mtl_axes import compose
from mtl_axes.advise import Advice, advise
from mtl_axes.errors import DataError


def test_tasks_without_a_common_parameter() -> None:
    """Two separate networks share nothing: the losses are there, norms are not, and the text says what to do."""

    class Apart(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.other = Engine(), Engine()

        def forward(self, sensors: Tensor) -> dict[str, Tensor]:
            return {"rul": self.one(sensors)["rul"], "health": self.other(sensors)["health"]}

    advice = advise(compose(), Apart(), engine_batches(), candidates=["fixed", "dwa", "gaba"], seconds=30)
    assert advice.recommendation.rule == "not measured"
    assert advice.obstacle is not None
    assert "No parameter on the graph is reached by two" in advice.obstacle
    assert advice.obstacle in advice.recommendation.because
    assert (advice.norms, advice.cosines, advice.ratio, advice.shared) == ((), (), None, None)
    assert all(loss.mean is not None for loss in advice.losses)
    problems = {cost.label: cost.problem for cost in advice.costs}
    assert problems["dwa"] is None
    assert problems["gaba"] == advice.obstacle
    assert "No parameter on the graph is reached by two" in " ".join(str(advice).split())


def test_reentrant_checkpointing() -> None:
    """Behind reentrant checkpointing no exact gradient can be measured: it is named, with what avoids it."""

    class Checkpointed(Engine):
        def forward(self, sensors: Tensor) -> dict[str, Tensor]:
            shared = checkpoint(self.trunk, sensors.requires_grad_(), use_reentrant=True)
            assert isinstance(shared, Tensor)
            return {"rul": self.rul(shared).squeeze(-1), "health": self.health(shared)}

    batches = [(sensors.clone(), targets) for sensors, targets in engine_batches()]
    model = Checkpointed()
    before = [parameter.grad for parameter in model.parameters()]
    advice = advise(compose(), lambda batch: (model(batch[0]), batch[1]), batches, candidates=["dwa", "gaba"], seconds=30)
    assert advice.recommendation.rule == "not measured"
    assert "use_reentrant=False" in advice.recommendation.because
    assert [parameter.grad for parameter in model.parameters()] == before
    assert next(cost for cost in advice.costs if cost.label == "dwa").ratio is not None


def test_checkpointing_that_is_not_reentrant_is_measured() -> None:
    """With use_reentrant=False everything is measured as without checkpointing."""

    class Checkpointed(Engine):
        def forward(self, sensors: Tensor) -> dict[str, Tensor]:
            shared = checkpoint(self.trunk, sensors, use_reentrant=False)
            assert isinstance(shared, Tensor)
            return {"rul": 60 + self.scale * self.rul(shared).squeeze(-1), "health": self.health(shared)}

    def norms(model: nn.Module) -> list[float | None]:
        torch.manual_seed(0)
        return [norm.mean for norm in advise(compose(), model, engine_batches(), candidates=[], seconds=30).norms]

    assert norms(Checkpointed()) == pytest.approx(norms(Engine()))


def test_a_compiled_model_is_measured_as_it_was_before() -> None:
    """A compiled model is run uncompiled, which the advice says, with the norms of the model itself."""

    def asked(model: nn.Module) -> Advice:
        torch.manual_seed(0)
        return advise(compose(), model, engine_batches(), candidates=[], seconds=30)

    model = Engine()
    compiled = asked(torch.compile(model, backend="eager"))  # type: ignore[arg-type]
    assert [norm.mean for norm in compiled.norms] == pytest.approx([norm.mean for norm in asked(model).norms])
    assert any("compiled" in text for text in compiled.unknown)
    assert model.calls == 0


def test_a_model_in_eval_mode_is_told() -> None:
    """The mode is the user's; that dropout and batch statistics are off is told."""
    advice = advise(compose(), Engine().eval(), engine_batches(), candidates=[], seconds=30)
    assert any("model.train()" in text for text in advice.unknown)
    assert not any(
        "model.train()" in text for text in advise(compose(), Engine(), engine_batches(), candidates=[], seconds=30).unknown
    )


def test_a_detached_output() -> None:
    """An output without a graph is named with its task."""

    def step(batch: tuple[Tensor, dict[str, Tensor]]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        outputs = model(batch[0])
        return {**outputs, "health": outputs["health"].detach()}, batch[1]

    model = Engine()
    advice = advise(compose(), step, engine_batches(), candidates=["gaba"], seconds=30)
    assert advice.obstacle is not None
    assert "The loss of task 'health' does not require a gradient" in advice.obstacle


def test_learned_weightings_of_the_user() -> None:
    """A criterion with learned weights is advised on, and its parameters get no gradient."""
    criterion = compose("uncertainty", "failure_biased", tasks=["rul", "health"])
    advice = advise(criterion, Engine(), engine_batches(), candidates=["fixed"], seconds=30)
    assert [one.label for one in advice.candidates] == ["uncertainty", "fixed"]
    assert all(parameter.grad is None for parameter in criterion.parameters())
    weight = advice.candidates[0].weights["rul"]
    assert advice.losses[0].mean is not None
    assert weight == pytest.approx(1 / (2 * advice.losses[0].mean), rel=1e-3)


@pytest.fixture
def group() -> Iterator[None]:
    """A process group of one rank."""
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    try:
        yield
    finally:
        distributed.destroy_process_group()


@pytest.mark.usefixtures("group")
def test_a_model_that_is_wrapped_for_several_ranks() -> None:
    """A wrapped model is run without its wrapper; in a step, where it would wait for other ranks, it is refused."""
    model = Engine()
    wrapped = DistributedDataParallel(model)
    torch.manual_seed(0)
    advice = advise(compose(), wrapped, engine_batches(), candidates=[], seconds=30)
    torch.manual_seed(0)
    plain = advise(compose(), model, engine_batches(), candidates=[], seconds=30)
    assert [norm.mean for norm in advice.norms] == pytest.approx([norm.mean for norm in plain.norms])
    assert any("DDP" in text for text in advice.unknown)
    with pytest.raises(DataError, match="Found DistributedDataParallel, which waits for other ranks"):
        advise(compose(), lambda batch: (wrapped(batch[0]), batch[1]), engine_batches(), seconds=30)
    assert model.trunk[1].num_batches_tracked == 0
