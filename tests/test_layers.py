"""The order of the layers and the independence of the axes, read from the imports."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import mtl_axes

PACKAGE = Path(mtl_axes.__file__).parent
ADAPTERS = Path(__file__).parents[1] / "adapters"

# Which layers a layer may import at the top of a module, beside itself.
BASE = {"errors", "options", "__about__", "_text"}
STRATEGY = BASE | {"signals", "_state", "registry"}
ALLOWED: dict[str, set[str]] = {
    "__about__": set(),
    "_text": set(),
    "errors": set(),
    "options": {"errors"},
    "signals": {"errors"},
    "_state": {"errors", "signals"},
    "registry": {"_text", "errors", "options"},
    "distributed": {"errors", "signals"},
    "logs": {"_state"},
    "uncompiled": set(),
    "describe": {"options", "errors", "registry"},
    "inner": STRATEGY,
    "outer": STRATEGY,
    "probes": STRATEGY | {"distributed"},
    "tasks": STRATEGY | {"distributed", "inner"},
    "window": STRATEGY | {"distributed", "logs", "outer", "probes"},
    "explain": STRATEGY | {"distributed", "inner", "outer", "probes", "tasks", "window"},
}
ALLOWED["rows"] = set()
ALLOWED["records"] = {"errors", "options", "rows"}
ALLOWED["criterion"] = ALLOWED["explain"] | {"explain", "logs", "records", "uncompiled"}
ALLOWED["composition"] = ALLOWED["criterion"] | {"criterion"}
ALLOWED["testing"] = ALLOWED["composition"] | {"composition", "describe"}
SEEING = ALLOWED["composition"] | {"composition", "describe"}
ALLOWED["history_plot"] = set()
ALLOWED["history"] = SEEING | {"history_plot", "records"}
ALLOWED["study"] = SEEING | {"history", "report"}
ALLOWED["report"] = SEEING | {"study"}
ALLOWED["advise"] = SEEING | {"history"}
ALLOWED["__init__"] = ALLOWED["testing"] | {"advise", "history", "study"}
ALLOWED["cli"] = {"__about__", "advise", "describe", "errors", "registry", "report", "study"}
ALLOWED["__main__"] = {"cli"}

OTHERS = {"torch", "pluggy"}
# What extras install, for the layers that need it: imported within functions, or by a module that only those reach.
EXTRAS: dict[str, set[str]] = {
    "advise": {"matplotlib"},
    "history": {"matplotlib"},  # for its types
    "history_plot": {"matplotlib", "numpy"},
    "report": {"jinja2", "vl_convert"},
    "study": {"numpy", "scipy", "tqdm"},
}
STANDARD = set(sys.stdlib_module_names)


def modules(folder: Path, package: str) -> dict[str, Path]:
    """Python files by dotted name."""
    files = sorted(path for path in folder.rglob("*.py") if "adapters" not in path.relative_to(folder).parts)
    return {".".join([package, *path.relative_to(folder).with_suffix("").parts]): path for path in files}


def imports(path: Path, *, typing_too: bool) -> set[str]:
    """Absolute names that a file imports anywhere; ``from a import b`` gives a and a.b."""
    tree = ast.parse(path.read_text())
    if not typing_too:
        for node in ast.walk(tree):
            if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
                node.body = []
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0 and node.module is not None, f"{path} imports relatively"
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


LIBRARY = modules(PACKAGE, "mtl_axes")


def layer(name: str) -> str:
    """The layer of a dotted name inside mtl_axes."""
    parts = name.split(".")
    return parts[1] if len(parts) > 1 else "__init__"


def own(names: set[str]) -> set[str]:
    """The layers among imported names; a name that is re-exported by the package itself counts as the package."""
    known = {layer(module) for module in LIBRARY} | {"adapters"}
    inside = {name for name in names if name == "mtl_axes" or name.startswith("mtl_axes.")}
    return {layer(name) if layer(name) in known else "__init__" for name in inside if name != "mtl_axes" or inside == {name}}


def test_there_is_something_to_check() -> None:
    """The files of the library are found, and every one of them belongs to a layer."""
    assert {"mtl_axes.criterion", "mtl_axes.inner.regression", "mtl_axes.outer.gaba", "mtl_axes.probes.exact"} <= set(
        LIBRARY
    )
    assert {layer(name) for name in LIBRARY} <= set(ALLOWED)


@pytest.mark.parametrize("name", LIBRARY)
def test_modules_import_lower_layers_only(name: str) -> None:
    """A module of the library imports its own layer and lower ones."""
    here = layer(name)
    found = own(imports(LIBRARY[name], typing_too=False)) - {here}
    assert found <= ALLOWED[here], f"{name} imports {found - ALLOWED[here]}"


@pytest.mark.parametrize(("axis", "other"), [("inner", "outer"), ("outer", "inner")])
def test_the_axes_do_not_know_each_other(axis: str, other: str) -> None:
    """No file of one axis imports the other, not even for its types."""
    files = [path for name, path in LIBRARY.items() if layer(name) == axis]
    assert len(files) > 2
    for path in files:
        assert other not in own(imports(path, typing_too=True)), path


@pytest.mark.parametrize("name", LIBRARY)
def test_the_library_imports_torch_and_pluggy_only(name: str) -> None:
    """Beside the standard library, mtl_axes imports torch and pluggy: no trainer, none of its adapters; numpy and what draws
    only where an extra is asked for."""
    roots = {imported.split(".")[0] for imported in imports(LIBRARY[name], typing_too=True)}
    assert roots <= STANDARD | OTHERS | {"mtl_axes"} | EXTRAS.get(layer(name), set())
    assert "adapters" not in own(imports(LIBRARY[name], typing_too=True))


def test_adapters_import_the_library_and_their_own_trainer() -> None:
    """An adapter reaches the library by its public modules, and imports no trainer but its own."""
    trainers = {
        "huggingface": {"transformers", "accelerate"},  # the Trainer is built on it
        "lightning": {"lightning", "pytorch_lightning"},
        "accelerate": {"accelerate"},
        "torchjd": {"torchjd"},
    }
    files = modules(ADAPTERS, "adapters")
    assert "adapters.loop" in files
    for name, path in files.items():
        found = imports(path, typing_too=True)
        roots = {imported.split(".")[0] for imported in found}
        mine = trainers.get(name.rpartition(".")[2], {"tqdm"})
        assert roots <= STANDARD | {"torch", "mtl_axes", "__future__"} | mine, path
        assert not any(part.startswith("_") for imported in found for part in imported.split(".") if part != "__future__"), (
            path
        )


def test_importing_the_library_imports_no_trainer() -> None:
    """After ``import mtl_axes`` no adapter, none of the libraries that adapters serve and none of the extras is loaded."""
    extras = sorted(set().union(*EXTRAS.values()) - {"numpy", "tqdm"})  # which torch loads itself
    script = (
        "import sys, mtl_axes; "
        "print(sorted({'transformers', 'lightning', 'accelerate', 'torchjd', 'mtl_axes.adapters', "
        f"*{extras}}} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
