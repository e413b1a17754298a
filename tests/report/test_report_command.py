"""``mtl-axes report``: from the folder of a study to its page."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import simulated

from mtl_axes import report
from mtl_axes.cli import main
from mtl_axes.study.runs import RUNS_FOLDER, STUDY_FILE


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The folder of a study of 2 x 1 cells and 2 seeds, one run of which failed."""
    results = simulated.study(
        {"equal": "fixed", "gaba": "gaba"}, {"mse": "mse"}, 2, steps=20, samples=10, failed=[("gaba", "mse", 1)]
    )
    (tmp_path / RUNS_FOLDER).mkdir()
    runs = (*results.runs, *results.failures)
    for index, run in enumerate(runs):
        (tmp_path / RUNS_FOLDER / f"{index}.json").write_text(run.to_json())
    kept = {
        **{
            name: getattr(results, name)
            for name in ("outer", "inner", "seeds", "metrics", "reference", "constants", "baselines", "about")
        },
        "runs": [f"{index}.json" for index in range(len(runs))],
    }
    (tmp_path / STUDY_FILE).write_text(json.dumps(kept))
    return tmp_path


def test_the_report_of_a_folder(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It is written beside the study, or where -o says, as `write_report` writes it, and its path is printed."""
    assert main(["report", str(folder)]) == 0
    assert capsys.readouterr().out == f"{folder / 'report.html'}\n"
    other = folder / "made" / "other.html"
    assert main(["report", str(folder), "-o", str(other)]) == 0
    assert capsys.readouterr().out == f"{other}\n"
    text = (folder / "report.html").read_text()
    assert other.read_text() == text
    assert "Remaining life of engines" in text
    assert "3 runs finished, 1 failed. Created 2026-11-20 08:15 UTC." in text


def test_a_folder_without_a_study(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What was asked for is named on stderr, and nothing is written."""
    assert main(["report", str(tmp_path)]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "holds no readable study.json" in printed.err
    assert list(tmp_path.iterdir()) == []


def test_what_prevents_a_report_is_printed(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that cannot be written, and a library that is missing, end with status 2 and their reason."""
    assert main(["report", str(folder), "-o", str(folder)]) == 2
    assert "Is a directory" in capsys.readouterr().err

    def missing(*_: object) -> Path:
        raise ImportError("A report needs jinja2")

    monkeypatch.setattr(report, "write_report", missing)
    assert main(["report", str(folder)]) == 2
    assert capsys.readouterr().err == "A report needs jinja2\n"
    assert not (folder / "report.html").exists()
