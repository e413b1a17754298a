"""The HuggingFace Trainer with a criterion: real small models, two heads, on the CPU."""

from __future__ import annotations

import importlib
import math
import os
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
import torch._functorch.config as functorch_config
from accelerate.state import AcceleratorState
from hf_models import CLASSES, TASKS, bert, images, texts, trainer_of, vit
from mtl_axes.adapters.huggingface import FILE_NAME, MultiTaskMixin, TaskCollator, attach
from sampling import slowly
from strategies import equal, quick, same, snapshot
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn
from torch.amp.grad_scaler import GradScaler
from torch.utils.data import SequentialSampler
from transformers import BertTokenizerFast, DataCollatorWithPadding, Trainer, TrainerCallback

from mtl_axes import compose
from mtl_axes.errors import DataError, GraphError, OptionError, StateError
from mtl_axes.history import History

pytestmark = [
    # Deprecated names that both major versions know, and what the Trainer does to itself.
    pytest.mark.filterwarnings("ignore:.gradient_checkpointing:FutureWarning"),
]


@pytest.fixture(autouse=True)
def _alone() -> Iterator[None]:
    """TrainingArguments may write precision and compiler into the environment, and Accelerate keeps a state of its own."""
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)
    AcceleratorState._reset_state(reset_partial_state=True)


MOVING = ("dwa", "gaba", "gradnorm", "uncertainty")


class InOrder(Trainer):
    """A Trainer of somebody's own, which keeps the order of its rows."""

    def _get_train_sampler(self, *args: Any) -> Any:
        return SequentialSampler(self.train_dataset)


class Recorder(TrainerCallback):
    """Keeps what is logged and, in front of every optimizer step, the gradients of some modules."""

    def __init__(self, *modules: nn.Module) -> None:
        self.modules = modules
        self.gradients: list[list[torch.Tensor]] = []
        self.logs: list[dict[str, float]] = []

    def on_pre_optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        parameters = [parameter for module in self.modules for parameter in module.parameters()]
        self.gradients.append([torch.zeros(1) if p.grad is None else p.grad.clone() for p in parameters])

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float], **kwargs: Any) -> None:
        self.logs.append(dict(logs))


class Stop(TrainerCallback):
    """Interrupts a training as Ctrl-C does, before a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step:
            raise KeyboardInterrupt


def composed(outer: str = "gaba", **options: Any) -> Any:
    # DWA as it is by default: it compares epochs.
    return compose(outer if outer == "dwa" else quick(outer), tasks=TASKS, **options)


def train_logs(trainer: Any) -> list[dict[str, float]]:
    return [row for row in trainer.state.log_history if "loss" in row]


# The gradient, the window, the optimizer


@pytest.mark.parametrize("outer", ["fixed", "uncertainty"])
def test_accumulating_micro_batches_gives_the_gradient_of_the_batch(outer: str, tmp_path: Path) -> None:
    """Two micro-batches of 4 give the gradient of one batch of 8 in every step, also in the short last one of an epoch."""
    seen = {}
    for accumulate, size in ((1, 8), (2, 4)):
        model, criterion = bert(), composed(outer)
        recorder = Recorder(model, criterion)
        trainer = trainer_of(
            tmp_path,
            model,
            texts(20),
            cls=InOrder,
            optim="sgd",
            max_grad_norm=0.0,
            gradient_accumulation_steps=accumulate,
            per_device_train_batch_size=size,
            callbacks=[recorder],
        )
        attach(trainer, criterion).train()
        seen[accumulate] = recorder.gradients
        assert criterion._window.step == 3
    assert len(seen[1]) == len(seen[2]) == 3
    for whole, parts in zip(seen[1], seen[2], strict=True):
        for one, other in zip(whole, parts, strict=True):
            torch.testing.assert_close(other, one, rtol=1e-4, atol=1e-6)


def by_hand(outer: str, probe: str, accumulate: int, epochs: int) -> tuple[nn.Module, Any]:
    """The loop that a user would have written."""
    model, criterion = bert(), composed(outer, probe=probe, accumulate=accumulate)
    collate = TaskCollator(TASKS)
    optimizer = torch.optim.SGD([{"params": list(model.parameters())}, *criterion.param_groups()], lr=1e-2)
    rows = texts()
    batches = [collate(rows[start : start + 4]) for start in range(0, len(rows), 4)]
    for _ in range(epochs):
        for start in range(0, len(batches), accumulate):
            window = batches[start : start + accumulate]
            for batch in window:
                outputs = model(batch["input_ids"], batch["attention_mask"])
                (criterion(outputs, batch["labels"]) / len(window)).backward()
            optimizer.step()
            optimizer.zero_grad()
            criterion.step()
        criterion.end_epoch()
    return model, criterion


@pytest.mark.parametrize(
    ("outer", "probe", "accumulate"),
    [
        ("gaba", "exact", 4),
        ("gaba", "lagged", 1),
        *slowly((outer, "exact", 1) for outer in MOVING),
        *slowly(("gaba", probe, 4) for probe in ("representation", "lagged")),
        *slowly([("dwa", "exact", 4)]),
    ],
)
def test_the_trainer_equals_the_loop_written_by_hand(outer: str, probe: str, accumulate: int, tmp_path: Path) -> None:
    """Model, learned weights and state are those of the written loop, bit for bit: windows, zeroing and epochs are right."""
    model, criterion = bert(), composed(outer, probe=probe)
    trainer = trainer_of(
        tmp_path,
        model,
        texts(),
        cls=InOrder,
        optimizers=(torch.optim.SGD(model.parameters(), lr=1e-2), None),
        lr_scheduler_type="constant",
        max_grad_norm=0.0,
        num_train_epochs=3,
        gradient_accumulation_steps=accumulate,
    )
    attach(trainer, criterion).train()
    expected, its = by_hand(outer, probe, accumulate, epochs=3)
    assert equal(model.state_dict(), expected.state_dict())
    assert same(snapshot(criterion), snapshot(its))
    assert all(parameter.grad is None for parameter in criterion.parameters())
    assert criterion._window.calls == 0


@pytest.mark.parametrize("optim", ["adamw_torch", "adamw_torch_fused"])
@pytest.mark.parametrize("probe", ["exact", "lagged"])
def test_a_step_that_the_scaler_skips_drops_its_window(probe: str, optim: str, tmp_path: Path) -> None:
    """Neither the window nor the criterion's gradient of a skipped step reaches the next one."""
    model, criterion = bert(), composed("uncertainty" if probe == "exact" else "gaba", probe=probe)
    recorder = Recorder(criterion)
    trainer = trainer_of(tmp_path, model, texts(), callbacks=[recorder], gradient_accumulation_steps=2, optim=optim)
    attach(trainer, criterion)
    # Accelerate makes no scaler for the CPU, but uses one. The first step overflows and the others do not.
    trainer.accelerator.scaler = GradScaler("cpu", init_scale=2.0**127, backoff_factor=2.0**-120)
    trainer.train()
    assert trainer.state.global_step == 3
    assert criterion._window.step == 2
    assert all(parameter.grad is None for parameter in criterion.parameters())
    assert all(math.isfinite(value) for value in criterion.outer.weights().tolist())
    assert all(torch.isfinite(gradient).all() for gradient in recorder.gradients[-1])


@pytest.mark.parametrize("interrupted", [False, True])
def test_the_criterion_is_given_back_as_it_was_composed(interrupted: bool, tmp_path: Path) -> None:
    """A Trainer that accumulates otherwise may take it on, also after a training that ended within a window."""

    class Interrupted(Trainer):
        def training_step(self, *args: Any, **kwargs: Any) -> Any:
            loss = super().training_step(*args, **kwargs)
            if interrupted and self.state.global_step == 1:
                raise KeyboardInterrupt
            return loss

    criterion = composed("uncertainty")
    first = attach(trainer_of(tmp_path, bert(), texts(), cls=Interrupted, gradient_accumulation_steps=2), criterion)
    with pytest.raises(KeyboardInterrupt) if interrupted else nullcontext():
        first.train()
    assert (criterion.accumulate, criterion._window.calls) == (1, 0)
    done = criterion._window.step
    second = attach(trainer_of(tmp_path, bert(), texts(), gradient_accumulation_steps=3), criterion)
    second.train()
    assert criterion._window.step == done + 2
    assert criterion.accumulate == 1


@pytest.mark.parametrize("lr", [None, 0.5])
def test_learned_weights_get_a_group_without_weight_decay(lr: float | None, tmp_path: Path) -> None:
    """The group is there before the scheduler is built, which scales it; a second training does not add it again."""
    criterion = composed("uncertainty")
    trainer = attach(trainer_of(tmp_path, bert(), texts(), weight_decay=0.1, max_steps=3), criterion, lr=lr)
    for _ in range(2):
        trainer.train()
        groups = trainer.optimizer.param_groups
        own = [group for group in groups if any(p is q for p in group["params"] for q in criterion.parameters())]
        assert len(groups) == 3 == len(trainer.lr_scheduler.get_last_lr())
        assert [len(group["params"]) for group in own] == [1]
        assert own[0]["weight_decay"] == 0
        assert own[0]["initial_lr"] == (1e-2 if lr is None else lr)
        assert own[0]["lr"] == 0  # the linear schedule has ended
    assert groups[0]["weight_decay"] == 0.1
    assert not torch.equal(criterion.outer.weights(), composed("uncertainty").outer.weights())


def test_an_optimizer_of_your_own_is_completed_once(tmp_path: Path) -> None:
    """Parameters that it lacks are added where no scheduler exists yet; those that it has are left as they are."""
    model, criterion = bert(), composed("uncertainty")
    groups = [{"params": list(model.parameters())}, *criterion.param_groups(lr=0.7)]
    optimizer = torch.optim.SGD(groups, lr=1e-2)
    scheduler = torch.optim.lr_scheduler.ConstantLR(optimizer, 1.0)
    attach(trainer_of(tmp_path, model, texts(), optimizers=(optimizer, scheduler), max_steps=1), criterion).train()
    assert [group["lr"] for group in optimizer.param_groups] == [1e-2, 0.7]

    lacking = torch.optim.SGD(model.parameters(), lr=1e-2)
    scheduler = torch.optim.lr_scheduler.ConstantLR(lacking, 1.0)
    trainer = attach(trainer_of(tmp_path, model, texts(), optimizers=(lacking, scheduler), max_steps=1), criterion)
    with pytest.raises(OptionError, match=r"optimizer lacks .*scheduler.*Build it from \[\.\.\., \*criterion\.param_groups"):
        trainer.train()


# What is logged


def test_logs_have_the_means_since_the_last_log(tmp_path: Path) -> None:
    """Losses, weights and norms are means over the calls between two logs, like the Trainer's loss, and in no other log."""
    logs = {}
    for every in (1, 3):
        recorder = Recorder()
        trainer = trainer_of(
            tmp_path,
            bert(),
            texts(24),
            cls=InOrder,
            eval_dataset=texts(4, 1),
            eval_strategy="steps",
            eval_steps=1,
            logging_steps=every,
            gradient_accumulation_steps=2,
            callbacks=[recorder],
        )
        attach(trainer, composed()).train()
        logs[every] = train_logs(trainer)
        assert [{**row, "step": 0} for row in logs[every]] == [{**row, "step": 0} for row in recorder.logs if "loss" in row]
    names = {f"mtl/{kind}/{task}" for kind in ("loss", "weight", "norm") for task in TASKS}
    assert len(logs[1]) == 3
    assert all(names < row.keys() for row in logs[1])
    for name in (*names, "loss"):
        assert logs[3][0][name] == pytest.approx(sum(row[name] for row in logs[1]) / 3, rel=1e-5)
    assert len({row["mtl/weight/score"] for row in logs[1]}) == 3


def test_the_logged_losses_add_up_to_the_logged_loss(tmp_path: Path) -> None:
    """With weights of 1 the losses of the tasks are the Trainer's loss; what is not measured is not logged."""
    criterion = compose({"name": "fixed", "weights": [1.0, 1.0]}, tasks=TASKS)
    trainer = attach(trainer_of(tmp_path, bert(), texts(24), logging_steps=2), criterion)
    trainer.train()
    for row in train_logs(trainer):
        assert row["mtl/loss/sentiment"] + row["mtl/loss/score"] == pytest.approx(row["loss"], rel=1e-5)
    assert not any(name.startswith("mtl/norm") for row in train_logs(trainer) for name in row)


def test_tensorboard_shows_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The event file that the Trainer's own callback writes has a curve per task, of training and of evaluation; with a
    history also of the shares, and of the windows that were skipped: none, by the Trainer's cleaning up."""
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "events"))
    trainer = trainer_of(
        tmp_path, bert(), texts(), eval_dataset=texts(8, 1), report_to="tensorboard", max_steps=2, eval_strategy="steps"
    )
    criterion = composed()
    History(criterion)
    attach(trainer, criterion).train()
    (folder,) = {path.parent for path in tmp_path.rglob("events.out.tfevents*")}
    events = EventAccumulator(str(folder)).Reload()
    tags = events.Tags()["scalars"]
    assert {"train/mtl/loss/score", "train/mtl/weight/score", "train/mtl/norm/score", "eval/loss_score"} <= set(tags)
    assert len(events.Scalars("train/mtl/weight/score")) == 2
    assert {"train/mtl/share/score", "train/mtl/floor/score"} <= set(tags)
    assert [event.value for event in events.Scalars("train/mtl/skipped")] == [0, 0]
    assert criterion.history.skipped == 0


# Evaluation


@pytest.mark.slow
@pytest.mark.parametrize("outer", MOVING)
def test_evaluation_leaves_the_state_alone(outer: str, tmp_path: Path) -> None:
    """Evaluating and predicting between and after the steps changes not one bit of model or criterion."""
    ends = []
    for options in ({}, {"eval_strategy": "steps", "eval_steps": 1}):
        model, criterion = bert(), composed(outer)
        trainer = attach(trainer_of(tmp_path, model, texts(), eval_dataset=texts(9, 1), **options), criterion)
        trainer.train()
        before, report = snapshot(criterion), criterion.report
        trainer.evaluate()
        trainer.predict(texts(5, 2))
        assert same(snapshot(criterion), before)
        assert criterion.report is report
        ends.append((model.state_dict(), before))
    assert equal(ends[0][0], ends[1][0])
    assert same(ends[0][1], ends[1][1])


def test_evaluation_has_the_loss_of_every_task(tmp_path: Path) -> None:
    """The losses are means over the labels of the set, whatever the batches are; eval_loss sums them with 1/K each."""
    model, criterion = bert(), composed()
    trainer = attach(trainer_of(tmp_path, model, texts()), criterion)
    rows = texts(9, 1)
    metrics = trainer.evaluate(rows)
    batch = TaskCollator(TASKS)(rows)
    with torch.no_grad():
        outputs = model.eval()(batch["input_ids"], batch["attention_mask"])
        sentiment = nn.functional.cross_entropy(outputs["sentiment"], batch["labels"]["sentiment"])
        score = nn.functional.mse_loss(outputs["score"], batch["labels"]["score"])
    assert metrics["eval_loss_sentiment"] == pytest.approx(float(sentiment), rel=1e-5)
    assert metrics["eval_loss_score"] == pytest.approx(float(score), rel=1e-5)
    assert metrics["eval_loss"] == pytest.approx(float(sentiment + score) / 2, rel=1e-5)

    found = trainer.predict(rows)
    assert found.metrics["test_loss_score"] == metrics["eval_loss_score"]
    assert found.label_ids["sentiment"].tolist() == [row["sentiment"] for row in rows]
    assert found.predictions[0].shape == (9, CLASSES)

    unlabelled = [{name: value for name, value in row.items() if name not in TASKS} for row in rows]
    found = trainer.predict(unlabelled)
    assert found.label_ids is None
    assert found.predictions[1].shape == (9,)
    assert "test_loss" not in found.metrics


def test_missing_labels_weigh_nothing(tmp_path: Path) -> None:
    """Losses in training and evaluation are those over the labels that are there, be they None, NaN, -100 or no column."""
    rows = texts(9, 1)
    rows[0]["sentiment"], rows[1]["sentiment"], rows[5]["score"] = None, -100, math.nan
    del rows[6]["score"]
    for row in rows[4:]:
        row["sentiment"] = None
    model, criterion = bert(), composed(missing="ignore")
    trainer = attach(trainer_of(tmp_path, model, rows), criterion)
    metrics = trainer.evaluate(rows)
    batch = TaskCollator(TASKS, missing="ignore")(rows)
    sentiment, score = batch["labels"]["sentiment"], batch["labels"]["score"]
    assert sentiment.tolist() == [-100, -100, *(row["sentiment"] for row in rows[2:4]), *[-100] * 5]
    assert score.isnan().nonzero().flatten().tolist() == [5, 6]
    with torch.no_grad():
        outputs = model.eval()(batch["input_ids"], batch["attention_mask"])
        expected = nn.functional.cross_entropy(outputs["sentiment"], sentiment)
        errors = (outputs["score"] - score).square()
    assert metrics["eval_loss_sentiment"] == pytest.approx(float(expected), rel=1e-5)
    assert metrics["eval_loss_score"] == pytest.approx(float(errors[~errors.isnan()].mean()), rel=1e-5)
    trainer.train()
    assert all(math.isfinite(row["loss"]) for row in train_logs(trainer))


def sparse(count: int, **labelled: tuple[int, ...]) -> list[dict[str, Any]]:
    """Rows of which only some have a label of a task."""
    rows = texts(count, 1)
    for task, numbers in labelled.items():
        for number in set(range(count)).difference(numbers):
            rows[number][task] = None
    return rows


KINDS_KNOWN = {
    "from a training": (True, {}),
    "from the shapes": (False, {"inner": {"sentiment": "cross_entropy", "score": "mse"}}),
}


@pytest.mark.parametrize("missing", ["error", "ignore"])
@pytest.mark.parametrize("case", KINDS_KNOWN)
def test_a_batch_may_lack_a_task_in_evaluation(case: str, missing: str, tmp_path: Path) -> None:
    """Predictions and metrics have the labels of every row: those of a batch without any are NaN, or -100 for classes."""
    trained, options = KINDS_KNOWN[case]
    seen: list[Any] = []
    trainer = trainer_of(tmp_path, bert(), texts(8))
    attach(trainer, compose("uncertainty", tasks=TASKS, missing=missing, **options))
    trainer.compute_metrics = lambda found: seen.append(found.label_ids) or {}
    if trained:
        trainer.train()
    rows = sparse(9, sentiment=(4, 5, 6, 7), score=(0, 1, 2, 3, 8))
    for labels in (trainer.predict(rows).label_ids, (trainer.evaluate(rows), seen[-1])[1]):
        assert labels["sentiment"].tolist() == [-100] * 4 + [row["sentiment"] for row in rows[4:8]] + [-100]
        score = torch.as_tensor(labels["score"])
        assert score.isnan().nonzero().flatten().tolist() == [4, 5, 6, 7]
        assert score[[0, 8]].tolist() == pytest.approx([rows[0]["score"], rows[8]["score"]])


def test_labels_are_floats_unless_they_are_classes(tmp_path: Path) -> None:
    """Whatever a batch had: integers, missing ones among them, floats, or none."""
    rows = sparse(12, score=(0, 1, 4, 5, 6, 7))
    rows[0]["score"], rows[1]["score"], rows[2]["score"] = 1, 2, -100
    trainer = trainer_of(tmp_path, bert(), rows)
    attach(trainer, compose("fixed", {"score": "mse"}, tasks=TASKS, missing="ignore"))
    score = torch.as_tensor(trainer.predict(rows).label_ids["score"])
    assert score.isnan().nonzero().flatten().tolist() == [2, 3, 8, 9, 10, 11]
    assert score[:2].tolist() == [1.0, 2.0]


def test_a_task_of_unknown_kind_should_have_a_label_first(tmp_path: Path) -> None:
    """The shape of its labels is not known; its losses need none."""
    rows = sparse(8, sentiment=(4, 5, 6, 7), score=tuple(range(8)))
    assert "eval_loss_sentiment" in attach(trainer_of(tmp_path, bert(), rows), composed()).evaluate(rows)
    with pytest.raises(DataError, match=r"'sentiment' has no label in this batch.*compose\(inner=\{'sentiment': \.\.\.\}"):
        attach(trainer_of(tmp_path, bert(), rows), composed()).predict(rows)


def test_a_batch_without_any_label_weighs_nothing(tmp_path: Path) -> None:
    """With missing="ignore" its loss is 0, in evaluation also before any label came, and in training in every window."""
    rows = sparse(12, sentiment=(4, 5), score=(4, 6, 7))
    model, criterion = bert(), composed(missing="ignore")
    trainer = attach(trainer_of(tmp_path, model, rows[4:], cls=InOrder, optim="sgd", max_grad_norm=0.0), criterion)
    whole, labelled = trainer.evaluate(rows), trainer.evaluate(rows[4:8])
    assert whole["eval_loss"] == pytest.approx(labelled["eval_loss"] / 3)
    for task in TASKS:
        assert whole[f"eval_loss_{task}"] == pytest.approx(labelled[f"eval_loss_{task}"])
    recorder = Recorder(model)
    trainer.add_callback(recorder)
    trainer.train()
    assert len(recorder.gradients) == 2 == criterion._window.step
    assert any(gradient.any() for gradient in recorder.gradients[0])
    assert not any(gradient.any() for gradient in recorder.gradients[1])

    first = attach(trainer_of(tmp_path, bert(), rows, cls=InOrder), composed(missing="ignore"))
    with pytest.raises(DataError, match="At least one of the tasks"):
        first.train()
    with pytest.raises(DataError, match="At least one of the tasks"):
        attach(trainer_of(tmp_path, bert(), rows), composed()).evaluate(sparse(4, sentiment=(), score=()))


# Checkpoints


def everything(trainer: Any) -> tuple[dict[str, Any], ...]:
    state = trainer.optimizer.state_dict()
    moments = {f"{key} {name}": value for key, entry in state["state"].items() for name, value in entry.items()}
    rates = {str(index): torch.tensor(group["lr"]) for index, group in enumerate(state["param_groups"])}
    return trainer.model.state_dict(), snapshot(trainer.criterion), moments, rates


@pytest.mark.slow
@pytest.mark.parametrize(("outer", "probe"), [*((outer, "exact") for outer in MOVING), ("gaba", "lagged")])
@pytest.mark.parametrize("stop", [5, 8])
def test_a_resumed_training_equals_the_uninterrupted_one(outer: str, probe: str, stop: int, tmp_path: Path) -> None:
    """Model, optimizer, learned weights and state agree bit for bit, from within an epoch and from the end of one."""
    accumulate = 2 if outer == "gaba" and probe == "exact" else 1

    def trainer(folder: str, *callbacks: TrainerCallback) -> Any:
        trainer = trainer_of(
            tmp_path / folder,
            bert(dropout=0.1),
            texts(22 * accumulate),
            num_train_epochs=2,
            save_strategy="steps",
            save_steps=3,
            gradient_accumulation_steps=accumulate,
            callbacks=list(callbacks),
        )
        return attach(trainer, composed(outer, probe=probe))

    whole = trainer("whole")
    whole.train()
    assert whole.state.global_step == 12
    with pytest.raises(KeyboardInterrupt):
        trainer("parts", Stop(stop)).train()
    resumed = trainer("parts")
    resumed.train(resume_from_checkpoint=True)
    for left, right in zip(everything(resumed), everything(whole), strict=True):
        assert same(left, right)
    newer = [row for row in train_logs(whole) if row["step"] > stop]
    assert [row["mtl/loss/score"] for row in train_logs(resumed)][-len(newer) :] == [row["mtl/loss/score"] for row in newer]


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 1])
def test_a_rare_task_resumes_bit_for_bit(workers: int, tmp_path: Path) -> None:
    """Whether a batch has a task follows from its rows, and not from what a collator, or a worker's copy of it, has seen."""
    rows = sparse(24, sentiment=(1, 21), score=tuple(range(24)))

    def trainer() -> Any:
        trainer = trainer_of(
            tmp_path, bert(), rows, cls=InOrder, save_strategy="steps", save_steps=2, dataloader_num_workers=workers
        )
        return attach(trainer, composed(missing="ignore"))

    whole, resumed = trainer(), trainer()
    whole.train()
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    for left, right in zip(everything(resumed), everything(whole), strict=True):
        assert same(left, right)


def test_the_criterion_lies_beside_the_model(tmp_path: Path) -> None:
    """A checkpoint, and what save_model writes, has the state of the criterion in a file of its own."""
    trainer = attach(trainer_of(tmp_path, bert(), texts(), save_strategy="steps", save_steps=4), composed())
    trainer.train()
    trainer.save_model(str(tmp_path / "final"))
    saved = torch.load(tmp_path / "final" / FILE_NAME, weights_only=True)
    fresh = composed()
    fresh.load_state_dict(saved)
    assert same(snapshot(fresh), snapshot(trainer.criterion))
    early = torch.load(tmp_path / "checkpoint-4" / FILE_NAME, weights_only=True)
    assert early["_window._extra_state"]["step"] == 4

    (tmp_path / "checkpoint-4" / FILE_NAME).unlink()
    again = attach(trainer_of(tmp_path, bert(), texts()), composed())
    with pytest.raises(StateError, match=r"has no mtl_axes\.pt.*load the model and do not resume"):
        again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))


def test_the_best_model_comes_back_without_its_criterion(tmp_path: Path) -> None:
    """load_best_model_at_end gives the best model; the criterion, like the optimizer, stays at the end of the training."""
    trainer = trainer_of(
        tmp_path,
        bert(),
        texts(),
        eval_dataset=texts(9, 1),
        eval_strategy="steps",
        eval_steps=1,
        save_strategy="steps",
        save_steps=1,
        load_best_model_at_end=True,
        metric_for_best_model="eval_loss_score",
        greater_is_better=False,
    )
    attach(trainer, composed()).train()
    losses = [row["eval_loss_score"] for row in trainer.state.log_history if "eval_loss_score" in row]
    assert trainer.evaluate()["eval_loss_score"] == pytest.approx(min(losses), rel=1e-6)
    assert trainer.state.best_metric == min(losses)
    assert trainer.criterion._window.step == len(losses) == 6


# Labels and columns


@pytest.fixture
def tokenizer(tmp_path: Path) -> BertTokenizerFast:
    """A real tokenizer of a few words."""
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "engine", "runs", "hot", "cold"]
    (tmp_path / "vocab.txt").write_text("\n".join(words))
    return BertTokenizerFast(str(tmp_path / "vocab.txt"))


def test_a_padding_collator_is_wrapped(tokenizer: BertTokenizerFast, tmp_path: Path) -> None:
    """Rows of unequal length, with columns that the model does not know, go through the tokenizer's collator."""
    sentences = ["the engine runs", "the engine runs hot", "cold", "hot hot hot"] * 3
    rows = [
        {"text": text, **tokenizer(text), "sentiment": index % CLASSES, "score": index / 10}
        for index, text in enumerate(sentences)
    ]
    trainer = trainer_of(tmp_path, bert(), rows, data_collator=DataCollatorWithPadding(tokenizer), max_steps=2)
    attach(trainer, composed())
    batch = next(iter(trainer.get_train_dataloader()))
    assert batch.keys() == {"input_ids", "attention_mask", "labels"}
    assert {name: label.dtype for name, label in batch["labels"].items()} == {
        "sentiment": torch.int64,
        "score": torch.float32,
    }
    trainer.train()
    assert len(train_logs(trainer)) == 2


def test_a_collator_of_your_own_packs_the_labels(tmp_path: Path) -> None:
    """It is given the label columns, and used as it is."""

    def collate(rows: list[dict[str, Any]]) -> dict[str, Any]:
        labels = {task: torch.tensor([row[task] for row in rows]) for task in TASKS}
        return {"input_ids": torch.tensor([row["input_ids"] for row in rows]), "labels": labels}

    trainer = attach(trainer_of(tmp_path, bert(), texts(), data_collator=collate, max_steps=1), composed())
    trainer.train()
    assert trainer.data_collator is collate
    assert len(train_logs(trainer)) == 1


def test_labels_of_many_types() -> None:
    """Bools, arrays and tensors are packed as they are; blanks fit the rows that are there, and no batch another one."""
    rows = [
        {"flag": True, "box": [1.0, 2.0], "map": torch.ones(2, dtype=torch.float64)},
        {"flag": None, "box": None, "map": torch.zeros(2, dtype=torch.float64)},
    ]
    collate = TaskCollator(["flag", "box", "map"], lambda rows: {"count": len(rows)}, missing="ignore")
    batch = collate(rows)
    labels = batch["labels"]
    assert batch["count"] == 2
    assert labels["map"].dtype == torch.float64
    assert torch.equal(labels["flag"][:1], torch.ones(1)) and labels["flag"][1].isnan()
    assert labels["box"].shape == (2, 2) and labels["box"][1].isnan().all()
    assert collate(rows[1:])["labels"].keys() == {"map"}
    assert TaskCollator(["flag"], lambda rows: {})([{"flag": None}])["labels"] == {}


@pytest.mark.parametrize("missing", ["error", "ignore"])
def test_labels_of_one_task_share_the_dtype_that_holds_them(missing: str) -> None:
    """Integers and bools among floats become floats, in whatever order; one that is missing as -100 becomes NaN."""
    collate = TaskCollator(["a"], lambda rows: {}, missing=missing)

    def packed(*labels: Any) -> torch.Tensor:
        return collate([{"a": label} for label in labels])["labels"]["a"]

    assert packed(1, 0.5).tolist() == packed(True, 0.5).tolist() == [1.0, 0.5]
    assert packed(True, 3).tolist() == [1, 3]
    assert packed(0.5, torch.tensor(0.1, dtype=torch.float64)).dtype == torch.float64
    assert packed(0.5, -100).isnan().tolist() == [False, missing == "ignore"]
    if missing == "ignore":
        blanked = packed(1, None, 0.5)
        assert blanked[[0, 2]].tolist() == [1.0, 0.5] and blanked[1].isnan()
        assert packed(1, None).tolist() == [1, -100]


def test_rows_may_have_their_labels_in_a_mapping(tmp_path: Path) -> None:
    """It trains as columns do."""
    rows = texts()
    packed = [{"input_ids": row["input_ids"], "labels": {task: row[task] for task in TASKS}} for row in rows]
    logs = []
    for each in (rows, packed):
        trainer = attach(trainer_of(tmp_path, bert(), each, cls=InOrder, max_steps=2), composed())
        trainer.train()
        logs.append([row["loss"] for row in train_logs(trainer)])
    assert logs[0] == logs[1]


# What trainers can do besides


def test_a_subclass_of_your_own(tmp_path: Path) -> None:
    """The mixin serves a subclass, which may add to the loss; attach keeps what another subclass does."""

    class Mine(MultiTaskMixin, InOrder):
        def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
            loss = super().compute_loss(*args, **kwargs)
            return loss if isinstance(loss, tuple) else loss + 100.0

    mine = trainer_of(tmp_path, bert(), texts(), cls=Mine, criterion=composed(), max_steps=2)
    mine.train()
    theirs = attach(trainer_of(tmp_path, bert(), texts(), cls=InOrder, max_steps=2), composed())
    theirs.train()
    assert type(theirs).__name__ == "MTLInOrder" and isinstance(theirs, InOrder)
    for left, right in zip(train_logs(mine), train_logs(theirs), strict=True):
        assert left["loss"] == pytest.approx(right["loss"] + 100.0)
        assert left["mtl/weight/score"] == right["mtl/weight/score"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("outer", "probe"), [("dwa", "exact"), ("gaba", "exact"), ("gaba", "representation"), ("gaba", "lagged")]
)
@pytest.mark.parametrize("bf16", [False, True])
def test_images_train_too(bf16: bool, outer: str, probe: str, tmp_path: Path) -> None:
    """A ViT with two heads learns, whatever the precision, and norms are there from the first step or the second on."""
    trainer = trainer_of(
        tmp_path, vit(), images(), num_train_epochs=6, per_device_train_batch_size=8, lr_scheduler_type="constant", bf16=bf16
    )
    attach(trainer, composed(outer, probe=probe)).train()
    logs = train_logs(trainer)
    assert all(("mtl/norm/score" in row) is (outer == "gaba") for row in logs[probe == "lagged" :])
    assert sum(row["loss"] for row in logs[-2:]) < 0.7 * sum(row["loss"] for row in logs[:2])


def checkpointed(tmp_path: Path, probe: str, reentrant: bool, *, outer: str = "gaba", shared: bool = False) -> Any:
    model = bert()
    trainer = trainer_of(
        tmp_path,
        model,
        texts(),
        max_steps=3,
        gradient_checkpointing=True,
        gradient_checkpointing_kwargs={"use_reentrant": reentrant},
    )
    return attach(trainer, composed(outer, probe=probe, shared=model.trunk if shared else None))


@pytest.mark.slow
def test_activation_checkpointing(tmp_path: Path) -> None:
    """Without reentrance the norms are those of a plain run; with it only the lagged probe and the representation serve."""
    plain = attach(trainer_of(tmp_path, bert(), texts(), max_steps=3), composed())
    trainer = checkpointed(tmp_path, "exact", False)
    for each in (plain, trainer):
        each.train()
    for left, right in zip(train_logs(trainer), train_logs(plain), strict=True):
        assert left["mtl/norm/score"] == pytest.approx(right["mtl/norm/score"], rel=1e-4)

    for outer, probe in (("uncertainty", "exact"), ("gaba", "lagged"), ("gaba", "representation")):
        pair = [checkpointed(tmp_path, probe, reentrant, outer=outer) for reentrant in (True, False)]
        for each in pair:
            each.train()
        assert pair[0].criterion.outer.weights().unique().numel() == 2
        torch.testing.assert_close(*(each.criterion.outer.weights() for each in pair))

    for shared in (False, True):
        with pytest.raises(GraphError, match="use_reentrant=False"):
            checkpointed(tmp_path, "exact", True, shared=shared).train()


@pytest.fixture
def kept_buffers() -> Iterator[None]:
    """Compiled backwards that may run twice."""
    before = functorch_config.donated_buffer
    functorch_config.donated_buffer = False
    yield
    functorch_config.donated_buffer = before


COMPILED = {"torch_compile": True, "torch_compile_backend": "aot_eager", "max_steps": 2}


@pytest.mark.slow
def test_a_compiled_model_trains(kept_buffers: None, tmp_path: Path) -> None:
    """With shared= the exact norms are those of the model that is not compiled; a weighting of losses needs nothing."""
    runs = []
    for options in ({"max_steps": 2}, COMPILED):
        model = bert()
        runs.append(attach(trainer_of(tmp_path, model, texts(), **options), composed(shared=model.trunk)))
        runs[-1].train()
    for left, right in zip(*map(train_logs, runs), strict=True):
        assert left["mtl/norm/score"] == pytest.approx(right["mtl/norm/score"], rel=1e-3)
    losses = attach(trainer_of(tmp_path, bert(), texts(), **COMPILED), composed("uncertainty"))
    losses.train()
    assert len(train_logs(losses)) == 2


@pytest.mark.slow
@pytest.mark.parametrize(
    ("donated", "probe", "message"),
    [
        (True, "exact", r"donated_buffer = True.*Set it to False before torch.compile"),
        (False, "exact", r"CompiledFunctionBackward .*hides them.*Pass shared="),
        (False, "representation", r'CompiledFunctionBackward hides the representation.*probe="exact" with shared='),
        (False, "lagged", r'CompiledFunctionBackward hides the representation.*probe="exact" with shared='),
    ],
)
def test_a_compiled_model_that_cannot_be_measured_says_so_at_once(
    donated: bool, probe: str, message: str, kept_buffers: None, tmp_path: Path
) -> None:
    """The first call explains, also when a warm-up would come first."""
    functorch_config.donated_buffer = donated
    criterion = compose({"name": "gaba", "warmup": 3}, tasks=TASKS, probe=probe)
    trainer = attach(trainer_of(tmp_path, bert(), texts(), **COMPILED), criterion)
    with pytest.raises(GraphError, match=message):
        trainer.train()
    assert trainer.state.global_step == 0


# Errors


def test_without_the_library_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Importing the adapter alone needs transformers, and says where it comes from."""
    monkeypatch.setitem(sys.modules, "transformers", None)
    monkeypatch.delitem(sys.modules, "mtl_axes.adapters.huggingface")
    with pytest.raises(ImportError, match=r'needs transformers.*pip install "mtl_axes\[hf\]"'):
        importlib.import_module("mtl_axes.adapters.huggingface")


def pending() -> Any:
    criterion = composed("fixed", accumulate=2)
    criterion.combine([torch.ones((), requires_grad=True)] * 2)
    return criterion


REFUSED = {
    "loss function": (
        {"compute_loss_func": lambda *a, **k: None},
        composed,
        r"cannot use compute_loss_func\. The criterion is the loss",
    ),
    "label smoothing": (
        {"label_smoothing_factor": 0.1},
        composed,
        r"cannot use label_smoothing_factor=0\.1.*inner shape",
    ),
    "accumulate": (
        {"gradient_accumulation_steps": 4},
        lambda: composed(accumulate=2),
        r"accumulate=2\) contradicts the trainer's gradient_accumulation_steps=4",
    ),
    "no tasks": ({}, lambda: compose("gaba"), r"does not know its tasks.*compose\(\.\.\., tasks=\[\.\.\.\]\)"),
    "no criterion": ({}, lambda: nn.MSELoss(), r"come from compose\(\). Found MSELoss"),
    "pending": ({}, pending, r"a pending window of 1 calls"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_contradicts_the_criterion_is_refused(case: str, tmp_path: Path) -> None:
    """The error comes when they meet and says what to do; the Trainer stays what it was."""
    options, make, message = REFUSED[case]
    trainer = trainer_of(tmp_path, bert(), texts(), **options)
    with pytest.raises((OptionError, StateError), match=message):
        attach(trainer, make())
    assert type(trainer) is Trainer


def test_more_that_is_refused(tmp_path: Path) -> None:
    """A second criterion, one inside the model, a model factory, and several GPUs in one process."""
    with pytest.raises(OptionError, match=r"a transformers Trainer, then a criterion. Found MultiTaskCriterion"):
        attach(composed(), composed())
    trainer = attach(trainer_of(tmp_path, bert(), texts()), composed())
    with pytest.raises(OptionError, match=r"This MTLTrainer already has a criterion"):
        attach(trainer, composed())
    model, criterion = bert(), composed()
    model.criterion = criterion
    with pytest.raises(OptionError, match=r"one of the model's modules\. Keep it outside"):
        attach(trainer_of(tmp_path, model, texts()), criterion)
    with pytest.raises(OptionError, match=r"cannot use model_init\. .*build the model first"):
        attach(trainer_of(tmp_path, None, texts(), model_init=lambda: bert()), composed())
    trainer = trainer_of(tmp_path, bert(), texts())
    assert trainer.args.n_gpu <= 1
    trainer.args._n_gpu = 2
    with pytest.raises(OptionError, match=r"nn.DataParallel on 2 GPUs\. .*torchrun --nproc_per_node=N"):
        attach(trainer, composed())


def without(column: str) -> Any:
    return [{name: value for name, value in row.items() if name != column} for row in texts(4)]


def replaced(**columns: Any) -> Any:
    return [{**row, **columns} for row in texts(4)]


WRONG_ROWS = {
    "unknown column": (
        [{**row, "rating": 1.0} for row in without("score")],
        r"columns \[.*'sentiment'\] and no 'score'\. .*\['sentiment', 'score'\]",
    ),
    "no column": (
        [{"input_ids": [1, 2]}] * 4,
        r"'labels', a mapping .*\['sentiment', 'score'\]. Found the inputs .*TaskCollator",
    ),
    "another label": (replaced(label=1), r"made labels from the columns \[.*'label'\].*\['sentiment', 'score'\]"),
    "a text": (replaced(sentiment="good"), r"task 'sentiment' should be a number or an array. Found 'good'"),
    "some None": (
        [*replaced(), {**texts(1)[0], "score": None}][1:],
        r"1 of 4 labels of task 'score'.*None.*\"ignore\"",
    ),
    "two shapes": (
        [*replaced(), {**texts(1)[0], "score": [1.0]}][1:],
        r"'score' should have one shape .*Found \[\(\), \(1,\)\]",
    ),
    "NaN": (replaced(score=math.nan), r"task 'score' should be finite.*missing=\"ignore\""),
}


@pytest.mark.parametrize("case", WRONG_ROWS)
def test_rows_that_do_not_fit_are_explained(case: str, tmp_path: Path) -> None:
    """Columns that are missing, too many, of the wrong type or shape."""
    rows, message = WRONG_ROWS[case]
    trainer = attach(trainer_of(tmp_path, bert(), rows), composed())
    with pytest.raises(DataError, match=message):
        trainer.train()


def test_outputs_that_do_not_fit_are_explained(tmp_path: Path) -> None:
    """A task without an output of its name is named, with the outputs that are there."""
    rows = [{**row, "rating": row["score"]} for row in texts(4)]
    criterion = compose("gaba", tasks=["sentiment", "rating"])
    trainer = attach(trainer_of(tmp_path, bert(), rows), criterion)
    with pytest.raises(DataError, match=r"'rating' has a target .*Found outputs \['sentiment', 'score', 'features'\]"):
        trainer.train()
