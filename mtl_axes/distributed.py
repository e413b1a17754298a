"""Agreement between ranks. Called in the commit only, so that no evaluation and no held call runs a collective."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, distributed

from mtl_axes.errors import OptionError

__all__ = ["Sync", "check_sync", "sum_over_ranks"]

Sync = Literal["norms"] | None


def check_sync(sync: object) -> None:
    """Raise :class:`OptionError` unless ``sync`` is supported."""
    if sync not in ("norms", None):
        raise OptionError(f"Option `sync` should be 'norms' or None. Found sync={sync!r}.")


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
