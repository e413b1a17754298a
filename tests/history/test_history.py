"""What a history records: the rows, their columns, and what it costs the run."""

from __future__ import annotations

import csv
import gc
import math
import re
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from mtl_axes.adapters.loop import Loop
from recording import KINDS, Columns, Training, attached
from spawning import on_ranks
from strategies import batch_for, model_for, quick
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from mtl_axes import compose
from mtl_axes.errors import DataError, OptionError
from mtl_axes.history import History

TASKS = list(KINDS)
GABA = {"name": "gaba", "warmup": 2, "beta": 0.5, "floor": 0.2}


def reported(training: Training, calls: int) -> Columns:
    """The columns that the reports of a run with one call per window give."""
    rows: list[dict[str, float | None]] = []
    for _ in range(calls):
        training.advance(1)
        report = training.criterion.report
        here = [task != "health" or (training.call - 1) % 7 != 4 for task in TASKS]
        row: dict[str, float | None] = {"step": report.step, "skipped": 0}
        pull = None if report.norms is None else report.weights * report.norms * torch.tensor(here)
        for at, task in enumerate(TASKS):
            row[f"loss/{task}"] = report.losses[at].item() if here[at] else None
            row[f"weight/{task}"] = report.weights[at].item()
            row[f"norm/{task}"] = None if report.norms is None or not report.measured[at] else report.norms[at].item()
            row[f"share/{task}"] = None if pull is None or not here[at] else (pull[at] / pull.sum()).item()
            if "floor_active" in report.extra:
                row[f"floor/{task}"] = float(report.extra["floor_active"][at])
            for other in range(at + 1, len(TASKS)):
                cosines = report.cosines
                cosine = None if cosines is None else cosines[at, other].item()
                row[f"cosine/{task}/{TASKS[other]}"] = None if cosine is None or math.isnan(cosine) else cosine
        rows.append(row)
    columns = {name: [row[name] for row in rows] for name in rows[0]}
    return {name: values for name, values in columns.items() if any(value is not None for value in values)}


def assert_equal(found: Columns, expected: Columns, *, rel: float = 1e-5, least: float = 1e-7) -> None:
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        assert [value is None for value in found[name]] == [value is None for value in values], name
        numbers, expected_numbers = ([value for value in of if value is not None] for of in (found[name], values))
        assert numbers == pytest.approx(expected_numbers, rel=rel, abs=least), name


@pytest.mark.parametrize("outer", [GABA, "dwa", "uncertainty", "upgrad"], ids=str)
def test_a_row_is_what_the_report_of_its_window_says(outer: Any) -> None:
    """With one call per window every column holds the values of the reports, None where nothing was measured."""
    outer = {"name": "dwa", "window": 2} if outer == "dwa" else outer
    training, history = attached(outer)
    other = Training(outer)
    training.advance(70)
    assert_equal(history.columns(), reported(other, 70))
    assert len(history) == 70


@pytest.mark.parametrize("probe", ["exact", "lagged", "representation"])
def test_a_row_is_a_window_of_several_calls(probe: str) -> None:
    """With accumulate=3 a row has the means over the calls of its window, the weights that these calls had, and the norms
    that move the weights of the next one; the last window is there once it is committed."""
    training, history = attached({**GABA, "warmup": 1, "beta": 0.0}, accumulate=3, probe=probe, capacity=50)
    losses, weights = [], []
    for _ in range(4):
        losses.append([])
        for _ in range(3):
            training.advance(1)
            losses[-1].append([x if x else math.nan for x in training.criterion.report.losses.tolist()])
        weights.append(training.criterion.report.weights.tolist())
    assert history.columns()["step"] == [1, 2, 3]
    training.criterion.step()
    columns = history.columns()
    assert columns["step"] == [1, 2, 3, 4]
    for at, task in enumerate(TASKS):
        expected = [torch.tensor(calls)[:, at].nanmean().item() for calls in losses]
        assert columns[f"loss/{task}"] == pytest.approx(expected, rel=1e-5)
        assert columns[f"weight/{task}"] == pytest.approx([row[at] for row in weights])
    assert columns["norm/rul"][0] is None
    for row in range(1, 4):
        norms = torch.tensor([columns[f"norm/{task}"][row] for task in TASKS])
        raw = (norms.sum() - norms) / (2 * norms.sum())
        held = torch.tensor([columns[f"floor/{task}"][row + 1] for task in TASKS]) if row < 3 else (raw < 0.2).float()
        assert torch.equal(held, (raw < 0.2).float())
        after = (
            training.criterion.outer.weights()
            if row == 3
            else torch.tensor([columns[f"weight/{t}"][row + 1] for t in TASKS])
        )
        assert torch.allclose(after, raw.clamp_min(0.2) / raw.clamp_min(0.2).sum(), rtol=1e-4)


def test_only_training_is_recorded() -> None:
    """Evaluation, held calls, calls without gradients and calls after a step leave no row."""
    training, history = attached("famo")
    training.advance(3)
    with training.criterion.hold():
        training.loss(0).backward()
    with torch.no_grad():
        training.loss(1)
    with training.criterion.after_step():
        training.loss(2)
    training.criterion.eval()
    training.loss(3)
    assert history.columns()["step"] == [1, 2, 3]


@pytest.mark.parametrize("accumulate", [1, 2])
def test_skipped_windows_are_counted(accumulate: int) -> None:
    """A skipped step counts once, before the next row; where its window is dropped it has no row. Skipping nothing, as a
    trainer does when it cleans up, counts nothing."""
    training, history = attached(GABA, accumulate=accumulate)
    training.advance(4 * accumulate, skip=(accumulate, 3 * accumulate), tell=True)
    training.criterion.step(skipped=True)
    training.advance(accumulate, tell=True)
    columns = history.columns()
    assert columns["skipped"] == ([0, 1, 1, 2, 2] if accumulate == 1 else [1, 2, 2])
    assert columns["step"] == list(range(1, 1 + len(columns["skipped"])))


def test_values_that_are_not_finite_are_none() -> None:
    """A loss that is infinite or NaN is None in its row and moves no other value."""
    training, history = attached("fixed", kinds={"a": "regression", "b": "regression"})
    for value in (1.0, math.inf, math.nan):
        x = torch.tensor(value, requires_grad=True)
        training.criterion.combine({"a": x * 1, "b": torch.ones((), requires_grad=True) * 2})
    assert history.columns()["loss/a"] == [1.0, None, None]
    assert history.columns()["loss/b"] == [2.0, 2.0, 2.0]


def test_the_norms_of_each_task_in_turn_survive_thinning() -> None:
    """With one task measured per window and every second window kept, rows still have a norm of every task: the newest."""
    kinds = {"a": "regression", "b": "regression"}
    options = {"kinds": kinds, "probe": {"name": "exact", "rotate": True}}
    training, history = attached({**GABA, "warmup": 0}, capacity=20, **options)
    whole, full = attached({**GABA, "warmup": 0}, **options)
    training.advance(75)
    whole.advance(75)
    every, rows = full.columns(), history.columns()
    assert [value is None for value in every["norm/a"][:4]] == [False, True, False, True]
    assert rows["step"] == [*range(1, 75, 4), 75]
    for task in kinds:
        newest = dict(zip(every["step"], every[f"norm/{task}"], strict=True))
        for before, step, value in zip([0, *rows["step"]], rows["step"], rows[f"norm/{task}"], strict=False):
            known = [newest[at] for at in range(int(before) + 1, int(step) + 1) if newest[at] is not None]
            assert value == (known[-1] if known else None)
    assert rows["norm/b"].count(None) == 1


@pytest.mark.parametrize(("every", "capacity", "windows"), [(1, 10, 200), (3, 8, 100), (1, 2, 9), (5, 100, 12), (1, 7, 7)])
def test_rows_are_bounded_and_span_the_run(every: int, capacity: int, windows: int) -> None:
    """At no time are there more rows than the capacity; steps are evenly spaced from the first on, and the last is there."""
    training, history = attached("fixed", every, capacity=capacity)
    for window in range(1, windows + 1):
        training.advance(1)
        assert len(history) <= capacity
        assert history.columns()["step"][-1] == window
    steps = history.columns()["step"]
    assert len(steps) == len(history)
    stride = every
    while len(set(range(1, windows + 1, stride)) | {windows}) > capacity:
        stride *= 2
    assert steps == sorted({*range(1, windows + 1, stride), windows})


class Witness:
    """Lives as long as the graph that it is hooked into."""

    def see(self, *gradients: Any) -> None:
        return None


def test_no_graph_is_kept() -> None:
    """After a step nothing of a history refers to the graph of its losses."""
    training, history = attached("uncertainty")
    training.advance(1)
    inputs, targets = batch_for(KINDS)
    outputs, witness = training.model(inputs), Witness()
    # Held by the graph alone.
    outputs["rul"].grad_fn.register_hook(witness.see)
    gone = weakref.ref(witness)
    del witness
    loss = training.criterion(outputs, targets)
    loss.backward()
    assert gone() is not None and len(history) == 2
    del outputs, loss
    gc.collect()
    assert gone() is None
    assert all(
        not part.requires_grad
        for row in [row for _, row in history.flush.__self__._entries]
        for part in row
        if isinstance(part, torch.Tensor)
    )


@pytest.mark.parametrize("options", [{}, {"accumulate": 2}, {"probe": "lagged"}], ids=str)
def test_recording_does_not_wait(options: dict[str, Any]) -> None:
    """Under FakeTensorMode, where reading a value raises, a history records as before."""
    training, history = attached({**GABA, "warmup": 0}, **options)
    training.advance(2)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        for module in (training.model, training.criterion):
            for part in module.modules():
                for name, buffer in list(part._buffers.items()):
                    part._buffers[name] = mode.from_tensor(buffer)
                for name, parameter in list(part._parameters.items()):
                    part._parameters[name] = torch.nn.Parameter(mode.from_tensor(parameter.detach()))
        before = len(history)
        for seed in range(6):
            inputs, targets = batch_for(KINDS, seed=seed)
            training.criterion(training.model(inputs), targets).backward()
        assert len(history) > before
        # The guard catches a read: columns are one.
        with pytest.raises(DataDependentOutputException):
            history.columns()


class Copies(TorchDispatchMode):
    """Counts copies from the meta device to the host, and answers them with zeros."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.ops.aten._to_copy.default and args[0].is_meta and kwargs.get("device") == torch.device("cpu"):
            self.count += 1
            return torch.zeros(args[0].shape, dtype=kwargs.get("dtype") or args[0].dtype)
        return func(*args, **kwargs)


@pytest.mark.slow
def test_a_block_of_rows_comes_in_one_transfer() -> None:
    """On a device that cannot be read 63 rows are recorded without a copy to the host; the 64th, which completes a block,
    makes one copy of all that was measured, and the 128th the next."""
    model, criterion = model_for(KINDS), compose(quick("gaba"), "mse", tasks=TASKS)
    inputs, targets = batch_for(KINDS)
    criterion(model(inputs), targets).backward()
    history = History(criterion)
    model.to("meta")
    meta = {name: target.to("meta") for name, target in targets.items()}
    with Copies() as copies:
        for calls, expected in ((63, 0), (1, 1), (63, 1), (1, 2)):
            for _ in range(calls):
                criterion(model(inputs.to("meta")), meta).backward()
            assert copies.count == expected
        assert len(history.columns()["step"]) == 128
        assert copies.count == 2


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("outer", [{**GABA, "floor": 0.05}, "upgrad"], ids=str)
def test_a_run_on_cuda_has_the_columns_of_one_on_the_host(outer: Any) -> None:
    """200 windows, three blocks of which come while the run goes on, give the same columns up to the device's arithmetic."""

    def columns(device: str) -> Columns:
        model, criterion = model_for(KINDS).to(device), compose(outer, "mse", tasks=TASKS).to(device)
        history = History(criterion)
        for seed in range(200):
            inputs, targets = batch_for(KINDS, seed=seed)
            criterion(model(inputs.to(device)), {name: part.to(device) for name, part in targets.items()}).backward()
        return history.columns()

    found = columns("cuda")
    assert found["step"] == list(range(1, 201))
    assert_equal(found, columns("cpu"), rel=1e-4, least=1e-6)


def test_columns_become_a_table(tmp_path: Path) -> None:
    """The CSV has the names of the columns as its heading, the values of the columns, and nothing where there is none."""
    training, history = attached(GABA)
    training.advance(5)
    path = history.to_csv(tmp_path / "new" / "history.csv")
    with path.open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    columns = history.columns()
    assert list(rows[0]) == list(columns)
    for name, values in columns.items():
        assert [float(row[name]) if row[name] else None for row in rows] == values


def test_a_log_tells_what_was_recorded_since_the_last() -> None:
    """With a history log_dict() has the means of shares, cosines and floors of the rows since, and the skipped windows."""
    training, history = attached(GABA)
    training.advance(5)
    training.criterion.log_dict()
    training.advance(3, skip=(7,))
    logged, columns = training.criterion.log_dict(), history.columns()
    for name in ("share/rul", "share/wear", "floor/rul", "floor/health"):
        assert logged[name] == pytest.approx(sum(columns[name][-3:]) / 3)
    assert logged["skipped"] == 1
    assert {name.partition("/")[0] for name in logged} == {"loss", "weight", "norm", "share", "floor", "skipped"}
    assert training.criterion.log_dict() == {}
    turns, history = attached({**GABA, "warmup": 0}, probe={"name": "exact", "rotate": True})
    turns.advance(6)
    turns.criterion.log_dict()
    logged, columns = turns.advance(1).criterion.log_dict(), history.columns()
    # One row measured one task, and the shares are of the norms that were measured last.
    assert [columns[f"norm/{task}"][-1] is None for task in TASKS].count(False) == 1
    assert logged["share/rul"] == pytest.approx(columns["share/rul"][-1])
    upgrad, _ = attached("upgrad", every=2, capacity=2)
    upgrad.advance(9)
    assert {f"cosine/rul/{other}" for other in ("health", "wear")} < upgrad.criterion.log_dict().keys()


def test_trainers_log_what_a_history_adds() -> None:
    """Through log_dict() the rows of a Loop have the shares; its own list of rows stays what it is."""
    training, history = attached(GABA)
    batches = [batch_for(KINDS, seed=seed) for seed in range(4)]
    loop = Loop(
        training.model, training.criterion, lambda groups: torch.optim.SGD(groups, lr=1e-2), progress=False, log_every=4
    )
    rows = loop.run(batches, epochs=2)
    assert len(rows) == 2 and rows[-1]["share/rul"] == pytest.approx(sum(history.columns()["share/rul"][4:]) / 4)


def recorded_on(rank: int, outer: Any) -> dict[str, Columns]:
    """The columns with each way to agree; those of "alone" on rank 0 only."""
    found = {}
    for name, sync in (("norms", "norms"), ("gradients", "gradients"), ("alone", "norms")):
        training = Training(outer, sync=sync)
        # A collective that only one rank enters would hang until the timeout.
        history = None if name == "alone" and rank else History(training.criterion)
        for step in range(4):
            inputs, targets = batch_for(KINDS, seed=10 * rank + step)
            training.criterion(training.model(inputs), targets).backward()
        found[name] = {} if history is None else history.columns()
    return found


@pytest.mark.slow
def test_ranks_record_one_weight_and_their_own_losses(tmp_path: Path) -> None:
    """On two ranks the weights and floors are the same and the losses are each rank's own, with sync="gradients" losses and
    norms are those of both ranks' samples; attaching and reading ask no one, so that one rank may do it alone."""
    one, other = on_ranks(recorded_on, tmp_path, 2, {**GABA, "warmup": 0})
    assert one["norms"].keys() == other["norms"].keys()
    for name, values in one["norms"].items():
        if name.startswith(("weight/", "floor/", "step")):
            assert values == other["norms"][name]
        elif name.startswith("loss/"):
            assert values != other["norms"][name]
    for task in TASKS:
        apart = (one["norms"][f"loss/{task}"], other["norms"][f"loss/{task}"])
        assert one["gradients"][f"loss/{task}"] == pytest.approx([sum(both) / 2 for both in zip(*apart, strict=True)])
        for kind in ("loss", "norm"):
            values = one["gradients"][f"{kind}/{task}"]
            assert None not in values and len(values) == 4
            assert values == other["gradients"][f"{kind}/{task}"]
    assert one["alone"] == one["norms"] and other["alone"] == {}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
def test_a_compiled_criterion_is_recorded() -> None:
    """A call within a graph runs in Python once there is a history: rows and results are those of an eager run, also where
    compiled calls had counted on the device before."""
    torch._dynamo.reset()
    runs: list[tuple[Training, Any]] = []
    for compiled in (True, False):
        training = Training({"name": "dwa", "window": 2})
        total = training.loss
        training.advance(1)
        if compiled:
            training.loss = torch.compile(total, backend="eager")  # type: ignore[method-assign]
        training.advance(2)
        history = History(training.criterion)
        training.advance(5)
        runs.append((training, history.columns()))
    assert runs[0][1] == runs[1][1]
    assert runs[0][1]["step"] == [4, 5, 6, 7, 8]
    wrapped = torch.compile(compose("fixed", tasks=["a", "b"]), backend="eager")
    assert History(wrapped) is wrapped.history
    whole = torch.compile(runs[0][0].criterion.combine, backend="eager", fullgraph=True)
    with pytest.raises(torch._dynamo.exc.Unsupported, match="a History records"):
        whole({task: torch.ones((), requires_grad=True) for task in TASKS})
    torch._dynamo.reset()


def test_errors_say_what_to_do() -> None:
    """Options out of range, something that is no criterion, a second history and an empty picture are refused."""
    criterion = compose("fixed", tasks=["a", "b"])
    for options, found in (({"every": 0}, "every=0"), ({"every": 1.5}, "every=1.5"), ({"capacity": 1}, "capacity=1")):
        with pytest.raises(OptionError, match=re.escape(found)):
            History(criterion, **options)
    with pytest.raises(OptionError, match="Found Linear"):
        History(torch.nn.Linear(1, 1))  # type: ignore[arg-type]
    history = History(criterion)
    with pytest.raises(OptionError, match=r"criterion\.history"):
        History(criterion)
    assert criterion.history is history
    with pytest.raises(DataError, match="training mode"):
        history.plot()
    assert history.columns() == {"step": [], "skipped": []}
    assert repr(history) == "History(every=1, capacity=10000, rows=0)"
