"""The tables of what works with what stand on tests, and the pages of the trainers on short programs."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
DOCS = TESTS.parent / "docs"
PROGRAMS = ("huggingface", "lightning", "accelerate", "distributed", "compile")


def rows() -> list[list[str]]:
    """The rows of the tables that have a column of tests, without their heads, as lists of cells."""
    found, inside = [], False
    for line in (DOCS / "trainers.md").read_text().splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")] if line.startswith("|") else []
        inside = bool(cells) and (inside or cells[-1] == "tests")
        if inside and cells[-1] != "tests" and set(cells[0]) != {"-"}:
            found.append(cells)
    return found


def test_the_rows_are_found() -> None:
    """A table whose form changed would leave nothing to test: there are as many rows as when this was written, or more."""
    assert len(rows()) >= 46


@pytest.mark.parametrize("row", rows(), ids=lambda row: row[0])
def test_a_row_stands_on_tests_that_exist(row: list[str]) -> None:
    """Each row claims something, and names tests that are there under that name."""
    assert any(cell.startswith(("yes", "refused", "with", "a graph break")) for cell in row[1:-1])
    named = re.findall(r"`([^`]+)::([^`]+)`", row[-1])
    assert named
    for file, test in named:
        assert re.search(rf"^def {test}\(", (TESTS / file).read_text(), re.MULTILINE), f"{file}::{test}"


@pytest.mark.parametrize("name", PROGRAMS)
def test_the_program_of_a_page_is_short(name: str) -> None:
    """A trainer's page has one complete program of at most 40 lines."""
    programs = re.findall(r"```python\n(.*?)```", (DOCS / f"{name}.md").read_text(), re.DOTALL)
    assert len(programs) == 1 and len(programs[0].splitlines()) <= 40
    assert "import" in programs[0]
