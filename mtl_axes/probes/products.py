"""Inner products of the tasks' gradients, added up leaf by leaf, without ever building the (K, P) Jacobian."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations_with_replacement

import torch
from torch import Tensor

__all__ = ["inner_products"]

# Up to so many tasks a CPU multiplies pair by pair: the product of a long, low matrix with its transpose runs far below the
# speed of the machine there, and needs a copy with the rows side by side, which dot products spare.
_FEW = 8
# Entries that are multiplied at once. On a CPU the rows of a chunk stay in a cache while they meet each other.
_PAIR_CHUNK = 1 << 17
_STACK_CHUNK = {"cpu": 1 << 16}
_DEVICE_CHUNK = 1 << 22

Pairs = dict[tuple[int, int], list[Tensor]]


def inner_products(rows: Mapping[int, Mapping[int, Tensor]], tasks: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return the inner products (K, K) of gradients.

    Args:
        rows: gradients by task and leaf; a missing one is 0.
        tasks: K.
        dtype: of the result, and of the sums.
        device: of the result.
    """
    total = torch.zeros(tasks, tasks, dtype=dtype, device=device)
    pairs: Pairs = {}
    for leaf in sorted({leaf for row in rows.values() for leaf in row}):
        gradients = {task: row[leaf].reshape(-1) for task, row in rows.items() if leaf in row}
        first = next(iter(gradients.values()))
        if first.device.type == "cpu" and len(gradients) <= _FEW:
            _multiply_pairs(pairs, gradients, first.shape[0], dtype)
        else:
            total += _multiply_stacked(gradients, tasks, dtype).to(total)
    return total + _matrix(pairs, total) if pairs else total


def _multiply_pairs(pairs: Pairs, gradients: Mapping[int, Tensor], entries: int, dtype: torch.dtype) -> None:
    for start in range(0, entries, _PAIR_CHUNK):
        part = {task: row[start : start + _PAIR_CHUNK].to(dtype) for task, row in gradients.items()}
        for pair in combinations_with_replacement(part, 2):
            pairs.setdefault(pair, []).append(torch.dot(part[pair[0]], part[pair[1]]))


def _matrix(pairs: Pairs, like: Tensor) -> Tensor:
    sums = {pair: torch.stack(parts).sum().to(like) for pair, parts in pairs.items()}
    zero = torch.zeros_like(like[0, 0])
    count = range(like.shape[0])
    entries = [sums.get((i, j), sums.get((j, i), zero)) for i in count for j in count]
    return torch.stack(entries).view_as(like)


def _multiply_stacked(gradients: Mapping[int, Tensor], tasks: int, dtype: torch.dtype) -> Tensor:
    first = next(iter(gradients.values()))
    zero = torch.zeros((), dtype=first.dtype, device=first.device).expand(first.shape)
    rows = [gradients.get(task, zero) for task in range(tasks)]
    total = torch.zeros(tasks, tasks, dtype=dtype, device=first.device)
    chunk = _STACK_CHUNK.get(first.device.type, _DEVICE_CHUNK)
    for start in range(0, first.shape[0], chunk):
        part = torch.stack([row[start : start + chunk] for row in rows]).to(dtype)
        total.addmm_(part, part.T)
    return total
