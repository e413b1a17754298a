"""The HTML file of a report: its content, its style and its scripts."""

from __future__ import annotations

import base64
import functools
import hashlib
import json
from collections.abc import Mapping
from importlib import resources
from typing import Any

import vl_convert
from jinja2 import Environment, StrictUndefined

__all__ = ["page"]

# In this order: each defines functions that later ones call.
SCRIPTS = ("text.js", "grid.js", "cell.js", "charts.js", "effects.js", "table.js", "report.js")


def page(content: Mapping[str, Any]) -> str:
    """Return the HTML text of a report.

    Jinja2 escapes every text of the study, except in the JSON block, in which ``<`` is escaped. The policy of the page
    allows its own scripts by their digest, and no address at all.

    Args:
        content: plain data as :func:`mtl_axes.report.content.content` returns it.
    """
    style = _read("report.css")
    scripts = [_drawing(), "\n".join(_read(name) for name in SCRIPTS)]
    policy = (
        f"default-src 'none'; script-src {' '.join(_digest(script) for script in scripts)}; style-src {_digest(style)}; "
        "base-uri 'none'; form-action 'none'"
    )
    # A `<` in a text could end the block or open a comment in it.
    data = json.dumps(content, ensure_ascii=False, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(_read("report.html")).render(
        content=content,
        policy=policy,
        style=style,
        scripts=scripts,
        data=data,
        as_json=functools.partial(json.dumps, indent=2, ensure_ascii=False),
    )


@functools.lru_cache(maxsize=1)
def _drawing() -> str:
    """Vega, Vega-Lite and Vega-Embed as one script that can be part of a page."""
    script = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;")
    # These occur only within strings and regular expressions, where a backslash changes nothing.
    return script.replace("</script", "<\\/script").replace("<!--", "<\\!--")


def _digest(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _read(name: str) -> str:
    return resources.files(__package__).joinpath(name).read_text(encoding="utf-8")
