"""Break the library on purpose, one small fault at a time, and count the faults that the tests find.

python -m benchmarks.mutants --out build/mutants.json                 300 mutants; continues where it was interrupted
python -m benchmarks.mutants --out build/mutants.json --survivors     runs those that survived again, with today's tests
python -m benchmarks.mutants --out build/gaba.json --count 40 --modules gaba=mtl_axes/outer/gaba.py

mutmut makes the faults. Each runs in a process of its own against the tests that cover its line, the most specific first.
One run of each file of tests under coverage says which these are; it is kept beside the results, in ``*.map/``, and is used
until the file or a module changes. Survivors that no test can find are listed in ``equivalent.json``, with the reason.
``MTL_AXES_TEST_PATIENCE`` multiplies the limits on time. Needs ``pip install -e '.[dev]'`` and a system that can fork.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import importlib
import json
import tempfile
import warnings
from collections import Counter, defaultdict
from concurrent.futures import ProcessPoolExecutor, as_completed
from itertools import chain, zip_longest
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from benchmarks.mutants.faults import ROOT, files_of, lines_of, sample
from benchmarks.mutants.forks import Tree, first_failure, judge, run_file, start

STRATA = {
    "criterion": [
        *(
            f"mtl_axes/{module}.py"
            for module in ("criterion", "training", "binding", "agreement", "after_step", "checkpoint")
        ),
        *(
            "mtl_axes/composition.py",
            "mtl_axes/compiling.py",
            "mtl_axes/telemetry/journal.py",
            "mtl_axes/telemetry/tally.py",
        ),
    ],
    "window": ["mtl_axes/window.py"],
    "tasks": ["mtl_axes/tasks"],
    "probes/exact": ["mtl_axes/probes/exact.py", "mtl_axes/probes/leaves.py"],
    "outer/gaba": ["mtl_axes/outer/gaba.py"],
    "outer/gradnorm": ["mtl_axes/outer/gradnorm.py"],
    "outer/dwa": ["mtl_axes/outer/dwa.py"],
    "study/statistics": ["mtl_axes/study/statistics.py"],
}
# What covers these modules in one process. Tests that start processes, compile, draw or build pages are left out.
TESTS = [
    *(f"mtl_axes/{module}.py" for module in ("criterion", "outer/dwa", "outer/gaba", "outer/gradnorm", "study/statistics")),
    *(f"tests/oracles/test_outer{part}.py" for part in ("", "_losses", "_norms")),
    *(f"tests/{path}" for path in ("criterion", "history", "outer", "probes", "tasks", "test_bad_input.py")),
    *("tests/contracts/test_outer_contracts.py", "tests/study/test_statistics.py"),
]
EQUIVALENT = Path(__file__).with_name("equivalent.json")
# What runs on a line that none of these covers: ranks and compiled calls are in other processes, or no Python at all.
ELSEWHERE = [
    *(f"tests/distributed/test_{name}.py" for name in ("agreement", "norm_sync", "whole_batch", "after_step_ranks")),
    "tests/compile/test_compiled_criterion.py",
]
_FIRST = 8  # tests that run before the others are collected
_LONG = 300.0  # seconds of a file of tests elsewhere


def main() -> None:
    """Draw the mutants, find the tests that cover them, run those that have no result yet, and print the report."""
    options = _parser().parse_args()
    strata = {name: paths.split(",") for name, _, paths in (pair.partition("=") for pair in options.modules)} or STRATA
    mutants = {_key(mutant._asdict()): mutant for mutant in sample(strata, options.count, options.seed)}
    earlier = json.loads(options.out.read_text()) if options.out.exists() else []
    results = {_key(one): one for one in earlier if not (options.survivors and one["status"] == "survived")}
    todo = {key: mutant for key, mutant in mutants.items() if key not in results}
    with tempfile.TemporaryDirectory() as folder:
        covered, seconds = _coverage(options, files_of([*chain.from_iterable(strata.values())]), folder)
        breadth = Counter(chain.from_iterable(covered.values()))
        jobs = {}
        with ProcessPoolExecutor(options.workers, get_context("fork"), start, (folder,)) as pool:
            for key, mutant in todo.items():
                lines = lines_of((ROOT / mutant.path).read_text(), mutant.line)
                tests = set().union(*(covered[mutant.path, line] for line in lines))
                chosen = _spread(sorted(tests, key=lambda test: (breadth[test], test)))[: options.limit] or ELSEWHERE
                parts = [
                    sorted(part, key=lambda test: seconds.get(test, _LONG)) for part in (chosen[:_FIRST], chosen[_FIRST:])
                ]
                timed = [(part, sum(seconds.get(test, _LONG) for test in part)) for part in parts if part]
                jobs[pool.submit(judge, mutant.path, mutant.code, timed)] = key, len(chosen)
            for done, job in enumerate(as_completed(jobs), 1):
                key, count = jobs[job]
                status, by = job.result()
                results[key] = {**todo[key]._asdict(), "code": "", "status": status, "by": by, "tests": count}
                options.out.write_text(json.dumps([results[key] for key in mutants if key in results], indent=1))
                print(f"{done}/{len(jobs)} {todo[key].path}:{todo[key].line} {status}", flush=True)
        killers = sorted({one["by"] for one in results.values() if "::" in one["by"]})
        wrong = Tree(Path(folder, "unbroken")).run(first_failure, killers) if todo else None
    print(report([results[key] for key in mutants]))
    if wrong is not None:
        raise SystemExit(f"error: {wrong} fails without a fault, too. Delete the results that name it, and run again.")


def _coverage(
    options: argparse.Namespace, files: list[str], folder: str
) -> tuple[dict[tuple[str, int], set[str]], dict[str, float]]:
    """Return the tests that cover each line, and the seconds of each. A file that was mapped before is run if it changed."""
    maps = options.out.with_suffix(".map")
    maps.mkdir(parents=True, exist_ok=True)
    modules = b"".join((ROOT / file).read_bytes() for file in files)
    paths = {}
    for test_file in files_of(options.tests, "test_*.py"):
        digest = hashlib.sha256((ROOT / test_file).read_bytes() + modules).hexdigest()
        paths[test_file] = maps / f"{test_file.replace('/', '.')}.{digest[:8]}.json"
    with ProcessPoolExecutor(options.workers, get_context("fork"), start, (folder,)) as pool:
        jobs = {pool.submit(run_file, one, files): one for one, path in paths.items() if not path.exists()}
        for job in as_completed(jobs):
            test_file, outcome = jobs[job], job.result()
            if isinstance(outcome, str):
                raise SystemExit(f"error: {test_file} ended with a {outcome} under coverage.")
            paths[test_file].write_text(json.dumps(outcome))
            print(f"{test_file}: {sum(outcome['seconds'].values()):.0f} s, not passed: {len(outcome['failed'])}", flush=True)
    covered, seconds = defaultdict(set), {}
    for path in paths.values():
        mapped = json.loads(path.read_text())
        _preload(mapped["imported"])
        seconds |= mapped["seconds"]
        for test, lines in mapped["lines"].items():
            for file, line in lines:
                covered[file, line].add(test)
    return covered, seconds


def _spread(tests: list[str]) -> list[str]:
    """Return the tests in an order that takes one from every file in turn."""
    files = defaultdict(list)
    for test in tests:
        files[test.partition("::")[0]].append(test)
    return [test for row in zip_longest(*files.values()) for test in row if test is not None]


def _preload(names: list[str]) -> None:
    """Import other people's packages that the tests import, once for all forks."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in names:
            with contextlib.suppress(Exception):
                importlib.import_module(name)


def _key(one: dict[str, Any]) -> tuple[str, ...]:
    """Return what tells mutants apart: not the line, which changes when code moves."""
    return one["stratum"], one["path"], one["function"], one["before"], one["after"]


def report(results: list[dict[str, Any]]) -> str:
    """Return a table with a line per stratum, and the mutants that survived with what they changed."""
    same = {(one["function"], one["before"], one["after"]) for one in json.loads(EQUIVALENT.read_text())}
    lines = [f"{'':<18}mutants  killed  timeout  survived  equivalent  killed of the others"]
    status = {
        _key(one): "equivalent" if one["status"] == "survived" and _key(one)[2:] in same else one["status"]
        for one in results
    }
    for name in [*dict.fromkeys(one["stratum"] for one in results), "all"]:
        counts = Counter(status[_key(one)] for one in results if name in (one["stratum"], "all"))
        numbers = [counts.total(), *(counts[one] for one in ("killed", "timeout", "survived", "equivalent"))]
        share = 1 - counts["survived"] / max(counts.total() - counts["equivalent"], 1)
        lines.append("{:<18}{:>7}{:>8}{:>9}{:>10}{:>12}".format(name, *numbers) + f"{share:>21.1%}")
    for one in sorted(results, key=lambda one: (one["path"], one["line"])):
        if status[_key(one)] == "survived":
            lines += ["", f"{one['path']}:{one['line']} {one['function']}, {one['tests']} tests"]
            lines += [f"  - {one['before']}", f"  + {one['after']}"]
    return "\n".join(lines)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m benchmarks.mutants", description="Count the faults that the tests find.")
    parser.add_argument("--out", type=Path, required=True, help="JSON file of the results; what it holds is not run again")
    parser.add_argument("--count", type=int, default=300, help="mutants (default: 300)")
    parser.add_argument("--seed", type=int, default=0, help="of the sample (default: 0)")
    parser.add_argument("--modules", nargs="*", default=[], metavar="NAME=PATH,PATH", help="strata (default: eight of them)")
    parser.add_argument("--tests", nargs="*", default=TESTS, metavar="PATH", help="files and folders of tests, and modules")
    parser.add_argument("--limit", type=int, default=60, help="tests for each mutant (default: 60)")
    parser.add_argument("--workers", type=int, default=1, help="processes (default: 1)")
    parser.add_argument("--survivors", action="store_true", help="run the survivors of an earlier run again")
    return parser


if __name__ == "__main__":
    main()
