"""An inner shape within a criterion: half precision, the sum, its gradient and the configuration."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, ClassVar, Final

import torch
from torch import Tensor, nn

from mtl_axes.composition import compose
from mtl_axes.inner import InnerShape
from mtl_axes.signals import Kind
from mtl_axes.testing.case import close, equal, nameable, numbers
from mtl_axes.testing.inner_case import KINDS, InnerCase, f64, per_kind, total_of

__all__ = ["CHECKS"]


def half(case: InnerCase) -> None:
    """A criterion computes shapes in float32 or wider, whatever the dtype of the model."""
    prediction, target = case.several(dtype=torch.float32)
    narrow = prediction.bfloat16()
    case.tell(narrow, target, " in bfloat16")
    total, gradient = total_of(case, narrow, target, None)
    wanted, _ = total_of(case, narrow.float(), target, None)
    claim = "should be computed in float32 by a criterion, for a prediction in bfloat16"
    case.require(total.dtype is torch.float32, claim, str(total.dtype))
    case.require(equal(total, wanted), claim, f"the loss {numbers(total)} and {numbers(wanted)} in float32")
    case.require(gradient.dtype is torch.bfloat16, claim, f"a gradient in {gradient.dtype}")


class _Plain(InnerShape):
    """A quarter of the squared prediction: a shape that goes with every prediction, to stand beside another one."""

    kinds: ClassVar[frozenset[Kind]] = frozenset(KINDS)

    def check(self, prediction: Tensor, target: Tensor) -> None:
        pass

    def forward(self, prediction: Tensor, target: Tensor, /) -> Tensor:
        extra = prediction.ndim - target.ndim
        square = prediction.square() / 4
        # Which dimension holds more than one number per entry does not matter for a mean over all of them.
        return (
            square.movedim(1, -1).mean(-1)
            if extra > 0 and square.movedim(1, -1).shape[:-1] == target.shape
            else (square.mean(-1) if extra > 0 else square)
        )


def in_criterion(case: InnerCase) -> None:
    """In a criterion total and gradient are those of the mean losses, and the two axes enter the total bilinearly."""
    prediction, target = case.several()
    case.claim = "should go into a criterion"
    scale = nn.Parameter(torch.ones((), dtype=f64))
    outputs = {
        "x": prediction * scale,
        "y": prediction.flatten(1).sum(1) * scale if prediction.ndim > 1 else prediction * scale,
    }
    targets = {"x": target, "y": torch.linspace(-1, 1, len(target), dtype=f64)}
    plain: dict[str, Any] = {"x": _Plain(), "y": "mse"}
    shaped: dict[str, Any] = {"x": case.build(), "y": "mse"}
    live = compose({"name": "gaba", "warmup": 0, "beta": 0.5}, shaped)
    whole = live(outputs, targets)
    assert live.report is not None
    weights = live.report.weights
    fixed = [0.3, 0.7]
    at_live = compose({"name": "fixed", "weights": weights.tolist()}, plain)(outputs, targets)
    first = compose({"name": "fixed", "weights": fixed}, plain)(outputs, targets)
    second = compose({"name": "fixed", "weights": fixed}, {**shaped, "x": case.build()})(outputs, targets)
    mean = case.build()(outputs["x"], target).mean()
    beside = _Plain()(outputs["x"], target).mean()
    left = (whole - at_live) - (second - first)
    right = (weights[0] - fixed[0]) * (mean - beside)
    size = 1 + float((mean.abs() + beside.abs()).detach())
    case.require(
        abs(float(left.detach()) - float(right.detach())) <= 1e-9 * size,
        "should enter a total bilinearly, (L_D - L_C) - (L_B - L_A) = (lambda - mu) (S - P)",
        f"{float(left.detach()):.12g} and {float(right.detach()):.12g}",
    )
    rest = (outputs["y"] - targets["y"]).square().mean()
    (found,) = torch.autograd.grad(whole, scale, retain_graph=True)
    (wanted,) = torch.autograd.grad(weights[0] * mean + weights[1] * rest, scale)
    case.require(
        close(found, wanted, 1e-8, 1e-12),
        "should have the weighted gradient of its mean as its part of the total's",
        f"{numbers(found)} and {numbers(wanted)}",
    )


def config(case: InnerCase) -> None:
    """A registered shape is named in the config of a criterion, plain data that builds the same criterion."""
    shape = case.build()
    if not nameable(shape):
        return
    prediction, target = case.several()
    criterion = compose("fixed", {"task": shape})
    case.claim = "should be built again from the config of a criterion"
    twin = compose(**json.loads(json.dumps(criterion.config())))
    case.require(twin.config() == criterion.config(), case.claim, repr(twin.shapes))
    left, right = (each((prediction,), (target,)) for each in (criterion, twin))
    case.require(equal(left, right), case.claim, f"the totals {numbers(left)} and {numbers(right)}")


CHECKS: Final[dict[str, Callable[[InnerCase], None]]] = {
    "half": per_kind(half),
    "in a criterion": per_kind(in_criterion),
    "config": per_kind(config),
}
