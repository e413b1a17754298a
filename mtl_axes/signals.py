"""What a weighting sees of a window (:class:`Signals`) and what a user sees of a call (:class:`StepReport`)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from mtl_axes.errors import DataError

__all__ = ["Kind", "Need", "Signals", "StepReport", "TaskInfo", "active_tasks", "is_finite", "wide"]

Kind = Literal["regression", "binary", "multiclass"]
Need = Literal["losses", "norms", "gramian"]

_WIDE = (torch.float32, torch.float64)


def wide(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype of statistics of ``dtype`` values: float32 or wider."""
    return dtype if dtype in _WIDE else torch.promote_types(dtype, torch.float32)


def is_finite(values: Tensor) -> Tensor:
    """Return ``torch.isfinite(values)``, in two kernels instead of four."""
    zeros_or_nan = values - values
    return zeros_or_nan == zeros_or_nan


def active_tasks(losses: Tensor, labelled: Tensor | None) -> Tensor:
    """Return which tasks have a label and a finite loss, (K,) bool; ``labelled`` is None if all have a label."""
    finite = is_finite(losses)
    return finite if labelled is None else labelled & finite


@dataclass(frozen=True)
class TaskInfo:
    """A task as a weighting sees it: its name, its kind and the lower bound of its loss, each None while unknown."""

    name: str
    kind: Kind | None = None
    lower_bound: float | None = None


@dataclass(frozen=True, init=False)
class Signals:
    r"""Statistics of one window, for :meth:`OuterWeighting.forward`.

    All tensors are detached, finite and in float32 or wider. A non-finite entry is replaced by 1 and its task marked
    inactive. A task is also inactive if its gradient norm is zero, because no weight can change what it contributes, or if
    its squared norm is outside the range of the Gramian's dtype.

    Args:
        losses: (K,) mean loss of each task over the window.
        norms: (K,) L2 norms of each task's gradient, or None. Taken from the diagonal if only ``gramian`` is given.
        gramian: (K, K) inner products of the tasks' gradients, or None.
        active: (K,) bool, True for a task that took part. None means all.
        elapsed: (K,) windows since the task's gradient was last measured; 1 if it is measured in every window.
        step: number of windows committed before this one, an int or a 0-dim integer tensor.

    Raises:
        DataError: the shapes do not agree on K.
    """

    losses: Tensor
    norms: Tensor | None
    gramian: Tensor | None
    active: Tensor
    elapsed: Tensor
    step: Tensor

    def __init__(
        self,
        losses: Tensor,
        norms: Tensor | None = None,
        gramian: Tensor | None = None,
        active: Tensor | None = None,
        elapsed: Tensor | None = None,
        step: int | Tensor = 0,
    ) -> None:
        losses = losses.detach()
        losses = losses.to(wide(losses.dtype))
        count = losses.shape[0] if losses.ndim == 1 else -1
        for name, value, shape in (
            ("losses", losses, (count,)),
            ("norms", norms, (count,)),
            ("gramian", gramian, (count, count)),
            ("active", active, (count,)),
            ("elapsed", elapsed, (count,)),
        ):
            if value is not None and tuple(value.shape) != shape:
                raise DataError(
                    f"Signals need `losses` of shape (K,) and a matching `{name}`. "
                    f"Found losses {tuple(losses.shape)} and {name} {tuple(value.shape)}."
                )
        finite = is_finite(losses)
        active = finite if active is None else finite & active.detach()
        if gramian is not None:
            gramian = gramian.detach().to(losses.dtype)
            squares = gramian.diagonal()
            # Squares of norms leave the range of float32 long before the norms: below 1e-19 and above 1e19.
            active = active & is_finite(squares) & (squares >= torch.finfo(squares.dtype).tiny)
            if norms is None:
                norms = squares.clamp_min(0).sqrt()
        if norms is not None:
            norms = norms.detach().to(losses.dtype)
            active = active & is_finite(norms) & (norms > 0)
            norms = torch.where(active, norms, 1.0)
        if gramian is not None:
            eye = torch.eye(count, dtype=gramian.dtype, device=gramian.device)
            gramian = torch.where(active[:, None] & active[None, :], gramian, eye)
        elapsed = torch.ones_like(losses) if elapsed is None else elapsed.detach().to(losses.dtype)
        step = step if isinstance(step, Tensor) else torch.full((), step, device=losses.device)
        for name, value in (
            ("losses", torch.where(active, losses, 1.0)),
            ("norms", norms),
            ("gramian", gramian),
            ("active", active),
            ("elapsed", elapsed),
            ("step", step),
        ):
            object.__setattr__(self, name, value)

    @classmethod
    def of_losses(cls, losses: Tensor, active: Tensor | None, step: int | Tensor) -> Signals:
        """Return the signals of one call for a loss-based weighting: the constructor's, at a lower cost.

        Args:
            losses: (K,), detached and in float32 or wider.
            active: (K,) bool, True for a task that took part. None means all.
            step: number of windows committed before this one, an int or a 0-dim integer tensor.
        """
        finite = is_finite(losses)
        active = finite if active is None else finite & active
        ones = torch.ones_like(losses)
        signals = cls.__new__(cls)
        # Without the checks of the constructor and of the frozen dataclass, which cost more than the values.
        signals.__dict__.update(
            losses=torch.where(active, losses, ones),
            norms=None,
            gramian=None,
            active=active,
            elapsed=ones,
            step=step if isinstance(step, Tensor) else torch.full((), step, device=losses.device),
        )
        return signals

    @property
    def size(self) -> int:
        """Number of tasks K."""
        return self.losses.shape[0]


@dataclass(frozen=True)
class StepReport:
    """What the last training call did. All tensors are detached and stay on the device: reading a value synchronises.

    Attributes:
        tasks: names of the K tasks, in the order of every tensor below.
        losses: (K,) mean loss of each task as it entered the sum; 0 for an absent task.
        weights: (K,) the weights that multiplied them.
        norms: (K,) gradient norms measured in this call, or None if nothing was measured.
        cosines: (K, K) cosines between the task gradients, or None if no Gramian was measured.
        active: (K,) bool, True for a task with a label, a finite loss and, if measured, a finite non-zero gradient.
        measured: (K,) bool, True if this call measured the task's gradient.
        dropped: (K,) number of calls so far in which a non-finite value of the task was left out of the state.
        step: windows committed so far, including this call's if it committed one.
        extra: further values of the weighting, from :meth:`OuterWeighting.diagnostics`.
    """

    tasks: tuple[str, ...]
    losses: Tensor
    weights: Tensor
    norms: Tensor | None
    cosines: Tensor | None
    active: Tensor
    measured: Tensor
    dropped: Tensor
    step: int
    extra: Mapping[str, Tensor] = field(default_factory=dict)
