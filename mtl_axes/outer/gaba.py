"""GABA: gradient-aware balancing by smoothed inverse gradient norms."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal, cast

from torch import Tensor

from mtl_axes.options import check_integer
from mtl_axes.outer.ema import Ema
from mtl_axes.outer.floor import Floor, check_floor
from mtl_axes.outer.inverse_norm import InverseNorm
from mtl_axes.outer.stages import Stage
from mtl_axes.outer.warmup import WarmUp
from mtl_axes.signals import TaskInfo


class GABA(WarmUp):
    r"""Weights that fall with a task's gradient norm g_i on the shared parameters, smoothed and floored.

    ::

        raw_i  = (S - g_i) / ((K - 1) S),  S = sum_j g_j      form="complement"
               = (1 / g_i) / sum_j (1 / g_j)                  form="inverse"
        ema    = b ema + (1 - b) raw,  b = beta^elapsed       starts at 1/K; not updated in the warm-up
        lambda = max(ema, floor) / sum_j max(ema_j, floor)    the floored vector is not fed back
        lambda = 1/K for the first ``warmup`` windows

    For K = 2 both forms are the inverse norm (and, up to scale, IMTL-G, ConFIG and Nash-MTL): GABA adds the average, the
    floor and the warm-up. For K > 2 only ``"inverse"`` equalises lambda_i g_i; the complement never exceeds 1 / (K - 1)
    before the floor.

    GABA is the composition warmup(floor(ema(inverse_norm(form), beta), floor), warmup). Its parts go with any weighting.

    If only a subset A of the tasks is active, raw is computed over A, and only the entries of A are updated. Their sum in
    ``ema`` is kept: raw is scaled to it, and so is the result if the elapsed windows of the tasks differ. With fewer than
    two active tasks nothing changes.

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

    >>> import torch
    >>> from mtl_axes import Signals
    >>> weighting = GABA(beta=0.0, floor=0.0, warmup=0)
    >>> weighting(Signals(torch.ones(2), norms=torch.tensor([26.4016, 0.037833])))
    tensor([0.0014, 0.9986])

    References:
        "Gradient-Aware Multi-Task Learning for Predictive Maintenance", chapters 17 to 19. Relatives: the grad_norm
        scheme of jaxpi (S. Wang et al., "An Expert's Guide to Training Physics-informed Neural Networks", 2023),
        learning-rate annealing (S. Wang, Y. Teng, P. Perdikaris, 2021), MetaBalance (Y. He et al., 2022) and the
        self-adaptive weighting of PINA. Adds to the book, which does not mention them: absent tasks, zero and non-finite
        norms, the start of the average, and tasks that return after different absences.
    """

    needs = "norms"
    total = "1"
    reads_signals = True
    memoryless = False
    wants_after_step = False
    scaling = "invariant"
    example: ClassVar[Mapping[str, Any]] = {}

    def __init__(
        self,
        *,
        beta: float = 0.99,
        floor: float = 0.05,
        warmup: int = 100,
        form: Literal["complement", "inverse"] = "complement",
    ) -> None:
        windows = check_integer("warmup", warmup)
        raw = InverseNorm(form=form)
        average = Ema(raw, beta=beta)
        floored = Floor(average, floor=floor)
        super().__init__(floored, windows=windows)
        self.beta, self.floor, self.warmup, self.form = average.beta, floored.floor, windows, raw.form

    @property
    def ema(self) -> Tensor:
        """The average (K,), before the floor."""
        return cast("Stage", self.base).base.current

    def bind(self, tasks: tuple[TaskInfo, ...]) -> None:
        check_floor("GABA", self.floor, len(tasks))
        super().bind(tasks)
