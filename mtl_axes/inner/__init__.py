"""The inner axis: shapes of the loss per sample, one family a file."""

from __future__ import annotations

from collections.abc import Mapping

from mtl_axes.inner.aft import AFT
from mtl_axes.inner.base import InnerShape, TargetWeight
from mtl_axes.inner.binary import ASL, Brier
from mtl_axes.inner.classification import BCE, CrossEntropy, Focal
from mtl_axes.inner.dense import Dice, Tversky
from mtl_axes.inner.imbalance import LDAM, BalancedSoftmax, LogitAdjusted
from mtl_axes.inner.margin import Hinge, MultiMargin, SquaredHinge
from mtl_axes.inner.multiclass import GCE, LabelSmoothing, Poly1, SymmetricCE
from mtl_axes.inner.ordinal import EMD2, Coral, Corn
from mtl_axes.inner.quality import QualityFocal, Varifocal
from mtl_axes.inner.ranking import ListNet, PairwiseLogistic
from mtl_axes.inner.regression import MAE, MSE, Asymmetric, Huber, Quantile
from mtl_axes.inner.reweighted import FailureBias, FailureBiased, Reweighted
from mtl_axes.inner.survival import Cox, DiscreteHazard
from mtl_axes.registry import hookimpl

__all__ = [
    "AFT",
    "ASL",
    "BCE",
    "EMD2",
    "GCE",
    "LDAM",
    "MAE",
    "MSE",
    "Asymmetric",
    "BalancedSoftmax",
    "Brier",
    "Coral",
    "Corn",
    "Cox",
    "CrossEntropy",
    "Dice",
    "DiscreteHazard",
    "FailureBias",
    "FailureBiased",
    "Focal",
    "Hinge",
    "Huber",
    "InnerShape",
    "LabelSmoothing",
    "ListNet",
    "LogitAdjusted",
    "MultiMargin",
    "PairwiseLogistic",
    "Poly1",
    "QualityFocal",
    "Quantile",
    "Reweighted",
    "SquaredHinge",
    "SymmetricCE",
    "TargetWeight",
    "Tversky",
    "Varifocal",
]


@hookimpl
def mtl_axes_inner_shapes() -> Mapping[str, type[InnerShape]]:
    """The built-in inner shapes."""
    return {
        "aft": AFT,
        "asl": ASL,
        "asymmetric": Asymmetric,
        "balanced_softmax": BalancedSoftmax,
        "bce": BCE,
        "brier": Brier,
        "coral": Coral,
        "corn": Corn,
        "cox": Cox,
        "cross_entropy": CrossEntropy,
        "dice": Dice,
        "discrete_hazard": DiscreteHazard,
        "emd2": EMD2,
        "failure_biased": FailureBiased,
        "focal": Focal,
        "gce": GCE,
        "hinge": Hinge,
        "huber": Huber,
        "label_smoothing": LabelSmoothing,
        "ldam": LDAM,
        "listnet": ListNet,
        "logit_adjusted": LogitAdjusted,
        "mae": MAE,
        "mse": MSE,
        "multi_margin": MultiMargin,
        "pairwise_logistic": PairwiseLogistic,
        "poly1": Poly1,
        "quality_focal": QualityFocal,
        "quantile": Quantile,
        "squared_hinge": SquaredHinge,
        "symmetric_ce": SymmetricCE,
        "tversky": Tversky,
        "varifocal": Varifocal,
    }


@hookimpl
def mtl_axes_target_weights() -> Mapping[str, type[TargetWeight]]:
    """The built-in target weights."""
    return {"failure_biased": FailureBias}
