"""Repeating the calls of an optimizer step after it, for weightings that need the losses after the step (FAMO)."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from mtl_axes import MultiTaskCriterion

__all__ = ["Replay", "untouched"]


class Replay:
    """The calls of one window, to be repeated after the optimizer step.

    They run without gradients and in the model's current mode. Each starts with the random numbers of its first run, so
    that dropout drops the same units and only the step changes the losses. Buffers and random numbers are restored: see
    :func:`untouched`.

    Args:
        model: the model that the calls run.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._calls: list[tuple[tuple[Any, ...], list[Tensor]]] = []

    def remember(self, *arguments: Any) -> None:
        """Record the arguments and the random state of a call, before it runs."""
        self._calls.append((arguments, [get() for get, _ in _generators(self._model)]))

    def forget(self) -> None:
        """Drop the recorded calls, as after a skipped step."""
        self._calls = []

    def run(self, call: Callable[..., object], criteria: Iterable[MultiTaskCriterion]) -> None:
        """Repeat the calls within ``after_step()`` of the criteria, and drop them."""
        calls, self._calls = self._calls, []
        with untouched(self._model), torch.no_grad(), contextlib.ExitStack() as blocks:
            for criterion in criteria:
                blocks.enter_context(criterion.after_step())
            for arguments, states in calls:
                _restore(self._model, states)
                call(*arguments)


@contextlib.contextmanager
def untouched(model: nn.Module) -> Iterator[None]:
    """Restore a model's buffers and the random state when this context ends, so that it may run in training mode.

    Restored are buffers, such as the running statistics of BatchNorm, and torch's random state on the CPU and on the
    model's device; not the buffers of a criterion inside the model, nor attributes that are no buffers.
    """
    states = [get() for get, _ in _generators(model)]
    criteria = {part for module in model.modules() if isinstance(module, MultiTaskCriterion) for part in module.modules()}
    buffers = [
        (module, name, buffer, buffer.detach().clone())
        for module in model.modules()
        if module not in criteria
        for name, buffer in module._buffers.items()
        if buffer is not None
    ]
    try:
        yield
    finally:
        _restore(model, states)
        with torch.no_grad():
            for module, name, buffer, before in buffers:
                # The module may hold another tensor under this name by now.
                module._buffers[name] = buffer.copy_(before)


Generator = tuple[Callable[[], Tensor], Callable[[Tensor], None]]


def _generators(model: nn.Module) -> list[Generator]:
    """Return a getter and a setter for the state of each generator that the model draws from."""
    generators: list[Generator] = [(torch.get_rng_state, torch.set_rng_state)]
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    if device.type in ("cuda", "xpu"):
        module: Any = getattr(torch, device.type)
        generators.append((lambda: module.get_rng_state(device), lambda state: module.set_rng_state(state, device)))
    elif device.type == "mps":
        generators.append((torch.mps.get_rng_state, torch.mps.set_rng_state))
    return generators


def _restore(model: nn.Module, states: list[Tensor]) -> None:
    for (_, set_state), state in zip(_generators(model), states, strict=True):
        set_state(state)
