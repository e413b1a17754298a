"""The reference pages are what the registry says today."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from types import ModuleType

import building
import pytest

pytestmark = pytest.mark.slow

DOCS = building.DOCS


@pytest.fixture(scope="module")
def builder() -> ModuleType:
    """The program that writes docs/reference."""
    pytest.importorskip("matplotlib")
    return building.program("reference_builder", "__main__.py")


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
    numbers.write_text(
        numbers.read_text().replace(
            '"inner_mse": {"loss over prediction": {"x": [-4.0', '"inner_mse": {"loss over prediction": {"x": [-4.1'
        )
    )
    shutil.copy(folder / "images" / "inner_mae.png", folder / "images" / "inner_focal.png")
    (folder / "outer" / "gone.md").write_text("# gone\n")
    assert builder.differences(folder) == [
        "inner/huber.md: the text differs",
        "images/inner_focal.png: not drawn from the numbers in pictures.json",
        "inner_mse: its numbers differ from those in pictures.json",
        "outer/gone.md: belongs to no strategy",
    ]


def rows(page: Path) -> dict[str, list[str]]:
    """The rows of the tables of a page by their first cell."""
    cells = [re.split(r" (?<!\\)\| ", line[2:-2]) for line in page.read_text().splitlines() if line.startswith("| ")]
    return {row[0]: row for row in cells}


@pytest.mark.parametrize("page", sorted((DOCS / "reference").rglob("*.md")), ids=lambda page: page.stem)
def test_prose_has_no_escapes(page: Path) -> None:
    """A bar is escaped within tables alone, and no mark-up of docstrings is left outside of examples."""
    text = re.sub(r"```pycon.*?```", "", page.read_text(), flags=re.DOTALL)
    assert not [line for line in text.splitlines() if "\\|" in line and not line.startswith("| ")]
    assert ":class:" not in text and not re.search(r"(?<!`)``(?!`)", text)


def test_a_paper_is_a_whole_citation() -> None:
    """The column of papers holds authors, title and year, and nothing cut in the middle or that is no paper."""
    table = rows(DOCS / "reference" / "README.md")
    papers = {name: row[-1].rstrip(" |") for name, row in table.items() if name.startswith("[")}
    for name, paper in papers.items():
        assert paper.count("(") == paper.count(")") and paper.count('"') % 2 == 0, name
        assert not paper or '"' in paper, name
    assert papers["[`gaba`](outer/gaba.md)"].endswith("chapters 17 to 19")
    assert papers["[`huber`](inner/huber.md)"] == 'P. J. Huber, "Robust Estimation of a Location Parameter", 1964'
    assert papers["[`failure_biased`](inner/failure_biased.md)"].endswith("chapters 14 and 21")
    assert papers["[`inverse_norm`](outer/inverse_norm.md)"] == ""


def test_what_follows_from_a_base_is_not_told_for_one() -> None:
    """The pages of stages say what is their base's; other pages name the state that is saved, and every cost."""
    table, folder = rows(DOCS / "reference" / "README.md"), DOCS / "reference" / "outer"
    assert table["[`clip`](outer/clip.md)"][2:7] == [
        "as its base",
        "its base's state",
        "free",
        "positive, around `inverse_norm`",
        "as its base",
    ]
    assert table["[`ema`](outer/ema.md)"][2:5] == [
        "as its base",
        "weights (K), its base's state",
        "1, around `inverse_norm`",
    ]
    assert table["[`uncertainty`](outer/uncertainty.md)"][2:4] == ["nothing", "log variance (K)"]
    assert table["[`reweighted`](inner/reweighted.md)"][2:5] == [
        "its base's kinds that its weight supports",
        "as its base",
        "as its base",
    ]
    assert rows(folder / "warmup.md")["cost"][1] == "as its base"
    assert "average inside (K)" in rows(folder / "gaba.md")["state"][1]
    assert "One more forward" in rows(folder / "famo.md")["cost"][1]
    assert "param_groups" in rows(folder / "uncertainty.md")["learned"][1]


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
