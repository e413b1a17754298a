"""A study in several processes, and what interrupts it: kills, Ctrl-C, dead workers, a second process on its folder."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import limits
import pytest
import training
from killed_study import study
from killing import start

from mtl_axes.errors import StudyError
from mtl_axes.study import Results, Study

pytestmark = pytest.mark.slow

SCRIPT = Path(__file__).parent / "killed_study.py"


def small(out: Path, **options: Any) -> Study:
    given: dict[str, Any] = {"outer": ["fixed"], "inner": ["mse"], "seeds": 3, "metrics": {"rmse": "min"}}
    return Study(**{**given, "out": out, "compose": {"tasks": ["a", "b"]}, **options})


def whole_files(folder: Path) -> dict[str, bytes]:
    """The runs that are kept; each can be read."""
    found = {path.name: path.read_bytes() for path in folder.glob("runs/*.json")}
    assert all(isinstance(json.loads(text), dict) for text in found.values())
    return found


def without_seconds(folder: Path) -> dict[str, dict[str, Any]]:
    runs = {name: json.loads(text) for name, text in whole_files(folder).items()}
    return {name: {key: value for key, value in run.items() if key != "seconds"} for name, run in runs.items()}


@contextmanager
def started(*arguments: object) -> Iterator[subprocess.Popen[str]]:
    """A study in a process of its own, killed when it is not needed any more."""
    # A shell lets its background processes ignore interrupts, and the study would inherit that.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        process = start(SCRIPT, *map(str, arguments))
    finally:
        signal.signal(signal.SIGINT, before)
    with process:
        try:
            yield process
        finally:
            process.kill()


def wait_for_runs(folder: Path, count: int, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + limits.PROCESS
    while len(list(folder.glob("runs/*.json"))) < count:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.002)


@pytest.fixture(scope="module")
def in_turn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The study of the script, uninterrupted, in this process."""
    folder = tmp_path_factory.mktemp("in_turn")
    study(folder).run(training.train, progress=False)
    assert len(whole_files(folder)) == 6
    return folder


def test_the_results_are_the_same_for_any_number_of_workers(in_turn: Path, tmp_path: Path) -> None:
    """To the last bit, histories and predictions included; only the seconds differ."""
    study(tmp_path).run(training.train, workers=2, progress=False)
    assert without_seconds(tmp_path) == without_seconds(in_turn)


def test_a_killed_study_goes_on_where_it_stopped(in_turn: Path, tmp_path: Path) -> None:
    """Finished runs are not touched again, nothing half-written counts, and the end is the same as without a kill."""
    with started(tmp_path, 1, "stopping") as process:
        wait_for_runs(tmp_path, 2, process)
        process.kill()
        process.wait()
    kept = whole_files(tmp_path)
    assert 2 <= len(kept) < 6
    assert len(Results.load(tmp_path).runs) == len(kept), "the folder of a killed study can be read"
    study(tmp_path).run(training.train, progress=False)
    assert kept.items() <= whole_files(tmp_path).items()
    assert without_seconds(tmp_path) == without_seconds(in_turn)


def test_two_processes_on_one_folder_do_not_disturb_each_other(in_turn: Path, tmp_path: Path) -> None:
    """At the same time: both end well, every run is there once and whole, and none of them is a failure."""
    with started(tmp_path, 1, "slow") as other:
        wait_for_runs(tmp_path, 1, other)
        results = study(tmp_path).run(training.slow, progress=False)
        assert other.wait(limits.PROCESS) == 0
    assert [run.seed for run in results.runs] == [0, 0, 1, 1, 2, 2] and not results.failures
    assert len(whole_files(tmp_path)) == 6
    assert not [path for path in tmp_path.rglob(".*") if path.is_file()]


def test_workers_do_not_outlive_a_killed_study(tmp_path: Path) -> None:
    """They hold the write end of the study's output, so reading it ends only when the last of them has gone."""
    with started(tmp_path, 2, "endless") as process:
        wait_for_runs(tmp_path, 1, process)
        process.kill()
        process.communicate(timeout=limits.PROCESS)  # the runs that were under way would take longer


def test_an_interrupt_stops_the_workers_and_keeps_finished_runs(tmp_path: Path) -> None:
    """The study ends at once with KeyboardInterrupt, no worker is left, and no run is recorded as failed."""
    with started(tmp_path, 2, "endless") as process:
        wait_for_runs(tmp_path, 2, process)
        time.sleep(0.3)  # the next runs have begun
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=limits.PROCESS)
        assert process.returncode == -signal.SIGINT
    results = Results.load(tmp_path)
    assert [run.seed for run in results.runs] == [0, 0] and not results.failures


def test_a_worker_that_dies_is_a_failure_of_its_run_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The run beside it and those after it are trained; one that raises has its traceback; both are shown at once."""
    results = small(tmp_path, seeds=4).run(training.dying, workers=2)
    assert [run.seed for run in results.runs] == [0, 3]
    died, raised = results.failures
    assert (died.seed, died.error) == (1, "its process died (SIGKILL: out of memory?)")
    assert raised.seed == 2 and str(raised.error).startswith("ValueError: no data\nat all\n  training.py:")
    said = capsys.readouterr().err
    assert "fixed x mse, seed 1 failed: its process died" in said and "4/4" in said
    assert len(small(tmp_path, seeds=4).run(training.dying, workers=2, progress=False).failures) == 2


def test_a_function_that_pickle_cannot_hand_over_is_named(tmp_path: Path) -> None:
    with pytest.raises(StudyError, match=r"pickle cannot send the training function to .* or use workers=1"):
        small(tmp_path).run(lambda criterion, seed: {"rmse": 1.0}, workers=2, progress=False)
    own = training.Own(how=lambda: None)
    with pytest.raises(StudyError, match="pickle cannot send the levels or options"):
        small(tmp_path, outer=[own]).run(training.train, workers=2, progress=False)


def test_a_function_that_another_process_cannot_load_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a notebook: pickle finds it here, but the other process has no such name."""
    monkeypatch.setattr(training, "here_alone", lambda criterion, seed: {"rmse": 1.0}, raising=False)
    training.here_alone.__qualname__ = training.here_alone.__name__ = "here_alone"  # type: ignore[attr-defined]
    monkeypatch.setattr(training.here_alone, "__module__", "training")  # type: ignore[attr-defined]
    with pytest.raises(StudyError, match=r"cannot load the training .*: AttributeError: .*here_alone.* or use workers=1"):
        small(tmp_path).run(training.here_alone, workers=2, progress=False)  # type: ignore[attr-defined]


def test_the_error_of_a_script_without_a_guard_names_the_guard(tmp_path: Path) -> None:
    """Each worker begins by running the script, and would start workers itself."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(SCRIPT.parent), str(SCRIPT.parents[1])])}
    script = tmp_path / "unguarded.py"
    script.write_text(
        "import training\n"
        "from mtl_axes import Study\n"
        f"Study(['fixed'], ['mse'], 2, {str(tmp_path / 'out')!r}).run(training.train, workers=2)\n"
    )
    done = subprocess.run(
        [sys.executable, script], capture_output=True, text=True, timeout=limits.PROCESS, env=environment, check=False
    )
    assert done.returncode == 1
    assert done.stderr.count('needs `if __name__ == "__main__":` around that call') == 1
    assert not whole_files(tmp_path / "out")
