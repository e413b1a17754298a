"""The contract of a probe, which measures the gradients that an outer weighting needs, and what it measures on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from mtl_axes._state import vector
from mtl_axes.errors import GraphError
from mtl_axes.options import constructor_repr, read_options
from mtl_axes.probes.graph import Graph, walk
from mtl_axes.probes.hooks import retaining
from mtl_axes.probes.scaling import fresh_exponents, scales_of, vote
from mtl_axes.probes.shared import Shared, SharedPart
from mtl_axes.signals import Need

__all__ = ["Measurement", "Probe", "Tape"]


@dataclass(frozen=True)
class Measurement:
    """Gradient statistics of one call.

    Attributes:
        norms: (K,) L2 norms in float32 or wider; 0 for a task that was not measured.
        gramian: (K, K) inner products, or None when only norms were needed.
        measured: K host bools, True where the task was measured.
        votes: (K,) which way the tasks' loss scales should change, 1, 0 or -1, or None when the losses were not scaled.
    """

    norms: Tensor
    gramian: Tensor | None
    measured: tuple[bool, ...]
    votes: Tensor | None = None

    def unscaled(self, scales: Tensor | None, reached: tuple[bool, ...]) -> Measurement:
        """Return the measurement of the losses without their scales.

        Args:
            scales: (K,) float32 scales of the losses, or None when there were none.
            reached: K host bools, True if the task had a gradient; without one its scale stays.
        """
        if scales is None:
            return self
        gramian = None if self.gramian is None else self.gramian / scales[:, None] / scales[None, :]
        votes = vote(self.norms) * vector(reached, torch.int32, scales.device)
        return Measurement(self.norms / scales, gramian, self.measured, votes)


class Tape:
    """One forward pass as a probe sees it: the K task losses with their graphs, and what the tasks share.

    Attributes:
        names: names of the K tasks.
        losses: K scalar losses, None where the task is absent. Never stacked: indexing a stacked tensor would send zero
            gradients through every head.
        weights: (K,) weights of this call's sum if they are known before it is measured, else None.
        outputs: tensors that the criterion was called with, whose retained gradients a measurement leaves as they are.
        exponents: (K,) exponents of the scales that losses are measured with in float16, None before the first measurement.
        turn: number of this window among those that are measured, counted from the first window of the run.
        due: whether this call is measured, or only checked.
        whole: True when the gradients of the whole batch are measured: of the mean over ranks of these losses.
        kept: what a probe keeps from ``measure`` for ``couple``.
    """

    def __init__(
        self,
        names: tuple[str, ...],
        losses: tuple[Tensor | None, ...],
        shared: Shared,
        *,
        weights: Tensor | None = None,
        outputs: tuple[Tensor, ...] = (),
        exponents: Tensor | None = None,
        turn: int = 0,
        due: bool = True,
        whole: bool = False,
    ) -> None:
        self.names = names
        self.losses = losses
        self.weights = weights
        self.outputs = outputs
        self.exponents = exponents
        self.turn = turn
        self.due = due
        self.whole = whole
        self.kept: object = None
        self._shared = shared
        self._graph: Graph | None = None

    def graph(self) -> Graph:
        """Return the graph behind the losses, walked at most once per call."""
        if self._graph is None:
            self._graph = walk(self.losses)
        return self._graph

    def scales(self) -> Tensor:
        """Return the scales (K,) in float32 for losses whose gradients pass through float16."""
        exponents = self.exponents
        if exponents is None:
            device = next(loss.device for loss in self.losses if loss is not None)
            exponents = fresh_exponents(len(self.losses), device)
        return scales_of(exponents)

    @cached_property
    def retained(self) -> list[Tensor]:
        """Outputs and losses that retain their gradient. On other activations this is not visible."""
        return retaining((*self.outputs, *self.losses))

    def shared_part(self) -> SharedPart:
        """Return the shared parameters: those given by the user, or those found on this graph.

        Raises:
            GraphError: the graph is hidden behind a node.
        """
        return self._shared.resolve(self.names, self.graph)

    def describe_shared(self) -> None:
        """Work out, for ``explain()``, which task reaches what."""
        self._shared.describe(self.names, self.graph())

    def present(self) -> list[int]:
        """Return the positions of the tasks that take part.

        Raises:
            GraphError: one of their losses has no graph.
        """
        present = [index for index, loss in enumerate(self.losses) if loss is not None]
        for index in present:
            loss = self.losses[index]
            if loss is not None and not loss.requires_grad:
                raise GraphError(
                    f"The loss of task {self.names[index]!r} does not require a gradient, so none can be measured. Was its "
                    "output detached, or its model frozen? Pass its target as None to leave the task out."
                )
        return present

    def shared_is_known(self) -> bool:
        """Return whether the shared part was given, so that it does not depend on which tasks take part."""
        return self._shared.given

    def give_up_shared(self) -> bool:
        """Drop a given shared part that no loss reaches; return whether there was one to drop."""
        return self._shared.give_up()


class Probe(nn.Module):
    """Measures task gradients: the weighting decides what, the window when, and the probe how.

    Attributes:
        provides: what it can deliver: ``"norms"``, ``"gramian"``.
        same_step: True when ``measure`` returns the statistics of its own call. A lagged probe returns None there and
            delivers in :meth:`collect`, after the user's backward.
    """

    provides: ClassVar[frozenset[Need]] = frozenset({"norms"})
    same_step: ClassVar[bool] = True

    @property
    def partial(self) -> bool:
        """True when a window measures only some tasks. The latest norms of the others then complete it."""
        return False

    def options(self) -> dict[str, Any]:
        """Return the constructor's arguments."""
        return read_options(self)

    def check(self, tape: Tape) -> bool:
        """Check that this graph can be measured. Called in the first training calls, long before a warm-up ends.

        Returns:
            True when all was checked, False to be asked again in the next call.

        Raises:
            GraphError: it cannot be measured.
        """
        return True

    def measure(self, tape: Tape, need: Need) -> Measurement | None:
        """Measure on a tape, or prepare to; None when there is nothing to report yet."""
        raise NotImplementedError

    def couple(self, tape: Tape, weights: Tensor, total: Tensor) -> Tensor:
        """Return the scalar that the user's ``backward`` starts from: the weighted sum, unless the probe replaces it."""
        return total

    def collect(self) -> Measurement | None:
        """Return what was measured since the last commit, for a probe that measures during the user's backward."""
        return None

    def discard(self) -> None:
        """Drop what was measured since the last commit.

        One rank may call it alone: override it if ``collect`` communicates with the other ranks.
        """
        self.collect()

    def cost(self, tasks: int) -> float:
        """Return the expected ratio of a measured step's time to a plain one's, if the shared part takes all the time."""
        return 1.0

    def diagnostics(self) -> Mapping[str, Tensor]:
        """Return further values for the report."""
        return {}

    def describe(self) -> str:
        """Return one line for ``explain()``: what is measured and what it is expected to cost."""
        return repr(self)

    def __repr__(self) -> str:
        return constructor_repr(self)
