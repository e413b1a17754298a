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

__all__ = ["Call", "Guard", "Step", "Trial", "total", "untouched"]

Step = Callable[[Any], object]

_OPTIONS = ("mask", "sample_weight", "extra")


class Call(NamedTuple):
    """What a forward pass hands to a criterion: losses by task, or outputs and targets with further arguments."""

    losses: Mapping[str, Tensor | None] | None
    outputs: Any = None
    targets: Any = None
    options: Mapping[str, Any] = {}


class Trial:
    """A model and a criterion to try things on: copies, or the user's own model behind a step, guarded by ``untouched``.

    Attributes:
        criterion: a copy of the user's, in training mode.
        notes: what the trial does not see of the user's training.

    Raises:
        DataError: the criterion is none, or the model is neither a module nor a function, or cannot be copied.
    """

    def __init__(self, criterion: MultiTaskCriterion, model_or_step: nn.Module | Step) -> None:
        if not isinstance(criterion, MultiTaskCriterion):
            raise DataError(
                f"advise(criterion, model_or_step, batches) needs a criterion first. Found {type(criterion).__name__}. "
                "Pass what compose() returned."
            )
        self.notes: list[str] = []
        self._model: nn.Module | None = None
        self._step: Step | None = None
        if isinstance(model_or_step, nn.Module):
            model = self._unwrapped(model_or_step)
            try:
                # Together, so that shared= of the criterion's copy leads into the model's copy.
                self._model, self.criterion = copy.deepcopy((model, criterion))
            except Exception as error:
                raise DataError(
                    f"{type(model).__name__} cannot be copied: {error}. Pass a function instead, lambda batch: "
                    "(model(batch[0]), batch[1]): it runs the model itself, whose parameters, buffers and gradients are "
                    "restored at the end."
                ) from error
        elif callable(model_or_step):
            self._step, self.criterion = model_or_step, copy.deepcopy(criterion)
        else:
            raise DataError(
                "advise() needs a model, or a function from a batch to (outputs, targets) or to losses by task. Found "
                f"{type(model_or_step).__name__}."
            )
        self.criterion.train()

    def _unwrapped(self, model: nn.Module) -> nn.Module:
        """Return the module within torch.compile and DDP, and note what is then not measured."""
        original = getattr(model, "_orig_mod", None)
        if isinstance(original, nn.Module):
            model = original
            self.notes.append("The cost with torch.compile: the model was run uncompiled.")
        if isinstance(model, DistributedDataParallel):
            model = model.module
            self.notes.append("The cost of DDP: the model inside the wrapper was run, on this rank only.")
        if not model.training:
            self.notes.append(
                "Dropout and batch statistics: the model is in eval() mode and was measured in it. Call model.train() first "
                "to measure what training sees."
            )
        return model

    def forward(self, batch: object) -> Call:
        """Run the model on a batch.

        Raises:
            DataError: the batch, or what the step returned, has none of the documented forms.
        """
        if self._model is not None:
            if not isinstance(batch, (tuple, list)) or len(batch) != 2:
                raise DataError(
                    f"A batch for a model should be a pair (inputs, targets). Found {_form(batch)}. Pass a function instead "
                    "of the model, which returns (outputs, targets) for such a batch."
                )
            return Call(None, self._model(batch[0]), batch[1])
        assert self._step is not None
        result = self._step(batch)
        if isinstance(result, Mapping):
            return Call(result)
        if isinstance(result, (tuple, list)) and len(result) in (2, 3):
            options = result[2] if len(result) == 3 else {}
            if isinstance(options, Mapping) and set(options) <= set(_OPTIONS):
                return Call(None, result[0], result[1], options)
        raise DataError(
            "The step should return (outputs, targets), (outputs, targets, options) with options among "
            f"{', '.join(_OPTIONS)}, or a mapping from tasks to losses. Found {_form(result)}."
        )

    def losses(self, call: Call) -> TaskLosses:
        """Return the task losses of a call, each with its graph."""
        tasks, options = self.criterion._tasks, call.options
        if call.losses is None:
            arguments = (options.get(name) for name in _OPTIONS)
            return tasks.losses(call.outputs, call.targets, *arguments)
        try:
            return tasks.scalars(call.losses)
        except DataError as error:
            # The usual slip: outputs by task, which look like losses by task.
            raise DataError(
                f"{error} A step that returns one mapping returns losses; to hand over outputs, return (outputs, targets)."
            ) from error


def total(criterion: MultiTaskCriterion, call: Call) -> Tensor:
    """Return the criterion's loss for a call."""
    if call.losses is not None:
        return criterion.combine(call.losses)
    loss: Tensor = criterion(call.outputs, call.targets, **call.options)
    return loss


class Guard:
    """Saves parameters, buffers and gradients before they are used for the first time, and restores them."""

    def __init__(self) -> None:
        self._modules: set[nn.Module] = set()
        self._saved: list[tuple[Any, str, Tensor, Tensor]] = []
        self._gradients: dict[Tensor, Tensor | None] = {}

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """Within this context every module is saved before it runs for the first time."""
        handle = register_module_forward_pre_hook(self._save)
        try:
            yield
        finally:
            handle.remove()

    def _save(self, module: nn.Module, _arguments: object) -> None:
        # Steps end by the clock, at which ranks differ: those that go on would wait for the others for ever.
        if isinstance(module, DistributedDataParallel) or type(module).__name__.startswith(("FSDP", "FullySharded")):
            raise DataError(
                f"advise() runs on one process. Found {type(module).__name__}, which waits for other ranks. Call it before "
                "the model is wrapped, or with the model inside the wrapper."
            )
        for part in set(module.modules()) - self._modules:
            self._modules.add(part)
            for registry in (part._parameters, part._buffers):
                for name, tensor in registry.items():
                    if tensor is not None and not is_lazy(tensor):
                        self._saved.append((registry, name, tensor, tensor.detach().clone()))
                        self.take_gradients([tensor])

    def take_gradients(self, leaves: Iterable[Tensor]) -> None:
        """Save the gradients of leaves, and clear them so that no backward adds to them."""
        for leaf in leaves:
            if leaf.is_leaf and leaf not in self._gradients:
                self._gradients[leaf], leaf.grad = leaf.grad, None

    def clear_gradients(self) -> None:
        """Clear the gradients that backwards have left."""
        for leaf in self._gradients:
            leaf.grad = None

    def restore(self) -> None:
        """Restore everything that was saved."""
        with torch.no_grad():
            # Backwards: a tied tensor may have been saved again after its first use.
            for registry, name, tensor, values in reversed(self._saved):
                registry[name] = tensor
                # Not by its version: batch norm updates its statistics without raising it.
                if not torch.equal(tensor, values):
                    tensor.copy_(values)
        for leaf, gradient in self._gradients.items():
            leaf.grad = gradient


@contextlib.contextmanager
def untouched(batches: object) -> Iterator[Guard]:
    """Within this context random numbers are drawn, and modules run that the guard watches, without a trace."""
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
            guard.restore()
            random.setstate(before)
            for generator, state in orders.items():
                generator.set_state(state)
            if numpy is not None:
                numpy.random.set_state(drawn)


def _generators(batches: object) -> Iterator[torch.Generator]:
    """Yield the generators of a DataLoader and its samplers."""
    sampler = getattr(batches, "batch_sampler", None)
    for part in (batches, getattr(batches, "sampler", None), sampler, getattr(sampler, "sampler", None)):
        generator = getattr(part, "generator", None)
        if isinstance(generator, torch.Generator):
            yield generator


def _form(value: object) -> str:
    if isinstance(value, (tuple, list)):
        return f"a {type(value).__name__} of {len(value)}: {', '.join(type(part).__name__ for part in value)}"
    return type(value).__name__
