"""Smooth Tchebycheff scalarisation."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from mtl_axes.options import check_choice, check_integer, check_number, check_per_task, numbers_by_task
from mtl_axes.outer.base import OuterWeighting
from mtl_axes.outer.members import positive_losses, subproblem
from mtl_axes.signals import Signals, TaskInfo


class STCH(OuterWeighting):
    r"""Weights from a smooth maximum over the tasks: the task farthest behind its reference gets most of the weight.

    ::

        form="log":     total = k mu log sum_A exp(log(L_i / z_i) / mu)
                        lambda_i = k softmax_A(log(L / z) / mu)_i / L_i;  1 / L_i in the warm-up
        form="linear":  total = mu log sum_A exp(p (L_i - z_i) / mu),  p = 1/k
                        lambda_i = p softmax_A(p (L - z) / mu)_i

    A are the k active tasks. The weights are the coefficients of the task gradients in the gradient of the total.

    ``"log"`` is the form of the authors' multi-task code. Its z is the nadir; if it is not given, it is the mean loss of the
    task's first ``warmup`` windows, in which the total is sum log L. ``"linear"`` is the formula of the paper. Its z is the
    ideal point, 0 if not given; there is no warm-up, and losses in different units have to be brought to one unit first.

    With mu -> 0 the largest relative loss takes all the weight. With mu = 1 and one reference for all, ``"log"`` gives every
    task the same weight, k / sum_j L_j. An absent task gets 0; so does a loss of exactly 0 in ``"log"``. A task that is
    still in its warm-up while others are not keeps 1 / L. Losses below 1e-30 count as 1e-30.

    Args:
        mu: smoothing, > 0; without unit for ``"log"``, in the unit of the losses for ``"linear"``.
        form: ``"log"`` or ``"linear"``. Only ``"log"`` is independent of the units of the losses.
        reference: z, one number per task as a sequence in the order of the tasks or as a mapping by name, > 0 for ``"log"``;
            or None.
        warmup: windows, >= 1, whose mean loss is z for ``"log"`` without a reference.

    Returns:
        (K,) non-negative weights, with no fixed sum; for ``"log"`` the lambda_i L_i sum to k.

    Raises:
        OptionError: an option is outside its range; on binding, the number or the names of the tasks differ.

    >>> STCH(mu=0.5, reference=[1.0, 1.0])(Signals(torch.tensor([2.0, 0.5])))
    tensor([0.9412, 0.2353])
    >>> STCH(mu=0.1, form="linear")(Signals(torch.tensor([1.0, 2.0, 0.5])))
    tensor([0.0114, 0.3198, 0.0022])

    References:
        X. Lin, X. Zhang, Z. Yang, F. Liu, Z. Wang, Q. Zhang, "Smooth Tchebycheff Scalarization for Multi-Objective
        Optimization", 2024. ``"linear"`` has the gradient of STCH of TorchJD 0.18, (0.103, 0.143, 0.087) for the losses
        (1, 2, 0.5) and mu = 1. ``"log"`` has the gradient of LibMTL, (0.867, 0.416, 2.601) with the nadir (1.2, 2.5, 0.4);
        LibMTL reports weights of 1 and subtracts the maximum from the value of its loss. Differs from LibMTL: the warm-up is
        a number of windows of each task and z their mean, while LibMTL waits for four epochs and takes the mean of the next
        one; there is no 1e-20 within the logarithms.
    """

    needs = "losses"
    nonnegative = True
    memoryless = True
    scaling = "inverse"
    balances = True

    given: Tensor
    loss_sum: Tensor
    windows: Tensor

    def __init__(
        self,
        *,
        mu: float = 1.0,
        form: Literal["log", "linear"] = "log",
        reference: Sequence[float] | Mapping[str, float] | None = None,
        warmup: int = 100,
    ) -> None:
        super().__init__()
        self.mu = check_number("mu", mu, low=0.0, low_open=True)
        self.form = check_choice("form", form, ("log", "linear"))
        low = 0.0 if form == "log" else -math.inf
        self._given = None if reference is None else check_per_task("reference", reference, low=low, low_open=True)
        self.warmup = check_integer("warmup", warmup, low=1)
        if form == "linear":
            # Differences need no logarithm. They depend on the unit of the losses.
            self.nonnegative = False  # type: ignore[misc]
            self.scaling = None  # type: ignore[assignment, misc]
        if form == "linear" or reference is not None:
            # A given reference does not change when the loss of one task is rescaled.
            self.balances = False  # type: ignore[misc]
        if reference is not None:
            self.symmetric = False  # type: ignore[misc]

    def options(self) -> dict[str, Any]:
        return {"mu": self.mu, "form": self.form, "reference": copy.copy(self._given), "warmup": self.warmup}

    def bind(self, tasks: tuple[TaskInfo, ...]) -> None:
        given = 0.0 if self._given is None else self._given
        values = numbers_by_task("Option `reference` of STCH", given, [task.name for task in tasks])
        super().bind(tasks)
        if self._given is not None or self.form == "linear":
            # Not persistent: a given reference comes from the option, not from a checkpoint.
            self.register_buffer("given", torch.tensor(values, dtype=self.dtype), persistent=False)
        else:
            self.register_buffer("loss_sum", torch.zeros(len(tasks), dtype=self.dtype))
            self.register_buffer("windows", torch.zeros(len(tasks), dtype=torch.int64))

    def forward(self, signals: Signals, /) -> Tensor:
        return self._linear(signals) if self.form == "linear" else self._log(signals)

    def _linear(self, signals: Signals) -> Tensor:
        active = signals.active
        # As a divisor, because the reciprocal of an integer would have the precision of float32.
        count = active.sum().clamp_min(1)
        lag = torch.where(active, (signals.losses - self.given) / count, -torch.inf)
        # The largest is subtracted before the division, which could overflow for a small mu.
        return subproblem(((lag - lag.amax()) / self.mu).softmax(0) / count, active, self.current)

    def _log(self, signals: Signals) -> Tensor:
        losses, members = positive_losses(signals)
        if self._given is None:
            ready = self.windows >= self.warmup
            reference = torch.where(ready, self.loss_sum / self.windows.clamp_min(1), 1.0)
            learns = members & ~ready
            self.loss_sum.add_(torch.where(learns, losses, 0.0))
            self.windows.add_(learns)
            ready = ready & members
        else:
            ready, reference = members, self.given
        lag = torch.where(ready, losses.log() - reference.log(), -torch.inf)
        shares = torch.where(ready, ready.sum() * ((lag - lag.amax()) / self.mu).softmax(0), 1.0)
        return subproblem(shares / losses, members, self.current)

    def diagnostics(self) -> Mapping[str, Tensor]:
        if self._given is not None or self.form == "linear":
            return {}
        return {"nadir": self.loss_sum / self.windows.clamp_min(1)}
