"""FAMO, which wants the losses after each optimizer step, in every trainer: its run is that of a loop written by hand.

The trainers run the batches of a step a second time. That must not show: not in the random numbers, not in the running
statistics of a BatchNorm, not in what is logged.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from mtl_axes.adapters.loop import Loop
from mtl_axes.adapters.replay import Replay, untouched
from strategies import batch_for, equal, model_for, same, snapshot
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler

from mtl_axes import MultiTaskCriterion, compose
from mtl_axes.errors import OptionError

pl = pytest.importorskip("lightning.pytorch")
pytest.importorskip("transformers")
from accelerate import Accelerator  # noqa: E402
from accelerate.state import AcceleratorState, GradientState  # noqa: E402
from hf_models import TASKS, bert, texts, trainer_of  # noqa: E402
from lightning.pytorch.plugins import MixedPrecision  # noqa: E402
from mtl_axes.adapters import accelerate as accelerate_adapter  # noqa: E402
from mtl_axes.adapters.huggingface import MultiTaskMixin, TaskCollator, attach  # noqa: E402
from mtl_axes.adapters.lightning import MultiTaskCallback  # noqa: E402
from torch.utils.data import SequentialSampler  # noqa: E402
from torchmetrics import MeanMetric  # noqa: E402
from transformers import Trainer  # noqa: E402

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*isinstance\\(treespec, LeafSpec\\):FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
]
logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)

KINDS = {"rul": "regression", "health": "multiclass"}
OUTER = {"name": "famo", "lr": 0.1}
COUNT, EPOCHS = 5, 2  # with windows of two, the last one of an epoch is shorter
BATCHES = [batch_for(KINDS, seed=seed) for seed in range(COUNT)]

Batch = tuple[Tensor, dict[str, Tensor]]


@pytest.fixture(autouse=True)
def _alone() -> Iterator[None]:
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


class Noisy(nn.Module):
    """Heads behind BatchNorm and dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.dropout, self.net = nn.BatchNorm1d(4), nn.Dropout(0.3), model_for(KINDS)

    def forward(self, inputs: Tensor) -> dict[str, Tensor]:
        outputs: dict[str, Tensor] = self.net(self.dropout(self.norm(inputs)))
        return outputs


def built(*, noisy: bool = False, **options: Any) -> tuple[nn.Module, MultiTaskCriterion]:
    torch.manual_seed(0)
    return Noisy() if noisy else model_for(KINDS), compose(OUTER, "failure_biased", tasks=list(KINDS), **options)


def windows(size: int) -> list[list[Batch]]:
    return [BATCHES[start : start + size] for start in range(0, COUNT, size)]


def by_hand(size: int, *, noisy: bool = False, again: bool = True) -> tuple[nn.Module, MultiTaskCriterion]:
    """The loop written out. In front of each forward the generator is where it was when the batch came first."""
    model, criterion = built(noisy=noisy, accumulate=size)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    torch.manual_seed(1)
    for _ in range(EPOCHS):
        for window in windows(size):
            states = []
            for inputs, targets in window:
                states.append(torch.get_rng_state())
                (criterion(model(inputs), targets) / len(window)).backward()
            here = torch.get_rng_state(), {name: buffer.clone() for name, buffer in model.named_buffers()}
            optimizer.step()
            optimizer.zero_grad()
            criterion.step()
            if again:
                with torch.no_grad(), criterion.after_step():
                    for (inputs, targets), state in zip(window, states, strict=True):
                        torch.set_rng_state(state)
                        criterion(model(inputs), targets)
            torch.set_rng_state(here[0])
            for name, buffer in model.named_buffers():
                buffer.copy_(here[1][name])
        criterion.end_epoch()
    return model, criterion


def assert_same(found: Iterable[nn.Module], expected: Iterable[nn.Module]) -> None:
    for one, other in zip(found, expected, strict=True):
        assert same(snapshot(one), snapshot(other))


def overflow_once(model: nn.Module) -> GradScaler:
    """Let the first gradient of a parameter overflow; return a scaler, which skips that step."""
    first = iter([torch.inf])
    next(model.parameters()).register_hook(lambda gradient: gradient * next(first, 1.0))
    return GradScaler("cpu", init_scale=4.0)


def test_the_losses_after_the_step_matter() -> None:
    """A run without them ends elsewhere, so that the comparisons below can fail."""
    (with_them, criterion), (without, other) = (by_hand(1, again=again) for again in (True, False))
    assert not equal(with_them.state_dict(), without.state_dict())
    assert len(set(criterion.outer.logits.tolist())) == 2 and other.outer.logits.tolist() == [0.0, 0.0]


# The plain loop


@pytest.mark.parametrize("noisy", [False, True])
@pytest.mark.parametrize("size", [1, 2])
def test_the_plain_loop_runs_the_batches_again(size: int, noisy: bool) -> None:
    """Model, buffers and criterion are those of the loop by hand, bit for bit."""
    model, criterion = built(noisy=noisy, accumulate=size)
    loop = Loop(model, criterion, lambda groups: torch.optim.SGD(groups, lr=0.05), progress=False)
    torch.manual_seed(1)
    loop.run(BATCHES, epochs=EPOCHS)
    assert_same((model, criterion), by_hand(size, noisy=noisy))
    drawn = torch.rand(1)
    assert (criterion.outer.updates == EPOCHS * len(windows(size))).all()
    by_hand(size, noisy=noisy)
    assert torch.equal(torch.rand(1), drawn)


@pytest.mark.parametrize("size", [1, 2])
def test_a_step_that_the_scaler_skips_is_not_compared(size: int) -> None:
    """Neither then nor later."""
    model, criterion = built(accumulate=size)
    scaler, build = overflow_once(model), lambda groups: torch.optim.SGD(groups, lr=0.05)
    Loop(model, criterion, build, scaler=scaler, progress=False).run(BATCHES)
    assert scaler.get_scale() == 2.0
    assert (criterion.outer.updates == len(windows(size)) - 1).all()


def test_a_criterion_that_is_a_part_of_the_model_keeps_what_it_learned() -> None:
    """The buffers that are put back are the model's own."""
    model, criterion = built(noisy=True)
    model.add_module("criterion", criterion)
    torch.manual_seed(1)
    Loop(model, criterion, lambda groups: torch.optim.SGD(groups, lr=0.05), progress=False).run(BATCHES, epochs=EPOCHS)
    assert_same([criterion], by_hand(1, noisy=True)[1:])


def test_untouched_puts_back_buffers_that_were_replaced() -> None:
    """Also when a module puts another tensor in a buffer's place, and when the body fails."""

    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("calls", torch.zeros(()))

        def forward(self) -> None:
            self.calls = self.calls + 1
            torch.rand(3)

    module = Counting()
    buffer, state = module.calls, torch.get_rng_state()
    with pytest.raises(KeyboardInterrupt), untouched(module):
        module()
        raise KeyboardInterrupt
    assert module.calls is buffer and float(buffer) == 0.0
    assert torch.equal(torch.get_rng_state(), state)


def test_a_replay_forgets() -> None:
    """What was run or dropped is not run again."""
    model, criterion = built()
    replay, seen = Replay(model), []
    replay.remember("dropped")
    replay.forget()
    replay.remember("kept")
    for _ in range(2):
        replay.run(seen.append, [criterion])
    assert seen == ["kept"]


# HuggingFace


class InOrder(Trainer):
    """Keeps the order of its rows."""

    def _get_train_sampler(self, *args: Any) -> Any:
        return SequentialSampler(self.train_dataset)


def hf_by_hand(size: int, dropout: float) -> tuple[nn.Module, MultiTaskCriterion]:
    model, criterion, rows = bert(dropout), compose(OUTER, tasks=TASKS, accumulate=size), texts(18)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
    batches = [TaskCollator(TASKS)(rows[start : start + 4]) for start in range(0, len(rows), 4)]
    # What the Trainer does before its first batch: it draws a seed for its loader, in each epoch.
    torch.manual_seed(42)
    for _ in range(EPOCHS):
        torch.empty((), dtype=torch.int64).random_()
        for start in range(0, len(batches), size):
            window, states = batches[start : start + size], []
            for batch in window:
                states.append(torch.get_rng_state())
                loss = criterion(model(batch["input_ids"], batch["attention_mask"]), batch["labels"])
                (loss / len(window)).backward()
            here = torch.get_rng_state()
            optimizer.step()
            optimizer.zero_grad()
            with torch.no_grad(), criterion.after_step():
                for batch, state in zip(window, states, strict=True):
                    torch.set_rng_state(state)
                    criterion(model(batch["input_ids"], batch["attention_mask"]), batch["labels"])
            torch.set_rng_state(here)
        criterion.end_epoch()
    return model, criterion


def hf_trainer(folder: Path, model: nn.Module, **options: Any) -> Any:
    options = {"cls": InOrder, "max_grad_norm": 0.0, "num_train_epochs": EPOCHS, "lr_scheduler_type": "constant", **options}
    optimizers = (torch.optim.SGD(model.parameters(), lr=1e-2), None)
    return trainer_of(folder, model, texts(18), optimizers=optimizers, **options)


@pytest.mark.parametrize(("size", "dropout"), [(1, 0.0), (2, 0.0), (2, 0.2)])
def test_the_huggingface_trainer_runs_the_batches_again(size: int, dropout: float, tmp_path: Path) -> None:
    """Model and criterion are those of the loop by hand, bit for bit, the logs those of the first run of each batch."""
    model, criterion = bert(dropout), compose(OUTER, tasks=TASKS)
    trainer = attach(hf_trainer(tmp_path, model, gradient_accumulation_steps=size), criterion)
    model.train()
    trainer.train()
    expected, its = hf_by_hand(size, dropout)
    assert equal(model.state_dict(), expected.state_dict())
    assert equal(snapshot(criterion.outer), snapshot(its.outer))
    assert (criterion.outer.updates == EPOCHS * len(windows(size))).all()
    assert criterion._window.calls == 0 and not criterion.replaying


def test_a_huggingface_batch_without_any_label_takes_part(tmp_path: Path) -> None:
    """With missing="ignore"; and a compute_loss of one's own can tell the second run."""
    seen: list[bool] = []

    class Mine(MultiTaskMixin, InOrder):
        def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
            seen.append(self.criterion.replaying)
            return super().compute_loss(*args, **kwargs)

    rows = [{**row, "sentiment": -100, "score": float("nan")} if 4 <= n < 8 else row for n, row in enumerate(texts(18))]
    criterion = compose(OUTER, tasks=TASKS, missing="ignore")
    trainer = trainer_of(tmp_path, bert(), rows, cls=Mine, criterion=criterion)
    trainer.train()
    assert seen == [False, True] * 5
    assert criterion.outer.updates.tolist() == [4.0, 4.0]


def test_a_step_that_huggingface_skips_is_not_compared(tmp_path: Path) -> None:
    """The scaler's overflow in the first step leaves four."""
    criterion, model = compose(OUTER, tasks=TASKS), bert()
    trainer = trainer_of(tmp_path, model, texts(18))
    attach(trainer, criterion)
    trainer.accelerator.scaler = overflow_once(model)
    trainer.train()
    assert trainer.state.global_step == 5
    assert criterion.outer.updates.tolist() == [4.0, 4.0]


# Lightning


class Net(pl.LightningModule):
    """The noisy or the plain model, and the criterion as a submodule."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.net, self.criterion = built(**options)
        self.steps: list[int] = []

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        self.steps.append(batch_idx)
        loss: Tensor = self.criterion(self.net(batch[0]), batch[1])
        self.log("own", loss, batch_size=8)
        self.log_dict({"index": float(batch_idx)}, batch_size=8, on_epoch=True)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.net.parameters(), lr=0.05)


def fitted(module: Any, *, replay: str = "training_step", epochs: int = EPOCHS, **options: Any) -> Any:
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    trainer = pl.Trainer(
        accelerator="cpu", devices=1, max_epochs=epochs, callbacks=[MultiTaskCallback(replay=replay)], **quiet, **options
    )
    torch.manual_seed(1)
    trainer.fit(module, torch.utils.data.DataLoader(BATCHES, batch_size=None))
    return trainer


@pytest.mark.parametrize("size", [1, 5])
def test_lightning_runs_the_batches_again(size: int) -> None:
    """Model and criterion are those of the loop by hand, bit for bit; what the module logs is logged once."""
    module = Net()
    trainer = fitted(module, accumulate_grad_batches=size)
    assert_same((module.net, module.criterion), by_hand(size))
    assert (
        module.steps == [index for start in range(0, COUNT, size) for index in 2 * list(range(start, start + size))] * EPOCHS
    )
    assert float(trainer.callback_metrics["index_epoch"]) == 2.0
    assert "log" not in vars(module) and "log_dict" not in vars(module)
    assert (module.criterion.outer.updates == EPOCHS * COUNT / size).all()
    assert module.criterion.accumulate == 1


def test_lightning_leaves_random_numbers_and_statistics_alone() -> None:
    """Behind dropout and BatchNorm the run is that of the loop by hand, which puts both back."""

    class Ordered(Net):
        """Lightning draws a seed for each iterator; this one starts as the loop by hand does."""

        def on_train_start(self) -> None:
            torch.manual_seed(1)

    module = Ordered(noisy=True)
    fitted(module, epochs=1)
    model, criterion = built(noisy=True)
    torch.manual_seed(1)
    Loop(model, criterion, lambda groups: torch.optim.SGD(groups, lr=0.05), progress=False).run(BATCHES)
    assert equal(module.net.state_dict(), model.state_dict())
    assert equal(snapshot(module.criterion.outer), snapshot(criterion.outer))


def test_lightning_runs_another_method_where_one_is_named() -> None:
    """It is given what training_step is given, and the loss in it is all that counts."""

    class Apart(Net):
        def losses(self, batch: Batch) -> None:
            self.criterion(self.net(batch[0]), batch[1])

    module = Apart()
    fitted(module, replay="losses")
    assert_same((module.net, module.criterion), by_hand(1))
    assert module.steps == list(range(COUNT)) * EPOCHS


class Measured(Net):
    """Updates a metric in its step."""

    guarded = False

    def __init__(self) -> None:
        super().__init__()
        self.mean = MeanMetric()

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        loss = super().training_step(batch, batch_idx)
        if not (self.guarded and self.criterion.replaying):
            self.mean.update(loss.detach())
        return loss


def test_a_metric_that_would_count_twice_is_refused() -> None:
    """It is named, with the ways out; one that asks criterion.replaying is fine."""
    with pytest.raises(OptionError, match=r"Measured.training_step\(\) runs again.*updates \['mean'\].*criterion.replaying"):
        fitted(Measured())
    module = Measured()
    module.guarded = True
    fitted(module, epochs=1)
    assert module.mean.update_count == COUNT


@pytest.mark.parametrize(("name", "found"), [("nothing", "does not exist"), ("from_loader", "takes a dataloader_iter")])
def test_a_method_that_cannot_run_again_is_refused(name: str, found: str) -> None:
    """At the start of the run."""

    class Loading(Net):
        def from_loader(self, dataloader_iter: Any) -> None: ...

    with pytest.raises(OptionError, match=rf"replay='{name}'\) cannot run Loading\.{name} again .*: it {found}"):
        fitted(Loading(), replay=name)


def test_a_step_that_lightning_skips_is_not_compared() -> None:
    """With a scaler on the CPU, in the first step."""
    module = Net()
    scaler = overflow_once(module.net)
    fitted(module, epochs=1, plugins=[MixedPrecision("16-mixed", "cpu", scaler)])
    assert scaler.get_scale() == 2.0
    assert module.criterion.outer.updates.tolist() == [4.0, 4.0]


def test_under_manual_optimization_the_module_does_it_itself() -> None:
    """training_step steps, and is not run again."""

    class Manual(Net):
        def __init__(self) -> None:
            super().__init__()
            self.automatic_optimization = False

        def training_step(self, batch: Batch, batch_idx: int) -> None:
            self.optimizers().zero_grad()
            self.manual_backward(super().training_step(batch, batch_idx))
            self.optimizers().step()
            with torch.no_grad(), self.criterion.after_step():
                self.criterion(self.net(batch[0]), batch[1])

    module = Manual()
    fitted(module)
    assert_same((module.net, module.criterion), by_hand(1))
    assert module.steps == list(range(COUNT)) * EPOCHS


# Accelerate


@pytest.mark.parametrize("size", [1, 5])
@pytest.mark.parametrize("overflows", [False, True])
def test_accelerate_with_the_block_in_its_loop(size: int, overflows: bool) -> None:
    """The loop of the documentation is the loop by hand; after a step that was skipped the block does nothing."""
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=size)
    model, criterion = built()
    if overflows:  # Accelerate has fp16 on accelerators only; these are its two switches
        accelerator.scaler, accelerator.native_amp = overflow_once(model), True
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    batches = torch.utils.data.DataLoader(BATCHES, batch_size=None)
    model, optimizer, batches = accelerator.prepare(model, optimizer, batches)
    accelerate_adapter.attach(accelerator, criterion, optimizer)
    for _ in range(EPOCHS):
        window = []
        for batch in batches:
            window.append(batch)
            with accelerator.accumulate(model):
                accelerator.backward(criterion(model(batch[0]), batch[1]))
                optimizer.step()
                optimizer.zero_grad()
            if accelerator.sync_gradients:
                with torch.no_grad(), criterion.after_step():
                    for inputs, targets in window:
                        criterion(model(inputs), targets)
                window = []
        criterion.end_epoch()
    steps = EPOCHS * len(windows(size))
    if overflows:
        assert (criterion.outer.updates == steps - 1).all()
    else:
        assert (criterion.outer.updates == steps).all()
        assert_same((accelerator.unwrap_model(model), criterion), by_hand(size))
