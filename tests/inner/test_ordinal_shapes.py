"""Ordinal shapes: identities, saturated logits, and which targets and logits fit."""

from __future__ import annotations

import pytest
import torch

from mtl_axes import compose, create
from mtl_axes.errors import DataError, OptionError

f64 = torch.float64
LADDERS = ("coral", "corn")


def logits(*size: int) -> torch.Tensor:
    return 2 * torch.randn(size, generator=torch.Generator().manual_seed(0), dtype=f64)


@pytest.mark.parametrize("name", LADDERS)
def test_two_ordered_classes_are_a_binary_task(name: str) -> None:
    """With one logit, coral and corn are bce."""
    target = torch.arange(6) % 2
    ours = create("inner", name)(logits(6, 1), target)
    torch.testing.assert_close(ours, create("inner", "bce")(logits(6), target == 1), rtol=1e-13, atol=1e-15)


def test_emd2_of_two_classes_is_the_brier_score() -> None:
    """With two classes, emd2 is brier of the difference of the logits."""
    target = torch.arange(6) % 2
    two = logits(6, 2)
    brier = create("inner", "brier")(two[:, 1] - two[:, 0], target == 1)
    torch.testing.assert_close(create("inner", "emd2")(two, target), brier, rtol=1e-12, atol=1e-14)


def test_corn_asks_some_of_the_questions_of_coral() -> None:
    """corn is coral less the questions beyond the class; they agree on the highest class, which answers all."""
    x = logits(4, 3)
    target = torch.tensor([0, 1, 2, 3])
    coral, corn = (create("inner", name)(x, target) for name in LADDERS)
    beyond = torch.nn.functional.softplus(x)
    assert corn[3] == coral[3]
    torch.testing.assert_close(
        coral - corn, torch.stack([beyond[i, i + 1 :].sum() for i in range(4)]), rtol=1e-12, atol=1e-14
    )


@pytest.mark.parametrize("name", [*LADDERS, "emd2"])
def test_a_class_further_off_costs_more(name: str) -> None:
    """For a prediction of the lowest class, the loss grows with the class."""
    confident = torch.tensor([[6.0, 2.0, -2.0, -6.0]] if name == "emd2" else [[-3.0, -4.0, -5.0]], dtype=f64)
    losses = create("inner", name)(confident.expand(4, -1), torch.arange(4))
    assert bool((losses.diff() > 0).all())


@pytest.mark.parametrize("dtype", [torch.float32, f64])
@pytest.mark.parametrize("name", [*LADDERS, "emd2"])
def test_saturated_logits(name: str, dtype: torch.dtype) -> None:
    """Losses and gradients are finite at logits of +-1e4 and 0, for every class."""
    rows = torch.tensor([[1e4, -1e4], [-1e4, 1e4], [1e4, 1e4], [0.0, 0.0]], dtype=dtype)
    target = torch.arange(12) // 4 if name != "emd2" else torch.arange(12) // 6
    prediction = rows.repeat(3, 1).requires_grad_()
    losses = create("inner", name)(prediction, target)
    (gradient,) = torch.autograd.grad(losses.sum(), prediction)
    assert losses.dtype == dtype and bool((losses >= 0).all())
    assert bool(torch.isfinite(losses).all()) and bool(torch.isfinite(gradient).all())


def test_emd2_keeps_its_precision_where_the_label_is_sure() -> None:
    """The distance to a nearly certain, right class is the square of the small tail, and not of a rounding error."""
    x = torch.tensor([[40.0, 0.0, -1e3]], dtype=f64)
    tail = torch.exp(torch.tensor([-40.0], dtype=f64))
    torch.testing.assert_close(create("inner", "emd2")(x, torch.tensor([0])), tail**2, rtol=1e-10, atol=0)


@pytest.mark.parametrize(("name", "options"), [("coral", {"importance": (1.0, 0.5)}), ("corn", {}), ("emd2", {})])
def test_gradients_are_those_of_the_loss(name: str, options: dict[str, object]) -> None:
    """The gradient agrees with finite differences, with trailing dimensions."""
    target = torch.arange(6).reshape(3, 2) % 2
    assert torch.autograd.gradcheck(lambda p: create("inner", name, **options)(p, target), logits(3, 2, 2).requires_grad_())


@pytest.mark.parametrize("name", LADDERS)
def test_one_class_more_than_logits(name: str) -> None:
    """Targets run from 0 to the number of logits; a class beyond is an error of the first call that counts them."""
    x = logits(4, 2)
    assert create("inner", name)(x, torch.tensor([0, 1, 2, 2])).shape == (4,)
    with pytest.raises(DataError, match=r"should lie in \[0, 2\], one more class than the 2 logits\. Found 0\.\.3"):
        compose(inner={"grade": name})((x,), (torch.tensor([0, 1, 2, 3]),))
    with pytest.raises(DataError, match=r"class targets should be integers\. Found torch\.float64\. Use target\.long\(\)"):
        create("inner", name)(x, torch.zeros(4, dtype=f64))
    with pytest.raises(DataError, match=r"class dimension at 1: \(N, K - 1, .* Found logits \(4, 2\) and target \(4, 2\)"):
        create("inner", name)(x, torch.zeros(4, 2, dtype=torch.long))


def test_importance_of_coral() -> None:
    """importance has one weight >= 0 per logit."""
    with pytest.raises(OptionError, match="`importance` should be a number in"):
        create("inner", "coral", importance=(1.0, -1.0))
    with pytest.raises(DataError, match=r"`importance` should have one entry per logit, 3\. Found 2"):
        create("inner", "coral", importance=(1.0, 2.0))(logits(4, 3), torch.zeros(4, dtype=torch.long))


@pytest.mark.parametrize("name", [*LADDERS, "emd2"])
def test_unlabelled_grades_leave_the_mean(name: str) -> None:
    """With missing="ignore" the class -100 leaves loss and gradient as if its sample were deleted."""
    x, target = logits(6, 3), torch.tensor([0, 1, -100, 2, 1, -100])
    results = []
    for prediction, labels in ((x, target), (x[target >= 0], target[target >= 0])):
        leaf = prediction.clone().requires_grad_()
        loss = compose(inner={"grade": name}, missing="ignore")((leaf,), (labels,))
        gradient = torch.autograd.grad(loss, leaf)[0]
        results.append((loss.detach(), gradient[target >= 0] if len(labels) == 6 else gradient))
    torch.testing.assert_close(*results, rtol=1e-13, atol=1e-15)
