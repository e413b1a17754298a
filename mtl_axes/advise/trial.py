"""The user's model and criterion, run without leaving a trace."""

from __future__ import annotations

import contextlib
import copy
import random
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.nn.parallel import DistributedDataParallel
from torch.nn.parameter import is_lazy

from mtl_axes.criterion import MultiTaskCriterion
from mtl_axes.errors import DataError
from mtl_axes.tasks import TaskLosses

__all__ = ["Call", "Guard", "Step", "Trial", "untouched"]

Step = Callable[[Any], object]

_OPTIONS = ("mask", "sample_weight", "extra")


class Call(NamedTuple):
    """What a forward pass hands to a criterion: losses by task, or outputs and targets with further arguments."""

    losses: Mapping[str, Tensor | None] | None
    outputs: Any = None
    targets: Any = None
    options: Mapping[str, Any] = {}


class Trial:
    """A model and a criterion to try things on: copies, or the user's own model behind a step, which ``untouched`` guards.

    Attributes:
        criterion: a copy of the user's, in training mode.
        notes: what to know about how it is run.

    Raises:
        DataError: the model is neither a module nor a function, or cannot be copied; the criterion is none.
    """

    def __init__(self, criterion: MultiTaskCriterion, model_or_step: nn.Module | Step) -> None:
        if not isinstance(criterion, MultiTaskCriterion):
            raise DataError(
                "advise(criterion, model_or_step, batches) should be given a criterion first, as compose() returns it. "
                f"Found {type(criterion).__name__}."
            )
        self.notes: list[str] = []
        self._model: nn.Module | None = None
        self._step: Step | None = None
        if isinstance(model_or_step, nn.Module):
            model = model_or_step
            original = getattr(model, "_orig_mod", None)
            if isinstance(original, nn.Module):
                model = original
                self.notes.append(
                    "The model is compiled: it was run as it was before, so that the costs are not those of it."
                )
            if isinstance(model, DistributedDataParallel):
                model = model.module
                self.notes.append(
                    "What the wrapping for several ranks costs: the model within it was run, on this rank alone."
                )
            if not model.training:
                self.notes.append(
                    "The model is in eval() mode and was measured in it: without dropout and batch statistics. Call "
                    "model.train() first to measure what training sees."
                )
            try:
                # Together, so that shared= of the criterion's copy leads into the model's copy.
                self._model, self.criterion = copy.deepcopy((model, criterion))
            except Exception as error:
                raise DataError(
                    f"advise() runs a copy of the model, and this one cannot be copied ({type(error).__name__}: {error}). "
                    "Pass a function instead, lambda batch: (model(batch[0]), batch[1]): it runs the model itself, which "
                    "gets back its parameters, buffers and gradients."
                ) from error
        elif callable(model_or_step):
            self._step, self.criterion = model_or_step, copy.deepcopy(criterion)
        else:
            raise DataError(
                "advise() should be given a model, or a function from a batch to (outputs, targets) or to losses by task. "
                f"Found {type(model_or_step).__name__}."
            )
        self.criterion.train()

    def forward(self, batch: object) -> Call:
        """Run the model on a batch.

        Raises:
            DataError: the batch, or what the step returned, has another form than is documented.
        """
        if self._model is not None:
            if not isinstance(batch, (tuple, list)) or len(batch) != 2:
                raise DataError(
                    f"A batch for a model should be a pair (inputs, targets). Found {_form(batch)}. Pass a function "
                    "instead of the model, which returns (outputs, targets) for such a batch."
                )
            return Call(None, self._model(batch[0]), batch[1])
        assert self._step is not None
        found = self._step(batch)
        if isinstance(found, Mapping):
            return Call(found)
        if isinstance(found, (tuple, list)) and len(found) in (2, 3):
            options = found[2] if len(found) == 3 else {}
            if isinstance(options, Mapping) and set(options) <= set(_OPTIONS):
                return Call(None, found[0], found[1], options)
        raise DataError(
            "The step should return (outputs, targets), (outputs, targets, options) with options among "
            f"{', '.join(_OPTIONS)}, or a mapping from tasks to losses. Found {_form(found)}."
        )

    def losses(self, call: Call) -> TaskLosses:
        """Return the task losses of a call, each with its graph."""
        tasks = self.criterion._tasks
        if call.losses is not None:
            try:
                return tasks.scalars(call.losses)
            except DataError as error:
                # The usual slip: outputs by task, which look like losses by task.
                raise DataError(
                    f"{error} A step that returns one mapping returns losses; to hand over outputs, return "
                    "(outputs, targets)."
                ) from error
        given = call.options
        return tasks.losses(call.outputs, call.targets, given.get("mask"), given.get("sample_weight"), given.get("extra"))

    @staticmethod
    def total(criterion: MultiTaskCriterion, call: Call) -> Tensor:
        """Return what a criterion makes of a call."""
        if call.losses is not None:
            return criterion.combine(call.losses)
        total: Tensor = criterion(call.outputs, call.targets, **call.options)
        return total


class _Kept(NamedTuple):
    """A parameter or buffer as it was: where it is registered, the tensor itself, its values, and its gradient."""

    registry: Any
    name: str
    tensor: Tensor
    values: Tensor
    gradient: Tensor | None


class Guard:
    """Parameters, buffers and gradients of what runs, as they were before it ran for the first time."""

    def __init__(self) -> None:
        self._kept: dict[tuple[int, str], _Kept] = {}
        self._modules: set[nn.Module] = set()
        self._leaves: dict[Tensor, Tensor | None] = {}

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """Within this context every module that runs is kept as it is before its first run."""
        handle = register_module_forward_pre_hook(self._see)
        try:
            yield
        finally:
            handle.remove()

    def _see(self, module: nn.Module, _arguments: object) -> None:
        # Steps end by the clock, at which ranks differ: those that go on would wait for the others for ever.
        if isinstance(module, DistributedDataParallel) or type(module).__name__.startswith(("FSDP", "FullySharded")):
            raise DataError(
                f"advise() should run a model of one process. Found {type(module).__name__}, which waits for other ranks. "
                "Call it before the model is wrapped, or with what is inside the wrapper."
            )
        for part in module.modules():
            if part in self._modules:
                continue
            self._modules.add(part)
            for registry in (part._parameters, part._buffers):
                for name, tensor in registry.items():
                    if tensor is None or is_lazy(tensor):
                        continue
                    gradient = self._take_gradient(tensor)
                    values = tensor.detach().clone()
                    self._kept[id(registry), name] = _Kept(registry, name, tensor, values, gradient)

    @staticmethod
    def _take_gradient(tensor: Tensor) -> Tensor | None:
        """Take the gradient off a leaf: what backwards leave is not to be added to it."""
        if not tensor.is_leaf:
            return None
        gradient, tensor.grad = tensor.grad, None
        return gradient

    def see_leaves(self, leaves: Iterable[Tensor]) -> None:
        """Keep the gradients of leaves of the graph that no module holds."""
        known = {id(kept.tensor) for kept in self._kept.values()}
        for leaf in leaves:
            if id(leaf) not in known and leaf not in self._leaves:
                self._leaves[leaf] = self._take_gradient(leaf)

    def clear_gradients(self) -> None:
        """Take off what backwards have left."""
        for leaf in [*(kept.tensor for kept in self._kept.values()), *self._leaves]:
            self._take_gradient(leaf)

    def put_back(self) -> None:
        """Let everything be as it was."""
        with torch.no_grad():
            for kept in self._kept.values():
                kept.registry[kept.name] = kept.tensor
                # Not by its version: batch norm moves its statistics without raising that.
                if not torch.equal(kept.tensor, kept.values):
                    kept.tensor.copy_(kept.values)
                if kept.tensor.is_leaf:
                    kept.tensor.grad = kept.gradient
        for leaf, gradient in self._leaves.items():
            leaf.grad = gradient


@contextlib.contextmanager
def untouched(batches: object) -> Iterator[Guard]:
    """Within this context random numbers are drawn, also for the order of the batches, and modules run that the guard
    watches, without a trace."""
    orders = {generator: generator.get_state() for generator in _generators(batches)}
    numpy = sys.modules.get("numpy")
    drawn = numpy.random.get_state() if numpy is not None else None
    before = random.getstate()
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []  # type: ignore[no-untyped-call]
    guard = Guard()
    with torch.random.fork_rng(devices=devices), torch.enable_grad():
        try:
            yield guard
        finally:
            guard.put_back()
            random.setstate(before)
            for generator, state in orders.items():
                generator.set_state(state)
            if numpy is not None:
                numpy.random.set_state(drawn)


def _generators(batches: object) -> Iterator[torch.Generator]:
    """Yield what a DataLoader and its samplers draw from."""
    sampler = getattr(batches, "batch_sampler", None)
    for part in (batches, getattr(batches, "sampler", None), sampler, getattr(sampler, "sampler", None)):
        generator = getattr(part, "generator", None)
        if isinstance(generator, torch.Generator):
            yield generator


def _form(found: object) -> str:
    if isinstance(found, (tuple, list)):
        return f"a {type(found).__name__} of {len(found)}: {', '.join(type(part).__name__ for part in found)}"
    return type(found).__name__
