"""What is shown: a text of 100 columns and a picture, in situations that differ."""

from __future__ import annotations

import builtins
import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from advised import Engine, engine_batches, linear, spread
from torch import nn

from mtl_axes import OuterWeighting, Signals, compose
from mtl_axes.advise import Advice, advise
from mtl_axes.errors import MtlAxesError

SOME = ("fixed", "uncertainty", "gaba", "upgrad")


def many_tasks() -> Advice:
    """Ten tasks with long and odd names, one of them without gradient, one absent, one not finite."""
    names = [f"a task with a long name, number {index} $x_{index}$ <b>" for index in range(10)]
    weight = nn.Parameter(torch.ones(12, dtype=torch.float64))

    def step(batch: torch.Tensor) -> dict[str, torch.Tensor | None]:
        losses: dict[str, torch.Tensor | None] = {
            name: 3 + 10.0 ** (index / 2) * (weight * row).sum()
            for index, (name, row) in enumerate(zip(names, batch, strict=True))
        }
        losses[names[3]] = (0 * weight).sum()
        losses[names[4]] = None
        losses[names[5]] = (math.nan * weight).sum()
        return losses

    batches = [torch.randn(10, 12, dtype=torch.float64) for _ in range(4)]
    return advise(compose(tasks=names), step, batches, candidates=SOME, primary=names[8], seconds=30)


class Nameless(OuterWeighting):
    """A weighting that is not registered, and so is no candidate."""

    def forward(self, signals: Signals, /) -> torch.Tensor:
        return torch.ones_like(signals.losses)


SITUATIONS = {
    "imbalance": lambda: advise(compose("gaba", "failure_biased"), Engine(), engine_batches(), candidates=SOME, seconds=30),
    "balanced": lambda: linear(spread([[1.0, 0.2, 0.0], [0.8, 0.9, 0.1], [0.3, 0.4, 0.8]]), candidates=SOME),
    "conflict": lambda: linear(spread([[1.0, 0.0], [-2.0, 1.5]], noise=0.2), candidates=SOME),
    "one task": lambda: linear([[[1.0, 0.5]]] * 3, candidates=SOME),
    "not measured": lambda: linear([[[math.nan, 0.0], [math.nan, 1.0]]] * 2, candidates=SOME),
    "nothing pulls": lambda: linear([[[0.0, 0.0], [0.0, 0.0]]] * 3, candidates=SOME),
    "no candidates": lambda: linear(
        spread([[1.0, 0.2], [0.8, 0.9]]), criterion=compose(Nameless(), tasks=["a", "b"]), candidates=[]
    ),
    "many tasks": many_tasks,
}


@pytest.fixture(scope="module", params=SITUATIONS)
def advice(request: pytest.FixtureRequest) -> Advice:
    """Advice in one of the situations."""
    torch.manual_seed(0)
    return SITUATIONS[request.param]()  # type: ignore[no-untyped-call, no-any-return]


def test_the_text_fits_into_a_terminal(advice: Advice) -> None:
    """No line is longer than 100 columns, and a section is there exactly where it has something to say, in this order."""
    text = str(advice)
    sections = {
        "Losses": True,
        "Gradients on the shared part": bool(advice.norms),
        "If losses and gradients stayed as they are": bool(advice.candidates),
        "Time of a step (forward, criterion, backward) relative to the plain weighted sum": True,
        "What these batches cannot show": True,
        "A study that can": True,
    }
    # A heading stands at the left, without the colon of a finding.
    headings = [line for line in text.splitlines() if line in sections]
    assert headings == [heading for heading, there in sections.items() if there]
    assert text.count("\nRecommendation [") == 1 and text.count("\nAlso [") == len(advice.findings) - 1
    assert max(map(len, text.splitlines())) <= 100
    joined = " ".join(text.split())
    assert joined.startswith("Advice on")
    for finding in advice.findings:
        for part in (finding.says, finding.because, finding.source, finding.evidence):
            assert " ".join(part.split()) in joined
    for part in advice.unknown:
        assert part in joined
    assert " ".join(advice.code.split()) in joined
    assert not re.search(r"\bnan\b|\binf\b|None", text)


@pytest.mark.slow
def test_the_picture_is_drawn(advice: Advice, tmp_path: Path) -> None:
    """The picture has its four panels, in every situation, and is saved where it is asked to."""
    figure = advice.plot(tmp_path / "advice.png")
    titles = [axes.get_title() for axes in figure.axes]
    assert sum(bool(title) for title in titles) == 4
    assert (tmp_path / "advice.png").stat().st_size > 10_000
    assert advice.recommendation.rule in figure.get_suptitle()
    assert not re.search(r"(?<!\\)\$", figure.get_suptitle())


def test_the_picture_shows_the_numbers() -> None:
    """Bars and labels of the picture are those of the fields."""
    found = SITUATIONS["conflict"]()  # type: ignore[no-untyped-call]
    norms, cosines, shares, costs = (axes for axes in found.plot().axes if axes.get_title())
    assert [label.get_text().splitlines()[0] for label in norms.get_xticklabels()] == ["a", "b"]
    drawn = [line.get_ydata().tolist() for line in norms.get_lines()]
    assert drawn == [list(norm.values) for norm in found.norms]
    assert f"{found.cosines[0].mean:+.2f}" in cosines.texts[0].get_text()
    first = found.candidates[0]
    assert shares.patches[0].get_width() == pytest.approx(first.shares["a"])
    ratios = [cost.ratio for cost in found.costs if cost.ratio is not None]
    assert [patch.get_width() for patch in costs.patches] == pytest.approx(ratios)


def test_numbers_of_the_text_are_those_of_the_fields() -> None:
    """The text names the ratio, the cosine, the weights and the costs that the fields hold."""
    found = linear(spread([[500.0, 0.0], [0.6, 0.8]], count=5), candidates=["gaba"])
    text = str(found)
    assert "ratio  a / b: 500 (500 to 500 over the batches), which is 25 times" in text
    assert "cosine a, b: +0.60 (sd 0.00), negative in 0% of the batches" in text
    gaba = next(one for one in found.candidates if one.label == "gaba")
    assert f"{gaba.weights['a']:.4f} / {gaba.weights['b']:.4f}" in text
    assert f"{gaba.shares['a']:.1%} / {gaba.shares['b']:.1%}" in text
    assert "gaba: at the floor: a" in text
    cost = next(cost for cost in found.costs if cost.label == "gaba")
    assert any(line.split()[:2] == ["gaba", f"{cost.ratio:.2f}"] for line in text.splitlines())


def test_without_matplotlib_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """The error names what to install, and the text needs none of it."""
    found = linear([[[1.0, 0.0], [0.0, 1.0]]] * 3, candidates=[])
    before = builtins.__import__

    def missing(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.startswith("matplotlib"):
            raise ModuleNotFoundError(name)
        return before(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(MtlAxesError, match=r"pip install 'mtl_axes\[report\]'"):
        found.plot()
    assert str(found)
