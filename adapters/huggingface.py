"""HuggingFace Trainer: train an existing Trainer with a criterion of several tasks."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any, TypeVar, cast

import torch
from mtl_axes.adapters.labels import as_label, complete, stack
from mtl_axes.adapters.replay import Replay
from mtl_axes.adapters.steps import calls_per_step, finish_step, loss_scale
from torch import Tensor

from mtl_axes import MultiTaskCriterion
from mtl_axes.errors import DataError, OptionError, StateError
from mtl_axes.tasks import as_mapping

try:
    from accelerate.utils import gather_object  # type: ignore[import-untyped]
    from transformers import Trainer, TrainerCallback, default_data_collator
    from transformers.trainer_utils import has_length
except ImportError as error:
    raise ImportError(
        'mtl_axes.adapters.huggingface needs transformers and accelerate: pip install "mtl_axes[hf]".'
    ) from error

if TYPE_CHECKING:
    from torch.utils.data import DataLoader
    from transformers import TrainerState, TrainingArguments
    from transformers.trainer_utils import EvalLoopOutput

    _Base = Trainer
else:
    _Base = object  # a mixin: the Trainer comes from the class that it is mixed into

__all__ = ["FILE_NAME", "MultiTaskMixin", "TaskCollator", "attach"]

FILE_NAME = "mtl_axes.pt"
"""Name of the file in a checkpoint that holds the state of the criterion."""

Row = Mapping[str, Any]
Collator = Callable[[list[Any]], Mapping[str, Any]]
AnyTrainer = TypeVar("AnyTrainer", bound=Trainer)


def attach(trainer: AnyTrainer, criterion: MultiTaskCriterion, *, lr: float | None = None) -> AnyTrainer:
    """Train a Trainer, of any subclass, with a criterion; return the same Trainer.

    Its class is replaced by a subclass with :class:`MultiTaskMixin` in front, so that its own ``compute_loss`` is not
    called: to add to the loss, derive from :class:`MultiTaskMixin` instead.

    Args:
        trainer: built without ``compute_loss_func``, label smoothing and ``model_init``.
        criterion: from ``compose(..., tasks=[...])``, kept outside the model. The tasks are the names of the model's
            outputs and of the label columns.
        lr: learning rate of the criterion's parameters, if it has any; None takes the Trainer's. The scheduler scales it
            like the others.

    Raises:
        OptionError: the Trainer and the criterion contradict each other, or the Trainer uses an option that is refused.
        StateError: a window of the criterion is pending.
    """
    cls = type(trainer)
    if isinstance(trainer, MultiTaskMixin):
        raise OptionError(f"This {cls.__name__} already has a criterion. Build a new Trainer for another one.")
    _check(trainer, criterion)
    trainer.__class__ = type("MTL" + cls.__name__, (MultiTaskMixin, cls), {})
    cast(MultiTaskMixin, trainer)._adopt(criterion, lr)
    return trainer


class MultiTaskMixin(_Base):
    """Mixin that trains a Trainer with a criterion: ``class Mine(MultiTaskMixin, Trainer)``.

    Takes ``criterion`` and ``criterion_lr`` by keyword in addition to the Trainer's arguments; they are the ``criterion``
    and ``lr`` of :func:`attach`, which does the same to an existing Trainer.

    - The model is called without the labels. Its outputs, by name, and ``inputs["labels"]``, a mapping by task, go to the
      criterion. Outputs that belong to no task are ignored.
    - ``criterion.accumulate`` follows ``gradient_accumulation_steps`` during a training and is restored after it. A window
      ends with its optimizer step, including the short one at the end of an epoch; one that the GradScaler skips drops it.
    - If the weighting needs the losses after the optimizer step (FAMO), ``compute_loss`` runs again on the micro-batches of
      the step, without gradients, in training mode and with the same random numbers; the model's buffers are unchanged.
      ``criterion.replaying`` is True then, for a ``compute_loss`` of your own that counts.
    - With ``missing="ignore"`` a batch without any label has the loss 0.
    - Learnable parameters of the criterion get a group of the optimizer without weight decay, even in an optimizer that you
      passed, unless it has them. Gradient clipping ignores them.
    - Training logs gain ``mtl/loss/TASK``, ``mtl/weight/TASK`` and ``mtl/norm/TASK``: means since the last log, over calls
      and then over ranks; with a :class:`mtl_axes.History` also what it adds to ``criterion.log_dict()``.
    - Evaluation logs gain ``eval_loss_TASK``: means over the labels of the whole evaluation set. ``eval_loss`` is the
      Trainer's mean of the batches' sums with reference weights. ``label_ids`` has every task, with NaN, or -100 for
      classes, for a missing label; all but classes are floats.
    - Checkpoints gain ``mtl_axes.pt``: ``criterion.state_dict()``, readable by ``torch.load(weights_only=True)``. With
      ``load_best_model_at_end`` the criterion, like the optimizer, keeps its state from the end of the training.

    Raises:
        OptionError: as :func:`attach` does.
        StateError: a window of the criterion is pending, or a checkpoint holds no state of a criterion.
    """

    criterion: MultiTaskCriterion
    _criterion_lr: float | None
    _evaluated: _TaskMeans | None
    _replay: Replay

    def __init__(self, *args: Any, criterion: MultiTaskCriterion, criterion_lr: float | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        _check(self, criterion)
        self._adopt(criterion, criterion_lr)

    def _adopt(self, criterion: MultiTaskCriterion, lr: float | None) -> None:
        # Before the optimizer's state is loaded: it is loaded to the device of the parameters.
        self.criterion = criterion.to(self.args.device)
        self._criterion_lr = lr
        self._evaluated = None
        assert self.model is not None
        self._replay = Replay(self.model)
        # The criterion's loss is a mean over one micro-batch: the Trainer has to divide it by their number.
        self.model_accepts_loss_kwargs = False
        self.label_names = ["labels"]
        own = self.data_collator
        # A collator from elsewhere may pack the labels itself, and needs the columns.
        if (own.__module__ if hasattr(own, "__name__") else type(own).__module__).split(".")[0] == "transformers":
            self.data_collator = TaskCollator(criterion.tasks, own, missing=criterion._tasks.missing)
        self.add_callback(_Steps(self))

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Train, and restore the criterion's ``accumulate`` however the training ends."""
        composed = self.criterion.accumulate
        try:
            return super().train(*args, **kwargs)
        finally:
            self.criterion.step(skipped=True)
            self.criterion.accumulate = composed
            self._replay.forget()

    def training_step(self, model: torch.nn.Module, inputs: dict[str, Tensor | Any], *args: Any, **kwargs: Any) -> Tensor:
        """Train on a micro-batch, and record it if the weighting needs its losses after the optimizer step."""
        if self.criterion.outer.wants_after_step:
            self._replay.remember(model, inputs)
        return super().training_step(model, inputs, *args, **kwargs)

    def _compute_loss_again(self, model: torch.nn.Module, inputs: dict[str, Tensor | Any]) -> None:
        with self.compute_loss_context_manager():
            self.compute_loss(model, self._prepare_inputs(inputs))

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Tensor | Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """Return the criterion's loss of one micro-batch, with the model's outputs if they are asked for."""
        labels: Any = inputs.get("labels")
        if not isinstance(labels, Mapping):
            given = f"labels of type {type(labels).__name__}" if "labels" in inputs else f"the inputs {list(inputs)}"
            raise DataError(
                f"A batch should have 'labels', a mapping with the labels of the tasks {list(self.criterion.tasks)}. Found "
                f"{given}. Name the label columns after the tasks; a collator of your own packs them itself, or is wrapped "
                "in TaskCollator(tasks, collator)."
            )
        outputs = model(**{name: value for name, value in inputs.items() if name != "labels"})
        if self._evaluated is not None:
            self._evaluated.latest = outputs
        if self.criterion._tasks.missing == "ignore" and all(label is None for label in labels.values()):
            loss = self._loss_without_labels(outputs)
        else:
            loss = self.criterion(outputs, labels)
            if self._evaluated is not None:
                self._evaluated.add(outputs, labels)
        return (loss, outputs) if return_outputs else loss

    def _loss_without_labels(self, outputs: Any) -> Any:
        """Return the loss of a batch without any label: 0."""
        if not torch.is_grad_enabled() and not self.criterion.replaying:
            return torch.zeros((), device=self.args.device)
        # Through the criterion: other ranks may wait for it.
        return self.criterion(outputs, complete({}, outputs, self.criterion._tasks))

    def prediction_step(self, *args: Any, **kwargs: Any) -> tuple[Tensor | None, Any, Any]:
        """Evaluate or predict a batch; the returned labels have every task, so that batches can be concatenated."""
        loss, predictions, labels = super().prediction_step(*args, **kwargs)
        if not isinstance(labels, Mapping) or self._evaluated is None or self._evaluated.latest is None:
            return loss, predictions, labels
        completed = complete(labels, self._evaluated.latest, self.criterion._tasks)
        for task, label in completed.items():
            if label is None:
                raise DataError(
                    f"Task {task!r} has no label in this batch, and the shape of its labels is not known yet, so batches "
                    "cannot be concatenated. Use a criterion that has been trained or has a loaded state, name the task's "
                    f"shape in compose(inner={{{task!r}: ...}}), or put a labelled row first."
                )
        return loss, predictions, completed

    def evaluation_loop(
        self,
        dataloader: DataLoader[Any],
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        """Evaluate or predict, and add the mean loss of every labelled task to the metrics."""
        self._evaluated = _TaskMeans(self.criterion, self.accelerator)
        try:
            output = super().evaluation_loop(dataloader, description, prediction_loss_only, ignore_keys, metric_key_prefix)
            means = self._evaluated.means()
        finally:
            self._evaluated = None
        assert output.metrics is not None
        output.metrics.update({f"{metric_key_prefix}_loss_{task}": mean for task, mean in means.items()})
        return output

    def create_optimizer(self, *args: Any, **kwargs: Any) -> torch.optim.Optimizer:
        """Build the Trainer's optimizer, or take the given one, and add the criterion's parameters if it lacks them."""
        optimizer = super().create_optimizer(*args, **kwargs)
        known = {parameter for group in optimizer.param_groups for parameter in group["params"]}
        options = {} if self._criterion_lr is None else {"lr": self._criterion_lr}
        for group in self.criterion.param_groups(**options):
            if known.isdisjoint(group["params"]):
                if self.lr_scheduler is not None:
                    raise OptionError(
                        "The optimizer lacks the criterion's parameters, and the scheduler given with it cannot add them. "
                        "Build it from [..., *criterion.param_groups()], or pass optimizers=(optimizer, None)."
                    )
                optimizer.add_param_group(group)
        return optimizer

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Log, and add the criterion's ``log_dict()`` to a log of the training loss."""
        if "loss" in logs:
            logs.update({f"mtl/{name}": mean for name, mean in _mean_over_ranks(self.criterion.log_dict()).items()})
        super().log(logs, *args, **kwargs)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        super()._save(output_dir, state_dict)
        if self.args.should_save:
            folder = output_dir if output_dir is not None else self.args.output_dir
            torch.save(self.criterion.state_dict(), os.path.join(str(folder), FILE_NAME))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, *args: Any, **kwargs: Any) -> None:
        super()._load_from_checkpoint(resume_from_checkpoint, *args, **kwargs)
        path = os.path.join(resume_from_checkpoint, FILE_NAME)
        if not os.path.isfile(path):
            raise StateError(
                f"The checkpoint {resume_from_checkpoint!r} has no {FILE_NAME}, the state of the criterion. To start again "
                "from its model, load the model and do not resume."
            )
        self.criterion.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        columns: list[str] = self._signature_columns  # type: ignore[assignment]
        columns.extend(task for task in self.criterion.tasks if task not in columns)


def _check(trainer: Trainer, criterion: MultiTaskCriterion) -> None:
    """Raise unless the Trainer can train with the criterion."""
    if not isinstance(trainer, Trainer):
        raise OptionError(
            f"attach() takes a transformers Trainer, then a criterion. Found {type(trainer).__name__} as the Trainer."
        )
    if not isinstance(criterion, MultiTaskCriterion):
        raise OptionError(f"The criterion should come from compose(). Found {type(criterion).__name__}.")
    if not criterion.tasks:
        raise OptionError(
            "The criterion does not know its tasks, which name the label columns. Use compose(..., tasks=[...])."
        )
    if criterion.pending:
        raise StateError(
            f"The criterion has a pending window of {criterion.pending} calls. Call criterion.step() after the last "
            "optimizer step, before it is attached."
        )
    assert trainer.model is not None
    if any(module is criterion for module in trainer.model.modules()):
        raise OptionError("The criterion is one of the model's modules. Keep it outside the model.")
    args = trainer.args
    refused = {
        "compute_loss_func": (trainer.compute_loss_func is not None, "The criterion is the loss."),
        f"label_smoothing_factor={args.label_smoothing_factor}": (
            args.label_smoothing_factor != 0,
            "It works on a single label; a loss with smoothing can be the inner shape of a task.",
        ),
        "model_init": (trainer.model_init is not None, "It replaces the model: build the model first."),
        "deepspeed": (trainer.is_deepspeed_enabled, "DeepSpeed leaves the criterion out of its checkpoints and optimizer."),
        f"nn.DataParallel on {args.n_gpu} GPUs": (
            args.n_gpu > 1,
            "Its replicas hide the graph. Start with torchrun --nproc_per_node=N, or set CUDA_VISIBLE_DEVICES to one GPU.",
        ),
    }
    for option, (used, advice) in refused.items():
        if used:
            raise OptionError(f"A Trainer with a criterion cannot use {option}. {advice}")
    calls_per_step(criterion.accumulate, args.gradient_accumulation_steps, "gradient_accumulation_steps")


def _mean_over_ranks(metrics: dict[str, float]) -> dict[str, float]:
    ranks: list[dict[str, float]] = gather_object([metrics])
    values = {name: [rank[name] for rank in ranks if name in rank] for name in dict.fromkeys(chain(*ranks))}
    return {name: sum(numbers) / len(numbers) for name, numbers in values.items()}


class _Steps(TrainerCallback):
    """Ends windows and epochs with the Trainer's, and clears the criterion's gradients, which the Trainer does not clear."""

    def __init__(self, trainer: MultiTaskMixin) -> None:
        self._trainer = trainer
        self._scale_before = 1.0

    def on_train_begin(self, args: TrainingArguments, *_: Any, **kwargs: Any) -> None:
        criterion = self._trainer.criterion
        # Left behind by an interrupted training.
        criterion.step(skipped=True)
        criterion.zero_grad()
        criterion.log_dict()
        self._trainer._replay.forget()
        calls = args.gradient_accumulation_steps
        criterion.accumulate = calls_per_step(criterion.accumulate, calls, "gradient_accumulation_steps")
        criterion.train()

    def on_pre_optimizer_step(self, *_: Any, **kwargs: Any) -> None:
        self._scale_before = loss_scale(self._trainer.accelerator.scaler)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, *_: Any, **kwargs: Any) -> None:
        trainer, criterion = self._trainer, self._trainer.criterion
        # Accelerate does not notice a step that a fused optimizer, the Trainer's default, skipped.
        skipped = loss_scale(trainer.accelerator.scaler) < self._scale_before
        criterion.zero_grad()
        finish_step([criterion], trainer._replay, trainer._compute_loss_again, skipped=skipped)
        # Before the Trainer saves, so that no checkpoint is written between the last step of an epoch and its end.
        if has_length(kwargs["train_dataloader"]) and state.epoch == int(state.epoch or 0):
            criterion.end_epoch()

    def on_epoch_end(self, *_: Any, **kwargs: Any) -> None:
        if not has_length(kwargs["train_dataloader"]):
            self._trainer.criterion.end_epoch()


class _TaskMeans:
    """Mean loss per task over the labels of an evaluation set, on the device until it is read.

    Attributes:
        latest: outputs of the last batch.
    """

    def __init__(self, criterion: MultiTaskCriterion, accelerator: Any) -> None:
        self.latest: Any = None
        self._criterion = criterion
        self._accelerator = accelerator
        self._rows: list[Tensor] = []

    def add(self, outputs: Any, labels: Mapping[str, Tensor | None]) -> None:
        """Add the losses of a batch and the number of their labels."""
        tasks = self._criterion.tasks
        size = len(next(label for task in tasks if (label := labels.get(task)) is not None))
        counted = self._without_repetitions(size)
        if counted == 0:
            return
        targets = {task: label[:counted] for task in tasks if (label := labels.get(task)) is not None}
        output_of = as_mapping("outputs", outputs, tasks)
        predictions = {task: prediction[:counted] for task in targets if (prediction := output_of[task]) is not None}
        losses = self._criterion._tasks.losses(predictions, targets, None, None, None)
        values = losses.values
        counts = [
            values.new_tensor(targets[task].numel() if task in targets else 0) if count is None else count.to(values)
            for task, count in zip(tasks, losses.counts, strict=True)
        ]
        self._rows.append(torch.stack([values, torch.stack(counts)]))

    def _without_repetitions(self, size: int) -> int:
        """Return how many samples of a batch count: the last batches repeat the first samples to fill up all ranks."""
        state = self._accelerator.gradient_state
        if self._accelerator.num_processes == 1 or not state.end_of_dataloader or state.remainder < 1:
            return size
        before = int(self._accelerator.process_index) * size
        return min(max(int(state.remainder) - before, 0), size)

    def means(self) -> dict[str, float]:
        """Return the means over all ranks, by task that had a label."""
        rows = torch.stack(self._rows).cpu().double() if self._rows else torch.zeros(1, 2, len(self._criterion.tasks))
        losses, counts = rows.unbind(1)
        ranks = gather_object([torch.stack([(losses * counts).sum(0), counts.sum(0)]).tolist()])
        sums, numbers = torch.tensor(ranks, dtype=torch.float64).sum(0).tolist()
        return {
            task: total / number for task, total, number in zip(self._criterion.tasks, sums, numbers, strict=True) if number
        }


class TaskCollator:
    """Packs the label columns that are named after tasks into ``batch["labels"]``, a mapping from task to tensor.

    Numbers and arrays become tensors: floats of the default dtype, integers int64, bools bool; tensors keep their dtype. A
    task's labels in a batch get the dtype that holds all of them. A missing label (None, or no such column in a row) becomes
    NaN, or -100 among integers; bools become floats then. A task without any label in a batch is absent from it, whatever
    other batches had. Rows whose ``labels`` is a mapping by task are accepted too.

    Args:
        tasks: names of the tasks.
        base: collates the other columns, as a tokenizer's padding collator does.
        missing: ``"ignore"`` admits rows without a label, as ``compose(..., missing="ignore")`` does; ``"error"`` requires
            every column in every row, and None in all rows of a batch or in none.

    >>> collate = TaskCollator(["mood", "score"], missing="ignore")
    >>> batch = collate([{"x": 1.0, "mood": 2, "score": 0.5}, {"x": 2.0, "mood": None, "score": 1.5}])
    >>> batch["x"], batch["labels"]
    (tensor([1., 2.]), {'mood': tensor([   2, -100]), 'score': tensor([0.5000, 1.5000])})
    """

    def __init__(self, tasks: Sequence[str], base: Collator = default_data_collator, *, missing: str = "error") -> None:
        self.tasks = tuple(tasks)
        self.base = base
        self.missing = missing

    def __call__(self, rows: list[Row]) -> dict[str, Any]:
        """Return the batch of some rows.

        Raises:
            DataError: a label is missing although ``missing="error"``, the labels of a task differ in shape, or the base
                collator made labels too.
        """
        rows = [self._flat(row) for row in rows]
        columns = {column for row in rows for column in row}
        rest = [{name: value for name, value in row.items() if name not in self.tasks} for row in rows]
        if columns.isdisjoint(self.tasks):
            return dict(self.base(rest))
        labels = {task: self._labels(task, rows) for task in self.tasks}
        batch = dict(self.base(rest))
        if "labels" in batch:
            raise DataError(
                f"The base collator made labels from the columns {sorted(columns.difference(self.tasks))}, in addition to "
                f"the tasks {list(self.tasks)}. Drop or rename the column that is not a task."
            )
        return {**batch, "labels": {task: label for task, label in labels.items() if label is not None}}

    def _flat(self, row: Row) -> Row:
        """Return a row with its labels as columns, unpacked from a mapping under ``labels``."""
        packed = row.get("labels")
        if not isinstance(packed, Mapping):
            return row
        rest = {name: value for name, value in row.items() if name != "labels"}
        return {**rest, **{task: packed[task] for task in self.tasks if task in packed}}

    def _labels(self, task: str, rows: list[Row]) -> Tensor | None:
        lacking = next((row for row in rows if task not in row), None)
        if lacking is not None and self.missing != "ignore":
            raise DataError(
                f"A row has the columns {list(lacking)} and no {task!r}. Give each row the label columns "
                f'{list(self.tasks)}, or use compose(..., missing="ignore").'
            )
        return stack(task, [as_label(task, row.get(task)) for row in rows], self.missing)
