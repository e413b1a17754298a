"""Reuse: measured gradients are combined and handed over in the user's own backward, instead of being computed again."""

from __future__ import annotations

import gc
import sys
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils.hooks import RemovableHandle

from mtl_axes.errors import GraphError
from mtl_axes.probes.discovery import Graph

__all__ = ["Gradients", "hand_over", "handles_made", "why_not"]

Row = Mapping[int, Tensor]
Finish = Callable[[dict[int, Tensor]], Sequence[Tensor | None]]

_HALF = (torch.float16, torch.bfloat16)
# FSDP2 reduces gradients in a node on the inputs of a module, which a gradient that skips the module never reaches.
_FSDP = "RegisterPostBackwardFunctionBackward"
_MODULE_HOOK = "BackwardHookFunctionBackward"
# Where garbage collection is switched off, young objects pile up and a look at all of them is no longer cheap.
_YOUNG = 20_000
# Modules that keep hooks of all modules, or all optimizers, at their top.
_KEEPERS = ("torch.nn.modules.module", "torch.optim.optimizer")
# The number of hooks registered when any probe last looked, in any criterion of this process.
_handles: int | None = None


class Gradients:
    """Gradients of one call by task and site, and their weighted sum once the weights are known.

    A site is a place where gradients are taken: a leaf, or a tensor from whose gradient those of leaves follow.

    Args:
        leaves: where the sum is handed over.
        finish: turns the weighted sum by site into the gradients of the leaves.
        weights: (K,) the weights, when they are known before the gradients: each gradient is then added up at once, and
            one buffer is all that is kept.
    """

    def __init__(self, leaves: tuple[Tensor, ...], finish: Finish, weights: Tensor | None = None) -> None:
        self.leaves = leaves
        self._finish = finish
        self._known = None if weights is None else weights.detach().unbind()
        self._rows: dict[int, Row] = {}
        self._sum: dict[int, Tensor] | None = {} if weights is not None else None

    def add(self, task: int, row: Row) -> None:
        """Add the gradients of a task by site."""
        if self._known is not None and self._sum is not None:
            _add_weighted(self._sum, self._known[task], row)
        else:
            self._rows[task] = row

    def settle(self, weights: Tensor) -> None:
        """Take note of the weights (K,) that multiply the losses."""
        if self._known is None:
            self._known = weights.detach().unbind()

    def take(self, scale: Tensor, *, keep: bool) -> Sequence[Tensor | None]:
        """Return the gradients of the leaves, times the scale that arrives from behind the loss.

        Args:
            scale: 0-dim.
            keep: True when another backward may follow; otherwise nothing is left behind.
        """
        if self._known is None or (self._sum is None and not self._rows):
            raise GraphError(
                "Trying to backward through the graph a second time, after the measured gradients have been handed over. "
                "Specify retain_graph=True in the first backward, or call the criterion again."
            )
        total: dict[int, Tensor] = {}
        if self._sum is not None and keep:
            _add_weighted(total, scale, self._sum)
        elif self._sum is not None:
            total = {site: gradient.mul_(scale.to(gradient)) for site, gradient in self._sum.items()}
        for task, row in self._rows.items():
            _add_weighted(total, self._known[task] * scale, row)
        if not keep:
            self._rows, self._sum = {}, None
        return self._finish(total)


def _add_weighted(total: dict[int, Tensor], coefficient: Tensor, row: Row) -> None:
    """Add ``coefficient`` times the gradients of ``row`` to ``total``, whose tensors belong to it alone.

    The gradients themselves are never changed: autograd may return one tensor for two inputs.
    """
    casts: dict[tuple[torch.dtype, torch.device], Tensor] = {}
    for gradient in row.values():
        place = gradient.dtype, gradient.device
        if place not in casts:
            casts[place] = coefficient.to(device=gradient.device, dtype=gradient.dtype)
    for (dtype, device), factor in casts.items():
        here = [site for site, gradient in row.items() if (gradient.dtype, gradient.device) == (dtype, device)]
        fresh = [site for site in here if site not in total]
        known = [site for site in here if site in total]
        if known and device.type == "cpu":
            for site in known:  # one pass over memory, where the fused form below takes two
                total[site].addcmul_(row[site], factor)
        elif known:
            torch._foreach_add_([total[site] for site in known], torch._foreach_mul([row[site] for site in known], factor))
        if fresh:
            total.update(zip(fresh, torch._foreach_mul([row[site] for site in fresh], factor), strict=True))


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
                "A backward through reused gradients should be a first and last one. Found create_graph=True, and measured "
                "gradients have no graph behind them. Use probe=Exact(reuse=False)."
            )
        keep = torch._C._autograd._get_current_graph_task_keep_graph()
        return (None, None, *gradients.take(scale, keep=keep))


def hand_over(total: Tensor, gradients: Gradients, *, linked: bool) -> Tensor:
    """Return ``total``, with a backward that hands the gradients over to their leaves."""
    result: Tensor = _HandOver.apply(total if linked else total.detach(), gradients, *gradients.leaves)  # type: ignore[no-untyped-call]
    return result


def handles_made() -> int:
    """Return a number that grows whenever a hook is registered anywhere, on a tensor, a node or a module."""
    global _handles
    _handles = RemovableHandle.next_id
    return _handles


def why_not(graph: Graph, handles: int | None) -> str | None:
    """Return why measured gradients cannot stand for the user's backward on this graph, or None when they can.

    Args:
        graph: of the losses.
        handles: value of :func:`handles_made` after the last call; None in the first one.
    """
    kinds = graph.kinds()
    opaque = graph.opaque()
    if opaque is not None:
        return f"the graph passes through {opaque[0]} ({opaque[1]})"
    if _FSDP in kinds:
        return "FSDP2 shards parameters, and would never reduce what is handed over"
    for leaf in graph.leaves:
        reason = _unfit(leaf)
        if reason is not None:
            return reason
    if "ToCopyBackward0" in kinds and any(_is_float16(node) for node in graph.masks):
        return "gradients pass through float16, where they underflow before a loss scale arrives"
    # Hooks sit on nodes of the graph, out of Python's sight. But what registers one takes a number, and a hook on an
    # activation is as new as the activation; in the first call there is no number to compare with, only a longer search.
    new = handles is None and RemovableHandle.next_id != _handles
    objects = _objects(everything=new)
    hooked = _orphaned_hooks(objects) if new else handles is not None and RemovableHandle.next_id != handles
    if _MODULE_HOOK in kinds or hooked:
        return "a hook was registered since the last call, which may sit on an activation"
    return "an activation retains its gradient" if _retains(graph, objects) else None


def _objects(*, everything: bool) -> list[object]:
    """Return objects among which hooks and activations of the last forward pass are found."""
    if everything:
        return gc.get_objects()
    return gc.get_objects(generation=0) + gc.get_objects(generation=1) if gc.get_count()[0] < _YOUNG else []


def _orphaned_hooks(objects: list[object]) -> bool:
    """Return whether hooks exist that belong to no module, optimizer or parameter, and so to a graph."""
    found = [item for item in objects if type(item) is OrderedDict and item and _are_hooks(item)]
    if not found:
        return False
    owned = {id(value) for name in _KEEPERS if name in sys.modules for value in vars(sys.modules[name]).values()}
    with torch._C.DisableTorchFunctionSubclass():
        for item in objects:
            kind = type(item)
            if issubclass(kind, (nn.Module, torch.optim.Optimizer)):
                owned |= {id(value) for value in vars(item).values()}
            elif issubclass(kind, Tensor) and item.is_leaf:  # type: ignore[attr-defined]
                owned |= {id(item._backward_hooks), id(item._post_accumulate_grad_hooks)}  # type: ignore[attr-defined]
    return any(id(item) not in owned for item in found)


def _are_hooks(items: OrderedDict[object, object]) -> bool:
    number, hook = next(iter(items.items()))
    return type(number) is int and callable(hook)


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


def _is_float16(node: Any) -> bool:
    if type(node).__name__ != "ToCopyBackward0":
        return False
    return any(getattr(entry, "dtype", None) is torch.float16 for entry in getattr(node, "_input_metadata", ()))


def _retains(graph: Graph, objects: list[object]) -> bool:
    """Return whether a tensor of this graph retains its gradient. Whoever reads it later has kept it alive until now."""
    with torch._C.DisableTorchFunctionSubclass():
        return any(
            issubclass(type(item), Tensor) and item.retains_grad and item.grad_fn in graph.masks  # type: ignore[attr-defined]
            for item in objects
        )
