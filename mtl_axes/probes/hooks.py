"""Whether a hook may sit on an activation, decided by numbers that torch counts up.

Python does not show the hooks of a node. But registering a hook takes a number (``RemovableHandle.next_id``), and a hook on
an activation is registered after the activation is made. Nodes are numbered too, in each thread for itself. So read both
numbers at some moment: if the whole graph was built after it, in the same thread, and no hook was registered after it, then
there is no hook on the graph. Whatever leaves this open counts as a hook.

``retain_grad()`` takes no number. It is visible only on tensors that the criterion was given.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from mtl_axes.probes.graph import Graph

__all__ = ["FIRST_CALL", "next_hook", "remember", "retaining", "unspoiled", "why_hooked"]

FIRST_CALL = "nothing is known about earlier hooks in the first call of a thread"
_OTHER_THREAD = "part of the graph was built in another thread, where a hook on an activation cannot be ruled out"
_TOO_OLD = "the graph was begun before the last calls, or in another thread, so a hook on an activation cannot be ruled out"
_REGISTERED = "a hook was registered since the last call, and may sit on an activation"
_ON_MODULE = "a module has a backward hook"

_MODULE_HOOK = "BackwardHookFunctionBackward"
# Several criteria may take turns in a thread, and several graphs be built before the first of them is measured.
_REMEMBERED = 16


class _Moment(NamedTuple):
    """The numbers that the next node of this thread and the next hook of any thread will get."""

    node: int
    hook: int


class _Moments(threading.local):
    """The last moments of a thread: ends of the calls of any criterion, and what came before the first of them."""

    def __init__(self) -> None:
        self.past: deque[_Moment] = deque(maxlen=_REMEMBERED)


_moments = _Moments()


def next_hook() -> int:
    """Return the number that the next hook will get."""
    return RemovableHandle.next_id


def _next_node() -> int:
    return torch._C._autograd._get_sequence_nr()


def remember() -> None:
    """Remember the present moment, which graphs that are begun later in this thread are compared with."""
    _moments.past.append(_Moment(_next_node(), next_hook()))


def why_hooked(graph: Graph) -> str | None:
    """Return why a hook may sit on an activation of the graph, or None where that is ruled out."""
    if _MODULE_HOOK in graph.kinds:
        return _ON_MODULE
    if not _moments.past:
        return FIRST_CALL
    if not graph.in_order or graph.newest >= _next_node():
        return _OTHER_THREAD
    before = next((moment for moment in reversed(_moments.past) if moment.node <= graph.oldest), None)
    if before is None:
        return _TOO_OLD
    return _REGISTERED if before.hook != next_hook() else None


def retaining(tensors: Iterable[Tensor | None]) -> list[Tensor]:
    """Return the tensors that retain their gradient."""
    with torch._C.DisableTorchFunctionSubclass():
        return [tensor for tensor in tensors if tensor is not None and tensor.retains_grad]


@contextmanager
def unspoiled(tensors: list[Tensor]) -> Iterator[None]:
    """Within this context a backward leaves no trace in the retained gradients of some tensors."""
    before = [tensor.grad for tensor in tensors]
    try:
        yield
    finally:
        for tensor, gradient in zip(tensors, before, strict=True):
            tensor.grad = gradient
