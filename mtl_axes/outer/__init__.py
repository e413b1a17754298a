"""The outer axis: weights per task, one method a file."""

from __future__ import annotations

from collections.abc import Mapping

from mtl_axes.outer.base import OuterWeighting
from mtl_axes.outer.cagrad import CAGrad
from mtl_axes.outer.dualproj import DualProj
from mtl_axes.outer.dwa import DWA
from mtl_axes.outer.fairgrad import FairGrad
from mtl_axes.outer.fixed import Fixed
from mtl_axes.outer.gaba import GABA
from mtl_axes.outer.gradnorm import GradNorm
from mtl_axes.outer.mgda import MGDA
from mtl_axes.outer.nash_mtl import NashMTL
from mtl_axes.outer.uncertainty import Uncertainty
from mtl_axes.outer.upgrad import UPGrad
from mtl_axes.registry import hookimpl

__all__ = [
    "DWA",
    "GABA",
    "MGDA",
    "CAGrad",
    "DualProj",
    "FairGrad",
    "Fixed",
    "GradNorm",
    "NashMTL",
    "OuterWeighting",
    "UPGrad",
    "Uncertainty",
]


@hookimpl
def mtl_axes_outer_weightings() -> Mapping[str, type[OuterWeighting]]:
    """The built-in outer weightings."""
    return {
        "cagrad": CAGrad,
        "dualproj": DualProj,
        "dwa": DWA,
        "fairgrad": FairGrad,
        "fixed": Fixed,
        "gaba": GABA,
        "gradnorm": GradNorm,
        "mgda": MGDA,
        "nash_mtl": NashMTL,
        "uncertainty": Uncertainty,
        "upgrad": UPGrad,
    }
