"""The inner axis: shapes of the loss per sample, one family a file."""

from __future__ import annotations

from collections.abc import Mapping

from mtl_axes.inner.base import InnerShape, TargetWeight
from mtl_axes.inner.classification import BCE, CrossEntropy, Focal
from mtl_axes.inner.regression import MAE, MSE, Asymmetric, Huber, Quantile
from mtl_axes.inner.reweighted import FailureBias, FailureBiased, Reweighted
from mtl_axes.registry import hookimpl

__all__ = [
    "BCE",
    "MAE",
    "MSE",
    "Asymmetric",
    "CrossEntropy",
    "FailureBias",
    "FailureBiased",
    "Focal",
    "Huber",
    "InnerShape",
    "Quantile",
    "Reweighted",
    "TargetWeight",
]


@hookimpl
def mtl_axes_inner_shapes() -> Mapping[str, type[InnerShape]]:
    """The built-in inner shapes."""
    return {
        "asymmetric": Asymmetric,
        "bce": BCE,
        "cross_entropy": CrossEntropy,
        "failure_biased": FailureBiased,
        "focal": Focal,
        "huber": Huber,
        "mae": MAE,
        "mse": MSE,
        "quantile": Quantile,
    }


@hookimpl
def mtl_axes_target_weights() -> Mapping[str, type[TargetWeight]]:
    """The built-in target weights."""
    return {"failure_biased": FailureBias}
