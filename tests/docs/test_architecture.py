"""The page on the architecture follows a real call."""

from __future__ import annotations

from types import ModuleType

import building
import pytest

pytest.importorskip("matplotlib", reason="the picture needs matplotlib")


@pytest.fixture(scope="module")
def architecture() -> ModuleType:
    """The program that draws the picture."""
    return building.program("architecture", "architecture.py")


def test_a_call_passes_the_stops_of_the_picture(architecture: ModuleType) -> None:
    """A training call passes every function of the picture in its order; with two of them exchanged it does not."""
    functions = architecture.functions_of_a_call()
    architecture.check(functions)
    with pytest.raises(LookupError, match=r"does not pass"):
        architecture.check(functions[::-1])
    assert "(images/architecture.png)" in (building.DOCS / "architecture.md").read_text(encoding="utf-8")


def test_every_module_is_on_the_page() -> None:
    """The table names every package and module of the library, except private and command-line ones."""
    page = (building.DOCS / "architecture.md").read_text(encoding="utf-8")
    package = building.DOCS.parent / "mtl_axes"
    names = {path.name for path in package.iterdir() if path.suffix == ".py" and not path.name.startswith("_")}
    left_out = {"mode.py", "warning.py", "describe.py", "distributed.py"}
    missing = [name for name in names - left_out if f"`{name}`" not in page and f"`{name.removesuffix('.py')}`" not in page]
    assert not missing
