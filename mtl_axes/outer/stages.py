"""What the stages share: a weighting around any other weighting."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor

from mtl_axes.errors import OptionError
from mtl_axes.outer.base import OuterWeighting
from mtl_axes.registry import resolve
from mtl_axes.signals import Need, Signals, TaskInfo

__all__ = ["Stage"]


class Stage(OuterWeighting):
    """A weighting that changes what another one, its base, returns. What it claims follows from what the base claims.

    A subclass defines :meth:`reshaped`, or ``forward`` where it has a state of its own. The state of the base is part of its
    state, under ``base.``.

    Args:
        base: a registered name, ``{"name": ..., **options}``, or an :class:`OuterWeighting` that was not called yet, of
            which the stage takes a copy.

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
                f"{type(self).__name__} needs a base that computes its weights. Found {given!r}, whose weights an optimizer "
                "learns together with a penalty that would no longer belong to them. Use it as it is."
            )
        if given.bound:
            raise OptionError(
                f"{type(self).__name__} needs a base that was not called yet. Found {given!r} bound to the tasks "
                f"{[task.name for task in given.tasks]}. Pass a name, or a fresh weighting."
            )
        # Copies: one to move, and one that stays as it is for `options`. In a tuple it is no part of the state.
        self.base = copy.deepcopy(given)
        self._given = (copy.deepcopy(given),)
        # Read in every window, and as fixed as the options that it may depend on.
        self._base_memoryless, self._base_total = given.memoryless, given.total

    def options(self) -> dict[str, Any]:
        options = super().options()
        return {**options, "base": self._given[0]} if "base" in options else options

    @property
    def needs(self) -> Need:  # type: ignore[override]
        """That of the base, as every claim below unless a stage says otherwise."""
        return self.base.needs

    @property
    def nonnegative(self) -> bool:  # type: ignore[override]
        return self.base.nonnegative

    @property
    def reads_signals(self) -> bool:  # type: ignore[override]
        return self.base.reads_signals

    @property
    def moves(self) -> bool:  # type: ignore[override]
        return self.base.moves

    @property
    def total(self) -> Literal["1", "K"] | None:  # type: ignore[override]
        return self._base_total

    @property
    def sign(self) -> Literal["positive", "nonnegative", "any"]:  # type: ignore[override]
        return self.base.sign

    @property
    def memoryless(self) -> bool:  # type: ignore[override]
        return self._base_memoryless

    @property
    def symmetric(self) -> bool:  # type: ignore[override]
        return self.base.symmetric

    @property
    def scaling(self) -> Literal["invariant", "inverse"] | None:  # type: ignore[override]
        """Invariant when the base is; the threshold or the memory of a stage has a scale of its own."""
        return "invariant" if self.base.scaling == "invariant" else None

    @property
    def on_host(self) -> bool:  # type: ignore[override]
        return self.base.on_host

    @property
    def traceable(self) -> bool:  # type: ignore[override]
        return self.base.traceable

    @property
    def wants_after_step(self) -> bool:  # type: ignore[override]
        return self.base.wants_after_step

    @property
    def tasks(self) -> tuple[TaskInfo, ...]:
        """The tasks, of which the base learns whenever they are set here."""
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
        # What never moves follows from the options, which a checkpoint must not overrule.
        self.register_buffer("current", self.reshaped(self.base.current, None).clone(), persistent=self.moves)

    def reshaped(self, weights: Tensor, members: Tensor | None, /) -> Tensor:
        """Return what the stage makes of weights (K,) of its base.

        Args:
            weights: (K,)
            members: (K,) bool, the tasks that ``weights`` are for, all others having the weight 0; None means all.
        """
        return weights

    def forward(self, signals: Signals, /) -> Tensor:
        weights = self.advance(signals)
        if not self._base_memoryless:
            return self.reshaped(weights, None)
        active = signals.active
        return torch.where(active.any(), self.reshaped(weights, active), self.current)

    def advance(self, signals: Signals, /) -> Tensor:
        """Move the base by one window and return its weights (K,)."""
        # What else a call does, binding and moving state to the device, this stage's own call has done for the base, too.
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
        self._base_moved()

    def after_step(self, losses: Tensor, active: Tensor, /) -> None:
        self.base.after_step(losses, active)
        self._base_moved()

    def _base_moved(self) -> None:
        """Take over weights that the base changed between two windows. One without memory has nothing to change."""
        if self.bound and not self._base_memoryless:
            self.current.copy_(self.reshaped(self.base.current, None))

    def diagnostics(self) -> Mapping[str, Tensor]:
        return self.base.diagnostics()
