"""The pictures of the concepts page are those that its program draws."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import building
import pytest

matplotlib = pytest.importorskip("matplotlib", reason="the pictures need matplotlib")
import numpy as np  # noqa: E402
from matplotlib import image  # noqa: E402

pytestmark = pytest.mark.slow

DOCS = building.DOCS
# Mean difference of the pixels, of 1: lettering that another version of a font draws; a curve that moves gives more.
LETTERING = 0.004


@pytest.fixture(scope="module")
def concepts() -> ModuleType:
    """The program that draws them."""
    return building.program("concepts", "concepts.py")


def difference(one: Path, other: Path) -> float:
    """The mean difference of the colours of two pictures, 1 for pictures of different sizes."""
    # Without the opacity, which is 1 everywhere.
    first, second = (image.imread(path)[..., :3] for path in (one, other))
    return float(np.abs(first - second).mean()) if first.shape == second.shape else 1.0


def test_the_pictures_are_those_of_the_program(concepts: ModuleType, tmp_path: Path) -> None:
    """Each is shown on the page, and differs from a fresh one by no more than lettering does."""
    concepts.draw_all(tmp_path)
    drawn = sorted(path.name for path in tmp_path.iterdir())
    assert drawn == sorted(path.name for path in (DOCS / "images").glob("concepts_*.png"))
    for name in drawn:
        assert f"(images/{name})" in (DOCS / "concepts.md").read_text()
        assert difference(tmp_path / name, DOCS / "images" / name) < LETTERING, name


def test_a_curve_that_moves_shows(concepts: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With other norms the first picture is another one, and with a memory that is a little shorter the second."""
    compose = concepts.compose
    monkeypatch.setattr(concepts, "compose", lambda outer, **options: compose({**outer, "beta": 0.45}, **options))
    monkeypatch.setattr(concepts, "NORMS", concepts.NORMS.new_tensor([3.0, 1.0]))
    names = ("concepts_axes", "concepts_windows")
    monkeypatch.setattr(concepts, "PICTURES", {name: concepts.PICTURES[name] for name in names})
    concepts.draw_all(tmp_path)
    for name in names:
        assert difference(tmp_path / f"{name}.png", DOCS / "images" / f"{name}.png") > LETTERING, name
