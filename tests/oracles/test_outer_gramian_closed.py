"""Gramian weightings in closed form against numbers of peers, live TorchJD, mpmath, and what they are defined to do.

``reference_vectors.json`` holds what TorchJD 0.18.0 and LibMTL (git 4336804) return for four fixed Jacobians in float64.
Where a peer does not compute the definition, the definition wins and the test says so.
"""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import OUTERS, magnitudes, quick
from torch import Tensor, nn

from mtl_axes import OuterWeighting, Signals, TaskInfo, available, compose, create
from mtl_axes.errors import OptionError
from mtl_axes.outer.geometry import cosines, principal_axes

VECTORS: dict[str, Any] = json.loads((Path(__file__).parent / "reference_vectors.json").read_text())
JACOBIANS = {name: torch.tensor(row["J"], dtype=torch.float64) for name, row in VECTORS["jacobians"].items()}
NAMES = ("imtl_g", "config", "aligned_mtl", "pcgrad", "gradvac", "cosine_gate")
f64, f32 = torch.float64, torch.float32

every_jacobian = pytest.mark.parametrize("name", JACOBIANS)


def vector(values: Any) -> Tensor:
    return torch.tensor(values, dtype=f64)


def gramian_of(jacobian: Tensor) -> Tensor:
    return jacobian @ jacobian.T


def ask(weighting: OuterWeighting, gramian: Tensor, active: list[bool] | None = None) -> Tensor:
    flags = None if active is None else torch.tensor(active)
    return weighting(Signals(torch.ones(len(gramian), dtype=gramian.dtype), gramian=gramian, active=flags))


def weights_of(name: str, gramian: Tensor, **options: Any) -> Tensor:
    return ask(create("outer", name, **options), gramian)


def torchjd(name: str, jacobian: str, key: str = "weights") -> Tensor:
    return vector(VECTORS["torchjd"][jacobian][name][key])


def libmtl(name: str, jacobian: str, key: str = "returned") -> Tensor:
    return vector(VECTORS["libmtl"][jacobian][name][key])


def close(found: Tensor, expected: Tensor, *, rtol: float = 1e-9) -> None:
    """Equal relative to the largest entry: weights near 0 beside large ones are differences of these."""
    torch.testing.assert_close(found, expected, rtol=0, atol=rtol * float(expected.abs().max()))


def projections(gramian: Tensor, weights: Tensor) -> Tensor:
    """Projection of the weighted sum of gradients on the direction of each."""
    return gramian @ weights / gramian.diagonal().sqrt()


def random_jacobian(seed: int, count: int, width: int = 7, *, common: float = 0.0, spread: float = 1.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(count, width, generator=generator, dtype=f64)
    rows = rows + common * torch.randn(width, generator=generator, dtype=f64)
    return rows * (spread * torch.randn(count, 1, generator=generator, dtype=f64)).exp()


def pair(cosine: float, first: float = 1.0, second: float = 1.0) -> Tensor:
    """The Gramian of two gradients."""
    return vector([[first**2, cosine * first * second], [cosine * first * second, second**2]])


class Order(nn.Module):
    """Draws that always draw the same order."""

    def __init__(self, order: tuple[int, ...] | None = None) -> None:
        super().__init__()
        self.order = order

    def permutation(self, count: int) -> Tensor:
        return torch.arange(count) if self.order is None else torch.tensor(self.order)


# IMTL-G


@pytest.mark.parametrize("name", ["well", "conflict", "readme"])
def test_imtl_g_is_that_of_both_peers_for_independent_gradients(name: str) -> None:
    """TorchJD and LibMTL agree with it, and all projections are equal."""
    gramian = gramian_of(JACOBIANS[name])
    found = weights_of("imtl_g", gramian)
    close(found, torchjd("IMTLG", name), rtol=1e-12)
    close(found, libmtl("IMTL", name), rtol=1e-12)
    spread = projections(gramian, found)
    torch.testing.assert_close(spread, spread[:1].expand(len(spread)), rtol=1e-12, atol=0)


def test_imtl_g_of_dependent_gradients_is_closest_to_equal_projections() -> None:
    """Of three gradients, one the sum of the others, no sum projects equally. Ours is the least squares in the projections;
    TorchJD's in projections times norms, so that they differ more; LibMTL's step is zero."""
    jacobian = JACOBIANS["rankdef"]
    gramian = gramian_of(jacobian)
    found, peer = weights_of("imtl_g", gramian), torchjd("IMTLG", "rankdef")
    norms = gramian.diagonal().sqrt()
    units = (jacobian / norms[:, None]).numpy()
    best, *_ = np.linalg.lstsq(units, np.ones(3), rcond=1e-12)
    step = (found @ jacobian).numpy()
    np.testing.assert_allclose(step / np.linalg.norm(step), best / np.linalg.norm(best), rtol=1e-12)

    def unevenness(weights: Tensor) -> float:
        found = projections(gramian, weights)
        return float(found.std() / found.mean())

    assert unevenness(found) < 0.0618 < unevenness(peer)
    assert float((libmtl("IMTL", "rankdef") @ jacobian).abs().max()) < 1e-14
    assert libmtl("IMTL", "rankdef").tolist() == pytest.approx([1, 1, -1])


def test_imtl_g_does_not_raise_every_loss() -> None:
    """Where weights that sum to 1 would project negatively on every gradient, they are the inverse norms."""
    unit = vector([[1.0, 0.9, 0.9], [0.9, 1.0, 0.63], [0.9, 0.63, 1.0]])
    norms = vector([1.0, 10.0, 10.0])
    gramian = unit * norms * norms[:, None]
    definition = torch.linalg.solve(gramian, norms)
    definition = definition / definition.sum()
    assert bool((projections(gramian, definition) < -0.06).all()), "the definition goes up for all tasks"
    close(weights_of("imtl_g", gramian), vector([10.0, 1.0, 1.0]) / 12, rtol=1e-14)


@given(seed=st.integers(0, 10_000), count=st.integers(2, 6), common=st.floats(0, 3))
@settings(max_examples=60)
def test_imtl_g_projects_equally_or_falls_back(seed: int, count: int, common: float) -> None:
    """The sum is 1; the projections are equal and positive, or else the definition's are all negative."""
    gramian = gramian_of(random_jacobian(seed, count, common=common))
    found = weights_of("imtl_g", gramian)
    norms, unit = cosines(gramian)
    definition = torch.linalg.solve(unit, torch.ones(count, dtype=f64)) / norms
    assert float(found.sum()) == pytest.approx(1, abs=1e-9)
    if definition.sum() > 1e-6 * definition.abs().sum():
        expected = torch.full_like(norms, float(1 / definition.sum()))
        torch.testing.assert_close(projections(gramian, found), expected, rtol=1e-6, atol=0)
    elif definition.sum() < 0:
        close(found, (1 / norms) / (1 / norms).sum(), rtol=1e-12)


def test_imtl_g_where_the_sum_vanishes() -> None:
    """TorchJD gives no task a weight where the sum vanishes; here none is lost."""
    assert weights_of("imtl_g", pair(-1.0)).tolist() == [0.5, 0.5]
    close(weights_of("imtl_g", pair(-1.0, 10, 0.1)), vector([0.1, 10]) / 10.1, rtol=1e-14)


# ConFIG


@every_jacobian
def test_config_is_that_of_torchjd(name: str) -> None:
    """From the Gramian it gives the vector that TorchJD computes from the whole Jacobian, dependent gradients included."""
    jacobian = JACOBIANS[name]
    found = weights_of("config", gramian_of(jacobian)) @ jacobian
    close(found, torchjd("ConFIG", name, "aggregation"), rtol=1e-13)


@given(seed=st.integers(0, 10_000), count=st.integers(1, 6), width=st.integers(2, 8))
@settings(max_examples=60)
def test_config_is_the_pseudo_inverse_of_the_unit_gradients(seed: int, count: int, width: int) -> None:
    """For any Jacobian, wide or tall, the step equals the definition on the matrix."""
    jacobian = random_jacobian(seed, count, width)
    norms = jacobian.norm(dim=1)
    direction = np.linalg.pinv((jacobian / norms[:, None]).numpy(), rcond=1e-7) @ np.ones(count)
    direction /= np.linalg.norm(direction)
    length = float((jacobian.numpy() @ direction).sum())
    if length < 1e-3 * float(norms.sum()):
        return  # the weights are then the fallback
    found = (weights_of("config", gramian_of(jacobian)) @ jacobian).numpy()
    np.testing.assert_allclose(found, length * direction, rtol=0, atol=1e-6 * length)


@pytest.mark.parametrize("gramian", [pair(-1.0, 2.0, 6.0), pair(-1.0 + 1e-13, 2.0, 6.0), pair(0.3, 2.0, 6.0)])
def test_config_of_two_tasks_does_not_depend_on_their_angle(gramian: Tensor) -> None:
    """The fallback for opposed gradients is the limit: the weights of two tasks are (n_1 + n_2) / (2 n_i)."""
    close(weights_of("config", gramian), vector([2.0, 2.0 / 3.0]), rtol=1e-3 if gramian[0, 1] < -11.99 else 1e-14)


def test_config_is_imtl_g_up_to_length() -> None:
    """The two have one direction, dependent gradients included."""
    for jacobian in JACOBIANS.values():
        gramian = gramian_of(jacobian)
        one, other = (weights_of(name, gramian) for name in ("config", "imtl_g"))
        close(one / one.sum(), other, rtol=1e-13)


# Aligned-MTL


@every_jacobian
@pytest.mark.parametrize("scale", ["min", "median", "rmse"])
def test_aligned_mtl_is_that_of_torchjd(name: str, scale: str) -> None:
    """All three scales agree; LibMTL's, which sums, is K times the first."""
    found = weights_of("aligned_mtl", gramian_of(JACOBIANS[name]), scale=scale)
    close(found, torchjd(f"AlignedMTL_{scale}", name), rtol=1e-13)
    if scale == "min":
        close(len(found) * found, libmtl("Aligned_MTL", name), rtol=1e-13)


@given(exponents=st.lists(magnitudes(), min_size=2, max_size=5), seed=st.integers(0, 10_000))
@settings(max_examples=25)
def test_aligned_mtl_is_exact_for_norms_of_any_size(exponents: list[float], seed: int) -> None:
    """With norms from 1e-12 to 1e12 each weight agrees with 120 digits of mpmath, and no task is lost."""
    mpmath = pytest.importorskip("mpmath")
    count = len(exponents)
    _, unit = cosines(gramian_of(random_jacobian(seed, count)))
    if float(torch.linalg.cond(unit)) > 1e4:
        return
    unit.fill_diagonal_(1.0)
    norms = vector(exponents)
    gramian = unit * norms * norms[:, None]
    with mpmath.workdps(120):
        values, axes = mpmath.eigsy(mpmath.matrix(gramian.tolist()))
        scaled = axes.T * mpmath.ones(count, 1)
        for i in range(count):
            scaled[i] *= mpmath.sqrt(min(values) / values[i]) / count
        expected = vector([float(weight) for weight in axes * scaled])
    found = weights_of("aligned_mtl", gramian)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9 * float(expected.abs().min()))
    assert bool((found != 0).all())


@pytest.mark.parametrize("count", [2, 5, 16, 64])
def test_principal_axes_are_those_of_eigh_both_ways(count: int) -> None:
    """Where norms are alike, eigh's axes are taken; rotations find the same ones up to the sign, for up to 64 tasks."""
    gramian = gramian_of(random_jacobian(0, count, 2 * count, spread=0.3))
    plain = principal_axes(gramian, f64)
    norms = torch.ones(count, dtype=f64)
    norms[0] = 1e3
    scaled = gramian * norms * norms[:, None]
    for (values, vectors), of in ((plain, gramian), (principal_axes(scaled, f64), scaled)):
        close((vectors * values) @ vectors.T, of, rtol=1e-12)
        close(vectors.T @ vectors, torch.eye(count, dtype=f64), rtol=1e-12)


# PCGrad and GradVac


@every_jacobian
def test_pcgrad_draws_what_torchjd_draws(name: str) -> None:
    """One seed gives the orders of torch's global generator, and TorchJD's weights."""
    close(weights_of("pcgrad", gramian_of(JACOBIANS[name])), torchjd("PCGrad_seed0", name), rtol=1e-14)


@every_jacobian
def test_pcgrad_in_the_tasks_own_order(name: str) -> None:
    """In a fixed order it is a transcription of TorchJD; LibMTL adds 1e-8 to squared norms."""
    weighting = create("outer", "pcgrad")
    weighting.draws = Order()
    found = ask(weighting, gramian_of(JACOBIANS[name]))
    close(found, torchjd("PCGrad_identity_order", name), rtol=1e-14)
    close(found, libmtl("PCGrad_identity_order", name), rtol=1e-8)


@every_jacobian
def test_pcgrad_in_expectation(name: str) -> None:
    """The mean over all orders. Two tasks have one order only, so that the file's row of two, which adds each projection
    twice, is not an expectation; nor is its row of three conflicting tasks."""
    gramian = gramian_of(JACOBIANS[name])
    found = torch.zeros(len(gramian), dtype=f64)
    orders = list(itertools.permutations(range(len(gramian))))
    for order in orders:
        weighting = create("outer", "pcgrad")
        weighting.draws = Order(order)
        found += ask(weighting, gramian) / len(orders)
    weighting, drawn = create("outer", "pcgrad", seed=1), torch.zeros(len(gramian), dtype=f64)
    for _ in range(200):
        drawn += ask(weighting, gramian) / 200
    torch.testing.assert_close(drawn, found, rtol=0.05, atol=0)
    given_ = torchjd("PCGrad_expectation", name)
    if name == "readme":
        close(found, torchjd("PCGrad_seed0", name), rtol=1e-14)
        close(given_ - 1, 2 * (found - 1), rtol=1e-14)
    elif name == "conflict":
        assert bool((given_ - 1 > 1.99 * (found - 1)).all())
    else:
        close(found, given_, rtol=1e-14)


@every_jacobian
def test_gradvac_begins_as_both_peers(name: str) -> None:
    """The first window agrees with TorchJD's to the 1e-8 that it adds to denominators, and with LibMTL's step."""
    jacobian = JACOBIANS[name]
    found = weights_of("gradvac", gramian_of(jacobian), beta=0.5)
    close(found, torchjd("GradVac_seed0", name), rtol=1e-8)
    weighting = create("outer", "gradvac", beta=0.5)
    weighting.draws = Order()
    step = ask(weighting, gramian_of(jacobian)) @ jacobian
    close(step, libmtl("GradVac_identity_order_step1", name, "grad"), rtol=1e-7)


@pytest.mark.parametrize(("dtype", "rel"), [(f32, 1e-5), (f64, 1e-12)])
def test_gradvac_reaches_its_target(dtype: torch.dtype, rel: float) -> None:
    """After the turn the cosine is the target, for two tasks; a cosine above it is left alone."""
    weighting = create("outer", "gradvac", beta=1.0)
    ask(weighting, pair(0.6, 2.0, 5.0).to(dtype))
    assert weighting.rho.flatten().tolist() == pytest.approx([0, 0.6, 0.6, 0], rel=rel)
    turned = pair(-0.2, 2.0, 5.0)
    found = ask(weighting, turned.to(dtype))
    first = vector([1.0, float(found[1]) - 1])
    step = turned @ first
    assert float(step[1] / ((first @ step).sqrt() * 5.0)) == pytest.approx(0.6, rel=rel)
    assert ask(weighting, pair(0.1, 2.0, 5.0).to(dtype)).tolist() == [1.0, 1.0]


@pytest.mark.parametrize("dtype", [f32, f64])
def test_gradvac_never_asks_for_an_infinite_weight(dtype: torch.dtype) -> None:
    """Targets of parallel gradients, and gradients that a turn brings to zero, leave weights finite."""
    weighting = create("outer", "gradvac", beta=1.0)
    for cosine in (1.0, 1.0, 0.3, -1.0, -1.0, 0.3, -1.0):
        found = ask(weighting, pair(cosine, 3.0, 1e-3).to(dtype))
        assert bool(torch.isfinite(found).all()) and bool((found >= 1).all())
        assert bool(torch.isfinite(weighting.rho).all())


@pytest.mark.parametrize("norms", [[1.0, 1.0, 1.0], [3.0, 0.7, 1e-4]])
def test_gradvac_takes_no_cosine_of_what_is_zero(norms: list[float]) -> None:
    """A gradient opposed to two that are parallel is zero after its first turn: the second pair has no cosine to follow."""
    weighting = create("outer", "gradvac", beta=1.0)
    sides, sizes = vector([1.0, 1.0, -1.0]), vector(norms)
    found = ask(weighting, sides * sides[:, None] * sizes * sizes[:, None])
    assert sorted(weighting.rho[2, :2].tolist()) == pytest.approx([-1, 0])
    assert bool(torch.isfinite(found).all())


def test_gradvac_keeps_the_targets_of_absent_pairs() -> None:
    """With a task absent throughout it is the weighting of the others; its pairs do not move."""
    whole, part = create("outer", "gradvac", beta=0.3), create("outer", "gradvac", beta=0.3)
    for seed in range(5):
        gramian = gramian_of(random_jacobian(seed, 3))
        found = ask(whole, gramian, [True, False, True])
        close(found[[0, 2]], ask(part, gramian[[0, 2]][:, [0, 2]]), rtol=1e-15)
        assert found[1] == 0
    assert bool((whole.rho[1] == 0).all()) and bool((whole.rho[:, 1] == 0).all())
    assert bool((whole.rho[[0, 2], [2, 0]] != 0).all())


# TorchJD itself


PEERS = {
    "imtl_g": ("IMTLGWeighting", {}, {}),
    "aligned_mtl": ("AlignedMTLWeighting", {"scale": "median"}, {"scale_mode": "median"}),
    "pcgrad": ("PCGradWeighting", {}, {}),
    "gradvac": ("GradVacWeighting", {"beta": 0.3}, {"beta": 0.3, "eps": 0.0}),
}


@pytest.mark.parametrize("name", PEERS)
def test_torchjd_agrees_over_windows(name: str) -> None:
    """Ten problems of three windows each, of 2 to 6 tasks, from the same seeds; GradVac without the 1e-8."""
    peers = pytest.importorskip("torchjd.aggregation", reason="TorchJD is the oracle")
    cls, options, theirs = PEERS[name]
    raised = 0
    for seed in range(10):
        seeded = {"seed": seed} if name in ("pcgrad", "gradvac") else {}
        weighting, peer = create("outer", name, **options, **seeded), getattr(peers, cls)(**theirs)
        torch.manual_seed(seed)
        for window in range(3):
            # In 3 dimensions gradients conflict most, and a gradient may come to conflict with what it was.
            common, width = (0.0, 3) if seeded else (0.5, 7)
            gramian = gramian_of(random_jacobian(100 * seed + window, 2 + seed % 5, width, common=common))
            found, expected = ask(weighting, gramian), peer(gramian)
            if name == "imtl_g" and bool((gramian @ expected < 0).all()):
                raised += 1  # its weights raise every loss
            else:
                close(found, expected, rtol=1e-10)
    assert raised == (3 if name == "imtl_g" else 0)


@pytest.mark.parametrize(
    ("name", "peer", "gramian", "theirs", "ours"),
    [
        ("imtl_g", "IMTLGWeighting", pair(-1.0), [0, 0], [0.5, 0.5]),
        ("imtl_g", "IMTLGWeighting", pair(1.0, 10, 0.1), [0.990099, 0.009901], [0.009901, 0.990099]),
        ("imtl_g", "IMTLGWeighting", pair(-1.0, 10, 0.1), [1.010101, -0.010101], [0.009901, 0.990099]),
        ("aligned_mtl", "AlignedMTLWeighting", pair(0.0, 1, 1e-9), [0.5, 0], [5e-10, 0.5]),
        ("aligned_mtl", "AlignedMTLWeighting", pair(-1.0), [0, 0], [0.5, 0.5]),
        ("gradvac", "GradVacWeighting", pair(-0.5, 1e-6, 1e-6), [1.000049, 1.000049], [1.5, 1.5]),
    ],
)
def test_where_torchjd_is_not_exact(name: str, peer: str, gramian: Tensor, theirs: list[float], ours: list[float]) -> None:
    """Numbers that the docstrings give: what TorchJD 0.18 returns, and what the definition or its limit is."""
    peers = pytest.importorskip("torchjd.aggregation", reason="TorchJD is the oracle")
    assert getattr(peers, peer)()(gramian).tolist() == pytest.approx(theirs, abs=1e-6)
    torch.testing.assert_close(weights_of(name, gramian), vector(ours), rtol=1e-4, atol=0)


# Two matrices, and two tasks


# Weights from the Gramian alone, computed independently; the first matrix is the one on which TorchJD publishes its own.
GOLDEN = {
    "two tasks": {
        "G": [[18.0, -22.0], [-22.0, 38.0]],
        "imtl_g": [0.592330316938, 0.407669683062],
        "config": [1.22648315726, 0.844123600806],
        "aligned_mtl": [0.559071915657, 0.408261068099],
        "pcgrad": [2.22222222222, 1.57894736842],
    },
    "three tasks": {
        "G": [[30.0, -6.0, 0.4], [-6.0, 2.25, -0.05], [0.4, -0.05, 0.1425]],
        "imtl_g": [0.13551328997, 0.509377187996, 0.355109522034],
        "config": [0.60758971202, 2.28385229989, 1.59217514589],
        "aligned_mtl": [0.0407838001807, 0.131806889305, 0.320713890445],
    },
}


@pytest.mark.parametrize(("case", "name"), [(case, name) for case, row in GOLDEN.items() for name in row if name != "G"])
def test_golden_values(case: str, name: str) -> None:
    """Values computed independently agree to the 12 digits that they have."""
    row = GOLDEN[case]
    torch.testing.assert_close(weights_of(name, vector(row["G"])), vector(row[name]), rtol=1e-11, atol=0)


COLLAPSE: dict[str, dict[str, Any]] = {
    "config": {},
    "db_mtl": {},
    "fairgrad": {"alpha": 1.0},
    "gaba": {"warmup": 0, "beta": 0.0, "floor": 0.0},
    "imtl_g": {},
    "inverse_norm": {},
    "nash_mtl": {},
}


@pytest.mark.parametrize("name", sorted(set(COLLAPSE) & set(available("outer"))))
def test_two_tasks_get_the_inverse_norms_at_any_angle(name: str) -> None:
    """With K = 2 these methods differ in the sum of their weights only, whatever the angle between the gradients."""
    generator = np.random.default_rng(0)
    for _ in range(40):
        norms = vector(10 ** generator.uniform(-3, 3, 2))
        cosine = math.cos(generator.uniform(0.02, math.pi - 0.02))
        losses = vector(generator.uniform(0.1, 9, 2))
        found = create("outer", name, **COLLAPSE[name])(Signals(losses, gramian=pair(cosine, *norms.tolist())))
        expected = (1 / norms) / (1 / norms).sum()
        torch.testing.assert_close(found / found.sum(), expected, rtol=1e-9, atol=0)


@given(first=magnitudes(), second=magnitudes(), angle=st.floats(0, math.pi))
@settings(max_examples=60)
def test_two_tasks_of_any_norms(first: float, second: float, angle: float) -> None:
    """The collapse holds from parallel to opposed, and for norms of 1e-12 beside 1e12, to the rounding of the cosine."""
    cosine = math.cos(angle)
    rtol = 1e-9 + (1e-15 / (1 - abs(cosine)) if abs(cosine) < 1 else 0)
    gramian = pair(cosine, first, second)
    found = weights_of("imtl_g", gramian)
    torch.testing.assert_close(found[0] * first, found[1] * second, rtol=rtol, atol=0)
    found = weights_of("config", gramian)
    torch.testing.assert_close(found * vector([first, second]), vector([(first + second) / 2] * 2), rtol=rtol, atol=0)


# What all of them share


@pytest.mark.parametrize("dtype", [f32, f64])
@pytest.mark.parametrize("name", NAMES)
@given(sizes=st.lists(magnitudes(), min_size=1, max_size=6), seed=st.integers(0, 10_000), kind=st.sampled_from("abcd"))
@settings(max_examples=40)
def test_no_task_is_lost(name: str, dtype: torch.dtype, sizes: list[float], seed: int, kind: str) -> None:
    """Norms of 1e-12 beside 1e12, independent, dependent, parallel or opposed: weights are finite and not all zero."""
    count = len(sizes)
    jacobian = random_jacobian(seed, count)
    if kind == "b":
        jacobian[-1] = jacobian.sum(0)
    elif kind == "c":
        jacobian = jacobian[:1].expand(count, -1) + 1e-9 * jacobian
    elif kind == "d":
        jacobian = jacobian[:1] * (-1.0) ** torch.arange(count)[:, None]
    jacobian = jacobian / jacobian.norm(dim=1, keepdim=True) * vector(sizes)[:, None]
    weighting = quick(name)
    for _ in range(2):
        found = ask(weighting, gramian_of(jacobian).to(dtype))
        assert found.dtype == dtype
        assert bool(torch.isfinite(found).all())
        assert bool((found != 0).any())
        if name in ("pcgrad", "gradvac"):
            assert bool((found >= 1 - 1e-6).all())


@pytest.mark.parametrize("name", ["imtl_g", "config", "aligned_mtl"])
def test_the_rounding_of_float32_is_not_taken_for_a_direction(name: str) -> None:
    """Three parallel gradients measured in float32 get the weights of parallel ones, and not of their rounding."""
    norms = vector([1.0, 20.0, 0.3])
    exact = norms * norms[:, None]
    clean = weights_of(name, exact)
    for seed in range(8):
        noise = torch.randn(3, 3, generator=torch.Generator().manual_seed(seed), dtype=f64) * 1e-7
        measured = (exact * (1 + noise + noise.T)).to(f32)
        torch.testing.assert_close(weights_of(name, measured).double(), clean, rtol=1e-4, atol=1e-5)


GRAMIAN = [name for name in OUTERS if quick(name).needs == "gramian"]


@pytest.mark.parametrize("norm", [1e-23, 1e20])
@pytest.mark.parametrize("name", GRAMIAN)
def test_a_squared_norm_beyond_float32_leaves_the_problem(name: str, norm: float) -> None:
    """A norm has its square in the Gramian, which float32 rounds to 0 or infinity first: the others are weighed alone."""
    norms = torch.tensor([2.0, norm, 3.0])
    gramian = norms * norms[:, None] * torch.tensor([[1.0, 0.0, 0.1], [0.0, 1.0, 0.0], [0.1, 0.0, 1.0]])
    assert gramian[1, 1] in (0, torch.inf)
    signals = Signals(torch.ones(3), norms=norms, gramian=gramian)
    absent = Signals(torch.ones(3), gramian=gramian, active=torch.tensor([True, False, True]))
    assert signals.active.tolist() == [True, False, True]
    assert torch.equal(quick(name)(signals), quick(name)(absent))


@pytest.mark.parametrize("name", [name for name in NAMES if name != "cosine_gate"])
def test_an_absent_task_leaves_the_problem(name: str) -> None:
    """Inactive, without a gradient or not finite: the others get what they would get alone, from the first window on."""
    gramian = gramian_of(random_jacobian(3, 4, common=0.5))
    index = [0, 2, 3]
    expected = weights_of(name, gramian[index][:, index])
    dead, nan = gramian.clone(), gramian.clone()
    dead[1], dead[:, 1] = 0, 0
    nan[1], nan[:, 1] = torch.nan, torch.nan
    for shown, active in ((gramian, [True, False, True, True]), (dead, None), (nan, None)):
        found = ask(quick(name), shown, active)
        torch.testing.assert_close(found[index], expected, rtol=1e-12, atol=1e-15)
        assert found[1] == 0
    weighting = quick(name)
    before = ask(weighting, gramian).clone()
    assert torch.equal(ask(weighting, gramian, [False] * 4), before)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("factor", [1e-8, 3.0, 1e8])
def test_scaling_all_losses_changes_no_weight(name: str, factor: float) -> None:
    """The claim ``scaling = "invariant"``: the Gramian times c^2 leaves the weights, window after window."""
    one, other = quick(name), quick(name)
    assert one.scaling == "invariant"
    for seed in range(3):
        gramian = gramian_of(random_jacobian(seed, 4, common=0.4))
        close(ask(one, gramian * factor**2), ask(other, gramian), rtol=1e-10)


@given(seed=st.integers(0, 10_000), factors=st.lists(magnitudes(-6, 6), min_size=4, max_size=4))
@settings(max_examples=40)
def test_config_balances(seed: int, factors: list[float]) -> None:
    """The claim ``balances``: one task's gradient times c divides its weight by c, up to a factor common to all."""
    gramian = gramian_of(random_jacobian(seed, 4))
    scale = vector(factors)
    plain, scaled = weights_of("config", gramian), weights_of("config", gramian * scale * scale[:, None])
    ratio = scaled * scale / plain
    torch.testing.assert_close(ratio, ratio[:1].expand(4), rtol=1e-6, atol=0)


# The cosine gate


def bound_gate(main: str | int) -> OuterWeighting:
    weighting = create("outer", "cosine_gate", main=main)
    weighting.bind((TaskInfo("depth"), TaskInfo("pose"), TaskInfo("edges")))
    return weighting


@pytest.mark.parametrize(("main", "position"), [("pose", 1), (1, 1), (0, 0), ("edges", 2)])
def test_cosine_gate_is_the_positive_part_of_the_cosine(main: str | int, position: int) -> None:
    """The main task has the weight 1, any other its cosine with it where that is positive."""
    gramian = gramian_of(random_jacobian(5, 3).float())
    found = ask(bound_gate(main), gramian)
    _, unit = cosines(gramian)
    expected = unit[position].clamp_min(0)
    expected[position] = 1
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=0)
    assert bool((unit[position] < 0).any()), "one should be in conflict"


def test_cosine_gate_keeps_its_gates_while_the_main_task_is_absent() -> None:
    """Gates start at 1; without the main task none moves, and an absent auxiliary task keeps its own."""
    first, second = (gramian_of(random_jacobian(seed, 3)) for seed in (5, 9))
    weighting = bound_gate("pose")
    assert ask(weighting, first, [True, False, True]).tolist() == [1.0, 1.0, 1.0]
    before = ask(weighting, first).clone()
    assert torch.equal(ask(weighting, second, [True, False, True]), before)
    found = ask(weighting, second, [True, True, False])
    assert found[2] == before[2] and found[0] != before[0]
    dead = second.clone()
    dead[1], dead[:, 1] = 0, 0
    assert torch.equal(ask(weighting, dead), found)


@pytest.mark.parametrize(
    ("main", "message"),
    [
        ("rul", r"should be one of the tasks \['depth', 'pose', 'edges'\], or a position among them\. Found main='rul'"),
        (3, r"or a position among them\. Found main=3"),
        (-1, r"should be the name of a task, or its position from 0 on\. Found main=-1"),
        (1.0, r"should be the name of a task, or its position from 0 on\. Found main=1\.0"),
        (True, r"should be the name of a task, or its position from 0 on\. Found main=True"),
    ],
)
def test_cosine_gate_needs_a_main_task(main: Any, message: str) -> None:
    """A main task that is none of the tasks is an error at compose, with their names."""
    with pytest.raises(OptionError, match=message):
        compose({"name": "cosine_gate", "main": main}, "mse", tasks=["depth", "pose", "edges"])


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("aligned_mtl", {"scale": "max"}, r"`scale` should be one of 'min', 'median', 'rmse'"),
        ("pcgrad", {"seed": -1}, r"`seed` should be an integer in \[0"),
        ("gradvac", {"beta": 1.5}, r"`beta` should be a number in \[0\.0, 1\.0\]"),
        ("gradvac", {"seed": 0.5}, r"`seed` should be an integer"),
    ],
)
def test_options_out_of_range(name: str, options: dict[str, Any], message: str) -> None:
    """Options are checked in the constructor."""
    with pytest.raises(OptionError, match=message):
        create("outer", name, **options)
