"""Weights of an outer weighting against the claims of its class."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Final

import torch
from torch import Tensor

from mtl_axes.describe import FLAGS
from mtl_axes.outer import OuterWeighting
from mtl_axes.testing.case import equal, named, numbers, snapshot
from mtl_axes.testing.outer_case import OuterCase, Problem, f64, hard, ordinary, spread

__all__ = ["CHECKS"]


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
    for claim in FLAGS:
        value = getattr(weighting, claim)
        case.require(isinstance(value, bool), f"should claim {claim} as True or False", repr(value))
    case.require(not weighting.bound, "should know no task before it is bound", f"the tasks {weighting.tasks}")
    measures = weighting.measures(0)
    case.require(isinstance(measures, bool), "measures(step) should be True or False", repr(measures))
    if case.tasks is None:
        case.show(weighting, ordinary(case.count, 0))
        names = [info.name for info in weighting.tasks]
        claim = "should bind itself to the tasks of its first signals"
        case.require(names == list(case.names(case.count)), claim, str(names))


def structure(case: OuterCase) -> None:
    """Weights are a vector (K,) in the dtype of the losses, for each K, and no later call changes them."""
    for count in case.counts:
        for dtype in (f64, torch.float32):
            weighting = case.bound(count, dtype)
            case.given = ordinary(count, 1).text(weighting.needs)
            signals, untouched = (ordinary(count, 1).signals(weighting.needs, case.start, dtype) for _ in range(2))
            # Not by case.show(): the losses after the step may change the weights that are read.
            returned = weighting(signals)
            for name, value in vars(signals).items():
                case.require(equal(value, getattr(untouched, name)), "should leave the signals unchanged", f"other {name}")
            for what, weights in (
                ("forward", returned),
                ("weights()", weighting.weights()),
                ("reference()", weighting.reference()),
            ):
                claim = f"should return weights ({count},) of {dtype} from {what}"
                case.require(weights.shape == (count,), claim, f"the shape {tuple(weights.shape)}")
                case.require(weights.dtype is dtype, claim, str(weights.dtype))
            before = returned.detach().clone()
            read = weighting.weights().detach()
            case.require_equal(read, before, "weights() should be what forward returned", "{} after {}")
            case.show(weighting, ordinary(count, 2), 1, dtype)
            claim = "should not overwrite the weights that it has returned"
            case.require_equal(returned.detach(), before, claim, "{} instead of {}")


def repeatable(case: OuterCase) -> None:
    """Two weightings with equal options give equal weights for equal signals, as ranks must, without global randomness."""
    one, other = case.bound(), case.bound()
    generator = torch.get_rng_state()
    for step in range(4):
        problem = ordinary(case.count, step)
        left, right = (case.show(weighting, problem, step).detach() for weighting in (one, other))
        case.require_equal(left, right, "should give the same weights for the same signals, on every rank")
    case.require(
        torch.equal(torch.get_rng_state(), generator),
        "should not draw from the global generator; use mtl_axes.outer.draws.Draws",
        "a change in its state",
    )


def reference(case: OuterCase) -> None:
    """Weights of evaluation are constant, so that epochs can be compared."""
    weighting = case.bound()
    before = weighting.reference().detach().clone()
    case.require_finite(before, "reference() should be finite")
    for step, problem in enumerate(ordinary(case.count, seed) for seed in range(3)):
        case.show(weighting, problem, step)
    case.require_equal(weighting.reference(), before, "reference() should be constant", "{} after {}")


def finite(case: OuterCase) -> None:
    """Hard windows leave weights and state finite, one by one and in a row."""
    for count in case.counts:
        lasting = case.bound(count, torch.float32)
        for step, problem in enumerate(hard(count, negative=not lasting.nonnegative)):
            for weighting, dtype in ((case.bound(count), f64), (lasting, torch.float32)):
                weights = case.show(weighting, problem, step if weighting is lasting else 0, dtype)
                case.require_finite(weights, f"should give finite weights in {dtype}", "weights {}")
                for name, value in snapshot(weighting).items():
                    if isinstance(value, Tensor):
                        case.require_finite(value, f"should keep finite state in {dtype}", f"{name} = {{}}")


def _tried(case: OuterCase, problems: Callable[[int, OuterWeighting], list[Problem]]) -> Iterator[tuple[int, int, Tensor]]:
    """Yield number of tasks, index and weights of problems, given to a weighting that has seen others and to a fresh one."""
    for count in case.counts[:3]:
        lasting = case.driven(count)
        for index, problem in enumerate(problems(count, lasting)):
            for weighting in (lasting, case.bound(count)):
                yield count, index, case.show(weighting, problem, index).detach()


def sign(case: OuterCase) -> None:
    """Weights have the claimed sign, even in extreme windows, where a positive weight may round to 0."""
    claimed = case.build().sign
    if claimed == "any":
        return

    def problems(count: int, weighting: OuterWeighting) -> list[Problem]:
        return [ordinary(count, seed, spread=1.5) for seed in range(6)] + [*hard(count, negative=not weighting.nonnegative)]

    for _, index, weights in _tried(case, problems):
        positive = claimed == "positive" and index < 6
        holds = bool((weights > 0).all()) if positive else bool((weights >= 0).all())
        case.require(holds, f"claims sign={claimed!r}", f"weights {numbers(weights)}")


def total(case: OuterCase) -> None:
    """Weights have the claimed sum while every task is active."""
    claimed = case.build().total
    if claimed is None:
        return

    def problems(count: int, weighting: OuterWeighting) -> list[Problem]:
        extreme = [p for p in hard(count, negative=not weighting.nonnegative) if bool((p.active & (p.norms > 0)).all())]
        return [ordinary(count, seed, spread=1.5) for seed in range(4)] + extreme

    for count, _, weights in _tried(case, problems):
        whole = float(weights.sum())
        holds = math.isclose(whole, 1.0 if claimed == "1" else float(count), rel_tol=1e-9)
        case.require(holds, f"claims total={claimed!r}", f"weights {numbers(weights)} with sum {whole:.10g}")


def symmetric(case: OuterCase) -> None:
    """Permuting the tasks permutes the weights, even while tasks come and go."""
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
        weights = case.show(permuted, problem.of(order), step)
        text = f"weights {{}} where the permutation {order} of the tasks gives {{}}"
        case.require_close(weights, expected, "claims symmetric=True", text, rtol=1e-7)


def scaling(case: OuterCase) -> None:
    """Multiplying all losses by c leaves or divides the weights, as claimed, up to the small constants of a method."""
    claimed = case.build().scaling
    if claimed is None:
        return
    for factor in (1e-3, 7.0, 1e3):
        plain, scaled = case.bound(), case.bound()
        for step in range(4):
            problem = ordinary(case.count, step)
            expected = case.show(plain, problem, step) / (factor if claimed == "inverse" else 1.0)
            weights = case.show(scaled, problem.times(torch.tensor(factor, dtype=f64)), step)
            text = f"weights {{}} where {{}} should follow from losses times {factor:g}"
            case.require_close(weights, expected, f"claims scaling={claimed!r}", text, rtol=1e-4)


def balances(case: OuterCase) -> None:
    """Multiplying one task's loss by c divides its weight by c, up to a factor that all tasks share.

    From the second window on: a method that compares windows has nothing to compare in the first.
    """
    if not case.build().balances or case.count < 2:
        return
    for task, factor in ((0, 100.0), (1, 1e-2), (case.count - 1, 3.0)):
        plain, rescaled = case.bound(), case.bound()
        factors = torch.ones(case.count, dtype=f64).index_fill_(0, torch.tensor([task]), factor)
        for step in range(4):
            problem = ordinary(case.count, step)
            expected = case.show(plain, problem, step) / factors
            weights = case.show(rescaled, problem.times(factors), step)
            if step == 0:
                continue
            ratio = (weights / expected).detach()
            text = (
                f"weights {numbers(weights)} where multiples of {numbers(expected)} should follow from the loss of task "
                f"{task} times {factor:g}"
            )
            case.require_close(ratio, ratio[:1].expand_as(ratio), "claims balances=True", text, rtol=1e-5)


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
    """moves=False and reads_signals=False mean that signals have no effect."""
    weighting = case.driven()
    if not weighting.moves:
        before, held = snapshot(weighting), weighting.weights().detach().clone()
        for step, problem in case.following():
            weights = case.show(weighting, problem, step).detach()
            case.require_equal(weights, held, "claims moves=False", "weights {} after {}")
        case.require_unchanged(snapshot(weighting), before, "claims moves=False")
    if not weighting.reads_signals:
        one, other = case.bound(), case.bound()
        for step in range(4):
            case.show(one, ordinary(case.count, step), step)
            case.show(other, ordinary(case.count, 50 + step, spread=1.0), step)
            left, right = one.weights().detach(), other.weights().detach()
            case.require_equal(right, left, "claims reads_signals=False", "weights {} where other signals gave {}")


def learnable(case: OuterCase) -> None:
    """Weights carry a graph, and parameters exist from bind on, exactly if the weighting is learnable."""
    weighting = case.bound()
    case.given = ""
    claimed = weighting.learnable
    claim = f"claims learnable={claimed}"
    parameters = [parameter for parameter in weighting.parameters() if parameter.requires_grad]
    case.require(bool(parameters) == claimed, claim, f"{len(parameters)} parameters after bind")
    problem = ordinary(case.count, 3)
    returned = case.show(weighting, problem)
    for what, value in (("forward returned", returned), ("weights()", weighting.weights())):
        case.require(value.requires_grad == claimed, claim, f"{what} with requires_grad={value.requires_grad}")
    case.require(not weighting.current.requires_grad, "should keep `current` detached", "a graph on it")
    penalty = weighting.penalty()
    if penalty is not None:
        expected = f"penalty() should be finite terms ({case.count},), one per task, or one for all ()"
        case.require(penalty.shape in ((), (case.count,)), expected, f"the shape {tuple(penalty.shape)}")
        case.require_finite(penalty, expected)
    if claimed:
        objective = (weighting.weights() * problem.losses).sum() + (0.0 if penalty is None else penalty.sum())
        gradients = torch.autograd.grad(objective, parameters, allow_unused=True)
        for (name, _), gradient in zip(weighting.named_parameters(), gradients, strict=True):
            reached = gradient is not None and bool(torch.isfinite(gradient).all()) and bool(gradient.any())
            case.require(reached, f"{claim}, so that the total reaches its parameters", f"{gradient} at {name}")


CHECKS: Final = named(
    declarations, structure, repeatable, reference, finite, sign, total, alone, symmetric, scaling, balances, moves
) | named(learnable)
