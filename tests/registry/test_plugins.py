"""Third-party distributions, as installed ones look on disk, read by a fresh process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest

COMMON = """
import torch
from mtl_axes import InnerShape, OuterWeighting, hookimpl

class Shape(InnerShape):
    kinds = frozenset({"regression"})
    def __init__(self, *, factor=1.0):
        super().__init__()
        self.factor = factor
    def forward(self, prediction, target, /):
        return self.factor * (prediction - target).abs()

class Weighting(OuterWeighting):
    needs = "losses"
    def forward(self, signals, /):
        return torch.full_like(signals.losses, 10.0)
"""

GOOD = """
@hookimpl
def mtl_axes_outer_weightings():
    return {"good_weighting": Weighting}

@hookimpl
def mtl_axes_inner_shapes():
    return {"good_shape": Shape}
"""

OBJECT = """
class Plugin:
    @hookimpl
    def mtl_axes_inner_shapes(self):
        return {"object_shape": Shape}

plugin = Plugin()
"""


def shapes(body: str) -> str:
    return f"@hookimpl\ndef mtl_axes_inner_shapes():\n    {body}\n"


# distribution -> (value of its entry point, source of its module)
DISTRIBUTIONS: dict[str, tuple[str, str]] = {
    # Names sort before and after the good ones: whatever the order, a failure must not stop what follows it.
    "aa-import-error": ("aa_import_error", "import a_library_that_is_not_there"),
    "ab-syntax-error": ("ab_syntax_error", "def broken(:"),
    "ac-no-attribute": ("ac_no_attribute:plugin", COMMON),
    "ba-hook-raises": ("ba_hook_raises", COMMON + shapes("raise RuntimeError('the hook failed')")),
    "bb-hook-returns-list": ("bb_hook_returns_list", COMMON + shapes("return [Shape]")),
    "bc-wrong-class": ("bc_wrong_class", COMMON + shapes("return {'wrong_class': Weighting}")),
    "bd-no-hook": ("bd_no_hook", COMMON + "def mtl_axes_inner_shapes():\n    return {'unmarked': Shape}\n"),
    "be-misspelt-hook": (
        "be_misspelt_hook",
        COMMON + "@hookimpl\ndef mtl_axes_inner_shape():\n    return {'misspelt': Shape}\n",
    ),
    "bf-wrong-name": ("bf_wrong_name", COMMON + shapes("return {7: Shape}")),
    "good-plugin": ("good_plugin", COMMON + GOOD),
    "object-plugin": ("object_plugin:plugin", COMMON + OBJECT),
    "thief": ("thief", COMMON + shapes("return {'mse': Shape, 'thief_shape': Shape}")),
    "twin-one": ("twin_one", COMMON + shapes("return {'twin': Shape}")),
    "twin-two": ("twin_two", COMMON + shapes("return {'twin': Shape}")),
    "zz-import-error": ("zz_import_error", "raise ValueError('not today')"),
}

SCRIPT = """
import json, sys, warnings
import torch
import mtl_axes
from mtl_axes import available, compose, create

found = {"early": "good_plugin" in sys.modules}
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    found["inner"], found["outer"] = available("inner"), available("outer")
found["warnings"] = [str(warning.message) for warning in caught]

def message(action):
    try:
        action()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "no error"

criterion = compose("good_weighting", {"name": "good_shape", "factor": 3.0})
prediction = torch.zeros(4, requires_grad=True)
total = criterion({"a": prediction}, {"a": torch.full((4,), 2.0)})
total.backward()
found["total"], found["gradient"] = total.item(), prediction.grad.tolist()
found["repr"], found["config"] = repr(criterion), criterion.config()
found["object"] = repr(create("inner", "object_shape", factor=2.0))
found["mse"] = type(create("inner", "mse")).__module__
found["thief"] = repr(create("inner", "thief_shape"))
found["unknown"] = message(lambda: compose(inner="nowhere"))
found["unknown outer"] = message(lambda: create("outer", "nowhere"))
found["twin"] = message(lambda: create("inner", "twin"))
found["option"] = message(lambda: create("inner", "good_shape", factr=1.0))
found["taken"] = message(lambda: mtl_axes.register_inner("good_shape")(type(create("inner", "mae"))))
print(json.dumps(found))
"""


def install(site: Path, name: str, value: str, source: str) -> None:
    """Write what an installed wheel leaves: a module, and a dist-info folder that announces its entry point."""
    (site / f"{value.partition(':')[0]}.py").write_text(source)
    info = site / f"{name.replace('-', '_')}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[mtl_axes]\n{name} = {value}\n")


def run(script: str, site: Path) -> Any:
    """Run a script in a fresh interpreter with ``site`` on its path, and return what it printed as JSON."""
    path = os.pathsep.join(filter(None, [str(site), os.environ.get("PYTHONPATH")]))
    done = subprocess.run(
        [sys.executable, "-c", dedent(script)],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What a process finds when good and bad distributions are installed side by side."""
    site = tmp_path_factory.mktemp("site")
    for name, (value, source) in DISTRIBUTIONS.items():
        install(site, name, value, source)
    result: dict[str, Any] = run(SCRIPT, site)
    return result


def failure(found: dict[str, Any], distribution: str) -> str:
    """The line about a distribution in the error of an unknown name."""
    lines = [line for line in found["unknown"].splitlines() if line.startswith(f"  plugin {distribution} (")]
    assert len(lines) == 1, found["unknown"]
    return str(lines[0])


def test_a_plugin_works_by_name(found: dict[str, Any]) -> None:
    """Strategies of an installed plugin are listed, composed by name with options, trained with and written as a config."""
    assert "good_weighting" in found["outer"] and "good_shape" in found["inner"]
    assert found["total"] == 60.0
    assert found["gradient"] == [-7.5] * 4
    probe = "Exact(rotate=False, reuse=True)"
    assert found["repr"] == f"MultiTaskCriterion(outer=Weighting(), inner={{'a': Shape(factor=3.0)}}, probe={probe})"
    assert found["config"]["outer"] == {"name": "good_weighting"}
    assert found["config"]["inner"] == {"name": "good_shape", "factor": 3.0}
    assert found["option"] == "OptionError: 'good_shape' takes the options factor. Found 'factr'. Did you mean 'factor'?"


def test_a_plugin_may_be_an_object(found: dict[str, Any]) -> None:
    """An entry point may name an object with hooks instead of a module."""
    assert found["object"] == "Shape(factor=2.0)"


def test_plugins_are_not_imported_before_a_name_is_looked_up(found: dict[str, Any]) -> None:
    """import mtl_axes imports no plugin."""
    assert found["early"] is False


@pytest.mark.parametrize(
    ("distribution", "reason"),
    [
        ("aa-import-error", "ModuleNotFoundError: No module named 'a_library_that_is_not_there'"),
        ("ab-syntax-error", "SyntaxError: invalid syntax"),
        ("ac-no-attribute", "AttributeError: module 'ac_no_attribute' has no attribute 'plugin'"),
        ("ba-hook-raises", "RuntimeError: the hook failed"),
        ("bb-hook-returns-list", "mtl_axes_inner_shapes() should return a mapping name -> class. Found [<class"),
        ("bc-wrong-class", "Strategy 'wrong_class' should be a subclass of mtl_axes.InnerShape. Found <class"),
        (
            "bd-no-hook",
            "it has no hook. Mark one of mtl_axes_outer_weightings, mtl_axes_inner_shapes, mtl_axes_target_weights",
        ),
        ("be-misspelt-hook", "'mtl_axes_inner_shape' is unknown. Use mtl_axes_outer_weightings or mtl_axes_inner_shapes"),
        ("bf-wrong-name", "A strategy's name should be a non-empty string. Found 7."),
        ("zz-import-error", "ValueError: not today"),
    ],
)
def test_a_broken_plugin_is_isolated_and_named(found: dict[str, Any], distribution: str, reason: str) -> None:
    """A plugin that fails hurts nobody else, and whoever asks for an unknown name learns which failed and why."""
    value = DISTRIBUTIONS[distribution][0]
    line = failure(found, distribution)
    assert line.startswith(f"  plugin {distribution} ({distribution} = {value}) could not be loaded: ")
    assert reason in line
    assert not {"wrong_class", "unmarked", "misspelt"} & set(found["inner"])


def test_the_error_of_an_unknown_name(found: dict[str, Any]) -> None:
    """The error of an unknown name lists the names that there are, plugins' included, and failures on either axis."""
    assert found["unknown"].startswith("UnknownNameError: No inner strategy is named 'nowhere'. Known: ")
    assert "good_shape" in found["unknown"].splitlines()[0] and "mse" in found["unknown"].splitlines()[0]
    assert "good-plugin (" not in found["unknown"]
    assert "plugin zz-import-error (" in found["unknown outer"]


def test_two_plugins_with_one_name(found: dict[str, Any]) -> None:
    """A name that two plugins provide is an error for whoever asks for it, which names both; other names work."""
    assert found["twin"].startswith("PluginError: The inner name 'twin' is defined by several plugins: ")
    assert "twin-one (twin-one = twin_one) and twin-two (twin-two = twin_two)" in found["twin"]
    assert "Uninstall one of them." in found["twin"]


def test_a_plugin_cannot_take_a_built_in_name(found: dict[str, Any]) -> None:
    """A plugin's class under a built-in name is ignored with one warning that names it; its other names are used."""
    assert found["mse"] == "mtl_axes.inner.regression"
    assert found["thief"] == "Shape(factor=1.0)"
    assert found["warnings"] == [
        "mtl_axes ignores 'mse' of plugin thief (thief = thief): the name 'mse' is reserved for the built-in strategy."
    ]


def test_a_decorator_cannot_take_a_plugins_name(found: dict[str, Any]) -> None:
    """A class in the process cannot replace one of a plugin."""
    assert found["taken"].startswith("PluginError: The inner name 'good_shape' is taken by good-plugin (")


def test_a_warning_that_became_an_error_stops_no_plugin(tmp_path: Path) -> None:
    """Under -W error the warning about a reserved name reaches the user once, and every plugin is there afterwards."""
    for name in ("good-plugin", "thief"):
        install(tmp_path, name, *DISTRIBUTIONS[name])
    install(tmp_path, "aa-thief", "aa_thief", COMMON + shapes("return {'mae': Shape, 'aa_shape': Shape}"))
    script = """
    import json, warnings
    warnings.simplefilter("error")
    from mtl_axes import available
    try:
        available("inner")
        first = "no error"
    except UserWarning as error:
        first = str(error)
    print(json.dumps([first, available("inner"), available("outer")]))
    """
    first, inner, outer = run(script, tmp_path)
    assert "reserved for the built-in strategy" in first
    assert {"good_shape", "thief_shape", "aa_shape"} <= set(inner)
    assert "good_weighting" in outer
