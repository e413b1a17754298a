"""Weightings of the losses against independent references: peers run live, frozen traces, and recurrences in plain Python.

``reference_vectors.json`` holds what TorchJD 0.18.0 and LibMTL (git 4336804) returned in float64. TorchJD's scalarizers are
run as well: the weights are the coefficients of the task gradients, so that the gradient of its scalar in the losses has to
be the weights.
"""

from __future__ import annotations

import itertools
import json
import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import magnitudes
from torch import Tensor
from torchjd import scalarization

from mtl_axes import OuterWeighting, Signals, TaskInfo, compose, create
from mtl_axes.errors import OptionError

FOLDER = Path(__file__).parent
VECTORS: dict[str, Any] = json.loads((FOLDER / "reference_vectors.json").read_text())
TRACES: dict[str, Any] = VECTORS["traces"]
f64 = torch.float64

# Two problems of the reference, with the weights that their formulas give, computed once in float64.
GOLDEN = {
    (2.0, 0.5): {
        "gls": [0.25, 1.0],
        "uw_so": [0.182425523806, 0.817574476194],
        "stch mu=1": [0.8, 0.8],
        "stch mu=0.5": [0.941176470588, 0.235294117647],
    },
    (2.0, 0.5, 0.1): {
        "gls": [0.0773598138935, 0.309439255574, 1.54719627787],
        "uw_so": [7.48211296964e-05, 0.000335325039191, 0.999589853831],
        "stch mu=1": [1.15384615385, 1.15384615385, 1.15384615385],
        "stch mu=0.5": [1.40845070423, 0.352112676056, 0.0704225352113],
    },
}
# Every way of working, with options under which it moves from its first windows on.
WAYS: dict[str, dict[str, Any]] = {
    "rlw": {"name": "rlw"},
    "rlw dirichlet": {"name": "rlw", "distribution": "dirichlet"},
    "gls": {"name": "gls"},
    "imtl_l": {"name": "imtl_l"},
    "uw_so": {"name": "uw_so"},
    "uw_so cold": {"name": "uw_so", "temperature": 1e-30},
    "scale_invariant": {"name": "scale_invariant"},
    "stch": {"name": "stch", "warmup": 2},
    "stch sharp": {"name": "stch", "warmup": 1, "mu": 0.01},
    "stch linear": {"name": "stch", "form": "linear"},
    "stch maximum": {"name": "stch", "form": "linear", "mu": 1e-30},
    "slaw": {"name": "slaw", "beta": 0.8},
    "cov": {"name": "cov"},
    "softadapt": {"name": "softadapt"},
    "softadapt normalized": {"name": "softadapt", "variant": "normalized"},
    "softadapt loss_weighted": {"name": "softadapt", "variant": "loss_weighted"},
    "relobralo": {"name": "relobralo", "beta": 0.7, "rho": 0.6},
}
# One task takes every weight, whatever the units.
SHARP = ("uw_so cold", "stch maximum")
MEMORYLESS = [way for way in WAYS if way.split()[0] in ("rlw", "gls", "uw_so", "scale_invariant", "stch")]
REMEMBERING = [way for way in WAYS if way not in MEMORYLESS and way != "imtl_l"]
# Those in which a loss of exactly 0 takes its task out of the window.
POSITIVE = ["gls", "uw_so", "scale_invariant", "stch", "stch sharp", "slaw", "cov", "relobralo"]


def vector(values: Any) -> Tensor:
    return torch.tensor(values, dtype=f64)


def made(name: str, **options: Any) -> OuterWeighting:
    return create("outer", name, **options)


def make(way: str, **options: Any) -> OuterWeighting:
    return made(**{**WAYS[way], **options})


def shown(losses: Sequence[float], active: Sequence[bool] | None = None, dtype: torch.dtype = f64) -> Signals:
    return Signals(torch.tensor(losses, dtype=dtype), active=None if active is None else torch.tensor(active))


def falling(count: int = 3, windows: int = 30, seed: int = 0) -> list[list[float]]:
    """Losses of several sizes that fall at several rates, with noise."""
    rng = np.random.default_rng(seed)
    sizes, rates = 10 ** rng.uniform(-2, 2, count), rng.uniform(0.9, 1.01, count)
    return [list(sizes * rates**t * rng.uniform(0.7, 1.3, count)) for t in range(windows)]


def gradient(scalar: Callable[[Tensor], Tensor], losses: Sequence[float]) -> np.ndarray:
    """The gradient of a scalar in the losses."""
    values = vector(losses).requires_grad_()
    (found,) = torch.autograd.grad(scalar(values), values)
    return found.numpy()


def shares(values: Sequence[float], total: float) -> list[float]:
    return [total * value / math.fsum(values) for value in values]


def softmax(values: Sequence[float], total: float = 1.0) -> list[float]:
    return shares([math.exp(value - max(values)) for value in values], total)


# -- Frozen numbers of the reference


@pytest.mark.parametrize("losses", GOLDEN)
@pytest.mark.parametrize("case", ["gls", "uw_so", "stch mu=1", "stch mu=0.5"])
def test_the_golden_rows(losses: tuple[float, ...], case: str) -> None:
    """Twelve digits of the reference are reproduced."""
    name, _, mu = case.partition(" mu=")
    options = {"mu": float(mu), "reference": [1.0] * len(losses)} if mu else {}
    weights = create("outer", name, **options)(shown(losses))
    np.testing.assert_allclose(weights.numpy(), GOLDEN[losses][case], rtol=2e-11)


@pytest.mark.parametrize("temperature", [0.3, 1.0, 20.0])
def test_uw_so_is_a_softmax_of_the_inverse_losses(temperature: float) -> None:
    """The temperature divides the inverse losses."""
    losses = [2.0, 0.5, 0.9]
    weights = create("outer", "uw_so", temperature=temperature)(shown(losses)).numpy()
    np.testing.assert_allclose(weights, softmax([1 / loss / temperature for loss in losses]), rtol=1e-13)


def test_gls_has_the_gradient_of_the_trace() -> None:
    """The weights are the true ones of the trace, with the value in common; LibMTL reports others."""
    trace = TRACES["GLS"]
    weights = create("outer", "gls")(shown(trace["losses"])).numpy()
    np.testing.assert_allclose(weights, trace["true_weights"], rtol=1e-14)
    np.testing.assert_allclose(weights * trace["losses"] * 4, [trace["value"]] * 4, rtol=1e-14)
    reported = vector(trace["losses"]) / (4 * vector(trace["losses"]).prod())
    np.testing.assert_allclose(trace["libmtl_reported"], reported.numpy(), rtol=1e-12)
    assert np.abs(weights / trace["libmtl_reported"]).max() > 10


@pytest.mark.parametrize("name", ["well", "conflict", "rankdef", "readme"])
def test_gls_and_uncertainty_have_the_gradients_of_libmtl(name: str) -> None:
    """The weighted sum of the rows of four Jacobians is the gradient that LibMTL left; RLW of seed 0 too."""
    case, peer = VECTORS["jacobians"][name], VECTORS["libmtl"][name]
    jacobian, losses = np.array(case["J"]), case["losses"]
    np.testing.assert_allclose(
        create("outer", "gls")(shown(losses)).numpy() @ jacobian, peer["GLS"]["grad"], rtol=1e-11, atol=1e-14
    )
    drawn = create("outer", "rlw")(shown(losses)).numpy()
    np.testing.assert_allclose(drawn, peer["RLW_seed0"]["returned"], rtol=1e-12)
    np.testing.assert_allclose(drawn @ jacobian, peer["RLW_seed0"]["grad"], rtol=1e-11, atol=1e-14)
    learned = create("outer", "uncertainty")
    learned.dtype = f64
    learned.bind(tuple(TaskInfo(str(index), "regression") for index in range(len(losses))))
    with torch.no_grad():
        learned.log_variance.fill_(TRACES["UW"]["inits"]["libmtl"])
    np.testing.assert_allclose(learned.weights().detach().numpy() @ jacobian, peer["UW"]["grad"], rtol=1e-11, atol=1e-14)


@pytest.mark.parametrize("peer", ["libmtl_seed0_draws", "torchjd_seed0_draws"])
def test_rlw_draws_what_two_libraries_draw(peer: str) -> None:
    """Seed 0 gives the sequence of both, although no one seeds the global generator here."""
    weighting = create("outer", "rlw", seed=0)
    for row in TRACES["RLW"][peer]:
        torch.rand(7)
        np.testing.assert_allclose(weighting(shown([1.0, 2.0, 3.0])).numpy(), row, rtol=1e-13)


@pytest.mark.parametrize("way", ["rlw", "rlw dirichlet"])
def test_rlw_has_the_moments_of_its_distribution(way: str) -> None:
    """Over 4,000 draws the mean is 1/3, and the spread equals the trace or the uniform distribution."""
    weighting = make(way)
    drawn = torch.stack([weighting(shown([1.0, 1.0, 1.0])) for _ in range(4_000)])
    spread = float(np.mean(TRACES["RLW"]["std"])) if way == "rlw" else math.sqrt(1 / 18)
    np.testing.assert_allclose(drawn.mean(0).numpy(), 1 / 3, atol=5 * spread / math.sqrt(4_000))
    np.testing.assert_allclose(drawn.std(0).numpy(), spread, rtol=0.05)
    np.testing.assert_allclose(drawn.sum(1).numpy(), 1, rtol=1e-14)


@pytest.mark.parametrize("way", ["rlw", "rlw dirichlet"])
def test_rlw_repeats_a_seed_and_no_other(way: str) -> None:
    """Two weightings of one seed agree, two of different seeds do not, and a saved state goes on where it was."""
    one, same, other = make(way, seed=3), make(way, seed=3), make(way, seed=4)
    signals = shown([1.0, 1.0])
    for _ in range(3):
        first = one(signals)
        assert torch.equal(first, same(signals)) and not torch.equal(first, other(signals))
    fresh = make(way, seed=9)
    fresh.load_state_dict(one.state_dict())
    assert torch.equal(fresh(signals), one(signals))


@pytest.mark.parametrize("ends", [[0.0, 1.0, 0.5], [1.0, 1.0, 1.0], [0.0, 0.0, 0.0]])
def test_rlw_survives_the_ends_of_the_interval(ends: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    """Uniform numbers of 0 and, rounded to float32, of 1 come too seldom for a test to wait for them."""
    weighting = make("rlw dirichlet")
    monkeypatch.setattr(weighting.draws, "uniform", lambda shape, like: torch.tensor(ends).to(like))
    for dtype in (torch.float32, f64):
        weights = weighting(shown([1.0] * 3, dtype=dtype))
        assert bool((weights > 0).all()) and float(weights.sum()) == pytest.approx(1, rel=1e-6)


def imtl_l(losses: Sequence[float], scales: Sequence[float]) -> tuple[OuterWeighting, Tensor]:
    """The weighting at the given scales, and the total of the losses."""
    weighting = create("outer", "imtl_l")
    weighting.bind_unnamed(len(losses), f64)
    with torch.no_grad():
        weighting.log_scale.copy_(vector(scales))
    penalty = weighting.penalty()
    assert penalty is not None
    return weighting, (weighting(shown(losses)) * vector(losses)).sum() + penalty.sum()


def test_imtl_l_reproduces_the_trace() -> None:
    """Value, weights and gradient of the scales equal the trace."""
    trace = TRACES["IMTL_L"]
    weighting, total = imtl_l(trace["losses"], trace["log_scale"])
    total.backward()
    assert total.item() == pytest.approx(trace["value"], rel=1e-14)
    np.testing.assert_allclose(weighting.weights().detach().numpy(), trace["weights"], rtol=1e-14)
    np.testing.assert_allclose(weighting.log_scale.grad.numpy(), trace["dlog_scale"], rtol=1e-13)


STCH_CASES = [name for name in TRACES["STCH"]["cases"] if "_mu" in name]


@pytest.mark.parametrize("case", STCH_CASES)
def test_stch_reproduces_two_libraries(case: str) -> None:
    """The coefficients of the task gradients equal TorchJD (linear) and LibMTL (logarithms with a nadir)."""
    row, losses = TRACES["STCH"]["cases"][case], TRACES["STCH"]["losses"]
    mu = float(case.split("mu")[1].split("_")[0])
    linear = case.startswith("torchjd")
    weighting = create("outer", "stch", mu=mu, form="linear" if linear else "log", reference=row.get("nadir"))
    np.testing.assert_allclose(weighting(shown(losses)).numpy(), row["weights"], rtol=1e-11)


def test_stch_warms_up_as_libmtl_does() -> None:
    """Before there is a nadir the total is the sum of the logarithms, and the nadir is the mean of these windows."""
    row, losses = TRACES["STCH"]["cases"]["libmtl_mu1.0_nadir"], TRACES["STCH"]["losses"]
    weighting = create("outer", "stch", warmup=4)
    for factor in (0.5, 1.5, 0.25, 1.75):
        before = factor * vector(row["nadir"])
        torch.testing.assert_close(weighting(Signals(before)), 1 / before, rtol=1e-14, atol=0)
    warm = create("outer", "stch", warmup=4)(shown(losses))
    np.testing.assert_allclose(warm.numpy(), TRACES["STCH"]["cases"]["libmtl_warmup"]["weights"], rtol=1e-14)
    np.testing.assert_allclose(weighting(shown(losses)).numpy(), row["weights"], rtol=1e-12)
    np.testing.assert_allclose(weighting(shown(losses)).numpy(), row["weights"], rtol=1e-12)


def test_uncertainty_follows_a_trace_of_sgd() -> None:
    """50 steps of SGD on constant losses go through the log variances of LibMTL, which starts at -0.5, to log L."""
    trace = TRACES["UW_sgd_const_losses"]
    weighting = create("outer", "uncertainty")
    weighting.dtype = f64
    weighting.bind(tuple(TaskInfo(name, "regression") for name in "abc"))
    with torch.no_grad():
        weighting.log_variance.fill_(trace["init"])
    optimizer = torch.optim.SGD(weighting.parameters(), lr=trace["lr"])
    losses = vector(trace["losses"])
    for row in trace["log_var"]:
        optimizer.zero_grad()
        ((weighting(Signals(losses)) * losses).sum() + weighting.penalty().sum()).backward()
        optimizer.step()
        np.testing.assert_allclose(weighting.log_variance.detach().numpy(), row, rtol=1e-12)
    np.testing.assert_allclose(losses.log().numpy(), trace["fixed_point"], atol=1e-13)


SOFTADAPT_OF_PHYSICSNEMO = TRACES["relatives"]["physicsnemo_softadapt"]


@pytest.mark.parametrize(
    "options",
    [
        {"name": "relobralo", "beta": 0.0, "temperature": 1.0},
        {"name": "relobralo", "beta": 0.0, "temperature": 1.0, "rho": 0.0},
        {"name": "dwa", "temperature": 1.0, "window": 1},
    ],
    ids=["relobralo", "relobralo looking back", "dwa"],
)
def test_what_physicsnemo_calls_softadapt_is_a_relative(options: dict[str, Any]) -> None:
    """K softmax(L(t) / L(t - 1)) is ReLoBRaLo without a memory, and DWA with epochs of one window.

    Two 1e-8 in denominators are all that is between them and the trace: 6e-8 of a weight at most.
    """
    weighting = made(**options)
    before = None
    for row in SOFTADAPT_OF_PHYSICSNEMO:
        losses = row["losses"]
        weights = weighting(shown(losses)).numpy()
        np.testing.assert_allclose(weights, row["weights"], rtol=6e-8)
        if before is not None:
            np.testing.assert_allclose(
                weights, softmax([now / then for now, then in zip(losses, before, strict=True)], 3), rtol=1e-13
            )
            ratios = [now / (then + 1e-8) for now, then in zip(losses, before, strict=True)]
            factors = [math.exp(ratio - max(ratios)) for ratio in ratios]
            theirs = [3 * factor / (math.fsum(factors) + 1e-8) for factor in factors]
            np.testing.assert_allclose(row["weights"], theirs, rtol=1e-13)
        before = losses


# -- TorchJD, run


@given(losses=st.lists(st.floats(0.01, 100), min_size=1, max_size=6), data=st.data())
@settings(max_examples=40)
def test_the_gradients_of_torchjd(losses: list[float], data: st.DataObject) -> None:
    """The weights are the gradients of TorchJD's scalarizers in the losses: GLS, STCH, IMTL-L in s as well, and RLW."""
    count = len(losses)
    np.testing.assert_allclose(
        create("outer", "gls")(shown(losses)).numpy(), gradient(scalarization.GeometricMean(), losses), rtol=1e-11
    )
    mu = data.draw(st.sampled_from([0.01, 0.1, 1.0, 10.0]))
    ideal = data.draw(st.lists(st.floats(-1, 0.01), min_size=count, max_size=count))
    peer = scalarization.STCH(mu, reference=vector(ideal))
    weights = create("outer", "stch", mu=mu, form="linear", reference=ideal)(shown(losses)).numpy()
    np.testing.assert_allclose(weights, gradient(peer, losses), rtol=1e-10, atol=1e-300)

    scales = data.draw(st.lists(st.floats(-3, 3), min_size=count, max_size=count))
    weighting, total = imtl_l(losses, scales)
    total.backward()
    other = scalarization.IMTLL(count).double()
    with torch.no_grad():
        other.log_scale.copy_(vector(scales))
    np.testing.assert_allclose(weighting.weights().detach().numpy(), gradient(other, losses), rtol=1e-13)
    value = other(vector(losses))
    value.backward()
    assert total.item() == pytest.approx(value.item(), rel=1e-12, abs=1e-12)
    torch.testing.assert_close(weighting.log_scale.grad, other.log_scale.grad, rtol=1e-12, atol=1e-12)


def test_rlw_draws_what_torchjd_draws_now() -> None:
    """One seed, one sequence: the global generator of TorchJD's and the weighting's own."""
    weighting = create("outer", "rlw", seed=5)
    with torch.random.fork_rng():
        torch.manual_seed(5)
        for _ in range(6):
            theirs = gradient(scalarization.Random(), [1.0, 2.0, 3.0, 4.0])
            np.testing.assert_allclose(weighting(shown([1.0, 2.0, 3.0, 4.0])).numpy(), theirs, rtol=1e-13)


def test_where_the_peers_fail() -> None:
    """A loss of exactly 0 is a NaN in their GLS, eight losses of 1e-6 are 0 in LibMTL's product of float32; here neither."""
    for mean in (scalarization.GeometricMean(), lambda losses: losses.prod() ** (1 / 2)):
        assert np.isnan(gradient(mean, [1.0, 0.0])).any()
    assert create("outer", "gls")(shown([1.0, 0.0])).tolist() == [1.0, 0.0]
    small = torch.full((8,), 1e-6)
    assert small.prod() ** (1 / 8) == 0
    torch.testing.assert_close(create("outer", "gls")(Signals(small)), torch.full((8,), 1 / 8), rtol=1e-5, atol=0)


def test_imtl_l_is_uncertainty_weighting_in_another_parameter() -> None:
    """Its total at s is twice the total of uncertainty weighting, in its regression form, at -s."""
    losses, scales = [1.0, 2.0, 0.5], [0.3, -0.2, 0.7]
    _, total = imtl_l(losses, scales)
    other = scalarization.UW(3).double()
    with torch.no_grad():
        other.log_var.copy_(-vector(scales))
    assert total.item() == pytest.approx(2 * other(vector(losses)).item(), rel=1e-14)


def test_imtl_l_and_uncertainty_end_at_the_inverse_loss() -> None:
    """SGD on constant losses takes exp(s) to 1 / L, where the gradient equals the gradient of the sum of logarithms."""
    losses = vector([2.0, 0.5, 0.1])
    weighting = create("outer", "imtl_l")
    weighting.bind_unnamed(3, f64)
    optimizer = torch.optim.LBFGS(
        weighting.parameters(), max_iter=200, tolerance_grad=1e-13, tolerance_change=0, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        total = (weighting.weights() * losses).sum() + weighting.penalty().sum()
        total.backward()
        return total

    optimizer.step(closure)
    expected = create("outer", "scale_invariant")(Signals(losses))
    torch.testing.assert_close(weighting.weights().detach(), expected, rtol=1e-9, atol=0)


def test_imtl_l_through_a_criterion() -> None:
    """Only the tasks of a call enter the total, and a warning names a parameter that is in no optimizer."""
    criterion = compose("imtl_l", tasks=["a", "b"]).double()
    with torch.no_grad():
        criterion.outer.log_scale.copy_(vector([0.3, 5.0]))
    total = criterion.combine({"a": vector(2.0).requires_grad_(), "b": None})
    total.backward()
    assert total.item() == pytest.approx(math.exp(0.3) * 2 - 0.3, rel=1e-14)
    np.testing.assert_allclose(criterion.outer.log_scale.grad.numpy(), [math.exp(0.3) * 2 - 1, 0.0], rtol=1e-14)
    (group,) = criterion.param_groups(lr=0.1)
    assert group["params"] == [criterion.outer.log_scale] and group["weight_decay"] == 0
    with pytest.warns(UserWarning, match=r"^imtl_l: the log scales received gradients.*param_groups") as caught:
        for _ in range(40):
            criterion.combine((vector(2.0).requires_grad_(), vector(1.0).requires_grad_())).backward()
    assert len(caught) == 1
    optimizer = torch.optim.SGD(compose("imtl_l", tasks=["a"]).param_groups(lr=0.1), lr=0.1)
    assert optimizer.param_groups[0]["params"][0].shape == (1,)


def test_imtl_l_does_not_warn_when_it_is_in_the_optimizer() -> None:
    """A step of the optimizer between the windows is enough."""
    criterion = compose("imtl_l", tasks=["a", "b"])
    optimizer = torch.optim.SGD(criterion.param_groups(lr=0.1))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(40):
            optimizer.zero_grad()
            criterion.combine((torch.tensor(2.0, requires_grad=True), torch.tensor(1.0, requires_grad=True))).backward()
            optimizer.step()
    assert float(criterion.outer.log_scale[0].detach()) < -0.4


# -- Recurrences in plain Python

Recurrence = Iterator[list[float]]


def plain_slaw(windows: list[list[float]], beta: float) -> Recurrence:
    """Both moments as such, plain means first: the difference a - b^2 in float64."""
    count = len(windows[0])
    a, b = [0.0] * count, [0.0] * count
    for n, losses in enumerate(windows, start=1):
        for i, loss in enumerate(losses):
            if n <= round(1 / (1 - beta)):
                a[i], b[i] = (a[i] * (n - 1) + loss**2) / n, (b[i] * (n - 1) + loss) / n
            else:
                a[i], b[i] = beta * a[i] + (1 - beta) * loss**2, beta * b[i] + (1 - beta) * loss
        yield [1.0] * count if n == 1 else shares([1 / math.sqrt(a[i] - b[i] ** 2) for i in range(count)], count)


def plain_cov(windows: list[list[float]]) -> Recurrence:
    """The ratios of the losses to their means before, and their population variance, from the whole history."""
    count = len(windows[0])
    for n in range(1, len(windows) + 1):
        variation = []
        for i in range(count):
            history = [losses[i] for losses in windows[:n]]
            ratios = [1.0] + [history[t] / (math.fsum(history[:t]) / t) for t in range(1, n)]
            mean = math.fsum(ratios) / n
            variance = math.fsum((ratio - mean) ** 2 for ratio in ratios) / n
            variation.append(math.sqrt(variance + 1e-8) / mean)
        yield [1 / count] * count if n == 1 else shares(variation, 1)


def late_cov(windows: list[list[float]]) -> Recurrence:
    """As the authors' code runs: weights first, from the statistics before; running sums and no history."""
    count = len(windows[0])
    mean_loss, mean_ratio, total = [0.0] * count, [0.0] * count, [0.0] * count
    for t, losses in enumerate(windows):
        ratios = [1.0 if t == 0 else losses[i] / mean_loss[i] for i in range(count)]
        yield (
            [1 / count] * count
            if t <= 1
            else shares([math.sqrt(total[i] / t + 1e-8) / mean_ratio[i] for i in range(count)], 1)
        )
        kept = 1 - 1 / (t + 1)
        for i in range(count):
            mean = kept * mean_ratio[i] + (1 - kept) * ratios[i]
            total[i] += (ratios[i] - mean_ratio[i]) * (ratios[i] - mean)
            mean_ratio[i] = mean
            mean_loss[i] = kept * mean_loss[i] + (1 - kept) * losses[i]


def plain_softadapt(windows: list[list[float]], beta: float, variant: str) -> Recurrence:
    count = len(windows[0])
    yield [1 / count] * count
    for before, losses in itertools.pairwise(windows):
        slopes = [now - then for now, then in zip(losses, before, strict=True)]
        if variant == "normalized":
            size = math.fsum(map(abs, slopes))
            slopes = [slope / size for slope in slopes]
        factors = [math.exp(beta * slope) for slope in slopes]
        if variant == "loss_weighted":
            factors = [f * (now + then) / 2 for f, now, then in zip(factors, losses, before, strict=True)]
        yield shares(factors, 1)


def plain_relobralo(windows: list[list[float]], alpha: float, tau: float, rho: float, seed: int) -> Recurrence:
    """One uniform number a window decides how far back all tasks look."""
    count = len(windows[0])
    generator = torch.Generator().manual_seed(seed)
    weights = [1.0] * count
    for t, losses in enumerate(windows):
        keeps = float(torch.rand((), generator=generator, dtype=f64)) < rho
        if t:
            first = softmax([losses[i] / (tau * windows[0][i]) for i in range(count)], count)
            last = softmax([losses[i] / (tau * windows[t - 1][i]) for i in range(count)], count)
            kept = weights if keeps else first
            weights = [alpha * kept[i] + (1 - alpha) * last[i] for i in range(count)]
        yield weights


@pytest.mark.parametrize("count", [2, 3, 6])
@pytest.mark.parametrize(
    ("options", "reference"),
    [
        ({"name": "slaw"}, lambda windows: plain_slaw(windows, 0.99)),
        ({"name": "slaw", "beta": 0.9}, lambda windows: plain_slaw(windows, 0.9)),
        ({"name": "slaw", "beta": 0.5}, lambda windows: plain_slaw(windows, 0.5)),
        ({"name": "cov"}, plain_cov),
        *(
            (
                {"name": "softadapt", "beta": beta, "variant": variant},
                lambda windows, beta=beta, variant=variant: plain_softadapt(windows, beta, variant),
            )
            for variant in ("plain", "normalized", "loss_weighted")
            for beta in (0.1, -2.0)
        ),
        *(
            (
                {"name": "relobralo", "beta": alpha, "temperature": tau, "rho": rho, "seed": seed},
                lambda windows, args=(alpha, tau, rho, seed): plain_relobralo(windows, *args),
            )
            for alpha, tau, rho, seed in ((0.999, 0.1, 0.999, 0), (0.6, 1.0, 0.5, 3), (0.9, 0.5, 0.0, 1), (0.5, 2.0, 1.0, 2))
        ),
    ],
    ids=lambda value: " ".join(str(part) for part in value.values()) if isinstance(value, dict) else "",
)
def test_30_windows_of_a_recurrence(options: dict[str, Any], reference: Callable[..., Recurrence], count: int) -> None:
    """Every weight of 30 windows agrees with plain Python to 1e-10."""
    windows = falling(count)
    weighting = made(**options)
    seen = []
    for losses, expected in zip(windows, reference(windows), strict=True):
        seen.append(weighting(shown(losses)).numpy().copy())
        np.testing.assert_allclose(seen[-1], expected, rtol=1e-10, atol=1e-300)
    assert np.ptp(np.stack(seen), axis=0).max() > 1e-3, "the weights should move"


def test_cov_is_one_window_ahead_of_the_authors_code() -> None:
    """What their code multiplies the losses of window t + 1 with are the weights of window t."""
    windows = falling()
    weighting = create("outer", "cov")
    ours = [weighting(shown(losses)).numpy() for losses in windows]
    theirs = list(late_cov(windows))
    np.testing.assert_allclose(theirs[0], ours[0], rtol=1e-12)
    np.testing.assert_allclose(theirs[1:], ours[:-1], rtol=1e-9)


def test_slaw_keeps_the_digits_of_a_small_spread() -> None:
    """In float32 the spread of a loss near 1 is right to 1e-3 at 1e-4 of the mean, where a - b^2 has no digit left."""
    rng = np.random.default_rng(0)
    noise = rng.normal(size=(200, 2)) * [1e-4, 1e-3]
    weighting, exact = create("outer", "slaw"), create("outer", "slaw")
    for row in 1.0 + noise:
        weighting(shown(row, dtype=torch.float32))
        exact(shown(torch.tensor(row).float().double().tolist()))
    np.testing.assert_allclose(weighting.weights().numpy(), exact.weights().numpy(), rtol=2e-3)
    assert 5 < float(weighting.weights()[0] / weighting.weights()[1]) < 20


@pytest.mark.parametrize(("dtype", "limit"), [(torch.float32, 1e-4), (f64, 1e-9)])
@pytest.mark.parametrize("unit", [1.0, 1e-24, 1e12])
def test_slaw_estimates_inverse_sizes(unit: float, dtype: torch.dtype, limit: float) -> None:
    """Losses that are multiples of one another get weights in the inverse ratio, also where their squares underflow."""
    weighting = create("outer", "slaw")
    for losses in falling(1):
        weights = weighting(shown([losses[0] * unit, 10 * losses[0] * unit, 100 * losses[0] * unit], dtype=dtype))
    np.testing.assert_allclose(weights.numpy(), shares([1.0, 0.1, 0.01], 3), rtol=limit)


def test_losses_below_1e_30_count_as_1e_30() -> None:
    """What float32 hardly holds changes nothing in float64 either."""
    for name in ("gls", "scale_invariant", "stch"):
        found = [create("outer", name)(shown([low, 1.0])) for low in (1e-40, 1e-35, 1e-30)]
        assert torch.equal(found[0], found[2]) and torch.equal(found[1], found[2])


# -- Edges

EXTREMES = [(1e-12, 1e12, 1.0), (1e12, 1e-12, 1.0), (0.0, 1.0, 1e12), (0.0, 0.0, 1.0), (0.0, 0.0, 0.0), (1e-40, 1.0, 2.0)]


@pytest.mark.parametrize("dtype", [torch.float32, f64])
@pytest.mark.parametrize("way", WAYS)
def test_extreme_losses_leave_weights_and_state_finite(way: str, dtype: torch.dtype) -> None:
    """Losses of 1e-12 and 1e12, of exactly 0 and below the normal numbers, in any order, are never NaN or infinite."""
    weighting = make(way)
    for repeats in (1, 3):
        for losses in (each for each in (*EXTREMES, *reversed(EXTREMES)) for _ in range(repeats)):
            weights = weighting(shown(losses, dtype=dtype)).detach()
            assert bool(torch.isfinite(weights).all()) and bool((weights >= 0).all()), losses
            assert bool(torch.isfinite(weights.sum())), losses
    assert all(bool(torch.isfinite(tensor).all()) for tensor in weighting.buffers())


@pytest.mark.parametrize("way", WAYS)
@given(
    windows=st.lists(st.tuples(st.tuples(*[magnitudes()] * 3), st.tuples(*[st.booleans()] * 3)), min_size=1, max_size=6),
    dtype=st.sampled_from([torch.float32, f64]),
)
@settings(max_examples=15)
def test_any_losses_leave_weights_and_state_finite(way: str, windows: list[Any], dtype: torch.dtype) -> None:
    """Losses from 1e-12 to 1e12 in any order, and tasks that come and go."""
    weighting = make(way)
    for losses, active in windows:
        weights = weighting(shown(losses, active, dtype)).detach()
        assert bool(torch.isfinite(weights).all()) and bool((weights >= 0).all())
        if weighting.total == "1" and all(active):
            assert float(weights.sum()) == pytest.approx(1, rel=1e-5)
        if weighting.total == "K" and all(active):
            assert float(weights.sum()) == pytest.approx(3, rel=1e-5)
    assert all(bool(torch.isfinite(tensor).all()) for tensor in weighting.buffers())


@pytest.mark.parametrize("way", WAYS)
def test_one_task(way: str) -> None:
    """With K = 1 the weight is constant where weights have a sum, and 1 / L where the total is a logarithm."""
    weighting = make(way)
    for loss in (2.0, 0.5, 4.0, 1.0, 0.1, 0.2):
        weight = weighting(shown([loss])).item()
        assert weight == pytest.approx(1 / loss if way in ("scale_invariant", "stch", "stch sharp") else 1, rel=1e-12)


@pytest.mark.parametrize("way", WAYS)
def test_the_first_windows(way: str) -> None:
    """A weighting that needs two windows starts with even weights; one that needs none starts with its formula."""
    weighting = make(way)
    weighting.bind_unnamed(3, f64)
    start = {"K": 1.0, "1": 1 / 3, None: 1 / 3}[weighting.total]
    if way == "imtl_l":
        start = 1.0
    assert weighting.weights().tolist() == [start] * 3
    first = weighting(shown([3.0, 1.0, 0.2])).detach()
    if way in REMEMBERING:
        assert first.tolist() == [start] * 3
        assert weighting(shown([1.0, 0.8, 0.3])).unique().numel() == 3
    elif way not in ("imtl_l", *SHARP):
        assert first.unique().numel() == 3


def without(values: Sequence[Any], index: int) -> list[Any]:
    return [value for place, value in enumerate(values) if place != index]


@pytest.mark.parametrize("gone", [0, 2])
@pytest.mark.parametrize("way", [way for way in MEMORYLESS if not way.startswith("rlw")])
def test_an_absent_task_leaves_the_problem(way: str, gone: int) -> None:
    """Without memory the absent task gets 0, and the others exactly what they get without it, also when it comes back."""
    weighting, smaller = make(way), make(way)
    for step, losses in enumerate(falling(windows=8)):
        active = [index != gone or step in (0, 1, 5) for index in range(3)]
        weights, alone = weighting(shown(losses, active)), smaller(shown(without(losses, gone)))
        if not active[gone]:
            assert weights[gone] == 0
            torch.testing.assert_close(weights[torch.arange(3) != gone], alone, rtol=1e-13, atol=0)


@pytest.mark.parametrize("way", ["rlw", "rlw dirichlet"])
def test_an_absent_task_leaves_the_draw(way: str) -> None:
    """Random weights of the other two sum to 1 and have the spread of a problem of two."""
    weighting, smaller = make(way), make(way, seed=1)
    drawn = torch.stack([weighting(shown([1.0] * 3, [True, False, True])) for _ in range(3_000)])
    alone = torch.stack([smaller(shown([1.0] * 2)) for _ in range(3_000)])
    assert bool((drawn[:, 1] == 0).all())
    np.testing.assert_allclose(drawn.sum(1).numpy(), 1, rtol=1e-14)
    np.testing.assert_allclose(drawn[:, 0].mean(), 0.5, atol=0.03)
    np.testing.assert_allclose(drawn[:, 0].std(), alone[:, 0].std(), rtol=0.06)


@pytest.mark.parametrize("way", REMEMBERING)
def test_an_absent_task_keeps_its_weight_and_state(way: str) -> None:
    """With memory nothing of the absent task moves, and the others share the mass that they had."""
    weighting = make(way)
    for losses in falling(windows=4):
        weighting(shown(losses))
    before = {name: tensor.clone() for name, tensor in weighting.named_buffers()}
    for losses in falling(windows=8)[4:]:
        weighting(shown(losses, [True, False, True]))
    for name, tensor in weighting.named_buffers():
        assert torch.equal(tensor[1], before[name][1]), name
    now, then = weighting.weights(), before["current"]
    torch.testing.assert_close(now[[0, 2]].sum(), then[[0, 2]].sum(), rtol=1e-12, atol=0)
    assert not torch.equal(now, then)
    for _ in range(2):
        weights = weighting(shown([1.0, 2.0, 3.0]))
    assert float(weights.sum()) == pytest.approx(3 if weighting.total == "K" else 1, rel=1e-14)


@pytest.mark.parametrize("way", REMEMBERING)
def test_a_task_that_starts_late_waits_for_its_own_windows(way: str) -> None:
    """The others go on with what they had, and the late one starts from even weights when it has had two windows."""
    weighting, two = make(way), make(way)
    windows = falling(windows=10)
    for losses in windows[:4]:
        weights = weighting(shown(losses, [True, False, True]))
        pair = two(shown(without(losses, 1)))
        total = 3 if weighting.total == "K" else 1
        assert float(weights[1]) == pytest.approx(total / 3, rel=1e-14)
        torch.testing.assert_close(weights[[0, 2]] / weights[[0, 2]].sum(), pair / pair.sum(), rtol=1e-11, atol=0)
    assert float(weighting(shown(windows[4]))[1]) == pytest.approx(total / 3, rel=1e-14)
    assert float(weighting(shown(windows[5]))[1]) != pytest.approx(total / 3, rel=1e-9)


def test_stch_waits_for_each_task_of_its_own() -> None:
    """A task in its warm-up beside others that are past it keeps 1 / L, the others have what their own problem has."""
    weighting, two = (create("outer", "stch", warmup=2) for _ in range(2))
    for losses in ([2.0, 9.0, 1.0], [4.0, 9.0, 1.0], [3.0, 5.0, 2.0]):
        weights = weighting(shown(losses, [True, losses[1] == 5.0, True]))
        pair = two(shown(without(losses, 1)))
    assert float(weights[1]) == pytest.approx(1 / 5, rel=1e-14)
    torch.testing.assert_close(weights[[0, 2]], pair, rtol=1e-14, atol=0)
    assert not torch.allclose(pair, vector([1 / 3, 1 / 2]))
    assert weighting.diagnostics()["nadir"].tolist() == [3.0, 5.0, 1.0]


@pytest.mark.parametrize("way", POSITIVE)
def test_a_loss_of_exactly_zero_is_an_absent_task(way: str) -> None:
    """It has no gradient that a weight could scale, and takes nothing from the others."""
    zero, absent = make(way), make(way)
    for step, losses in enumerate(falling(windows=8)):
        gone = step in (0, 3, 4, 7)
        left = zero(shown([0.0 if gone else losses[0], *losses[1:]]))
        right = absent(shown(losses, [not gone, True, True]))
        assert torch.equal(left, right)
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(zero.buffers(), absent.buffers(), strict=True))


@pytest.mark.parametrize("way", WAYS)
def test_no_task_at_all(way: str) -> None:
    """With every task absent, or in those that need a positive loss with every loss 0, the weights stay as they are."""
    weighting = make(way)
    for losses in falling(windows=4):
        weighting(shown(losses))
    before = weighting.weights().detach().clone()
    assert torch.equal(weighting(shown([1.0, 2.0, 3.0], [False] * 3)).detach(), before)
    if way in POSITIVE:
        assert torch.equal(weighting(shown([0.0] * 3)), before)


@pytest.mark.parametrize("way", [way for way in WAYS if not way.startswith(("rlw", "imtl_l", *SHARP))])
def test_units_of_the_losses(way: str) -> None:
    """The claims on scaling and balance hold from the first window on, and where none is made the weights do change."""
    weighting = make(way)
    plain, all_, one = make(way), make(way), make(way)
    same_scaled = same_balanced = True
    for step, losses in enumerate(falling(windows=6)):
        values = vector(losses)
        ours, scaled = plain(Signals(values)), all_(Signals(values * 7.3))
        expected = ours / 7.3 if weighting.scaling == "inverse" else ours
        same_scaled &= torch.allclose(scaled, expected, rtol=1e-9, atol=1e-12)
        units = vector([1.0, 5.0, 1e-3])
        ratio = one(Signals(values * units)) * units / ours
        # SLAW starts with even weights whatever the losses, and balances from its second window on.
        same_balanced &= torch.allclose(ratio, ratio[0].expand(3), rtol=1e-9) or (way == "slaw" and step == 0)
    assert same_scaled == (weighting.scaling is not None)
    assert same_balanced == weighting.balances


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("rlw", {"distribution": "uniform"}, "distribution.*should be one of 'normal', 'dirichlet'.*uniform"),
        ("rlw", {"seed": -1}, "seed.*integer in"),
        ("uw_so", {"temperature": 0.0}, "temperature.*in \\(0.0"),
        ("stch", {"mu": 0.0}, "mu.*in \\(0.0"),
        ("stch", {"form": "exp"}, "form.*should be one of"),
        ("stch", {"warmup": 0}, "warmup.*integer in \\[1"),
        ("stch", {"reference": [1.0, 0.0]}, "reference.*in \\(0.0.*reference=0.0"),
        ("stch", {"reference": "12"}, "reference.*one number per task.*'12'"),
        ("stch", {"reference": 3.0}, "reference.*one number per task.*3.0"),
        ("slaw", {"beta": 1.0}, "beta.*in \\[0.0, 1.0\\)"),
        ("softadapt", {"variant": "soft"}, "variant.*should be one of"),
        ("softadapt", {"beta": math.inf}, "beta.*a number"),
        ("relobralo", {"beta": 1.1}, "beta.*in \\[0.0, 1.0\\]"),
        ("relobralo", {"temperature": 0.0}, "temperature.*in \\(0.0"),
        ("relobralo", {"rho": -0.1}, "rho.*in \\[0.0, 1.0\\]"),
        ("relobralo", {"seed": 1.5}, "seed.*integer"),
    ],
)
def test_options_out_of_range(name: str, options: dict[str, Any], message: str) -> None:
    """An option outside its range is refused by the constructor, by name."""
    with pytest.raises(OptionError, match=message):
        create("outer", name, **options)


def test_a_reference_of_stch_has_one_number_for_each_task() -> None:
    """By sequence or by name; what fits neither is refused when the tasks are known. The linear form takes any number."""
    by_name = create("outer", "stch", reference={"b": 4.0, "a": 2.0})
    by_name.bind((TaskInfo("a"), TaskInfo("b")))
    assert by_name.given.tolist() == [2.0, 4.0]
    assert eval(repr(by_name), {"STCH": type(by_name)}).options() == by_name.options()
    with pytest.raises(OptionError, match=r"should name the tasks \['a', 'c'\]. Found \['b', 'a'\]"):
        create("outer", "stch", reference={"b": 4.0, "a": 2.0}).bind((TaskInfo("a"), TaskInfo("c")))
    with pytest.raises(OptionError, match=r"should be 3 numbers.*Found \[1.0, 2.0\]"):
        create("outer", "stch", reference=[1.0, 2.0])(shown([1.0] * 3))
    weights = create("outer", "stch", form="linear", reference=[-1.0, 0.0])(shown([-1.0, 0.0]))
    np.testing.assert_allclose(weights.numpy(), [0.25, 0.25], rtol=1e-14)


@pytest.mark.parametrize("way", WAYS)
def test_losses_that_can_be_negative_are_refused_where_they_cannot_be_used(way: str) -> None:
    """A criterion refuses a negative loss for what takes logarithms or ratios, and takes it for what does neither."""
    named = WAYS[way]
    criterion = compose(named, tasks=["a", "b"])
    losses = (torch.tensor(-1.0, requires_grad=True), torch.tensor(1.0, requires_grad=True))
    if way in ("rlw", "rlw dirichlet", "stch linear", "stch maximum", "softadapt", "softadapt normalized"):
        criterion.combine(losses).backward()
    else:
        with pytest.raises(ValueError, match="negative"):
            criterion.combine(losses)


def test_a_given_reference_of_stch_is_for_one_unit_and_one_task() -> None:
    """With references given, a loss in another unit is another lag, and tasks cannot change places; the nadir follows."""
    given, learned = create("outer", "stch", mu=0.5, reference=[1.0, 2.0]), create("outer", "stch", mu=0.5)
    assert (learned.balances, learned.symmetric) == (True, True)
    assert (given.balances, given.symmetric, given.scaling) == (False, False, "inverse")
    plain, rescaled = (
        given(Signals(torch.tensor([2.0, 0.5]))),
        create("outer", "stch", mu=0.5, reference=[1.0, 2.0])(Signals(torch.tensor([20.0, 0.5]))),
    )
    assert not torch.allclose(rescaled[0] / rescaled[1] * 10, plain[0] / plain[1])


@pytest.mark.parametrize("beta", [0.0, 1e-9, 0.5])
def test_slaw_survives_a_loss_that_falls_by_orders(beta: float) -> None:
    """In float32 a mean that goes from 1e12 to 1e-6 must not round to 0 on the way: the spread would be 0, too."""
    weighting = create("outer", "slaw", beta=beta)
    for losses in ([1e12, 1e12, 1.0], [1e12, 1e12, 2.0], [1e-6, 1e-6, 1.0], [1e-6, 2e-6, 1.0], [1e-6, 1e-6, 1.0]):
        weights = weighting(Signals(torch.tensor(losses)))
        assert bool((torch.isfinite(weights) & (weights >= 0)).all()), weights
        assert math.isclose(float(weights.sum()), 3.0, rel_tol=1e-6)
    assert bool((weighting.mean > 0).all())


def test_a_look_back_that_is_certain_never_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    """rho = 1 looks at the window before only, also where the largest number of the generator would round to 1."""
    monkeypatch.setattr(torch, "rand", lambda shape, **options: torch.full(shape, 1 - 2**-53, dtype=f64))
    weighting = create("outer", "relobralo", beta=1.0, rho=1.0)
    for losses in ([2.0, 5.0], [1.0, 5.0], [0.5, 5.0]):
        weights = weighting(Signals(torch.tensor(losses)))
    assert weights.tolist() == [1.0, 1.0]
