"""Outer weightings against independent references: numpy, autograd, torch.optim, and traces of other libraries.

``outer_golden.json`` holds rows computed once in float64: Gramian methods on two fixed matrices, and traces of LibMTL (git
4336804) and TorchJD 0.18.0 for DWA and uncertainty weighting.
"""

from __future__ import annotations

import copy
import json
import math
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import batch_for, losses, model_for, norms, plans
from torch import nn

from mtl_axes import Signals, TaskInfo, compose, create
from mtl_axes.errors import OptionError

GOLDEN: dict[str, Any] = json.loads((Path(__file__).parent / "outer_golden.json").read_text())
f64 = torch.float64


def vector(values: Any) -> torch.Tensor:
    return torch.tensor(values, dtype=f64)


class NumpyGABA:
    """The definition of GABA, written out in numpy with loops."""

    def __init__(self, count: int, beta: float, floor: float, warmup: int, form: str) -> None:
        self.beta, self.floor, self.warmup, self.form = beta, floor, warmup, form
        self.ema = np.full(count, 1 / count)

    def __call__(self, step: int, norms: np.ndarray, active: np.ndarray, elapsed: np.ndarray) -> np.ndarray:
        count = len(self.ema)
        if step < self.warmup:
            return np.full(count, 1 / count)
        members = [i for i in range(count) if active[i]]
        if len(members) >= 2:
            mass = math.fsum(self.ema[i] for i in members) if len(members) < count else 1.0
            total = math.fsum(norms[i] for i in members)
            inverse = math.fsum(1 / norms[i] for i in members)
            before = self.ema.copy()
            for i in members:
                if self.form == "complement":
                    raw = (total - norms[i]) / ((len(members) - 1) * total)
                else:
                    raw = (1 / norms[i]) / inverse
                decay = self.beta ** elapsed[i]
                self.ema[i] = decay * before[i] + (1 - decay) * raw * mass
            moved = math.fsum(self.ema[i] for i in members)
            for i in members:
                self.ema[i] *= mass / moved
        floored = np.maximum(self.ema, self.floor)
        return floored / floored.sum()


@pytest.mark.parametrize("form", ["complement", "inverse"])
@pytest.mark.parametrize("count", [2, 3, 5])
@pytest.mark.parametrize("ragged", [False, True])
def test_gaba_equals_a_numpy_reference(form: str, count: int, ragged: bool) -> None:
    """400 windows of random norms over eleven orders of magnitude, with tasks coming and going, agree to 1e-12."""
    rng = np.random.default_rng(count)
    options = {"beta": 0.97, "floor": 0.6 / count, "warmup": 20, "form": form}
    weighting, reference = create("outer", "gaba", **options), NumpyGABA(count, **options)
    at_floor = 0
    for step in range(400):
        drawn = 10 ** rng.uniform(-3, 3, count) * np.geomspace(1e5, 1, count)
        active = rng.random(count) < 0.7 if ragged else np.ones(count, dtype=bool)
        elapsed = rng.integers(1, 6, count) if ragged else np.ones(count)
        weights = weighting(
            Signals(
                vector([1.0] * count), norms=vector(drawn), active=torch.tensor(active), elapsed=vector(elapsed), step=step
            )
        )
        np.testing.assert_allclose(weights.numpy(), reference(step, drawn, active, elapsed), rtol=1e-12, atol=0)
        at_floor += bool((weighting.diagnostics()["floor_active"]).any())
    np.testing.assert_allclose(weighting.ema.numpy(), reference.ema, rtol=1e-12, atol=0)
    assert at_floor > 0


@pytest.mark.parametrize("case", GOLDEN["gaba"])
@pytest.mark.parametrize(("form", "key"), [("complement", "gaba_complement_raw"), ("inverse", "inverse_norm")])
def test_gaba_reproduces_the_golden_rows(case: str, form: str, key: str) -> None:
    """Without average, floor and warm-up the weights are the instantaneous form; the golden rows have 12 digits."""
    row = GOLDEN["gaba"][case]
    weighting = create("outer", "gaba", beta=0.0, floor=0.0, warmup=0, form=form)
    weights = weighting(Signals(vector(row["losses"]), gramian=vector(row["G"])))
    np.testing.assert_allclose(weights.numpy(), row[key], rtol=1e-11)


@pytest.mark.parametrize("case", GOLDEN["gaba"])
def test_gaba_floor_reproduces_the_golden_rows(case: str) -> None:
    """A floor of 0.05 leaves the golden rows, which lie above it, as they are."""
    row = GOLDEN["gaba"][case]
    weights = create("outer", "gaba", beta=0.0, floor=0.05, warmup=0)(
        Signals(vector(row["losses"]), norms=vector(row["norms"]))
    )
    np.testing.assert_allclose(weights.numpy(), row["gaba_floor0.05_from_raw"], rtol=1e-11)


@given(data=st.data(), count=st.integers(1, 6), form=st.sampled_from(["complement", "inverse"]))
@settings(max_examples=80)
def test_gaba_stays_within_its_bounds(data: st.DataObject, count: int, form: str) -> None:
    """Every weight lies in [floor / (1 + (K - 1) floor), 1 / (1 + (K - 1) floor)], for any norms, gaps and absent tasks."""
    floor = data.draw(st.floats(0, 0.99)) / count
    weighting = create("outer", "gaba", beta=data.draw(st.floats(0, 0.9)), floor=floor, warmup=0, form=form)
    for step in range(4):
        drawn, away = data.draw(norms(count)), data.draw(st.tuples(*[st.integers(1, 50)] * count))
        active = torch.tensor(data.draw(st.tuples(*[st.booleans()] * count)))
        shown = {"norms": vector(drawn), "elapsed": vector(away), "active": active}
        weights = weighting(Signals(vector([1.0] * count), **shown, step=step))
        assert float(weighting.ema.sum()) == pytest.approx(1, abs=1e-12)
        slack = 1 + 1e-12
        assert float(weights.min()) * slack >= floor / (1 + (count - 1) * floor)
        assert float(weights.max()) <= slack / (1 + (count - 1) * floor)


def test_gaba_reaches_the_bound_and_not_the_floor() -> None:
    """For K = 2 and a floor of 0.05 an imbalance of 500 ends below 0.05 itself, after 233 windows."""
    weighting = create("outer", "gaba")
    first = None
    for step in range(700):
        weights = weighting(Signals(vector([1.0, 1.0]), norms=vector([500.0, 1.0]), step=step))
        if first is None and bool(weighting.diagnostics()["floor_active"].any()):
            first = step
    assert first is not None and abs(first - 100 - 233) <= 1
    top = float(weighting.ema[1])
    np.testing.assert_allclose(weights.numpy(), [0.05 / (0.05 + top), top / (0.05 + top)], rtol=1e-14)
    assert 0.0476 < float(weights[0]) < 0.0478


def test_gaba_warm_up_leaves_the_average_alone() -> None:
    """During the warm-up the weights are 1/K and the average does not move; the first window after it starts from 1/K."""
    weighting = create("outer", "gaba", beta=0.9, floor=0.0, warmup=7)
    for step in range(7):
        weights = weighting(Signals(vector([1.0, 1.0]), norms=vector([3.0, 1.0]), step=step))
        assert weights.tolist() == [0.5, 0.5]
        assert weighting.ema.tolist() == [0.5, 0.5]
    weights = weighting(Signals(vector([1.0, 1.0]), norms=vector([3.0, 1.0]), step=7))
    np.testing.assert_allclose(weights.numpy(), [0.9 * 0.5 + 0.1 * 0.25, 0.9 * 0.5 + 0.1 * 0.75], rtol=1e-15)


def test_gaba_floor_does_not_enter_the_average() -> None:
    """Two weightings with different floors have the same average, although their weights differ."""
    floored, free = (create("outer", "gaba", beta=0.5, floor=floor, warmup=0) for floor in (0.2, 0.0))
    for step in range(20):
        signals = Signals(vector([1.0, 1.0, 1.0]), norms=vector([100.0, 1.0, 2.0 + step]), step=step)
        assert not torch.equal(floored(signals), free(signals))
    assert torch.equal(floored.ema, free.ema)


@pytest.mark.parametrize("elapsed", [1, 2, 7])
def test_gaba_decay_covers_the_windows_elapsed(elapsed: int) -> None:
    """Measured every n windows, the average moves as n windows of the same norms would move it."""
    norms_ = vector([5.0, 1.0, 0.3])
    often, seldom = create("outer", "gaba", beta=0.8, warmup=0), create("outer", "gaba", beta=0.8, warmup=0)
    for _ in range(elapsed):
        often(Signals(vector([1.0] * 3), norms=norms_))
    seldom(Signals(vector([1.0] * 3), norms=norms_, elapsed=vector([float(elapsed)] * 3)))
    torch.testing.assert_close(seldom.ema, often.ema, rtol=1e-14, atol=0)


@given(plan=plans(low=3, high=5, windows=5))
@settings(max_examples=40)
def test_gaba_moves_only_active_tasks_and_keeps_their_mass(plan: Any) -> None:
    """With a subset active the others keep their entry of the average exactly, and the subset keeps its sum."""
    weighting = create("outer", "gaba", beta=0.3, floor=0.0, warmup=0)
    weighting.bind_unnamed(plan.size, f64)
    for signals in plan.signals():
        before = weighting.ema.clone()
        weighting(signals)
        active = signals.active
        assert torch.equal(weighting.ema[~active], before[~active])
        torch.testing.assert_close(weighting.ema[active].sum(), before[active].sum(), rtol=1e-12, atol=0)
        if int(active.sum()) < 2:
            assert torch.equal(weighting.ema, before)


def test_gaba_keeps_its_bound_when_a_task_returns_after_a_long_absence() -> None:
    """A returning task moves at once and the others by one window, and still the average sums to 1 and the bound holds."""
    weighting = create("outer", "gaba", beta=0.9, warmup=0, form="inverse")
    for step in range(60):
        weighting(Signals(vector([1.0] * 3), norms=vector([1e3, 1e3, 1.0]), step=step))
    norms_, elapsed = vector([1e3, 1.0, 1e3]), vector([1.0, 50.0, 1.0])
    weights = weighting(Signals(vector([1.0] * 3), norms=norms_, elapsed=elapsed, step=60))
    assert float(weighting.ema.sum()) == pytest.approx(1, abs=1e-14)
    assert float(weights.min()) >= 0.05 / 1.1


def test_gaba_forms_agree_for_two_tasks_only() -> None:
    """Complement and inverse are one method for K = 2; for K = 3 only the inverse equalises."""
    make = {form: {"beta": 0.0, "floor": 0.0, "warmup": 0, "form": form} for form in ("complement", "inverse")}
    for values in ([10.0, 1.0], [10.0, 1.0, 0.1]):
        signals = Signals(vector([1.0] * len(values)), norms=vector(values))
        complement, inverse = (create("outer", "gaba", **make[form])(signals) for form in ("complement", "inverse"))
        contribution = inverse * vector(values)
        torch.testing.assert_close(contribution, contribution.mean().expand_as(contribution), rtol=1e-13, atol=0)
        if len(values) == 2:
            torch.testing.assert_close(complement, inverse, rtol=1e-13, atol=0)
        else:
            np.testing.assert_allclose(complement.numpy(), [0.0495495495, 0.4549549550, 0.4954954955], rtol=1e-9)
            assert float(complement.max()) <= 0.5


def test_gaba_refuses_a_floor_that_leaves_no_room() -> None:
    """floor >= 1/K is refused when K is known."""
    with pytest.raises(OptionError, match=r"below 1/K = 0\.25 for the 4 tasks"):
        create("outer", "gaba", floor=0.25).bind_unnamed(4, f64)


@pytest.mark.parametrize("alpha", [0.0, 0.12, 1.5])
def test_gradnorm_equals_autograd_and_adam(alpha: float) -> None:
    """100 windows agree to 1e-10 with autograd through the softmax of |lambda n - target| and torch.optim.Adam."""
    rng = np.random.default_rng(1)
    weighting = create("outer", "gradnorm", alpha=alpha, lr=0.03)
    v = torch.zeros(3, dtype=f64, requires_grad=True)
    adam = torch.optim.Adam([v], lr=0.03)
    first = None
    for step in range(100):
        loss, norm = vector(rng.uniform(0.1, 5, 3)), vector(10 ** rng.uniform(-1, 1, 3))
        first = loss if first is None else first
        weights = 3 * v.softmax(0)
        ratio = loss / first
        target = ((weights * norm).mean() * (ratio / ratio.mean()) ** alpha).detach()
        adam.zero_grad()
        (weights * norm - target).abs().sum().backward()
        adam.step()
        returned = weighting(Signals(loss, norms=norm, step=step))
        torch.testing.assert_close(returned, 3 * v.detach().softmax(0), rtol=1e-10, atol=0)
    assert float((returned - 1).abs().max()) > 0.1


@pytest.mark.parametrize("case", GOLDEN["gaba"])
def test_gradnorm_starts_with_the_golden_gradient(case: str) -> None:
    """At weights of one and first losses of one the first step follows the golden gradient."""
    row = GOLDEN["gaba"][case]
    gradient = np.array(row["gradnorm_grad_at_ones_alpha1.5_L0=1"])
    count = len(gradient)
    weighting = create("outer", "gradnorm", lr=0.01)
    weighting.bind_unnamed(count, f64)
    weighting.seen.fill_(True)  # first_loss is 1
    weighting(Signals(vector(row["losses"]), norms=vector(row["norms"])))
    through_softmax = gradient - gradient.sum() / count
    np.testing.assert_allclose(weighting.moment1.numpy(), 0.1 * through_softmax, rtol=1e-11)


@given(data=st.data(), count=st.integers(1, 5))
@settings(max_examples=40)
def test_gradnorm_weights_are_positive_and_sum_to_k(data: st.DataObject, count: int) -> None:
    """Whatever the norms and losses, the weights stay positive and sum to K."""
    weighting = create("outer", "gradnorm", lr=data.draw(st.floats(1e-4, 0.5)))
    for step in range(5):
        weights = weighting(Signals(vector(data.draw(losses(count))), norms=vector(data.draw(norms(count))), step=step))
        assert float(weights.min()) > 0
        assert float(weights.sum()) == pytest.approx(count, rel=1e-12)


def test_gradnorm_takes_each_first_loss_from_the_first_finite_window() -> None:
    """A task that appears later, or starts with NaN, is compared with its own first finite loss."""
    weighting = create("outer", "gradnorm")
    weighting(Signals(vector([4.0, math.nan, 2.0]), norms=vector([1.0, 1.0, 2.0]), active=torch.tensor([True, True, False])))
    weighting(Signals(vector([3.0, 7.0, math.inf]), norms=vector([1.0, 1.0, 2.0])))
    weighting(Signals(vector([2.0, 6.0, 5.0]), norms=vector([1.0, 1.0, 2.0])))
    weighting(Signals(vector([1.0, 1.0, 1.0]), norms=vector([1.0, 1.0, 2.0])))
    assert weighting.first_loss.tolist() == [4.0, 7.0, 5.0]
    assert weighting.updates.tolist() == [3.0, 3.0, 2.0]


@pytest.mark.parametrize("how", ["end_epoch", "window"])
@pytest.mark.parametrize("batches", [1, 4])
def test_dwa_reproduces_the_traces_of_two_libraries(how: str, batches: int) -> None:
    """Ten epochs of losses give the weights that LibMTL and TorchJD give, with epochs ended by call or by window."""
    trace = GOLDEN["dwa"]
    weighting = create("outer", "dwa", temperature=trace["T"], window=batches if how == "window" else None)
    weighting.bind_unnamed(3, f64)
    around = [0.5, 1.5, 0.75, 1.25] if batches == 4 else [1.0]
    for epoch, row in zip(trace["epoch_losses"], trace["trace"], strict=True):
        for peer in ("libmtl_weights", "torchjd_weights"):
            np.testing.assert_allclose(weighting.weights().numpy(), row[peer], rtol=1e-12)
        for factor in around:
            weighting(Signals(factor * vector(epoch)))
        if how == "end_epoch":
            weighting.end_epoch()


def test_dwa_through_a_criterion_ends_its_epochs() -> None:
    """criterion.end_epoch() closes the epoch of every call since the last one, also of a full window still pending."""
    trace = GOLDEN["dwa"]
    criterion = compose({"name": "dwa", "temperature": trace["T"]}, tasks=["a", "b", "c"], accumulate=2)
    for epoch, row in zip(trace["epoch_losses"], trace["trace"], strict=True):
        for _ in range(2):
            criterion.combine(tuple(vector(value).requires_grad_() for value in epoch))
        np.testing.assert_allclose(criterion.report.weights.numpy(), row["libmtl_weights"], rtol=1e-12)
        criterion.end_epoch()


@given(
    events=st.lists(st.sampled_from(["window"] * 8 + ["epoch", "load", "copy"]), max_size=40),
    window=st.integers(1, 5),
    saved=st.integers(0, 7),
)
def test_dwa_ends_its_epochs_as_its_buffers_say(events: list[str], window: int, saved: int) -> None:
    """What the host knows of the epoch saves work and changes nothing: the buffers alone give the same bit for bit."""
    quick_, plain = (create("outer", "dwa", window=window) for _ in range(2))
    other = create("outer", "dwa", window=50)
    for step in range(saved):
        other(Signals(vector([1.0 + step, 2.0])))
    for step, event in enumerate(events):
        if event == "epoch":
            quick_.end_epoch(), plain.end_epoch()
        elif event == "load" and saved:
            quick_.load_state_dict(other.state_dict()), plain.load_state_dict(other.state_dict())
        elif event == "copy":
            quick_ = copy.deepcopy(quick_)
        else:
            signals = Signals(vector([3.0 / (1 + step), 1.0 + step % 3]), active=torch.tensor([True, step % 4 != 0]))
            plain._passed = None
            assert torch.equal(quick_(signals), plain(signals))
    for one, other_ in zip(quick_.buffers(), plain.buffers(), strict=True):
        assert torch.equal(one, other_)


def test_dwa_clamps_the_ratio() -> None:
    """A loss that falls to zero, or rises from zero, counts as a ratio of 1e-3 or 1e3."""
    weighting = create("outer", "dwa", temperature=500.0, window=1)
    for values in ([1.0, 0.0, 1.0], [0.0, 1.0, 1.0]):
        weights = weighting(Signals(vector(values)))
    expected = 3 * torch.softmax(vector([1e-3, 1e3, 1.0]) / 500, 0)
    torch.testing.assert_close(weights, expected, rtol=1e-13, atol=0)


def test_dwa_keeps_the_mean_of_a_task_absent_for_an_epoch() -> None:
    """A task that misses an epoch keeps its means, and is compared with its last own epoch afterwards."""
    weighting = create("outer", "dwa", window=1)
    both, first = torch.tensor([True, True]), torch.tensor([True, False])
    for values, active in (([4.0, 8.0], both), ([2.0, 4.0], both), ([1.0, 99.0], first), ([1.0, 3.0], both)):
        weights = weighting(Signals(vector(values), active=active))
    assert weighting.mean_before.tolist() == [1.0, 4.0]
    assert weighting.mean_last.tolist() == [1.0, 3.0]
    torch.testing.assert_close(weights, 2 * torch.softmax(vector([1.0, 0.75]) / 2, 0), rtol=1e-14, atol=0)


def test_dwa_warns_once_when_no_epoch_ends() -> None:
    """2,000 windows without end_epoch() are worth a warning; 1,999, or epochs that end, are not."""
    weighting, ended = create("outer", "dwa"), create("outer", "dwa")
    signals = Signals(vector([1.0, 1.0]))
    for step in range(1_999):
        weighting(signals)
        ended(signals)
        if step == 1_000:
            ended.end_epoch()
    with pytest.warns(UserWarning, match=r"no epoch has ended in 2000 windows.*end_epoch") as caught:
        weighting(signals)
    assert len(caught) == 1
    for _ in range(500):
        weighting(signals)
        ended(signals)


def bound_uncertainty(count: int, variant: str = "kendall", kind: str | None = "regression") -> Any:
    weighting = create("outer", "uncertainty", variant=variant)
    weighting.dtype = f64
    weighting.bind(tuple(TaskInfo(str(index), kind) for index in range(count)))
    return weighting


@pytest.mark.parametrize("index", range(len(GOLDEN["uncertainty"]["cases"])))
@pytest.mark.parametrize("peer", ["libmtl", "torchjd"])
def test_uncertainty_reproduces_two_libraries(index: int, peer: str) -> None:
    """Value, weights and gradient of the log variances equal LibMTL and TorchJD, which use the regression form."""
    case = GOLDEN["uncertainty"]["cases"][index]
    weighting = bound_uncertainty(3)
    with torch.no_grad():
        weighting.log_variance.copy_(vector(case["log_var"]))
    value = (weighting.weights() * vector(case["losses"])).sum() + weighting.penalty().sum()
    value.backward()
    np.testing.assert_allclose(weighting.weights().detach().numpy(), case[peer]["weights"], rtol=1e-12)
    np.testing.assert_allclose(value.item(), case[peer]["value"], rtol=1e-12)
    np.testing.assert_allclose(weighting.log_variance.grad.numpy(), case[peer]["dlogvar"], rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("index", range(len(GOLDEN["uncertainty"]["cases"])))
def test_revised_uncertainty_reproduces_its_reference(index: int) -> None:
    """The revised variant equals 0.5 / sigma^2 L + log(1 + sigma^2), in value and in the gradient of sigma."""
    case = GOLDEN["uncertainty"]["cases"][index]
    expected = case["AutomaticWeightedLoss_liebel"]
    weighting = bound_uncertainty(3, "revised")
    with torch.no_grad():
        weighting.log_variance.copy_(vector(case["log_var"]))
    value = (weighting.weights() * vector(case["losses"])).sum() + weighting.penalty().sum()
    value.backward()
    np.testing.assert_allclose(value.item(), expected["value"], rtol=1e-12)
    sigma = vector(case["log_var"]).div(2).exp()
    np.testing.assert_allclose((weighting.log_variance.grad * 2 / sigma).numpy(), expected["dparam"], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(("kind", "half"), [("regression", 0.5), ("binary", 1.0), ("multiclass", 1.0)])
def test_uncertainty_gradient_through_the_total_is_the_closed_form(kind: str, half: float) -> None:
    """d total / d s = -half exp(-s) L + 0.5, through the criterion's own backward, for every kind of task."""
    kinds = {"a": kind, "b": "regression"}
    model, (inputs, targets) = model_for(kinds, dtype=f64), batch_for(kinds, dtype=f64)
    criterion = compose(
        "uncertainty", {"a": {"regression": "mse", "binary": "bce", "multiclass": "cross_entropy"}[kind], "b": "mse"}
    )
    criterion.double()
    with torch.no_grad():
        criterion.outer.log_variance.copy_(vector([0.7, -1.1]))
    criterion(model(inputs), targets).backward()
    s, values = np.array([0.7, -1.1]), criterion.report.losses.numpy()
    factors = np.array([half, 0.5])
    np.testing.assert_allclose(criterion.report.weights.numpy(), factors * np.exp(-s), rtol=1e-14)
    np.testing.assert_allclose(criterion.outer.log_variance.grad.numpy(), -factors * np.exp(-s) * values + 0.5, rtol=1e-13)


@pytest.mark.parametrize("case", GOLDEN["gaba"])
def test_uncertainty_ends_at_one_over_twice_the_loss(case: str) -> None:
    """At the optimum of s for constant losses the weight of a regression task is 1 / (2 L)."""
    row = GOLDEN["gaba"][case]
    values = vector(row["losses"])
    weighting = bound_uncertainty(len(values))
    optimizer = torch.optim.LBFGS(
        weighting.parameters(), max_iter=200, tolerance_grad=1e-13, tolerance_change=0, line_search_fn="strong_wolfe"
    )

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        total = (weighting.weights() * values).sum() + weighting.penalty().sum()
        total.backward()
        return total

    optimizer.step(closure)
    np.testing.assert_allclose(weighting.weights().detach().numpy(), row["uncertainty_at_optimum 1/(2L)"], rtol=1e-9)


@given(data=st.data(), count=st.integers(1, 4))
@settings(max_examples=60)
def test_revised_uncertainty_is_never_negative(data: st.DataObject, count: int) -> None:
    """With the revised variant the total is not negative for any losses and log variances, kendall's can be."""
    weighting = bound_uncertainty(count, "revised")
    with torch.no_grad():
        weighting.log_variance.copy_(vector(data.draw(st.tuples(*[st.floats(-20, 20)] * count))))
    total = (weighting.weights() * vector(data.draw(losses(count)))).sum() + weighting.penalty().sum()
    assert total.item() >= 0


def test_kendall_uncertainty_can_be_negative() -> None:
    """The plain variant's total goes below zero for small losses, which is why the revised one exists."""
    weighting = bound_uncertainty(1)
    with torch.no_grad():
        weighting.log_variance.fill_(-4.0)
    assert ((weighting.weights() * 1e-3).sum() + weighting.penalty().sum()).item() < 0


def steps_with(criterion: Any, optimizer: Any, steps: int, *, accumulate: int = 1) -> None:
    kinds = {"a": "regression", "b": "regression"}
    model, (inputs, targets) = model_for(kinds), batch_for(kinds)
    for _ in range(steps):
        for _ in range(accumulate):
            (criterion(model(inputs), targets) / accumulate).backward()
        optimizer.step()
        optimizer.zero_grad()


def test_uncertainty_warns_once_when_it_is_not_in_the_optimizer() -> None:
    """20 steps with gradients and without a change are worth one warning."""
    criterion = compose("uncertainty", tasks=["a", "b"])
    elsewhere = torch.optim.SGD(nn.Linear(1, 1).parameters(), lr=0.1)
    steps_with(criterion, elsewhere, 20)
    with pytest.warns(UserWarning, match=r"not in the optimizer.*param_groups") as caught:
        steps_with(criterion, elsewhere, 30)
    assert len(caught) == 1


@pytest.mark.parametrize("accumulate", [1, 3])
@pytest.mark.parametrize("options", [{}, {"fused": True}, {"foreach": True}, {"foreach": False, "amsgrad": True}])
def test_uncertainty_does_not_warn_when_it_is_in_the_optimizer(options: dict[str, Any], accumulate: int) -> None:
    """No warning with any implementation of AdamW, nor with accumulation."""
    criterion = compose("uncertainty", tasks=["a", "b"], accumulate=accumulate)
    optimizer = torch.optim.AdamW(criterion.param_groups(lr=1e-3), **options)
    before = criterion.outer.log_variance.detach().clone()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        steps_with(criterion, optimizer, 45, accumulate=accumulate)
    assert not torch.equal(criterion.outer.log_variance, before)


def test_uncertainty_does_not_warn_without_a_backward() -> None:
    """Calls whose backward never runs give no gradient, so that nothing is missing from an optimizer."""
    criterion = compose("uncertainty", tasks=["a", "b"])
    for _ in range(40):
        criterion.combine((torch.ones((), requires_grad=True), torch.ones((), requires_grad=True)))


def test_uncertainty_moves_and_punishes_only_the_tasks_of_a_call() -> None:
    """An absent task contributes neither loss nor penalty, and its log variance gets a zero gradient."""
    criterion = compose("uncertainty", tasks=["a", "b"]).double()
    with torch.no_grad():
        criterion.outer.log_variance.copy_(vector([0.3, 5.0]))
    total = criterion.combine({"a": vector(2.0).requires_grad_(), "b": None})
    total.backward()
    assert total.item() == pytest.approx(math.exp(-0.3) * 2 + 0.15, rel=1e-14)
    np.testing.assert_allclose(criterion.outer.log_variance.grad.numpy(), [-math.exp(-0.3) * 2 + 0.5, 0.0], rtol=1e-14)


def test_fixed_weights_are_as_given() -> None:
    """Fixed weights are neither normalised nor moved, by sequence or by name, and 1/K when not given."""
    assert compose({"name": "fixed", "weights": [0.0, -2.0, 7.5]}).outer.options() == {"weights": [0.0, -2.0, 7.5]}
    by_name = create("outer", "fixed", weights={"b": 3.0, "a": 1.0})
    by_name.bind((TaskInfo("a"), TaskInfo("b")))
    assert by_name.weights().tolist() == [1.0, 3.0]
    plain = create("outer", "fixed")
    plain.bind_unnamed(4, f64)
    assert plain.weights().tolist() == plain.reference().tolist() == [0.25] * 4
