"""What a report is made of: thinned, whole, and the same numbers as the results."""

from __future__ import annotations

import builtins
import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import simulated

from mtl_axes import compose
from mtl_axes.report import write_report
from mtl_axes.report.content import content
from mtl_axes.report.strategies import strategies
from mtl_axes.report.thinning import MOST, histories, predictions
from mtl_axes.study import Run, statistics


@pytest.fixture(scope="module")
def usual() -> Any:
    """A study and its content."""
    results = simulated.study()
    return results, content(results)


def embedded(path: Path) -> Any:
    """The data of a written report, as its page reads it."""
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', path.read_text(), re.DOTALL)
    assert found is not None
    return json.loads(found[1], parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))


def test_the_numbers_are_those_of_the_results(usual: Any) -> None:
    """Means, effects, fronts and verdicts of the report are what Results answers."""
    results, shown = usual
    for about in shown["metrics"]:
        name = about["name"]
        assert about["verdict"] == results.verdict(name)
        for cell, summary in zip(about["cells"], results.summary(name), strict=True):
            assert (results.outer[cell["cell"][0]], results.inner[cell["cell"][1]]) == (summary.outer, summary.inner)
            assert cell["n"] == summary.n
            assert (cell["mean"], cell["sd"]) == pytest.approx((summary.mean, summary.sd), rel=1e-5)
        families = {
            "compare": results.compare(name),
            "outer": results.main_effect(name, "outer"),
            "inner": results.main_effect(name, "inner"),
            "interactions": results.interactions(name),
        }
        for key, effects in families.items():
            assert [effect["label"] for effect in about[key]] == [effect.label for effect in effects]
            for effect, expected in zip(about[key], effects, strict=True):
                assert (effect["mean"], effect["low"], effect["high"]) == pytest.approx(
                    (expected.mean, *expected.interval), rel=1e-4
                )
                assert (effect["p"], effect["clear"]) == (
                    pytest.approx(expected.p_adjusted, rel=1e-3),
                    expected.p_adjusted < 0.05,
                )
                assert (effect["n"], effect["seeds_needed"]) == (expected.n, expected.seeds_needed)
                assert dict(effect["differences"]) == pytest.approx(dict(expected.differences), rel=1e-3)
                place = [results.outer.index(expected.outer[-1]), results.inner.index(expected.inner[-1])]
                assert effect["cell"] == (None if key in ("outer", "inner") else place)
                assert effect["against"] == expected.against
                assert f"{name}: {effect['words']}" == expected.in_words()
    front = {(results.outer[outer], results.inner[inner]) for outer, inner in shown["fronts"]["0,1"]}
    assert front == set(results.pareto("rmse", "nasa"))


def test_a_row_is_compared_within_itself(usual: Any) -> None:
    """A row is compared with its own cell in the reference's column, a column with its own cell in the reference's row; each
    is a family of its own, in which p is corrected."""
    results, shown = usual
    about = shown["metrics"][0]
    lines = [
        *((about["rows"][at], (level, "mse"), "outer") for at, level in enumerate(results.outer)),
        *((about["columns"][at], ("equal", shape), "inner") for at, shape in enumerate(results.inner)),
    ]
    assert len(lines) == len(about["rows"]) + len(about["columns"]) == 6
    for line, base, axis in lines:
        level = base[axis == "inner"]
        effects = [effect for effect in results.compare("rmse", base) if getattr(effect, axis)[-1] == level]
        assert len(effects) == 2
        assert [effect["label"] for effect in line] == [effect.label for effect in effects]
        corrected = statistics.holm(np.array([effect.p for effect in effects]))
        for effect, expected, p in zip(line, effects, corrected, strict=True):
            assert effect["mean"] == pytest.approx(expected.mean, rel=1e-5)
            assert (effect["p"], effect["clear"]) == (pytest.approx(p, rel=1e-3), p < 0.05)
            assert (effect["n"], effect["seeds_needed"]) == (expected.n, expected.seeds_needed)
            assert effect["cell"] == [results.outer.index(expected.outer[-1]), results.inner.index(expected.inner[-1])]


@pytest.mark.slow
def test_a_study_of_8_x_8_x_10_stays_under_5_mb(tmp_path: Path) -> None:
    """640 runs of two tasks with more history and predictions than are kept fit, and every run is still there."""
    results = simulated.study(
        {f"weighting {index}": "gaba" for index in range(8)},
        {f"shape {index}": "mse" for index in range(8)},
        10,
        steps=160,
        samples=120,
        metrics={"rmse": "min", "nasa": "min"},
    )
    path = write_report(results, tmp_path / "large.html")
    assert path.stat().st_size < 5_000_000
    runs = embedded(path)["runs"]
    assert len(runs) == 640
    for run in runs:
        assert len(run["history"]["step"]) >= 40
        assert set(run["history"]["weight"]) == {"rul", "health"}
        assert all(len(pair[0]) == len(pair[1]) >= 30 for pair in run["predictions"].values())


def test_histories_are_thinned_by_rows_that_were_recorded() -> None:
    """The first and the last row stay, no series is longer than 150, what was measured in every fourth step is not lost."""
    run = simulated.study(seeds=1, steps=1001).runs[0]
    (kept,) = histories([run])
    assert len(kept["step"]) == MOST
    assert (kept["step"][0], kept["step"][-1]) == (0, 1000)
    for index, step in enumerate(kept["step"]):
        assert kept["weight"]["rul"][index] == pytest.approx(run.history["weight/rul"][step], rel=1e-3)
        last_measured = run.history["norm/rul"][step - step % 4]
        assert kept["norm"]["rul"][index] == pytest.approx(last_measured, rel=1e-3)


def test_short_histories_stay_whole() -> None:
    """A history that fits is not thinned; missing and infinite values are None; a column of nothing is left out."""
    history = {"step": [10, 20, 30], "loss/a": [1.0, math.inf, None], "weight/a/b": [0.5, 0.25, 0.125], "norm/a": [None] * 3}
    (kept,) = histories([Run("equal", "mse", 0, history=history)])
    assert kept == {
        "step": [10, 20, 30],
        "loss": {"a": [1.0, None, None]},
        "weight": {"a/b": [0.5, 0.25, 0.125]},
        "floor": {},
    }


def test_predictions_are_thinned_over_the_range_of_true_values() -> None:
    """The smallest and the largest true values stay, pairs stay pairs, and what is not finite is left out, also where it is
    the first or the last of the samples, which are always kept."""
    true = [float(index % 1000) for index in range(3000)]
    predicted = [value + 1 for value in true]
    predicted[0], predicted[-1] = math.nan, math.inf
    run = Run("equal", "mse", 0, predictions={"rul": {"predicted": predicted, "true": true}})
    (kept,) = predictions([run])
    shown, truth = kept["rul"]
    assert len(truth) == MOST
    assert (truth[0], truth[-1]) == (0.0, 999.0)
    assert shown == [value + 1 for value in truth]


def test_nested_strategies_and_shared_shapes() -> None:
    """A stage is followed by its base, a reweighted shape by base and weight; tasks with one shape share an entry."""
    shape = {"name": "reweighted", "base": "mse", "weight": "ramp"}
    config = compose({"name": "ema", "base": "inverse_norm", "beta": 0.8}, {"a": shape, "b": "mae", "c": "mae"}).config()
    config["inner"] = dict(sorted(config["inner"].items(), reverse=True))  # in a file the order of keys is another one
    entries = strategies(config)
    assert [(entry["axis"], entry["name"], entry["tasks"]) for entry in entries] == [
        ("outer", "ema", []),
        ("outer", "inverse_norm", []),
        ("inner", "reweighted", ["a"]),
        ("inner", "mse", ["a"]),
        ("inner", "ramp", ["a"]),
        ("inner", "mae", ["b", "c"]),
    ]
    assert entries[0]["options"] == {"beta": "0.8"}
    assert all(entry["summary"] for entry in entries)


@pytest.mark.parametrize(
    ("config", "names"),
    [
        ({}, []),
        ({"outer": {"name": "of_a_plugin", "k": 2}}, ["of_a_plugin"]),
        ({"outer": "nowhere", "inner": None}, ["nowhere"]),
    ],
)
def test_strategies_that_are_not_known(config: dict[str, Any], names: list[str]) -> None:
    """Of strategies that are not installed here a report has the names and says so; without a configuration it has none."""
    entries = strategies(config)
    assert [entry["name"] for entry in entries] == names
    assert {entry["summary"] for entry in entries} <= {"Not registered where this report was made."}


def test_a_report_is_made_of_runs_without_a_configuration(tmp_path: Path) -> None:
    """Runs that have kept none are shown, with no strategy."""
    data = embedded(write_report(simulated.plain(), tmp_path / "report.html"))
    assert data["cells"] == [{"cell": [0, 0], "strategies": [], "config": {}}]
    assert data["runs"][0]["metrics"] == {"score": 1.25}


def test_values_that_are_not_finite_are_null(tmp_path: Path) -> None:
    """NaN and infinities, in metrics and in the configuration, leave the data readable by every JSON parser."""
    runs = (
        Run("equal", "mse", 0, metrics={"score": math.nan}, config={"bound": math.inf, "low": -math.inf, "at": math.nan}),
    )
    data = embedded(write_report(simulated.plain(runs=runs), tmp_path / "new" / "report.html"))
    assert data["runs"][0]["metrics"] == {"score": None}
    assert data["metrics"][0]["cells"][0]["not_finite"] == 1
    assert data["cells"][0]["config"] == {"bound": "inf", "low": "-inf", "at": "nan"}


def test_texts_that_are_no_unicode_are_written_by_number(tmp_path: Path) -> None:
    """An error may quote the name of a file that is no UTF-8; the report is written, and its data still hold the text."""
    runs = (Run("equal", "mse", 0, error="cannot read '\udcff.png'"),)
    results = simulated.plain(runs=(), failures=runs)
    path = write_report(results, tmp_path / "report.html")
    assert embedded(path)["failures"][0]["error"].endswith("cannot read '\udcff.png'")
    results.to_csv(tmp_path / "runs.csv")
    assert "cannot read '\\udcff.png'" in (tmp_path / "runs.csv").read_text(encoding="utf-8")


def test_the_page_holds_everything_and_no_address(tmp_path: Path) -> None:
    """Its policy names digests and nothing that could be loaded; no text of a study closes a script."""
    text = write_report(simulated.studies()["hostile"], tmp_path / "report.html").read_text()
    policy = re.search(r'Content-Security-Policy" content="(.*?)"', text)
    assert policy is not None
    assert "default-src 'none'" in policy[1].replace("&#39;", "'")
    assert "unsafe" not in policy[1]
    assert "http" not in policy[1]
    assert not re.search(r'<(?:script|link|img|iframe)[^>]*\b(?:src|href)="', text[: text.index("<script>")])
    assert text.count("<script>alert") == 0
    assert text.count("</script>") == 3


def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Without jinja2 or vl-convert the error says how to install them, and nothing is written."""
    real = builtins.__import__

    def without(name: str, *arguments: Any, **keywords: Any) -> Any:
        if name == "mtl_axes.report.page":
            raise ModuleNotFoundError("No module named 'vl_convert'", name="vl_convert")
        return real(name, *arguments, **keywords)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ImportError, match=r'needs vl_convert, which is not installed.*pip install "mtl_axes\[report\]"'):
        write_report(simulated.plain(), tmp_path / "report.html")
    assert list(tmp_path.iterdir()) == []
