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
    """The built-in outer weightings."""
    return {
        "aligned_mtl": AlignedMTL,
        "cagrad": CAGrad,
        "clip": Clip,
        "config": ConFIG,
        "cosine_gate": CosineGate,
        "cov": CoV,
        "db_mtl": DBMTL,
        "dualproj": DualProj,
        "dwa": DWA,
        "ema": Ema,
        "fairgrad": FairGrad,
        "famo": FAMO,
        "fixed": Fixed,
        "floor": Floor,
        "gaba": GABA,
        "gls": GLS,
        "gradnorm": GradNorm,
        "gradvac": GradVac,
        "imtl_g": IMTLG,
        "imtl_l": IMTLL,
        "inverse_norm": InverseNorm,
        "lr_annealing": LRAnnealing,
        "metabalance": MetaBalance,
        "mgda": MGDA,
        "nash_mtl": NashMTL,
        "pcgrad": PCGrad,
        "relobralo": ReLoBRaLo,
        "rescaled": Rescaled,
        "rlw": RLW,
        "scale_invariant": ScaleInvariant,
        "slaw": SLAW,
        "softadapt": SoftAdapt,
        "stch": STCH,
        "uncertainty": Uncertainty,
        "upgrad": UPGrad,
        "uw_so": UWSO,
        "warmup": WarmUp,
    }
