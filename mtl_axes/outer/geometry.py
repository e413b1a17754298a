"""The geometry of a few gradients, read from their Gramian: cosines, equal projections, principal axes.

Everything is relative to each gradient's own norm, so that norms of 1e-12 beside norms of 1e12 lose nothing.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["Axes", "cosines", "equal_projections", "principal_axes", "resolution"]

_SPREAD = 100.0
_SWEEPS = 40
_ORTHOGONAL = 1e-15


class Axes(NamedTuple):
    """Principal axes of k gradients that span r dimensions.

    Attributes:
        values: (r,) non-zero eigenvalues of the Gramian, in no order.
        vectors: (k, r) their eigenvectors, in columns.
    """

    values: Tensor
    vectors: Tensor


def resolution(dtype: torch.dtype) -> float:
    """Return the smallest angle, in radians, that a Gramian measured in ``dtype`` tells from zero.

    A cosine is known to within the rounding of ``dtype``, and 1 - cos is half the angle's square.
    """
    return float(torch.finfo(dtype).eps ** 0.5)


def cosines(gramian: Tensor) -> tuple[Tensor, Tensor]:
    """Return the norms (k,) of the gradients, and the cosines (k, k) between them."""
    norms = gramian.diagonal().sqrt()
    return norms, (gramian / norms / norms[:, None]).fill_diagonal_(1.0)


def _threshold(count: int, dtype: torch.dtype) -> float:
    """Return what is zero beside the unit diagonal of k cosines, each of which was rounded to ``dtype``."""
    return 4 * count * torch.finfo(dtype).eps


def equal_projections(cosines: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the coefficients (k,) of the unit gradients whose sum has the projection 1 on each of them: C^+ 1.

    Where no sum has, because the gradients depend on each other linearly, that of the least squares.

    Args:
        cosines: (k, k), float64.
        dtype: that the Gramian was measured in, which decides what is linearly dependent.
    """
    values, vectors = torch.linalg.eigh(cosines)
    kept = values > _threshold(len(values), dtype)
    inverse = torch.where(kept, 1 / values, 0.0)
    coefficients: Tensor = vectors @ (inverse * vectors.sum(0))
    return coefficients


def principal_axes(gramian: Tensor, dtype: torch.dtype) -> Axes:
    """Return the eigenvalues and eigenvectors of a Gramian, each eigenvalue to its own last digits.

    ``torch.linalg.eigh`` is exact to the last digits of the *largest* eigenvalue, and so loses the directions of gradients
    1e8 times smaller. One-sided Jacobi rotations on a Cholesky factor whose columns fall in size do not; they are only
    taken where norms are apart, being ten times slower.

    Args:
        gramian: (k, k), float64.
        dtype: that it was measured in, which decides what is linearly dependent.
    """
    norms, unit = cosines(gramian)
    if norms.max() <= _SPREAD * norms.min():
        spanned = int((torch.linalg.eigvalsh(unit) > _threshold(len(unit), dtype)).sum())
        values, vectors = torch.linalg.eigh(gramian)
        return Axes(values[-spanned:], vectors[:, -spanned:])
    factor = _graded_factor(norms, unit, dtype)
    for _ in range(_SWEEPS):
        worst = 0.0
        for left, right in _rounds(factor.shape[1]):
            worst = max(worst, _rotate(factor, left, right))
        if worst <= _ORTHOGONAL * len(gramian):
            break
    sizes = torch.linalg.vector_norm(factor, dim=0)
    return Axes(sizes.square(), factor / sizes)


def _graded_factor(norms: Tensor, rest: Tensor, dtype: torch.dtype) -> Tensor:
    """Return L (k, r) with L L' = G: Cholesky on the cosines, the pivot being the gradient of which most is left."""
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
    """Return all pairs of columns in rounds of disjoint ones, as a tournament is arranged."""
    rounds: list[tuple[Tensor, Tensor]] = []
    if count < 2:
        return ()
    players = [*range(count), *([-1] if count % 2 else [])]
    for _ in range(len(players) - 1):
        pairs = [(players[i], players[-1 - i]) for i in range(len(players) // 2)]
        pairs = [(min(pair), max(pair)) for pair in pairs if min(pair) >= 0]
        rounds.append((torch.tensor([i for i, _ in pairs]), torch.tensor([j for _, j in pairs])))
        players = [players[0], players[-1], *players[1:-1]]
    return tuple(rounds)


def _rotate(factor: Tensor, left: Tensor, right: Tensor) -> float:
    """Make each pair of columns orthogonal, in place; return the largest cosine that there was."""
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
