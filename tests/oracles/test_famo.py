"""FAMO against traces of three implementations, TorchJD as it is installed, and autograd with torch's own Adam.

``reference_vectors.json`` holds 15 steps on three least-squares tasks, in float64: TorchJD 0.18.0 and LibMTL (git 4336804)
as they ran, and a transcription of the official class, which has another decay and clips the gradient. The official code and
LibMTL leave z attached to their total; that they give what TorchJD gives, which detaches it, shows that it does not matter.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mtl_axes import Signals, TaskInfo, compose, create
from mtl_axes.errors import OptionError
from mtl_axes.outer import FAMO

TRACES: dict[str, Any] = json.loads((Path(__file__).parent / "reference_vectors.json").read_text())["traces"]
PROBLEM, RATE = TRACES["problem"], TRACES["FAMO"]["lr_model"]
MATRICES, TARGETS = (torch.tensor(PROBLEM[name], dtype=torch.float64) for name in ("A", "b"))
ALL = torch.ones(3, dtype=torch.bool)


def vector(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def losses_at(theta: Tensor) -> list[Tensor]:
    """Half the mean squared residuals of the three tasks."""
    return [0.5 * (a @ theta - b).square().mean() for a, b in zip(MATRICES, TARGETS, strict=True)]


def close(found: Tensor, expected: Any) -> None:
    torch.testing.assert_close(found.detach(), torch.as_tensor(expected, dtype=torch.float64), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("source", "gamma", "clip"), [("torchjd", 1e-3, None), ("libmtl", 1e-3, None), ("official", 1e-2, 1.0)]
)
def test_famo_reproduces_the_traces_in_a_plain_loop(source: str, gamma: float, clip: float | None) -> None:
    """Losses, gradients, parameters and logits of every step agree to 1e-9, with the block after optimizer.step()."""
    theta = torch.tensor(PROBLEM["theta0"], dtype=torch.float64, requires_grad=True)
    criterion = compose({"name": "famo", "gamma": gamma}, tasks=["a", "b", "c"])
    optimizer = torch.optim.SGD([theta], lr=RATE)
    rows = TRACES["FAMO"][source]
    assert len(rows) == 15
    for row in rows:
        optimizer.zero_grad()
        criterion.combine(losses_at(theta)).backward()
        if clip is not None:
            torch.nn.utils.clip_grad_norm_([theta], clip)
        close(criterion.report.losses, row["losses"])
        close(theta.grad, row["grad"])
        optimizer.step()
        with torch.no_grad(), criterion.after_step():
            criterion.combine(losses_at(theta))
        close(theta, row["theta"])
        close(criterion.outer.logits, row["w"])


@pytest.mark.parametrize("bounds", [0.0, {"a": 0.01, "b": 0.02, "c": 0.0}])
def test_famo_is_that_of_the_installed_torchjd(bounds: Any) -> None:
    """40 steps of both from one start agree to 1e-9, with lower bounds too."""
    reference = pytest.importorskip("torchjd.scalarization")
    least = vector(*bounds.values()) if isinstance(bounds, dict) else None
    peer = reference.FAMO(3, min_losses=least, lr=0.05, weight_decay=0.02).double()
    criterion = compose({"name": "famo", "lr": 0.05, "gamma": 0.02, "min_losses": bounds}, tasks=["a", "b", "c"])
    ours, theirs = (torch.tensor(PROBLEM["theta0"], dtype=torch.float64, requires_grad=True) for _ in range(2))
    for _ in range(40):
        (gradient,) = torch.autograd.grad(criterion.combine(losses_at(ours)), ours)
        (expected,) = torch.autograd.grad(peer(torch.stack(losses_at(theirs))), theirs)
        close(gradient, expected)
        with torch.no_grad():
            ours -= RATE * gradient
            theirs -= RATE * expected
            peer.update(torch.stack(losses_at(theirs)))
            with criterion.after_step():
                criterion.combine(losses_at(ours))
        close(criterion.outer.logits, peer._w.detach())


positive = st.floats(-3, 3).map(lambda exponent: 10.0**exponent)


@given(data=st.data(), count=st.integers(2, 5), gamma=st.sampled_from([0.0, 0.1]))
@settings(max_examples=30)
def test_famo_is_autograd_through_the_softmax_and_torch_s_adam(data: st.DataObject, count: int, gamma: float) -> None:
    """Any losses before and after: the logits equal autograd with torch.optim.Adam, and the weights equal the paper."""
    weighting = FAMO(lr=0.1, gamma=gamma)
    logits = torch.zeros(count, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.Adam([logits], lr=0.1, weight_decay=gamma)
    for _ in range(4):
        before, after = (vector(*data.draw(st.tuples(*[positive] * count))) for _ in range(2))
        z = logits.detach().softmax(0)
        close(weighting(Signals(before)), (z / (before + 1e-8)) / (z / (before + 1e-8)).sum())
        weighting.after_step(after, torch.ones(count, dtype=torch.bool))
        change = (before + 1e-8).log() - (after + 1e-8).log()
        (logits.grad,) = torch.autograd.grad(logits.softmax(0), logits, grad_outputs=change)
        optimizer.step()
        torch.testing.assert_close(weighting.logits, logits.detach(), rtol=1e-8, atol=1e-8)


def moved(*, steps: int = 3) -> FAMO:
    """A weighting of three tasks in the middle of its life."""
    weighting = FAMO(lr=0.1)
    for step in range(steps):
        weighting(Signals(vector(1.0, 2.0, 3.0) / (step + 1)))
        weighting.after_step(vector(0.9, 1.0, 3.3) / (step + 1), ALL)
    return weighting


@pytest.mark.parametrize("where", ["before", "after", "at its bound", "below its bound", "at its bound after"])
def test_a_task_that_is_not_there_keeps_what_it_has(where: str) -> None:
    """Absent before the step or after it, or not above its bound: its moments and its z stay, and the others go on."""
    weighting = moved()
    state = {name: buffer.clone() for name, buffer in weighting.named_buffers()}
    losses, after = vector(0.5, 0.7, 0.2), vector(0.45, 0.69, 0.1)
    here, later = ALL.clone(), ALL.clone()
    if where == "before":
        here[1] = False
    elif where == "after":
        later[1] = False
    elif where == "at its bound after":
        after[1] = 0.0
    else:
        losses[1] = 0.0 if where == "at its bound" else -0.3
    weights = weighting(Signals(losses, active=here))
    if not where.endswith("after"):
        assert weights[1] == state["current"][1]
    weighting.after_step(after, later)
    for name in ("moment1", "moment2", "updates"):
        assert getattr(weighting, name)[1] == state[name][1], name
    close(weighting.logits.softmax(0)[1], state["logits"].softmax(0)[1])
    close(weighting.weights().sum(), 1.0)
    assert (weighting.logits[[0, 2]] != state["logits"][[0, 2]]).all()
    assert (weighting.updates[[0, 2]] == 4).all()


@pytest.mark.parametrize("others", [vector(torch.nan, 1.0), vector(0.0, 0.0), vector(torch.inf, -1.0)])
def test_one_task_alone_moves_nothing(others: Tensor) -> None:
    """With fewer than two tasks there is nothing to compare, whatever the others are; nothing becomes NaN."""
    weighting = moved()
    before = weighting.logits.clone()
    weights = weighting.weights().clone()
    weighting(Signals(torch.cat([vector(0.5), others]), active=torch.tensor([True, False, False])))
    weighting.after_step(torch.cat([vector(0.4), others]), torch.tensor([True, False, False]))
    assert torch.equal(weighting.logits, before)
    close(weighting.weights(), weights)
    single = FAMO()
    for _ in range(3):
        assert single(Signals(vector(0.3))).tolist() == [1.0]
        single.after_step(vector(0.2), torch.tensor([True]))
    assert single.logits.tolist() == [0.0] and single.weights().tolist() == [1.0]


def test_losses_are_compared_once() -> None:
    """A second call after one window moves nothing, nor does one before any window."""
    weighting = FAMO()
    weighting.bind_unnamed(3, torch.float64)
    weighting.after_step(vector(1.0, 2.0, 3.0), ALL)
    assert weighting.logits.tolist() == [0.0, 0.0, 0.0]
    weighting(Signals(vector(1.0, 2.0, 3.0)))
    weighting.after_step(vector(0.5, 2.0, 3.0), ALL)
    once = weighting.logits.clone()
    assert once[0] < 0 < once[1]
    weighting.after_step(vector(0.1, 2.0, 3.0), ALL)
    assert torch.equal(weighting.logits, once)


@given(plan=st.lists(st.tuples(*[st.floats(-12, 12)] * 6, *[st.booleans()] * 6), min_size=1, max_size=6))
@settings(max_examples=40)
def test_famo_stays_finite_over_24_orders_of_magnitude(plan: list[tuple[Any, ...]]) -> None:
    """In float32, losses of 1e-12 to 1e12 before and after, tasks coming and going: finite, not negative, of sum 1."""
    weighting = FAMO(lr=1.0)
    for row in plan:
        values = torch.tensor(row[:6], dtype=torch.float64)
        losses, after = (10.0**values).float().split(3)
        here, later = torch.tensor(row[6:]).split(3)
        weights = weighting(Signals(losses, active=here))
        weighting.after_step(after, later)
        for found in (weights, weighting.weights()):
            assert bool(found.isfinite().all()) and bool((found >= 0).all())
            assert float(found.sum()) == pytest.approx(1.0, abs=1e-5)
        assert all(bool(buffer.isfinite().all()) for buffer in weighting.buffers())


def test_bounds_by_task_follow_the_names() -> None:
    """A mapping of lower bounds goes by name and not by position, and survives config and copies."""
    criterion = compose({"name": "famo", "min_losses": {"b": 1.0, "a": 0.0}}, tasks=["a", "b"])
    criterion.combine({"a": torch.ones(()), "b": torch.tensor(3.0)})
    assert criterion.outer.bounds.tolist() == [0.0, 1.0]
    torch.testing.assert_close(criterion.outer.weights(), torch.tensor([2 / 3, 1 / 3]), rtol=1e-6, atol=0)
    assert criterion.config()["outer"] == {"name": "famo", "lr": 0.025, "gamma": 1e-3, "min_losses": {"b": 1.0, "a": 0.0}}


def test_bounds_in_a_sequence_are_those_of_the_tasks_in_their_order() -> None:
    """A sequence does what the mapping does with which it agrees, is copied, and survives config and repr."""
    given = [0.0, 1.0]
    criterion = compose(FAMO(min_losses=given), tasks=["a", "b"])
    given[0] = 9.0
    criterion.combine({"a": torch.ones(()), "b": torch.tensor(3.0)})
    torch.testing.assert_close(criterion.outer.weights(), torch.tensor([2 / 3, 1 / 3]), rtol=1e-6, atol=0)
    assert not criterion.outer.symmetric and not criterion.outer.balances
    assert criterion.config()["outer"]["min_losses"] == [0.0, 1.0]
    assert compose(**criterion.config()).outer.min_losses == eval(repr(criterion.outer)).min_losses == [0.0, 1.0]
    with pytest.raises(OptionError, match=r"`min_losses` should be 3 numbers, one for each of \['a', 'b', 'c'\]"):
        FAMO(min_losses=(0.0, 1.0)).bind((TaskInfo("a"), TaskInfo("b"), TaskInfo("c")))


def test_options_out_of_range_are_refused() -> None:
    """Each is named, with what was found."""
    for options, match in (
        ({"lr": 0.0}, r"`lr` should be a number in \(0"),
        ({"gamma": -1.0}, r"`gamma` should be a number in \[0"),
        ({"min_losses": torch.inf}, "`min_losses` should be a number"),
        ({"min_losses": {"a": None}}, "`min_losses` should be a number"),
        ({"min_losses": [0.0, "1"]}, "`min_losses` should be a number"),
        ({"min_losses": "12"}, "`min_losses` should be a number, or a sequence or a mapping .*Found min_losses='12'"),
        ({"min_losses": []}, "`min_losses` is empty\\. Give one number per task"),
    ):
        with pytest.raises(OptionError, match=match):
            create("outer", "famo", **options)
    with pytest.raises(OptionError, match=r"`min_losses` should name the tasks \['a', 'b'\]. Found \['a'\]"):
        FAMO(min_losses={"a": 0.0}).bind((TaskInfo("a"), TaskInfo("b")))
    with pytest.raises(OptionError, match="FAMO takes ratios of losses"):
        compose("famo", torch_shape(), tasks=["a"])


def torch_shape() -> Any:
    """A shape that can be negative."""
    from mtl_axes import InnerShape

    class Signed(InnerShape):
        kinds = frozenset({"regression"})
        lower_bound = None

        def forward(self, prediction: Tensor, target: Tensor, /) -> Tensor:
            return prediction - target

    return Signed()


def test_bounds_decide_what_famo_claims() -> None:
    """A bound has a unit, so that weights depend on the units of the losses; below 0 it allows negative losses."""
    plain, bounded = create("outer", "famo"), create("outer", "famo", min_losses=0.5)
    assert (plain.scaling, plain.balances, plain.symmetric, plain.nonnegative) == ("invariant", True, True, True)
    assert (bounded.scaling, bounded.balances, bounded.symmetric, bounded.nonnegative) == (None, False, True, True)
    assert not torch.allclose(
        bounded(Signals(vector(2.0, 1.0))), create("outer", "famo", min_losses=0.5)(Signals(vector(20.0, 10.0)))
    )
    named = create("outer", "famo", min_losses={"a": -9.0, "b": 0.0})
    assert (named.symmetric, named.nonnegative) == (False, False)
    with pytest.raises(OptionError, match="negative"):
        compose("famo", {"a": "gaussian_nll", "b": "mse"})
    criterion = compose(named, {"a": "gaussian_nll", "b": "mse"})
    generator = torch.Generator().manual_seed(0)
    outputs = {"a": torch.zeros(8, 2).index_fill_(1, torch.tensor([1]), 0.01), "b": torch.randn(8, generator=generator)}
    outputs = {name: output.requires_grad_() for name, output in outputs.items()}
    criterion(outputs, {"a": torch.zeros(8), "b": torch.randn(8, generator=generator)}).backward()
    loss = criterion.report.losses
    expected = 1 / torch.stack([loss[0] + 9, loss[1]])
    torch.testing.assert_close(criterion.report.weights, expected / expected.sum())
