"""Calls that torch.compile leaves to Python: behind a graph break, or with ``fullgraph=True`` an error that says why.

Imported only while torch compiles: ``torch.compiler.disable`` loads the compiler, which takes a second.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

__all__ = [
    "TRACES_STATE",
    "accumulating",
    "debugging",
    "drawing",
    "first_call",
    "measuring",
    "moving",
    "recording",
    "replaying",
    "summing",
]

Run = Callable[..., Tensor]
# Torch 2.4 loses, in silence, some of what a traced call writes to the state of a weighting. Where that ended is not known;
# a torch that lets a graph break have a reason was seen to do it right.
TRACES_STATE = "reason" in inspect.signature(torch.compiler.disable).parameters


def _outside(reason: str) -> Run:
    def run(call: Callable[..., Tensor], *args: Any, **options: Any) -> Tensor:
        return call(*args, **options)

    disabled: Run = torch.compiler.disable(run, **({"reason": reason} if TRACES_STATE else {}))  # type: ignore[no-untyped-call]
    return disabled


_ELSE = "With fullgraph=True, compile the model and call the criterion outside of what is compiled."
first_call = _outside(
    "a criterion reads labels until each task has had some, to tell its kind and to allocate its state. Call it once with "
    "all tasks before the compiled call, in training or in evaluation, or load its state."
)
measuring = _outside(f"the weighting measures gradients within the call, which cannot be traced. {_ELSE}")
accumulating = _outside(f"accumulate is not 1, and calls are counted on the host. {_ELSE}")
summing = _outside(f"losses are summed over the ranks within the call. {_ELSE}")
drawing = _outside(f"the weighting draws random numbers, or reads values on the host. {_ELSE}")
replaying = _outside(f"losses after an optimizer step are gathered on the host. {_ELSE}")
moving = _outside(f"this version of torch does not trace the state of a weighting. {_ELSE}")
recording = _outside(f"a History records the windows on the host. {_ELSE}")
debugging = _outside("debug=True reads the values of every call. Leave it out.")
