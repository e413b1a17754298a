"""TorchJD's Gramian weightings behind ``loss.backward()``: the gradient is that of TorchJD's own aggregation."""

from __future__ import annotations

import copy
import io
import math
import pickle
import subprocess
import sys
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from sampling import slowly
from strategies import batch_for, equal, model_for
from torch import Tensor, nn

from mtl_axes import OuterWeighting, Signals, TaskInfo, compose
from mtl_axes.errors import MtlAxesError, OptionError, PluginError, StateError
from mtl_axes.testing import check_outer

torchjd = pytest.importorskip("torchjd", reason="the bridge to TorchJD needs torchjd")
from mtl_axes.adapters.torchjd import from_torchjd  # noqa: E402
from torchjd import aggregation as tj  # noqa: E402
from torchjd.linalg import PSDMatrix  # noqa: E402

f64 = torch.float64
KINDS = {"a": "regression", "b": "binary", "c": "multiclass", "d": "regression"}

# A constructor for every Gramian weighting that TorchJD exports; the last four have a state or options of their own.
MADE: dict[str, Callable[[], Any]] = {
    "AlignedMTLWeighting": lambda: tj.AlignedMTLWeighting(scale_mode="rmse"),
    "CAGradWeighting": lambda: tj.CAGradWeighting(c=0.5),
    "DualProjWeighting": lambda: tj.DualProjWeighting(),
    "FairGradWeighting": lambda: tj.FairGradWeighting(alpha=1.0),
    "IMTLGWeighting": lambda: tj.IMTLGWeighting(),
    "KrumWeighting": lambda: tj.KrumWeighting(n_byzantine=1, n_selected=2),
    "MGDAWeighting": lambda: tj.MGDAWeighting(),
    "PCGradWeighting": lambda: tj.PCGradWeighting(),
    "UPGradWeighting": lambda: tj.UPGradWeighting(),
    "UPGradWeighting of a preference": lambda: tj.UPGradWeighting(pref_vector=torch.tensor([1.0, 2.0, 3.0, 4.0], dtype=f64)),
    "GradVacWeighting": lambda: tj.GradVacWeighting(beta=0.3),
    "PCDWeighting": lambda: tj.PCDWeighting(tau=0.3, beta=0.9),
    "CRMOGMWeighting": lambda: tj.CRMOGMWeighting(tj.UPGradWeighting(), alpha=0.7),
}
STATEFUL = ("GradVacWeighting", "PCDWeighting", "CRMOGMWeighting")

every = pytest.mark.parametrize("name", MADE)
stateful = pytest.mark.parametrize("name", STATEFUL)


def made(name: str) -> Any:
    """The weighting of a name, or a skip that says which package TorchJD wants for it."""
    try:
        return MADE[name]()
    except ImportError as error:
        pytest.skip(str(error))


def gramian(seed: int, count: int = 4) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    jacobian = torch.randn(count, 7, generator=generator, dtype=f64) + 0.3
    return jacobian @ jacobian.T


def signals(seed: int, *, active: Sequence[bool] | None = None) -> Signals:
    flags = None if active is None else torch.tensor(active)
    return Signals(torch.ones(4, dtype=f64), gramian=gramian(seed), active=flags)


def losses_of(model: nn.Module, inputs: Tensor, targets: dict[str, Tensor]) -> list[Tensor]:
    """The same losses as the criterion's standard shapes, from torch alone."""
    outputs = model(inputs)
    return [
        nn.functional.mse_loss(outputs["a"], targets["a"]),
        nn.functional.binary_cross_entropy_with_logits(outputs["b"], targets["b"].to(f64)),
        nn.functional.cross_entropy(outputs["c"], targets["c"]),
        nn.functional.mse_loss(outputs["d"], targets["d"]),
    ]


def test_every_exported_gramian_weighting_is_here() -> None:
    """The table of this file names all of TorchJD's Gramian weightings, and what wraps one."""
    exported = {name for name in tj.__all__ if name.endswith("Weighting") and name != "Weighting"}
    refused = set()
    for name in exported - {name.split()[0] for name in MADE}:
        options = {"ConstantWeighting": {"weights": torch.ones(2)}}.get(name, {})
        with pytest.raises(OptionError, match=rf"weighting of the Gramian, .*Found {name}, which takes the Jacobian"):
            from_torchjd(getattr(tj, name)(**options))
        refused.add(name)
    assert refused == {
        "ConstantWeighting",
        "ExcessMTLWeighting",
        "MeanWeighting",
        "MoDoWeighting",
        "RandomWeighting",
        "SDMGradWeighting",
        "SumWeighting",
    }


@every
def test_shared_gradients_are_those_of_torchjds_aggregation(name: str) -> None:
    """Over steps of training, the shared gradient is the peer's aggregation of the Jacobian; heads get their own weight."""
    aggregator, weighting = tj.GramianWeightedAggregator(made(name)), made(name)
    model = model_for(KINDS, dtype=f64)
    criterion = compose(from_torchjd(weighting), {"a": "mse", "b": "bce", "c": "cross_entropy", "d": "mse"})
    shared = list(model.trunk.parameters())
    torch.manual_seed(0)
    for step in range(4):
        inputs, targets = batch_for(KINDS, seed=step, dtype=f64)
        losses = losses_of(model, inputs, targets)
        rows = [torch.autograd.grad(loss, shared, retain_graph=True) for loss in losses]
        expected = aggregator(torch.stack([torch.cat([part.flatten() for part in row]) for row in rows]))
        heads = torch.autograd.grad(losses[0], list(model.heads["a"].parameters()))
        criterion(model(inputs), targets).backward()
        found = torch.cat([parameter.grad.flatten() for parameter in shared])
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
        weight = criterion.report.weights[0]
        for parameter, gradient in zip(model.heads["a"].parameters(), heads, strict=True):
            torch.testing.assert_close(parameter.grad, weight * gradient, rtol=1e-9, atol=1e-12)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter -= 0.05 * parameter.grad
                parameter.grad = None


def test_weights_of_float32_losses_are_solved_in_float64() -> None:
    """A float32 Gramian is solved in float64, where TorchJD would solve it in its own dtype, and comes back in float32."""
    seen = []

    class Spy(tj.Weighting[PSDMatrix]):
        def forward(self, stat: Tensor, /) -> Tensor:
            seen.append((stat.dtype, stat.device.type))
            return stat.diagonal().rsqrt()

    found = from_torchjd(Spy())(Signals(torch.ones(4), gramian=gramian(0).float()))
    assert set(seen) == {(f64, "cpu")}
    torch.testing.assert_close(found, gramian(0).diagonal().rsqrt().float(), rtol=1e-6, atol=0)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (lambda: tj.UPGrad(), r"Found the aggregator UPGrad; pass its \.gramian_weighting"),
        (lambda: tj.UPGrad().weighting, r"computes the Gramian of a Jacobian; pass the aggregator's \.gramian_weighting"),
        (lambda: tj.ConFIG(), r"Found the aggregator ConFIG, which needs the whole Jacobian"),
        (lambda: tj.Mean(), r"Found the aggregator Mean, which needs the whole Jacobian"),
        (lambda: tj.UPGradWeighting, r"Found the class UPGradWeighting; call it"),
        (lambda: tj.UPGrad, r"Found the class UPGrad; call it"),
        (lambda: tj.CRMOGMWeighting(tj.MeanWeighting()), r"Found MeanWeighting, which takes the Jacobian"),
        (lambda: "upgrad", r"Found 'upgrad', which is no weighting of torchjd\.aggregation"),
        (lambda: nn.Linear(2, 2), r"Found Linear\(.*, which is no weighting of torchjd\.aggregation"),
    ],
)
def test_what_is_no_gramian_weighting_is_refused(given: Callable[[], Any], message: str) -> None:
    """Aggregators, classes, weightings of the Jacobian and other things are errors that say what to pass."""
    with pytest.raises(OptionError, match=message):
        from_torchjd(given())


def test_the_weighting_of_an_aggregator_is_taken() -> None:
    """``gramian_weighting`` is what the message says to pass, and a composition of Gramians is taken, too."""
    expected = tj.UPGradWeighting()(gramian(1))
    for weighting in (tj.UPGrad().gramian_weighting, tj.UPGradWeighting() << (lambda stat: stat)):
        torch.testing.assert_close(from_torchjd(weighting)(signals(1)), expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (lambda: tj.KrumWeighting(n_byzantine=2), r"from_torchjd\(KrumWeighting\(n_byzantine=2.*cannot weight 4 tasks"),
        (lambda: tj.UPGradWeighting(pref_vector=torch.ones(3)), r"cannot weight 4 tasks: "),
        (lambda: tj.PCDWeighting(tau=torch.ones(2)), r"cannot weight 4 tasks: "),
    ],
)
def test_what_does_not_fit_the_tasks_shows_at_compose(given: Callable[[], Any], message: str) -> None:
    """Options of a TorchJD weighting for another number of tasks are an error before any loss is computed."""
    with pytest.raises(OptionError, match=message):
        compose(from_torchjd(given()), "mse", tasks=["a", "b", "c", "d"])


def test_a_vector_of_the_wrong_shape_is_an_error_at_compose() -> None:
    """A weighting that returns something else than one weight per task is found out on binding."""

    class Pair(tj.Weighting[PSDMatrix]):
        def forward(self, stat: Tensor, /) -> Tensor:
            return stat[:2, 0]

    with pytest.raises(OptionError, match=r"should return 3 weights\. Found the shape \(2,\)"):
        compose(from_torchjd(Pair()), "mse", tasks=["a", "b", "c"])


@every
def test_absent_tasks_leave_the_problem(name: str) -> None:
    """Without a state: 0 for an absent task, the peer's own solution for the rest. With one: nothing moves."""
    weighting = from_torchjd(made(name))
    weighting(signals(0))
    before = weighting.weights().clone()
    memory = copy.deepcopy(weighting.state_dict())
    flags = [True, False, True, True]
    index = torch.tensor(flags).nonzero().squeeze(1)
    if name == "KrumWeighting":  # 3 gradients are too few for one that may be wrong
        with pytest.raises(PluginError, match=r"cannot weight the 3 of 4 tasks that are active: ValueError"):
            weighting(signals(1, active=flags))
        return
    found = weighting(signals(1, active=flags))
    if name in STATEFUL:
        assert not weighting.memoryless
        assert torch.equal(found, before)
        assert equal(weighting.state_dict(), memory)
        return
    assert weighting.memoryless
    peer = made(name)
    if getattr(peer, "pref_vector", None) is not None:
        peer.pref_vector = peer.pref_vector[index]
    torch.manual_seed(0)
    made(name)(gramian(0))  # as many draws as the first window took
    expected = peer(gramian(1)[index][:, index])
    torch.testing.assert_close(found[index], expected, rtol=1e-9, atol=1e-12)
    assert found[1] == 0
    assert torch.equal(weighting(signals(2, active=[False] * 4)), found)


def test_options_changed_on_the_weighting_take_effect() -> None:
    """The TorchJD object is not copied: a schedule of one of its options works as it does in TorchJD."""
    inner = tj.CRMOGMWeighting(tj.UPGradWeighting(), alpha=0.9)
    weighting = from_torchjd(inner)
    weighting(signals(0))
    inner.alpha = 0.0
    torch.testing.assert_close(weighting(signals(1)), tj.UPGradWeighting()(gramian(1)), rtol=1e-12, atol=1e-14)


def test_results_that_are_not_finite_leave_the_weights_as_they_are() -> None:
    """NaN or inf from the peer never reaches the weights; its zeros do, as they are its answer."""

    class Fails(tj.Weighting[PSDMatrix]):
        result = 1.0

        def forward(self, stat: Tensor, /) -> Tensor:
            return torch.full((len(stat),), self.result, dtype=stat.dtype)

    weighting = from_torchjd(Fails())
    for result, expected in ((2.0, 2.0), (math.nan, 2.0), (math.inf, 2.0), (0.0, 0.0)):
        weighting.weighting.result = result
        assert weighting(signals(0)).tolist() == [expected] * 4


@pytest.mark.parametrize("name", ["PCGradWeighting", "GradVacWeighting"])
def test_random_numbers_are_its_own(name: str) -> None:
    """One seed gives one sequence whatever else is drawn, and torch's global generator does not move."""
    one, two, other = from_torchjd(made(name)), from_torchjd(made(name)), from_torchjd(made(name), seed=7)
    before = torch.get_rng_state()
    first = [one(signals(step)).clone() for step in range(6)]
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(5)
    assert equal(first, [two(signals(step)) for step in range(6)])
    assert not equal(first, [other(signals(step)) for step in range(6)])


def reload(state: dict[str, Any]) -> dict[str, Any]:
    """A state_dict through a file, as a checkpoint that trusts nothing is read."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    loaded: dict[str, Any] = torch.load(buffer, weights_only=True)
    return loaded


@every
def test_a_loaded_state_goes_on_bit_for_bit(name: str) -> None:
    """A fresh bridge that loads a state, with TorchJD's own state and the random numbers, continues as the saved one."""
    weighting, fresh = from_torchjd(made(name)), from_torchjd(made(name))
    for step in range(3):
        weighting(signals(step))
    fresh.load_state_dict(reload(weighting.state_dict()))
    assert equal(fresh.state_dict(), weighting.state_dict())
    for step in range(3, 7):
        assert torch.equal(fresh(signals(step)), weighting(signals(step)))


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda given: pickle.loads(pickle.dumps(given))])
@every
def test_copies_go_on_alone(name: str, copied: Callable[[OuterWeighting], OuterWeighting]) -> None:
    """deepcopy and pickle give a bridge that continues like the original and shares nothing with it."""
    weighting = from_torchjd(made(name))
    weighting(signals(0))
    twin = copied(weighting)
    expected = [weighting(signals(step)).clone() for step in range(1, 5)]
    assert equal([twin(signals(step)) for step in range(1, 5)], expected)


@stateful
def test_reset_forgets(name: str) -> None:
    """After reset() the bridge and what it wraps begin anew."""
    weighting = from_torchjd(made(name))
    first = [weighting(signals(step)).clone() for step in range(3)]
    weighting.reset()
    assert equal([weighting(signals(step)) for step in range(3)], first)


def test_a_state_of_another_weighting_is_refused() -> None:
    """States of two TorchJD weightings do not mix."""
    weighting, other = from_torchjd(tj.GradVacWeighting()), from_torchjd(tj.PCDWeighting())
    weighting(signals(0))
    with pytest.raises(StateError, match=r"state of a GradVacWeighting does not fit a PCDWeighting"):
        other.load_state_dict(weighting.state_dict())


@stateful
def test_casts_of_the_criterion_do_not_reach_its_state(name: str) -> None:
    """criterion.half() leaves TorchJD's own state in float64, and a whole criterion resumes from its checkpoint."""
    model, weights = model_for(KINDS, dtype=f64), []
    criterion, fresh = (compose(from_torchjd(made(name)), "mse", tasks=list(KINDS)) for _ in range(2))
    for step in range(5):
        inputs, targets = batch_for(KINDS, seed=step, dtype=f64)
        criterion(model(inputs), targets).backward()
        weights.append(criterion.report.weights)
        if step == 2:
            criterion.half()
            fresh.load_state_dict(reload(criterion.state_dict()))
        if step > 2:
            fresh(model(inputs), targets).backward()
            assert torch.equal(fresh.report.weights, weights[-1])
    assert not torch.equal(weights[-1], weights[-2])


@every
def test_repr_is_the_constructor_call(name: str) -> None:
    """Evaluating the repr builds the same bridge."""
    weighting = from_torchjd(made(name), seed=3)
    scope = {**vars(tj), **vars(torchjd.linalg), "from_torchjd": from_torchjd, "tensor": torch.tensor, "torch": torch}
    rebuilt = eval(repr(weighting), scope)
    assert "\n" not in repr(weighting)
    assert repr(rebuilt) == repr(weighting)
    assert rebuilt.seed == 3
    assert torch.equal(rebuilt(signals(0)), weighting(signals(0)))


@pytest.mark.parametrize(
    "name",
    [
        "PCGradWeighting",
        *slowly((name,) for name in ("UPGradWeighting of a preference", "GradVacWeighting", "CRMOGMWeighting")),
    ],
)
def test_it_keeps_the_contracts_of_an_outer_weighting(name: str) -> None:
    """One of each mechanism passes the conformance kit, but for the repr, which names the function and not the class."""
    tasks = list(KINDS) if "preference" in name else None
    check_outer(lambda: from_torchjd(made(name)), tasks=tasks, skip={"rebuilt"})


def test_a_config_cannot_name_it() -> None:
    """An object that no name stands for is an error in config() that shows it."""
    criterion = compose(from_torchjd(tj.UPGradWeighting()), "mse", tasks=["a", "b"])
    with pytest.raises(MtlAxesError, match=r"from_torchjd\(UPGradWeighting\(.* has an object as its `weighting`") as caught:
        criterion.config()
    assert "a weighting built from an object cannot be named in a config" in str(caught.value)
    assert "register" not in str(caught.value)


def test_the_tasks_that_it_is_bound_to_are_the_criterions() -> None:
    """It is an outer weighting like any other: bound by name, of the Gramian, and honest about what it may return."""
    weighting = from_torchjd(tj.UPGradWeighting())
    weighting.bind((TaskInfo("a"), TaskInfo("b")))
    assert isinstance(weighting, OuterWeighting) and weighting.needs == "gramian" and weighting.on_host
    assert (weighting.sign, weighting.total, weighting.traceable) == ("any", None, False)
    assert weighting.weights().tolist() == [0.5, 0.5]


def test_without_torchjd_the_import_says_what_to_install() -> None:
    """Where torchjd is missing, only this adapter fails, and its error names the extra."""
    script = "import sys; sys.modules['torchjd'] = None; import mtl_axes; import mtl_axes.adapters.torchjd"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode != 0
    assert 'ImportError: mtl_axes.adapters.torchjd needs torchjd 0.18: pip install "mtl_axes[torchjd]"' in done.stderr
