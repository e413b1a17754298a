"""Agreement between ranks, in training calls and in commits. Evaluation runs no collective, nor does saving or loading."""

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
    """What the ranks know together of one call.

    Attributes:
        losses: (K,) the loss of each task over the ranks that have it.
        fraction: (K,) the part of the ranks that counts for a task: 0 where no rank has it.
        whole: True when ``losses`` are those of the whole batch, and local losses were scaled to it.
    """

    losses: Tensor
    fraction: Tensor
    whole: bool


def check_sync(sync: object) -> None:
    """Raise :class:`OptionError` unless ``sync`` is supported."""
    if sync not in ("norms", "gradients", None):
        raise OptionError(f"Option `sync` should be 'norms', 'gradients' or None. Found sync={sync!r}.")


def ranks(sync: Sync) -> int:
    """Return the number of ranks that agree with each other."""
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
    """Return the value of every rank, in their order."""
    values = [value] * distributed.get_world_size()
    distributed.all_gather_object(values, value)
    return values


class Notes(NamedTuple):
    """What a rank tells the others in its first calls.

    Attributes:
        tasks: names of the tasks, in order.
        step: windows committed so far.
        options: of the schedule.
        kinds: of the tasks of which nothing more is to be learned, None for one without a kind.
    """

    tasks: tuple[str, ...]
    step: int
    options: Mapping[str, object]
    kinds: dict[str, Kind | None]


def agree(notes: Notes) -> dict[str, Kind | None]:
    """Check that the ranks mean the same by position and are equally far, and return the kinds that any of them knows.

    Raises:
        DataError: they have other tasks, another order, or tell another kind from their labels.
        OptionError: they were composed with another schedule.
        StateError: some have loaded a state that others have not.
    """
    found = _gather(notes)
    if any(other.tasks != notes.tasks for other in found):
        shown = "; ".join(f"rank {rank}: {list(other.tasks)}" for rank, other in enumerate(found))
        raise DataError(
            f"All ranks should have the same tasks in the same order. Found {shown}. Pass tasks=[...] to compose everywhere."
        )
    if any(other.options != notes.options for other in found):
        raise OptionError(
            f"All ranks should be composed with the same schedule. Found {[other.options for other in found]}."
        )
    if any(other.step != notes.step for other in found):
        raise StateError(
            f"All ranks should have committed the same number of windows. Found {[other.step for other in found]}. Load the "
            "criterion's state on every rank, also where the model is loaded on one and broadcast."
        )
    kinds: dict[str, Kind | None] = {}
    for other in found:
        for name, kind in other.kinds.items():
            known = kinds.get(name)
            if known is not None and kind is not None and kind != known:
                raise DataError(
                    f"Task {name!r} should be of one kind on all ranks. Found {known} and {kind}, told from the labels of "
                    f"the first calls. Name the task's shape: inner={{{name!r}: ...}}."
                )
            kinds[name] = known if kind is None else kind
    return kinds


def check_shared_alike(shapes: list[tuple[int, ...]] | None) -> None:
    """Check before gradients are averaged over ranks that these have the same shared parameters.

    Args:
        shapes: those of the shared parameters, in order; None where this rank could not find them yet.

    Raises:
        GraphError: a rank has others, or has not seen all tasks.
    """
    found = _gather(shapes)
    missing = [rank for rank, other in enumerate(found) if other is None]
    if missing:
        raise GraphError(
            'With sync="gradients" every rank should know the shared parameters when the first gradient is measured. Found '
            f"that rank {missing[0]} has not had all tasks in one call. Pass shared=, a module or parameters; or give "
            "targets with a mask rather than None."
        )
    if any(other != shapes for other in found):
        counts = [len(other) for other in found if other is not None]
        raise GraphError(
            'With sync="gradients" all ranks should share the same parameters in the same order. Found others; '
            f"there are {counts} of them. Pass shared=, a module or parameters."
        )


def mean_over_ranks(row: Sequence[Tensor | None], like: Sequence[Tensor]) -> list[Tensor]:
    """Return the means of gradients over all ranks, in float32 or wider; one that a rank has not counts as 0.

    Args:
        row: local gradients.
        like: the parameters, in the same order on every rank.
    """
    places = [(torch.promote_types(parameter.dtype, torch.float32), parameter.device) for parameter in like]
    means: list[Tensor] = [*like]
    for place in dict.fromkeys(places):
        dtype, device = place
        here = [position for position, other in enumerate(places) if other == place]
        ends = list(accumulate(like[position].numel() for position in here))
        # One buffer and one collective: its cost is that of the bytes, not of the number of parameters.
        flat = torch.zeros(ends[-1], dtype=dtype, device=device)
        for position, part in zip(here, flat.tensor_split(ends[:-1]), strict=True):
            gradient = row[position]
            if gradient is not None:
                part.copy_((gradient.to_dense() if gradient.is_sparse else gradient).reshape(-1))
        distributed.all_reduce(flat)
        flat /= distributed.get_world_size()
        for position, part in zip(here, flat.tensor_split(ends[:-1]), strict=True):
            means[position] = part
    return means


def norms_over_ranks(norms: Tensor) -> Tensor:
    """Return the norms of gradients that lie side by side, a part on each rank, of the mean of the ranks' losses.

    A representation belongs to the samples of its own rank, so that the squares add up and nothing but them has to be
    communicated.
    """
    # In float64, where squares of small norms do not vanish.
    squares = norms.double().square()
    distributed.all_reduce(squares)
    return (squares.sqrt() / distributed.get_world_size()).to(norms.dtype)
