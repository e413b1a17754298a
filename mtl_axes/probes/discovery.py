"""Which parameters the tasks share: given by the user, or found by a walk over the autograd graph of their losses."""

from __future__ import annotations

import heapq
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from mtl_axes.errors import GraphError, OptionError

__all__ = ["Shared", "SharedPart", "leaf_masks", "reaches_compiled"]

# Behind these nodes the walk sees another graph than the one that computes the gradients, and would be silently wrong.
_COMPILED = "CompiledFunctionBackward"
_OPAQUE = {
    "_DDPSinkBackward": "DistributedDataParallel with static_graph or find_unused_parameters",
    _COMPILED: "a compiled module",
    "CheckpointFunctionBackward": "reentrant activation checkpointing, which use_reentrant=False avoids",
}


@dataclass(frozen=True)
class SharedPart:
    """Parameters that the tasks share, and how they were found.

    Attributes:
        parameters: the shared parameters.
        private: number of parameters (tensors) that one task alone reaches, by task.
        source: ``"given"`` or ``"found"``.
    """

    parameters: tuple[Tensor, ...]
    private: dict[str, int]
    source: str

    @property
    def size(self) -> int:
        """Number of scalar entries."""
        return sum(parameter.numel() for parameter in self.parameters)


def _node_masks(losses: tuple[Tensor | None, ...]) -> dict[Any, int]:
    """Return for every node of the graphs a bit mask of the losses that reach it.

    Nodes are visited by decreasing sequence number, which is a topological order where one thread built the graph; where
    several did, a node whose mask grows later is visited again.
    """
    masks: dict[Any, int] = {}
    heap: list[tuple[int, int, Any]] = []
    ticket = 0

    def reach(node: Any, mask: int) -> None:
        nonlocal ticket
        known = masks.get(node, 0)
        if mask | known != known:
            masks[node] = mask | known
            ticket += 1
            heapq.heappush(heap, (-node._sequence_nr(), ticket, node))

    for index, loss in enumerate(losses):
        if loss is not None and loss.grad_fn is not None:
            reach(loss.grad_fn, 1 << index)
    while heap:
        node = heapq.heappop(heap)[2]
        for child, _ in node.next_functions:
            if child is not None:
                reach(child, masks[node])
    return masks


def leaf_masks(losses: tuple[Tensor | None, ...], *, through_opaque: bool = False) -> dict[Tensor, int]:
    """Return for every leaf of the graphs a bit mask of the losses that reach it.

    Raises:
        GraphError: a node hides the graph behind it, unless ``through_opaque``.
    """
    leaves: dict[Tensor, int] = {}
    for node, mask in _node_masks(losses).items():
        kind = type(node).__name__
        if kind == "AccumulateGrad":
            leaves[node.variable] = mask
        elif kind in _OPAQUE and not through_opaque:
            raise GraphError(
                f"Shared parameters should be visible on the autograd graph. Found {kind} ({_OPAQUE[kind]}), which "
                "hides them. Pass shared=, a module or parameters."
            )
    return leaves


def reaches_compiled(losses: tuple[Tensor | None, ...]) -> bool:
    """Return whether the graph of a loss passes through a compiled module."""
    return any(type(node).__name__ == _COMPILED for node in _node_masks(losses))


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
        return {"_items": self._mapped(), "_memo": None, "_warned": False, "last": None}

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
            "None of the parameters given as shared= is reached by the losses; they are searched on the graph instead.",
            stacklevel=3,
        )
        self._items = ()
        return True

    def resolve(self, names: tuple[str, ...], losses: tuple[Tensor | None, ...]) -> SharedPart:
        """Return the shared parameters of this graph.

        Raises:
            GraphError: no parameter is reached by two tasks, or the graph is hidden.
        """
        if self.given:
            trainable = tuple(parameter for parameter in self._parameters() if parameter.requires_grad)
            if not trainable and not self._warned:
                self._warned = True
                warnings.warn(
                    "All parameters given as shared= are frozen: no gradient is measured there, and the weights hold.",
                    stacklevel=3,
                )
            self.last = SharedPart(trainable, {}, "given")
            return self.last
        leaves = leaf_masks(losses)
        # Inputs that require a gradient (residuals of differential equations, attacks) are leaves too, but not shared
        # parameters; a functional model without nn.Parameter has nothing else.
        masks = {leaf: mask for leaf, mask in leaves.items() if isinstance(leaf, nn.Parameter)} or leaves
        # With a single task everything that it reaches counts as shared.
        alone = len(names) == 1
        shared = tuple(leaf for leaf, mask in masks.items() if alone or mask & (mask - 1))
        private = {
            name: sum(mask == 1 << index for mask in masks.values()) if not alone else 0 for index, name in enumerate(names)
        }
        self.last = SharedPart(shared, private, "found")
        return self.last
