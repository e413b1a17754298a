"""The Python blocks of the README and of the pages in docs run as they are printed."""

from __future__ import annotations

import re
import runpy
import warnings
from pathlib import Path

import pytest
import torch._functorch.config as functorch_config

from mtl_axes import available, registry

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), *sorted((ROOT / "docs" / "api").glob("*.md"))]


def python_blocks(page: Path) -> str:
    """Return the Python blocks of a page as one program; other text becomes blank lines, so that errors keep their line."""
    lines, inside = [], False
    for line in page.read_text().splitlines():
        fence = line.startswith("```")
        inside = line.startswith("```python") if fence else inside
        lines.append(line if inside and not fence else "")
    return "\n".join(lines)


PROGRAMS = [page for page in PAGES if python_blocks(page).strip()]


@pytest.mark.parametrize(
    "page",
    [page if page.name == "README.md" else pytest.param(page, marks=pytest.mark.slow) for page in PROGRAMS],
    ids=lambda page: page.name,
)
def test_the_python_of_a_page_runs(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every Python block of a page runs, in order, in one namespace."""
    if page.stem == "compile" and not hasattr(functorch_config, "donated_buffer"):
        pytest.skip("this torch donates no buffers")
    if page.stem == "torchjd":
        pytest.importorskip("torchjd", reason="the bridge to TorchJD needs torchjd")
    source = tmp_path / (page.stem + ".py")
    source.write_text(python_blocks(page))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(registry, "_registry", registry.Registry())  # a page may register names
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        runpy.run_path(str(source), run_name="__main__")


def test_links_of_the_pages_lead_to_files() -> None:
    """A relative link in the README or in docs names a file that exists."""
    broken = []
    for page in PAGES:
        prose = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
        for target in re.findall(r"\]\(([^)#]+)[^)]*\)", prose):
            if not target.startswith(("http://", "https://")) and not (page.parent / target).exists():
                broken.append(f"{page.name}: {target}")
    assert not broken


def test_every_registered_name_is_listed() -> None:
    """No registered strategy is missing from the tables of all of them; their numbers are right there and in the README."""
    text = (ROOT / "docs" / "strategies.md").read_text()
    assert [name for axis in ("outer", "inner", "weight") for name in available(axis) if f"`{name}`" not in text] == []
    outer, inner, weight = (len(available(axis)) for axis in ("outer", "inner", "weight"))
    for page in (text, (ROOT / "README.md").read_text()):
        assert f"{outer} weightings, {inner} shapes and {weight} target weights" in page


@pytest.mark.parametrize("script", ["two_axes_numpy.py", "two_axes_torch.py"])
def test_the_four_cells_have_the_published_numbers(script: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Both two-axes examples print the eight numbers and two equal sides of the identity."""
    runpy.run_path(str(ROOT / "examples" / script), run_name="__main__")
    printed = capsys.readouterr().out
    for number in ("47.3750", "84.1150", "(0.001431, 0.998569)", "23.9910", "42.3610", "0.6738", "0.7264"):
        assert number in printed
    sides = re.findall(r"= (-?\d+\.\d+)", printed)
    assert sides == ["-18.3174", "-18.3174"]


def test_the_torch_example_has_the_model_that_it_names() -> None:
    """The dual-head model has 30 shared, 7 and 21 private parameters, and its own norms give C and D different weights."""
    example = runpy.run_path(str(ROOT / "examples" / "two_axes_torch.py"))
    model = example["DualHead"]()
    sizes = [sum(p.numel() for p in part.parameters()) for part in (model.trunk, model.rul_head, model.health_head)]
    assert sizes == [30, 7, 21]
    criteria = example["cells_of_a_model"]()
    assert criteria["A"].report.norms is None
    assert criteria["C"].report.weights[0] > criteria["D"].report.weights[0] > 0
