"""Survival shapes, for times of which some are censored: cox and discrete_hazard. aft has its own file.

A target is one signed time per sample: y > 0 is an event at y, y < 0 a sample that was censored at |y|, without an event
until then. XGBoost's survival:cox takes the same targets.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from mtl_axes.errors import DataError, OptionError
from mtl_axes.inner._values import check_numbers, constants
from mtl_axes.inner.base import REGRESSION, InnerShape, require_last_dimension
from mtl_axes.signals import Kind

__all__ = ["Cox", "DiscreteHazard", "SurvivalShape"]


class SurvivalShape(InnerShape):
    """The base of survival shapes: targets are signed times."""

    kinds = REGRESSION

    def check(self, prediction: Tensor, target: Tensor) -> None:
        # With integers, missing="ignore" would treat the time -100 as unlabelled.
        if not target.is_floating_point():
            raise DataError(f"survival targets should be floats, signed times. Found {target.dtype}. Use target.float().")
        if not self.trailing:
            super().check(prediction, target)

    def weighed(self, target: Tensor) -> Tensor:
        return target.abs()  # the time: a sample censored late is not one that fails early

    def check_values(self, prediction: Tensor, target: Tensor) -> None:
        if not bool((target != 0).all()):
            raise DataError(
                "survival targets should be signed times, y > 0 for an event at y and y < 0 for a sample censored at -y. "
                "Found 0. Shift the times, or mask the sample."
            )

    def sample(
        self, kind: Kind, size: tuple[int, ...], generator: torch.Generator, dtype: torch.dtype, /
    ) -> tuple[Tensor, Tensor]:
        prediction, noise = super().sample(kind, size, generator, dtype)
        events = torch.rand(size, generator=generator) < 0.7
        time = noise.abs() + 0.1
        return prediction, torch.where(events, time, -time)


class Cox(SurvivalShape):
    """Cox's partial likelihood: at each event, its sample should have the highest hazard of all samples still at risk.

    ::

        y_i > 0:  log sum_{j: t_j >= t_i} exp(x_j) - x_i        t = |y|, over the valid samples of the batch
        y_i < 0:  0

    x is the logarithm of a relative hazard: a high score means an early event. The loss couples the batch: censored samples
    count only in the sums, masked ones not at all. Tied events share one sum, over all samples at risk (Breslow). A batch
    without an event, or with a single sample, has the loss 0. Each position in further dimensions is a separate batch. A
    sample weight multiplies the term of its event, but not the sums. A small batch, and in data parallel training the batch
    of a rank, sums over fewer samples than the data set has.

    Returns:
        (N, ...) losses >= 0, in nats, in the shape of the signed times.

    Raises:
        DataError: a time is 0.

    >>> Cox()(torch.tensor([0.0, 1.0, 0.5]), torch.tensor([2.0, 3.0, -4.0]))
    tensor([1.6803, 0.4741, 0.0000])

    References:
        D. R. Cox, "Regression Models and Life-Tables", 1972; N. Breslow, "Covariance Analysis of Censored Survival Data",
        1974. Differs from pycox and torchsurv in the denominator: a task's mean divides by all valid samples, not by the
        events, so that with 30 % events it is 0.3 times theirs. Differs from torchsurv in ties, where Efron's form is the
        default there. Differs from pycox's cox_ph_loss, which breaks ties by the order of the batch and adds 1e-7 to sums
        relative to the largest exp(x): a sum whose scores lie 17 below the highest score of the batch keeps 0.29 of its
        gradient.
    """

    coupling = "batch"

    def forward(self, prediction: Tensor, target: Tensor, valid: Tensor | None = None, /) -> Tensor:
        time = target.to(prediction.dtype).abs()
        if valid is not None:
            # Below every time, so never at risk.
            time = torch.where(valid, time, -torch.inf)
        # Along the last dimension, from late to early: the samples at risk at a time come before it.
        scores, earliness = prediction.movedim(0, -1), -time.movedim(0, -1).contiguous()
        ordered, order = earliness.sort(-1)
        summed = scores.gather(-1, order).logcumsumexp(-1)
        # Ties share the sum up to the last of them.
        last = torch.searchsorted(ordered, earliness, right=True) - 1
        at_risk = summed.gather(-1, last).movedim(-1, 0)
        return torch.where(target > 0, at_risk - prediction, 0.0)


class DiscreteHazard(SurvivalShape):
    """Discrete-time hazards: one logit per interval of time, for the event of a sample that reached the interval.

    ::

        event in interval m:    sum_{k < m} softplus(x_k) + softplus(-x_m)
        censored at c:          sum_{k: edge_k <= c} softplus(x_k)

    Interval k is (edge_{k-1}, edge_k], and the first starts at 0. The hazard is sigmoid(x_k), survival the product of
    1 - hazard, and the loss the negative log-likelihood, which depends only on the interval of a time. A sample counts for
    the intervals that it is known to have survived completely, so that a sample censored in the first has the loss 0. A time
    beyond the last edge survived all intervals.

    Args:
        edges: the upper ends of the K intervals, in the unit of the times, > 0 and strictly increasing.

    Returns:
        (N, ...) losses >= 0, in nats, from (N, ..., K) logits and signed times (N, ...).

    Raises:
        OptionError: the edges are not positive or do not increase.
        DataError: the last dimension of the prediction is not the number of edges, or a time is 0.

    >>> DiscreteHazard(edges=(10.0, 20.0))(torch.tensor([[0.0, 1.0], [0.0, 1.0]]), torch.tensor([15.0, -15.0]))
    tensor([1.0064, 0.6931])

    References:
        M. F. Gensheimer, B. Narasimhan, "A scalable discrete-time survival model for neural networks", 2019. Differs
        from the reference, which counts a censored sample for an interval from its middle on, here from its end. Pycox's
        LogisticHazard has the same sum, but one more logit, for the time 0, and cuts times to its grid beforehand.
    """

    trailing = True
    example: ClassVar[Mapping[str, Any]] = {"edges": (0.5, 1.0, 2.0)}

    def __init__(self, *, edges: Sequence[float]) -> None:
        super().__init__()
        self.edges = check_numbers("edges", edges, least=1)
        if any(first >= second for first, second in pairwise(self.edges)):
            raise OptionError(f"Option `edges` should strictly increase. Found edges={self.edges!r}.")

    def check(self, prediction: Tensor, target: Tensor) -> None:
        super().check(prediction, target)
        require_last_dimension(prediction, target, len(self.edges), "one logit per interval")

    def forward(self, prediction: Tensor, target: Tensor, /) -> Tensor:
        ends = constants(self.edges, prediction)
        time = target.to(prediction.dtype).abs().unsqueeze(-1)
        # An event at t means that the intervals that end before t were survived; an interval that ends at t holds it.
        event = (target > 0).unsqueeze(-1)
        survived = torch.where(event, ends < time, ends <= time)
        starts = F.pad(ends[:-1], (1, 0))
        failed = event & (starts < time) & (time <= ends)
        losses = torch.where(survived, -F.logsigmoid(-prediction), torch.where(failed, -F.logsigmoid(prediction), 0.0))
        return losses.sum(-1)

    def sample(
        self, kind: Kind, size: tuple[int, ...], generator: torch.Generator, dtype: torch.dtype, /
    ) -> tuple[Tensor, Tensor]:
        _, target = super().sample(kind, size, generator, dtype)
        logits = 3 * torch.randn(*size, len(self.edges), generator=generator, dtype=torch.float64)
        return logits.to(dtype), target
