"""Ghost norms: inner products of weight gradients of Linear layers, without the weight gradients."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge

from mtl_axes.probes.discovery import Graph

__all__ = ["LinearSite", "linear_sites", "stacked"]

# Positions of (input, weight, bias) among the arguments of the node, and the name under which it saves the input.
_NODES: dict[str, tuple[int, int, int | None, str]] = {
    "AddmmBackward0": (1, 2, 0, "_saved_mat1"),
    "MmBackward0": (0, 1, None, "_saved_self"),
}


@dataclass(frozen=True)
class LinearSite:
    """A Linear layer in which the weight occurs once: y = x W^T + b, for n rows of x.

    With the gradient d_i (n, out) of task i at y, its weight gradient is d_i^T x, and
    <d_i^T x, d_j^T x> = <d_i, (x x^T) d_j>, an inner product that costs n^2 out instead of n in out.

    Attributes:
        edge: y, as an edge of the graph.
        inputs: (n, in) x, as saved by the forward pass.
        weight: (out, in) leaf.
        bias: (out,) leaf, or None.
    """

    edge: GradientEdge
    inputs: Tensor
    weight: Tensor
    bias: Tensor | None

    @property
    def leaves(self) -> tuple[Tensor, ...]:
        """The leaves whose gradients follow from that of y."""
        return (self.weight,) if self.bias is None else (self.weight, self.bias)

    def gradients(self, total: Tensor) -> tuple[Tensor, ...]:
        """Return the gradients of the leaves from that of y."""
        weight = total.T @ self.inputs
        return (weight,) if self.bias is None else (weight, total.sum(0))

    def square(self, gradient: Tensor, kernel: Tensor) -> Tensor:
        """Return the squared norm of a task's gradient over the leaves from that of y, (n, out)."""
        square = ((kernel @ gradient) * gradient).sum()
        return square if self.bias is None else square + gradient.sum(0).square().sum()

    def products(self, gradients: Tensor, kernel: Tensor) -> Tensor:
        """Return the inner products (K, K) of the tasks' gradients over the leaves, from those of y, (K, n, out)."""
        flat = gradients.flatten(1)
        found = flat @ (kernel @ gradients).flatten(1).T
        if self.bias is not None:
            sums = gradients.sum(1)
            found = found + sums @ sums.T
        return found

    def kernel(self) -> Tensor:
        """Return x x^T (n, n), which all tasks have in common."""
        return self.inputs @ self.inputs.T


def linear_sites(graph: Graph, shared: set[Tensor], tasks: int, *, reused: bool) -> list[LinearSite]:
    """Return the Linear layers of the shared part whose ghost products cost less than their weight gradients."""
    parents: dict[Any, int] = {}
    for _, _, child, _ in graph.edges():
        parents[child] = parents.get(child, 0) + 1

    def leaf_at(edge: tuple[Any, int] | None, *, transposed: bool) -> Tensor | None:
        """The shared leaf behind an edge, if nothing else uses it."""
        node = None if edge is None else edge[0]
        if transposed and node is not None:
            if type(node).__name__ != "TBackward0" or parents[node] > 1:
                return None
            node = node.next_functions[0][0]
        if node is None or type(node).__name__ != "AccumulateGrad" or parents[node] > 1:
            return None
        leaf: Tensor = node.variable
        return leaf if leaf in shared and not leaf._backward_hooks else None

    sites = []
    for node in graph.masks:
        if type(node).__name__ not in _NODES:
            continue
        _, at_weight, at_bias, saved = _NODES[type(node).__name__]
        edges = node.next_functions
        weight = leaf_at(edges[at_weight], transposed=True)
        if weight is None or weight.dtype.itemsize < torch.float32.itemsize:
            continue
        bias = None if at_bias is None else leaf_at(edges[at_bias], transposed=False)
        # addmm may add a matrix, and scale: then it is no Linear layer.
        if at_bias is not None and (node._saved_alpha != 1 or node._saved_beta != 1):
            continue
        if bias is not None and bias.shape != weight.shape[:1]:
            bias = None
        inputs: Tensor = getattr(node, saved)
        if _pays(inputs.shape[0], weight, tasks, reused=reused):
            sites.append(LinearSite(GradientEdge(node, 0), inputs.detach(), weight, bias))
    return sites


def _pays(rows: int, weight: Tensor, tasks: int, *, reused: bool) -> bool:
    """Compare multiplications per task: kernel and product, and with reuse one weight gradient for all."""
    out, width = weight.shape
    direct = rows * width * out
    ghost = rows * rows * (width / tasks + out) + (direct / tasks if reused else 0)
    return bool(ghost < direct)


def stacked(gradients: Mapping[int, Tensor], tasks: int) -> Tensor:
    """Return gradients of one site by task as (K, n, out), zeros for a task that has none."""
    like = next(iter(gradients.values()))
    zero = torch.zeros((), dtype=like.dtype, device=like.device).expand(like.shape)
    return torch.stack([gradients.get(task, zero) for task in range(tasks)])
