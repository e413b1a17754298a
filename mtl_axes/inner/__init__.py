"""The inner axis: shapes of the loss per sample, one family a file."""

from __future__ import annotations

from collections.abc import Mapping

from mtl_axes.inner.asymmetric import Expectile, Linex, Nasa
from mtl_axes.inner.balanced import BMC, FocalR
from mtl_axes.inner.barron import Barron
from mtl_axes.inner.base import InnerShape, TargetWeight
from mtl_axes.inner.classification import BCE, CrossEntropy, Focal
from mtl_axes.inner.deviance import Gamma, Poisson, Tweedie
from mtl_axes.inner.effective import ClassBalanced
from mtl_axes.inner.ensemble import CRPSEnsemble
from mtl_axes.inner.frequency import LDS, InverseFrequency
from mtl_axes.inner.gaussian import BetaNLL, CRPSGaussian, GaussianNLL
from mtl_axes.inner.msle import MSLE
from mtl_axes.inner.redescending import Cauchy, GemanMcClure, Tukey, Welsch
from mtl_axes.inner.regression import MAE, MSE, Asymmetric, Huber, Quantile
from mtl_axes.inner.reweighted import FailureBiased, Reweighted
from mtl_axes.inner.robust import LogCosh, PseudoHuber, SmoothL1
from mtl_axes.inner.weights import Exponential, FailureBias, Ramp, Step
from mtl_axes.registry import hookimpl

__all__ = [
    "BCE",
    "BMC",
    "LDS",
    "MAE",
    "MSE",
    "MSLE",
    "Asymmetric",
    "Barron",
    "BetaNLL",
    "CRPSEnsemble",
    "CRPSGaussian",
    "Cauchy",
    "ClassBalanced",
    "CrossEntropy",
    "Expectile",
    "Exponential",
    "FailureBias",
    "FailureBiased",
    "Focal",
    "FocalR",
    "Gamma",
    "GaussianNLL",
    "GemanMcClure",
    "Huber",
    "InnerShape",
    "InverseFrequency",
    "Linex",
    "LogCosh",
    "Nasa",
    "Poisson",
    "PseudoHuber",
    "Quantile",
    "Ramp",
    "Reweighted",
    "SmoothL1",
    "Step",
    "TargetWeight",
    "Tukey",
    "Tweedie",
    "Welsch",
]


@hookimpl
def mtl_axes_inner_shapes() -> Mapping[str, type[InnerShape]]:
    """The built-in inner shapes."""
    return {
        "asymmetric": Asymmetric,
        "barron": Barron,
        "bce": BCE,
        "beta_nll": BetaNLL,
        "bmc": BMC,
        "cauchy": Cauchy,
        "cross_entropy": CrossEntropy,
        "crps_ensemble": CRPSEnsemble,
        "crps_gaussian": CRPSGaussian,
        "expectile": Expectile,
        "failure_biased": FailureBiased,
        "focal": Focal,
        "focal_r": FocalR,
        "gamma": Gamma,
        "gaussian_nll": GaussianNLL,
        "geman_mcclure": GemanMcClure,
        "huber": Huber,
        "linex": Linex,
        "log_cosh": LogCosh,
        "mae": MAE,
        "mse": MSE,
        "msle": MSLE,
        "nasa": Nasa,
        "poisson": Poisson,
        "pseudo_huber": PseudoHuber,
        "quantile": Quantile,
        "reweighted": Reweighted,
        "smooth_l1": SmoothL1,
        "tukey": Tukey,
        "tweedie": Tweedie,
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
