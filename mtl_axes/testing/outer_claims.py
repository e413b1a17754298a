"""What the weights of an outer weighting are, against what its class claims of them."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Final

import torch
from torch import Tensor

from mtl_axes.describe import FLAGS
from mtl_axes.testing.case import both, close, difference, equal, numbers, same, snapshot
from mtl_axes.testing.outer_case import OuterCase, f64, spread
from mtl_axes.testing.problems import hard, ordinary

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
            case.given = ordinary(count, 1).told(weighting.needs)
            signals, untouched = (ordinary(count, 1).signals(weighting.needs, case.start, dtype) for _ in range(2))
            # Not by show(): what comes after the step may change the weights that are read.
            returned = weighting(signals)
            for name, value in vars(signals).items():
                case.require(equal(value, getattr(untouched, name)), "should leave the signals alone", f"other {name}")
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
            " and ".join(both(left, right)),
        )
    case.require(
        torch.equal(torch.get_rng_state(), generator),
        "should leave the random numbers of others alone; use mtl_axes.outer.draws.Draws",
        "the global generator moved",
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
    for count in case.counts[:3]:
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
    for count in case.counts[:3]:
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
    """All losses times c leave the weights, or divide them by c, as claimed: up to the small constants of a method."""
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
                close(found, expected, 1e-4),
                f"claims scaling={claimed!r}",
                f"weights {numbers(found)} where {numbers(expected)} should follow from losses times {factor:g}",
            )


def balances(case: OuterCase) -> None:
    """One task's loss times c divides its weight by c, up to a factor that all tasks share.

    From the second window on: what compares windows has nothing to compare in the first.
    """
    if not case.build().balances or case.count < 2:
        return
    for task, factor in ((0, 100.0), (1, 1e-2), (case.count - 1, 3.0)):
        plain, rescaled = case.bound(), case.bound()
        factors = torch.ones(case.count, dtype=f64).index_fill_(0, torch.tensor([task]), factor)
        for step in range(4):
            problem = ordinary(case.count, step)
            expected = case.show(plain, problem, step) / factors
            found = case.show(rescaled, problem.times(factors), step)
            if step == 0:
                continue
            ratio = (found / expected).detach()
            case.require(
                close(ratio, ratio[:1].expand_as(ratio), 1e-5),
                "claims balances=True",
                f"weights {numbers(found)} where multiples of {numbers(expected)} should follow from the loss of task "
                f"{task} times {factor:g}",
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


CHECKS: Final[dict[str, Callable[[OuterCase], None]]] = {
    "declarations": declarations,
    "structure": structure,
    "repeatable": repeatable,
    "reference": reference,
    "finite": finite,
    "sign": sign,
    "total": total,
    "alone": alone,
    "symmetric": symmetric,
    "scaling": scaling,
    "balances": balances,
    "moves": moves,
    "learnable": learnable,
}
