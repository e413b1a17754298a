"""Masked is deleted: in value and in gradient, with NaN at the masked places of targets and predictions."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sampling import tiered
from torch import Tensor

from mtl_axes import compose, create
from mtl_axes.errors import DataError
from mtl_axes.tasks import stand_in

SIZE = 6
# name -> (shape, options, kind, trailing dimensions of the target)
CASES: dict[str, tuple[str, dict[str, Any], str, tuple[int, ...]]] = {
    "mse": ("mse", {}, "regression", ()),
    "mse of pixels": ("mse", {}, "regression", (2, 3)),
    "mae": ("mae", {}, "regression", ()),
    "huber": ("huber", {"delta": 0.7}, "regression", ()),
    "asymmetric": ("asymmetric", {"over": 2.0}, "regression", ()),
    "quantile": ("quantile", {"q": 0.2}, "regression", ()),
    "quantiles": ("quantile", {"q": (0.1, 0.5, 0.9)}, "quantiles", ()),
    "quantiles of pixels": ("quantile", {"q": (0.1, 0.5, 0.9)}, "quantiles", (2,)),
    "failure_biased": ("failure_biased", {"r_max": 2.0}, "regression", ()),
    "bce": ("bce", {"pos_weight": 2.0}, "binary", ()),
    "soft bce": ("bce", {}, "soft", ()),
    "bce of many labels": ("bce", {}, "binary", (4,)),
    "focal": ("focal", {"gamma": 0.5, "alpha": 0.3}, "binary", ()),
    "cross_entropy": ("cross_entropy", {}, "multiclass", ()),
    "cross_entropy of pixels": ("cross_entropy", {}, "multiclass", (2, 2)),
    "focal of classes": ("focal", {"alpha": (0.5, 1.0, 2.0)}, "multiclass", ()),
    "focal of pixels": ("focal", {"gamma": 1.0}, "multiclass", (2, 3)),
}
EVERY = pytest.mark.parametrize("key", list(CASES))


def data_for(key: str, size: int = SIZE) -> tuple[Tensor, Tensor]:
    """A prediction and a target in float64."""
    _, _, kind, trailing = CASES[key]
    generator = torch.Generator().manual_seed(5)
    shape = (size, *trailing)
    prediction = torch.randn(shape, generator=generator, dtype=torch.float64)
    target = 2 * torch.rand(shape, generator=generator, dtype=torch.float64)
    if kind == "multiclass":
        logits = torch.randn(size, 3, *trailing, generator=generator, dtype=torch.float64)
        return logits, torch.randint(3, shape, generator=generator)
    if kind == "quantiles":
        return torch.randn(*shape, 3, generator=generator, dtype=torch.float64), target
    if kind == "binary":
        return prediction, target > 1
    return prediction, target / 2 if kind == "soft" else target


def criterion_for(key: str, **options: Any) -> Any:
    name, shape_options, _, _ = CASES[key]
    return compose(inner={"task": {"name": name, **shape_options}}, **options)


def poisoned(key: str, prediction: Tensor, target: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """NaN, or an impossible class, wherever ``mask`` (in the shape of the target) is False."""
    kind = CASES[key][2]
    keep = mask.unsqueeze(1) if kind == "multiclass" else mask.unsqueeze(-1) if kind == "quantiles" else mask
    prediction = torch.where(keep, prediction, torch.nan)
    if target.dtype is torch.bool:
        return prediction, target
    return prediction, torch.where(mask, target, -100 if kind == "multiclass" else torch.nan)


def value_and_gradient(criterion: Any, prediction: Tensor, target: Tensor, **options: Any) -> tuple[Tensor, Tensor]:
    leaf = prediction.clone().requires_grad_()
    total = criterion({"task": leaf}, {"task": target}, **options)
    (gradient,) = torch.autograd.grad(total, leaf)
    return total.detach(), gradient


@pytest.mark.parametrize(("key", "reduction", "weighted"), tiered(product(CASES, ["mean", "weighted_mean"], [False, True])))
@given(flags=st.lists(st.booleans(), min_size=SIZE, max_size=SIZE).filter(any))
def test_masked_samples_are_deleted_samples(key: str, reduction: str, weighted: bool, flags: list[bool]) -> None:
    """Masking samples whose values are NaN gives the loss and the gradient of the batch without them, and zeros there."""
    prediction, target = data_for(key)
    mask = torch.tensor(flags)
    weight = torch.linspace(0.5, 3, SIZE, dtype=torch.float64) if weighted else None
    full = mask.reshape(SIZE, *[1] * (target.ndim - 1)).expand_as(target)
    bad_prediction, bad_target = poisoned(key, prediction, target, full)
    masked, gradient = value_and_gradient(
        criterion_for(key, reduction=reduction), bad_prediction, bad_target, mask=mask, sample_weight=weight
    )
    deleted, expected = value_and_gradient(
        criterion_for(key, reduction=reduction),
        prediction[mask],
        target[mask],
        sample_weight=None if weight is None else weight[mask],
    )
    torch.testing.assert_close(masked, deleted, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(gradient[mask], expected, rtol=1e-12, atol=1e-14)
    assert torch.equal(gradient[~mask], torch.zeros_like(gradient[~mask]))


@pytest.mark.parametrize("key", [key for key, case in CASES.items() if case[3]])
@given(data=st.data())
def test_masked_pixels_are_deleted_pixels(key: str, data: st.DataObject) -> None:
    """A mask in the shape of the target deletes single pixels: the mean is that over the valid ones, one by one."""
    prediction, target = data_for(key)
    flags = data.draw(st.lists(st.booleans(), min_size=target.numel(), max_size=target.numel()).filter(any))
    mask = torch.tensor(flags).reshape(target.shape)
    bad_prediction, bad_target = poisoned(key, prediction, target, mask)
    masked, gradient = value_and_gradient(criterion_for(key), bad_prediction, bad_target, mask=mask)
    leaf = prediction.clone().requires_grad_()
    kind = CASES[key][2]
    # One row per pixel: (pixels, classes or quantiles) or (pixels,).
    rows = leaf.movedim(1, -1) if kind == "multiclass" else leaf
    rows = rows.reshape(target.numel(), *([3] if kind in ("multiclass", "quantiles") else []))
    total = criterion_for(key)({"task": rows[mask.flatten()]}, {"task": target[mask]})
    (expected,) = torch.autograd.grad(total, leaf)
    torch.testing.assert_close(masked, total.detach(), rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(gradient, expected, rtol=1e-12, atol=1e-14)


@EVERY
@pytest.mark.parametrize("first_valid", [True, False])
def test_no_valid_label_gives_an_attached_zero(key: str, first_valid: bool) -> None:
    """Where every label is masked the task's loss is 0, attached to the graph with a zero gradient, and not active.

    It is so whether or not the task had a label before; another task must have one in the first call.
    """
    name, options, _, _ = CASES[key]
    prediction, target = data_for(key)
    nothing = torch.zeros_like(target, dtype=torch.bool)
    bad_prediction, bad_target = poisoned(key, prediction, target, nothing)
    criterion = compose(inner={"task": {"name": name, **options}, "other": "mse"})
    beside = torch.ones(2, dtype=torch.float64, requires_grad=True)
    if first_valid:
        criterion({"task": prediction, "other": beside}, {"task": target, "other": torch.zeros(2)})
    leaf = bad_prediction.requires_grad_()
    total = criterion({"task": leaf, "other": beside}, {"task": bad_target, "other": torch.zeros(2)}, mask={"task": nothing})
    total.backward()
    assert total.item() == 0.5
    assert leaf.grad is not None and torch.equal(leaf.grad, torch.zeros_like(leaf))
    assert criterion.report is not None
    assert criterion.report.losses.tolist() == [0.0, 1.0]
    assert criterion.report.active.tolist() == [False, True]
    assert ("loss/task" in criterion.log_dict()) == first_valid


def test_everything_masked_after_the_first_call_is_a_zero_loss() -> None:
    """A later batch without any valid label gives a total of 0 that can be differentiated, not NaN."""
    criterion = compose()
    prediction = torch.ones(3, requires_grad=True)
    target = torch.tensor([2.0, 3.0, 4.0])
    criterion({"rul": prediction}, {"rul": target})
    total = criterion({"rul": prediction}, {"rul": target}, mask=torch.zeros(3, dtype=torch.bool))
    total.backward()
    assert total.item() == 0.0
    assert prediction.grad is not None and prediction.grad.tolist() == [0.0] * 3
    assert criterion.report is not None and criterion.report.active.tolist() == [False]


def test_mask_before_the_values_are_checked() -> None:
    """Class indices, NaN and soft labels at masked places are not errors in a first call."""
    valid = torch.tensor([True, True, False])
    targets = {
        "rul": torch.tensor([2.0, 5.0, torch.inf]),
        "health": torch.tensor([0, 2, 99]),
        "risk": torch.tensor([0.0, 1.0, -7.0]),
    }
    outputs = {
        "rul": torch.ones(3, requires_grad=True),
        "health": torch.zeros(3, 3, requires_grad=True),
        "risk": torch.ones(3, requires_grad=True),
    }
    criterion = compose(inner={"rul": "failure_biased", "health": "cross_entropy", "risk": "focal"})
    total = criterion(outputs, targets, mask=valid)
    total.backward()
    assert torch.isfinite(total)
    assert all(bool((output.grad[2] == 0).all()) for output in outputs.values() if output.grad is not None)


def test_unmasked_bad_labels_beside_masked_ones_are_found() -> None:
    """A mask does not hide the bad values that it leaves valid."""
    with pytest.raises(DataError, match=r"class indices should lie in \[0, 2\].*Found 0\.\.3"):
        compose()({"health": torch.zeros(3, 3)}, {"health": torch.tensor([0, 3, 0])}, mask=torch.tensor([True, True, False]))


# ---- missing="ignore"


@pytest.mark.parametrize(
    "key", [key for key, case in CASES.items() if case[2] in ("regression", "quantiles", "soft", "multiclass")]
)
def test_missing_labels_are_masked_labels(key: str) -> None:
    """missing="ignore" treats NaN and -100 labels as a mask would, in value, gradient and number of labels."""
    prediction, target = data_for(key)
    generator = torch.Generator().manual_seed(6)
    mask = torch.rand(target.shape, generator=generator) < 0.6
    bad_prediction, bad_target = poisoned(key, prediction, target, mask)
    ignored = value_and_gradient(criterion_for(key, missing="ignore"), bad_prediction, bad_target)
    masked = value_and_gradient(criterion_for(key), prediction, target, mask=mask)
    torch.testing.assert_close(ignored, masked, rtol=1e-13, atol=1e-15)


def test_missing_labels_and_a_mask_add_up() -> None:
    """A label counts when it is neither missing nor masked."""
    criterion = compose(missing="ignore")
    prediction = torch.tensor([1.0, 2.0, 3.0, 4.0], requires_grad=True)
    target = torch.tensor([0.5, torch.nan, 0.0, 9.0])
    total = criterion({"rul": prediction}, {"rul": target}, mask=torch.tensor([True, True, True, False]))
    assert total.item() == pytest.approx((0.25 + 9.0) / 2)


def test_missing_is_not_ignored_by_default() -> None:
    """Without missing="ignore" neither NaN nor -100 passes in the first call."""
    with pytest.raises(DataError, match=r"Targets of task 'rul' should be finite.*missing=\"ignore\""):
        compose()({"rul": torch.ones(2)}, {"rul": torch.tensor([1.0, torch.nan])})
    with pytest.raises(DataError, match=r"Found -100\.\.1.*missing=\"ignore\" the index -100 counts as unlabelled"):
        compose()({"health": torch.ones(2, 3)}, {"health": torch.tensor([1, -100])})


def test_infinite_targets_are_not_missing() -> None:
    """missing="ignore" forgives NaN only; an infinite target is an error."""
    with pytest.raises(DataError, match="should be finite"):
        compose(missing="ignore")({"rul": torch.ones(3)}, {"rul": torch.tensor([1.0, torch.nan, torch.inf])})


@pytest.mark.parametrize("masked", [-5.0, float("nan")])
def test_masked_predictions_are_not_checked_and_hide_no_others(masked: float) -> None:
    """What a shape asks of predictions it asks of those that count."""
    mask, target = torch.tensor([True, False, True]), torch.tensor([1.0, 2.0, 3.0])
    compose("fixed", {"a": "msle"})({"a": torch.tensor([1.0, masked, 2.0])}, {"a": target}, mask={"a": mask})
    with pytest.raises(DataError, match=r"Predictions of msle should be > -1\. Found -3"):
        compose("fixed", {"a": "msle"})({"a": torch.tensor([1.0, masked, -3.0])}, {"a": target}, mask={"a": mask})


@pytest.mark.parametrize(("name", "size"), [("gaussian_nll", (3, 4, 2)), ("cross_entropy", (3, 2, 4)), ("mse", (3, 4))])
def test_stand_ins_keep_valid_entries_and_fill_the_others_from_one(name: str, size: tuple[int, ...]) -> None:
    """Predictions and targets keep their shapes; at masked places stand those of the first valid one."""
    shape = create("inner", name)
    prediction, target = torch.randn(size), torch.arange(12).reshape(3, 4)
    valid = torch.arange(12).reshape(3, 4) % 3 == 1
    filled, labels = stand_in(shape, prediction, target, valid)
    dim = -1 if shape.trailing else 1
    before, after = (each.movedim(dim, -1) if len(size) == 3 else each for each in (prediction, filled))
    assert filled.shape == prediction.shape
    assert torch.equal(after[valid], before[valid])
    assert torch.equal(after[~valid], before[0, 1].expand_as(after[~valid]))
    assert torch.equal(labels, torch.where(valid, target, 1))
