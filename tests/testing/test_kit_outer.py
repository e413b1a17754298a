"""The kit detects broken claims: for each claim, an outer weighting that breaks it, and the sentence."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

from mtl_axes import OuterWeighting, Signals, register_outer, registry
from mtl_axes.errors import ContractError, OptionError
from mtl_axes.outer import GABA, Fixed, Uncertainty
from mtl_axes.outer.draws import Draws
from mtl_axes.tasks.losses import weighted_sum
from mtl_axes.testing import check_outer


class InverseNorm(OuterWeighting):
    """A sound weighting with every claim: the inverse norm, without memory."""

    needs: ClassVar[Any] = "norms"
    total: ClassVar[Any] = "1"
    sign: ClassVar[Any] = "nonnegative"
    memoryless: ClassVar[bool] = True
    scaling: ClassVar[Any] = "invariant"
    balances: ClassVar[bool] = True

    def raw(self, signals: Signals) -> Tensor:
        assert signals.norms is not None
        # Relative to the smallest norm: a sum of 1 / 1e-12 must not lose the rest.
        least = torch.where(signals.active, signals.norms, torch.inf).amin()
        return torch.where(signals.active, least / signals.norms, 0.0)

    def forward(self, signals: Signals, /) -> Tensor:
        raw = self.raw(signals)
        return torch.where(signals.active.any(), raw / raw.sum(), self.current)


class Smoothed(OuterWeighting):
    """A sound weighting with memory: averaged shares of the losses."""

    total: ClassVar[Any] = None

    def __init__(self, *, beta: float = 0.5) -> None:
        super().__init__()
        self.beta = beta

    def bind(self, tasks: Any) -> None:
        super().bind(tasks)
        self.register_buffer("average", torch.full((len(tasks),), 1.0, dtype=self.dtype))

    def forward(self, signals: Signals, /) -> Tensor:
        moved = self.beta * self.average + (1 - self.beta) * torch.where(signals.active, signals.losses.abs() + 1, 1.0)
        self.average.copy_(torch.where(signals.active, moved, self.average))
        return self.average.clone()


class Random(OuterWeighting):
    """A sound random weighting, on the generator that its state holds."""

    symmetric: ClassVar[bool] = False
    traceable: ClassVar[bool] = False
    total: ClassVar[Any] = "K"
    memoryless: ClassVar[bool] = True

    def __init__(self, *, seed: int = 0) -> None:
        super().__init__()
        self.seed = seed
        self.draws = Draws(seed)

    def forward(self, signals: Signals, /) -> Tensor:
        drawn = self.draws.uniform((signals.size,), signals.losses) + 0.1
        drawn = torch.where(signals.active, drawn, 0.0)
        return torch.where(signals.active.any(), signals.size * drawn / drawn.sum(), self.current)


class Learned(OuterWeighting):
    """A sound learnable weighting."""

    learnable: ClassVar[bool] = True
    reads_signals: ClassVar[bool] = False
    sign: ClassVar[Any] = "positive"

    def bind(self, tasks: Any) -> None:
        super().bind(tasks)
        self.s = nn.Parameter(torch.zeros(len(tasks), dtype=self.dtype))

    def forward(self, signals: Signals, /) -> Tensor:
        return self.weights()

    def weights(self) -> Tensor:
        return torch.exp(-self.s)

    def penalty(self) -> Tensor:
        return self.s


@pytest.mark.parametrize("sound", [InverseNorm, Smoothed, Random, Learned])
def test_a_sound_weighting_passes(sound: type[OuterWeighting]) -> None:
    """Weightings that keep their contracts pass, whatever their mechanism."""
    check_outer(sound if sound is not Smoothed else lambda: sound())


def weights_of(
    function: Callable[[OuterWeighting, Signals], Tensor], base: type[OuterWeighting] = InverseNorm, **claims: Any
):
    """A weighting like another one, with another forward and other claims."""
    return like(base, forward=lambda self, signals, /: function(self, signals), **claims)


def like(base: type[OuterWeighting], **members: Any) -> type[OuterWeighting]:
    """A weighting like another one, with other members."""
    # A class within a function: pickle is not asked to find it.
    return type("Broken", (base,), {"__qualname__": "like.<locals>.Broken", **members})


def good(self: OuterWeighting, signals: Signals) -> Tensor:
    return InverseNorm.forward(self, signals)  # type: ignore[arg-type]


class KeepsUnsaved(Smoothed):
    def bind(self, tasks: Any) -> None:
        OuterWeighting.bind(self, tasks)
        self.register_buffer("average", torch.full((len(tasks),), 1.0, dtype=self.dtype), persistent=False)


class SharesItsState(Smoothed):
    def __deepcopy__(self, memo: Any) -> SharesItsState:
        twin = SharesItsState(beta=self.beta)
        twin.bind(self.tasks)
        twin._buffers["average"] = self.average
        twin.current.copy_(self.current)
        return twin


class Unpicklable(Smoothed):
    def __init__(self, *, beta: float = 0.5) -> None:
        super().__init__(beta=beta)
        self.hook = lambda: None


class Forgetful(Smoothed):
    def __repr__(self) -> str:
        return "Forgetful(beta=0.9)"


class Optionless(Smoothed):
    def __init__(self, *, decay: float = 0.5) -> None:
        super().__init__(beta=decay)
        self.decay = 0.9


class NotKept(Smoothed):
    def __init__(self, *, decay: float = 0.5) -> None:
        super().__init__(beta=decay)


class Replaces(Smoothed):
    def forward(self, signals: Signals, /) -> Tensor:
        super().forward(signals)
        self.average = self.average.clone()
        return self.average.clone()


class NarrowBuffer(Smoothed):
    """Allocates its state in float32, whatever its dtype."""

    def bind(self, tasks: Any) -> None:
        OuterWeighting.bind(self, tasks)
        self.register_buffer("average", torch.ones(len(tasks)))


class NarrowState(Smoothed):
    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        return nn.Module._apply(self, fn, recurse)


class MovesInEval(Smoothed):
    def reference(self) -> Tensor:
        self.average.mul_(2.0)
        return super().reference()


class CountsReads(Smoothed):
    def weights(self) -> Tensor:
        self.average.add_(1.0)
        return super().weights()


class MovesReference(Smoothed):
    def reference(self) -> Tensor:
        return self.current


class NoDetachedDiagnostics(Learned):
    def diagnostics(self) -> dict[str, Tensor]:
        return {"s": self.s}


class Unreached(Learned):
    def weights(self) -> Tensor:
        return torch.ones_like(self.s) + 0 * self.s.detach().requires_grad_()

    def penalty(self) -> None:  # type: ignore[override]
        return None


class OddPenalty(Learned):
    def penalty(self) -> Tensor:
        return self.s.repeat(2)


class Doubled(InverseNorm):
    """Its weights() in a total are not those of its forward."""

    def forward(self, signals: Signals, /) -> Tensor:
        return super().forward(signals)

    def weights(self) -> Tensor:
        return 2 * self.current


def in_place(self: OuterWeighting, signals: Signals) -> Tensor:
    assert signals.norms is not None
    signals.norms.mul_(2.0)
    return good(self, signals)


def global_draw(self: OuterWeighting, signals: Signals) -> Tensor:
    return good(self, signals) + 0 * torch.rand(1, dtype=signals.losses.dtype)


def unequal_draw(self: OuterWeighting, signals: Signals) -> Tensor:
    drawn = torch.where(signals.active, torch.rand(signals.size, dtype=signals.losses.dtype), 0.0)
    return torch.where(signals.active.any(), drawn, self.current)


def overwritten(self: OuterWeighting, signals: Signals) -> Tensor:
    good(self, signals)
    self.current.copy_(good(self, signals))
    return self.current


def drifting(self: OuterWeighting, signals: Signals) -> Tensor:
    """Moves the weights of absent tasks, too."""
    self.average.mul_(0.5).add_(0.5)  # type: ignore[operator]
    return self.average.clone() * signals.losses.abs()  # type: ignore[operator]


def state_of_absent(self: OuterWeighting, signals: Signals) -> Tensor:
    self.average.mul_(0.5)  # type: ignore[operator]
    return torch.ones_like(signals.losses)


def idle_drift(self: OuterWeighting, signals: Signals) -> Tensor:
    share = torch.where(signals.active.any(), InverseNorm.forward(self, signals), 1 / signals.size)  # type: ignore[arg-type]
    return share


def idle_state(self: OuterWeighting, signals: Signals) -> Tensor:
    self.average.mul_(torch.where(signals.active.any(), 1.0, 0.5))  # type: ignore[operator]
    return torch.ones_like(signals.losses)


def by_position(self: OuterWeighting, signals: Signals) -> Tensor:
    return torch.where(signals.active, torch.arange(1.0, signals.size + 1, dtype=signals.losses.dtype), self.current)


def squares(self: OuterWeighting, signals: Signals) -> Tensor:
    """Balances too much: one task times c divides its weight by c squared."""
    raw = InverseNorm.raw(self, signals).square()  # type: ignore[arg-type]
    return torch.where(signals.active.any(), raw / raw.sum(), self.current)


def wrong_rest(self: OuterWeighting, signals: Signals) -> Tensor:
    """Absent tasks weigh 0, and what they would have had is not given to the others."""
    assert signals.norms is not None
    raw = 1 / signals.norms
    return torch.where(signals.active.any(), torch.where(signals.active, raw / raw.sum(), 0.0), self.current)


def blows_up(self: OuterWeighting, signals: Signals) -> Tensor:
    assert signals.norms is not None
    raw = torch.where(signals.active, signals.norms.pow(-4), 0.0)
    return torch.where(signals.active.any(), raw / raw.sum(), self.current)


def not_positive(self: OuterWeighting, signals: Signals) -> Tensor:
    share = good(self, signals)
    return torch.where(share > share.min(), share, 0.0) if signals.size > 1 else share


def negative(self: OuterWeighting, signals: Signals) -> Tensor:
    return good(self, signals) - 0.01


def offset_sum(self: OuterWeighting, signals: Signals) -> Tensor:
    return good(self, signals) * 1.3


def reads_value(self: OuterWeighting, signals: Signals) -> Tensor:
    signals.losses.sum().item()
    return good(self, signals)


def leaves_device(self: OuterWeighting, signals: Signals) -> Tensor:
    return torch.ones(signals.size, dtype=signals.losses.dtype)


def carries_graph(self: OuterWeighting, signals: Signals) -> Tensor:
    return good(self, signals) * torch.ones((), dtype=signals.losses.dtype, requires_grad=True)


def one_too_many(self: OuterWeighting, signals: Signals) -> Tensor:
    return torch.ones(signals.size + 1)


def narrow(self: OuterWeighting, signals: Signals) -> Tensor:
    return good(self, signals).float()


def lone(self: OuterWeighting, signals: Signals) -> Tensor:
    return good(self, signals) if signals.size > 1 else signals.losses.new_full((1,), 1.0 + 1e-12)


def spoils_state(self: OuterWeighting, signals: Signals) -> Tensor:
    self.average.copy_(torch.where(signals.losses > 1e5, torch.inf, self.average))  # type: ignore[operator]
    return torch.ones_like(signals.losses)


def untraceable(self: OuterWeighting, signals: Signals) -> Tensor:
    torch._dynamo.graph_break()
    return Smoothed.forward(self, signals)  # type: ignore[arg-type]


class Resets(Smoothed):
    def train(self, mode: bool = True) -> Resets:
        if self.bound:
            self.average.fill_(7.0)
        return super().train(mode)


class FailsInCriterion(Smoothed):
    def weights(self) -> Tensor:
        return self.current * (torch.inf if self.tasks[0].kind is not None else 1.0)


BROKEN: dict[str, tuple[Any, str]] = {
    "needs": (
        like(InverseNorm, needs="hessian"),
        "should claim needs as one of 'losses', 'norms', 'gramian': found 'hessian'",
    ),
    "sign declared": (like(InverseNorm, sign="plus"), "should claim sign as one of .*: found 'plus'"),
    "total declared": (like(InverseNorm, total=1.0), "should claim total as one of '1', 'K', None: found 1.0"),
    "scaling declared": (like(InverseNorm, scaling="none"), "should claim scaling as one of .*: found 'none'"),
    "a flag": (like(InverseNorm, balances="yes"), "should claim balances as True or False: found 'yes'"),
    "undeclared need": (like(InverseNorm, needs="losses"), "should .*: found (AssertionError|TypeError).* for losses"),
    "no forward": (
        like(OuterWeighting),
        r"found NotImplementedError: Broken should define forward\(signals\) for losses",
    ),
    "no weights": (
        weights_of(lambda self, signals: None),  # type: ignore[arg-type, return-value]
        r"found PluginError: .* should return weights of shape \(4,\)\. Found NoneType",
    ),
    "signals changed": (weights_of(in_place), "should leave the signals unchanged: found other norms for losses"),
    "no constructor": (
        like(OuterWeighting, __init__=lambda self: None),
        "should bind to tasks: found AttributeError: cannot assign .* before Module.__init__",
    ),
    "after the step declared": (
        like(InverseNorm, wants_after_step=1),
        "should claim wants_after_step as True or False: found 1",
    ),
    "buffer replaced": (Replaces, "should change its buffers in place: found another tensor at average"),
    "narrow buffer": (
        NarrowBuffer,
        r"should continue bit for bit from a loaded state: found weights \[\d\.\d{8}, .* has \[\d\.\d{8}",
    ),
    "option not kept": (NotKept, r"should keep each option as an attribute of its name, .*: found no attribute decay\.$"),
    "shape": (weights_of(one_too_many), r"found PluginError: .* should return weights of shape \(4,\)\. Found \(5,\)"),
    "dtype": (
        weights_of(narrow),
        "should return weights .4,. of torch.float64 from forward: found torch.float32 for losses",
    ),
    "overwritten": (weights_of(overwritten, total=None), "should not overwrite the weights that it has returned: found"),
    "other weights": (Doubled, "weights.. should be what forward returned: found"),
    "reference moves": (MovesReference, r"reference\(\) should be constant: found \[.*\] after"),
    "finite": (
        weights_of(blows_up, scaling=None),
        r"should give finite weights in torch.float32: found weights \[.*nan.*\] for",
    ),
    "positive": (weights_of(not_positive, sign="positive"), r"claims sign='positive': found weights \[.*0.*\] for losses"),
    "nonnegative": (weights_of(negative, total=None), r"claims sign='nonnegative': found weights \[.*-0\.0.*\] for losses"),
    "total": (
        weights_of(offset_sum),
        r"claims total='1': found weights \[.*\] with sum 1\.3 for losses \[.*\], norms \[.*\], active",
    ),
    "total K": (like(InverseNorm, total="K"), r"claims total='K': found weights \[.*\] with sum 1 for"),
    "symmetric": (weights_of(by_position, Smoothed), "claims symmetric=True: found weights .* where the permutation"),
    "invariant": (
        like(Smoothed, scaling="invariant"),
        "claims scaling='invariant': found weights .* should follow from losses times 0.001 for",
    ),
    "inverse": (like(InverseNorm, scaling="inverse"), "claims scaling='inverse': found weights"),
    "balances": (weights_of(squares), "claims balances=True: found weights .* from the loss of task 0 times 100 for"),
    "absent weighs": (
        like(Smoothed, memoryless=True),
        r"claims memoryless=True, so that an absent task weighs 0: found weights .* for .* with task 1 absent \(inactive\)",
    ),
    "absent keeps its weight": (
        weights_of(drifting, Smoothed),
        "claims memoryless=False, so that an absent task keeps its weight: found .* for task 1 after",
    ),
    "absent keeps its state": (
        weights_of(state_of_absent, Smoothed),
        "claims memoryless=False, so that an absent task keeps its state: found a change in average for",
    ),
    "the rest": (
        weights_of(wrong_rest, balances=False),
        "claims memoryless=True, so that the others keep the weights that they have without the absent tasks: found weights",
    ),
    "nothing active": (weights_of(idle_drift), "should keep its weights when no task is active: found weights"),
    "nothing active, state": (
        weights_of(idle_state, Smoothed),
        "should keep the state of every task when none is active: found a change in average of task 0",
    ),
    "alone": (weights_of(lone), "claims total='1', which is 1 for one task: found"),
    "moves": (like(Smoothed, moves=False), "claims moves=False: found"),
    "reads_signals": (
        like(Smoothed, reads_signals=False),
        "claims reads_signals=False: found weights .* where other signals gave",
    ),
    "unequal ranks": (
        weights_of(unequal_draw, OuterWeighting, symmetric=False, memoryless=True),
        "should give the same weights for the same signals, on every rank: found",
    ),
    "global generator": (
        weights_of(global_draw),
        "should not draw from the global generator; .*: found a change in its state",
    ),
    "reading moves": (CountsReads, "should change its state only in forward: found a change in average"),
    "diagnostics": (NoDetachedDiagnostics, r"diagnostics\(\) should be detached tensors: found s of Parameter"),
    "graph": (weights_of(carries_graph), "claims learnable=False: found forward returned with requires_grad=True"),
    "parameters": (like(Learned, learnable=False), "claims learnable=False: found 1 parameters after bind"),
    "no parameters": (like(InverseNorm, learnable=True), "claims learnable=True: found 0 parameters after bind"),
    "unreached": (Unreached, "claims learnable=True, so that the total reaches its parameters: found None at s"),
    "penalty": (
        OddPenalty,
        r"penalty\(\) should be finite terms \(4,\), one per task, or one for all \(\): found the shape \(8,\)",
    ),
    "state unsaved": (KeepsUnsaved, "should continue bit for bit from a loaded state: found weights"),
    "pickle": (Unpicklable, "should survive pickle: found .*(pickle|lambda)"),
    "shared by copies": (SharesItsState, "should share nothing with its copy: found a change in average"),
    "narrowed": (NarrowState, r"should keep its state through .half\(\): found a change in average"),
    "device": (
        weights_of(leaves_device, memoryless=False, balances=False, total=None),
        "claims on_host=False, .*: found weights on cpu",
    ),
    "host": (weights_of(reads_value), "claims on_host=False, so that it .*: found"),
    "repr": (Forgetful, r"should be built again from the repr: found"),
    "options": (Optionless, "should be built again from (the repr|options..): found weights"),
    "finite state": (
        weights_of(spoils_state, Smoothed),
        "should keep finite state in torch.float.*: found average = .*inf.* for",
    ),
    "traceable": (weights_of(untraceable, Smoothed), "claims traceable=True, .*: found Unsupported"),
    "evaluation": (Resets, r"should not change in .*: found a change in outer.average for accumulate=1"),
    "in a criterion": (FailsInCriterion, "should have finite weights in a criterion: found weights .inf"),
    "reading a constant moves": (MovesInEval, "should change its state only in forward: found a change in average"),
}


@pytest.mark.parametrize("what", BROKEN)
def test_a_broken_weighting_fails(what: str) -> None:
    """Each broken weighting fails with the sentence of its claim, which names the class and shows the input."""
    broken, sentence = BROKEN[what]
    # The search for weights that are not finite takes most of the time, and comes before most of what is broken here.
    skip = () if what.startswith("finite") else ("finite",)
    with pytest.raises(ContractError, match=f"^{broken.__name__} .*{sentence}") as caught:
        check_outer(broken, skip=skip)
    text = str(caught.value)
    assert text.endswith(".") and "\n" not in text
    assert isinstance(caught.value, AssertionError)


class Unplain(Smoothed):
    """Its options are no plain data."""

    def __init__(self, *, beta: float = 0.5, dtype: torch.dtype = torch.float64) -> None:
        super().__init__(beta=beta)
        self.dtype_option = dtype

    def options(self) -> dict[str, Any]:
        return {"beta": self.beta, "dtype": self.dtype_option}

    def __repr__(self) -> str:
        return "Unplain()"


def test_a_registered_weighting_goes_through_a_config(monkeypatch: pytest.MonkeyPatch) -> None:
    """Options that are not plain data fail for a registered weighting only: others are in no config."""
    monkeypatch.setattr(registry, "_registry", registry.Registry())
    check_outer(Unplain)
    register_outer("unplain")(Unplain)
    with pytest.raises(
        ContractError, match=r"^Unplain should be built again from the config of a criterion: found TypeError"
    ):
        check_outer("unplain")


def test_options_that_name_tasks() -> None:
    """Weightings whose options fix the tasks are tested with the tasks that they name, or with as many as they take."""
    check_outer(lambda: Fixed(weights={"rul": 2.0, "health": 1.0}), tasks=["rul", "health"])
    check_outer(lambda: Fixed(weights=[2.0, 1.0, 0.5]))
    with pytest.raises(
        ContractError, match=r"should bind to some number of tasks: found an OptionError for each. Pass tasks="
    ):
        check_outer(lambda: Fixed(weights={"rul": 2.0, "health": 1.0}))
    with pytest.raises(ContractError, match=r"^Fixed claims symmetric=True"):
        check_outer(like_fixed)


def like_fixed() -> OuterWeighting:
    weighting = Fixed(weights=[2.0, 1.0, 0.5])
    weighting.symmetric = True  # type: ignore[misc]
    return weighting


def test_factories() -> None:
    """A factory returns a fresh weighting of the right base every time; an error of the factory is shown."""
    one = GABA()
    with pytest.raises(
        ContractError, match=r"^GABA should be fresh from every call of its factory: found the same object twice"
    ):
        check_outer(lambda: one)
    with pytest.raises(ContractError, match="should be a subclass of OuterWeighting: found Linear"):
        check_outer(lambda: nn.Linear(1, 1))  # type: ignore[arg-type, return-value]
    with pytest.raises(ContractError, match="should be built by its factory: found OptionError: Option `beta` should be"):
        check_outer(lambda: GABA(beta=2.0))
    with pytest.raises(OptionError, match="should be a class, a registered name or a callable"):
        check_outer(7)  # type: ignore[arg-type]


def test_checks_can_be_left_out_by_name() -> None:
    """A check that a weighting breaks on purpose is left out by its name, and an unknown name is an error."""
    check_outer(BROKEN["total K"][0], skip=["total", "alone"])
    with pytest.raises(OptionError, match=r"should hold names of declarations, .*Found skip=\['totals'\]"):
        check_outer(InverseNorm, skip=["totals"])
    with pytest.raises(OptionError, match="Found skip='total'"):
        check_outer(InverseNorm, skip="total")


def replace_sum(monkeypatch: pytest.MonkeyPatch, replacement: Callable[..., Tensor]) -> None:
    for module in ("criterion", "training"):
        monkeypatch.setattr(f"mtl_axes.{module}.weighted_sum", replacement)


def test_the_sum_of_a_criterion_is_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    """A total or a gradient that is not the weighted sum fails with both sides."""
    whole = weighted_sum
    replace_sum(monkeypatch, lambda losses, weights: 1.01 * whole(losses, weights))
    with pytest.raises(ContractError, match=r"^InverseNorm should enter a total bilinearly, .*: found [-.0-9e]+ and"):
        check_outer(InverseNorm, skip=["config"])

    def cut(losses: Any, weights: Tensor) -> Tensor:
        total = whole(losses, weights)
        return total.detach() + 0.5 * (total - total.detach())

    replace_sum(monkeypatch, cut)
    with pytest.raises(ContractError, match="should have the weighted sum of the task gradients as the gradient of a total"):
        check_outer(InverseNorm)


def test_a_warm_up_is_passed_over() -> None:
    """A weighting with a warm-up is tested after it: a fault that starts there fails."""

    class Waits(GABA):
        sign: ClassVar[Any] = "nonnegative"

        def forward(self, signals: Signals, /) -> Tensor:
            return super().forward(signals) * torch.where(signals.step >= self.warmup, 1.5, 1.0)

    with pytest.raises(ContractError, match=r"^Waits claims total='1': found weights .* with sum 1.5"):
        check_outer(Waits)


def test_the_random_numbers_of_others_are_given_back() -> None:
    """Running the kit changes neither the global generator nor its own result."""
    before = torch.get_rng_state()
    check_outer(Uncertainty)
    check_outer(Random)
    assert torch.equal(torch.get_rng_state(), before)
