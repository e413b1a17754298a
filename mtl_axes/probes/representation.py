"""The representation probe: norms at the tensors that the tasks read in common, by backwards that stop there."""

from __future__ import annotations

import torch
from torch import Tensor

from mtl_axes.distributed import norms_over_ranks
from mtl_axes.probes.base import Measurement, Tape
from mtl_axes.probes.border import Border, BorderProbe, Parts, border_of, norm_of_parts, others_measure, recorded
from mtl_axes.probes.compiled import check_runs_twice, explained
from mtl_axes.probes.graph import passes_float16
from mtl_axes.probes.hooks import unspoiled
from mtl_axes.signals import Need

__all__ = ["Representation"]


class Representation(BorderProbe):
    """Norms of dL_i / dr at the representation r: the tensors that the private part of a task reads from the shared part.

    r is found on the graph: the first tensors below the losses that two or more tasks reach. If a private part also reads an
    earlier tensor (a skip path, heads at several depths), that tensor belongs to its r too, and the derivative is the direct
    one, with the tensors of r held independent. Cost: a backward through the private parts, beside the user's own.

    This is another quantity than the exact norm: the Jacobian of the shared part lies between the two, and differs from task
    to task. Norms can be off by a factor of 4 to 6 on some task.

    >>> Representation()
    Representation()

    References:
        O. Sener, V. Koltun, "Multi-Task Learning as Multi-Objective Optimization", 2018, which bounds its objective there.
    """

    def check_border(self, tape: Tape, border: Border) -> None:
        if border.compiled:
            for task in border.reads:
                loss = tape.losses[task]
                assert loss is not None
                check_runs_twice(loss, [border.edges[position] for position in border.edges_of(task)])
        if not tape.due:
            # A hook may refuse a backward that is not the user's.
            _parts(tape, border, next(iter(border.reads)))

    def measure(self, tape: Tape, need: Need) -> Measurement | None:
        border = border_of(tape)
        if border is None and not others_measure(tape):
            return None
        float16 = tape.graph().float16 if border is None else passes_float16(border.nodes)
        scales = tape.scales() if float16 else None
        lengths = _unknown(tape) if border is None else _norms(tape, border, scales)
        if tape.whole:
            lengths = norms_over_ranks(lengths)
        measured = tuple(tape.whole or loss is not None for loss in tape.losses)
        reached = tuple(tape.whole or (border is not None and task in border.reads) for task in range(len(tape.losses)))
        return Measurement(lengths, None, measured).unscaled(scales, reached)

    def describe(self) -> str:
        return (
            f"norms at the representation, {self._described}: one backward through each task's private part, beside your "
            "own; hooks there fire once more. Another quantity than the exact norms"
        )


def _unknown(tape: Tape) -> Tensor:
    """Return NaN for a task that is alone on this rank, so that the graph does not show what it shares: no rank knows it."""
    like = next(loss.detach() for loss in tape.losses if loss is not None)
    return torch.stack([torch.full_like(like, 0.0 if loss is None else torch.nan) for loss in tape.losses])


def _norms(tape: Tape, border: Border, scales: Tensor | None) -> Tensor:
    """Return the norms (K,) of this rank's losses at the border, times their scales; 0 where a task reads nothing there."""
    like = next(loss for loss in tape.losses if loss is not None)
    norms = []
    for task, loss in enumerate(tape.losses):
        if loss is None or task not in border.reads:
            norms.append(norm_of_parts({}, like))
            continue
        parts = _parts(tape, border, task, None if scales is None else scales[task])
        norms.append(norm_of_parts(parts, like))
    return torch.stack(norms)


def _parts(tape: Tape, border: Border, task: int, scale: Tensor | None = None) -> Parts:
    """Return the gradients of a task, times a 0-dim scale, at the edges that its private part reads."""
    loss = tape.losses[task]
    assert loss is not None
    edges = [border.edges[position] for position in border.edges_of(task)]
    with recorded(border, task) as parts, unspoiled(tape.retained):
        try:
            start = None if scale is None else scale.to(loss.dtype)
            torch.autograd.grad(loss, edges, start, retain_graph=True, allow_unused=True)
        except RuntimeError as error:
            raise explained(error, tape.names[task]) from error
    return parts
