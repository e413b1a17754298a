"""State: a resumed run equals the uninterrupted one bit for bit; copies are whole; a wrong state is refused as a whole."""

from __future__ import annotations

import copy
import io
import os
import pickle
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from strategies import PROBES, REPRESENTATIVE, batch_for, crossed, equal, measurable, model_for, quick, same, snapshot
from torch import Tensor, nn

from mtl_axes import MultiTaskCriterion, compose
from mtl_axes.errors import StateError

KINDS = {"rul": "regression", "health": "multiclass"}
HERE = Path(__file__).resolve().parent
f64 = torch.float64

# name: options of the criterion, and the call after which the checkpoint is written.
CASES: dict[str, tuple[dict[str, Any], int]] = {
    "in the warm-up": ({}, 3),
    "in mid-window": ({"accumulate": 3}, 7),
    "at the end of a window": ({"accumulate": 3}, 9),
    "in mid-epoch": ({}, 14),
    "between two measurements": ({"every": 4}, 10),
    "every and accumulate": ({"every": 2, "accumulate": 2}, 15),
    "manual": ({"accumulate": "manual"}, 8),
}
CALLS = 26
RESUMED = crossed(sorted(CASES, key=lambda case: case != "in mid-window"))


class Training:
    """A model, a criterion and Adam; epochs of ten calls; the optimizer steps once per window."""

    def __init__(self, outer: str, case: str) -> None:
        options, self.saved_after = CASES[case]
        self.size = options.get("accumulate", 1)
        self.size = 2 if self.size == "manual" else self.size
        weighting = {"dwa": {"window": None}, "gaba": {"warmup": 5}}.get(outer, {})
        if case == "every and accumulate" and outer == "dwa":
            weighting = {"window": 3}
        tasks = list(KINDS) if quick(outer).learnable else None
        self.model = model_for(KINDS)
        self.criterion = compose(quick(outer, **weighting), "failure_biased", tasks=tasks, **options)
        groups = [{"params": list(self.model.parameters())}, *self.criterion.param_groups(lr=0.05)]
        self.optimizer = torch.optim.Adam(groups, lr=1e-2)
        self.weights: list[list[float]] = []

    def advance(self, start: int, stop: int) -> None:
        for call in range(start, stop):
            (self.loss(call) / self.size).backward()
            self.weights.append(self.criterion.report.weights.tolist())
            if (call + 1) % self.size == 0:
                self.optimizer.step()
                self.optimizer.zero_grad()
                if self.criterion.accumulate == "manual":
                    self.criterion.step()
                if self.criterion.outer.wants_after_step:
                    with torch.no_grad(), self.criterion.after_step():
                        for number in range(call + 1 - self.size, call + 1):
                            self.loss(number)
            if (call + 1) % 10 == 0:
                self.criterion.end_epoch()

    def loss(self, call: int) -> Tensor:
        inputs, targets = batch_for(KINDS, seed=call)
        here = {name: None if call % 7 == 4 and name == "health" else target for name, target in targets.items()}
        return self.criterion(self.model(inputs), here)

    def checkpoint(self) -> dict[str, Any]:
        return {
            "model": self.model.state_dict(),
            "criterion": self.criterion.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "gradients": [parameter.grad for group in self.optimizer.param_groups for parameter in group["params"]],
        }

    def load(self, checkpoint: dict[str, Any]) -> None:
        self.model.load_state_dict(checkpoint["model"])
        self.criterion.load_state_dict(checkpoint["criterion"])
        self.optimizer.load_state_dict(checkpoint["optimizer"])
        parameters = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
        for parameter, gradient in zip(parameters, checkpoint["gradients"], strict=True):
            parameter.grad = gradient

    def result(self) -> dict[str, Any]:
        return {**self.checkpoint(), "weights": self.weights[-(CALLS - self.saved_after) :]}


def file_of(folder: Path, kind: str, outer: str, case: str) -> Path:
    return folder / f"{kind}-{outer}-{case}.pt".replace(" ", "_")


def resume_all(folder: str) -> None:
    """Continue every checkpoint of a folder with fresh objects; the fresh process of the tests below."""
    torch.set_num_threads(1)
    for outer, case in RESUMED:
        training = Training(outer, case)
        training.load(torch.load(file_of(Path(folder), "saved", outer, case), weights_only=True))
        training.advance(training.saved_after, CALLS)
        torch.save(training.result(), file_of(Path(folder), "resumed", outer, case))


@pytest.fixture(scope="module")
def resumed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Checkpoints of every case, and what a fresh process made of them."""
    folder = tmp_path_factory.mktemp("resume")
    for outer, case in RESUMED:
        training = Training(outer, case)
        training.advance(0, training.saved_after)
        torch.save(training.checkpoint(), file_of(folder, "saved", outer, case))
        training.advance(training.saved_after, CALLS)
        torch.save(training.result(), file_of(folder, "through", outer, case))
    paths = [str(HERE), str(HERE.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    subprocess.run(
        [sys.executable, "-W", "error", "-c", f"import test_state; test_state.resume_all({str(folder)!r})"],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        check=True,
        timeout=240,
    )
    return folder


@pytest.mark.parametrize(("outer", "case"), RESUMED)
def test_a_run_resumed_in_a_fresh_process_is_the_uninterrupted_run(resumed: Path, outer: str, case: str) -> None:
    """Parameters, weights of every later call, criterion and optimizer state agree bit for bit."""
    through, again = (torch.load(file_of(resumed, kind, outer, case), weights_only=True) for kind in ("through", "resumed"))
    for part in through:
        assert equal(through[part], again[part]), part
    saved = torch.load(file_of(resumed, "saved", outer, case), weights_only=True)
    assert not equal(through["model"], saved["model"]), "the run should have gone on"
    if outer == "gaba" and case != "in the warm-up":
        assert len({tuple(weights) for weights in through["weights"]}) > 1


@pytest.mark.parametrize("outer", REPRESENTATIVE)
def test_saving_changes_nothing(outer: str) -> None:
    """A run that is saved on its way equals one that is not."""
    saved, plain = Training(outer, "in mid-window"), Training(outer, "in mid-window")
    for call in range(CALLS):
        saved.advance(call, call + 1)
        saved.checkpoint(), repr(saved.criterion), saved.criterion.config(), saved.criterion.explain()
    plain.advance(0, CALLS)
    assert equal(saved.checkpoint(), plain.checkpoint())


class Lightning(nn.Module):
    """A model and its criterion in one module, as a LightningModule holds them."""

    def __init__(self, outer: str, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.net = model_for(KINDS, dtype=dtype)
        self.criterion = compose(quick(outer), "failure_biased", tasks=list(KINDS), shared=self.net.trunk)

    def step(self, seed: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        inputs, targets = batch_for(KINDS, seed=seed, dtype=dtype)
        return self.criterion(self.net(inputs), targets)


@pytest.mark.parametrize(("outer", "dtype", "loaded"), crossed([torch.float32, f64], [False, True]))
def test_a_sanity_check_in_inference_mode_comes_first(outer: str, dtype: torch.dtype, loaded: bool) -> None:
    """The first call in eval and inference mode allocates state that can be trained, also in float64 and after loading."""
    module, plain = Lightning(outer, dtype), Lightning(outer, dtype)
    if loaded:
        other = Lightning(outer)
        other.step(90).backward()
        for each in (module, plain):
            each.criterion.load_state_dict(other.criterion.state_dict())
    module.eval()
    with torch.inference_mode():
        module.step(100, dtype)
    module.train()
    assert not any(tensor.is_inference() for tensor in (*module.criterion.buffers(), *module.criterion.parameters()))
    for seed in range(4):
        totals = [each.step(seed, dtype) for each in (module, plain)]
        for total in totals:
            total.backward()
        assert torch.equal(*totals)
    assert equal(module.state_dict(), plain.state_dict())


@pytest.mark.parametrize("outer", REPRESENTATIVE)
def test_a_criterion_within_a_module_is_saved_with_it(outer: str) -> None:
    """As a submodule the criterion's state has the module's prefix, holds no copy of the model, and resumes."""
    module = Lightning(outer)
    for seed in range(3):
        module.step(seed).backward()
    state = copy.deepcopy(module.state_dict())
    assert not any(key.startswith("criterion") and "trunk" in key for key in state)
    assert {name for name, _ in module.named_parameters()} == {
        *(f"net.{name}" for name, _ in module.net.named_parameters()),
        *(f"criterion.{name}" for name, _ in module.criterion.named_parameters()),
    }
    fresh = Lightning(outer)
    fresh.load_state_dict(state)
    for seed in range(3, 6):
        assert torch.equal(fresh.step(seed), module.step(seed))
    assert equal(fresh.state_dict(), module.state_dict())


@pytest.mark.parametrize(("outer", "narrow", "accumulate"), crossed(["half", "bfloat16"], [3, 1]))
def test_narrowing_the_module_narrows_no_state(outer: str, narrow: str, accumulate: int) -> None:
    """A cast of the module around a criterion leaves its state, the pending window included, exactly as it was."""
    model = model_for(KINDS)
    criterion = compose(quick(outer), "failure_biased", tasks=list(KINDS), accumulate=accumulate)
    for seed in range(5):
        inputs, targets = batch_for(KINDS, seed=seed)
        criterion(model(inputs), targets).backward()
    before = snapshot(criterion)
    getattr(nn.ModuleList([model, criterion]), narrow)()
    assert model.trunk.weight.dtype.itemsize == 2
    assert same(snapshot(criterion), before)


def trained(model: nn.Module, criterion: MultiTaskCriterion, seeds: range) -> list[torch.Tensor]:
    totals = []
    for seed in seeds:
        inputs, targets = batch_for(KINDS, seed=seed)
        totals.append(criterion(model(inputs), targets))
    return totals


def measures(criterion: MultiTaskCriterion, model: nn.Module) -> bool:
    """Whether the last measurement was taken at the trunk of this very model."""
    return {id(parameter) for parameter in criterion._shared.last.parameters} == {id(p) for p in model.trunk.parameters()}


JOINT = {"deepcopy": copy.deepcopy, "pickle": lambda both: pickle.loads(pickle.dumps(both))}


@pytest.mark.parametrize("outer", REPRESENTATIVE)
@pytest.mark.parametrize("how", JOINT)
@pytest.mark.parametrize("given", ["module", "parameters", "found"])
@pytest.mark.parametrize("order", ["model first", "criterion first"])
def test_a_joint_copy_measures_its_own_model(outer: str, how: str, given: str, order: str) -> None:
    """Copied together, the criterion of the copy measures the copy's trunk, and both go on like the originals."""
    model = model_for(KINDS)
    shared = {"module": model.trunk, "parameters": list(model.trunk.parameters()), "found": None}[given]
    criterion = compose(quick(outer), "failure_biased", tasks=list(KINDS), shared=shared)
    trained(model, criterion, range(3))
    both = (model, criterion) if order == "model first" else (criterion, model)
    copied = JOINT[how](both)
    twin, its = copied if order == "model first" else copied[::-1]
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.5)
        for parameter in twin.parameters():
            parameter.mul_(1.5)
    originals, copies = trained(model, criterion, range(3, 6)), trained(twin, its, range(3, 6))
    assert all(torch.equal(*pair) for pair in zip(originals, copies, strict=True))
    assert same(snapshot(its), snapshot(criterion))
    if its.outer.needs != "losses":
        assert measures(its, twin)
        assert its._shared.given == (given != "found")


def test_a_copy_of_the_criterion_alone_keeps_the_model() -> None:
    """deepcopy of a criterion alone does not copy the model; used with another model it says so and searches."""
    model = model_for(KINDS)
    criterion = compose(quick("gaba"), "failure_biased", tasks=list(KINDS), shared=model.trunk)
    trained(model, criterion, range(2))
    twin = copy.deepcopy(criterion)
    assert torch.equal(trained(model, twin, range(2, 3))[0], trained(model, criterion, range(2, 3))[0])
    assert measures(twin, model)
    other = model_for(KINDS)
    with pytest.warns(UserWarning, match="The losses reach none of the parameters given as shared="):
        trained(other, twin, range(3, 4))
    assert measures(twin, other)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        trained(other, twin, range(4, 6))
    assert criterion._shared.given


def test_a_deepcopy_of_a_deepcopy_follows_its_own_model() -> None:
    """Averaged models are copied more than once, before the first call of the copy."""
    model = model_for(KINDS)
    criterion = compose(quick("gaba"), "failure_biased", tasks=list(KINDS), shared=model.trunk)
    trained(model, criterion, range(2))
    twin, its = copy.deepcopy(copy.deepcopy((model, criterion)))
    trained(twin, its, range(2, 3))
    assert measures(its, twin)


def called(
    outer: str = "gaba", tasks: tuple[str, ...] = ("a", "b"), calls: int = 3, dtype: torch.dtype = f64, **options: Any
) -> Any:
    criterion = compose(quick(outer), tasks=list(tasks), **options)
    for call in range(calls):
        leaf = torch.ones((), dtype=dtype, requires_grad=True)
        criterion.combine({name: leaf * (index + call + 1.0) for index, name in enumerate(tasks)})
    return criterion


def combine(criterion: Any, tasks: tuple[str, ...] = ("a", "b")) -> torch.Tensor:
    leaf = torch.ones((), dtype=f64, requires_grad=True)
    return criterion.combine({name: leaf * (3.0 + index) ** 2 for index, name in enumerate(tasks)})


WRONG = {
    "other tasks": (lambda: called(tasks=("a", "c")), r"tasks \['a', 'b'\]. Found \['a', 'c'\]"),
    "another order": (lambda: called(tasks=("b", "a")), r"tasks \['a', 'b'\]. Found \['b', 'a'\]"),
    "more tasks": (lambda: called(tasks=("a", "b", "c")), r"Found \['a', 'b', 'c'\]"),
    "another weighting": (lambda: called("gradnorm"), "should be of GABA. Found one of GradNorm"),
    "before the first call": (lambda: called(calls=0), "saved before its first call"),
    "before the first call, tasks unknown": (lambda: compose(quick("gaba")), "saved before its first call"),
    "fewer tasks": (lambda: called(tasks=("a",)), r"Found \['a'\]"),
    "a stage of it": (
        lambda: called("ema"),
        r"should be of GABA. Found one of Ema\(InverseNorm\)",
    ),
    "a learnable one": (lambda: called("uncertainty"), "should be of GABA. Found one of Uncertainty"),
}
CRIPPLED: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "another version": (lambda state: state["_extra_state"].update(version=0), "version 3. Found version 0. Go on with"),
    "no version": (lambda state: state["_extra_state"].pop("version"), "should be what criterion.state_dict\\(\\) returned"),
    "no extra state": (lambda state: state.pop("_extra_state"), "should be what criterion.state_dict\\(\\) returned"),
    "extra state of another kind": (lambda state: state.update(_extra_state=torch.ones(2)), "what criterion.state_dict"),
    "no kinds": (lambda state: state["_extra_state"].pop("kinds"), "Found one that does not fit: 'kinds'"),
    "an average is missing": (
        lambda state: state.pop("outer.base.base.current"),
        "does not fit.*Missing key.*outer.base.base",
    ),
    "the schedule is missing": (lambda state: state.pop("window._extra_state"), "does not fit.*Missing key.*window._extra"),
    "the schedule is cut": (lambda state: state["window._extra_state"].pop("calls"), "does not fit: 'calls'"),
    "the sums are missing": (lambda state: state.pop("window.loss_sum"), "saved before its first call"),
    "another shape": (lambda state: state.update({"window.norm_sum": torch.ones(3)}), "does not fit.*size mismatch"),
    "another number of weights": (lambda state: state.update({"outer.current": torch.ones(3)}), "Found a state of 3 tasks"),
    "a key too many": (lambda state: state.update({"outer.momentum": torch.ones(2)}), "does not fit.*Unexpected key"),
    "a state of a model": (
        lambda state: (state.clear(), state.update(nn.Linear(2, 2).state_dict())),
        "what criterion.state",
    ),
    "nothing": (lambda state: state.clear(), "what criterion.state_dict"),
}


def assert_refused(state: dict[str, Any], message: str, *, within: bool, strict: bool, called_before: bool = True) -> None:
    """Assert that a state is a StateError which leaves the criterion as it was, and able to go on."""
    calls = 5 if called_before else 0
    criterion, twin = called(calls=calls, accumulate=3), called(calls=calls, accumulate=3)
    before, target = snapshot(criterion), criterion
    if within:
        state = {f"criterion.{key}": value for key, value in state.items()}
        target = nn.ModuleDict({"criterion": criterion})
    with pytest.raises(StateError, match=f"(?s){message}"):
        target.load_state_dict(state, strict=strict)
    assert same(snapshot(criterion), before)
    for _ in range(3):
        assert torch.equal(combine(criterion), combine(twin))


# Nothing at all, within a module, is another test's; missing sums are another error before the first call.
HOW_CRIPPLED = [
    (crippled, within, called_before)
    for crippled in CRIPPLED
    for within in (False, True)
    for called_before in (False, True)
    if not (crippled == "nothing" and within) and (called_before or crippled != "the sums are missing")
]


@pytest.mark.parametrize(("crippled", "within", "called_before"), HOW_CRIPPLED)
@pytest.mark.parametrize("strict", [True, False])
def test_a_crippled_state_is_refused_as_a_whole(crippled: str, strict: bool, within: bool, called_before: bool) -> None:
    """A state with anything missing, too much or of another shape is an error, and strict=False loads no part of it."""
    cripple, message = CRIPPLED[crippled]
    state = copy.deepcopy(called(accumulate=3).state_dict())
    cripple(state)
    assert_refused(state, message, within=within, strict=strict, called_before=called_before)


def test_sums_that_are_missing_from_a_fresh_criterion() -> None:
    """A fresh criterion that is given half of a state has no names of its tasks afterwards, and takes a whole one."""
    state = called().state_dict()
    half = {key: value for key, value in state.items() if key != "window.loss_sum"}
    fresh = compose(quick("gaba"))
    with pytest.raises(StateError, match="Unexpected key"):
        fresh.load_state_dict(half)
    assert fresh.tasks == ()
    fresh.load_state_dict(state)
    assert fresh.tasks == ("a", "b")


def test_a_module_that_is_loaded_without_its_criterion() -> None:
    """A checkpoint of the model alone is torch's own error when it is strict, and otherwise leaves the criterion alone."""
    whole = nn.ModuleDict({"model": nn.Linear(2, 2), "criterion": called(calls=5)})
    before = snapshot(whole["criterion"])
    state = {f"model.{key}": value for key, value in nn.Linear(2, 2).state_dict().items()}
    with pytest.raises(RuntimeError, match=r"Missing key.*criterion\._extra_state"):
        whole.load_state_dict(state)
    assert whole.load_state_dict(state, strict=False).unexpected_keys == []
    assert same(snapshot(whole["criterion"]), before)


@pytest.mark.parametrize(("outer", "probe", "accumulate"), measurable(PROBES, [2, 1]))
def test_any_state_is_read_with_weights_only(outer: str, probe: str, accumulate: int) -> None:
    """torch.load(weights_only=True) reads the state of every weighting, probe and pending window, and nothing is lost."""
    model, build = model_for(KINDS), lambda: compose(quick(outer), tasks=list(KINDS), accumulate=accumulate, **PROBES[probe])
    criterion = build()
    for seed in range(3):
        inputs, targets = batch_for(KINDS, seed=seed)
        criterion(model(inputs), targets).backward()
    file = io.BytesIO()
    torch.save(criterion.state_dict(), file)
    file.seek(0)
    fresh = build()
    fresh.load_state_dict(torch.load(file, weights_only=True))
    assert same(snapshot(fresh), snapshot(criterion))
    assert fresh.window.calls == (1 if accumulate == 2 or (probe == "lagged" and fresh.outer.needs == "norms") else 0)


def test_loading_takes_no_part_of_the_given_state_over() -> None:
    """What the criterion does after it was loaded changes nothing in the state that it was given."""
    criterion = called(accumulate=3)
    state = copy.deepcopy(criterion.state_dict())
    kept = copy.deepcopy(state)
    fresh = called(calls=0, accumulate=3)
    fresh.load_state_dict(state)
    for _ in range(4):
        combine(fresh)
    assert equal(state, kept)


@pytest.mark.parametrize("wrong", WRONG)
@pytest.mark.parametrize("within", [False, True])
@pytest.mark.parametrize("strict", [True, False])
def test_a_wrong_state_is_refused_as_a_whole(wrong: str, within: bool, strict: bool) -> None:
    """A state of other tasks, another weighting or from before the first call is a StateError and loads nothing."""
    make, message = WRONG[wrong]
    assert_refused(make().state_dict(), message, within=within, strict=strict)


def test_a_state_that_does_not_fit_an_option_leaves_no_names_behind() -> None:
    """A fresh criterion whose weighting refuses the saved tasks stays fresh."""
    state = called("fixed", tasks=("a", "b", "c")).state_dict()
    fresh = compose({"name": "fixed", "weights": [1.0, 2.0]})
    with pytest.raises(ValueError, match=r"Fixed weights should be 3 numbers"):
        fresh.load_state_dict(state)
    assert fresh.tasks == ()
    combine(fresh, ("x", "y"))
    assert fresh.tasks == ("x", "y")


@pytest.mark.parametrize("outer", REPRESENTATIVE)
def test_a_state_from_before_the_first_call_loads_into_a_fresh_criterion(outer: str) -> None:
    """Saving and loading a criterion that was never called is no error, and changes nothing."""
    saved, fresh, plain = (compose(quick(outer), tasks=["a", "b"]) for _ in range(3))
    fresh.load_state_dict(saved.state_dict())
    for _ in range(3):
        assert torch.equal(combine(fresh), combine(plain))


@pytest.mark.parametrize(("outer", "accumulate"), crossed([3, 1]))
def test_a_float64_state_loads_into_a_fresh_criterion(outer: str, accumulate: int) -> None:
    """No digit of a float64 state is lost, the pending window's included, when it is loaded before the first call."""
    criterion, fresh = (
        called(outer, calls=5, accumulate=accumulate),
        compose(quick(outer), tasks=["a", "b"], accumulate=accumulate),
    )
    third = torch.linspace(0.1, 0.7, 2, dtype=f64) / 3
    with torch.no_grad():
        for parameter in criterion.parameters():
            parameter.copy_(third)
    fresh.load_state_dict(copy.deepcopy(criterion.state_dict()))
    assert same(snapshot(fresh), snapshot(criterion))
    for _ in range(4):
        assert torch.equal(combine(fresh), combine(criterion))
    assert same(snapshot(fresh), snapshot(criterion))


@pytest.mark.parametrize("outer", REPRESENTATIVE)
def test_float64_losses_widen_the_state(outer: str) -> None:
    """A criterion that started in float32 keeps its state in float64 from the first float64 loss on."""
    criterion = called(outer, dtype=torch.float32)
    floats = [tensor for tensor in (*criterion.buffers(), *criterion.parameters()) if tensor.is_floating_point()]
    assert {tensor.dtype for tensor in floats} == {torch.float32}
    combine(criterion)
    for _ in range(2):
        floats = [tensor for tensor in (*criterion.buffers(), *criterion.parameters()) if tensor.is_floating_point()]
        assert {tensor.dtype for tensor in floats} == {f64}
        leaf = torch.ones((), requires_grad=True)
        criterion.combine((leaf * 2, leaf * 3))


def test_names_and_kinds_come_back_with_the_state() -> None:
    """Without tasks= a fresh criterion takes names, order, kinds and shapes from the state, before its first call."""
    model = model_for(KINDS)
    criterion = compose(quick("gaba"), "failure_biased")
    trained(model, criterion, range(2))
    fresh = compose(quick("gaba"), "failure_biased")
    fresh.load_state_dict(criterion.state_dict())
    assert fresh.tasks == ("rul", "health")
    assert repr(fresh) == repr(criterion)
    assert [info.kind for info in fresh.outer.tasks] == ["regression", "multiclass"]
