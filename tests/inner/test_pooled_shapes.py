"""Shapes with one loss per image or list (dice, tversky, listnet, pairwise_logistic), and shapes per pixel."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mtl_axes import compose, create
from mtl_axes.errors import DataError, OptionError

f64 = torch.float64

SHAPES: dict[str, tuple[str, dict[str, Any], str]] = {
    "dice": ("dice", {}, "binary"),
    "dice of classes": ("dice", {"smooth": 0.1}, "multiclass"),
    "tversky": ("tversky", {}, "binary"),
    "tversky of classes": ("tversky", {"alpha": 0.8, "beta": 0.2}, "multiclass"),
    "listnet": ("listnet", {}, "regression"),
    "pairwise_logistic": ("pairwise_logistic", {}, "regression"),
}
EVERY = pytest.mark.parametrize("key", list(SHAPES))
DENSE = pytest.mark.parametrize("key", [key for key in SHAPES if SHAPES[key][0] in ("dice", "tversky")])
LISTS = pytest.mark.parametrize("key", ["listnet", "pairwise_logistic"])


def build(key: str) -> Any:
    name, options, _ = SHAPES[key]
    return create("inner", name, **options)


def data(key: str, *size: int, seed: int = 0, dtype: torch.dtype = f64) -> tuple[Tensor, Tensor]:
    return build(key).sample(SHAPES[key][2], size, torch.Generator().manual_seed(seed), dtype)


def random_mask(*size: int, seed: int = 5) -> Tensor:
    """A mask whose second sample has no valid entry, and whose others have some of each."""
    mask = torch.rand(size, generator=torch.Generator().manual_seed(seed)) < 0.6
    mask[1] = False
    assert bool(mask.flatten(1).any(1)[[0, *range(2, size[0])]].all()) and not bool(mask[0].all())
    return mask


def only(prediction: Tensor, target: Tensor, mask: Tensor, index: int) -> tuple[Tensor, Tensor]:
    """The valid entries of one sample, as a batch of one."""
    keep = mask[index]
    return prediction[index][..., keep].unsqueeze(0), target[index][keep].unsqueeze(0)


@EVERY
@pytest.mark.parametrize("size", [(1, 5), (4, 5), (3, 4, 2)])
def test_one_loss_per_sample(key: str, size: tuple[int, ...]) -> None:
    """A pooled shape gives (N,) losses whatever the trailing dimensions, and each depends on its own sample alone."""
    prediction, target = data(key, *size)
    losses = build(key)(prediction, target)
    assert build(key).pooled and build(key).masks and losses.shape == size[:1]
    alone = [build(key)(prediction[i : i + 1], target[i : i + 1]) for i in range(size[0])]
    torch.testing.assert_close(losses, torch.cat(alone), rtol=1e-13, atol=1e-15)


@EVERY
def test_the_order_of_entries_carries_no_meaning(key: str) -> None:
    """Permuting pixels or items within all samples changes no loss; so does folding them into more dimensions."""
    prediction, target = data(key, 3, 8)
    order = torch.randperm(8, generator=torch.Generator().manual_seed(1))
    losses = build(key)(prediction, target)
    torch.testing.assert_close(build(key)(prediction[..., order], target[..., order]), losses, rtol=1e-13, atol=1e-15)
    folded = build(key)(prediction.unflatten(-1, (2, 4)), target.unflatten(-1, (2, 4)))
    torch.testing.assert_close(folded, losses, rtol=1e-13, atol=1e-15)


@EVERY
def test_masked_entries_are_as_deleted(key: str) -> None:
    """With a mask, the loss and gradient of a sample are those of its valid entries alone."""
    prediction, target = data(key, 4, 9)
    mask = random_mask(4, 9)
    leaf = prediction.clone().requires_grad_()
    losses = build(key)(leaf, target, mask)
    assert losses.shape == (4,) and bool(torch.isfinite(losses).all())
    (gradient,) = torch.autograd.grad(losses[[0, 2, 3]].sum(), leaf)
    for index in (0, 2, 3):
        part, labels = only(prediction, target, mask, index)
        part.requires_grad_()
        expected = build(key)(part, labels)
        torch.testing.assert_close(losses[index : index + 1], expected, rtol=1e-12, atol=1e-14)
        expected_gradient = torch.autograd.grad(expected.sum(), part)[0].squeeze(0)
        torch.testing.assert_close(gradient[index][..., mask[index]], expected_gradient, rtol=1e-12, atol=1e-14)
        assert not bool(gradient[index][..., ~mask[index]].any())
    assert not bool(gradient[1].any())


@EVERY
def test_an_all_true_mask_changes_nothing(key: str) -> None:
    """A mask that keeps everything gives what no mask gives."""
    prediction, target = data(key, 4, 9)
    everything = torch.ones(4, 9, dtype=torch.bool)
    torch.testing.assert_close(
        build(key)(prediction, target, everything), build(key)(prediction, target), rtol=1e-14, atol=0
    )


@EVERY
def test_a_criterion_averages_the_samples_that_count(key: str) -> None:
    """Through compose, with a mask, NaN at masked places and sample weights (N,), loss and gradient are the weighted sum of
    the samples with a valid entry, divided by their number."""
    name, options, _ = SHAPES[key]
    prediction, target = data(key, 4, 9)
    mask, weight = random_mask(4, 9), torch.tensor([1.0, 5.0, 0.5, 2.0], dtype=f64)
    expected = sum(weight[i] * build(key)(*only(prediction, target, mask, i)).sum() for i in (0, 2, 3)) / 3
    spoiled = torch.where(mask if prediction.shape == target.shape else mask.unsqueeze(1), prediction, torch.nan)
    spoiled.requires_grad_()
    criterion = compose(inner={"a": {"name": name, **options}})
    loss = criterion((spoiled,), (target,), mask=mask, sample_weight=weight)
    torch.testing.assert_close(loss.detach(), expected, rtol=1e-12, atol=1e-14)
    (gradient,) = torch.autograd.grad(loss, spoiled)
    clean = prediction.clone().requires_grad_()
    (direct,) = torch.autograd.grad((weight * build(key)(clean, target, mask))[[0, 2, 3]].sum() / 3, clean)
    torch.testing.assert_close(gradient, direct, rtol=1e-12, atol=1e-14)
    with pytest.raises(DataError, match="sample_weight"):
        criterion((prediction,), (target,), sample_weight=torch.ones(4, 9))


@LISTS
def test_unlabelled_items_are_padding(key: str) -> None:
    """With missing="ignore", NaN relevances are masked: a padded list has the loss of the list."""
    prediction, target = data(key, 3, 6)
    padded_scores = torch.cat([prediction, torch.full((3, 2), 7.0, dtype=f64)], 1)
    padded = torch.cat([target, torch.full((3, 2), torch.nan, dtype=f64)], 1)
    criterion = compose(inner={"rank": SHAPES[key][0]}, missing="ignore")
    torch.testing.assert_close(criterion((padded_scores,), (padded,)), build(key)(prediction, target).mean())


@EVERY
@pytest.mark.parametrize("dtype", [torch.float32, f64])
def test_saturated_predictions(key: str, dtype: torch.dtype) -> None:
    """Losses are finite and not negative, and gradients finite, at predictions of +-1e4, masked or not, without a NaN inside
    the graph."""
    prediction, target = data(key, 4, 9, dtype=dtype)
    prediction = (1e4 * prediction.sign()).requires_grad_()
    for mask in (None, random_mask(4, 9)):
        with torch.autograd.set_detect_anomaly(True):
            losses = build(key)(prediction, target, mask)
            (gradient,) = torch.autograd.grad(losses.sum(), prediction)
        assert losses.dtype == dtype and bool((losses >= 0).all())
        assert bool(torch.isfinite(losses).all()) and bool(torch.isfinite(gradient).all())


@EVERY
def test_gradients_are_those_of_the_loss(key: str) -> None:
    """The gradient agrees with finite differences, with and without a mask."""
    prediction, target = data(key, 3, 6)
    leaf = (prediction / 3).requires_grad_()
    assert torch.autograd.gradcheck(lambda p: build(key)(p, target), leaf)
    mask = random_mask(3, 6)
    assert torch.autograd.gradcheck(lambda p: build(key)(p, target, mask), leaf)


@EVERY
def test_no_value_is_read(key: str) -> None:
    """check and forward run on the meta device, with and without a mask."""
    prediction, target = (tensor.to("meta") for tensor in data(key, 4, 9))
    for mask in (None, torch.ones(4, 9, dtype=torch.bool, device="meta")):
        assert build(key)(prediction, target, mask).shape == (4,)


@EVERY
def test_a_single_entry_per_sample_is_refused(key: str) -> None:
    """Targets without a trailing dimension have no image or list, and the message says what to do."""
    prediction = torch.zeros(4, 3) if SHAPES[key][2] == "multiclass" else torch.zeros(4)
    with pytest.raises(DataError, match=r"should have the shape \(N, .*Found target \(4,\)\. (For|Use) "):
        build(key)(prediction, torch.zeros(4, dtype=torch.long))


# ---- regions


def test_tversky_with_equal_sides_is_dice() -> None:
    """tversky(1/2, 1/2) with half the smoothing is dice, for both kinds, masked or not."""
    for key in ("dice", "dice of classes"):
        prediction, target = data(key, 4, 9)
        for mask in (None, random_mask(4, 9)):
            dice = create("inner", "dice", smooth=0.8)(prediction, target, mask)
            tversky = create("inner", "tversky", alpha=0.5, beta=0.5, smooth=0.4)(prediction, target, mask)
            torch.testing.assert_close(tversky, dice, rtol=1e-13, atol=1e-15)


@DENSE
def test_an_empty_region(key: str) -> None:
    """Where an image holds nothing of a region and nothing is predicted, the loss is 0; every false pixel adds to it."""
    name, options, kind = SHAPES[key]
    alpha = {"dice": 1.0, "tversky": options.get("alpha", 0.3)}[name]
    smooth = options.get("smooth", 1.0)
    target = torch.zeros(4, 9, dtype=torch.bool)
    wrong = torch.arange(9).expand(4, 9) < torch.arange(4).unsqueeze(1)
    logits = torch.where(wrong, 1e3, -1e3).double()
    if kind == "binary":
        losses = build(key)(logits, target)
        expected = torch.tensor([alpha * n / (alpha * n + smooth) for n in range(4)], dtype=f64)
        torch.testing.assert_close(losses, expected, rtol=1e-13, atol=0)
    else:
        # The three classes of each image: the background with misses, one with false pixels, one empty and unpredicted.
        losses = build(key)(torch.stack([-logits, logits, torch.full_like(logits, -1e5)], 1), target.long())
        assert losses[0] == 0 and bool((losses.diff() > 0).all())


@DENSE
def test_a_perfect_prediction_costs_nothing(key: str) -> None:
    """With certain and right pixels the loss is exactly 0."""
    _, target = data(key, 4, 9)
    if SHAPES[key][2] == "binary":
        logits = torch.where(target, 1e3, -1e3).double()
    else:
        logits = 1e3 * F.one_hot(target, 3).movedim(-1, 1).double()
    assert build(key)(logits, target).tolist() == [0.0] * 4


@DENSE
def test_small_losses_do_not_cancel(key: str) -> None:
    """Near a perfect prediction the loss is the small number of wrong pixels, not a difference from 1."""
    _, target = data(key, 2, 9)
    if SHAPES[key][2] == "binary":
        logits = torch.where(target, 45.0, -45.0).double()
        losses = build(key)(logits, target)
        assert bool((losses > 0).all()) and bool((losses < 1e-18).all())


def test_dice_of_a_whole_is_not_the_mean_of_its_parts() -> None:
    """Sums over pixels come first: an image in two halves has other losses than the whole."""
    prediction, target = data("dice", 1, 8)
    halves = create("inner", "dice")(prediction.reshape(2, 4), target.reshape(2, 4)).mean()
    assert abs(float(halves - create("inner", "dice")(prediction, target))) > 1e-3


@pytest.mark.parametrize(
    ("name", "options", "match"),
    [
        ("dice", {"smooth": 0.0}, r"`smooth` should be a number in \(0.0, inf\)"),
        ("tversky", {"alpha": -1.0}, "`alpha` should be a number in"),
        ("tversky", {"alpha": 0, "beta": 0}, "One of `alpha` and `beta` should be positive"),
    ],
)
def test_options_are_checked_in_the_constructor(name: str, options: dict[str, Any], match: str) -> None:
    """A wrong option is an error before any loss is computed."""
    with pytest.raises(OptionError, match=match):
        create("inner", name, **options)


@pytest.mark.parametrize("name", ["dice", "tversky"])
def test_labels_of_regions_are_checked_in_the_first_call(name: str) -> None:
    """A binary label beyond 1, or a class beyond the logits, is an error of the first call."""
    for beyond, found in ((2, r"binary targets should lie in \[0, 1\]\. Found 2\.\.2"), (2.0, "Found float targets")):
        with pytest.raises(DataError, match=found):
            compose(inner={"a": name})((torch.zeros(2, 3),), (torch.full((2, 3), beyond),))
    with pytest.raises(DataError, match=r"class indices should lie in \[0, 3\]"):
        compose(inner={"a": name})((torch.zeros(2, 4, 3),), (torch.full((2, 3), 4),))
    with pytest.raises(DataError, match="class dimension at 1"):
        create("inner", name)(torch.zeros(2, 3, 4), torch.zeros(2, 3, dtype=torch.long))


@pytest.mark.parametrize("name", ["dice", "tversky"])
@pytest.mark.parametrize("masked", [False, True])
def test_soft_regions_are_a_binary_task(name: str, masked: bool) -> None:
    """Float labels within [0, 1] are soft ones for a shape that serves no regression, also when the first call has none."""
    target = torch.rand(3, 5, generator=torch.Generator().manual_seed(0))
    criterion = compose(inner={"a": name, "b": "mse"})
    other = torch.zeros(3)
    if masked:
        criterion((torch.zeros(3, 5), other), (target, other + 5), mask={"a": torch.zeros(3, 5, dtype=torch.bool)})
    criterion((torch.zeros(3, 5), other), (target, other + 5))
    assert criterion.report is not None
    torch.testing.assert_close(criterion.report.losses[0], create("inner", name)(torch.zeros(3, 5), target).mean())


# ---- lists


def test_a_given_pair_is_a_list_of_two() -> None:
    """A pair whose first item is preferred, as a list with relevances (1, 0), has the loss softplus(x_2 - x_1): bce."""
    scores = 3 * torch.randn(10, 2, generator=torch.Generator().manual_seed(0), dtype=f64)
    preferred = torch.tensor([1.0, 0.0], dtype=f64).expand(10, 2)
    difference = scores[:, 0] - scores[:, 1]
    ours = create("inner", "pairwise_logistic")(scores, preferred)
    torch.testing.assert_close(
        ours, create("inner", "bce")(difference, torch.ones(10, dtype=torch.bool)), rtol=1e-13, atol=0
    )


@pytest.mark.parametrize("dtype", [torch.int64, f64])
def test_relevances_may_be_integers(dtype: torch.dtype) -> None:
    """Integer relevances rank like the same floats, alone and in a criterion."""
    scores = torch.tensor([[2.0, 0.0, 1.0, -1.0]], dtype=f64)
    target = torch.tensor([[0, 3, 1, 1]], dtype=dtype)
    for name in ("pairwise_logistic", "listnet"):
        loss = compose(inner={"rank": name})((scores,), (target,))
        torch.testing.assert_close(loss, create("inner", name)(scores, target.double()).mean(), rtol=1e-14, atol=0)


@LISTS
def test_a_common_shift_of_the_scores_changes_nothing(key: str) -> None:
    """Ranking losses depend on differences of scores within a list."""
    prediction, target = data(key, 4, 6)
    shift = torch.tensor([[100.0], [-3.0], [0.0], [7.0]], dtype=f64)
    torch.testing.assert_close(
        build(key)(prediction + shift, target), build(key)(prediction, target), rtol=1e-11, atol=1e-12
    )


def test_a_list_without_a_pair_has_no_loss_and_counts() -> None:
    """Items of one relevance give no pair: the loss is 0, its gradient 0, and the list enters the mean's denominator."""
    scores = torch.tensor([[2.0, 0.0], [0.0, 0.0]], dtype=f64, requires_grad=True)
    target = torch.tensor([[1.0, 1.0], [1.0, 0.0]], dtype=f64)
    loss = compose(inner={"rank": "pairwise_logistic"})((scores,), (target,))
    torch.testing.assert_close(loss.detach(), torch.tensor(2.0, dtype=f64).log() / 2)
    (gradient,) = torch.autograd.grad(loss, scores)
    assert gradient[0].tolist() == [0.0, 0.0]


def test_listnet_is_least_at_its_relevances() -> None:
    """listnet is the entropy of the target's distribution at its minimum, where the scores are the relevances."""
    _, target = data("listnet", 4, 6)
    scores = (target + 5).requires_grad_()
    losses = create("inner", "listnet")(scores, target)
    q = target.softmax(1)
    torch.testing.assert_close(losses.detach(), -(q * q.log()).sum(1), rtol=1e-12, atol=1e-13)
    (gradient,) = torch.autograd.grad(losses.sum(), scores)
    torch.testing.assert_close(gradient, torch.zeros_like(gradient), rtol=0, atol=1e-14)


# ---- per pixel, and in training


@pytest.mark.parametrize(
    ("name", "options", "channels"),
    [
        ("cross_entropy", {}, 4),
        ("focal", {}, 4),
        ("label_smoothing", {}, 4),
        ("gce", {}, 4),
        ("huber", {}, 0),
        ("asl", {}, 0),
    ],
)
def test_shapes_per_pixel(name: str, options: dict[str, Any], channels: int) -> None:
    """A shape per entry serves images: the loss is the mean over valid pixels of what each pixel costs by itself, and a
    weight per image spreads to its pixels."""
    generator = torch.Generator().manual_seed(0)
    size = (3, channels, 5, 6) if channels else (3, 5, 6)
    prediction = torch.randn(size, generator=generator, dtype=f64)
    target: Tensor = torch.randint(channels or 2, (3, 5, 6), generator=generator)
    target = {"huber": target.double(), "asl": target.bool()}.get(name, target)
    mask = torch.rand(3, 5, 6, generator=generator) < 0.7
    weight = torch.tensor([1.0, 2.0, 0.5], dtype=f64)
    pixels = prediction.movedim(1, -1).reshape(-1, channels) if channels else prediction.flatten()
    each = create("inner", name, **options)(pixels, target.flatten()).reshape(3, 5, 6)
    expected = (each * weight.reshape(3, 1, 1))[mask].sum() / mask.sum()
    loss = compose(inner={"map": {"name": name, **options}})((prediction,), (target,), mask=mask, sample_weight=weight)
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("outer", ["fixed", "gaba"])
def test_a_region_and_a_number_are_learned_together(outer: str) -> None:
    """A model with a segmentation head under dice and a regression head under mse learns both, with masks."""
    torch.manual_seed(0)
    trunk, mask_head, size_head = nn.Linear(12, 16), nn.Linear(16, 12), nn.Linear(16, 1)
    images = torch.randn(32, 12)
    targets = {"region": images > 0.3, "size": (images > 0.3).float().mean(1)}
    mask = {"region": torch.rand(32, 12) < 0.8}
    options = {"name": "gaba", "warmup": 0, "beta": 0.5} if outer == "gaba" else outer
    criterion = compose(options, {"region": "dice", "size": "mse"})
    optimizer = torch.optim.Adam([*trunk.parameters(), *mask_head.parameters(), *size_head.parameters()], lr=0.02)
    history = []
    for _ in range(40):
        z = torch.tanh(trunk(images))
        loss = criterion({"region": mask_head(z), "size": size_head(z).squeeze(-1)}, targets, mask=mask)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        history.append(criterion.report.losses.tolist())
    assert all(last < 0.6 * first for first, last in zip(history[0], history[-1], strict=True))


@pytest.mark.parametrize("key", ["dice", "tversky"])
def test_small_losses_of_classes_do_not_cancel(key: str) -> None:
    """Of a multiclass task, too: what the true class lacks is what the others have, not one minus its probability."""
    target = torch.tensor([[0, 1, 2, 0]])
    logits = 20 * torch.nn.functional.one_hot(target, 3).movedim(-1, 1)
    shape = create("inner", key)
    torch.testing.assert_close(shape(logits.float(), target).double(), shape(logits.double(), target), rtol=1e-5, atol=0)


def test_a_weight_of_pixels_is_refused_by_what_it_should_be() -> None:
    """A pooled loss has one weight per sample, and the message does not take that for the target's shape."""
    criterion = compose("fixed", {"mask": "dice"})
    with pytest.raises(DataError, match=r"should have the shape of its losses, one per sample, \(2,\).*Found \(2, 4, 4\)"):
        criterion(
            {"mask": torch.zeros(2, 4, 4)}, {"mask": torch.ones(2, 4, 4) == 1}, sample_weight={"mask": torch.ones(2, 4, 4)}
        )
