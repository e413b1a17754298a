"""An inner shape copied, saved and built again."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from typing import Final

import torch

from mtl_axes.testing.case import both, constructors, equal
from mtl_axes.testing.inner_case import InnerCase, per_kind

__all__ = ["CHECKS"]


def copies(case: InnerCase) -> None:
    """deepcopy, pickle and load_state_dict keep the function."""
    shape = case.build()
    prediction, target = case.several()
    expected = shape(prediction, target)
    file = io.BytesIO()
    torch.save(shape.state_dict(), file)
    file.seek(0)
    case.claim = "should load its state"
    fresh = case.build()
    fresh.load_state_dict(torch.load(file, weights_only=True))
    twins = {"load_state_dict": fresh}
    case.claim = "should survive deepcopy"
    twins["deepcopy"] = copy.deepcopy(shape)
    # A class within a function is one that pickle cannot find, whatever it does.
    if "<locals>" not in type(shape).__qualname__:
        case.claim = "should survive pickle"
        twins["pickle"] = pickle.loads(pickle.dumps(shape))
    for how, twin in twins.items():
        found = twin(prediction, target)
        case.require(equal(found, expected), f"should give the same losses after {how}", " and ".join(both(found, expected)))


def rebuilt(case: InnerCase) -> None:
    """The repr is the constructor call, and the options are its arguments."""
    shape = case.build()
    prediction, target = case.several()
    expected = shape(prediction, target)
    case.require_options(shape)
    case.claim = f"should have the constructor call as its repr, {shape!r}"
    twins = {"the repr": eval(repr(shape), constructors(shape))}
    case.claim = "should have the constructor's arguments as its options"
    twins["options()"] = type(shape)(**shape.options())
    for what, twin in twins.items():
        found = twin(prediction, target)
        case.require(repr(twin) == repr(shape), f"should be built again from {what}", repr(twin))
        case.require(
            equal(found, expected), f"should be built again from {what}", f"losses {' and '.join(both(found, expected))}"
        )


CHECKS: Final[dict[str, Callable[[InnerCase], None]]] = {
    "copies": per_kind(copies),
    "rebuilt": per_kind(rebuilt),
}
