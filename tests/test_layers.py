"""The structure of the library, read from its imports: layers without circles, independent axes, few dependencies."""

from __future__ import annotations

import ast
import subprocess
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import mtl_axes

PACKAGE = Path(mtl_axes.__file__).parent
ADAPTERS = Path(__file__).parents[1] / "adapters"

# From the bottom to the top: a module may import its own layer and those before it.
LAYERS = (
    ("__about__", "errors", "options", "_text", "warning", "mode"),
    ("signals", "registry"),
    ("_state", "distributed", "describe"),
    ("inner", "outer"),
    ("probes",),
    ("tasks",),
    ("window",),
    ("telemetry",),
    ("after_step", "agreement", "binding"),
    ("checkpoint", "explain", "compiling"),
    ("training",),
    ("criterion",),
    ("composition",),
    ("testing",),
    ("history",),
    ("advise", "study"),
    ("report",),
    ("__init__",),
    ("cli",),
    ("__main__",),
    ("adapters",),
)
RANK = {name: rank for rank, names in enumerate(LAYERS) for name in names}
# `Study.report()` and `mtl_axes.report(path)` are two ways to one page.
UPWARDS = {("mtl_axes.study.grid", "mtl_axes.report")}
STANDARD = set(sys.stdlib_module_names) | {"__future__"}
# What extras install, for the parts that need it: imported within functions, or by a module that only those reach.
EXTRAS: dict[str, set[str]] = {
    "advise": {"matplotlib"},
    "history": {"matplotlib"},  # for its types
    "telemetry": {"matplotlib", "numpy"},
    "report": {"jinja2", "vl_convert"},
    "study": {"numpy", "scipy", "tqdm"},
}
TRAINERS = {
    "huggingface": {"transformers", "accelerate"},  # the Trainer is built on it
    "lightning": {"lightning", "pytorch_lightning"},
    "accelerate": {"accelerate"},
    "torchjd": {"torchjd"},
}


def modules(folder: Path, package: str) -> dict[str, Path]:
    """Python files by dotted name; a package has the name of its folder."""
    files = sorted(path for path in folder.rglob("*.py"))
    return {
        ".".join([package, *path.relative_to(folder).with_suffix("").parts]).removesuffix(".__init__"): path
        for path in files
    }


LIBRARY = modules(PACKAGE, "mtl_axes") | modules(ADAPTERS, "mtl_axes.adapters")


def imports(path: Path, *, typing_too: bool) -> set[str]:
    """Modules that a file imports anywhere, within functions too; ``from a import b`` gives a.b if that is a module."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
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
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                names.add(whole if whole in LIBRARY else node.module)
    return names


def layer(name: str) -> str:
    """The layer of a module inside mtl_axes."""
    parts = name.split(".")
    return parts[1] if len(parts) > 1 else "__init__"


def test_modules_import_downwards_and_not_in_circles() -> None:
    """Every module of the library is in a layer and imports its own layer or lower ones; no imports form a circle, even
    those within functions; no file of one axis imports the other."""
    assert {layer(name) for name in LIBRARY} == RANK.keys()
    graph = {
        name: {other for other in imports(path, typing_too=False) if other in LIBRARY} for name, path in LIBRARY.items()
    }
    upwards = [
        (name, other)
        for name, others in graph.items()
        for other in others
        if RANK[layer(other)] > RANK[layer(name)] and (name, other) not in UPWARDS
    ]
    assert not upwards
    between_axes = [
        (name, other)
        for name, path in LIBRARY.items()
        for other in imports(path, typing_too=True)
        if {layer(name), layer(other) if other in LIBRARY else ""} == {"inner", "outer"}
    ]
    assert not between_axes
    # A package that re-exports its modules is no part of a circle of theirs.
    packages = {name for name, path in LIBRARY.items() if path.name == "__init__.py"}
    try:
        TopologicalSorter({name: others - packages for name, others in graph.items()}).prepare()
    except CycleError as error:
        pytest.fail(f"modules import each other in a circle: {' -> '.join(error.args[1])}")


def test_modules_import_what_their_part_may_need() -> None:
    """The library imports the standard library, torch and pluggy; extras where they are asked for; an adapter its trainer
    and the public modules of the library."""
    for name, path in LIBRARY.items():
        names = imports(path, typing_too=True)
        roots = {imported.split(".")[0] for imported in names} - STANDARD - {"torch", "mtl_axes"}
        if layer(name) == "adapters":
            assert roots <= TRAINERS.get(name.rpartition(".")[2], {"tqdm"}), name
            private = [
                other for other in names for part in other.split(".") if part.startswith("_") and part != "__future__"
            ]
            assert not private, f"{name} imports {private}"
        else:
            assert roots <= {"pluggy"} | EXTRAS.get(layer(name), set()), name
            assert not any(imported.startswith("mtl_axes.adapters") for imported in names), name


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
