"""The inner axis: shapes of the loss per sample, one family a file."""

from __future__ import annotations

from collections.abc import Mapping

from mtl_axes.inner.asymmetric import Expectile, Linex, Nasa
from mtl_axes.inner.balanced import BMC, FocalR
from mtl_axes.inner.base import InnerShape, TargetWeight
from mtl_axes.inner.binary import ASL, Brier, QualityFocal, Varifocal
from mtl_axes.inner.classification import BCE, CrossEntropy, Focal
from mtl_axes.inner.dense import Dice, Tversky
from mtl_axes.inner.deviance import MSLE, Gamma, Poisson, Tweedie
from mtl_axes.inner.distribution import BetaNLL, CRPSEnsemble, CRPSGaussian, GaussianNLL
from mtl_axes.inner.frequency import LDS, ClassBalanced, InverseFrequency
from mtl_axes.inner.imbalance import LDAM, BalancedSoftmax, LogitAdjusted
from mtl_axes.inner.margin import Hinge, MultiMargin, SquaredHinge
from mtl_axes.inner.multiclass import GCE, LabelSmoothing, Poly1, SymmetricCE
from mtl_axes.inner.ordinal import EMD2, Coral, Corn
from mtl_axes.inner.ranking import ListNet, PairwiseLogistic
from mtl_axes.inner.redescending import Barron, Cauchy, GemanMcClure, Tukey, Welsch
from mtl_axes.inner.regression import MAE, MSE, Asymmetric, Huber, Quantile
from mtl_axes.inner.reweighted import FailureBiased, Reweighted
from mtl_axes.inner.robust import LogCosh, PseudoHuber, SmoothL1
from mtl_axes.inner.survival import AFT, Cox, DiscreteHazard
from mtl_axes.inner.weights import Exponential, FailureBias, Ramp, Step
from mtl_axes.registry import hookimpl

__all__ = [
    "AFT",
    "ASL",
    "BCE",
    "BMC",
    "EMD2",
    "GCE",
    "LDAM",
    "LDS",
    "MAE",
    "MSE",
    "MSLE",
    "Asymmetric",
    "BalancedSoftmax",
    "Barron",
    "BetaNLL",
    "Brier",
    "CRPSEnsemble",
    "CRPSGaussian",
    "Cauchy",
    "ClassBalanced",
    "Coral",
    "Corn",
    "Cox",
    "CrossEntropy",
    "Dice",
    "DiscreteHazard",
    "Expectile",
    "Exponential",
    "FailureBias",
    "FailureBiased",
    "Focal",
    "FocalR",
    "Gamma",
    "GaussianNLL",
    "GemanMcClure",
    "Hinge",
    "Huber",
    "InnerShape",
    "InverseFrequency",
    "LabelSmoothing",
    "Linex",
    "ListNet",
    "LogCosh",
    "LogitAdjusted",
    "MultiMargin",
    "Nasa",
    "PairwiseLogistic",
    "Poisson",
    "Poly1",
    "PseudoHuber",
    "QualityFocal",
    "Quantile",
    "Ramp",
    "Reweighted",
    "SmoothL1",
    "SquaredHinge",
    "Step",
    "SymmetricCE",
    "TargetWeight",
    "Tukey",
    "Tversky",
    "Tweedie",
    "Varifocal",
    "Welsch",
]


@hookimpl
def mtl_axes_inner_shapes() -> Mapping[str, type[InnerShape]]:
    """The built-in inner shapes."""
    return {
        "aft": AFT,
        "asl": ASL,
        "asymmetric": Asymmetric,
        "balanced_softmax": BalancedSoftmax,
        "barron": Barron,
        "bce": BCE,
        "beta_nll": BetaNLL,
        "bmc": BMC,
        "brier": Brier,
        "cauchy": Cauchy,
        "coral": Coral,
        "corn": Corn,
        "cox": Cox,
        "cross_entropy": CrossEntropy,
        "crps_ensemble": CRPSEnsemble,
        "crps_gaussian": CRPSGaussian,
        "dice": Dice,
        "discrete_hazard": DiscreteHazard,
        "emd2": EMD2,
        "expectile": Expectile,
        "failure_biased": FailureBiased,
        "focal": Focal,
        "focal_r": FocalR,
        "gamma": Gamma,
        "gaussian_nll": GaussianNLL,
        "gce": GCE,
        "geman_mcclure": GemanMcClure,
        "hinge": Hinge,
        "huber": Huber,
        "label_smoothing": LabelSmoothing,
        "ldam": LDAM,
        "linex": Linex,
        "listnet": ListNet,
        "log_cosh": LogCosh,
        "logit_adjusted": LogitAdjusted,
        "mae": MAE,
        "mse": MSE,
        "msle": MSLE,
        "multi_margin": MultiMargin,
        "nasa": Nasa,
        "pairwise_logistic": PairwiseLogistic,
        "poisson": Poisson,
        "poly1": Poly1,
        "pseudo_huber": PseudoHuber,
        "quality_focal": QualityFocal,
        "quantile": Quantile,
        "reweighted": Reweighted,
        "smooth_l1": SmoothL1,
        "squared_hinge": SquaredHinge,
        "symmetric_ce": SymmetricCE,
        "tukey": Tukey,
        "tversky": Tversky,
        "tweedie": Tweedie,
        "varifocal": Varifocal,
        "welsch": Welsch,
    }


@hookimpl
def mtl_axes_target_weights() -> Mapping[str, type[TargetWeight]]:
    """The built-in target weights."""
    return {
        "class_balanced": ClassBalanced,
        "exponential": Exponential,
        "failure_biased": FailureBias,
        "inverse_frequency": InverseFrequency,
        "lds": LDS,
        "ramp": Ramp,
        "step": Step,
    }
