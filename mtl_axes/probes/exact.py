"""The exact probe: one gradient per task at the shared parameters, before the user's own backward."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from mtl_axes.distributed import check_shared_alike
from mtl_axes.errors import GraphError
from mtl_axes.options import check_bool
from mtl_axes.probes.base import Measurement, Probe, Tape
from mtl_axes.probes.compiled import check_runs_twice
from mtl_axes.probes.graph import Graph, refuse_static_ddp
from mtl_axes.probes.hooks import FIRST_CALL, next_hook, remember
from mtl_axes.probes.leaves import Leaves, Row, averaged, dense, gradients_at, norm_of
from mtl_axes.probes.products import inner_products
from mtl_axes.probes.reuse import Gradients, hand_over, why_not
from mtl_axes.signals import Need, wide

__all__ = ["Exact"]


class Exact(Probe):
    """Exact norms, and Gramian where needed, of dL_i / d(shared parameters), of the shaped loss on the same forward.

    A task without a gradient on the shared part has the norm 0, which makes it inactive. Norms are summed in float32 or
    wider, each as soon as its gradient is there; a Gramian is added up parameter by parameter. Nothing is written to the
    ``.grad`` of a leaf, an output or a loss. Any other activation with ``retain_grad()`` also collects what is measured.
    Hooks on activations fire once more per measurement.

    Args:
        rotate: measure one task per measured window, in turn, and complete its norm with the latest ones of the others. An
            absent task passes its turn on; with ``sync="gradients"`` it keeps it, because no rank knows who is absent on
            all. A task is inactive until its first turn. Norms only.
        reuse: take the K gradients at all leaves, and let the user's backward hand over their weighted sum instead of
            computing it again: one backward less, for the memory of K gradients, or of one where the weights are known
            before (``accumulate > 1``). ``.grad`` is the same up to rounding. Off automatically, with the reason in
            ``explain()``, if a hook may sit on an activation, if an output or a loss retains its gradient, if the graph is
            hidden, in half precision, under FSDP2, and with ``rotate``. A hook is ruled out only if none was registered
            since the last call in this thread; before the first call, since the probe was built, loaded or switched to
            training.

    Raises:
        OptionError: an option is not a bool.

    >>> Exact(rotate=True)
    Exact(rotate=True, reuse=True)
    """

    same_step: ClassVar[bool] = True

    def __init__(self, *, rotate: bool = False, reuse: bool = True) -> None:
        super().__init__()
        self.rotate = check_bool("rotate", rotate)
        self.reuse = check_bool("reuse", reuse)
        self._refusal: str | None = None
        self._layout: tuple[Tensor, ...] | None = None
        self._alike = False
        remember()

    # Moments before the first call, so that a run that is resumed reuses in the same calls as one that was not interrupted.

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        remember()

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        remember()

    def train(self, mode: bool = True) -> Exact:
        """Set the mode, and take note that no graph of the next call has been begun."""
        remember()
        super().train(mode)
        return self

    @property
    def provides(self) -> frozenset[Need]:  # type: ignore[override]
        """Norms and Gramian; norms alone when tasks take turns."""
        return frozenset({"norms"}) if self.rotate else frozenset({"norms", "gramian"})

    @property
    def partial(self) -> bool:
        return self.rotate

    def check(self, tape: Tape) -> bool:
        present, graph = tape.present(), tape.graph()
        refuse_static_ddp(graph.static_ddp)
        if graph.compiled:
            loss = tape.losses[present[0]]
            assert loss is not None
            check_runs_twice(loss, list(graph.leaves))
        parameters = _shared_parameters(tape, present)
        if parameters and not tape.due:
            # A hook may refuse a backward that is not the user's.
            gradients_at(Leaves.of(graph, parameters, everywhere=False), tape, present[0])
        if tape.whole and len(present) == len(tape.losses):
            self._layout = parameters
        return parameters is not None

    def measure(self, tape: Tape, need: Need) -> Measurement | None:
        present = tape.present()
        parameters = _shared_parameters(tape, present)
        if parameters and _is_another_model(tape, present, parameters) and tape.give_up_shared():
            parameters = _shared_parameters(tape, present)
        if tape.whole:
            parameters = self._of_all_ranks(tape, present, parameters)
        if parameters is None:
            return None
        tasks, graph, hook = self._tasks(tape, present), tape.graph(), next_hook()
        reused = bool(parameters) and self._reusable(tape)
        leaves = Leaves.of(graph, parameters, everywhere=reused)
        # Weights that are known before let each gradient go as soon as it is added up; a Gramian has to see them all.
        known = tape.weights if need == "norms" else None
        gradients = Gradients(tape, leaves.tensors, hook, known) if reused else None
        norms: dict[int, Tensor] = {}
        rows: dict[int, Row] = {}
        scales = tape.scales() if graph.float16 else None
        for task in tasks:
            row = gradients_at(leaves, tape, task, None if scales is None else scales[task])
            if gradients is not None and any(gradient.is_sparse for gradient in row.values()):
                gradients, self._refusal = None, "a gradient is sparse"
            if gradients is not None:
                gradients.add(task, row)
            shared: Row = {position: row[position] for position in row if position < leaves.shared}
            if tape.whole:
                shared = averaged(shared, leaves, parameters)
            shared = dense(shared, need)
            if shared and need == "gramian":
                rows[task] = shared
            elif shared:
                norms[task] = norm_of(shared)
            # Not one gradient more than needed while the next one is taken.
            del row, shared
        tape.kept = gradients
        reached = norms.keys() | rows.keys()
        measurement = _measurement(tape, tasks, norms, rows, need)
        return measurement.unscaled(scales, tuple(task in reached for task in range(len(tape.losses))))

    def couple(self, tape: Tape, weights: Tensor, total: Tensor) -> Tensor:
        # Learned weights need the graph of the losses themselves.
        if isinstance(tape.kept, Gradients) and not weights.requires_grad:
            total = hand_over(total, tape.kept)
            tape.kept.set_weights(weights)
        remember()
        return total

    def _reusable(self, tape: Tape) -> bool:
        """Return whether the gradients of this call may stand for the user's backward, and remember why not."""
        if self.rotate or not self.reuse:
            return False
        reason = why_not(tape)
        # That it is the first call says nothing about the others.
        self._refusal = None if reason == FIRST_CALL else reason
        return reason is None

    def _tasks(self, tape: Tape, present: list[int]) -> list[int]:
        """Return the tasks to measure. For the whole batch all ranks take the same ones, present or not."""
        count = len(tape.losses)
        if self.rotate:
            return [min(range(count) if tape.whole else present, key=lambda task: (task - tape.turn) % count)]
        return list(range(count)) if tape.whole else present

    def _of_all_ranks(
        self, tape: Tape, present: list[int], parameters: tuple[Tensor, ...] | None
    ) -> tuple[Tensor, ...] | None:
        """Return the shared parameters in an order that the ranks have in common, whichever tasks are absent here.

        Parameters that are found on the graph stay the same from the first measured call on: a rank cannot see whether the
        other ranks find different ones now.

        Raises:
            GraphError: they differ between ranks, are not known on one, or are not those of the first call any more.
        """
        complete = len(present) == len(tape.losses)
        if tape.shared_is_known() or (complete and not self._alike):
            self._layout = parameters
        elif complete and not {*(parameters or ())} <= {*(self._layout or ())}:
            raise GraphError(
                "The tasks share parameters that they did not share in the first measured call, as with layers that are "
                'dropped or thawed; sync="gradients" cannot follow that. Pass shared=, a module or parameters.'
            )
        if not self._alike:
            shapes = None if self._layout is None else [tuple(parameter.shape) for parameter in self._layout]
            check_shared_alike(shapes)
            self._alike = True
        return self._layout

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_layout": None, "_alike": False}

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


def _shared_parameters(tape: Tape, present: list[int]) -> tuple[Tensor, ...] | None:
    """Return the shared parameters, none if those given are frozen; None if a lone task does not show what is shared."""
    known = tape.shared_is_known()
    if not known and len(present) < min(2, len(tape.names)):
        return None
    parameters = tape.shared_part().parameters
    if not parameters and not known:
        raise GraphError(
            f"No parameter on the graph is reached by two of the tasks {list(tape.names)}: do they share a trunk, and is it "
            "trainable? Pass shared=, a module or parameters."
        )
    return parameters


def _is_another_model(tape: Tape, present: list[int], parameters: tuple[Tensor, ...]) -> bool:
    """Return whether the losses reach none of the shared parameters, so that they come from another model.

    Raises:
        GraphError: this cannot be seen, because a node hides a part of the graph.
    """
    # One task alone may have nothing to do with the shared part; several that all miss it are another model's.
    graph: Graph = tape.graph()
    if len(present) < min(2, len(tape.names)) or any(parameter in graph.leaves for parameter in parameters):
        return False
    opaque = graph.opaque()
    if opaque is not None:
        raise GraphError(
            f"None of the parameters given as shared= is visible on the graph of the losses, part of which {opaque[0]} "
            f"({opaque[1]}) hides. Pass parameters of the model that computes the losses, outside that part."
        )
    return True


def _measurement(
    tape: Tape, tasks: list[int], norms: Mapping[int, Tensor], rows: Mapping[int, Row], need: Need
) -> Measurement:
    first = next(loss for loss in tape.losses if loss is not None)
    dtype, count = wide(first.dtype), len(tape.losses)
    measured = tuple(index in tasks for index in range(count))
    if need == "gramian":
        gramian = inner_products(rows, count, dtype, first.device)
        return Measurement(gramian.diagonal().clamp_min(0).sqrt(), gramian, measured)
    zero = torch.zeros((), dtype=dtype, device=first.device)
    return Measurement(torch.stack([norms.get(index, zero).to(zero) for index in range(count)]), None, measured)
