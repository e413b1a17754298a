"""GABA: gradient-aware balancing by smoothed inverse gradient norms."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

import torch
from torch import Tensor

from mtl_axes.errors import OptionError
from mtl_axes.options import check_choice, check_number
from mtl_axes.outer.base import OuterWeighting
from mtl_axes.signals import Need, Signals, TaskInfo

__all__ = ["GABA"]


class GABA(OuterWeighting):
    r"""Weights that fall with a task's gradient norm g_i on the shared parameters, smoothed and floored.

    ::

        raw_i  = (S - g_i) / ((K - 1) S),  S = sum_j g_j      form="complement"
               = (1 / g_i) / sum_j (1 / g_j)                  form="inverse"
        ema    = b ema + (1 - b) raw,  b = beta^elapsed       from 1/K on; untouched during the warm-up
        lambda = max(ema, floor) / sum_j max(ema_j, floor)    the floored vector is not fed back
        lambda = 1/K for the first ``warmup`` windows

    The two forms agree for K = 2, where both are the inverse norm (and, up to scale, IMTL-G, ConFIG and Nash-MTL): what
    GABA adds is the average, the floor and the warm-up. For K > 2 only ``"inverse"`` equalises lambda_i g_i; the
    complement never exceeds 1 / (K - 1) before the floor.

    With a subset A of the tasks active, raw is taken over A, times the mass that ``ema`` has on A, and only those entries
    move, scaled to that mass where their elapsed windows differ; with fewer than two active tasks nothing moves.

    Args:
        beta: decay of the average per window, in [0, 1).
        floor: smallest value before the last normalisation, in [0, 1/K). The bound that holds afterwards is
            [floor / (1 + (K - 1) floor), 1 / (1 + (K - 1) floor)]: for K = 2 and 0.05, [0.0476, 0.9524].
        warmup: windows with the weights 1/K, >= 0. No gradient is measured in them.
        form: ``"complement"`` (as published) or ``"inverse"``.

    Returns:
        (K,) weights that sum to 1.

    Raises:
        OptionError: an option is outside its range; on binding, floor >= 1/K.

    >>> weighting = GABA(beta=0.0, floor=0.0, warmup=0)
    >>> weighting(Signals(torch.ones(2), norms=torch.tensor([26.4016, 0.037833])))
    tensor([0.0014, 0.9986])

    References:
        "Gradient-Aware Multi-Task Learning for Predictive Maintenance", chapters 17 to 19. Relatives: the grad_norm
        scheme of jaxpi (S. Wang et al., "An Expert's Guide to Training Physics-informed Neural Networks", 2023),
        learning-rate annealing (S. Wang, Y. Teng, P. Perdikaris, 2021), MetaBalance (Y. He et al., 2022) and the
        self-adaptive weighting of PINA. Differs from the book where the book is silent: how absent tasks, zero and
        non-finite norms and the start of the average are treated, and tasks that return after different absences.
    """

    needs: ClassVar[Need] = "norms"
    total: ClassVar[Literal["1", "K"] | None] = "1"
    scaling: ClassVar[Literal["invariant", "inverse"] | None] = "invariant"

    ema: Tensor

    def __init__(
        self,
        *,
        beta: float = 0.99,
        floor: float = 0.05,
        warmup: int = 100,
        form: Literal["complement", "inverse"] = "complement",
    ) -> None:
        super().__init__()
        self.beta = check_number("beta", beta, low=0.0, high=1.0, high_open=True)
        self.floor = check_number("floor", floor, low=0.0, high=1.0, high_open=True)
        self.warmup = int(check_number("warmup", warmup, low=0, integer=True))
        check_choice("form", form, ("complement", "inverse"))
        self.form = form

    def bind(self, tasks: tuple[TaskInfo, ...]) -> None:
        count = len(tasks)
        if self.floor * count >= 1 and count > 1:
            raise OptionError(
                f"Option `floor` of GABA should be below 1/K = {1 / count:.4g} for the {count} tasks. "
                f"Found floor={self.floor!r}."
            )
        super().bind(tasks)
        self.register_buffer("ema", torch.full((count,), 1.0 / count, dtype=self.dtype))

    def measures(self, step: int) -> bool:
        return step >= self.warmup

    def forward(self, signals: Signals, /) -> Tensor:
        norms, active = signals.norms, signals.active
        assert norms is not None
        count = active.sum()
        if self.form == "complement":
            total = torch.where(active, norms, 0.0).sum()
            # A lone active task would divide by zero; it does not move, and the clamp keeps NaN out of the graph.
            raw = (total - norms) / ((count - 1).clamp_min(1) * total)
        else:
            inverse = torch.where(active, 1 / norms, 0.0)
            raw = inverse / inverse.sum()
        mass = torch.where(active, self.ema, 0.0).sum()
        # On all tasks the mass is 1 by definition; its rounding must not enter the average window after window.
        mass = torch.where(active.all(), 1.0, mass)
        decay = self.beta**signals.elapsed
        ema = decay * self.ema + (1 - decay) * raw * mass
        # Tasks that were away for different times move by different shares, which must not change their mass.
        ema = ema * (mass / torch.where(active, ema, 0.0).sum())
        warm = signals.step >= self.warmup
        self.ema.copy_(torch.where(active & (count > 1) & warm & torch.isfinite(ema), ema, self.ema))
        return torch.where(warm, self._floored(), 1.0 / self.ema.shape[0])

    def _floored(self) -> Tensor:
        floored = self.ema.clamp_min(self.floor)
        return floored / floored.sum()

    def diagnostics(self) -> Mapping[str, Tensor]:
        return {"ema": self.ema.clone(), "floor_active": self.ema < self.floor}
