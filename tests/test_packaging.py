"""The wheel: what it installs, and what it requires."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import zipfile
from email import message_from_string
from email.message import Message
from pathlib import Path

import pytest

import mtl_axes

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built in a copy of the tree, so that the repository keeps no build folder."""
    tree, out = tmp_path_factory.mktemp("tree"), tmp_path_factory.mktemp("wheel")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tree / name)
    for name in ("mtl_axes", "adapters", "tests", "examples", "docs", "benchmarks"):
        if (ROOT / name).exists():
            shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
    script = "import sys; from setuptools import build_meta; print(build_meta.build_wheel(sys.argv[1]))"
    done = subprocess.run([sys.executable, "-c", script, str(out)], cwd=tree, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (path,) = out.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def names(wheel: Path) -> set[str]:
    """The files of the wheel."""
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


@pytest.fixture(scope="module")
def metadata(wheel: Path, names: set[str]) -> Message:
    """The METADATA of the wheel."""
    (name,) = (name for name in names if name.endswith(".dist-info/METADATA"))
    with zipfile.ZipFile(wheel) as archive:
        return message_from_string(archive.read(name).decode())


def test_the_only_top_level_name_is_mtl_axes(names: set[str]) -> None:
    """The wheel installs mtl_axes and nothing beside it: a folder ``adapters`` would overwrite another project's package."""
    assert {name.split("/")[0] for name in names} == {"mtl_axes", f"mtl_axes-{mtl_axes.__version__}.dist-info"}


def test_adapters_are_inside_the_package(names: set[str]) -> None:
    """adapters/ of the repository is installed as mtl_axes.adapters, whole."""
    here = {
        f"mtl_axes/adapters/{path.relative_to(ROOT / 'adapters').as_posix()}" for path in (ROOT / "adapters").rglob("*.py")
    }
    assert "mtl_axes/adapters/loop.py" in here
    assert here == {name for name in names if name.startswith("mtl_axes/adapters/")}


def test_every_module_and_the_typing_marker_are_in(names: set[str]) -> None:
    """Every module of the library, and py.typed, is in the wheel, also of a subpackage that is added later."""
    modules = {path.relative_to(ROOT).as_posix() for path in (ROOT / "mtl_axes").rglob("*.py")}
    assert modules | {"mtl_axes/py.typed"} <= names
    assert len(modules) > 20


def test_runtime_requirements(metadata: Message) -> None:
    """Installing the library installs torch and pluggy; everything else is an extra."""
    required = [line for line in metadata.get_all("Requires-Dist", []) if "extra ==" not in line]
    assert sorted(re.split(r"[^\w.-]", line)[0] for line in required) == ["pluggy", "torch"]
    assert {"examples", "test", "dev"} <= set(metadata.get_all("Provides-Extra", []))


def test_metadata_of_the_project(metadata: Message, names: set[str]) -> None:
    """The wheel carries the version of the package, its licence and the Python versions it is for."""
    assert metadata["Name"] == "mtl_axes"
    assert metadata["Version"] == mtl_axes.__version__
    assert metadata["License-Expression"] == "MIT"
    assert metadata["Requires-Python"] == ">=3.10"
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in names)


def test_the_wheel_works_where_the_sources_are_not(wheel: Path, tmp_path: Path) -> None:
    """Unpacked away from the repository, the library, its built-in names and its loop can be imported and used."""
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path)
    script = """
import sys
sys.path.insert(0, sys.argv[1])
import torch, mtl_axes
from mtl_axes.adapters.loop import Loop
assert mtl_axes.__file__.startswith(sys.argv[1]), mtl_axes.__file__
assert sys.modules["mtl_axes.adapters.loop"].__file__.startswith(sys.argv[1])
criterion = mtl_axes.compose("gaba", "failure_biased")
with torch.no_grad():
    print(criterion((torch.ones(2), torch.zeros(2, 3)), (torch.tensor([2.0, 200.0]), torch.tensor([0, 2]))).item() > 0)
"""
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "True"
