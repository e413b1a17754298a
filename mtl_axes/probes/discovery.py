"""Which parameters the tasks share: given by the user, or found by a walk over the autograd graph of their losses."""

from __future__ import annotations

import heapq
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from mtl_axes.errors import GraphError, OptionError

__all__ = ["Shared", "SharedPart", "leaf_masks"]

# Behind these nodes the walk sees another graph than the one that computes the gradients, and would be silently wrong.
_OPAQUE = {
    "_DDPSinkBackward": "DistributedDataParallel with static_graph or find_unused_parameters",
    "CompiledFunctionBackward": "a model compiled as a whole",
    "CheckpointFunctionBackward": "reentrant activation checkpointing",
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


def leaf_masks(losses: tuple[Tensor | None, ...]) -> dict[Tensor, int]:
    """Return for every leaf of the graphs a bit mask of the losses that reach it.

    Nodes are visited by decreasing sequence number, which is a topological order where one thread built the graph; where
    several did, a node whose mask grows later is visited again.

    Raises:
        GraphError: a node hides the graph behind it.
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
    leaves: dict[Tensor, int] = {}
    while heap:
        node = heapq.heappop(heap)[2]
        mask = masks[node]
        kind = type(node).__name__
        if kind == "AccumulateGrad":
            leaves[node.variable] = mask
            continue
        opaque = _OPAQUE.get(kind)
        if opaque is not None:
            raise GraphError(
                f"Shared parameters should be visible on the autograd graph. Found {kind} ({opaque}), which "
                "hides them. Pass shared=, a module or parameters."
            )
        for child, _ in node.next_functions:
            if child is not None:
                reach(child, mask)
    return leaves


class Shared:
    """The user's ``shared=``, held outside every ``state_dict``, and the search that replaces it.

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
            raise OptionError("Option `shared` should have parameters that require a gradient. Found none.")

    def __deepcopy__(self, memo: dict[int, Any]) -> Shared:
        # A copy of the whole model maps the shared part to its copy; a copy of the criterion alone keeps the original.
        # Which of the two it is shows only after deepcopy has finished, so the memo is looked up at first use.
        copy = Shared(None)
        copy._items, copy._memo = self._mapped(), memo
        return copy

    def __getstate__(self) -> dict[str, Any]:
        return {"_items": self._mapped(), "_memo": None, "_warned": self._warned, "last": None}

    def _mapped(self) -> tuple[nn.Module | Tensor, ...]:
        if self._memo is not None:
            self._items = tuple(self._memo.get(id(item), item) for item in self._items)
            self._memo = None
        return self._items

    def _parameters(self) -> tuple[Tensor, ...]:
        unique: dict[Tensor, None] = {}
        for item in self._mapped():
            for parameter in item.parameters() if isinstance(item, nn.Module) else (item,):
                if parameter.requires_grad:
                    unique[parameter] = None
        return tuple(unique)

    @property
    def given(self) -> bool:
        """True while the user's own choice is in use."""
        return bool(self._items)

    def forget(self) -> None:
        """Give up a choice that the graph no longer reaches, so that the next look-up searches."""
        if not self._warned:
            self._warned = True
            warnings.warn(
                "None of the parameters given as shared= is reached by the losses; they are searched on the graph instead.",
                stacklevel=3,
            )
        self._items = ()

    def resolve(self, names: tuple[str, ...], losses: tuple[Tensor | None, ...]) -> SharedPart:
        """Return the shared parameters of this graph.

        Raises:
            GraphError: no parameter is reached by two tasks, or the graph is hidden.
        """
        parameters = self._parameters()
        if parameters:
            self.last = SharedPart(parameters, {}, "given")
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
