"""DWA: dynamic weight average."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from mtl_axes.options import check_integer, check_number
from mtl_axes.outer.base import OuterWeighting
from mtl_axes.outer.members import redistribute
from mtl_axes.signals import Signals, TaskInfo

_LOW, _HIGH = 1e-3, 1e3
_PATIENCE = 2_000


class DWA(OuterWeighting):
    r"""Weights that grow with how slowly a task's loss falls from epoch to epoch.

    ::

        r_i    = mean loss of the last epoch / mean loss of the one before, clamped to [1e-3, 1e3]
        lambda = K softmax(r / temperature)

    Weights are 1 until two epochs have ended. An epoch ends with ``criterion.end_epoch()``, which adapters call, or every
    ``window`` windows. A task absent for a whole epoch keeps its means and its weight; the others share the sum that they
    had. Only the *rate* of a loss counts, not its scale: DWA does not balance losses of different magnitude.

    Args:
        temperature: > 0; the larger, the more even the weights.
        window: None, or the number of windows (optimizer steps) that make an epoch, >= 1.

    Returns:
        (K,) positive weights that sum to K.

    Raises:
        OptionError: an option is outside its range.

    >>> weighting = DWA(window=1)
    >>> for losses in ([2.0, 5.0], [1.0, 5.0]):
    ...     weights = weighting(Signals(torch.tensor(losses)))
    >>> weights
    tensor([0.8756, 1.1244])

    References:
        S. Liu, E. Johns, A. J. Davison, "End-to-End Multi-Task Learning with Attention", 2019. Differs from the reference
        in the clamp of r, which keeps it finite; an r of 1e3 still takes every weight.
    """

    needs = "losses"
    nonnegative = True
    total = "K"

    loss_sum: Tensor
    loss_count: Tensor
    windows: Tensor
    mean_last: Tensor
    mean_before: Tensor
    means: Tensor

    def __init__(self, *, temperature: float = 2.0, window: int | None = None) -> None:
        super().__init__()
        self.temperature = check_number("temperature", temperature, low=0.0, low_open=True)
        self.window = None if window is None else check_integer("window", window, low=1)
        self._unended = 0
        # `windows` on the host, or None if it would have to be read. It is only used to see that no epoch can end.
        self._passed: int | None = 0

    def bind(self, tasks: tuple[TaskInfo, ...]) -> None:
        super().bind(tasks)
        count = len(tasks)
        self.current.fill_(1.0)
        for name in ("loss_sum", "mean_last", "mean_before"):
            self.register_buffer(name, torch.zeros(count, dtype=self.dtype))
        self.register_buffer("loss_count", torch.zeros(count, dtype=torch.int64))
        self.register_buffer("means", torch.zeros(count, dtype=torch.int64))
        self.register_buffer("windows", torch.zeros((), dtype=torch.int64))

    def forward(self, signals: Signals, /) -> Tensor:
        loss_sum, windows = self.loss_sum, self.windows
        torch.where(signals.active, loss_sum + signals.losses, loss_sum, out=loss_sum)
        self.loss_count.add_(signals.active)
        windows.add_(1)
        if self.window is None:
            self._warn_without_epochs()
            return self.current.clone()
        if self._within_epoch(self.window):
            return self.current.clone()
        return self._ended(windows >= self.window)

    def _within_epoch(self, window: int) -> bool:
        """Count a window on the host, too; return whether the host knows that the epoch goes on."""
        if torch.compiler.is_compiling():
            # With a count on the host, forward would be compiled again for every window.
            self._passed = None
        if self._passed is None:
            return False
        self._passed = self._passed + 1 if self._passed + 1 < window else 0
        return self._passed > 0

    def end_epoch(self) -> None:
        self._unended = 0
        self._passed = 0
        if self.bound:
            self.current.copy_(self._ended(torch.ones_like(self.windows, dtype=torch.bool)))

    def _ended(self, ended: Tensor) -> Tensor:
        """End the epoch if ``ended`` is True, and return the weights. Without a branch, so that nothing synchronises."""
        loss_sum, loss_count, mean_before, mean_last = self.loss_sum, self.loss_count, self.mean_before, self.mean_last
        closes = ended & (loss_count > 0)
        mean = loss_sum / loss_count.clamp_min(1)
        torch.where(closes, mean_last, mean_before, out=mean_before)
        torch.where(closes, mean, mean_last, out=mean_last)
        self.means.add_(closes)
        for pending in (loss_sum, loss_count, self.windows):
            pending.masked_fill_(ended, 0)
        return self._weights(closes)

    def _weights(self, members: Tensor) -> Tensor:
        mean_last = self.mean_last
        ratio = (mean_last / self.mean_before.clamp_min(torch.finfo(mean_last.dtype).tiny)).clamp(_LOW, _HIGH)
        ratio = torch.where(self.means >= 2, ratio, 1.0)
        shares = torch.where(members, ratio / self.temperature, -torch.inf).softmax(0)
        return redistribute(shares, members, self.current, float(ratio.shape[0]))

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
        windows = state_dict.get(prefix + "windows")
        if windows is not None:
            self._passed = None if windows.is_meta else int(windows)

    def _warn_without_epochs(self) -> None:
        if torch.compiler.is_compiling():
            return
        self._unended += 1
        if self._unended == _PATIENCE:
            warnings.warn(
                f"dwa: no epoch has ended in {_PATIENCE} windows, so the weights did not change. Call "
                "criterion.end_epoch() after each epoch, or choose a `window`.",
                stacklevel=2,
            )

    def diagnostics(self) -> Mapping[str, Tensor]:
        return {"mean_last": self.mean_last.clone(), "mean_before": self.mean_before.clone()}
