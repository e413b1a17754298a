"""The plain loop equals the loop that a user would have written, bit for bit."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from mtl_axes.adapters.loop import Loop
from sampling import pairwise
from strategies import REPRESENTATIVE, batch_for, equal, model_for, quick, snapshot
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler

from mtl_axes import compose
from mtl_axes.errors import DataError, OptionError

KINDS = {"rul": "regression", "health": "multiclass"}
Batch = tuple[Tensor, dict[str, Tensor]]


def batches(count: int = 7) -> list[Batch]:
    return [batch_for(KINDS, seed=seed, scale=5.0) for seed in range(count)]


def adamw(groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
    return torch.optim.AdamW(groups, lr=1e-2, weight_decay=0.1)


def decaying(optimizer: torch.optim.Optimizer) -> torch.optim.lr_scheduler.LRScheduler:
    return torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)


def parts(outer: str, accumulate: int = 1) -> tuple[nn.Module, Any]:
    model = model_for(KINDS)
    return model, compose(quick(outer), "failure_biased", tasks=list(KINDS), accumulate=accumulate)


def by_hand(outer: str, epochs: int, *, accumulate: int = 1, clip: float | None = None, scheduled: bool = False) -> Any:
    """The loop written out."""
    model, criterion = parts(outer, accumulate)
    optimizer = torch.optim.AdamW(
        [{"params": list(model.parameters())}, *criterion.param_groups()], lr=1e-2, weight_decay=0.1
    )
    scheduler = decaying(optimizer) if scheduled else None
    data = batches()
    for _ in range(epochs):
        for start in range(0, len(data), accumulate):
            window = data[start : start + accumulate]
            optimizer.zero_grad()
            for inputs, targets in window:
                (criterion(model(inputs), targets) / len(window)).backward()
            if clip is not None:
                nn.utils.clip_grad_norm_(model.parameters(), clip)
            optimizer.step()
            criterion.step()
            with torch.no_grad(), criterion.after_step():
                for inputs, targets in window:
                    criterion(model(inputs), targets)
            if scheduler is not None:
                scheduler.step()
        criterion.end_epoch()
    return model, criterion, optimizer


@pytest.mark.parametrize(
    ("outer", "accumulate", "clip", "scheduled"), pairwise(REPRESENTATIVE, [1, 3], [None, 0.05], [False, True])
)
def test_loop_equals_a_handwritten_loop(outer: str, accumulate: int, clip: float | None, scheduled: bool) -> None:
    """Parameters, criterion and optimizer agree bit for bit after three epochs, the last window of each being shorter."""
    model, criterion = parts(outer, accumulate)
    loop = Loop(model, criterion, adamw, clip=clip, scheduler=decaying if scheduled else None, progress=False)
    loop.run(batches(), epochs=2)
    loop.run(batches())
    hand, its_criterion, its_optimizer = by_hand(outer, 3, accumulate=accumulate, clip=clip, scheduled=scheduled)
    assert equal(snapshot(model), snapshot(hand))
    assert equal(snapshot(criterion), snapshot(its_criterion))
    assert equal(loop.optimizer.state_dict(), its_optimizer.state_dict())
    assert not equal(snapshot(model), snapshot(model_for(KINDS)))
    assert loop.epoch == 3 and loop.step == 3 * (7 if accumulate == 1 else 3)


def test_a_shorter_last_window_steps_on_its_own_mean() -> None:
    """The gradient of an optimizer step is the mean over the batches that the window really has."""
    model, criterion = parts("fixed", 3)
    seen: list[Tensor] = []

    def note(loop: Loop) -> None:
        seen.append(torch.cat([parameter.grad.reshape(-1).clone() for parameter in model.parameters()]))

    frozen = lambda groups: torch.optim.SGD(groups, lr=0.0)  # noqa: E731
    Loop(model, criterion, frozen, after_step=note, progress=False).run(batches(7))
    reference = compose("fixed", "failure_biased", tasks=list(KINDS))
    single = []
    for inputs, targets in batches(7):
        model.zero_grad()
        reference(model(inputs), targets).backward()
        single.append(torch.cat([parameter.grad.reshape(-1).clone() for parameter in model.parameters()]))
    assert len(seen) == 3
    for gradient, window in zip(seen, (single[0:3], single[3:6], single[6:7]), strict=True):
        torch.testing.assert_close(gradient, torch.stack(window).mean(0), rtol=1e-5, atol=1e-6)


def test_learnable_parameters_are_in_the_optimizer_without_decay() -> None:
    """Uncertainty's log variances are trained by the loop's optimizer, and weight decay does not pull on them."""
    model, criterion = parts("uncertainty")
    loop = Loop(model, criterion, adamw, progress=False)
    groups = [
        group for group in loop.optimizer.param_groups if any(p is criterion.outer.log_variance for p in group["params"])
    ]
    assert [group["weight_decay"] for group in groups] == [0.0]
    assert loop.optimizer.param_groups[0]["weight_decay"] == 0.1
    loop.run(batches(), epochs=4)
    assert bool((criterion.outer.log_variance != 0).all())


def test_gradients_of_the_criterion_start_from_zero_in_every_step() -> None:
    """Neither the model's gradients nor the criterion's are carried from one optimizer step to the next."""
    model, criterion = parts("uncertainty")
    seen: list[Tensor] = []
    frozen = lambda groups: torch.optim.SGD(groups, lr=0.0)  # noqa: E731
    loop = Loop(
        model,
        criterion,
        frozen,
        after_step=lambda loop: seen.append(criterion.outer.log_variance.grad.clone()),
        progress=False,
    )
    loop.run([batches(1)[0]] * 3)
    assert torch.equal(seen[0], seen[1]) and torch.equal(seen[1], seen[2])


def overflowing(model: nn.Module, criterion: Any, bad: set[int]) -> Any:
    """A compute_loss whose loss overflows in the calls named in ``bad``."""
    count = -1

    def compute(batch: Batch) -> Tensor:
        nonlocal count
        count += 1
        inputs, targets = batch
        total: Tensor = criterion(model(inputs), targets)
        return total * torch.inf if count in bad else total

    return compute


def test_a_grad_scaler_changes_nothing_but_the_scale() -> None:
    """With a scaler whose scale is a power of two the parameters equal those of the loop without, clipping included."""
    for clip in (None, 0.05):
        plain, criterion = parts("gaba")
        Loop(plain, criterion, adamw, clip=clip, progress=False).run(batches(), epochs=2)
        scaled, other = parts("gaba")
        scaler = GradScaler("cpu", init_scale=1024.0)
        Loop(scaled, other, adamw, clip=clip, scaler=scaler, progress=False).run(batches(), epochs=2)
        assert equal(snapshot(scaled), snapshot(plain))
        assert equal(snapshot(other), snapshot(criterion))


def test_a_step_that_the_scaler_skips_drops_its_window() -> None:
    """The window of a skipped step leaves no trace in parameters, weighting and schedule; the learning rate waits too."""
    data = batches(9)
    model, criterion = parts("gaba", 3)
    scaler = GradScaler("cpu", init_scale=1024.0)
    loop = Loop(
        model,
        criterion,
        adamw,
        scaler=scaler,
        scheduler=decaying,
        compute_loss=overflowing(model, criterion, {4}),
        progress=False,
    )
    loop.run(data)
    assert scaler.get_scale() == 512.0
    assert loop.scheduler.last_epoch == 2
    clean, its_criterion = parts("gaba", 3)
    Loop(clean, its_criterion, adamw, scheduler=decaying, progress=False).run([*data[:3], *data[6:]])
    assert equal(snapshot(model), snapshot(clean))
    assert equal(snapshot(criterion), snapshot(its_criterion))


def test_the_end_of_an_epoch_reaches_dwa() -> None:
    """DWA without a window has weights other than one after two epochs of the loop."""
    model = model_for(KINDS)
    criterion = compose("dwa", "failure_biased", tasks=list(KINDS))
    loop = Loop(model, criterion, adamw, progress=False)
    loop.run(batches())
    assert criterion.outer.weights().tolist() == [1.0, 1.0]
    assert criterion.outer.means.tolist() == [1, 1]
    loop.run(batches())
    assert criterion.outer.means.tolist() == [2, 2]
    assert criterion.outer.weights().tolist() != [1.0, 1.0]


def test_history_has_a_row_every_log_every_steps() -> None:
    """A row holds epoch, step and the means of losses, weights and norms since the row before it; an epoch ends with one."""
    model, criterion = parts("gaba")
    steps: list[dict[str, float]] = []

    def note(loop: Loop) -> None:
        report = criterion.report
        steps.append({f"loss/{name}": float(report.losses[index]) for index, name in enumerate(report.tasks)})

    loop = Loop(model, criterion, adamw, log_every=3, after_step=note, progress=False)
    history = loop.run(batches(7), epochs=2)
    assert history is loop.history
    assert [(row["epoch"], row["step"]) for row in history] == [(0, 3), (0, 6), (0, 7), (1, 9), (1, 12), (1, 14)]
    keys = {f"{what}/{name}" for what in ("loss", "weight", "norm") for name in KINDS}
    assert all(set(row) == {"epoch", "step", *keys} for row in history)
    before = 0
    for row in history:
        for name in KINDS:
            values = [step[f"loss/{name}"] for step in steps[before : int(row["step"])]]
            assert row[f"loss/{name}"] == pytest.approx(sum(values) / len(values), rel=1e-6)
        before = int(row["step"])


def test_a_generator_serves_one_epoch() -> None:
    """A second epoch over an exhausted generator is an error and not an epoch without steps."""
    loop = Loop(*parts("fixed"), adamw, progress=False)
    with pytest.raises(DataError, match=r"Epoch 1 has no batches\. Pass a DataLoader"):
        loop.run(iter(batches(3)), epochs=2)
    assert loop.step == 3


def test_a_criterion_inside_the_model_is_not_optimized_twice() -> None:
    """The log variances of a criterion that is a submodule of the model are in its own group, without weight decay."""
    model, criterion = parts("uncertainty")
    model.add_module("criterion", criterion)
    loop = Loop(model, criterion, adamw, progress=False)
    loop.run(batches(2))
    groups = loop.optimizer.param_groups
    assert [group["weight_decay"] == 0.0 for group in groups] == [False, True]
    assert sum(len(group["params"]) for group in groups) == len(list(model.parameters()))


def test_run_puts_model_and_criterion_into_training_mode() -> None:
    """An evaluation between two runs does not leave the second one in eval mode."""
    model, criterion = parts("gaba")
    loop = Loop(model, criterion, adamw, progress=False)
    loop.run(batches(2))
    model.eval(), criterion.eval()
    loop.run(batches(2))
    assert model.training and criterion.training
    assert criterion._window.step == 4


def test_the_progress_bar_shows_losses_and_weights(capsys: pytest.CaptureFixture[str]) -> None:
    """With tqdm a bar per epoch is written to stderr, with the newest row of the history."""
    model, criterion = parts("gaba")
    Loop(model, criterion, adamw, log_every=1).run(batches(3))
    written = capsys.readouterr().err
    assert "epoch 0" in written and "loss/rul=" in written and "weight/health=" in written


def test_no_progress_bar_when_it_is_not_wanted(capsys: pytest.CaptureFixture[str]) -> None:
    """progress=False writes nothing."""
    model, criterion = parts("gaba")
    Loop(model, criterion, adamw, log_every=1, progress=False).run(batches(3))
    assert capsys.readouterr() == ("", "")


def test_no_progress_bar_without_tqdm(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Where tqdm is not installed the loop runs without a bar and with the same result."""
    plain, criterion = parts("gaba")
    Loop(plain, criterion, adamw, progress=False).run(batches(3))
    monkeypatch.setitem(sys.modules, "tqdm.auto", None)
    model, other = parts("gaba")
    Loop(model, other, adamw, log_every=1).run(batches(3))
    assert capsys.readouterr() == ("", "")
    assert equal(snapshot(model), snapshot(plain))


def test_batches_may_come_from_a_generator() -> None:
    """Any iterable of batches will do, also one without a length."""

    def stream() -> Iterator[Batch]:
        yield from batches(5)

    model, criterion = parts("gaba", 2)
    loop = Loop(model, criterion, adamw, progress=False)
    loop.run(stream())
    assert loop.step == 3


def test_a_criterion_with_manual_windows_is_refused() -> None:
    """The loop decides itself when a window ends."""
    criterion = compose("gaba", "failure_biased", accumulate="manual")
    with pytest.raises(OptionError, match=r"compose\(accumulate=n\)\. Found accumulate='manual'"):
        Loop(model_for(KINDS), criterion, adamw)
