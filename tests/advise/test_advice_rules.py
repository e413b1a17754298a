"""Which advice follows: every rule is reached by a problem built for it."""

from __future__ import annotations

import math
import warnings
from pathlib import Path

import pytest
import torch
from advised import Engine, engine_batches, linear, spread
from torch import Tensor, nn

from mtl_axes import MultiTaskCriterion, compose
from mtl_axes.advise import Advice, advise
from mtl_axes.inner import MSE
from mtl_axes.outer import Fixed


def rules(advice: Advice) -> list[str]:
    """The names of the rules that hold, in order."""
    return [finding.rule for finding in advice.findings]


def at_cosine(cosine: float, ratio: float) -> list[list[float]]:
    """Two gradients in the plane with this cosine, the first one ``ratio`` times as long."""
    return [[ratio, 0.0], [cosine, math.sqrt(1 - cosine**2)]]


@pytest.mark.parametrize(
    ("cosine", "ratio", "expected"),
    [
        (0.4, 12.0, ["adaptive"]),
        (0.4, 19.0, ["adaptive"]),
        (0.01, 12.0, ["unrelated"]),
        (0.4, 500.0, ["beyond the floor"]),
        (0.4, 3.0, ["equal"]),
        (0.01, 3.0, ["equal"]),
        (-0.4, 3.0, ["conflict"]),
        (-0.4, 500.0, ["conflict", "beyond the floor"]),
        (-0.4, 12.0, ["conflict", "unrelated"]),
    ],
)
def test_ratio_and_cosine_choose_the_rule(cosine: float, ratio: float, expected: list[str]) -> None:
    """The ratio and the cosine, where both are clear, decide which rules hold and which comes first."""
    advice = linear(spread(at_cosine(cosine, ratio)))
    assert rules(advice) == expected
    assert advice.recommendation is advice.findings[0]
    for finding in advice.findings:
        assert finding.says
        assert finding.because
        assert finding.source
        assert finding.evidence


def test_the_constant_at_the_floor_is_named() -> None:
    """Beyond the floor the advice names 0.05 / (0.05 + 500 / 501) and its rest, which the study has as a level."""
    advice = linear(spread(at_cosine(0.4, 500.0)), candidates=["gaba"])
    says = advice.recommendation.says
    assert '"a": 0.0477, "b": 0.952' in says
    assert "the loss of a by 1 / 500" in says
    assert "25 times" in advice.recommendation.because
    assert "'weights': {'a': 0.04771, 'b': 0.9523}" in advice.code


def test_units_that_would_even_the_pulls_out_are_named() -> None:
    """With a squared error the target would have to be in units the square root of the ratio times as large."""
    advice = advise(compose(), Engine(scale=100.0), engine_batches(), candidates=["gaba"], seconds=30)
    assert advice.recommendation.rule == "beyond the floor"
    assert advice.ratio is not None
    told = f"{math.sqrt(advice.ratio.median):.3g}"
    assert f"or its target to units about {told} times as large" in advice.recommendation.says


def test_the_primary_task_decides_whose_cosines_count() -> None:
    """A conflict between two other tasks is none of the primary's business."""
    rows = spread([[1.0, 0.0, 0.0], [0.5, 1.0, 0.0], [0.5, -1.0, 0.0]])
    assert rules(linear(rows)) == ["conflict"]
    assert rules(linear(rows, primary="a")) == ["equal"]
    alone = linear(rows, primary="b")
    assert rules(alone) == ["conflict"]
    assert "Train b alone first" in alone.recommendation.says


def test_noise_asks_for_more_batches() -> None:
    """Where the ratio or a cosine may lie on either side of its bound, the advice says which and asks for more batches."""
    noisy = [[[ratio, 0.0], [0.5, 0.8]] for ratio in (2.0, 40.0, 3.0, 60.0)]
    advice = linear(noisy)
    assert "more batches" in rules(advice)
    (finding,) = [finding for finding in advice.findings if finding.rule == "more batches"]
    assert "the ratio is not clearly on one side of 10 or of 20" in finding.because
    turning = linear([[[1.0, 0.0], [cosine, 1.0]] for cosine in (-0.6, 0.9, -0.5, 0.6)])
    assert "conflict" not in rules(turning)
    (finding,) = [finding for finding in turning.findings if finding.rule == "more batches"]
    assert "the cosine of a and b is not clearly on one side of 0 or of 0.05" in finding.because


def test_two_batches_are_too_few() -> None:
    """Two batches never make a bound clear, and what is not known says so."""
    advice = linear(spread(at_cosine(0.4, 12.0), count=2))
    assert rules(advice) == ["adaptive", "more batches"]
    assert any("only 2 batches seen" in text for text in advice.unknown)


def test_one_task_has_nothing_to_weigh() -> None:
    """A single task gets its own rule, with its norm and without ratio or cosine."""
    advice = linear([[[3.0, 4.0]]] * 3)
    assert rules(advice) == ["one task"]
    assert (advice.ratio, advice.cosines) == (None, ())
    assert advice.norms[0].mean == pytest.approx(5.0)


def test_a_task_without_gradient_is_named() -> None:
    """A task whose gradient on the shared part is 0 in every batch comes first, and does not enter the ratio."""
    advice = linear(spread([[3.0, 0.0], [0.0, 0.0], [0.0, 1.0]]))
    assert rules(advice)[0] == "no gradient"
    assert "b cannot train" in advice.recommendation.says
    assert advice.norms[1].zeros == 6
    assert advice.ratio is not None
    assert {advice.ratio.largest, advice.ratio.smallest} == {"a", "c"}
    assert all(cosine.mean is None for cosine in advice.cosines if "b" in (cosine.first, cosine.second))


def test_a_loss_that_is_not_finite_is_named() -> None:
    """A NaN loss comes first, is counted, and leaves losses and norms of the other batches and tasks as they are."""
    rows = spread(at_cosine(0.4, 3.0))
    rows[2][0] = [math.nan, 0.0]
    advice = linear(rows)
    assert rules(advice)[:2] == ["loss not finite", "equal"]
    assert "a was NaN or infinite in 1 of 6 batches" in advice.recommendation.because
    assert advice.losses[0].not_finite == 1
    assert advice.losses[0].values[2] is None
    assert advice.norms[1].values[1] is not None


def test_a_gradient_that_is_not_finite_is_named() -> None:
    """A finite loss whose gradient is NaN counts as one that is not finite, and has no norm in that batch."""
    weight = nn.Parameter(torch.ones(2, dtype=torch.float64))

    def step(scale: float) -> dict[str, Tensor]:
        # The slope of the square root at 0 is infinite, and that of its argument is 0.
        return {"a": 5 + (scale * weight).square().sum().sqrt(), "b": 5 + weight.sum()}

    advice = advise(compose(tasks=["a", "b"]), step, [1.0, 0.0, 1.0], candidates=["gaba"], seconds=30)
    assert advice.recommendation.rule == "loss not finite"
    assert "loss or gradient of a was NaN or infinite in 1 of 3 batches" in advice.recommendation.because
    assert [loss.not_finite for loss in advice.losses] == [1, 0]
    assert advice.losses[0].values[1] == 5.0
    assert advice.norms[0].values == pytest.approx((1.0, None, 1.0))
    assert advice.norms[1].values == pytest.approx((2**0.5,) * 3)


def test_all_losses_not_finite_leave_only_that() -> None:
    """Where no batch has a finite loss there is nothing to measure, and no number is made up."""
    advice = linear([[[math.nan, 0.0], [math.nan, 1.0]]] * 3, candidates=["fixed", "gaba"])
    assert rules(advice) == ["loss not finite", "not measured"]
    assert advice.norms == ()
    assert advice.ratio is None
    assert "could not be measured" in advice.candidates[1].note


def test_a_regression_is_referred_to_the_inner_axis() -> None:
    """Where a task is a regression the advice says that asymmetric costs belong to the inner axis; else it does not."""
    numbers = advise(compose(), Engine(), engine_batches(), candidates=[], seconds=30)
    assert rules(numbers)[-1] == "inner axis"
    assert "an error of rul costs more" in numbers.findings[-1].says

    class Classes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.heads = Engine()

        def forward(self, sensors: Tensor) -> dict[str, Tensor]:
            return {"health": self.heads(sensors)["health"]}

    batches = [(sensors, {"health": targets["health"]}) for sensors, targets in engine_batches()]
    assert "inner axis" not in rules(advise(compose(), Classes(), batches, candidates=[], seconds=30))


class Nameless(Fixed):
    """A weighting that is not registered."""


class NamelessShape(MSE):
    """A shape that is not registered."""


def test_the_code_has_the_users_shapes_also_beside_a_weighting_without_a_name() -> None:
    """Where a shape has no name either, mse is in its place, which the code says."""
    shapes = {"rul": "huber", "health": "focal"}
    advice = advise(compose(Nameless(), shapes), Engine(), engine_batches(), candidates=[], seconds=30)
    assert "'huber'" in advice.code and "'focal'" in advice.code and "mse is used in their place" not in advice.code
    advice = advise(compose("gaba", NamelessShape()), Engine(), engine_batches(), candidates=[], seconds=30)
    assert "# your shapes are not registered; mse is used in their place" in advice.code
    assert "inner=['mse']" in advice.code


@pytest.mark.parametrize("situation", ["engine", "conflict", "three tasks beyond the floor", "one task"])
def test_the_code_that_settles_it_is_a_study(situation: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The text runs as it is, with a training function of the user's, on the user's shapes and tasks."""
    monkeypatch.chdir(tmp_path)
    if situation == "engine":
        criterion = compose("gaba", {"rul": {"name": "huber", "delta": 5.0}, "health": "focal"})
        advice = advise(criterion, Engine(), engine_batches(), candidates=["gaba"], seconds=30)
    elif situation == "conflict":
        advice = linear(spread(at_cosine(-0.4, 3.0)))
    elif situation == "one task":
        advice = linear([[[3.0, 4.0]]] * 3)
    else:
        advice = linear(spread([[900.0, 0.0, 0.0], [0.5, 1.0, 0.0], [0.5, 0.0, 1.0]]), candidates=["gaba"])
    seen: list[MultiTaskCriterion] = []

    def train(criterion: MultiTaskCriterion, seed: int) -> dict[str, float]:
        seen.append(criterion)
        return {"rmse": float(seed)}

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what a training that trains nothing leaves open
        exec(advice.code.replace(".run(train)", ".run(train, progress=False)"), {"train": train})
    assert seen
    assert {criterion.tasks for criterion in seen} == {advice.tasks}
    if situation == "conflict":
        assert {"PCGrad", "UPGrad"} <= {type(criterion.outer).__name__ for criterion in seen}
    if situation == "engine":
        assert {repr(criterion.shapes) for criterion in seen} == {
            repr(compose("fixed", {"rul": {"name": "huber", "delta": 5.0}, "health": "focal"}).shapes)
        }
        assert any("GABA" in repr(criterion) for criterion in seen)
    if situation == "three tasks beyond the floor":
        assert any("Fixed(weights={'a': 0.04" in repr(criterion) for criterion in seen)


def test_two_large_gradients_of_three_are_not_beyond_the_floor() -> None:
    """At norms (30, 30, 1) the published form gives weights (31, 31, 60) / 122, which no floor holds."""
    rows = spread([[30.0, 0.0, 0.0], [3.0, 29.9, 0.0], [0.3, 0.3, 0.9]])
    advice = linear(rows, candidates=["gaba"])
    (own,) = [one for one in advice.candidates if one.label == "gaba"]
    assert own.at_floor == ()
    assert rules(advice) == ["adaptive"]
    # What is left is the share of the largest pull over the smallest, as the candidate has it on the same batches.
    left = max(own.shares.values()) / min(own.shares.values())
    assert f"would still pull {left:.3g} times as hard" in advice.recommendation.because
    assert '{"name": "gaba", "form": "inverse"}' in advice.recommendation.says
    assert "'form': 'inverse'" in advice.code


def test_the_pull_that_is_left_is_that_of_the_weights_shown() -> None:
    """Beyond the floor, too, the pull that is told is that of the constants that are told, also for three tasks."""
    rows = spread([[900.0, 0.0, 0.0], [0.5, 1.0, 0.0], [0.5, 0.0, 1.0]])
    advice = linear(rows, candidates=[])
    assert advice.recommendation.rule == "beyond the floor"
    size = 1.25**0.5
    raw = (900 + size) / (2 * (900 + 2 * size))  # of b and c; the floor holds a, and all are divided by about 1.05
    assert '"a": 0.0477, "b": 0.476, "c": 0.476' in advice.recommendation.says
    left = 900 / size * 0.05 / raw
    assert f"would still pull {left:.3g} times as hard" in advice.recommendation.because


def test_a_gaba_without_a_floor_is_judged_and_recommended_as_it_is() -> None:
    """Without a floor no ratio is beyond it; neither text nor study falls back to the default, whose floor would bind."""
    criterion = compose({"name": "gaba", "floor": 0.0}, tasks=["a", "b"])
    advice = linear(spread(at_cosine(0.4, 500.0)), criterion=criterion, candidates=[])
    assert advice.recommendation.rule == "adaptive"
    assert 'outer={"name": "gaba", "floor": 0.0}' in advice.recommendation.says
    assert "'floor': 0.0" in advice.code
    assert "inf" not in str(advice).replace("information", "")
    assert "floor of 0" not in str(advice)


def test_twenty_tasks_are_not_told_to_take_a_floor_they_cannot_have() -> None:
    """A floor of 0.05 needs fewer than 20 tasks: GABA is judged and named without one."""
    w = nn.Parameter(torch.ones(20, dtype=torch.float64))
    names = [f"t{index}" for index in range(20)]

    def step(factor: float) -> dict[str, Tensor]:
        # Gradients e_i + 2 (1, ..., 1), of which the first is 15 times as long: cosines well above 0.05.
        return {name: factor * (15 if name == "t0" else 1) * (w[index] + 2 * w.sum()) for index, name in enumerate(names)}

    advice = advise(compose(tasks=names), step, [1.0, 1.01, 0.99, 1.02], candidates=["fixed"], seconds=30)
    assert advice.recommendation.rule == "adaptive"
    assert '{"name": "gaba", "floor": 0.0, "form": "inverse"}' in advice.recommendation.says
    assert "'name': 'gaba', 'floor': 0.0" in advice.code


def test_equal_constants_on_unrelated_gradients_come_with_what_they_do() -> None:
    """Who is told to begin with equal constants at a ratio of 12 is told, too, that one task then pulls 12 times as hard."""
    assert "a then pulls 12 times as hard as b" in linear(spread(at_cosine(0.01, 12.0))).recommendation.says


def test_a_cosine_that_is_shown_as_zero_has_no_sign() -> None:
    """A cosine of -0.001 is not told as a conflict of -0.00."""
    text = str(linear(spread(at_cosine(-0.001, 3.0), noise=0.2)))
    assert "cosine a, b: 0.00" in text
    assert "-0.00" not in text
