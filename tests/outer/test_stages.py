"""Stages around any weighting: what each does to the weights, and that the base lives on underneath."""

from __future__ import annotations

import copy
import io
import itertools
import json
import math
import pickle
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import Plan, batch_for, model_for, plans, random_signals, same, snapshot
from torch import Tensor

from mtl_axes import InnerShape, OuterWeighting, Signals, compose, create
from mtl_axes.errors import OptionError, StateError, UnknownNameError
from mtl_axes.testing import check_outer

f64 = torch.float64


class Given(OuterWeighting):
    """Weights that are the losses of the window: what a stage makes of them can be written down."""

    def __init__(self, *, total: str | None = None, sign: str = "nonnegative", memoryless: bool = False) -> None:
        super().__init__()
        self.total, self.sign, self.memoryless = total, sign, memoryless

    def forward(self, signals: Signals, /) -> Tensor:
        active = signals.active
        return torch.where(active, signals.losses, torch.zeros_like(signals.losses) if self.memoryless else self.current)


class CountedInverse(OuterWeighting):
    """The inverse norm times the number of tasks that take part: the sum K without memory."""

    needs = "norms"
    total = "K"
    memoryless = True

    def forward(self, signals: Signals, /) -> Tensor:
        inverse = torch.where(signals.active, 1 / signals.norms, 0.0)
        weights = inverse / inverse.sum() * signals.active.sum()
        return torch.where(signals.active.any(), weights, self.current)


class Signed(InnerShape):
    """A shape that can be negative."""

    kinds = frozenset({"regression"})
    lower_bound = None

    def forward(self, prediction: Tensor, target: Tensor, /) -> Tensor:
        return prediction - target


def vector(values: Any) -> Tensor:
    return torch.tensor(values, dtype=f64)


def shown(*losses: float, active: Any = None, step: int = 0, elapsed: Any = None) -> Signals:
    return Signals(
        vector(losses),
        active=None if active is None else torch.tensor(active),
        step=step,
        elapsed=None if elapsed is None else vector(elapsed),
    )


def stage(name: str, base: Any, **options: Any) -> Any:
    return create("outer", name, base=base, **options)


# A base of each sort: with the sum 1 and without memory, with the sum K and with memory, without a sum, of epochs, constant.
BASES: dict[str, Any] = {
    "inverse_norm": "inverse_norm",
    "gradnorm": {"name": "gradnorm", "lr": 0.1},
    "db_mtl": "db_mtl",
    "dwa": {"name": "dwa", "window": 1},
    "fixed": {"name": "fixed", "weights": [0.5, 1.5, 1.0]},
}
STAGES: dict[str, dict[str, Any]] = {
    "ema": {"beta": 0.5},
    "floor": {"floor": 0.1},
    "warmup": {"windows": 2},
    "clip": {"low": 0.2, "high": 1.2},
    "rescaled": {"total": "1"},
}
PAIRS = [pair for pair in itertools.product(STAGES, BASES) if pair != ("floor", "fixed")]
every_pair = pytest.mark.parametrize(("name", "base"), PAIRS, ids=["-".join(pair) for pair in PAIRS])


def named(base: Any) -> dict[str, Any]:
    return {"name": base} if isinstance(base, str) else dict(base)


def alone(base: Any) -> OuterWeighting:
    """The base without a stage."""
    if isinstance(base, OuterWeighting):
        return copy.deepcopy(base)
    options = named(base)
    return create("outer", options.pop("name"), **options)


def built(name: str, base: str) -> Any:
    return stage(name, BASES[base], **STAGES[name])


def run(weighting: OuterWeighting, plan: Plan) -> list[Tensor]:
    return [weighting(signals).clone() for signals in plan.signals()]


PLAN = Plan(
    losses=tuple((1.0 + 0.3 * step, 2.0 - 0.2 * step, 0.5 + 0.1 * step**2) for step in range(8)),
    norms=tuple((4.0 + step, 0.5, 20.0 / (1 + step)) for step in range(8)),
    active=tuple((True, step % 4 != 2, step != 5) for step in range(8)),
)


class NumpyEma:
    """The average of weights that sum to ``total``, task by task, from the sentences of its docstring."""

    def __init__(self, count: int, beta: float, total: float) -> None:
        self.beta, self.total = beta, total
        self.ema = [total / count] * count

    def __call__(self, raw: list[float], active: list[bool], elapsed: list[float]) -> list[float]:
        members = [i for i in range(len(raw)) if active[i]]
        if len(members) > 1:
            mass = self.total if len(members) == len(raw) else math.fsum(self.ema[i] for i in members)
            of_members = math.fsum(raw[i] for i in members)
            for i in members:
                decay = self.beta ** elapsed[i]
                self.ema[i] = decay * self.ema[i] + (1 - decay) * raw[i] * mass / of_members
            moved = math.fsum(self.ema[i] for i in members)
            for i in members:
                self.ema[i] *= mass / moved
        return self.ema


class TestEma:
    """The average."""

    @pytest.mark.parametrize("base", ["inverse_norm", "gradnorm", "dwa", CountedInverse()], ids=str)
    @given(plan=plans(windows=6), seed=st.integers(0, 100))
    @settings(max_examples=15)
    def test_it_is_the_average_that_its_page_describes(self, base: Any, plan: Plan, seed: int) -> None:
        """Weights with the sum 1 or K, of bases with memory and without, tasks that come and go, gaps that differ."""
        base = BASES[base] if isinstance(base, str) else base
        weighting, raw = stage("ema", base, beta=0.7), alone(base)
        written = NumpyEma(plan.size, 0.7, 1.0 if raw.total == "1" else plan.size)
        rng = np.random.default_rng(seed)
        for signals in plan.signals():
            elapsed = vector(rng.integers(1, 5, plan.size).tolist())
            signals = Signals(signals.losses, signals.norms, active=signals.active, elapsed=elapsed, step=signals.step)
            expected = written(raw(signals).tolist(), signals.active.tolist(), elapsed.tolist())
            np.testing.assert_allclose(weighting(signals).numpy(), expected, rtol=1e-9, atol=1e-300)
            assert torch.equal(weighting.base.weights(), raw.weights())

    @given(plan=plans(low=2, windows=6))
    @settings(max_examples=30)
    def test_the_sum_stays_whoever_is_there(self, plan: Plan) -> None:
        """The average of weights with a sum keeps it to a rounding, for any norms and any subsets."""
        for base, total in (("inverse_norm", 1.0), ("gradnorm", float(plan.size))):
            for weights in run(stage("ema", base, beta=0.2), plan):
                assert float(weights.sum()) == pytest.approx(total, rel=1e-12)

    def test_where_it_starts(self) -> None:
        """1/K where the sum is 1, 1 where it is K, and otherwise each task's own first raw value, whenever that comes."""
        one = stage("ema", Given(total="1"), beta=0.75)
        assert one(shown(0.9, 0.1)).tolist() == pytest.approx([0.75 * 0.5 + 0.25 * 0.9, 0.75 * 0.5 + 0.25 * 0.1])
        many = stage("ema", Given(total="K"), beta=0.75)
        assert many(shown(1.8, 0.2)).tolist() == pytest.approx([0.75 + 0.25 * 1.8, 0.75 + 0.25 * 0.2])
        free = stage("ema", Given(), beta=0.75)
        assert free(shown(8.0, 3.0, active=[True, False])).tolist() == [8.0, 0.5]
        assert free(shown(4.0, 3.0)).tolist() == pytest.approx([0.75 * 8 + 0.25 * 4, 3.0])
        assert free(shown(4.0, 7.0)).tolist() == pytest.approx([0.75 * 7 + 0.25 * 4, 0.75 * 3 + 0.25 * 7])

    def test_weights_that_can_be_negative_move_one_by_one(self) -> None:
        """A subset of them may have no mass, so that nothing is scaled to one, and no sum is claimed."""
        weighting = stage("ema", Given(total="1", sign="any"), beta=0.5)
        assert weighting.total is None and weighting.sign == "any"
        weighting(shown(2.0, -2.0, 1.0))
        # The mass of the first two is 0.
        assert weighting(shown(3.0, -2.0, 9.0, active=[True, True, False])).tolist() == [2.5, -2.0, 1.0]

    def test_raw_weights_of_nothing_move_nothing(self) -> None:
        """Where all raw weights of those that take part are 0 there is nothing to share out, and no NaN comes of it."""
        weighting = stage("ema", Given(total="K"), beta=0.5)
        before = weighting(shown(1.5, 0.5)).clone()
        assert torch.equal(weighting(shown(0.0, 0.0)), before)

    def test_elapsed_windows_count(self) -> None:
        """Measured every third window it moves as three windows of the same raw weights move it."""
        for base in (Given(total="1"), Given()):
            often, seldom = stage("ema", base, beta=0.8), stage("ema", base, beta=0.8)
            often(shown(0.5, 0.5)), seldom(shown(0.5, 0.5))
            for _ in range(3):
                often(shown(0.9, 0.1))
            seldom(shown(0.9, 0.1, elapsed=[3.0, 3.0]))
            torch.testing.assert_close(seldom.weights(), often.weights(), rtol=1e-14, atol=0)


class TestFloor:
    """The smallest share."""

    def test_it_is_a_share_of_the_sum(self) -> None:
        """The floor is relative to the sum where that is not 1, and the sum stays."""
        for scale, total in ((1.0, "1"), (3.0, "K"), (50.0, None)):
            weights = stage("floor", Given(total=total), floor=0.1)(shown(0.9 * scale, 0.06 * scale, 0.04 * scale))
            np.testing.assert_allclose(weights.numpy(), scale * np.array([0.9, 0.1, 0.1]) / 1.1, rtol=1e-14)

    @given(plan=plans(windows=5), share=st.floats(0, 0.99))
    @settings(max_examples=30)
    def test_no_share_is_below_its_bound(self, plan: Plan, share: float) -> None:
        """Every task that counts has floor / (1 + (K - 1) floor) of the sum, for any norms; absent ones keep 0."""
        floor = share / plan.size
        bound = floor / (1 + (plan.size - 1) * floor)
        for base in ("inverse_norm", "gradnorm", "db_mtl"):
            weighting, raw = stage("floor", base, floor=floor), create("outer", base)
            for signals in plan.signals():
                weights, unfloored = weighting(signals), raw(signals)
                total = float(unfloored.sum())
                assert float(weights.sum()) == pytest.approx(total, rel=1e-12)
                counts = unfloored > 0 if raw.memoryless else torch.ones_like(signals.active)
                assert float(weights[counts].min()) >= bound * total * (1 - 1e-12)
                assert not bool(weights[~counts].any())

    def test_the_base_does_not_see_it(self) -> None:
        """What is floored goes on underneath as if it were not."""
        weighting, free = stage("floor", "gradnorm", floor=0.3), create("outer", "gradnorm")
        run(weighting, PLAN), run(free, PLAN)
        assert same(snapshot(weighting.base), snapshot(free))

    def test_floor_active_marks_the_floored_tasks(self) -> None:
        """floor_active is True for tasks below the floor, and not for one that is absent."""
        weighting = stage("floor", "inverse_norm", floor=0.1)
        norms = vector([100.0, 1.0, 1.0])
        weighting(Signals(vector([1.0] * 3), norms=norms))
        assert weighting.diagnostics()["floor_active"].tolist() == [True, False, False]
        weighting(Signals(vector([1.0] * 3), norms=norms, active=torch.tensor([True, True, False])))
        assert weighting.diagnostics()["floor_active"].tolist() == [True, False, False]
        many = stage("floor", Given(), floor=0.1)
        many(shown(2.0, 90.0, 8.0))
        assert many.diagnostics()["floor_active"].tolist() == [True, False, True]

    def test_weights_that_are_all_zero_stay(self) -> None:
        """Nothing has no shares."""
        assert stage("floor", Given(), floor=0.1)(shown(0.0, 0.0)).tolist() == [0.0, 0.0]

    def test_what_it_refuses(self) -> None:
        """Negative weights, and a floor that leaves no room, by the name of the stage."""
        with pytest.raises(OptionError, match=r"around Given\(total=None, sign='any'.*can be negative.*stage `clip`"):
            stage("floor", Given(sign="any"))
        with pytest.raises(
            OptionError, match=r"`floor` of Floor should be below 1/K = 0.25 for the 4 tasks\. Found floor=0.3"
        ):
            compose({"name": "floor", "base": "inverse_norm", "floor": 0.3}, tasks=list("abcd"))


class TestWarmUp:
    """The even beginning."""

    @pytest.mark.parametrize("base", BASES)
    def test_it_is_even_and_then_the_base(self, base: str) -> None:
        """For n windows weights are even; from then on they equal, bit for bit, the weights of a base that began there."""
        weighting, later = stage("warmup", BASES[base], windows=3), alone(BASES[base])
        even = 1.0 if later.total == "K" else 1 / 3
        for signals in PLAN.signals():
            weights = weighting(signals)
            if int(signals.step) < 3:
                here = signals.active.to(f64)
                if later.memoryless:
                    torch.testing.assert_close(weights, here / here.sum(), rtol=1e-15, atol=0)
                else:
                    assert weights.tolist() == [even] * 3
            else:
                assert torch.equal(weights, later(signals))
        assert same(snapshot(weighting.base), snapshot(later))

    def test_the_base_does_not_move_meanwhile(self) -> None:
        """Neither a window nor the end of an epoch moves what waits for the end of the warm-up."""
        for base in BASES.values():
            weighting = stage("warmup", base, windows=100)
            weighting.bind_unnamed(3, f64)
            before = {key: value for key, value in snapshot(weighting.base).items() if "windows" not in key}
            run(weighting, PLAN)
            weighting.end_epoch()
            run(weighting, PLAN)
            after = snapshot(weighting.base)
            assert same({key: after[key] for key in before}, before)

    def test_no_gradient_is_measured_meanwhile(self) -> None:
        """A criterion measures from the first window after it, also where a stage lies around or below."""
        kinds = {"a": "regression", "b": "regression"}
        model, (inputs, targets) = model_for(kinds), batch_for(kinds)
        warm = {"name": "warmup", "base": "inverse_norm", "windows": 2}
        for outer in (warm, {"name": "ema", "base": warm}, {"name": "warmup", "base": warm, "windows": 1}):
            criterion = compose(outer, tasks=list(kinds))
            measured = []
            for _ in range(4):
                criterion(model(inputs), targets).backward()
                measured.append(criterion.report.norms is not None)
                if len(measured) < 3:
                    assert criterion.report.weights.tolist() == [0.5, 0.5]
            assert measured == [False, False, True, True]
            assert criterion.report.weights[0] != 0.5

    def test_a_base_without_memory_shares_among_those_who_are_there(self) -> None:
        """Its absent tasks have 0 in the warm-up as they have afterwards; with nobody there the weights stay."""
        for total, even in (("1", 0.5), ("K", 1.0)):
            weighting = stage("warmup", Given(total=total, memoryless=True), windows=5)
            assert weighting(shown(1.0, 1.0, 1.0, active=[True, False, True])).tolist() == [even, 0.0, even]
            assert weighting(shown(1.0, 1.0, 1.0, active=[False] * 3)).tolist() == [even, 0.0, even]


class TestClip:
    """The bounds."""

    def test_it_cuts_and_does_not_normalise(self) -> None:
        """Weights outside the bounds are at them, others as they were."""
        for bounds, expected in (
            ({"low": 0.5}, [0.5, 2.0, 9.0]),
            ({"high": 3.0}, [0.1, 2.0, 3.0]),
            ({"low": 0.5, "high": 3.0}, [0.5, 2.0, 3.0]),
            ({"low": 2.0, "high": 2.0}, [2.0, 2.0, 2.0]),
        ):
            weighting = stage("clip", Given(total="K"), **bounds)
            assert weighting(shown(0.1, 2.0, 9.0)).tolist() == expected
            assert weighting.total is None

    def test_absent_tasks_of_a_base_without_memory_keep_zero(self) -> None:
        """The lower bound is for the tasks that take part."""
        weighting = stage("clip", "inverse_norm", low=0.2)
        weights = weighting(
            Signals(vector([1.0] * 3), norms=vector([9.0, 1.0, 1.0]), active=torch.tensor([True, True, False]))
        )
        assert weights.tolist() == pytest.approx([0.2, 0.9, 0.0], rel=1e-15)

    @pytest.mark.parametrize("base", ["positive", "nonnegative", "any"])
    @pytest.mark.parametrize(
        ("low", "high"), [(None, 2.0), (0.0, 2.0), (0.5, 2.0), (-1.0, 2.0), (None, -0.5), (None, 0.0), (0.0, 0.0)]
    )
    def test_its_sign_follows_from_the_bounds(self, base: str, low: float | None, high: float) -> None:
        """The sign that it claims is the narrowest that holds for all weights that the base can have."""
        possible = {"positive": [1e-9, 1.0, 9.0], "nonnegative": [0.0, 1.0, 9.0], "any": [-9.0, 0.0, 9.0]}[base]
        weighting = stage("clip", Given(sign=base), low=low, high=high)
        smallest = float(weighting(shown(*possible)).min())
        assert weighting.sign == ("positive" if smallest > 0 else "nonnegative" if smallest == 0 else "any")

    def test_what_it_refuses(self) -> None:
        """No bound at all, and bounds that cross."""
        with pytest.raises(OptionError, match=r"Clip has no bound: low and high are None\. Give one"):
            stage("clip", "dwa")
        with pytest.raises(OptionError, match=r"`low` of Clip should not exceed `high`\. Found low=2.0 and high=1.0"):
            stage("clip", "dwa", low=2.0, high=1.0)
        with pytest.raises(OptionError, match=r"`high` should be a number in .*Found high=nan"):
            stage("clip", "dwa", high=math.nan)


class TestRescaled:
    """The fixed sum."""

    @pytest.mark.parametrize("total", ["1", "K"])
    @pytest.mark.parametrize("base", [*BASES, "gaba", "mgda"])
    def test_it_is_a_rescaled_sum_of_the_base(self, base: str, total: str) -> None:
        """Bit for bit the weights and the reference weights of the base, times the total over their sum."""
        weighting, raw = stage("rescaled", BASES.get(base, base), total=total), alone(BASES.get(base, base))
        for signals in PLAN.signals():
            if raw.needs == "gramian":
                signals = random_signals(3, seed=int(signals.step), step=int(signals.step), active=signals.active.tolist())
            weights, before = weighting(signals), raw(signals)
            whole = 1.0 if total == "1" else float(signals.active.sum()) if raw.memoryless else 3.0
            assert torch.equal(weights, before * (whole / before.sum()))
            assert torch.equal(weighting.weights(), weights)
        reference = raw.reference()
        assert torch.equal(weighting.reference(), reference * ((1.0 if total == "1" else 3.0) / reference.sum()))

    @pytest.mark.parametrize("base", ["dwa", "db_mtl", "imtl_g"])
    def test_it_keeps_its_contracts_with_the_sum_k(self, base: str) -> None:
        """The registry runs the kit with the sum 1."""
        check_outer(lambda: stage("rescaled", base, total="K"))

    def test_a_sum_that_is_not_positive_stays(self) -> None:
        """Neither a negative sum nor zero is divided by; one that is positive is, whatever the signs."""
        weighting = stage("rescaled", Given(sign="any"), total="K")
        assert weighting(shown(-3.0, 1.0)).tolist() == [-3.0, 1.0]
        assert weighting(shown(-1.0, 1.0)).tolist() == [-1.0, 1.0]
        assert weighting(shown(3.0, -1.0)).tolist() == [3.0, -1.0]
        assert weighting(shown(6.0, -2.0)).tolist() == [3.0, -1.0]
        assert weighting.total is None

    def test_the_sum_holds_for_the_tasks_that_take_part(self) -> None:
        """An absent task of a base without memory keeps 0; the others have the sum that they would have without it."""
        for total, expected in (("1", [0.25, 0.0, 0.75]), ("K", [0.5, 0.0, 1.5])):
            weighting = stage("rescaled", Given(memoryless=True), total=total)
            assert weighting(shown(1.0, 5.0, 3.0, active=[True, False, True])).tolist() == expected

    def test_what_it_refuses(self) -> None:
        """A total that is neither."""
        with pytest.raises(OptionError, match=r"Option `total` should be one of '1', 'K'\. Found total=1\."):
            stage("rescaled", "dwa", total=1)


class TestEveryStage:
    """What all have in common."""

    @every_pair
    def test_the_state_of_the_base_is_part_of_its_own(self, name: str, base: str) -> None:
        """State nests under base., goes through a file, and a fresh stage that loads it before its first call goes on."""
        weighting, fresh = built(name, base), built(name, base)
        run(weighting, PLAN)
        raw = alone(BASES[base])
        run(raw, PLAN)
        assert {f"base.{key}" for key in raw.state_dict()} <= weighting.state_dict().keys()
        stored = io.BytesIO()
        torch.save(weighting.state_dict(), stored)
        stored.seek(0)
        fresh.load_state_dict(torch.load(stored, weights_only=True))
        for one, other in zip(run(weighting, PLAN), run(fresh, PLAN), strict=True):
            assert torch.equal(one, other)
        assert same(snapshot(weighting), snapshot(fresh)) or not weighting.moves

    @every_pair
    @pytest.mark.parametrize("copied", [copy.deepcopy, lambda weighting: pickle.loads(pickle.dumps(weighting))])
    def test_a_copy_goes_on_alone(self, name: str, base: str, copied: Any) -> None:
        """deepcopy and pickle continue like the original and share nothing with it."""
        weighting = built(name, base)
        run(weighting, PLAN)
        twin = copied(weighting)
        kept = snapshot(twin)
        expected = run(weighting, PLAN)
        assert same(snapshot(twin), kept)
        assert all(torch.equal(one, other) for one, other in zip(run(twin, PLAN), expected, strict=True))

    @every_pair
    def test_a_config_of_plain_data_builds_it_again(self, name: str, base: str) -> None:
        """compose() takes the nested names that config() gives, as a YAML file would hold them; the repr says the same."""
        criterion = compose(built(name, base), tasks=["a", "b", "c"])
        plain = json.loads(json.dumps(criterion.config()))
        assert plain["outer"]["name"] == name
        assert plain["outer"]["base"] == {**named(BASES[base]), **plain["outer"]["base"]}
        twin = compose(**plain)
        assert twin.config() == criterion.config() and repr(twin) == repr(criterion)
        assert repr(twin.outer).startswith(f"{type(twin.outer).__name__}(base={twin.outer.base!r}, ")

    @every_pair
    def test_the_base_moves_as_it_would_alone(self, name: str, base: str) -> None:
        """Whatever a stage makes of the weights, underneath is what the base alone would be."""
        weighting, raw = built(name, base), alone(BASES[base])
        signals = [Signals(s.losses, s.norms, active=s.active, step=int(s.step) + 10) for s in PLAN.signals()]
        for window in signals:
            weighting(window)
            assert torch.equal(weighting.base.weights(), raw(window))
        assert same(snapshot(weighting.base), snapshot(raw))

    @every_pair
    def test_claims_are_those_of_the_base_but_for_what_it_does(self, name: str, base: str) -> None:
        """A stage needs what its base needs, and promises no more than both keep."""
        weighting, raw = built(name, base), alone(BASES[base])
        for claim in ("needs", "nonnegative", "symmetric", "on_host", "traceable"):
            assert getattr(weighting, claim) == getattr(raw, claim), claim
        assert not weighting.learnable and not weighting.balances
        assert weighting.memoryless == (raw.memoryless and name != "ema")
        assert weighting.moves == (raw.moves or name in ("ema", "warmup"))
        assert weighting.reads_signals == (raw.reads_signals or name == "ema")
        rescaled = "1" if raw.sign != "any" else None
        assert weighting.total == {"clip": None, "rescaled": rescaled}.get(name, raw.total)
        assert weighting.scaling in (None, "invariant" if name == "rescaled" else raw.scaling)

    def test_claims_can_depend_on_options(self) -> None:
        """A floor above 0 makes weights positive, one of 0 leaves the sign; a share of the sum scales with it."""
        assert stage("floor", "inverse_norm", floor=0.1).sign == "positive"
        assert stage("floor", "inverse_norm", floor=0.0).sign == "nonnegative"
        assert stage("floor", "db_mtl").scaling == "inverse"
        assert stage("ema", "db_mtl").scaling is None and stage("warmup", "db_mtl").scaling is None
        assert (
            stage("rescaled", "db_mtl").scaling == "invariant" and stage("rescaled", "dwa").scaling == alone("dwa").scaling
        )

    @pytest.mark.parametrize("name", STAGES)
    def test_what_cannot_be_a_base(self, name: str) -> None:
        """Learned weights, one that was called, an unknown name and a number are refused with what to do."""
        options = STAGES[name]
        with pytest.raises(OptionError, match=r"cannot be put around Uncertainty\(.*an optimizer learns its weights"):
            stage(name, "uncertainty", **options)
        used = create("outer", "gradnorm")
        used(Signals(torch.ones(2), norms=torch.ones(2)))
        with pytest.raises(OptionError, match=r"around GradNorm\(.*already bound to the tasks \['0', '1'\]\. Pass a"):
            stage(name, used, **options)
        with pytest.raises(UnknownNameError, match=r"No outer strategy is named 'gradnrom'\. Did you mean 'gradnorm'"):
            stage(name, "gradnrom", **options)
        with pytest.raises(OptionError, match=r"Option `base` should be a registered name, a mapping .*Found 3\."):
            stage(name, 3, **options)
        with pytest.raises(OptionError, match=r"gradnorm: Option `alpha` should be a number"):
            stage(name, {"name": "gradnorm", "alpha": -1}, **options)

    def test_an_instance_can_be_the_base_of_several(self) -> None:
        """A stage takes a copy: two around one instance do not share state, and the instance stays unused."""
        given_ = create("outer", "gradnorm", lr=0.1)
        one, two = stage("ema", given_), stage("floor", given_)
        lone = stage("floor", create("outer", "gradnorm", lr=0.1))
        for signals, _ in zip(PLAN.signals(), range(4), strict=False):
            one(signals)
            assert torch.equal(two(signals), lone(signals))
        assert not given_.bound

    def test_a_base_learns_of_kinds_that_become_known(self) -> None:
        """The kinds that the first targets show reach the innermost weighting."""

        class Records(OuterWeighting):
            def forward(self, signals: Signals, /) -> Tensor:
                return self.current.clone()

        criterion = compose({"name": "ema", "base": {"name": "clip", "base": Records(), "low": 0.0}})
        model, (inputs, targets) = (
            model_for({"a": "regression", "b": "multiclass"}),
            batch_for({"a": "regression", "b": "multiclass"}),
        )
        criterion(model(inputs), {"a": targets["a"], "b": None})
        innermost = criterion.outer.base.base
        assert isinstance(innermost, Records) and criterion.tasks == ("a", "b")
        assert [info.kind for info in innermost.tasks] == ["regression", None]
        criterion(model(inputs), targets)
        assert [info.kind for info in innermost.tasks] == ["regression", "multiclass"]
        assert criterion.outer.tasks == innermost.tasks

    @pytest.mark.parametrize("name", STAGES)
    def test_losses_after_the_step_reach_the_base_and_the_weights(self, name: str) -> None:
        """FAMO moves by them underneath as it would alone, and the stage has its weights at once; but not in a warm-up."""
        options = {**STAGES[name], **({"low": 0.3, "high": 0.6} if name == "clip" else {})}
        weighting, raw = stage(name, {"name": "famo", "lr": 0.5}, **options), create("outer", "famo", lr=0.5)
        assert weighting.wants_after_step and not stage(name, "dwa", **options).wants_after_step
        everyone = torch.ones(3, dtype=torch.bool)
        for step in range(5):
            before, after = (1.0 + step, 2.0, 3.0), vector([0.5 + step, 2.0, 2.9])
            waits = name == "warmup" and step < 2
            weighting(shown(*before, step=step))
            kept = weighting.weights().clone()
            weighting.after_step(after, everyone)
            if not waits:
                raw(shown(*before, step=step))
                raw.after_step(after, everyone)
            assert torch.equal(weighting.base.weights(), raw.weights() if raw.bound else torch.full((3,), 1 / 3, dtype=f64))
            assert torch.equal(weighting.base.logits, raw.logits if raw.bound else torch.zeros(3, dtype=f64))
            expected = kept if waits or name == "ema" else weighting.reshaped(raw.weights(), None)
            assert torch.equal(weighting.weights(), expected)
        assert float(raw.weights().max()) > 0.6

    @pytest.mark.parametrize("name", ["floor", "clip", "warmup", "rescaled"])
    def test_the_end_of_an_epoch_reaches_the_base_and_the_weights(self, name: str) -> None:
        """DWA's new weights count at once, as the stage has them, and not from the next window on."""
        options = {"floor": {"floor": 0.32}, "clip": {"low": 0.9, "high": 1.05}, "warmup": {"windows": 1}}.get(name, {})
        weighting, raw = stage(name, "dwa", **options), create("outer", "dwa")
        for epoch in range(3):
            for step in range(2):
                signals = shown(1.0 + epoch, 2.0, 4.0 / (1 + epoch), step=5 + 2 * epoch + step)
                weighting(signals), raw(signals)
            weighting.end_epoch(), raw.end_epoch()
            expected = weighting.reshaped(raw.weights(), None)
            assert torch.equal(weighting.weights(), expected)
        assert name == "warmup" or not torch.equal(weighting.weights(), raw.weights())

    def test_the_average_of_epochs_moves_with_the_windows(self) -> None:
        """Ema passes the end of an epoch on and moves only when a window brings weights."""
        weighting = stage("ema", "dwa", beta=0.5)
        for epoch in range(3):
            before = weighting(shown(1.0 + epoch, 2.0, 4.0)).clone()
            weighting.end_epoch()
            assert torch.equal(weighting.weights(), before)
        assert not torch.equal(weighting.base.weights(), torch.ones(3, dtype=f64))
        after = weighting(shown(4.0, 2.0, 4.0))
        torch.testing.assert_close(after, 0.5 * before + 0.5 * weighting.base.weights(), rtol=1e-14, atol=0)

    def test_constant_weights_under_a_stage_follow_the_options(self) -> None:
        """What never moves is not part of a state: the options, and not a checkpoint, say what a clipped constant is."""
        old, new = ({"name": "fixed", "weights": [w, 1.0]} for w in (5.0, 0.5))
        before, after = stage("clip", old, high=2.0), stage("clip", new, high=2.0)
        for weighting in (before, after):
            weighting.bind_unnamed(2, f64)
        after.load_state_dict(before.state_dict())
        assert before.weights().tolist() == [2.0, 1.0]
        assert after.weights().tolist() == [0.5, 1.0]
        criterion = compose({"name": "clip", "base": old, "high": 2.0}, tasks=["a", "b"])
        leaf = torch.ones((), requires_grad=True)
        total = criterion.combine((leaf * 1.0, leaf * 1.0))
        assert float(total.detach()) == 3.0

    def test_a_state_of_another_base_is_refused(self) -> None:
        """The criterion names the stages and what they are around, and takes no state of others."""
        ours = compose({"name": "floor", "base": "inverse_norm"}, tasks=["a", "b"])
        theirs = compose({"name": "floor", "base": "db_mtl"}, tasks=["a", "b"])
        with pytest.raises(StateError, match=r"of the weighting Floor\(DBMTL\), this criterion has Floor\(InverseNorm\)"):
            ours.load_state_dict(theirs.state_dict())

    @pytest.mark.parametrize("dtype", [torch.float32, f64])
    def test_state_follows_device_and_dtype_as_one(self, dtype: torch.dtype) -> None:
        """Every buffer of every stage widens with the losses and moves with them."""
        weighting = stage("clip", {"name": "warmup", "base": {"name": "ema", "base": "db_mtl"}, "windows": 1}, low=0.1)
        weighting(Signals(torch.ones(2), norms=torch.ones(2)))
        weighting(Signals(torch.ones(2, dtype=dtype), norms=torch.ones(2, dtype=dtype)))
        floats = [buffer for buffer in weighting.buffers() if buffer.is_floating_point()]
        assert len(floats) == 5 and {buffer.dtype for buffer in floats} == {dtype}
        weighting(Signals(torch.ones(2, device="meta"), norms=torch.ones(2, device="meta")))
        assert {buffer.device.type for buffer in weighting.buffers()} == {"meta"}

    def test_a_weighting_that_takes_ratios_is_refused_below_a_stage_too(self) -> None:
        """A shape that can be negative is refused by name at compose, whatever lies around the weighting that objects."""
        with pytest.raises(OptionError, match="takes ratios of losses"):
            compose({"name": "ema", "base": "db_mtl"}, Signed())

    def test_an_absent_task_keeps_what_it_had_under_the_floor_of_an_average(self) -> None:
        """Ema gives memory to a base that has none: its absent task has a weight, and the floor counts it."""
        weighting = stage("floor", {"name": "ema", "base": "inverse_norm", "beta": 0.0}, floor=0.2)
        norms = vector([1.0, 1.0, 2.0])
        before = weighting(Signals(vector([1.0] * 3), norms=norms)).clone()
        after = weighting(Signals(vector([1.0] * 3), norms=norms, active=torch.tensor([True, True, False])))
        torch.testing.assert_close(after, before, rtol=1e-14, atol=0)
        assert float(after[2]) > 0

    @pytest.mark.slow
    def test_a_compiled_call_moves_it_as_any_call_does(self) -> None:
        """Around a weighting of losses, stages are a part of one graph, warm-up and absent tasks included."""
        kinds = {"a": "regression", "b": "regression"}
        model, (inputs, targets) = model_for(kinds), batch_for(kinds)
        outer: dict[str, Any] = {"name": "dwa", "window": 1}
        for name, options in STAGES.items():
            outer = {"name": name, "base": outer, **options}
        eager, compiled = compose(outer, tasks=list(kinds)), compose(outer, tasks=list(kinds))
        graph = torch.compile(compiled, backend="eager", fullgraph=True)
        for step in range(8):
            outputs = {task: output.detach().requires_grad_() for task, output in model(inputs).items()}
            seen = {"a": targets["a"] * (1 + step), "b": None if step == 5 else targets["b"]}
            first = compiled if step == 0 else graph
            assert torch.equal(first(outputs, seen).detach(), eager(outputs, seen).detach())
        assert same(snapshot(compiled.outer), snapshot(eager.outer))
        assert compiled.outer.weights().unique().numel() == 2


@pytest.mark.parametrize("base", ["uw_so", "gls", "scale_invariant", "mgda"])
@pytest.mark.parametrize("floor", [0.0, 0.1])
def test_a_floor_survives_a_perfect_fit_of_all_that_are_there(base: str, floor: float) -> None:
    """Tasks whose losses are exactly 0 leave the problem of the base, which may have had only others until then."""
    weighting = stage("floor", base, floor=floor)
    gramian = torch.eye(3, dtype=f64) if base == "mgda" else None
    weighting(Signals(vector([1.0, 1.0, 2.0]), gramian=gramian, active=torch.tensor([False, False, True])))
    found = weighting(Signals(vector([0.0, 0.0, 1.0]), gramian=gramian, active=torch.tensor([True, True, False])))
    assert bool(torch.isfinite(found).all()), found
    assert bool((found >= 0).all())


@pytest.mark.parametrize("options", [{}, {"accumulate": 2}])
def test_an_absent_task_is_not_said_to_be_at_the_floor(options: dict[str, Any]) -> None:
    """Without memory it has the weight 0, or where weights hold the one that it had: neither is a matter of the floor."""
    base = {"name": "uw_so", "temperature": 0.1}
    criterion = compose({"name": "floor", "base": base, "floor": 0.1}, tasks=["a", "b"], **options)
    calls = 2 if options else 1
    for losses in ([0.01, 1.0], [0.01, 1.0], [0.01, None], [0.01, None]):
        for _ in range(calls):
            total = criterion.combine([None if loss is None else torch.tensor(loss, requires_grad=True) for loss in losses])
            total.backward()
        if criterion._window.step == 1:
            assert criterion.report.extra["floor_active"].tolist() == [False, True]
    assert criterion.report.extra["floor_active"].tolist() == [False, False]
