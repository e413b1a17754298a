"""A compiled criterion: one graph for a weighting that needs losses alone, with the numbers and state of an eager one."""

from __future__ import annotations

import copy
import pickle
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from strategies import Heads, batch_for, equal, model_for, quick
from torch import Tensor, distributed, nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.testing._internal.distributed.fake_pg import FakeStore

from mtl_axes import MultiTaskCriterion, OuterWeighting, Signals, compose
from mtl_axes.compiling import TRACES_STATE

# Of torch, which looks at the gradient of every input of a graph.
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning"),
    pytest.mark.skipif(not TRACES_STATE, reason="this torch does not trace the state of a weighting"),
]

KINDS = {"rul": "regression", "health": "multiclass"}
OUTERS: dict[str, Any] = {
    "fixed": {"name": "fixed", "weights": [0.3, 0.7]},
    "uncertainty": "uncertainty",
    "dwa by windows": {"name": "dwa", "window": 3},
    "dwa by epochs": "dwa",
}
every_outer = pytest.mark.parametrize("outer", OUTERS.values(), ids=OUTERS.keys())
# One whose weights have a graph, and one with state; the backend traces only, where a graph as such is the point.
two_outers = pytest.mark.parametrize("outer", [OUTERS["uncertainty"], OUTERS["dwa by windows"]], ids=["learned", "state"])
Targets = dict[str, Any]


@pytest.fixture(autouse=True)
def _fresh_compiler() -> None:
    torch._dynamo.reset()


class Stepped(OuterWeighting):
    """A weighting of the number of its window and of the loss, as a third party may write it."""

    def forward(self, signals: Signals, /) -> Tensor:
        return torch.where(signals.active, 1.0 / (1 + signals.step) + signals.losses, self.current)


class Run:
    """A model, a criterion and Adam; epochs of ten steps; the first step is eager, so that nothing is left to be learned."""

    def __init__(self, outer: Any, *, warm: int = 1, backend: str = "eager", dynamic: bool | None = None, **options: Any):
        self.model: Heads = model_for(KINDS)
        self.criterion: MultiTaskCriterion = compose(outer, "failure_biased", tasks=list(KINDS), **options)
        groups = [{"params": list(self.model.parameters())}, *self.criterion.param_groups(lr=0.05)]
        self.optimizer = torch.optim.Adam(groups, lr=1e-2)
        self.counter = CompileCounterWithBackend(backend)
        self.compiled = torch.compile(self.total, backend=self.counter, fullgraph=True, dynamic=dynamic)
        self.warm, self.step = warm, 0
        self.seen: list[Any] = []

    def total(self, inputs: Tensor, targets: Targets, options: dict[str, Any]) -> Tensor:
        return self.criterion(self.model(inputs), targets, **options)

    def advance(
        self,
        steps: int,
        *,
        compiled: Callable[[int], bool] = lambda step: True,
        size: Callable[[int], int] = lambda step: 8,
        change: Callable[[int, Tensor, Targets], tuple[Targets, dict[str, Any]]] = lambda step, inputs, targets: (
            targets,
            {},
        ),
    ) -> Run:
        for _ in range(steps):
            inputs, targets = batch_for(KINDS, seed=self.step, size=size(self.step))
            targets, options = change(self.step, inputs, targets)
            call = self.compiled if self.step >= self.warm and compiled(self.step) else self.total
            loss = call(inputs, targets, options)
            loss.backward()
            self.seen.append(loss.detach())
            if self.step % 7 == 0:
                report = self.criterion.report
                self.seen += [report.losses, report.weights, report.active, report.dropped, report.step, dict(report.extra)]
                self.seen += [parameter.grad.clone() for parameter in self.parameters() if parameter.grad is not None]
            self.optimizer.step()
            self.optimizer.zero_grad()
            if self.step % 10 == 9:
                self.criterion.end_epoch()
            self.step += 1
        return self

    def parameters(self) -> list[nn.Parameter]:
        return [*self.model.parameters(), *self.criterion.parameters()]

    def state(self) -> dict[str, Any]:
        return {"model": self.model.state_dict(), "criterion": self.criterion.state_dict()}


def assert_same(compiled: Run, eager: Run) -> None:
    """Losses, reports, gradients and state agree bit for bit; means over the run up to the order of their sums."""
    assert equal(compiled.seen, eager.seen)
    assert equal(compiled.state(), eager.state())
    logged, expected = compiled.criterion.log_dict(), eager.criterion.log_dict()
    assert logged == pytest.approx(expected, rel=1e-5, nan_ok=True)
    assert compiled.criterion.log_dict() == {}


def never(step: int) -> bool:
    return False


@every_outer
def test_300_steps_are_one_graph_and_the_eager_run(outer: Any) -> None:
    """Model and criterion compile as one graph, once, and train as they do without a compiler."""
    compiled, eager = Run(outer, backend="aot_eager").advance(300), Run(outer).advance(300, compiled=never)
    assert compiled.counter.frame_count == 1
    assert_same(compiled, eager)
    assert compiled.criterion.report.step == 300


VARIANTS: dict[str, tuple[dict[str, Any], dict[str, Any], int]] = {
    "masked": ({}, {"change": lambda step, x, t: (t, {"mask": {"rul": x[:, 0] > -0.5}})}, 1),
    "one mask for all": ({}, {"change": lambda step, x, t: (t, {"mask": x[:, 0] > -0.5})}, 1),
    "unlabelled": (
        {"missing": "ignore"},
        {"change": lambda step, x, t: ({**t, "rul": torch.where(t["rul"] > 1.5 - step, torch.nan, t["rul"])}, {})},
        1,
    ),
    "weighted": ({"reduction": "weighted_mean"}, {"change": lambda step, x, t: (t, {"sample_weight": x[:, 0].abs()})}, 1),
    "absent now and then": ({}, {"change": lambda step, x, t: ({**t, "rul": None if step % 5 == 4 else t["rul"]}, {})}, 2),
    "computed elsewhere": (
        {},
        {"change": lambda step, x, t: ({"health": t["health"]}, {"extra": {"rul": t["rul"].square().mean()}})},
        1,
    ),
    "of several sizes": ({}, {"size": lambda step: [8, 8, 5, 12, 3][step % 5]}, 2),
    "of dynamic size": ({"dynamic": True}, {"size": lambda step: [8, 8, 5, 12, 3][step % 5]}, 2),
}


@two_outers
@pytest.mark.parametrize("variant", VARIANTS)
def test_every_sort_of_call_compiles(outer: Any, variant: str) -> None:
    """Masks, NaN labels, sample weights, absent tasks, other losses and other batch sizes: eager numbers, few graphs."""
    options, how, graphs = VARIANTS[variant]
    compiled, eager = Run(outer, **options).advance(16, **how), Run(outer, **options).advance(16, compiled=never, **how)
    assert compiled.counter.frame_count <= graphs
    assert_same(compiled, eager)


@pytest.mark.parametrize("outer", [OUTERS["fixed"], OUTERS["dwa by windows"]])
def test_a_non_finite_loss_is_counted_and_kept_out(outer: Any) -> None:
    """A NaN target is dropped from the state and shows in the report, in a graph too."""

    def change(step: int, inputs: Tensor, targets: Targets) -> tuple[Targets, dict[str, Any]]:
        return {**targets, "rul": targets["rul"] * (torch.nan if step == 5 else 1.0)}, {}

    compiled, eager = Run(outer), Run(outer)
    for run, which in ((compiled, lambda step: True), (eager, never)):
        run.optimizer.param_groups[0]["lr"] = 0.0
        for _ in range(9):
            run.advance(1, compiled=which, change=change)
            for parameter in run.model.parameters():
                parameter.data.nan_to_num_(0.1)
    assert compiled.criterion.report.dropped.tolist() == eager.criterion.report.dropped.tolist() != [0, 0]
    assert equal(compiled.criterion.state_dict(), eager.criterion.state_dict())


def test_the_number_of_the_window_is_right_in_the_graph() -> None:
    """A weighting that reads ``signals.step`` sees the eager number, whatever mixture of calls came before."""
    mixed = Run(Stepped()).advance(30, compiled=lambda step: step % 3 > 0)
    assert mixed.counter.frame_count == 1
    assert_same(mixed, Run(Stepped()).advance(30, compiled=never))


@two_outers
def test_compiled_and_eager_calls_mix(outer: Any) -> None:
    """Calls of either sort alternate, around saves, logs, copies and a load, without a further graph."""
    mixed, eager = Run(outer), Run(outer)
    for run, which in ((mixed, lambda step: step % 3 > 0), (eager, never)):
        for _ in range(4):
            run.advance(9, compiled=which)
            run.seen.append(sorted(run.criterion.log_dict()))
            saved = copy.deepcopy(run.criterion.state_dict())
            run.advance(5, compiled=which)
            run.criterion.load_state_dict(saved)
            run.seen += [run.criterion._window.step, copy.deepcopy(run.criterion)._window.step]
    assert mixed.counter.frame_count == 1
    assert_same(mixed, eager)


@two_outers
@pytest.mark.parametrize("resumes", ["compiled", "eager"])
def test_a_state_goes_from_one_to_the_other(outer: Any, resumes: str, tmp_path: Path) -> None:
    """A compiled run saved in mid-epoch resumes eagerly, and the other way round, bit for bit; a load settles the tasks."""
    first = never if resumes == "compiled" else (lambda step: True)
    second = never if resumes == "eager" else (lambda step: True)
    saved = Run(outer).advance(14, compiled=first)
    torch.save({**saved.state(), "optimizer": saved.optimizer.state_dict()}, tmp_path / "state.pt")
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    resumed = Run(outer)
    resumed.model.load_state_dict(state["model"])
    resumed.criterion.load_state_dict(state["criterion"])
    resumed.optimizer.load_state_dict(state["optimizer"])
    resumed.step = 14
    resumed.advance(12, compiled=second)
    saved.advance(12, compiled=never)
    assert equal(resumed.state(), saved.state())
    assert resumed.counter.frame_count == (resumes == "compiled")


@two_outers
def test_evaluation_and_held_calls_move_nothing(outer: Any) -> None:
    """An evaluation first settles the tasks; evaluations and held calls have a graph of their own and leave the state."""
    values: list[list[Tensor]] = []
    for which in (lambda step: True, never):
        run = Run(outer, warm=0)
        run.criterion.eval()
        inputs, targets = batch_for(KINDS, seed=99)
        run.total(inputs, targets, {})
        call = run.total if which is never else run.compiled
        for _ in range(3):
            run.criterion.train()
            run.advance(4, compiled=which)
            before = copy.deepcopy(run.state())
            with run.criterion.hold():
                run.seen.append(call(inputs, targets, {}).detach())
            run.criterion.eval()
            with torch.no_grad():
                run.seen.append(call(inputs, targets, {}))
            assert equal(run.state(), before)
        assert run.counter.frame_count == (0 if which is never else 3)
        values.append(run.seen)
    assert equal(*values)


@two_outers
def test_losses_from_elsewhere_compile(outer: Any) -> None:
    """``combine`` compiles as the call does."""
    found = []
    for compiles in (True, False):
        criterion = compose(outer, tasks=["a", "b"])
        counter = CompileCounterWithBackend("eager")
        combine = torch.compile(criterion.combine, backend=counter, fullgraph=True) if compiles else criterion.combine
        leaf = torch.tensor(2.0, requires_grad=True)
        criterion.combine({"a": leaf, "b": leaf * 2})
        totals = [combine({"a": leaf * step, "b": (leaf / step).exp()}).detach() for step in range(1, 9)]
        found.append([totals, criterion.state_dict()])
        assert counter.frame_count == compiles
    assert equal(*found)


def step(criterion: MultiTaskCriterion, call: Callable[..., Tensor], model: nn.Module, seed: int) -> list[Tensor]:
    inputs, targets = batch_for(KINDS, seed=seed)
    model.zero_grad()
    total = call(model(inputs), targets)
    total.backward()
    return [total.detach(), criterion.report.weights, *(parameter.grad.clone() for parameter in model.parameters())]


REFUSED: dict[str, tuple[Any, dict[str, Any], str]] = {
    "first call": ("dwa", {}, r"reads labels until each task has had some.*Call it once with all tasks.*or load its state"),
    "gaba": (quick("gaba"), {}, r"weighting measures gradients within the call.*call the criterion outside"),
    "gradnorm": (quick("gradnorm"), {"probe": "representation"}, r"weighting measures gradients within the call"),
    "lagged": (quick("gaba"), {"probe": "lagged"}, r"weighting measures gradients within the call"),
    "accumulate": (
        {"name": "dwa", "window": 2},
        {"accumulate": 2},
        r"accumulate is not 1, and calls are counted on the host",
    ),
    "debug": ("dwa", {"debug": True}, r"criterion\.debug reads the values of every call\. Set it to False"),
}


def composed(outer: Any, options: dict[str, Any]) -> MultiTaskCriterion:
    criterion = compose(outer, "mse", **{name: value for name, value in options.items() if name != "debug"})
    criterion.debug = options.get("debug", False)
    return criterion


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_not_traced_says_why_with_fullgraph(case: str) -> None:
    """With fullgraph=True the error gives the reason and what to do."""
    outer, options, message = REFUSED[case]
    model, criterion = model_for(KINDS), composed(outer, options)
    with pytest.raises(Exception, match=message) as caught:
        step(criterion, torch.compile(criterion, backend="aot_eager", fullgraph=True), model, 0)
    assert type(caught.value).__name__ == "Unsupported"
    assert criterion.report is None


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_not_traced_works_behind_a_graph_break(case: str) -> None:
    """Without fullgraph the same calls run in Python, with the eager numbers; after a first call all is one graph."""
    outer, options, _ = REFUSED[case]
    model = model_for(KINDS)
    criteria = [composed(copy.deepcopy(outer), options) for _ in range(2)]
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(criteria[0], backend=counter)
    for seed in range(8):
        found = step(criteria[0], compiled, model, seed)
        assert equal(found, step(criteria[1], criteria[1], model, seed))
    assert equal(criteria[0].state_dict(), criteria[1].state_dict())
    assert counter.frame_count == (case == "first call")


def test_among_ranks_only_what_must_agree_leaves_the_graph() -> None:
    """Where losses are summed over ranks the error says so; constants, which need no other rank, are one graph still."""
    model = model_for(KINDS)
    criteria = {name: compose(OUTERS[name], "mse", tasks=list(KINDS)) for name in ("dwa by windows", "fixed")}
    for criterion in criteria.values():
        step(criterion, criterion, model, 0)
    distributed.init_process_group("fake", rank=0, world_size=2, store=FakeStore())
    try:
        compiled = {name: torch.compile(each, backend="eager", fullgraph=True) for name, each in criteria.items()}
        with pytest.raises(Exception, match=r"losses are summed over the ranks within the call.*call the criterion outside"):
            step(criteria["dwa by windows"], compiled["dwa by windows"], model, 1)
        step(criteria["fixed"], compiled["fixed"], model, 1)
    finally:
        distributed.destroy_process_group()
    assert [each.report.step for each in criteria.values()] == [1, 2]


def test_copies_of_a_criterion_compiled_in_place_are_their_own() -> None:
    """``criterion.compile()`` keeps the names of the state; a deep or pickled copy moves alone and is not compiled."""
    model, criterion = model_for(KINDS), compose("dwa", "mse", tasks=list(KINDS))
    names = list(criterion.state_dict())
    step(criterion, criterion, model, 0)
    counter = CompileCounterWithBackend("aot_eager")
    criterion.compile(backend=counter, fullgraph=True)
    for seed in range(1, 4):
        step(criterion, criterion, model, seed)
    assert counter.frame_count == 1 and set(names) <= set(criterion.state_dict())
    for twin in (copy.deepcopy(criterion), pickle.loads(pickle.dumps(criterion))):
        assert equal(step(twin, twin, model, 4)[0], step(criterion, criterion.forward, model, 4)[0])
        assert (twin._window.step, criterion._window.step) == (5, 5)
        criterion.load_state_dict(
            copy.deepcopy({**criterion.state_dict(), "_window._extra_state": {"step": 4, "calls": 0, "answered": 4}})
        )


def test_eager_calls_after_compiled_ones_wait_for_nothing() -> None:
    """Once a graph has counted, eager calls count on the device too: no value is read until a report is."""
    run = Run({"name": "dwa", "window": 3}).advance(4)
    run.model.to("meta")
    inputs, targets = batch_for(KINDS)
    on_meta = {name: target.to("meta") for name, target in targets.items()}
    for _ in range(3):
        run.total(inputs.to("meta"), on_meta, {}).backward()
    with pytest.raises((RuntimeError, NotImplementedError)):
        _ = run.criterion.report.step


def test_constant_weights_of_compiled_calls_are_noticed() -> None:
    """``explain()`` says that weights have not changed, for compiled calls as for eager ones."""
    run = Run({"name": "dwa", "window": 10_000})
    run.optimizer.param_groups[0]["lr"] = 0.0
    call, (inputs, targets) = run.compiled, batch_for(KINDS)
    run.advance(1)
    for _ in range(510):
        call(inputs, targets, {})
    assert "steady  the weights have changed by less than 1 %" in run.criterion.explain()


@pytest.mark.skipif(shutil.which("g++") is None, reason="inductor needs a C++ compiler on a CPU")
def test_inductor_trains_alike() -> None:
    """The default backend gives the eager run up to rounding, from one graph."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=DeprecationWarning)  # of inductor, when it is imported
        outer = {"name": "dwa", "window": 3}
        compiled, eager = Run(outer, backend="inductor").advance(25), Run(outer).advance(25, compiled=never)
    assert compiled.counter.frame_count == 1
    torch.testing.assert_close(compiled.state()["model"], eager.state()["model"])
    torch.testing.assert_close(compiled.criterion.report.weights, eager.criterion.report.weights)
    assert compiled.criterion.log_dict() == pytest.approx(eager.criterion.log_dict(), rel=1e-4)
    assert compiled.criterion.report.step == 25
