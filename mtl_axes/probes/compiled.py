"""Compiled backwards: whether one can run a second time, which measuring before the user's own backward asks of it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch._functorch.config as functorch_config
from torch import Tensor
from torch.autograd.graph import GradientEdge

from mtl_axes.errors import GraphError

__all__ = ["check_runs_twice", "explained"]


def _donated() -> GraphError:
    """Return the error about a compiled backward that gives its buffers away."""
    return GraphError(
        "A compiled module gives its buffers away in the first backward (torch._functorch.config.donated_buffer = True), "
        "but gradients are measured before yours. Set it to False before torch.compile."
    )


def check_runs_twice(loss: Tensor, inputs: Sequence[Tensor] | Sequence[GradientEdge]) -> None:
    """Check that a graph with compiled parts gives the gradients at ``inputs`` twice.

    Raises:
        GraphError: a compiled backward cannot run a second time, or gives another gradient when it does.
    """
    if getattr(functorch_config, "donated_buffer", False):
        raise _donated()
    first, second = (torch.autograd.grad(loss, inputs, retain_graph=True, allow_unused=True) for _ in range(2))
    pairs = zip(first, second, strict=True)
    # Far above what nondeterministic kernels differ by; the fault replaces whole buffers. Not finite: no verdict.
    if any(one is not None and bool((one - other).norm() > 0.01 * one.norm()) for one, other in pairs):
        raise GraphError(
            "A compiled backward gave another gradient the second time: it was compiled with "
            "torch._functorch.config.donated_buffer = True, now or in an earlier run that filled torch's cache on "
            "disk. Set it to False before torch.compile, and clear that cache (TORCHINDUCTOR_CACHE_DIR) or set "
            "TORCHINDUCTOR_FORCE_DISABLE_CACHES=1."
        )


def explained(error: RuntimeError, task: str) -> RuntimeError:
    """Return what to raise for an error of torch in the backward of a task: with advice where it is known."""
    if "fabric.backward" in str(error):
        return GraphError(
            f"The gradient of task {task!r} cannot be measured before your backward: Fabric has set up the model in a "
            'precision or strategy that allows fabric.backward(loss) alone. Use probe="lagged", which measures in there.'
        )
    if "use_reentrant" in str(error):
        return GraphError(
            f"The gradient of task {task!r} cannot be measured through reentrant activation checkpointing. Use "
            "torch.utils.checkpoint.checkpoint(..., use_reentrant=False)."
        )
    if "second time" in str(error):
        return GraphError(
            f"The graph of task {task!r} was freed by an earlier backward, so its gradient cannot be measured. "
            "Call the criterion before loss.backward(), once per forward pass."
        )
    return _donated() if "donated buffers" in str(error) else error
