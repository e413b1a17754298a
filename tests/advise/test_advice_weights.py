"""What candidates would do, against their closed forms."""

from __future__ import annotations

import math

import pytest
from advised import Linear, linear, spread

from mtl_axes import compose
from mtl_axes.advise import Candidate, advise


def candidate(outer: str, rows: list[list[float]], *, count: int = 4) -> Candidate:
    """What one weighting would do on batches of the same gradients."""
    (found,) = [one for one in linear([rows] * count, candidates=[outer]).candidates if one.label == outer]
    return found


def test_gaba_ends_at_the_constants_of_its_floor() -> None:
    """500 apart, GABA ends at max(ema, 0.05) / sum for ema = (1, 500) / 501, with 25 times the pull on one side."""
    found = candidate("gaba", [[500.0, 0.0], [0.0, 1.0]])
    assert found.weights == pytest.approx({"a": 0.05 / (0.05 + 500 / 501), "b": 1 / (1 + 0.05 * 501 / 500)}, rel=1e-3)
    assert found.at_floor == ("a",)
    assert found.shares["a"] / found.shares["b"] == pytest.approx(25.0, rel=5e-3)
    # What is left of the way, 0.475 beta^n of the larger weight, moves it by 0.1 % in 100 windows until n = 568 after the
    # warm-up of 100; by 0.1 % in all of them until n = 613, and the still stretch begins at most 100 windows after that.
    assert found.windows is not None
    assert 668 <= found.windows <= 813
    assert found.first == {"a": 0.5, "b": 0.5}


def test_gaba_within_its_floor_evens_the_pulls_out() -> None:
    """4 apart, GABA's weights go to the inverse norms, and the shares to a half each."""
    found = candidate("gaba", [[4.0, 0.0], [0.0, 1.0]])
    assert found.weights == pytest.approx({"a": 0.2, "b": 0.8}, rel=1e-2)
    assert found.shares == pytest.approx({"a": 0.5, "b": 0.5}, rel=1e-2)
    assert found.at_floor == ()


def test_the_inverse_norm_is_there_at_once() -> None:
    """A weighting without memory has its weights after the first batch."""
    found = candidate("inverse_norm", [[8.0, 0.0], [0.0, 2.0], [1.0, 1.0]])
    inverse = [1 / 8, 1 / 2, 1 / math.sqrt(2)]
    assert list(found.weights.values()) == pytest.approx([value / sum(inverse) for value in inverse])
    assert found.windows == 0
    assert found.shares == pytest.approx(dict.fromkeys("abc", 1 / 3))
    assert found.reads == "norms"


def test_constants_and_losses_that_stay() -> None:
    """Fixed weights stay 1/K, and so, up to their sum, do those of DWA while the losses do not change."""
    rows = [[500.0, 0.0], [0.0, 1.0]]
    assert candidate("fixed", rows).weights == {"a": 0.5, "b": 0.5}
    assert candidate("dwa", rows).weights == pytest.approx({"a": 1.0, "b": 1.0})
    assert candidate("fixed", rows).shares["a"] == pytest.approx(500 / 501)


def test_learned_weights_go_to_their_optimum() -> None:
    """Uncertainty's weights of losses computed elsewhere end at 1 / (2 L), and are said to be learned."""
    found = candidate("uncertainty", [[30.0, 0.0], [0.0, -10.0]])
    losses = {"a": 5 + 3.0, "b": 5 - 1.0}
    assert found.weights == pytest.approx({task: 1 / (2 * loss) for task, loss in losses.items()}, rel=1e-3)
    assert found.note.startswith("learned")
    assert found.windows is None


def test_gramian_methods_see_the_conflict() -> None:
    """UPGrad on two opposed unit gradients gives each what its projection asks for: weights above those without conflict."""
    opposed, apart = [[1.0, 0.0], [-0.6, 0.8]], [[1.0, 0.0], [0.0, 1.0]]
    assert candidate("upgrad", apart).weights == pytest.approx({"a": 0.5, "b": 0.5}, abs=1e-4)
    assert candidate("upgrad", opposed).weights == pytest.approx({"a": 0.8, "b": 0.8}, abs=1e-3)


def test_the_mean_over_the_batches_is_shown() -> None:
    """Where batches differ, weights without memory are averaged over them."""
    advice = linear([[[3.0, 0.0], [0.0, 1.0]], [[1.0, 0.0], [0.0, 1.0]]], candidates=["inverse_norm"])
    found = next(one for one in advice.candidates if one.label == "inverse_norm")
    assert found.weights["a"] == pytest.approx((0.25 + 0.5) / 2)


def test_a_candidate_that_does_not_fit_says_why() -> None:
    """A floor that two tasks cannot have, and roles that are not theirs, are told and not raised."""
    rows = spread([[2.0, 0.0], [0.0, 1.0]])
    advice = advise(
        compose(tasks=["a", "b"]),
        Linear(2).forward,
        rows,
        candidates=[{"name": "gaba", "floor": 0.6}],
        seconds=1,
    )
    broken = next(one for one in advice.candidates if "0.6" in one.label)
    assert "below 1/K" in broken.note
    assert broken.weights == {}
    cost = next(cost for cost in advice.costs if "0.6" in cost.label)
    assert cost.problem is not None
    assert "below 1/K" in cost.problem
    assert "gaba(floor=0.6): Option `floor`" in " ".join(str(advice).split())


def test_the_users_own_weighting_is_a_candidate() -> None:
    """The weighting of the criterion comes first, anew and with the options that are not as by default."""
    criterion = compose({"name": "gaba", "beta": 0.5, "warmup": 0}, tasks=["a", "b"])
    rows = [[[4.0, 0.0], [0.0, 1.0]]] * 3
    labels = [one.label for one in linear(rows, criterion=criterion, candidates=["fixed", "gaba"]).candidates]
    assert labels == ["gaba(beta=0.5, warmup=0)", "fixed", "gaba"]
    labels = [one.label for one in linear(rows, criterion=compose("gaba"), candidates=["fixed", "gaba"]).candidates]
    assert labels == ["fixed", "gaba"]


def test_what_needs_the_losses_after_a_step_is_told_so() -> None:
    """FAMO's weights are those of its start, the inverse losses, and the note says why."""
    found = candidate("famo", [[40.0, 0.0], [0.0, -20.0]])  # losses of 9 and 3
    assert "after each step" in found.note
    assert found.weights == pytest.approx({"a": 0.25, "b": 0.75})
    assert found.first == pytest.approx(found.weights)
