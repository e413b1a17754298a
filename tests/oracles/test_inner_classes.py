"""Shapes of classification, ordinal, dense, ranking and survival tasks against frozen numbers, libraries and loops.

The loops write each definition out, sample by sample, in Python floats or in plain torch without a stable form.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import scipy.stats
import torch
from golden import golden_inputs, load
from sklearn.metrics import brier_score_loss, f1_score, fbeta_score, hinge_loss, jaccard_score
from torch import Tensor
from torch.nn import functional as F

from mtl_axes import compose, create

GOLDEN = load("inner_classes_golden.json")
CASES = sorted(GOLDEN["cases"])
f64 = torch.float64


def draws(*shape: int, seed: int = 0, scale: float = 3.0) -> Tensor:
    return scale * torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=f64)


def classes(count: int, *shape: int, seed: int = 1) -> Tensor:
    return torch.randint(count, shape, generator=torch.Generator().manual_seed(seed))


def coins(*shape: int, seed: int = 2, p: float = 0.4) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < p


def signed_times(*shape: int, seed: int = 3, ties: bool = False) -> Tensor:
    time = torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=f64) * 5 + 0.05
    time = time.ceil() if ties else time
    return torch.where(coins(*shape, seed=seed + 1, p=0.6), time, -time)


def assert_same(
    ours: Callable[[Tensor], Tensor], theirs: Callable[[Tensor], Tensor], at: Tensor, tol: float = 1e-12
) -> None:
    """Two functions of a prediction agree in value and gradient."""
    results = []
    for function in (ours, theirs):
        leaf = at.detach().clone().requires_grad_()
        losses = function(leaf)
        results.append((losses.detach(), torch.autograd.grad(losses.sum(), leaf)[0]))
    assert bool(results[1][1].any())
    torch.testing.assert_close(results[0][0], results[1][0], rtol=tol, atol=tol)
    torch.testing.assert_close(results[0][1], results[1][1], rtol=tol, atol=tol)


def close(actual: Tensor, expected: Any) -> None:
    torch.testing.assert_close(actual.detach(), torch.tensor(expected, dtype=f64), rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("case", CASES)
def test_golden_values_and_gradients(case: str) -> None:
    """The loss of each sample and its gradient are the frozen ones, alone and as the mean of a criterion."""
    prediction, target, expected = golden_inputs(GOLDEN, case)
    losses = create("inner", expected["shape"], **expected["options"])(prediction, target)
    close(losses, expected["value"])
    close(torch.autograd.grad(losses.sum(), prediction)[0].flatten(), expected["gradient"])
    criterion = compose(inner={"task": {"name": expected["shape"], **expected["options"]}})
    loss = criterion({"task": prediction}, {"task": target})
    close(loss, expected["mean"])
    close(len(target) * torch.autograd.grad(loss, prediction)[0].flatten(), expected["gradient"])


# ---- binary


@pytest.mark.parametrize("clip", [0.0, 0.05, 0.3])
@pytest.mark.parametrize(("gamma_neg", "gamma_pos"), [(4.0, 1.0), (2.0, 0.0), (0.5, 0.7)])
def test_asl_is_its_formula(gamma_neg: float, gamma_pos: float, clip: float) -> None:
    """asl is the printed product of focus and logarithm, with the margin taken off the probability of negatives."""
    target = coins(300)

    def naive(x: Tensor) -> Tensor:
        p = x.sigmoid()
        shifted = (p - clip).clamp_min(0)
        focus = torch.where(target, (1 - p) ** gamma_pos, torch.where(shifted > 0, shifted, 1.0) ** gamma_neg)
        return focus * -torch.where(target, p.log(), (1 - shifted).log())

    shape = create("inner", "asl", gamma_neg=gamma_neg, gamma_pos=gamma_pos, clip=clip)
    assert_same(lambda x: shape(x, target), naive, draws(300))


def test_hinge_agrees_with_sklearn() -> None:
    """The mean of hinge is sklearn's hinge_loss, whose targets are -1 and 1."""
    logits, target = draws(200), coins(200)
    oracle = hinge_loss(2 * target.long() - 1, logits)
    assert create("inner", "hinge")(logits, target).mean().item() == pytest.approx(oracle, rel=1e-13)
    squared = create("inner", "squared_hinge", margin=0.5)(logits, target)
    torch.testing.assert_close(squared, create("inner", "hinge", margin=0.5)(logits, target) ** 2)


def test_brier_agrees_with_sklearn() -> None:
    """The mean of brier is sklearn's brier_score_loss of the probabilities."""
    logits, target = draws(200), coins(200)
    oracle = brier_score_loss(target, logits.sigmoid())
    assert create("inner", "brier")(logits, target).mean().item() == pytest.approx(oracle, rel=1e-13)


@pytest.mark.parametrize("beta", [0.5, 1.0, 2.0])
def test_quality_focal_is_its_formula(beta: float) -> None:
    """quality_focal is |y - p|^beta times torch's binary cross-entropy, with soft targets."""
    target = torch.rand(300, generator=torch.Generator().manual_seed(5), dtype=f64)
    shape = create("inner", "quality_focal", beta=beta)

    def naive(x: Tensor) -> Tensor:
        entropy = F.binary_cross_entropy_with_logits(x, target, reduction="none")
        return (target - x.sigmoid()).abs() ** beta * entropy

    assert_same(lambda x: shape(x, target), naive, draws(300))


@pytest.mark.parametrize("gamma", [0.5, 2.0])
def test_varifocal_is_its_formula(gamma: float) -> None:
    """varifocal is torch's binary cross-entropy, times y where y > 0 and alpha p^gamma where y = 0."""
    target = torch.rand(300, generator=torch.Generator().manual_seed(5), dtype=f64) * coins(300)
    shape = create("inner", "varifocal", alpha=0.6, gamma=gamma)

    def naive(x: Tensor) -> Tensor:
        entropy = F.binary_cross_entropy_with_logits(x, target, reduction="none")
        return torch.where(target > 0, target, 0.6 * x.sigmoid() ** gamma) * entropy

    assert_same(lambda x: shape(x, target), naive, draws(300))


# ---- multiclass


@pytest.mark.parametrize("shape", [(60, 2), (60, 5), (4, 5, 3), (3, 4, 5, 2)])
@pytest.mark.parametrize("epsilon", [0.1, 0.6])
def test_label_smoothing_agrees_with_torch(shape: tuple[int, ...], epsilon: float) -> None:
    """label_smoothing is torch's, with the class dimension at 1 whatever follows it."""
    target = classes(shape[1], shape[0], *shape[2:])
    ours = create("inner", "label_smoothing", epsilon=epsilon)
    assert_same(
        lambda x: ours(x, target),
        lambda x: F.cross_entropy(x, target, reduction="none", label_smoothing=epsilon),
        draws(*shape),
    )


@pytest.mark.parametrize("p", [1, 2])
@pytest.mark.parametrize("margin", [0.5, 1.0, 4.0])
def test_multi_margin_agrees_with_torch(p: int, margin: float) -> None:
    """multi_margin is torch's multi_margin_loss; with trailing dimensions it is that of each place."""
    target = classes(5, 60)
    ours = create("inner", "multi_margin", p=p, margin=margin)
    assert_same(
        lambda x: ours(x, target),
        lambda x: F.multi_margin_loss(x, target, p=p, margin=margin, reduction="none"),
        draws(60, 5),
    )
    images, labels = draws(4, 5, 3, 2), classes(5, 4, 3, 2)
    flat = F.multi_margin_loss(images.movedim(1, -1).reshape(-1, 5), labels.flatten(), p=p, margin=margin, reduction="none")
    torch.testing.assert_close(ours(images, labels), flat.reshape(4, 3, 2), rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("shape", [(60, 4), (4, 4, 3)])
@pytest.mark.parametrize(
    ("name", "options", "of_p"),
    [
        ("poly1", {"epsilon": -0.7}, lambda p: -p.log() - 0.7 * (1 - p)),
        ("poly1", {"epsilon": 2.0}, lambda p: -p.log() + 2 * (1 - p)),
        ("gce", {"q": 0.3}, lambda p: (1 - p**0.3) / 0.3),
        ("gce", {"q": 1.0}, lambda p: 1 - p),
        (
            "symmetric_ce",
            {"alpha": 0.5, "beta": 2.0, "log_zero": -6.0},
            lambda p: -0.5 * p.log() + 12 * (1 - p),
        ),
    ],
)
def test_functions_of_the_true_probability(name: str, options: dict[str, float], of_p: Any, shape: tuple[int, ...]) -> None:
    """poly1, gce and symmetric_ce are their formulas in p, the softmax at the true class."""
    target = classes(shape[1], shape[0], *shape[2:])
    ours = create("inner", name, **options)
    assert_same(
        lambda x: ours(x, target),
        lambda x: of_p(x.softmax(1).gather(1, target.unsqueeze(1)).squeeze(1)),
        draws(*shape, scale=2.0),
    )


def test_symmetric_ce_is_the_sum_of_both_directions() -> None:
    """The reverse term is -sum_c p_c log q_c with log 0 = log_zero in the one-hot label."""
    logits, target = draws(50, 4), classes(4, 50)
    p, one_hot = logits.softmax(1), F.one_hot(target, 4).bool()
    reverse = -(p * torch.where(one_hot, 0.0, -4.0)).sum(1)
    entropy = F.cross_entropy(logits, target, reduction="none")
    torch.testing.assert_close(
        create("inner", "symmetric_ce")(logits, target), 0.1 * entropy + reverse, rtol=1e-12, atol=1e-12
    )


def test_symmetric_ce_of_its_authors() -> None:
    """Their code clamps p in the first term and the label in the second alone; within the clamps log_zero is log 1e-4."""
    logits, target = draws(50, 4), classes(4, 50)
    p, label = logits.softmax(1), F.one_hot(target, 4).to(f64)
    entropy = -(label * p.clamp(1e-7, 1).log()).sum(1)
    reverse = -(p * label.clamp(1e-4, 1).log()).sum(1)
    ours = create("inner", "symmetric_ce", alpha=0.3, beta=0.7, log_zero=math.log(1e-4))(logits, target)
    torch.testing.assert_close(ours, 0.3 * entropy + 0.7 * reverse, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("shape", [(60, 3), (4, 3, 5)])
@pytest.mark.parametrize("tau", [0.5, 1.0, 2.0])
def test_logit_adjustment_is_a_cross_entropy_of_shifted_logits(shape: tuple[int, ...], tau: float) -> None:
    """logit_adjusted is torch's cross-entropy after tau log prior was added to the logits."""
    prior, target = torch.tensor([0.7, 0.2, 0.1], dtype=f64), classes(3, shape[0], *shape[2:])
    ours = create("inner", "logit_adjusted", prior=prior.tolist(), tau=tau)
    shift = (tau * prior.log()).reshape(1, 3, *(1,) * (len(shape) - 2))
    assert_same(lambda x: ours(x, target), lambda x: F.cross_entropy(x + shift, target, reduction="none"), draws(*shape))


def test_balanced_softmax_weighs_the_exponentials_by_counts() -> None:
    """balanced_softmax is -log(n_y e^x_y / sum_c n_c e^x_c)."""
    counts, target = torch.tensor([500.0, 40.0, 3.0], dtype=f64), classes(3, 60)
    ours = create("inner", "balanced_softmax", counts=[500, 40, 3])
    rows = torch.arange(60)
    assert_same(
        lambda x: ours(x, target),
        lambda x: -((counts * x.exp())[rows, target] / (counts * x.exp()).sum(1)).log(),
        draws(60, 3),
    )


def test_ldam_holds_the_true_class_back() -> None:
    """ldam subtracts max_m (n_min / n_y)^(1/4) from the true logit, scales, and is torch's cross-entropy."""
    counts, target = [500, 40, 3], classes(3, 60)
    ours = create("inner", "ldam", counts=counts, max_m=0.4, s=10.0)

    def held(x: Tensor) -> Tensor:
        rows = [
            [value - (0.4 * (3 / counts[c]) ** 0.25 if c == label else 0) for c, value in enumerate(row)]
            for row, label in zip(x, target.tolist(), strict=True)
        ]
        return F.cross_entropy(10 * torch.stack([torch.stack(row) for row in rows]), target, reduction="none")

    assert_same(lambda x: ours(x, target), held, draws(60, 3, scale=0.5))


# ---- ordinal


@pytest.mark.parametrize("shape", [(60, 4), (4, 4, 3)])
def test_coral_is_a_sum_of_binary_cross_entropies(shape: tuple[int, ...]) -> None:
    """coral is the weighted sum of torch's bce over the levels 1{y > k}."""
    target = classes(5, shape[0], *shape[2:])
    levels = torch.stack([(target > k).double() for k in range(4)], 1)
    weight = torch.tensor([1.0, 0.5, 2.0, 0.0], dtype=f64)
    ours = create("inner", "coral", importance=weight.tolist())

    def oracle(x: Tensor) -> Tensor:
        bce = F.binary_cross_entropy_with_logits(x, levels, reduction="none")
        return (bce * weight.reshape(1, 4, *(1,) * (len(shape) - 2))).sum(1)

    assert_same(lambda x: ours(x, target), oracle, draws(*shape))


def test_coral_has_the_number_of_its_authors() -> None:
    """The example in the docstring of coral_pytorch's coral_loss has the mean 0.6920."""
    logits = torch.tensor([[2.1, 1.8, -2.1, -1.8], [1.9, -1.0, -1.5, -1.3], [1.9, 1.8, 1.7, 1.6]])
    assert create("inner", "coral")(logits, torch.tensor([2, 1, 4])).mean().item() == pytest.approx(0.6920, abs=5e-5)


def test_corn_is_the_likelihood_of_the_class() -> None:
    """corn is -log P(y) with P(y > k) the product of the conditional probabilities up to k."""
    target = classes(5, 60)

    def likelihood(x: Tensor) -> Tensor:
        beyond = torch.cat([torch.ones(60, 1, dtype=f64), x.sigmoid().cumprod(1), torch.zeros(60, 1, dtype=f64)], 1)
        return -(beyond[:, :-1] - beyond[:, 1:]).gather(1, target.unsqueeze(1)).squeeze(1).log()

    assert_same(lambda x: create("inner", "corn")(x, target), likelihood, draws(60, 4, scale=1.0), tol=1e-11)


def test_corn_sums_over_conditional_subsets() -> None:
    """The sum is that of bce over the subsets {y >= k}; with 3 even classes the mean over its terms is 3/5 of ours."""
    logits, target = draws(90, 2), torch.arange(90) % 3
    total, asked = 0.0, 0
    for k in range(2):
        subset = target >= k
        total += float(F.binary_cross_entropy_with_logits(logits[subset, k], (target[subset] > k).double(), reduction="sum"))
        asked += int(subset.sum())
    losses = create("inner", "corn")(logits, target)
    assert losses.sum().item() == pytest.approx(total, rel=1e-12)
    assert losses.mean().item() == pytest.approx(5 / 3 * total / asked, rel=1e-12)


def test_emd2_is_the_squared_distance_of_the_cumulative_distributions() -> None:
    """emd2 is sum_k (F(k) - 1{y <= k})^2; for certain predictions it is the distance of the classes."""
    target = classes(5, 60)

    def loop(x: Tensor) -> Tensor:
        below = x.softmax(1).cumsum(1)
        return sum((below[:, k] - (target <= k).double()) ** 2 for k in range(5))  # type: ignore[return-value]

    ours = create("inner", "emd2")
    assert_same(lambda x: ours(x, target), loop, draws(60, 5, scale=1.0))
    certain = torch.where(torch.eye(5, dtype=torch.bool), 1e3, 0.0).double()
    distances = torch.stack([ours(certain, torch.full((5,), label)) for label in range(5)])
    labels = torch.arange(5.0, dtype=f64)
    assert torch.equal(distances, (labels.unsqueeze(0) - labels.unsqueeze(1)).abs())


# ---- dense


def test_dice_of_certain_pixels_is_one_minus_the_f1_score() -> None:
    """With saturated logits and next to no smoothing, each image's dice loss is 1 - sklearn's f1_score."""
    predicted, target = coins(5, 8, 6, seed=7), coins(5, 8, 6)
    losses = create("inner", "dice", smooth=1e-12)(torch.where(predicted, 1e3, -1e3).double(), target)
    oracle = [1 - f1_score(y.flatten(), p.flatten()) for p, y in zip(predicted, target, strict=True)]
    close(losses, oracle)


def test_tversky_of_certain_pixels_is_one_minus_a_score_of_sklearn() -> None:
    """alpha = beta = 1 is Jaccard's score, alpha + beta = 1 the F-beta score with beta^2 = beta / alpha."""
    predicted, target = coins(5, 8, 6, seed=7), coins(5, 8, 6)
    logits = torch.where(predicted, 1e3, -1e3).double()
    pairs = [(y.flatten(), p.flatten()) for p, y in zip(predicted, target, strict=True)]
    losses = create("inner", "tversky", alpha=1.0, beta=1.0, smooth=1e-12)(logits, target)
    close(losses, [1 - jaccard_score(*pair) for pair in pairs])
    losses = create("inner", "tversky", alpha=0.2, beta=0.8, smooth=1e-12)(logits, target)
    close(losses, [1 - fbeta_score(*pair, beta=2.0) for pair in pairs])


@pytest.mark.parametrize("soft", [False, True])
def test_tversky_is_its_sums(soft: bool) -> None:
    """Binary tversky is its printed ratio of sums over the pixels of an image, also for soft targets."""
    target = torch.rand(4, 5, 6, generator=torch.Generator().manual_seed(8), dtype=f64)
    target = target if soft else (target > 0.5).double()
    ours = create("inner", "tversky", alpha=0.3, beta=0.6, smooth=0.5)

    def sums(x: Tensor) -> Tensor:
        p, y = x.sigmoid().flatten(1), target.flatten(1)
        hit, over, under = (p * y).sum(1), (p * (1 - y)).sum(1), ((1 - p) * y).sum(1)
        return 1 - (hit + 0.5) / (hit + 0.3 * over + 0.6 * under + 0.5)

    assert_same(lambda x: ours(x, target), sums, draws(4, 5, 6))


@pytest.mark.parametrize("name", ["dice", "tversky"])
def test_regions_of_classes_are_averaged(name: str) -> None:
    """The multiclass loss of an image is the mean over classes of the binary formula with softmax and one-hot labels."""
    target = classes(4, 3, 5, 6)
    options = {"dice": {"smooth": 0.7}, "tversky": {"alpha": 0.4, "beta": 0.9, "smooth": 0.7}}[name]
    alpha, beta, smooth = (0.5, 0.5, 0.35) if name == "dice" else (0.4, 0.9, 0.7)
    ours = create("inner", name, **options)

    def sums(x: Tensor) -> Tensor:
        p, y = x.softmax(1), F.one_hot(target, 4).movedim(-1, 1).double()
        hit, over, under = ((each).sum((2, 3)) for each in (p * y, p * (1 - y), (1 - p) * y))
        return (1 - (hit + smooth) / (hit + alpha * over + beta * under + smooth)).mean(1)

    assert_same(lambda x: ours(x, target), sums, draws(3, 4, 5, 6))


# ---- ranking


def test_listnet_is_a_cross_entropy_with_probabilities() -> None:
    """listnet is torch's cross-entropy of the scores with the softmax of the relevances for a target."""
    relevances = classes(4, 20, 7).double()
    assert_same(
        lambda x: create("inner", "listnet")(x, relevances),
        lambda x: F.cross_entropy(x, relevances.softmax(1), reduction="none"),
        draws(20, 7),
    )


def test_pairwise_logistic_is_a_loop_over_pairs() -> None:
    """pairwise_logistic is the mean of log(1 + exp(x_j - x_i)) over the pairs of a list with y_i > y_j."""
    relevances = classes(3, 12, 6).double()

    def loop(x: Tensor) -> Tensor:
        lists = []
        for scores, labels in zip(x, relevances.tolist(), strict=True):
            terms = [(1 + (scores[j] - scores[i]).exp()).log() for i in range(6) for j in range(6) if labels[i] > labels[j]]
            lists.append(torch.stack(terms).mean() if terms else 0 * scores.sum())
        return torch.stack(lists)

    assert_same(lambda x: create("inner", "pairwise_logistic")(x, relevances), loop, draws(12, 6))


# ---- survival


@pytest.mark.parametrize("sigma", [1.0, 0.4, 2.0])
@pytest.mark.parametrize("distribution", ["weibull", "lognormal", "loglogistic"])
def test_aft_agrees_with_scipy(distribution: str, sigma: float) -> None:
    """aft is minus scipy's log density of an event's time, and minus its log survival function at a censored one."""
    mu, target = draws(200, scale=1.0), signed_times(200)
    scale = np.exp(mu.numpy())
    oracle = {
        "weibull": scipy.stats.weibull_min(c=1 / sigma, scale=scale),
        "lognormal": scipy.stats.lognorm(s=sigma, scale=scale),
        "loglogistic": scipy.stats.fisk(c=1 / sigma, scale=scale),
    }[distribution]
    time = target.abs().numpy()
    expected = -np.where(target.numpy() > 0, oracle.logpdf(time), oracle.logsf(time))
    shape = create("inner", "aft", distribution=distribution, sigma=sigma)
    torch.testing.assert_close(shape(mu, target), torch.tensor(expected), rtol=1e-10, atol=1e-11)
    both = torch.stack([mu, torch.full_like(mu, math.log(sigma))], -1)
    predicted = create("inner", "aft", distribution=distribution, sigma=None)(both, target)
    torch.testing.assert_close(predicted, torch.tensor(expected), rtol=1e-10, atol=1e-11)


def test_the_lognormal_tail_and_its_gradient() -> None:
    """log Phi(-z) agrees with scipy's log_ndtr, and its slope with the hazard of the normal distribution, to z = 1e9."""
    z = torch.cat([torch.linspace(-30, 40, 701, dtype=f64), torch.tensor([1e3, 1e6, 1e9], dtype=f64)])
    shape = create("inner", "aft", distribution="lognormal")
    mu = (-z).requires_grad_()
    losses = shape(mu, torch.full_like(z, -1.0))  # censored at t = 1: z = -mu
    (slope,) = torch.autograd.grad(losses.sum(), mu)
    torch.testing.assert_close(losses.detach(), torch.tensor(-scipy.special.log_ndtr(-z.numpy())), rtol=1e-12, atol=0)
    tail = np.maximum(z.numpy(), -20)
    hazard = np.sqrt(2 / np.pi) / scipy.special.erfcx(tail / np.sqrt(2))
    torch.testing.assert_close(-slope[100:], torch.tensor(hazard)[100:], rtol=1e-10, atol=0)


@pytest.mark.parametrize("ties", [False, True])
def test_cox_is_a_sum_over_the_samples_at_risk(ties: bool) -> None:
    """cox is log sum_{t_j >= t_i} exp(x_j) - x_i at each event, by brute force, ties included."""
    target = signed_times(60, ties=ties)
    assert (len(target.abs().unique()) < 60) == ties

    def brute(x: Tensor) -> Tensor:
        terms = [
            x[target.abs() >= target[i].abs()].exp().sum().log() - x[i] if target[i] > 0 else 0 * x[i] for i in range(60)
        ]
        return torch.stack(terms)

    assert_same(lambda x: create("inner", "cox")(x, target), brute, draws(60, scale=1.0))


def test_cox_has_the_numbers_of_torchsurv() -> None:
    """The examples in the docstring of its neg_partial_log_likelihood: means over three events, ties by Breslow."""
    scores = torch.tensor([0.1, 0.2, 0.3, 0.4, 0.5])
    for times, mean in (([1.0, -2.0, 3.0, -4.0, 5.0], 1.0071), ([1.0, -2.0, 2.0, -4.0, 5.0], 1.0873)):
        losses = create("inner", "cox")(scores, torch.tensor(times))
        assert losses.sum().item() / 3 == pytest.approx(mean, abs=5e-5)


def test_cox_is_the_likelihood_of_the_order_of_events() -> None:
    """Without ties and censoring, the sum of cox is minus the log probability of the order (Plackett-Luce)."""
    scores, target = draws(5, scale=1.0), torch.tensor([2.0, 0.5, 4.0, 1.0, 3.0], dtype=f64)
    probability, left = 1.0, scores.exp().tolist()
    for index in target.argsort().tolist():
        probability *= left[index] / sum(left)
        left[index] = 0.0
    assert create("inner", "cox")(scores, target).sum().item() == pytest.approx(-math.log(probability), rel=1e-13)


def test_discrete_hazard_is_the_likelihood_of_the_interval() -> None:
    """discrete_hazard is -log of: survive the intervals before, then fail; or survive all those that ended."""
    edges = (0.5, 1.5, 3.0, 4.0)
    logits = draws(7, 4, scale=1.0)
    target = torch.tensor([0.2, 0.5, 1.0, 3.5, -0.3, -1.5, 9.0], dtype=f64)
    # Event in interval 0, at its very end, in 1, in 3; censored within 0, at the end of 1, survived all.
    survived, failed = (0, 0, 1, 3, 0, 2, 4), (0, 0, 1, 3, None, None, None)

    def likelihood(x: Tensor) -> Tensor:
        hazard = x.sigmoid()
        terms = []
        for row, steps, end in zip(hazard, survived, failed, strict=True):
            probability = (1 - row[:steps]).prod()
            terms.append(-(probability if end is None else probability * row[end]).log())
        return torch.stack(terms)

    ours = create("inner", "discrete_hazard", edges=edges)
    assert_same(lambda x: ours(x, target), likelihood, logits)
