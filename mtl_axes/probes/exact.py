"""The exact probe: one gradient per task at the shared parameters, before the user's own backward."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge

from mtl_axes.distributed import check_shared_alike, mean_over_ranks
from mtl_axes.errors import GraphError, OptionError
from mtl_axes.probes.base import Measurement, Probe, Tape
from mtl_axes.probes.compiled import check_runs_twice, donated
from mtl_axes.probes.discovery import Graph, refuse_static_ddp
from mtl_axes.probes.ghost import LinearSite, linear_sites, stacked
from mtl_axes.probes.observers import is_hooked, remember, retaining, unspoiled
from mtl_axes.probes.products import Products
from mtl_axes.probes.reuse import Gradients, Row, hand_over, why_not
from mtl_axes.signals import Need, wide

__all__ = ["Exact", "explained"]


class Exact(Probe):
    """Exact norms, and Gramian where needed, of dL_i / d(shared parameters), of the shaped loss on the same forward.

    A task without a gradient on the shared part has the norm 0, which makes it inactive. Norms are summed in float32 or
    wider, each as soon as its gradient is there; a Gramian is added up parameter by parameter. Nothing is written to
    ``.grad``. Hooks on activations fire once more per measurement.

    Args:
        rotate: measure one task per measured window, in turn, and complete its norm with the latest ones of the others. An
            absent task passes its turn on; with ``sync="gradients"`` it keeps it, because no rank knows who is absent on
            all. A task is inactive until its first turn. Norms only.
        reuse: take the K gradients at all leaves, and let the user's backward hand over their weighted sum instead of
            computing it again: one backward less, for the memory of K gradients, or of one where the weights are known
            before (``accumulate > 1``). ``.grad`` is the same up to rounding. Off by itself, with the reason in
            ``explain()``, where hooks or retained gradients are on activations, where the graph is hidden, in half
            precision, under FSDP2, and with ``rotate``.
        ghost: take the norms and inner products of Linear layers from the gradients of their outputs, where that costs
            less: in small batches. Each weight must occur once in the graph. Equal to the direct form up to rounding, which
            grows where the gradients of the samples cancel each other.

    Raises:
        OptionError: an option is not a bool.

    >>> Exact(rotate=True)
    Exact(rotate=True, reuse=True, ghost=False)

    References:
        Ghost norms: I. Goodfellow, "Efficient Per-Example Gradient Computations", 2015; X. Li et al., "Large Language
        Models Can Be Strong Differentially Private Learners", 2022. Here the inner products are those of task gradients.
    """

    same_step: ClassVar[bool] = True

    def __init__(self, *, rotate: bool = False, reuse: bool = True, ghost: bool = False) -> None:
        super().__init__()
        for name, value in (("rotate", rotate), ("reuse", reuse), ("ghost", ghost)):
            if not isinstance(value, bool):
                raise OptionError(f"Option `{name}` of Exact should be True or False. Found {name}={value!r}.")
        self.rotate = rotate
        self.reuse = reuse
        self.ghost = ghost
        self._refusal: str | None = None
        self._layout: tuple[Tensor, ...] | None = None
        self._alike = False

    @property
    def provides(self) -> frozenset[Need]:  # type: ignore[override]
        """Norms and Gramian; norms alone when tasks take turns."""
        return frozenset({"norms"}) if self.rotate else frozenset({"norms", "gramian"})

    @property
    def partial(self) -> bool:
        return self.rotate

    def check(self, tape: Tape) -> bool:
        present = tape.present()
        refuse_static_ddp(tape.graph().static_ddp)
        if tape.graph().compiled:
            loss = tape.losses[present[0]]
            assert loss is not None
            check_runs_twice(loss, list(tape.graph().leaves))
        parameters = self._shared_parameters(tape, present)
        if parameters and not tape.due and is_hooked(tape.graph()):
            # A hook may refuse a backward that is not the user's.
            with unspoiled(retaining(tape.graph().masks, tape.graph().oldest)):
                Sites(tape.graph(), parameters, tasks=1, ghost=False, everything=False).gradients(tape, present[0])
        if tape.whole and len(present) == len(tape.losses):
            self._layout = parameters
        return parameters is not None

    def measure(self, tape: Tape, need: Need) -> Measurement | None:
        present = tape.present()
        parameters = self._shared_parameters(tape, present)
        if parameters and self._is_another_model(tape, present, parameters) and tape.give_up_shared():
            parameters = self._shared_parameters(tape, present)
        if tape.whole:
            parameters = self._of_all_ranks(tape, present, parameters)
        if parameters is None:
            return None
        tasks = self._tasks(tape, present)
        graph = tape.graph()
        retained = retaining(graph.masks, graph.oldest)
        reused = self._reusable(graph, parameters, retained)
        # A hook on a layer's output or weight may change what the ghost of its gradient would be taken from.
        ghost = self.ghost and not tape.whole and (reused or not is_hooked(graph))
        sites = Sites(graph, parameters, tasks=len(tasks), ghost=ghost, everything=reused)
        # The weights of a sum that is known before it is measured let each gradient go as soon as it is added up; a
        # Gramian still has to see them all.
        known = tape.weights if need == "norms" else None
        kept = Gradients(graph, sites.leaves, sites.finish, known) if reused else None
        norms: dict[int, Tensor] = {}
        rows: dict[int, Row] = {}
        scales = tape.scales() if graph.float16 else None
        for task in tasks:
            with unspoiled(retained):
                row = sites.gradients(tape, task, None if scales is None else scales[task])
            if kept is not None and any(gradient.is_sparse for gradient in row.values()):
                kept, self._refusal = None, "a gradient is sparse"
            if kept is not None:
                kept.add(task, row)
            shared: Row = {site: row[site] for site in row if site < sites.shared}
            if tape.whole:
                shared = sites.over_ranks(shared, parameters)
            shared = {site: _dense(gradient, need) for site, gradient in shared.items()}
            if shared and need == "gramian":
                rows[task] = shared
            elif shared:
                norms[task] = sites.norm(shared)
            # Not one gradient more than needed while the next one is taken.
            del row, shared
        tape.kept = kept
        reached = norms.keys() | rows.keys()
        measurement = _measurement(tape, tasks, sites, norms, rows, need)
        return measurement.unscaled(scales, tuple(task in reached for task in range(len(tape.losses))))

    def couple(self, tape: Tape, weights: Tensor, total: Tensor) -> Tensor:
        kept = tape.kept
        # Learned weights need the graph of the losses themselves.
        if isinstance(kept, Gradients) and not weights.requires_grad:
            total = hand_over(total, kept)
            kept.settle(weights)
        remember()
        return total

    def _reusable(self, graph: Graph, parameters: tuple[Tensor, ...], retained: list[Tensor]) -> bool:
        """Return whether the gradients of this call may stand for the user's backward, and remember why not."""
        if self.rotate or not self.reuse or not parameters:
            return False
        self._refusal = "an activation retains its gradient" if retained else why_not(graph)
        return self._refusal is None

    def _tasks(self, tape: Tape, present: list[int]) -> list[int]:
        """Return the tasks to measure. For the whole batch all ranks take the same, whoever is present on them."""
        count = len(tape.losses)
        if self.rotate:
            return [min(range(count) if tape.whole else present, key=lambda task: (task - tape.turn) % count)]
        return list(range(count)) if tape.whole else present

    def _of_all_ranks(
        self, tape: Tape, present: list[int], parameters: tuple[Tensor, ...] | None
    ) -> tuple[Tensor, ...] | None:
        """Return the shared parameters in an order that the ranks have in common, whoever is absent here.

        Those that are found stay what they were in the first measured call: a rank cannot see whether the others find
        others now.

        Raises:
            GraphError: they differ between ranks, are not known on one, or are not those of the first call any more.
        """
        complete = len(present) == len(tape.losses)
        if tape.shared_is_known() or (complete and not self._alike):
            self._layout = parameters
        elif complete and not {*(parameters or ())} <= {*(self._layout or ())}:
            raise GraphError(
                'With sync="gradients" the tasks should share what they shared in the first measured call. Found other '
                "parameters, as with layers that are dropped or thawed. Pass shared=, a module or parameters."
            )
        if not self._alike:
            shapes = None if self._layout is None else [tuple(parameter.shape) for parameter in self._layout]
            check_shared_alike(shapes)
            self._alike = True
        return self._layout

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_layout": None, "_alike": False}

    @staticmethod
    def _is_another_model(tape: Tape, present: list[int], parameters: tuple[Tensor, ...]) -> bool:
        # One task alone may have nothing to do with the shared part; several that all miss it are another model's.
        if not parameters or len(present) < min(2, len(tape.names)):
            return False
        graph = tape.graph()
        if any(parameter in graph.leaves for parameter in parameters):
            return False
        opaque = graph.opaque()
        if opaque is not None:
            raise GraphError(
                "The parameters given as shared= should be reached by the losses. Found none of them on the graph, part of "
                f"which {opaque[0]} ({opaque[1]}) hides."
            )
        return True

    @staticmethod
    def _shared_parameters(tape: Tape, present: list[int]) -> tuple[Tensor, ...] | None:
        """The shared parameters, none when those given are frozen; None when a lone task does not tell what is shared."""
        known = tape.shared_is_known()
        if not known and len(present) < min(2, len(tape.names)):
            return None
        part = tape.shared_part()
        if not part.parameters and not known:
            raise GraphError(
                f"Two of the tasks {list(tape.names)} should reach a common parameter. Found none on the graph: do they "
                "share a trunk, and is it trainable? Pass shared=, a module or parameters."
            )
        return part.parameters

    def cost(self, tasks: int) -> float:
        # In units of a forward pass: it is 1, and a backward 2.
        extra = 2 if self.rotate else 2 * tasks
        return (1 + extra + (0 if self.reuse and not self.rotate and self._refusal is None else 2)) / 3

    def describe(self) -> str:
        if self.rotate:
            how = "exact norms of one task per measured window, in turn: one partial backward beside your own"
        elif not self.reuse:
            how = "exact: one partial backward per task in every measured window, beside your own backward"
        elif self._refusal is None:
            how = "exact with reuse: one backward per task in every measured window, whose sum your own backward hands over"
        else:
            how = f"exact: one partial backward per task in every measured window; reuse is off: {self._refusal}"
        return how + "; hooks on activations fire once more for each"


class Sites:
    """Where the gradients of a call are taken: outputs of Linear layers, shared leaves, and other leaves, in this order.

    Attributes:
        shared: number of sites that belong to the shared part.
        leaves: the leaves that the sites stand for.
    """

    def __init__(self, graph: Graph, parameters: tuple[Tensor, ...], *, tasks: int, ghost: bool, everything: bool) -> None:
        self._kernels: dict[int, Tensor] = {}
        self._linear: list[LinearSite] = linear_sites(graph, set(parameters), tasks, reused=everything) if ghost else []
        covered = {leaf for site in self._linear for leaf in site.leaves}
        direct = [leaf for leaf in parameters if leaf not in covered and leaf in graph.leaves]
        self.shared = len(self._linear) + len(direct)
        if everything:
            own = {*parameters, *covered}
            direct += [leaf for leaf in graph.leaves if leaf not in own]
        self._keys: list[Tensor | GradientEdge] = [*(site.edge for site in self._linear), *direct]
        self.leaves = (*(leaf for site in self._linear for leaf in site.leaves), *direct)
        self._masks = [graph.masks[site.edge.node] for site in self._linear] + [graph.leaves[leaf] for leaf in direct]

    def gradients(self, tape: Tape, task: int, scale: Tensor | None = None) -> Row:
        """Return the gradients of a task by site, times a 0-dim scale; sites that it does not reach are left out.

        Raises:
            GraphError: the graph of the task cannot be walked backward.
        """
        sites = [site for site, mask in enumerate(self._masks) if mask >> task & 1]
        loss = tape.losses[task]
        if loss is None or not sites:
            return {}
        try:
            keys: Any = [self._keys[site] for site in sites]  # typed as all tensors or all edges, though a mixture is fine
            start = None if scale is None else scale.to(loss.dtype)
            gradients = torch.autograd.grad(loss, keys, start, retain_graph=True, allow_unused=True)
        except RuntimeError as error:
            raise explained(error, tape.names[task]) from error
        return {site: gradient for site, gradient in zip(sites, gradients, strict=True) if gradient is not None}

    def over_ranks(self, row: Row, parameters: tuple[Tensor, ...]) -> Row:
        """Return the means over all ranks of a task's gradients at the shared parameters, by their position."""
        here = {leaf: row.get(site) for site, leaf in enumerate(self.leaves[: self.shared])}
        return dict(enumerate(mean_over_ranks([here.get(parameter) for parameter in parameters], parameters)))

    def finish(self, total: dict[int, Tensor]) -> Sequence[Tensor | None]:
        """Return the gradients of the leaves from those of the sites."""
        found: list[Tensor | None] = []
        for site, linear in enumerate(self._linear):
            gradient = total.pop(site, None)
            found += [None] * len(linear.leaves) if gradient is None else linear.gradients(gradient)
        found += [total.pop(site, None) for site in range(len(self._linear), len(self._keys))]
        return found

    def norm(self, row: Row) -> Tensor:
        """Return the norm of a task's gradient over the shared sites."""
        direct = [row[site] for site in row if site >= len(self._linear)]
        first = next(iter(row.values()))
        dtype = wide(first.dtype)
        parts = list(torch._foreach_norm(direct, 2, dtype)) if direct else []
        for site in row:
            if site < len(self._linear):
                parts.append(self._linear[site].square(row[site], self._kernel(site)).clamp_min(0).sqrt().to(dtype))
        length: Tensor = torch.linalg.vector_norm(torch.stack([part.to(first.device) for part in parts]))
        return length

    def gramian(self, rows: Mapping[int, Row], tasks: int, dtype: torch.dtype, device: torch.device) -> Tensor:
        """Return the inner products (K, K) of the tasks' gradients over the shared sites."""
        products = Products(tasks, dtype, device)
        for site in sorted({site for row in rows.values() for site in row}):
            gradients = {task: row[site] for task, row in rows.items() if site in row}
            if gradients and site < len(self._linear):
                products.add(self._linear[site].products(stacked(gradients, tasks), self._kernel(site)))
            elif gradients:
                products.add_rows({task: gradient.reshape(-1) for task, gradient in gradients.items()})
        return products.total()

    def _kernel(self, site: int) -> Tensor:
        if site not in self._kernels:
            self._kernels[site] = self._linear[site].kernel()
        return self._kernels[site]


def _measurement(
    tape: Tape, tasks: list[int], sites: Sites, norms: Mapping[int, Tensor], rows: Mapping[int, Row], need: Need
) -> Measurement:
    first = next(loss for loss in tape.losses if loss is not None)
    dtype, count = wide(first.dtype), len(tape.losses)
    measured = tuple(index in tasks for index in range(count))
    if need == "gramian":
        gramian = sites.gramian(rows, count, dtype, first.device)
        return Measurement(gramian.diagonal().clamp_min(0).sqrt(), gramian, measured)
    zero = torch.zeros((), dtype=dtype, device=first.device)
    return Measurement(torch.stack([norms.get(index, zero).to(zero) for index in range(count)]), None, measured)


def explained(error: RuntimeError, task: str) -> RuntimeError:
    """Return what to raise for an error of torch in the backward of a task: with advice where it is known."""
    if "fabric.backward" in str(error):
        return GraphError(
            f"The graph of task {task!r} should admit a backward before yours, to be measured. Found a model that Fabric "
            "has set up in a precision or strategy that admits fabric.backward(loss) only. Use "
            'probe="lagged", which measures in there.'
        )
    if "use_reentrant" in str(error):
        return GraphError(
            f"The graph of task {task!r} should be free of reentrant activation checkpointing, which cannot be measured. "
            "Use torch.utils.checkpoint.checkpoint(..., use_reentrant=False)."
        )
    if "second time" in str(error):
        return GraphError(
            f"The graph of task {task!r} should still be there when its gradient is measured. Found it freed by an earlier "
            "backward. Call the criterion before loss.backward(), once per forward pass."
        )
    return donated() if "donated buffers" in str(error) else error


def _dense(gradient: Tensor, need: Need) -> Tensor:
    """The entries of a sparse embedding gradient: their norm is the gradient's, but inner products need positions."""
    if not gradient.is_sparse:
        return gradient
    return gradient.to_dense() if need == "gramian" else gradient.coalesce().values()
