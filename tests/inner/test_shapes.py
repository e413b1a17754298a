"""Built-in inner shapes against frozen numbers and against live implementations in other libraries."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from golden import golden_inputs, load
from sklearn.metrics import mean_pinball_loss
from torch import Tensor
from torch.nn import functional as F

from mtl_axes import available, compose, create
from mtl_axes.errors import DataError

GOLDEN = load("inner_golden.json")
CASES = sorted(GOLDEN["cases"])


def close(actual: Tensor, expected: Any) -> None:
    torch.testing.assert_close(actual.detach(), torch.tensor(expected, dtype=torch.float64), rtol=1e-9, atol=1e-9)


def random_regression(size: int = 200) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    target = 60 * torch.rand(size, generator=generator, dtype=torch.float64)
    prediction = target + 20 * torch.randn(size, generator=generator, dtype=torch.float64)
    return prediction.requires_grad_(), target


def random_binary(size: int = 200) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(2)
    # Logits on both sides of 20, where torch's softplus drops its exponential.
    logits = 20 * torch.randn(size, generator=generator, dtype=torch.float64)
    return logits.requires_grad_(), torch.rand(size, generator=generator) < 0.4


def random_classes(*shape: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    logits = 10 * torch.randn(*shape, generator=generator, dtype=torch.float64)
    target = torch.randint(shape[1], (shape[0], *shape[2:]), generator=generator)
    return logits.requires_grad_(), target


def assert_same_loss(shape_loss: Tensor, oracle_loss: Tensor, prediction: Tensor) -> None:
    """Values and gradients agree to the last digits of float64."""
    torch.testing.assert_close(shape_loss, oracle_loss, rtol=1e-13, atol=1e-13)
    (ours,) = torch.autograd.grad(shape_loss.sum(), prediction, retain_graph=True)
    (theirs,) = torch.autograd.grad(oracle_loss.sum(), prediction, retain_graph=True)
    torch.testing.assert_close(ours, theirs, rtol=1e-13, atol=1e-13)


def test_golden_file_covers_every_built_in() -> None:
    """There is at least one golden case for each built-in shape."""
    built_in = {"asymmetric", "bce", "cross_entropy", "failure_biased", "focal", "huber", "mae", "mse", "quantile"}
    assert {GOLDEN["cases"][case]["shape"] for case in CASES} == built_in <= set(available("inner"))


@pytest.mark.parametrize("case", CASES)
def test_golden_values_and_gradients(case: str) -> None:
    """The loss of each sample, and its gradient in the prediction, are the frozen ones."""
    prediction, target, expected = golden_inputs(GOLDEN, case)
    loss = create("inner", expected["shape"], **expected["options"])(prediction, target)
    (gradient,) = torch.autograd.grad(loss.sum(), prediction)
    close(loss, expected["value"])
    # The frozen gradients of several logits are flat.
    close(gradient.flatten(), expected["gradient"])


@pytest.mark.parametrize("case", CASES)
def test_golden_means(case: str) -> None:
    """A criterion of one task returns the frozen mean, and its gradient is the frozen one divided by the samples."""
    prediction, target, expected = golden_inputs(GOLDEN, case)
    criterion = compose(inner={"task": {"name": expected["shape"], **expected["options"]}})
    loss = criterion({"task": prediction}, {"task": target})
    loss.backward()
    close(loss, expected["mean"])
    assert prediction.grad is not None
    close(len(target) * prediction.grad.flatten(), expected["gradient"])


@pytest.mark.parametrize(
    ("name", "options", "oracle"),
    [
        ("mse", {}, lambda p, y: F.mse_loss(p, y, reduction="none")),
        ("mae", {}, lambda p, y: F.l1_loss(p, y, reduction="none")),
        ("huber", {"delta": 0.5}, lambda p, y: F.huber_loss(p, y, reduction="none", delta=0.5)),
        ("huber", {"delta": 7.0}, lambda p, y: F.huber_loss(p, y, reduction="none", delta=7.0)),
        ("huber", {"delta": 1.5}, lambda p, y: 1.5 * F.smooth_l1_loss(p, y, reduction="none", beta=1.5)),
    ],
)
def test_regression_shapes_agree_with_torch(name: str, options: dict[str, Any], oracle: Callable[..., Tensor]) -> None:
    """mse, mae and huber are those of torch.nn.functional, in value and gradient."""
    prediction, target = random_regression()
    assert_same_loss(create("inner", name, **options)(prediction, target), oracle(prediction, target), prediction)


@pytest.mark.parametrize("pos_weight", [1.0, 0.2, 3.0])
def test_bce_agrees_with_torch(pos_weight: float) -> None:
    """bce is torch's binary_cross_entropy_with_logits, with and without pos_weight, also far from zero."""
    logits, target = random_binary()
    weight = torch.tensor(pos_weight, dtype=torch.float64)
    oracle = F.binary_cross_entropy_with_logits(logits, target.double(), pos_weight=weight, reduction="none")
    assert_same_loss(create("inner", "bce", pos_weight=pos_weight)(logits, target), oracle, logits)


def test_bce_takes_soft_targets() -> None:
    """With targets between 0 and 1, bce is still torch's."""
    logits, _ = random_binary()
    target = torch.rand(len(logits), generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    oracle = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
    assert_same_loss(create("inner", "bce")(logits, target), oracle, logits)


@pytest.mark.parametrize("shape", [(50, 2), (50, 5), (6, 4, 3), (3, 4, 5, 2)])
def test_cross_entropy_is_minus_the_log_softmax_bit_for_bit(shape: tuple[int, ...]) -> None:
    """Losses and gradients are those of picking the class out of log_softmax."""
    logits = torch.randn(shape, requires_grad=True)
    target = torch.randint(0, shape[1], (shape[0], *shape[2:]))
    picked = -logits.log_softmax(1).gather(1, target.unsqueeze(1)).squeeze(1)
    losses = create("inner", "cross_entropy")(logits, target)
    assert torch.equal(losses, picked)
    assert torch.equal(*(torch.autograd.grad(each.square().sum(), logits)[0] for each in (losses, picked)))


def test_cross_entropy_ignores_no_class() -> None:
    """The class that torch ignores by default is an error in later calls, too, which read no values."""
    criterion = compose("fixed", tasks=["a"])
    logits = torch.randn(4, 3, requires_grad=True)
    criterion((logits,), (torch.tensor([0, 1, 2, 0]),))
    with pytest.raises((IndexError, RuntimeError), match="out of bounds"):
        criterion((logits,), (torch.tensor([0, 1, -100, 0]),))


@pytest.mark.parametrize("shape", [(50, 2), (50, 5), (6, 4, 3), (3, 4, 5, 2)])
def test_cross_entropy_agrees_with_torch(shape: tuple[int, ...]) -> None:
    """cross_entropy is torch's, with the class dimension at 1 whatever follows it."""
    logits, target = random_classes(*shape)
    assert_same_loss(
        create("inner", "cross_entropy")(logits, target), F.cross_entropy(logits, target, reduction="none"), logits
    )


@pytest.mark.parametrize("gamma", [0.5, 1.0, 2.0, 5.0])
@pytest.mark.parametrize("alpha", [None, 0.25])
def test_binary_focal_is_its_formula(gamma: float, alpha: float | None) -> None:
    """Where p does not round to 0 or 1, binary focal is alpha_t (1 - p_t)^gamma (-log p_t) as Lin et al. print it."""
    logits, target = random_binary()
    logits = (logits.detach() / 10).requires_grad_()
    probability = logits.sigmoid()
    p_true = torch.where(target, probability, 1 - probability)
    naive = (1 - p_true) ** gamma * -p_true.log()
    if alpha is not None:
        naive = torch.where(target, alpha * naive, (1 - alpha) * naive)
    loss = create("inner", "focal", gamma=gamma, alpha=alpha)(logits, target)
    torch.testing.assert_close(loss, naive, rtol=1e-11, atol=1e-13)
    gradients = [torch.autograd.grad(each.sum(), logits, retain_graph=True)[0] for each in (loss, naive)]
    torch.testing.assert_close(*gradients, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("shape", [(40, 4), (3, 4, 5, 2)])
@pytest.mark.parametrize("gamma", [0.5, 2.0])
def test_multiclass_focal_is_its_formula(shape: tuple[int, ...], gamma: float) -> None:
    """Multiclass focal is alpha_y (1 - p_y)^gamma (-log p_y), with one weight per class."""
    logits, target = random_classes(*shape)
    logits = (logits.detach() / 10).requires_grad_()
    alpha = torch.tensor([0.5, 1.0, 2.0, 0.25], dtype=torch.float64)
    log_p = -F.cross_entropy(logits, target, reduction="none")
    naive = alpha[target] * (1 - log_p.exp()) ** gamma * -log_p
    loss = create("inner", "focal", gamma=gamma, alpha=alpha.tolist())(logits, target)
    torch.testing.assert_close(loss, naive, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("q", [0.05, 0.5, 0.9])
def test_quantile_agrees_with_sklearn(q: float) -> None:
    """The mean of quantile(q) is sklearn's mean_pinball_loss."""
    prediction, target = random_regression()
    loss = create("inner", "quantile", q=q)(prediction, target).mean()
    assert loss.item() == pytest.approx(mean_pinball_loss(target, prediction.detach(), alpha=q), rel=1e-13)


def test_several_quantiles_agree_with_sklearn() -> None:
    """The mean of several quantiles is the mean of sklearn's pinball losses, column by column."""
    prediction, target = random_regression()
    levels = [0.1, 0.4, 0.8]
    columns = torch.stack([prediction - 5, prediction, prediction + 3], -1)
    loss = create("inner", "quantile", q=levels)(columns, target)
    oracle = [mean_pinball_loss(target, columns[:, index].detach(), alpha=q) for index, q in enumerate(levels)]
    assert loss.shape == target.shape
    assert loss.mean().item() == pytest.approx(sum(oracle) / 3, rel=1e-13)


def test_failure_bias_is_clipped_on_both_sides() -> None:
    """The weight of failure_biased is 2 at and below zero, falls linearly, and is 1 from r_max on."""
    target = torch.tensor([-1000.0, -10.0, 0.0, 31.25, 62.5, 125.0, 300.0], dtype=torch.float64)
    losses = create("inner", "failure_biased", r_max=125.0)(target + 3, target)
    torch.testing.assert_close(losses / 9, torch.tensor([2.0, 2.0, 2.0, 1.75, 1.5, 1.0, 1.0], dtype=torch.float64))


def test_failure_bias_weight_of_integer_targets_is_exact() -> None:
    """Integer targets get the same failure_biased losses as the same numbers in float64."""
    prediction, target = random_regression()
    shape = create("inner", "failure_biased")
    whole = target.round()
    assert torch.equal(shape(prediction, whole.long()), shape(prediction, whole))


@pytest.mark.parametrize("name", ["mse", "mae", "huber", "asymmetric", "quantile", "failure_biased", "bce", "focal"])
@pytest.mark.parametrize("shapes", [((4, 1), (4,)), ((4,), (4, 1)), ((4, 2), (4,)), ((1,), (4,)), ((4, 3), (3, 4))])
def test_shapes_never_broadcast(name: str, shapes: tuple[tuple[int, ...], tuple[int, ...]]) -> None:
    """A prediction and a target of different shapes are refused before a loss is computed, also where torch broadcasts."""
    shape = create("inner", name)
    target = torch.zeros(shapes[1], dtype=torch.bool if name in ("bce", "focal") else torch.float32)
    with pytest.raises(DataError, match=r"(should|needs) .*Found"):
        shape(torch.zeros(shapes[0]), target)
