r"""Small problems in the K x K Gramian of the tasks' gradients, solved in float64 on the CPU, for K up to 64 or so.

All three first write G = D C D, with the norms D on the diagonal and the cosines C between them: gradients of 1e-12 and of
1e12 are then equally important, and "relative" below means relative to \|C\| \|D z\|, the size of the summands. A row of
zero norm is left out and gets 0. If a Gramian is not positive semi-definite to within 1e-10 (float32 leaves eigenvalues of
-1e-7), the smallest sufficient power of ten is first added to the diagonal of C.

Every loop ends: pivoting as soon as it fails to improve, descent if a set of tasks comes back, and Newton's method after a
number of steps. ``tests/solvers`` measures the accuracy, ``python -m benchmarks.solvers`` the time.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import ParamSpec

import torch
from torch import Tensor
from torch.nn.functional import elu

__all__ = ["min_norm", "nash", "nnls"]

_RIDGE = 1e-10
_SIGN = 1e-11
_PATIENCE = 3
_STEPS = 1_000
_SHRINK, _GROW = 0.95, 30.0


_P = ParamSpec("_P")


def _without_autograd(solve: Callable[_P, Tensor]) -> Callable[_P, Tensor]:
    """Run in inference mode, which makes kernels this small a fifth faster, and return an ordinary tensor."""

    @functools.wraps(solve)
    def solved(*args: _P.args, **kwargs: _P.kwargs) -> Tensor:
        with torch.inference_mode():
            solution = solve(*args, **kwargs)
        return solution.clone()

    return solved


def _scaled(gramian: Tensor) -> tuple[Tensor, Tensor]:
    """Return C, positive semi-definite to within the ridge, and the diagonal of D."""
    norms = gramian.diagonal().sqrt()
    inverse = norms.reciprocal()
    cosines = (gramian * inverse * inverse.unsqueeze(-1)).clamp_(-1.0, 1.0)
    ridged, shift = _shifted(cosines, 0.5 * _RIDGE), 0.0
    while int(torch.linalg.cholesky_ex(ridged).info):
        shift = max(10 * shift, _RIDGE)
        ridged = _shifted(cosines, shift)
    return (_shifted(cosines, shift) if shift else cosines), norms


def _shifted(matrix: Tensor, shift: float) -> Tensor:
    return torch.add(matrix, torch.eye(matrix.shape[0], dtype=matrix.dtype), alpha=shift)


def _without_zeros(gramian: Tensor) -> Tensor | None:
    """Return the positions of the rows that are not zero, or None if no row is zero."""
    alive = gramian.diagonal() > 0
    return None if bool(alive.all()) else alive.nonzero().squeeze(-1)


@_without_autograd
def nnls(gramian: Tensor, target: Tensor) -> Tensor:
    r"""Return the z >= 0 that minimises 1/2 z'Gz - target'z: non-negative least squares, by its normal equations.

    If there are several minimisers, it is the one with the least \|D z\|, so that equal tasks get equal shares. The relative
    residual of the optimality conditions is at most 1e-10, and 1e-14 unless gradients are parallel to 1e-5 or better. The
    minimum exists if the target lies in the range of G; otherwise z ends at about 1e10 \|target\|.

    Block principal pivoting (J. J. Judice, F. M. Pires, 1994; J. Kim, H. Park, 2011) on C + 1e-10 I, which makes the
    solution unique, solves all K right-hand sides of UPGrad at once. A problem whose exchanges stop improving is continued
    by the active set method of C. L. Lawson and R. J. Hanson ("Solving Least Squares Problems", 1974, ch. 23), whose
    objective only falls. The ridge is then removed for the positive tasks, by a truncated eigendecomposition.

    Args:
        gramian: (k, k) symmetric, positive semi-definite.
        target: (k,), or (m, k) for m problems with one matrix.

    Returns:
        As ``target``.
    """
    alive = _without_zeros(gramian)
    if alive is not None:
        part = nnls(gramian[alive[:, None], alive], target[..., alive])
        return torch.zeros_like(target).index_copy_(-1, alive, part)
    if not target.numel():
        return target.clone()
    cosines, norms = _scaled(gramian)
    goal = target.reshape(-1, len(norms)) / norms
    # The largest positive entry sets the size of the solution, however negative others are.
    top = goal.amax(-1, keepdim=True)
    size = torch.where(top > 0, top, 1.0 - goal.amin(-1, keepdim=True))
    return (_nonnegative(cosines, goal / size) * size / norms).reshape(target.shape)


def _nonnegative(matrix: Tensor, goal: Tensor) -> Tensor:
    """Solve m problems (m, k) with one matrix of about unit diagonal and goals of about unit size."""
    eye = torch.eye(matrix.shape[0], dtype=matrix.dtype)
    ridged = torch.add(matrix, eye, alpha=_RIDGE)
    solution, positive, stuck = _pivot(ridged, goal, eye)
    for row in stuck:
        solution[row] = _descend(ridged, goal[row], solution[row], eye)
        positive[row] = solution[row] > 0
    exact = _without_ridge(matrix, goal, positive)
    error = _violation(matrix, goal, exact)
    good = error <= 1e-13
    if bool(good.all()):
        return exact
    # Row by row, so that the solution of a problem does not depend on the others solved with it.
    return torch.where(good | (error <= _violation(matrix, goal, solution)), exact, solution)


def _pivot(ridged: Tensor, goal: Tensor, eye: Tensor) -> tuple[Tensor, Tensor, list[int]]:
    """Exchange all tasks on the wrong side at once; return z, z > 0, and the problems in which that stopped improving."""
    positive = goal > 0
    fewest, patience = [len(eye) + 1] * len(goal), [_PATIENCE] * len(goal)
    while True:
        solution = _on(positive, ridged, goal, eye)
        slack = goal - solution @ ridged
        # Backward stable solves leave a slack of at most 1e-16 / sqrt(ridge).
        wrong = torch.where(positive, solution < 0, slack > _SIGN * solution.abs().amax(-1, keepdim=True).clamp_min(1.0))
        counts: list[int] = wrong.sum(-1).tolist()
        for row, count in enumerate(counts):
            patience[row] = _PATIENCE if count < fewest[row] else patience[row] - 1
            fewest[row] = min(count, fewest[row])
        going = [count > 0 and left >= 0 for count, left in zip(counts, patience, strict=True)]
        if not any(going):
            return solution.clamp_(min=0.0), positive, [row for row, count in enumerate(counts) if count > 0]
        positive = positive ^ (wrong & torch.tensor(going)[:, None])


def _on(positive: Tensor, ridged: Tensor, goal: Tensor, eye: Tensor) -> Tensor:
    """Solve for the positive tasks alone; 0 for the others."""
    block = torch.where(positive.unsqueeze(-1) & positive.unsqueeze(-2), ridged, eye)
    factor = torch.linalg.cholesky_ex(block).L
    return torch.cholesky_solve((goal * positive).unsqueeze(-1), factor).squeeze(-1)


def _descend(ridged: Tensor, goal: Tensor, start: Tensor, eye: Tensor) -> Tensor:
    """Solve one problem (k,) by Lawson and Hanson's method, from any start >= 0; the objective falls in every round."""
    solution, positive = start, start > 0
    best, least, visited = start, math.inf, set[tuple[bool, ...]]()
    while True:
        inner = _on(positive, ridged, goal, eye)
        while bool((inner < 0).any()):
            reach = torch.where(inner < 0, solution / (solution - inner), 2.0)
            step = reach.min()
            positive = positive & (reach > step) & ((solution > 0) | (inner > 0))
            solution = torch.where(positive, solution + step * (inner - solution), 0.0)
            inner = _on(positive, ridged, goal, eye)
        solution, slack = inner, torch.where(positive, -math.inf, goal - inner @ ridged)
        entering = int(slack.argmax())
        left = float(slack[entering]) / max(1.0, float(solution.max()))
        if left < least:
            best, least = solution, left
        # A slack of 1e-8 lowers the objective by its rounding only, so a set that comes back is the better sign of the end.
        members = tuple(positive.tolist())
        if left <= _SIGN or members in visited:
            return best
        visited.add(members)
        positive = positive | (eye[entering] > 0)


def _without_ridge(matrix: Tensor, goal: Tensor, positive: Tensor) -> Tensor:
    """Solve for the positive tasks by eigenvectors, without those whose eigenvalue and right-hand side both vanish."""
    while True:
        block = matrix * (positive.unsqueeze(-1) & positive.unsqueeze(-2))
        values, vectors = torch.linalg.eigh(block)
        along = ((goal * positive).unsqueeze(-2) @ vectors).squeeze(-2)
        counts = (values > 1e-9) | (along.abs() > 1e-13)
        along = along * counts / values.clamp_min(1e-13)
        solution: Tensor = (vectors @ along.unsqueeze(-1)).squeeze(-1) * positive
        negative = solution < 0
        if not bool(negative.any()):
            return solution
        # Only the ridge had made them positive.
        positive = positive & ~negative


def _violation(matrix: Tensor, goal: Tensor, solution: Tensor) -> Tensor:
    """(m, 1) violation of the optimality conditions, relative to the size of the terms."""
    slack = goal - solution @ matrix
    residual = torch.where(solution > 0, slack.abs(), slack).amax(-1, keepdim=True)
    violation: Tensor = residual / (solution @ matrix.abs()).amax(-1, keepdim=True).clamp_min(1.0)
    return violation


@_without_autograd
def min_norm(gramian: Tensor) -> Tensor:
    r"""Return the w on the simplex that minimises w'Gw: the shortest vector in the convex hull of the gradients.

    It is z / sum(z) for the z >= 0 that minimises z'Gz + (1'z - 1)^2, which is bounded and has z != 0 even if the minimum is
    0, for opposed gradients. As accurate as :func:`nnls`, which solves it with D z for z. If all rows are zero: uniform.

    Args:
        gramian: (k, k) symmetric, positive semi-definite.

    Returns:
        (k,) non-negative weights that sum to 1.

    References:
        P. Wolfe, "Finding the nearest point in a polytope", 1976; C. L. Lawson and R. J. Hanson, as above, ch. 23.
    """
    alive = _without_zeros(gramian)
    if alive is not None:
        if not len(alive):
            return torch.full_like(gramian.diagonal(), 1.0 / len(gramian))
        part = min_norm(gramian[alive[:, None], alive])
        return torch.zeros_like(gramian.diagonal()).index_copy_(0, alive, part)
    cosines, norms = _scaled(gramian)
    inverse = norms.min() / norms
    size = (1.0 + inverse * inverse).sqrt_()
    goal = inverse / size
    matrix = cosines / size / size.unsqueeze(-1) + goal * goal.unsqueeze(-1)
    weights = _nonnegative(matrix, goal.unsqueeze(0)).squeeze(0) * goal
    return weights / weights.sum()


@_without_autograd
def nash(gramian: Tensor, *, alpha: float = 1.0) -> Tensor:
    r"""Return the x > 0 with (G x)_i = x_i^(-1/alpha): Nash's bargaining solution for alpha = 1, else alpha-fairness.

    It minimises the convex 1/2 x'Gx - sum_i log x_i (alpha = 1; else x_i^(1 - 1/alpha) / (1 - 1/alpha)), which is unbounded
    if a non-negative combination of the gradients vanishes, as for opposed ones. A ridge of 1e-10 on C then decides: it caps
    x_i g_i, at 1e5 sqrt(k) for alpha = 1. Otherwise it is removed, or leaves a relative residual below 1e-10.

    Newton's method on y = D x > 0 and s = C y > 0 with log s_i + (log y_i) / alpha fixed, both kept positive by the step
    length: an interior point method with the goal y_i s_i = 1 (alpha = 1); other alphas start from its solution. It takes 5
    to 14 steps for alpha = 1, opposed gradients and norms of 1e-12 to 1e12 included; with such norms up to about 80 steps
    for alpha = 0.5 and 2, and up to 600 for 0.1 and 10. After 1000, or if rounding leaves no step, the solution for
    alpha = 1 is returned; opposed gradients with alpha = 10 can need this.

    Args:
        gramian: (k, k) symmetric, positive semi-definite.
        alpha: > 0.

    Returns:
        (k,) positive weights; 0 for a row of zero norm.

    References:
        A. Navon et al., "Multi-Task Learning as a Bargaining Game", 2022; H. Ban, K. Ji, "Fair Resource Allocation in
        Multi-Task Learning", 2024; L. Khachiyan, B. Kalantari, "Diagonal matrix scaling and linear programming", 1992.
    """
    alive = _without_zeros(gramian)
    if alive is not None:
        part = nash(gramian[alive[:, None], alive], alpha=alpha) if len(alive) else gramian.diagonal()[:0]
        return torch.zeros_like(gramian.diagonal()).index_copy_(0, alive, part)
    cosines, norms = _scaled(gramian)
    ones, level = torch.ones_like(norms), torch.zeros_like(norms)
    primal, dual = _balance(cosines, level, 1.0, ones, ones)
    if alpha == 1:
        return primal / norms
    level = (1 / alpha - 1) * norms.log()
    # A factor common to all tasks is removed, so that neither end of the scale overflows. It enters primal to the power
    # 1 / (1 + 1 / alpha), because dual = exp(level) primal^(-1/alpha) is linear in primal.
    common = level.max()
    level = level - common
    fair, gains = _balance(cosines, level, alpha, primal, dual)
    if not _imbalance(_shifted(cosines, _RIDGE), cosines.abs(), level, alpha, fair, gains) < 1e-9:
        return primal / norms
    return fair * (common / (1 + 1 / alpha)).exp() / norms


def _balance(cosines: Tensor, level: Tensor, alpha: float, primal: Tensor, dual: Tensor) -> tuple[Tensor, Tensor]:
    """Solve dual = C primal and log dual + log(primal) / alpha = level, with the ridge if it decides."""
    ridged, size = _shifted(cosines, _RIDGE), cosines.abs()
    change, tried = math.inf, False
    for step in range(_STEPS):
        # Late steps may continue without end in tasks whose part of the sums is below rounding.
        off = _imbalance(ridged, size, level, alpha, primal, dual) if change < 0.1 or step > 30 else 1.0
        if off < 1e-6 and not tried:
            finished = _finish(cosines, level, alpha, primal, dual)
            if finished is not None:
                return finished
            tried = True
        if off < 1e-13 and (change < 1e-4 or alpha != 1):
            break
        relative, turn = _newton(ridged, level, alpha, primal, dual)
        lowest, highest = torch.stack((relative, turn)).aminmax()
        down, up = -float(lowest) / _SHRINK, float(highest) / _GROW
        if not math.isfinite(down + up):
            break
        change = max(_SHRINK * down, _GROW * up)
        length = 1.0 / max(1.0, down, up)
        primal = torch.addcmul(primal, primal, relative, value=length)
        dual = torch.addcmul(dual, dual, turn, value=length)
    return _finish(cosines, level, alpha, primal, dual) or (primal, dual)


def _finish(matrix: Tensor, level: Tensor, alpha: float, primal: Tensor, dual: Tensor) -> tuple[Tensor, Tensor] | None:
    """Take the last steps without the ridge; None if they are not small, because the ridge decides."""
    for _ in range(3):
        relative, turn = _newton(matrix, level, alpha, primal, dual)
        change = float(torch.maximum(relative.abs(), turn.abs()).max())
        if not change < 1e-3:
            return None
        primal, dual = primal * (1.0 + relative), dual * (1.0 + turn)
        if change < 1e-7:
            return primal, dual
    return None


def _newton(matrix: Tensor, level: Tensor, alpha: float, primal: Tensor, dual: Tensor) -> tuple[Tensor, Tensor]:
    """Return Newton's steps of primal and dual, relative to each."""
    gap = torch.addmv(dual, matrix, primal, alpha=-1)
    wanted = (level - dual.log()).sub_(primal.log(), alpha=1 / alpha)
    # Downwards the product is linearised, and upwards its logarithm: each overshoots less than the other.
    wanted = elu(wanted)
    factor = torch.linalg.cholesky_ex(torch.addcdiv(matrix, dual.diag(), primal, value=1 / alpha)).L
    step = torch.cholesky_solve(torch.addcmul(gap, dual, wanted).unsqueeze(-1), factor).squeeze(-1)
    relative = step / primal
    return relative, torch.sub(wanted, relative, alpha=1 / alpha)


def _imbalance(matrix: Tensor, size: Tensor, level: Tensor, alpha: float, primal: Tensor, dual: Tensor) -> float:
    """Return the residual of both equations, relative to the size of the terms."""
    terms = size @ primal + dual
    gap = (dual - matrix @ primal).abs()
    off = torch.expm1(level - dual.log() - primal.log() / alpha).abs() * dual
    return float((torch.maximum(gap, off) / terms).max())
