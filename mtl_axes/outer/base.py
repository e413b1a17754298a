"""The contract of an outer weighting."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from mtl_axes._state import WideState
from mtl_axes.errors import PluginError, StateError
from mtl_axes.options import constructor_repr, read_options
from mtl_axes.signals import Need, Signals, TaskInfo

__all__ = ["OuterWeighting"]


class OuterWeighting(WideState):
    """The outer axis: one weight per task, from the statistics of a window.

    A minimal weighting defines ``needs`` and ``forward`` only. One with state registers it as buffers in ``bind``, so
    that it is saved, and updates them in place in ``forward``. Called on its own, without a criterion, it binds itself to
    the K tasks of the first signals.

    Attributes:
        needs: ``"losses"``, ``"norms"`` or ``"gramian"``: what ``forward`` reads, and so what is measured for it.
        learnable: True when it has parameters, which then exist from ``bind`` on and go into the user's optimizer.
        nonnegative: True when it takes ratios or logarithms of losses, and so refuses shapes that can be negative.
        reads_signals: False when the weights do not depend on the signals, so that ranks need not agree on them.
        moves: False when ``forward`` moves no state and returns ``weights()`` whatever the signals, as constants do. A
            criterion then reads the weights without calling it. A subclass that defines ``forward`` has it True again
            unless it says otherwise.
        total: ``"1"`` or ``"K"`` when that is the sum of the weights while every task is active; None promises nothing.
        sign: ``"positive"``, ``"nonnegative"``, or ``"any"`` when weights can be negative.
        memoryless: True when an inactive task gets the weight 0, and the others what they would get without it; False when
            it keeps its weight and its state. With no active task at all, weights stay as they are in both cases. Where a
            criterion holds weights for later calls, an inactive task keeps its last weight there, too.
        symmetric: True when permuting the tasks permutes the weights. False for random weightings, and where tasks have
            roles.
        scaling: what all losses times c > 0 do, with their norms times c and their Gramian times c^2: ``"invariant"`` when
            the weights stay, ``"inverse"`` when they are divided by c; None promises nothing.
        balances: True when one task's loss times c divides its weight by c, up to a factor that all tasks share.
        on_host: True when ``forward`` reads values on the host, as the small solvers do: it waits for the device.
        traceable: False when ``forward`` cannot be a part of a compiled graph, which a criterion then leaves for it.
        example: options with which it is shown and tested, where the constructor needs some.
        wants_after_step: True when it is to be shown the losses after the optimizer step, too: see :meth:`after_step`. A
            weighting that wraps others returns it from a property, True where one of them wants it, and hands
            ``after_step`` on.
        current: (K,) buffer, the weights that the last call returned; 1/K before the first.
        dtype: of the floating point state to allocate in ``bind``; float32, or wider when the losses are.
    """

    needs: ClassVar[Need] = "losses"
    learnable: ClassVar[bool] = False
    nonnegative: ClassVar[bool] = False
    reads_signals: ClassVar[bool] = True
    moves: ClassVar[bool] = True
    total: ClassVar[Literal["1", "K"] | None] = None
    sign: ClassVar[Literal["positive", "nonnegative", "any"]] = "nonnegative"
    memoryless: ClassVar[bool] = False
    symmetric: ClassVar[bool] = True
    scaling: ClassVar[Literal["invariant", "inverse"] | None] = None
    balances: ClassVar[bool] = False
    on_host: ClassVar[bool] = False
    traceable: ClassVar[bool] = True
    example: ClassVar[Mapping[str, Any]] = {}
    wants_after_step: ClassVar[bool] = False

    current: Tensor
    tasks: tuple[TaskInfo, ...] = ()
    dtype: torch.dtype = torch.float32

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "forward" in vars(cls) and "moves" not in vars(cls):
            cls.moves = True

    def options(self) -> dict[str, Any]:
        """Return the constructor's arguments."""
        return read_options(self)

    def bind(self, tasks: tuple[TaskInfo, ...]) -> None:
        """Fix the tasks, allocate state of shape (K,), and check options that depend on K.

        Called once. Kinds that are not known yet are None; ``tasks`` is replaced when they become known.

        Raises:
            OptionError: an option does not fit the number or the names of the tasks.
        """
        self.tasks = tuple(tasks)
        self.register_buffer("current", torch.full((len(tasks),), 1.0 / len(tasks), dtype=self.dtype))

    def bind_unnamed(self, count: int, dtype: torch.dtype) -> None:
        """Bind to ``count`` tasks named "0", "1", ..., with state of the given dtype."""
        self.dtype = dtype
        self.bind(tuple(TaskInfo(str(index)) for index in range(count)))

    @property
    def bound(self) -> bool:
        """True once the tasks are known."""
        return bool(self.tasks)

    def measures(self, step: int) -> bool:
        """Return whether gradients are needed in window ``step``. One that ignores them for a while saves their cost."""
        return True

    def forward(self, signals: Signals, /) -> Tensor:
        """Move the state by one window and return the weights (K,). No other call but :meth:`after_step` moves state.

        A task that is not active must not move: a weighting without memory gives it 0 and the others the solution of
        the sub-problem, one with memory keeps its state.
        """
        raise NotImplementedError(f"{type(self).__name__} should define forward(signals)")

    def __call__(self, signals: Signals, /) -> Tensor:
        """Run ``forward``, binding first where needed, and remember its result for :meth:`weights`."""
        if not self.bound:
            self.bind_unnamed(signals.size, signals.losses.dtype)
        if signals.size != len(self.tasks):
            raise StateError(f"{self!r} is bound to {len(self.tasks)} tasks. Found signals of {signals.size}.")
        self.follow(signals.losses)
        weights: Tensor = super().__call__(signals)
        current = self.current
        if not isinstance(weights, Tensor) or weights.shape != current.shape:
            found = tuple(weights.shape) if isinstance(weights, Tensor) else type(weights).__name__
            raise PluginError(f"{self!r} should return weights of shape ({signals.size},). Found {found}.")
        current.copy_(weights.detach())
        return weights

    def after_step(self, losses: Tensor, active: Tensor, /) -> None:
        """Move the state by what the optimizer step of the last window did to the losses. Does nothing by default.

        Called where ``wants_after_step`` is True, at most once for a window that ``forward`` was given, and before the next;
        not for one whose optimizer step was skipped, nor where nobody provides these losses. What it compares with is kept
        by ``forward``, in buffers. It may change :meth:`weights`, by writing ``current``.

        Args:
            losses: (K,) mean loss of each task on the same batches after the step, over all ranks where these agree;
                detached, finite, in the dtype of the statistics, and 1 where a task is not active.
            active: (K,) bool, True where the task has a finite loss there. One that is not active must not move.
        """

    def weights(self) -> Tensor:
        """Return the weights (K,) of the next sum. A pure read; carries a graph only when the weighting is learnable."""
        return self.current

    def reference(self) -> Tensor:
        """Return the weights (K,) of evaluation losses: 1/K, so that they are comparable between epochs."""
        return torch.full_like(self.current, 1.0 / len(self.tasks))

    def penalty(self) -> Tensor | None:
        """Return terms that belong to the total beside the weighted sum, (K,) with one per task, or None.

        The criterion adds the terms of the tasks that take part in a call.
        """
        return None

    def end_epoch(self) -> None:
        """Take note that an epoch has ended."""

    def diagnostics(self) -> Mapping[str, Tensor]:
        """Return further values for the report."""
        return {}

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        saved = state_dict.get(prefix + "current")
        if saved is not None and self.bound:
            if saved.shape != self.current.shape:
                raise StateError(
                    f"{type(self).__name__} is bound to {len(self.tasks)} tasks. Found a state of {saved.shape[0]} tasks."
                )
            self.follow(saved.to(self.current.device))
        elif saved is not None:
            self.bind_unnamed(saved.shape[0], saved.dtype)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def __repr__(self) -> str:
        return constructor_repr(self)
