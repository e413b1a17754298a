"""Survival shapes: signed times, ties, censoring, masks, saturated predictions."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from mtl_axes import compose, create
from mtl_axes.errors import DataError, OptionError

f64 = torch.float64

SHAPES: dict[str, tuple[str, dict[str, Any]]] = {
    "weibull": ("aft", {"sigma": 0.7}),
    "lognormal": ("aft", {"distribution": "lognormal"}),
    "loglogistic": ("aft", {"distribution": "loglogistic"}),
    "weibull with scale": ("aft", {"sigma": None}),
    "lognormal with scale": ("aft", {"distribution": "lognormal", "sigma": None}),
    "loglogistic with scale": ("aft", {"distribution": "loglogistic", "sigma": None}),
    "cox": ("cox", {}),
    "discrete_hazard": ("discrete_hazard", {"edges": (0.5, 1.0, 2.0, 3.0)}),
}
EVERY = pytest.mark.parametrize("key", list(SHAPES))


def build(key: str) -> Any:
    name, options = SHAPES[key]
    return create("inner", name, **options)


def data(key: str, *size: int, seed: int = 0, dtype: torch.dtype = f64) -> tuple[Tensor, Tensor]:
    return build(key).sample("regression", size, torch.Generator().manual_seed(seed), dtype)


def random_mask(*size: int) -> Tensor:
    return torch.rand(size, generator=torch.Generator().manual_seed(5)) < 0.6


def test_samples_hold_events_and_censored_times() -> None:
    """The times that a survival shape draws have both signs and are never 0."""
    _, target = data("cox", 200)
    assert 100 < int((target > 0).sum()) < 180 and float(target.abs().min()) >= 0.1


@EVERY
@pytest.mark.parametrize("dtype", [torch.float32, f64])
def test_saturated_predictions(key: str, dtype: torch.dtype) -> None:
    """Losses and gradients are finite for predictions of +-1e4, and for scales and times to match."""
    prediction, target = data(key, 12, dtype=dtype)
    shape = build(key)
    for factor in (1.0, 1e-4, 1e4):
        leaf = (1e4 * prediction.sign()).requires_grad_()
        losses = shape(leaf, factor * target)
        (gradient,) = torch.autograd.grad(losses.sum(), leaf)
        assert losses.dtype == dtype and losses.shape == (12,)
        assert bool(torch.isfinite(losses).all()) and bool(torch.isfinite(gradient).all())
        assert shape.lower_bound is None or bool((losses >= shape.lower_bound).all())


@EVERY
def test_gradients_are_those_of_the_loss(key: str) -> None:
    """The gradient agrees with finite differences, with trailing dimensions."""
    prediction, target = data(key, 6, 2)
    assert torch.autograd.gradcheck(lambda p: build(key)(p, target), (prediction / 3).requires_grad_())


@EVERY
def test_no_value_is_read(key: str) -> None:
    """check and forward run on the meta device."""
    prediction, target = (tensor.to("meta") for tensor in data(key, 7))
    assert build(key)(prediction, target).shape == (7,)


@EVERY
def test_masked_samples_are_as_deleted(key: str) -> None:
    """A criterion gives loss and gradient of the valid samples alone, with NaN at masked places and with sample weights."""
    name, options = SHAPES[key]
    prediction, target = data(key, 20)
    mask, weight = random_mask(20), torch.linspace(0.5, 2.0, 20, dtype=f64)
    spoiled, times = prediction.clone(), target.clone()
    spoiled[~mask] = torch.nan
    times[~mask] = torch.nan
    results = []
    for p, y, m, w in ((spoiled, times, mask, weight), (prediction[mask], target[mask], None, weight[mask])):
        leaf = p.clone().requires_grad_()
        with torch.autograd.set_detect_anomaly(True):  # stops at a NaN that a later mask would hide
            loss = compose(inner={"life": {"name": name, **options}})((leaf,), (y,), mask=m, sample_weight=w)
            (gradient,) = torch.autograd.grad(loss, leaf)
        if m is not None:
            assert not bool(gradient[~m].any())
            gradient = gradient[m]
        results.append((loss.detach(), gradient))
    torch.testing.assert_close(*results, rtol=1e-12, atol=1e-14)


@EVERY
def test_unlabelled_samples_are_as_deleted(key: str) -> None:
    """missing="ignore" takes NaN times for unlabelled."""
    name, options = SHAPES[key]
    prediction, target = data(key, 20)
    holes = torch.where(random_mask(20), target, torch.nan)
    keep = ~holes.isnan()
    losses = [
        compose(inner={"life": {"name": name, **options}}, missing="ignore")((p,), (y,))
        for p, y in ((prediction, holes), (prediction[keep], target[keep]))
    ]
    torch.testing.assert_close(*losses, rtol=1e-12, atol=1e-14)


@EVERY
def test_a_time_of_zero_is_refused(key: str) -> None:
    """0 is neither an event nor a censored time: an error of the first call that says what to do."""
    name, options = SHAPES[key]
    prediction, target = data(key, 5)
    target[2] = 0
    with pytest.raises(DataError, match=r"should be signed times, .* Found 0\. Shift the times, or mask"):
        compose(inner={"life": {"name": name, **options}})((prediction,), (target,))


# ---- aft


@pytest.mark.parametrize("distribution", ["weibull", "lognormal", "loglogistic"])
@pytest.mark.parametrize("log_sigma", [-0.5, 0.0, 0.9])
def test_density_and_survival_of_aft_belong_together(distribution: str, log_sigma: float) -> None:
    """The density of an event is minus the derivative of the survival function in time."""
    mu = torch.linspace(-1, 1, 9, dtype=f64)
    shape = create("inner", "aft", distribution=distribution, sigma=math.exp(log_sigma))
    time = torch.linspace(0.2, 4, 9, dtype=f64).requires_grad_()
    survival = (-shape(mu, -time)).exp()
    (slope,) = torch.autograd.grad(survival.sum(), time)
    torch.testing.assert_close((-shape(mu, time)).exp(), -slope, rtol=1e-11, atol=1e-13)


def test_a_far_weibull_is_a_line() -> None:
    """Beyond z = 30 the hazard of weibull goes on as its tangent: the slope stays e^30, value and slope are continuous."""
    shape = create("inner", "aft")
    mu = torch.tensor([-30 + 1e-9, -30 - 1e-9, -50.0, -1e4], dtype=f64, requires_grad=True)
    losses = shape(mu, torch.full((4,), -1.0, dtype=f64))
    (slope,) = torch.autograd.grad(losses.sum(), mu)
    e30 = math.exp(30)
    torch.testing.assert_close(losses[:2].detach(), torch.full((2,), e30, dtype=f64), rtol=1e-8, atol=0)
    torch.testing.assert_close(slope, torch.full((4,), -e30, dtype=f64), rtol=1e-8, atol=0)
    torch.testing.assert_close(losses[2].item(), 21 * e30, rtol=1e-12, atol=0)


def test_a_predicted_scale_is_clamped() -> None:
    """log sigma beyond +-10 counts as +-10."""
    target = torch.tensor([2.0, -2.0], dtype=f64)
    shape = create("inner", "aft", distribution="loglogistic", sigma=None)
    for far, near in ((50.0, 10.0), (-50.0, -10.0)):
        losses = [shape(torch.tensor([[0.5, value]] * 2, dtype=f64), target) for value in (far, near)]
        assert torch.equal(*losses)


def test_shapes_of_aft() -> None:
    """One parameter per sample, or two in a last dimension; another shape is an error that names both."""
    assert create("inner", "aft").trailing is False and create("inner", "aft", sigma=None).trailing is True
    with pytest.raises(DataError, match=r"extra last dimension of 2, \(mu, log sigma\)\. Found prediction \(4,\)"):
        create("inner", "aft", sigma=None)(torch.zeros(4), torch.ones(4))
    with pytest.raises(DataError, match="should have one shape"):
        create("inner", "aft")(torch.zeros(4, 2), torch.ones(4))
    with pytest.raises(OptionError, match="`distribution` should be one of 'weibull', 'lognormal', 'loglogistic'"):
        create("inner", "aft", distribution="gamma")
    with pytest.raises(OptionError, match="`sigma` should be a number in"):
        create("inner", "aft", sigma=0.0)


def test_aft_can_be_negative_and_says_so() -> None:
    """A density above 1 gives a negative loss, so that weightings that take ratios of losses refuse the shape by name."""
    shape = create("inner", "aft", sigma=0.05)
    assert shape.lower_bound is None
    assert float(shape(torch.tensor([0.0]), torch.tensor([1.0]))) < 0
    with pytest.raises(OptionError, match="AFT"):
        compose("dwa", {"life": "aft", "b": "mse"})


# ---- cox


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_mask_of_cox_is_deletion(seed: int) -> None:
    """With a mask, values and gradients of valid samples are those of the batch without the others, ties included."""
    prediction, target = data("cox", 30, seed=seed)
    target = (2 * target).ceil() + (target > 0) - 0.5  # ties; never 0
    mask = random_mask(30)
    assert len(target.abs().unique()) < 20
    results = []
    for p, y, m in ((prediction, target, mask), (prediction[mask], target[mask], None)):
        leaf = p.clone().requires_grad_()
        losses = create("inner", "cox")(leaf, y, m)
        losses = losses if m is None else losses[m]
        (gradient,) = torch.autograd.grad(losses.sum(), leaf)
        results.append((losses.detach(), gradient if m is None else gradient[m]))
        assert m is None or not bool(gradient[~m].any())
    torch.testing.assert_close(*results, rtol=1e-12, atol=1e-14)


def test_masking_after_cox_is_not_deletion() -> None:
    """Dropping the losses of masked samples is not enough: they would stay at risk. That is why cox takes the mask."""
    prediction, target = data("cox", 30)
    mask = random_mask(30)
    after = create("inner", "cox")(prediction, target)[mask]
    assert float((after - create("inner", "cox")(prediction[mask], target[mask])).abs().max()) > 0.1


def test_cox_sees_order_and_differences_alone() -> None:
    """A monotone change of all times and a common shift of the scores change nothing; permuting permutes."""
    prediction, target = data("cox", 30)
    shape = create("inner", "cox")
    losses = shape(prediction, target)
    torch.testing.assert_close(shape(prediction, target.sign() * target.abs().exp()), losses, rtol=1e-13, atol=0)
    torch.testing.assert_close(shape(prediction + 50, target), losses, rtol=1e-11, atol=1e-12)
    order = torch.randperm(30, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(shape(prediction[order], target[order]), losses[order], rtol=1e-12, atol=1e-14)


def test_trailing_dimensions_of_cox_are_batches_of_their_own() -> None:
    """Each column of (N, M) times is a batch by itself."""
    prediction, target = data("cox", 10, 3)
    mask = random_mask(10, 3)
    for m in (None, mask):
        columns = [create("inner", "cox")(prediction[:, j], target[:, j], None if m is None else m[:, j]) for j in range(3)]
        losses = create("inner", "cox")(prediction, target, m)
        assert losses.shape == (10, 3)
        valid = mask if m is not None else torch.ones_like(mask)
        torch.testing.assert_close(losses[valid], torch.stack(columns, 1)[valid], rtol=1e-13, atol=1e-15)


@pytest.mark.parametrize("target", [[-1.0, -2.0, -3.0], [-1.0, -2.0, 3.0]])
def test_a_batch_without_a_comparison_has_no_loss(target: list[float]) -> None:
    """Without an event, or with the only event last, the loss is 0 and so is its gradient, attached to the graph."""
    scores = torch.tensor([0.3, -2.0, 1.0], dtype=f64, requires_grad=True)
    loss = compose(inner={"life": "cox"})((scores,), (torch.tensor(target, dtype=f64),))
    loss.backward()
    assert loss.item() == 0.0 and scores.grad is not None
    torch.testing.assert_close(scores.grad, torch.zeros(3, dtype=f64), rtol=0, atol=1e-15)


def test_the_mean_of_cox_divides_by_all_valid_samples() -> None:
    """A task's mean is the partial log-likelihood over the number of valid samples, censored ones included."""
    prediction, target = data("cox", 50)
    total = create("inner", "cox")(prediction, target).sum()
    mask = torch.arange(50) < 40
    loss = compose(inner={"life": "cox"})((prediction,), (target,))
    torch.testing.assert_close(loss, total / 50)
    masked = compose(inner={"life": "cox"})((prediction,), (target,), mask=mask)
    torch.testing.assert_close(masked, create("inner", "cox")(prediction[:40], target[:40]).sum() / 40)


def test_cox_learns_an_order() -> None:
    """Gradient descent on cox gives early events high scores."""
    target = torch.tensor([1.0, 2.0, 3.0, -3.5, 5.0, -6.0])
    scores = torch.zeros(6, requires_grad=True)
    criterion = compose(inner={"life": "cox"})
    for _ in range(200):
        (gradient,) = torch.autograd.grad(criterion((scores,), (target,)), scores)
        scores = (scores - gradient).detach().requires_grad_()
    assert scores[target > 0].argsort(descending=True).tolist() == [0, 1, 2, 3]


# ---- discrete_hazard


def test_hazards_of_all_outcomes_add_up() -> None:
    """The probabilities of an event in each interval, and of surviving them all, sum to 1."""
    edges = (1.0, 2.0, 4.0)
    logits = torch.randn(5, 1, 3, generator=torch.Generator().manual_seed(0), dtype=f64).expand(5, 4, 3)
    outcomes = torch.tensor([0.5, 1.5, 3.0, -4.0], dtype=f64).expand(5, 4)
    probabilities = (-create("inner", "discrete_hazard", edges=edges)(logits, outcomes)).exp()
    torch.testing.assert_close(probabilities.sum(1), torch.ones(5, dtype=f64), rtol=1e-13, atol=0)


def test_one_interval_is_a_binary_task() -> None:
    """With one edge, discrete_hazard is bce of "an event before it", for samples that are not censored before it."""
    logits = torch.randn(3, generator=torch.Generator().manual_seed(0), dtype=f64)
    losses = create("inner", "discrete_hazard", edges=[2.0])(logits.unsqueeze(-1), torch.tensor([1.0, 3.0, -2.0], dtype=f64))
    bce = create("inner", "bce")(logits, torch.tensor([True, False, False]))
    torch.testing.assert_close(losses, bce, rtol=1e-14, atol=0)


def test_intervals_are_closed_at_their_end() -> None:
    """An event at an edge lies in the interval that ends there; a sample censored there survived that interval."""
    logits = torch.tensor([[0.3, -0.4]], dtype=f64)
    shape = create("inner", "discrete_hazard", edges=(1.0, 2.0))
    at, before, after = (shape(logits, torch.tensor([time], dtype=f64)) for time in (1.0, 0.5, 1.5))
    assert torch.equal(at, before) and not torch.equal(at, after)
    censored = shape(logits, torch.tensor([-1.0], dtype=f64))
    torch.testing.assert_close(censored, torch.nn.functional.softplus(logits[:, 0]), rtol=1e-14, atol=0)
    assert shape(logits, torch.tensor([-0.5], dtype=f64)).item() == 0.0


def test_edges_are_checked() -> None:
    """Edges are positive and increase, and there is one logit for each."""
    for edges in ((1.0, 1.0), (2.0, 1.0)):
        with pytest.raises(OptionError, match="`edges` should strictly increase"):
            create("inner", "discrete_hazard", edges=edges)
    with pytest.raises(OptionError, match="`edges` should be a number in"):
        create("inner", "discrete_hazard", edges=(0.0, 1.0))
    with pytest.raises(OptionError, match="`edges` should have at least 1 entries"):
        create("inner", "discrete_hazard", edges=())
    with pytest.raises(DataError, match=r"extra last dimension of 2, one logit per interval\. Found prediction \(4, 3\)"):
        create("inner", "discrete_hazard", edges=(1.0, 2.0))(torch.zeros(4, 3), torch.ones(4))


@pytest.mark.parametrize(
    ("name", "options", "size"),
    [
        ("cox", {}, (3,)),
        ("aft", {}, (3,)),
        ("aft", {"sigma": None}, (3, 2)),
        ("discrete_hazard", {"edges": (50.0,)}, (3, 1)),
    ],
)
def test_integer_times_are_refused(name: str, options: dict[str, Any], size: tuple[int, ...]) -> None:
    """With missing="ignore" the integer -100 is no label; a sample censored at 100 would silently be left out."""
    criterion = compose("fixed", {"life": {"name": name, **options}}, missing="ignore")
    with pytest.raises(DataError, match=r"should be floats, signed times\. Found torch\.int64\. Use target\.float\(\)"):
        criterion({"life": torch.zeros(size)}, {"life": torch.tensor([30, -100, 90])})
