"""Agreement between ranks, in training calls and commits. Evaluation, saving and loading run no collective."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Literal, NamedTuple, TypeVar

import torch
from torch import Tensor, distributed

from mtl_axes.errors import DataError, GraphError, OptionError, StateError
from mtl_axes.signals import Kind

__all__ = [
    "Notes",
    "Sync",
    "Together",
    "agree",
    "check_shared_alike",
    "check_sync",
    "mean_over_ranks",
    "norms_over_ranks",
    "ranks",
    "sum_over_ranks",
]

Sync = Literal["norms", "gradients"] | None
_T = TypeVar("_T")


class Together(NamedTuple):
    """What all ranks together know of one call.

    Attributes:
        losses: (K,) the loss of each task over the ranks that have it.
        fraction: (K,) the part of the ranks that counts for a task; 0 if no rank has it.
        whole: True if ``losses`` are computed on the whole batch, and local losses were scaled to it.
    """

    losses: Tensor
    fraction: Tensor
    whole: bool


def check_sync(sync: object) -> None:
    """Raise :class:`OptionError` unless ``sync`` is supported."""
    if sync not in ("norms", "gradients", None):
        raise OptionError(f"Option `sync` should be 'norms', 'gradients' or None. Found sync={sync!r}.")


def ranks(sync: Sync) -> int:
    """Return the number of ranks that exchange statistics; 1 without ``sync``."""
    if sync is None or not distributed.is_available() or not distributed.is_initialized():
        return 1
    return distributed.get_world_size()


def sum_over_ranks(sync: Sync, *statistics: Tensor | None) -> list[Tensor | None]:
    """Return the sums of the statistics over all ranks, in one collective; the statistics themselves on one rank."""
    if ranks(sync) == 1:
        return list(statistics)
    given = [statistic for statistic in statistics if statistic is not None]
    packed = torch.cat([statistic.reshape(-1).to(given[0].dtype) for statistic in given])
    distributed.all_reduce(packed)
    parts = iter(torch.split(packed, [statistic.numel() for statistic in given]))
    return [None if statistic is None else next(parts).view(statistic.shape).to(statistic.dtype) for statistic in statistics]


def _gather(value: _T) -> list[_T]:
    """Return the values of all ranks, in order."""
    values = [value] * distributed.get_world_size()
    distributed.all_gather_object(values, value)
    return values


class Notes(NamedTuple):
    """What a rank sends to the others in its first calls.

    Attributes:
        tasks: names of the tasks, in order.
        step: windows committed so far.
        options: the schedule's.
        kinds: kinds of the tasks that are settled; None for a task without a kind.
    """

    tasks: tuple[str, ...]
    step: int
    options: Mapping[str, object]
    kinds: dict[str, Kind | None]


def agree(notes: Notes) -> dict[str, Kind | None]:
    """Check that all ranks have the same tasks, schedule and step, and return the kinds that any of them knows.

    Raises:
        DataError: the tasks, their order, or the kinds inferred from their labels differ.
        OptionError: the schedules differ.
        StateError: some ranks have loaded a state that others have not.
    """
    everyone = _gather(notes)
    if any(other.tasks != notes.tasks for other in everyone):
        tasks = "; ".join(f"rank {rank}: {list(other.tasks)}" for rank, other in enumerate(everyone))
        raise DataError(
            f"The ranks have different tasks or another order: {tasks}. Pass tasks=[...] to compose() on every rank."
        )
    if any(other.options != notes.options for other in everyone):
        raise OptionError(
            f"The ranks have different schedules: {[other.options for other in everyone]}. Pass the same options to "
            "compose() on every rank."
        )
    if any(other.step != notes.step for other in everyone):
        raise StateError(
            f"The ranks have committed different numbers of windows: {[other.step for other in everyone]}. Load the "
            "criterion's state on every rank, even if the model is loaded on one and broadcast."
        )
    kinds: dict[str, Kind | None] = {}
    for other in everyone:
        for name, kind in other.kinds.items():
            known = kinds.get(name)
            if known is not None and kind is not None and kind != known:
                raise DataError(
                    f"Task {name!r} has the kind {known} on one rank and {kind} on another, inferred from the labels of the "
                    f"first calls. Name the task's shape: inner={{{name!r}: ...}}."
                )
            kinds[name] = known if kind is None else kind
    return kinds


def check_shared_alike(shapes: list[tuple[int, ...]] | None) -> None:
    """Check that all ranks have the same shared parameters, before gradients are averaged over them.

    Args:
        shapes: shapes of the shared parameters, in order; None if this rank has not found them yet.

    Raises:
        GraphError: a rank has other shared parameters, or has not seen all tasks.
    """
    everyone = _gather(shapes)
    missing = [rank for rank, other in enumerate(everyone) if other is None]
    if missing:
        raise GraphError(
            'sync="gradients" needs the shared parameters on every rank when the first gradient is measured, and rank '
            f"{missing[0]} has not had all tasks in one call. Pass shared=, a module or parameters; or give targets with a "
            "mask instead of None."
        )
    if any(other != shapes for other in everyone):
        counts = [len(other) for other in everyone if other is not None]
        raise GraphError(
            f'sync="gradients" needs the same shared parameters in the same order on every rank. The ranks have {counts} '
            "parameters, of different shapes or order. Pass shared=, a module or parameters."
        )


def mean_over_ranks(row: Sequence[Tensor | None], like: Sequence[Tensor]) -> list[Tensor]:
    """Return the means of gradients over all ranks, in float32 or wider; a missing gradient counts as 0.

    Args:
        row: local gradients.
        like: the parameters, in the same order on every rank.
    """
    groups = [(torch.promote_types(parameter.dtype, torch.float32), parameter.device) for parameter in like]
    means: list[Tensor] = [*like]
    for group in dict.fromkeys(groups):
        dtype, device = group
        positions = [position for position, other in enumerate(groups) if other == group]
        ends = list(accumulate(like[position].numel() for position in positions))
        # One buffer and one collective, whose cost depends on the bytes and not on the number of parameters.
        flat = torch.zeros(ends[-1], dtype=dtype, device=device)
        for position, part in zip(positions, flat.tensor_split(ends[:-1]), strict=True):
            gradient = row[position]
            if gradient is not None:
                part.copy_((gradient.to_dense() if gradient.is_sparse else gradient).reshape(-1))
        distributed.all_reduce(flat)
        flat /= distributed.get_world_size()
        for position, part in zip(positions, flat.tensor_split(ends[:-1]), strict=True):
            means[position] = part
    return means


def norms_over_ranks(norms: Tensor) -> Tensor:
    """Return the norms of the gradients of the ranks' mean loss, from each rank's norms at its own representation.

    A representation belongs to the samples of its rank, so that the squared norms add up and only they are communicated.
    """
    # In float64, in which squares of small norms do not underflow.
    squares = norms.double().square()
    distributed.all_reduce(squares)
    return (squares.sqrt() / distributed.get_world_size()).to(norms.dtype)
