"""An outer weighting in a criterion: the sum, its gradient, evaluation, configuration and compilation."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any, Final

import torch
from torch import Tensor, nn

from mtl_axes.composition import compose
from mtl_axes.testing.case import nameable, named, numbers, snapshot
from mtl_axes.testing.outer_case import OuterCase, f64, ordinary

__all__ = ["CHECKS"]


class _Heads(nn.Module):
    """A trunk with tanh and a linear head per task, in float64, seeded."""

    def __init__(self, tasks: Sequence[str]) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.trunk = nn.Linear(4, 5, dtype=f64)
            # A list: task names may hold any character, module names may not.
            self.heads = nn.ModuleList(nn.Linear(5, 1, dtype=f64) for _ in tasks)
        self.tasks = tuple(tasks)

    def forward(self, inputs: Tensor) -> dict[str, Tensor]:
        z = torch.tanh(self.trunk(inputs))
        return {task: head(z).squeeze(-1) for task, head in zip(self.tasks, self.heads, strict=True)}

    def batch(self, seed: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Return outputs for 8 seeded samples, and targets whose size grows from task to task."""
        generator = torch.Generator().manual_seed(seed)
        inputs = torch.randn(8, 4, generator=generator, dtype=f64)
        targets = {}
        for index, task in enumerate(self.tasks):
            noise = torch.randn(8, generator=generator, dtype=f64)
            targets[task] = (1.0 + index) * (inputs[:, index % 4] + 0.3 * noise) + 0.1
        return self(inputs), targets


def _criterion(case: OuterCase, **options: Any) -> tuple[Any, _Heads]:
    count = min(case.counts, key=lambda count: (abs(count - 3), count))
    names = list(case.names(count))
    return compose(case.build(), "huber", tasks=names, **options), _Heads(names)


def _weighted(weights: Tensor, losses: Sequence[Tensor]) -> Tensor:
    return torch.stack([weight * loss for weight, loss in zip(weights, losses, strict=True)]).sum()


def in_a_criterion(case: OuterCase) -> None:
    """A criterion returns the weighted sum and its gradient, and the two axes enter the total bilinearly."""
    criterion, model = _criterion(case)
    names = model.tasks
    case.about("should weigh the losses of a criterion", f"{len(names)} tasks")
    for seed in range(case.start + 3 if case.start < 8 else 3):
        criterion(*model.batch(seed)).backward()
    outputs, targets = model.batch(50)
    whole = criterion(outputs, targets)
    live = criterion.report.weights
    case.require_finite(live, "should have finite weights in a criterion", "weights {}")
    penalty = criterion.outer.penalty()
    total = whole if penalty is None else whole - penalty.sum()
    fixed = torch.linspace(0.3, 0.9, len(names), dtype=f64)
    errors = [outputs[task] - targets[task] for task in names]
    plain = [error.square().mean() for error in errors]
    shaped = [torch.where(error.abs() <= 1, 0.5 * error.square(), error.abs() - 0.5).mean() for error in errors]
    at_live = compose({"name": "fixed", "weights": live.tolist()}, "mse", tasks=list(names))(outputs, targets)
    gains = [one - other for one, other in zip(shaped, plain, strict=True)]
    left = float((total - at_live - _weighted(fixed, gains)).detach())
    right = float(_weighted(live - fixed, gains).detach())
    case.given = f"losses {numbers(torch.stack(shaped))} and weights {numbers(live)}"
    case.require(
        abs(left - right) <= 1e-9 * (float(_weighted(live.abs(), plain).detach()) + 1),
        "should enter a total bilinearly, (L_D - L_C) - (L_B - L_A) = sum (lambda - mu) (S - P)",
        f"{left:.12g} and {right:.12g}",
    )
    parameters = list(model.parameters())
    expected = torch.autograd.grad(_weighted(live.detach(), shaped), parameters, retain_graph=True)
    for gradient, other in zip(torch.autograd.grad(whole, parameters, retain_graph=True), expected, strict=True):
        claim = "should have the weighted sum of the task gradients as the gradient of a total"
        case.require_close(gradient, other, claim, "{} where the sum is {}", rtol=1e-8, atol=1e-12)


def evaluation(case: OuterCase) -> None:
    """Calls in eval mode, without gradients or within hold() change no state of a criterion."""
    for accumulate in (1, 2):
        criterion, model = _criterion(case, accumulate=accumulate)
        for seed in range(3):
            criterion(*model.batch(seed)).backward()
        before = snapshot(criterion)
        for how, context in (
            ("eval()", torch.enable_grad),
            ("no_grad", torch.no_grad),
            ("inference_mode", torch.inference_mode),
            ("hold()", criterion.hold),
        ):
            criterion.train(how != "eval()")
            case.about(f"should not change in {how}", f"accumulate={accumulate}")
            with context():
                criterion(*model.batch(9))
            case.require_unchanged(snapshot(criterion), before, case.claim)


def config(case: OuterCase) -> None:
    """A registered weighting is named in the config of a criterion, plain data that builds the same criterion."""
    first = case.build()
    if not nameable(first):
        return
    criterion, model = _criterion(case)
    case.about("should be built again from the config of a criterion", repr(first))
    twin = compose(**json.loads(json.dumps(criterion.config())))
    case.require(twin.config() == criterion.config(), case.claim, repr(twin.outer))
    for seed in range(3):
        left, right = (each(*model.batch(seed)).detach() for each in (criterion, twin))
        case.require_equal(left, right, case.claim, "the totals {} and {}")


def traceable(case: OuterCase) -> None:
    """A loss-based weighting that claims traceable is part of one compiled graph, with the same results."""
    weighting = case.build()
    if not weighting.traceable or weighting.needs != "losses":
        return
    from mtl_axes.compiling import TRACES_STATE  # imported late: it loads the compiler, which takes a second

    if weighting.moves and not TRACES_STATE:
        return
    case.about("claims traceable=True, so that torch.compile takes it into one graph")
    plain, model = _criterion(case)
    traced, _ = _criterion(case)
    torch._dynamo.reset()
    compiled: Callable[..., Tensor] = torch.compile(traced.combine, backend="eager", fullgraph=True)
    for seed in range(4):
        losses = ordinary(len(model.tasks), seed).losses
        given = dict(zip(model.tasks, losses.clone().requires_grad_().unbind(), strict=True))
        expected = plain.combine(given)
        # The first call of a criterion reads labels, compiled or not.
        total = traced.combine(given) if seed == 0 else compiled(given)
        case.given = f"losses {numbers(losses)}"
        case.require_close(total, expected, case.claim, "the total {} where {} is the uncompiled one", rtol=1e-6)


CHECKS: Final = named(in_a_criterion, evaluation, traceable, config)
