"""Homoscedastic uncertainty weighting (Kendall et al.)."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from mtl_axes._state import vector
from mtl_axes.options import check_choice
from mtl_axes.outer.learned import LearnedWeighting
from mtl_axes.signals import TaskInfo


class Uncertainty(LearnedWeighting):
    r"""Learned log variances s_i = log sigma_i^2, in the total 0.5 exp(-s_i) L_i + 0.5 s_i.

    The weight of a regression task is 0.5 exp(-s). For every other kind, and for losses computed elsewhere, which have no
    kind, it is exp(-s). The second term, the penalty, is 0.5 s; with ``variant="revised"`` it is log(1 + exp(s)), never
    negative. At the optimum of s the weight of a regression task is 1 / (2 L). The total can become negative; the report and
    ``log_dict`` give the task losses themselves.

    The parameters belong to the criterion: give ``criterion.param_groups()`` to your optimizer. Gradients reach s
    through :meth:`weights` and :meth:`penalty`.

    Args:
        variant: ``"kendall"`` or ``"revised"``.

    Returns:
        (K,) positive weights, with no fixed sum. An absent task's s receives a zero gradient.

    Raises:
        OptionError: the variant is unknown.

    >>> weighting = Uncertainty()
    >>> weighting.bind((TaskInfo("rul", "regression"), TaskInfo("health", "multiclass")))
    >>> weighting.weights().detach(), weighting.penalty().detach()
    (tensor([0.5000, 1.0000]), tensor([0., 0.]))

    References:
        A. Kendall, Y. Gal, R. Cipolla, "Multi-Task Learning Using Uncertainty to Weigh Losses for Scene Geometry and
        Semantics", 2018; ``"revised"``: L. Liebel, M. Koerner, "Auxiliary Tasks in Multi-task Learning", 2018, with
        log(1 + sigma^2). Several public ports use exp(-s) L + s for every task, twice the paper's regression form, which
        changes its balance against classification.
    """

    sign = "positive"
    parameter_name = "log_variance"
    called = "uncertainty: the log variances"

    log_variance: nn.Parameter

    def __init__(self, *, variant: Literal["kendall", "revised"] = "kendall") -> None:
        super().__init__()
        self.variant = check_choice("variant", variant, ("kendall", "revised"))
        self._factors: tuple[tuple[TaskInfo, ...], Tensor] | None = None

    def read(self) -> Tensor:
        precision = torch.exp(-self.log_variance)
        return precision * self._halves(precision)

    def _halves(self, like: Tensor) -> Tensor:
        """Return 0.5 for a regression task and 1 for any other; computed again if kinds, device or dtype have changed."""
        if torch.compiler.is_compiling():
            return self._new_halves(like)
        last = self._factors
        if last is None or last[0] is not self.tasks or last[1].device != like.device or last[1].dtype is not like.dtype:
            # Outside inference mode, because training uses the tensor that an evaluation creates.
            with torch.inference_mode(False):
                self._factors = last = (self.tasks, self._new_halves(like))
        return last[1]

    def _new_halves(self, like: Tensor) -> Tensor:
        halves = [0.5 if task.kind == "regression" else 1.0 for task in self.tasks]
        return vector(halves, like.dtype, like.device)

    def penalty(self) -> Tensor:
        if self.variant == "revised":
            return nn.functional.softplus(self.log_variance)
        return 0.5 * self.log_variance
