"""The geometry of a few gradients, from their Gramian: cosines, equal projections, principal axes.

All is relative to the norm of each gradient, so that norms of 1e-12 are as exact as norms of 1e12 beside them.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

__all__ = ["cosines", "equal_projections", "principal_axes", "resolution"]

_SPREAD = 100.0
_SWEEPS = 40
_ORTHOGONAL = 1e-15


def resolution(dtype: torch.dtype) -> float:
    """Return the smallest angle, in radians, that a Gramian measured in ``dtype`` distinguishes from zero.

    A cosine is known to within the rounding of ``dtype``, and 1 - cos is half the angle's square.
    """
    return float(torch.finfo(dtype).eps ** 0.5)


def cosines(gramian: Tensor) -> tuple[Tensor, Tensor]:
    """Return the norms (k,) of the gradients, and the cosines (k, k) between them."""
    norms = gramian.diagonal().sqrt()
    return norms, (gramian / norms / norms[:, None]).fill_diagonal_(1.0)


def _threshold(count: int, dtype: torch.dtype) -> float:
    """Return the largest number that counts as zero beside the unit diagonal of k cosines, all rounded to ``dtype``."""
    return 4 * count * torch.finfo(dtype).eps


def equal_projections(cosines: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the coefficients (k,) of the unit gradients whose sum has the projection 1 on each of them: C^+ 1.

    If no sum has, because the gradients are linearly dependent, the coefficients are the least-squares solution.

    Args:
        cosines: (k, k), float64.
        dtype: in which the Gramian was measured; it decides what counts as linearly dependent.
    """
    values, vectors = torch.linalg.eigh(cosines)
    independent = values > _threshold(len(values), dtype)
    inverse = torch.where(independent, 1 / values, 0.0)
    coefficients: Tensor = vectors @ (inverse * vectors.sum(0))
    return coefficients


def principal_axes(gramian: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return the r non-zero eigenvalues of a Gramian, each exact relative to itself, and the eigenvectors (k, r).

    ``torch.linalg.eigh`` is exact relative to the *largest* eigenvalue, and so loses the directions of gradients 1e8 times
    smaller. One-sided Jacobi rotations on a Cholesky factor with columns in order of size do not. They are ten times slower,
    and so used only if the norms differ much.

    Args:
        gramian: (k, k), float64.
        dtype: in which it was measured; it decides what counts as linearly dependent.
    """
    norms, unit = cosines(gramian)
    if norms.max() <= _SPREAD * norms.min():
        spanned = int((torch.linalg.eigvalsh(unit) > _threshold(len(unit), dtype)).sum())
        values, vectors = torch.linalg.eigh(gramian)
        return values[-spanned:], vectors[:, -spanned:]
    factor = _graded_factor(norms, unit, dtype)
    for _ in range(_SWEEPS):
        worst = 0.0
        for left, right in _rounds(factor.shape[1]):
            worst = max(worst, _rotate(factor, left, right))
        if worst <= _ORTHOGONAL * len(gramian):
            break
    sizes = torch.linalg.vector_norm(factor, dim=0)
    return sizes.square(), factor / sizes


def _graded_factor(norms: Tensor, rest: Tensor, dtype: torch.dtype) -> Tensor:
    """Return L (k, r) with L L' = G, by Cholesky on the cosines; the pivot is the gradient with the largest remainder."""
    columns: list[Tensor] = []
    while len(columns) < len(rest):
        left = rest.diagonal()
        size = torch.where(left > _threshold(len(rest), dtype), norms * left.clamp_min(0).sqrt(), 0.0)
        pivot = int(size.argmax())
        if columns and size[pivot] == 0:
            break
        column = rest[:, pivot] / left[pivot].sqrt()
        columns.append(column * norms)
        rest = rest - torch.outer(column, column)
    return torch.stack(columns, 1)


@lru_cache(maxsize=64)
def _rounds(count: int) -> tuple[tuple[Tensor, Tensor], ...]:
    """Return all pairs of columns in rounds of disjoint pairs, as in a round-robin tournament."""
    if count < 2:
        return ()
    rounds: list[tuple[Tensor, Tensor]] = []
    players = [*range(count), *([-1] if count % 2 else [])]
    for _ in players[1:]:
        pairs = [sorted((players[i], players[-1 - i])) for i in range(len(players) // 2)]
        left, right = torch.tensor([pair for pair in pairs if pair[0] >= 0]).T
        rounds.append((left, right))
        players = [players[0], players[-1], *players[1:-1]]
    return tuple(rounds)


def _rotate(factor: Tensor, left: Tensor, right: Tensor) -> float:
    """Make each pair of columns orthogonal, in place; return the largest cosine between them before."""
    first, second = factor[:, left], factor[:, right]
    large, small, inner = (first * first).sum(0), (second * second).sum(0), (first * second).sum(0)
    worst = (inner.abs() / large.sqrt() / small.sqrt()).max().item()
    # With inner = 0 the cotangent is infinite, and the tangent 0.
    cotangent = (small - large) / (2 * inner)
    sign = torch.where(cotangent < 0, -1.0, 1.0)
    tangent = torch.where(inner == 0, 0.0, sign / (cotangent.abs() + (1 + cotangent * cotangent).sqrt()))
    cosine = (1 + tangent * tangent).rsqrt()
    factor[:, left] = cosine * (first - tangent * second)
    factor[:, right] = cosine * (second + tangent * first)
    return worst
