"""What a step costs here, and how long the whole call takes."""

from __future__ import annotations

import itertools
import time

import pytest
import torch
from advised import Engine, engine_batches
from torch import Tensor, nn

from mtl_axes import compose
from mtl_axes.advise import Advice, advise

CHEAPER = ["gaba, every=10", "gaba, one task in turn", 'gaba, probe="representation"', 'gaba, probe="lagged"']


class Deep(nn.Module):
    """A trunk that takes nearly all of a step, with two light heads."""

    def __init__(self, width: int, layers: int, pause: float = 0.0) -> None:
        super().__init__()
        sizes = [16] + [width] * layers
        self.trunk = nn.Sequential(*(nn.Sequential(nn.Linear(a, b), nn.ReLU()) for a, b in itertools.pairwise(sizes)))
        self.a, self.b = nn.Linear(width, 1), nn.Linear(width, 1)
        self.pause = pause

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        time.sleep(self.pause)
        shared = self.trunk(x)
        return {"a": self.a(shared).squeeze(-1), "b": self.b(shared).squeeze(-1)}


def batches(count: int, size: int = 128) -> list[tuple[Tensor, dict[str, Tensor]]]:
    """Return batches for it."""
    return [(torch.randn(size, 16), {"a": torch.randn(size), "b": torch.randn(size)}) for _ in range(count)]


@pytest.fixture(scope="module")
def advice() -> Advice:
    """Advice on a model whose trunk takes nearly all of a step, of about ten milliseconds."""
    torch.manual_seed(0)
    return advise(compose("gaba"), Deep(320, 5), batches(3), candidates=["fixed", "dwa", "gaba", "upgrad"], seconds=4)


def test_candidates_and_cheaper_ways_are_timed(advice: Advice) -> None:
    """Every candidate has a cost, those of norms also in the cheaper ways, all over the plain sum."""
    ratios = {cost.label: cost.ratio for cost in advice.costs}
    assert list(ratios) == ["dwa", "gaba", "upgrad", *CHEAPER, "fixed"][:-1]
    assert advice.plain is not None
    assert all(ratio is not None for ratio in ratios.values())
    assert all(cost.rounds >= 2 for cost in advice.costs)
    by_label = {one.label: one.cost for one in advice.candidates}
    assert by_label["fixed"] is not None
    assert by_label["fixed"].ratio == 1.0
    assert by_label["gaba"] is next(cost for cost in advice.costs if cost.label == "gaba")


def test_exact_measurement_costs_and_cheaper_ways_spare_it(advice: Advice) -> None:
    """A second backward shows: exact norms cost over 1.3 plain steps, every=10 a tenth of what is above one."""
    ratio = {cost.label: cost.ratio or 0.0 for cost in advice.costs}
    assert 1.3 < ratio["gaba"] < 3.0
    assert ratio["gaba, every=10"] - 1 < 0.4 * (ratio["gaba"] - 1)
    assert ratio['gaba, probe="lagged"'] < ratio["gaba"]
    assert ratio["dwa"] < ratio["gaba"]


@pytest.mark.parametrize("mode", ["model", "step"])
def test_the_seconds_are_kept_on_a_generous_model(mode: str) -> None:
    """With steps of a sixth of a second the call ends in time, after at least one batch, and says what was not timed."""
    model = Deep(8, 1, pause=0.15)
    begin = time.perf_counter()
    found = advise(
        compose(), model if mode == "model" else lambda batch: (model(batch[0]), batch[1]), batches(20, 4), seconds=1.2
    )
    # One more step may be under way when the seconds end.
    assert time.perf_counter() - begin < 1.2 + 0.4
    assert 1 <= found.batches < 20
    assert any(cost.ratio is None and cost.problem is None for cost in found.costs)
    assert "no time" in str(found)


def test_one_batch_is_looked_at_whatever_it_takes() -> None:
    """With less time than a step takes there are losses and norms of one batch, and no costs."""
    found = advise(compose(), Deep(8, 1, pause=0.1), batches(3, 4), seconds=0.01)
    assert found.batches == 1
    assert all(norm.mean is not None for norm in found.norms)
    assert found.plain is None
    assert found.recommendation.rule in ("equal", "unrelated", "conflict")
    assert any(finding.rule == "more batches" for finding in found.findings)


def test_a_small_model_takes_a_few_seconds_at_most() -> None:
    """The default of ten seconds is an upper bound, also with every default candidate."""
    begin = time.perf_counter()
    found = advise(compose("gaba"), Engine(), engine_batches(), seconds=3)
    assert time.perf_counter() - begin < 3.5
    assert found.seconds == pytest.approx(time.perf_counter() - begin, abs=0.5)
    assert len(found.candidates) == 8


def test_the_forward_after_the_step_counts() -> None:
    """FAMO asks for one more forward, which is in its cost."""
    found = advise(compose(), Deep(320, 5), batches(2), candidates=["dwa", "famo"], seconds=2)
    ratio = {cost.label: cost.ratio or 0.0 for cost in found.costs}
    assert ratio["famo"] > ratio["dwa"] + 0.15
