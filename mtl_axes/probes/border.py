"""The border of the graph, where the private parts of the tasks read what they share, and recording gradients there."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge
from torch.utils.hooks import RemovableHandle

from mtl_axes.errors import GraphError
from mtl_axes.probes.base import Probe, Tape
from mtl_axes.probes.graph import COMPILED, OPAQUE, Losses, Walk, follow, is_leaf, is_several, refuse_static_ddp
from mtl_axes.probes.hooks import remember
from mtl_axes.signals import wide

__all__ = [
    "Border",
    "BorderProbe",
    "Parts",
    "add_part",
    "border_of",
    "find_border",
    "norm_of_parts",
    "others_measure",
    "record",
    "recorded",
]

Parts = dict[int, Tensor]


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


class _BorderWalk(Walk):
    """A walk that knows which of the waiting nodes one task alone has reached so far."""

    def __init__(self, losses: Losses) -> None:
        self.alone: set[Any] = set()
        super().__init__(losses)

    def reach(self, node: Any, mask: int) -> bool:
        grown = super().reach(node, mask)
        if grown and not is_leaf(node):
            (self.alone.discard if is_several(self.masks[node]) else self.alone.add)(node)
        return grown


def find_border(losses: Losses) -> Border:
    """Find the representation: walk from the losses until only nodes that several tasks reach are left."""
    steps = _BorderWalk(losses)
    visited: dict[Any, None] = {}  # in the order of the walk, on which the rounding of norms depends
    # A skip path reaches past the first common node, so that common nodes are visited too until no private one waits.
    while steps.alone:
        node = steps.visit()
        steps.alone.discard(node)
        visited[node] = None
    dependent = {task for task, root in steps.roots if is_several(steps.masks[root])}
    border = Border(dependent=dependent, static_ddp=steps.static_ddp)
    _collect_reads(border, steps.masks, visited)
    return border


def _collect_reads(border: Border, masks: dict[Any, int], visited: dict[Any, None]) -> None:
    positions: dict[tuple[Any, int], int] = {}
    readers: dict[Any, int] = {}
    for node in visited:
        mask = masks[node]
        if is_several(mask):
            border.skips = True
            continue
        border.nodes.add(node)
        task = mask.bit_length() - 1
        for slot, (child, output) in enumerate(map(follow, node.next_functions)):
            # A parameter, as with tied weights or an input per task, is no representation.
            if child is None or not is_several(masks[child]) or is_leaf(child):
                continue
            border.nodes.add(child)
            position = positions.setdefault((child, output), len(positions))
            border.reads.setdefault(task, {})[node, slot] = position
            readers[child, output] = readers.get((child, output), 0) | mask
    border.edges = [GradientEdge(node, output) for node, output in positions]
    # If each task reads an output of its own, all of one node, then a trunk may hide behind that node.
    kinds = {type(node).__name__ for node, _ in positions}
    if len(kinds) == 1 and kinds <= OPAQUE.keys() and not any(map(is_several, readers.values())):
        border.hidden = kinds.pop()


class BorderProbe(Probe):
    """A probe that measures at the representation."""

    def __init__(self) -> None:
        super().__init__()
        self._described = "not looked up yet"

    def check(self, tape: Tape) -> bool:
        border = None if len(tape.names) == 1 else border_of(tape)
        if border is not None:
            refuse_static_ddp(border.static_ddp and self.same_step)
            self._described = _describe_border(border, tape.names)
            self.check_border(tape, border)
        return border is not None or len(tape.names) == 1

    def check_border(self, tape: Tape, border: Border) -> None:
        """Check that what will be done at the border can be done, for a probe that does it before the user's backward."""

    def couple(self, tape: Tape, weights: Tensor, total: Tensor) -> Tensor:
        # Otherwise the exact probe of another criterion would take the hooks of this call for hooks on its own graph.
        remember()
        return total


def border_of(tape: Tape) -> Border | None:
    """Return the border of a call's graph, or None if a lone task, or a frozen shared part, does not show it.

    Raises:
        GraphError: there is no representation that could be measured.
    """
    present = tape.present()
    if len(present) < 2 or _is_frozen(tape):
        return None
    border = find_border(tape.losses)
    names = list(tape.names)
    if border.dependent:
        inside = ", ".join(repr(names[task]) for task in sorted(border.dependent))
        raise GraphError(
            f"The loss of {inside} is part of the loss of another task of {names}, so it has no private part at whose "
            'border norms could be measured. Use probe="exact".'
        )
    if border.hidden is not None:
        raise GraphError(
            f"{border.hidden} hides the representation, a tensor that two of the tasks {names} read: each reads another "
            'output of that node. Use probe="exact" with shared=, or keep the heads out of that module.'
        )
    if not border.edges:
        raise GraphError(
            f"No two of the tasks {names} read a common tensor, the representation: they have at most parameters in common, "
            'as with an input per task. Use probe="exact".'
        )
    return border


def others_measure(tape: Tape) -> bool:
    """Return whether other ranks wait for the norms of this call, even if this rank sees no border."""
    return tape.whole and len(tape.names) > 1 and not _is_frozen(tape)


def _is_frozen(tape: Tape) -> bool:
    # A given trunk may be frozen for a while: the graph then shows no representation, and the weights stay as they are.
    return tape.shared_is_known() and not tape.shared_part().parameters


def record(border: Border, task: int, receive: Callable[[Any, Parts], None]) -> list[RemovableHandle]:
    """Call ``receive(node, parts)`` whenever a backward passes a border node of a task, with its gradients by edge.

    A node sends the direct derivative to an edge, without the part that reaches the edge through other edges.
    """
    slots: dict[Any, list[tuple[int, int]]] = {}
    for (node, slot), position in border.reads.get(task, {}).items():
        slots.setdefault(node, []).append((slot, position))

    def hook_for(number: int, reads: list[tuple[int, int]]) -> Callable[[tuple[Tensor | None, ...], Any], None]:
        # By number and not by node: a hook that holds its own node would keep the graph alive.
        def hook(sent: tuple[Tensor | None, ...], _: Any) -> None:
            parts: Parts = {}
            for slot, position in reads:
                gradient = sent[slot]
                if gradient is not None:
                    add_part(parts, position, gradient.detach())
            receive(number, parts)

        return hook

    return [node.register_hook(hook_for(number, reads)) for number, (node, reads) in enumerate(slots.items())]


def add_part(parts: Parts, position: int, gradient: Tensor) -> None:
    """Add a gradient to those at an edge, without changing any in place."""
    parts[position] = parts[position] + gradient if position in parts else gradient


@contextmanager
def recorded(border: Border, task: int) -> Iterator[Parts]:
    """Within this context, gather the gradients that a backward sends over the border of a task, by edge."""
    gathered: Parts = {}

    def receive(_: int, parts: Mapping[int, Tensor]) -> None:
        for position, gradient in parts.items():
            add_part(gathered, position, gradient)

    handles = record(border, task, receive)
    try:
        yield gathered
    finally:
        for handle in handles:
            handle.remove()


def norm_of_parts(parts: Mapping[int, Tensor], like: Tensor) -> Tensor:
    """Return the norm of a task's gradient over its edges, 0 when there is none, in float32 or wider."""
    dtype = wide(like.dtype)
    if not parts:
        return torch.zeros((), dtype=dtype, device=like.device)
    # A model may be wider than the loss, as where its outputs are converted.
    widest = functools.reduce(torch.promote_types, (part.dtype for part in parts.values()), dtype)
    norms = torch._foreach_norm(list(parts.values()), 2, widest)
    length: Tensor = torch.linalg.vector_norm(torch.stack([norm.to(like.device) for norm in norms]))
    return length.to(dtype)


def _describe_border(border: Border, names: tuple[str, ...]) -> str:
    """Return what the representation is, for ``explain()``."""
    readers: dict[int, list[str]] = {}
    for task, reads in border.reads.items():
        for position in sorted(set(reads.values())):
            readers.setdefault(position, []).append(names[task])
    described = []
    for position, edge in enumerate(border.edges):
        entries = getattr(edge.node, "_input_metadata", None)
        shape = tuple(entries[edge.output_nr].shape) if entries else "a tensor"
        described.append(f"{shape} read by {', '.join(readers.get(position, []))}")
    more = "; one lies above another (skip path or several depths), each counts directly" if border.skips else ""
    return f"{len(border.edges)} tensors: {'; '.join(described)}{more}" if len(described) > 1 else described[0]
