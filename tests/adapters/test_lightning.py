"""Lightning and Fabric: a run in the trainer is the run of a plain loop, on one process or two, resumed or not."""

from __future__ import annotations

import csv
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import limits
import pytest
import torch
from sampling import covering, pairwise
from spawning import on_ranks
from strategies import batch_for, equal, model_for, quick, same, snapshot
from torch import Tensor, nn

from mtl_axes import MultiTaskCriterion, compose
from mtl_axes.errors import GraphError, OptionError, StateError
from mtl_axes.history import History

pl = pytest.importorskip("lightning.pytorch")
from lightning.fabric import Fabric  # noqa: E402
from lightning.fabric.plugins import MixedPrecision as FabricMixedPrecision  # noqa: E402
from lightning.pytorch.callbacks import GradientAccumulationScheduler, ModelCheckpoint  # noqa: E402
from lightning.pytorch.loggers import CSVLogger  # noqa: E402
from lightning.pytorch.plugins import MixedPrecision  # noqa: E402
from lightning.pytorch.tuner import Tuner  # noqa: E402
from mtl_axes.adapters.lightning import MultiTaskCallback  # noqa: E402

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*isinstance\\(treespec, LeafSpec\\):FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty"),
]
logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
logging.getLogger("lightning.fabric").setLevel(logging.ERROR)

KINDS = {"rul": "regression", "health": "multiclass"}
BATCHES = [batch_for(KINDS, seed=seed) for seed in range(7)]
OUTERS = ("gaba", "dwa", "gradnorm", "uncertainty")
PROBES = ("exact", "representation", "lagged")
CRITERIA = [*((outer, "exact") for outer in OUTERS), ("gaba", "representation"), ("gradnorm", "lagged")]
RANKS = 2

Batch = tuple[Tensor, dict[str, Tensor]]


class Loader:
    """The batches in order; it remembers its position, which Lightning saves and restores."""

    def __init__(self, batches: list[Batch]) -> None:
        self.batches, self.position = batches, 0

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Batch]:
        # Nobody asks for more than there are, so that the end of an epoch is only seen at the next one.
        self.position %= len(self.batches)
        while self.position < len(self.batches):
            self.position += 1
            yield self.batches[self.position - 1]

    def state_dict(self) -> dict[str, int]:
        return {"position": self.position}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.position = state["position"]


def criterion_for(outer: str, **options: Any) -> MultiTaskCriterion:
    """A criterion that moves within an epoch; only a learnable weighting knows its tasks before the first call."""
    weighting = quick(outer, **({"window": None} if outer == "dwa" else {}))
    return compose(weighting, "failure_biased", tasks=list(KINDS) if weighting.learnable else None, **options)


class Net(pl.LightningModule):
    """A trunk and two heads; the criterion is a submodule."""

    def __init__(self, criterion: MultiTaskCriterion | None = None) -> None:
        super().__init__()
        self.net = model_for(KINDS)
        self.criterion = criterion_for("gaba") if criterion is None else criterion
        self.losses: list[Tensor] = []

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        loss: Tensor = self.criterion(self.net(batch[0]), batch[1])
        self.losses.append(self.criterion.report.losses)
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self.log("val_loss", self.criterion(self.net(batch[0]), batch[1]), batch_size=8)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        groups = [{"params": self.net.parameters()}, *self.criterion.param_groups(lr=0.05)]
        return torch.optim.AdamW(groups, lr=1e-2, weight_decay=0.1)


class Manual(Net):
    """Steps its optimizer itself, in every second batch."""

    def __init__(self, criterion: MultiTaskCriterion) -> None:
        super().__init__(criterion)
        self.automatic_optimization = False

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        self.manual_backward(super().training_step(batch, batch_idx) / 2)
        if batch_idx % 2 or batch_idx == len(BATCHES) - 1:
            self.optimizers().step()
            self.optimizers().zero_grad()


class Closed(Net):
    """An optimizer that evaluates its closure several times per step."""

    def __init__(self, criterion: MultiTaskCriterion) -> None:
        super().__init__(criterion)
        self.weights: list[Tensor] = []

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        loss = super().training_step(batch, batch_idx)
        self.weights.append(self.criterion.outer.weights().clone())
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.LBFGS(self.net.parameters(), lr=0.1, max_iter=4)


def trainer_for(*callbacks: Any, **options: Any) -> Any:
    """A quiet trainer on the CPU."""
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    saves = any(isinstance(callback, ModelCheckpoint) for callback in callbacks)
    return pl.Trainer(
        **{
            "accelerator": "cpu",
            "devices": 1,
            "max_epochs": 2,
            "log_every_n_steps": 2,
            "enable_checkpointing": saves,
            **quiet,
            **options,
        },
        callbacks=[*callbacks, MultiTaskCallback()],
    )


def fit(module: Any, trainer: Any, loader: Any = None, **options: Any) -> Any:
    """Train on the batches, with a validation before the first step and after every epoch."""
    validation = torch.utils.data.DataLoader(BATCHES[:2], batch_size=None)
    trainer.fit(module, Loader(BATCHES) if loader is None else loader, validation, **options)
    return trainer


def plain(module: Net, sizes: list[int], *, clip: float | None = None, skipped: tuple[int, ...] = ()) -> Net:
    """The same training as a plain loop: one entry per epoch, the calls per optimizer step."""
    optimizer, step = module.configure_optimizers(), 0
    for size in sizes:
        if module.criterion.accumulate != "manual":
            module.criterion.accumulate = size
        for number, (inputs, targets) in enumerate(BATCHES):
            (module.criterion(module.net(inputs), targets) / size).backward()
            if (number + 1) % size and number + 1 < len(BATCHES):
                continue
            if clip is not None:
                torch.nn.utils.clip_grad_norm_(module.parameters(), clip)
            if step not in skipped:
                optimizer.step()
            optimizer.zero_grad()
            module.criterion.step(skipped=step in skipped)
            step += 1
        module.criterion.end_epoch()
    return module


def moved(criterion: MultiTaskCriterion) -> bool:
    """Whether its weights have left those of the start."""
    weights = criterion.outer.weights().detach()
    return bool((weights[0] - weights[1]).abs() > 1e-3)


@pytest.mark.parametrize(
    ("outer", "probe", "accumulate"), [(*criterion, steps) for criterion, steps in covering(product(CRITERIA, [1, 2]))]
)
def test_a_run_is_that_of_a_plain_loop(outer: str, probe: str, accumulate: int) -> None:
    """Parameters and state equal those of a plain loop: validation moves nothing, the short last window commits."""
    module, reference = (Net(criterion_for(outer, probe=probe)) for _ in range(2))
    fit(module, trainer_for(accumulate_grad_batches=accumulate, max_epochs=3, gradient_clip_val=0.5))
    assert same(snapshot(module), snapshot(plain(reference, [accumulate] * 3, clip=0.5)))
    assert moved(module.criterion)


def test_accumulation_may_change_between_epochs() -> None:
    """The criterion follows a GradientAccumulationScheduler, in whatever order the callbacks are given."""
    module = Net()
    fit(module, trainer_for(GradientAccumulationScheduler({0: 2, 1: 1, 2: 3}), max_epochs=3))
    assert same(snapshot(module), snapshot(plain(Net(), [2, 1, 3])))


@pytest.mark.parametrize(("outer", "probe"), CRITERIA)
def test_manual_optimization_is_that_of_a_plain_loop(outer: str, probe: str) -> None:
    """With accumulate="manual" a window ends with the batch in which the module stepped its optimizer."""
    module = Manual(criterion_for(outer, probe=probe, accumulate="manual"))
    fit(module, trainer_for())
    assert same(snapshot(module), snapshot(plain(Net(criterion_for(outer, probe=probe, accumulate="manual")), [2, 2])))
    assert moved(module.criterion) or outer == "dwa"


@pytest.mark.parametrize("probe", PROBES)
def test_a_closure_that_is_evaluated_again_is_recorded_once(probe: str) -> None:
    """LBFGS moves the weighting once per step, and sees one set of weights within a step."""
    module = Closed(criterion_for("gaba", probe=probe))
    fit(module, trainer_for(max_epochs=1))
    evaluations = len(module.weights) // len(BATCHES)
    assert evaluations > 1
    assert module.criterion._window.step == len(BATCHES)
    distinct = {tuple(weights.tolist()) for weights in module.weights}
    assert len(distinct) == len(BATCHES)


@pytest.mark.parametrize(
    ("precision", "probe", "accumulate"), pairwise(["bf16-mixed", "bf16-true", "64-true"], PROBES, [1, 2])
)
def test_precisions(precision: str, probe: str, accumulate: int) -> None:
    """Every probe measures in every precision; the weights are near those of float32, the state is float32 or wider."""
    module, reference = Net(criterion_for("gaba", probe=probe)), Net(criterion_for("gaba", probe=probe))
    fit(module, trainer_for(precision=precision, accumulate_grad_batches=accumulate))
    plain(reference, [accumulate] * 2)
    weights = module.criterion.outer.weights()
    assert weights.dtype == (torch.float64 if precision == "64-true" else torch.float32)
    torch.testing.assert_close(weights.float(), reference.criterion.outer.weights(), rtol=0.05, atol=0.02)
    assert moved(module.criterion)


@pytest.mark.parametrize(
    ("probe", "accumulate", "windows"),
    [("exact", 1, 7), ("exact", 2, 3), ("representation", 2, 3), ("lagged", 1, 6)],
)
def test_a_step_that_the_scaler_skips_drops_its_window(probe: str, accumulate: int, windows: int) -> None:
    """An overflow of fp16 gradients drops what is pending; with a same-step probe and no accumulation nothing is."""

    class Overflowing(Net):
        def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
            return super().training_step(batch, batch_idx) * (torch.inf if batch_idx == 2 else 1.0)

    module = Overflowing(criterion_for("gaba", probe=probe))
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    trainer = trainer_for(
        plugins=[MixedPrecision("16-mixed", device="cpu", scaler=scaler)], accumulate_grad_batches=accumulate, max_epochs=1
    )
    fit(module, trainer)
    assert scaler.get_scale() == 512.0
    assert module.criterion._window.step == windows
    assert all(bool(value.isfinite().all()) for value in module.state_dict().values() if isinstance(value, Tensor))


class Save(pl.Callback):
    """Saves after a batch, counted over all epochs."""

    def __init__(self, path: Path, batch: int) -> None:
        self.path, self.batch = path, batch

    def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
        if trainer.fit_loop.epoch_loop.total_batch_idx + 1 == self.batch:
            trainer.save_checkpoint(self.path)


WHEN = {
    "in mid-epoch": {"every_n_train_steps": 3},
    "after the last batch of an epoch": {"every_n_train_steps": 7},
    "after the validation of an epoch": {"save_on_train_epoch_end": False, "monitor": "val_loss"},
    "at the end of an epoch": {"save_on_train_epoch_end": True},
}


@pytest.mark.parametrize(("outer", "when"), covering(product(OUTERS, WHEN)))
def test_a_resumed_run_is_the_uninterrupted_run(tmp_path: Path, outer: str, when: str) -> None:
    """Resumed from its first checkpoint, before the first call and with weights_only=True, a run ends bit for bit alike."""
    through = Net(criterion_for(outer))

    def trainer() -> Any:
        saving = ModelCheckpoint(dirpath=tmp_path, filename="{step}", save_top_k=-1, **WHEN[when])
        return trainer_for(saving, max_epochs=3)

    ended = fit(through, trainer())
    first = min(tmp_path.glob("*.ckpt"), key=lambda path: int(path.stem.partition("=")[2]))
    again = Net(criterion_for(outer))
    resumed = fit(again, trainer(), ckpt_path=first, weights_only=True)
    assert resumed.global_step == ended.global_step
    assert same(snapshot(through), snapshot(again))
    assert equal(ended.optimizers[0].state_dict()["state"], resumed.optimizers[0].state_dict()["state"])
    assert moved(again.criterion)


@pytest.mark.parametrize("probe", ["exact", "lagged"])
def test_a_pending_window_is_saved(tmp_path: Path, probe: str) -> None:
    """A checkpoint in mid-window holds the window, which goes on under the trainer's number, without its gradients."""

    class Frozen(Net):
        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.net.parameters(), lr=0.0)

    def run(*callbacks: Any, **options: Any) -> Frozen:
        module = Frozen(criterion_for("gaba", probe=probe))
        fit(module, trainer_for(*callbacks, accumulate_grad_batches=3), **options)
        return module

    through = run(Save(tmp_path / "saved.ckpt", 5))
    saved = torch.load(tmp_path / "saved.ckpt", weights_only=True)["state_dict"]
    assert saved["criterion._window._extra_state"] == {"step": 1, "calls": 2, "answered": 0}
    again = run(ckpt_path=tmp_path / "saved.ckpt", weights_only=True)
    assert same(snapshot(through), snapshot(again))


def test_the_loggers_see_means_by_task(tmp_path: Path) -> None:
    """Every log_every_n_steps the loggers get losses, weights and norms by task: means since the last time."""
    module = Net()
    fit(module, trainer_for(logger=CSVLogger(tmp_path), max_epochs=1))
    with open(next(tmp_path.rglob("metrics.csv"))) as file:
        rows = [row for row in csv.DictReader(file) if row["loss/rul"]]
    assert [row["step"] for row in rows] == ["1", "3", "5"]
    for row, first in zip(rows, (0, 2, 4), strict=True):
        mean = torch.stack(module.losses[first : first + 2]).mean(0)
        assert [float(row[f"loss/{name}"]) for name in KINDS] == pytest.approx(mean.tolist())
        assert sum(float(row[f"weight/{name}"]) for name in KINDS) == pytest.approx(1.0)
        assert all(float(row[f"norm/{name}"]) > 0 for name in KINDS)


@pytest.mark.parametrize("probe", PROBES)
def test_norms_are_logged_whatever_the_probe(probe: str) -> None:
    """A lagged probe's norms reach the log too, though a commit between two calls collects them; and what a history adds."""
    criterion = criterion_for("gaba", probe=probe)
    History(criterion)
    metrics = fit(Net(criterion), trainer_for(accumulate_grad_batches=2)).callback_metrics
    assert {"norm/rul", "norm/health", "share/rul", "floor/health", "skipped"} <= set(metrics)


def test_several_criteria_are_kept_apart() -> None:
    """With several criteria in a module, metrics carry their names."""

    class Twice(Net):
        def __init__(self) -> None:
            super().__init__()
            self.aux = criterion_for("dwa")

        def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
            outputs = self.net(batch[0])
            return self.criterion(outputs, batch[1]) + self.aux(outputs, batch[1])

    module = Twice()
    metrics = fit(module, trainer_for(accumulate_grad_batches=2)).callback_metrics
    assert {"criterion/loss/rul", "criterion/norm/rul", "aux/loss/rul", "aux/weight/health"} <= set(metrics)
    assert module.aux._window.step == module.criterion._window.step == 8


def test_a_criterion_is_given_back_as_it_was_composed() -> None:
    """After a run, also one that failed, the criterion has its own number again and is not held."""

    class Failing(Net):
        def on_before_optimizer_step(self, optimizer: Any) -> None:
            raise RuntimeError("interrupted")

    module = Net()
    fit(module, trainer_for(accumulate_grad_batches=2))
    assert module.criterion.accumulate == 1
    fit(module, trainer_for(accumulate_grad_batches=3))  # a second run may do otherwise
    assert module.criterion._window.step == 8 + 6
    failing = Failing()
    with pytest.raises(RuntimeError, match="interrupted"):
        fit(failing, trainer_for(accumulate_grad_batches=2))
    assert failing.criterion.accumulate == 1
    before = failing.criterion._window.step
    failing.criterion.train()(failing.net(BATCHES[0][0]), BATCHES[0][1])
    assert failing.criterion._window.step == before + 2, "the pending window and the call's own"


def test_a_skipped_rest_of_an_epoch_ends_it() -> None:
    """An epoch that on_train_batch_start cuts short still ends for the criterion."""

    class Short(Net):
        def on_train_batch_start(self, batch: Batch, batch_idx: int) -> int | None:
            return -1 if batch_idx == 5 else None

    module = Short(criterion_for("dwa"))
    fit(module, trainer_for(accumulate_grad_batches=2), torch.utils.data.DataLoader(BATCHES, batch_size=None))
    assert module.criterion.outer.means.tolist() == [2, 2]
    assert module.criterion._window.step == 4 and module.criterion._window.calls == 0


def test_a_module_without_a_criterion_is_refused() -> None:
    """The callback names the module that holds none."""

    class Bare(Net):
        def __init__(self) -> None:
            super().__init__()
            self.criterion = nn.Identity()  # type: ignore[assignment]

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters())

    with pytest.raises(OptionError, match=r"Bare has no criterion among its submodules\. Assign one .*: self\.criterion ="):
        fit(Bare(), trainer_for())


def test_a_contradicting_number_of_calls_is_refused() -> None:
    """A criterion composed with another number than the trainer's is refused; the same number, or "manual", is not."""
    with pytest.raises(OptionError, match=r"accumulate=3\) contradicts the trainer's accumulate_grad_batches=2"):
        fit(Net(criterion_for("gaba", accumulate=3)), trainer_for(accumulate_grad_batches=2))
    for accumulate in (2, "manual"):
        module = Net(criterion_for("gaba", accumulate=accumulate))
        fit(module, trainer_for(accumulate_grad_batches=2, max_epochs=1))
        assert module.criterion._window.step == 4
        assert module.criterion.accumulate == accumulate


def test_a_change_in_mid_window_is_refused() -> None:
    """A trainer whose accumulation is changed while a window is pending gets the criterion's own error."""

    class Change(pl.Callback):
        def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, batch_idx: int) -> None:
            if batch_idx == 1:
                trainer.accumulate_grad_batches = 3

    with pytest.raises(StateError, match=r"cannot change within a window: 1 calls are pending"):
        fit(Net(), trainer_for(Change(), accumulate_grad_batches=2))


def test_the_tuner_puts_the_criterion_back() -> None:
    """A learning rate search leaves the state as it was, when the criterion knew its tasks before."""

    class Known(Net):
        lr = 1e-2

        def __init__(self) -> None:
            super().__init__()
            with torch.no_grad():
                self.criterion(self.net(BATCHES[0][0]), BATCHES[0][1])

    module, fresh = Known(), Known()
    loader = torch.utils.data.DataLoader(BATCHES, batch_size=None)
    Tuner(trainer_for()).lr_find(module, loader, loader, num_training=7, update_attr=False)
    assert same(snapshot(module), snapshot(fresh))


def test_the_import_names_the_extra() -> None:
    """Without Lightning the import says what to install."""
    script = "import sys; sys.modules['lightning'] = None; import mtl_axes.adapters.lightning"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=limits.PROCESS)
    assert 'pip install "mtl_axes[lightning]"' in done.stderr


def fabric_for(precision: str) -> Fabric:
    """Fabric on the CPU, where 16-mixed has to be given as a plugin."""
    options: dict[str, Any] = {"precision": precision}
    if precision == "16-mixed":
        scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
        options = {"plugins": [FabricMixedPrecision("16-mixed", device="cpu", scaler=scaler)]}
    fabric = Fabric(accelerator="cpu", devices=1, **options)
    fabric.launch()
    return fabric


def fabric_run(fabric: Fabric, criterion: MultiTaskCriterion, *, accumulate: int = 1, rank: int = 0) -> list[Tensor]:
    """Train a model that Fabric has set up, the criterion beside it; return the weights of every call."""
    module = Net(criterion)
    module.configure_optimizers = lambda: Net.configure_optimizers(module)  # type: ignore[method-assign]
    model, optimizer = fabric.setup(module.net, module.configure_optimizers())
    weights = []
    for number, (inputs, targets) in enumerate(BATCHES[:6]):
        steps = (number + 1) % accumulate == 0
        with fabric.no_backward_sync(model, enabled=not steps):
            loss = criterion(model(inputs * (1 + rank)), targets) / accumulate
            fabric.backward(loss)
        weights.append(criterion.report.weights.clone())
        if steps:
            optimizer.step()
            optimizer.zero_grad()
            criterion.step()
    return weights


@pytest.mark.parametrize("outer", OUTERS)
def test_fabric_in_float32_is_the_plain_loop(outer: str) -> None:
    """Exact norms are measured on a model that Fabric has set up, and the weights are those of a plain loop."""
    criterion, reference = criterion_for(outer), Net(criterion_for(outer))
    weights = fabric_run(fabric_for("32-true"), criterion)
    optimizer = reference.configure_optimizers()
    for (inputs, targets), seen in zip(BATCHES[:6], weights, strict=True):
        reference.criterion(reference.net(inputs), targets).backward()
        # Gradients are not reused where Fabric hooks into the outputs, so that their last digits may differ.
        torch.testing.assert_close(reference.criterion.report.weights, seen)
        optimizer.step()
        optimizer.zero_grad()


@pytest.mark.parametrize(
    ("probe", "precision", "warmup"), pairwise(["exact", "representation"], ["bf16-mixed", "16-mixed"], [0, 100])
)
def test_fabric_with_autocast_needs_the_lagged_probe(probe: str, precision: str, warmup: int) -> None:
    """A backward before the user's is refused by Fabric: explained in the first call, also when a warm-up comes first."""
    criterion = compose({"name": "gaba", "warmup": warmup}, "failure_biased", probe=probe)
    with pytest.raises(GraphError, match=r"allows fabric\.backward\(loss\) alone\. Use probe=\"lagged\""):
        fabric_run(fabric_for(precision), criterion)
    assert criterion._window.step == 0 and criterion.tasks == ()


@pytest.mark.parametrize(
    ("precision", "probe"),
    [
        ("bf16-mixed", "lagged"),
        ("16-mixed", "lagged"),
        *((precision, probe) for precision in ("bf16-true", "64-true") for probe in PROBES),
    ],
)
def test_fabric_in_other_precisions(precision: str, probe: str) -> None:
    """What is measured is near what float32 gives, also where the model is wider or narrower than the loss."""
    criterion, reference = criterion_for("gaba", probe=probe), criterion_for("gaba", probe=probe)
    weights, expected = fabric_run(fabric_for(precision), criterion), fabric_run(fabric_for("32-true"), reference)
    torch.testing.assert_close(torch.stack(weights), torch.stack(expected), rtol=0.05, atol=0.02, check_dtype=False)
    assert moved(criterion)


@pytest.mark.parametrize("outer", OUTERS)
def test_fabric_saves_and_loads_the_criterion(tmp_path: Path, outer: str) -> None:
    """fabric.save and fabric.load carry the whole state, into a criterion that was not called yet."""
    fabric, criterion, fresh = fabric_for("32-true"), criterion_for(outer), criterion_for(outer)
    fabric_run(fabric, criterion, accumulate=2)
    criterion(model_for(KINDS)(BATCHES[6][0]), BATCHES[6][1])
    fabric.save(tmp_path / "saved.ckpt", {"criterion": criterion})
    fabric.load(tmp_path / "saved.ckpt", {"criterion": fresh})
    assert same(snapshot(criterion), snapshot(fresh))


class Ranked(Net):
    """Each rank sees data of its own."""

    def __init__(self, criterion: MultiTaskCriterion) -> None:
        super().__init__(criterion)
        self.weights: list[Tensor] = []

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        loss = super().training_step((batch[0] * (1 + self.global_rank), batch[1]), batch_idx)
        self.weights.append(self.criterion.report.weights.clone())
        return loss


STRATEGIES = ("ddp", "ddp_find_unused_parameters_true")
RUNS = [
    *(
        f"{strategy} {outer} {accumulate} norms"
        for strategy in (*STRATEGIES, "fabric")
        for outer in OUTERS
        for accumulate in (1, 2)
    ),
    *(f"{strategy} gaba 2 gradients" for strategy in (*STRATEGIES, "fabric")),
    *(f"ddp famo {accumulate} {sync}" for accumulate in (1, 2) for sync in ("norms", "gradients")),
]


def rank_of_two(rank: int) -> dict[str, Any]:
    """Train every run on this rank's own data."""
    os.environ["LOCAL_RANK"] = str(rank)
    result: dict[str, Any] = {}
    for run in RUNS:
        strategy, outer, calls, sync = run.split()
        accumulate = int(calls)
        probe = {"gaba 2 norms": "representation", "gradnorm 2 norms": "lagged"}.get(run.partition(" ")[2], "exact")
        if strategy == "fabric":
            fabric = Fabric(accelerator="cpu", devices=RANKS, strategy="ddp")
            fabric.launch()
            criterion = criterion_for(outer, accumulate=accumulate, probe=probe, sync=sync)
            weights, state = fabric_run(fabric, criterion, accumulate=accumulate, rank=rank), criterion.state_dict()
        else:
            module = Ranked(criterion_for(outer, probe=probe, sync=sync))
            trainer = trainer_for(
                devices=RANKS, strategy=strategy, accumulate_grad_batches=accumulate, use_distributed_sampler=False
            )
            fit(module, trainer)
            weights, state = module.weights, module.state_dict()
        state = {key: value.clone() for key, value in state.items() if isinstance(value, Tensor)}
        result[run] = {"weights": torch.stack(weights), "state": state}
    return result


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of two processes saw."""
    return on_ranks(rank_of_two, tmp_path_factory.mktemp("ranks"), RANKS)


@pytest.mark.slow
@pytest.mark.parametrize("run", RUNS)
def test_two_ranks_agree(ranks: list[dict[str, Any]], run: str) -> None:
    """Weights of every call, parameters and state are equal on both ranks, whose data differ."""
    first, second = (rank[run] for rank in ranks)
    assert torch.equal(first["weights"], second["weights"])
    assert equal(first["state"], second["state"])
    assert len(first["weights"].unique(dim=0)) > 1 or " dwa " in run, "the weights should move"
