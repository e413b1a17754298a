"""A warm-up stage: even weights at first."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from mtl_axes.options import check_integer
from mtl_axes.outer.base import OuterWeighting
from mtl_axes.outer.stages import Stage
from mtl_axes.signals import Signals, TaskInfo


class WarmUp(Stage):
    r"""Even weights for the first windows, then the weights of another weighting.

    ::

        lambda_i = 1/K, or 1 if the base sums to K         for the first ``windows`` windows
                 = the weight of the base                  afterwards

    In the warm-up no task is active for the base and no gradient is measured: afterwards its weights and averages are as in
    a run that begins there. A base that counts windows or draws numbers in each of them (``dwa`` with a ``window``, ``rlw``,
    ``relobralo``) continues to do so. Windows are counted from the start of the run, including those in which tasks are
    absent. If the base gives absent tasks the weight 0, the tasks that take part share the even weights.

    Args:
        base: the weighting to use afterwards: a name, ``{"name": ..., **options}``, or an instance that was not called
            yet.
        windows: number of windows (optimizer steps) with even weights, >= 0.

    Returns:
        (K,) weights, with the sum of the base's weights if that is 1 or K.

    Raises:
        OptionError: windows is outside its range; the base was called already, or its weights are learned.

    >>> weighting = WarmUp("inverse_norm", windows=1)
    >>> for step in range(2):
    ...     weighting(Signals(torch.ones(2), norms=torch.tensor([3.0, 1.0]), step=step))
    tensor([0.5000, 0.5000])
    tensor([0.2500, 0.7500])
    """

    example: ClassVar[Mapping[str, Any]] = {"base": "inverse_norm", "windows": 2}

    over: Tensor
    even: Tensor

    def __init__(self, base: OuterWeighting | Mapping[str, Any] | str, *, windows: int = 100) -> None:
        super().__init__(base)
        self.windows = check_integer("windows", windows)

    def bind(self, tasks: tuple[TaskInfo, ...]) -> None:
        super().bind(tasks)
        even = 1.0 if self._base_total == "K" else 1.0 / len(tasks)
        self.current.fill_(even)
        self.register_buffer("over", torch.tensor(self.windows == 0))
        self.register_buffer("even", torch.tensor(even, dtype=self.dtype), persistent=False)

    def measures(self, step: int) -> bool:
        return step >= self.windows and self.base.measures(step)

    def forward(self, signals: Signals, /) -> Tensor:
        over = signals.step >= self.windows
        self.over.copy_(over)
        weights = self.advance(_idle_until(over, signals))
        if not self._base_memoryless:
            return torch.where(over, weights, self.even)
        members = signals.active.to(weights.dtype)
        count = members.sum()
        even = members if self._base_total == "K" else members / count
        return torch.where(over, weights, torch.where(count > 0, even, self.current))

    def after_step(self, losses: Tensor, active: Tensor, /) -> None:
        super().after_step(losses, active & self.over)

    def _base_updated(self) -> None:
        if self.bound and not self._base_memoryless:
            self.current.copy_(torch.where(self.over, self.base.current, self.current))


def _idle_until(over: Tensor, signals: Signals) -> Signals:
    """Return signals in which no task is active before ``over``. Values stay: those of inactive tasks are never read."""
    active = signals.active & over
    if torch.compiler.is_compiling():
        return Signals(signals.losses, signals.norms, signals.gramian, active, signals.elapsed, signals.step)
    idle = Signals.__new__(Signals)
    # Without the checks of the constructor, which these values have passed.
    idle.__dict__.update(signals.__dict__, active=active)
    return idle
