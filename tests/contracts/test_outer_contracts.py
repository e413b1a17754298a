"""Every registered outer weighting through the conformance kit, and what only a search or a known mechanism can show."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sampling import slowly
from strategies import OUTERS, QUICK, REPRESENTATIVE, Plan, equal, plans, quick, random_signals

from mtl_axes import Signals
from mtl_axes.testing import check_outer

every_outer = pytest.mark.parametrize("name", OUTERS)
representative = pytest.mark.parametrize("name", REPRESENTATIVE)

# Weightings whose active tasks share the mass that they had, so that the sum is kept over any subset.
MASS = {"dwa": float, "gaba": lambda count: 1.0, "gradnorm": float}


OTHERS = [name for name in OUTERS if name not in REPRESENTATIVE]


@pytest.mark.parametrize("name", [*REPRESENTATIVE, *slowly((name,) for name in OTHERS)])
def test_a_weighting_keeps_its_contracts(name: str) -> None:
    """Every contract that the weighting declares, by its name and with the options of its example."""
    check_outer(name)


@pytest.mark.parametrize("name", OTHERS)
def test_a_weighting_keeps_most_of_its_contracts(name: str) -> None:
    """The same without the checks that take most of the time: of hard inputs, which the next test has, and of one graph."""
    check_outer(name, skip=("finite", "sign", "total", "traceable"))


@pytest.mark.parametrize("name", sorted(set(QUICK) & set(OUTERS)))
def test_a_weighting_keeps_its_contracts_while_it_moves(name: str) -> None:
    """The same with options under which it moves within a few windows."""
    check_outer(lambda: quick(name))


def finite(name: str, plan: Plan) -> None:
    weighting = quick(name)
    for signals in plan.signals():
        weights = weighting(signals)
        assert bool(torch.isfinite(weights).all())
        assert weighting.sign == "any" or bool((weights >= 0).all())
    assert all(bool(torch.isfinite(tensor).all()) for tensor in weighting.buffers())


@every_outer
@given(plan=plans(windows=3))
@settings(max_examples=10)
def test_weights_stay_finite_over_24_orders_of_magnitude(name: str, plan: Plan) -> None:
    """Norms from 1e-12 to 1e12, any common cosine, and tasks coming and going leave weights and state finite."""
    finite(name, plan)


@representative
@given(plan=plans(windows=6))
@settings(max_examples=40)
def test_weights_stay_finite_for_long(name: str, plan: Plan) -> None:
    """The same, longer, for one weighting of each mechanism."""
    finite(name, plan)


@pytest.mark.parametrize("name", [name for name in REPRESENTATIVE if quick(name).symmetric])
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
    # Continuous norms on purpose: equal ones leave gradnorm a gradient of rounding alone, which its Adam would magnify.
    for step, active in enumerate([[True] * 4, *masks[:6], [True] * 4]):
        shown = random_signals(4, seed=seed + step, step=step, active=active)
        gramian = shown.gramian[index][:, index]
        moved = Signals(
            shown.losses[index], norms=shown.norms[index], gramian=gramian, active=shown.active[index], step=step
        )
        # Solvers stop within 1e-9 of the optimum, relative to the largest weight.
        expected = straight(shown)[index].detach()
        slack = 1e-7 * float(expected.abs().max()) if straight.on_host else 1e-13
        torch.testing.assert_close(permuted(moved).detach(), expected, rtol=1e-9, atol=slack)


@pytest.mark.parametrize("name", [name for name in OUTERS if quick(name).reads_signals])
def test_forward_moves(name: str) -> None:
    """An adaptive weighting gives weights that differ from task to task when it is shown unequal tasks."""
    weighting = quick(name)
    shown = [weighting(random_signals(3, seed=step, step=step)) for step in range(4)]
    # Not in the last window alone: without a conflict there is nothing for some of them to do.
    assert any(not torch.equal(weights, weights[:1].expand(3)) for weights in shown)


@pytest.mark.parametrize("name", MASS)
@pytest.mark.parametrize("count", [1, 2, 3, 6])
def test_weights_keep_their_sum_over_subsets(name: str, count: int) -> None:
    """The weights of gaba (1), dwa and gradnorm (K) keep their sum in every window, subsets of tasks included."""
    weighting = quick(name)
    for step in range(12):
        active = [(step + index) % 3 != 0 for index in range(count)] if step % 2 else [True] * count
        weights = weighting(random_signals(count, seed=step, step=step, active=active))
        assert float(weights.sum()) == pytest.approx(MASS[name](count), abs=1e-12)


@pytest.mark.parametrize("name", MASS)
def test_the_others_share_the_mass_that_they_had(name: str) -> None:
    """While a task is away the others go on, within the sum of weights that they had."""
    weighting = quick(name, floor=0.0) if name == "gaba" else quick(name)
    for step in range(4):  # two whole epochs of dwa: no sum of an epoch is pending
        weighting(random_signals(3, seed=step, step=step))
    share = weighting.weights().clone()
    for step in range(4, 8):
        weighting(random_signals(3, seed=step, step=step, active=[True, False, True]))
    weights = weighting.weights()
    torch.testing.assert_close(weights[[0, 2]].sum(), share[[0, 2]].sum(), rtol=1e-12, atol=0)
    assert not torch.equal(weights[0], share[0]), "the others should go on"


@every_outer
def test_reference_weights_are_comparable(name: str) -> None:
    """Weights of evaluation losses sum to 1, for every weighting whose own weights nobody gave."""
    weighting = quick(name)
    weighting.bind_unnamed(4, torch.float64)
    assert float(weighting.reference().sum()) == pytest.approx(1.0, abs=1e-15)


def test_signals_of_one_call_are_those_of_the_constructor() -> None:
    """The short way to signals of losses alone gives what the constructor gives, non-finite losses included."""
    losses = torch.tensor([2.0, torch.nan, torch.inf, -torch.inf, 0.0, -3.0])
    for active in (None, torch.tensor([1, 1, 1, 1, 0, 1]).bool()):
        assert equal(vars(Signals.of_losses(losses, active, 5)), vars(Signals(losses, active=active, step=5)))


def test_the_representative_weightings_are_there() -> None:
    """Each mechanism has its representative among the registered weightings."""
    assert set(REPRESENTATIVE) <= set(OUTERS) and len(REPRESENTATIVE) >= 5
    needs = {quick(name).needs for name in REPRESENTATIVE}
    assert needs >= {"losses", "norms"}
