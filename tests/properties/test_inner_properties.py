"""Mathematical properties of the built-in inner shapes, in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from mtl_axes import compose, create

# One entry per built-in shape and kind, with options that are not the neutral ones.
SHAPES: dict[str, tuple[str, dict[str, Any], str]] = {
    "mse": ("mse", {}, "regression"),
    "mae": ("mae", {}, "regression"),
    "huber": ("huber", {"delta": 1.3}, "regression"),
    "asymmetric": ("asymmetric", {"over": 2.0, "under": 0.3}, "regression"),
    "quantile": ("quantile", {"q": 0.2}, "regression"),
    "quantiles": ("quantile", {"q": (0.1, 0.5, 0.9)}, "quantiles"),
    "failure_biased": ("failure_biased", {"r_max": 50.0}, "regression"),
    "bce": ("bce", {"pos_weight": 2.0}, "binary"),
    "focal_binary": ("focal", {"gamma": 0.5, "alpha": 0.3}, "binary"),
    "cross_entropy": ("cross_entropy", {}, "multiclass"),
    "focal_multiclass": ("focal", {"gamma": 1.5, "alpha": (0.5, 1.0, 2.0)}, "multiclass"),
}
EVERY = pytest.mark.parametrize("key", list(SHAPES))
REGRESSION = pytest.mark.parametrize(
    "key", [key for key, (_, _, kind) in SHAPES.items() if kind in ("regression", "quantiles")]
)

Pair = tuple[Tensor, Tensor]


def build(key: str) -> Any:
    name, options, _ = SHAPES[key]
    return create("inner", name, **options)


def numbers(largest: float = 1e4) -> st.SearchStrategy[float]:
    return st.floats(-largest, largest, allow_subnormal=False)


@st.composite
def pairs(draw: st.DrawFn, kind: str = "regression", *, largest: float = 1e4, low: int = 1, high: int = 8) -> Pair:
    """Predictions and targets of one kind, in float64."""
    size = draw(st.integers(low, high))
    columns = 3 if kind in ("multiclass", "quantiles") else 1
    flat = draw(st.lists(numbers(largest), min_size=size * columns, max_size=size * columns))
    prediction = torch.tensor(flat, dtype=torch.float64)
    if columns > 1:
        prediction = prediction.reshape(size, columns)
    if kind == "multiclass":
        target = torch.tensor(draw(st.lists(st.integers(0, 2), min_size=size, max_size=size)))
    elif kind == "binary":
        target = torch.tensor(draw(st.lists(st.booleans(), min_size=size, max_size=size)))
    else:
        target = torch.tensor(draw(st.lists(numbers(largest), min_size=size, max_size=size)), dtype=torch.float64)
    return prediction, target


def close(actual: Tensor, expected: Tensor, rtol: float = 1e-12, atol: float = 1e-12) -> None:
    torch.testing.assert_close(actual, expected, rtol=rtol, atol=atol)


# ---- identities between shapes


@given(pairs())
def test_asymmetric_with_equal_sides_is_mse(pair: Pair) -> None:
    """asymmetric(1, 1) is mse."""
    assert torch.equal(create("inner", "asymmetric", over=1.0, under=1.0)(*pair), create("inner", "mse")(*pair))


@given(pairs(), st.floats(0.01, 10), st.floats(0.01, 10))
def test_asymmetric_is_a_scaled_expectile(pair: Pair, over: float, under: float) -> None:
    """asymmetric(o, u) is (o + u) times the expectile loss |tau - 1{e > 0}| e^2 at tau = u / (o + u)."""
    error, tau = pair[0] - pair[1], under / (over + under)
    expectile = torch.where(error > 0, torch.full_like(error, 1 - tau), torch.full_like(error, tau)) * error**2
    close(create("inner", "asymmetric", over=over, under=under)(*pair), (over + under) * expectile)


@given(pairs())
def test_median_is_half_the_absolute_error(pair: Pair) -> None:
    """quantile(0.5) is mae / 2."""
    assert torch.equal(create("inner", "quantile", q=0.5)(*pair), create("inner", "mae")(*pair) / 2)


@given(pairs())
def test_huber_with_a_large_delta_is_half_the_squared_error(pair: Pair) -> None:
    """Where delta exceeds every error, huber is mse / 2."""
    error = (pair[0] - pair[1]).abs()
    assume(bool(((error == 0) | (error > 1e-150)).all()))  # half of a subnormal square is rounded
    assert torch.equal(create("inner", "huber", delta=1e5)(*pair), create("inner", "mse")(*pair) / 2)


@given(pairs())
def test_huber_with_a_small_delta_is_a_scaled_absolute_error(pair: Pair) -> None:
    """huber / delta tends to mae as delta falls: it lies at most delta / 2 below."""
    gap = create("inner", "mae")(*pair) - create("inner", "huber", delta=1e-6)(*pair) / 1e-6
    assert bool((gap >= -1e-9).all()) and bool((gap <= 0.5e-6 + 1e-9).all())


@given(pairs(), st.floats(0.1, 1e4))
def test_failure_biased_lies_between_one_and_two_squared_errors(pair: Pair, r_max: float) -> None:
    """mse <= failure_biased <= 2 mse, with equality at the ends: beyond r_max, and at or below zero."""
    squared = create("inner", "mse")(*pair)
    biased = create("inner", "failure_biased", r_max=r_max)(*pair)
    assert bool((squared <= biased).all()) and bool((biased <= 2 * squared).all())
    assert torch.equal(biased[pair[1] >= r_max], squared[pair[1] >= r_max])
    assert torch.equal(biased[pair[1] <= 0], 2 * squared[pair[1] <= 0])


@given(pairs("quantiles"), st.lists(st.floats(0.01, 0.99), min_size=3, max_size=3, unique=True))
def test_several_quantiles_are_the_mean_of_single_ones(pair: Pair, levels: list[float]) -> None:
    """Several quantiles give the mean of the single ones, in value and gradient."""
    prediction, target = pair[0].requires_grad_(), pair[1]
    levels = sorted(levels)
    several = create("inner", "quantile", q=levels)(prediction, target)
    single = sum(create("inner", "quantile", q=q)(prediction[:, index], target) for index, q in enumerate(levels)) / 3
    close(several, single)
    close(*(torch.autograd.grad(loss.sum(), prediction)[0] for loss in (several, single)))


@given(pairs("binary"))
def test_unfocused_binary_focal_is_bce(pair: Pair) -> None:
    """focal(gamma=0) of a binary task is bce, and alpha=0.5 halves it."""
    close(create("inner", "focal", gamma=0.0)(*pair), create("inner", "bce")(*pair))
    close(create("inner", "focal", gamma=0.0, alpha=0.5)(*pair), create("inner", "bce")(*pair) / 2)


@given(pairs("multiclass"))
def test_unfocused_multiclass_focal_is_cross_entropy(pair: Pair) -> None:
    """focal(gamma=0) of a multiclass task is cross_entropy, in value and gradient."""
    prediction, target = pair[0].requires_grad_(), pair[1]
    focal, entropy = (
        create("inner", "focal", gamma=0.0)(prediction, target),
        create("inner", "cross_entropy")(prediction, target),
    )
    close(focal, entropy)
    close(*(torch.autograd.grad(loss.sum(), prediction)[0] for loss in (focal, entropy)))


@given(pairs("multiclass", largest=30.0), st.floats(0, 5))
def test_focus_only_takes_away(pair: Pair, gamma: float) -> None:
    """focal falls as gamma grows: the factor (1 - p)^gamma is at most 1."""
    weaker, stronger = (create("inner", "focal", gamma=value)(*pair) for value in (gamma, gamma + 0.5))
    assert bool((stronger <= weaker).all())


@given(pairs("binary", largest=500.0), st.sampled_from([0.0, 0.5, 2.0]))
def test_a_binary_task_is_a_multiclass_task_of_two(pair: Pair, gamma: float) -> None:
    """The logits (0, x) of two classes give the loss of the logit x, for focal and for the cross-entropies."""
    logits, target = pair
    two = torch.stack([torch.zeros_like(logits), logits], 1)
    close(create("inner", "focal", gamma=gamma)(two, target.long()), create("inner", "focal", gamma=gamma)(logits, target))
    close(create("inner", "cross_entropy")(two, target.long()), create("inner", "bce")(logits, target))


@pytest.mark.parametrize("key", ["cross_entropy", "focal_multiclass"])
@given(pair=pairs("multiclass", largest=100.0), shift=st.floats(-100, 100))
def test_a_common_shift_of_the_logits_changes_nothing(key: str, pair: Pair, shift: float) -> None:
    """Multiclass losses depend on differences of logits alone."""
    torch.testing.assert_close(build(key)(pair[0] + shift, pair[1]), build(key)(*pair), rtol=1e-9, atol=1e-10)


# ---- symmetries


@given(pairs(), st.floats(0.01, 0.99))
def test_a_mirrored_quantile_is_the_opposite_one(pair: Pair, q: float) -> None:
    """quantile(q) of the negated problem is quantile(1 - q)."""
    close(create("inner", "quantile", q=q)(-pair[0], -pair[1]), create("inner", "quantile", q=1 - q)(*pair))


@given(pairs(), st.floats(0, 10), st.floats(0.1, 10))
def test_a_mirrored_asymmetric_swaps_its_sides(pair: Pair, over: float, under: float) -> None:
    """asymmetric(o, u) of the negated problem is asymmetric(u, o)."""
    mirrored = create("inner", "asymmetric", over=over, under=under)(-pair[0], -pair[1])
    assert torch.equal(mirrored, create("inner", "asymmetric", over=under, under=over)(*pair))


@pytest.mark.parametrize(("key", "degree"), [("mse", 2), ("asymmetric", 2), ("mae", 1), ("quantile", 1), ("quantiles", 1)])
@given(data=st.data(), factor=st.floats(0.01, 100))
def test_homogeneity(key: str, degree: int, data: st.DataObject, factor: float) -> None:
    """Scaling prediction and target by c scales squared errors by c^2, and absolute ones by c."""
    prediction, target = data.draw(pairs(SHAPES[key][2]))
    scaled, plain = build(key)(factor * prediction, factor * target), build(key)(prediction, target)
    # A difference of values of some size is known to that size times the rounding of one of them.
    size = factor * float(max(prediction.abs().max(), target.abs().max()))
    close(scaled, factor**degree * plain, rtol=1e-9, atol=max(1e-12, 1e-14 * size**degree))


@pytest.mark.parametrize(("name", "option"), [("huber", "delta"), ("failure_biased", "r_max")])
@given(pair=pairs(), size=st.floats(0.5, 50), factor=st.floats(0.01, 100))
def test_homogeneity_with_an_option_in_target_units(name: str, option: str, pair: Pair, size: float, factor: float) -> None:
    """huber and failure_biased scale by c^2 when their option, which is in target units, is scaled as well."""
    scaled = create("inner", name, **{option: factor * size})(factor * pair[0], factor * pair[1])
    reach = factor * float(max(pair[0].abs().max(), pair[1].abs().max(), size))
    close(scaled, factor**2 * create("inner", name, **{option: size})(*pair), rtol=1e-9, atol=max(1e-12, 1e-14 * reach**2))


# ---- contracts of every shape


@EVERY
@given(data=st.data())
def test_losses_are_finite_and_not_negative(key: str, data: st.DataObject) -> None:
    """Every loss is finite, at least the declared lower bound 0, and has the shape of the target."""
    prediction, target = data.draw(pairs(SHAPES[key][2]))
    shape = build(key)
    loss = shape(prediction, target)
    assert shape.lower_bound == 0.0
    assert loss.shape == target.shape
    assert bool(torch.isfinite(loss).all()) and bool((loss >= 0).all())


@EVERY
@given(data=st.data())
def test_gradients_are_finite(key: str, data: st.DataObject) -> None:
    """No gradient is NaN or infinite, wherever the prediction lies."""
    prediction, target = data.draw(pairs(SHAPES[key][2]))
    prediction.requires_grad_()
    (gradient,) = torch.autograd.grad(build(key)(prediction, target).sum(), prediction)
    assert bool(torch.isfinite(gradient).all())


@REGRESSION
@given(target=st.lists(numbers(), min_size=1, max_size=5))
def test_a_perfect_prediction_costs_nothing(key: str, target: list[float]) -> None:
    """At e = 0 the loss is 0, and the gradient is finite and no larger than the slopes on either side."""
    targets = torch.tensor(target, dtype=torch.float64)
    prediction = targets.unsqueeze(-1).repeat(1, 3) if SHAPES[key][2] == "quantiles" else targets.clone()
    prediction.requires_grad_()
    loss = build(key)(prediction, targets)
    (gradient,) = torch.autograd.grad(loss.sum(), prediction)
    assert torch.equal(loss, torch.zeros_like(targets))
    assert bool((gradient.abs() <= 1).all())


@pytest.mark.parametrize("gamma", [0.1, 0.5, 0.9, 1.0, 2.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_focal_at_saturated_logits(gamma: float, dtype: torch.dtype) -> None:
    """Where p rounds to 1, focal and its gradient are 0 and not NaN, also at gamma < 1; where p rounds to 0, slope 1."""
    logits = torch.tensor([1e4, 40.0, -1e4, -40.0], dtype=dtype, requires_grad=True)
    focal = create("inner", "focal", gamma=gamma)
    loss = focal(logits, torch.ones(4, dtype=torch.bool))
    (gradient,) = torch.autograd.grad(loss.sum(), logits)
    expected = torch.tensor([0.0, 0.0, 1e4, 40.0], dtype=dtype)
    torch.testing.assert_close(loss, expected, atol=float(torch.exp(torch.tensor(-40.0 * gamma))), rtol=1e-6)
    torch.testing.assert_close(gradient[2:], -torch.ones(2, dtype=dtype))
    assert bool(torch.isfinite(gradient).all()) and gradient[0] == 0
    two = torch.tensor([[0.0, 1e4, 0.0], [0.0, -1e4, 0.0]], dtype=dtype, requires_grad=True)
    multiclass = focal(two, torch.tensor([1, 1]))
    (gradient,) = torch.autograd.grad(multiclass.sum(), two)
    assert bool(torch.isfinite(multiclass).all()) and bool(torch.isfinite(gradient).all())


@EVERY
def test_gradients_are_those_of_the_loss(key: str) -> None:
    """Away from kinks, the gradient agrees with finite differences."""
    kind = SHAPES[key][2]
    generator = torch.Generator().manual_seed(0)
    offsets = torch.tensor([-30.0, -2.0, -0.4, 0.6, 3.0, 25.0], dtype=torch.float64)
    if kind == "multiclass":
        prediction = torch.randn(6, 3, generator=generator, dtype=torch.float64)
        target = torch.tensor([0, 1, 2, 0, 1, 2])
    elif kind == "binary":
        prediction, target = offsets / 4, torch.tensor([True, False] * 3)
    else:
        target = torch.tensor([-3.0, 0.5, 20.0, 45.0, 60.0, 90.0], dtype=torch.float64)
        prediction = target + offsets
        if kind == "quantiles":
            prediction = torch.stack([prediction - 1, prediction, prediction + 0.1], -1)
    assert torch.autograd.gradcheck(lambda p: build(key)(p, target), prediction.requires_grad_())


@EVERY
@given(data=st.data())
def test_permutation_equivariance(key: str, data: st.DataObject) -> None:
    """The loss of a sample does not depend on its place in the batch."""
    prediction, target = data.draw(pairs(SHAPES[key][2], low=2))
    order = torch.tensor(data.draw(st.permutations(range(len(target)))))
    close(build(key)(prediction[order], target[order]), build(key)(prediction, target)[order])


@EVERY
@given(data=st.data())
def test_concatenation(key: str, data: st.DataObject) -> None:
    """The losses of two batches are those of the joint batch: shapes of coupling "sample" see one sample at a time."""
    first, second = data.draw(pairs(SHAPES[key][2])), data.draw(pairs(SHAPES[key][2]))
    shape = build(key)
    assert shape.coupling == "sample"
    joint = shape(torch.cat([first[0], second[0]]), torch.cat([first[1], second[1]]))
    close(joint, torch.cat([shape(*first), shape(*second)]))


@EVERY
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@settings(max_examples=30)
@given(data=st.data())
def test_dtype_is_preserved(key: str, dtype: torch.dtype, data: st.DataObject) -> None:
    """A shape answers in the dtype of its prediction, and close to its answer in float64."""
    prediction, target = data.draw(pairs(SHAPES[key][2], largest=8.0))
    prediction = prediction.to(dtype)
    target = target.to(dtype) if target.is_floating_point() else target
    loss = build(key)(prediction, target)
    assert loss.dtype == dtype
    exact = build(key)(prediction.double(), target.double() if target.is_floating_point() else target)
    precision = torch.finfo(dtype).eps
    torch.testing.assert_close(loss.double(), exact, rtol=16 * precision, atol=256 * precision)


@EVERY
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@settings(max_examples=30)
@given(data=st.data())
def test_criterion_computes_in_single_precision(key: str, dtype: torch.dtype, data: st.DataObject) -> None:
    """With half precision outputs a criterion gives, bit for bit, what the same numbers give in float32."""
    name, options, kind = SHAPES[key]
    prediction, target = data.draw(pairs(kind, largest=1e3))
    half = prediction.to(dtype).requires_grad_()
    single = half.detach().float().requires_grad_()
    if target.is_floating_point():
        target = target.to(dtype).float()
        assume(bool(target.abs().max() > 1))  # below 1 % of r_max, failure_biased warns
    totals = [compose(inner={"task": {"name": name, **options}})({"task": p}, {"task": target}) for p in (half, single)]
    gradients = [torch.autograd.grad(total, p)[0] for total, p in zip(totals, (half, single), strict=True)]
    assert totals[0].dtype == torch.float32
    assert torch.equal(totals[0], totals[1])
    assert torch.equal(gradients[0], gradients[1].to(dtype))


def test_squares_of_half_precision_errors_do_not_overflow() -> None:
    """300^2 overflows float16; inside the criterion it does not."""
    prediction = torch.full((4,), 300.0, dtype=torch.float16, requires_grad=True)
    total = compose(inner={"rul": "mse"})({"rul": prediction}, {"rul": torch.zeros(4, dtype=torch.float16)})
    total.backward()
    assert total.item() == 90_000.0
    assert prediction.grad is not None and prediction.grad.tolist() == [150.0] * 4
