"""Weightings from gradient norms against the formulas written out, and against numbers of other libraries.

``reference_vectors.json`` holds LibMTL's own DB-MTL (git 4336804), and traces of jaxpi, PhysicsNeMo and GradNorm on one
quadratic problem, written down from their formulas in float64; ``outer_golden.json`` holds rows with 12 digits.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sampling import pairwise
from strategies import losses, norms
from torch import Tensor

from mtl_axes import Signals, TaskInfo, compose, create
from mtl_axes.errors import OptionError

HERE = Path(__file__).parent
GOLDEN: dict[str, Any] = json.loads((HERE / "outer_golden.json").read_text())
PEERS: dict[str, Any] = json.loads((HERE / "reference_vectors.json").read_text())
# Of the two matrices in the golden file.
DB_MTL = {"K2_torchjd": [2.90593262903, 2.0], "K3_conflict": [0.689202437605, 2.51661147842, 10.0]}
f64 = torch.float64


def vector(values: Any, dtype: torch.dtype = f64) -> Tensor:
    return torch.tensor(values, dtype=dtype)


class SpecifiedGABA:
    """GABA as one function of the signals, in the order of operations of its specification, without any stage."""

    def __init__(self, count: int, dtype: torch.dtype, *, beta: float, floor: float, warmup: int, form: str) -> None:
        self.beta, self.floor, self.warmup, self.form = beta, floor, warmup, form
        self.ema = torch.full((count,), 1.0 / count, dtype=dtype)

    def __call__(self, signals: Signals) -> Tensor:
        norms, active = signals.norms, signals.active
        assert norms is not None
        count = active.sum()
        if self.form == "complement":
            total = torch.where(active, norms, 0.0).sum()
            raw = (total - norms) / ((count - 1).clamp_min(1) * total)
        else:
            inverse = torch.where(active, 1 / norms, 0.0)
            raw = inverse / inverse.sum()
        mass = torch.where(active, self.ema, 0.0).sum()
        mass = torch.where(active.all(), 1.0, mass)
        decay = self.beta**signals.elapsed
        ema = decay * self.ema + (1 - decay) * raw * mass
        ema = ema * (mass / torch.where(active, ema, 0.0).sum())
        warm = signals.step >= self.warmup
        self.ema = torch.where(active & (count > 1) & warm & torch.isfinite(ema), ema, self.ema)
        floored = self.ema.clamp_min(self.floor)
        return torch.where(warm, floored / floored.sum(), 1.0 / len(self.ema))


@st.composite
def windows(draw: st.DrawFn, count: int, dtype: torch.dtype) -> Signals:
    """A window of any norms, zero ones among them, tasks that are absent, and any gaps since the last measurement."""
    drawn = [draw(st.one_of(st.just(0.0), st.floats(-12, 12).map(lambda e: 10.0**e))) for _ in range(count)]
    active = [draw(st.integers(0, 3)) > 0 for _ in range(count)]
    away = draw(st.one_of(st.just([1] * count), st.lists(st.integers(1, 60), min_size=count, max_size=count)))
    return Signals(
        torch.ones(count, dtype=dtype),
        norms=vector(drawn, dtype),
        active=torch.tensor(active),
        elapsed=vector(away, dtype),
        step=draw(st.integers(0, 5)),
    )


@given(data=st.data(), count=st.integers(1, 6), dtype=st.sampled_from([torch.float32, torch.float64]))
@settings(max_examples=120)
def test_gaba_as_a_composition_equals_its_specification_bit_for_bit(
    data: st.DataObject, count: int, dtype: torch.dtype
) -> None:
    """Warm-up, floor, average and raw weights, each a stage, give the very bits of the specification as one function."""
    options = {
        "beta": data.draw(st.sampled_from([0.0, 0.3, 0.97, 0.99])),
        "floor": data.draw(st.sampled_from([0.0, 0.05, 0.9])) / count,
        "warmup": data.draw(st.integers(0, 3)),
        "form": data.draw(st.sampled_from(["complement", "inverse"])),
    }
    weighting, specified = create("outer", "gaba", **options), SpecifiedGABA(count, dtype, **options)
    for _ in range(data.draw(st.integers(1, 6))):
        signals = data.draw(windows(count, dtype))
        assert torch.equal(weighting(signals), specified(signals))
        assert torch.equal(weighting.ema, specified.ema)
        assert torch.equal(weighting.diagnostics()["ema"], specified.ema)
        assert torch.equal(weighting.diagnostics()["floor_active"], specified.ema < options["floor"])
    assert weighting.weights().dtype == dtype


@pytest.mark.parametrize(
    ("count", "form", "dtype"), pairwise([2, 3, 6], ["complement", "inverse"], [torch.float32, torch.float64])
)
def test_gaba_stays_on_its_specification_over_a_long_run(count: int, form: str, dtype: torch.dtype) -> None:
    """After 600 windows of norms that drift over six orders of magnitude, with tasks coming and going, no bit differs."""
    generator = torch.Generator().manual_seed(count)
    options = {"beta": 0.98, "floor": 0.05, "warmup": 20, "form": form}
    weighting, specified = create("outer", "gaba", **options), SpecifiedGABA(count, dtype, **options)
    at_floor = 0
    for step in range(600):
        drift = torch.linspace(-3, 3, count, dtype=f64) * step / 600
        drawn = (10 ** (drift + torch.randn(count, generator=generator, dtype=f64) / 2)).to(dtype)
        active = torch.rand(count, generator=generator) < 0.9
        away = torch.randint(1, 4, (count,), generator=generator).to(dtype)
        signals = Signals(torch.ones(count, dtype=dtype), norms=drawn, active=active, elapsed=away, step=step)
        assert torch.equal(weighting(signals), specified(signals))
        at_floor += bool(weighting.diagnostics()["floor_active"].any())
    assert at_floor > 0


def test_gaba_is_the_composition_that_its_page_names() -> None:
    """The four parts, put together by hand, are GABA, bit for bit."""
    raw = {"name": "inverse_norm", "form": "complement"}
    average = {"name": "ema", "base": raw, "beta": 0.9}
    by_hand = create("outer", "warmup", base={"name": "floor", "base": average, "floor": 0.1}, windows=3)
    whole = create("outer", "gaba", beta=0.9, floor=0.1, warmup=3)
    for step in range(40):
        signals = Signals(torch.ones(3), norms=torch.tensor([1e4, 1.0, 2.0 + step]), step=step)
        assert torch.equal(by_hand(signals), whole(signals))
    assert whole.state_dict().keys() == by_hand.state_dict().keys()
    assert bool(whole.diagnostics()["floor_active"][0])


@pytest.mark.parametrize("case", GOLDEN["gaba"])
@pytest.mark.parametrize(
    ("name", "options", "key"),
    [
        ("inverse_norm", {}, "inverse_norm"),
        ("inverse_norm", {"form": "complement"}, "gaba_complement_raw"),
        ("db_mtl", {}, "db_mtl_beta0"),
    ],
)
def test_norm_weightings_reproduce_the_golden_rows(case: str, name: str, options: dict[str, Any], key: str) -> None:
    """Both forms of the inverse norm and DB-MTL agree with rows of 12 digits, from norms and from a Gramian."""
    row = {**GOLDEN["gaba"][case], "db_mtl_beta0": DB_MTL[case]}
    for shown in ({"norms": vector(row["norms"])}, {"gramian": vector(row["G"])}):
        weights = create("outer", name, **options)(Signals(vector(row["losses"]), **shown))
        np.testing.assert_allclose(weights.numpy(), row[key], rtol=2e-11)


@given(data=st.data())
@settings(max_examples=40)
def test_two_tasks_have_one_inverse_norm(data: st.DataObject) -> None:
    """For K = 2 both forms, GABA without its stages, and DB-MTL up to scale are one weighting, for any norms and losses."""
    signals = Signals(vector(data.draw(losses(2))), norms=vector(data.draw(norms(2))))
    inverse = create("outer", "inverse_norm")(signals)
    largest = float(inverse.max())
    for other in (
        create("outer", "inverse_norm", form="complement"),
        create("outer", "gaba", beta=0.0, floor=0.0, warmup=0),
        create("outer", "gaba", beta=0.0, floor=0.0, warmup=0, form="inverse"),
    ):
        # The smaller weight of the complement is a difference of two sums, exact to a rounding of the larger one.
        torch.testing.assert_close(other(signals), inverse, rtol=1e-12, atol=1e-15 * largest)
    scaled = create("outer", "db_mtl")(signals)
    torch.testing.assert_close(scaled / scaled.sum(), inverse, rtol=1e-12, atol=0)
    pull = inverse * signals.norms
    torch.testing.assert_close(pull[0], pull[1], rtol=1e-12, atol=0)


def test_alone_and_absent_tasks_of_the_inverse_norm() -> None:
    """A lone task gets 1, an absent one 0, and with no task at all the weights stay, in both forms."""
    for form in ("inverse", "complement"):
        weighting = create("outer", "inverse_norm", form=form)
        shown = {"norms": vector([4.0, 1.0, 2.0])}
        assert float(weighting(Signals(vector([1.0] * 3), **shown)).min()) > 0
        two = weighting(Signals(vector([1.0] * 3), active=torch.tensor([True, False, True]), **shown))
        np.testing.assert_allclose(two.numpy(), [1 / 3, 0, 2 / 3], rtol=1e-15)
        nobody = weighting(Signals(vector([1.0] * 3), active=torch.tensor([False] * 3), **shown))
        assert torch.equal(nobody, two)
        alone = weighting(Signals(vector([1.0] * 3), active=torch.tensor([False, True, False]), **shown))
        assert alone.tolist() == [0.0, 1.0, 0.0]


PROBLEM = PEERS["traces"]["problem"]


def quadratics(theta: Tensor) -> tuple[list[Tensor], Tensor]:
    """The losses 0.5 mean((A_k theta - b_k)^2) of the traces, and their gradients (K, 3)."""
    theta = theta.clone().requires_grad_()
    found = [
        (vector(matrix) @ theta - vector(offset)).square().mean() / 2
        for matrix, offset in zip(PROBLEM["A"], PROBLEM["b"], strict=True)
    ]
    return found, torch.stack([torch.autograd.grad(loss, theta)[0] for loss in found])


def path(name: str) -> Iterator[tuple[dict[str, Any], list[Tensor], Tensor]]:
    """The rows of a trace with the losses and gradients there: gradient descent with the trace's own weights."""
    theta = vector(PROBLEM["theta0"])
    for row in PEERS["traces"]["relatives"][name]:
        found, gradients = quadratics(theta)
        np.testing.assert_allclose([float(loss.detach()) for loss in found], row["losses"], rtol=1e-9)
        np.testing.assert_allclose(gradients.norm(dim=1).numpy(), row["norms"], rtol=1e-9)
        yield row, found, gradients
        theta = theta - 0.02 * vector(row["weights"]) @ gradients


def test_inverse_norm_is_the_jaxpi_scheme_up_to_scale() -> None:
    """What jaxpi averages, mean(n) / (n_i + 1e-5 mean(n)), is the inverse norm times a number, over 12 steps of descent."""
    weighting, before = create("outer", "inverse_norm"), np.ones(3)
    for row, found, gradients in path("jaxpi_grad_norm"):
        weights = weighting(Signals(torch.stack(found).detach(), norms=gradients.norm(dim=1)))
        after = np.array(row["weights"])
        raw = (after - 0.9 * before) / 0.1
        exact = 1 / (1 / raw - 1e-5)
        np.testing.assert_allclose(weights.numpy(), exact / exact.sum(), rtol=1e-9)
        before = after


def test_lr_annealing_reproduces_the_physicsnemo_trace() -> None:
    """Given mean absolute entries in the place of norms, and the 1e-8 added there, it takes PhysicsNeMo's 12 steps."""
    weighting = create("outer", "lr_annealing", main=0, beta=0.99)
    for row, found, gradients in path("physicsnemo_lrannealing"):
        sizes = gradients.abs().mean(1) + vector([0.0, 1e-8, 1e-8])
        weights = weighting(Signals(torch.stack(found).detach(), norms=sizes))
        np.testing.assert_allclose(weights.numpy()[1:], row["weights"][1:], rtol=1e-12)
        assert float(weights[0]) == 1
    assert max(row["weights"]) > 1.25


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("name", "options"), [("lr_annealing", {"beta": 0.0}), ("metabalance", {"r": 1.0, "beta": 0.0})])
def test_a_norm_that_dwarfs_the_main_one_keeps_its_weight(name: str, options: dict[str, Any], dtype: torch.dtype) -> None:
    """The ratio of the norms is the weight to the last digits, from the first window on, however small it is."""
    for ratio in (1e-3, 1e-9, 1e-20):
        weighting = create("outer", name, main=0, **options)
        shown = Signals(torch.ones(2, dtype=dtype), norms=torch.tensor([1.0, 1 / ratio], dtype=dtype))
        torch.testing.assert_close(weighting(shown), torch.tensor([1.0, ratio], dtype=dtype), rtol=2e-7, atol=0)


def libmtl_update(weights: Tensor, norms_: Tensor, losses_: Tensor, gradients: Tensor) -> np.ndarray:
    """LibMTL's first update of DB-MTL in terms of weights for losses + 1e-8.

    Its average of gradients starts at zero, so that beta = 0.9 leaves a tenth of each; the size of that is divided by
    itself plus 1e-8.
    """
    average = 0.1 * norms_ / (losses_ + 1e-8)
    return 0.1 * ((weights * average / (average + 1e-8)) @ gradients).numpy()


@pytest.mark.parametrize("jacobian", ["well", "conflict", "rankdef", "readme"])
def test_db_mtl_is_libmtls_first_update(jacobian: str) -> None:
    """The gradient that LibMTL leaves after its first update follows from the weights, on four Jacobians."""
    case = PEERS["jacobians"][jacobian]
    losses_, norms_, gradients = vector(case["losses"]), vector(case["row_norms"]), vector(case["J"])
    weights = create("outer", "db_mtl")(Signals(losses_ + 1e-8, gramian=vector(case["gramian"])))
    update = libmtl_update(weights, norms_, losses_, gradients)
    np.testing.assert_allclose(update, PEERS["libmtl"][jacobian]["DB_MTL_step1"]["grad"], rtol=1e-12, atol=1e-15)
    torch.testing.assert_close(weights * norms_, (weights * norms_).max().expand_as(weights), rtol=1e-12, atol=0)


def test_db_mtl_begins_with_the_first_step_of_the_trace() -> None:
    """The first gradient of LibMTL's trace on the quadratic problem follows from the weights, too."""
    first, (found, gradients) = PEERS["traces"]["DB_MTL"]["trace"][0], quadratics(vector(PROBLEM["theta0"]))
    losses_, norms_ = torch.stack(found).detach(), gradients.norm(dim=1)
    weights = create("outer", "db_mtl")(Signals(losses_ + 1e-8, norms=norms_))
    np.testing.assert_allclose(libmtl_update(weights, norms_, losses_, gradients), first["grad"], rtol=1e-10)


class WrittenMetaBalance:
    """MetaBalance as its authors' code has it, on whole norms: averages from zero, main task first."""

    def __init__(self, count: int, r: float, beta: float) -> None:
        self.r, self.beta, self.average = r, beta, np.zeros(count)

    def __call__(self, norms_: np.ndarray) -> np.ndarray:
        self.average = self.beta * self.average + (1 - self.beta) * norms_
        return self.average[0] / self.average * self.r + (1 - self.r)


@given(data=st.data(), count=st.integers(1, 5), r=st.floats(0, 1), beta=st.floats(0, 0.99))
@settings(max_examples=60)
def test_metabalance_is_the_authors_code_on_whole_norms(data: st.DataObject, count: int, r: float, beta: float) -> None:
    """Norms over 24 orders of magnitude give what averages from zero give: the factor that they lack is common to all."""
    weighting, written = create("outer", "metabalance", main=0, r=r, beta=beta), WrittenMetaBalance(count, r, beta)
    for _ in range(5):
        drawn = data.draw(norms(count))
        weights = weighting(Signals(vector([1.0] * count), norms=vector(drawn)))
        np.testing.assert_allclose(weights.numpy(), written(np.array(drawn)), rtol=1e-10)
        assert float(weights[0]) == 1


def test_metabalance_at_its_ends() -> None:
    """At r = 1 without memory every weighted norm is the main one; at r = 0 the weights are 1."""
    norms_ = vector([4.0, 0.5, 30.0])
    signals = Signals(vector([1.0] * 3), norms=norms_)
    full = create("outer", "metabalance", main=0, r=1.0, beta=0.0)(signals)
    np.testing.assert_allclose((full * norms_).numpy(), [4.0] * 3, rtol=1e-14)
    assert create("outer", "metabalance", main=0, r=0.0)(signals).tolist() == [1.0] * 3


@pytest.mark.parametrize("name", ["lr_annealing", "metabalance"])
class TestMainTask:
    """What weightings with a main task share."""

    def test_the_main_task_is_found_by_name_or_position(self, name: str) -> None:
        """A name stands for the task wherever it is, a position for the task there."""
        tasks = (TaskInfo("data"), TaskInfo("residual"), TaskInfo("boundary"))
        by_name, by_position = create("outer", name, main="residual"), create("outer", name, main=1)
        for weighting in (by_name, by_position):
            weighting.dtype = f64
            weighting.bind(tasks)
        signals = Signals(vector([1.0] * 3), norms=vector([1.0, 2.0, 8.0]))
        weights = by_name(signals)
        assert torch.equal(weights, by_position(signals))
        assert weights[1] == 1 and weights[0] > 1 and weights[2] < 1

    def test_an_unknown_main_task_is_refused_at_compose(self, name: str) -> None:
        """A name or a position that no task has is an error before any loss is computed."""
        for main in ("c", 2):
            with pytest.raises(OptionError, match=rf"`main` should be one of the tasks \['a', 'b'\].*Found main={main!r}"):
                compose({"name": name, "main": main}, tasks=["a", "b"])
        for main in (-1, True, "", None, 1.0):
            with pytest.raises(OptionError, match="`main` should be the name of a task, or its position"):
                create("outer", name, main=main)

    def test_without_the_main_task_every_weight_stays(self, name: str) -> None:
        """No weight moves while the main task is absent, and an absent task's own never does; later all go on."""
        weighting = create("outer", name, main=0, beta=0.5)
        shown = {"norms": vector([1.0, 2.0, 8.0])}
        weights = weighting(Signals(vector([1.0] * 3), **shown))
        for gone in range(2):
            active = torch.arange(3) != gone
            later = weighting(Signals(vector([1.0] * 3), norms=vector([5.0, 1.0, 1.0]), active=active))
            moved = (later != weights).tolist()
            assert moved == ([False] * 3 if gone == 0 else [False, False, True])
            weights = later
        assert weighting(Signals(vector([1.0] * 3), **shown))[1] != weights[1]

    def test_the_decay_covers_the_windows_elapsed(self, name: str) -> None:
        """Measured every third window, it moves as three windows of the same norms would move it."""
        often, seldom = create("outer", name, main=0, beta=0.8), create("outer", name, main=0, beta=0.8)
        first, norms_ = {"norms": vector([1.0, 3.0])}, vector([2.0, 1.0])
        often(Signals(vector([1.0] * 2), **first)), seldom(Signals(vector([1.0] * 2), **first))
        for _ in range(3):
            often(Signals(vector([1.0] * 2), norms=norms_))
        seldom(Signals(vector([1.0] * 2), norms=norms_, elapsed=vector([3.0] * 2)))
        torch.testing.assert_close(seldom.weights(), often.weights(), rtol=1e-13, atol=0)


def test_lr_annealing_ends_at_equal_norms() -> None:
    """Shown constant norms it ends where every weighted norm is the main one."""
    weighting, norms_ = create("outer", "lr_annealing", main=1), vector([4.0, 0.5, 30.0])
    for _ in range(400):
        weights = weighting(Signals(vector([1.0] * 3), norms=norms_))
    np.testing.assert_allclose((weights * norms_).numpy(), [0.5] * 3, rtol=1e-12)


def test_gradnorm_follows_the_gradients_of_libmtls_trace() -> None:
    """At the weights and losses of 30 steps, the gradient of the logits is the one that LibMTL's autograd finds."""
    trace = PEERS["traces"]["GradNorm_small_lr"]
    theta, first = vector(PROBLEM["theta0"]), vector(trace["libmtl"][0]["losses"])
    for row in trace["libmtl"]:
        found, gradients = quadratics(theta)
        weighting = create("outer", "gradnorm", alpha=trace["alpha"])
        weighting.bind_unnamed(3, f64)
        weighting.first_loss.copy_(first), weighting.seen.fill_(True)
        weighting.logits.copy_(vector(row["weights"]).log())
        weighting(Signals(torch.stack(found).detach(), norms=gradients.norm(dim=1)))
        # The first moment of Adam is a tenth of its first gradient.
        np.testing.assert_allclose(10 * weighting.moment1.numpy(), row["dloss_scale"], rtol=1e-9)
        total = vector(row["weights"]) @ gradients
        np.testing.assert_allclose(total.numpy(), row["grad"], rtol=1e-9)
        theta = theta - trace["lr_model"] * total
