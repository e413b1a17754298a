"""The tasks of a criterion: their names and order, their kinds and shapes, and the losses of a call."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from mtl_axes.errors import DataError, OptionError
from mtl_axes.inner import InnerShape
from mtl_axes.signals import Kind, TaskInfo, wide
from mtl_axes.tasks.kinds import infer_kind, is_standard, standard_shape
from mtl_axes.tasks.losses import TaskLosses, seal
from mtl_axes.tasks.masks import (
    Reduction,
    align,
    check_tensors,
    counting,
    reduce_losses,
    sample_losses,
    stand_in,
    valid_labels,
)

__all__ = ["STACKED", "TaskSet", "as_mapping"]

# How often the values of a task without any label are read: each time waits for the device.
_UNLABELLED_CALLS = 8
STACKED = (
    "combine() got stacked losses: measuring each then sends zero gradients through every head. Pass a mapping or a tuple "
    "of scalars."
)


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

    Attributes:
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
    ) -> None:
        super().__init__()
        self.nonnegative = nonnegative
        self.missing = missing
        self.reduction: Reduction = reduction
        self.debug = False
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
        *,
        compiled: bool = False,
    ) -> TaskLosses:
        """Return the losses of a call, from outputs and targets, and from ``extra`` losses computed elsewhere.

        A ``compiled`` call reads no values: the criterion leaves it to Python if values have to be read.
        """
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
        predictions: list[Tensor] = []
        read_values = False
        for name in self.names:
            target = target_of.get(name)
            if name in extra:
                loss, count, mass = self._scalar(name, extra[name], compiled), None, 1
            elif target is None:
                loss, count, mass = None, None, 0
            else:
                output = output_of.get(name)
                if output is None:
                    raise DataError(
                        f"Task {name!r} has a target and should have an output of the same name. "
                        f"Found outputs {list(output_of)}."
                    )
                predictions.append(output)
                reads = self._reads_values(name, compiled)
                read_values = read_values or reads
                loss, count, mass = self._loss(name, output, target, _pick(mask, name), _pick(sample_weight, name), reads)
            losses.append(loss)
            counts.append(count)
            masses.append(mass)
        _require_present(losses, self.names)
        call = seal(tuple(losses), tuple(counts), tuple(masses), tuple(predictions))
        if (
            (self.debug or (read_values and not self._called))
            and call.labelled is not None
            and not bool(call.labelled.any())
        ):
            raise DataError(f"At least one of the tasks {list(self.names)} should have a valid label. Found all masked.")
        if not self._called and not compiled:
            self._called = True
        return call

    def _refuse_unknown(self, role: str, values: Mapping[str, Tensor | None]) -> None:
        unknown = [name for name in values if name not in self.names]
        if unknown:
            raise DataError(
                f"Each {role} should belong to one of the tasks {list(self.names)}. Found {unknown}. The tasks are "
                "those of compose(tasks=[...]), else of the first call."
            )

    def _reads_values(self, name: str, compiled: bool) -> bool:
        return self.debug or (name not in self._checked and not compiled)

    def scalars(self, losses: object, *, compiled: bool = False) -> TaskLosses:
        """Return losses computed elsewhere as the losses of a call."""
        if isinstance(losses, Tensor):
            if losses.ndim != 1:
                raise DataError(f"Stacked losses should have the shape (K,). Found {tuple(losses.shape)}.")
            losses = losses.unbind()
        loss_of = as_mapping("losses", losses, self.names or None)
        if not self.names:
            self._name_from_call(tuple(loss_of), "loss")
        self._refuse_unknown("loss", loss_of)
        scalars = tuple(
            None if (loss := loss_of.get(name)) is None else self._scalar(name, loss, compiled) for name in self.names
        )
        _require_present(scalars, self.names)
        return seal(scalars, (None,) * len(scalars), tuple(int(loss is not None) for loss in scalars))

    def _loss(
        self,
        name: str,
        prediction: Tensor,
        target: Tensor,
        mask: Tensor | None,
        sample_weight: Tensor | None,
        reads_values: bool,
    ) -> tuple[Tensor, Tensor | None, Tensor | int]:
        check_tensors(name, prediction, target)
        valid = valid_labels(name, target, mask, self.missing)
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
        weight = None if sample_weight is None else _align_weight(name, shape, sample_weight, losses)
        if reads_values:
            _check_weights(name, counts, weight)
            self._note_checked(name, labels)
        return reduce_losses(losses, counts, weight, self.reduction)

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

    def _note_checked(self, name: str, labels: Tensor) -> None:
        """Values of a task are read until it had a label, and a few times at most: each time waits for the device."""
        empty = labels.numel() == 0
        self._unlabelled[name] = self._unlabelled.get(name, 0) + empty
        if not empty or self._unlabelled[name] >= _UNLABELLED_CALLS:
            self._checked.add(name)

    def _scalar(self, name: str, loss: object, compiled: bool) -> Tensor:
        if not isinstance(loss, Tensor) or loss.ndim != 0 or not loss.is_floating_point():
            found = f"a tensor {tuple(loss.shape)} of {loss.dtype}" if isinstance(loss, Tensor) else type(loss).__name__
            raise DataError(f"The loss of task {name!r} should be a 0-dim floating point tensor. Found {found}.")
        reads_value = self._reads_values(name, compiled)
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


def _align_weight(name: str, shape: InnerShape, weight: Tensor, losses: Tensor) -> Tensor:
    of = "its losses, one per sample," if shape.pooled else "its target"
    return align("sample_weight", name, weight, losses.shape, of=of).detach()


def _check_weights(name: str, valid: Tensor | None, weight: Tensor | None) -> None:
    if weight is None:
        return
    weights = weight if valid is None else weight[valid]
    if not bool((torch.isfinite(weights) & (weights >= 0)).all()):
        raise DataError(f"The sample_weight of task {name!r} should be finite and >= 0. Found other values.")


def _require_present(losses: Sequence[Tensor | None], names: tuple[str, ...]) -> None:
    if all(loss is None for loss in losses):
        raise DataError(f"At least one of the tasks {list(names)} should have a target or a loss. Found none.")
