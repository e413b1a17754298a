"""The exact probe: one gradient per task at the shared parameters, before the user's own backward."""

from __future__ import annotations

from typing import ClassVar

import torch
import torch._functorch.config as functorch_config
from torch import Tensor

from mtl_axes.errors import GraphError
from mtl_axes.probes.base import Measurement, Probe, Tape
from mtl_axes.probes.discovery import leaf_masks, reaches_compiled
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

    def check(self, tape: Tape) -> bool:
        present = self._present(tape)
        if reaches_compiled(tape.losses):
            self._check_compiled(tape, present)
        return self._shared_parameters(tape, present) is not None

    def measure(self, tape: Tape, need: Need) -> Measurement | None:
        present = self._present(tape)
        parameters = self._shared_parameters(tape, present)
        if parameters is None:
            return None
        rows = self._rows(tape, present, parameters, need) if parameters else {}
        missed = parameters and not any(rows.values())
        # One task alone may have nothing to do with the shared part; of several, this is another model.
        if missed and len(present) >= min(2, len(tape.names)) and tape.give_up_shared():
            return self.measure(tape, need)
        return self._measurement(tape, rows, need)

    @staticmethod
    def _present(tape: Tape) -> list[int]:
        present = [index for index, loss in enumerate(tape.losses) if loss is not None]
        for index in present:
            loss = tape.losses[index]
            if loss is not None and not loss.requires_grad:
                raise GraphError(
                    f"The loss of task {tape.names[index]!r} should have a graph, because gradients are measured. Found a "
                    "loss that does not require a gradient. Was its output detached, or its model frozen? Pass its target "
                    "as None to leave the task out."
                )
        return present

    @staticmethod
    def _shared_parameters(tape: Tape, present: list[int]) -> tuple[Tensor, ...] | None:
        """The shared parameters, none when those given are frozen; None when a lone task does not tell what is shared."""
        known = tape.shared_is_known()
        if not known and len(present) < min(2, len(tape.names)):
            return None
        part = tape.shared_part()
        if not part.parameters and not known:
            raise GraphError(
                f"Two of the tasks {list(tape.names)} should reach a common parameter. Found none on the graph: do they "
                "share a trunk, and is it trainable? Pass shared=, a module or parameters."
            )
        return part.parameters

    @staticmethod
    def _check_compiled(tape: Tape, present: list[int]) -> None:
        """Refuse a compiled backward that cannot run twice, or that gives another gradient when it does."""
        if getattr(functorch_config, "donated_buffer", False):
            raise GraphError(
                "A compiled module should keep its buffers for a second backward, because gradients are measured before "
                "yours. Found torch._functorch.config.donated_buffer = True. Set it to False before torch.compile."
            )
        inputs = list(leaf_masks(tape.losses, through_opaque=True))
        loss = tape.losses[present[0]]
        assert loss is not None
        first, second = (torch.autograd.grad(loss, inputs, retain_graph=True, allow_unused=True) for _ in range(2))
        pairs = zip(first, second, strict=True)
        # Far above what nondeterministic kernels differ by; the fault replaces whole buffers. Not finite: no verdict.
        if any(one is not None and bool((one - other).norm() > 0.01 * one.norm()) for one, other in pairs):
            raise GraphError(
                "A compiled backward should give the same gradient twice. Found another the second time: torch took it "
                "from a cache on disk that was filled with donated_buffer = True. Clear that cache "
                "(TORCHINDUCTOR_CACHE_DIR) or set TORCHINDUCTOR_FORCE_DISABLE_CACHES=1."
            )

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
                if "use_reentrant" in str(error):
                    raise GraphError(
                        f"The graph of task {tape.names[index]!r} should be free of reentrant activation checkpointing, "
                        "which cannot be measured. Use torch.utils.checkpoint.checkpoint(..., use_reentrant=False)."
                    ) from error
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
