"""Binary and multiclass shapes: identities, saturated logits, refusals, multilabel tasks."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from mtl_axes import compose, create
from mtl_axes.errors import DataError, OptionError
from mtl_axes.inner._values import constants

f64 = torch.float64

BINARY: dict[str, tuple[str, dict[str, Any]]] = {
    "asl": ("asl", {}),
    "asl without clip": ("asl", {"clip": 0.0}),
    "asl below 1": ("asl", {"gamma_neg": 0.5, "gamma_pos": 0.3, "clip": 0.1}),
    "asl below 1 without clip": ("asl", {"gamma_neg": 0.5, "gamma_pos": 0.3, "clip": 0.0}),
    "asl with next to no clip": ("asl", {"clip": 1e-12}),
    "asl detached": ("asl", {"detach_focus": True}),
    "brier": ("brier", {}),
    "hinge": ("hinge", {"margin": 2.0}),
    "squared_hinge": ("squared_hinge", {}),
    "quality_focal": ("quality_focal", {}),
    "quality_focal below 1": ("quality_focal", {"beta": 0.5}),
    "varifocal": ("varifocal", {}),
    "varifocal below 1": ("varifocal", {"gamma": 0.5}),
}
MULTICLASS: dict[str, tuple[str, dict[str, Any]]] = {
    "label_smoothing": ("label_smoothing", {}),
    "poly1": ("poly1", {"epsilon": -1.0}),
    "gce": ("gce", {"q": 0.3}),
    "symmetric_ce": ("symmetric_ce", {}),
    "logit_adjusted": ("logit_adjusted", {"prior": (1000, 10, 1), "tau": 1.5}),
    "balanced_softmax": ("balanced_softmax", {"counts": (1000, 10, 1)}),
    "ldam": ("ldam", {"counts": (1000, 10, 1)}),
    "multi_margin": ("multi_margin", {"p": 2}),
}
SOFT = ("brier", "quality_focal", "varifocal")


def build(key: str) -> Any:
    name, options = {**BINARY, **MULTICLASS}[key]
    return create("inner", name, **options)


def pair(kind: str, *size: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    if kind == "binary":
        return 3 * torch.randn(size, generator=generator, dtype=f64), torch.rand(size, generator=generator) < 0.5
    logits = 3 * torch.randn(size[0], 3, *size[1:], generator=generator, dtype=f64)
    return logits, torch.randint(3, size, generator=generator)


def value_and_gradient(shape: Any, prediction: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    leaf = prediction.detach().clone().requires_grad_()
    losses = shape(leaf, target)
    return losses.detach(), torch.autograd.grad(losses.sum(), leaf)[0]


# ---- identities


@pytest.mark.parametrize(
    ("kind", "one", "other"),
    [
        ("binary", ("asl", {"gamma_neg": 0, "gamma_pos": 0, "clip": 0}), ("bce", {})),
        ("binary", ("asl", {"gamma_neg": 2, "gamma_pos": 2, "clip": 0}), ("focal", {"gamma": 2.0})),
        ("binary", ("quality_focal", {"beta": 0}), ("bce", {})),
        ("binary", ("quality_focal", {"beta": 0.5}), ("focal", {"gamma": 0.5})),
        ("binary", ("varifocal", {"alpha": 1, "gamma": 0}), ("bce", {})),
        ("multiclass", ("label_smoothing", {"epsilon": 0}), ("cross_entropy", {})),
        ("multiclass", ("poly1", {"epsilon": 0}), ("cross_entropy", {})),
        ("multiclass", ("symmetric_ce", {"alpha": 1, "beta": 0}), ("cross_entropy", {})),
        ("multiclass", ("symmetric_ce", {"alpha": 0, "beta": 1, "log_zero": -1}), ("gce", {"q": 1})),
        ("multiclass", ("logit_adjusted", {"prior": (5, 3, 1), "tau": 0}), ("cross_entropy", {})),
        ("multiclass", ("logit_adjusted", {"prior": (5, 3, 1)}), ("balanced_softmax", {"counts": (5, 3, 1)})),
        ("multiclass", ("logit_adjusted", {"prior": (0.5, 0.3, 0.2)}), ("logit_adjusted", {"prior": (50, 30, 20)})),
        ("multiclass", ("balanced_softmax", {"counts": (7, 7, 7)}), ("cross_entropy", {})),
        ("multiclass", ("ldam", {"counts": (5, 3, 1), "max_m": 0, "s": 1}), ("cross_entropy", {})),
    ],
)
def test_identities(kind: str, one: tuple[str, dict[str, Any]], other: tuple[str, dict[str, Any]]) -> None:
    """Two shapes are the same function, in value and gradient, also at saturated logits."""
    prediction, target = pair(kind, 40)
    for scale in (1.0, 30.0, 1e4):
        results = [
            value_and_gradient(create("inner", name, **options), scale * prediction, target)
            for name, options in (one, other)
        ]
        torch.testing.assert_close(*results, rtol=1e-12, atol=1e-12)


def test_gce_tends_to_the_cross_entropy() -> None:
    """gce at q -> 0 is the cross-entropy; at any q its gradient is p^q times that of the cross-entropy."""
    prediction, target = pair("multiclass", 40)
    entropy, slope = value_and_gradient(create("inner", "cross_entropy"), prediction, target)
    # (1 - p^q) / q = -log p - q (log p)^2 / 2 + ...
    small, _ = value_and_gradient(create("inner", "gce", q=1e-9), prediction, target)
    torch.testing.assert_close(small, entropy, rtol=1e-7, atol=0)
    _, faded = value_and_gradient(create("inner", "gce", q=0.4), prediction, target)
    torch.testing.assert_close(faded, (-0.4 * entropy).exp().unsqueeze(1) * slope, rtol=1e-12, atol=1e-13)


def test_poly1_gradient_is_a_multiple_of_that_of_the_cross_entropy() -> None:
    """The gradient of poly1 is 1 + epsilon p times that of the cross-entropy."""
    prediction, target = pair("multiclass", 40)
    entropy, slope = value_and_gradient(create("inner", "cross_entropy"), prediction, target)
    _, raised = value_and_gradient(create("inner", "poly1", epsilon=2.0), prediction, target)
    torch.testing.assert_close(raised, (1 + 2 * (-entropy).exp()).unsqueeze(1) * slope, rtol=1e-12, atol=1e-13)


def test_detaching_the_focus_keeps_the_value() -> None:
    """asl with detach_focus has the value of asl, and the focus times the gradient of the logarithm."""
    prediction, target = pair("binary", 40)
    kept = value_and_gradient(create("inner", "asl", clip=0.0, gamma_neg=1.0, gamma_pos=2.0), prediction, target)
    shape = create("inner", "asl", clip=0.0, gamma_neg=1.0, gamma_pos=2.0, detach_focus=True)
    detached = value_and_gradient(shape, prediction, target)
    assert torch.equal(kept[0], detached[0])
    assert shape.detaches and not create("inner", "asl").detaches
    p = prediction.sigmoid()
    torch.testing.assert_close(detached[1], torch.where(target, -((1 - p) ** 3), p**2), rtol=1e-12, atol=1e-14)


def test_asl_touches_no_gradient_mode() -> None:
    """asl inside no_grad leaves gradients off, with and without detach_focus."""
    prediction, target = pair("binary", 4)
    for detach in (False, True):
        with torch.no_grad():
            losses = create("inner", "asl", detach_focus=detach)(prediction.requires_grad_(), target)
            assert not torch.is_grad_enabled() and not losses.requires_grad
        assert torch.is_grad_enabled()


def test_negatives_within_the_clip_cost_nothing() -> None:
    """asl has neither loss nor gradient for a negative with p <= clip, and at most -log(clip) beyond."""
    logits = torch.tensor([-1e4, -20.0, -3.0, 0.0, 50.0, 1e4], dtype=f64)
    losses, gradient = value_and_gradient(create("inner", "asl"), logits, torch.zeros(6, dtype=torch.bool))
    assert losses[:3].tolist() == gradient[:3].tolist() == [0.0] * 3
    assert losses[3] > 0 and gradient[3] > 0
    torch.testing.assert_close(losses[4:], -torch.tensor([0.05, 0.05], dtype=f64).log() * 0.95**4)


def test_a_lost_positive_keeps_its_slope() -> None:
    """A positive at x = -120, where a probability clamped at 1e-8 has no gradient, has the loss 120 and the slope -1."""
    losses, gradient = value_and_gradient(create("inner", "asl"), torch.tensor([-120.0], dtype=f64), torch.tensor([True]))
    torch.testing.assert_close(losses, torch.tensor([120.0], dtype=f64))
    torch.testing.assert_close(gradient, torch.tensor([-1.0], dtype=f64))
    clamped = torch.tensor([-120.0], dtype=f64, requires_grad=True)
    loss = -clamped.sigmoid().clamp_min(1e-8).log()
    assert round(loss.item(), 2) == 18.42 and torch.autograd.grad(loss.sum(), clamped)[0].item() == 0


# ---- numerics


@pytest.mark.parametrize("dtype", [torch.float32, f64])
@pytest.mark.parametrize("key", [*BINARY, *MULTICLASS])
def test_saturated_logits(key: str, dtype: torch.dtype) -> None:
    """Losses are finite and not negative, and gradients finite, for logits of +-1e4, 40 and 0 with either target; no NaN
    arises inside the graph either, where another mask may hide it but anomaly detection stops."""
    if key in BINARY:
        values = torch.tensor([-1e4, -40.0, 0.0, 40.0, 1e4], dtype=dtype)
        prediction, target = values.repeat(2), torch.arange(10) >= 5
    else:
        values = torch.tensor([[-1e4, 1e4, 0.0], [1e4, 1e4, -1e4], [0.0, 40.0, -40.0], [0.0, 0.0, 0.0]], dtype=dtype)
        prediction, target = values.repeat(3, 1), torch.arange(12) // 4
    with torch.autograd.set_detect_anomaly(True):
        losses, gradient = value_and_gradient(build(key), prediction, target)
    assert losses.dtype == dtype
    assert bool(torch.isfinite(losses).all()) and bool((losses >= 0).all())
    assert bool(torch.isfinite(gradient).all())


@pytest.mark.parametrize("beta", [0.3, 0.5, 1.0])
def test_quality_focal_where_the_prediction_is_the_quality(beta: float) -> None:
    """At p = y the loss and its gradient are 0, where the naive power has the gradient NaN for beta < 1."""
    losses, gradient = value_and_gradient(
        create("inner", "quality_focal", beta=beta), torch.zeros(2, dtype=f64), torch.full((2,), 0.5, dtype=f64)
    )
    assert losses.tolist() == gradient.tolist() == [0.0, 0.0]


@pytest.mark.parametrize("target", [0.0, 1.0])
def test_small_losses_do_not_cancel(target: float) -> None:
    """brier and quality_focal keep their relative precision where the sigmoid rounds to the target."""
    x = torch.tensor([-50.0 if target == 0 else 50.0], dtype=f64)
    labels = torch.tensor([target], dtype=f64)
    tail = torch.exp(torch.tensor([-50.0], dtype=f64))
    torch.testing.assert_close(create("inner", "brier")(x, labels), tail**2, rtol=1e-12, atol=0)
    torch.testing.assert_close(create("inner", "quality_focal")(x, labels), tail**3, rtol=1e-12, atol=0)


# The gradient of "asl detached" is another one by definition.
@pytest.mark.parametrize("key", [key for key in (*BINARY, *MULTICLASS) if key != "asl detached"])
def test_gradients_are_those_of_the_loss(key: str) -> None:
    """The gradient agrees with finite differences, with trailing dimensions and, where they are allowed, soft targets."""
    prediction, target = pair("binary" if key in BINARY else "multiclass", 3, 2)
    targets = [target]
    if build(key).kinds == {"binary"} and BINARY[key][0] in SOFT:
        targets.append(torch.rand(3, 2, generator=torch.Generator().manual_seed(1), dtype=f64))
    for labels in targets:
        leaf = (prediction / 3).requires_grad_()
        assert torch.autograd.gradcheck(lambda p, y=labels: build(key)(p, y), leaf)


def test_constants_are_exact_and_follow_the_prediction() -> None:
    """Numbers of an option come in the dtype and on the device of the prediction, not rounded to float32."""
    assert constants((0.1, 1 / 3), torch.zeros(2, dtype=f64)).tolist() == [0.1, 1 / 3]
    assert constants((0.1,), torch.zeros(2, device="meta")).device.type == "meta"


# ---- refusals


@pytest.mark.parametrize("name", ["asl", "hinge", "squared_hinge"])
def test_soft_targets_are_refused_where_they_mean_nothing(name: str) -> None:
    """asl and the hinge losses want targets of 0 and 1, and name the shapes for soft ones."""
    criterion = compose(inner={"a": name})
    with pytest.raises(
        DataError, match=r"targets should be 0 or 1\. Found others in 0\.3\.\.1\. For soft targets use bce or brier"
    ):
        criterion((torch.zeros(2),), (torch.tensor([0.3, 1.0]),))


@pytest.mark.parametrize("name", SOFT)
def test_soft_targets_stay_within_0_and_1(name: str) -> None:
    """A target outside [0, 1] is an error of the first call; inside, it is taken."""
    with pytest.raises(DataError, match=r"binary targets should lie in \[0, 1\]\. Found -0\.5\.\.1"):
        compose(inner={"a": name})((torch.zeros(2),), (torch.tensor([-0.5, 1.0]),))
    assert compose(inner={"a": name})((torch.zeros(2),), (torch.tensor([0.25, 1.0]),)) > 0


@pytest.mark.parametrize(
    ("name", "options", "match"),
    [
        ("asl", {"gamma_neg": -1.0}, "`gamma_neg` should be a number in"),
        ("asl", {"clip": 1.0}, r"`clip` should be a number in \[0.0, 1.0\)"),
        ("asl", {"detach_focus": 1}, "`detach_focus` should be one of False, True. Found detach_focus=1"),
        ("hinge", {"margin": 0.0}, "`margin` should be a number in"),
        ("quality_focal", {"beta": -0.1}, "`beta` should be a number in"),
        ("varifocal", {"alpha": -0.1}, "`alpha` should be a number in"),
        ("gce", {"q": 0.0}, r"`q` should be a number in \(0.0, 1.0\]"),
        ("gce", {"q": 1.1}, "`q` should be a number in"),
        ("label_smoothing", {"epsilon": 1.0}, r"`epsilon` should be a number in \[0.0, 1.0\)"),
        ("poly1", {"epsilon": -1.5}, "`epsilon` should be a number in"),
        ("symmetric_ce", {"alpha": 0, "beta": 0}, "One of `alpha` and `beta` should be positive"),
        ("symmetric_ce", {"log_zero": 0.0}, "`log_zero` should be a number in"),
        ("multi_margin", {"p": 3}, "`p` should be one of 1, 2"),
        ("logit_adjusted", {"prior": (0.5, 0.0)}, "`prior` should be a number in"),
        ("logit_adjusted", {"prior": 0.5}, "`prior` should be a sequence of numbers. Found prior=0.5"),
        ("logit_adjusted", {"prior": "abc"}, "`prior` should be a sequence of numbers. Found prior='abc'"),
        ("balanced_softmax", {"counts": (3,)}, "`counts` should have at least 2 entries"),
        ("ldam", {"counts": (3, -1)}, "`counts` should be a number in"),
        ("ldam", {"counts": (3, 1), "s": 0}, "`s` should be a number in"),
    ],
)
def test_options_are_checked_in_the_constructor(name: str, options: dict[str, Any], match: str) -> None:
    """A wrong option is an error before any loss is computed, which says what is allowed and what was found."""
    with pytest.raises(OptionError, match=match):
        create("inner", name, **options)


@pytest.mark.parametrize(
    ("name", "option"), [("logit_adjusted", "prior"), ("balanced_softmax", "counts"), ("ldam", "counts")]
)
def test_one_number_per_class(name: str, option: str) -> None:
    """Options by class must match the logits, and are plain tuples whatever sequence they came in."""
    shape = create("inner", name, **{option: torch.tensor([3.0, 2.0])})
    assert shape.options()[option] == (3.0, 2.0)
    with pytest.raises(DataError, match=rf"`{option}` should have one entry per logit, 3\. Found 2"):
        shape(torch.zeros(4, 3), torch.zeros(4, dtype=torch.long))


@pytest.mark.parametrize("key", [*MULTICLASS, "hinge", "asl"])
def test_shapes_never_broadcast(key: str) -> None:
    """A prediction that does not fit its target is refused before a loss is computed."""
    target = torch.zeros(4, dtype=torch.long)
    for logits in (torch.zeros(3, 3), torch.zeros(4, 3, 2), torch.zeros(4, 1), torch.zeros(1)):
        with pytest.raises(DataError, match=r"(should|needs) .*Found"):
            build(key)(logits, target)


@pytest.mark.parametrize("key", list(MULTICLASS))
def test_classes_beyond_the_logits_are_found_in_the_first_call(key: str) -> None:
    """A class index without a logit is an error of the first call."""
    name, options = MULTICLASS[key]
    with pytest.raises(DataError, match=r"class indices should lie in \[0, 2\]"):
        compose(inner={"a": {"name": name, **options}})((torch.zeros(2, 3),), (torch.tensor([0, 3]),))


# ---- in a criterion


@pytest.mark.parametrize("key", list(BINARY))
def test_multilabel_tasks_take_the_mean_over_entries(key: str) -> None:
    """With labels (N, C) the loss is the mean over all valid entries: C times less than a sum over labels."""
    name, options = BINARY[key]
    logits, labels = pair("binary", 6, 5)
    criterion = compose(inner={"tags": {"name": name, **options}})
    losses = build(key)(logits, labels)
    torch.testing.assert_close(criterion((logits,), (labels,)), losses.sum(1).mean() / 5)
    mask = torch.rand(6, 5, generator=torch.Generator().manual_seed(2)) < 0.6
    torch.testing.assert_close(criterion((logits,), (labels,), mask=mask), losses[mask].mean())


@pytest.mark.parametrize("key", [*BINARY, *MULTICLASS])
def test_masked_labels_leave_no_trace(key: str) -> None:
    """NaN logits and arbitrary labels at masked places reach neither the loss nor the gradient of the others."""
    name, options = {**BINARY, **MULTICLASS}[key]
    prediction, target = pair("binary" if key in BINARY else "multiclass", 8)
    mask = torch.tensor([True, False, True, True, False, True, True, True])
    spoiled = prediction.clone()
    spoiled[~mask] = torch.nan
    results = []
    for logits, labels, valid in ((spoiled, target, mask), (prediction[mask], target[mask], None)):
        leaf = logits.requires_grad_()
        loss = compose(inner={"a": {"name": name, **options}})((leaf,), (labels,), mask=valid)
        gradient = torch.autograd.grad(loss, leaf)[0]
        results.append((loss.detach(), gradient if valid is None else gradient[mask]))
        assert valid is None or not bool(gradient[~mask].any())
    torch.testing.assert_close(*results, rtol=1e-13, atol=1e-15)


@pytest.mark.parametrize("name", ["asl", "focal", "hinge", "squared_hinge"])
def test_signs_for_labels_are_told_what_to_do(name: str) -> None:
    """The -1 and 1 of scikit-learn and torch are not taken for soft targets."""
    shape = create("inner", name)
    with pytest.raises(DataError, match=r"targets should be 0 or 1\. Found others in -1\.\.1\. For -1 and 1 use target > 0"):
        shape.check_values(torch.zeros(2), torch.tensor([-1.0, 1.0]))
