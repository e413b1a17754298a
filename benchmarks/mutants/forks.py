"""Processes that run tests on a copy of the repository, each forked from one that has imported torch already."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import shutil
import signal
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import coverage
import pytest

from benchmarks.mutants.faults import ROOT

PATIENCE = float(os.environ.get("MTL_AXES_TEST_PATIENCE", "1"))
# Plugins that are imported already are no reason for a warning, which would be an error.
_OPTIONS = ["-q", "-pno:cacheprovider", "-pno:cov", "-pno:xdist", "-Wignore::pytest.PytestAssertRewriteWarning"]
_NOT_COPIED = shutil.ignore_patterns(".git", ".venv*", "build", "dist", "runs", "__pycache__", ".*_cache", ".hypothesis")


class Tree:
    """A copy of the repository in which a module can be broken.

    Nothing of the repository is imported in this process, so that a fork imports what the copy holds.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._stamp = 1_000_000_000
        shutil.copytree(ROOT, folder, ignore=_NOT_COPIED)
        (folder / "mtl_axes" / "adapters").symlink_to("../adapters")

    def write(self, path: str, code: str) -> None:
        """Replace the code of a module."""
        (self.folder / path).write_text(code)
        # Compiled code counts as current if the second and the size of its source are the same.
        self._stamp += 1
        os.utime(self.folder / path, (self._stamp, self._stamp))

    def run(self, function: Callable[..., Any], *arguments: Any, seconds: float | None = None) -> Any:
        """Return what the function returns in a fork; "timeout" or "crash" if it does not return."""
        fork = multiprocessing.get_context("fork")
        receiver, sender = fork.Pipe(duplex=False)
        process = fork.Process(target=self._work, args=(sender, function, arguments))
        process.start()
        sender.close()
        try:
            return receiver.recv() if receiver.poll(seconds) else "timeout"
        except EOFError:
            return "crash"
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid or 0, signal.SIGKILL)
            process.join()

    def _work(self, sender: Any, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
        os.setsid()
        os.chdir(self.folder)
        os.environ.update(CI="true", PYTHONPATH=str(self.folder), OMP_NUM_THREADS="1")
        sys.path[:] = [str(self.folder), *(path for path in sys.path if path not in ("", str(ROOT)))]
        with (self.folder / "output.txt").open("w") as output:
            os.dup2(output.fileno(), 1)
            os.dup2(output.fileno(), 2)
        sender.send(function(*arguments))


class _Observer:
    """A pytest plugin: how long each test took, which did not pass, and to coverage the name of the one that runs."""

    def __init__(self, measured: coverage.Coverage | None = None) -> None:
        self.measured = measured
        self.seconds: dict[str, float] = defaultdict(float)
        self.failed: list[str] = []

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        if self.measured is not None:
            self.measured.switch_context(item.nodeid)
        return (yield)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.seconds[report.nodeid] += report.duration
        if not report.passed:
            self.failed.append(report.nodeid)


def cover(test_file: str, files: list[str]) -> dict[str, Any]:
    """Run a file of tests under coverage; return which tests run which lines, what they take, and what they import."""
    paths = {file: str(Path(file).resolve()) for file in files}
    measured = coverage.Coverage(data_file=None, include=[*paths.values()], config_file=False)
    observer = _Observer(measured)
    measured.start()
    pytest.main([*_OPTIONS, test_file], plugins=[observer])
    measured.stop()
    lines = defaultdict(list)
    for file, path in paths.items():
        for line, tests in measured.get_data().contexts_by_lineno(path).items():
            for test in {*tests} - {"", *observer.failed}:
                lines[test].append((file, line))
    imported = [name for name, module in sys.modules.items() if "site-packages" in (getattr(module, "__file__", "") or "")]
    return {"lines": lines, "seconds": observer.seconds, "failed": observer.failed, "imported": imported}


def first_failure(tests: list[str]) -> str | None:
    """Run the tests until one fails; return its name."""
    observer = _Observer()
    status = pytest.main(["-x", "-m", "", *_OPTIONS, *tests], plugins=[observer])
    return None if status == 0 else (observer.failed or [f"pytest ended with {status!r}"])[0]


def start(folder: str) -> None:
    """Give a worker a tree."""
    global _tree
    _tree = Tree(Path(folder, f"tree{os.getpid()}"))


def run_file(test_file: str, files: list[str]) -> Any:
    """Run :func:`cover` on this worker's tree."""
    return _tree.run(cover, test_file, files)


def judge(path: str, code: str, parts: list[tuple[list[str], float]]) -> tuple[str, str]:
    """Run the parts of the tests on a mutant until one fails; return what became of it, and the test that failed.

    Each part comes with the seconds that its tests take without a fault.
    """
    original = (_tree.folder / path).read_text()
    _tree.write(path, code)
    try:
        for tests, seconds in parts:
            failure = _tree.run(first_failure, tests, seconds=PATIENCE * (60 + 10 * seconds))
            if failure is not None:
                return ("timeout", "") if failure == "timeout" else ("killed", failure)
        return "survived", ""
    finally:
        _tree.write(path, original)
