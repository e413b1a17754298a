"""An outer weighting with state: the root mean square of each task's gradient norms."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

import torch
from torch import Tensor

from mtl_axes import OuterWeighting, Signals, TaskInfo
from mtl_axes.options import check_number

__all__ = ["RMSNorm"]


class RMSNorm(OuterWeighting):
    """Weights that fall with the root mean square of a task's gradient norms g_i over the last windows.

    ::

        s_i    = b s_i + (1 - b) g_i^2,  n_i = b n_i + 1 - b,  b = beta^elapsed     both from 0 on
        lambda = K u / sum_j u_j,  u_i = 1 / sqrt(s_i / n_i)

    Adam divides each entry of a gradient by the root of its second moment; this divides a task's gradient by the root of its
    mean squared norm. A single large gradient lowers a weight for about 1 / (1 - beta) windows, while an average of 1 / g
    would forget it at once. Dividing by n_i removes the start of the average, so that the first window counts fully.

    An absent task keeps its average and its weight; the others share the sum of their last weights.

    Args:
        beta: decay of the average per window, in [0, 1).

    Returns:
        (K,) positive weights that sum to K.

    Raises:
        OptionError: beta is outside [0, 1).

    >>> import torch
    >>> from mtl_axes import Signals
    >>> weighting = RMSNorm(beta=0.5)
    >>> weighting(Signals(torch.ones(2), norms=torch.tensor([1.0, 3.0])))
    tensor([1.5000, 0.5000])
    >>> weighting(Signals(torch.ones(2), norms=torch.tensor([7.0, 3.0])))
    tensor([0.6861, 1.3139])

    References:
        D. P. Kingma, J. Ba, "Adam: A Method for Stochastic Optimization", 2015, for the average and its correction.
    """

    needs: ClassVar[Literal["norms"]] = "norms"
    total: ClassVar[Literal["K"]] = "K"
    sign: ClassVar[Literal["positive"]] = "positive"
    scaling: ClassVar[Literal["invariant"]] = "invariant"
    balances: ClassVar[bool] = True

    square: Tensor
    count: Tensor

    def __init__(self, *, beta: float = 0.9) -> None:
        super().__init__()
        self.beta = check_number("beta", beta, low=0.0, high=1.0, high_open=True)

    def bind(self, tasks: tuple[TaskInfo, ...]) -> None:
        super().bind(tasks)
        self.current.fill_(1.0)
        for name in ("square", "count"):
            self.register_buffer(name, torch.zeros(len(tasks), dtype=self.dtype))

    def forward(self, signals: Signals, /) -> Tensor:
        norms, active = signals.norms, signals.active
        assert norms is not None
        decay = self.beta**signals.elapsed
        # Without branches, so that no value is read from the device.
        self.square.copy_(torch.where(active, decay * self.square + (1 - decay) * norms.square(), self.square))
        self.count.copy_(torch.where(active, decay * self.count + 1 - decay, self.count))
        size = torch.where(active, (self.square / self.count.clamp_min(torch.finfo(norms.dtype).tiny)).sqrt(), torch.inf)
        # Relative to the smallest norm, because 1 / 1e-12 beside 1 / 1e12 would round off the rest.
        share = size.amin() / size
        mass = torch.where(active.all(), float(signals.size), torch.where(active, self.current, 0.0).sum())
        return torch.where(active, mass * share / share.sum(), self.current)

    def diagnostics(self) -> Mapping[str, Tensor]:
        return {"rms": (self.square / self.count.clamp_min(torch.finfo(self.count.dtype).tiny)).sqrt()}
