"""Probes over time: resumed runs, copies, backwards that never come or come twice, dropped windows, and no waiting."""

from __future__ import annotations

import copy
import functools
import io
import pickle
import weakref
from collections.abc import Callable
from typing import Any, ClassVar

import pytest
import torch
from probing import PROBES, Net, Recorder, names
from sampling import covering, slowly, tiered
from strategies import equal, same, snapshot
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from mtl_axes import MultiTaskCriterion, OuterWeighting, Signals, compose
from mtl_axes.probes import Exact, Measurement, Tape

TASKS = names(3)
LIVE = {"name": "gaba", "beta": 0.6, "floor": 0.0, "warmup": 0, "form": "inverse"}
SCHEDULES: dict[str, dict[str, Any]] = {
    "each call": {},
    "accumulate": {"accumulate": 2},
    "manual": {"accumulate": "manual"},
    "every": {"every": 2},
}
RUNS = [
    (probe, schedule)
    for probe in PROBES
    for schedule in SCHEDULES
    if schedule == "each call" or probe in ("exact", "rotate", "lagged")
]
STATEFUL = [run for run in RUNS if run[0] in ("exact", "rotate", "lagged")]
every_run = pytest.mark.parametrize(("probe", "schedule"), covering(RUNS))
every_probe = pytest.mark.parametrize("probe", PROBES)
late = pytest.mark.parametrize("window", [1, 2])


class Training:
    """A model, a criterion with live weights and Adam; tasks are absent now and then; two calls per window where it says."""

    def __init__(self, probe: str, schedule: str = "each call") -> None:
        options = {**PROBES[probe], **SCHEDULES[schedule]}
        self.model = Net(3)
        self.criterion = compose(LIVE, tasks=TASKS, **options)
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=1e-2)
        self.window = 2 if "accumulate" in options else 1

    def call(self, call: int, *, stepping: bool = True) -> list[float]:
        gone = {5: "b", 8: "a"}.get(call)
        total = self.criterion.combine({name: None if name == gone else loss for name, loss in self.model(call).items()})
        weights = self.criterion.report.weights.tolist()
        total.backward()
        if stepping:
            self.step(call)
        return weights

    def step(self, call: int) -> None:
        if (call + 1) % self.window == 0:
            self.optimizer.step()
            self.optimizer.zero_grad()
            if self.criterion.accumulate == "manual":
                self.criterion.step()

    def parts(self) -> dict[str, Any]:
        return {"model": self.model, "criterion": self.criterion, "optimizer": self.optimizer}

    def checkpoint(self) -> bytes:
        """All that a user saves, and the gradients of a window that is not complete."""
        file = io.BytesIO()
        state = {name: part.state_dict() for name, part in self.parts().items()}
        torch.save({**state, "gradients": [parameter.grad for parameter in self.model.parameters()]}, file)
        return file.getvalue()

    def load(self, checkpoint: bytes) -> None:
        state = torch.load(io.BytesIO(checkpoint), weights_only=True)
        for name, part in self.parts().items():
            part.load_state_dict(state[name])
        for parameter, gradient in zip(self.model.parameters(), state["gradients"], strict=True):
            parameter.grad = gradient

    def parameters(self) -> list[Tensor]:
        return [parameter.detach().clone() for parameter in self.model.parameters()]


def uninterrupted(
    probe: str, schedule: str, keep: Callable[[Training], Any], calls: int, *, before_step: bool = False
) -> tuple[list[Any], list[Any]]:
    """What ``keep`` makes of a run after (or within) each call, and weights and parameters of every call."""
    training = Training(probe, schedule)
    kept, through = [], []
    for call in range(calls):
        weights = training.call(call, stepping=not before_step)
        if before_step:
            kept.append(keep(training))
            training.step(call)
        else:
            kept.append(keep(training))
        through.append((weights, training.parameters()))
    return kept, through


def assert_alive(through: list[Any]) -> None:
    assert len({tuple(weights) for weights, _ in through}) > 3


@every_run
def test_a_run_resumed_after_any_step_is_the_uninterrupted_run(probe: str, schedule: str) -> None:
    """A state_dict from any of the first 2K + 1 steps, loaded into fresh objects, goes on bit for bit."""
    checkpoints, through = uninterrupted(probe, schedule, Training.checkpoint, 12)
    assert_alive(through)
    for saved in range(7):
        training = Training(probe, schedule)
        training.load(checkpoints[saved])
        for call in range(saved + 1, saved + 6):
            weights = training.call(call)
            assert weights == through[call][0], f"weights of call {call}, saved after {saved}"
            assert equal(training.parameters(), through[call][1]), f"parameters after call {call}, saved after {saved}"


@pytest.mark.parametrize(("probe", "schedule"), tiered(STATEFUL))
def test_a_run_saved_between_backward_and_step_is_the_uninterrupted_run(probe: str, schedule: str) -> None:
    """What a backward left in a probe is in the state before the optimizer has stepped on it."""
    checkpoints, through = uninterrupted(probe, schedule, Training.checkpoint, 8, before_step=True)
    for saved in range(4):
        training = Training(probe, schedule)
        training.load(checkpoints[saved])
        training.step(saved)
        for call in range(saved + 1, saved + 4):
            assert training.call(call) == through[call][0]
            assert equal(training.parameters(), through[call][1])


COPIES = {"deepcopy": copy.deepcopy, "pickle": lambda training: pickle.loads(pickle.dumps(training))}


def copied(training: Training, how: str) -> Training:
    """A copy of everything, with the gradients of a window that is not complete, which torch leaves behind."""
    twin = COPIES[how](training)
    for parameter, original in zip(twin.model.parameters(), training.model.parameters(), strict=True):
        parameter.grad = None if original.grad is None else original.grad.clone()
    return twin


@pytest.mark.parametrize(
    ("probe", "schedule", "how"),
    tiered((*run, how) for run in STATEFUL if run[1] != "manual" for how in COPIES),
)
def test_a_copy_goes_on_like_the_original(probe: str, schedule: str, how: str) -> None:
    """Model, criterion and optimizer copied together after a step go on bit for bit, whatever the original does."""
    copies, through = uninterrupted(probe, schedule, lambda training: copied(training, how), 9)
    assert_alive(through)
    for saved in range(1, 4):
        for call in range(saved + 1, saved + 6):
            assert copies[saved].call(call) == through[call][0]
            assert equal(copies[saved].parameters(), through[call][1])


@every_probe
def test_a_copy_is_made_while_a_backward_is_pending(probe: str) -> None:
    """Between call and backward a criterion copies and saves without its graph, and the copy does not see the backward."""
    training = Training(probe)
    for call in range(3):
        training.call(call)
    total = training.criterion.combine(training.model(3))
    before = snapshot(training.criterion)
    twin = copy.deepcopy(training.criterion)
    pickled = pickle.loads(pickle.dumps(training.criterion))
    total.backward()
    assert same(snapshot(twin), before)
    assert same(snapshot(pickled), before)
    if probe == "lagged":
        weights = training.criterion.outer.weights().tolist()
        for each in (twin, pickled):
            each.combine(training.model(4))
            assert each.report.weights.tolist() == weights
        training.criterion.combine(training.model(4))
        assert training.criterion.report.weights.tolist() != weights


@functools.cache
def saved_under(probe: str) -> dict[str, Any]:
    """The state after three calls."""
    training = Training(probe)
    for call in range(3):
        training.call(call)
    return training.criterion.state_dict()


@pytest.mark.parametrize("probe", PROBES)
def test_a_state_of_another_probe_is_taken_or_refused_whole(probe: str) -> None:
    """A state saved under one probe loads under another or is an error; a run never starts with half of it."""
    for other in PROBES:
        training = Training(probe)
        before = snapshot(training.criterion)
        try:
            training.criterion.load_state_dict(saved_under(other))
        except (RuntimeError, ValueError):
            assert same(snapshot(training.criterion), before), f"{other} under {probe} is refused and left behind"
        for call in range(3, 6):
            training.call(call)


def reference(model: Net, seed: int) -> Tensor:
    """Norms of the task gradients at the representation."""
    kept: list[Tensor] = []
    tap, model.tap = model.tap, kept.append
    losses = model(seed)
    model.tap = tap
    rows = [torch.autograd.grad(loss, kept[0], retain_graph=True)[0] for loss in losses.values()]
    return torch.stack([row.norm() for row in rows])


class Lagged:
    """A model under the lagged probe, with a weighting that keeps what it is shown."""

    def __init__(self, window: Any = 1, outer: OuterWeighting | None = None) -> None:
        self.model = Net(3)
        self.recorder = Recorder() if outer is None else outer
        self.criterion = compose(self.recorder, tasks=TASKS, probe="lagged", accumulate=window)

    def total(self, seed: int) -> Tensor:
        return self.criterion.combine(self.model(seed))

    def shown(self) -> Signals:
        """What the weighting saw last."""
        return self.recorder.shown[-1]

    def assert_shown(self, *seeds: int) -> None:
        """The last signals have the mean norms of some calls, and of none other."""
        expected = torch.stack([reference(self.model, seed) for seed in seeds]).mean(0)
        torch.testing.assert_close(self.shown().norms, expected, rtol=1e-12, atol=0)
        assert self.shown().active.all()


@late
def test_without_a_backward_nothing_is_recorded(window: int) -> None:
    """Calls whose backward never comes move no weight, leave no norm, and the next window is as if they had not been."""
    lagged = Lagged(window)
    references = []
    lagged.model.trunk[1].register_forward_hook(lambda module, inputs, output: references.append(weakref.ref(output)))
    for seed in range(window):
        lagged.total(seed)
        assert references[-1]() is None, "the call kept its graph"
    total = lagged.total(10)
    assert len(lagged.recorder.shown) <= 1
    assert not any(signals.active.any() for signals in lagged.recorder.shown)
    assert lagged.criterion.report.norms is None or not lagged.criterion.report.measured.any()
    total.backward()
    seeds = [10]
    for seed in range(11, 10 + window):
        lagged.total(seed).backward()
        seeds.append(seed)
    lagged.total(20)
    lagged.assert_shown(*seeds)


def test_weights_stay_where_no_backward_comes() -> None:
    """GABA holds through windows without a backward, and counts them as elapsed afterwards."""
    training = Training("lagged")
    for call in range(3):
        training.call(call)
    moved = training.criterion.combine(training.model(3))
    weights = training.criterion.report.weights.tolist()
    for call in range(4, 7):
        training.criterion.combine(training.model(call))
        assert training.criterion.report.weights.tolist() == weights
    moved.backward()
    assert training.criterion._window.step == 6


@late
def test_elapsed_counts_the_windows_without_a_backward(window: int) -> None:
    """After two windows without a backward the next measured one is shown with three windows elapsed."""
    lagged = Lagged(window)
    for number in range(5):
        for call in range(window):
            total = lagged.total(number * window + call)
            if number not in (1, 2):
                total.backward()
    lagged.total(99)
    shown = [signals for signals in lagged.recorder.shown if signals.active.any()]
    assert [int(signals.step) for signals in shown] == [0, 3, 4]
    assert [signals.elapsed.tolist() for signals in shown] == [[1.0] * 3, [3.0] * 3, [1.0] * 3]


@late
def test_a_second_backward_replaces_the_first(window: int) -> None:
    """backward(retain_graph=True) and another, with another scale, is one record of the same norms."""
    lagged = Lagged(window)
    for seed in range(window):
        total = lagged.total(seed)
        total.backward(retain_graph=True)
        (8 * total).backward(retain_graph=True)
        torch.autograd.grad(total, [lagged.model.trunk[0].weight])
    lagged.total(9)
    lagged.assert_shown(*range(window))


@pytest.mark.parametrize("order", [(0, 1), (1, 0), (0,), (1,), ()])
def test_two_forwards_in_one_window(order: tuple[int, ...]) -> None:
    """Of two calls of a window those count whose backward came, in whatever order: both, one or none."""
    lagged = Lagged(2)
    totals = [lagged.total(0), lagged.total(1)]
    for index in order:
        totals[index].backward()
    lagged.total(9)
    if order:
        lagged.assert_shown(*sorted(order))
    else:
        assert not any(signals.active.any() for signals in lagged.recorder.shown)


@pytest.mark.parametrize("factor", [1.0, 0.25])
def test_two_forwards_and_one_backward_of_their_sum(factor: float) -> None:
    """The backward of a sum of two totals of a window records both, each by the scale that arrives at it."""
    lagged = Lagged(2)
    (lagged.total(0) + factor * lagged.total(1)).backward()
    lagged.total(9)
    lagged.assert_shown(0, 1)


def test_a_backward_after_its_window_is_not_counted_twice() -> None:
    """Totals of two windows of one call, in one backward: the next commit shows norms of its own window alone."""
    lagged = Lagged()
    first = lagged.total(0)
    second = lagged.total(1)
    (first + second).backward()
    lagged.total(2)
    lagged.assert_shown(1)


class Chosen(Recorder):
    """Weights that a test chooses."""

    def __init__(self, weights: tuple[float, ...]) -> None:
        super().__init__()
        self.chosen = weights

    def forward(self, signals: Signals, /) -> Tensor:
        super().forward(signals)
        return torch.tensor(self.chosen, dtype=signals.losses.dtype)


@late
def test_a_task_of_weight_zero_is_inactive(window: int) -> None:
    """No gradient arrives at a loss of weight 0, so its norm is not known; the others are as always."""
    lagged = Lagged(window, Chosen((2.0, 0.0, 1e-8)))
    for seed in range(3 * window + 1):
        lagged.total(seed).backward()
    assert [signals.active.tolist() for signals in lagged.recorder.shown] == [[True] * 3, *[[True, False, True]] * 2]
    expected = torch.stack([reference(lagged.model, seed) for seed in range(2 * window, 3 * window)]).mean(0)
    torch.testing.assert_close(lagged.shown().norms[[0, 2]], expected[[0, 2]], rtol=1e-12, atol=0)


@pytest.mark.parametrize("scale", [0.0, float("inf"), float("nan")])
def test_a_scale_of_zero_or_infinity_leaves_all_inactive(scale: float) -> None:
    """A backward that starts from 0, infinity or NaN records nothing; the next one is recorded as if it had not been."""
    lagged = Lagged()
    (scale * lagged.total(0)).backward()
    lagged.total(1).backward()
    assert not any(signals.active.any() for signals in lagged.recorder.shown)
    lagged.total(2)
    lagged.assert_shown(1)


def test_an_overflow_in_the_backward_is_dropped_and_counted() -> None:
    """A float32 gradient that overflows on its way is not shown as a norm; the task is inactive for that window."""
    lagged = Lagged()
    lagged.model.float()
    losses = lagged.model(0)
    (2.0**40 * lagged.criterion.combine({**losses, "b": 2.0**50 * losses["b"] * 2.0**50})).backward()
    lagged.total(1)
    signals = lagged.shown()
    assert bool(torch.isfinite(signals.norms).all())
    assert signals.active.tolist() == [True, False, True]
    assert lagged.criterion.report.dropped.tolist() == [0, 1, 0]


@pytest.mark.parametrize("pending", [1, 2])
def test_a_skipped_step_drops_what_was_recorded(pending: int) -> None:
    """step(skipped=True) after the backward forgets its norms; the next window shows its own alone."""
    lagged = Lagged("manual")
    for seed in range(pending):
        lagged.total(seed).backward()
    lagged.criterion.step(skipped=True)
    lagged.total(7).backward()
    lagged.criterion.step()
    assert len(lagged.recorder.shown) == 1
    lagged.assert_shown(7)
    assert int(lagged.shown().step) == 0


def test_a_skipped_step_drops_the_record_of_a_single_call() -> None:
    """With accumulate=1 too, a lagged record is pending until the next call, and step(skipped=True) drops it."""
    lagged = Lagged()
    lagged.total(0).backward()
    lagged.criterion.step(skipped=True)
    lagged.total(1).backward()
    assert lagged.recorder.shown == []
    lagged.total(2)
    lagged.assert_shown(1)


@pytest.mark.parametrize("mode", ["hold", "eval"])
def test_held_and_evaluated_calls_record_nothing(mode: str) -> None:
    """The backward of a call within hold() or in eval() is not recorded, between call and commit of another."""
    lagged = Lagged()
    lagged.total(0).backward()
    if mode == "hold":
        with lagged.criterion.hold():
            lagged.total(5).backward()
    else:
        lagged.criterion.eval()
        lagged.total(5).backward()
        lagged.criterion.train()
    assert lagged.recorder.shown == []
    lagged.total(1)
    lagged.assert_shown(0)


def test_end_epoch_and_step_commit_what_was_recorded() -> None:
    """A full window is committed by end_epoch(), a pending one by step(), with the norms of its backwards."""
    lagged = Lagged()
    lagged.total(0).backward()
    lagged.criterion.end_epoch()
    lagged.assert_shown(0)
    lagged.total(1).backward()
    lagged.criterion.step()
    lagged.assert_shown(1)
    assert len(lagged.recorder.shown) == 2


class ReadingProbe(Exact):
    """The exact probe, reading a value on the host."""

    def measure(self, tape: Tape, need: Any) -> Measurement | None:
        measurement = super().measure(tape, need)
        if measurement is not None:
            float(measurement.norms.sum())
        return measurement


class Gram(OuterWeighting):
    """A weighting on the Gramian."""

    needs: ClassVar[str] = "gramian"

    def forward(self, signals: Signals, /) -> Tensor:
        return torch.where(signals.active, 1 / signals.gramian.abs().sum(1), self.current)


def driven(model: nn.Module, criterion: MultiTaskCriterion, device: str) -> None:
    """Training calls of every sort without a value: plain, absent, held, accumulated, without and with two backwards."""
    for call in range(9):
        x = torch.ones(8, 4, device=device)
        z = model.trunk(x)
        losses = {name: model.heads[name](z).square().mean() for name in TASKS}
        total = criterion.combine({name: None if call % 5 == 3 and name == "b" else loss for name, loss in losses.items()})
        if call == 4:
            continue
        total.backward(retain_graph=call == 6)
        if call == 6:
            total.backward()
        if call == 7:
            with criterion.hold():
                criterion.combine({name: model.heads[name](model.trunk(x)).square().mean() for name in TASKS}).backward()
        criterion.step(skipped=call == 5)
        criterion.state_dict()


def under_fake(model: nn.Module, criterion: MultiTaskCriterion) -> None:
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        for module in (model, criterion):
            for part in module.modules():
                for name, buffer in list(part._buffers.items()):
                    part._buffers[name] = mode.from_tensor(buffer)
                for name, parameter in list(part._parameters.items()):
                    part._parameters[name] = nn.Parameter(mode.from_tensor(parameter.detach()))
        driven(model, criterion, "cpu")


def on_meta(model: nn.Module, criterion: MultiTaskCriterion) -> None:
    model.to("meta")
    driven(model, criterion, "meta")
    assert criterion.report.weights.device.type == "meta"


GUARDS = {"fake": under_fake, "meta": on_meta}
every_guard = pytest.mark.parametrize("guard", GUARDS)


def started(outer: Any, **options: Any) -> tuple[Net, MultiTaskCriterion]:
    """A model and a criterion after a first call with values, and nothing pending."""
    model = Net(3, torch.float32)
    criterion = compose(outer, tasks=TASKS, **options)
    criterion.combine(model(0)).backward()
    criterion.step()
    model.zero_grad()
    return model, criterion


WAITING = [
    ("fake", "exact", "each call"),
    ("fake", "lagged", "accumulate"),
    *slowly(("fake", probe, "each call") for probe in ("rotate", "lagged")),
    *(("meta", probe, schedule) for probe, schedule in covering(RUNS)),
]


@pytest.mark.parametrize(("guard", "probe", "schedule"), WAITING)
def test_no_probe_waits(guard: str, probe: str, schedule: str) -> None:
    """From the second call on no probe reads a value, in the call, in the user's backward and in the commit."""
    GUARDS[guard](*started(LIVE, **{**PROBES[probe], **SCHEDULES[schedule]}))


@every_guard
@pytest.mark.parametrize("probe", ["exact", "no reuse"])
def test_no_gramian_waits(probe: str, guard: str) -> None:
    """A Gramian is measured without reading a value."""
    GUARDS[guard](*started(Gram(), **PROBES[probe]))


@every_guard
def test_the_guard_catches_a_probe_that_reads(guard: str) -> None:
    """A probe that reads a norm on the host fails under both guards, so that the tests above can fail."""
    model, criterion = started(LIVE, probe=ReadingProbe())
    with pytest.raises(Exception) as caught:
        GUARDS[guard](model, criterion)
    assert type(caught.value).__name__ in ("DataDependentOutputException", "RuntimeError", "NotImplementedError")
