"""What advice says of losses and gradients, against gradients that are known in closed form."""

from __future__ import annotations

import math
import statistics

import pytest
import torch
from advised import Engine, engine_batches, linear, spread
from torch import nn

from mtl_axes import compose
from mtl_axes.advise import advise


def test_norms_and_their_noise_are_those_of_the_batches() -> None:
    """Norms by batch, their mean, sd and signal-to-noise are those of the gradients that the batches hold."""
    sizes = [3.0, 4.0, 8.0]
    advice = linear([[[size, 0.0], [0.0, 2.0]] for size in sizes])
    first, second = advice.norms
    assert first.values == pytest.approx(sizes)
    assert first.mean == pytest.approx(5.0)
    assert first.sd == pytest.approx(statistics.stdev(sizes))
    assert first.signal_to_noise == pytest.approx(5.0 / statistics.stdev(sizes))
    assert second.sd == 0.0
    assert second.signal_to_noise is None
    assert advice.shared == 2


def test_cosines_and_conflicts_are_those_of_the_batches() -> None:
    """Cosines by batch are exact, and the share of batches in conflict counts the negative ones."""
    angles = [0.3, 1.2, 2.0, 2.8]
    advice = linear([[[2.0, 0.0], [7 * math.cos(angle), 7 * math.sin(angle)]] for angle in angles])
    (cosine,) = advice.cosines
    assert cosine.values == pytest.approx([math.cos(angle) for angle in angles])
    assert cosine.conflicts == 0.5
    assert cosine.mean == pytest.approx(statistics.mean(map(math.cos, angles)))


def test_the_ratio_is_taken_batch_by_batch() -> None:
    """The ratio divides the norms of one batch, its median and ends are over batches, and the floor bounds it."""
    advice = linear([[[0.5, 0.0], [0.0, 0.5 * factor]] for factor in (30.0, 50.0, 400.0)], candidates=[])
    ratio = advice.ratio
    assert ratio is not None
    assert (ratio.largest, ratio.smallest) == ("b", "a")
    assert (ratio.low, ratio.median, ratio.high) == pytest.approx((30.0, 50.0, 400.0))
    assert ratio.floor == 0.05
    assert ratio.limit == pytest.approx(20.0)
    assert ratio.over == pytest.approx(2.5)


def test_the_floor_is_that_of_the_users_own_gaba() -> None:
    """The floor that the ratio is held against is the one in the criterion, and 0 makes up for any ratio."""
    rows = spread([[1.0, 0.0], [0.0, 50.0]])
    own = linear(rows, criterion=compose({"name": "gaba", "floor": 0.01}, tasks=["a", "b"]))
    assert own.ratio is not None
    assert own.ratio.limit == pytest.approx(100.0)
    none = linear(rows, criterion=compose({"name": "gaba", "floor": 0.0}, tasks=["a", "b"]))
    assert none.ratio is not None
    assert none.ratio.limit == math.inf
    assert none.recommendation.rule == "unrelated"


def test_a_task_that_is_absent_now_and_then_is_counted_and_left_out() -> None:
    """Where a task is absent it has no loss, norm or cosine, and the others keep theirs."""
    shared, apart = [[1.0, 0.0], [1.0, 1.0], [0.0, 3.0]], [[1.0, 0.0], None, [0.0, 3.0]]
    advice = linear([shared, apart, shared, apart])
    loss, norm = advice.losses[1], advice.norms[1]
    assert loss.absent == 2
    assert [value is None for value in loss.values] == [False, True, False, True]
    assert norm.mean == pytest.approx(math.sqrt(2))
    assert advice.losses[0].absent == 0
    assert advice.norms[0].values == pytest.approx([1.0] * 4)
    by_pair = {(cosine.first, cosine.second): cosine for cosine in advice.cosines}
    assert by_pair["a", "b"].values == pytest.approx([math.sqrt(0.5), None, math.sqrt(0.5), None])
    assert by_pair["a", "c"].values == pytest.approx([0.0] * 4)
    assert not any("had a label" in sentence for sentence in advice.unknown)


def test_a_task_that_is_absent_always_is_among_what_is_not_known() -> None:
    """Steps were timed without it, so that what they cost is not what they will."""
    advice = linear([[[1.0, 0.0], None, [0.0, 3.0]]] * 3)
    assert "Anything about b: no batch had a label, and steps were timed without." in advice.unknown


def test_masked_labels_count_as_absent() -> None:
    """A task whose labels are all NaN with missing="ignore" is absent in that batch."""
    batches = engine_batches(3)
    batches[1][1]["rul"] = torch.full_like(batches[1][1]["rul"], math.nan)
    advice = advise(compose(missing="ignore"), Engine(), batches, candidates=["fixed"], seconds=30)
    assert [loss.absent for loss in advice.losses] == [1, 0]
    assert advice.losses[0].values[1] is None
    assert advice.losses[0].not_finite == 0


@pytest.mark.parametrize(
    ("shape", "exponent"), [("mse", 2.0), ("mae", 1.0), ("huber", None), ({"name": "expectile", "tau": 0.8}, 2.0)]
)
def test_units_of_a_regression_are_measured(shape: object, exponent: float | None) -> None:
    """A squared error goes with the square of its units, an absolute one with the units, Huber's in between."""
    advice = advise(
        compose("fixed", {"rul": shape, "health": "cross_entropy"}), Engine(), engine_batches(), candidates=[], seconds=30
    )  # type: ignore[dict-item]
    rul, health = advice.losses
    assert rul.exponent is not None
    if exponent is None:
        assert 1.0 < rul.exponent < 1.5  # errors of tens of cycles beside a delta of 1
    else:
        assert rul.exponent == pytest.approx(exponent, abs=1e-5)
    known = torch.cat([targets["rul"] for _, targets in engine_batches()])
    assert rul.target_range == (known.min().item(), known.max().item())
    assert (health.exponent, health.target_range) == (None, None)
    assert (rul.kind, health.kind) == ("regression", "multiclass")


@pytest.mark.parametrize("factor", [10.0, 0.1])
def test_a_loss_in_other_units_changes_the_ratio_by_their_square(factor: float) -> None:
    """With targets and predictions in other units the norm of a squared error is factor squared times as large."""

    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.engine = Engine()

        def forward(self, sensors: torch.Tensor) -> dict[str, torch.Tensor]:
            found = self.engine(sensors)
            return {**found, "rul": factor * found["rul"]}

    batches = engine_batches()
    other = [(sensors, {**targets, "rul": factor * targets["rul"]}) for sensors, targets in batches]
    torch.manual_seed(0)
    before = advise(compose(), Engine(), batches, candidates=[], seconds=30)
    torch.manual_seed(0)
    after = advise(compose(), Scaled(), other, candidates=[], seconds=30)
    assert before.norms[0].mean is not None
    assert after.norms[0].mean == pytest.approx(factor**2 * before.norms[0].mean, rel=1e-4)
    assert after.norms[1].mean == pytest.approx(before.norms[1].mean, rel=1e-4)


def test_steps_bound_the_batches() -> None:
    """No more batches are taken from an iterator than steps."""
    batches = iter(spread([[1.0, 0.0], [1.0, 1.0]], count=9))
    step = {"w": nn.Parameter(torch.ones(2))}

    def losses(rows: list[list[float]]) -> dict[str, torch.Tensor]:
        return {name: (step["w"] * torch.tensor(row)).sum() for name, row in zip("ab", rows, strict=True)}

    assert advise(compose(tasks=["a", "b"]), losses, batches, candidates=[], steps=4, seconds=30).batches == 4
    assert len(list(batches)) == 5
