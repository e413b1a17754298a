"""The command line: what it prints of every registered name, and what it says of names and plugins that do not work."""

from __future__ import annotations

import inspect
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest

import mtl_axes
from mtl_axes import available, compose, registry
from mtl_axes.cli import main
from mtl_axes.describe import REQUIRED, describe
from mtl_axes.errors import UnknownNameError
from mtl_axes.registry import Axis

AXES = get_args(Axis)
NAMES = [(axis, name) for axis in AXES for name in available(axis)]


class Failing:
    """An entry point whose import fails."""

    name, value, dist = "broken", "broken.plugin", None

    def load(self) -> object:
        raise ModuleNotFoundError("No module named 'a_library_that_is_not_there'")


@pytest.fixture
def broken(monkeypatch: pytest.MonkeyPatch) -> None:
    """A registry with a plugin that could not be loaded."""
    own = registry.Registry()
    own.load()
    own.add_entry_point(Failing(), "broken-plugin (broken = broken.plugin)")  # type: ignore[arg-type]
    monkeypatch.setattr(registry, "_registry", own)


def test_the_list_has_every_name(capsys: pytest.CaptureFixture[str]) -> None:
    """Every name of every axis is listed with what it needs or serves, and one line."""
    assert main(["list"]) == 0
    printed = capsys.readouterr()
    rows = [line.split() for line in printed.out.splitlines() if line.startswith("  ")]
    assert [row[0] for row in rows] == [name for _, name in NAMES]
    assert printed.err == ""
    for (axis, name), line in zip(NAMES, (line for line in printed.out.splitlines() if line.startswith("  ")), strict=True):
        about = describe(axis, name)
        assert line.endswith("  " + about.summary)
        assert (f" {about.claims['needs']} " if axis == "outer" else sorted(about.claims["kinds"])[0]) in line


@pytest.mark.parametrize("axis", AXES)
def test_the_list_of_one_axis(axis: Axis, capsys: pytest.CaptureFixture[str]) -> None:
    """--axis lists the names of one axis alone, under their number."""
    assert main(["list", "--axis", axis]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split()[0] == str(len(available(axis)))
    assert [line.split()[0] for line in lines[1:]] == list(available(axis))


@pytest.mark.parametrize("name", sorted({name for _, name in NAMES}))
def test_signature_and_docstring_of_a_name_are_shown(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """`show` prints every option with its default, and the whole docstring, on each axis that has the name."""
    assert main(["show", name]) == 0
    printed = capsys.readouterr().out
    axes = [axis for axis in AXES if name in available(axis)]
    assert printed.count(f"{name}: ") >= len(axes)
    for axis in axes:
        about = describe(axis, name)
        assert inspect.cleandoc(about.cls.__doc__ or "") in printed
        signature = next(line for line in printed.splitlines() if line.startswith(f"{about.cls.__name__}("))
        for option, default in about.options.items():
            assert option in signature if default is REQUIRED else f"{option}={default!r}" in signature


def test_a_name_of_several_axes_is_shown_on_all(capsys: pytest.CaptureFixture[str]) -> None:
    """A shape and a target weight may share a name."""
    assert main(["show", "failure_biased"]) == 0
    printed = capsys.readouterr().out
    assert "failure_biased: inner shape of mtl_axes.inner." in printed
    assert "failure_biased: target weight of mtl_axes.inner." in printed


def test_an_unknown_name_has_near_matches(capsys: pytest.CaptureFixture[str]) -> None:
    """An unknown name ends with status 2 and names that are near it, of all axes."""
    assert main(["show", "uncertanty"]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err == "No strategy is named 'uncertanty'. Did you mean 'uncertainty'? `mtl-axes list` shows all names.\n"


@pytest.mark.parametrize(
    ("written", "meant"), [("GABA", "gaba"), ("UPGrad", "upgrad"), ("DB-MTL", "db_mtl"), ("PCGrad", "pcgrad")]
)
def test_a_name_as_papers_write_it(written: str, meant: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Capitals and hyphens do not hide a near match, here and in compose()."""
    assert main(["show", written]) == 2
    assert f"Did you mean '{meant}'" in capsys.readouterr().err
    with pytest.raises(UnknownNameError, match=f"Did you mean '{meant}'"):
        compose(written)


@pytest.mark.parametrize("columns", [60, 80, 200])
def test_a_terminal_is_filled_to_its_edge(
    columns: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lines of the list are wrapped at the edge of a narrow terminal, and no word is lost."""
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", str(columns))
    assert main(["list"]) == 0
    listed = capsys.readouterr().out
    assert max(map(len, listed.splitlines())) <= min(columns, 100)
    assert all(" ".join(describe(axis, name).summary.split()) in " ".join(listed.split()) for axis, name in NAMES)


@pytest.mark.slow
def test_a_reader_that_stops_is_no_error() -> None:
    """`mtl-axes list | head` ends without a traceback."""
    command = [sys.executable, "-u", "-W", "error", "-m", "mtl_axes", "list"]
    root = Path(mtl_axes.__file__).parents[1]
    with subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as running:
        assert running.stdout is not None and running.stderr is not None
        running.stdout.close()
        assert running.stderr.read() == b""
    assert running.returncode == 1


@pytest.mark.usefixtures("broken")
def test_a_plugin_that_failed_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    """Whoever lists names, or asks for one that is unknown, learns of the plugin that might have had it."""
    line = (
        "Plugin broken-plugin (broken = broken.plugin) could not be loaded: "
        "ModuleNotFoundError: No module named 'a_library_that_is_not_there'\n"
    )
    assert main(["show", "nowhere"]) == 2
    assert capsys.readouterr().err.endswith(line)
    assert main(["list"]) == 0
    assert capsys.readouterr().err == line
    assert main(["plugins"]) == 0
    assert capsys.readouterr().out == line


def test_plugins_that_all_work(capsys: pytest.CaptureFixture[str]) -> None:
    """Where nothing failed, that is said."""
    assert main(["plugins"]) == 0
    assert capsys.readouterr().out == "Every installed plugin could be loaded.\n"


@pytest.mark.parametrize("arguments", [[], ["shew"], ["list", "--axis", "middle"], ["show"]])
def test_wrong_arguments(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """argparse says how the command is used."""
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    assert capsys.readouterr().err.startswith("usage: mtl-axes")


@pytest.mark.slow
def test_the_module_is_the_command() -> None:
    """``python -m mtl_axes`` prints the version, and passes its status on."""
    root = Path(mtl_axes.__file__).parents[1]
    run = [sys.executable, "-W", "error", "-m", "mtl_axes"]
    done = subprocess.run([*run, "--version"], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout == f"mtl_axes {mtl_axes.__version__}\n"
    assert subprocess.run([*run, "show", "nowhere"], cwd=root, capture_output=True, check=False).returncode == 2
