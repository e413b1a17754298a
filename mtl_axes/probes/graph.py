"""The autograd graph of the losses: which task reaches which node and leaf."""

from __future__ import annotations

import heapq
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import BackwardCFunction

from mtl_axes.errors import GraphError

__all__ = [
    "COMPILED",
    "OPAQUE",
    "Graph",
    "Losses",
    "Walk",
    "follow",
    "is_leaf",
    "is_several",
    "passes_float16",
    "refuse_static_ddp",
    "walk",
]

Losses = tuple[Tensor | None, ...]

# The graph behind these nodes is not the one that computes the gradients, so that walking on would be silently wrong.
COMPILED = "CompiledFunctionBackward"
OPAQUE = {
    COMPILED: "a compiled module",
    "CheckpointFunctionBackward": 'reentrant checkpointing, which use_reentrant=False avoids and probe="lagged" allows',
}

# DistributedDataParallel passes its outputs through this node, each by itself and unchanged, with static_graph or
# find_unused_parameters. The walk looks through it; otherwise every task would seem to depend on every output.
_SINK = "_DDPSinkBackward"

# Where float16 enters a graph. Asking every node would take half as long as the walk.
_FLOAT16 = {"ToCopyBackward0", "AccumulateGrad", COMPILED}


def is_leaf(node: Any) -> bool:
    """Return whether a node stands for a leaf, into whose ``.grad`` it accumulates."""
    return type(node).__name__ == "AccumulateGrad"


def is_several(mask: int) -> bool:
    """Return whether a mask holds more than one task."""
    return bool(mask & (mask - 1))


def passes_float16(nodes: Iterable[Any]) -> bool:
    """Return whether gradients pass one of the nodes in float16, or may do so inside a compiled module."""
    return any(map(_in_float16, nodes))


def _in_float16(node: Any) -> bool:
    if is_leaf(node):
        return bool(node.variable.dtype is torch.float16)
    kind = type(node).__name__
    entries = getattr(node, "_input_metadata", None)
    if kind == COMPILED or entries is None:
        # Nodes of an older torch do not show their dtype. Every cast then counts as one to float16: a power of two as the
        # scale changes nothing in another precision.
        return kind in (COMPILED, "ToCopyBackward0")
    return any(entry.dtype is torch.float16 for entry in entries)


@dataclass(frozen=True)
class Graph:
    """The autograd graph of the losses of one call.

    Attributes:
        masks: bit mask of the tasks whose loss reaches a node, by node.
        leaves: the same for the leaves, in the order in which the walk met them.
        present: mask of the tasks that have a graph.
        oldest: smallest sequence number of a node that is no leaf.
        newest: the largest one.
        in_order: True if one thread may have given all these numbers: none is there twice, and none is above its user's.
        static_ddp: True when it comes from a DistributedDataParallel with static_graph, in its first iteration.
    """

    masks: dict[Any, int]
    leaves: dict[Tensor, int]
    present: int
    oldest: int
    newest: int
    in_order: bool
    static_ddp: bool = False

    @cached_property
    def kinds(self) -> frozenset[str]:
        """The names of the nodes' types."""
        return frozenset(type(node).__name__ for node in self.masks)

    @property
    def compiled(self) -> bool:
        """True when the graph passes through a compiled module."""
        return COMPILED in self.kinds

    @cached_property
    def float16(self) -> bool:
        """True when gradients pass through float16, because a tensor is cast to it or a leaf has it."""
        return passes_float16(node for node in self.masks if type(node).__name__ in _FLOAT16)

    @property
    def has_python_nodes(self) -> bool:
        """True when an autograd.Function written in Python takes part."""
        return any(isinstance(node, BackwardCFunction) for node in self.masks)

    def runs_to_all_leaves(self) -> bool:
        """Return whether the backward that is now running ends at every leaf, as ``backward()`` without ``inputs=`` does."""
        try:
            return all(map(torch._C._will_engine_execute_node, filter(is_leaf, self.masks)))
        except RuntimeError:  # torch does not answer in torch.autograd.grad
            return False

    def opaque(self) -> tuple[str, str] | None:
        """Return the type of a node that hides the graph behind it and what it comes from, or None."""
        return next(((kind, OPAQUE[kind]) for kind in sorted(self.kinds & OPAQUE.keys())), None)

    def edges(self) -> Iterator[tuple[Any, Any]]:
        """Iterate over all edges, as (node, child)."""
        for node in self.masks:
            for edge in node.next_functions:
                child = follow(edge)[0]
                if child is not None:
                    yield node, child


def follow(edge: tuple[Any, int]) -> tuple[Any, int]:
    """Return the node and its output that an edge leads to, behind sinks of DistributedDataParallel."""
    node, output = edge
    while type(node).__name__ == _SINK:
        # Its first input is the wrapper; only inputs that require a gradient have a node behind them.
        required = node.needs_input_grad[1:]
        if not required[output]:
            return None, 0
        behind = [below for below in node.next_functions if below[0] is not None]
        node, output = behind[sum(required[:output])]
    return node, output


def _is_static_sink(node: Any) -> bool:
    wrapper = node.ddp_weakref() if type(node).__name__ == _SINK else None
    return wrapper is not None and bool(wrapper.static_graph)


def refuse_static_ddp(static: bool) -> None:
    """Raise :class:`GraphError` where a gradient would be measured before the first backward of a static graph."""
    if static:
        raise GraphError(
            "DistributedDataParallel with static_graph=True does not allow a gradient to be measured before its first "
            "backward: it would silently stop averaging gradients over ranks. Set static_graph=False, or use "
            'probe="lagged", which measures in your own backward.'
        )


class Walk:
    """A walk down the graph of the losses, by decreasing sequence number.

    This is a topological order if one thread built the graph. If several did, a node whose mask grows later is visited
    again.

    Attributes:
        masks: bit mask of the tasks whose loss reaches a node, by node that was met.
        roots: the tasks whose loss has a graph, with their first nodes.
        static_ddp: True when a DistributedDataParallel with static_graph, in its first iteration, was met.
    """

    def __init__(self, losses: Losses) -> None:
        self.masks: dict[Any, int] = {}
        self.roots: list[tuple[int, Any]] = []
        self.static_ddp = False
        self._waiting: list[tuple[int, int, Any]] = []
        self._ticket = 0
        for task, loss in enumerate(losses):
            if loss is not None and loss.grad_fn is not None:
                # A model that computes its losses itself may return them from within DistributedDataParallel.
                self.roots.append((task, self._go((loss.grad_fn, loss.output_nr), 1 << task)))

    def __bool__(self) -> bool:
        """True while nodes wait to be visited."""
        return bool(self._waiting)

    def visit(self) -> Any:
        """Visit the newest node that waits, meet what it was computed from, and return it."""
        node = heapq.heappop(self._waiting)[2]
        while self._waiting and self._waiting[0][2] is node:  # several tasks have reached it
            heapq.heappop(self._waiting)
        mask = self.masks[node]
        for edge in node.next_functions:
            self._go(edge, mask)
        return node

    def reach(self, node: Any, mask: int) -> bool:
        """Add tasks to a node's mask; return whether it has grown."""
        known = self.masks.get(node, 0)
        if mask | known == known:
            return False
        self.masks[node] = mask | known
        number = node._sequence_nr()
        if number <= sys.maxsize:  # leaves have a larger one, and lead nowhere
            self._ticket += 1
            heapq.heappush(self._waiting, (-number, self._ticket, node))
        return True

    def _go(self, edge: tuple[Any, int], mask: int) -> Any:
        if type(edge[0]).__name__ == _SINK:
            self.static_ddp = self.static_ddp or _is_static_sink(edge[0])
            edge = follow(edge)
        if edge[0] is not None:
            self.reach(edge[0], mask)
        return edge[0]


def walk(losses: Losses) -> Graph:
    """Walk the whole graph of the losses."""
    steps = Walk(losses)
    present = sum(1 << task for task, loss in enumerate(losses) if loss is not None and loss.requires_grad)
    leaves: dict[Tensor, int] = {}
    for task, loss in enumerate(losses):
        if loss is not None and loss.requires_grad and loss.grad_fn is None:
            leaves[loss] = leaves.get(loss, 0) | 1 << task
    oldest, newest, in_order = sys.maxsize, -1, True
    while steps:
        number = steps.visit()._sequence_nr()
        # In one thread a node is newer than what it was computed from, so that numbers only fall here.
        in_order = in_order and number < oldest
        oldest, newest = min(oldest, number), max(newest, number)
    for node, mask in steps.masks.items():
        if is_leaf(node):
            leaves[node.variable] = leaves.get(node.variable, 0) | mask
    return Graph(steps.masks, leaves, present, oldest, newest, in_order, steps.static_ddp)
