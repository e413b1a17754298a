"""Every registered outer weighting, through every contract that it declares."""

from __future__ import annotations

import copy
import json
import pickle
from collections.abc import Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import OUTERS, Plan, batch_for, equal, model_for, plans, quick, random_signals, same, snapshot
from torch import Tensor, nn

from mtl_axes import OuterWeighting, Signals, compose, create

SUMS = {"gaba": lambda count: 1.0, "dwa": float, "gradnorm": float, "fixed": lambda count: 1.0}
MOVING = [name for name in OUTERS if name != "fixed" and not quick(name).learnable]

every_outer = pytest.mark.parametrize("name", OUTERS)


def spread(weighting: OuterWeighting) -> None:
    """Move learnable parameters off their start, as an optimizer would."""
    with torch.no_grad():
        for parameter in weighting.parameters():
            parameter.add_(torch.linspace(-0.7, 0.9, parameter.numel()).to(parameter).view_as(parameter))


def driven(name: str, count: int = 3, *, windows: int = 5, dtype: torch.dtype = torch.float64) -> OuterWeighting:
    """A weighting in the middle of its life."""
    weighting = quick(name)
    for step in range(windows):
        weighting(random_signals(count, seed=step, step=step, dtype=dtype))
    spread(weighting)
    return weighting


def following(count: int = 3, *, dtype: torch.dtype = torch.float64) -> Iterator[Signals]:
    return (random_signals(count, seed=100 + step, step=5 + step, dtype=dtype) for step in range(4))


@every_outer
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("count", [1, 2, 5])
def test_weights_are_a_finite_vector_in_the_dtype_of_the_losses(name: str, count: int, dtype: torch.dtype) -> None:
    """Weights have the shape (K,), are finite and not negative, and keep the dtype of the statistics."""
    weighting = driven(name, count, dtype=dtype)
    returned = weighting(random_signals(count, seed=9, step=5, dtype=dtype))
    for weights in (returned, weighting.weights(), weighting.reference()):
        assert weights.shape == (count,)
        assert weights.dtype == dtype
        assert bool(torch.isfinite(weights).all())
        assert bool((weights >= 0).all())


@every_outer
def test_weights_follow_the_device_of_the_losses(name: str) -> None:
    """A weighting whose statistics move to another device moves its whole state there."""
    weighting = driven(name)
    on_meta = Signals(torch.ones(3, device="meta"), gramian=torch.ones(3, 3, device="meta"), step=5)
    assert weighting(on_meta).device.type == "meta"
    assert {tensor.device.type for tensor in (*weighting.buffers(), *weighting.parameters())} == {"meta"}


@every_outer
def test_half_precision_losses_give_float32_weights(name: str) -> None:
    """Statistics of half precision are widened before a weighting sees them."""
    for dtype in (torch.float16, torch.bfloat16):
        assert quick(name)(random_signals(2, seed=0, dtype=dtype)).dtype == torch.float32


@every_outer
def test_weights_are_detached_unless_learnable(name: str) -> None:
    """Only a learnable weighting hands out weights with a graph, whatever the statistics carry."""
    weighting = quick(name)
    carried = torch.ones(2, requires_grad=True)
    for signals in (Signals(carried * 2, gramian=torch.eye(2) * carried), Signals(carried * 2, norms=carried * 3)):
        assert not any(value.requires_grad for value in vars(signals).values() if value is not None)
        assert weighting(signals).requires_grad == weighting.learnable
    assert weighting.weights().requires_grad == weighting.learnable
    assert not weighting.current.requires_grad
    assert bool(list(weighting.parameters())) == weighting.learnable


@every_outer
@given(plan=plans(windows=5))
@settings(max_examples=40)
def test_weights_stay_finite_over_24_orders_of_magnitude(name: str, plan: Plan) -> None:
    """Norms from 1e-12 to 1e12 and any tasks coming and going leave weights and state finite."""
    weighting = quick(name)
    for signals in plan.signals():
        weights = weighting(signals)
        assert bool(torch.isfinite(weights).all()) and bool((weights >= 0).all())
    assert all(bool(torch.isfinite(tensor).all()) for tensor in weighting.buffers())


@every_outer
@given(
    seed=st.integers(0, 10_000),
    order=st.permutations(range(4)),
    masks=st.lists(st.lists(st.booleans(), min_size=4, max_size=4)),
)
@settings(max_examples=25)
def test_permuting_the_tasks_permutes_the_weights(name: str, seed: int, order: list[int], masks: list[list[bool]]) -> None:
    """The order of the tasks carries no meaning, also while tasks come and go."""
    index = torch.tensor(order)
    straight, permuted = quick(name), quick(name)
    for weighting in (straight, permuted):
        weighting.bind_unnamed(4, torch.float64)
    spread(straight)
    with torch.no_grad():
        for given_, copied in zip(straight.parameters(), permuted.parameters(), strict=True):
            copied.copy_(given_[index])
    # Continuous norms on purpose: equal ones leave gradnorm a gradient of rounding alone, which its Adam would magnify.
    for step, active in enumerate([[True] * 4, *masks[:6], [True] * 4]):
        shown = random_signals(4, seed=seed + step, step=step, active=active)
        gramian = shown.gramian[index][:, index]
        moved = Signals(
            shown.losses[index], norms=shown.norms[index], gramian=gramian, active=shown.active[index], step=step
        )
        torch.testing.assert_close(permuted(moved), straight(shown)[index], rtol=1e-9, atol=1e-13)


@every_outer
def test_one_task_keeps_a_constant_weight(name: str) -> None:
    """With K = 1 there is nothing to balance: the weight does not depend on the statistics."""
    weighting = quick(name)
    seen = [weighting(random_signals(1, seed=step, step=step)).detach().clone() for step in range(6)]
    assert all(torch.equal(weights, seen[0]) for weights in seen)
    if name in SUMS:
        assert seen[0].tolist() == [1.0]


@pytest.mark.parametrize("name", sorted(set(SUMS) & set(OUTERS)))
@pytest.mark.parametrize("count", [1, 2, 3, 6])
def test_weights_keep_their_sum(name: str, count: int) -> None:
    """The weights sum to 1 (gaba, fixed) or to K (dwa, gradnorm) in every window, subsets of tasks included."""
    weighting = quick(name)
    for step in range(12):
        active = [(step + index) % 3 != 0 for index in range(count)] if step % 2 else [True] * count
        weights = weighting(random_signals(count, seed=step, step=step, active=active))
        assert float(weights.sum()) == pytest.approx(SUMS[name](count), abs=1e-12)


@every_outer
def test_reference_weights_sum_to_one_and_do_not_move(name: str) -> None:
    """Weights of evaluation losses are constants that sum to 1, so that epochs can be compared."""
    weighting = quick(name)
    weighting.bind_unnamed(4, torch.float64)
    before = weighting.reference().clone()
    for step in range(5):
        weighting(random_signals(4, seed=step, step=step))
    assert torch.equal(weighting.reference(), before)
    assert float(before.sum()) == pytest.approx(1.0, abs=1e-15)


@every_outer
def test_reading_moves_nothing(name: str) -> None:
    """Everything but forward is a pure read: called twice, it returns the same and leaves the state alone."""
    weighting = driven(name)
    before = snapshot(weighting)
    for read in (weighting.weights, weighting.reference, weighting.penalty, weighting.diagnostics, weighting.options):
        assert equal(read(), read())
    weighting.measures(3), repr(weighting), weighting.state_dict()
    assert same(snapshot(weighting), before)


@every_outer
def test_a_weighting_moves_unless_it_says_otherwise(name: str) -> None:
    """One with moves=False returns its weights whatever the signals, and keeps its state: it need not be called."""
    weighting = driven(name)
    if weighting.moves:
        return
    before, weights = snapshot(weighting), weighting.weights().clone()
    for signals in following():
        assert torch.equal(weighting(signals), weights)
    assert same(snapshot(weighting), before)
    assert name not in MOVING


def test_signals_of_one_call_are_those_of_the_constructor() -> None:
    """The short way to signals of losses alone gives what the constructor gives, non-finite losses included."""
    losses = torch.tensor([2.0, torch.nan, torch.inf, -torch.inf, 0.0, -3.0])
    for active in (None, torch.tensor([1, 1, 1, 1, 0, 1]).bool()):
        assert equal(vars(Signals.of_losses(losses, active, 5)), vars(Signals(losses, active=active, step=5)))


@pytest.mark.parametrize("name", MOVING)
def test_forward_moves(name: str) -> None:
    """An adaptive weighting changes its weights when it is shown unequal tasks."""
    weighting = driven(name, windows=4)
    assert not torch.equal(weighting.weights(), torch.full_like(weighting.current, float(weighting.current[0])))


@every_outer
def test_weights_are_those_that_forward_returned(name: str) -> None:
    """Reading the weights after a window gives what the window returned."""
    weighting = driven(name)
    for signals in following():
        returned = weighting(signals).detach().clone()
        assert torch.equal(weighting.weights(), returned)


@every_outer
def test_what_forward_returned_does_not_change_later(name: str) -> None:
    """A vector of weights handed out by one window is not overwritten by the next."""
    weighting = driven(name)
    first = weighting(random_signals(3, seed=50, step=5))
    kept = first.detach().clone()
    weighting(random_signals(3, seed=51, step=6))
    assert torch.equal(first.detach(), kept)


ABSENT = {
    "inactive": lambda s: Signals(
        s.losses, norms=s.norms, gramian=s.gramian, active=torch.tensor([1, 0, 1]).bool(), step=s.step
    ),
    "nan loss": lambda s: Signals(put(s.losses, torch.nan), norms=s.norms, gramian=s.gramian, step=s.step),
    "inf loss": lambda s: Signals(put(s.losses, torch.inf), norms=s.norms, gramian=s.gramian, step=s.step),
    "zero norm": lambda s: Signals(s.losses, norms=put(s.norms, 0.0), gramian=s.gramian, step=s.step),
    "nan norm": lambda s: Signals(s.losses, norms=put(s.norms, torch.nan), gramian=s.gramian, step=s.step),
    "inf norm": lambda s: Signals(s.losses, norms=put(s.norms, torch.inf), gramian=s.gramian, step=s.step),
}


def put(values: Tensor | None, value: float) -> Tensor:
    assert values is not None
    return values.index_fill(0, torch.tensor([1]), value)


@every_outer
@pytest.mark.parametrize("why", ABSENT)
def test_an_absent_task_does_not_move(name: str, why: str) -> None:
    """A task that is absent, without a gradient or not finite keeps its state and weight, the others the rest."""
    weighting = quick(name, floor=0.0) if name == "gaba" else quick(name)
    for step in range(4):  # two whole epochs of dwa: no sum of an epoch is pending
        weighting(random_signals(3, seed=step, step=step))
    before, share = snapshot(weighting), weighting.weights().detach().clone()
    for step in range(4, 8):
        weighting(ABSENT[why](random_signals(3, seed=step, step=step)))
    after = snapshot(weighting)
    for key, value in after.items():
        if key != "current" and isinstance(value, Tensor) and value.shape == (3,):
            assert torch.equal(value[1], before[key][1]), key
    weights = weighting.weights().detach()
    torch.testing.assert_close(weights[1], share[1], rtol=1e-12, atol=0)
    torch.testing.assert_close(weights[[0, 2]].sum(), share[[0, 2]].sum(), rtol=1e-12, atol=0)
    if name in MOVING:
        assert not torch.equal(weights[0], share[0]), "the others should go on"


@every_outer
def test_a_window_without_active_tasks_moves_no_weight(name: str) -> None:
    """When every task is absent the weights stay as they are."""
    weighting = driven(name, windows=4)  # two whole epochs of dwa: nothing of an epoch is pending
    before = weighting.weights().detach().clone()
    weighting(random_signals(3, seed=8, step=5, active=[False] * 3))
    assert torch.equal(weighting.weights().detach(), before)


@every_outer
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_loaded_state_goes_on_bit_for_bit(name: str, dtype: torch.dtype) -> None:
    """A fresh weighting that loads a state before its first window returns the same weights from then on."""
    weighting, fresh = driven(name, dtype=dtype), quick(name)
    fresh.load_state_dict(copy.deepcopy(weighting.state_dict()))
    for signals in following(dtype=dtype):
        assert equal(fresh(signals).detach(), weighting(signals).detach())
    assert equal(fresh.state_dict(), weighting.state_dict())


@every_outer
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda weighting: pickle.loads(pickle.dumps(weighting))])
def test_a_copy_goes_on_bit_for_bit_and_alone(name: str, copied) -> None:
    """deepcopy and pickle give a weighting that continues like the original and shares nothing with it."""
    weighting = driven(name)
    twin = copied(weighting)
    kept = snapshot(twin)
    windows = list(following())
    expected = [weighting(signals).detach().clone() for signals in windows]
    assert same(snapshot(twin), kept)
    assert all(torch.equal(twin(signals).detach(), weights) for signals, weights in zip(windows, expected, strict=True))


@every_outer
@pytest.mark.parametrize("narrow", ["half", "bfloat16"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_narrowing_the_model_narrows_no_state(name: str, narrow: str, dtype: torch.dtype) -> None:
    """A cast of the whole model to half precision leaves every value of the state exactly as it was."""
    weighting = driven(name, dtype=dtype)
    before = snapshot(weighting)
    parent = nn.ModuleDict({"model": nn.Linear(2, 2), "weighting": weighting})
    getattr(parent, narrow)()
    assert parent["model"].weight.dtype.itemsize == 2
    assert same(snapshot(weighting), before)


@every_outer
def test_repr_is_the_constructor_call(name: str) -> None:
    """Evaluating the repr of a weighting builds the same weighting."""
    weighting = quick(name)
    rebuilt = eval(repr(weighting), {type(weighting).__name__: type(weighting)})
    assert rebuilt.options() == weighting.options()
    assert repr(rebuilt) == repr(weighting)


@every_outer
def test_config_builds_the_same_criterion(name: str) -> None:
    """The config of a criterion is plain data, and builds a criterion that trains in the same way."""
    settings_ = {"every": 2, "accumulate": 1, "eval_weights": "current", "missing": "ignore", "debug": True, "sync": None}
    criterion = compose({"name": name, **quick(name).options()}, "huber", tasks=["a", "b"], **settings_)
    plain = json.loads(json.dumps(criterion.config()))
    twin = compose(**plain)
    assert twin.config() == criterion.config()
    assert repr(twin) == repr(criterion)
    assert plain["outer"] == {"name": name, **quick(name).options()}
    assert all(plain[key] == value for key, value in settings_.items())
    kinds = {"a": "regression", "b": "regression"}
    model, (inputs, targets) = model_for(kinds), batch_for(kinds)
    for _ in range(4):
        outputs = model(inputs)
        assert torch.equal(criterion(outputs, targets), twin(outputs, targets))


@every_outer
@pytest.mark.parametrize("how", ["eval", "no_grad", "inference", "hold"])
@pytest.mark.parametrize("accumulate", [1, 3, "manual"])
def test_evaluation_and_hold_move_nothing(name: str, how: str, accumulate) -> None:
    """Calls in eval mode, without gradients or within hold() leave the whole state of the criterion bit for bit alone."""
    kinds = {"a": "regression", "b": "multiclass"}
    model, (inputs, targets) = model_for(kinds), batch_for(kinds)
    criterion = compose(quick(name), "mse", tasks=["a", "b"], accumulate=accumulate)
    for _ in range(4):
        criterion(model(inputs), targets).backward()
    before, report = snapshot(criterion), criterion.report
    contexts = {
        "no_grad": torch.no_grad,
        "inference": torch.inference_mode,
        "hold": criterion.hold,
        "eval": torch.enable_grad,
    }
    criterion.train(how != "eval")
    with contexts[how]():
        for seed in range(3):
            criterion(model(inputs), batch_for(kinds, seed=seed)[1])
    assert same(snapshot(criterion), before)
    assert criterion.report is report


def test_created_weightings_are_unbound() -> None:
    """A weighting knows no task before it is bound, and is bound by its first signals on its own."""
    for name in OUTERS:
        weighting = create("outer", name)
        assert not weighting.bound
        weighting(random_signals(2, seed=0))
        assert [info.name for info in weighting.tasks] == ["0", "1"]
