"""Recording gradients where the private parts of the graph end: what the representation and the lagged probe share."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from mtl_axes.errors import GraphError
from mtl_axes.probes.base import Probe, Tape
from mtl_axes.probes.discovery import Border, find_border, refuse_static_ddp
from mtl_axes.probes.hooks import remember
from mtl_axes.signals import wide

__all__ = ["BorderProbe", "border_of", "describe_border", "norm_of_parts", "others_measure", "record", "recorded"]

Parts = dict[int, Tensor]


class BorderProbe(Probe):
    """A probe that measures at the representation."""

    def __init__(self) -> None:
        super().__init__()
        self._found = "not looked up yet"

    def check(self, tape: Tape) -> bool:
        border = None if len(tape.names) == 1 else border_of(tape)
        if border is not None:
            refuse_static_ddp(border.static_ddp and self.same_step)
            self._found = describe_border(border, tape.names)
            self.check_border(tape, border)
        return border is not None or len(tape.names) == 1

    def check_border(self, tape: Tape, border: Border) -> None:
        """Check that what will be done at the border can be done, for a probe that does it before the user's backward."""

    def couple(self, tape: Tape, weights: Tensor, total: Tensor) -> Tensor:
        # For the exact probe of another criterion, which would take the hooks of this call for somebody else's.
        remember()
        return total


def border_of(tape: Tape) -> Border | None:
    """Return where the private parts of a call's graph read the shared one; None when a lone task does not tell.

    Raises:
        GraphError: there is no representation that could be measured.
    """
    present = tape.present()
    if len(present) < 2 or _is_frozen(tape):
        return None
    border = find_border(tape.losses)
    names = list(tape.names)
    if border.dependent:
        inside = [names[task] for task in sorted(border.dependent)]
        raise GraphError(
            f"Each of the tasks {names} should have a part of the graph of its own, to measure at its border. Found that "
            f'the loss of {", ".join(map(repr, inside))} is part of another task\'s. Use probe="exact".'
        )
    if border.hidden is not None:
        raise GraphError(
            f"Two of the tasks {names} should read a common tensor, the representation. Found {border.hidden}, which hides "
            'it: each task reads an output of its own. Use probe="exact" with shared=, or keep the heads out of that module.'
        )
    if not border.edges:
        raise GraphError(
            f"Two of the tasks {names} should read a common tensor, the representation. Found that they have at most "
            'parameters in common, as with an input per task. Use probe="exact".'
        )
    return border


def others_measure(tape: Tape) -> bool:
    """Return whether other ranks wait for the norms of this call, though this one sees no border."""
    return tape.whole and len(tape.names) > 1 and not _is_frozen(tape)


def _is_frozen(tape: Tape) -> bool:
    # A given trunk that is frozen for a while is no fault: the graph then shows no representation, and the weights hold.
    return tape.shared_is_known() and not tape.shared_part().parameters


def record(border: Border, task: int, receive: Callable[[Any, Parts], None]) -> list[RemovableHandle]:
    """Call ``receive(node, parts)`` whenever a backward passes a border node of a task, with its gradients by edge.

    What a node sends to an edge is the direct derivative: what reaches the edge through other edges is not in it.
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


def describe_border(border: Border, names: tuple[str, ...]) -> str:
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
