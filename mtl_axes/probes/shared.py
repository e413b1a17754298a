"""What the tasks share: given by the user, or found on the graph of their losses."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from mtl_axes.errors import GraphError, OptionError
from mtl_axes.probes.graph import Graph, is_leaf, is_several

__all__ = ["Shared", "SharedPart"]


@dataclass(frozen=True)
class SharedPart:
    """Parameters that the tasks share, and how they were found.

    Attributes:
        parameters: the shared parameters.
        source: ``"given"`` or ``"found"``.
        names: names of the tasks, in the order of the bits below.
        reached: bit mask of the tasks that reach a leaf of the graph, by leaf; empty if no graph was walked.
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
        masks = [mask for leaf, mask in self.reached.items() if leaf not in shared]
        return {name: masks.count(1 << bit) for bit, name in enumerate(self.names)} if self.reached else {}

    @property
    def without(self) -> tuple[str, ...]:
        """Tasks that took part and whose loss reaches none of the shared parameters."""
        reaching = 0
        for leaf in self.parameters:
            reaching |= self.reached.get(leaf, 0)
        return _named(self.present & ~reaching, self.names)

    @property
    def partial(self) -> int:
        """Number of shared parameters that some, but not all, of the tasks that took part reach."""
        return sum(self.reached.get(leaf, 0) not in (0, self.present) for leaf in self.parameters)

    @property
    def unreached(self) -> int:
        """Number of shared parameters that no task reaches."""
        return sum(leaf not in self.reached for leaf in self.parameters) if self.reached else 0


class Shared:
    """The user's ``shared=``, held outside every ``state_dict``, and the search that replaces it.

    The search sees the tasks of its own call. If three or more tasks share different parts and some are absent now and then,
    the parameters that are found change, and so does the meaning of a norm: give ``shared=`` there.

    A plain object on purpose: a module stored as an attribute of the criterion would be saved and moved with it.

    Attributes:
        last: the shared part of the last call that looked for it.
    """

    def __init__(self, given: nn.Module | Tensor | Iterable[Tensor] | None) -> None:
        self._items = _items(given)
        self._memo: dict[int, Any] | None = None
        self._warned = False
        self._described = (0, 0)
        self.last: SharedPart | None = None
        if given is not None and not self._parameters():
            raise OptionError("Option `shared` has no parameters. Pass parameters or a module with some, frozen or not.")

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
            "The losses reach none of the parameters given as shared=, so the shared parameters are searched on the graph "
            "instead. Under FSDP2 the graph holds others in the place of sharded parameters: leave shared= out there.",
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
            parameters = tuple(parameter for parameter in self._parameters() if parameter.requires_grad)
            if not parameters and not self._warned:
                self._warned = True
                warnings.warn(
                    "All parameters given as shared= are frozen: no gradient is measured there, and the weights stay as "
                    "they are.",
                    stacklevel=3,
                )
            if not _same(self.last, parameters):
                self.last = SharedPart(parameters, "given")
        else:
            walked = graph()
            parameters = _search(names, walked)
            # The rest of the description costs another walk, so it is renewed only when the graph has changed.
            if not _same(self.last, parameters) or (len(walked.masks), walked.present) != self._described:
                self._describe(names, walked, parameters, "found")
        assert self.last is not None
        return self.last

    def describe(self, names: tuple[str, ...], graph: Graph) -> None:
        """Work out, for ``explain()``, which task reaches what."""
        with contextlib.suppress(GraphError):  # it is raised when something is to be measured there
            part = self.resolve(names, lambda: graph)
            self._describe(names, graph, part.parameters, part.source)

    def _describe(self, names: tuple[str, ...], graph: Graph, parameters: tuple[Tensor, ...], source: str) -> None:
        tied = _named(_tied(graph, parameters), names)
        self.last = SharedPart(parameters, source, names, _parameters_of(graph), graph.present, tied)
        self._described = (len(graph.masks), graph.present)


def _items(given: nn.Module | Tensor | Iterable[Tensor] | None) -> tuple[nn.Module | Tensor, ...]:
    if given is None:
        return ()
    items = tuple(given) if isinstance(given, Iterable) and not isinstance(given, (nn.Module, Tensor)) else (given,)
    for item in items:
        if not isinstance(item, (nn.Module, Tensor)):
            raise OptionError(f"Option `shared` should be a module or parameters. Found {type(item).__name__}.")
    return items


def _named(mask: int, names: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(name for bit, name in enumerate(names) if mask >> bit & 1)


def _same(last: SharedPart | None, parameters: tuple[Tensor, ...]) -> bool:
    if last is None or len(last.parameters) != len(parameters):
        return False
    return all(old is new for old, new in zip(last.parameters, parameters, strict=True))


def _search(names: tuple[str, ...], graph: Graph) -> tuple[Tensor, ...]:
    """Return the parameters that two tasks reach; with a single task, all that it reaches.

    Raises:
        GraphError: the graph is hidden behind a node.
    """
    opaque = graph.opaque()
    if opaque is not None:
        raise GraphError(
            f"The shared parameters cannot be found on the autograd graph: {opaque[0]} ({opaque[1]}) hides them. "
            "Pass shared=, a module or parameters."
        )
    return tuple(leaf for leaf, mask in _parameters_of(graph).items() if len(names) == 1 or is_several(mask))


def _parameters_of(graph: Graph) -> dict[Tensor, int]:
    # Inputs that require a gradient (residuals of differential equations, attacks) are leaves too, but not shared
    # parameters; a functional model without nn.Parameter has nothing else.
    return {leaf: mask for leaf, mask in graph.leaves.items() if isinstance(leaf, nn.Parameter)} or graph.leaves


def _tied(graph: Graph, parameters: tuple[Tensor, ...]) -> int:
    """Return the mask of the tasks whose private part uses a shared parameter directly."""
    shared, tied = set(parameters), 0
    for node, child in graph.edges():
        if is_leaf(child) and child.variable in shared and is_several(graph.masks[child]):
            tied |= 0 if is_several(graph.masks[node]) else graph.masks[node]
    return tied
