"""The representation probe: norms at what the tasks read in common, which spare the backward through the shared part."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import ClassVar

import torch
from torch import Tensor

from mtl_axes.errors import GraphError
from mtl_axes.options import check_number
from mtl_axes.probes.audit import Audit
from mtl_axes.probes.base import Measurement, Probe, Tape
from mtl_axes.probes.discovery import Border, find_border
from mtl_axes.signals import Need, wide

__all__ = ["Representation", "border_of", "direct_norm"]


def border_of(tape: Tape) -> Border | None:
    """Return where the private parts of a call's graph read the shared one; None when a lone task does not tell.

    Raises:
        GraphError: there is no representation that could be measured.
    """
    present = tape.present()
    if len(present) < 2:
        return None
    border = find_border(tape.losses)
    names = list(tape.names)
    if border.dependent:
        raise GraphError(
            f"Each of the tasks {names} should have a part of the graph of its own, to measure at its border. Found that the "
            f"loss of {', '.join(repr(names[task]) for task in sorted(border.dependent))} is part of another task's. Use "
            'probe="exact".'
        )
    if border.hidden is not None:
        raise GraphError(
            f"Two of the tasks {names} should read a common tensor, the representation. Found {border.hidden}, which hides "
            'it: each task reads an output of its own. Use probe="exact" with shared=, or keep the heads out of that module.'
        )
    if not border.edges:
        raise GraphError(
            f"Two of the tasks {names} should read a common tensor, the representation. Found that they have at most "
            'parameters in common, as with an input per task. Use probe="exact".'
        )
    return border


def direct_norm(parts: Mapping[int, Tensor], like: Tensor) -> Tensor:
    """Return the norm of a task's gradient at its edges, 0 when there is none, in float32 or wider."""
    if not parts:
        return torch.zeros((), dtype=wide(like.dtype), device=like.device)
    norms = torch._foreach_norm(list(parts.values()), 2, wide(like.dtype))
    length: Tensor = torch.linalg.vector_norm(torch.stack([norm.to(like.device) for norm in norms]))
    return length


class Representation(Probe):
    """Norms of dL_i / dr at the representation r, the tensors that the private part of a task reads from the shared one.

    r is found on the graph: the first tensors below the losses that two or more tasks reach. Where a private part also
    reads an earlier tensor (a skip path, heads at several depths), that belongs to its r, and the derivative is the direct
    one, with the tensors of r held independent. Cost: one backward through the private parts, beside the user's own.

    This is another quantity than the exact norm: the Jacobian of the shared part lies between the two, and treats tasks
    differently. Weights from it are off by a factor of 4 to 6 on some tasks; ``audit_every`` measures by how much.

    Args:
        audit_every: None, or measure the exact norms too in every n-th measured window, n >= 1, and report the error.

    Raises:
        OptionError: ``audit_every`` is not a positive integer.

    >>> Representation(audit_every=500)
    Representation(audit_every=500)

    References:
        O. Sener, V. Koltun, "Multi-Task Learning as Multi-Objective Optimization", 2018, which bounds its objective so.
    """

    provides: ClassVar[frozenset[Need]] = frozenset({"norms"})
    same_step: ClassVar[bool] = True

    def __init__(self, *, audit_every: int | None = None) -> None:
        super().__init__()
        if audit_every is not None:
            check_number("audit_every", audit_every, low=1, integer=True)
        self.audit_every = audit_every
        self._audit = Audit(audit_every)
        self._found: Border | None = None

    def check(self, tape: Tape) -> bool:
        found = len(tape.names) == 1 or border_of(tape) is not None
        return self._audit.check(tape) and found

    def measure(self, tape: Tape, need: Need) -> Measurement | None:
        border = border_of(tape)
        if border is None:
            return None
        self._noted(border, tape)
        norms = []
        for task, loss in enumerate(tape.losses):
            if loss is None or task not in border.reads:
                norms.append(direct_norm({}, next(one for one in tape.losses if one is not None)))
                continue
            with _recorded(border, task) as parts:
                edges = [border.edges[position] for position in border.edges_of(task)]
                torch.autograd.grad(loss, edges, retain_graph=True, allow_unused=True)
            norms.append(direct_norm(parts, loss))
        measurement = Measurement(torch.stack(norms), None, tuple(loss is not None for loss in tape.losses))
        self._audit.compare(self._audit.exact(tape), measurement.norms)
        return measurement
