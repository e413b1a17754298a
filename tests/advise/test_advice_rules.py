"""Which advice follows: every rule is reached by a problem built for it."""

from __future__ import annotations

import math
import warnings
from pathlib import Path

import pytest
from advised import Engine, engine_batches, linear, spread
from torch import Tensor, nn

from mtl_axes import MultiTaskCriterion, compose
from mtl_axes.advise import Advice, advise


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
    assert any("2 of them have been seen" in text for text in advice.unknown)


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
    assert "a NaN or infinite in 1 of 6 batches" in advice.recommendation.because
    assert advice.losses[0].not_finite == 1
    assert advice.losses[0].values[2] is None
    assert advice.norms[1].values[1] is not None


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
    if situation == "engine":
        assert {repr(criterion.shapes) for criterion in seen} == {
            repr(compose("fixed", {"rul": {"name": "huber", "delta": 5.0}, "health": "focal"}).shapes)
        }
        assert any("GABA" in repr(criterion) for criterion in seen)
    if situation == "three tasks beyond the floor":
        assert any("Fixed(weights={'a': 0.04" in repr(criterion) for criterion in seen)
