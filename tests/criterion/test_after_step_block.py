"""``criterion.after_step()`` shows the losses after the optimizer step to a weighting that wants them, and moves no more."""

from __future__ import annotations

import copy
import pickle
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from itertools import product
from typing import Any, ClassVar

import pytest
import torch
from sampling import covering
from strategies import OUTERS, batch_for, equal, model_for, quick, same, snapshot
from torch import Tensor, nn

from mtl_axes import MultiTaskCriterion, OuterWeighting, Signals, compose
from mtl_axes.compiling import TRACES_STATE
from mtl_axes.outer import FAMO

KINDS = {"rul": "regression", "health": "multiclass", "wear": "regression"}
TASKS = list(KINDS)


class Recorder(OuterWeighting):
    """Keeps what it is shown."""

    wants_after_step: ClassVar[bool] = True

    def __init__(self) -> None:
        super().__init__()
        self.windows: list[Tensor] = []
        self.after: list[tuple[list[float], list[bool]]] = []

    def forward(self, signals: Signals, /) -> Tensor:
        self.windows.append(signals.losses)
        return self.current.clone()

    def after_step(self, losses: Tensor, active: Tensor, /) -> None:
        self.after.append((losses.tolist(), active.tolist()))


class NormRecorder(Recorder):
    """The same, of norms."""

    needs = "norms"


class Run:
    """A model, a criterion and SGD, in float64."""

    def __init__(self, outer: Any = "famo", **options: Any) -> None:
        self.model = model_for(KINDS, dtype=torch.float64)
        self.criterion = compose(outer, tasks=TASKS, **options)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.05)

    def loss(self, seed: int, **targets: None) -> Tensor:
        inputs, labels = batch_for(KINDS, seed=seed, dtype=torch.float64)
        return self.criterion(self.model(inputs), {**labels, **targets})

    def step(self, *seeds: int) -> None:
        """One optimizer step on some batches."""
        for seed in seeds:
            (self.loss(seed) / len(seeds)).backward()
        self.optimizer.step()
        self.optimizer.zero_grad()

    def again(self, *seeds: int) -> None:
        """What follows it."""
        with torch.no_grad(), self.criterion.after_step():
            for seed in seeds:
                self.loss(seed)

    def values(self, *seeds: int) -> Tensor:
        """The mean task losses of some batches, as they are now."""
        found = []
        for seed in seeds:
            inputs, labels = batch_for(KINDS, seed=seed, dtype=torch.float64)
            with torch.no_grad():
                found.append(self.criterion._tasks.losses(self.model(inputs), labels, None, None, None).values)
        return torch.stack(found).mean(0)


@pytest.mark.parametrize("accumulate", [1, 3, "manual"])
@pytest.mark.parametrize("told", [False, True])
def test_the_weighting_sees_the_losses_after_the_step(accumulate: Any, told: bool) -> None:
    """Means over the calls of the block, of the very window that was committed last; criterion.step() may come before."""
    run, reference = Run(accumulate=accumulate), FAMO()
    for start in range(0, 12, 3):
        window = (start,) if accumulate == 1 else (start, start + 1, start + 2)
        if start == 9 and accumulate == 3:
            window = window[:2]  # shorter: the block ends it
        reference(Signals(run.values(*window)))
        run.step(*window)
        reference.after_step(run.values(*window), torch.ones(3, dtype=torch.bool))
        if told:
            run.criterion.step()
        run.again(*window)
        assert run.criterion._window.calls == 0
        assert run.criterion._window.step == start // 3 + 1
        torch.testing.assert_close(run.criterion.outer.logits, reference.logits, rtol=1e-12, atol=0)
        torch.testing.assert_close(run.criterion.outer.weights(), reference.weights(), rtol=1e-12, atol=0)
    assert len(set(reference.logits.tolist())) == 3


def test_weights_of_a_window_of_several_calls_use_the_losses_after_the_last_step() -> None:
    """With accumulate > 1 they are known before the window, from the newest losses and z that there are."""
    run = Run(accumulate=2)
    for start in (0, 2, 4):
        run.step(start, start + 1)
        run.again(start, start + 1)
        z, losses = run.criterion.outer.logits.softmax(0), run.values(start, start + 1)
        run.loss(start + 2)
        expected = (z / (losses + 1e-8)) / (z / (losses + 1e-8)).sum()
        torch.testing.assert_close(run.criterion.report.weights, expected, rtol=1e-9, atol=0)
        run.criterion.step(skipped=True)


def parts_of(criterion: MultiTaskCriterion) -> dict[str, Any]:
    """All that a criterion remembers, without its weighting and what that has seen."""
    return {
        name: value for name, value in snapshot(criterion).items() if "outer" not in name and name != "_window._extra_state"
    }


def test_nothing_but_the_weighting_moves() -> None:
    """No window, no report, no log; the value is the weighted sum of the losses as they are."""
    run = Run()
    run.step(0)
    before, report = parts_of(run.criterion), run.criterion.report
    weights = run.criterion.outer.weights().clone()
    with torch.no_grad(), run.criterion.after_step():
        assert run.criterion.replaying
        value = run.loss(0)
    assert not run.criterion.replaying
    torch.testing.assert_close(value, (weights * run.values(0)).sum())
    assert same(parts_of(run.criterion), before)
    assert run.criterion.report is report and run.criterion._window.step == 1
    assert run.criterion.log_dict()["loss/rul"] == float(report.losses[0])
    assert run.criterion.log_dict() == {}


@pytest.mark.parametrize(
    ("outer", "accumulate"), covering(product([name for name in OUTERS if not quick(name).wants_after_step], [1, 3]))
)
def test_for_other_weightings_the_block_does_nothing(outer: str, accumulate: int) -> None:
    """With gradients and without, in the middle of a window or not: the value, and not a bit of the state."""
    run = Run(quick(outer), accumulate=accumulate)
    for seed in range(4):
        run.loss(seed).backward()
    before, report, weights = snapshot(run.criterion), run.criterion.report, run.criterion.outer.weights().detach()
    for grad in (False, True):
        with torch.set_grad_enabled(grad), run.criterion.after_step():
            torch.testing.assert_close(run.loss(7).detach(), (weights * run.values(7)).sum())
    run.criterion.step(skipped=True) if accumulate == 1 else None
    assert same(snapshot(run.criterion), before)
    assert run.criterion.report is report


WAYS: dict[str, Callable[[Run], AbstractContextManager[Any]]] = {
    "no_grad": lambda run: torch.no_grad(),
    "inference": lambda run: torch.inference_mode(),
    "with gradients": lambda run: nullcontext(),
    "autocast": lambda run: torch.autocast("cpu", dtype=torch.bfloat16),
    "eval": lambda run: (run.model.eval(), run.criterion.eval(), torch.no_grad())[-1],
}


@pytest.mark.parametrize("how", WAYS)
@pytest.mark.parametrize("inside", [False, True])
def test_every_way_to_run_it_gives_the_same(how: str, inside: bool) -> None:
    """Whether the mode is set around the block or within it; afterwards training goes on."""
    run, plain = Run(), Run()
    for seed in range(3):
        for each in (run, plain):
            each.step(seed)
        mode = WAYS[how](run)
        with mode if not inside else nullcontext(), run.criterion.after_step(), mode if inside else nullcontext():
            run.loss(seed)
        run.criterion.train()
        plain.again(seed)
    tolerance = 0.2 if how == "autocast" else 0.0
    torch.testing.assert_close(run.criterion.outer.logits, plain.criterion.outer.logits, rtol=tolerance, atol=tolerance / 10)
    assert run.criterion.outer.logits.dtype is torch.float64 and (run.criterion.outer.updates == 3).all()
    if how != "autocast":
        assert same(snapshot(run.criterion), snapshot(plain.criterion))


def failing(run: Run) -> None:
    with pytest.raises(RuntimeError, match="out of memory"), torch.no_grad(), run.criterion.after_step():
        run.loss(0)
        raise RuntimeError("out of memory")


def held(run: Run) -> None:
    with run.criterion.hold():
        run.again(0)


def empty(run: Run) -> None:
    with run.criterion.after_step():
        pass


def skipped(run: Run) -> None:
    run.criterion.step(skipped=True)
    run.again(0)


@pytest.mark.parametrize("what", [failing, held, empty, skipped])
def test_what_hands_nothing_over(what: Callable[[Run], None]) -> None:
    """A block that raises, is held, is empty, or follows a step that was skipped."""
    run = Run()
    run.step(1)
    run.again(1)
    run.step(0)
    before = snapshot(run.criterion.outer)
    what(run)
    assert same(snapshot(run.criterion.outer), before)
    if what is not skipped:  # the others may be repeated as they should have been
        run.again(0)
        assert not same(snapshot(run.criterion.outer), before)


def test_a_second_block_and_one_before_training_hand_nothing_over() -> None:
    """Each window is compared once; a block within another belongs to it."""
    run = Run(Recorder())
    seen = run.criterion.outer.after
    run.again(0)
    assert not seen
    run.step(0)
    with torch.no_grad(), run.criterion.after_step():
        with run.criterion.after_step():
            run.loss(0)
        assert not seen and run.criterion.replaying
        run.loss(1)
    assert len(seen) == 1
    torch.testing.assert_close(torch.tensor(seen[0][0], dtype=torch.float64), run.values(0, 1))
    run.again(0)
    run.again(1)
    assert len(seen) == 1


def test_a_dropped_window_is_never_compared() -> None:
    """With accumulate > 1 the block after a skipped step sees neither the dropped window nor the one before it."""
    run = Run(Recorder(), accumulate=2)
    run.step(0, 1)
    run.criterion.step()
    run.loss(2), run.loss(3)
    run.criterion.step(skipped=True)
    run.again(2, 3)
    assert not run.criterion.outer.after and run.criterion._window.step == 1
    run.step(4, 5)
    run.again(4, 5)
    assert len(run.criterion.outer.after) == 1 and run.criterion._window.step == 2


def test_absent_and_broken_tasks_are_not_active() -> None:
    """A task without labels in some calls is averaged over the others; without any, or with NaN alone, it is inactive."""
    run = Run(Recorder(), accumulate=2)
    run.step(0, 1)
    with torch.no_grad(), run.criterion.after_step():
        run.loss(0, wear=None)
        inputs, labels = batch_for(KINDS, seed=1, dtype=torch.float64)
        outputs = run.model(inputs)
        run.criterion({**outputs, "rul": outputs["rul"] * torch.nan}, labels)
    (losses, active) = run.criterion.outer.after[-1]
    expected = torch.stack([run.values(0)[0], run.values(0, 1)[1], run.values(1)[2]])
    assert active == [True, True, True]
    torch.testing.assert_close(torch.tensor(losses, dtype=torch.float64), expected)
    run.step(2, 3)
    with torch.no_grad(), run.criterion.after_step():
        run.loss(2, wear=None)
    (losses, active) = run.criterion.outer.after[-1]
    assert active == [True, True, False] and losses[2] == 1.0


def test_combine_and_masks_work_within_the_block() -> None:
    """Losses computed elsewhere are handed over like any others."""
    criterion = compose(Recorder(), tasks=["a", "b"])
    weight = torch.ones((), requires_grad=True)
    criterion.combine([weight * 2, weight * 3]).backward()
    with torch.no_grad(), criterion.after_step():
        criterion.combine([weight * 1, weight * 4])
    assert criterion.outer.after == [([1.0, 4.0], [True, True])]


@pytest.mark.parametrize("every", [1, 2])
@pytest.mark.parametrize("probe", ["exact", "lagged"])
def test_a_weighting_of_norms_sees_what_follows_its_own_windows(probe: str, every: int) -> None:
    """With ``every`` it is shown nothing after windows that it was not given; with a lagged probe the block commits."""
    run = Run(NormRecorder(), probe=probe, every=every)
    for seed in range(6):
        run.step(seed)
        run.again(seed)
        assert len(run.criterion.outer.windows) == len(run.criterion.outer.after) == seed // every + 1
    assert run.criterion._window.step == 6


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("how", ["state", "deepcopy", "pickle"])
def test_a_state_between_the_step_and_the_block_goes_on(accumulate: int, how: str) -> None:
    """Saved after the optimizer step and loaded before the block, bit for bit; also with the window still pending."""
    run = Run(accumulate=accumulate)
    windows = [range(start, start + accumulate) for start in range(0, 5 * accumulate, accumulate)]
    for window in windows[:2]:
        run.step(*window)
        run.again(*window)
    run.step(*windows[2])
    twin = Run(accumulate=accumulate)
    twin.model.load_state_dict(run.model.state_dict())
    if how == "state":
        twin.criterion.load_state_dict(copy.deepcopy(run.criterion.state_dict()))
    elif how == "deepcopy":
        twin.criterion = copy.deepcopy(run.criterion)
    else:
        twin.criterion = pickle.loads(pickle.dumps(run.criterion))
    for each in (run, twin):
        each.again(*windows[2])
        for window in windows[3:]:
            each.step(*window)
            each.again(*window)
    assert same(snapshot(run.criterion), snapshot(twin.criterion))
    assert equal(run.model.state_dict(), twin.model.state_dict())
    assert (run.criterion.outer.updates == 5).all()


def test_a_state_after_the_block_is_not_compared_again() -> None:
    """A loaded criterion knows that its last window was answered."""
    run = Run(Recorder())
    run.step(0)
    run.again(0)
    twin = Run(Recorder())
    twin.criterion.load_state_dict(copy.deepcopy(run.criterion.state_dict()))
    twin.again(0)
    assert not twin.criterion.outer.after


def test_a_copy_made_within_the_block_is_outside() -> None:
    """It trains as any criterion does."""
    run = Run()
    run.step(0)
    with torch.no_grad(), run.criterion.after_step():
        twin = copy.deepcopy(run.criterion)
    assert not twin.replaying
    run.criterion = twin
    run.step(1)
    assert twin._window.step == 2


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_stage_hands_the_losses_on(accumulate: int) -> None:
    """FAMO under an average and a floor learns what it learns alone from the same losses, and says what it wants."""
    nested = {"name": "floor", "floor": 0.05, "base": {"name": "ema", "beta": 0.5, "base": "famo"}}
    run = Run(nested, accumulate=accumulate)
    assert run.criterion.outer.wants_after_step
    within, alone = run.criterion.outer.base.base, FAMO()
    for start in range(0, 8, accumulate):
        window = range(start, start + accumulate)
        alone(Signals(run.values(*window)))
        run.step(*window)
        run.again(*window)
        alone.after_step(run.values(*window), torch.ones(3, dtype=torch.bool))
        torch.testing.assert_close(within.logits, alone.logits, rtol=1e-12, atol=0)
    assert "it has not come" not in run.criterion.explain() and len(set(alone.logits.tolist())) == 3


def test_it_warns_once_when_the_losses_never_come() -> None:
    """After 20 windows, in words that say what to add; one block in time puts it off."""
    run = Run()
    for seed in range(20):
        run.step(seed)
    run.again(19)
    for seed in range(20):
        run.step(seed)
    with pytest.warns(UserWarning, match=r"FAMO needs the loss after.*for 20 windows.*with torch.no_grad\(\), criterion"):
        run.step(20)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for seed in range(3):
            run.step(seed)


def test_explain_says_what_it_needs_and_costs() -> None:
    """Also how long it has gone without."""
    run = Run()
    assert "one more forward" in run.criterion.explain() and "has not come" not in run.criterion.explain()
    for seed in range(3):
        run.step(seed)
    text = run.criterion.explain()
    assert "criterion.after_step()" in text and "it has not come for the last 3 windows" in text
    run.again(2)
    assert "has not come" not in run.criterion.explain()
    assert "after_step" not in Run("dwa").criterion.explain()


@pytest.mark.skipif(not TRACES_STATE, reason="this torch does not trace the state of a weighting")
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # read by the compiler itself
def test_a_compiled_criterion_gives_what_an_eager_one_gives() -> None:
    """Called within the block it leaves the graph; windows that were counted on the device are compared once, too."""
    import torch._dynamo

    torch._dynamo.reset()
    eager, compiled = Run(), Run()
    for each in (eager, compiled):
        with torch.no_grad():
            each.loss(0)
    whole = compiled.criterion
    compiled.criterion.compile(backend="eager")
    for seed in range(5):
        for each in (eager, compiled):
            each.step(seed)
            if seed == 3:
                each.criterion.step(skipped=True)
            each.again(seed)
            each.again(seed)
    assert whole._window.compiled and not eager.criterion._window.compiled
    torch.testing.assert_close(whole.outer.logits, eager.criterion.outer.logits, rtol=1e-12, atol=0)
    assert whole.outer.updates.tolist() == [4.0, 4.0, 4.0]
    twin = Run()
    twin.criterion.load_state_dict(copy.deepcopy(whole.state_dict()))
    twin.again(4)
    assert torch.equal(twin.criterion.outer.logits, whole.outer.logits)
    for seed in range(20):
        compiled.step(seed)
    with pytest.warns(UserWarning, match="not had it for 20 windows"):
        whole.log_dict()
    torch._dynamo.reset()


def test_a_model_with_the_criterion_as_a_part_is_no_different() -> None:
    """The block is that of the criterion, wherever that is."""
    run = Run()
    parent = nn.ModuleDict({"model": run.model, "criterion": run.criterion})
    run.step(0)
    with torch.no_grad(), parent["criterion"].after_step():
        run.loss(0)
    assert (run.criterion.outer.updates == 1).all()
