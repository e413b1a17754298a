"""Leaves of a graph, and the gradients of the tasks there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from mtl_axes.distributed import mean_over_ranks
from mtl_axes.probes.base import Tape
from mtl_axes.probes.compiled import explained
from mtl_axes.probes.graph import Graph
from mtl_axes.probes.hooks import unspoiled
from mtl_axes.signals import Need, wide

__all__ = ["Leaves", "Row", "averaged", "dense", "gradients_at", "norm_of"]

# Gradients of one task by position of the leaf; a leaf that the task does not reach is left out.
Row = Mapping[int, Tensor]


@dataclass(frozen=True)
class Leaves:
    """Where the gradients of a call are taken.

    Attributes:
        tensors: the leaves, those of the shared part first.
        masks: bit mask of the tasks that reach each.
        shared: number of leaves that belong to the shared part.
    """

    tensors: tuple[Tensor, ...]
    masks: tuple[int, ...]
    shared: int

    @classmethod
    def of(cls, graph: Graph, parameters: tuple[Tensor, ...], *, everywhere: bool) -> Leaves:
        """Return the shared parameters that are on the graph and, ``everywhere``, all its other leaves."""
        leaves = [parameter for parameter in parameters if parameter in graph.leaves]
        shared = len(leaves)
        if everywhere:
            known = set(parameters)
            leaves += [leaf for leaf in graph.leaves if leaf not in known]
        return cls(tuple(leaves), tuple(graph.leaves[leaf] for leaf in leaves), shared)


def gradients_at(leaves: Leaves, tape: Tape, task: int, scale: Tensor | None = None) -> Row:
    """Return the gradients of a task at the leaves that it reaches, times a 0-dim scale.

    Raises:
        GraphError: the graph of the task cannot be walked backward.
    """
    reached = [position for position, mask in enumerate(leaves.masks) if mask >> task & 1]
    loss = tape.losses[task]
    if loss is None or not reached:
        return {}
    try:
        inputs = [leaves.tensors[position] for position in reached]
        start = None if scale is None else scale.to(loss.dtype)
        with unspoiled(tape.retained):
            gradients = torch.autograd.grad(loss, inputs, start, retain_graph=True, allow_unused=True)
    except RuntimeError as error:
        raise explained(error, tape.names[task]) from error
    return {position: gradient for position, gradient in zip(reached, gradients, strict=True) if gradient is not None}


def dense(row: Row, need: Need) -> Row:
    """Return the gradients as strided tensors that have what ``need`` asks for.

    Of a sparse gradient the entries are enough for its norm; inner products need their positions too.
    """
    return {position: _dense(gradient, need) for position, gradient in row.items()}


def _dense(gradient: Tensor, need: Need) -> Tensor:
    if not gradient.is_sparse:
        return gradient
    return gradient.to_dense() if need == "gramian" else gradient.coalesce().values()


def averaged(row: Row, leaves: Leaves, parameters: tuple[Tensor, ...]) -> Row:
    """Return the means over all ranks of a task's gradients at the shared parameters, by their position."""
    local = {leaf: row.get(position) for position, leaf in enumerate(leaves.tensors[: leaves.shared])}
    return dict(enumerate(mean_over_ranks([local.get(parameter) for parameter in parameters], parameters)))


def norm_of(row: Row) -> Tensor:
    """Return the norm of a task's gradient over some leaves, in float32 or wider."""
    gradients = list(row.values())
    first = gradients[0]
    norms = torch._foreach_norm(gradients, 2, wide(first.dtype))
    length: Tensor = torch.linalg.vector_norm(torch.stack([norm.to(first.device) for norm in norms]))
    return length
