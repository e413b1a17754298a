"""Target weights: their curves, their fit to labels, and any base through Reweighted."""

from __future__ import annotations

import copy
import math
import pickle
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from scipy.signal import windows
from torch import Tensor

from mtl_axes import InnerShape, TargetWeight, available, compose, create
from mtl_axes.errors import DataError, OptionError, UnknownNameError
from mtl_axes.inner import LDS, MSE, ClassBalanced, FailureBias, InverseFrequency, Ramp, Reweighted, mtl_axes_target_weights
from mtl_axes.registry import resolve

WEIGHTS: dict[str, dict[str, Any]] = {
    "class_balanced": {"counts": [1000, 100, 10], "beta": 0.99},
    "exponential": {"scale": -3.0, "origin": 2.0, "floor": 0.5, "gain": 4.0},
    "failure_biased": {"r_max": 20.0},
    "inverse_frequency": {"counts": [40, 10, 2], "width": 2.0, "power": 0.5, "clip": [3, 20]},
    "lds": {"counts": [40, 10, 2, 0, 1], "low": -2.0, "kernel": "laplace", "size": 3},
    "ramp": {"low": -1.0, "high": 4.0, "at_low": 0.1, "at_high": 0.3},
    "step": {"threshold": 1.0, "below": 0.1, "above": 0.3},
}
EVERY = pytest.mark.parametrize("name", list(WEIGHTS))


def weight_of(name: str) -> TargetWeight:
    return create("weight", name, **WEIGHTS[name])


def labels_for(weight: TargetWeight, dtype: torch.dtype = torch.float64) -> Tensor:
    """Labels that a weight takes, some of them integers."""
    generator = torch.Generator().manual_seed(0)
    if "regression" not in weight.kinds:
        return torch.randint(3, (9,), generator=generator).to(dtype)
    return (4 * torch.randn(9, generator=generator, dtype=torch.float64)).to(dtype)


def close(actual: Tensor, expected: Any, rtol: float = 1e-13) -> None:
    torch.testing.assert_close(actual, torch.as_tensor(expected, dtype=actual.dtype), rtol=rtol, atol=0)


# ---- contracts


def test_every_weight_is_tried() -> None:
    """The options above cover the built-in weights."""
    assert set(WEIGHTS) == set(mtl_axes_target_weights()) <= set(available("weight"))


@EVERY
def test_the_example_of_a_weight_builds_it(name: str) -> None:
    """The options that a weight is shown with are those of a constructor call."""
    assert isinstance(create("weight", name, **type(weight_of(name)).example), TargetWeight)


@EVERY
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("size", [(9,), (3, 3), (3, 1, 3)])
def test_one_finite_weight_per_target(name: str, dtype: torch.dtype, size: tuple[int, ...]) -> None:
    """A weight is finite, not negative, in the dtype and shape of the target, and sees each entry by itself."""
    weight = weight_of(name)
    target = labels_for(weight, dtype)
    weights = weight(target.reshape(size))
    assert weights.shape == size and weights.dtype == dtype
    assert bool(weights.isfinite().all()) and bool((weights >= 0).all()) and bool((weights > 0).any())
    assert torch.equal(weights.flatten(), torch.stack([weight(entry) for entry in target]))


@EVERY
def test_copies_and_reprs_build_the_same_weight(name: str) -> None:
    """repr is the constructor call, options its arguments, and a copy weighs the same."""
    weight = weight_of(name)
    target = labels_for(weight)
    built = [
        eval(repr(weight), {type(weight).__name__: type(weight)}),
        create("weight", name, **weight.options()),
        copy.deepcopy(weight),
        pickle.loads(pickle.dumps(weight)),
    ]
    for other in built:
        assert repr(other) == repr(weight)
        assert torch.equal(other(target), weight(target))


@EVERY
def test_a_weight_reads_no_value(name: str) -> None:
    """forward runs on the meta device, where reading a value is an error."""
    weight = weight_of(name)
    assert weight(labels_for(weight).to("meta")).shape == (9,)


@EVERY
def test_casting_a_weight_changes_nothing(name: str) -> None:
    """Weights hold no state that .half() could round."""
    weight = weight_of(name)
    target = labels_for(weight)
    assert torch.equal(weight_of(name).half()(target), weight(target))
    assert not weight.state_dict()


@pytest.mark.parametrize("name", ["lds", "step"])
def test_a_compiled_weight_is_one_graph(name: str) -> None:
    """torch.compile takes a weight as a whole."""
    torch._dynamo.reset()
    weight = weight_of(name)
    target = labels_for(weight)
    close(torch.compile(weight, fullgraph=True, backend="eager")(target), weight(target))


# ---- curves


def test_failure_bias_is_a_ramp() -> None:
    """failure_biased is the ramp from 2 at 0 to 1 at r_max."""
    target = torch.linspace(-50, 300, 71, dtype=torch.float64)
    ramp = create("weight", "ramp", low=0.0, high=125.0, at_low=2.0, at_high=1.0)
    close(create("weight", "failure_biased")(target), ramp(target))


@given(st.floats(-1e3, 1e3), st.floats(1e-3, 1e3), st.floats(0, 10), st.floats(0.01, 10))
@settings(max_examples=40)
def test_ramp_is_exact_at_its_ends_and_straight_between(low: float, width: float, at_low: float, at_high: float) -> None:
    """At and beyond its ends a ramp is the weight given there, to the last bit, and half way the mean of both."""
    high = low + width
    if high <= low:
        return
    target = torch.tensor([low - 1, low, high, high + 1, (low + high) / 2], dtype=torch.float64)
    weights = Ramp(low=low, high=high, at_low=at_low, at_high=at_high)(target)
    assert weights[:4].tolist() == [at_low, at_low, at_high, at_high]
    assert weights[4].item() == pytest.approx((at_low + at_high) / 2, rel=1e-6)


def test_step_is_exact_in_float64() -> None:
    """The two weights are not rounded to float32, the threshold itself is above, and integers have their weight too."""
    step = create("weight", "step", threshold=2.0, below=0.1, above=0.3)
    assert step(torch.tensor([1.9, 2.0, 2.1], dtype=torch.float64)).tolist() == [0.1, 0.3, 0.3]
    close(step(torch.tensor([1, 2, 3])), [0.1, 0.3, 0.3], rtol=1e-6)


@pytest.mark.parametrize("side", [1.0, -1.0])
def test_exponential_falls_on_the_side_of_its_sign(side: float) -> None:
    """The weight is floor + gain up to the origin, falls by exp(-1) of its gain per scale, and never overflows."""
    weight = create("weight", "exponential", scale=side * 2.0, origin=1.0, floor=0.5, gain=3.0)
    target = 1 + side * torch.tensor([-1e30, -1.0, 0.0, 2.0, 4.0, 1e30], dtype=torch.float64)
    expected = [3.5, 3.5, 3.5, 0.5 + 3 * math.exp(-1), 0.5 + 3 * math.exp(-2), 0.5]
    close(weight(target), expected)


# ---- fitted to labels


def ages() -> Tensor:
    """Labels like ages: many of middle size, few large ones, some values missing, some beyond the last bin."""
    generator = np.random.default_rng(0)
    values = generator.gamma(3, 9, size=3000)
    values[:3] = [130.0, 125.5, 119.9]
    return torch.tensor(values[(values < 60) | (values > 65)])


def published_weights(labels: Tensor, *, reweight: str, kernel: str | None, size: int = 5, sigma: float = 2.0) -> np.ndarray:
    """The weights of the imbalanced-regression repository for 121 bins, from scipy's filters and the text of its paper."""
    bins = np.minimum(120, labels.numpy().astype(int))
    counts = np.bincount(bins, minlength=121).astype(float)
    sizes = np.sqrt(counts) if reweight == "sqrt_inv" else np.clip(counts, 5, 1000)
    if kernel is not None:
        half = (size - 1) // 2
        shifts = np.arange(-half, half + 1)
        window = {
            "gaussian": lambda: ndimage.gaussian_filter1d((shifts == 0).astype(float), sigma=sigma),
            "triangular": lambda: windows.triang(size),
            "laplace": lambda: np.exp(-np.abs(shifts) / sigma),
        }[kernel]()
        sizes = ndimage.convolve1d(sizes, weights=window / window.max(), mode="constant")
    weights = 1 / sizes[bins]
    return weights * len(weights) / weights.sum()


@pytest.mark.parametrize(
    ("reweight", "options"), [("sqrt_inv", {"power": 0.5}), ("inverse", {"power": 1.0, "clip": (5, 1000)})]
)
@pytest.mark.parametrize(
    ("kernel", "size", "sigma"),
    [("gaussian", 5, 2.0), ("gaussian", 9, 1.0), ("gaussian", 3, 4.0), ("triangular", 5, 2.0), ("laplace", 7, 3.0)],
)
def test_lds_is_that_of_its_repository(reweight: str, options: dict[str, Any], kernel: Any, size: int, sigma: float) -> None:
    """lds gives the weights of imbalanced-regression, of mean 1, for its two reweightings and three kernels."""
    labels = ages()
    weight = LDS.from_labels(labels, bins=121, kernel=kernel, size=size, sigma=sigma, **options)
    expected = published_weights(labels, reweight=reweight, kernel=kernel, size=size, sigma=sigma)
    close(weight(labels), expected, rtol=1e-12)
    assert weight(labels).mean().item() == pytest.approx(1.0, rel=1e-12)


@pytest.mark.parametrize(
    ("reweight", "options"), [("sqrt_inv", {"power": 0.5}), ("inverse", {"power": 1.0, "clip": (5, 1000)})]
)
def test_inverse_frequency_is_that_of_the_same_repository(reweight: str, options: dict[str, Any]) -> None:
    """inverse_frequency is the same without smoothing, as is lds with a kernel of one bin."""
    labels = ages()
    expected = published_weights(labels, reweight=reweight, kernel=None)
    close(InverseFrequency.from_labels(labels, bins=121, **options)(labels), expected, rtol=1e-12)
    close(LDS.from_labels(labels, bins=121, size=1, **options)(labels), expected, rtol=1e-12)


def test_inverse_frequency_gives_every_bin_the_same_total() -> None:
    """With power 1 the weights of the labels of each bin add up to the same, with power 0 all weights are 1."""
    labels = torch.tensor([0.5] * 12 + [2.5] * 3 + [4.5])
    weight = InverseFrequency.from_labels(labels, width=2.0)
    assert weight.counts == (12, 3, 1)
    totals = torch.stack([weight(labels)[labels == value].sum() for value in (0.5, 2.5, 4.5)])
    torch.testing.assert_close(totals, torch.full((3,), 16 / 3))
    assert InverseFrequency((12, 3, 1), power=0.0)(labels).tolist() == [1.0] * 16


def test_bins_at_their_edges_and_beyond() -> None:
    """An edge is in the upper bin, what is beyond the ends in the first or last; an empty bin has the largest weight."""
    weight = InverseFrequency((4, 0, 1), low=10.0, width=5.0)
    assert weight(torch.tensor([-99.0, 10.0, 14.9])).tolist() == weight(torch.full((3,), 12.0)).tolist()
    largest = weight(torch.tensor(20.0)).item()
    assert largest == pytest.approx(4 * weight(torch.tensor(10.0)).item())
    assert weight(torch.tensor([15.0, 19.9, 20.0, 1e30, math.inf])).tolist() == [largest] * 5


def test_lds_of_a_gap_is_finite() -> None:
    """A bin that no kernel reaches takes the largest weight of the others."""
    weight = LDS((9, 0, 0, 0, 0, 0, 4), size=3)
    weights = weight(torch.arange(7.0))
    assert bool(weights.isfinite().all())
    assert weights[3] == weights.max()


@pytest.mark.parametrize("beta", [0.0, 0.9, 0.9999, 1 - 1e-12])
def test_class_balanced_is_its_formula(beta: float) -> None:
    """The weights are proportional to (1 - beta) / (1 - beta^n), sum to the number of classes, and tend to 1/n."""
    counts = [1000, 100, 10, 1]
    weights = ClassBalanced(counts, beta=beta)(torch.arange(4).double())
    assert weights.sum().item() == pytest.approx(4, rel=1e-14)
    near_one = beta > 0.99999
    effective = np.array([n if near_one else (1 - beta**n) / (1 - beta) for n in counts])
    close(weights, 4 / effective / (1 / effective).sum(), rtol=1e-8)


def test_class_balanced_counts_labels() -> None:
    """from_labels counts indices and bools, and refuses a class without any label."""
    assert ClassBalanced.from_labels(torch.tensor([[0, 2], [1, 0]])).counts == (2, 1, 1)
    assert ClassBalanced.from_labels(torch.tensor([True, False, True])).counts == (1, 2)
    with pytest.raises(OptionError, match=r"`counts` should be a number in \(0"):
        ClassBalanced.from_labels(torch.tensor([0, 2]))
    with pytest.raises(OptionError, match=r"`counts` should be a number in \(0"):
        ClassBalanced.from_labels(torch.tensor([0, 1]), classes=3)
    with pytest.raises(DataError, match=r"below classes=2\. Found 0\.\.2"):
        ClassBalanced.from_labels(torch.tensor([0, 2]), classes=2)


@pytest.mark.parametrize("labels", [torch.tensor([]), torch.tensor([1.0, torch.nan])])
def test_labels_without_numbers_are_refused(labels: Tensor) -> None:
    """Fitting needs at least one label, and finite ones."""
    with pytest.raises(DataError, match="labels should be finite numbers"):
        LDS.from_labels(labels)


# ---- Reweighted


class PerSample(InnerShape):
    """A shape that pools the entries of a sample."""

    kinds = frozenset({"regression"})
    pooled = True


def test_parts_by_name_mapping_and_object_are_the_same() -> None:
    """Base and weight may be a name, a mapping or an object; the repr is the same, and so is the loss."""
    ramp = {"name": "ramp", "low": -1.0, "high": 3.0}
    shapes = [
        create("inner", "reweighted", base="mae", weight=ramp),
        Reweighted({"name": "mae"}, resolve("weight", ramp)),
        Reweighted(create("inner", "mae"), Ramp(low=-1.0, high=3.0)),
    ]
    prediction, target = torch.tensor([0.0, 2.0, 9.0]), torch.tensor([-2.0, 1.0, 5.0])
    assert len({repr(shape) for shape in shapes}) == 1
    for shape in shapes:
        assert shape(prediction, target).tolist() == [2.0, 1.5, 8.0]
    assert repr(create("inner", "reweighted")) == "Reweighted(base=MSE(), weight=FailureBias(r_max=125.0))"


@pytest.mark.parametrize("weight", ["exponential", "failure_biased", "inverse_frequency", "lds", "ramp", "step"])
@pytest.mark.parametrize("base", ["mse", "huber", "expectile", "nasa", "gaussian_nll", "crps_ensemble", "bmc", "gamma"])
def test_any_base_goes_with_any_weight(base: str, weight: str) -> None:
    """The loss is weight times base, the gradient too, and criterion.config() builds the same criterion."""
    shape = create("inner", "reweighted", base=base, weight={"name": weight, **WEIGHTS[weight]})
    plain = create("inner", base)
    prediction, target = shape.sample("regression", (6,), torch.Generator().manual_seed(1), torch.float64)
    prediction.requires_grad_()
    losses, expected = shape(prediction, target), weight_of(weight)(target) * plain(prediction, target)
    close(losses, expected.detach())
    gradients = [torch.autograd.grad(loss.sum(), prediction)[0] for loss in (losses, expected)]
    close(gradients[0], gradients[1])
    assert (shape.coupling, shape.trailing, shape.lower_bound) == (plain.coupling, plain.trailing, plain.lower_bound)
    assert (shape.target_range, shape.prediction_range) == (plain.target_range, plain.prediction_range)
    criterion = compose(inner={"a": shape})
    config = criterion.config()
    assert config["inner"]["a"]["base"]["name"] == base and config["inner"]["a"]["weight"]["name"] == weight
    again = compose(**config)
    assert repr(again) == repr(criterion)
    assert torch.equal(again({"a": prediction}, {"a": target}), criterion({"a": prediction}, {"a": target}))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(("base", "kind"), [("cross_entropy", "multiclass"), ("focal", "multiclass"), ("bce", "binary")])
@pytest.mark.parametrize("weight", ["class_balanced", "inverse_frequency"])
def test_class_weights_go_with_classification(weight: str, base: str, kind: Any, dtype: torch.dtype) -> None:
    """Integer and bool labels are weighted by their class, with the digits of the prediction."""
    counts = [9.0, 2.0, 1.0]
    shape = create("inner", "reweighted", base=base, weight={"name": weight, "counts": counts})
    plain = create("inner", base)
    logits, target = shape.sample(kind, (12,), torch.Generator().manual_seed(1), dtype)
    assert not target.is_floating_point()
    table = create("weight", weight, counts=counts)(torch.arange(3, dtype=torch.float64)).to(dtype)
    losses = shape(logits, target)
    assert losses.dtype == dtype
    close(losses, table[target.long()] * plain(logits, target), rtol=4 * torch.finfo(dtype).eps)
    criterion = compose(inner={"a": shape})
    close(criterion({"a": logits}, {"a": target}), losses.mean(), rtol=1e-6)


def test_integer_regression_labels_are_weighted_exactly() -> None:
    """Integer targets of a regression get the weights of the same numbers in float64; half precision stays what it is."""
    target = torch.tensor([3, 30, 90])
    shape = create("inner", "reweighted")
    prediction = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
    assert torch.equal(shape(prediction, target), shape(prediction, target.double()))
    half = shape(torch.zeros(2, dtype=torch.bfloat16), torch.tensor([1.0, 2.0], dtype=torch.bfloat16))
    assert half.dtype == torch.bfloat16


def test_the_weights_stay_out_of_the_denominator() -> None:
    """A weight of 3 triples loss and gradient of a sample: the mean is over samples, not over weights."""
    criterion = compose(inner={"a": {"name": "reweighted", "weight": {"name": "step", "below": 3.0, "above": 3.0}}})
    prediction, target = torch.tensor([1.0, 4.0]), torch.tensor([0.0, 2.0])
    assert criterion({"a": prediction}, {"a": target}).item() == pytest.approx(3 * (1 + 4) / 2)


def test_a_masked_batch_is_masked_within_its_base() -> None:
    """A base that couples the batch gets the mask: the weighted loss is that of the batch without the masked samples."""
    generator = torch.Generator().manual_seed(0)
    target = 3 * torch.randn(8, generator=generator, dtype=torch.float64)
    prediction = target + torch.randn(8, generator=generator, dtype=torch.float64)
    valid = torch.tensor([True, True, False, True, False, True, True, True])
    shape = create("inner", "reweighted", base={"name": "bmc", "noise": 2.0}, weight={"name": "ramp", "at_high": 5.0})
    assert shape.masks and shape.coupling == "batch"
    expected = shape(prediction[valid], target[valid]).mean()
    hidden = torch.where(valid, target, torch.nan)
    total = compose(inner={"a": shape})({"a": prediction}, {"a": hidden}, mask={"a": valid})
    close(total, expected, rtol=1e-12)
    close(compose(inner={"a": shape}, missing="ignore")({"a": prediction}, {"a": hidden}), expected, rtol=1e-12)


# ---- bad input


def test_parts_that_do_not_go_together_are_refused() -> None:
    """A pooled base, kinds without an overlap, an unknown name and what is no strategy are refused, each by name."""
    with pytest.raises(OptionError, match=r"PerSample\(\) pools .* needs a base with one loss per target"):
        Reweighted(PerSample(), "ramp")
    with pytest.raises(OptionError, match=r"MSE\(\) serves regression, but ClassBalanced\(.*\) serves binary, multiclass"):
        create("inner", "reweighted", base="mse", weight={"name": "class_balanced", "counts": [1, 2]})
    with pytest.raises(UnknownNameError, match=r"No weight strategy is named 'rampe'\. Did you mean 'ramp'"):
        Reweighted("mse", "rampe")
    with pytest.raises(OptionError, match=r"Option `weight` should be a registered name.*Found MSE\(\)"):
        Reweighted("mse", MSE())  # type: ignore[arg-type]
    with pytest.raises(OptionError, match=r"Option `base` should be a registered name.*Found 3"):
        Reweighted(3, "ramp")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("ramp", {"low": 1.0, "high": 1.0}, r"`high` should be above `low`\. Found low=1\.0 and high=1\.0"),
        ("ramp", {"at_low": 0.0, "at_high": 0.0}, r"One of `at_low` and `at_high` should be positive"),
        ("ramp", {"at_low": -1.0}, r"`at_low` should be a number in \[0"),
        ("step", {"below": 0.0, "above": 0.0}, r"One of `below` and `above` should be positive"),
        ("exponential", {"scale": 0.0}, r"`scale` should not be 0"),
        ("exponential", {"gain": 0.0}, r"`gain` should be a number in \(0"),
        ("inverse_frequency", {}, r"counts"),
        ("inverse_frequency", {"counts": 3}, r"`counts` should be a sequence of numbers"),
        ("inverse_frequency", {"counts": "12"}, r"`counts` should be a sequence of numbers"),
        ("inverse_frequency", {"counts": [0, 0]}, r"`counts` should hold a positive count"),
        ("inverse_frequency", {"counts": [1, -1]}, r"`counts` should be a number in \[0"),
        ("inverse_frequency", {"counts": [1], "power": 2.0}, r"`power` should be a number in \[0.0, 1.0\]"),
        ("inverse_frequency", {"counts": [1], "width": 0.0}, r"`width` should be a number in \(0"),
        ("inverse_frequency", {"counts": [1], "clip": [5]}, r"`clip` should be None or two counts"),
        ("inverse_frequency", {"counts": [1], "clip": [5, 4]}, r"`clip` should be a number in \[5, inf"),
        ("lds", {"counts": [1], "size": 4}, r"`size` should be odd"),
        ("lds", {"counts": [1], "kernel": "box"}, r"`kernel` should be one of 'gaussian', 'triangular', 'laplace'"),
        ("class_balanced", {"counts": [3, 0]}, r"`counts` should be a number in \(0"),
        ("class_balanced", {"counts": [3, 1], "beta": 1.0}, r"`beta` should be a number in \[0.0, 1.0\)"),
    ],
)
def test_options_out_of_range_are_refused(name: str, options: dict[str, Any], message: str) -> None:
    """An option outside its range is an error of the constructor that says so."""
    with pytest.raises(OptionError, match=message):
        create("weight", name, **options)


def test_labels_without_a_count_are_refused() -> None:
    """In its first call a criterion refuses a class for which class_balanced has no count, and soft labels."""
    shape = create("inner", "reweighted", base="cross_entropy", weight={"name": "class_balanced", "counts": [3, 1]})
    with pytest.raises(DataError, match=r"counts for 2 classes, so targets .* class indices in \[0, 1\]\. Found 0\.\.2"):
        compose(inner={"a": shape})({"a": torch.zeros(3, 4)}, {"a": torch.tensor([0, 2, 1])})
    soft = create("inner", "reweighted", base="bce", weight={"name": "class_balanced", "counts": [3, 1]})
    with pytest.raises(DataError, match=r"class indices in \[0, 1\]\. Found 0\.\.0\.5"):
        compose(inner={"a": soft})({"a": torch.zeros(2)}, {"a": torch.tensor([0.0, 0.5])})


def test_a_class_without_a_bin_is_refused() -> None:
    """inverse_frequency refuses a class beyond its counts, or below them; labels of a regression count to the last bin."""
    weight = {"name": "inverse_frequency", "counts": [3, 1]}
    refused = r"inverse_frequency has counts for 2 classes, so class targets should be their indices\. Found "
    for base, target, found in (
        ("cross_entropy", torch.tensor([0, 2, 1]), r"0\.\.2"),
        ("bce", torch.tensor([True, False]), None),
        ("mse", torch.tensor([0.0, 2.0, 7.0]), None),
        ("mse", torch.tensor([-1, 2, 7]), None),
    ):
        prediction = torch.zeros(3, 4) if base == "cross_entropy" else torch.zeros(len(target))
        criterion = compose(inner={"a": create("inner", "reweighted", base=base, weight=weight)})
        if found is None:
            assert bool(criterion({"a": prediction}, {"a": target}).isfinite())
        else:
            with pytest.raises(DataError, match=refused + found):
                criterion({"a": prediction}, {"a": target})
    one = InverseFrequency((3,))
    with pytest.raises(DataError, match=r"counts for 1 classes, .*Found 0\.\.1"):
        one.check_values(torch.tensor([False, True]))
    with pytest.raises(DataError, match=r"Found -1\.\.0"):
        one.check_values(torch.tensor([0, -1]))
    one.check_values(torch.tensor([0, 0]))
    LDS((3, 1)).check_values(torch.tensor([0, 9]))


@pytest.mark.parametrize("name", ["class_balanced", "inverse_frequency", "lds"])
def test_counts_of_any_library(name: str) -> None:
    """Arrays, tensors and lists of their numbers are counts; a mapping, whose entries are its keys, is none."""
    expected = repr(create("weight", name, counts=(5, 3, 2)))
    for counts in (np.array([5, 3, 2]), list(np.array([5, 3, 2])), torch.tensor([5, 3, 2]), list(torch.tensor([5, 3, 2]))):
        assert repr(create("weight", name, counts=counts)) == expected
    for counts in (Counter([1, 1, 2]), {3, 4}):
        with pytest.raises(OptionError, match=r"`counts` should be a sequence of numbers\. Found counts="):
            create("weight", name, counts=counts)


def test_unlabelled_classes_are_not_counted() -> None:
    """The index -100 does not pass for the first class, as other labels below the first bin do."""
    labels = torch.tensor([0, 1, 1, -100])
    with pytest.raises(DataError, match="A label is -100, which marks unlabelled samples"):
        InverseFrequency.from_labels(labels)
    with pytest.raises(DataError, match=r"Found -100\.\.1"):
        ClassBalanced.from_labels(labels)
    assert InverseFrequency.from_labels(labels, low=-100.0, width=100.0).counts == (1, 3)
    assert ClassBalanced.from_labels([0, 1, 1]).counts == (1, 2)


def test_what_is_no_class_and_no_bin_is_refused() -> None:
    """from_labels counts no fractions as classes, and takes no number of bins that holds nothing."""
    with pytest.raises(DataError, match=r"class indices or bools\. Found torch\.float32\. Use labels\.long\(\)"):
        ClassBalanced.from_labels(torch.tensor([0.5, 1.0]))
    with pytest.raises(OptionError, match=r"`bins` should be an integer in \[1, inf\)\. Found bins=0"):
        LDS.from_labels(torch.tensor([1.0]), bins=0)


@pytest.mark.parametrize("base", ["aft", "cox", {"name": "discrete_hazard", "edges": (50.0, 100.0)}])
def test_a_weight_sees_the_time_of_a_signed_time(base: Any) -> None:
    """A sample censored at 100 weighs as one that fails at 100, not as one that has failed already; nested weights, too."""
    shape = resolve("inner", base)
    target = torch.tensor([100.0, -100.0, 20.0, -20.0])
    prediction = torch.linspace(-1, 1, 8).reshape(4, 2) if shape.trailing else torch.linspace(-1, 1, 4)
    once = Reweighted(base, FailureBias(r_max=200.0))
    close(once(prediction, target), shape(prediction, target) * torch.tensor([1.5, 1.5, 1.9, 1.9]), rtol=1e-6)
    twice = Reweighted(once, Ramp(high=200.0))
    close(twice(prediction, target), once(prediction, target) * torch.tensor([1.5, 1.5, 1.1, 1.1]), rtol=1e-6)
