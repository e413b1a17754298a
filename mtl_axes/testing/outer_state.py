"""The state of an outer weighting: pure reads, checkpoints, copies, casts, devices, and options that build it again."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from mtl_axes.outer import OuterWeighting
from mtl_axes.signals import Signals, TaskInfo
from mtl_axes.testing.case import both, constructors, difference, equal, same, snapshot
from mtl_axes.testing.outer_case import OuterCase, f64
from mtl_axes.testing.problems import ordinary

__all__ = ["CHECKS"]


def reads(case: OuterCase) -> None:
    """Everything but forward and end_epoch is a pure read."""
    weighting = case.driven()
    case.given = ""
    before = snapshot(weighting)
    for name in ("weights", "reference", "penalty", "diagnostics", "options"):
        read = getattr(weighting, name)
        first, second = read(), read()
        alike = equal(first, second) if name != "options" else first.keys() == second.keys()
        case.require(alike, f"{name}() should read the same twice", f"{first} and {second}")
    weighting.measures(3), repr(weighting), weighting.state_dict()
    after = snapshot(weighting)
    case.require(same(after, before), "should move in forward alone", f"a change in {difference(after, before)}")
    for name, value in weighting.diagnostics().items():
        held = isinstance(value, Tensor) and not value.requires_grad
        case.require(held, "diagnostics() should be detached tensors", f"{name} of {type(value).__name__}")


def state(case: OuterCase) -> None:
    """A fresh weighting that loads a state before its first window goes on bit for bit."""
    for dtype in (f64, torch.float32):
        weighting = case.driven(dtype=dtype)
        case.given = ""
        buffers = dict(weighting.named_buffers())
        file = io.BytesIO()
        torch.save(weighting.state_dict(), file)
        file.seek(0)
        fresh = case.build()
        if case.tasks is not None:
            fresh = case.bound(dtype=dtype)
        fresh.load_state_dict(torch.load(file, weights_only=True))
        _goes_on(case, weighting, fresh, "should go on bit for bit from a loaded state", dtype)
        replaced = [name for name, buffer in weighting.named_buffers() if buffer is not buffers.get(name)]
        case.require(not replaced, "should change its buffers in place", f"another tensor at {', '.join(replaced)}")
        left, right = weighting.state_dict(), fresh.state_dict()
        case.require(
            equal(dict(left), dict(right)),
            "should have one state after both went on",
            f"a change in {difference(left, right)}",
        )


def copies(case: OuterCase) -> None:
    """deepcopy and pickle give a weighting that goes on like the original, and shares nothing with it."""
    ways: tuple[tuple[str, Callable[[Any], Any]], ...] = (
        ("deepcopy", copy.deepcopy),
        ("pickle", lambda given: pickle.loads(pickle.dumps(given))),
    )
    for way, copied in ways:
        weighting = case.driven()
        case.given = ""
        if way == "pickle" and "<locals>" in type(weighting).__qualname__:
            continue  # a class within a function is one that pickle cannot find, whatever it does
        case.claim = f"should survive {way}"
        twin = copied(weighting)
        kept = snapshot(twin)
        third = copied(weighting)
        case.show(third, ordinary(case.count, 77), 4)
        _goes_on(case, weighting, twin, f"should go on bit for bit after {way}", f64, kept)


def _goes_on(
    case: OuterCase,
    weighting: OuterWeighting,
    twin: OuterWeighting,
    claim: str,
    dtype: torch.dtype,
    kept: dict[str, Any] | None = None,
) -> None:
    windows = case.following()
    expected = [case.show(weighting, problem, step, dtype).detach().clone() for step, problem in windows]
    if kept is not None:
        after = snapshot(twin)
        case.require(same(after, kept), "should share nothing with its copy", f"a change in {difference(after, kept)}")
    for (step, problem), weights in zip(windows, expected, strict=True):
        found = case.show(twin, problem, step, dtype).detach()
        if not equal(found, weights):
            one, other = both(found, weights)
            case.require(False, claim, f"weights {one} where the original has {other}")


def dtypes(case: OuterCase) -> None:
    """State is float32 or wider whatever a cast does to the model around it, and follows the device of the losses."""
    for narrow in ("half", "bfloat16"):
        weighting = case.driven(dtype=torch.float32)
        case.given = ""
        before = snapshot(weighting)
        getattr(nn.ModuleDict({"weighting": weighting}), narrow)()
        after = snapshot(weighting)
        case.require(
            same(after, before), f"should keep its state through .{narrow}()", f"a change in {difference(after, before)}"
        )
    for dtype in (torch.float16, torch.bfloat16):
        weights = case.show(case.bound(dtype=torch.float32), ordinary(case.count, 0), 0, dtype)
        case.require(
            weights.dtype is torch.float32, f"should give float32 weights for losses in {dtype}", str(weights.dtype)
        )
    if case.build().on_host:
        return
    weighting = case.driven()
    case.about("claims on_host=False, so that it moves to the device of the losses and reads no value", "losses on meta")
    weights = weighting(_on_meta(case.count, weighting, case.start + 4))
    case.require(weights.device.type == "meta", case.claim, f"weights on {weights.device}")
    for name, tensor in (*weighting.named_buffers(), *weighting.named_parameters()):
        case.require(tensor.device.type == "meta", case.claim, f"{name} on {tensor.device}")


def _on_meta(count: int, weighting: OuterWeighting, step: int) -> Signals:
    norms = None if weighting.needs == "losses" else torch.ones(count, device="meta", dtype=f64)
    gramian = torch.ones(count, count, device="meta", dtype=f64) if weighting.needs == "gramian" else None
    return Signals(torch.ones(count, device="meta", dtype=f64), norms=norms, gramian=gramian, step=step)


def waits(case: OuterCase) -> None:
    """Unless it says on_host, a weighting never reads a value: it runs where values do not exist."""
    weighting = case.driven()
    if weighting.on_host:
        return
    case.about("claims on_host=False, so that it never waits for the device", "tensors without values")
    windows = [problem.signals(weighting.needs, case.start + step) for step, problem in case.following()]
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        for part in weighting.modules():
            for name, buffer in list(part._buffers.items()):
                part._buffers[name] = None if buffer is None else mode.from_tensor(buffer)
            for name, parameter in list(part._parameters.items()):
                if parameter is not None:
                    part._parameters[name] = nn.Parameter(mode.from_tensor(parameter.detach()))
        for window in windows:
            given = {name: getattr(window, name) for name in ("losses", "norms", "gramian", "active", "step")}
            faked: dict[str, Any] = {n: None if value is None else mode.from_tensor(value) for n, value in given.items()}
            weighting(Signals(**faked))
            weighting.weights(), weighting.reference(), weighting.penalty(), weighting.diagnostics()
            weighting.measures(case.start + 8)
        weighting.end_epoch()


def rebuilt(case: OuterCase) -> None:
    """The repr is the constructor call, and the options are its arguments."""
    weighting = case.driven()
    case.require_options(weighting)
    case.about("should have the constructor call as its repr", repr(weighting))
    twins = {"the repr": eval(repr(weighting), constructors(weighting))}
    case.about("should have the constructor's arguments as its options", repr(weighting))
    twins["options()"] = type(weighting)(**weighting.options())
    for what, twin in twins.items():
        case.require(repr(twin) == repr(weighting), f"should be built again from {what}", repr(twin))
        names = case.names(case.count)
        twin.dtype = f64
        twin.bind(tuple(TaskInfo(name) for name in names))
        fresh = case.bound()
        problem = ordinary(case.count, 5)
        left, right = case.show(fresh, problem).detach(), case.show(twin, problem).detach()
        case.require(
            equal(left, right), f"should be built again from {what}", f"weights {' and not '.join(both(right, left))}"
        )


CHECKS: Final[dict[str, Callable[[OuterCase], None]]] = {
    "reads": reads,
    "state": state,
    "copies": copies,
    "dtypes": dtypes,
    "waits": waits,
    "rebuilt": rebuilt,
}
