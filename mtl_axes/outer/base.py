"""The base class of outer weightings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from mtl_axes._state import WideState
from mtl_axes.errors import PluginError, StateError
from mtl_axes.options import constructor_repr, read_options
from mtl_axes.signals import Need, Signals, TaskInfo


class OuterWeighting(WideState):
    """The outer axis: one weight per task, from the statistics of a window.

    A minimal weighting defines ``needs`` and ``forward`` only. State is registered as buffers in ``bind``, so that it is
    saved, and updated in place in ``forward``. A weighting that is called without a criterion binds itself to the K tasks of
    the first signals.

    Attributes:
        needs: ``"losses"``, ``"norms"`` or ``"gramian"``: what ``forward`` reads, and therefore what is measured.
        learnable: True if it has parameters for the user's optimizer. They exist from ``bind`` on.
        nonnegative: True if it takes ratios or logarithms of losses, and so refuses shapes that can be negative.
        reads_signals: False if the weights do not depend on the signals, so that ranks need not agree on them.
        moves: False if ``forward`` updates no state and always returns ``weights()``, as constants do. A criterion then
            reads the weights without calling it. Defining ``forward`` in a subclass sets it to True by default.
        total: ``"1"`` or ``"K"`` if that is the sum of the weights while every task is active; None promises nothing.
        sign: ``"positive"``, ``"nonnegative"``, or ``"any"`` if weights can be negative.
        memoryless: True if an inactive task gets the weight 0, and the others what they would get without it; False if it
            keeps its weight and its state. If no task is active, weights stay unchanged in both cases. If a criterion holds
            weights for later calls, an inactive task always keeps its last weight there.
        symmetric: True if permuting the tasks permutes the weights. False for random weightings, and if tasks have roles.
        scaling: the effect of multiplying all losses by c > 0, their norms by c and their Gramian by c^2: ``"invariant"`` if
            the weights stay, ``"inverse"`` if they are divided by c; None promises nothing.
        balances: True if multiplying one task's loss by c divides its weight by c, up to a factor that all tasks share.
        on_host: True if ``forward`` reads values on the host, as the small solvers do, and so waits for the device.
        traceable: False if ``forward`` cannot be a part of a compiled graph. A criterion then leaves the graph for it.
        example: options for examples and tests, if the constructor requires some.
        wants_after_step: True if it also needs the losses after the optimizer step, see :meth:`after_step`. A weighting that
            wraps others returns it from a property, True if one of them is, and passes ``after_step`` on.
        current: (K,) buffer, the weights that the last call returned; 1/K before the first.
        dtype: of the floating point state to allocate in ``bind``; float32, or wider if the losses are.
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

        Called once. A kind that is not known yet is None; ``tasks`` is replaced when kinds become known.

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
        """Return whether gradients are needed in window ``step``. False saves their cost, for example in a warm-up."""
        return True

    def forward(self, signals: Signals, /) -> Tensor:
        """Update the state by one window and return the weights (K,). Only :meth:`after_step` updates it, too.

        An inactive task must not be updated: a weighting without memory gives it 0 and the others the solution of the
        sub-problem; a weighting with memory keeps its state.
        """
        raise NotImplementedError(f"{type(self).__name__} should define forward(signals)")

    def __call__(self, signals: Signals, /) -> Tensor:
        """Run ``forward``, after binding if necessary, and keep its result for :meth:`weights`."""
        if not self.bound:
            self.bind_unnamed(signals.size, signals.losses.dtype)
        if signals.size != len(self.tasks):
            raise StateError(
                f"{self!r} is bound to {len(self.tasks)} tasks and was called with signals of {signals.size}. Use another "
                "weighting for other tasks."
            )
        self.follow(signals.losses)
        weights: Tensor = super().__call__(signals)
        current = self.current
        if not isinstance(weights, Tensor) or weights.shape != current.shape:
            returned = tuple(weights.shape) if isinstance(weights, Tensor) else type(weights).__name__
            raise PluginError(f"{self!r} should return weights of shape ({signals.size},). Found {returned}.")
        current.copy_(weights.detach())
        return weights

    def after_step(self, losses: Tensor, active: Tensor, /) -> None:
        """Update the state by the losses after the optimizer step of the last window. Does nothing by default.

        Called only if ``wants_after_step`` is True and the training loop provides these losses, at most once per window,
        after its ``forward`` and before the next; not if the optimizer step was skipped. ``forward`` keeps what it compares
        with in buffers. It may change :meth:`weights`, by writing ``current``.

        Args:
            losses: (K,) mean loss of each task on the same batches after the step, over all ranks if these agree;
                detached, finite, in the dtype of the statistics, and 1 for an inactive task.
            active: (K,) bool, True if the task has a finite loss there. An inactive task must not be updated.
        """

    def weights(self) -> Tensor:
        """Return the weights (K,) of the next sum, without changing state. They have a graph only if learnable."""
        return self.current

    def reference(self) -> Tensor:
        """Return the weights (K,) of evaluation losses: 1/K, so that they are comparable between epochs."""
        return torch.full_like(self.current, 1.0 / len(self.tasks))

    def penalty(self) -> Tensor | None:
        """Return terms (K,), one per task, to add to the weighted sum, or None.

        The criterion adds the terms of the tasks that take part in a call.
        """
        return None

    def end_epoch(self) -> None:
        """Update the state at the end of an epoch. Does nothing by default."""

    def diagnostics(self) -> Mapping[str, Tensor]:
        """Return additional values for the report."""
        return {}

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        saved = state_dict.get(prefix + "current")
        if saved is not None and self.bound:
            if saved.shape != self.current.shape:
                raise StateError(
                    f"{type(self).__name__} is bound to {len(self.tasks)} tasks and cannot load a state of {saved.shape[0]}."
                )
            self.follow(saved.to(self.current.device))
        elif saved is not None:
            self.bind_unnamed(saved.shape[0], saved.dtype)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def __repr__(self) -> str:
        return constructor_repr(self)
