"""GRACE's 2x2 grid on C-MAPSS: {fixed, gaba} x {mse, failure_biased}, trained, compared and drawn.

Without arguments a simulated fleet is used. With the real files (NASA's Prognostics Data Repository, CMAPSSData.zip):

    python examples/cmapss_grace.py --data CMAPSSData.zip --subset FD002

The same command continues an interrupted study.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

try:
    import jinja2  # noqa: F401
    import matplotlib  # noqa: F401
    import numpy  # noqa: F401
    import scipy  # noqa: F401
    import tqdm  # noqa: F401

    import mtl_axes  # noqa: F401
except ModuleNotFoundError as error:
    sys.exit(f"error: this example needs `{error.name}`, which is not installed. Run `pip install -e '.[examples]'` first.")

from cmapss.data import SUBSETS, check_subset, load_fleet
from cmapss.errors import InputError
from cmapss.methods import TASKS, choose_cells, parse_strategy
from cmapss.plots import draw_all
from cmapss.report import in_words, table
from cmapss.runs import runs_of, write_results
from cmapss.simulator import SimulatedFleet
from cmapss.train import Recipe, Training, ridge_baselines

from mtl_axes import Study
from mtl_axes.errors import MtlAxesError

STEPS, SIMULATED_STEPS, QUICK_STEPS = 600, 450, 160
BASELINES = {
    "tuned": "constants: RUL at 0.01, 0.1, 10 and 100 times the weight of health",
    "ended": "constants where each adaptive weighting ended",
}


def main(arguments: list[str] | None = None) -> int:
    """Run the study; the return value is the exit code."""
    options = _parser().parse_args(arguments)
    try:
        return _run(options)
    except (InputError, MtlAxesError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"error: {error}; finished runs are kept in `{options.out}`", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(
            f"\ninterrupted: finished runs are kept in `{options.out}`; the same command continues",
            file=sys.stderr,
        )
        return 130


def _run(options: argparse.Namespace) -> int:
    simulated = options.data is None
    subset = check_subset(options.subset)
    cells = choose_cells(options.methods)
    if options.seeds and len(set(options.seeds)) < len(options.seeds):
        raise InputError(
            f"`--seeds` should name every seed once. Found {' '.join(map(str, options.seeds))}. Leave the repeated ones out."
        )
    seeds = options.seeds or ([0] if options.quick else [0, 1] if simulated else [0, 1, 2, 3, 4])
    steps = options.steps or (QUICK_STEPS if options.quick else SIMULATED_STEPS if simulated else STEPS)
    _check_out(options.out)
    if simulated:
        source = options.out / "simulated"
        train, test = (60, 30) if options.quick else (200, 100)
        SimulatedFleet(subset, train_engines=train, test_engines=test).write(source)
    else:
        source = options.data
    fleet = load_fleet(source, subset)
    name = f"sim-{subset}" if simulated else subset
    recipe = Recipe(steps=steps, batch=64) if options.quick else Recipe(steps=steps)
    training = Training(fleet, options.protocol, recipe)
    heading = f"{'simulated ' + subset if simulated else subset}, {steps} steps, {options.protocol} protocol"
    study = Study(
        {cell.labels[0]: parse_strategy(cell.outer) for cell in cells},
        {cell.labels[1]: parse_strategy(cell.inner) for cell in cells},
        seeds,
        options.out,
        metrics={"rmse": "min", "nasa": "min", "health_accuracy": "max"},
        reference=cells[0].labels,
        cells=[cell.labels for cell in cells],
        baselines=options.baselines,
        compose={"tasks": TASKS},
        config={"subset": name, **training.config()},
        title=f"GRACE on C-MAPSS: {heading}",
    )
    prepared = training.prepared(seeds[0])
    print(f"data: {'simulated fleet in the format of ' + subset if simulated else subset} from `{source}`")
    print(
        f"      {len(fleet.train)} training engines, {len(fleet.test)} test engines, {len(prepared.train)} windows to fit on"
    )
    print(f"runs: {len(cells)} cells x seeds {' '.join(map(str, seeds))}, {steps} steps each, {options.workers} worker(s)")
    for baseline in options.baselines:
        print(f"      and {BASELINES[baseline]}")
    for line in _protocol_lines(options.protocol):
        print(line)
    results = study.run(training, workers=options.workers, retry=True)
    for run in results.failures:
        print(f"failed: {run.outer} x {run.inner}, seed {run.seed}: {run.error}", file=sys.stderr)
    runs = runs_of(results, cells)
    table_of_runs = write_results(runs, name, options.out / "results.csv")
    if not runs:
        return 1
    baselines = [ridge_baselines(training.prepared(seed)) for seed in seeds]
    pictures = draw_all(runs, options.out, heading)
    print(f"\n{heading}; mean ± standard deviation over seeds, differences paired by seed\n")
    print(table(runs, baselines), end="\n\n")
    for sentence in in_words(runs, baselines):
        print(f"- {sentence}")
    for line in _protocol_lines(options.protocol):
        print(f"- {line}")
    if simulated:
        print("- The fleet is simulated: it shows the pipeline and the gradients, not which cell is better on real engines.")
    print("\nVerdict")
    for sentence in dict.fromkeys(sentence for metric in ("rmse", "nasa") for sentence in results.verdict(metric)):
        print(f"- {sentence}")
    written = [path.name for path in (*pictures, study.report())]
    print(f"\nwritten: {table_of_runs}, {', '.join(written)}; one file per run in {options.out / 'runs'}")
    return 1 if results.failures else 0


def _protocol_lines(protocol: str) -> list[str]:
    if protocol == "published":
        return [
            "PROTOCOL published: no validation engines; the checkpoint (and ridge's strength) is chosen on the test set, "
            "as the method's source does. These test figures are optimistic and are no estimate for new engines."
        ]
    return [
        "Protocol honest: the checkpoint with the lowest RMSE on training engines held out by seed is kept; the test "
        "engines are used once, at the end."
    ]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--data", type=Path, metavar="PATH", help="folder or zip with the C-MAPSS files (default: a simulated fleet)"
    )
    parser.add_argument("--subset", default="FD002", metavar="|".join(SUBSETS), help="default FD002")
    parser.add_argument(
        "--methods",
        nargs="+",
        metavar="OUTER:INNER",
        help="compare these with cell A instead of the grid: gaba:huber uncertainty:mse 'gaba(beta=0.9):huber(delta=5)'",
    )
    parser.add_argument(
        "--baselines", nargs="+", choices=tuple(BASELINES), default=(), help="further constants, for verdict and report"
    )
    parser.add_argument(
        "--seeds", nargs="+", type=_whole(0), help="default 0 1 (simulated), 0 to 4 (real files); each also draws the split"
    )
    parser.add_argument("--steps", type=_whole(1), help="optimizer steps per run (default 450 simulated, 600 real)")
    parser.add_argument(
        "--protocol", choices=("honest", "published"), default="honest", help="where the checkpoint is chosen"
    )
    parser.add_argument("--out", type=Path, default=Path("runs/cmapss_grace"), help="default runs/cmapss_grace")
    parser.add_argument(
        "--workers", type=_whole(1), default=min(2, os.cpu_count() or 1), help="processes, one thread each (default 2)"
    )
    parser.add_argument(
        "--quick", action="store_true", help="one seed, a small fleet, few and small steps: does it run at all?"
    )
    return parser


def _whole(low: int) -> type[int]:
    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = low - 1
        if value < low:
            raise argparse.ArgumentTypeError(f"should be a whole number, {low} or more. Found `{text}`.")
        return value

    return parse  # type: ignore[return-value]


def _check_out(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"The folder `{folder}` cannot be written ({error.strerror}). Pass another one as `--out`."
        ) from error


if __name__ == "__main__":
    sys.exit(main())
