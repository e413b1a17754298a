"""The outer axis: weights per task, one method a file."""

from __future__ import annotations

from collections.abc import Mapping

from mtl_axes.outer.aligned_mtl import AlignedMTL
from mtl_axes.outer.base import OuterWeighting
from mtl_axes.outer.cagrad import CAGrad
from mtl_axes.outer.clip import Clip
from mtl_axes.outer.config import ConFIG
from mtl_axes.outer.cosine_gate import CosineGate
from mtl_axes.outer.cov import CoV
from mtl_axes.outer.db_mtl import DBMTL
from mtl_axes.outer.dualproj import DualProj
from mtl_axes.outer.dwa import DWA
from mtl_axes.outer.ema import Ema
from mtl_axes.outer.fairgrad import FairGrad
from mtl_axes.outer.famo import FAMO
from mtl_axes.outer.fixed import Fixed
from mtl_axes.outer.floor import Floor
from mtl_axes.outer.gaba import GABA
from mtl_axes.outer.gls import GLS
from mtl_axes.outer.gradnorm import GradNorm
from mtl_axes.outer.gradvac import GradVac
from mtl_axes.outer.imtl_g import IMTLG
from mtl_axes.outer.imtl_l import IMTLL
from mtl_axes.outer.inverse_norm import InverseNorm
from mtl_axes.outer.lr_annealing import LRAnnealing
from mtl_axes.outer.metabalance import MetaBalance
from mtl_axes.outer.mgda import MGDA
from mtl_axes.outer.nash_mtl import NashMTL
from mtl_axes.outer.pcgrad import PCGrad
from mtl_axes.outer.relobralo import ReLoBRaLo
from mtl_axes.outer.rescaled import Rescaled
from mtl_axes.outer.rlw import RLW
from mtl_axes.outer.scale_invariant import ScaleInvariant
from mtl_axes.outer.slaw import SLAW
from mtl_axes.outer.softadapt import SoftAdapt
from mtl_axes.outer.stages import Stage
from mtl_axes.outer.stch import STCH
from mtl_axes.outer.uncertainty import Uncertainty
from mtl_axes.outer.upgrad import UPGrad
from mtl_axes.outer.uw_so import UWSO
from mtl_axes.outer.warmup import WarmUp
from mtl_axes.registry import hookimpl

__all__ = [
    "DBMTL",
    "DWA",
    "FAMO",
    "GABA",
    "GLS",
    "IMTLG",
    "IMTLL",
    "MGDA",
    "RLW",
    "SLAW",
    "STCH",
    "UWSO",
    "AlignedMTL",
    "CAGrad",
    "Clip",
    "CoV",
    "ConFIG",
    "CosineGate",
    "DualProj",
    "Ema",
    "FairGrad",
    "Fixed",
    "Floor",
    "GradNorm",
    "GradVac",
    "InverseNorm",
    "LRAnnealing",
    "MetaBalance",
    "NashMTL",
    "OuterWeighting",
    "PCGrad",
    "ReLoBRaLo",
    "Rescaled",
    "ScaleInvariant",
    "SoftAdapt",
    "Stage",
    "UPGrad",
    "Uncertainty",
    "WarmUp",
]


@hookimpl
def mtl_axes_outer_weightings() -> Mapping[str, type[OuterWeighting]]:
    """The built-in outer weightings, each under the name of its file."""
    built_in = [globals()[name] for name in __all__ if name not in ("OuterWeighting", "Stage")]
    return {weighting.__module__.rpartition(".")[2]: weighting for weighting in built_in}
