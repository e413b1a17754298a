"""A plugin that cannot be imported: its dependency is not installed."""

from __future__ import annotations

import a_library_that_is_not_there

from mtl_axes import hookimpl


@hookimpl
def mtl_axes_inner_shapes() -> dict[str, type]:
    """A shape that can never be loaded."""
    return {"never": a_library_that_is_not_there.Never}
