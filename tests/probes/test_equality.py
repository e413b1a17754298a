"""Whatever the probe, .grad of every parameter is that of the plain weighted sum with the weights that the report names."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import pytest
import torch
from probing import PROBES, REUSES, Net, Skip, Spread, Tied, f32, f64, names, reused, same_gradients, weighted
from sampling import covering, tiered
from strategies import quick
from torch import Tensor, nn

from mtl_axes import compose
from mtl_axes.outer import Rescaled

TOLERANCE = {f32: 1e-6, f64: 1e-12}
every_probe = pytest.mark.parametrize("probe", PROBES)
costly = pytest.mark.filterwarnings("ignore:.*plain step")


def halved(z: Tensor) -> None:
    z.register_hook(lambda gradient: 0.5 * gradient)


def squares(model: nn.Module) -> Tensor:
    return 0.01 * sum(parameter.square().sum() for parameter in model.parameters())


def freeze_first_layer(model: Net, call: int) -> None:
    model.trunk[0].requires_grad_(call not in (2, 3))


def freeze_trunk(model: Net, call: int) -> None:
    model.trunk.requires_grad_(call not in (2, 3))


@dataclass(frozen=True)
class Condition:
    """What a user does around the criterion.

    Attributes:
        model: class of the model.
        options: of ``compose``.
        window: calls per optimizer step.
        absent: name of the task without a loss in a call.
        scale: factor on the total, as of a GradScaler.
        extra: a term of the user's own.
        tap: called with the representation in each forward.
        prepare: called with the model before each call.
        given: whether the trunk is passed as ``shared``.
        clip: largest norm of all gradients together.
        set_to_none: of ``zero_grad``.
        rescaled: whether the weights are rescaled to the sum K.
    """

    model: type[Net] = Net
    options: tuple[tuple[str, Any], ...] = ()
    window: int = 1
    absent: Callable[[int], str] = lambda call: ""
    scale: float = 1.0
    extra: Callable[[nn.Module], Tensor | float] = lambda model: 0.0
    tap: Callable[[Tensor], Any] | None = None
    prepare: Callable[[Net, int], None] = lambda model, call: None
    given: bool = False
    rescaled: bool = False
    clip: float | None = None
    set_to_none: bool = True


PLAIN = Condition()
CONDITIONS = {
    "one absent task": Condition(absent=lambda call: "-a-bc-b"[call % 7]),
    "absent for a while": Condition(absent=lambda call: "c" if call >= 4 else ""),
    "accumulation": Condition(options=(("accumulate", 2),), window=2),
    "accumulation, in place": Condition(options=(("accumulate", 3),), window=3, set_to_none=False),
    "accumulation, unknown": Condition(window=2),
    "accumulation, absent task": Condition(options=(("accumulate", 2),), window=2, absent=lambda call: "-ab-c"[call % 5]),
    "loss scale": Condition(scale=65536.0),
    "regulariser": Condition(extra=squares),
    "first layer frozen": Condition(prepare=freeze_first_layer),
    "tied weights": Condition(model=Tied),
    "skip paths": Condition(model=Skip),
    "hook": Condition(tap=halved),
    "clipped": Condition(clip=0.5),
    "zeroed in place": Condition(set_to_none=False),
    "normalised": Condition(rescaled=True),
    "trunk given": Condition(given=True),
    "everything": Condition(
        model=Skip,
        options=(("accumulate", "manual"),),
        window=2,
        absent=lambda call: "-ab-c"[call % 5],
        scale=65536.0,
        extra=squares,
        clip=0.5,
        set_to_none=False,
    ),
}


class Training:
    """A model under a probe, and a twin that goes through the plain weighted sum with the weights of the report."""

    def __init__(self, probe: str, count: int, dtype: torch.dtype, condition: Condition, outer: Any = None) -> None:
        self.condition, self.tasks, self.tolerance = condition, names(count), TOLERANCE[dtype]
        self.model = condition.model(count, dtype)
        self.twin = copy.deepcopy(self.model)
        self.model.tap = self.twin.tap = condition.tap
        options = {**PROBES[probe], **dict(condition.options)}
        if condition.given:
            options["shared"] = self.model.trunk
        outer = Spread() if outer is None else outer
        self.criterion = compose(Rescaled(outer, total="K") if condition.rescaled else outer, tasks=self.tasks, **options)
        self.optimizers = [torch.optim.SGD(each.parameters(), lr=1e-3) for each in (self.model, self.twin)]
        self.weights: list[tuple[float, ...]] = []
        self.reused: list[bool] = []

    def run(self, calls: int) -> Training:
        for call in range(calls):
            self.call(call)
            if (call + 1) % self.condition.window == 0:
                self.step()
        return self

    def call(self, call: int) -> None:
        condition = self.condition
        for model in (self.model, self.twin):
            condition.prepare(model, call)
        losses, plain = ({**model(call), condition.absent(call): None} for model in (self.model, self.twin))
        losses.pop("", None), losses.pop("-", None)
        total = self.criterion.combine(losses)
        weights = self.criterion.report.weights
        self.weights.append(tuple(weights.tolist()))
        self.reused.append(reused(total))
        there = {name: plain[name] for name, loss in losses.items() if loss is not None}
        for model, value in ((self.model, total), (self.twin, weighted(there, weights, self.tasks))):
            (condition.scale * (value + condition.extra(model)) / condition.window).backward()
        same_gradients(self.model, self.twin, self.tolerance)

    def step(self) -> None:
        for model in (self.model, self.twin):
            gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
            torch._foreach_div_(gradients, self.condition.scale)
            if self.condition.clip is not None:
                torch.nn.utils.clip_grad_norm_(model.parameters(), self.condition.clip)
        same_gradients(self.model, self.twin, 2 * self.tolerance)
        for optimizer in self.optimizers:
            optimizer.step()
        self.twin.load_state_dict(self.model.state_dict())
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=self.condition.set_to_none)
        if self.criterion.accumulate == "manual":
            self.criterion.step()

    def alive(self) -> bool:
        """Whether the weights have moved since the last window but one, and are far from 1/K."""
        return len(set(self.weights)) > 2 and max(self.weights[-1]) > 1e3 * min(self.weights[-1])


SIZES = [*((f64, count) for count in range(1, 9)), (f32, 1), (f32, 4), (f32, 8)]


@costly
@pytest.mark.parametrize(
    ("probe", "dtype", "count"), [(probe, *size) for probe, size in covering(product(PROBES, SIZES), times=3)], ids=str
)
def test_gradients_are_those_of_the_plain_weighted_sum(probe: str, dtype: torch.dtype, count: int) -> None:
    """For 1 to 8 tasks with live weights from 0 to 80 every .grad in every step is the plain weighted sum's."""
    training = Training(probe, count, dtype, PLAIN).run(max(7, count + 2))
    assert count == 1 or (len(set(training.weights)) > 2 and max(training.weights[-1]) >= 40)
    assert count < 3 or training.alive()
    if probe == "exact":
        assert all(training.reused[1:]) == REUSES
    if probe == "every":
        assert training.reused[1:7] == [False, False, REUSES, False, False, REUSES]
    if probe in ("no reuse", "rotate", "representation", "lagged"):
        assert not any(training.reused)


CASES = [
    (probe, condition, dtype)
    for probe, condition, dtype in product(PROBES, CONDITIONS, (f64, f32))
    if dtype is f64 or probe in ("exact", "lagged")
]


@pytest.mark.parametrize(("probe", "condition", "dtype"), tiered(CASES, times=3), ids=str)
def test_gradients_are_equal_whatever_the_user_does(probe: str, condition: str, dtype: torch.dtype) -> None:
    """Absent tasks, accumulation, a loss scale, regularisers, freezing, ties, hooks, clipping: .grad is the plain sum's."""
    window = CONDITIONS[condition].window
    training = Training(probe, 3, dtype, CONDITIONS[condition]).run(7 if window == 1 else 5 * window)
    assert training.alive()
    if probe == "exact":
        hooked = CONDITIONS[condition].tap is not None
        assert all(training.reused[1:]) == (REUSES and not hooked)
        assert not hooked or not any(training.reused)


@pytest.mark.parametrize(("window", "scale"), [(1, 1.0), (2, 65536.0)])
@pytest.mark.parametrize("outer", ["gaba", "gradnorm"])
@every_probe
def test_gradients_are_equal_for_the_built_in_weightings(probe: str, outer: str, window: int, scale: float) -> None:
    """GABA and GradNorm move under every probe, and .grad is the plain sum's with their weights."""
    condition = replace(PLAIN, window=window, options=(("accumulate", window),), scale=scale)
    training = Training(probe, 3, f64, condition, quick(outer)).run(7 if window == 1 else 10)
    assert len(set(training.weights)) > 2


@every_probe
def test_gradients_are_equal_while_a_given_trunk_is_frozen(probe: str) -> None:
    """A trunk that is given as shared= and frozen for two calls leaves the heads their gradients, and thaws."""
    condition = replace(PLAIN, prepare=freeze_trunk, given=True)
    training = Training(probe, 3, f64, condition)
    training.run(2)
    with pytest.warns(UserWarning, match="All parameters given as shared= are frozen") as caught:
        for call in (2, 3):
            training.call(call)
            training.step()
    assert len(caught) == 1
    training.run(7)
    assert len(set(training.weights[2:4])) == 1, "nothing moves while the trunk is frozen"
    assert len(set(training.weights[4:])) > 1


@every_probe
def test_outputs_and_targets_are_measured_as_losses_are(probe: str) -> None:
    """A call with outputs and targets, masks included, gives the gradients of the sum of the means it reports."""
    model = Net(3)
    twin = copy.deepcopy(model)
    criterion = compose(Spread(), "mse", tasks=names(3), **PROBES[probe])
    mask = torch.arange(8) % 3 > 0
    for call in range(7):
        inputs, targets = model.batch(call)
        representations = model.trunk(inputs), twin.trunk(inputs)
        outputs, plain = (
            {name: each.heads[name](z).squeeze(-1) for name in names(3)}
            for each, z in zip((model, twin), representations, strict=True)
        )
        criterion(outputs, dict(zip(names(3), targets.unbind(1), strict=True)), mask=mask).backward()
        losses = {name: (plain[name] - targets[:, index])[mask].square().mean() for index, name in enumerate(names(3))}
        weighted(losses, criterion.report.weights, names(3)).backward()
        same_gradients(model, twin, 1e-12)
        model.zero_grad(), twin.zero_grad()


@every_probe
@pytest.mark.parametrize("how", ["leaf", "behind an encoder"])
def test_inputs_that_require_a_gradient_get_it(probe: str, how: str) -> None:
    """Inputs of attacks and residual losses are leaves too: their .grad is the plain sum's, and not counted as shared."""
    model = Net(3)
    encoder = nn.Linear(4, 4).double()
    criterion = compose(Spread(), tasks=names(3), **PROBES[probe])

    def losses(leaf: Tensor, targets: Tensor) -> dict[str, Tensor]:
        z = model.represent(leaf if how == "leaf" else torch.tanh(encoder(leaf)))
        return {name: (model.predict(name, z)[:, 0] - targets[:, index]).square().sum() for index, name in enumerate("abc")}

    for call in range(7):
        inputs, targets = model.batch(call)
        leaf, plain = inputs.clone().requires_grad_(), inputs.clone().requires_grad_()
        criterion.combine(losses(leaf, targets)).backward()
        weighted(losses(plain, targets), criterion.report.weights, names(3)).backward()
        assert bool((leaf.grad - plain.grad).norm() <= 1e-12 * plain.grad.norm())


@every_probe
def test_residuals_with_derivatives_inside_are_equal(probe: str) -> None:
    """Losses that contain gradients of the outputs themselves, as residuals of differential equations do, are equal too."""
    torch.manual_seed(2)
    model = nn.Sequential(nn.Linear(1, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 1)).double()
    twin = copy.deepcopy(model)
    criterion = compose(Spread(), tasks=names(3), **PROBES[probe])

    def losses(net: nn.Module, call: int) -> dict[str, Tensor]:
        x = (torch.linspace(0, 1, 6, dtype=f64)[:, None] + 0.1 * call).requires_grad_()
        u = net(x)
        (slope,) = torch.autograd.grad(u.sum(), x, create_graph=True)
        return {"a": u[0].square().sum(), "b": (slope + u).square().mean(), "c": slope[-1].square().sum()}

    for call in range(7):
        criterion.combine(losses(model, call)).backward()
        weighted(losses(twin, call), criterion.report.weights, names(3)).backward()
        same_gradients(model, twin, 1e-12)
        model.zero_grad(), twin.zero_grad()


@every_probe
@pytest.mark.filterwarnings("ignore:.torch.cpu.amp.autocast")  # torch's own, before 2.6
def test_dropout_recomputation_and_batch_statistics_are_those_of_one_forward(probe: str) -> None:
    """Random masks are drawn once, checkpointed layers recompute what they had, and running statistics move once."""
    torch.manual_seed(4)
    trunk = nn.Sequential(
        nn.Linear(4, 8, bias=False), nn.BatchNorm1d(8), nn.Tanh(), nn.Dropout(0.4), nn.Linear(8, 5)
    ).double()
    model = nn.ModuleDict({"trunk": trunk, **{name: nn.Linear(5, 1).double() for name in names(3)}})
    twin = copy.deepcopy(model)
    criterion = compose(Spread(), tasks=names(3), **PROBES[probe])

    def losses(each: nn.ModuleDict, call: int) -> dict[str, Tensor]:
        torch.manual_seed(call)
        inputs = torch.randn(8, 4, dtype=f64)
        hidden = each["trunk"][:2](inputs)
        z = torch.utils.checkpoint.checkpoint(each["trunk"][2:], hidden, use_reentrant=False)
        return {name: each[name](z).square().mean() * 10.0**index for index, name in enumerate(names(3))}

    for call in range(7):
        criterion.combine(losses(model, call)).backward()
        weighted(losses(twin, call), criterion.report.weights, names(3)).backward()
        same_gradients(model, twin, 1e-12)
        assert torch.equal(model["trunk"][1].running_var, twin["trunk"][1].running_var)
        model.zero_grad(), twin.zero_grad()
