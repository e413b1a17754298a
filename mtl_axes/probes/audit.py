"""The audit of a cheap probe: exact norms now and then, and by how much the cheap ones are off."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from mtl_axes.options import check_number
from mtl_axes.probes.base import Measurement, Tape
from mtl_axes.probes.discovery import refuse_static_ddp
from mtl_axes.probes.exact import Exact

__all__ = ["Audit"]


class Audit:
    """Compares the norms of a cheap probe with exact ones of the same call.

    A common factor does not change weights, so what counts is e_i = log(cheap_i / exact_i) minus its mean over the tasks:
    an error of e means that the task's norm is off by the factor exp(e) relative to the others.

    Args:
        every: None, or audit in every n-th measured window, n >= 1.
    """

    def __init__(self, every: int | None) -> None:
        if every is not None:
            check_number("audit_every", every, low=1, integer=True)
        self.every = every
        self._exact = Exact(reuse=False)
        self._error: Tensor | None = None

    def check(self, tape: Tape) -> bool:
        """Check in the first calls that the exact norms can be measured; see :meth:`Probe.check`."""
        if self.every is None:
            return True
        refuse_static_ddp(tape.graph().static_ddp, "Leave out audit_every, or static_graph.")
        return self._exact.check(tape)

    def exact(self, tape: Tape) -> Measurement | None:
        """Return the exact norms, in a window that is audited."""
        return None if self.every is None or tape.turn % self.every else self._exact.measure(tape, "norms")

    def compare(self, measured: Measurement | None, cheap: Tensor) -> None:
        """Note the error of the cheap norms (K,)."""
        if measured is None:
            return
        exact = measured.norms
        both = torch.isfinite(exact) & torch.isfinite(cheap) & (exact > 0) & (cheap > 0)
        ratio = torch.where(both, cheap, 1.0).log() - torch.where(both, exact, 1.0).log()
        mean = torch.where(both, ratio, 0.0).sum() / both.sum().clamp_min(1)
        self._error = torch.where(both, ratio - mean, torch.nan)

    def diagnostics(self) -> Mapping[str, Tensor]:
        """Return the errors e (K,) of the last audit, NaN for a task that could not be compared."""
        return {} if self._error is None else {"audit_error": self._error}

    def describe(self) -> str:
        """Return what the last audit found, for ``explain()``."""
        if self.every is None:
            return "; not audited (audit_every)"
        if self._error is None:
            return f"; audited in every {self.every} measured windows, not yet"
        factors = ", ".join(f"{factor:.3g}" for factor in self._error.exp().tolist())
        return f"; at the last audit the norms were off by the factors {factors} relative to each other"
