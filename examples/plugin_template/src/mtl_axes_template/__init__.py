"""Two strategies for mtl_axes: the weighting ``rms_norm`` and the shape ``tolerance``."""

from __future__ import annotations

from mtl_axes_template.shape import Tolerance
from mtl_axes_template.weighting import RMSNorm

__all__ = ["RMSNorm", "Tolerance"]
