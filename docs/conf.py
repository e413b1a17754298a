"""The site of the documentation: ``sphinx-build -W --keep-going -n -b html docs build/site``.

Nothing is fetched, neither to build it nor to view it.
"""

from __future__ import annotations

import re
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from mtl_axes import __version__

if TYPE_CHECKING:
    from sphinx.application import Sphinx

project = "mtl_axes"
author = copyright = "The mtl_axes developers"
release = version = __version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode", "sphinx_copybutton"]
exclude_patterns = ["builder"]
# Formulas are indented or fenced text, and not Python.
highlight_language = "none"

smartquotes_action = "D"  # dashes; quotes are code more often than not
myst_heading_anchors = 4
# Under -n: what belongs to other libraries, values of Literal types, and aliases of types have no page here.
nitpick_ignore_regex = [
    ("py:.*", r"'.*'"),
    (
        "py:class",
        r"(mtl_axes\.adapters\.huggingface\.)?(AnyTrainer|Axis|Baseline|Batch|Cell|Collator|Direction|GradScaler|LRScheduler|Optimizer|Path|Tensor)",
    ),
    ("py:.*", r"(torch|torchjd|nn|collections|accelerate|transformers|lightning|pathlib)\..*"),
]
# The site can be built without the trainers, but for the signatures that come from their classes.
TRAINERS = ("accelerate", "lightning", "torchjd", "transformers")
autodoc_mock_imports = [name for name in TRAINERS if find_spec(name) is None]
autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
autodoc_preserve_defaults = True
python_display_short_literal_types = True
python_maximum_signature_line_length = 100
add_module_names = False
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True

html_theme = "furo"
pygments_dark_style = "github-dark"
html_title = f"mtl_axes {release}"
html_static_path = ["static"]
html_css_files = ["site.css"]
html_copy_source = False

# On GitHub the reference is a folder with its README; the site lists its pages in the sidebar.
REFERENCE_PAGES = """
```{toctree}
:hidden:
:glob:

outer/*
inner/*
weight/*
```
"""


# A relative link of Markdown that leads out of its folder: what is before the path, and the path.
UPWARD_LINK = re.compile(r"(\]\()((?:\.\./)+[^)#\s]+)")

# Names that a docstring describes together.
SEVERAL_NAMES = re.compile(r"^ +\w+(, \w+)+:")


def add_reference_pages(app: Sphinx, docname: str, source: list[str]) -> None:
    """Put the pages of the strategies beneath the page of the reference."""
    if docname == "reference/README":
        source[0] += REFERENCE_PAGES


def link_files(app: Sphinx, docname: str, source: list[str]) -> None:
    """Let links that leave ``docs`` lead to a copy of the file, and those to a folder to its README.md, as on GitHub."""

    def to_file(link: re.Match[str]) -> str:
        opening, target = link.groups()
        path = (Path(app.srcdir) / docname).parent / target
        if path.resolve().is_relative_to(app.srcdir):
            return link[0]
        return f"{opening}path:{target}/README.md" if path.is_dir() else f"{opening}path:{target}"

    source[0] = UPWARD_LINK.sub(to_file, source[0])


def keep_words(app: Sphinx, what: str, name: str, obj: object, options: object, lines: list[str]) -> None:
    """Keep napoleon from reading types into docstrings: ``What it is: more of it.`` of a property, ``mean, sd: of them``."""
    if what == "property":
        lines[0] = f": {lines[0]}"
    lines[:] = [SEVERAL_NAMES.sub(lambda found: found[0].replace(", ", ","), line) for line in lines]


def setup(app: Sphinx) -> None:
    """Register what is above."""
    app.connect("source-read", add_reference_pages)
    app.connect("source-read", link_files)
    app.connect("autodoc-process-docstring", keep_words, priority=400)  # before napoleon
