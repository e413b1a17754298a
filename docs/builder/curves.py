"""The numbers that the pictures of the reference show."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from mtl_axes import InnerShape, OuterWeighting, Signals, TargetWeight, create
from mtl_axes.describe import Description

POINTS = 81
# Significant digits of the numbers.
DIGITS = 4


@dataclass
class Panel:
    """One set of axes: lines by label, and how they are drawn."""

    title: str
    xlabel: str
    x: list[float]
    lines: dict[str, list[float]]
    log: bool = False
    share: bool = False


@dataclass
class Picture:
    """The content of a picture: one or two panels and a caption."""

    caption: str
    panels: list[Panel] = field(default_factory=list)

    def numbers(self) -> dict[str, Any]:
        """Return the drawn numbers, rounded."""
        return {
            f"{panel.title} over {panel.xlabel}": {
                "x": [rounded(x) for x in panel.x],
                **{k: [rounded(y) for y in v] for k, v in panel.lines.items()},
            }
            for panel in self.panels
        }


def rounded(value: float) -> float | str:
    """Return a number rounded to DIGITS; a non-finite one as a string, because JSON has none."""
    return float(f"{value:.{DIGITS}g}") + 0.0 if math.isfinite(value) else str(value)


# Options that show more than a strategy's example options.
SHOWN: dict[str, dict[str, Any]] = {
    "inner_asymmetric": {"over": 3.0},
    "inner_discrete_hazard": {"edges": (1.0, 2.0, 4.0)},
    "inner_expectile": {"tau": 0.2},
    "inner_quantile": {"q": 0.2},
    "inner_reweighted": {"base": "mae", "weight": "failure_biased"},
    "outer_ema": {"base": "inverse_norm", "beta": 0.95},
    "outer_warmup": {"base": "inverse_norm", "windows": 100},
    "weight_ramp": {"low": 0.0, "high": 4.0},
    "weight_step": {"threshold": 2.0},
    "weight_lds": {"counts": (60, 30, 5, 0, 0, 2, 20, 40)},
}
# Ranges of the prediction, and targets, if the defaults would show little.
RANGES: dict[str, tuple[tuple[float, float], tuple[float, ...]]] = {
    "aft": ((-3.0, 4.0), (5.0, -5.0)),
    "discrete_hazard": ((-4.0, 4.0), (0.5, -1.0)),
    "failure_biased": ((-20.0, 160.0), (10.0, 110.0)),
    "gamma": ((-1.0, 4.0), (2.0,)),
    "msle": ((-0.8, 8.0), (2.0,)),
    "nasa": ((-30.0, 30.0), (0.0,)),
    "poisson": ((-1.0, 2.5), (2.0,)),
    "reweighted": ((-20.0, 160.0), (10.0, 110.0)),
    "tukey": ((-8.0, 8.0), (0.0,)),
}
PLAIN_RANGE, PLAIN_TARGET, POSITIVE_TARGET = (-4.0, 4.0), (0.0,), (2.0,)
WEIGHT_RANGES = {"failure_biased": (-20.0, 160.0)}
PLAIN_WEIGHT_RANGE = (-1.0, 8.0)


def picture_of(about: Description) -> Picture:
    """Return the picture of a strategy."""
    options = SHOWN.get(f"{about.axis}_{about.name}", getattr(about.cls, "example", {}))
    strategy: Any = create(about.axis, about.name, **options)
    if about.axis == "outer":
        return weights_of(strategy)
    if about.axis == "weight":
        return weight_curve(about.name, strategy)
    return shape_curves(about.name, strategy)


def grid(low: float, high: float) -> Tensor:
    """Return the points on the horizontal axis."""
    return torch.linspace(low, high, POINTS, dtype=torch.float64)


def shape_curves(name: str, shape: InnerShape) -> Picture:
    """Return the loss of one sample and its derivative, over one number of its prediction."""
    kind = next(kind for kind in ("regression", "binary", "multiclass") if kind in shape.kinds)
    if shape.masks:
        return coupled_curves(shape, kind)
    if kind == "regression":
        low, high = shape.prediction_range
        (left, right), targets = RANGES.get(name, (PLAIN_RANGE, PLAIN_TARGET))
        if name not in RANGES and shape.target_range[0] > -math.inf:
            targets = POSITIVE_TARGET
        x = grid(max(left, low + 1e-2), min(right, high - 1e-2))
        moving = "prediction" if not shape.trailing else "first number of the prediction"
        signed = any(y < 0 for y in targets)
        cases = {label_of(y, signed): torch.full_like(x, y) for y in targets}
    elif kind == "binary":
        x, moving = grid(-6.0, 6.0), "logit"
        cases = {"y = 1": torch.ones(POINTS, dtype=torch.bool), "y = 0": torch.zeros(POINTS, dtype=torch.bool)}
    else:
        x, moving = grid(-6.0, 6.0), "first logit"
        cases = {f"y = {y}": torch.full((POINTS,), y) for y in (0, 1)}
    template, _ = shape.sample(kind, (1,), torch.Generator().manual_seed(0), torch.float64)
    losses, slopes = {}, {}
    for label, target in cases.items():
        prediction = torch.zeros(POINTS, *template.shape[1:], dtype=torch.float64)
        prediction.view(POINTS, -1)[:, 0] = x
        losses[label], slopes[label] = values_and_slopes(shape, prediction, target)
    others = ", the other numbers at 0" if template.ndim > 1 else ""
    return Picture(
        f"The loss of one sample, and its derivative, over the {moving}{others}. Options: {shape!r}.",
        [Panel("loss", moving, x.tolist(), losses), Panel("derivative", moving, x.tolist(), slopes)],
    )


def label_of(y: float, signed: bool) -> str:
    """Return the label of a target. A signed time is negative for a censored sample."""
    if signed:
        return f"event at {y:g}" if y > 0 else f"censored at {-y:g}"
    return f"y = {y:g}"


def values_and_slopes(shape: InnerShape, prediction: Tensor, target: Tensor) -> tuple[list[float], list[float]]:
    """Return the losses of independent samples, and their derivatives in the first number of each prediction."""
    prediction.requires_grad_()
    losses = shape(prediction, target)
    (gradient,) = torch.autograd.grad(losses.sum(), prediction)
    return losses.tolist(), gradient.view(len(losses), -1)[:, 0].tolist()


def coupled_curves(shape: InnerShape, kind: Any) -> Picture:
    """Return the loss of the first sample over the first number of its prediction; the rest of the batch is fixed."""
    size = (2, 6) if shape.pooled else (8,)
    base, target = shape.sample(kind, size, torch.Generator().manual_seed(0), torch.float64)
    x = grid(-6.0, 6.0)
    losses, slopes = [], []
    for value in x:
        prediction = base.clone()
        prediction.view(-1)[0] = value
        prediction.requires_grad_()
        loss = shape(prediction, target)
        (gradient,) = torch.autograd.grad(loss.sum(), prediction)
        losses.append(float(loss.detach()[0]))
        slopes.append(float(gradient.view(-1)[0]))
    what = "the sample whose entries it pools" if shape.pooled else "the first sample of a batch of 8"
    moving = "first number of the prediction"
    return Picture(
        f"The loss of {what}, and the derivative of the sum of all losses, over the {moving}; everything else is fixed. "
        f"Options: {shape!r}.",
        [
            Panel("loss", moving, x.tolist(), {"loss": losses}),
            Panel("derivative", moving, x.tolist(), {"derivative": slopes}),
        ],
    )


def weight_curve(name: str, weight: TargetWeight) -> Picture:
    """Return the weight over the target."""
    if "regression" in weight.kinds:
        x = grid(*WEIGHT_RANGES.get(name, PLAIN_WEIGHT_RANGE))
        values = weight(x)
    else:
        x = torch.arange(3)
        values = weight(x)
    lines = {"weight": values.double().tolist()}
    return Picture(f"The weight over the target. Options: {weight!r}.", [Panel("weight", "target", x.tolist(), lines)])


STEPS, EPOCH, STRIDE = 300, 30, 4


@dataclass
class Point:
    """The two-task problem at one step of the path: losses (2,) and the Jacobian (2, 2)."""

    losses: Tensor
    jacobian: Tensor


def path() -> Iterator[Point]:
    """Yield two tasks of two parameters on a path that is the same for every weighting.

    ::

        L_1 = 100 (1/2 (theta - a)^T diag(1, 0.2) (theta - a) + 0.05),    a = (1, 0)
        L_2 =      1/2 (theta - b)^T diag(0.3, 1) (theta - b) + 0.05,     b = (0, 1)

    The path descends L_1 / 100 + L_2 from (-1, -1.5), so that it ends where the gradients are opposed and a hundred times
    apart. Losses and gradients carry noise of 5 %, like losses of batches.
    """
    anchors = torch.tensor([[1.0, 0.0], [0.0, 1.0]], dtype=torch.float64)
    curvatures = torch.tensor([[1.0, 0.2], [0.3, 1.0]], dtype=torch.float64)
    scales = torch.tensor([100.0, 1.0], dtype=torch.float64)
    theta = torch.tensor([-1.0, -1.5], dtype=torch.float64)
    noise = torch.Generator().manual_seed(0)
    for _ in range(STEPS):
        away = theta - anchors
        jacobian = curvatures * away
        losses = 0.5 * (curvatures * away.square()).sum(1) + 0.05
        shaken = 1 + 0.05 * torch.randn(2, 3, generator=noise, dtype=torch.float64)
        yield Point(scales * losses * shaken[:, 0], scales[:, None] * jacobian * shaken[:, 1:])
        theta = theta - 0.02 * jacobian.sum(0)


def weights_of(weighting: OuterWeighting) -> Picture:
    """Return the weights, and each task's share in the sum of weighted gradient norms, along the fixed path."""
    weighting.bind_unnamed(2, torch.float64)
    optimizer = torch.optim.Adam(weighting.parameters(), lr=0.05) if weighting.learnable else None
    weights, shares = [], []
    before: Point | None = None
    for step, point in enumerate(path()):
        if before is not None and getattr(weighting, "wants_after_step", False):
            weighting.after_step(point.losses, torch.ones(2, dtype=torch.bool))  # type: ignore[attr-defined]
        signals = Signals(point.losses, gramian=point.jacobian @ point.jacobian.T, step=step)
        current = weighting(signals)
        if optimizer is not None:
            optimizer.zero_grad()
            penalty = weighting.penalty()
            total = (current * point.losses).sum() + (0 if penalty is None else penalty.sum())
            total.backward()
            optimizer.step()
        if (step + 1) % EPOCH == 0:
            weighting.end_epoch()
        current = current.detach()
        weights.append(current)
        pull = current.abs() * point.jacobian.norm(dim=1)
        shares.append(pull / pull.sum())
        before = point
    drawn = range(0, STEPS, STRIDE)
    table, part = torch.stack(weights)[drawn], torch.stack(shares)[drawn]
    positive = bool((table > 0).all())
    x = [float(step) for step in drawn]
    names = ("task 1, a hundred times larger", "task 2")
    by_task, shares_by_task = ({name: values[:, i].tolist() for i, name in enumerate(names)} for values in (table, part))
    return Picture(
        "Weights along [a fixed two-task problem](../README.md#the-two-task-problem), and the share of each task in the sum "
        f"of weighted gradient norms. Options: {weighting!r}.",
        [
            Panel("weights", "step", x, by_task, log=positive),
            Panel("share of the weighted norms", "step", x, shares_by_task, share=True),
        ],
    )
