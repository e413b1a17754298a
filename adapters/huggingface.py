"""The HuggingFace Trainer: several tasks, one criterion, and the Trainer you already have."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from functools import reduce
from typing import TYPE_CHECKING, Any, TypeVar, cast

import torch
from mtl_axes.adapters.replay import Replay
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
    from transformers import TrainerControl, TrainerState, TrainingArguments
    from transformers.trainer_utils import EvalLoopOutput

    _Base = Trainer
else:
    _Base = object  # the mixin stands before a Trainer, and brings none of its own

__all__ = ["FILE_NAME", "MultiTaskMixin", "TaskCollator", "attach"]

FILE_NAME = "mtl_axes.pt"
"""Where a checkpoint of the Trainer keeps the state of the criterion."""

Row = Mapping[str, Any]
Collator = Callable[[list[Any]], Mapping[str, Any]]
AnyTrainer = TypeVar("AnyTrainer", bound=Trainer)

_MISSING_CLASS = -100


def attach(trainer: AnyTrainer, criterion: MultiTaskCriterion, *, lr: float | None = None) -> AnyTrainer:
    """Let a Trainer, of any subclass, train with a criterion; return the same Trainer.

    Its class is replaced by a subclass of it that has :class:`MultiTaskMixin` in front. What the class itself, or another
    mixin, does in ``compute_loss`` is then not called: derive from :class:`MultiTaskMixin` to add to the loss.

    Args:
        trainer: built without ``compute_loss_func``, label smoothing and ``model_init``.
        criterion: from ``compose(..., tasks=[...])``, kept outside the model. The tasks are the names of the model's
            outputs and of the label columns.
        lr: learning rate of the criterion's own parameters, where it has some; None takes the Trainer's. The scheduler
            scales it as it scales the others.

    Raises:
        OptionError: the Trainer and the criterion contradict each other, or the Trainer cannot do this.
        StateError: a window of the criterion is pending.
    """
    cls = type(trainer)
    if isinstance(trainer, MultiTaskMixin):
        raise OptionError(f"A Trainer should be attached to one criterion, once. Found a {cls.__name__}, which has one.")
    _check(trainer, criterion)
    trainer.__class__ = type("MTL" + cls.__name__, (MultiTaskMixin, cls), {})
    cast(MultiTaskMixin, trainer)._adopt(criterion, lr)
    return trainer


class MultiTaskMixin(_Base):
    """What a Trainer needs to train with a criterion, for a subclass of your own: ``class Mine(MultiTaskMixin, Trainer)``.

    Takes ``criterion`` and ``criterion_lr`` by keyword beside the arguments of the Trainer; they are the ``criterion`` and
    ``lr`` of :func:`attach`, which does the same to a Trainer that exists.

    - The model is called without the labels. Its outputs, by name, and ``inputs["labels"]``, a mapping by task, go to the
      criterion. Outputs that belong to no task are ignored.
    - ``criterion.accumulate`` follows ``gradient_accumulation_steps`` during a training, and is then as composed; a window
      ends with its optimizer step, also the short one at the end of an epoch, and a step that the GradScaler skips drops it.
    - For a weighting that wants the losses after the optimizer step, ``compute_loss`` runs again on the micro-batches of the
      step, without gradients and in training mode, with the random numbers of the first time; the model's buffers stay as
      the first time left them. ``criterion.replaying`` is True then, for a ``compute_loss`` of your own that counts.
    - With ``missing="ignore"`` a batch of which no row has a label has the loss 0.
    - Learnable parameters of the criterion get a group of the optimizer without weight decay, also of an optimizer that you
      gave, unless it has them. Clipping does not see them.
    - Training logs gain ``mtl/loss/TASK``, ``mtl/weight/TASK`` and ``mtl/norm/TASK``: means since the last log, over calls
      and then over ranks; with a :class:`mtl_axes.History` also what it adds to ``criterion.log_dict()``.
    - Evaluation logs gain ``eval_loss_TASK``: means over the labels of the whole evaluation set. ``eval_loss`` is the
      Trainer's mean of the batches' sums with reference weights. ``label_ids`` has every task: NaN, or -100 for classes,
      where a label is missing, and floats but for classes.
    - Checkpoints gain ``mtl_axes.pt``, which ``torch.load(weights_only=True)`` reads: ``criterion.state_dict()``. With
      ``load_best_model_at_end`` the criterion, like the optimizer, stays as it was at the end of the training.

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
        # On the device before the optimizer's state is loaded, which goes where the parameters are.
        self.criterion = criterion.to(self.args.device)
        self._criterion_lr = lr
        self._evaluated = None
        assert self.model is not None
        self._replay = Replay(self.model)
        # The criterion's loss is a mean over one micro-batch, so that the Trainer has to divide it by their number.
        self.model_accepts_loss_kwargs = False
        self.label_names = ["labels"]
        own = self.data_collator
        # A collator from elsewhere may pack the labels itself, and would miss the columns.
        if (own.__module__ if hasattr(own, "__name__") else type(own).__module__).split(".")[0] == "transformers":
            self.data_collator = TaskCollator(criterion.tasks, own, missing=criterion._tasks.missing)
        self.add_callback(_Steps(self))

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Train, and give the criterion back as it was composed, however the training ends."""
        composed = self.criterion.accumulate
        try:
            return super().train(*args, **kwargs)
        finally:
            self.criterion.step(skipped=True)
            self.criterion.accumulate = composed
            self._replay.forget()

    def training_step(self, model: torch.nn.Module, inputs: dict[str, Tensor | Any], *args: Any, **kwargs: Any) -> Tensor:
        """Train on a micro-batch, and keep it where the weighting wants its losses after the optimizer step."""
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
            found = f"{type(labels).__name__} there" if "labels" in inputs else f"the inputs {list(inputs)}"
            raise DataError(
                f"A batch should have 'labels', a mapping with the labels of the tasks {list(self.criterion.tasks)}. Found "
                f"{found}. Name the label columns after the tasks; a collator of your own packs them itself, or is wrapped "
                "as TaskCollator(tasks, collator)."
            )
        outputs = model(**{name: value for name, value in inputs.items() if name != "labels"})
        if self._evaluated is not None:
            self._evaluated.latest = outputs
        if self.criterion._tasks.missing == "ignore" and all(label is None for label in labels.values()):
            loss = self._loss_without_labels(outputs)
        else:
            loss = self.criterion(outputs, labels)
            if self._evaluated is not None:
                self._evaluated.add(outputs, labels, self._without_repetitions)
        return (loss, outputs) if return_outputs else loss

    def _loss_without_labels(self, outputs: Any) -> Any:
        """Return the loss of a batch of which no row has a label: 0."""
        if not torch.is_grad_enabled() and not self.criterion.replaying:
            return torch.zeros((), device=self.args.device)
        # Through the criterion, which other ranks may wait for.
        return self.criterion(outputs, self._completed({}, outputs))

    def _completed(self, labels: Mapping[str, Tensor | None], outputs: Any) -> dict[str, Tensor | None]:
        """Return labels of every task that has an output: all missing where a task has none, None if that shape is unknown.

        Other than integers for classes they are floats, so that batches and ranks agree on the dtype.
        """
        tasks = self.criterion._tasks
        output_of = as_mapping("outputs", outputs, tasks.names)
        completed: dict[str, Tensor | None] = {}
        for task in tasks.names:
            label, output = labels.get(task), output_of.get(task)
            if output is None:
                continue
            if label is None:
                label = self._blank(task, output)
            elif label.ndim == output.ndim and not label.is_floating_point():
                label = _cast(label, torch.get_default_dtype(), tasks.missing)
            completed[task] = label
        return completed

    def _blank(self, task: str, output: Tensor) -> Tensor | None:
        tasks = self.criterion._tasks
        kind, given = tasks.known_kinds().get(task), tasks.given.get(task)
        kinds = {kind} if kind is not None else given.kinds if given is not None else {"regression", "multiclass"}
        if "multiclass" not in kinds or output.ndim == 1:
            return torch.full_like(output, torch.nan, dtype=torch.get_default_dtype())
        if kinds == {"multiclass"}:
            return torch.full_like(output.select(1, 0), _MISSING_CLASS, dtype=torch.int64)
        return None

    def prediction_step(self, *args: Any, **kwargs: Any) -> tuple[Tensor | None, Any, Any]:
        """Evaluate or predict a batch; the labels returned have every task, so that batches can be put together."""
        loss, predictions, labels = super().prediction_step(*args, **kwargs)
        if not isinstance(labels, Mapping) or self._evaluated is None or self._evaluated.latest is None:
            return loss, predictions, labels
        completed = self._completed(labels, self._evaluated.latest)
        for task, label in completed.items():
            if label is None:
                raise DataError(
                    f"Task {task!r} should have had a label before a batch without any is put together with others: its "
                    "shape is not known yet. Found none. Predict with the criterion of a training, or one with its state, "
                    f"name the task's shape in compose(inner={{{task!r}: ...}}), or let a labelled row come first."
                )
        return loss, predictions, completed

    def _without_repetitions(self, size: int) -> int:
        """Return how many samples of a batch count: the last ones of an evaluation may repeat the first ones, to fill it."""
        state = self.accelerator.gradient_state
        if self.accelerator.num_processes == 1 or not state.end_of_dataloader or state.remainder < 1:
            return size
        before = int(self.accelerator.process_index) * size
        return min(max(int(state.remainder) - before, 0), size)

    def evaluation_loop(
        self,
        dataloader: DataLoader[Any],
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        """Evaluate or predict, and add the mean loss of every task that had a label to the metrics."""
        self._evaluated = _TaskMeans(self.criterion)
        try:
            output = super().evaluation_loop(dataloader, description, prediction_loss_only, ignore_keys, metric_key_prefix)
            means = self._evaluated.means()
        finally:
            self._evaluated = None
        assert output.metrics is not None
        output.metrics.update({f"{metric_key_prefix}_loss_{task}": mean for task, mean in means.items()})
        return output

    def create_optimizer(self, *args: Any, **kwargs: Any) -> torch.optim.Optimizer:
        """Build the Trainer's optimizer, or take the given one, and add the criterion's parameters unless it has them."""
        optimizer = super().create_optimizer(*args, **kwargs)
        known = {parameter for group in optimizer.param_groups for parameter in group["params"]}
        options = {} if self._criterion_lr is None else {"lr": self._criterion_lr}
        for group in self.criterion.param_groups(**options):
            if known.isdisjoint(group["params"]):
                if self.lr_scheduler is not None:
                    raise OptionError(
                        "An optimizer given with its scheduler should have the criterion's parameters. Found them missing, "
                        "and the scheduler cannot take them up. Build it from [..., *criterion.param_groups()], or pass "
                        "optimizers=(optimizer, None)."
                    )
                optimizer.add_param_group(group)
        return optimizer

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Log, and add what the criterion saw since the last log to a log of the training loss."""
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
                f"A checkpoint to resume from should hold {FILE_NAME}, the state of the criterion. Found none in "
                f"{resume_from_checkpoint!r}. To begin anew with its model, load the model and do not resume."
            )
        self.criterion.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        columns: list[str] = self._signature_columns  # type: ignore[assignment]
        columns.extend(task for task in self.criterion.tasks if task not in columns)


def _check(trainer: Trainer, criterion: MultiTaskCriterion) -> None:
    """Raise unless the Trainer can train with the criterion as both of them are."""
    if not isinstance(trainer, Trainer):
        raise OptionError(
            f"attach() should be given a transformers Trainer, then a criterion. Found {type(trainer).__name__}."
        )
    if not isinstance(criterion, MultiTaskCriterion):
        raise OptionError(f"The criterion should come from compose(). Found {type(criterion).__name__}.")
    if not criterion.tasks:
        raise OptionError(
            "The criterion should know its tasks, which name the label columns. Use compose(..., tasks=[...])."
        )
    if criterion._window.calls:
        raise StateError(
            f"The criterion should be between two windows. Found {criterion._window.calls} calls pending. Call "
            "criterion.step() after the optimizer step."
        )
    assert trainer.model is not None
    if any(module is criterion for module in trainer.model.modules()):
        raise OptionError("The criterion should be kept outside the model. Found it among the model's modules.")
    refused = {
        "compute_loss_func": (trainer.compute_loss_func is not None, "The criterion is the loss."),
        "label_smoothing_factor": (
            trainer.args.label_smoothing_factor != 0,
            "It works on a single label; a loss with smoothing can be the inner shape of a task.",
        ),
        "model_init": (trainer.model_init is not None, "It replaces the model; build the model first."),
        "deepspeed": (trainer.is_deepspeed_enabled, "DeepSpeed keeps the criterion out of its checkpoints and optimizer."),
    }
    for name, (found, why) in refused.items():
        if found:
            raise OptionError(f"A Trainer with a criterion should have no {name}. Found one. {why}")
    if trainer.args.n_gpu > 1:
        raise OptionError(
            f"A process should use one GPU. Found {trainer.args.n_gpu}, for which the Trainer takes nn.DataParallel, whose "
            "replicas hide the graph. Start with torchrun --nproc_per_node=N, or set CUDA_VISIBLE_DEVICES to one GPU."
        )
    _accumulation(trainer.args, criterion)


def _accumulation(args: TrainingArguments, criterion: MultiTaskCriterion) -> int | str:
    """Return the calls per optimizer step that follow from the Trainer and the criterion, ``"manual"`` if it says so."""
    steps, composed = args.gradient_accumulation_steps, criterion.accumulate
    if composed not in (1, steps, "manual"):
        raise OptionError(
            f"The criterion's accumulate should be 1 or the Trainer's gradient_accumulation_steps={steps}. "
            f"Found accumulate={composed}. Leave it out of compose(), or set criterion.accumulate = 1: the Trainer sets it."
        )
    return steps if composed != "manual" else composed


def _mean_over_ranks(here: dict[str, float]) -> dict[str, float]:
    ranks: list[dict[str, float]] = gather_object([here])
    names = dict.fromkeys(name for rank in ranks for name in rank)
    found = {name: [rank[name] for rank in ranks if name in rank] for name in names}
    return {name: sum(values) / len(values) for name, values in found.items()}


class _Steps(TrainerCallback):
    """Ends windows and epochs where the Trainer does, and clears the gradients that it does not know of."""

    def __init__(self, trainer: MultiTaskMixin) -> None:
        self._trainer = trainer
        self._scale_before = 1.0

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        criterion = self._trainer.criterion
        # What a training that was interrupted has left behind.
        criterion.step(skipped=True)
        criterion.zero_grad()
        criterion.log_dict()
        self._trainer._replay.forget()
        criterion.accumulate = _accumulation(args, criterion)  # type: ignore[assignment]
        criterion.train()

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._scale_before = self._scale()

    def _scale(self) -> float:
        # Accelerate does not notice a step that was skipped by a fused optimizer, the Trainer's own choice.
        scaler = self._trainer.accelerator.scaler
        return 1.0 if scaler is None else float(scaler.get_scale())

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        criterion = self._trainer.criterion
        skipped = self._scale() < self._scale_before
        criterion.step(skipped=skipped)
        criterion.zero_grad()
        if skipped:
            self._trainer._replay.forget()
        elif criterion.outer.wants_after_step:
            self._trainer._replay.run(self._trainer._compute_loss_again, [criterion])
        # Before the Trainer saves, so that no checkpoint lies between the last step of an epoch and its end.
        if has_length(kwargs["train_dataloader"]) and state.epoch == int(state.epoch or 0):
            criterion.end_epoch()

    def on_epoch_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if not has_length(kwargs["train_dataloader"]):
            self._trainer.criterion.end_epoch()


class _TaskMeans:
    """Mean loss per task over the labels of an evaluation set, kept on the device until it is asked for.

    Attributes:
        latest: outputs of the last batch.
    """

    def __init__(self, criterion: MultiTaskCriterion) -> None:
        self.latest: Any = None
        self._criterion = criterion
        self._rows: list[Tensor] = []

    def add(self, outputs: Any, labels: Mapping[str, Tensor | None], counted: Callable[[int], int]) -> None:
        """Add a batch; ``counted`` tells from its size how many of its samples count."""
        tasks = self._criterion.tasks
        output_of = as_mapping("outputs", outputs, tasks)
        here = {task: label for task in tasks if (label := labels.get(task)) is not None}
        size = len(next(iter(here.values())))
        kept = counted(size)
        if kept == 0:
            return
        here = {task: label[:kept] for task, label in here.items()}
        predictions = {task: prediction[:kept] for task in here if (prediction := output_of[task]) is not None}
        found = self._criterion._tasks.losses(predictions, here, None, None, None)
        values = found.values
        counts = [
            values.new_tensor(here[task].numel() if task in here else 0) if count is None else count.to(values)
            for task, count in zip(tasks, found.counts, strict=True)
        ]
        self._rows.append(torch.stack([values, torch.stack(counts)]))

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

    Numbers and arrays become tensors: floats of the default dtype, integers int64, bools bool; tensors keep their dtype. The
    labels of a task in a batch have the dtype that holds all of them. A missing label among others, None or a column that a
    row does not have, becomes NaN, or -100 where labels are integers; bools become floats then. A task that no row of a
    batch labels is absent from it, whatever other batches had. Rows whose ``labels`` is a mapping by task are taken, too.

    Args:
        tasks: names of the tasks.
        base: collates the other columns, as a tokenizer's padding collator does.
        missing: ``"ignore"`` admits rows with labels missing, as ``compose(..., missing="ignore")`` does; ``"error"`` wants
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
            DataError: a label is missing and should not be, the labels of a task differ in shape, or the base collator made
                labels of its own.
        """
        rows = [self._flat(row) for row in rows]
        columns = {column for row in rows for column in row}
        unlabelled = columns.isdisjoint(self.tasks)
        labels = {} if unlabelled else {task: self._labels(task, rows) for task in self.tasks}
        batch = dict(self.base([{name: value for name, value in row.items() if name not in self.tasks} for row in rows]))
        if unlabelled:
            return batch
        if "labels" in batch:
            raise DataError(
                f"The labels of a batch should come from the columns {list(self.tasks)} alone. Found others, made by the "
                f"base collator of {sorted(columns.difference(self.tasks))}. Drop or rename the column that is no task."
            )
        return {**batch, "labels": {task: label for task, label in labels.items() if label is not None}}

    def _flat(self, row: Row) -> Row:
        """Return a row whose labels are columns, be they columns or a mapping under ``labels``."""
        packed = row.get("labels")
        if not isinstance(packed, Mapping):
            return row
        rest = {name: value for name, value in row.items() if name != "labels"}
        return {**rest, **{task: packed[task] for task in self.tasks if task in packed}}

    def _labels(self, task: str, rows: list[Row]) -> Tensor | None:
        labels = [_tensor(task, row.get(task)) for row in rows]
        present = [label for label in labels if label is not None]
        if self.missing != "ignore":
            lacking = next((row for row in rows if task not in row), None)
            if lacking is not None:
                raise DataError(
                    f"Each row should have the label columns {list(self.tasks)}. Found {list(lacking)}, without {task!r}. "
                    'Rows may lack one with compose(..., missing="ignore").'
                )
            if present and len(present) < len(labels):
                raise DataError(
                    f"The labels of task {task!r} should be there in all rows of a batch, or be None in all. Found both. "
                    'Rows may lack one with compose(..., missing="ignore").'
                )
        if not present:
            return None
        shapes = sorted({tuple(label.shape) for label in present})
        if len(shapes) > 1:
            raise DataError(f"The labels of task {task!r} should have one shape in a batch. Found {shapes}. Pad them.")
        dtype = reduce(torch.promote_types, (label.dtype for label in present))
        if dtype is torch.bool and len(present) < len(labels):
            dtype = torch.get_default_dtype()
        blank = torch.full(shapes[0], torch.nan if dtype.is_floating_point else _MISSING_CLASS, dtype=dtype)
        return torch.stack([blank if label is None else _cast(label, dtype, self.missing) for label in labels])


def _cast(label: Tensor, dtype: torch.dtype, missing: str) -> Tensor:
    """Return a label in another dtype; one that is missing as an integer is missing as a float, too."""
    if missing == "ignore" and dtype.is_floating_point and not label.is_floating_point():
        return label.to(dtype).masked_fill(label == _MISSING_CLASS, torch.nan)
    return label.to(dtype)


def _tensor(task: str, value: Any) -> Tensor | None:
    if value is None or isinstance(value, Tensor):
        return value
    try:
        tensor = torch.as_tensor(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise DataError(f"A label of task {task!r} should be a number or an array. Found {value!r}.") from error
    if tensor.is_floating_point():
        return tensor.to(torch.get_default_dtype())
    return tensor if tensor.dtype is torch.bool else tensor.long()
