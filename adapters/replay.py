"""Running the batches of an optimizer step again, after it, for a weighting that wants to know what the step did."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from mtl_axes import MultiTaskCriterion

__all__ = ["Replay", "untouched"]


class Replay:
    """The calls of one window, to be made again after the optimizer step.

    They are made without gradients and in the mode that the model is in, and each begins with the random numbers that it
    began with the first time, so that dropout leaves out the same: what the losses show is the step. Nothing else is to
    tell that they were made: see :func:`untouched`.

    Args:
        model: what the calls run.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._calls: list[tuple[tuple[Any, ...], list[Tensor]]] = []

    def remember(self, *arguments: Any) -> None:
        """Take note, before a call of the model is made, of what it is made with."""
        self._calls.append((arguments, [get() for get, _ in _generators(self._model)]))

    def forget(self) -> None:
        """Forget the calls, as of a step that was skipped."""
        self._calls = []

    def run(self, call: Callable[..., object], criteria: Iterable[MultiTaskCriterion]) -> None:
        """Make the calls again within ``after_step()`` of the criteria, and forget them."""
        calls, self._calls = self._calls, []
        with untouched(self._model), torch.no_grad(), contextlib.ExitStack() as blocks:
            for criterion in criteria:
                blocks.enter_context(criterion.after_step())
            for arguments, states in calls:
                _restore(self._model, states)
                call(*arguments)


@contextlib.contextmanager
def untouched(model: nn.Module) -> Iterator[None]:
    """Within this context the model may run in training mode and leaves nothing behind.

    Its buffers, as the running statistics of BatchNorm, and torch's random numbers, on the CPU and on the device of the
    model, are put back when it ends. Not those of a criterion among its modules, nor what modules keep elsewhere.
    """
    states = [get() for get, _ in _generators(model)]
    apart = {part for module in model.modules() if isinstance(module, MultiTaskCriterion) for part in module.modules()}
    buffers = [
        (module, name, buffer, buffer.detach().clone())
        for module in model.modules()
        if module not in apart
        for name, buffer in module._buffers.items()
        if buffer is not None
    ]
    try:
        yield
    finally:
        _restore(model, states)
        with torch.no_grad():
            for module, name, buffer, before in buffers:
                # A module may have another one in its place by now.
                module._buffers[name] = buffer.copy_(before)


Generator = tuple[Callable[[], Tensor], Callable[[Tensor], None]]


def _generators(model: nn.Module) -> list[Generator]:
    """Return how the state of each generator that the model draws from is read and written."""
    found: list[Generator] = [(torch.get_rng_state, torch.set_rng_state)]
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    if device.type in ("cuda", "xpu"):
        module: Any = getattr(torch, device.type)
        found.append((lambda: module.get_rng_state(device), lambda state: module.set_rng_state(state, device)))
    elif device.type == "mps":
        found.append((torch.mps.get_rng_state, torch.mps.set_rng_state))
    return found


def _restore(model: nn.Module, states: list[Tensor]) -> None:
    for (_, put), state in zip(_generators(model), states, strict=True):
        put(state)
