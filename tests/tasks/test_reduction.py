"""From losses per sample to the loss of a task: what is divided by what, and what one task owes to another."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mtl_axes import MultiTaskCriterion, available, compose, create
from mtl_axes.registry import lookup
from mtl_axes.signals import Kind

Y = [10.0, 30.0, 60.0, 90.0, 110.0, 5.0, 15.0, 80.0]
YHAT = [15.0, 26.0, 68.0, 87.0, 112.0, -7.0, 24.0, 74.0]


def seed_batch() -> tuple[Tensor, Tensor]:
    return torch.tensor(YHAT, dtype=torch.float64, requires_grad=True), torch.tensor(Y, dtype=torch.float64)


def bias_weights() -> Tensor:
    return 1 + (1 - torch.tensor(Y, dtype=torch.float64) / 125).clamp(0, 1)


def total_and_gradient(
    criterion: MultiTaskCriterion, prediction: Tensor, target: Tensor, **options: Any
) -> tuple[float, Tensor]:
    leaf = prediction.detach().clone().requires_grad_()
    total = criterion({"rul": leaf}, {"rul": target}, **options)
    (gradient,) = torch.autograd.grad(total, leaf)
    return total.item(), gradient


# ---- the denominator


@pytest.mark.parametrize("reduction", ["mean", "weighted_mean"])
def test_weights_of_the_shape_never_enter_the_denominator(reduction: str) -> None:
    """failure_biased on the eight samples is 84.115, the mean over samples, under either reduction."""
    criterion = compose(inner={"rul": "failure_biased"}, reduction=reduction)  # type: ignore[arg-type]
    assert criterion(*({"rul": value} for value in seed_batch())).item() == pytest.approx(84.115, rel=1e-13)


def test_the_same_weights_as_sample_weight() -> None:
    """Given as sample_weight, the weights give 84.115 under "mean" and 52.571875, over their sum, under "weighted_mean"."""
    prediction, target = seed_batch()
    mean, gradient = total_and_gradient(compose(), prediction, target, sample_weight=bias_weights())
    weighted, weighted_gradient = total_and_gradient(
        compose(reduction="weighted_mean"), prediction, target, sample_weight=bias_weights()
    )
    _, shaped = total_and_gradient(compose(inner={"rul": "failure_biased"}), prediction, target)
    assert mean == pytest.approx(84.115, rel=1e-13)
    assert weighted == pytest.approx(52.571875, rel=1e-13)
    torch.testing.assert_close(gradient, shaped)
    torch.testing.assert_close(weighted_gradient, shaped / 1.6)


def test_mean_divides_by_the_valid_labels() -> None:
    """Of eight labels with five valid, the mean divides by five: whatever the weights of the valid and the masked are."""
    prediction, target = seed_batch()
    valid = torch.tensor([True, False, True, True, False, True, True, False])
    weight = torch.arange(8, dtype=torch.float64)
    squares = (prediction.detach() - target).square()
    plain, _ = total_and_gradient(compose(), prediction, target, mask=valid)
    weighted, _ = total_and_gradient(compose(), prediction, target, mask=valid, sample_weight=weight)
    own, _ = total_and_gradient(compose(reduction="weighted_mean"), prediction, target, mask=valid, sample_weight=weight)
    assert plain == pytest.approx(squares[valid].sum().item() / 5, rel=1e-13)
    assert weighted == pytest.approx((weight * squares)[valid].sum().item() / 5, rel=1e-13)
    assert own == pytest.approx((weight * squares)[valid].sum().item() / weight[valid].sum().item(), rel=1e-13)


def test_weighted_mean_without_weights_is_the_mean() -> None:
    """Without sample_weight "weighted_mean" divides by the number of valid labels, as "mean" does."""
    prediction, target = seed_batch()
    valid = torch.tensor(Y) > 20
    for options in ({}, {"mask": valid}):
        assert (
            total_and_gradient(compose(reduction="weighted_mean"), prediction, target, **options)[0]
            == total_and_gradient(compose(), prediction, target, **options)[0]
        )


@given(
    weights=st.lists(st.floats(0.01, 10), min_size=8, max_size=8),
    factor=st.floats(0.1, 10),
)
def test_scaling_the_sample_weights(weights: list[float], factor: float) -> None:
    """Scaling every sample weight by c scales the mean by c and leaves the weighted mean."""
    prediction, target = seed_batch()
    weight = torch.tensor(weights, dtype=torch.float64)
    mean, own = compose(), compose(reduction="weighted_mean")
    for criterion, expected in ((mean, factor), (own, 1.0)):
        base, base_gradient = total_and_gradient(criterion, prediction, target, sample_weight=weight)
        scaled, scaled_gradient = total_and_gradient(criterion, prediction, target, sample_weight=factor * weight)
        assert scaled == pytest.approx(expected * base, rel=1e-12)
        torch.testing.assert_close(scaled_gradient, expected * base_gradient, rtol=1e-12, atol=1e-14)


@given(repeats=st.lists(st.integers(0, 3), min_size=8, max_size=8).filter(any))
def test_a_whole_weight_is_a_repetition(repeats: list[int]) -> None:
    """Under "weighted_mean" a sample of weight 2 counts like two equal samples, and one of weight 0 like none."""
    prediction, target = seed_batch()
    prediction = prediction.detach()
    count = torch.tensor(repeats)
    criterion = compose(inner={"rul": "failure_biased"}, reduction="weighted_mean")
    weighted, gradient = total_and_gradient(criterion, prediction, target, sample_weight=count)
    repeated, parts = total_and_gradient(
        compose(inner={"rul": "failure_biased"}), prediction.repeat_interleave(count), target.repeat_interleave(count)
    )
    collected = torch.zeros(8, dtype=torch.float64).index_add(0, torch.arange(8).repeat_interleave(count), parts)
    assert weighted == pytest.approx(repeated, rel=1e-12)
    torch.testing.assert_close(gradient, collected, rtol=1e-12, atol=1e-14)


def test_weights_that_are_all_zero() -> None:
    """With every sample weight 0 the loss and its gradient are 0 under both reductions, not 0 / 0."""
    for reduction in ("mean", "weighted_mean"):
        criterion = compose(reduction=reduction)  # type: ignore[arg-type]
        total, gradient = total_and_gradient(criterion, *seed_batch(), sample_weight=torch.zeros(8))
        assert total == 0.0
        assert torch.equal(gradient, torch.zeros(8, dtype=torch.float64))


def test_sample_weights_reach_pixels_and_labels() -> None:
    """Weights (N,) weigh every pixel of a sample; the mean divides by the pixels, "weighted_mean" by their weights."""
    generator = torch.Generator().manual_seed(0)
    prediction = torch.randn(3, 2, 4, generator=generator, dtype=torch.float64)
    target = torch.randn(3, 2, 4, generator=generator, dtype=torch.float64)
    weight = torch.tensor([1.0, 0.5, 4.0], dtype=torch.float64)
    weighed = (weight[:, None, None] * (prediction - target).square()).sum().item()
    mean, _ = total_and_gradient(compose(), prediction, target, sample_weight=weight)
    own, _ = total_and_gradient(compose(reduction="weighted_mean"), prediction, target, sample_weight=weight)
    assert mean == pytest.approx(weighed / 24, rel=1e-12)
    assert own == pytest.approx(weighed / (8 * 5.5), rel=1e-12)


def test_sample_weights_for_all_tasks_and_by_task() -> None:
    """One tensor of weights serves every task, a mapping those that it names; so do masks."""
    prediction, target = seed_batch()
    outputs, targets = {"a": prediction, "b": prediction}, {"a": target, "b": target + 1}
    weight, valid = bias_weights(), torch.tensor(Y) > 20
    shared, by_task, one = compose(), compose(), compose()
    total = shared(outputs, targets, sample_weight=weight, mask=valid)
    both = {"a": weight, "b": weight}
    assert torch.equal(total, by_task(outputs, targets, sample_weight=both, mask={"a": valid, "b": valid}))
    one(outputs, targets, sample_weight={"a": weight}, mask={"a": valid})
    assert shared.report is not None and one.report is not None
    plain = (prediction.detach() - targets["b"]).square().mean()
    assert one.report.losses[0] == shared.report.losses[0]
    torch.testing.assert_close(one.report.losses[1], plain)


# ---- tasks do not see each other


def two_tasks(shape: str = "mse", **options: Any) -> tuple[MultiTaskCriterion, Tensor, Tensor]:
    """A criterion after one call, and the gradients of both heads; ``shape`` and ``options`` concern the second task."""
    generator = torch.Generator().manual_seed(3)
    criterion = compose({"name": "fixed", "weights": [0.3, 2.0]}, {"first": "huber", "second": shape})
    first = torch.randn(8, generator=generator, dtype=torch.float64).requires_grad_()
    other = torch.randn(8, generator=generator, dtype=torch.float64).requires_grad_()
    outputs = {"first": first, "second": other}
    targets = {"first": torch.linspace(-1, 1, 8, dtype=torch.float64), "second": torch.tensor(Y, dtype=torch.float64)}
    total = criterion(outputs, targets, **options)
    total.backward()
    assert first.grad is not None and other.grad is not None
    return criterion, first.grad, other.grad


@pytest.mark.parametrize("change", ["shape", "mask", "sample_weight", "no label"])
def test_changing_one_task_leaves_the_other_alone(change: str) -> None:
    """Shape, mask and sample weights of one task change its own loss and gradient, and not a bit of the other's."""
    nothing = torch.zeros(8, dtype=torch.bool)
    options: dict[str, Any] = {
        "shape": {"shape": "failure_biased"},
        "mask": {"mask": {"second": torch.tensor(Y) > 20}},
        "sample_weight": {"sample_weight": {"second": bias_weights()}},
        "no label": {"mask": {"second": nothing}},
    }[change]
    before, first_before, second_before = two_tasks()
    after, first_after, second_after = two_tasks(**options)
    assert before.report is not None and after.report is not None
    assert before.report.losses[0] == after.report.losses[0]
    assert torch.equal(first_before, first_after)
    assert before.report.losses[1] != after.report.losses[1]
    assert not torch.equal(second_before, second_after)


SHAPES = {name: {"r_max": 5.0} if name == "failure_biased" else lookup("inner", name).example for name in available("inner")}
KINDS = [(name, kind) for name, options in SHAPES.items() for kind in sorted(create("inner", name, **options).kinds)]


@pytest.mark.parametrize(("inner", "kind"), KINDS)
@settings(max_examples=10)
@given(order=st.permutations(range(12)))
def test_permuting_samples_changes_nothing(inner: str, kind: Kind, order: list[int]) -> None:
    """The total is the same to 1e-12 in whatever order the samples come, with mask and weights, and gradients follow."""
    shape = create("inner", inner, **SHAPES[inner])
    generator = torch.Generator().manual_seed(1)
    size = (12, 4) if shape.pooled else (12,)
    prediction, target = shape.sample(kind, size, generator, torch.float64)
    mask = torch.rand(size, generator=generator) < 0.7
    weight = torch.rand(12, generator=generator, dtype=torch.float64)
    index = torch.tensor(order)

    def run(p: Tensor, y: Tensor, m: Tensor, w: Tensor) -> tuple[float, Tensor]:
        criterion = compose(inner={"rul": {"name": inner, **SHAPES[inner]}})
        return total_and_gradient(criterion, p, y, mask=m, sample_weight=w)

    total, gradient = run(prediction, target, mask, weight)
    moved, moved_gradient = run(prediction[index], target[index], mask[index], weight[index])
    assert moved == pytest.approx(total, rel=1e-12)
    torch.testing.assert_close(moved_gradient, gradient[index], rtol=1e-12, atol=1e-15)


# ---- the whole call


def test_the_total_is_the_weighted_sum_of_the_reported_losses() -> None:
    """The scalar is sum_i lambda_i L_i with the losses and weights of the report, and no task's loss is doctored."""
    criterion = compose({"name": "fixed", "weights": [0.25, 4.0]})
    prediction, target = seed_batch()
    logits = torch.zeros(8, 3, dtype=torch.float64, requires_grad=True)
    total = criterion((prediction, logits), (target, torch.zeros(8, dtype=torch.int64)))
    report = criterion.report
    assert report is not None
    torch.testing.assert_close(total.detach(), (report.losses * report.weights.double()).sum())
    assert report.losses[0].item() == pytest.approx(47.375, rel=1e-13)
    assert report.losses[1].item() == pytest.approx(1.0986122886681098, rel=1e-13)


def test_a_non_finite_loss_reaches_the_user() -> None:
    """A NaN prediction makes the total NaN, as with any PyTorch loss; its task is inactive and counted as dropped."""
    criterion = compose()
    prediction, target = seed_batch()
    bad = torch.where(torch.arange(8) == 2, torch.nan, prediction)
    total = criterion({"rul": bad, "other": prediction}, {"rul": target, "other": target})
    assert criterion.report is not None
    assert torch.isnan(total)
    assert torch.isnan(criterion.report.losses).tolist() == [True, False]
    assert criterion.report.active.tolist() == [False, True]
    assert criterion.report.dropped.tolist() == [1, 0]


def test_an_integer_target_is_computed_in_the_dtype_of_the_prediction() -> None:
    """Integer targets of a regression give what the same numbers give in float64."""
    prediction, target = seed_batch()
    for inner in ("mse", "failure_biased", "huber", "quantile"):
        whole, floating = compose(inner={"rul": inner}), compose(inner={"rul": inner})
        assert torch.equal(
            whole({"rul": prediction}, {"rul": target.long()}), floating({"rul": prediction}, {"rul": target})
        )
