"""What the programs of this folder share: the command line, a study of 2 x 2 cells and 3 seeds, and its output.

python examples/domains/perception.py            # the study; finished runs are kept in --out and not repeated
python examples/domains/perception.py --quick    # one seed and few steps: does it run?
"""

from __future__ import annotations

import argparse
import hashlib
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from mtl_axes import Study

Metrics = Mapping[str, float]


def main(
    title: str,
    train: Callable[..., Metrics],
    trivial: Callable[[int], Metrics],
    *,
    outer: Mapping[str, Any],
    inner: Mapping[str, Any],
    metrics: Mapping[str, str],
    steps: int,
    quick_steps: int,
    compose: Mapping[str, Any] | None = None,
    naive: str = "without any input",
) -> None:
    """Run the study of the command line, and print what it measured and its verdict.

    Args:
        title: what the study asks.
        train: ``train(criterion, seed, steps=...)`` -> metrics on data that were not trained on. A function of its module.
        trivial: ``trivial(seed)`` -> the same metrics for predictions without training: the figures to beat.
        outer: weightings by label, the reference first.
        inner: shapes by label, the reference first.
        metrics: "min" or "max" by name, the one that matters most first.
        steps: optimizer steps of a run.
        quick_steps: optimizer steps of a run with ``--quick``.
        compose: further options of ``compose``.
        naive: what ``trivial`` does, in a few words.
    """
    program = Path(train.__code__.co_filename)
    parser = argparse.ArgumentParser(description=title)
    parser.add_argument("--quick", action="store_true", help="one seed and few steps")
    parser.add_argument("--out", type=Path, help="folder of the runs and the report (runs/domains/NAME)")
    parser.add_argument("--workers", type=int, help="runs at a time (2, or 1 with --quick)")
    given = parser.parse_args()
    out = given.out or Path("runs/domains") / (program.stem + "_quick" * given.quick)
    chosen = quick_steps if given.quick else steps
    begin = time.perf_counter()
    study = Study(
        outer=outer,
        inner=inner,
        seeds=1 if given.quick else 3,
        out=out,
        metrics=metrics,
        compose=dict(compose or {}),
        config={"steps": chosen, "program": hashlib.sha256(program.read_bytes()).hexdigest()[:12]},
        title=title,
    )
    results = study.run(partial(train, steps=chosen), workers=given.workers or (1 if given.quick else 2))
    if results.failures:
        raise SystemExit("\n".join(f"{run.outer} x {run.inner}, seed {run.seed}: {run.error}" for run in results.failures))
    floor = [trivial(seed) for seed in results.seeds]
    print(f"{title}\n")
    for metric, better in metrics.items():
        print(f"{metric} ({'lower' if better == 'min' else 'higher'} is better)")
        print(f"  {naive:30} {sum(values[metric] for values in floor) / len(floor):9.4f}")
        for cell in results.summary(metric):
            spread = f" ± {cell.sd:.4f}" if cell.n > 1 else ""
            print(f"  {cell.outer + ' x ' + cell.inner:30} {cell.mean:9.4f}{spread}")
    print("\nVerdict", *results.verdict(), sep="\n  ")
    print(f"\nReport: {study.report(out / 'report.html')}   ({time.perf_counter() - begin:.0f} s)")
