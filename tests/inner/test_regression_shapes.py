"""Mathematical properties of the regression shapes: identities between them, extremes, masks, and bad input."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import hypothesis
import pytest
import torch
from hypothesis import strategies as st
from torch import Tensor

from mtl_axes import InnerShape, available, compose, create
from mtl_axes.errors import DataError, MtlAxesError, OptionError

# Options that are not the neutral ones; the tails of linex and nasa are those of their examples.
SHAPES: dict[str, dict[str, Any]] = {
    "barron": {"alpha": -0.5, "c": 2.0},
    "beta_nll": {"beta": 0.5, "clamp": 10.0},
    "bmc": {"noise": 2.0},
    "cauchy": {"c": 2.0},
    "crps_ensemble": {"fair": True},
    "crps_gaussian": {"clamp": 10.0},
    "expectile": {"tau": 0.2},
    "focal_r": {"gamma": 0.5},
    "gamma": {},
    "gaussian_nll": {"clamp": 10.0, "full": True},
    "geman_mcclure": {"c": 2.0},
    "linex": {"a": 0.5, "max_exponent": 20.0},
    "log_cosh": {},
    "msle": {},
    "nasa": {"max_exponent": 20.0},
    "poisson": {"deviance": True},
    "pseudo_huber": {"delta": 2.0},
    "smooth_l1": {"beta": 2.0},
    "tukey": {"scale": 3.0},
    "tweedie": {"power": 1.3},
    "welsch": {"c": 2.0},
}
EVERY = pytest.mark.parametrize("name", list(SHAPES))
# Functions of the residual alone, 0 where it is 0.
RESIDUAL = sorted(set(SHAPES) - {"beta_nll", "bmc", "crps_ensemble", "crps_gaussian", "gamma", "gaussian_nll", "msle"})
RESIDUAL = [name for name in RESIDUAL if name not in ("poisson", "tweedie")]
SYMMETRIC = [name for name in RESIDUAL if name not in ("expectile", "linex", "nasa")]

Pair = tuple[Tensor, Tensor]


def given(*arguments: Any, **named: Any) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Hypothesis, with few examples: each of these claims is checked entry by entry of a batch."""
    return lambda test: hypothesis.settings(max_examples=25)(hypothesis.given(*arguments, **named)(test))


def shape_of(name: str, **options: Any) -> InnerShape:
    return create("inner", name, **{**SHAPES[name], **options})


def draw(shape: InnerShape, size: tuple[int, ...] = (7,), *, seed: int = 0, dtype: torch.dtype = torch.float64) -> Pair:
    return shape.sample("regression", size, torch.Generator().manual_seed(seed), dtype)


def close(actual: Tensor, expected: Tensor, rtol: float = 1e-12, atol: float = 1e-12) -> None:
    torch.testing.assert_close(actual, expected, rtol=rtol, atol=atol)


def errors(largest: float = 1e4) -> st.SearchStrategy[Tensor]:
    numbers = st.floats(-largest, largest, allow_subnormal=False)
    return st.lists(numbers, min_size=1, max_size=8).map(lambda values: torch.tensor(values, dtype=torch.float64))


def of_error(name: str, error: Tensor, **options: Any) -> Tensor:
    return create("inner", name, **options)(error, torch.zeros_like(error))


def test_every_shape_of_these_families_is_tried() -> None:
    """The options above cover what the modules of these families register."""
    mine = {"robust", "redescending", "asymmetric", "deviance", "distribution", "balanced"}
    named = {name for name in available("inner") if type(create_any(name)).__module__.rpartition(".")[2] in mine}
    assert named == set(SHAPES)


def create_any(name: str) -> InnerShape | None:
    try:
        return create("inner", name)
    except MtlAxesError:  # one that needs options is not of these families
        return None


# ---- identities


@given(errors(), st.floats(0.01, 100))
def test_smooth_l1_is_huber_over_beta(error: Tensor, beta: float) -> None:
    """smooth_l1(beta) times beta is huber(beta)."""
    close(beta * of_error("smooth_l1", error, beta=beta), of_error("huber", error, delta=beta), atol=1e-10)


@given(errors(), st.floats(0.01, 100))
def test_pseudo_huber_lies_below_huber_and_meets_it_at_both_ends(error: Tensor, delta: float) -> None:
    """pseudo_huber is at most huber, by at most delta^2 / 2, and barron(alpha=1) is pseudo_huber / delta^2."""
    pseudo, huber = of_error("pseudo_huber", error, delta=delta), of_error("huber", error, delta=delta)
    assert bool((pseudo <= huber * (1 + 1e-12)).all()) and bool((huber - pseudo <= delta**2 / 2 + 1e-9).all())
    close(of_error("barron", error, alpha=1.0, c=delta) * delta**2, pseudo, rtol=1e-10)


@given(errors())
def test_the_middle_expectile_is_half_the_squared_error(error: Tensor) -> None:
    """expectile(0.5) is mse / 2, bit for bit."""
    assert torch.equal(of_error("expectile", error, tau=0.5), of_error("mse", error) / 2)


@given(errors(), st.floats(0.01, 10), st.floats(0.01, 10))
def test_asymmetric_is_a_scaled_expectile(error: Tensor, over: float, under: float) -> None:
    """asymmetric(o, u) is (o + u) expectile(u / (o + u))."""
    expectile = of_error("expectile", error, tau=under / (over + under))
    close(of_error("asymmetric", error, over=over, under=under), (over + under) * expectile)


def test_expectile_is_exact_in_float64() -> None:
    """The factors are not rounded to float32: the mean of the frozen case is 25.2375 to the last digit but two."""
    prediction = torch.tensor([15.0, 26.0, 68.0, 87.0, 112.0, -7.0, 24.0, 74.0], dtype=torch.float64)
    target = torch.tensor([10.0, 30.0, 60.0, 90.0, 110.0, 5.0, 15.0, 80.0], dtype=torch.float64)
    mean = create("inner", "expectile", tau=0.9)(prediction, target).mean().item()
    assert mean == pytest.approx(25.2375, rel=1e-15)


@given(errors(1e3))
def test_linex_tends_to_a_square_as_a_falls(error: Tensor) -> None:
    """linex(a) / a^2 tends to e^2 / 2, with a relative difference of about a e / 3."""
    a = 1e-6
    close(of_error("linex", error, a=a) / a**2, error.square() / 2, rtol=1e3 * a, atol=1e-2)


@given(errors(30.0), st.floats(-2, 2).filter(lambda a: abs(a) > 1e-3))
def test_mirrored_linex_has_the_other_sign(error: Tensor, a: float) -> None:
    """linex(a) of -e is linex(-a) of e, and the side of the sign of a costs more."""
    assert torch.equal(of_error("linex", -error, a=a), of_error("linex", error, a=-a))
    harmful, harmless = (of_error("linex", math.copysign(1, side) * error.abs(), a=a) for side in (a, -a))
    assert bool((harmful >= harmless * (1 - 1e-9)).all())


@given(errors(400.0))
def test_nasa_costs_more_on_the_late_side(error: Tensor) -> None:
    """nasa of a late error exceeds that of an early one of the same size, and grows with the size on each side."""
    size = error.abs().sort().values
    late, early = of_error("nasa", size), of_error("nasa", -size)
    assert bool((late[size > 1e-9] > early[size > 1e-9]).all())
    assert bool((late.diff() >= 0).all()) and bool((early.diff() >= 0).all())


@pytest.mark.parametrize(("name", "options"), [("linex", {"a": 0.1}), ("linex", {"a": -2.0, "b": 3.0}), ("nasa", {})])
@given(error=errors(60.0))
def test_a_tail_changes_nothing_before_it_begins_and_goes_on_along_the_tangent(
    name: str, options: dict[str, Any], error: Tensor
) -> None:
    """max_exponent leaves the loss alone below it; beyond, value and slope continue, and the loss is the smaller one."""
    error = error.requires_grad_()
    limit, a, b = 3.0, options.get("a", 0.0), options.get("b", 1.0)
    free, bound = of_error(name, error, **options), of_error(name, error, **options, max_exponent=limit)
    exponent = a * error if name == "linex" else torch.maximum(error / 10, -error / 13)
    inside = exponent.detach() <= limit
    assert torch.equal(free[inside], bound[inside])
    assert bool((bound <= free * (1 + 1e-12)).all())
    (slopes,) = torch.autograd.grad(bound.sum(), error)
    for value, slope in zip(error[~inside].tolist(), slopes[~inside].tolist(), strict=True):
        nasa = math.exp(limit) / (10 if value > 0 else -13)
        assert slope == pytest.approx(a * b * math.expm1(limit) if name == "linex" else nasa, rel=1e-12)


def test_without_a_tail_the_exponentials_overflow_as_documented() -> None:
    """linex and nasa are infinite in float32 from where their docstrings say, and finite before."""
    for name, options, last in (("linex", {"a": 1.0}, 88.0), ("nasa", {}, 887.0)):
        losses = of_error(name, torch.tensor([last, last + 1.0]), **options)
        assert losses.isfinite().tolist() == [True, False]


@pytest.mark.parametrize("base", ["mse", "mae"])
@given(error=errors())
def test_unfocused_focal_r_is_its_base(base: str, error: Tensor) -> None:
    """focal_r(gamma=0) is its base, and a focus only takes away."""
    plain = of_error(base, error)
    assert torch.equal(of_error("focal_r", error, base=base, gamma=0.0), plain)
    assert bool((of_error("focal_r", error, base=base, gamma=1.5) <= plain).all())


@given(errors(), st.floats(0.05, 2), st.floats(0, 3))
def test_both_activations_of_focal_r_are_one(error: Tensor, beta: float, gamma: float) -> None:
    """2 sigmoid(z) - 1 is tanh(z / 2)."""
    sigmoid = of_error("focal_r", error, beta=2 * beta, gamma=gamma, activate="sigmoid")
    assert torch.equal(sigmoid, of_error("focal_r", error, beta=beta, gamma=gamma, activate="tanh"))


@given(errors(), st.floats(0.1, 100))
def test_members_of_the_family_of_barron(error: Tensor, c: float) -> None:
    """barron is half the square at 2, cauchy at 0, geman_mcclure at -2, and welsch far below."""
    close(of_error("barron", error, alpha=2.0, c=c), of_error("mse", error / c) / 2)
    assert torch.equal(of_error("barron", error, alpha=0.0, c=c), of_error("cauchy", error, c=c))
    close(of_error("barron", error, alpha=-2.0, c=c), of_error("geman_mcclure", error, c=c))
    close(of_error("barron", error, alpha=-1e7, c=c), of_error("welsch", error, c=c), atol=1e-6)


@given(errors(), st.floats(-10, 3), st.floats(0.01, 2))
def test_barron_grows_with_alpha(error: Tensor, alpha: float, more: float) -> None:
    """A larger alpha costs at least as much, everywhere."""
    smaller, larger = (of_error("barron", error, alpha=value) for value in (alpha, alpha + more))
    assert bool((smaller <= larger * (1 + 1e-9) + 1e-12).all())


@given(errors(50.0), errors(5.0))
def test_beta_nll_without_beta_is_the_likelihood(error: Tensor, log_variance: Tensor) -> None:
    """beta_nll(0) is gaussian_nll, and beta_nll(1) has half the gradient of mse in the mean."""
    size = min(len(error), len(log_variance))
    prediction = torch.stack([error[:size], log_variance[:size]], -1).requires_grad_()
    target = torch.zeros(size, dtype=torch.float64)
    assert torch.equal(
        create("inner", "beta_nll", beta=0.0)(prediction, target), create("inner", "gaussian_nll")(prediction, target)
    )
    (gradient,) = torch.autograd.grad(create("inner", "beta_nll", beta=1.0)(prediction, target).sum(), prediction)
    close(gradient[:, 0], error[:size], rtol=1e-11)


def test_beta_nll_weighs_the_gradient_of_the_likelihood() -> None:
    """The gradient of beta_nll is v^beta times that of gaussian_nll: the factor itself has none."""
    prediction, target = draw(shape_of("gaussian_nll"))
    prediction.requires_grad_()
    gradients = [
        torch.autograd.grad(create("inner", name)(prediction, target).sum(), prediction)[0]
        for name in ("beta_nll", "gaussian_nll")
    ]
    variance = prediction.detach()[:, 1:].exp()
    close(gradients[0], variance.sqrt() * gradients[1])


def test_pinball_losses_of_a_grid_add_up_to_the_ranked_probability_score() -> None:
    """Twice the mean pinball loss over 4000 levels of a Gaussian is its CRPS, to the error of the midpoint rule."""
    levels = ((torch.arange(4000, dtype=torch.float64) + 0.5) / 4000).tolist()
    standard = torch.special.ndtri(torch.tensor(levels, dtype=torch.float64))
    target = torch.tensor([-1.0, 0.3, 2.5], dtype=torch.float64)
    mean, deviation = torch.tensor([0.0, 0.5, 1.0]).double(), torch.tensor([1.0, 2.0, 0.5]).double()
    quantiles = mean.unsqueeze(-1) + deviation.unsqueeze(-1) * standard
    pinball = 2 * create("inner", "quantile", q=levels)(quantiles, target)
    score = create("inner", "crps_gaussian")(torch.stack([mean, 2 * deviation.log()], -1), target)
    close(pinball, score, rtol=2e-4)
    close(create("inner", "crps_ensemble")(quantiles, target), score, rtol=1e-3)


def test_poisson_deviance_has_twice_the_gradient_of_the_likelihood() -> None:
    """Both forms of poisson have the same minimiser, where the deviance is 0, and the bound that each declares."""
    likelihood, deviance = create("inner", "poisson"), create("inner", "poisson", deviance=True)
    target = torch.tensor([0.0, 1.0, 7.0, 1e4], dtype=torch.float64)
    prediction = torch.tensor([-1.0, 0.5, 2.0, 9.0], dtype=torch.float64, requires_grad=True)
    gradients = [torch.autograd.grad(shape(prediction, target).sum(), prediction)[0] for shape in (likelihood, deviance)]
    close(gradients[1], 2 * gradients[0])
    at_best = deviance(target[1:].log(), target[1:])
    assert bool((at_best >= 0).all()) and bool((at_best <= 1e-10).all())
    assert (likelihood.lower_bound, deviance.lower_bound) == (None, 0.0)
    assert bool((likelihood(target[2:].log(), target[2:]) < 0).all())


@pytest.mark.parametrize(("power", "limit"), [(1 + 1e-9, "poisson"), (2 - 1e-9, "gamma")])
def test_tweedie_lies_between_poisson_and_gamma(power: float, limit: str) -> None:
    """Next to 1 tweedie is the Poisson deviance, next to 2 the gamma deviance, in value and gradient."""
    target = torch.tensor([0.5, 1.0, 7.0, 300.0], dtype=torch.float64)
    prediction = torch.tensor([-1.0, 0.5, 2.0, 5.0], dtype=torch.float64, requires_grad=True)
    shapes = (
        create("inner", "tweedie", power=power),
        create("inner", limit, **{"deviance": True} if limit == "poisson" else {}),
    )
    losses = [shape(prediction, target) for shape in shapes]
    close(*losses, rtol=1e-7)
    close(*(torch.autograd.grad(loss.sum(), prediction)[0] for loss in losses), rtol=1e-7)


@given(errors(), st.floats(0.01, 100), st.sampled_from([("expectile", 2, {}), ("smooth_l1", 1, {"beta": 0.0})]))
def test_homogeneity(error: Tensor, factor: float, case: tuple[str, int, dict[str, Any]]) -> None:
    """Squared errors scale by c^2, absolute ones by c."""
    name, degree, options = case
    close(of_error(name, factor * error, **options), factor**degree * of_error(name, error, **options))


@pytest.mark.parametrize(
    ("name", "option", "degree"),
    [
        ("pseudo_huber", "delta", 2),
        ("smooth_l1", "beta", 1),
        ("bmc", "noise", 2),
        ("tukey", "scale", 0),
        ("cauchy", "c", 0),
        ("welsch", "c", 0),
        ("geman_mcclure", "c", 0),
        ("barron", "c", 0),
    ],
)
@pytest.mark.parametrize("factor", [0.01, 7.0])
def test_homogeneity_with_an_option_in_target_units(name: str, option: str, degree: int, factor: float) -> None:
    """A shape whose option is in target units scales by a power of c, when the option is scaled as well."""
    prediction, target = draw(create("inner", name))
    scaled = create("inner", name, **{option: 1.7 * factor})(factor * prediction, factor * target)
    close(scaled, factor**degree * create("inner", name, **{option: 1.7})(prediction, target), rtol=1e-11)


@pytest.mark.parametrize("factor", [0.01, 7.0])
def test_ranked_probability_scores_are_in_target_units(factor: float) -> None:
    """Scaling target, mean and deviation, or the members, by c scales the score by c."""
    shape = create("inner", "crps_gaussian")
    prediction, target = draw(shape)
    shifted = torch.stack([factor * prediction[:, 0], prediction[:, 1] + 2 * math.log(factor)], -1)
    close(shape(shifted, factor * target), factor * shape(prediction, target))
    for fair in (False, True):
        ensemble = create("inner", "crps_ensemble", fair=fair)
        members, target = draw(ensemble)
        close(ensemble(factor * members, factor * target), factor * ensemble(members, target), atol=1e-13)


@pytest.mark.parametrize("name", SYMMETRIC)
@given(error=errors())
def test_symmetric_shapes_do_not_see_the_sign(name: str, error: Tensor) -> None:
    """The loss of -e is that of e."""
    assert torch.equal(of_error(name, error, **SHAPES[name]), of_error(name, -error, **SHAPES[name]))


@pytest.mark.parametrize("name", RESIDUAL)
@given(error=errors())
def test_the_loss_grows_with_the_error_on_each_side(name: str, error: Tensor) -> None:
    """No shape rewards a larger error of the same sign, and none has a cost where there is no error."""
    for side in (1.0, -1.0):
        ordered = side * error.abs().sort().values
        losses = of_error(name, ordered, **SHAPES[name])
        assert bool((losses.diff() >= -1e-12 * losses[1:]).all())
    assert of_error(name, torch.zeros(3, dtype=torch.float64), **SHAPES[name]).tolist() == [0.0, 0.0, 0.0]


# ---- extremes, derivatives, dtypes


@EVERY
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("gap", [0.0, 1e-30, 1e-8, 1.0, 1e4, -1e4])
def test_losses_and_gradients_are_finite_at_the_extremes(name: str, dtype: torch.dtype, gap: float) -> None:
    """Losses and gradients are finite with no, a tiny and a huge error, and no loss is below its bound."""
    shape = shape_of(name)
    low, high = shape.prediction_range
    prediction, target = draw(shape, dtype=dtype)
    if shape.trailing:
        prediction = target.unsqueeze(-1).repeat(1, prediction.shape[-1])
        if name != "crps_ensemble":
            prediction[:, 1] = -1e4  # beyond the clamp
    else:
        prediction = target.clone()
    # The log mean of a target of 0 has no finite best value; the ends of the range stand for the extremes.
    prediction = (prediction + gap).clamp(low, high).requires_grad_()
    losses = shape(prediction, target)
    (gradient,) = torch.autograd.grad(losses.sum(), prediction)
    assert losses.dtype == dtype and losses.shape == target.shape
    assert bool(losses.isfinite().all()) and bool(gradient.isfinite().all())
    assert shape.lower_bound is None or bool((losses >= shape.lower_bound).all())


@pytest.mark.parametrize("gamma", [0.1, 0.5, 0.9, 1.0, 3.0])
@pytest.mark.parametrize("base", ["mse", "mae"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_focal_r_has_a_gradient_without_error(gamma: float, base: str, dtype: torch.dtype) -> None:
    """At e = 0 loss and gradient of focal_r are 0, also for gamma < 1, where the plain formula makes NaN."""
    error = torch.tensor([0.0, 1e-38, -1e-20], dtype=dtype, requires_grad=True)
    losses = of_error("focal_r", error, base=base, gamma=gamma)
    (gradient,) = torch.autograd.grad(losses.sum(), error)
    assert bool(losses.isfinite().all()) and bool(gradient.isfinite().all())
    assert losses[0] == 0 and gradient[0] == 0


@EVERY
@pytest.mark.parametrize("size", [(6,), (3, 2)])
def test_gradients_are_those_of_the_loss(name: str, size: tuple[int, ...]) -> None:
    """Away from kinks, the gradient agrees with finite differences."""
    shape = shape_of(name)
    if name == "beta_nll":
        shape = shape_of(name, beta=0.0)  # a stopped gradient is not that of the loss
    prediction, target = draw(shape, size, seed=3)
    if shape.prediction_range == (-20.0, 20.0):
        prediction = prediction / 5
    assert torch.autograd.gradcheck(lambda p: shape(p, target), prediction.requires_grad_())


@pytest.mark.parametrize("name", [name for name in SHAPES if name not in ("beta_nll", "tweedie", "msle")])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_stays_half_precision(name: str, dtype: torch.dtype) -> None:
    """On its own a shape answers in the dtype of its prediction, near what float64 says of the same numbers."""
    shape = shape_of(name)
    prediction, target = draw(shape, dtype=torch.float64)
    low, high = shape.prediction_range
    prediction, target = (prediction / 4).clamp(low, high).to(dtype), target.to(dtype)
    losses = shape(prediction, target)
    assert losses.dtype == dtype
    exact = shape(prediction.double(), target.double())
    precision = torch.finfo(dtype).eps
    torch.testing.assert_close(losses.double(), exact, rtol=64 * precision, atol=64 * precision)


@pytest.mark.parametrize("name", ["bmc", "crps_ensemble", "pseudo_huber"])
def test_a_compiled_shape_is_one_graph(name: str) -> None:
    """torch.compile takes a shape as a whole, and changes neither losses nor gradients: on some of many operations."""
    torch._dynamo.reset()
    shape = shape_of(name)
    prediction, target = draw(shape)
    leaves = [prediction.clone().requires_grad_() for _ in range(2)]
    compiled = torch.compile(shape, fullgraph=True, backend="eager")
    losses = [compiled(leaves[0], target), shape(leaves[1], target)]
    close(*losses)
    close(*(torch.autograd.grad(loss.sum(), leaf)[0] for loss, leaf in zip(losses, leaves, strict=True)))


# ---- ensembles


@pytest.mark.parametrize("fair", [False, True])
def test_members_of_an_ensemble_have_no_order(fair: bool) -> None:
    """Permuting the members changes no score and permutes the gradient; equal members have equal gradients."""
    shape = create("inner", "crps_ensemble", fair=fair)
    members = torch.tensor([[3.0, 1.0, 3.0, -2.0, 3.0]], dtype=torch.float64, requires_grad=True)
    target = torch.tensor([0.5], dtype=torch.float64)
    (gradient,) = torch.autograd.grad(shape(members, target).sum(), members)
    assert gradient[0, 0] == gradient[0, 2] == gradient[0, 4]
    order = torch.tensor([4, 3, 1, 0, 2])
    moved = members.detach()[:, order].requires_grad_()
    close(shape(moved, target), shape(members, target), atol=1e-15)
    close(torch.autograd.grad(shape(moved, target).sum(), moved)[0], gradient[:, order])


@pytest.mark.parametrize("count", [2, 3, 8])
def test_ensemble_score_is_its_sum_over_pairs(count: int) -> None:
    """The ranks give the sum over pairs, for the plain and the fair form."""
    generator = torch.Generator().manual_seed(count)
    members = torch.randn(4, 3, count, generator=generator, dtype=torch.float64, requires_grad=True)
    target = torch.randn(4, 3, generator=generator, dtype=torch.float64)
    error = (members - target.unsqueeze(-1)).abs().mean(-1)
    spread = (members.unsqueeze(-1) - members.unsqueeze(-2)).abs().sum((-1, -2))
    for fair, pairs in ((False, count**2), (True, count * (count - 1))):
        ours, plain = create("inner", "crps_ensemble", fair=fair)(members, target), error - spread / (2 * pairs)
        close(ours, plain, atol=1e-14)
        close(*(torch.autograd.grad(loss.sum(), members, retain_graph=True)[0] for loss in (ours, plain)), atol=1e-14)


def test_ensemble_far_from_zero_keeps_its_digits() -> None:
    """A common offset of a million costs float32 no more than the rounding of the members themselves."""
    members = torch.tensor([[0.0, 1.0, 4.0]])
    shape = create("inner", "crps_ensemble")
    assert shape(members + 2**20, torch.tensor([2.0 + 2**20])).item() == shape(members, torch.tensor([2.0])).item()


# ---- bmc: coupled samples


def bmc_pair(size: tuple[int, ...] = (9,), seed: int = 0) -> Pair:
    generator = torch.Generator().manual_seed(seed)
    target = 3 * torch.randn(size, generator=generator, dtype=torch.float64)
    return target + torch.randn(size, generator=generator, dtype=torch.float64), target


@pytest.mark.parametrize("size", [(9,), (6, 3)])
def test_a_masked_sample_of_bmc_is_a_deleted_one(size: tuple[int, ...]) -> None:
    """With a mask, valid losses and gradients are those of the batch without the rest; masking afterwards is not that."""
    shape = create("inner", "bmc", noise=1.5)
    prediction, target = bmc_pair(size)
    valid = torch.rand(size, generator=torch.Generator().manual_seed(1)) < 0.6
    prediction = torch.where(valid, prediction, 0.0).requires_grad_()
    target = torch.where(valid, target, 0.0)
    losses = shape(prediction, target, valid)
    (gradient,) = torch.autograd.grad(torch.where(valid, losses, 0.0).sum(), prediction)
    for column in range(size[1] if len(size) > 1 else 1):
        p, y, keep = (each.reshape(size[0], -1)[:, column] for each in (prediction.detach(), target, valid))
        leaf = p[keep].requires_grad_()
        deleted = shape(leaf, y[keep])
        close(losses.reshape(size[0], -1)[:, column][keep], deleted)
        (expected,) = torch.autograd.grad(deleted.sum(), leaf)
        close(gradient.reshape(size[0], -1)[:, column][keep], expected)
        assert not torch.allclose(shape(p, y)[keep], deleted.detach(), rtol=1e-3)
    assert not bool(gradient[~valid].any())


def test_nan_at_masked_places_of_bmc_reaches_nothing() -> None:
    """Through the criterion, NaN predictions and targets at masked places leave loss and gradient those of the rest."""
    prediction, target = bmc_pair()
    valid = torch.tensor([True] * 6 + [False] * 3)
    prediction[6:], target[6:] = torch.nan, torch.nan
    prediction.requires_grad_()
    total = compose(inner={"a": {"name": "bmc", "noise": 2.0}})({"a": prediction}, {"a": target}, mask={"a": valid})
    total.backward()
    leaf = prediction.detach()[:6].requires_grad_()
    deleted = create("inner", "bmc", noise=2.0)(leaf, target[:6]).mean()
    deleted.backward()
    close(total, deleted)
    assert prediction.grad is not None and leaf.grad is not None
    close(prediction.grad[:6], leaf.grad)
    assert not bool(prediction.grad[6:].any())


def test_bmc_without_any_valid_sample_is_finite() -> None:
    """Where a batch, or a trailing position, is masked as a whole, losses and gradients are finite."""
    prediction = torch.zeros(4, 2, dtype=torch.float64, requires_grad=True)
    valid = torch.tensor([[True, False]] * 4)
    losses = create("inner", "bmc")(prediction, torch.zeros(4, 2, dtype=torch.float64), valid)
    (gradient,) = torch.autograd.grad(losses.sum(), prediction)
    assert bool(losses.isfinite().all()) and bool(gradient.isfinite().all())


def test_bmc_of_one_sample_costs_nothing_and_equal_targets_share_their_mass() -> None:
    """A single sample has the loss 0 wherever it is; with m equal targets 2 s^2 log m remains whatever is predicted."""
    shape = create("inner", "bmc", noise=3.0)
    assert shape(torch.tensor([1e4]), torch.tensor([0.0])).tolist() == [0.0]
    losses = shape(torch.tensor([1.0, -7.0, 300.0]), torch.full((3,), 5.0))
    torch.testing.assert_close(losses, torch.full((3,), 18 * math.log(3)))


def test_bmc_keeps_its_digits_in_float32() -> None:
    """At e = 1e4 the loss is a difference of two numbers of 1e8 in the original formula; here no digit is lost."""
    target = torch.tensor([0.0, 1.0, 2.0, 5.0])
    prediction = target + torch.tensor([1e4, -1e4, 3333.0, 12345.0])
    exact = create("inner", "bmc")(prediction.double(), target.double())
    close(create("inner", "bmc")(prediction, target).double(), exact, rtol=1e-6, atol=1e-6)
    pairs = prediction.unsqueeze(1) - target.unsqueeze(0)
    original = (prediction - target).square() + 2 * (-pairs.square() / 2).logsumexp(1)
    assert float((original.double() - exact).abs().max()) >= 0.5


@given(st.integers(0, 1000))
def test_permuting_the_samples_of_bmc_permutes_its_losses(seed: int) -> None:
    """The order of the samples carries no meaning, and the loss is never negative."""
    prediction, target = bmc_pair(seed=seed)
    order = torch.randperm(9, generator=torch.Generator().manual_seed(seed))
    shape = create("inner", "bmc", noise=0.7)
    close(shape(prediction[order], target[order]), shape(prediction, target)[order])
    assert bool((shape(prediction, target) >= 0).all())


# ---- bad input


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("pseudo_huber", {"delta": 0.0}, r"`delta` should be a number in \(0.0, inf\)"),
        ("smooth_l1", {"beta": -1.0}, r"`beta` should be a number in \[0.0"),
        ("expectile", {"tau": 1.0}, r"`tau` should be a number in \(0.0, 1.0\)"),
        ("linex", {"a": 0.0}, r"`a` should not be 0"),
        ("linex", {"max_exponent": 100.0}, r"`max_exponent` should be a number in \(0.0, 80.0\]"),
        ("nasa", {"late": 0.0}, r"`late` should be a number"),
        ("focal_r", {"activate": "relu"}, r"`activate` should be one of 'sigmoid', 'tanh'"),
        ("focal_r", {"base": "huber"}, r"`base` should be one of 'mse', 'mae'"),
        ("tukey", {"scale": 0.0}, r"`scale` should be a number"),
        ("barron", {"alpha": -math.inf}, r"`alpha` should be a number in \(-inf, inf\)"),
        ("poisson", {"deviance": 1}, r"`deviance` should be one of False, True"),
        ("tweedie", {"power": 2.0}, r"`power` should be a number in \(1.0, 2.0\)"),
        ("gaussian_nll", {"clamp": 0.0}, r"`clamp` should be a number in \(0.0"),
        ("beta_nll", {"beta": 1.5}, r"`beta` should be a number in \[0.0, 1.0\]"),
        ("crps_ensemble", {"fair": None}, r"`fair` should be one of"),
        ("bmc", {"noise": 0.0}, r"`noise` should be a number"),
    ],
)
def test_options_out_of_range_are_refused(name: str, options: dict[str, Any], message: str) -> None:
    """An option outside its range is an error of the constructor that names range and value."""
    with pytest.raises(OptionError, match=message):
        create("inner", name, **options)


@pytest.mark.parametrize(
    ("name", "prediction", "target", "message"),
    [
        ("msle", [0.5, -1.0], [1.0, 2.0], r"Predictions of msle should be > -1\. Found -1\. End the head"),
        ("msle", [0.5, 1.0], [-2.0, 2.0], r"Targets of msle should be > -1\. Found -2\."),
        ("poisson", [0.5, 1.0], [-2.0, 2.0], r"Targets of poisson should be >= 0\. Found -2\."),
        ("tweedie", [0.5, 1.0], [-2.0, 2.0], r"Targets of tweedie should be >= 0\. Found -2\."),
        ("gamma", [0.5, 1.0], [0.0, 2.0], r"Targets of gamma should be > 0\. Found 0\."),
    ],
)
def test_values_outside_the_domain_are_refused(name: str, prediction: Any, target: Any, message: str) -> None:
    """In its first call a criterion refuses values for which the loss is not defined, and names the task."""
    with pytest.raises(DataError, match=rf"Task 'a', shape .*: {message}"):
        compose(inner={"a": name})({"a": torch.tensor(prediction, requires_grad=True)}, {"a": torch.tensor(target)})


@EVERY
def test_a_first_call_with_a_graph_reads_values_quietly(name: str) -> None:
    """The checks of the first call pass ordinary values whose prediction has a graph, without a warning of torch."""
    prediction, target = draw(shape_of(name))
    criterion = compose(inner={"a": shape_of(name)})
    assert criterion({"a": prediction.requires_grad_()}, {"a": target}).isfinite()


@pytest.mark.parametrize("name", ["gaussian_nll", "beta_nll", "crps_gaussian", "crps_ensemble"])
@pytest.mark.parametrize("shapes", [((4,), (4,)), ((4, 1), (4,)), ((2, 4), (4,)), ((4, 2), (4, 2)), ((4, 2), (4, 1))])
def test_parameters_lie_in_a_last_dimension(name: str, shapes: tuple[tuple[int, ...], tuple[int, ...]]) -> None:
    """Shapes of a distribution refuse a prediction that is not the target's shape with one more dimension."""
    with pytest.raises(DataError, match=r"extra last dimension of (at least )?2, .*\. Found prediction"):
        create("inner", name)(torch.zeros(shapes[0]), torch.zeros(shapes[1]))


@pytest.mark.parametrize("name", ["gaussian_nll", "beta_nll", "poisson"])
def test_ratios_of_losses_refuse_likelihoods(name: str) -> None:
    """A weighting that takes ratios of losses refuses a likelihood, by name, before the first step."""
    with pytest.raises(MtlAxesError, match=type(create("inner", name)).__name__):
        compose("dwa", inner={"a": name, "b": "mse"})
    compose("dwa", inner={"a": {"name": "poisson", "deviance": True}, "b": "crps_gaussian"})


def test_tukey_warns_when_no_sample_has_a_gradient() -> None:
    """The first call of a criterion warns when every error is beyond c * scale, and only then."""
    with pytest.warns(UserWarning, match=r"tukey: every error exceeds c \* scale = 4\.685"):
        compose(inner={"a": "tukey"})({"a": torch.tensor([10.0, 20.0])}, {"a": torch.tensor([0.0, 0.0])})
    compose(inner={"a": "tukey"})({"a": torch.tensor([10.0, 1.0])}, {"a": torch.tensor([0.0, 0.0])})


@pytest.mark.parametrize(
    ("name", "options", "scales"),
    [
        ("linex", {"a": 0.5, "max_exponent": 30.0}, (0.1, 1.0, 10.0, 50.0)),
        ("linex", {"a": -0.5, "max_exponent": 80.0}, (0.1, 1.0, 10.0, 50.0)),
        ("nasa", {"max_exponent": 20.0}, (0.1, 1.0, 50.0, 300.0)),
        ("nasa", {"max_exponent": 80.0}, (0.1, 1.0, 50.0, 300.0)),
        ("huber", {"delta": 1e6}, (1e-3, 1.0, 1e3)),
        ("smooth_l1", {"beta": 1e6}, (1e-3, 1.0, 1e3)),
        ("smooth_l1", {"beta": 1.0}, (1e-6, 1e-3, 1.0)),
    ],
)
def test_float32_gradients_are_those_of_float64(name: str, options: dict[str, Any], scales: tuple[float, ...]) -> None:
    """What an option makes of large errors costs small ones no digit of their gradient."""
    shape = create("inner", name, **options)
    for scale in scales:
        error = scale * torch.linspace(-1, 1, 40)
        found, expected = (gradient(shape, error.to(dtype)) for dtype in (torch.float32, torch.float64))
        # exp(80) multiplies the rounding of its exponent by 80; the gradient of expm1(z) - z is exp(z) less 1.
        exponential = name in ("linex", "nasa")
        close(found.double(), expected, rtol=2e-5 if exponential else 1e-6, atol=1.2e-7 if exponential else 0)


def gradient(shape: InnerShape, prediction: Tensor, target: Tensor | None = None) -> Tensor:
    prediction = prediction.clone().requires_grad_()
    losses = shape(prediction, torch.zeros_like(prediction) if target is None else target)
    return torch.autograd.grad(losses.sum(), prediction)[0]


@pytest.mark.parametrize("count", [0.5, 10.0, 1e5])
def test_poisson_deviance_near_its_minimum(count: float) -> None:
    """In float32 the deviance of a good prediction is neither rounding error nor without a gradient."""
    shape = create("inner", "poisson", deviance=True)
    target = torch.full((40,), count)
    prediction = target.log() + torch.linspace(-3e-3, 3e-3, 40)
    exact = prediction.double(), target.double()
    # The logarithm of the count is rounded by 5e-7, the gap to it is 8e-5 or more.
    close(shape(prediction, target).double(), shape(*exact), rtol=2e-2, atol=0)
    close(gradient(shape, prediction, target).double(), gradient(shape, *exact), rtol=1e-2, atol=0)


@pytest.mark.parametrize("name", ["bmc", "gamma", "msle", "poisson", "tweedie"])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int64])
def test_integer_targets_are_numbers(name: str, dtype: torch.dtype) -> None:
    """An integer target gives bit for bit what it gives as a float; differences of unsigned ones do not wrap around."""
    target = torch.tensor([3, 1, 7, 120], dtype=dtype)
    prediction = torch.tensor([0.5, 1.0, 2.0, 4.0], dtype=torch.float64)
    options = {"deviance": True} if name == "poisson" else {}
    shape = create("inner", name, **options)
    assert torch.equal(shape(prediction, target), shape(prediction, target.double()))


@pytest.mark.parametrize("alpha", [1e-7, -1e-7, 1.999999, 2 - 1e-9, 2.000001])
def test_barron_next_to_its_removable_singularities(alpha: float) -> None:
    """In float32 the loss and its gradient keep six digits there, over seven decades of errors."""
    shape, error = create("inner", "barron", alpha=alpha), torch.logspace(-4, 3, 50)
    exact = error.double()
    close(shape(error, 0 * error).double(), shape(exact, 0 * exact), rtol=3e-6, atol=0)
    close(gradient(shape, error).double(), gradient(shape, exact), rtol=3e-6, atol=0)
