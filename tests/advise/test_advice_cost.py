"""What a step costs here, and how long the whole call takes, by a clock that a model sets."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from advised import Clock, Engine, engine_batches
from torch import Tensor, nn

from mtl_axes import compose
from mtl_axes.advise import Advice, advise

CHEAPER = ["gaba, every=10", "gaba, one task in turn", 'gaba, probe="representation"', 'gaba, probe="lagged"']
FORWARD, BACKWARD = 0.01, 0.02


class Taking(torch.autograd.Function):
    """The identity; it takes some seconds, and its backward twice as many."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, clock: Clock, seconds: float) -> Tensor:
        ctx.clock, ctx.seconds = clock, seconds
        clock.now += seconds
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        ctx.clock.now += 2 * ctx.seconds
        return gradient, None, None


class Deep(nn.Module):
    """A trunk that takes all the time of a step, with two heads that take none."""

    def __init__(self, clock: Clock, seconds: float = FORWARD) -> None:
        super().__init__()
        self.trunk, self.out = nn.Linear(16, 8), nn.Linear(8, 8)
        self.a, self.b = nn.Linear(8, 1), nn.Linear(8, 1)
        self.clock, self.seconds = clock, seconds

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        shared = self.out(Taking.apply(self.trunk(x), self.clock, self.seconds))
        return {"a": self.a(shared).squeeze(-1), "b": self.b(shared).squeeze(-1)}


def batches(count: int, size: int = 8) -> list[tuple[Tensor, dict[str, Tensor]]]:
    """Return batches for it."""
    return [(torch.randn(size, 16), {"a": torch.randn(size), "b": torch.randn(size)}) for _ in range(count)]


@pytest.fixture(scope="module")
def advice(clock: Clock) -> Advice:
    """Advice on a model whose trunk takes all of a step."""
    torch.manual_seed(0)
    return advise(compose("gaba"), Deep(clock), batches(3), candidates=["fixed", "dwa", "gaba", "upgrad"], seconds=40)


def test_candidates_and_cheaper_ways_are_timed(advice: Advice) -> None:
    """Every candidate has a cost, those of norms also in the cheaper ways, all over the plain sum."""
    ratios = {cost.label: cost.ratio for cost in advice.costs}
    assert list(ratios) == ["dwa", "gaba", "upgrad", *CHEAPER, "fixed"][:-1]
    assert advice.plain == pytest.approx(FORWARD + BACKWARD, rel=1e-3)
    assert all(ratio is not None for ratio in ratios.values())
    assert all(cost.rounds >= 2 for cost in advice.costs)
    by_label = {one.label: one.cost for one in advice.candidates}
    assert by_label["fixed"] is not None
    assert by_label["fixed"].ratio == 1.0
    assert by_label["gaba"] is next(cost for cost in advice.costs if cost.label == "gaba")


def test_exact_measurement_costs_and_cheaper_ways_spare_it(advice: Advice) -> None:
    """A second backward shows: exact norms take one more than the plain step, every=10 a tenth of that, lagged ones none."""
    plain = FORWARD + BACKWARD
    exact = (FORWARD + 2 * BACKWARD) / plain
    expected = dict(zip(("dwa", "gaba", "upgrad", *CHEAPER), (1, exact, exact, (exact + 9) / 10, exact, 1, 1), strict=True))
    assert {cost.label: cost.ratio for cost in advice.costs} == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("mode", ["model", "step"])
def test_the_seconds_are_kept_on_a_generous_model(clock: Clock, mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With steps of half a second the call ends in time, after at least one batch, and says what was not timed."""
    model, step = Deep(clock, 0.15), 0.15 + 0.3
    monkeypatch.setattr(clock, "tick", 0.002)
    begin = clock.now
    found = advise(
        compose(), model if mode == "model" else lambda batch: (model(batch[0]), batch[1]), batches(20), seconds=4.0
    )
    # One more step may be under way when the seconds end.
    assert 2.0 < clock.now - begin < 4.0 + step
    assert 1 <= found.batches < 20
    assert any(cost.ratio is None and cost.problem is None for cost in found.costs)
    assert "no time" in str(found)


def test_one_batch_is_looked_at_whatever_it_takes(clock: Clock) -> None:
    """With less time than a step takes there are losses and norms of one batch, and no costs."""
    found = advise(compose(), Deep(clock, 0.1), batches(3, 4), seconds=0.01)
    assert found.batches == 1
    assert all(norm.mean is not None for norm in found.norms)
    assert found.plain is None
    assert found.recommendation.rule in ("equal", "unrelated", "conflict")
    assert any(finding.rule == "more batches" for finding in found.findings)


def test_a_small_model_takes_its_seconds_at_most(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    """The seconds are an upper bound, also with every default candidate; how many they were is in the advice."""
    monkeypatch.setattr(clock, "tick", 0.005)
    begin = clock.now
    found = advise(compose("gaba"), Engine(), engine_batches(), seconds=3)
    assert clock.now - begin < 3.5
    assert found.seconds == pytest.approx(clock.now - begin, abs=2 * clock.tick)
    assert len(found.candidates) == 8


def test_the_forward_after_the_step_counts(clock: Clock) -> None:
    """FAMO asks for one more forward, which is in its cost."""
    found = advise(compose(), Deep(clock), batches(2), candidates=["dwa", "famo"], seconds=2)
    ratio = {cost.label: cost.ratio or 0.0 for cost in found.costs}
    assert ratio["famo"] == pytest.approx((2 * FORWARD + BACKWARD) / (FORWARD + BACKWARD), rel=1e-3)
    assert ratio["dwa"] == pytest.approx(1, rel=1e-3)
