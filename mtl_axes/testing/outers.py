"""The contracts of an outer weighting, one function each."""

from __future__ import annotations

import copy
import io
import json
import math
import pickle
from collections.abc import Callable, Sequence
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from mtl_axes.composition import compose
from mtl_axes.errors import OptionError
from mtl_axes.outer import OuterWeighting
from mtl_axes.outer.draws import Draws
from mtl_axes.registry import name_of
from mtl_axes.signals import Signals, TaskInfo
from mtl_axes.testing.case import Case, close, constructors, difference, equal, numbers, same, snapshot
from mtl_axes.testing.models import Heads, batch
from mtl_axes.testing.problems import Problem, hard, ordinary

__all__ = ["OUTER_CHECKS", "OuterCase"]

_COUNTS = (4, 3, 2, 1, 5)
# A warm-up is passed over: windows are counted from the first that measures, looked for up to here.
_LATEST_START = 100_000

f64: Final = torch.float64


class OuterCase(Case[OuterWeighting]):
    """A weighting under test.

    Attributes:
        counts: numbers of tasks that its options allow, of 1 to 5, the preferred one first.
        start: the window from which it moves.
    """

    def __init__(self, factory: Any, tasks: Sequence[str] | None = None) -> None:
        super().__init__("outer", OuterWeighting, factory)
        self.tasks = None if tasks is None else tuple(tasks)
        candidates = _COUNTS if self.tasks is None else (len(self.tasks),)
        self.counts = tuple(count for count in candidates if self._binds(count))
        self.require(
            bool(self.counts),
            f"should bind to {'some number of tasks' if tasks is None else f'the tasks {list(tasks)}'}",
            "an OptionError for each. Pass tasks=[...] where options name tasks",
        )
        self.start = 0
        weighting = self.bound()
        while not weighting.measures(self.start) and self.start < _LATEST_START:
            self.start += 1

    @property
    def count(self) -> int:
        """The number of tasks that checks use which need one only."""
        return self.counts[0]

    @property
    def task(self) -> int:
        """The task that goes away: one in the middle; the last where tasks have roles, which the first tends to have."""
        return min(1, self.count - 1) if self.build().symmetric else self.count - 1

    def names(self, count: int) -> tuple[str, ...]:
        """Names of that many tasks."""
        return tuple(str(index) for index in range(count)) if self.tasks is None else self.tasks[:count]

    def _binds(self, count: int) -> bool:
        try:
            self.bound(count)
        except OptionError:
            return False
        return True

    def bound(
        self, count: int | None = None, dtype: torch.dtype = f64, names: Sequence[str] | None = None
    ) -> OuterWeighting:
        """Return a fresh weighting that knows its tasks."""
        weighting = self.build()
        weighting.dtype = dtype
        names = self.names(self.count if count is None else count) if names is None else names
        weighting.bind(tuple(TaskInfo(name) for name in names))
        return weighting

    def show(self, weighting: OuterWeighting, problem: Problem, step: int = 0, dtype: torch.dtype = f64) -> Tensor:
        """Return the weights for a window, and have it told in whatever fails next."""
        self.given = problem.told(weighting.needs)
        return weighting(problem.signals(weighting.needs, self.start + step, dtype))

    def driven(self, count: int | None = None, *, windows: int = 4, dtype: torch.dtype = f64) -> OuterWeighting:
        """Return a weighting in the middle of its life."""
        count = self.count if count is None else count
        weighting = self.bound(count, dtype)
        for step in range(windows):
            self.show(weighting, ordinary(count, step), step, dtype)
        spread(weighting)
        return weighting

    def following(self, *, start: int = 4, windows: int = 3) -> list[tuple[int, Problem]]:
        """Return the windows after those of :meth:`driven`, with their steps."""
        return [(step, ordinary(self.count, 100 + step)) for step in range(start, start + windows)]

    def draws(self) -> bool:
        """Return whether the weighting draws random numbers of its own."""
        return any(isinstance(part, Draws) for part in self.build().modules())


def spread(weighting: OuterWeighting) -> None:
    """Move learnable parameters off their start, as an optimizer would."""
    with torch.no_grad():
        for parameter in weighting.parameters():
            parameter.add_(torch.linspace(-0.7, 0.9, parameter.numel()).to(parameter).view_as(parameter))


def of_task(state: dict[str, Any], task: int, count: int) -> dict[str, Tensor]:
    """Return what a snapshot holds of one task: its entries of every tensor with a dimension of the tasks."""
    return {
        name: value.select(value.shape.index(count), task)
        for name, value in state.items()
        if name.rpartition(".")[2] != "current" and isinstance(value, Tensor) and count in value.shape
    }


def declarations(case: OuterCase) -> None:
    """Claims have values that the contract knows, and a fresh weighting knows no tasks."""
    weighting = case.build()
    for claim, values in {
        "needs": ("losses", "norms", "gramian"),
        "total": ("1", "K", None),
        "sign": ("positive", "nonnegative", "any"),
        "scaling": ("invariant", "inverse", None),
    }.items():
        value = getattr(weighting, claim)
        case.require(value in values, f"should claim {claim} as one of {', '.join(map(repr, values))}", repr(value))
    for claim in (
        "memoryless",
        "symmetric",
        "balances",
        "learnable",
        "nonnegative",
        "reads_signals",
        "moves",
        "on_host",
        "traceable",
    ):
        value = getattr(weighting, claim)
        case.require(isinstance(value, bool), f"should claim {claim} as True or False", repr(value))
    case.require(not weighting.bound, "should know no task before it is bound", f"the tasks {weighting.tasks}")
    case.require(
        isinstance(weighting.measures(0), bool), "measures(step) should be True or False", repr(weighting.measures(0))
    )
    if case.tasks is None:
        problem = ordinary(case.count, 0)
        case.show(weighting, problem)
        names = [info.name for info in weighting.tasks]
        case.require(
            names == list(case.names(case.count)), "should bind itself to the tasks of its first signals", str(names)
        )


def structure(case: OuterCase) -> None:
    """Weights are a vector (K,) in the dtype of the losses, for each K; what was handed out stays as it was."""
    for count in case.counts:
        for dtype in (f64, torch.float32):
            weighting = case.bound(count, dtype)
            returned = case.show(weighting, ordinary(count, 1), 0, dtype)
            for what, weights in (
                ("forward", returned),
                ("weights()", weighting.weights()),
                ("reference()", weighting.reference()),
            ):
                claim = f"should return weights ({count},) of {dtype} from {what}"
                case.require(weights.shape == (count,), claim, f"the shape {tuple(weights.shape)}")
                case.require(weights.dtype is dtype, claim, str(weights.dtype))
            kept = returned.detach().clone()
            read = weighting.weights().detach()
            case.require(
                equal(read, kept), "weights() should be what forward returned", f"{numbers(read)} after {numbers(kept)}"
            )
            case.show(weighting, ordinary(count, 2), 1, dtype)
            case.require(
                equal(returned.detach(), kept),
                "should not overwrite the weights that it handed out",
                f"{numbers(returned)} where {numbers(kept)} was",
            )


def reference(case: OuterCase) -> None:
    """Weights of evaluation are constants: epochs are compared by them."""
    weighting = case.bound()
    before = weighting.reference().detach().clone()
    case.require(bool(torch.isfinite(before).all()), "reference() should be finite", numbers(before))
    for step, problem in enumerate(ordinary(case.count, seed) for seed in range(3)):
        case.show(weighting, problem, step)
    after = weighting.reference()
    case.require(equal(after, before), "reference() should not move", f"{numbers(after)} after {numbers(before)}")


def finite(case: OuterCase) -> None:
    """Hard windows leave weights and state finite, one by one and in a row."""
    for count in case.counts:
        lasting = case.bound(count, torch.float32)
        for step, problem in enumerate(hard(count, negative=not lasting.nonnegative)):
            for weighting, dtype in ((case.bound(count), f64), (lasting, torch.float32)):
                weights = case.show(weighting, problem, step if weighting is lasting else 0, dtype)
                told = f"should give finite weights in {dtype}"
                case.require(bool(torch.isfinite(weights).all()), told, f"weights {numbers(weights)}")
                for name, value in snapshot(weighting).items():
                    holds = not isinstance(value, Tensor) or bool(torch.isfinite(value).all())
                    case.require(
                        holds, f"should keep finite state in {dtype}", f"{name} = {numbers(value) if not holds else ''}"
                    )


def sign(case: OuterCase) -> None:
    """Weights have the sign that is claimed, at the edge too; a positive one may round to 0 there."""
    claimed = case.build().sign
    if claimed == "any":
        return
    for count in case.counts:
        lasting = case.driven(count)
        ways = [ordinary(count, seed, spread=1.5) for seed in range(6)]
        for index, problem in enumerate((*ways, *hard(count, negative=not lasting.nonnegative))):
            positive = claimed == "positive" and index < len(ways)
            for weighting in (lasting, case.bound(count)):
                weights = case.show(weighting, problem, index).detach()
                holds = bool((weights > 0).all()) if positive else bool((weights >= 0).all())
                case.require(holds, f"claims sign={claimed!r}", f"weights {numbers(weights)}")


def total(case: OuterCase) -> None:
    """Weights have the sum that is claimed while every task is active."""
    claimed = case.build().total
    if claimed is None:
        return
    for count in case.counts:
        expected = 1.0 if claimed == "1" else float(count)
        lasting = case.driven(count)
        problems = [ordinary(count, seed, spread=1.5) for seed in range(4)]
        problems += [p for p in hard(count, negative=not lasting.nonnegative) if bool((p.active & (p.norms > 0)).all())]
        for index, problem in enumerate(problems):
            for weighting in (lasting, case.bound(count)):
                weights = case.show(weighting, problem, index).detach()
                found = float(weights.sum())
                holds = math.isclose(found, expected, rel_tol=1e-9)
                case.require(holds, f"claims total={claimed!r}", f"weights {numbers(weights)} with sum {found:.10g}")


def symmetric(case: OuterCase) -> None:
    """Permuting the tasks permutes the weights, also while tasks come and go."""
    if not case.build().symmetric or case.tasks is not None:
        return
    count = case.count
    order = [*range(1, count), 0]
    if count > 2:
        order[0], order[1] = order[1], order[0]
    index = torch.tensor(order)
    straight, permuted = case.bound(), case.bound()
    spread(straight)
    with torch.no_grad():
        for given, copied in zip(straight.parameters(), permuted.parameters(), strict=True):
            copied.copy_(given[index] if given.shape[:1] == (count,) else given)
    for step in range(6):
        problem = ordinary(count, step, spread=1.0)
        if step % 3 == 2:
            problem = problem.without(step % count)
        expected = case.show(straight, problem, step)[index]
        found = case.show(permuted, problem.of(order), step)
        case.require(
            close(found, expected, 1e-7),
            "claims symmetric=True",
            f"weights {numbers(found)} where the permutation {order} of the tasks gives {numbers(expected)}",
        )


def scaling(case: OuterCase) -> None:
    """All losses times c leave the weights, or divide them by c, as claimed."""
    claimed = case.build().scaling
    if claimed is None:
        return
    for factor in (1e-3, 7.0, 1e3):
        plain, scaled = case.bound(), case.bound()
        for step in range(4):
            problem = ordinary(case.count, step)
            expected = case.show(plain, problem, step) / (factor if claimed == "inverse" else 1.0)
            found = case.show(scaled, problem.times(torch.tensor(factor, dtype=f64)), step)
            case.require(
                close(found, expected, 1e-6),
                f"claims scaling={claimed!r}",
                f"weights {numbers(found)} where {numbers(expected)} should follow from losses times {factor:g}",
            )


def balances(case: OuterCase) -> None:
    """One task's loss times c divides its weight by c, up to a factor that all tasks share."""
    if not case.build().balances or case.count < 2:
        return
    for task, factor in ((0, 100.0), (1, 1e-2), (case.count - 1, 3.0)):
        plain, rescaled = case.bound(), case.bound()
        factors = torch.ones(case.count, dtype=f64).index_fill_(0, torch.tensor([task]), factor)
        for step in range(3):
            problem = ordinary(case.count, step)
            expected = case.show(plain, problem, step) / factors
            found = case.show(rescaled, problem.times(factors), step)
            ratio = (found / expected).detach()
            case.require(
                close(ratio, ratio[:1].expand_as(ratio), 1e-5),
                "claims balances=True",
                f"weights {numbers(found)} where multiples of {numbers(expected)} should follow from the loss of task "
                f"{task} times {factor:g}",
            )


_WHY: Final[dict[str, Callable[[dict[str, Any], int], None]]] = {
    "inactive": lambda given, task: given["active"].__setitem__(task, False),
    "a NaN loss": lambda given, task: given["losses"].__setitem__(task, torch.nan),
    "an infinite loss": lambda given, task: given["losses"].__setitem__(task, torch.inf),
    "a zero norm": lambda given, task: _spoil(given, task, 0.0),
    "a NaN norm": lambda given, task: _spoil(given, task, torch.nan),
    "an infinite norm": lambda given, task: _spoil(given, task, torch.inf),
}


def _spoil(given: dict[str, Any], task: int, value: float) -> None:
    given["norms"][task] = value
    if given["gramian"] is not None:
        given["gramian"][task] = given["gramian"][:, task] = value


def _absent(problem: Problem, weighting: OuterWeighting, why: str, task: int, step: int) -> Signals:
    whole = problem.signals(weighting.needs)
    given = {name: getattr(whole, name) for name in ("losses", "norms", "gramian", "active")}
    given = {name: None if value is None else value.clone() for name, value in given.items()}
    _WHY[why](given, task)
    return Signals(**given, step=step)


def absent(case: OuterCase) -> None:
    """A task that is absent, not finite or without a gradient does not count.

    Memoryless: it has the weight 0 and the others what they have without it. Else it keeps its weight and its state.
    """
    count, task = case.count, case.task
    if count < 2:
        return
    first = case.build()
    for why in _WHY:
        if first.needs == "losses" and "norm" in why:
            continue
        weighting = case.driven()
        before, held = snapshot(weighting), weighting.weights().detach().clone()
        for step, problem in case.following():
            case.given = f"{problem.told(weighting.needs)} with task {task} absent ({why})"
            weights = weighting(_absent(problem, weighting, why, task, case.start + step)).detach()
            if first.memoryless:
                case.require(
                    float(weights[task]) == 0,
                    "claims memoryless=True, so that an absent task weighs 0",
                    f"weights {numbers(weights)}",
                )
            else:
                case.require(
                    math.isclose(float(weights[task]), float(held[task]), rel_tol=1e-9),
                    "claims memoryless=False, so that an absent task keeps its weight",
                    f"{float(weights[task]):.10g} for task {task} after {float(held[task]):.10g}",
                )
                left, right = of_task(snapshot(weighting), task, count), of_task(before, task, count)
                case.require(
                    same(left, right),
                    "claims memoryless=False, so that an absent task keeps its state",
                    f"a change in {difference(left, right)}",
                )


def rest(case: OuterCase) -> None:
    """A memoryless weighting gives the others exactly what the sub-problem without the absent tasks gives."""
    first = case.build()
    if not first.memoryless or case.draws() or case.count < 2:
        return
    for gone in ({case.task}, set(range(case.count)) - {0, case.task if case.task else 1}, set(range(1, case.count))):
        here = [index for index in range(case.count) if index not in gone]
        try:
            smaller = case.bound(names=[case.names(case.count)[index] for index in here])
        except OptionError:
            continue
        whole = case.bound()
        for step in range(3):
            problem = ordinary(case.count, step, spread=1.0)
            expected = case.show(smaller, problem.of(here), step)
            for task in gone:
                problem = problem.without(task)
            found = case.show(whole, problem, step)
            case.require(
                close(found[here], expected, 1e-7),
                "claims memoryless=True, so that the others weigh what they weigh without the absent tasks",
                f"weights {numbers(found)} where {numbers(expected)} should be at {here}",
            )


def nothing_active(case: OuterCase) -> None:
    """With no active task at all, weights and the state of every task stay as they are."""
    count = case.count
    weighting = case.driven()
    before, held = snapshot(weighting), weighting.weights().detach().clone()
    problem = ordinary(count, 9)
    for task in range(count):
        problem = problem.without(task)
    weights = case.show(weighting, problem, 4).detach()
    told = "should keep its weights when no task is active"
    case.require(equal(weights, held), told, f"weights {numbers(weights)} after {numbers(held)}")
    after = snapshot(weighting)
    for task in range(count):
        left, right = of_task(after, task, count), of_task(before, task, count)
        case.require(
            same(left, right),
            "should keep the state of every task when none is active",
            f"a change in {difference(left, right)} of task {task}",
        )


def alone(case: OuterCase) -> None:
    """With K = 1 there is nothing to balance: a claimed sum is the weight."""
    first = case.build()
    if 1 not in case.counts or first.total is None:
        return
    weighting = case.bound(1)
    for step in range(4):
        weights = case.show(weighting, ordinary(1, step), step).detach()
        case.require(float(weights) == 1.0, f"claims total={first.total!r}, which is 1 for one task", numbers(weights))


def moves(case: OuterCase) -> None:
    """moves=False and reads_signals=False say that signals do not matter: then they do not."""
    weighting = case.driven()
    if not weighting.moves:
        before, held = snapshot(weighting), weighting.weights().detach().clone()
        for step, problem in case.following():
            weights = case.show(weighting, problem, step).detach()
            case.require(equal(weights, held), "claims moves=False", f"weights {numbers(weights)} after {numbers(held)}")
        after = snapshot(weighting)
        case.require(same(after, before), "claims moves=False", f"a change in {difference(after, before)}")
    if not weighting.reads_signals:
        one, other = case.bound(), case.bound()
        for step in range(4):
            case.show(one, ordinary(case.count, step), step)
            case.show(other, ordinary(case.count, 50 + step, spread=1.0), step)
            left, right = one.weights().detach(), other.weights().detach()
            found = f"weights {numbers(right)} where other signals gave {numbers(left)}"
            case.require(equal(left, right), "claims reads_signals=False", found)


def repeatable(case: OuterCase) -> None:
    """Two of the same options give the same weights from the same signals, as ranks must: nothing else is drawn from."""
    one, other = case.bound(), case.bound()
    generator = torch.get_rng_state()
    for step in range(4):
        problem = ordinary(case.count, step)
        left, right = (case.show(weighting, problem, step).detach() for weighting in (one, other))
        case.require(
            equal(left, right),
            "should give the same weights for the same signals, on every rank",
            f"{numbers(left)} and {numbers(right)}",
        )
    case.require(
        torch.equal(torch.get_rng_state(), generator),
        "should leave the random numbers of others alone; use mtl_axes.outer.draws.Draws",
        "the global generator moved",
    )


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
        case.require(held, "diagnostics() should be detached tensors", f"{name} = {value!r}")


def learnable(case: OuterCase) -> None:
    """Weights carry a graph, and parameters exist from bind on, exactly when the weighting is learnable."""
    weighting = case.bound()
    case.given = ""
    claimed = weighting.learnable
    parameters = [parameter for parameter in weighting.parameters() if parameter.requires_grad]
    case.require(bool(parameters) == claimed, f"claims learnable={claimed}", f"{len(parameters)} parameters after bind")
    problem = ordinary(case.count, 3)
    returned = case.show(weighting, problem)
    for what, value in (("forward returned", returned), ("weights()", weighting.weights())):
        case.require(
            value.requires_grad == claimed, f"claims learnable={claimed}", f"{what} with requires_grad={value.requires_grad}"
        )
    case.require(not weighting.current.requires_grad, "should keep `current` detached", "a graph on it")
    penalty = weighting.penalty()
    if penalty is not None:
        claim = f"penalty() should be finite terms ({case.count},), one per task, or one for all ()"
        case.require(penalty.shape in ((), (case.count,)), claim, f"the shape {tuple(penalty.shape)}")
        case.require(bool(torch.isfinite(penalty).all()), claim, numbers(penalty))
    if claimed:
        objective = (weighting.weights() * problem.losses).sum() + (0.0 if penalty is None else penalty.sum())
        gradients = torch.autograd.grad(objective, parameters, allow_unused=True)
        for (name, _), gradient in zip(weighting.named_parameters(), gradients, strict=True):
            reached = gradient is not None and bool(torch.isfinite(gradient).all()) and bool(gradient.any())
            case.require(reached, "claims learnable=True, so that the total reaches its parameters", f"{gradient} at {name}")


def state(case: OuterCase) -> None:
    """A fresh weighting that loads a state before its first window goes on bit for bit."""
    for dtype in (f64, torch.float32):
        weighting = case.driven(dtype=dtype)
        case.given = ""
        file = io.BytesIO()
        torch.save(weighting.state_dict(), file)
        file.seek(0)
        fresh = case.build()
        if case.tasks is not None:
            fresh = case.bound(dtype=dtype)
        fresh.load_state_dict(torch.load(file, weights_only=True))
        _goes_on(case, weighting, fresh, "should go on bit for bit from a loaded state", dtype)
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
        case.require(equal(found, weights), claim, f"weights {numbers(found)} where the original has {numbers(weights)}")


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
            equal(left, right), f"should be built again from {what}", f"weights {numbers(right)} and not {numbers(left)}"
        )


def _criterion(case: OuterCase, inner: Any = "huber", outer: Any = None, **options: Any) -> Any:
    count = min(case.counts, key=lambda count: (abs(count - 3), count))
    outer = case.build() if outer is None else outer
    return compose(outer, inner, tasks=list(case.names(count)), **options), list(case.names(count))


def in_criterion(case: OuterCase) -> None:
    """In a criterion total and gradient are those of the weights, and the two axes enter the total bilinearly."""
    criterion, names = _criterion(case)
    model = Heads(names)
    case.about("should weigh the losses of a criterion", f"{len(names)} tasks")
    for seed in range(case.start + 3 if case.start < 8 else 3):
        inputs, targets = batch(names, seed)
        criterion(model(inputs), targets).backward()
    inputs, targets = batch(names, 50)
    outputs = model(inputs)
    whole = criterion(outputs, targets)
    report = criterion.report
    live = report.weights
    penalty = criterion.outer.penalty()
    penalty = torch.zeros((), dtype=f64) if penalty is None else penalty.sum()
    fixed = torch.linspace(0.3, 0.9, len(names), dtype=f64)
    shaped, plain = ([_mean_loss(shape, names, outputs, targets, task) for task in names] for shape in ("huber", "mse"))
    parts = {
        "A": sum(weight * loss for weight, loss in zip(fixed, plain, strict=True)),
        "B": sum(weight * loss for weight, loss in zip(fixed, shaped, strict=True)),
    }
    held = compose({"name": "fixed", "weights": live.tolist()}, "mse", tasks=names)
    at_live = held(outputs, targets)
    left = (whole - penalty - at_live) - (parts["B"] - parts["A"])
    right = sum((weight - constant) * (s - p) for weight, constant, s, p in zip(live, fixed, shaped, plain, strict=True))
    case.given = f"losses {numbers(torch.stack(shaped))} and weights {numbers(live)}"
    size = float(sum(abs(weight) * loss for weight, loss in zip(live, plain, strict=True))) + 1
    gap = abs(float(left.detach()) - float(right))
    case.require(
        gap <= 1e-9 * size,
        "should enter a total bilinearly, (L_D - L_C) - (L_B - L_A) = sum (lambda - mu) (S - P)",
        f"{float(left.detach()):.12g} and {float(right):.12g}",
    )
    parameters = list(model.parameters())
    expected = sum(weight * loss for weight, loss in zip(live.detach(), shaped, strict=True))
    wanted = torch.autograd.grad(expected, parameters, retain_graph=True)
    found = torch.autograd.grad(whole, parameters, retain_graph=True)
    for one, other in zip(found, wanted, strict=True):
        case.require(
            close(one, other, 1e-8, 1e-12),
            "should have the weighted sum of the task gradients as the gradient of a total",
            f"{numbers(one)} where the sum is {numbers(other)}",
        )


def _mean_loss(shape: str, names: Sequence[str], outputs: Any, targets: Any, task: str) -> Tensor:
    """Return the mean loss of one task under a shape, on the graph of the outputs."""
    error = outputs[task] - targets[task]
    size = error.abs()
    losses = error.square() if shape == "mse" else torch.where(size <= 1, 0.5 * error.square(), size - 0.5)
    return losses.mean()


def evaluation(case: OuterCase) -> None:
    """Calls in eval mode, without gradients or within hold() move nothing of a criterion."""
    for accumulate in (1, 2):
        criterion, names = _criterion(case, accumulate=accumulate)
        model = Heads(names)
        for seed in range(3):
            inputs, targets = batch(names, seed)
            criterion(model(inputs), targets).backward()
        before = snapshot(criterion)
        for how, context in (
            ("eval()", torch.enable_grad),
            ("no_grad", torch.no_grad),
            ("inference_mode", torch.inference_mode),
            ("hold()", criterion.hold),
        ):
            criterion.train(how != "eval()")
            case.about(f"should not move in {how}", f"accumulate={accumulate}")
            with context():
                inputs, targets = batch(names, 9)
                criterion(model(inputs), targets)
            after = snapshot(criterion)
            case.require(same(after, before), case.claim, f"a change in {difference(after, before)}")
        criterion.train()


def config(case: OuterCase) -> None:
    """A registered weighting is named in the config of a criterion, plain data that builds the same criterion."""
    first = case.build()
    if name_of("outer", type(first)) is None:
        return
    criterion, names = _criterion(case)
    case.about("should be built again from the config of a criterion", repr(first))
    twin = compose(**json.loads(json.dumps(criterion.config())))
    case.require(twin.config() == criterion.config(), case.claim, repr(twin.outer))
    model = Heads(names)
    for seed in range(3):
        inputs, targets = batch(names, seed)
        left, right = criterion(model(inputs), targets), twin(model(inputs), targets)
        case.require(equal(left.detach(), right.detach()), case.claim, f"the totals {numbers(left)} and {numbers(right)}")


OUTER_CHECKS: Final[dict[str, Callable[[OuterCase], None]]] = {
    "declarations": declarations,
    "structure": structure,
    "reference": reference,
    "finite": finite,
    "sign": sign,
    "total": total,
    "symmetric": symmetric,
    "scaling": scaling,
    "balances": balances,
    "absent": absent,
    "rest": rest,
    "nothing active": nothing_active,
    "alone": alone,
    "moves": moves,
    "repeatable": repeatable,
    "reads": reads,
    "learnable": learnable,
    "state": state,
    "copies": copies,
    "dtypes": dtypes,
    "waits": waits,
    "rebuilt": rebuilt,
    "in a criterion": in_criterion,
    "evaluation": evaluation,
    "config": config,
}
