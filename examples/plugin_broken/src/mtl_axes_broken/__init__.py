"""A plugin that cannot be imported: what it depends on is not installed."""

from __future__ import annotations

import a_library_that_is_not_there

from mtl_axes import hookimpl


@hookimpl
def mtl_axes_inner_shapes() -> dict[str, type]:
    """A shape that nobody will ever see."""
    return {"never": a_library_that_is_not_there.Never}
