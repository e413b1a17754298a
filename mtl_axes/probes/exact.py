"""The exact probe: one gradient per task at the shared parameters, before the user's own backward."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from mtl_axes.errors import GraphError
from mtl_axes.probes.base import Measurement, Probe, Tape
from mtl_axes.signals import Need, wide

__all__ = ["Exact"]


class Exact(Probe):
    """Exact norms, and Gramian where needed, of dL_i / d(shared parameters), of the shaped loss on the same forward.

    Cost: one partial backward per measured task and measured window, beside the user's own. Nothing is written to
    ``.grad``. Hooks on activations fire once more per measurement. A task without a gradient on the shared part has the
    norm 0, which makes it inactive. Norms are summed in float32 or wider.

    >>> Exact()
    Exact()
    """

    provides: ClassVar[frozenset[Need]] = frozenset({"norms", "gramian"})
    same_step: ClassVar[bool] = True

    def measure(self, tape: Tape, need: Need) -> Measurement | None:
        present = [index for index, loss in enumerate(tape.losses) if loss is not None]
        for index in present:
            loss = tape.losses[index]
            if loss is not None and not loss.requires_grad:
                raise GraphError(
                    f"The loss of task {tape.names[index]!r} should have a graph, because gradients are measured. Found a "
                    "loss that does not require a gradient. Was its output detached, or its model frozen? Pass its target "
                    "as None to leave the task out."
                )
        if not tape.shared_is_known() and len(present) < min(2, len(tape.names)):
            return None
        part = tape.shared_part()
        if not part.parameters:
            raise GraphError(
                f"Two of the tasks {list(tape.names)} should reach a common parameter. Found none on the graph: do they "
                "share a trunk, and is it trainable? Pass shared=, a module or parameters."
            )
        rows = self._rows(tape, present, part.parameters, need)
        if all(not row for row in rows.values()) and tape.forget_shared():
            return self.measure(tape, need)
        return self._measurement(tape, rows, need)

    @staticmethod
    def _rows(tape: Tape, present: list[int], parameters: tuple[Tensor, ...], need: Need) -> dict[int, dict[int, Tensor]]:
        """Gradients by task and by position of the parameter; positions that a task does not reach are left out."""
        rows: dict[int, dict[int, Tensor]] = {}
        for index in present:
            loss = tape.losses[index]
            assert loss is not None
            try:
                gradients = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
            except RuntimeError as error:
                if "second time" not in str(error):
                    raise
                raise GraphError(
                    f"The graph of task {tape.names[index]!r} should still be there when its gradient is measured. Found it "
                    "freed by an earlier backward. Call the criterion before loss.backward(), once per forward pass."
                ) from error
            rows[index] = {
                position: _dense(gradient, need) if gradient.is_sparse else gradient
                for position, gradient in enumerate(gradients)
                if gradient is not None
            }
        return rows

    @staticmethod
    def _measurement(tape: Tape, rows: dict[int, dict[int, Tensor]], need: Need) -> Measurement:
        first = next(loss for loss in tape.losses if loss is not None)
        dtype = wide(first.dtype)
        zero = torch.zeros((), dtype=dtype, device=first.device)

        def norm(row: dict[int, Tensor]) -> Tensor:
            if not row:
                return zero
            parts = torch._foreach_norm(list(row.values()), 2, dtype)
            length: Tensor = torch.linalg.vector_norm(torch.stack([part.to(zero.device) for part in parts]))
            return length

        norms = torch.stack([norm(rows.get(index, {})) for index in range(len(tape.losses))])
        gramian = None
        if need == "gramian":
            entries = [[zero for _ in tape.losses] for _ in tape.losses]
            for i, left in rows.items():
                entries[i][i] = norms[i].square()
                for j in (other for other in rows if other < i):
                    dots = [
                        (left[position].to(dtype) * rows[j][position].to(dtype)).sum().to(zero.device)
                        for position in left
                        if position in rows[j]
                    ]
                    entries[i][j] = entries[j][i] = torch.stack(dots).sum() if dots else zero
            gramian = torch.stack([torch.stack(row) for row in entries])
        return Measurement(norms, gramian, tuple(loss is not None for loss in tape.losses))

    def describe(self) -> str:
        return (
            "exact: one partial backward per task in every measured window, beside your own backward; hooks on activations "
            "fire once more for each"
        )


def _dense(gradient: Tensor, need: Need) -> Tensor:
    """The entries of a sparse embedding gradient: their norm is the gradient's, but inner products need positions."""
    return gradient.to_dense() if need == "gramian" else gradient.coalesce().values()
