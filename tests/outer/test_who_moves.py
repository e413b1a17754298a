"""GradNorm and DWA for tasks that are absent, overflow or have little behind them, computed by hand."""

from __future__ import annotations

import math

import pytest
import torch

from mtl_axes import Signals, create

f64 = torch.float64


def test_gradnorm_leaves_an_absent_task_out_of_every_mean() -> None:
    """Norms 4 and 1 at weights 1: the target is 2.5, u = (4, -1), its mean 3/2 over the mass 2 of both, dv = (2.5, -2.5).

    Adam's first moment is a tenth of dv, its first step lr = 0.1; c keeps its weight, and a and b share the mass of both.
    """
    weighting = create("outer", "gradnorm", alpha=0.0, lr=0.1)
    signals = Signals(
        torch.ones(3, dtype=f64), norms=torch.tensor([4.0, 1.0, 100.0], dtype=f64), active=torch.tensor([True, True, False])
    )
    weights = weighting(signals)
    assert weighting.moment1.tolist() == pytest.approx([0.25, -0.25, 0.0])
    assert weighting.updates.tolist() == [1, 1, 0]
    share = math.exp(-0.1) / math.cosh(0.1)
    assert weights.tolist() == pytest.approx([share, 2 - share, 1.0])


def test_gradnorm_compares_rates_of_the_active_tasks() -> None:
    """Losses fall to 1/2 and 3/2 of their first, whose mean is 1: at alpha = 1 the targets are 1/2 and 3/2 for norms of 1.

    c has no first loss yet, and takes its own when it comes.
    """
    weighting = create("outer", "gradnorm", alpha=1.0, lr=1e-9)
    both, norms = torch.tensor([True, True, False]), torch.ones(3, dtype=f64)
    weighting(Signals(torch.tensor([2.0, 4.0, 7.0], dtype=f64), norms=norms, active=both))
    before = weighting.moment1.clone()
    weighting(Signals(torch.tensor([1.0, 6.0, 7.0], dtype=f64), norms=norms, active=both))
    # u = (1, -1): a is above its target, b is below its own; their mean is 0.
    assert (weighting.moment1 - 0.9 * before).tolist() == pytest.approx([0.1, -0.1, 0.0])
    assert weighting.first_loss.tolist() == [2.0, 4.0, 1.0]
    weighting(Signals(torch.tensor([1.0, 6.0, 8.0], dtype=f64), norms=norms))
    assert weighting.first_loss.tolist() == [2.0, 4.0, 8.0]


def test_gradnorm_holds_still_where_its_pull_overflows() -> None:
    """Two norms near the largest float32 have a sum that is infinite: no task moves, and the next window is the first."""
    weighting, fresh = (create("outer", "gradnorm", alpha=0.0, lr=0.1) for _ in range(2))
    weights = weighting(Signals(torch.ones(3), norms=torch.tensor([3e38, 3e38, 1.0])))
    assert weights.tolist() == [1.0, 1.0, 1.0]
    assert weighting.updates.tolist() == [0, 0, 0]
    after = Signals(torch.ones(3), norms=torch.tensor([4.0, 1.0, 1.0]))
    assert weighting(after).tolist() == fresh(after).tolist() != [1.0, 1.0, 1.0]


def test_dwa_takes_a_rate_from_two_epochs_and_not_from_one() -> None:
    """a halves its loss between two epochs: r = 1/2. b was absent in the first: with the mean of one epoch r = 1."""
    weighting = create("outer", "dwa", window=1, temperature=2.0)
    weighting(Signals(torch.tensor([4.0, 1.0], dtype=f64), active=torch.tensor([True, False])))
    weights = weighting(Signals(torch.tensor([2.0, 3.0], dtype=f64)))
    slow, fast = math.exp(1 / 2), math.exp(1 / 4)
    assert weights.tolist() == pytest.approx([2 * fast / (fast + slow), 2 * slow / (fast + slow)])
