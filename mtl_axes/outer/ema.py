"""A stage that averages weights over the windows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from mtl_axes.options import check_number
from mtl_axes.outer.base import OuterWeighting
from mtl_axes.outer.stages import Stage
from mtl_axes.signals import Signals, TaskInfo, is_finite


class Ema(Stage):
    r"""The weights of another weighting, averaged exponentially over the windows.

    ::

        ema_i  = b_i ema_i + (1 - b_i) raw_i,  b_i = beta^elapsed_i
        lambda = ema

    ``raw`` are the weights of the base. The average starts at 1/K if these sum to 1, at 1 if they sum to K, and otherwise,
    for each task, at its first raw value. It always has memory: an absent task keeps its weight.

    If only a subset A of the tasks is active, only the entries of A are updated. If the raw weights have a fixed sum, the
    sum of ``ema`` over A is kept: raw over A is scaled to it, and so is the result if the elapsed windows of the tasks
    differ; with fewer than two active tasks nothing changes. Weights that can be negative, or have no fixed sum, are updated
    one by one.

    Args:
        base: the weighting to average: a name, ``{"name": ..., **options}``, or an instance that was not called yet.
        beta: decay of the average per window, in [0, 1).

    Returns:
        (K,) weights, with the sum and the sign of the base's weights. The sum is not kept if weights can be negative.

    Raises:
        OptionError: beta is outside its range; the base was called already, or its weights are learned.

    >>> weighting = Ema("inverse_norm", beta=0.9)
    >>> weighting(Signals(torch.ones(2), norms=torch.tensor([3.0, 1.0])))
    tensor([0.4750, 0.5250])
    """

    example: ClassVar[Mapping[str, Any]] = {"base": "inverse_norm", "beta": 0.5}
    # Even if the base ignores them: only the tasks that take part are updated.
    reads_signals = True
    memoryless = False

    seen: Tensor
    whole: Tensor

    def __init__(self, base: OuterWeighting | Mapping[str, Any] | str, *, beta: float = 0.99) -> None:
        super().__init__(base)
        self.beta = check_number("beta", beta, low=0.0, high=1.0, high_open=True)

    @property
    def total(self) -> Literal["1", "K"] | None:  # type: ignore[override]
        """As the base; None if weights can be negative, because a subset may then have no sum to keep."""
        return None if self.base.sign == "any" else self._base_total

    def bind(self, tasks: tuple[TaskInfo, ...]) -> None:
        super().bind(tasks)
        count, total = len(tasks), self.total
        if total is None:
            self.register_buffer("seen", torch.zeros(count, dtype=torch.bool))
            return
        whole = float(count) if total == "K" else 1.0
        self.current.fill_(whole / count)
        self.register_buffer("whole", torch.tensor(whole, dtype=self.dtype), persistent=False)

    def forward(self, signals: Signals, /) -> Tensor:
        raw, ema, active = self.advance(signals), self.current, signals.active
        # Powers and differences by function, masks as products: operators with a Python number on the left take three times
        # as long.
        decay = torch.pow(self.beta, signals.elapsed)
        if "seen" in self._buffers:
            return self._one_by_one(raw, decay, active)
        members = active.to(ema.dtype)
        count = members.sum()
        # With all tasks active the sum is known. Its rounding must not enter the average window after window.
        mass = torch.where(count == len(ema), self.whole, (ema * members).sum())
        scale = mass
        if not self._base_memoryless:
            scale = mass / (raw * members).sum()
        elif self._base_total == "K":
            scale = mass / count.clamp_min(1)
        moved = decay * ema + torch.rsub(decay, 1) * raw * scale
        # Tasks that were absent for different times are updated by different shares, which must not change their sum.
        moved = moved * (mass / (moved * members).sum())
        return torch.where(active & (count > 1) & is_finite(moved), moved, ema)

    def _one_by_one(self, raw: Tensor, decay: Tensor, active: Tensor) -> Tensor:
        ema, seen = self.current, self.seen
        moved = torch.where(seen, decay * ema + torch.rsub(decay, 1) * raw, raw)
        moves = active & is_finite(moved)
        seen.logical_or_(moves)
        return torch.where(moves, moved, ema)

    def _base_updated(self) -> None:
        """Do nothing: the average is updated by windows alone."""

    def diagnostics(self) -> Mapping[str, Tensor]:
        return {**self.base.diagnostics(), "ema": self.current.clone()}
