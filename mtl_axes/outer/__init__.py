"""The outer axis: weights per task, one method a file."""

from __future__ import annotations

from collections.abc import Mapping

from mtl_axes.outer.base import OuterWeighting
from mtl_axes.outer.dwa import DWA
from mtl_axes.outer.famo import FAMO
from mtl_axes.outer.fixed import Fixed
from mtl_axes.outer.gaba import GABA
from mtl_axes.outer.gradnorm import GradNorm
from mtl_axes.outer.uncertainty import Uncertainty
from mtl_axes.registry import hookimpl

__all__ = ["DWA", "FAMO", "GABA", "Fixed", "GradNorm", "OuterWeighting", "Uncertainty"]


@hookimpl
def mtl_axes_outer_weightings() -> Mapping[str, type[OuterWeighting]]:
    """The built-in outer weightings."""
    return {
        "dwa": DWA,
        "famo": FAMO,
        "fixed": Fixed,
        "gaba": GABA,
        "gradnorm": GradNorm,
        "uncertainty": Uncertainty,
    }
