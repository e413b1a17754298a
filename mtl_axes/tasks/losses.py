"""The losses of one call, sealed: computed once, read as attributes from there on."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from mtl_axes._state import vector
from mtl_axes.distributed import Sync, Together, ranks, sum_over_ranks

__all__ = ["TaskLosses", "over_ranks", "seal", "weighted_sum", "with_penalty"]


class TaskLosses(NamedTuple):
    """Losses of one call. Made by :func:`seal`.

    Attributes:
        losses: K scalars with their graphs, None where a task is absent.
        values: (K,) detached losses, 0 where a task is absent; the losses of the whole batch if ``whole``.
        labelled: (K,) bool on the device of the losses, True where a task has a label; None if every task has one. If
            ``whole``, where a task has a label on any rank.
        counts: their numbers of valid labels, None where every label of the task is valid.
        masses: what each loss was divided by, 1 for a loss computed elsewhere, 0 for an absent task.
        outputs: the predictions that the losses were computed from; empty if they were computed elsewhere.
        together: what the ranks know together of this call; None on one rank and where they need not know.
    """

    losses: tuple[Tensor | None, ...]
    values: Tensor
    labelled: Tensor | None
    counts: tuple[Tensor | None, ...]
    masses: tuple[Tensor | int, ...]
    outputs: tuple[Tensor, ...] = ()
    together: Together | None = None

    @property
    def whole(self) -> bool:
        """True if the losses were scaled to the whole batch of all ranks."""
        return self.together is not None and self.together.whole


def seal(
    losses: tuple[Tensor | None, ...],
    counts: tuple[Tensor | None, ...],
    masses: tuple[Tensor | int, ...],
    outputs: tuple[Tensor, ...] = (),
) -> TaskLosses:
    """Return the losses of a call with their values and labelled tasks.

    Args:
        losses: K scalars with their graphs, None where a task is absent; at least one is present.
        counts: their numbers of valid labels, None where every label of the task is valid.
        masses: what each loss was divided by.
        outputs: the predictions that they were computed from.
    """
    return TaskLosses(losses, _values(losses), _labelled(losses, counts), counts, masses, outputs)


def _values(losses: tuple[Tensor | None, ...]) -> Tensor:
    present = [loss.detach() for loss in losses if loss is not None]
    dtype, device = present[0].dtype, present[0].device
    if any(loss.dtype is not dtype or loss.device != device for loss in present):
        present = [loss.to(device, dtype) for loss in present]
    if len(present) == len(losses):
        return torch.stack(present)
    values, zero = iter(present), torch.zeros((), dtype=dtype, device=device)
    return torch.stack([zero if loss is None else next(values) for loss in losses])


def _labelled(losses: tuple[Tensor | None, ...], counts: tuple[Tensor | None, ...]) -> Tensor | None:
    counted = any(count is not None for count in counts)
    flags = tuple(loss is not None for loss in losses)
    if not counted and all(flags):
        return None
    device = next(loss.device for loss in losses if loss is not None)
    if not counted:
        return vector(flags, torch.bool, device)
    return torch.stack(
        [
            torch.full((), flag, dtype=torch.bool, device=device) if count is None else count > 0
            for flag, count in zip(flags, counts, strict=True)
        ]
    )


def over_ranks(call: TaskLosses, sync: Sync) -> TaskLosses:
    """Return the losses of a call with what the ranks know together of them, in one collective.

    With ``sync="gradients"`` each loss is scaled by W n_local / n_global, for W ranks and n labels: the mean over ranks of
    its gradient is then the gradient of the whole batch (for a shape that couples samples: of the ranks' batches side by
    side). Otherwise every rank that has a task counts alike, as in the mean of gradients that DistributedDataParallel makes.
    """
    values, whole = call.values, sync == "gradients"
    everyone = torch.ones_like(values) if call.labelled is None else call.labelled.to(values.dtype)
    mass = _mass(call.masses, values) if whole else everyone
    total, masses = sum_over_ranks(sync, torch.where(mass > 0, mass * values, 0.0), mass)
    assert total is not None and masses is not None
    anywhere = masses > 0
    mean = total / torch.where(anywhere, masses, 1.0)
    if not whole:
        return call._replace(together=Together(mean, masses / ranks(sync), whole))
    scales = (ranks(sync) * mass / torch.where(anywhere, masses, 1.0)).unbind()
    losses = tuple(None if loss is None else loss * scale.to(loss) for loss, scale in zip(call.losses, scales, strict=True))
    together = Together(mean, anywhere.to(mean.dtype), whole)
    return call._replace(losses=losses, values=mean, labelled=anywhere, together=together)


def _mass(masses: tuple[Tensor | int, ...], like: Tensor) -> Tensor:
    known = [mass for mass in masses if not isinstance(mass, Tensor)]
    if len(known) == len(masses):
        return vector(known, like.dtype, like.device)
    return torch.stack([mass.detach().to(like) if isinstance(mass, Tensor) else like.new_full((), mass) for mass in masses])


def weighted_sum(call: TaskLosses, weights: Tensor) -> Tensor:
    """Return ``sum_i weights_i L_i`` over the tasks that are present."""
    terms = [
        (weight if weight.dtype is loss.dtype else weight.to(loss.dtype)) * loss
        for weight, loss in zip(weights.unbind(), call.losses, strict=True)
        if loss is not None
    ]
    total = terms[0]
    for term in terms[1:]:
        total = total + term
    return total


def with_penalty(call: TaskLosses, total: Tensor, weights: Tensor, penalty: Tensor | None, *, learnable: bool) -> Tensor:
    """Return the sum of a call plus the weighting's penalty; on several ranks, with the gradient that learned weights need.

    A weight's own gradient is the loss that it multiplies. The losses of all ranks are known before the backward: put in
    the place of the local ones, they give every rank the same gradient, and no rank has to average it.

    Args:
        call: the losses.
        total: the weighted sum.
        weights: (K,) as the weighting returned them.
        penalty: (K,) one term per task, 0-dim, or None.
        learnable: whether the weights are learned.
    """
    together = call.together
    if penalty is not None:
        own = penalty
        if penalty.ndim:
            own = (penalty if call.labelled is None else torch.where(call.labelled, penalty, 0.0)).sum()
        total = total + (own if together is None else own.detach()).to(total.dtype)
    if together is None or not learnable:
        return total
    terms = weights * together.losses.to(weights)
    if penalty is not None and penalty.ndim:
        terms = terms + penalty
    learned = torch.where(together.fraction > 0, terms * together.fraction, 0.0).sum()
    if penalty is not None and not penalty.ndim:
        learned = learned + penalty
    # Its value is 0, so that the value stays this rank's own sum.
    return total + (learned - learned.detach()).to(total.dtype)
