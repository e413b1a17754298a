"""An outer weighting within a criterion: the sum, its gradient, evaluation, configuration and compilation."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any, Final

import torch
from torch import Tensor

from mtl_axes.composition import compose
from mtl_axes.testing.case import close, difference, equal, nameable, numbers, same, snapshot
from mtl_axes.testing.models import Heads, batch
from mtl_axes.testing.outer_case import OuterCase, f64
from mtl_axes.testing.problems import ordinary

__all__ = ["CHECKS"]


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
    case.require(bool(torch.isfinite(live).all()), "should have finite weights in a criterion", f"weights {numbers(live)}")
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
    if not nameable(first):
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


def traceable(case: OuterCase) -> None:
    """A weighting of losses that says traceable is part of one compiled graph, and the same there as outside of it."""
    weighting = case.build()
    if not weighting.traceable or weighting.needs != "losses":
        return
    from mtl_axes import uncompiled  # here: it loads the compiler, which takes a second

    if weighting.moves and not uncompiled.TRACES_STATE:
        return
    case.about("claims traceable=True, so that torch.compile takes it into one graph")
    plain, names = _criterion(case)
    traced, _ = _criterion(case)
    torch._dynamo.reset()
    compiled: Callable[..., Tensor] = torch.compile(traced.combine, backend="eager", fullgraph=True)
    for seed in range(4):
        losses = ordinary(len(names), seed).losses
        given = dict(zip(names, losses.clone().requires_grad_().unbind(), strict=True))
        expected = plain.combine(given)
        # The first call of a criterion reads labels, compiled or not.
        found = traced.combine(given) if seed == 0 else compiled(given)
        case.given = f"losses {numbers(losses)}"
        case.require(
            close(found, expected, 1e-6),
            case.claim,
            f"the total {numbers(found)} where {numbers(expected)} is the uncompiled one",
        )


CHECKS: Final[dict[str, Callable[[OuterCase], None]]] = {
    "in a criterion": in_criterion,
    "evaluation": evaluation,
    "traceable": traceable,
    "config": config,
}
