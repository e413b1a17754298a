"""The lagged probe: norms at the representation, recorded during the user's own backward."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from mtl_axes.distributed import norms_over_ranks
from mtl_axes.probes.base import Measurement, Tape
from mtl_axes.probes.border import BorderProbe, Parts, add_part, border_of, norm_of_parts, others_measure, record
from mtl_axes.signals import Need, wide

__all__ = ["Lagged"]


class Lagged(BorderProbe):
    """Norms of dL_i / dr at the representation r, as with :class:`Representation`, without an additional backward.

    Hooks on the graph of a call record the gradient that the user's backward sends over the border of each task's private
    part, and divide it by the gradient that arrives at the task's loss, so that weights, loss scale and accumulation cancel.
    The norms are known after that backward, so the weights of a window come from the windows before it. A term that was
    added to the loss through a task's private part counts as a part of that task.

    Without a backward nothing is recorded. A second backward of a call replaces what the first one recorded. A task whose
    weight is 0, or whose loss scale is 0 or not finite, is inactive.

    >>> Lagged()
    Lagged()
    """

    same_step: ClassVar[bool] = False

    def __init__(self) -> None:
        super().__init__()
        self._records: list[_Record] = []

    def measure(self, tape: Tape, need: Need) -> Measurement | None:
        border = border_of(tape)
        if border is None and not others_measure(tape):
            return None
        like = next(loss for loss in tape.losses if loss is not None)
        nothing = torch.zeros(len(tape.losses), dtype=wide(like.dtype), device=like.device)
        call = _Record(nothing, whole=tape.whole)
        for task, loss in enumerate(tape.losses):
            if loss is not None and border is None:
                call.leave_unknown(task, loss)
            elif loss is not None and border is not None and task in border.reads:
                nodes = len({node for node, _ in border.reads[task]})
                loss.register_hook(call.opener(task, nodes))  # type: ignore[no-untyped-call]
                record(border, task, call.receiver(task, loss.detach()))
        self._records.append(call)
        return None

    def collect(self) -> Measurement | None:
        records, self._records = self._records, []
        rows = [row for each in records if (row := each.close()) is not None]
        if not rows:
            return None
        norms = torch.stack([norms for norms, _ in rows])
        if any(each.whole for each in records):
            norms = norms_over_ranks(norms)
        # A norm that is not finite has to stay visible, NaN included, to be counted as dropped.
        recorded = norms != 0
        mean = torch.where(recorded, norms, 0.0).sum(0) / recorded.sum(0).clamp_min(1)
        measured = tuple(map(any, zip(*(flags for _, flags in rows), strict=True)))
        return Measurement(mean, None, measured)

    def discard(self) -> None:
        for each in self._records:
            each.close()
        self._records = []

    def get_extra_state(self) -> dict[str, Any]:
        """Return what was recorded in the pending window: norms (K,) and which tasks, call by call."""
        rows = self._rows()
        norms, measured, whole = zip(*rows, strict=True) if rows else ((), (), ())
        return {"norms": list(norms), "measured": [list(flags) for flags in measured], "whole": list(whole)}

    def set_extra_state(self, state: Mapping[str, Any]) -> None:
        """Load what was recorded in the pending window."""
        rows = zip(state["norms"], state["measured"], state["whole"], strict=True)
        self._records = [_Record.restored(norms, tuple(flags), whole) for norms, flags, whole in rows]

    def describe(self) -> str:
        return (
            f"lagged: norms at the representation, {self._described}, recorded in your own backward. Another quantity than "
            "the exact norms"
        )

    def __getstate__(self) -> dict[str, Any]:
        # A copy keeps what was recorded; the backward of a pending call belongs to the original.
        return {**self.__dict__, "_records": [_Record.restored(*row) for row in self._rows()]}

    def _rows(self) -> list[tuple[Tensor, tuple[bool, ...], bool]]:
        """Return the calls that have recorded something: norms (K,), which tasks, and whether all ranks add their part."""
        return [(*row, each.whole) for each in self._records if (row := each.row()) is not None]


class _Record:
    """The norms that backwards record of one call. It holds no part of the graph: the graph's hooks hold the record.

    Args:
        nothing: (K,) zeros.
        whole: True when every rank adds its part, even a rank that recorded nothing.
    """

    def __init__(self, nothing: Tensor, *, whole: bool) -> None:
        self.whole = whole
        self._norms: dict[int, Tensor] = {}
        self._parts: dict[int, Parts] = {}
        self._waiting: dict[int, set[int]] = {}
        self._scales: dict[int, Tensor] = {}
        self._backward: dict[int, int] = {}
        self._nothing = nothing
        self._closed = False

    @classmethod
    def restored(cls, norms: Tensor, flags: tuple[bool, ...], whole: bool) -> _Record:
        """Return a record that was saved, to which nothing is added."""
        call = cls(torch.zeros_like(norms), whole=whole)
        call._norms = {task: norm for task, (norm, flag) in enumerate(zip(norms.unbind(), flags, strict=True)) if flag}
        return call

    def leave_unknown(self, task: int, loss: Tensor) -> None:
        """Set the norm of a task to NaN: this rank cannot know it, and so no rank does."""
        self._norms[task] = torch.full_like(loss.detach(), torch.nan)

    def opener(self, task: int, nodes: int) -> Callable[[Tensor], None]:
        """Return the hook of a task's loss, which drops what an earlier backward recorded."""

        def hook(gradient: Tensor) -> None:
            if self._closed:
                return
            self._scales[task] = gradient.detach()
            self._parts[task], self._waiting[task] = {}, set(range(nodes))
            self._norms.pop(task, None)
            self._backward[task] = torch._C._current_graph_task_id()

        return hook

    def receiver(self, task: int, like: Tensor) -> Callable[[int, Parts], None]:
        """Return the function that is called with the gradients that pass the border of a task."""

        def receive(number: int, parts: Parts) -> None:
            waiting = self._waiting.get(task)
            # The backward of another loss may pass here too, without having begun at this task's loss.
            if self._closed or not waiting or self._backward[task] != torch._C._current_graph_task_id():
                return
            for position, gradient in parts.items():
                add_part(self._parts[task], position, gradient)
            waiting.discard(number)
            if not waiting:
                norm, scale = norm_of_parts(self._parts.pop(task), like), self._scales.pop(task).abs()
                usable = torch.isfinite(scale) & (scale > 0)
                self._norms[task] = torch.where(usable, norm / scale, 0.0)

        return receive

    def row(self) -> tuple[Tensor, tuple[bool, ...]] | None:
        """Return the norms (K,) and which of them were recorded, or None when there are none."""
        if not self._norms and not self.whole:
            return None
        zeros = self._nothing.unbind()
        norms = [self._norms.get(task, zero) for task, zero in enumerate(zeros)]
        return torch.stack(norms), tuple(self.whole or task in self._norms for task in range(len(zeros)))

    def close(self) -> tuple[Tensor, tuple[bool, ...]] | None:
        """Return the row, and ignore what is recorded later."""
        self._closed = True
        return self.row()
