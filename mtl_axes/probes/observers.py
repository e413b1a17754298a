"""Who else looks at the gradients of a graph: hooks and retained gradients on activations, which Python does not show.

Hooks sit on nodes, out of Python's sight. But whatever registers one takes a number, and a hook on an activation is at least
as new as the activation: where no number was taken since before a graph was begun, nothing hooks into it. Otherwise the
garbage collector knows the dict that holds it, and that no module, optimizer or parameter owns that dict. Retained gradients
leave no such trace, but whoever reads one later has kept its tensor alive, so that the garbage collector knows it too.
"""

from __future__ import annotations

import gc
import sys
import threading
from collections import OrderedDict, deque
from collections.abc import Container, Iterator
from contextlib import contextmanager
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from mtl_axes.probes.discovery import Graph

__all__ = ["Moment", "is_hooked", "now", "remember", "retaining", "unspoiled"]

_MODULE_HOOK = "BackwardHookFunctionBackward"
# Modules that keep hooks of all modules, or all optimizers, at their top.
_KEEPERS = ("torch.nn.modules.module", "torch.optim.optimizer")
_REMEMBERED = 16


class Moment(NamedTuple):
    """A moment of a thread: the number of the next node, of the next hook, and of collections that made objects old."""

    node: int
    hook: int
    collection: int


class _Calls(threading.local):
    """The ends of the last measured calls of any criterion; nodes are numbered thread by thread."""

    def __init__(self) -> None:
        self.ends: deque[Moment] = deque(maxlen=_REMEMBERED)
        self.hooked = False


_calls = _Calls()


def now() -> Moment:
    """Return the present moment."""
    collections = sum(generation["collections"] for generation in gc.get_stats()[1:])
    return Moment(torch._C._autograd._get_sequence_nr(), RemovableHandle.next_id, collections)


def remember() -> None:
    """Note the end of a call, before which every graph that comes later has not been begun."""
    _calls.ends.append(now())


def _before(oldest: int) -> Moment | None:
    """Return the last noted moment before a node was made, if there is one."""
    return next((end for end in reversed(_calls.ends) if end.node <= oldest), None)


def is_hooked(graph: Graph) -> bool:
    """Return whether a hook may sit on an activation of the graph, on one of its nodes, or on a module that built it."""
    if _MODULE_HOOK in graph.kinds():
        return True
    before = _before(graph.oldest)
    suspected = before is None or RemovableHandle.next_id != before.hook
    # Who hooks into every graph is not searched for every time.
    _calls.hooked = suspected and ((before is not None and _calls.hooked) or _has_orphaned_hooks(graph, before))
    return _calls.hooked


def _objects(since: Moment | None) -> list[Any]:
    """Return objects among which are all that were made after a moment; young ones are few and quickly looked through."""
    if since is None or now().collection != since.collection:
        return gc.get_objects()
    return gc.get_objects(generation=0) + gc.get_objects(generation=1)


def _has_orphaned_hooks(graph: Graph, before: Moment | None) -> bool:
    """Return whether there are hooks that belong to no module, optimizer, parameter or other graph, and so to this one."""
    found = [item for item in _objects(before) if type(item) is OrderedDict and item and _are_hooks(item)]
    if not found:
        return False
    objects = gc.get_objects()
    owned = {id(value) for name in _KEEPERS if name in sys.modules for value in vars(sys.modules[name]).values()}
    with torch._C.DisableTorchFunctionSubclass():
        for item in objects:
            kind = type(item)
            if issubclass(kind, (nn.Module, torch.optim.Optimizer)):
                owned |= {id(value) for value in vars(item).values()}
            elif issubclass(kind, Tensor) and _read(item, "grad_fn") not in graph.masks:
                owned |= {id(item._backward_hooks), id(item._post_accumulate_grad_hooks)}
    return any(id(item) not in owned for item in found)


def _read(tensor: Tensor, name: Literal["grad_fn", "retains_grad"]) -> object:
    try:
        return getattr(tensor, name)
    except RuntimeError:  # the garbage collector of an older torch also shows tensors that are undefined
        return None


def _are_hooks(items: OrderedDict[object, object]) -> bool:
    number, hook = next(iter(items.items()))
    return type(number) is int and callable(hook)


def retaining(nodes: Container[Any], oldest: int, since: Moment | None = None) -> list[Tensor]:
    """Return the activations that come from some nodes of a graph and retain their gradient.

    Args:
        nodes: the nodes.
        oldest: sequence number of the one that was made first.
        since: look only at what came after this moment; None looks at all that came after the oldest node.
    """
    before = _before(oldest) if since is None else since
    objects = _objects(before)
    # Most objects are of few types: sorting these out first makes the look at each object a short one.
    kinds = {kind for kind in set(map(type, objects)) if issubclass(kind, Tensor)}
    with torch._C.DisableTorchFunctionSubclass():
        tensors = [item for item in objects if type(item) in kinds]
        return [item for item in tensors if _read(item, "retains_grad") and item.grad_fn in nodes]


@contextmanager
def unspoiled(tensors: list[Tensor]) -> Iterator[None]:
    """Within this context a backward leaves no trace in the retained gradients of some tensors."""
    before = [tensor.grad for tensor in tensors]
    try:
        yield
    finally:
        for tensor, gradient in zip(tensors, before, strict=True):
            tensor.grad = gradient
