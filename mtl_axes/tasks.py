"""Tasks of a call: their kind, their valid labels, and the masked mean that turns losses per sample into one loss."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from mtl_axes._state import vector
from mtl_axes.distributed import Sync, Together, ranks, sum_over_ranks
from mtl_axes.errors import DataError, OptionError
from mtl_axes.inner import BCE, MSE, CrossEntropy, InnerShape
from mtl_axes.registry import name_of
from mtl_axes.signals import Kind, TaskInfo, wide

__all__ = [
    "Reduction",
    "TaskLosses",
    "TaskSet",
    "align",
    "as_mapping",
    "check_tensors",
    "counting",
    "infer_kind",
    "is_standard",
    "reduce_losses",
    "sample_losses",
    "standard_shape",
    "valid_labels",
]

Reduction = Literal["mean", "weighted_mean"]

_STANDARD: dict[Kind, type[InnerShape]] = {"regression": MSE, "binary": BCE, "multiclass": CrossEntropy}
_STANDARD_NAMES: dict[Kind, str] = {"regression": "mse", "binary": "bce", "multiclass": "cross_entropy"}
_IGNORED_CLASS = -100
# How often a task without any label is looked at again: each time waits for the device.
_UNLABELLED_CALLS = 8


def standard_shape(kind: Kind) -> InnerShape:
    """Return the standard loss of a kind: mse, bce or cross_entropy."""
    return _STANDARD[kind]()


def is_standard(shape: InnerShape) -> bool:
    """Return whether ``shape`` is the standard loss of a kind."""
    return type(shape) in _STANDARD.values()


def as_mapping(role: str, values: object, tasks: tuple[str, ...] | None) -> Mapping[str, Tensor | None]:
    """Return outputs or targets as a mapping from task names; a tuple or list is named by position.

    Raises:
        DataError: it is neither a mapping nor a sequence, or has another length than the tasks.
    """
    if isinstance(values, Mapping):
        return values
    if not isinstance(values, Sequence) or isinstance(values, str):
        raise DataError(
            f"{role} should be a mapping from task names, or a tuple with one tensor per task. "
            f"Found {type(values).__name__}."
        )
    names = tasks if tasks is not None else tuple(str(index) for index in range(len(values)))
    if len(values) != len(names):
        raise DataError(f"{role} should have one entry for each of the tasks {list(names)}. Found {len(values)}.")
    return dict(zip(names, values, strict=True))


def infer_kind(
    name: str,
    prediction: Tensor,
    target: Tensor,
    shape: InnerShape | None,
    labels: Tensor | None,
    default: InnerShape | None = None,
) -> Kind:
    """Return the kind of a task from its first targets.

    Args:
        name: the task, for the message.
        prediction: its prediction.
        target: its target.
        shape: the shape that the user gave for this very task, which narrows the choice to its kinds; else None.
        labels: the labelled target values, to tell 0/1 floats; None when there are none yet.
        default: the shape that the user gave for all tasks, for the message.

    Raises:
        DataError: more than one kind fits, or none.
    """
    one_more = prediction.ndim == target.ndim + 1
    # Integer targets of a shape whose predictions have several numbers per target are numbers, not classes.
    classes = one_more and not (shape is not None and shape.trailing)
    if target.dtype is torch.bool:
        fits: list[Kind] = ["binary"]
        why = "bool targets"
    elif target.is_floating_point():
        zero_one = labels is not None and bool(((labels == 0) | (labels == 1)).all())
        fits = ["regression", "binary"] if zero_one else ["regression"]
        why = "float targets that hold only 0 and 1" if zero_one else "float targets"
        if shape is not None and "binary" in shape.kinds and "regression" not in shape.kinds:
            soft = labels is None or bool(((labels >= 0) & (labels <= 1)).all())
            # A shape for nothing else says itself which values it wants.
            fits = ["binary"] if soft or shape.kinds == {"binary"} else fits
    elif target.is_complex():
        raise DataError(f"Targets of task {name!r} should be float, integer or bool. Found {target.dtype}.")
    elif classes:
        fits, why = ["multiclass"], "integer targets"
    else:
        fits, why = ["regression", "binary"], "integer targets with a prediction of the same number of dimensions"
    if shape is not None:
        possible = [kind for kind in fits if kind in shape.kinds]
        if not possible:
            raise DataError(
                f"Task {name!r} has the shape {shape!r} for {', '.join(sorted(shape.kinds))} tasks. Found {why} "
                f"{tuple(target.shape)} ({target.dtype}) with a prediction {tuple(prediction.shape)}, which fit "
                f"{' or '.join(fits)}.{_label_hint(prediction, target, shape)}"
            )
        fits = possible
    if len(fits) > 1:
        number, label = (_shape_name(kind, default) for kind in ("regression", "binary"))
        raise DataError(
            f"The kind of task {name!r} should be clear from its targets. Found {why}, which may be "
            f"{' or '.join(fits)}. Name the task's shape: inner={{{name!r}: {number!r}, ...}} for regression, "
            f"inner={{{name!r}: {label!r}, ...}} for a binary task."
        )
    return fits[0]


def _label_hint(prediction: Tensor, target: Tensor, shape: InnerShape) -> str:
    if "multiclass" not in shape.kinds or not target.is_floating_point():
        return ""
    if prediction.ndim == target.ndim + 1:
        return " For class indices use target.long()."
    return " For one column per class use target.argmax(1)." if prediction.shape == target.shape and target.ndim > 1 else ""


def _shape_name(kind: Kind, default: InnerShape | None) -> str:
    own = name_of("inner", type(default)) if default is not None and kind in default.kinds else None
    return own or _STANDARD_NAMES[kind]


def check_tensors(name: str, prediction: object, target: object) -> None:
    """Raise :class:`DataError` unless both are tensors of a usable dtype, on one device and not empty."""
    if not isinstance(prediction, Tensor) or not isinstance(target, Tensor):
        role, value = ("target", target) if isinstance(prediction, Tensor) else ("output", prediction)
        raise DataError(f"The {role} of task {name!r} should be a tensor. Found {type(value).__name__}.")
    if not prediction.is_floating_point():
        raise DataError(f"The output of task {name!r} should be floating point. Found {prediction.dtype}.")
    if prediction.device != target.device:
        raise DataError(
            f"Output and target of task {name!r} should be on one device. Found {prediction.device} and {target.device}."
        )
    if target.numel() == 0 or prediction.numel() == 0:
        raise DataError(
            f"Task {name!r} should have at least one sample. Found output {tuple(prediction.shape)} and target "
            f"{tuple(target.shape)}. Pass None as its target to leave the task out of this call."
        )


def align(role: str, name: str, values: Tensor, shape: torch.Size, *, of: str = "its target") -> Tensor:
    """Return ``values``, of the target's shape or of its leading dimensions, in the target's shape.

    Args:
        role: what they are, for the message.
        name: the task, for the message.
        values: the tensor.
        shape: that of the target, or of what else they belong to.
        of: what has this shape, for the message.

    Raises:
        DataError: the shapes do not match from the left.
    """
    if not isinstance(values, Tensor):
        raise DataError(
            f"The {role} of task {name!r} should be a tensor, given for all tasks or in a mapping by task. "
            f"Found {type(values).__name__}."
        )
    if values.shape != shape[: values.ndim] or values.ndim == 0:
        raise DataError(
            f"The {role} of task {name!r} should have the shape of {of} {tuple(shape)}, or of its leading dimensions. "
            f"Found {tuple(values.shape)}."
        )
    return values.reshape(values.shape + (1,) * (len(shape) - values.ndim)).expand(shape)


def valid_labels(name: str, target: Tensor, mask: Tensor | None, missing: str) -> Tensor | None:
    """Return a bool mask of the labels that count, in the shape of the target, or None when all do."""
    valid = None
    if mask is not None:
        valid = align("mask", name, mask, target.shape)
        if valid.dtype is not torch.bool:
            raise DataError(f"The mask of task {name!r} should be bool, True where a label is valid. Found {mask.dtype}.")
    if missing == "ignore" and target.dtype is not torch.bool:
        labelled = ~torch.isnan(target) if target.is_floating_point() else target != _IGNORED_CLASS
        valid = labelled if valid is None else valid & labelled
    return valid


def sample_losses(shape: InnerShape, prediction: Tensor, target: Tensor, valid: Tensor | None) -> Tensor:
    """Return the unreduced losses, in float32 or wider, with 0 at places that do not count; the shapes are checked already.

    Predictions and targets at those places are replaced by 0 *before* the shape, and their losses by 0 after it: a NaN
    there would otherwise come back in the gradient as NaN * 0. A pooled shape gives one loss per sample, the others one per
    entry of the target.
    """
    dtype = wide(prediction.dtype)
    # A conversion to the dtype that a tensor has already is not free.
    if prediction.dtype is not dtype:
        prediction = prediction.to(dtype)
    if target.dtype is not dtype and target.is_floating_point():
        target = target.to(dtype)
    if valid is None:
        return shape.unchecked(prediction, target)
    target = torch.where(valid, target, torch.zeros((), dtype=target.dtype, device=target.device))
    keep = valid.unsqueeze(-1 if shape.trailing else 1) if prediction.ndim > valid.ndim else valid
    prediction = torch.where(keep, prediction, 0.0)
    losses = shape.unchecked(prediction, target, valid) if shape.masks else shape.unchecked(prediction, target)
    return torch.where(counting(shape, valid), losses, 0.0)


def stand_in(shape: InnerShape, prediction: Tensor, target: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
    """Return both in their own shapes, at places that do not count with what another place holds, to check their values."""
    dim = -1 if shape.trailing else 1
    one_more = prediction.ndim > target.ndim
    entries = prediction.movedim(dim, -1) if one_more else prediction.unsqueeze(-1)
    filled = torch.where(valid.unsqueeze(-1), entries, entries[valid][0])
    return filled.movedim(-1, dim) if one_more else filled.squeeze(-1), torch.where(valid, target, target[valid][0])


def counting(shape: InnerShape, valid: Tensor) -> Tensor:
    """Return which losses of a shape count: those of valid entries, or of samples with a valid entry when it pools them."""
    return valid.flatten(1).any(1) if shape.pooled and valid.ndim > 1 else valid


def reduce_losses(
    losses: Tensor, valid: Tensor | None, sample_weight: Tensor | None, reduction: Reduction
) -> tuple[Tensor, Tensor | None, Tensor | int]:
    """Return the loss of a task, its number of valid labels (None when all are valid), and what the loss was divided by.

    ``"mean"`` divides by the number of valid labels, never by the sum of weights: a weight of 2 doubles a sample's
    gradient. ``"weighted_mean"`` divides by the sum of the weights of the valid labels. Without any valid label the loss is
    0 and stays attached to the graph, so that every head gets a (zero) gradient.
    """
    if sample_weight is not None:
        weight = sample_weight.to(losses.dtype)
        if valid is not None:
            weight = torch.where(valid, weight, 0.0)
        losses = losses * weight
    if valid is None and (reduction == "mean" or sample_weight is None):
        return losses.mean(), None, losses.numel()
    count = valid.sum() if valid is not None else None
    if reduction == "weighted_mean" and sample_weight is not None:
        denominator = weight.sum()
        # All valid weights may be 0; the loss is then 0 too.
        return losses.sum() / torch.where(denominator > 0, denominator, 1.0), count, denominator
    assert count is not None
    return losses.sum() / count.clamp_min(1), count, count


class TaskLosses(NamedTuple):
    """Losses of one call.

    Attributes:
        losses: K scalars with their graphs, None where a task is absent.
        counts: their numbers of valid labels, None where every label of the task is valid.
        masses: what each loss was divided by, 1 for a loss computed elsewhere, 0 for an absent task.
        together: what the ranks know together of this call, None on one rank and where they need not know.
    """

    losses: tuple[Tensor | None, ...]
    counts: tuple[Tensor | None, ...]
    masses: tuple[Tensor | int, ...]
    together: Together | None = None

    @property
    def whole(self) -> bool:
        """True when the losses were scaled to the whole batch of all ranks."""
        return self.together is not None and self.together.whole

    def over_ranks(self, sync: Sync) -> TaskLosses:
        """Return the same losses with what the ranks know together of them, in one collective.

        With ``sync="gradients"`` each loss is scaled by W n_local / n_global, for W ranks and n labels: the mean over ranks
        of its gradient is then that of the whole batch; of a shape that couples samples, that of the ranks' batches side by
        side. Otherwise every rank that has a task counts alike, as it does in
        the mean of gradients that DistributedDataParallel makes.
        """
        values, labelled, whole = self.values(), self.labelled(), sync == "gradients"
        everyone = torch.ones_like(values) if labelled is None else labelled.to(values.dtype)
        mass = self._mass(values) if whole else everyone
        total, masses = sum_over_ranks(sync, torch.where(mass > 0, mass * values, 0.0), mass)
        assert total is not None and masses is not None
        anywhere = masses > 0
        mean = total / torch.where(anywhere, masses, 1.0)
        if not whole:
            return self._replace(together=Together(mean, masses / ranks(sync), whole))
        scales = (ranks(sync) * mass / torch.where(anywhere, masses, 1.0)).unbind()
        losses = tuple(
            None if loss is None else loss * scale.to(loss) for loss, scale in zip(self.losses, scales, strict=True)
        )
        return self._replace(losses=losses, together=Together(mean, anywhere.to(mean.dtype), whole))

    def _mass(self, like: Tensor) -> Tensor:
        known = [mass for mass in self.masses if not isinstance(mass, Tensor)]
        if len(known) == len(self.masses):
            return vector(known, like.dtype, like.device)
        return torch.stack(
            [mass.detach().to(like) if isinstance(mass, Tensor) else like.new_full((), mass) for mass in self.masses]
        )

    def values(self) -> Tensor:
        """Return the detached losses (K,), 0 where a task is absent: those of the whole batch where they are known."""
        if self.together is not None and self.together.whole:
            return self.together.losses
        present = [loss.detach() for loss in self.losses if loss is not None]
        dtype, device = present[0].dtype, present[0].device
        if any(loss.dtype is not dtype or loss.device != device for loss in present):
            present = [loss.to(device, dtype) for loss in present]
        if len(present) == len(self.losses):
            return torch.stack(present)
        here, zero = iter(present), torch.zeros((), dtype=dtype, device=device)
        return torch.stack([zero if loss is None else next(here) for loss in self.losses])

    def labelled(self) -> Tensor | None:
        """Return which tasks have a label, as (K,) bools on the device of the losses; None when all of them do.

        With losses of the whole batch: which of them have one on any rank.
        """
        if self.together is not None and self.together.whole:
            return self.together.fraction > 0
        partial = any(count is not None for count in self.counts)
        flags = tuple(loss is not None for loss in self.losses)
        if not partial and all(flags):
            return None
        like = next(loss for loss in self.losses if loss is not None)
        if not partial:
            return vector(flags, torch.bool, like.device)
        return torch.stack(
            [
                torch.full((), flag, dtype=torch.bool, device=like.device) if count is None else count > 0
                for flag, count in zip(flags, self.counts, strict=True)
            ]
        )


class Snapshot(NamedTuple):
    """What a :class:`TaskSet` has learned from its calls."""

    names: tuple[str, ...]
    kinds: dict[str, Kind]
    resolved: dict[str, InnerShape]
    checked: set[str]
    guessed: set[str]
    unlabelled: dict[str, int]
    called: bool


class TaskSet(nn.Module):
    """The tasks of a criterion: their names and order, their kinds and shapes, and the losses of a call.

    Args:
        inner: one shape for every task of its kinds, or a mapping from task to shape.
        names: names of the tasks in order, or None to take them from the first call.
        missing: ``"ignore"`` counts NaN and -100 labels as unlabelled.
        reduction: ``"mean"`` or ``"weighted_mean"``, see :func:`reduce_losses`.
        nonnegative: refuse negative losses computed elsewhere, for a weighting that takes ratios of them.
        debug: check values in every call, not only in the first one of a task.
    """

    def __init__(
        self,
        inner: InnerShape | Mapping[str, InnerShape],
        names: Sequence[str] | None,
        *,
        missing: Literal["error", "ignore"],
        reduction: Reduction,
        nonnegative: bool,
        debug: bool,
    ) -> None:
        super().__init__()
        self.nonnegative = nonnegative
        self.missing = missing
        self.reduction: Reduction = reduction
        self.debug = debug
        self.given: dict[str, InnerShape] = dict(inner) if isinstance(inner, Mapping) else {}
        self.default = inner if isinstance(inner, InnerShape) else None
        # Task names may hold any character, module names may not: the shapes are registered by position.
        self.shape_modules = nn.ModuleList(self.given.values())
        self.names: tuple[str, ...] = ()
        self.kinds: dict[str, Kind] = {}
        self._resolved: dict[str, InnerShape] = {}
        self._checked: set[str] = set()
        self._guessed: set[str] = set()
        self._unlabelled: dict[str, int] = {}
        self._called = False
        if names is None and self.given:
            names = tuple(self.given)
        if names is not None:
            self.name(tuple(names))

    def name(self, names: tuple[str, ...]) -> None:
        """Fix the names of the tasks.

        Raises:
            OptionError: a name is not a string or comes twice, there is none, or the inner mapping names another task.
        """
        if not names or not all(isinstance(name, str) and name for name in names) or len(set(names)) != len(names):
            raise OptionError(f"Tasks should be distinct non-empty names. Found {list(names)}.")
        unknown = [name for name in self.given if name not in names]
        if unknown:
            raise OptionError(f"The inner mapping should name tasks of {list(names)}. Found {unknown}.")
        self.names = names

    def _name_from_call(self, names: tuple[str, ...], role: str) -> None:
        if not names:
            raise DataError(f"The first call should have a {role} for every task, which names the tasks. Found none.")
        self.name(names)

    @property
    def shapes(self) -> dict[str, InnerShape]:
        """The shape of every task for which it is known."""
        return {name: shape for name in self.names if (shape := self._shape_of(name)) is not None}

    def _shape_of(self, name: str) -> InnerShape | None:
        return self.given.get(name) or self._resolved.get(name)

    @property
    def settled(self) -> bool:
        """True when no call can teach anything new: every task was checked, and no value is read any more."""
        return 0 < len(self.names) == len(self._checked) and not self.debug

    @property
    def legible(self) -> bool:
        """True when a call can do without reading values: every task was checked, or its kind came with a state."""
        return bool(self.names) and all(name in self._checked or name in self.known_kinds() for name in self.names)

    def snapshot(self) -> Snapshot:
        """Return what was learned of the tasks from the calls so far."""
        return Snapshot(
            self.names,
            dict(self.kinds),
            dict(self._resolved),
            set(self._checked),
            set(self._guessed),
            dict(self._unlabelled),
            self._called,
        )

    def go_back(self, snapshot: Snapshot) -> None:
        """Forget what was learned since ``snapshot``, so that a bad call fixes nothing."""
        self.names, self.kinds, self._resolved, self._checked, self._guessed, self._unlabelled, self._called = snapshot

    def infos(self) -> tuple[TaskInfo, ...]:
        """Return what a weighting may know of the tasks."""
        shapes = self.shapes
        return tuple(
            TaskInfo(name, self.kinds.get(name), shapes[name].lower_bound if name in shapes else None) for name in self.names
        )

    def known_kinds(self) -> dict[str, Kind]:
        """Return the kinds that were inferred from labels, for the state."""
        return {name: kind for name, kind in self.kinds.items() if name not in self._guessed}

    def settled_kinds(self) -> dict[str, Kind | None]:
        """Return the kinds of the tasks of which nothing more is to be learned; None for a task without one."""
        known = self.known_kinds()
        return {name: known.get(name) for name in self.names if name in known or name in self._checked}

    def adopt(self, kinds: Mapping[str, Kind | None]) -> bool:
        """Take over kinds that other ranks have told from their labels; return whether all tasks are settled."""
        known = self.known_kinds()
        for name, kind in kinds.items():
            if kind is not None and name not in known:
                self._settle(name, kind)
                self._guessed.discard(name)
        return len(kinds) == len(self.names)

    def restore(self, names: tuple[str, ...], kinds: Mapping[str, Kind]) -> None:
        """Take over names and kinds from a saved state."""
        if not self.names:
            self.name(names)
        for name, kind in kinds.items():
            self._settle(name, kind)

    def _settle(self, name: str, kind: Kind) -> None:
        self.kinds[name] = kind
        if name not in self.given:
            default = self.default
            self._resolved[name] = default if default is not None and kind in default.kinds else standard_shape(kind)
        default = self.default
        if default is None or is_standard(default) or len(self.kinds) < len(self.names):
            return
        if all(shape is not default for shape in self._resolved.values()):
            raise DataError(
                f"The inner shape {default!r} serves {', '.join(sorted(default.kinds))} tasks. Found none: {self.kinds}. "
                "Choose a shape for one of these, or name the shape of each task in a mapping."
            )

    def losses(
        self,
        outputs: object,
        targets: object,
        mask: Mapping[str, Tensor] | Tensor | None,
        sample_weight: Mapping[str, Tensor] | Tensor | None,
        extra: Mapping[str, Tensor] | None,
    ) -> TaskLosses:
        """Return the losses of a call, from outputs and targets, and from ``extra`` losses computed elsewhere."""
        if extra is not None and not isinstance(extra, Mapping):
            raise DataError(f"extra should be a mapping from task names to losses. Found {type(extra).__name__}.")
        extra = extra or {}
        known = self.names or None
        plain = known if known is None or not extra else tuple(name for name in known if name not in extra)
        target_of = as_mapping("targets", targets, plain)
        output_of = as_mapping("outputs", outputs, tuple(target_of) if plain is None else plain)
        if known is None:
            self._name_from_call((*target_of, *(name for name in extra if name not in target_of)), "target")
        for role, values in (("target", target_of), ("extra loss", extra), ("mask", mask), ("sample_weight", sample_weight)):
            if values is not None and isinstance(values, Mapping):
                self._refuse_unknown(role, values)
        twice = [name for name in extra if target_of.get(name) is not None]
        if twice:
            raise DataError(f"A task should have a target or an extra loss. Found both for {twice}.")
        loss: Tensor | None
        count: Tensor | None
        mass: Tensor | int
        losses: list[Tensor | None] = []
        counts: list[Tensor | None] = []
        masses: list[Tensor | int] = []
        read_values = False
        for name in self.names:
            target = target_of.get(name)
            if name in extra:
                loss, count, mass = self._scalar(name, extra[name]), None, 1
            elif target is None:
                loss, count, mass = None, None, 0
            else:
                output = output_of.get(name)
                if output is None:
                    raise DataError(
                        f"Task {name!r} has a target and should have an output of the same name. "
                        f"Found outputs {list(output_of)}."
                    )
                read_values = read_values or self.debug or name not in self._checked
                loss, count, mass = self._loss(name, output, target, _pick(mask, name), _pick(sample_weight, name))
            losses.append(loss)
            counts.append(count)
            masses.append(mass)
        found = TaskLosses(tuple(losses), tuple(counts), tuple(masses))
        _require_present(found, self.names)
        if self.debug or (read_values and not self._called and not torch.compiler.is_compiling()):
            labelled = found.labelled()
            if labelled is not None and not bool(labelled.any()):
                raise DataError(f"At least one of the tasks {list(self.names)} should have a valid label. Found all masked.")
        if not self._called and not torch.compiler.is_compiling():
            self._called = True
        return found

    def _refuse_unknown(self, role: str, values: Mapping[str, Tensor | None]) -> None:
        unknown = [name for name in values if name not in self.names]
        if unknown:
            raise DataError(
                f"Each {role} should belong to one of the tasks {list(self.names)}. Found {unknown}. The tasks are "
                "those of compose(tasks=[...]), else of the first call."
            )

    def scalars(self, losses: object) -> TaskLosses:
        """Return losses computed elsewhere as the losses of a call."""
        loss_of = as_mapping("losses", losses, self.names or None)
        if not self.names:
            self._name_from_call(tuple(loss_of), "loss")
        self._refuse_unknown("loss", loss_of)
        scalars = tuple(None if (loss := loss_of.get(name)) is None else self._scalar(name, loss) for name in self.names)
        found = TaskLosses(scalars, (None,) * len(scalars), tuple(int(loss is not None) for loss in scalars))
        _require_present(found, self.names)
        return found

    def _loss(
        self, name: str, prediction: Tensor, target: Tensor, mask: Tensor | None, sample_weight: Tensor | None
    ) -> tuple[Tensor, Tensor | None, Tensor | int]:
        check_tensors(name, prediction, target)
        valid = valid_labels(name, target, mask, self.missing)
        # A compiled call reads no value, and is left to Python where one would have to be read.
        reads_values = self.debug or (name not in self._checked and not torch.compiler.is_compiling())
        labels = target if valid is None or not reads_values else target[valid]
        if reads_values:
            self._settle_kind(name, prediction, target, labels)
        shape = self._shape_of(name)
        assert shape is not None
        try:
            shape.check(prediction, target)
            if reads_values and labels.numel():
                shape.check_values(*((prediction, target) if valid is None else stand_in(shape, prediction, target, valid)))
        except DataError as error:
            raise DataError(f"Task {name!r}, shape {shape!r}: {error}") from error
        losses = sample_losses(shape, prediction, target, valid)
        counts = None if valid is None else counting(shape, valid)
        weight = None if sample_weight is None else self._align_weight(name, shape, sample_weight, losses)
        if reads_values:
            self._check_weights(name, counts, weight)
            self._note_checked(name, labels)
        return reduce_losses(losses, counts, weight, self.reduction)

    @staticmethod
    def _align_weight(name: str, shape: InnerShape, weight: Tensor, losses: Tensor) -> Tensor:
        of = "its losses, one per sample," if shape.pooled else "its target"
        return align("sample_weight", name, weight, losses.shape, of=of).detach()

    def _settle_kind(self, name: str, prediction: Tensor, target: Tensor, labels: Tensor) -> None:
        """Check the labels of a task, and tell its kind from them unless it is known."""
        empty = labels.numel() == 0
        if not empty and labels.is_floating_point() and not bool(torch.isfinite(labels).all()):
            raise DataError(
                f"Targets of task {name!r} should be finite. Found NaN or infinite ones without a mask. Pass a mask, or "
                'compose(..., missing="ignore"), which counts NaN as unlabelled.'
            )
        if name not in self.kinds or (name in self._guessed and not empty):
            self._settle(
                name, infer_kind(name, prediction, target, self.given.get(name), None if empty else labels, self.default)
            )
            # Without a label a float target passes for regression until values show.
            (self._guessed.add if empty else self._guessed.discard)(name)

    @staticmethod
    def _check_weights(name: str, valid: Tensor | None, weight: Tensor | None) -> None:
        if weight is None:
            return
        weights = weight if valid is None else weight[valid]
        if not bool((torch.isfinite(weights) & (weights >= 0)).all()):
            raise DataError(f"The sample_weight of task {name!r} should be finite and >= 0. Found other values.")

    def _note_checked(self, name: str, labels: Tensor) -> None:
        """Values of a task are read until it had a label, and a few times at most: each time waits for the device."""
        empty = labels.numel() == 0
        self._unlabelled[name] = self._unlabelled.get(name, 0) + empty
        if not empty or self._unlabelled[name] >= _UNLABELLED_CALLS:
            self._checked.add(name)

    def _scalar(self, name: str, loss: object) -> Tensor:
        if not isinstance(loss, Tensor) or loss.ndim != 0 or not loss.is_floating_point():
            found = f"a tensor {tuple(loss.shape)} of {loss.dtype}" if isinstance(loss, Tensor) else type(loss).__name__
            raise DataError(f"The loss of task {name!r} should be a 0-dim floating point tensor. Found {found}.")
        reads_value = self.debug or (name not in self._checked and not torch.compiler.is_compiling())
        if self.nonnegative and reads_value and bool(loss < 0):
            raise DataError(
                f"The loss of task {name!r} should not be negative, because the weighting takes ratios of losses. "
                f"Found {loss.item():.4g}. Choose a weighting that does not."
            )
        if reads_value:
            self._checked.add(name)
        dtype = wide(loss.dtype)
        return loss if loss.dtype is dtype else loss.to(dtype)


def _pick(values: Mapping[str, Tensor] | Tensor | None, name: str) -> Tensor | None:
    return values.get(name) if isinstance(values, Mapping) else values


def _require_present(found: TaskLosses, names: tuple[str, ...]) -> None:
    if all(loss is None for loss in found.losses):
        raise DataError(f"At least one of the tasks {list(names)} should have a target or a loss. Found none.")
