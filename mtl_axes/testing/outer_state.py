"""The state of an outer weighting: reads, checkpoints, copies, casts, devices, options that build it again, absent tasks."""

from __future__ import annotations

import copy
import io
import math
import pickle
from collections.abc import Callable
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from mtl_axes.errors import OptionError
from mtl_axes.outer import OuterWeighting
from mtl_axes.signals import Signals, TaskInfo
from mtl_axes.testing.case import can_pickle, equal, named, numbers, snapshot
from mtl_axes.testing.outer_case import OuterCase, Problem, f64, of_task, ordinary

__all__ = ["CHECKS"]


def reads(case: OuterCase) -> None:
    """Every method except forward and end_epoch is a pure read."""
    weighting = case.driven()
    case.given = ""
    before = snapshot(weighting)
    for name in ("weights", "reference", "penalty", "diagnostics", "options"):
        read = getattr(weighting, name)
        first, second = read(), read()
        alike = equal(first, second) if name != "options" else first.keys() == second.keys()
        case.require(alike, f"{name}() should read the same twice", f"{first} and {second}")
    weighting.measures(3), repr(weighting), weighting.state_dict()
    case.require_unchanged(snapshot(weighting), before, "should change its state only in forward")
    for name, value in weighting.diagnostics().items():
        holds = isinstance(value, Tensor) and not value.requires_grad
        case.require(holds, "diagnostics() should be detached tensors", f"{name} of {type(value).__name__}")


def state(case: OuterCase) -> None:
    """A fresh weighting that loads a state before its first window continues bit for bit."""
    for dtype in (f64, torch.float32):
        weighting = case.driven(dtype=dtype)
        case.given = ""
        buffers = dict(weighting.named_buffers())
        file = io.BytesIO()
        torch.save(weighting.state_dict(), file)
        file.seek(0)
        fresh = case.build() if case.tasks is None else case.bound(dtype=dtype)
        fresh.load_state_dict(torch.load(file, weights_only=True))
        _continues(case, weighting, fresh, "should continue bit for bit from a loaded state", dtype)
        replaced = [name for name, buffer in weighting.named_buffers() if buffer is not buffers.get(name)]
        case.require(not replaced, "should change its buffers in place", f"another tensor at {', '.join(replaced)}")
        case.require_unchanged(weighting.state_dict(), fresh.state_dict(), "should have one state after both continued")


def copies(case: OuterCase) -> None:
    """deepcopy and pickle give a weighting that continues like the original, and shares nothing with it."""
    ways: tuple[tuple[str, Callable[[Any], Any]], ...] = (
        ("deepcopy", copy.deepcopy),
        ("pickle", lambda given: pickle.loads(pickle.dumps(given))),
    )
    for way, copied in ways:
        weighting = case.driven()
        case.given = ""
        if way == "pickle" and not can_pickle(weighting):
            continue
        case.claim = f"should survive {way}"
        twin, third = copied(weighting), copied(weighting)
        before = snapshot(twin)
        case.show(third, ordinary(case.count, 77), 4)
        _continues(case, weighting, twin, f"should continue bit for bit after {way}", f64, before)


def _continues(
    case: OuterCase,
    weighting: OuterWeighting,
    twin: OuterWeighting,
    claim: str,
    dtype: torch.dtype,
    before: dict[str, Any] | None = None,
) -> None:
    windows = case.following()
    expected = [case.show(weighting, problem, step, dtype).detach().clone() for step, problem in windows]
    if before is not None:
        case.require_unchanged(snapshot(twin), before, "should share nothing with its copy")
    for (step, problem), weights in zip(windows, expected, strict=True):
        continued = case.show(twin, problem, step, dtype).detach()
        case.require_equal(continued, weights, claim, "weights {} where the original has {}")


def dtypes(case: OuterCase) -> None:
    """State is float32 or wider, even if the model is cast to half, and follows the device of the losses."""
    for narrow in ("half", "bfloat16"):
        weighting = case.driven(dtype=torch.float32)
        case.given = ""
        before = snapshot(weighting)
        getattr(nn.ModuleDict({"weighting": weighting}), narrow)()
        case.require_unchanged(snapshot(weighting), before, f"should keep its state through .{narrow}()")
    for dtype in (torch.float16, torch.bfloat16):
        weights = case.show(case.bound(dtype=torch.float32), ordinary(case.count, 0), 0, dtype)
        claim = f"should give float32 weights for losses in {dtype}"
        case.require(weights.dtype is torch.float32, claim, str(weights.dtype))
    if case.build().on_host:
        return
    weighting = case.driven()
    case.about("claims on_host=False, so that it follows the device of the losses and reads no value", "losses on meta")
    weights = weighting(_on_meta(case.count, weighting, case.start + 4))
    case.require(weights.device.type == "meta", case.claim, f"weights on {weights.device}")
    for name, tensor in (*weighting.named_buffers(), *weighting.named_parameters()):
        case.require(tensor.device.type == "meta", case.claim, f"{name} on {tensor.device}")


def _on_meta(count: int, weighting: OuterWeighting, step: int) -> Signals:
    norms = None if weighting.needs == "losses" else torch.ones(count, device="meta", dtype=f64)
    gramian = torch.ones(count, count, device="meta", dtype=f64) if weighting.needs == "gramian" else None
    return Signals(torch.ones(count, device="meta", dtype=f64), norms=norms, gramian=gramian, step=step)


def waits(case: OuterCase) -> None:
    """A weighting reads no value unless it claims on_host: it runs on tensors without values."""
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
    for source, twin in case.rebuilt(case.driven()):
        twin.dtype = f64
        twin.bind(tuple(TaskInfo(name) for name in case.names(case.count)))
        problem = ordinary(case.count, 5)
        weights, expected = case.show(twin, problem).detach(), case.show(case.bound(), problem).detach()
        case.require_equal(weights, expected, f"should be built again from {source}", "weights {} and not {}")


# Why a task does not take part: the signal that says so, and its value.
_WHY: Final[dict[str, tuple[str, float]]] = {
    "inactive": ("active", False),
    "a NaN loss": ("losses", math.nan),
    "an infinite loss": ("losses", math.inf),
    "a zero norm": ("norms", 0.0),
    "a NaN norm": ("norms", math.nan),
    "an infinite norm": ("norms", math.inf),
}


def _absent(problem: Problem, weighting: OuterWeighting, why: str, task: int, step: int) -> Signals:
    whole = problem.signals(weighting.needs)
    names = ("losses", "norms", "gramian", "active")
    given: dict[str, Tensor] = {name: value.clone() for name in names if (value := getattr(whole, name)) is not None}
    signal, value = _WHY[why]
    given[signal][task] = value
    if signal == "norms" and "gramian" in given:
        given["gramian"][task] = given["gramian"][:, task] = value
    return Signals(**given, step=step)


def absent(case: OuterCase) -> None:
    """A task that is absent, not finite or without a gradient does not count.

    A memoryless weighting gives it the weight 0, and the others their weights without it. Any other keeps its weight and
    its state.
    """
    count, task = case.count, case.task
    if count < 2:
        return
    first = case.build()
    claim = f"claims memoryless={first.memoryless}, so that an absent task"
    for why, (signal, _) in _WHY.items():
        if first.needs == "losses" and signal == "norms":
            continue
        weighting = case.driven()
        before, held = snapshot(weighting), weighting.weights().detach().clone()
        for step, problem in case.following():
            case.given = f"{problem.text(weighting.needs)} with task {task} absent ({why})"
            signals = _absent(problem, weighting, why, task, case.start + step)
            weights = weighting(signals).detach()
            case.after_step(weighting, problem, signals)
            if first.memoryless:
                case.require(float(weights[task]) == 0, f"{claim} weighs 0", f"weights {numbers(weights)}")
                continue
            weight, kept = float(weights[task]), float(held[task])
            holds = math.isclose(weight, kept, rel_tol=1e-9)
            case.require(holds, f"{claim} keeps its weight", f"{weight:.10g} for task {task} after {kept:.10g}")
            left, right = of_task(snapshot(weighting), task, count), of_task(before, task, count)
            case.require_unchanged(left, right, f"{claim} keeps its state")


def rest(case: OuterCase) -> None:
    """A memoryless weighting gives the others exactly their weights in the sub-problem without the absent tasks."""
    first = case.build()
    if not first.memoryless or case.draws() or case.count < 2:
        return
    for gone in ({case.task}, set(range(case.count)) - {0, case.task if case.task else 1}, set(range(1, case.count))):
        others = [index for index in range(case.count) if index not in gone]
        try:
            smaller = case.bound(names=[case.names(case.count)[index] for index in others])
        except OptionError:
            continue
        whole = case.bound()
        for step in range(3):
            problem = ordinary(case.count, step, spread=1.0)
            expected = case.show(smaller, problem.of(others), step)
            for task in gone:
                problem = problem.without(task)
            weights = case.show(whole, problem, step)
            claim = "claims memoryless=True, so that the others keep the weights that they have without the absent tasks"
            text = f"weights {numbers(weights)}, at {others} {{}} instead of {{}}"
            case.require_close(weights[others], expected, claim, text, rtol=1e-7)


def nothing_active(case: OuterCase) -> None:
    """Without any active task, the weights and the state of every task are unchanged."""
    count = case.count
    weighting = case.driven()
    before, held = snapshot(weighting), weighting.weights().detach().clone()
    problem = ordinary(count, 9)
    for task in range(count):
        problem = problem.without(task)
    weights = case.show(weighting, problem, 4).detach()
    case.require_equal(weights, held, "should keep its weights when no task is active", "weights {} after {}")
    after = snapshot(weighting)
    claim = "should keep the state of every task when none is active"
    for task in range(count):
        case.require_unchanged(of_task(after, task, count), of_task(before, task, count), claim, f" of task {task}")


CHECKS: Final = named(reads, state, copies, dtypes, waits, rebuilt, absent, rest, nothing_active)
