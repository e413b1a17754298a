"""The picture of a history: what is in it, and what is not."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from recording import attached

pytest.importorskip("matplotlib", reason="a picture needs matplotlib")

from matplotlib.figure import Figure
from matplotlib.image import imread

GABA = {"name": "gaba", "warmup": 2, "beta": 0.5, "floor": 0.3}
WEIGHT, LOSS, NORM, SHARE, COSINE = (
    "weight",
    "loss",
    "gradient norm on the shared part",
    "share of the weighted norms",
    "cosine between gradients",
)


def panels(figure: Figure) -> dict[str, Any]:
    return {axes.get_title(loc="left"): axes for axes in figure.axes if axes.axison}


def texts(axes: Any) -> list[str]:
    return [text.get_text() for text in axes.texts]


@pytest.mark.parametrize(
    ("outer", "options", "expected"),
    [
        ("fixed", {}, [WEIGHT, LOSS]),
        (GABA, {}, [WEIGHT, LOSS, NORM, SHARE]),
        ("upgrad", {"accumulate": 2}, [WEIGHT, LOSS, NORM, SHARE, COSINE]),
    ],
    ids=str,
)
def test_panels_without_data_are_left_out(outer: Any, options: dict[str, Any], expected: list[str]) -> None:
    """There is a panel for what was measured, and for nothing else; norms are on a log axis; every task is in the legend."""
    training, history = attached(outer, **options)
    figure = history.plot() if training.advance(9) else None
    assert figure is not None
    shown = panels(figure)
    assert list(shown) == expected
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["rul", "health", "wear"]
    if NORM in shown:
        assert shown[NORM].get_yscale() == "log"
    if COSINE in shown:
        assert "conflict" in texts(shown[COSINE])
        assert len(shown[COSINE].get_legend().get_texts()) == 3


def test_lines_are_the_columns() -> None:
    """The line of a task in the panel of weights, losses and norms has its steps and values, without those not measured."""
    training, history = attached(GABA)
    training.advance(9)
    columns, shown = history.columns(), panels(history.plot())
    for title, kind in ((WEIGHT, "weight"), (LOSS, "loss"), (NORM, "norm")):
        expected = [(s, v) for s, v in zip(columns["step"], columns[f"{kind}/health"], strict=True) if v is not None]
        assert any(list(zip(*line.get_data(), strict=True)) == expected for line in shown[title].lines), kind


def test_the_floor_and_skipped_windows_are_marked() -> None:
    """A band lies where a floor holds a weight, and only there, with the value at its end; skipped windows are counted
    beside the losses."""
    training, history = attached(GABA)
    training.advance(12, skip=(5, 6))
    shown, columns = panels(history.plot()), history.columns()
    held = [task for task in ("rul", "health", "wear") if any(columns[f"floor/{task}"])]
    assert held
    bands = [line for line in shown[WEIGHT].lines if line.get_linewidth() == 7]
    ends = []
    for task, band in zip(held, bands, strict=True):
        rows = zip(columns["step"], columns[f"weight/{task}"], columns[f"floor/{task}"], strict=True)
        expected = [(step, weight) for step, weight, floor in rows if floor == 1]
        assert 0 < len(expected) < len(columns["step"])
        drawn = [(step, weight) for step, weight in zip(*band.get_data(), strict=True) if not math.isnan(weight)]
        assert drawn == expected
        ends.append(f"held by the floor: {expected[-1][1]:.3g}")
    # Tasks that one floor holds have one weight, and one note.
    assert texts(shown[WEIGHT]) == list(dict.fromkeys(ends))
    assert "| 2 skipped" in texts(shown[LOSS])
    training, history = attached("fixed")
    training.advance(3)
    shown = panels(history.plot())
    assert texts(shown[WEIGHT]) == texts(shown[LOSS]) == []


@pytest.mark.filterwarnings("ignore:.* measures 7 tasks in every window:UserWarning")
def test_many_rows_and_pairs_stay_legible() -> None:
    """Of many rows medians are drawn, and of many pairs those that conflict most are named; names are shown as they are."""
    names = ["_a", "$b$", *(f"task {at}" for at in range(5))]
    training, history = attached("mgda", kinds=dict.fromkeys(names, "regression"))
    generator = torch.Generator().manual_seed(0)
    for _ in range(301):
        theta = torch.randn(20, generator=generator, requires_grad=True)
        directions = torch.randn(len(names), 20, generator=generator)
        losses = {name: (theta @ direction).exp() for name, direction in zip(names, directions, strict=True)}
        training.criterion.combine(losses)
    figure = history.plot()
    shown = panels(figure)
    pairs = [text.get_text() for text in shown[COSINE].get_legend().get_texts()]
    assert len(pairs) == 6 and pairs[-1] == "16 other pairs"
    means = {name: sum(v) / len(v) for name, v in history.columns().items() if name.startswith("cosine/")}
    least = min(means, key=lambda name: means[name]).removeprefix("cosine/").removeprefix("_").replace("$", r"\$")
    assert pairs[0].strip().removeprefix("_") == least
    assert [text.get_text() for text in figure.legends[0].get_texts()][:3] == [" _a", r"\$b\$", "task 0"]
    assert {len(line.get_xdata()) for line in shown[WEIGHT].lines} == {301, 100, 0}


def test_a_picture_is_written_and_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """plot(path) writes a picture of the kind that its ending names, into a new folder; a notebook gets a PNG, and where
    there is nothing to draw or to draw with, the text."""
    training, history = attached(GABA)
    assert history._repr_png_() is None
    training.advance(4)
    history.plot(tmp_path / "new" / "history.png")
    history.plot(tmp_path / "history.svg")
    pixels = imread(tmp_path / "new" / "history.png")
    assert pixels.shape[0] > 500 and pixels.shape[1] > 1000
    assert (tmp_path / "history.svg").read_text().startswith("<?xml")
    shown = history._repr_png_()
    assert shown is not None and shown.startswith(b"\x89PNG")
    monkeypatch.setitem(sys.modules, "mtl_axes.telemetry.history_plot", None)
    with pytest.raises(ImportError, match=r"mtl_axes\[report\]"):
        history.plot()
    assert history._repr_png_() is None
