"""Reuse: measured gradients are combined and handed over in the user's own backward, instead of being computed again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

from mtl_axes.errors import GraphError
from mtl_axes.probes.base import Tape
from mtl_axes.probes.graph import Graph
from mtl_axes.probes.hooks import next_hook, retaining, why_hooked
from mtl_axes.probes.leaves import Row

__all__ = ["Gradients", "hand_over", "why_not"]

_HALF = (torch.float16, torch.bfloat16)
# FSDP2 reduces gradients in a node on the inputs of a module, which a gradient that skips the module never reaches.
_FSDP = "RegisterPostBackwardFunctionBackward"


class Gradients:
    """Gradients of one call by task and leaf, and their weighted sum once the weights are known.

    Args:
        tape: of the call.
        leaves: where the gradients were taken, and the sum is handed over.
        hook: number of the next hook, read before hooks on the graph were ruled out.
        weights: (K,) the weights, when they are known before the gradients: each gradient is then added up at once, and
            one buffer is all that is kept.
    """

    def __init__(self, tape: Tape, leaves: tuple[Tensor, ...], hook: int, weights: Tensor | None = None) -> None:
        self.leaves = leaves
        self._graph: Graph | None = tape.graph()
        self._watched: tuple[Tensor | None, ...] = (*tape.outputs, *tape.losses)
        self._hook = hook
        self._weights = None if weights is None else weights.detach().unbind()
        self._rows: dict[int, Row] = {}
        self._sum: dict[int, Tensor] | None = {} if weights is not None else None

    def add(self, task: int, row: Row) -> None:
        """Add the gradients of a task."""
        if self._weights is not None and self._sum is not None:
            _add_weighted(self._sum, self._weights[task], row)
        else:
            self._rows[task] = row

    def set_weights(self, weights: Tensor) -> None:
        """Set the weights (K,) that multiply the losses, unless they were known before."""
        if self._weights is None:
            self._weights = weights.detach().unbind()

    @property
    def linked(self) -> bool:
        """Whether the user's backward also walks the graph of the losses, so that it is freed as usual.

        A node written in Python would be called with zeros there, and compute all that lies behind it with them.
        """
        return self._graph is not None and not self._graph.has_python_nodes

    def observed(self) -> bool:
        """Return whether a hook that came after the call, or the present backward, needs the gradients inside the graph."""
        if self._graph is None:
            return False
        late = next_hook() != self._hook or bool(retaining(self._watched))
        return late or not self._graph.runs_to_all_leaves()

    def release(self) -> None:
        """Free everything, after the last backward."""
        self._rows, self._sum, self._graph, self._watched = {}, None, None, ()

    def take(self, scale: Tensor, *, keep: bool) -> Sequence[Tensor | None]:
        """Return the gradients of the leaves, times the scale that arrives from behind the loss.

        Args:
            scale: 0-dim.
            keep: True when another backward may follow; otherwise nothing is left behind.
        """
        if self._weights is None or (self._sum is None and not self._rows):
            raise GraphError(
                "Trying to backward through the graph a second time, after the measured gradients have been handed over. "
                "Specify retain_graph=True in the first backward, or call the criterion again."
            )
        total: dict[int, Tensor] = {}
        if self._sum is not None and keep:
            _add_weighted(total, scale, self._sum)
        elif self._sum is not None:
            total = {position: gradient.mul_(scale.to(gradient)) for position, gradient in self._sum.items()}
        for task, row in self._rows.items():
            _add_weighted(total, self._weights[task] * scale, row)
        if not keep:
            self.release()
        return [total.get(position) for position in range(len(self.leaves))]


def _add_weighted(total: dict[int, Tensor], coefficient: Tensor, row: Row) -> None:
    """Add ``coefficient`` times the gradients of ``row`` to ``total``, whose tensors belong to it alone.

    The gradients themselves are never changed: autograd may return one tensor for two inputs.
    """
    groups: dict[tuple[torch.dtype, torch.device], list[int]] = {}
    for position, gradient in row.items():
        groups.setdefault((gradient.dtype, gradient.device), []).append(position)
    for (dtype, device), positions in groups.items():
        factor = coefficient.to(device=device, dtype=dtype)
        if device.type == "cpu" and not isinstance(factor, FakeTensor):
            # One pass over memory instead of three; and on a CPU reading a value waits for nothing.
            zero = bool(factor == 0)
            for position in positions:
                if position not in total:
                    total[position] = torch.zeros_like(row[position]) if zero else row[position] * factor
                elif not zero:
                    total[position].addcmul_(row[position], factor)
            continue
        products = torch._foreach_mul([row[position] for position in positions], factor)
        for position, product in zip(positions, products, strict=True):
            # 0 times a gradient that overflowed is NaN; the plain sum has 0 there.
            product = torch.where(factor == 0, 0.0, product)
            if position in total:
                total[position].add_(product)
            else:
                total[position] = product


class _HandOver(torch.autograd.Function):
    """Returns the total unchanged; its backward gives every leaf the weighted sum of the measured gradients.

    The total goes in as well, where it is linked, and gets no gradient: the engine then walks the graph of the losses
    without computing anything, and frees its buffers as an ordinary backward would.
    """

    @staticmethod
    def forward(ctx: Any, total: Tensor, gradients: Gradients, *leaves: Tensor) -> Tensor:
        ctx.gradients = gradients
        ctx.set_materialize_grads(False)
        return total.detach().clone()

    @staticmethod
    def backward(ctx: Any, scale: Tensor | None) -> Any:
        gradients: Gradients = ctx.gradients
        if scale is None:
            return (None, None, *(None for _ in gradients.leaves))
        if torch.is_grad_enabled():
            raise GraphError(
                "create_graph=True does not work with reused gradients, which have no graph behind them. "
                "Use probe=Exact(reuse=False)."
            )
        keep = torch._C._autograd._get_current_graph_task_keep_graph()
        if gradients.linked and gradients.observed():
            # The graph is still there, so the gradient takes the ordinary way through it.
            if not keep:
                gradients.release()
            return (scale, None, *(None for _ in gradients.leaves))
        return (None, None, *gradients.take(scale, keep=keep))


def hand_over(total: Tensor, gradients: Gradients) -> Tensor:
    """Return ``total``, with a backward that hands the gradients over to their leaves."""
    result: Tensor = _HandOver.apply(total if gradients.linked else total.detach(), gradients, *gradients.leaves)  # type: ignore[no-untyped-call]
    return result


def why_not(tape: Tape) -> str | None:
    """Return why measured gradients cannot stand for the user's backward in this call, or None when they can."""
    if not hasattr(torch._C._autograd, "_get_current_graph_task_keep_graph"):
        return f"torch {torch.__version__} does not say whether a backward is the last one"
    if tape.retained:
        return "an output or a loss retains its gradient"
    graph = tape.graph()
    opaque = graph.opaque()
    if opaque is not None:
        return f"the graph passes through {opaque[0]} ({opaque[1]})"
    if _FSDP in graph.kinds:
        return "FSDP2 shards parameters, and would never reduce what is handed over"
    for leaf in graph.leaves:
        reason = _unfit(leaf)
        if reason is not None:
            return reason
    if graph.float16:
        return "gradients pass through float16, where they underflow before a loss scale arrives"
    return why_hooked(graph)


def _unfit(leaf: Tensor) -> str | None:
    if type(leaf) not in (Tensor, nn.Parameter, FakeTensor):
        return f"a parameter is a {type(leaf).__name__}"
    if leaf._backward_hooks:
        return "a parameter has a hook"
    if leaf.dtype in _HALF:
        return f"a parameter is {str(leaf.dtype).removeprefix('torch.')}, in which weights would be rounded"
    if leaf.layout is not torch.strided:
        return "a parameter is not strided"
    return None
