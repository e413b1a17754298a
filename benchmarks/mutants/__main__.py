"""Break the library on purpose, one small fault at a time, and count the faults that the tests find.

python -m benchmarks.mutants --out build/mutants.json                 300 mutants; continues where it was interrupted
python -m benchmarks.mutants --out build/mutants.json --survivors     runs those that survived again, with today's tests
python -m benchmarks.mutants --out build/gaba.json --count 40 --modules gaba=mtl_axes/outer/gaba.py

mutmut makes the faults. Each runs in a process of its own against the tests that cover its line, the most specific first.
One run of the tests under coverage says which these are. What it says is kept beside the results, as ``*.map.json``; delete
that file when tests have changed. Survivors that no test can kill are listed in ``equivalent.json``, with the reason.
``MTL_AXES_TEST_PATIENCE`` multiplies the limits on time. Needs ``pip install -e '.[dev]'`` and a system that can fork.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import importlib
import json
import tempfile
import time
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from itertools import chain, zip_longest
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from benchmarks.mutants.faults import ROOT, Mutant, files_of, lines_of, sample
from benchmarks.mutants.forks import Tree, cover, first_failure, judge, start

STRATA = {
    "criterion": ["mtl_axes/criterion.py"],
    "window": ["mtl_axes/window.py"],
    "tasks": ["mtl_axes/tasks.py"],
    "probes/exact": ["mtl_axes/probes/exact.py"],
    "outer/gaba": ["mtl_axes/outer/gaba.py"],
    "outer/gradnorm": ["mtl_axes/outer/gradnorm.py"],
    "outer/dwa": ["mtl_axes/outer/dwa.py"],
    "study/statistics": ["mtl_axes/study/statistics.py"],
}
# What covers these modules in one process. Tests that start processes, compile, draw or build pages are left out.
TESTS = [
    "mtl_axes/criterion.py",
    "mtl_axes/outer/dwa.py",
    "mtl_axes/outer/gaba.py",
    "mtl_axes/outer/gradnorm.py",
    "mtl_axes/study/statistics.py",
    "tests/study/test_statistics.py",
    "tests/oracles/test_outer.py",
    "tests/oracles/test_outer_losses.py",
    "tests/oracles/test_outer_norms.py",
    "tests/outer",
    "tests/tasks",
    "tests/test_bad_input.py",
    "tests/criterion",
    "tests/probes",
    "tests/contracts/test_outer_contracts.py",
    "tests/history/test_history.py",
    "tests/history/test_history_state.py",
]
_FIRST = 8  # tests that run before the others are collected


def main() -> None:
    """Draw the mutants, find the tests that cover them, run those that have no result yet, and print the report."""
    options = _parser().parse_args()
    strata = {name: paths.split(",") for name, _, paths in (pair.partition("=") for pair in options.modules)} or STRATA
    mutants = {_key(mutant._asdict()): mutant for mutant in sample(strata, options.count, options.seed)}
    earlier = json.loads(options.out.read_text()) if options.out.exists() else []
    results = {_key(one): one for one in earlier if _key(one) in mutants}
    again = {key for key, one in results.items() if options.survivors and one["status"] in ("survived", "uncovered")}
    todo = [mutant for key, mutant in mutants.items() if key not in results or key in again]
    with tempfile.TemporaryDirectory() as folder:
        lines, seconds = _coverage(options, files_of([*chain.from_iterable(strata.values())]), Tree(Path(folder, "whole")))
        for mutant, result in _run(todo, lines, seconds, options, folder):
            results[_key(mutant._asdict())] = {**mutant._asdict(), "code": "", **result}
            options.out.write_text(json.dumps([results[key] for key in mutants if key in results], indent=1))
        killers = sorted({one["by"] for one in results.values() if "::" in one["by"]})
        wrong = Tree(Path(folder, "unbroken")).run(first_failure, killers) if todo else None
    print(report([results[key] for key in mutants]))
    if wrong is not None:
        raise SystemExit(f"error: {wrong} fails without a fault, too. Delete the results that name it, and run again.")


def _coverage(
    options: argparse.Namespace, files: list[str], tree: Tree
) -> tuple[dict[tuple[str, int], set[str]], dict[str, float]]:
    """Return the tests that cover each line, and what each test takes. Only files of tests that changed are run again."""
    map_file = options.out.with_suffix(".map.json")
    covered = json.loads(map_file.read_text()) if map_file.exists() else {}
    lines, seconds = defaultdict(set), {}
    for test_file in files_of(options.tests, "test_*.py"):
        digest = hashlib.sha256(b"".join((ROOT / file).read_bytes() for file in [test_file, *files])).hexdigest()
        if covered.get(test_file, {}).get("digest") != digest:
            outcome = tree.run(cover, test_file, files)
            if isinstance(outcome, str):
                raise SystemExit(f"error: {test_file} ended with a {outcome}:\n{(tree.folder / 'output.txt').read_text()}")
            covered[test_file] = {"digest": digest, **outcome}
            map_file.write_text(json.dumps(covered))
            print(f"{test_file}: {sum(covered[test_file]['seconds'].values()):.0f} s", flush=True)
        _preload(covered[test_file]["imported"])
        seconds |= covered[test_file]["seconds"]
        for file, tests_of_line in covered[test_file]["lines"].items():
            for line, tests in tests_of_line.items():
                lines[file, int(line)].update(tests)
    return lines, seconds


def _run(
    todo: list[Mutant],
    covered: dict[tuple[str, int], set[str]],
    seconds: dict[str, float],
    options: argparse.Namespace,
    folder: str,
) -> Iterator[tuple[Mutant, dict[str, Any]]]:
    breadth = Counter(chain.from_iterable(covered.values()))
    started = time.monotonic()
    with ProcessPoolExecutor(options.workers, get_context("fork"), start, (folder,)) as pool:
        jobs = {}
        for mutant in todo:
            lines = lines_of((ROOT / mutant.path).read_text(), mutant.line)
            tests = set().union(*(covered[mutant.path, line] for line in lines))
            chosen = _spread(sorted(tests, key=lambda test: (breadth[test], test)))[: options.limit]
            parts = [sorted(part, key=seconds.__getitem__) for part in (chosen[:_FIRST], chosen[_FIRST:]) if part]
            timed = [(part, sum(seconds[test] for test in part)) for part in parts]
            jobs[pool.submit(judge, mutant.path, mutant.code, timed)] = (mutant, len(chosen))
        for done, job in enumerate(as_completed(jobs), 1):
            mutant, count = jobs[job]
            status, failure = job.result()
            each = (time.monotonic() - started) / done
            print(f"{done}/{len(jobs)}, {each:.1f} s each: {mutant.path}:{mutant.line} {status}", flush=True)
            yield mutant, {"status": status, "by": failure, "tests": count}


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
    equivalent = {_key({"stratum": "", "path": "", **one})[2:] for one in json.loads(EQUIVALENT.read_text())}
    lines = [f"{'':<18}mutants  killed  timeout  survived  equivalent  killed of the others"]
    for name in [*dict.fromkeys(one["stratum"] for one in results), "all"]:
        members = [one for one in results if name in (one["stratum"], "all")]
        statuses = Counter("equivalent" if _is_equivalent(one, equivalent) else one["status"] for one in members)
        alive, same = statuses["survived"] + statuses["uncovered"], statuses["equivalent"]
        share = 1 - alive / max(len(members) - same, 1)
        numbers = f"{len(members):>7}{statuses['killed']:>8}{statuses['timeout']:>9}{alive:>10}{same:>12}"
        lines.append(f"{name:<18}{numbers}{share:>21.1%}")
    for one in results:
        if one["status"] in ("survived", "uncovered") and not _is_equivalent(one, equivalent):
            lines += ["", f"{one['path']}:{one['line']} {one['function']}: {one['status']}, {one['tests']} tests"]
            lines += [f"  - {one['before']}", f"  + {one['after']}"]
    return "\n".join(lines)


EQUIVALENT = Path(__file__).with_name("equivalent.json")


def _is_equivalent(one: dict[str, Any], equivalent: set[tuple[str, ...]]) -> bool:
    return one["status"] == "survived" and _key(one)[2:] in equivalent


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m benchmarks.mutants", description="Count the faults that the tests find.")
    parser.add_argument("--out", type=Path, required=True, help="JSON file of the results; what it holds is not run again")
    parser.add_argument("--count", type=int, default=300, help="mutants (default: 300)")
    parser.add_argument("--seed", type=int, default=0, help="of the sample (default: 0)")
    parser.add_argument("--modules", nargs="*", default=[], metavar="NAME=PATH,PATH", help="strata; default: eight of them")
    parser.add_argument("--tests", nargs="*", default=TESTS, metavar="PATH", help="tests to map, as pytest takes them")
    parser.add_argument("--limit", type=int, default=60, help="tests for each mutant (default: 60)")
    parser.add_argument("--workers", type=int, default=1, help="processes (default: 1)")
    parser.add_argument("--survivors", action="store_true", help="run the survivors of an earlier run again")
    return parser


if __name__ == "__main__":
    main()
