"""The programs of examples/domains: each runs, says what it found, and stands on data of the structure that it promises."""

from __future__ import annotations

import importlib
import math
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType

import pytest
import torch

from mtl_axes import Results

pytestmark = pytest.mark.slow

FOLDER = Path(__file__).resolve().parents[2] / "examples" / "domains"
PROGRAMS = sorted(path.stem for path in FOLDER.glob("*.py") if path.stem != "common")
# What a few steps are enough for: a metric in which the best cell beats the trivial predictions.
LEARNED_SOON = {
    "climate": "temperature_rmse_k",
    "medical": "auc",
    "perception": "night_abs_rel",
    "recommender": "known_auc",
    "speech": "per",
}


@pytest.fixture(scope="module")
def printed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, list[str]]]:
    """The folders and the lines of all programs with --quick, which run side by side."""
    out = tmp_path_factory.mktemp("domains")

    def run(name: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, str(FOLDER / f"{name}.py"), "--quick", "--out", str(out / name)]
        return subprocess.run(
            command, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=False
        )

    found = {}
    with ThreadPoolExecutor() as pool:
        for name, done in zip(PROGRAMS, pool.map(run, PROGRAMS), strict=True):
            assert done.returncode == 0, done.stderr
            found[name] = out / name, done.stdout.splitlines()
    return found


@pytest.fixture
def program(monkeypatch: pytest.MonkeyPatch) -> object:
    """Import a program by name, as its folder sees it."""
    monkeypatch.syspath_prepend(str(FOLDER))

    def load(name: str) -> ModuleType:
        return importlib.import_module(name)

    return load


def figures(lines: list[str], metric: str) -> tuple[str, float, dict[str, float]]:
    """The direction of a metric, its value for the trivial predictions, and those of the cells, as they were printed."""
    start = next(place for place, line in enumerate(lines) if line.startswith(f"{metric} ("))
    rows = [line.rsplit(None, 1) for line in lines[start + 1 : start + 6]]
    direction = "min" if "lower" in lines[start] else "max"
    (_, trivial), *cells = rows
    return direction, float(trivial), {label.strip(): float(value) for label, value in cells}


def test_there_are_five() -> None:
    """The domains of the table are all here."""
    assert sorted(LEARNED_SOON) == PROGRAMS


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_program_can_be_read_in_one_sitting(name: str) -> None:
    """No program has more than 150 lines."""
    assert len((FOLDER / f"{name}.py").read_text(encoding="utf-8").splitlines()) <= 150


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_quick_run_ends_with_the_verdict_and_the_report(name: str, printed: dict[str, tuple[Path, list[str]]]) -> None:
    """The verdict says that one seed shows nothing, and the report is where the last line says."""
    folder, lines = printed[name]
    verdict = lines[lines.index("Verdict") + 1 : -2]
    assert any(line.startswith("  One seed cannot show a difference") for line in verdict), verdict
    assert lines[-1].startswith("Report: ")
    report = Path(lines[-1].removeprefix("Report: ").split("   ")[0])
    assert report == folder / "report.html" and "</html>" in report.read_text(encoding="utf-8")


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_quick_run_prints_what_it_measured_beside_a_trivial_prediction(
    name: str, printed: dict[str, tuple[Path, list[str]]]
) -> None:
    """Four cells per metric with the numbers of the runs; in one metric, the best of them already beats the trivial one."""
    folder, lines = printed[name]
    results = Results.load(folder)
    for metric, direction in results.metrics.items():
        printed_direction, trivial, cells = figures(lines, metric)
        assert printed_direction == direction and math.isfinite(trivial)
        measured = {f"{run.outer} x {run.inner}": run.metrics[metric] for run in results.runs}
        assert cells == pytest.approx(measured, abs=6e-5) and len(cells) == 4
        if metric == LEARNED_SOON[name]:
            best = min(cells.values()) if direction == "min" else max(cells.values())
            assert best < trivial if direction == "min" else best > trivial


def test_frames_of_the_night_are_dark_and_rare_and_hold_the_same_things(program: object) -> None:
    """Night is a twelfth of the training frames and a fifth as bright; cars, depth and markings are as by day."""
    perception = program("perception")
    frames = perception.frames(300, perception.NIGHT, 3)
    night = frames["night"]
    assert 0.03 < night.float().mean() < 0.15
    light = frames["image"].mean((1, 2, 3))
    assert light[night].max() < light[~night].min() and light[night].mean() < 0.3 * light[~night].mean()
    half = perception.frames(300, 0.5, 4)
    for name in ("centres", "lanes", "depth"):
        day, dark = (half[name][half["night"] == hour].float().mean() for hour in (False, True))
        assert day == pytest.approx(float(dark), rel=0.15), name


def test_depth_and_markings_follow_the_geometry_of_the_camera(program: object) -> None:
    """Depth falls row by row, on an empty road as f h / (v - horizon); a car is nearer than what lies behind it."""
    perception = program("perception")
    frames = perception.frames(100, 0.0, 5)
    metres = 10 * frames["depth"].exp()
    assert metres[:, 0].numpy() == pytest.approx(perception.FAR, rel=1e-5) and metres.min() > 1
    assert (metres.diff(dim=1) <= 1e-4).all(), "cars stand on the road"
    frame, row, column = frames["centres"].nonzero(as_tuple=True)
    assert len(frame) > 50 and (metres[frame, row, column] < metres[frame, row].amax(1) - 1).all()
    empty = ~frames["centres"].flatten(1).any(1)
    edge = metres[empty][:, :, 0]
    assert len(edge) > 10
    per_row = (perception.FOCAL * perception.CAMERA / edge).diff(dim=1)[(edge < perception.FAR - 1)[:, :-1]]
    assert per_row.numpy() == pytest.approx(2.0, abs=1e-3), "the grid of depth is every second row"
    assert 0.01 < frames["lanes"].float().mean() < 0.15


def test_treatment_follows_the_burden_and_is_rare(program: object) -> None:
    """Lesions lie in lungs; who needs treatment has more of them; the counts given to the loss are those of the data."""
    medical = program("medical")
    data = medical.patients(medical.TRAIN, 0)
    assert not (data["lesion"] & ~data["lungs"]).any()
    burden, treat = data["burden"], data["treat"]
    assert burden[treat].mean() > 3 * burden[~treat].mean() and (burden > 0).float().mean() > 2 * treat.float().mean()
    assert int(treat.sum()) == pytest.approx(medical.BALANCED["counts"][1], rel=0.25)
    assert float(data["drawn"].float().mean()) == pytest.approx(medical.DRAWN, abs=0.1)
    lungs, lesion = data["lungs"], data["lesion"]
    assert data["image"][lesion].mean() > 2 * data["image"][lungs & ~lesion].mean()


def test_clicks_lead_to_dwell_and_dwell_to_revenue(program: object) -> None:
    """Dwell and revenue only where clicked, buyers stay longer, revenue is mostly zero with a tail, new users are rare."""
    recommender = program("recommender")
    log, test = recommender.shop(2).values()
    click, seconds, revenue = log["click"], log["seconds"], log["revenue"]
    assert (seconds[click] > 0).all() and not seconds[~click].any() and not revenue[~click].any()
    bought = revenue > 0
    assert 0.01 < bought.float().mean() < 0.06 and seconds[bought].mean() > 1.3 * seconds[click & ~bought].mean()
    assert revenue.square().mean() > 20 * revenue.mean() ** 2
    assert float(revenue.mean()) == pytest.approx(float(log["expected"].mean()), rel=0.1)
    assert log["new"].float().mean() < 0.01 and test["new"].float().mean() == 0.5
    shown = torch.bincount(log["item"], minlength=recommender.ITEMS).sort(descending=True).values
    assert float(shown[0] / shown[9]) == pytest.approx(10, rel=0.2), "Zipf's law: the tenth item is shown a tenth as often"
