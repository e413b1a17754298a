"""What the tasks share: given by the user, or found by a walk over the autograd graph of their losses."""

from __future__ import annotations

import contextlib
import heapq
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import BackwardCFunction
from torch.autograd.graph import GradientEdge

from mtl_axes.errors import GraphError, OptionError

__all__ = [
    "COMPILED",
    "Border",
    "Graph",
    "Losses",
    "Shared",
    "SharedPart",
    "find_border",
    "passes_float16",
    "refuse_static_ddp",
    "walk",
]

Losses = tuple[Tensor | None, ...]

# Behind these nodes the walk sees another graph than the one that computes the gradients, and would be silently wrong.
COMPILED = "CompiledFunctionBackward"
_OPAQUE = {
    COMPILED: "a compiled module",
    "CheckpointFunctionBackward": 'reentrant checkpointing, which use_reentrant=False avoids and probe="lagged" allows',
}

# DistributedDataParallel passes its outputs through it, each for itself and unchanged, with static_graph or
# find_unused_parameters. The walk looks through it, or every task would seem to depend on every output.
_SINK = "_DDPSinkBackward"


# Where float16 enters a graph. To ask every node would take half as long as the walk.
_FLOAT16 = {"ToCopyBackward0", "AccumulateGrad", COMPILED}


def passes_float16(nodes: Iterable[Any]) -> bool:
    """Return whether gradients pass one of the nodes in float16, or may do so inside a compiled module."""
    return any(map(_in_float16, nodes))


def _in_float16(node: Any) -> bool:
    kind = type(node).__name__
    if kind == "AccumulateGrad":
        return bool(node.variable.dtype is torch.float16)
    entries = getattr(node, "_input_metadata", None)
    if kind == COMPILED or entries is None:
        # Nodes of an older torch do not tell their dtype. Every cast then counts as one to float16: a power of two as the
        # scale changes nothing in another precision.
        return kind in (COMPILED, "ToCopyBackward0")
    return any(entry.dtype is torch.float16 for entry in entries)


def _several(mask: int) -> bool:
    """Return whether a mask holds more than one task."""
    return bool(mask & (mask - 1))


@dataclass(frozen=True)
class SharedPart:
    """Parameters that the tasks share, and how they were found.

    Attributes:
        parameters: the shared parameters.
        source: ``"given"`` or ``"found"``.
        names: names of the tasks, in the order of the bits below.
        reached: bit mask of the tasks that reach a leaf of the graph, by leaf; empty where no graph was walked.
        present: bit mask of the tasks that took part.
        tied: tasks whose private part uses a shared parameter directly, as tied weights do.
    """

    parameters: tuple[Tensor, ...]
    source: str
    names: tuple[str, ...] = ()
    reached: Mapping[Tensor, int] = field(default_factory=dict)
    present: int = 0
    tied: tuple[str, ...] = ()

    @property
    def size(self) -> int:
        """Number of scalar entries."""
        return sum(parameter.numel() for parameter in self.parameters)

    @property
    def private(self) -> dict[str, int]:
        """Number of parameters outside the shared part that one task alone reaches, by task."""
        shared = set(self.parameters)
        alone = [mask for leaf, mask in self.reached.items() if leaf not in shared]
        return {name: alone.count(1 << bit) for bit, name in enumerate(self.names)} if self.reached else {}

    @property
    def without(self) -> tuple[str, ...]:
        """Tasks that took part and whose loss reaches none of the shared parameters."""
        masks = [self.reached.get(leaf, 0) for leaf in self.parameters]
        here = [(bit, name) for bit, name in enumerate(self.names) if self.present >> bit & 1]
        return tuple(name for bit, name in here if not any(mask >> bit & 1 for mask in masks))

    @property
    def partial(self) -> int:
        """Number of shared parameters that some, but not all, of the tasks that took part reach."""
        return sum(self.reached.get(leaf, 0) not in (0, self.present) for leaf in self.parameters)

    @property
    def unreached(self) -> int:
        """Number of shared parameters that no task reaches."""
        return sum(leaf not in self.reached for leaf in self.parameters) if self.reached else 0


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

    def kinds(self) -> set[str]:
        """Return the names of the nodes' types."""
        return {type(node).__name__ for node in self.masks}

    @property
    def compiled(self) -> bool:
        """True when the graph passes through a compiled module."""
        return COMPILED in self.kinds()

    @cached_property
    def float16(self) -> bool:
        """True when gradients pass through float16: where a tensor is cast to it, or a leaf has it."""
        return passes_float16(node for node in self.masks if type(node).__name__ in _FLOAT16)

    @property
    def has_python_nodes(self) -> bool:
        """True when an autograd.Function written in Python takes part."""
        return any(isinstance(node, BackwardCFunction) for node in self.masks)

    def runs_to_all_leaves(self) -> bool:
        """Return whether the backward that is now running ends at every leaf, as ``backward()`` without ``inputs=`` does."""
        leaves = [node for node in self.masks if type(node).__name__ == "AccumulateGrad"]
        try:
            return all(map(torch._C._will_engine_execute_node, leaves))
        except RuntimeError:  # torch does not answer in torch.autograd.grad
            return False

    def opaque(self) -> tuple[str, str] | None:
        """Return the type of a node that hides the graph behind it and what it comes from, or None."""
        return next(((kind, _OPAQUE[kind]) for kind in sorted(self.kinds() & _OPAQUE.keys())), None)

    def edges(self) -> Iterator[tuple[Any, int, Any, int]]:
        """Iterate over all edges, as (node, slot, child, output of the child)."""
        for node in self.masks:
            for slot, (child, output) in enumerate(map(_through, node.next_functions)):
                if child is not None:
                    yield node, slot, child, output


def _through(edge: tuple[Any, int]) -> tuple[Any, int]:
    """Return where an edge leads, behind sinks of DistributedDataParallel."""
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
            "DistributedDataParallel should have static_graph=False: a gradient that is measured before its first "
            "backward stops it from averaging gradients over ranks, without a word. Found static_graph=True. "
            'probe="lagged" measures in your own backward and serves it.'
        )


def walk(losses: Losses) -> Graph:
    """Walk the whole graph of the losses.

    Nodes are visited by decreasing sequence number, which is a topological order where one thread built the graph; where
    several did, a node whose mask grows later is visited again.
    """
    masks: dict[Any, int] = {}
    leaves: dict[Tensor, int] = {}
    heap: list[tuple[int, int, Any]] = []
    ticket = 0

    def reach(node: Any, mask: int) -> None:
        nonlocal ticket
        known = masks.get(node, 0)
        if mask | known != known:
            masks[node] = mask | known
            number = node._sequence_nr()
            if number <= sys.maxsize:  # all leaves have a larger one, and lead nowhere
                ticket += 1
                heapq.heappush(heap, (-number, ticket, node))

    present = 0
    static = False
    for index, loss in enumerate(losses):
        if loss is None or not loss.requires_grad:
            continue
        present |= 1 << index
        if loss.grad_fn is not None:
            static = static or _is_static_sink(loss.grad_fn)
            reach(_through((loss.grad_fn, loss.output_nr))[0], 1 << index)
        else:  # the loss is itself a leaf
            leaves[loss] = leaves.get(loss, 0) | 1 << index
    oldest, newest, in_order, last = sys.maxsize, -1, True, None
    while heap:
        negative, _, node = heapq.heappop(heap)
        if node is last:  # several tasks have reached it before it was visited
            continue
        last, number = node, -negative
        # In one thread a node is newer than what it was computed from, so that numbers only fall here.
        in_order = in_order and number < oldest
        oldest, newest = min(oldest, number), max(newest, number)
        for edge in node.next_functions:
            static = static or _is_static_sink(edge[0])
            child = _through(edge)[0]
            if child is not None:
                reach(child, masks[node])
    for node, mask in masks.items():
        if type(node).__name__ == "AccumulateGrad":
            leaves[node.variable] = leaves.get(node.variable, 0) | mask
    return Graph(masks, leaves, present, oldest, newest, in_order, static)


@dataclass
class Border:
    """Where the private parts of the graph read what two or more tasks reach: the representation.

    Attributes:
        edges: the tensors that are read, as edges of the graph.
        reads: by task, (private node, slot) -> position in ``edges`` of what it reads there.
        skips: True when one of the edges depends on another, as behind a skip path.
        hidden: type of an opaque node that all tasks meet before they meet each other, else None.
        dependent: tasks whose loss is part of another task's.
        nodes: those that a backward down to the edges passes: of the private parts, and of the edges.
        static_ddp: True when a DistributedDataParallel with static_graph, in its first iteration, is in between.
    """

    edges: list[GradientEdge] = field(default_factory=list)
    reads: dict[int, dict[tuple[Any, int], int]] = field(default_factory=dict)
    skips: bool = False
    hidden: str | None = None
    dependent: set[int] = field(default_factory=set)
    nodes: set[Any] = field(default_factory=set)
    static_ddp: bool = False

    @property
    def compiled(self) -> bool:
        """True when a private part is, or holds, a compiled module; what lies below the edges does not count."""
        below = {edge.node for edge in self.edges}
        return any(type(node).__name__ == COMPILED and node not in below for node in self.nodes)

    def edges_of(self, task: int) -> list[int]:
        """Return the positions of the edges that a task reads."""
        return sorted(set(self.reads.get(task, {}).values()))


def find_border(losses: Losses) -> Border:
    """Find the representation: walk from the losses until only nodes that several tasks reach are left."""
    masks: dict[Any, int] = {}
    alone: set[Any] = set()  # nodes to visit that one task has reached so far
    heap: list[tuple[int, int, Any]] = []
    ticket = 0

    def reach(node: Any, mask: int) -> None:
        nonlocal ticket
        known = masks.get(node, 0)
        grown = mask | known
        if grown == known:
            return
        masks[node] = grown
        if type(node).__name__ == "AccumulateGrad":
            return
        (alone.discard if _several(grown) else alone.add)(node)
        ticket += 1
        heapq.heappush(heap, (-node._sequence_nr(), ticket, node))

    border = Border()
    visited: dict[Any, None] = {}  # in the order of the walk, on which the rounding of norms depends
    roots: list[tuple[int, Any]] = []
    for index, loss in enumerate(losses):
        if loss is not None and loss.grad_fn is not None:
            # A model that computes its losses itself may return them from within DistributedDataParallel.
            border.static_ddp = border.static_ddp or _is_static_sink(loss.grad_fn)
            roots.append((index, _through((loss.grad_fn, loss.output_nr))[0]))
    for index, root in roots:
        reach(root, 1 << index)
    # A skip path reaches past the first common node, so that common nodes are visited too until no private one waits.
    while alone:
        node = heapq.heappop(heap)[2]
        alone.discard(node)
        visited[node] = None
        for edge in node.next_functions:
            border.static_ddp = border.static_ddp or _is_static_sink(edge[0])
            child = _through(edge)[0]
            if child is not None:
                reach(child, masks[node])
    border.dependent = {index for index, root in roots if _several(masks[root])}
    _collect_reads(border, masks, visited)
    return border


def _collect_reads(border: Border, masks: dict[Any, int], visited: dict[Any, None]) -> None:
    positions: dict[tuple[Any, int], int] = {}
    readers: dict[Any, int] = {}
    for node in visited:
        mask = masks[node]
        if _several(mask):
            border.skips = True
            continue
        border.nodes.add(node)
        task = mask.bit_length() - 1
        for slot, (child, output) in enumerate(map(_through, node.next_functions)):
            if child is None or not _several(masks[child]):
                continue
            if type(child).__name__ == "AccumulateGrad":
                continue  # a parameter, as with tied weights or an input per task, is no representation
            border.nodes.add(child)
            position = positions.setdefault((child, output), len(positions))
            border.reads.setdefault(task, {})[node, slot] = position
            readers[child, output] = readers.get((child, output), 0) | mask
    border.edges = [GradientEdge(node, output) for node, output in positions]
    # Each task reads an output of its own: a trunk that hides behind one node looks like that.
    kinds = {type(node).__name__ for node, _ in positions}
    if len(kinds) == 1 and kinds <= _OPAQUE.keys() and not any(map(_several, readers.values())):
        border.hidden = kinds.pop()


class Shared:
    """The user's ``shared=``, held outside every ``state_dict``, and the search that replaces it.

    The search sees the tasks of its own call. Where three or more tasks share different parts and some are absent now and
    then, what is found changes with them, and so does the meaning of a norm: give ``shared=`` there.

    A plain object on purpose: a module stored as an attribute of the criterion would be saved and moved with it.
    """

    def __init__(self, given: nn.Module | Tensor | Iterable[Tensor] | None) -> None:
        items: tuple[nn.Module | Tensor, ...]
        if given is None:
            items = ()
        elif isinstance(given, (nn.Module, Tensor)):
            items = (given,)
        else:
            items = tuple(given) if isinstance(given, Iterable) else (given,)
        for item in items:
            if not isinstance(item, (nn.Module, Tensor)):
                raise OptionError(f"Option `shared` should be a module or parameters. Found {type(item).__name__}.")
        self._items = items
        self._memo: dict[int, Any] | None = None
        self._warned = False
        self._described = (0, 0)
        self.last: SharedPart | None = None
        if given is not None and not self._parameters():
            raise OptionError("Option `shared` should have parameters, frozen or not. Found none.")

    def __deepcopy__(self, memo: dict[int, Any]) -> Shared:
        # A copy of the whole model maps the shared part to its copy; a copy of the criterion alone keeps the original.
        # Which of the two it is shows only after deepcopy has finished, so the memo is looked up at first use.
        copy = Shared(None)
        copy._items, copy._memo = self._mapped(), memo
        return copy

    def __getstate__(self) -> dict[str, Any]:
        return {"_items": self._mapped(), "_memo": None, "_warned": False, "_described": (0, 0), "last": None}

    def _mapped(self) -> tuple[nn.Module | Tensor, ...]:
        if self._memo is not None:
            self._items = tuple(self._memo.get(id(item), item) for item in self._items)
            self._memo = None
        return self._items

    def _parameters(self) -> tuple[Tensor, ...]:
        unique: dict[Tensor, None] = {}
        for item in self._mapped():
            for parameter in item.parameters() if isinstance(item, nn.Module) else (item,):
                if parameter.requires_grad or isinstance(parameter, nn.Parameter):
                    unique[parameter] = None
        return tuple(unique)

    @property
    def given(self) -> bool:
        """True while the user's own choice is in use."""
        return bool(self._items)

    def give_up(self) -> bool:
        """Give up the user's choice, so that the next look-up searches; return whether there was one."""
        if not self._items:
            return False
        warnings.warn(
            "None of the parameters given as shared= is reached by the losses; they are searched on the graph instead. Under"
            " FSDP2 the graph holds others in the place of sharded parameters: leave shared= out there.",
            stacklevel=3,
        )
        self._items = ()
        return True

    def resolve(self, names: tuple[str, ...], graph: Callable[[], Graph]) -> SharedPart:
        """Return the shared parameters: those given, or those that two tasks of this call reach.

        Raises:
            GraphError: they are to be found, and the graph is hidden behind a node.
        """
        if self.given:
            shared = tuple(parameter for parameter in self._parameters() if parameter.requires_grad)
            if not shared and not self._warned:
                self._warned = True
                warnings.warn(
                    "All parameters given as shared= are frozen: no gradient is measured there, and the weights hold.",
                    stacklevel=3,
                )
            if not self._still(shared):
                self.last = SharedPart(shared, "given")
        else:
            found = graph()
            masks = _parameter_masks(found)
            # With a single task everything that it reaches counts as shared.
            shared = tuple(leaf for leaf, mask in masks.items() if len(names) == 1 or _several(mask))
            # What else is said about it is worked out again only where the graph has changed: it costs another walk.
            if not self._still(shared) or (len(found.masks), found.present) != self._described:
                self._describe(names, found, shared, "found")
        assert self.last is not None
        return self.last

    def describe(self, names: tuple[str, ...], graph: Graph) -> None:
        """Work out, for ``explain()``, who reaches what."""
        with contextlib.suppress(GraphError):  # it is raised when something is to be measured there
            part = self.resolve(names, lambda: graph)
            self._describe(names, graph, part.parameters, part.source)

    def _describe(self, names: tuple[str, ...], graph: Graph, shared: tuple[Tensor, ...], source: str) -> None:
        tied = 0
        inside = set(shared)
        for node, _, child, _ in graph.edges():
            mask = graph.masks[node]
            if type(child).__name__ == "AccumulateGrad" and not _several(mask) and _several(graph.masks[child]):
                tied |= mask if child.variable in inside else 0
        users = tuple(name for bit, name in enumerate(names) if tied >> bit & 1)
        self.last = SharedPart(shared, source, names, _parameters_of(graph), graph.present, users)
        self._described = (len(graph.masks), graph.present)

    def _still(self, shared: tuple[Tensor, ...]) -> bool:
        last = self.last
        if last is None or len(last.parameters) != len(shared):
            return False
        return all(old is new for old, new in zip(last.parameters, shared, strict=True))


def _parameter_masks(graph: Graph) -> dict[Tensor, int]:
    """Return the leaves that can be shared parameters, with the tasks that reach them.

    Raises:
        GraphError: the graph is hidden behind a node.
    """
    opaque = graph.opaque()
    if opaque is not None:
        raise GraphError(
            f"Shared parameters should be visible on the autograd graph. Found {opaque[0]} ({opaque[1]}), which "
            "hides them. Pass shared=, a module or parameters."
        )
    return _parameters_of(graph)


def _parameters_of(graph: Graph) -> dict[Tensor, int]:
    # Inputs that require a gradient (residuals of differential equations, attacks) are leaves too, but not shared
    # parameters; a functional model without nn.Parameter has nothing else.
    return {leaf: mask for leaf, mask in graph.leaves.items() if isinstance(leaf, nn.Parameter)} or graph.leaves
