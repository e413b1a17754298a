"""The base class of the stages: a weighting around any other weighting."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor

from mtl_axes.errors import OptionError
from mtl_axes.outer.base import OuterWeighting
from mtl_axes.registry import resolve
from mtl_axes.signals import Signals, TaskInfo


def _from_base(claim: str) -> Any:
    def read(stage: Stage) -> Any:
        return getattr(stage.base, claim)

    return property(read)


class Stage(OuterWeighting):
    """A weighting that changes the weights of another one, its base. Its claims follow from the claims of the base.

    A subclass defines :meth:`reshaped`, or ``forward`` if it has state. The state of the base is saved with the stage,
    under ``base.``.

    Args:
        base: a registered name, ``{"name": ..., **options}``, or an :class:`OuterWeighting` that was not called yet. The
            stage copies it.

    Raises:
        OptionError: the base is none of these, was called already, or has parameters to learn.
    """

    base: OuterWeighting

    def __init__(self, base: OuterWeighting | Mapping[str, Any] | str) -> None:
        super().__init__()
        self._tasks: tuple[TaskInfo, ...] = ()
        given = resolve("outer", base, option="base")
        if given.learnable:
            raise OptionError(
                f"{type(self).__name__} cannot be put around {given!r}: an optimizer learns its weights together with a "
                "penalty, which would no longer fit them. Use it without a stage."
            )
        if given.bound:
            raise OptionError(
                f"{type(self).__name__} cannot be put around {given!r}, which is already bound to the tasks "
                f"{[task.name for task in given.tasks]}. Pass a name, or a weighting that was not called yet."
            )
        # Two copies: one to use, and an unused one for `options`, in a tuple so that it is not part of the state.
        self.base = copy.deepcopy(given)
        self._given = (copy.deepcopy(given),)
        # Read in every window. They depend on options alone, which do not change.
        self._base_memoryless, self._base_total = given.memoryless, given.total

    def options(self) -> dict[str, Any]:
        options = super().options()
        return {**options, "base": self._given[0]} if "base" in options else options

    needs = _from_base("needs")
    nonnegative = _from_base("nonnegative")
    reads_signals = _from_base("reads_signals")
    moves = _from_base("moves")
    sign = _from_base("sign")
    symmetric = _from_base("symmetric")
    on_host = _from_base("on_host")
    traceable = _from_base("traceable")
    wants_after_step = _from_base("wants_after_step")

    @property
    def total(self) -> Literal["1", "K"] | None:  # type: ignore[override]
        return self._base_total

    @property
    def memoryless(self) -> bool:  # type: ignore[override]
        return self._base_memoryless

    @property
    def scaling(self) -> Literal["invariant", "inverse"] | None:  # type: ignore[override]
        """Invariant if the base is. Otherwise none, because the threshold or the memory of a stage does not scale."""
        return "invariant" if self.base.scaling == "invariant" else None

    @property
    def tasks(self) -> tuple[TaskInfo, ...]:
        """The tasks. Setting them sets the tasks of the base, too."""
        return self._tasks

    @tasks.setter
    def tasks(self, tasks: tuple[TaskInfo, ...]) -> None:
        self._tasks = tasks
        self.base.tasks = tasks

    @property
    def bound(self) -> bool:
        """True once the tasks are known."""
        return "current" in self._buffers

    def bind(self, tasks: tuple[TaskInfo, ...]) -> None:
        self.base.dtype = self.dtype
        self.base.bind(tasks)
        super().bind(tasks)
        # Weights that never change follow from the options, which a checkpoint must not override.
        self.register_buffer("current", self.reshaped(self.base.current, None).clone(), persistent=self.moves)

    def reshaped(self, weights: Tensor, members: Tensor | None, /) -> Tensor:
        """Return the stage's version of its base's weights (K,).

        Args:
            weights: (K,)
            members: (K,) bool, the tasks that ``weights`` are for, while all others have the weight 0; None means all.
        """
        return weights

    def forward(self, signals: Signals, /) -> Tensor:
        weights = self.advance(signals)
        if not self._base_memoryless:
            return self.reshaped(weights, None)
        active = signals.active
        return torch.where(active.any(), self.reshaped(weights, active), self.current)

    def advance(self, signals: Signals, /) -> Tensor:
        """Update the base by one window and return its weights (K,)."""
        # Not by a call of the base: this stage's own call has already bound it and put its state on the device.
        base = self.base
        weights = base.forward(signals)
        base.current.copy_(weights)
        return weights

    def measures(self, step: int) -> bool:
        return self.base.measures(step)

    def reference(self) -> Tensor:
        return self.base.reference()

    def penalty(self) -> Tensor | None:
        return self.base.penalty()

    def end_epoch(self) -> None:
        self.base.end_epoch()
        self._base_updated()

    def after_step(self, losses: Tensor, active: Tensor, /) -> None:
        self.base.after_step(losses, active)
        self._base_updated()

    def _base_updated(self) -> None:
        """Take over weights that the base changed between two windows. A base without memory has none."""
        if self.bound and not self._base_memoryless:
            self.current.copy_(self.reshaped(self.base.current, None))

    def diagnostics(self) -> Mapping[str, Tensor]:
        return self.base.diagnostics()
