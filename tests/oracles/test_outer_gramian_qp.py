"""MGDA, CAGrad, Nash-MTL, FairGrad, UPGrad and DualProj against other libraries, and what their directions promise.

``reference_vectors.json`` holds what TorchJD 0.18.0 and LibMTL (git 4336804) return on four Jacobians in float64. Where a
peer has not converged or regularises, the exact solution wins; how far the peer is from it is asserted, too. TorchJD itself,
where it is installed with quadprog, is asked on further Jacobians.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import random_signals
from torch import Tensor

from mtl_axes import Signals, create
from mtl_axes.errors import OptionError
from mtl_axes.outer.solvers import nnls

FOLDER = Path(__file__).parent
VECTORS: dict[str, Any] = json.loads((FOLDER / "reference_vectors.json").read_text())
JACOBIANS = tuple(VECTORS["jacobians"])
# Computed once from the Gramian alone, in numpy; those of TorchJD with its 1e-4 on the diagonal of G / trace(G).
GOLDEN: dict[str, dict[str, list[Any]]] = {
    "two tasks of TorchJD": {
        "J": [[-4.0, 1.0, 1.0], [6.0, 1.0, 1.0]],
        "mgda": [0.6, 0.4],
        "cagrad": [0.704124, 0.5],
        "nash": [0.591461152229, 0.407071482884],
        "upgrad": [1.11111111111, 0.789473684211],
        "dualproj": [0.611111111111, 0.5],
        "upgrad of TorchJD": [1.11092104679, 0.789431031216],
        "dualproj of TorchJD": [0.610921046785, 0.5],
    },
    "three tasks": {
        "J": [[5.0, -1.0, 0.0, 2.0], [-1.0, 1.0, 0.5, 0.0], [0.1, 0.2, -0.3, 0.05]],
        "mgda": [0.0159848279599, 0.117041452181, 0.866973719859],
        "cagrad": [0.333333, 0.843629, 0.333333],
        "nash": [0.324213261453, 1.26878812626, 2.42680119396],
        "upgrad": [0.4, 1.22962962963, 0.333333333333],
        "dualproj": [0.333333333333, 0.896296296296, 0.333333333333],
        "upgrad of TorchJD": [0.399992802444, 1.22834111676, 0.333333333333],
        "dualproj of TorchJD": [0.333333333333, 0.895007783424, 0.333333333333],
    },
}
f64 = torch.float64
QP = ("mgda", "cagrad", "nash_mtl", "fairgrad", "upgrad", "dualproj")


def vector(values: Any) -> Tensor:
    return torch.tensor(values, dtype=f64)


def signals_of(rows: Tensor) -> Signals:
    return Signals(torch.ones(len(rows), dtype=f64), gramian=rows @ rows.T)


def weights_of(name: str, rows: Tensor, **options: Any) -> Tensor:
    return create("outer", name, **options)(signals_of(rows))


def ours(case: str, name: str, **options: Any) -> tuple[Tensor, Tensor]:
    """Weights and the common gradient for a Jacobian of the file."""
    rows = vector(VECTORS["jacobians"][case]["J"])
    weights = weights_of(name, rows, **options)
    return weights, weights @ rows


def apart(left: Tensor, right: Any) -> float:
    return float((left - vector(right)).abs().max())


# Weighting, options, entry of the file, and the distance of TorchJD's weights on each Jacobian of (well, conflict, rankdef,
# readme): bounds within a factor 2 where it is the peer's own error, else 0 for agreement to 1e-9.
TORCHJD: list[tuple[str, dict[str, Any], str, tuple[float, float, float, float]]] = [
    ("mgda", {}, "exact_min_norm", (0, 0, 0, 0)),
    ("mgda", {}, "MGDA_eps1em9_it20000", (0, 7e-9, 0, 0)),
    ("mgda", {}, "MGDA", (1.8e-4, 1.33e-2, 0, 0)),
    ("upgrad", {}, "UPGrad_reg1em10", (0, 1.05e-9, 0, 0)),
    ("upgrad", {}, "UPGrad", (0, 1.04e-3, 0, 1.91e-4)),
    ("dualproj", {}, "DualProj_reg1em10", (0, 0, 0, 0)),
    ("dualproj", {}, "DualProj", (0, 2.6e-4, 0, 1.91e-4)),
    ("cagrad", {"c": 0.5}, "CAGrad_c0p5", (3.9e-6, 1.28e-4, 6.5e-9, 1.5e-9)),
    ("cagrad", {"c": 0.4}, "CAGrad_c0p4", (2.2e-6, 0, 6.0e-9, 2.4e-9)),
    ("nash_mtl", {}, "NashMTL", (0, 3.1e-9, 0, 2.3e-9)),
    ("nash_mtl", {"max_norm": None}, "NashMTL_nonorm", (0, 3.2e-8, 0, 3.8e-8)),
    ("fairgrad", {}, "FairGrad_a1", (0, 0, 0, 0)),
    ("fairgrad", {"alpha": 2.0}, "FairGrad_a2", (0, 0, 0, 0)),
]


@pytest.mark.parametrize(
    ("name", "options", "entry", "off"), TORCHJD, ids=lambda value: value if isinstance(value, str) else ""
)
def test_weights_are_those_of_torchjd(name: str, options: dict[str, Any], entry: str, off: tuple[float, ...]) -> None:
    """Equal to 1e-9, or as far away as TorchJD is from the exact solution."""
    for case, bound in zip(("well", "conflict", "rankdef", "readme"), off, strict=True):
        weights, combined = ours(case, name, **options)
        found = VECTORS["torchjd"][case][entry]
        distance = apart(weights, found["weights"])
        if bound:
            assert bound / 2 < distance < bound, (case, distance)
        else:
            assert distance < 1e-9, (case, distance)
            assert apart(combined, found["aggregation"]) < 1e-8


# The same for LibMTL, whose common gradient is compared because its weights mean different things.
LIBMTL: list[tuple[str, dict[str, Any], str, tuple[float, float, float, float]]] = [
    ("mgda", {}, "MGDA_none", (1.1e-6, 4.2e-6, 0, 0)),
    ("cagrad", {"c": 0.5}, "CAGrad_c0p5_r0", (2.0e-6, 3.95e-4, 2.3e-9, 8.9e-9)),
    ("nash_mtl", {}, "Nash_MTL", (3.4e-7, 3.9e-7, 3.8e-7, 5.0e-7)),
    ("fairgrad", {}, "FairGrad_a1", (0, 0, 0, 0)),
    ("fairgrad", {"alpha": 2.0}, "FairGrad_a2", (0, 0, 0, 0)),
    ("upgrad", {}, "UPGrad", (0, 4.5e-4, 0, 5.1e-4)),
]


@pytest.mark.parametrize(
    ("name", "options", "entry", "off"), LIBMTL, ids=lambda value: value if isinstance(value, str) else ""
)
def test_common_gradient_is_that_of_libmtl(name: str, options: dict[str, Any], entry: str, off: tuple[float, ...]) -> None:
    """Equal to 1e-8, or as far away as LibMTL is from the exact solution."""
    for case, bound in zip(("well", "conflict", "rankdef", "readme"), off, strict=True):
        _, combined = ours(case, name, **options)
        distance = apart(combined, VECTORS["libmtl"][case][entry]["grad"])
        assert (bound / 2 < distance < bound) if bound else distance < 1e-8, (case, distance)


@pytest.mark.parametrize("case", JACOBIANS)
def test_libmtl_divides_cagrad_by_one_plus_c_squared(case: str) -> None:
    """Its default rescaling is a constant factor, which ours does not have."""
    _, combined = ours(case, "cagrad", c=0.5)
    assert apart(combined / 1.25, VECTORS["libmtl"][case]["CAGrad_c0p5_r1"]["grad"]) < 4e-4


@pytest.mark.parametrize("case", ["well", "conflict"])
def test_cagrad_is_better_than_its_peers(case: str) -> None:
    """Where the peers differ, the slowest task gains more with ours, within the same ball."""
    rows = vector(VECTORS["jacobians"][case]["J"])
    mean = rows.mean(0)
    radius = 0.5 * float(mean.norm())
    for peer in (
        VECTORS["torchjd"][case]["CAGrad_c0p5"]["aggregation"],
        VECTORS["libmtl"][case]["CAGrad_c0p5_r0"]["grad"],
    ):
        direction = mean + (vector(peer) - mean) * min(1.0, radius / float((vector(peer) - mean).norm()))
        _, combined = ours(case, "cagrad", c=0.5)
        assert float((combined - mean).norm()) <= radius * (1 + 1e-12)
        assert float((rows @ combined).min()) > float((rows @ direction).min())


@pytest.mark.parametrize("case", GOLDEN)
def test_weights_are_those_written_down(case: str) -> None:
    """The golden numbers, to the digits that they have; with the addition to the diagonal also TorchJD's."""
    entry = GOLDEN[case]
    rows = vector(entry["J"])
    for name, key, digits in (
        ("mgda", "mgda", 5e-12),
        ("upgrad", "upgrad", 5e-12),
        ("dualproj", "dualproj", 5e-12),
        ("cagrad", "cagrad", 6e-7),
        ("fairgrad", "nash", 5e-12),
    ):
        assert apart(weights_of(name, rows), entry[key]) < digits, name
    matrix = rows @ rows.T
    eye = torch.eye(len(rows), dtype=f64)
    raised = matrix / matrix.trace() + 1e-4 * eye
    mean = torch.full((1, len(rows)), 1 / len(rows), dtype=f64)
    assert apart((eye + nnls(raised, -raised)).mean(0), entry["upgrad of TorchJD"]) < 5e-12
    assert apart((mean + nnls(raised, -(mean @ raised)))[0], entry["dualproj of TorchJD"]) < 5e-12


@pytest.mark.parametrize("seed", range(8))
def test_nnls_solves_what_torchjd_solves(seed: int) -> None:
    """On TorchJD's own regularised problem, UPGrad and DualProj equal the installed library."""
    aggregation = pytest.importorskip("torchjd.aggregation")
    pytest.importorskip("quadprog")
    count = 2 + seed
    rows = torch.randn(count, max(1, count - seed % 3), generator=torch.Generator().manual_seed(seed), dtype=f64)
    matrix, eye = rows @ rows.T, torch.eye(count, dtype=f64)
    raised = matrix / matrix.trace() + 1e-4 * eye
    upgrad = (eye + nnls(raised, -raised)).mean(0)
    torch.testing.assert_close(aggregation.UPGradWeighting()(matrix), upgrad, rtol=1e-9, atol=1e-12)
    mean = torch.full((count,), 1 / count, dtype=f64)
    dual = mean + nnls(raised, -(raised @ mean))
    torch.testing.assert_close(aggregation.DualProjWeighting()(matrix), dual, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("seed", range(4))
def test_frank_wolfe_of_torchjd_is_longer(seed: int) -> None:
    """TorchJD's MGDA comes near to ours from above, and with its defaults stops short of it."""
    aggregation = pytest.importorskip("torchjd.aggregation")
    rows = torch.randn(5, 7, generator=torch.Generator().manual_seed(seed), dtype=f64)
    rows = rows + 0.3
    matrix = rows @ rows.T
    length = {
        name: float(weights @ matrix @ weights)
        for name, weights in {
            "ours": weights_of("mgda", rows),
            "peer": aggregation.MGDAWeighting()(matrix),
            "long": aggregation.MGDAWeighting(epsilon=1e-9, max_iters=3_000)(matrix),
        }.items()
    }
    assert length["ours"] <= length["long"] * (1 + 1e-12) <= length["peer"] * (1 + 1e-11)
    assert length["peer"] > length["ours"] * (1 + 1e-6)
    # The bound of Frank and Wolfe's method after 3000 steps, from the largest distance between two gradients.
    assert length["long"] - length["ours"] <= 4 * float(torch.cdist(rows, rows).max()) ** 2 / 3_002


@pytest.mark.parametrize("alpha", [1.0, 2.0])
def test_fairgrad_is_that_of_torchjd(alpha: float) -> None:
    """scipy's least squares, started from ones in TorchJD, ends at the same weights to 1e-6."""
    aggregation = pytest.importorskip("torchjd.aggregation")
    pytest.importorskip("scipy.optimize")
    rows = torch.randn(4, 9, generator=torch.Generator().manual_seed(2), dtype=f64)
    peer = aggregation.FairGradWeighting(alpha=alpha)(rows @ rows.T)
    torch.testing.assert_close(weights_of("fairgrad", rows, alpha=alpha), peer, rtol=1e-6, atol=0)


def rows_of(count: int, width: int, seed: int, decades: float) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    scales = 10 ** (decades * (2 * torch.rand(count, 1, generator=generator, dtype=f64) - 1))
    return scales * torch.randn(count, width, generator=generator, dtype=f64)


shapes = st.tuples(st.integers(1, 7), st.integers(1, 9), st.integers(0, 10**6), st.sampled_from([0.0, 2.0, 6.0]))
SAFE = {"upgrad": {}, "dualproj": {}, "mgda": {}, "cagrad": {"c": 1.0}, "nash_mtl": {}, "fairgrad": {"alpha": 2.0}}


@pytest.mark.parametrize("name", SAFE)
@settings(max_examples=40)
@given(shapes)
def test_no_task_loses(name: str, shape: tuple[int, int, int, float]) -> None:
    """(G lambda)_i >= 0: the common gradient conflicts with no task, up to 1e-9 of what is added up; K > P included."""
    rows = rows_of(*shape)
    matrix = rows @ rows.T
    weights = weights_of(name, rows, **SAFE[name])
    gains = matrix @ weights
    assert float((gains / (matrix.abs() @ weights)).min()) > -1e-9


@pytest.mark.parametrize("c", [0.0, 0.3, 0.5, 0.9, 2.0])
@settings(max_examples=25)
@given(shapes)
def test_cagrad_is_optimal(c: float, shape: tuple[int, int, int, float]) -> None:
    """The direction lies in the ball, and no w on the simplex bounds the slowest gain below what it reaches (duality)."""
    rows = rows_of(*shape)
    matrix, count = rows @ rows.T, len(rows)
    weights = weights_of("cagrad", rows, c=c)
    extra = (weights - 1 / count).clamp_min(0)
    along = matrix.mean(0)
    radius = c * math.sqrt(max(float(along.mean()), 0.0))
    length = math.sqrt(max(float(extra @ matrix @ extra), 0.0))
    size = float(matrix.diagonal().sqrt() @ weights)
    assert length <= radius + 1e-9 * size
    gains = matrix @ weights
    # A task that pushes gains the least of all, up to what rounding leaves of either gain.
    terms = matrix.abs() @ weights
    slowest = gains.argmin()
    pushing = extra * matrix.diagonal().sqrt() > 1e-9 * size
    ahead = gains - gains[slowest] - 1e-8 * terms - 1e-14 * terms[slowest]
    assert not bool((pushing & (ahead > 0)).any())
    # Not on the edge of the ball: nothing is left to gain.
    if length < radius - 1e-9 * size and count > 1:
        assert float((gains / terms).min()) == pytest.approx(0.0, abs=1e-8)


@pytest.mark.parametrize("name", QP)
@pytest.mark.parametrize("factor", [1e-5, 1e5])
def test_scaling_all_losses(name: str, factor: float) -> None:
    """Multiplying all losses by c keeps the weights of MGDA, CAGrad, UPGrad and DualProj, and divides Nash-MTL's by c."""
    rows = rows_of(5, 6, 1, 1.0)
    scaled, weights = weights_of(name, factor * rows), weights_of(name, rows)
    expected = weights / factor if name in ("nash_mtl", "fairgrad") else weights
    torch.testing.assert_close(scaled, expected, rtol=1e-9, atol=0)


def test_scaling_one_loss_is_undone_by_nash() -> None:
    """A loss times c has its weight divided by c, and the common gradient stays: Nash-MTL does not know units."""
    rows = rows_of(4, 6, 3, 0.0)
    factors = vector([1e-3, 1.0, 7.0, 1e6])
    torch.testing.assert_close(
        weights_of("nash_mtl", factors[:, None] * rows) * factors, weights_of("nash_mtl", rows), rtol=1e-9, atol=0
    )


@pytest.mark.parametrize("name", QP)
def test_permuted_tasks_have_permuted_weights(name: str) -> None:
    """The order of the tasks does not matter."""
    for seed in range(4):
        rows = rows_of(6, 7, seed, 2.0)
        index = torch.randperm(6, generator=torch.Generator().manual_seed(seed))
        torch.testing.assert_close(weights_of(name, rows[index]), weights_of(name, rows)[index], rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("name", QP)
@pytest.mark.parametrize("why", ["inactive", "zero row"])
def test_a_task_that_is_out_leaves_the_others_their_own_problem(name: str, why: str) -> None:
    """An absent task, or one without a gradient, gets 0 and the others exactly the solution without it."""
    rows = rows_of(5, 6, 8, 1.0)
    others = torch.tensor([0, 2, 3, 4])
    if why == "inactive":
        flags = torch.tensor([True, False, True, True, True])
        weights = create("outer", name)(Signals(torch.ones(5, dtype=f64), gramian=rows @ rows.T, active=flags))
    else:
        rows[1] = 0
        weights = weights_of(name, rows)
    assert float(weights[1]) == 0
    alone = weights_of(name, rows[others])
    torch.testing.assert_close(weights[others], alone, rtol=1e-12, atol=0)
    assert bool((alone > 0).any())


@pytest.mark.parametrize("name", QP)
@pytest.mark.parametrize("ratio", [1.0, 4.0, 1e9])
def test_opposed_gradients_give_weights(name: str, ratio: float) -> None:
    """Two exactly opposed gradients, where nothing helps both: finite weights, not all zero, and no common gradient."""
    rows = vector([[1.0, 2.0], [-1.0, -2.0]]) * vector([[ratio], [1.0]])
    weights = weights_of(name, rows)
    assert bool(torch.isfinite(weights).all()) and bool((weights > 0).all())
    if name == "mgda":
        assert weights.tolist() == pytest.approx([1 / (1 + ratio), ratio / (1 + ratio)], rel=1e-9)
    if name != "cagrad":
        assert float((weights @ rows).abs().max()) <= 1e-8 * float((weights[:, None] * rows).abs().max())


def test_cagrad_at_a_stationary_point_is_dualproj() -> None:
    """Where gradients cancel and the ball reaches that far, no task loses and the mean is moved as little as possible."""
    rows = vector([[1.0, 0.0], [-1.0, 0.0], [0.5, 1.0]])
    torch.testing.assert_close(weights_of("cagrad", rows, c=0.9), weights_of("dualproj", rows), rtol=1e-12, atol=0)
    far = weights_of("cagrad", vector([[2.0], [-1.0]]), c=0.5)
    # g0 = 1/2 and the ball is [1/4, 3/4]: the second task loses least at 1/4.
    assert float(far @ vector([2.0, -1.0])) == pytest.approx(0.25, rel=1e-12)


def test_clipping_nash_is_a_constant() -> None:
    """The common gradient has the length sqrt(K), clipped it has max_norm, whatever the gradients."""
    for seed in range(5):
        rows = rows_of(4, 6, seed, 3.0)
        for limit, length in ((None, 2.0), (1.0, 1.0), (0.1, 0.1), (7.0, 2.0)):
            assert float((weights_of("nash_mtl", rows, max_norm=limit) @ rows).norm()) == pytest.approx(length, rel=1e-9)


def test_two_tasks_collapse() -> None:
    """For K = 2, Nash-MTL is the inverse norm up to scale, at any angle."""
    for seed in range(20):
        rows = rows_of(2, 3, seed, 2.0)
        shares = weights_of("nash_mtl", rows) * rows.norm(dim=1)
        assert float(shares[0]) == pytest.approx(float(shares[1]), rel=1e-9)


@pytest.mark.parametrize("name", QP)
def test_precision_and_one_task(name: str) -> None:
    """float32 signals give float32 weights near the float64 ones; a single task has a weight that is not zero."""
    wide = create("outer", name)(random_signals(4, seed=3))
    narrow = create("outer", name)(random_signals(4, seed=3, dtype=torch.float32))
    assert narrow.dtype == torch.float32
    torch.testing.assert_close(narrow.double(), wide, rtol=1e-3, atol=1e-4 * float(wide.max()))
    assert float(create("outer", name)(random_signals(1, seed=1))) > 0


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("cagrad", {"c": -0.1}),
        ("cagrad", {"c": math.inf}),
        ("nash_mtl", {"max_norm": 0.0}),
        ("nash_mtl", {"max_norm": math.nan}),
        ("fairgrad", {"alpha": 0.0}),
        ("fairgrad", {"alpha": 11.0}),
    ],
)
def test_options_are_checked(name: str, options: dict[str, float]) -> None:
    """An option outside its range is refused by name."""
    with pytest.raises(OptionError, match=f"`{next(iter(options))}` should be"):
        create("outer", name, **options)
