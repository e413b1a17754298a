"""Accelerate's own loop with one more line equals the loop written by hand, on one rank and on two, and survives a stop."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState
from accelerate.tracking import GeneralTracker, on_main_process
from accelerate.utils import DistributedDataParallelKwargs, GradientAccumulationPlugin
from mtl_axes.adapters.accelerate import attach
from sampling import covering, pairwise
from spawning import on_ranks
from strategies import batch_for, equal, model_for, quick, snapshot
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from mtl_axes import MultiTaskCriterion, compose
from mtl_axes.errors import OptionError

KINDS = {"rul": "regression", "health": "multiclass"}
OUTERS = ("gaba", "gradnorm", "dwa", "uncertainty")
PROBES = ("exact", "representation", "lagged")
BATCHES, SIZE, LR = 7, 4, 0.05


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    yield
    forget()


def forget() -> None:
    """Accelerators of one process share their state; each run here begins with its own."""
    AcceleratorState._reset_state(True)
    GradientState._reset_state()


def dataset(batches: int = BATCHES) -> TensorDataset:
    inputs, targets = batch_for(KINDS, seed=0, size=SIZE * batches, scale=5.0)
    return TensorDataset(inputs, targets["rul"], targets["health"])


def criterion_for(outer: str, **options: Any) -> MultiTaskCriterion:
    weighting = quick(outer, window=None) if outer == "dwa" else quick(outer)
    return compose(weighting, "failure_biased", tasks=list(KINDS), **options)


class Run:
    """The loop that an Accelerate user has, with attach() after prepare()."""

    def __init__(
        self,
        outer: str,
        *,
        size: int = SIZE,
        data: TensorDataset | None = None,
        accelerator: dict[str, Any] | None = None,
        scaler: torch.amp.GradScaler | None = None,
        **options: Any,
    ) -> None:
        forget()
        self.accelerator = Accelerator(cpu=True, **(accelerator or {}))
        if scaler is not None:  # Accelerate has fp16 on accelerators only; these are its two switches
            self.accelerator.scaler, self.accelerator.native_amp = scaler, True
        model = model_for(KINDS)
        self.criterion = criterion_for(outer, **options)
        optimizer = torch.optim.AdamW([{"params": list(model.parameters())}, *self.criterion.param_groups()], lr=LR)
        scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
        batches = DataLoader(dataset() if data is None else data, batch_size=size)
        self.model, self.optimizer, self.batches, self.scheduler = self.accelerator.prepare(
            model, optimizer, batches, scheduler
        )
        attach(self.accelerator, self.criterion, self.optimizer)
        self.weights: list[list[float]] = []

    def epochs(self, count: int, *, begin: int = 0, stop: int | None = None) -> None:
        """Train; the first epoch begins at a batch, the last may stop after some."""
        for epoch in range(count):
            here = self.accelerator.skip_first_batches(self.batches, begin) if epoch == 0 and begin else self.batches
            for number, batch in enumerate(here):
                self.batch(*batch)
                if epoch == count - 1 and number + 1 == stop:
                    return
            self.criterion.end_epoch()

    def batch(self, inputs: torch.Tensor, rul: torch.Tensor, health: torch.Tensor) -> None:
        with self.accelerator.accumulate(self.model):
            loss = self.criterion(self.model(inputs), {"rul": rul, "health": health})
            self.accelerator.backward(loss)
            if self.accelerator.sync_gradients:
                self.accelerator.clip_grad_norm_(self.model.parameters(), 1.0)
            self.optimizer.step()
            self.scheduler.step()
            self.optimizer.zero_grad()
        self.weights.append(self.criterion.report.weights.tolist())

    def parameters(self) -> list[nn.Parameter]:
        return [parameter for group in self.optimizer.param_groups for parameter in group["params"]]

    def state(self) -> dict[str, Any]:
        return {
            "model": snapshot(self.accelerator.unwrap_model(self.model)),
            "criterion": snapshot(self.criterion),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
        }


def by_hand(outer: str, epochs: int, steps: int, *, over_epochs: bool = False, **options: Any) -> dict[str, Any]:
    """The same without Accelerate and without the adapter. Accelerate divides by ``steps`` in a shorter window, too."""
    model = model_for(KINDS)
    criterion = criterion_for(outer, accumulate="manual" if steps > 1 else 1, **options)
    optimizer = torch.optim.AdamW([{"params": list(model.parameters())}, *criterion.param_groups()], lr=LR)
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
    calls = 0
    for _ in range(epochs):
        for number, (inputs, rul, health) in enumerate(DataLoader(dataset(), batch_size=SIZE), 1):
            (criterion(model(inputs), {"rul": rul, "health": health}) / steps).backward()
            calls += 1
            if calls == steps or (number == BATCHES and not over_epochs):
                nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                criterion.step()
                scheduler.step()
                optimizer.zero_grad()
                calls = 0
        criterion.end_epoch()
    return {
        "model": snapshot(model),
        "criterion": snapshot(criterion),
        "optimizer": optimizer.state_dict(),
        "scheduler": scheduler.state_dict(),
    }


@pytest.mark.parametrize(("outer", "steps", "probe"), pairwise(OUTERS, [1, 3], PROBES))
def test_the_loop_equals_one_by_hand(outer: str, steps: int, probe: str) -> None:
    """Model, criterion, optimizer and scheduler agree bit for bit, the last window of each epoch being shorter."""
    run = Run(outer, probe=probe, accelerator={"gradient_accumulation_steps": steps})
    assert run.criterion.accumulate == steps
    run.epochs(3)
    found, expected = run.state(), by_hand(outer, 3, steps, probe=probe)
    for part in expected:
        assert equal(found[part], expected[part]), part
    assert run.criterion._window.step == 3 * (7 if steps == 1 else 3)
    assert len({tuple(weights) for weights in run.weights}) > 1, "the weights should move"


def test_windows_may_span_epochs() -> None:
    """Without sync_with_dataloader an epoch's last batches wait for the next epoch, in the criterion, too."""
    plugin = GradientAccumulationPlugin(num_steps=3, sync_with_dataloader=False)
    run = Run("gaba", accelerator={"gradient_accumulation_plugin": plugin})
    run.epochs(2)
    assert (run.criterion._window.step, run.criterion._window.calls) == (4, 2)
    assert equal(run.state()["criterion"], by_hand("gaba", 2, 3, over_epochs=True)["criterion"])


@pytest.mark.parametrize("outer", ["fixed", "uncertainty", "dwa"])
def test_two_small_batches_are_one_large_batch(outer: str) -> None:
    """Three epochs with 2 x 4 samples per step leave the model that 1 x 8 leaves."""
    found = []
    for steps, size in ((1, 8), (2, 4)):
        run = Run(outer, size=size, data=dataset(6), accelerator={"gradient_accumulation_steps": steps})
        run.epochs(3)
        found.append(snapshot(run.model))
    for name, value in found[0].items():
        torch.testing.assert_close(found[1][name], value, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("steps", [1, 2])
@pytest.mark.parametrize("probe", PROBES)
def test_a_skipped_step_drops_its_window(steps: int, probe: str) -> None:
    """fp16: what a window saw whose step the scaler skipped is forgotten, except where the call itself committed it."""
    first_overflows = torch.amp.GradScaler("cpu", init_scale=2.0**126, backoff_factor=2.0**-116)
    fp16 = {"mixed_precision": "fp16", "gradient_accumulation_steps": steps}
    run = Run("gaba", probe=probe, scaler=first_overflows, accelerator=fp16)
    batches = list(run.batches)
    for batch in batches[:steps]:
        run.batch(*batch)
    assert run.accelerator.optimizer_step_was_skipped
    pending = steps > 1 or probe == "lagged"
    assert (run.criterion._window.step, run.criterion._window.calls) == (0 if pending else 1, 0)
    for batch in batches[steps : 3 * steps]:
        run.batch(*batch)
    assert not run.accelerator.optimizer_step_was_skipped
    assert run.criterion._window.step == (2 if pending else 3)

    other = Run("gaba", probe=probe, scaler=torch.amp.GradScaler("cpu", init_scale=2.0**10), accelerator=fp16)
    for batch in batches[steps : 3 * steps]:
        other.batch(*batch)
    assert equal(snapshot(run.model), snapshot(other.model)) == pending
    assert equal(run.criterion.outer.state_dict(), other.criterion.outer.state_dict()) == pending


@pytest.mark.parametrize(("outer", "probe"), [*((outer, "exact") for outer in OUTERS), *(("gaba", p) for p in PROBES[1:])])
def test_bf16_keeps_a_wide_state_and_the_weights(outer: str, probe: str) -> None:
    """Under bf16 the weights are those of float32 within a few percent, and the state stays in float32."""
    weights = []
    for precision in ("no", "bf16"):
        run = Run(outer, probe=probe, accelerator={"mixed_precision": precision})
        run.epochs(3)
        weights.append(torch.tensor(run.weights))
    states = (*run.criterion.buffers(), *run.criterion.parameters())
    assert {state.dtype for state in states if state.is_floating_point()} == {torch.float32}
    assert not torch.equal(*weights)
    torch.testing.assert_close(*weights, rtol=0.05, atol=0.02)


@pytest.mark.parametrize(
    ("outer", "steps", "stop"), [(outer, *at) for outer, at in covering(product(OUTERS, [(1, 3), (2, 4), (2, 3)]))]
)
def test_a_resumed_run_is_the_uninterrupted_run(outer: str, steps: int, stop: int, tmp_path: Path) -> None:
    """Saved in the second epoch and loaded before the first call, it goes on bit for bit, also from within a window.

    Accelerate saves no gradients, so within a window the test carries them over.
    """
    options = {"accelerator": {"gradient_accumulation_steps": steps}}
    first = Run(outer, **options)
    first.epochs(2, stop=stop)
    first.accelerator.save_state(tmp_path)
    gradients = [
        None if p.grad is None else p.grad.clone() for group in first.optimizer.param_groups for p in group["params"]
    ]
    assert any(gradient is not None for gradient in gradients) == bool(stop % steps)
    assert torch.load(tmp_path / "custom_checkpoint_0.pkl", weights_only=True)["_extra_state"]["tasks"] == list(KINDS)
    first.weights.clear()
    first.epochs(1, begin=stop)
    first.epochs(1)

    second = Run(outer, **options)
    second.accelerator.load_state(tmp_path)
    for parameter, gradient in zip(second.parameters(), gradients, strict=True):
        parameter.grad = gradient
    second.epochs(1, begin=stop)
    second.epochs(1)
    assert first.weights == second.weights
    assert equal(first.state(), second.state())


def test_what_is_logged_reaches_a_tracker() -> None:
    """accelerator.log takes log_dict() as it is."""

    class Memory(GeneralTracker):
        name, requires_logging_directory, tracker = "memory", False, None

        def __init__(self) -> None:
            super().__init__()
            self.rows: list[tuple[int | None, dict[str, float]]] = []

        def store_init_configuration(self, values: dict[str, Any]) -> None:
            self.config = values

        @on_main_process
        def log(self, values: dict[str, float], step: int | None, **kwargs: Any) -> None:
            self.rows.append((step, values))

    memory = Memory()
    run = Run("gaba", accelerator={"log_with": memory})
    run.accelerator.init_trackers("run", config=run.criterion.config())
    run.epochs(1)
    run.accelerator.log(run.criterion.log_dict(), step=7)
    assert memory.config["outer"]["name"] == "gaba"
    ((step, row),) = memory.rows
    assert step == 7
    assert set(row) == {f"{kind}/{task}" for kind in ("loss", "weight", "norm") for task in KINDS}
    assert row["weight/rul"] == pytest.approx(torch.tensor(run.weights)[:, 0].mean().item())


def test_a_scheduler_may_be_built_on_the_prepared_optimizer() -> None:
    """A torch scheduler wraps optimizer.step as a method; the windows still commit."""
    run = Run("gaba", accelerator={"gradient_accumulation_steps": 2})
    run.scheduler = torch.optim.lr_scheduler.ExponentialLR(run.optimizer, 0.9)
    run.epochs(1)
    assert run.criterion._window.step == 4


def parts(outer: str, **options: Any) -> tuple[Accelerator, MultiTaskCriterion, torch.optim.Optimizer]:
    criterion, model = criterion_for(outer, **options), model_for(KINDS)
    groups = [{"params": list(model.parameters())}, *criterion.param_groups()]
    return Accelerator(cpu=True, gradient_accumulation_steps=2), criterion, torch.optim.SGD(groups, lr=0.1)


def test_several_calls_per_batch_are_composed_as_manual() -> None:
    """accumulate="manual" stays: the optimizer's steps commit, whatever the number of calls."""
    run = Run("gaba", accumulate="manual", accelerator={"gradient_accumulation_steps": 2})
    run.epochs(1)
    assert run.criterion.accumulate == "manual"
    assert (run.criterion._window.step, run.criterion._window.calls) == (4, 0)


@pytest.mark.parametrize(("before", "after"), [(2, 4), (4, 2), (1, 4), (4, 1)])
@pytest.mark.parametrize("probe", ["exact", "lagged"])
def test_a_changed_number_of_steps_is_followed(before: int, after: int, probe: str) -> None:
    """From the next window on, and before the first: every optimizer step is one window."""
    run = Run("gaba", data=dataset(8), probe=probe, accelerator={"gradient_accumulation_steps": before})
    run.accelerator.gradient_accumulation_steps = after
    run.epochs(1)
    assert (run.criterion._window.step, run.criterion._window.calls) == (8 // after, 0)
    expected = Run("gaba", data=dataset(8), probe=probe, accelerator={"gradient_accumulation_steps": after})
    expected.epochs(1)
    assert run.weights == expected.weights
    expected.accelerator.gradient_accumulation_steps = before
    expected.epochs(1)
    assert (expected.criterion._window.step, expected.criterion._window.calls) == (8 // after + 8 // before, 0)


def test_a_second_call_is_refused() -> None:
    """It would be saved twice, and the optimizer's step wrapped twice."""
    run = Run("gaba")
    with pytest.raises(OptionError, match=r"already attached to this accelerator\. Drop the second call"):
        attach(run.accelerator, run.criterion, run.optimizer)


@pytest.mark.parametrize("prepared", [False, True])
def test_what_is_no_criterion_is_refused(prepared: bool) -> None:
    """The text names what was found, prepared or not."""
    accelerator, _, optimizer = parts("gaba")
    model, optimizer = model_for(KINDS), accelerator.prepare(optimizer)
    if prepared:
        model = accelerator.prepare(model)
    with pytest.raises(OptionError, match=rf"should come from compose\(\). Found {type(model).__name__}"):
        attach(accelerator, model, optimizer)


def test_a_prepared_criterion_is_refused() -> None:
    """prepare() would wrap the criterion in DDP and save it as a model."""
    accelerator, criterion, optimizer = parts("uncertainty")
    criterion, optimizer = accelerator.prepare(criterion, optimizer)
    with pytest.raises(OptionError, match=r"a prepared MultiTaskCriterion: accelerator.prepare\(\) wraps"):
        attach(accelerator, criterion, optimizer)


def test_an_optimizer_that_was_not_prepared_is_refused() -> None:
    """A plain optimizer does not know when gradients synchronise."""
    with pytest.raises(OptionError, match=r"accelerator.prepare\(\) returned. Found SGD"):
        attach(*parts("gaba"))


def test_parameters_that_nothing_moves_are_refused() -> None:
    """A learnable weighting whose parameters are in no optimizer would stand still."""
    accelerator, criterion, _ = parts("uncertainty")
    optimizer = accelerator.prepare(torch.optim.SGD(model_for(KINDS).parameters(), lr=0.1))
    with pytest.raises(OptionError, match=r"lacks the parameters of Uncertainty.* Add criterion.param_groups\(\)"):
        attach(accelerator, criterion, optimizer)


def test_two_ways_to_accumulate_are_refused() -> None:
    """The criterion was composed for windows that the accelerator does not have."""
    accelerator, criterion, optimizer = parts("gaba", accumulate=4)
    with pytest.raises(OptionError, match=r"accumulate=4\) contradicts .*gradient_accumulation_steps=2\. Leave"):
        attach(accelerator, criterion, accelerator.prepare(optimizer))


def test_without_accelerate_the_extra_is_named() -> None:
    """Importing the adapter where accelerate is not installed says what to install."""
    script = "import sys; sys.modules['accelerate'] = None; import mtl_axes.adapters.accelerate"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert 'ImportError: mtl_axes.adapters.accelerate needs accelerate: pip install "mtl_axes[accelerate]"' in done.stderr


# Two processes

RANKED = [*((outer, "exact") for outer in OUTERS), ("gaba", "representation"), ("gaba", "lagged")]


def rank_of_two(rank: int, folder: str) -> dict[str, Any]:
    """Train with DDP on this rank's part of the data; save after the first epoch, train on, resume in fresh objects."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "unused", "MASTER_PORT": "0"}  # Accelerate asks for them; the store needs none
    result: dict[str, Any] = {}
    for outer, probe in RANKED:
        for unused in (False, True):
            options: dict[str, Any] = {
                "kwargs_handlers": [DistributedDataParallelKwargs(find_unused_parameters=unused)],
                "gradient_accumulation_steps": 2,
            }
            run = Run(outer, data=dataset(10), probe=probe, accelerator=options)
            assert isinstance(run.model, nn.parallel.DistributedDataParallel)
            run.epochs(1)
            run.accelerator.save_state(f"{folder}/{outer}-{probe}-{unused}")
            saved = run.state()
            run.weights.clear()
            run.epochs(1)
            again = Run(outer, data=dataset(10), probe=probe, accelerator=options)
            again.accelerator.load_state(f"{folder}/{outer}-{probe}-{unused}")
            again.epochs(1)
            losses = run.criterion.log_dict()["loss/rul"]
            result[f"{outer} {probe} {unused}"] = {
                "saved": saved,
                "through": run.state(),
                "resumed": again.state(),
                "weights": run.weights,
                "losses": losses,
            }
    return result


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]]]:
    """The folder of the checkpoints, and what each of two processes ended with."""
    folder = tmp_path_factory.mktemp("ranks")
    return folder, on_ranks(rank_of_two, folder, 2, str(folder))


def without_own_counts(state: dict[str, Any]) -> dict[str, Any]:
    """A run's state without what each rank counts for itself."""
    return {**state, "criterion": {k: v for k, v in state["criterion"].items() if not k.endswith("dropped")}}


@pytest.mark.slow
@pytest.mark.parametrize(("outer", "probe"), RANKED)
@pytest.mark.parametrize("unused", [False, True])
def test_two_ranks_hold_the_same(ranks: tuple[Path, list[dict[str, Any]]], outer: str, probe: str, unused: bool) -> None:
    """On different data both ranks have the same weights, model, optimizer, criterion state and learnable parameters."""
    first, second = (rank[f"{outer} {probe} {unused}"] for rank in ranks[1])
    assert first["losses"] != second["losses"], "the ranks should see different data"
    assert first["weights"] == second["weights"]
    assert len({tuple(weights) for weights in first["weights"]}) > (1 if outer != "dwa" else 0)
    assert equal(without_own_counts(first["through"]), without_own_counts(second["through"]))


@pytest.mark.slow
@pytest.mark.parametrize(("outer", "probe"), RANKED)
@pytest.mark.parametrize("unused", [False, True])
def test_two_ranks_resume(ranks: tuple[Path, list[dict[str, Any]]], outer: str, probe: str, unused: bool) -> None:
    """What the main process saved resumes both ranks bit for bit."""
    for rank in ranks[1]:
        run = rank[f"{outer} {probe} {unused}"]
        assert equal(run["resumed"], run["through"])


@pytest.mark.slow
@pytest.mark.parametrize("outer", OUTERS)
def test_one_rank_takes_over_from_two(ranks: tuple[Path, list[dict[str, Any]]], outer: str) -> None:
    """A checkpoint of two ranks loads into one, before its first call."""
    folder, (first, _) = ranks
    run = Run(outer, accelerator={"gradient_accumulation_steps": 2})
    run.accelerator.load_state(folder / f"{outer}-exact-False")
    assert equal(snapshot(run.criterion), first[f"{outer} exact False"]["saved"]["criterion"])
    run.epochs(1)
    assert run.criterion._window.step == 3 + 4
