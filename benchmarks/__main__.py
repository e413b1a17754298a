"""Measure what `mtl_axes` costs, print the tables, draw the picture.

python -m benchmarks                              everything, about ten minutes on two cores
python -m benchmarks --quick                      every part once, in about a minute; the numbers are meaningless
python -m benchmarks --only steps --rounds 15     one part, for longer
python -m benchmarks --only report                tables and picture again, from the JSON files
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

try:
    import matplotlib  # noqa: F401
    import qpsolvers  # noqa: F401
    import quadprog  # type: ignore[import-not-found]  # noqa: F401
    import torch
    import torchjd  # noqa: F401
    import tqdm  # noqa: F401
except ModuleNotFoundError as error:
    sys.exit(f"error: the benchmarks need `{error.name}`, which is not installed. Run `pip install -e '.[bench]'` first.")

from benchmarks import criterion_cost, gpu, growth, memory, quality, report, steps
from benchmarks.methods import Method, methods
from benchmarks.models import Workload, cnn_bilstm, mlp, transformer

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"


def main(arguments: list[str] | None = None) -> int:
    """Run the chosen parts; the return value is the exit code."""
    parser = _parser()
    options = parser.parse_args(arguments)
    if options.quick and options.publish:
        parser.error("--quick gives meaningless numbers, which --publish would write into docs; drop one of the two")
    torch.set_num_threads(1)
    where = options.machine or report.machine()
    # Meaningless numbers must not replace published ones, or be stored next to them.
    out = options.out or (RESULTS / "quick" if options.quick else RESULTS)
    out.mkdir(parents=True, exist_ok=True)
    for part in options.only:
        result = PARTS[part](options) if part in PARTS else None
        if result is not None:
            report.save(out, part, result, where=where)
    _write(out / "tables.md", out / "cost.png", results := report.load(out))
    if options.publish:
        _write(ROOT / "docs" / "cost_tables.md", ROOT / "docs" / "images" / "cost.png", results)
    print(report.tables(results))
    print(f"written: {out}")
    return 0


def _write(page: Path, picture: Path, results: dict[str, Any]) -> None:
    page.write_text(report.tables(results))
    if "steps" in results:
        report.draw(results["steps"], picture)


def _steps(options: argparse.Namespace) -> Any:
    """Time all methods on the first model with the most rounds, and the main ones on the others."""
    result: dict[str, Any] = {"rows": [], "duels": []}
    rounds = options.rounds or (1 if options.quick else 5)
    for workload, chosen, first in _studies(options.quick):
        rows, duels = steps.run(
            workload, chosen, rounds=rounds if first else (rounds + 1) // 2, repeats=1 if options.quick else 3
        )
        result["rows"] += rows
        result["duels"] += duels
    return result


def _studies(quick: bool) -> list[tuple[Workload, list[Method], bool]]:
    every, most = methods(), [method for method in methods() if not method.extensive]
    if quick:
        return [(mlp(count, batch=32, width=64), every, True) for count in (2, 4)]
    others: list[Workload] = [
        *(mlp(count, batch=32) for count in (2, 4, 8)),
        *(mlp(count, batch=128, heavy=True) for count in (2, 4, 8)),
        cnn_bilstm(),
        transformer(),
    ]
    return [(mlp(count), every, True) for count in (2, 4, 8)] + [(workload, most, False) for workload in others]


def _memory(options: argparse.Namespace) -> Any:
    every = methods(scalarizers=False, rivals=("UPGrad",))
    if options.quick:
        return memory.run([(mlp(2, batch=32, width=64), every)])
    return memory.run([*((mlp(count), every) for count in (2, 4, 8)), (cnn_bilstm(), every), (transformer(), every)])


def _criterion(options: argparse.Namespace) -> Any:
    return criterion_cost.run(rounds=20 * (options.rounds or 5) if not options.quick else 3)


def _growth(options: argparse.Namespace) -> Any:
    if options.quick:
        return growth.run(rounds=1, tasks=(2, 4), widths=(16,), batches=(8,))
    return growth.run(rounds=options.rounds or 3)


def _quality(options: argparse.Namespace) -> Any:
    return quality.run(steps=12, batch=8) if options.quick else quality.run()


def _gpu(options: argparse.Namespace) -> Any:
    result = gpu.run(methods(rivals=("UPGrad",)), rounds=options.rounds or (1 if options.quick else 10))
    if result is None:
        print("gpu: left out, because torch finds no CUDA device")
    return result


PARTS: dict[str, Callable[[argparse.Namespace], Any]] = {
    "steps": _steps,
    "memory": _memory,
    "criterion": _criterion,
    "growth": _growth,
    "quality": _quality,
    "gpu": _gpu,
}


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"--rounds should be at least 1. Found {value}.")
    return value


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = [*PARTS, "report"]

    def parts(text: str) -> list[str]:
        chosen = text.split(",")
        unknown = [name for name in chosen if name not in names]
        if unknown:
            raise argparse.ArgumentTypeError(f"--only takes {', '.join(names)}. Found {', '.join(unknown)}.")
        return chosen

    parser.add_argument("--only", type=parts, default=list(PARTS), metavar="PARTS", help=f"any of {','.join(names)}")
    parser.add_argument("--rounds", type=_positive, help="rounds of the timed parts; each part has its own default")
    parser.add_argument("--quick", action="store_true", help="tiny models, one round: does it run?")
    parser.add_argument("--out", type=Path, help="folder for the results; the default is benchmarks/results")
    parser.add_argument("--machine", help="name of the machine in the tables; by default what Python reports")
    parser.add_argument("--publish", action="store_true", help="also write docs/cost_tables.md and docs/images/cost.png")
    return parser


if __name__ == "__main__":
    sys.exit(main())
