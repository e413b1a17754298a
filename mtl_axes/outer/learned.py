"""The base class of learned weightings: the parameter, and a warning if no optimizer updates it."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor, nn

from mtl_axes.outer.base import OuterWeighting
from mtl_axes.signals import Signals, TaskInfo

_PATIENCE = 20


class LearnedWeighting(OuterWeighting):
    """A weighting whose weights are a function of one parameter (K,), which starts at 0 and is in the user's optimizer.

    A subclass defines :meth:`read` and :meth:`penalty`. Gradients reach the parameter through ``weights()`` and
    ``penalty()``. A warning is shown once if they arrive in many windows and the parameter never changes.

    Attributes:
        parameter_name: name of the parameter as an attribute, in the state and in reports.
        called: the registered name and a plural noun for the entries, for the warning.
    """

    needs = "losses"
    reads_signals = False
    learnable = True
    parameter_name: ClassVar[str]
    called: ClassVar[str]

    def __init__(self) -> None:
        super().__init__()
        self._got_gradient = False
        self._windows = 0
        self._version = 0
        self._before: Tensor | None = None

    def bind(self, tasks: tuple[TaskInfo, ...]) -> None:
        super().bind(tasks)
        self.register_parameter(self.parameter_name, nn.Parameter(torch.zeros(len(tasks), dtype=self.dtype)))

    def forward(self, signals: Signals, /) -> Tensor:
        self._watch_optimizer()
        return self.weights()

    def weights(self) -> Tensor:
        weights = self.read()
        if weights.requires_grad and not torch.compiler.is_compiling() and self._windows <= _PATIENCE:
            weights.register_hook(self._note_gradient)  # type: ignore[no-untyped-call]
        return weights

    def read(self) -> Tensor:
        """Return the weights (K,) as a function of the parameter."""
        raise NotImplementedError

    def diagnostics(self) -> Mapping[str, Tensor]:
        return {self.parameter_name: self._learned().detach().clone()}

    def _learned(self) -> Tensor:
        learned: Tensor = getattr(self, self.parameter_name)
        return learned

    def _note_gradient(self, gradient: Tensor) -> None:
        self._got_gradient = True

    def _watch_optimizer(self) -> None:
        """Warn once if gradients arrive in many windows and no optimizer updates the parameter."""
        if torch.compiler.is_compiling() or self._windows > _PATIENCE:
            return
        learned = self._learned()
        if self._before is None:
            self._version, self._before = learned._version, learned.detach().clone()
        self._windows += self._got_gradient
        self._got_gradient = False
        if self._windows <= _PATIENCE:
            return
        before, self._before = self._before, None
        # A fused optimizer does not raise the version, so the values are compared. This waits for the device, once in a run.
        if learned._version == self._version and torch.equal(before.to(learned), learned):
            warnings.warn(
                f"{self.called} received gradients over {_PATIENCE} steps and did not change, so they are not in the "
                "optimizer. Add criterion.param_groups() to its parameter groups.",
                stacklevel=2,
            )
