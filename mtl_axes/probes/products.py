"""Inner products of the tasks' gradients, added up leaf by leaf: K x P is never put together."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations_with_replacement

import torch
from torch import Tensor

__all__ = ["Products"]

# Up to so many tasks they are taken pair by pair on a CPU: the product of a matrix that is so much longer than high with its
# transpose runs far below the speed of the machine there, and needs the rows side by side, a copy that dot products spare.
_FEW = 8
# Entries that are multiplied at once. On a CPU the rows of a chunk stay in a cache while they meet each other.
_PAIR_CHUNK = 1 << 17
_STACK_CHUNK = {"cpu": 1 << 16}
_DEVICE_CHUNK = 1 << 22


class Products:
    """A sum of (K, K) inner products.

    Args:
        tasks: K.
        dtype: to add them up in.
        device: to add them up on.
    """

    def __init__(self, tasks: int, dtype: torch.dtype, device: torch.device) -> None:
        self._sum = torch.zeros(tasks, tasks, dtype=dtype, device=device)
        self._pairs: dict[tuple[int, int], list[Tensor]] = {}

    def add(self, products: Tensor) -> None:
        """Add products (K, K)."""
        self._sum += products.to(self._sum)

    def add_rows(self, rows: Mapping[int, Tensor]) -> None:
        """Add the products of the gradients of one leaf, 1-d, by task; a task that is left out has the gradient 0."""
        first = next(iter(rows.values()))
        if first.device.type == "cpu" and len(rows) <= _FEW:
            self._add_pairs(rows, first.shape[0])
        else:
            self._add_stacked(rows, first)

    def _add_pairs(self, rows: Mapping[int, Tensor], entries: int) -> None:
        dtype = self._sum.dtype
        for start in range(0, entries, _PAIR_CHUNK):
            part = {task: row[start : start + _PAIR_CHUNK].to(dtype) for task, row in rows.items()}
            for pair in combinations_with_replacement(part, 2):
                self._pairs.setdefault(pair, []).append(torch.dot(part[pair[0]], part[pair[1]]))

    def _add_stacked(self, rows: Mapping[int, Tensor], first: Tensor) -> None:
        zero = torch.zeros((), dtype=first.dtype, device=first.device).expand(first.shape)
        everyone = [rows.get(task, zero) for task in range(self._sum.shape[0])]
        total = torch.zeros_like(self._sum, device=first.device)
        chunk = _STACK_CHUNK.get(first.device.type, _DEVICE_CHUNK)
        for start in range(0, first.shape[0], chunk):
            part = torch.stack([row[start : start + chunk] for row in everyone]).to(total.dtype)
            total.addmm_(part, part.T)
        self.add(total)

    def total(self) -> Tensor:
        """Return the sum of all that was added, (K, K)."""
        if not self._pairs:
            return self._sum
        sums = {pair: torch.stack(parts).sum().to(self._sum) for pair, parts in self._pairs.items()}
        zero = torch.zeros_like(self._sum[0, 0])
        count = range(self._sum.shape[0])
        entries = [sums.get((i, j), sums.get((j, i), zero)) for i in count for j in count]
        return self._sum + torch.stack(entries).view_as(self._sum)
