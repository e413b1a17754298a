"""Calls that torch.compile leaves to Python: behind a graph break, or with ``fullgraph=True`` an error that says why.

Imported only while torch compiles: ``torch.compiler.disable`` loads the compiler, which takes a second.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from mtl_axes.mode import Mode
from mtl_axes.outer import OuterWeighting
from mtl_axes.window import Window

__all__ = ["TRACES_STATE", "detour"]

Run = Callable[..., Tensor]
# Torch 2.4 loses, in silence, some of what a traced call writes to the state of a weighting. Where that ended is not known;
# a torch that lets a graph break have a reason was seen to do it right.
TRACES_STATE = "reason" in inspect.signature(torch.compiler.disable).parameters


def _outside(reason: str) -> Run:
    def run(call: Callable[..., Tensor], *args: Any, **options: Any) -> Tensor:
        return call(*args, **options)

    disabled: Run = torch.compiler.disable(run, **({"reason": reason} if TRACES_STATE else {}))  # type: ignore[no-untyped-call]
    return disabled


_OTHERWISE = "With fullgraph=True, compile the model and call the criterion outside of what is compiled."
_FIRST_CALL = _outside(
    "a criterion reads labels until each task has had some, to infer its kind and to allocate its state. Call it once with "
    "all tasks before the compiled call, in training or in evaluation, or load its state."
)
_MEASURES = _outside(f"the weighting measures gradients within the call, which cannot be traced. {_OTHERWISE}")
_ACCUMULATES = _outside(f"accumulate is not 1, and calls are counted on the host. {_OTHERWISE}")
_SUMS_OVER_RANKS = _outside(f"losses are summed over the ranks within the call. {_OTHERWISE}")
_DRAWS = _outside(f"the weighting draws random numbers, or reads values on the host. {_OTHERWISE}")
_AFTER_STEP = _outside(f"losses after an optimizer step are gathered on the host. {_OTHERWISE}")
_UPDATES_STATE = _outside(f"this version of torch does not trace the state of a weighting. {_OTHERWISE}")
_RECORDS = _outside(f"a History records the windows on the host. {_OTHERWISE}")
_DEBUGS = _outside("criterion.debug reads the values of every call. Set it to False.")


def detour(
    mode: Mode, outer: OuterWeighting, window: Window, *, debug: bool, recorded: bool, over_ranks: bool, legible: bool
) -> Run | None:
    """Return what runs a call in Python if torch.compile cannot trace it; else None.

    Args:
        mode: the kind of call.
        outer: the weighting.
        window: the window.
        debug: whether the values of every call are read.
        recorded: whether a History records the calls.
        over_ranks: whether the ranks agree within the call.
        legible: whether the call can do without reading values.
    """
    if debug:
        return _DEBUGS
    if mode.kind == "after_step":
        return _AFTER_STEP
    if mode.kind == "training":
        for applies, leave in (
            (recorded, _RECORDS),
            (outer.needs != "losses", _MEASURES),
            (window.accumulate != 1, _ACCUMULATES),
            (outer.moves and not TRACES_STATE, _UPDATES_STATE),
            (not outer.traceable, _DRAWS),
        ):
            if applies:
                return leave
    if over_ranks:
        return _SUMS_OVER_RANKS
    return None if legible and window.allocated else _FIRST_CALL
