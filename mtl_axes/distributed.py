"""Agreement between ranks. Called in training calls only, so that no evaluation and no held call runs a collective."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import Literal, NamedTuple, TypeVar

import torch
from torch import Tensor, distributed

from mtl_axes.errors import DataError, GraphError, OptionError, StateError

__all__ = [
    "Sync",
    "Together",
    "check_alike",
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


def check_alike(names: tuple[str, ...], step: int) -> None:
    """Check in the first call that the ranks mean the same by position, and are equally far.

    Raises:
        DataError: they have other tasks, or another order.
        StateError: some have loaded a state that others have not.
    """
    found = _gather((names, step))
    if any(other != names for other, _ in found):
        shown = "; ".join(f"rank {rank}: {list(other)}" for rank, (other, _) in enumerate(found))
        raise DataError(
            f"All ranks should have the same tasks in the same order. Found {shown}. Pass tasks=[...] to compose everywhere."
        )
    if any(other != step for _, other in found):
        raise StateError(
            f"All ranks should have committed the same number of windows. Found {[other for _, other in found]}. Load the "
            "criterion's state on every rank, also where the model is loaded on one and broadcast."
        )


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
