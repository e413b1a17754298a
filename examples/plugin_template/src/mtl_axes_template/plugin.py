"""The hooks, which the entry point of this distribution names: mappings from names to classes."""

from __future__ import annotations

from collections.abc import Mapping

from mtl_axes import InnerShape, OuterWeighting, hookimpl
from mtl_axes_template.shape import Tolerance
from mtl_axes_template.weighting import RMSNorm


@hookimpl
def mtl_axes_outer_weightings() -> Mapping[str, type[OuterWeighting]]:
    """The weightings of this distribution."""
    return {"rms_norm": RMSNorm}


@hookimpl
def mtl_axes_inner_shapes() -> Mapping[str, type[InnerShape]]:
    """The shapes of this distribution."""
    return {"tolerance": Tolerance}
