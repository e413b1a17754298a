"""Loss scales of float16 are the same on all ranks, whatever overflows on one of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from spawning import on_ranks
from strategies import PROBES, batch_for, equal, model_for, quick

from mtl_axes import compose

pytestmark = pytest.mark.slow

KINDS = {"a": "regression", "b": "regression", "c": "multiclass"}
CASES = [
    (probe, sync, accumulate)
    for probe in ("exact", "rotate", "representation")
    for sync in ("norms", "gradients")
    for accumulate in (1, 2)
]
STEPS, OVERFLOWS = 10, 5


def scaled(rank: int) -> dict[str, Any]:
    """Scales and weights of every step; on rank 1 task "b" overflows once, and another task is missing in two steps."""
    found = {}
    for probe, sync, accumulate in CASES:
        model = model_for(KINDS)
        criterion = compose(
            quick("gaba"), tasks=list(KINDS), sync=sync, accumulate=accumulate, shared=model.trunk, **PROBES[probe]
        )
        steps = []
        for step in range(STEPS):
            inputs = batch_for(KINDS, seed=10 * rank + step)[0]
            with torch.autocast("cpu", dtype=torch.float16):
                outputs = model(inputs)
            sizes = {"a": 1e-6, "b": 2.0**100 if rank and step == OVERFLOWS else 1.0, "c": 1e3}
            losses = {name: sizes[name] * output.float().square().mean() for name, output in outputs.items()}
            criterion.combine({**losses, "a": None} if rank and step in (7, 8) else losses)
            window = criterion._window
            steps.append([criterion.report.weights, window.scale_exponents.clone(), criterion.outer.ema.clone()])
        found[f"{probe}, {sync}, {accumulate}"] = steps
    return found


def test_ranks_have_the_same_scales(tmp_path: Path) -> None:
    """Scales, weights and averages agree bit for bit after every step, the one with the overflow included."""
    one, other = on_ranks(scaled, tmp_path, 2)
    for case, steps in one.items():
        assert equal(steps, other[case]), case
        weights, exponents, averages = steps[-1]
        assert len(set(exponents.tolist())) > 1, f"{case}: the scales of tasks so different should differ"
        assert weights.isfinite().all() and averages.isfinite().all()
        if case.startswith("exact") and case.endswith("1"):
            before, after = steps[OVERFLOWS - 1][1], steps[OVERFLOWS][1]
            assert (after - before).tolist() == [0, -8, 0]
