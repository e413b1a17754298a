"""The small solvers against brute force over active sets, optimality conditions, closed forms and scipy.

Residuals are taken with the norms divided out (G = D C D), relative to what is added up: a gradient of 1e-12 has to meet its
condition as well as one of 1e12.
"""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from mtl_axes.outer import solvers
from mtl_axes.outer.solvers import min_norm, nash, nnls

f64 = torch.float64
FAMILIES = ("general", "low rank", "duplicates", "opposed", "nearly parallel", "nearly opposed", "integer", "orthogonal")


def jacobian(family: str, count: int, seed: int) -> Tensor:
    """Rows of about unit size that are hard in the way the family says, none of them zero."""
    generator = torch.Generator().manual_seed(seed)
    half, noise = count // 2, torch.randn(count, count + 3, generator=generator, dtype=f64)
    # Angles of 1e-9 to 1.
    small = 10 ** (-9 * torch.rand(count, 1, generator=generator, dtype=f64))
    if family == "low rank":
        return noise[:, : max(1, count // 3)]
    if family == "duplicates":
        noise[half:] = noise[: count - half].clone()
    elif family == "opposed":
        noise[half:] = -noise[: count - half].clone()
    elif family == "nearly parallel":
        return noise[:1] + small * noise
    elif family == "nearly opposed":
        return torch.randn(count, 1, generator=generator, dtype=f64).sign() * noise[:1] + small * noise
    elif family == "integer":
        rows = torch.randint(-1, 2, (count, 3), generator=generator).to(f64)
        return torch.where((rows == 0).all(1, keepdim=True), 1.0, rows)
    elif family == "orthogonal":
        return torch.eye(count, dtype=f64)
    return noise


def gramian(family: str, count: int, seed: int, decades: float = 12.0) -> Tensor:
    """A Gramian whose gradients have norms of 10^-decades to 10^decades, apart from those of their family."""
    generator = torch.Generator().manual_seed(seed + 1)
    scales = 10 ** (decades * (2 * torch.rand(count, 1, generator=generator, dtype=f64) - 1))
    rows = scales * jacobian(family, count, seed)
    return rows @ rows.T


@st.composite
def gramians(draw: st.DrawFn, high: int = 8) -> Tensor:
    """Hard Gramians of 1 to ``high`` gradients."""
    return gramian(
        draw(st.sampled_from(FAMILIES)),
        draw(st.integers(1, high)),
        draw(st.integers(0, 10**6)),
        draw(st.sampled_from([0.0, 3.0, 12.0])),
    )


def split(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """C and the diagonal of D."""
    norms = matrix.diagonal().sqrt()
    return matrix / norms / norms[:, None], norms


def sharp(cosines: Tensor) -> bool:
    """Whether each eigenvalue is either zero or clearly not, so that the solution itself is determined."""
    values = torch.linalg.eigvalsh(cosines)
    return not bool(((values > 1e-14) & (values < 1e-7)).any())


def unmet(matrix: Tensor, target: Tensor, solution: Tensor) -> float:
    """The largest violation of G z >= target, and of equality where z > 0."""
    cosines, norms = split(matrix)
    scaled = solution * norms
    slack = target / norms - cosines @ scaled
    violation = torch.where(solution > 0, slack.abs(), slack.clamp_min(0))
    size = max(float((target / norms).max()), float((cosines.abs() @ scaled).max()))
    return float(violation.max()) / size if size > 0 else float(violation.max())


def unbalanced(matrix: Tensor, solution: Tensor, alpha: float) -> float:
    """The largest residual of (G x)_i = x_i^(-1/alpha)."""
    cosines, norms = split(matrix)
    scaled = solution * norms
    wanted = torch.exp(-solution.log() / alpha) / norms
    return float(((cosines @ scaled - wanted).abs() / (cosines.abs() @ scaled)).max())


def projections(matrix: Tensor) -> Tensor:
    """Right-hand sides in the range of G, as UPGrad and DualProj have them."""
    mean = torch.full((1, len(matrix)), 1 / len(matrix), dtype=f64)
    return torch.cat((-matrix, -(mean @ matrix)))


def supports(count: int) -> list[list[int]]:
    """Every subset of the tasks but the empty one."""
    return [list(chosen) for size in range(1, count + 1) for chosen in itertools.combinations(range(count), size)]


def brute_nnls(matrix: Tensor, target: Tensor) -> np.ndarray:
    """The best non-negative stationary point over all supports, by dense solves in numpy."""
    g, t = matrix.numpy(), target.numpy()
    best, lowest = np.zeros(len(t)), 0.0
    for chosen in supports(len(t)):
        part = np.linalg.solve(g[np.ix_(chosen, chosen)], t[chosen])
        value = -0.5 * float(part @ t[chosen])
        if (part >= 0).all() and value < lowest:
            best, lowest = np.zeros(len(t)), value
            best[chosen] = part
    return best


def brute_min_norm(matrix: Tensor) -> np.ndarray:
    """The shortest affine combination over all supports among those with non-negative weights."""
    g = matrix.numpy()
    best, lowest = np.zeros(len(g)), math.inf
    for chosen in supports(len(g)):
        size = len(chosen)
        border = np.block([[g[np.ix_(chosen, chosen)], np.ones((size, 1))], [np.ones((1, size)), np.zeros((1, 1))]])
        part = np.linalg.solve(border, np.append(np.zeros(size), 1.0))[:size]
        value = float(part @ g[np.ix_(chosen, chosen)] @ part)
        if (part >= 0).all() and value < lowest:
            best, lowest = np.zeros(len(g)), value
            best[chosen] = part
    return best


@settings(max_examples=150)
@given(gramians())
def test_nnls_meets_the_optimality_conditions(matrix: Tensor) -> None:
    """Non-negative, and the gradient vanishes where positive and pushes outwards where zero: to 2e-10 of its terms."""
    for target in projections(matrix):
        solution = nnls(matrix, target)
        assert bool((solution >= 0).all()) and bool(torch.isfinite(solution).all())
        assert unmet(matrix, target, solution) < 2e-10


@pytest.mark.parametrize("family", FAMILIES)
def test_solvers_with_64_tasks(family: str) -> None:
    """The same for K = 64, all solvers."""
    matrix = gramian(family, 64, 3)
    targets = projections(matrix)
    for target, solution in zip(targets, nnls(matrix, targets), strict=True):
        assert unmet(matrix, target, solution) < 2e-10
    assert far_from_shortest(matrix, min_norm(matrix)) < 2e-10
    assert unbalanced(matrix, nash(matrix), 1.0) < 2e-10


@pytest.mark.parametrize("seed", range(12))
def test_nnls_is_the_best_of_all_supports(seed: int) -> None:
    """For independent gradients, the solution equals brute force to 1e-9, with norms of 1e-3 to 1e3."""
    count = 2 + seed % 5
    matrix = gramian("general", count, seed, decades=3.0)
    for target in (*projections(matrix), torch.ones(count, dtype=f64)):
        found, best = nnls(matrix, target), torch.from_numpy(brute_nnls(matrix, target))
        norms = matrix.diagonal().sqrt()
        assert float(((found - best) * norms).abs().max()) <= 1e-9 * float((best * norms).max())


@pytest.mark.parametrize("count", [2, 5, 16, 40])
def test_nnls_is_that_of_scipy(count: int) -> None:
    """scipy's Lawson and Hanson on a square root of G agrees to 1e-12, at unit scale."""
    optimize = pytest.importorskip("scipy.optimize")
    for seed in range(5):
        matrix = gramian("general", count, seed, decades=0.0) + 0.1 * torch.eye(count, dtype=f64)
        target = torch.randn(count, generator=torch.Generator().manual_seed(seed), dtype=f64)
        root = torch.linalg.cholesky(matrix)
        expected, _ = optimize.nnls(root.T.numpy(), torch.linalg.solve_triangular(root, target[:, None], upper=False)[:, 0])
        np.testing.assert_allclose(nnls(matrix, target).numpy(), expected, rtol=1e-12, atol=1e-13)


@given(gramians(), st.integers(-1, 0))
@example(gramian("opposed", 16, 19), -1)
@example(gramian("nearly opposed", 16, 13, 3.0), -1)
@settings(max_examples=60)
def test_descent_gives_what_pivoting_gives(matrix: Tensor, patience: int) -> None:
    """With pivoting given up at once, the active set method alone meets the conditions as well."""
    kept, solvers._PATIENCE = solvers._PATIENCE, patience
    try:
        solutions = nnls(matrix, projections(matrix))
    finally:
        solvers._PATIENCE = kept
    for target, solution in zip(projections(matrix), solutions, strict=True):
        assert unmet(matrix, target, solution) < 2e-10


def test_pivoting_that_stops_helping_is_left() -> None:
    """A problem with rank 21 in 64 on which exchanges go on in circles is handed over and solved."""
    handed: list[int] = []
    descend = solvers._descend

    def watched(*args: Tensor) -> Tensor:
        handed.append(1)
        return descend(*args)

    solvers._descend = watched
    try:
        for seed in range(30):
            matrix = gramian("low rank", 64, seed)
            for target, solution in zip(projections(matrix), nnls(matrix, projections(matrix)), strict=True):
                assert unmet(matrix, target, solution) < 2e-10
            if handed:
                break
    finally:
        solvers._descend = descend
    assert handed


@given(gramians())
@settings(max_examples=40)
def test_problems_with_one_matrix_are_solved_as_if_alone(matrix: Tensor) -> None:
    """Many right-hand sides give what each gives alone: C D z to 1e-10, D z to 1e-9 unless angles are below 1e-4."""
    targets = projections(matrix)
    cosines, norms = split(matrix)
    for target, solution in zip(targets, nnls(matrix, targets), strict=True):
        alone = nnls(matrix, target) * norms
        terms = max(float((target / norms).max()), float((cosines.abs() @ alone).max()))
        assert float((cosines @ (solution * norms - alone)).abs().max()) <= 1e-10 * terms
        if sharp(cosines):
            torch.testing.assert_close(solution * norms, alone, rtol=1e-9, atol=1e-9 * float(alone.max()))


def far_from_shortest(matrix: Tensor, weights: Tensor) -> float:
    """The largest violation of (G w)_i >= m, and of equality where w > 0, for the m that fits the equalities best."""
    cosines, norms = split(matrix)
    scaled = weights * norms
    along, size = cosines @ scaled, float((cosines.abs() @ scaled).max())
    held = (weights > 0) / norms
    short = float(held @ along) / float(held @ held) / norms - along
    return float(torch.where(weights > 0, short.abs(), short.clamp_min(0)).max()) / size


@settings(max_examples=150)
@given(gramians())
@example(gramian("opposed", 3, 12, 6.0))
@example(gramian("opposed", 3, 1006))
def test_min_norm_meets_the_optimality_conditions(matrix: Tensor) -> None:
    """On the simplex, and no gradient is shorter along the combination than it is itself."""
    weights = min_norm(matrix)
    assert bool((weights >= 0).all())
    assert float(weights.sum()) == pytest.approx(1.0, abs=1e-15)
    assert far_from_shortest(matrix, weights) < 2e-10


@pytest.mark.parametrize("seed", range(12))
def test_min_norm_is_the_best_of_all_supports(seed: int) -> None:
    """For independent gradients, the weights equal brute force to 1e-9."""
    matrix = gramian("general", 2 + seed % 5, seed, decades=1.0)
    best = torch.from_numpy(brute_min_norm(matrix))
    torch.testing.assert_close(min_norm(matrix), best, rtol=1e-9, atol=1e-12)


def test_min_norm_of_opposed_gradients_is_zero() -> None:
    """Exactly opposed gradients cancel, in proportion to their norms, over 24 decades."""
    for ratio in (1.0, 3.0, 1e-6, 1e12, 1e24):
        matrix = torch.tensor([[ratio**2, -ratio], [-ratio, 1.0]], dtype=f64)
        weights = min_norm(matrix)
        assert weights.tolist() == pytest.approx([1 / (1 + ratio), ratio / (1 + ratio)], rel=1e-12)


@pytest.mark.parametrize("count, seed", [(3, 26), (3, 110), (5, 47), (5, 51)])
def test_min_norm_takes_the_ridge_back_where_it_helps(count: int, seed: int) -> None:
    """Where gradients of 1e-12 to 1e12 cancel, the ridge leaves 5e-11 and the solution without it nothing but rounding."""
    matrix = gramian("opposed", count, seed)
    assert far_from_shortest(matrix, min_norm(matrix)) < 1e-13


def test_equal_gradients_share() -> None:
    """Of several minimisers, the one in which equal tasks are equal: for any number of them, to 1e-12."""
    for count in (2, 3, 7):
        rows = torch.tensor([[1.0, 2.0, 0.5]], dtype=f64).expand(count, 3)
        other = torch.tensor([[1.0, -1.0, 0.2]], dtype=f64)
        weights = min_norm(rows @ rows.T)
        torch.testing.assert_close(weights, torch.full((count,), 1 / count, dtype=f64), rtol=1e-12, atol=0)
        both = torch.cat((rows, other))
        matrix = both @ both.T
        for solution in (min_norm(matrix), *nnls(matrix, projections(matrix)), nash(matrix)):
            assert float(solution[:count].max() - solution[:count].min()) <= 1e-12 * float(solution.max())


@settings(max_examples=60)
@given(gramians(high=6), st.randoms(use_true_random=False))
def test_solvers_do_not_know_the_order(matrix: Tensor, random) -> None:
    """Permuted tasks have permuted solutions, also where they are not unique, unless angles are below 1e-4.

    To 1e-5: where the ridge of 1e-10 decides, it leaves that of the rounding. Of a shortest combination with norms of 1e-12
    to 1e12, C D w is determined, and the weights unless it vanishes.
    """
    cosines, norms = split(matrix)
    if not sharp(cosines):
        return
    index = torch.tensor(random.sample(range(len(norms)), len(norms)))
    permuted = matrix[index][:, index]

    def same(found: Tensor, expected: Tensor, most: float) -> None:
        torch.testing.assert_close(found, expected[index], rtol=1e-5, atol=1e-5 * most)

    for solve in (nash, lambda g: nnls(g, -g).mean(0)):
        expected = solve(matrix) * norms
        same(solve(permuted) * norms[index], expected, float(expected.max()))
    found, expected = min_norm(permuted), min_norm(matrix)
    along, most = cosines @ (expected * norms), float((expected * norms).max())
    same(cosines[index][:, index] @ (found * norms[index]), along, most)
    if float(along.abs().max()) > 1e-8 * most:
        same(found, expected, 1.0)


@pytest.mark.parametrize("alpha, count, seed", [(0.5, 16, 14), (0.5, 16, 1013), (2.0, 64, 1002)])
def test_nash_of_opposed_gradients_ends_where_rounding_does(alpha: float, count: int, seed: int) -> None:
    """Where a part of the sums is below their rounding for good, the rest is balanced all the same."""
    matrix = gramian("opposed", count, seed)
    assert unbalanced(matrix, nash(matrix, alpha=alpha), alpha) < 1e-9


@settings(max_examples=100)
@given(gramians())
def test_nash_balances(matrix: Tensor) -> None:
    """Positive, and (G x)_i x_i = 1 to 2e-10 of the terms; opposed gradients end at the cap."""
    solution = nash(matrix)
    assert bool((solution > 0).all()) and bool(torch.isfinite(solution).all())
    assert unbalanced(matrix, solution, 1.0) < 2e-10
    assert float((solution * matrix.diagonal().sqrt()).max()) <= 1.0001e5 * math.sqrt(len(matrix))


@pytest.mark.parametrize("alpha", [0.1, 0.5, 2.0, 10.0])
@pytest.mark.parametrize("family", FAMILIES)
def test_nash_of_other_alphas_balances(alpha: float, family: str) -> None:
    """The same for alpha-fairness; norms of 1e-12 to 1e12, but 1e-3 to 1e3 for an alpha of 10."""
    for seed in range(3):
        matrix = gramian(family, 2 + 3 * seed, seed, decades=12.0 if alpha < 10 else 3.0)
        assert unbalanced(matrix, nash(matrix, alpha=alpha), alpha) < 1e-9


@pytest.mark.parametrize("alpha", [0.1, 0.2, 5.0, 10.0])
def test_nash_is_finite_where_it_cannot_be_solved(alpha: float) -> None:
    """Opposed gradients of 1e-12 to 1e12 and extreme alphas: finite and positive."""
    for seed in range(8):
        solution = nash(gramian("opposed", 8, seed), alpha=alpha)
        assert bool(torch.isfinite(solution).all()) and bool((solution > 0).all())


@pytest.mark.parametrize("cosine", [-1 + 1e-6, -0.9, -0.3, 0.0, 0.5, 0.99, 1.0])
def test_nash_of_two_tasks_has_a_closed_form(cosine: float) -> None:
    """x_i = 1 / (g_i sqrt(1 + cos)) for K = 2."""
    for small, large in ((1.0, 1.0), (1e-12, 1e12), (0.3, 20.0)):
        cross = cosine * small * large
        matrix = torch.tensor([[small**2, cross], [cross, large**2]], dtype=f64)
        size = 1 / math.sqrt(1 + cross / (small * large))
        assert nash(matrix).tolist() == pytest.approx([size / small, size / large], rel=1e-9)


@pytest.mark.parametrize("alpha", [0.1, 0.5, 1.0, 3.0, 10.0])
def test_nash_of_orthogonal_gradients_has_a_closed_form(alpha: float) -> None:
    """x_i = g_i^(-2 alpha / (1 + alpha)) for orthogonal gradients, and any alpha."""
    norms = torch.tensor([1e-6, 0.02, 1.0, 3.0, 4e5], dtype=f64)
    expected = norms ** (-2 * alpha / (1 + alpha))
    torch.testing.assert_close(nash(norms.square().diag(), alpha=alpha), expected, rtol=1e-9, atol=0)


@settings(max_examples=60)
@given(gramians(high=6), st.sets(st.integers(0, 8), min_size=1, max_size=3))
def test_zero_rows_are_no_part_of_the_problem(matrix: Tensor, places: set[int]) -> None:
    """Tasks without a gradient get 0, and the others bit for bit what they get without them."""
    count = len(matrix) + len(places)
    dead = sorted(place % count for place in places)
    alive = torch.tensor([place for place in range(count) if place not in dead][: len(matrix)])
    if len(alive) < len(matrix):
        return
    whole = torch.zeros(count, count, dtype=f64)
    whole[alive[:, None], alive] = matrix
    for solve in (min_norm, nash, lambda g: nnls(g, -g.diagonal())):
        solution = solve(whole)
        assert torch.equal(solution[alive], solve(matrix))
        assert bool((solution[dead] == 0).all())


def test_nothing_but_zero_rows() -> None:
    """Without any gradient the shortest combination is the uniform one, and the others are 0."""
    zero = torch.zeros(4, 4, dtype=f64)
    assert min_norm(zero).tolist() == [0.25] * 4
    assert nash(zero).tolist() == [0.0] * 4
    assert nnls(zero, torch.zeros(2, 4, dtype=f64)).tolist() == [[0.0] * 4] * 2


@settings(max_examples=60)
@given(gramians(high=6), st.lists(st.integers(-40, 40), min_size=6, max_size=6))
def test_solutions_follow_the_norms(matrix: Tensor, exponents: list[int]) -> None:
    """A gradient times 2^n has its part of the NNLS and of the Nash solution divided by it, bit for bit."""
    factors = 2.0 ** torch.tensor(exponents[: len(matrix)], dtype=f64)
    scaled = matrix * factors * factors[:, None]
    target = -matrix.mean(0)
    assert torch.equal(nnls(scaled, target * factors) * factors, nnls(matrix, target))
    assert torch.equal(nash(scaled) * factors, nash(matrix))


@pytest.mark.parametrize("family", FAMILIES)
def test_gramians_in_float32_are_solved_for_what_they_are(family: str) -> None:
    """Rounded to float32, a Gramian may be indefinite by 1e-7: the solutions are finite and optimal to that."""
    for seed in range(5):
        matrix = gramian(family, 6, seed, decades=3.0).float().double()
        for target, solution in zip(projections(matrix), nnls(matrix, projections(matrix)), strict=True):
            assert bool(torch.isfinite(solution).all()) and bool((solution >= 0).all())
            assert unmet(matrix, target, solution) < 1e-6
        assert far_from_shortest(matrix, min_norm(matrix)) < 1e-6
        assert unbalanced(matrix, nash(matrix), 1.0) < 1e-6
