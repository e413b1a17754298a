"""The outer axis: weights per task, one method a file."""

from __future__ import annotations

from collections.abc import Mapping

from mtl_axes.outer.base import OuterWeighting
from mtl_axes.outer.clip import Clip
from mtl_axes.outer.db_mtl import DBMTL
from mtl_axes.outer.dwa import DWA
from mtl_axes.outer.ema import Ema
from mtl_axes.outer.fixed import Fixed
from mtl_axes.outer.floor import Floor
from mtl_axes.outer.gaba import GABA
from mtl_axes.outer.gradnorm import GradNorm
from mtl_axes.outer.inverse_norm import InverseNorm
from mtl_axes.outer.lr_annealing import LRAnnealing
from mtl_axes.outer.metabalance import MetaBalance
from mtl_axes.outer.stages import Stage
from mtl_axes.outer.uncertainty import Uncertainty
from mtl_axes.outer.warmup import WarmUp
from mtl_axes.registry import hookimpl

__all__ = [
    "DBMTL",
    "DWA",
    "GABA",
    "Clip",
    "Ema",
    "Fixed",
    "Floor",
    "GradNorm",
    "InverseNorm",
    "LRAnnealing",
    "MetaBalance",
    "OuterWeighting",
    "Stage",
    "Uncertainty",
    "WarmUp",
]


@hookimpl
def mtl_axes_outer_weightings() -> Mapping[str, type[OuterWeighting]]:
    """The built-in outer weightings."""
    return {
        "clip": Clip,
        "db_mtl": DBMTL,
        "dwa": DWA,
        "ema": Ema,
        "fixed": Fixed,
        "floor": Floor,
        "gaba": GABA,
        "gradnorm": GradNorm,
        "inverse_norm": InverseNorm,
        "lr_annealing": LRAnnealing,
        "metabalance": MetaBalance,
        "uncertainty": Uncertainty,
        "warmup": WarmUp,
    }
