"""The reference pages are what the registry says today."""

from __future__ import annotations

import importlib.util
import shutil
import sys
from pathlib import Path
from types import ModuleType

import pytest

DOCS = Path(__file__).parents[2] / "docs"


@pytest.fixture(scope="module")
def builder() -> ModuleType:
    """The program that writes docs/reference."""
    pytest.importorskip("matplotlib")
    sys.path.insert(0, str(DOCS / "builder"))
    try:
        spec = importlib.util.spec_from_file_location("reference_builder", DOCS / "builder" / "__main__.py")
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module
    finally:
        sys.path.remove(str(DOCS / "builder"))


def test_the_pages_are_up_to_date(builder: ModuleType) -> None:
    """Every page, table and picture in docs/reference is what the registry gives now."""
    assert builder.differences(DOCS / "reference") == []


def test_a_change_shows(builder: ModuleType, tmp_path: Path) -> None:
    """A page, a number, a picture or a file that is not as it would be written is named."""
    folder = tmp_path / "reference"
    shutil.copytree(DOCS / "reference", folder)
    page = folder / "inner" / "huber.md"
    page.write_text(page.read_text().replace("delta", "Delta"))
    numbers = folder / "pictures.json"
    numbers.write_text(numbers.read_text().replace('"inner_mse": {"loss": {"x": [-4.0', '"inner_mse": {"loss": {"x": [-4.1'))
    shutil.copy(folder / "images" / "inner_mae.png", folder / "images" / "inner_focal.png")
    (folder / "outer" / "gone.md").write_text("# gone\n")
    assert builder.differences(folder) == [
        "inner/huber.md: the text differs",
        "images/inner_focal.png: not drawn from the numbers in pictures.json",
        "inner_mse: its numbers differ from those in pictures.json",
        "outer/gone.md: belongs to no strategy",
    ]


def test_the_program_says_what_differs(
    builder: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With --check it fails and names what is missing; without it, it writes what --check then accepts."""
    monkeypatch.setattr(builder, "FOLDER", tmp_path)
    monkeypatch.setattr(builder, "available", lambda axis: ("mse",) if axis == "inner" else ())
    assert builder.main(["--check"]) == 1
    assert "inner/mse.md: the text differs" in capsys.readouterr().out
    assert builder.main([]) == 0
    assert builder.main(["--check"]) == 0
    assert capsys.readouterr().out == ""
