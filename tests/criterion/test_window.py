"""The window: when gradients are measured, what is averaged, when the weighting moves, and what a user is told."""

from __future__ import annotations

import copy
import pickle
import warnings
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from sampling import pairwise, tiered
from strategies import OUTERS, REPRESENTATIVE, batch_for, equal, model_for, quick, same, snapshot
from torch import Tensor

from mtl_axes import OuterWeighting, Probe, Signals, compose
from mtl_axes.errors import DataError, OptionError, StateError
from mtl_axes.outer import Rescaled
from mtl_axes.probes import Exact, Measurement, Tape

f64 = torch.float64
KINDS = {"a": "regression", "b": "regression"}


class Counting(Exact):
    """The exact probe, counting its measurements."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def measure(self, tape: Tape, need: Any) -> Measurement | None:
        self.count += 1
        return super().measure(tape, need)


class Recorder(OuterWeighting):
    """Keeps what it is shown; its weights follow the losses, so that they change in every window."""

    needs: ClassVar[str] = "gramian"

    def __init__(self) -> None:
        super().__init__()
        self.shown: list[Signals] = []

    def forward(self, signals: Signals, /) -> Tensor:
        self.shown.append(signals)
        return torch.where(signals.active, 1.0 + signals.losses, self.current)


class Run:
    """A model in float64, a criterion, and one batch per call."""

    def __init__(self, outer: Any, **options: Any) -> None:
        self.model = model_for(KINDS, dtype=f64)
        eval_weights = options.pop("eval_weights", "reference")
        self.criterion = compose(outer, **{"tasks": list(KINDS), **options})
        self.criterion.eval_weights = eval_weights
        self.seed = 0

    def batch(self) -> tuple[Tensor, dict[str, Tensor]]:
        self.seed += 1
        return batch_for(KINDS, seed=self.seed, dtype=f64)

    def call(self, calls: int = 1) -> Tensor:
        for _ in range(calls):
            inputs, targets = self.batch()
            total = self.criterion(self.model(inputs), targets)
        return total

    def weights(self) -> list[float]:
        return self.criterion.report.weights.tolist()

    def jacobian(self, seed: int) -> Tensor:
        inputs, targets = batch_for(KINDS, seed=seed, dtype=f64)
        outputs = self.model(inputs)
        rows = []
        for name, target in targets.items():
            loss = (outputs[name] - target).square().mean()
            row = torch.autograd.grad(loss, list(self.model.trunk.parameters()), retain_graph=True)
            rows.append(torch.cat([part.reshape(-1) for part in row]))
        return torch.stack(rows)

    def losses(self, seed: int) -> Tensor:
        inputs, targets = batch_for(KINDS, seed=seed, dtype=f64)
        outputs = self.model(inputs)
        return torch.stack([(outputs[name] - target).square().mean().detach() for name, target in targets.items()])


@pytest.mark.parametrize("accumulate", [2, 3, 5])
def test_a_window_is_averaged_and_committed_once(accumulate: int) -> None:
    """Losses, norms and Gramian of a window are means over its calls; the weighting moves once per window."""
    recorder = Recorder()
    run = Run(recorder, accumulate=accumulate)
    run.call(2 * accumulate)
    assert len(recorder.shown) == 1, "a window commits when the next one begins"
    run.call()
    assert len(recorder.shown) == 2
    for number, signals in enumerate(recorder.shown):
        seeds = range(1 + number * accumulate, 1 + (number + 1) * accumulate)
        jacobians = [run.jacobian(seed) for seed in seeds]
        expected = {
            "losses": torch.stack([run.losses(seed) for seed in seeds]).mean(0),
            "norms": torch.stack([jacobian.norm(dim=1) for jacobian in jacobians]).mean(0),
            "gramian": torch.stack([jacobian @ jacobian.T for jacobian in jacobians]).mean(0),
        }
        for name, value in expected.items():
            torch.testing.assert_close(getattr(signals, name), value, rtol=1e-12, atol=0)
        assert int(signals.step) == number


def test_a_window_averages_over_the_calls_of_each_task() -> None:
    """A task that is absent in some calls of a window is averaged over the others, and a pair over the calls it shares."""
    recorder = Recorder()
    run = Run("fixed")
    run.criterion = compose(recorder, tasks=list(KINDS), accumulate=3, shared=run.model.trunk)
    for seed, present in ((1, "ab"), (2, "a"), (3, "b")):
        inputs, targets = batch_for(KINDS, seed=seed, dtype=f64)
        run.criterion(run.model(inputs), {name: target if name in present else None for name, target in targets.items()})
    run.criterion.step()
    (signals,) = recorder.shown
    losses = {seed: run.losses(seed) for seed in (1, 2, 3)}
    jacobians = {seed: run.jacobian(seed) for seed in (1, 2, 3)}
    expected = torch.stack([(losses[1][0] + losses[2][0]) / 2, (losses[1][1] + losses[3][1]) / 2])
    torch.testing.assert_close(signals.losses, expected, rtol=1e-12, atol=0)
    torch.testing.assert_close(signals.gramian[0, 1], jacobians[1][0] @ jacobians[1][1], rtol=1e-12, atol=0)
    torch.testing.assert_close(signals.norms[0], (jacobians[1][0].norm() + jacobians[2][0].norm()) / 2, rtol=1e-12, atol=0)


@pytest.mark.parametrize("outer", REPRESENTATIVE)
@pytest.mark.parametrize("accumulate", [3, "manual"])
def test_weights_hold_within_a_window_and_come_from_those_before(outer: str, accumulate: Any) -> None:
    """The weights of every call of a window are those that the windows before it left behind."""
    run = Run(quick(outer), accumulate=accumulate)
    seen = []
    for _ in range(6):
        before = None
        for _ in range(3):
            run.call()
            assert before is None or run.weights() == before
            before = run.weights()
        run.criterion.step()
        seen.append(before)
        if not run.criterion.outer.learnable:
            assert run.criterion.outer.weights().tolist() == run.criterion.outer.current.tolist()
    fresh = compose(quick(outer), tasks=list(KINDS))
    inputs, targets = batch_for(KINDS, seed=1, dtype=f64)
    with torch.no_grad():
        fresh(run.model(inputs), targets)
    assert seen[0] == fresh.outer.weights().tolist(), "the first window has the weights of a start"
    weighting = quick(outer)
    # Two tasks that do not conflict have 1/2 each from upgrad, in every window.
    assert weighting.learnable or not weighting.moves or outer == "upgrad" or len({tuple(weights) for weights in seen}) > 1


def test_one_call_per_window_uses_its_own_statistics() -> None:
    """With accumulate=1 the weights of a step are those of its own losses and norms."""
    run = Run({"name": "gaba", "beta": 0.0, "floor": 0.0, "warmup": 0})
    for seed in range(1, 4):
        run.call()
        norms = run.jacobian(seed).norm(dim=1)
        np.testing.assert_allclose(run.weights(), (norms.flip(0) / norms.sum()).tolist(), rtol=1e-12)


def test_accumulation_of_one_equals_manual_steps_shifted() -> None:
    """Manual windows of one call move the weighting exactly as accumulate=1 does, only after the call."""
    immediate, manual = Run(quick("gaba")), Run(quick("gaba"), accumulate="manual")
    for _ in range(5):
        immediate.call()
        manual.call()
        manual.criterion.step()
        assert torch.equal(immediate.criterion.outer.ema, manual.criterion.outer.ema)


def test_a_skipped_step_drops_its_window() -> None:
    """step(skipped=True) forgets what the window collected and does not count it; the next window starts clean."""
    recorder = Recorder()
    run = Run(recorder, accumulate="manual")
    run.call(2)
    run.criterion.step()
    run.call(3)
    run.criterion.step(skipped=True)
    run.call(1)
    run.criterion.step()
    assert len(recorder.shown) == 2
    torch.testing.assert_close(recorder.shown[1].losses, run.losses(6), rtol=1e-13, atol=0)
    assert [int(signals.step) for signals in recorder.shown] == [0, 1]
    assert run.criterion._window.step == 2


def test_a_step_without_calls_does_nothing() -> None:
    """step() on an empty window commits nothing, whether skipped or not."""
    run = Run(quick("gaba"), accumulate="manual")
    run.call()
    run.criterion.step()
    before = snapshot(run.criterion)
    run.criterion.step()
    run.criterion.step(skipped=True)
    assert same(snapshot(run.criterion), before)


@pytest.mark.parametrize("every", [1, 2, 5])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_every_measures_in_every_nth_window(every: int, accumulate: int) -> None:
    """Gradients are measured in all calls of every n-th window, weights hold in between, and elapsed is n."""
    probe = Counting()
    run = Run({"name": "gaba", "beta": 0.7, "floor": 0.0, "warmup": 0}, every=every, accumulate=accumulate, probe=probe)
    seen = []
    for window in range(3 * every):
        for _ in range(accumulate):
            run.call()
        assert probe.count == accumulate * (window // every + 1)
        seen.append(run.weights())
    if accumulate == 1:
        assert all(seen[index] == seen[index - index % every] for index in range(len(seen)))
        assert len({tuple(weights) for weights in seen}) == 3
        ema = np.array([0.5, 0.5])
        for number, start in enumerate(range(0, 3 * every, every)):
            norms = run.jacobian(start + 1).norm(dim=1).numpy()
            decay = 0.7 ** (every if number else 1)
            ema = decay * ema + (1 - decay) * norms[::-1] / norms.sum()
            np.testing.assert_allclose(seen[start], ema, rtol=1e-12)


def test_the_warm_up_measures_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """During GABA's warm-up no gradient is taken but one in the first call, as a check; after it one per task and window."""
    calls = 0
    real = torch.autograd.grad

    def counted(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        return real(*args, **kwargs)

    monkeypatch.setattr(torch.autograd, "grad", counted)
    run = Run({"name": "gaba", "warmup": 5})
    run.call(1)
    assert calls == 1
    run.call(4)
    assert calls == 1
    assert run.weights() == [0.5, 0.5]
    assert run.criterion.report.norms is None
    run.call()
    assert calls == 3
    assert run.weights() != [0.5, 0.5]


@pytest.mark.parametrize("mode", ["eval", "no_grad", "inference"])
def test_evaluation_uses_reference_weights(mode: str) -> None:
    """In evaluation the loss is the mean of the task losses, with fixed's own weights for fixed, and without a penalty."""
    contexts = {"eval": torch.enable_grad, "no_grad": torch.no_grad, "inference": torch.inference_mode}
    for outer, weights in (
        *[(quick(name), [0.5, 0.5]) for name in OUTERS],
        ({"name": "fixed", "weights": [3.0, 0.25]}, [3.0, 0.25]),
    ):
        run = Run(outer)
        run.call(4)
        for parameter in run.criterion.parameters():
            torch.nn.init.constant_(parameter, 1.0)
        run.criterion.train(mode != "eval")
        with contexts[mode]():
            total = run.call()
        expected = (torch.tensor(weights, dtype=f64) * run.losses(run.seed)).sum()
        torch.testing.assert_close(total.detach().clone(), expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("outer", OUTERS)
def test_evaluation_with_current_weights(outer: str) -> None:
    """eval_weights="current" uses the weights of training, still without moving anything."""
    run = Run(quick(outer), eval_weights="current")
    run.call(4)
    weights = run.criterion.outer.weights().detach().clone()
    run.criterion.eval()
    total = run.call()
    torch.testing.assert_close(total.detach(), (weights * run.losses(run.seed)).sum(), rtol=1e-12, atol=0)
    assert torch.equal(run.criterion.outer.weights().detach(), weights)


@pytest.mark.parametrize("eval_weights", ["reference", "current"])
@pytest.mark.parametrize("outer", REPRESENTATIVE)
def test_an_evaluation_loss_survives_later_training_calls(outer: str, eval_weights: Any) -> None:
    """A loss computed in eval mode with gradients can still be differentiated after the weighting has moved."""
    run = Run(quick(outer), eval_weights=eval_weights)
    run.call(3)
    run.criterion.eval()
    total = run.call()
    run.criterion.train()
    run.call(3)
    total.backward()
    assert run.model.trunk.weight.grad is not None


@pytest.mark.parametrize("outer", REPRESENTATIVE)
@pytest.mark.parametrize("accumulate", [1, 2])
def test_backward_after_a_later_forward(outer: str, accumulate: int) -> None:
    """Two forwards before one backward, and a backward after a later forward, give the gradients of their own weights."""
    run = Run(quick(outer), accumulate=accumulate)
    run.call(4)
    first = run.call()
    weights, seed = run.criterion.report.weights.clone(), run.seed
    second = run.call()
    other = run.criterion.report.weights.clone()
    run.call(2)
    run.model.zero_grad()
    (first + second).backward()
    inputs, targets = batch_for(KINDS, seed=seed, dtype=f64)
    later, later_targets = batch_for(KINDS, seed=seed + 1, dtype=f64)
    clean = model_for(KINDS, dtype=f64)
    outputs, later_outputs = clean(inputs), clean(later)
    expected = sum(
        weights[index] * (outputs[name] - targets[name]).square().mean()
        + other[index] * (later_outputs[name] - later_targets[name]).square().mean()
        for index, name in enumerate(KINDS)
    )
    expected.backward()
    for parameter, reference in zip(run.model.parameters(), clean.parameters(), strict=True):
        torch.testing.assert_close(parameter.grad, reference.grad, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("outer", OUTERS)
def test_hold_fixes_the_weights(outer: str) -> None:
    """Within hold(), also nested, a call uses the current weights and penalty, keeps its graph, and records nothing."""
    run = Run(quick(outer))
    run.call(3)
    before = snapshot(run.criterion)
    with run.criterion.hold(), run.criterion.hold():
        total = run.call()
    assert same(snapshot(run.criterion), before)
    weights, penalty = run.criterion.outer.weights().detach(), run.criterion.outer.penalty()
    expected = (weights * run.losses(run.seed)).sum() + (0 if penalty is None else penalty.detach().sum())
    torch.testing.assert_close(total.detach(), expected, rtol=1e-12, atol=1e-13)
    total.backward()
    assert run.model.trunk.weight.grad is not None
    run.call()
    assert run.criterion._window.step == 4, "after hold() windows count again"


def test_hold_ends_with_an_error() -> None:
    """An exception inside hold() does not leave the criterion held."""
    run = Run(quick("gaba"))
    run.call()
    with pytest.raises(KeyError), run.criterion.hold():
        raise KeyError
    run.call()
    assert run.criterion._window.step == 2


def test_lbfgs_sees_one_objective_per_step() -> None:
    """With its closure under hold() LBFGS optimises one fixed sum per step, and the weighting moves once per step."""
    run = Run(quick("gaba"))
    optimizer = torch.optim.LBFGS(run.model.parameters(), max_iter=8, line_search_fn="strong_wolfe")
    inputs, targets = run.batch()
    history = []
    for step in range(3):
        run.criterion(run.model(inputs), targets)
        state = snapshot(run.criterion)
        evaluations = []

        def closure(evaluations: list[float] = evaluations) -> Tensor:
            optimizer.zero_grad()
            with run.criterion.hold():
                total = run.criterion(run.model(inputs), targets)
            total.backward()
            evaluations.append(total.item())
            return total

        optimizer.step(closure)
        assert same(snapshot(run.criterion), state)
        assert len(evaluations) > 1 and evaluations[-1] < evaluations[0]
        assert run.criterion._window.step == step + 1
        history.append(run.weights())
    assert history[0] != history[1]


def test_end_epoch_takes_a_full_window_along() -> None:
    """A full pending window belongs to the epoch that ends; one that is not full goes on into the next."""
    run = Run({"name": "dwa"}, accumulate=2)
    run.call(4)
    run.criterion.end_epoch()
    expected = torch.stack([run.losses(seed) for seed in range(1, 5)]).mean(0)
    torch.testing.assert_close(run.criterion.outer.mean_last, expected, rtol=1e-12, atol=0)
    run.call(3)
    run.criterion.end_epoch()
    expected = torch.stack([run.losses(seed) for seed in (5, 6)]).mean(0)
    torch.testing.assert_close(run.criterion.outer.mean_last, expected, rtol=1e-12, atol=0)
    assert run.criterion._window.calls == 1


@pytest.mark.parametrize("outer", [name for name in REPRESENTATIVE if not quick(name).learnable])
@pytest.mark.parametrize(("option", "total"), [("1", 1.0), ("K", 2.0)])
def test_rescaled_keeps_the_ratios(outer: str, option: Any, total: float) -> None:
    """The stage changes the sum of the weights and nothing else, even with eval_weights="current"."""
    plain, scaled = Run(quick(outer)), Run(Rescaled(quick(outer), total=option), eval_weights="current")
    plain.call(4)
    scaled.call(4)
    left, right = np.array(plain.weights()), np.array(scaled.weights())
    np.testing.assert_allclose(right, total * left / left.sum(), rtol=1e-13)
    scaled.criterion.eval()
    value = scaled.call().item()
    np.testing.assert_allclose(value, (right * scaled.losses(scaled.seed).numpy()).sum(), rtol=1e-12)


def test_weights_that_sum_to_zero_are_left_alone() -> None:
    """rescaled does not divide by zero."""
    run = Run({"name": "rescaled", "base": {"name": "fixed", "weights": [1.0, -1.0]}, "total": "1"})
    run.call()
    assert run.weights() == [1.0, -1.0]


def test_log_dict_gives_means_since_the_last_call() -> None:
    """Means over the calls that had them: losses when labelled, norms when measured; empty afterwards, and past 64 calls."""
    run = Run({"name": "gaba", "warmup": 2})
    assert run.criterion.log_dict() == {}
    run.call(2)
    assert {key.split("/")[0] for key in run.criterion.log_dict()} == {"loss", "weight"}
    assert run.criterion.log_dict() == {}
    weights = []
    for _ in range(70):
        run.call()
        weights.append(run.weights())
    logged = run.criterion.log_dict()
    seeds = range(3, 73)
    losses = torch.stack([run.losses(seed) for seed in seeds]).mean(0)
    norms = torch.stack([run.jacobian(seed).norm(dim=1) for seed in seeds]).mean(0)
    for index, name in enumerate(KINDS):
        assert logged.pop(f"loss/{name}") == pytest.approx(float(losses[index]), rel=1e-12)
        assert logged.pop(f"norm/{name}") == pytest.approx(float(norms[index]), rel=1e-12)
        assert logged.pop(f"weight/{name}") == pytest.approx(float(np.mean(weights, 0)[index]), rel=1e-12)
    assert logged == {}


def test_log_dict_leaves_absent_calls_out() -> None:
    """A task's mean loss counts the calls in which it had a label."""
    run = Run("fixed")
    for values in ((2.0, 4.0), (4.0, None), (6.0, 8.0)):
        run.criterion.combine(tuple(None if value is None else torch.tensor(value, requires_grad=True) for value in values))
    logged = run.criterion.log_dict()
    assert logged["loss/a"] == 4.0 and logged["loss/b"] == 6.0


def test_log_survives_a_change_of_device() -> None:
    """Calls logged before a move to another device do not break the log after it."""
    run = Run("fixed")
    run.call(3)
    run.criterion.to("meta")
    for _ in range(70):
        run.criterion.combine((torch.ones((), device="meta", requires_grad=True), torch.ones((), device="meta")))
    assert run.criterion.report.losses.device.type == "meta"


def test_report_says_what_the_call_did() -> None:
    """The report has losses, weights, norms, flags and step of the last training call, all detached."""
    run = Run(quick("gaba"), every=2)
    assert run.criterion.report is None
    run.call(3)
    report = run.criterion.report
    assert report.tasks == ("a", "b") and report.step == 3
    torch.testing.assert_close(report.losses, run.losses(3), rtol=1e-13, atol=0)
    torch.testing.assert_close(report.norms, run.jacobian(3).norm(dim=1), rtol=1e-12, atol=0)
    assert report.active.tolist() == report.measured.tolist() == [True, True]
    assert report.dropped.tolist() == [0, 0] and report.cosines is None
    assert set(report.extra) == {"ema", "floor_active"}
    assert not any(value.requires_grad for value in (report.losses, report.weights, report.norms))
    run.call()
    assert run.criterion.report.norms is None
    assert run.criterion.report.measured.tolist() == [False, False]
    assert torch.equal(report.extra["ema"], run.criterion.report.extra["ema"])


def test_a_kept_report_does_not_change() -> None:
    """A report of an earlier call keeps its values while the criterion goes on."""
    for outer in OUTERS:
        run = Run(quick(outer))
        run.call(2)
        report = run.criterion.report
        kept = {key: value.clone() for key, value in vars(report).items() if isinstance(value, Tensor)}
        extra = {key: value.clone() for key, value in report.extra.items()}
        run.call(3)
        assert all(torch.equal(getattr(report, key), value) for key, value in kept.items())
        assert equal(dict(report.extra), extra)


def ended(run: Run, optimizer: torch.optim.Optimizer, total: Tensor) -> None:
    """All that may happen between a call and the next."""
    total.backward()
    optimizer.step()
    run.criterion.step()
    run.criterion.end_epoch()
    with run.criterion.hold():
        run.call()
    with torch.no_grad():
        run.call()
    run.criterion.state_dict()
    run.criterion.load_state_dict({**run.criterion.state_dict(), "_window.dropped": torch.tensor([7, 7])})


READ = ({}, {"accumulate": 2}, {"accumulate": "manual"}, {"every": 2}, {"probe": "lagged"})


@pytest.mark.parametrize(
    ("outer", "at"),
    tiered(
        (
            (outer, at)
            for outer in REPRESENTATIVE
            for at, options in enumerate(READ)
            if quick(outer).needs != "gramian" or "probe" not in options
        ),
        times=2,
    ),
)
def test_a_report_is_the_same_whenever_it_is_read(outer: str, at: int) -> None:
    """Read at once, or after a backward, an optimizer step, the end of a window and an epoch, a load: one report."""
    reports = []
    for late in (False, True):
        run = Run(quick(outer), **READ[at])
        groups = [{"params": run.model.parameters()}, *run.criterion.param_groups()]
        optimizer = torch.optim.SGD(groups, lr=0.1)
        for _ in range(6):
            total = run.call()
            early = None if late else run.criterion.report
            ended(run, optimizer, total)
            report = run.criterion.report
            assert late or report is early
            reports.append(report)
    for one, other in zip(reports[:6], reports[6:], strict=True):
        assert equal(vars(one), vars(other))


def test_a_report_read_in_inference_mode_is_an_ordinary_one() -> None:
    """What an evaluation loop reads first can be used in autograd later."""
    run = Run(quick("gaba"))
    run.call()
    with torch.inference_mode():
        report = run.criterion.report
    tensors = [value for value in (*vars(report).values(), *report.extra.values()) if isinstance(value, Tensor)]
    assert len(tensors) == 8 and not any(value.is_inference() for value in tensors)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda criterion: pickle.loads(pickle.dumps(criterion))])
def test_a_copy_has_the_report_and_the_counts(copied: Any) -> None:
    """A report that was not read before a copy is the copy's, too, as are the dropped values of the calls before."""
    run = Run("fixed")
    assert copied(run.criterion).report is None
    run.call()
    leaf = torch.ones((), dtype=f64, requires_grad=True)
    for factor in (1.0, torch.nan, torch.inf):
        run.criterion.combine((leaf * factor, leaf))
    twin = copied(run.criterion)
    assert equal(vars(twin.report), vars(run.criterion.report))
    assert twin.report.dropped.tolist() == [2, 0]
    for each in (twin, run.criterion):
        each.combine((leaf * torch.nan, leaf * torch.nan))
    assert twin.report.dropped.tolist() == run.criterion.report.dropped.tolist() == [3, 1]


def test_dropped_values_are_counted_before_they_are_saved() -> None:
    """The state holds the counts of all calls so far, read or not; a load replaces them as it does the rest."""
    criteria = [compose("dwa", tasks=["a", "b"]) for _ in range(2)]
    leaf = torch.ones((), requires_grad=True)
    for call in range(150):
        bad = torch.nan if call % 3 == 0 else 1.0
        criteria[0].combine((leaf * bad, (leaf if call % 2 else leaf.double()) * 2))
        criteria[1].combine((leaf, leaf * torch.inf))
        assert len(criteria[0]._journal._entries) < 64
    state = criteria[0].state_dict()
    assert state["_window.dropped"].tolist() == [50, 0]
    criteria[1].load_state_dict(state)
    for criterion in criteria:
        criterion.combine({"a": leaf * torch.nan, "b": None})
        assert criterion.report.dropped.tolist() == [51, 0]


class Still(OuterWeighting):
    """A weighting that does not move, and says so."""

    moves: ClassVar[bool] = False

    def forward(self, signals: Signals, /) -> Tensor:
        raise AssertionError("should not be called")


class Stirred(Still):
    """One that does, and derives from it."""

    def forward(self, signals: Signals, /) -> Tensor:
        return self.current + 1


@pytest.mark.parametrize("accumulate", [1, 2, "manual"])
def test_a_weighting_that_does_not_move_is_only_read(accumulate: Any) -> None:
    """Windows count on; a subclass that defines forward is called again."""
    still, stirred = (compose(each, tasks=list(KINDS), accumulate=accumulate) for each in (Still(), Stirred()))
    leaf = torch.ones((), requires_grad=True)
    for _ in range(4):
        for each in (still, stirred):
            each.combine((leaf * 1.0, leaf * 2.0))
    for each in (still, stirred):
        each.step()
    assert still._window.step == stirred._window.step == {1: 4, 2: 2, "manual": 1}[accumulate]
    assert still.outer.current.tolist() == [0.5, 0.5]
    assert stirred.outer.current.tolist() == [0.5 + stirred._window.step] * 2


@pytest.mark.parametrize(("outer", "bad", "accumulate"), pairwise(REPRESENTATIVE, [torch.nan, torch.inf], [1, 2]))
def test_a_non_finite_loss_reaches_the_user_and_never_the_state(outer: str, bad: float, accumulate: int) -> None:
    """The total is not finite, the state stays finite and as if the task had been absent, and the report counts it."""
    run, absent = (Run(quick(outer), accumulate=accumulate) for _ in range(2))
    for each in (run, absent):
        each.criterion = compose(quick(outer), tasks=list(KINDS), accumulate=accumulate, shared=each.model.trunk)
        each.call(4)
    for _ in range(3):  # with accumulate=2: a window of two bad calls, and one of a bad and a good call
        inputs, targets = run.batch()
        outputs = run.model(inputs)
        total = run.criterion({"a": outputs["a"], "b": outputs["b"] * bad}, targets)
        assert not bool(torch.isfinite(total))
        inputs, targets = absent.batch()
        absent.criterion(absent.model(inputs), {"a": targets["a"], "b": None})
    assert run.criterion.report.dropped.tolist() == [0, 3]
    assert run.criterion.report.active.tolist() == [True, False]
    for each in (run, absent):
        each.call(2)
        each.criterion.step()
    left, right = snapshot(run.criterion), snapshot(absent.criterion)
    left.pop("_window.dropped"), right.pop("_window.dropped")
    assert same(left, right)
    assert all(bool(torch.isfinite(value).all()) for value in left.values() if isinstance(value, Tensor))


def test_a_non_finite_gradient_is_dropped_and_counted() -> None:
    """A finite loss with a NaN gradient, as sqrt has it at 0, does not enter the state either."""
    run = Run({"name": "gaba", "warmup": 0, "beta": 0.5})
    run.call(2)
    ema = run.criterion.outer.ema.clone()
    inputs, targets = run.batch()
    outputs = run.model(inputs)
    loss = (outputs["b"] * 0).sum().sqrt()
    run.criterion.combine({"a": (outputs["a"] - targets["a"]).square().mean(), "b": loss})
    assert run.criterion.report.dropped.tolist() == [0, 1]
    assert torch.equal(run.criterion.outer.ema, ema)


def test_manual_warns_once_when_step_is_never_called() -> None:
    """1,000 calls without step() are worth one warning; 999, or with step(), are not."""
    run, stepped = Run("fixed", accumulate="manual"), Run("fixed", accumulate="manual")
    losses = torch.ones((), requires_grad=True), torch.ones((), requires_grad=True)
    for index in range(999):
        run.criterion.combine(losses)
        stepped.criterion.combine(losses)
        if index == 500:
            stepped.criterion.step()
    with pytest.warns(UserWarning, match=r"criterion\.step\(\) was not called in 1000 calls") as caught:
        run.criterion.combine(losses)
    assert len(caught) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(50):
            run.criterion.combine(losses)
            stepped.criterion.combine(losses)


class Lagged(Probe):
    """A probe that answers after the user's backward, from the gradients that arrive at the losses' weights."""

    provides: ClassVar[frozenset[Any]] = frozenset({"norms"})
    same_step: ClassVar[bool] = False

    def __init__(self) -> None:
        super().__init__()
        self.pending: Measurement | None = None
        self.coupled = 0

    def measure(self, tape: Tape, need: Any) -> Measurement | None:
        row = [torch.autograd.grad(loss, tape.shared_part().parameters, retain_graph=True) for loss in tape.losses]
        norms = torch.stack([torch.stack([part.norm() for part in parts]).norm() for parts in row])
        self.pending = Measurement(norms, None, (True,) * len(row))
        return None

    def couple(self, tape: Tape, weights: Tensor, total: Tensor) -> Tensor:
        self.coupled += 1
        return total

    def collect(self) -> Measurement | None:
        collected, self.pending = self.pending, None
        return collected


def test_a_lagged_probe_is_collected_in_the_next_forward() -> None:
    """A probe that cannot answer in the same step moves the weights one window later, by exactly the same statistics."""
    exact, lagged = Run(quick("gaba")), Run(quick("gaba"), probe=Lagged())
    expected = [0.5, 0.5]
    for _ in range(5):
        exact.call()
        lagged.call()
        np.testing.assert_allclose(lagged.weights(), expected, rtol=1e-12)
        expected = exact.weights()
    assert lagged.criterion.probe.coupled == 5
    assert exact.criterion.outer.ema.tolist() != [0.5, 0.5]


def test_what_a_commit_between_two_calls_collects_is_told_by_the_next() -> None:
    """Norms that step() collects from a lagged probe are in the next call's report and log, as a full window's are."""
    full, stepped = (Run(quick("gaba"), probe=Lagged()) for _ in range(2))
    for _ in range(3):
        full.call()
        stepped.call()
        norms = [run.criterion.report.norms for run in (full, stepped)]
        assert norms[0] is norms[1] is None or torch.equal(*norms)
        stepped.criterion.step()
    assert full.criterion.report.norms is not None
    assert stepped.criterion.log_dict() == full.criterion.log_dict()


def test_a_copy_made_under_hold_is_not_held() -> None:
    """A criterion that is copied or pickled within hold() trains on: nothing would ever release it."""
    criterion = compose("dwa")
    shared = torch.ones((), requires_grad=True)
    with criterion.hold():
        twins = copy.deepcopy(criterion), pickle.loads(pickle.dumps(criterion))
    for twin in twins:
        twin.combine({"a": shared * 1.0, "b": shared * 2.0})
        assert twin.report is not None
        assert twin.report.step == 1


def test_the_log_is_folded() -> None:
    """Calls between two reads of the log are summed up now and then, so that a run that never reads it stays small."""
    criterion = compose("fixed")
    shared = torch.ones((), requires_grad=True)
    for _ in range(200):
        criterion.combine({"a": shared * 1.0, "b": shared * 2.0})
    assert len(criterion._journal._entries) < 64
    assert criterion.log_dict() == {"loss/a": 1.0, "loss/b": 2.0, "weight/a": 0.5, "weight/b": 0.5}


def test_a_fully_masked_batch_is_an_error_in_the_first_call_only() -> None:
    """In mid-training a batch without any label gives 0 and moves nothing, also while some task was never labelled."""
    criterion = compose("fixed", missing="ignore", tasks=["a", "b"])
    nan = torch.full((4,), float("nan"))
    prediction = torch.ones(4, requires_grad=True)
    with pytest.raises(DataError, match="should have a valid label"):
        criterion((prediction, prediction), (nan, nan))
    criterion((prediction, prediction), (torch.full((4,), 3.0), nan))
    assert criterion((prediction, prediction), (nan, nan)).item() == 0.0


def test_explain_says_what_is_measured_and_when() -> None:
    """The text names tasks, shapes, the shared part and, in a warm-up, that nothing is measured yet; later the floor."""
    run = Run({"name": "gaba", "warmup": 1, "beta": 0.0, "floor": 0.49})
    assert "taken from the targets" in compose("gaba").explain()
    run.call()
    assert "but not in window" not in run.criterion.explain()
    waiting = Run({"name": "gaba", "warmup": 5})
    waiting.call()
    text = waiting.criterion.explain()
    for part in ("task    a: regression", "found on the graph", "private a:", "but not in window 1", "own statistics"):
        assert part in text
    run.call()
    assert "gradient norm" in run.criterion.explain()
    assert "at the floor" in run.criterion.explain()
    assert "no gradient is measured" in compose("fixed").explain()
    with pytest.raises(DataError, match=r"explain\(model\) needs a module or nothing\. Found 'x'"):
        run.criterion.explain(model="x")


def test_calls_per_step_change_between_windows_only() -> None:
    """``criterion.accumulate`` may be set while no window is pending, to what ``compose`` takes."""
    kinds = {"a": "regression", "b": "regression"}
    model, criterion = model_for(kinds), compose(quick("gaba"), tasks=list(kinds))
    inputs, targets = batch_for(kinds)
    criterion.accumulate = 2
    criterion(model(inputs), targets).backward()
    assert (criterion.accumulate, criterion._window.step, criterion._window.calls) == (2, 0, 1)
    with pytest.raises(StateError, match=r"cannot change within a window: 1 calls are pending"):
        criterion.accumulate = 4
    criterion.step()
    criterion.accumulate = 1
    with pytest.raises(OptionError, match="`accumulate`"):
        criterion.accumulate = 0
    criterion(model(inputs), targets).backward()
    assert criterion._window.step == 2


class Late(Probe):
    """Delivers at the commit, as a probe of somebody else may, and says nothing of what is dropped."""

    same_step: ClassVar[bool] = False

    def __init__(self) -> None:
        super().__init__()
        self.arrived: list[float] = []

    def measure(self, tape: Tape, need: Any) -> None:
        self.arrived.append(1.0)

    def collect(self) -> Measurement | None:
        arrived, self.arrived = self.arrived, []
        return Measurement(torch.tensor([len(arrived), 1.0]), None, (True, True)) if arrived else None


def test_a_dropped_window_leaves_nothing_in_a_probe_that_only_collects() -> None:
    """What arrived in a window that is dropped does not reach the next one."""
    kinds = {"a": "regression", "b": "regression"}
    probe = Late()
    criterion = compose(quick("gaba"), tasks=list(kinds), probe=probe)
    model, (inputs, targets) = model_for(kinds), batch_for(kinds)
    criterion(model(inputs), targets)
    criterion.step(skipped=True)
    assert (criterion._window.step, probe.arrived) == (0, [])
    criterion(model(inputs), targets)
    criterion.step()
    assert criterion.outer.weights()[0] == 0.5


LATER = [{"accumulate": 2}, {"accumulate": "manual"}, {"every": 2}, {"probe": "lagged"}]
FOR_LATER = [("inverse_norm", options) for options in LATER]
FOR_LATER += [({"name": "floor", "base": "inverse_norm"}, options) for options in LATER]
FOR_LATER += [("mgda", options) for options in LATER[:3]]
FOR_LATER += [("rlw", options) for options in LATER[:2]]


@pytest.mark.parametrize(("outer", "options"), FOR_LATER)
def test_a_task_that_was_absent_does_not_weigh_0_when_it_is_back(outer: Any, options: dict[str, Any]) -> None:
    """Weights that hold for later calls are for tasks that were absent when they were found, too: these keep what they had.

    With 0 a task that has labels in every other window would never be trained, and a lagged probe measures nothing then.
    """
    run, weights = Run(outer, **options), []
    for window in range(8):
        for _ in range(2 if "accumulate" in options else 1):
            inputs, targets = run.batch()
            run.criterion(run.model(inputs), {**targets, "b": None if window in (2, 4, 6) else targets["b"]}).backward()
        weights.append(run.weights())
        if options.get("accumulate") == "manual":
            run.criterion.step()
    for absent in (2, 4, 6):
        assert weights[absent + 1][1] == weights[absent][1] > 0
    if "every" not in options:
        assert len({of_b for _, of_b in weights}) == 5, "it should be weighed anew after each window in which it took part"
