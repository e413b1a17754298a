"""Choosing a probe: names, options and what they refuse, the warning about cost, and probes of third parties."""

from __future__ import annotations

import copy
import pickle
import warnings
from collections.abc import Mapping
from typing import Any, ClassVar

import pytest
import torch
from strategies import batch_for, model_for
from torch import Tensor, nn

from mtl_axes import OuterWeighting, Probe, Signals, compose, probes
from mtl_axes.errors import MtlAxesError, OptionError
from mtl_axes.probes import Measurement, Tape

GABA = {"name": "gaba", "warmup": 0, "beta": 0.5}
KINDS = {"a": "regression", "b": "regression", "c": "regression"}


class Gramian(OuterWeighting):
    needs: ClassVar[Any] = "gramian"

    def forward(self, signals: Signals, /) -> Tensor:
        return torch.full_like(signals.losses, 1 / signals.size)


@pytest.mark.parametrize(
    ("given", "built"),
    [
        ("exact", probes.Exact()),
        ("representation", probes.Representation()),
        ("lagged", probes.Lagged()),
        ({"name": "exact", "rotate": True}, probes.Exact(rotate=True)),
        ({"name": "exact", "rotate": True, "reuse": False}, probes.Exact(rotate=True, reuse=False)),
    ],
)
def test_names_and_mappings_build_probes(given: Any, built: Probe) -> None:
    """A name, or a mapping with options, builds the probe; config() returns it, and builds the same again."""
    criterion = compose(GABA, probe=given)
    assert repr(criterion.probe) == repr(built)
    assert criterion.config()["probe"] == given
    assert repr(compose(**criterion.config()).probe) == repr(built)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("exakt", r"should be one of 'exact', 'lagged', 'representation', a mapping .* Found 'exakt'"),
        ({"rotate": True}, r"a mapping with such a name.*Found \{'rotate': True\}"),
        ({"name": "exact", "turns": 3}, r"options of the probe 'exact' are rotate, reuse. Found \{'turns': 3\}"),
        ({"name": "lagged", "audit_every": 7}, r"options of the probe 'lagged' are none. Found \{'audit_every': 7\}"),
        (3, "Found 3"),
    ],
)
def test_bad_probes_are_named(given: Any, message: str) -> None:
    """An unknown name or option is refused in compose, with what exists."""
    with pytest.raises(OptionError, match=message):
        compose(GABA, probe=given)


@pytest.mark.parametrize("name", ["rotate", "reuse"])
def test_switches_are_bools(name: str) -> None:
    """The options of Exact are True or False; 1 is neither."""
    with pytest.raises(OptionError, match=f"Option `{name}` should be True or False. Found {name}=1"):
        probes.Exact(**{name: 1})


@pytest.mark.parametrize("probe", [{"name": "exact", "rotate": True}, "representation", "lagged"])
def test_a_gramian_needs_a_probe_that_has_one(probe: Any) -> None:
    """Probes of norms are refused by name for a weighting that needs the Gramian."""
    with pytest.raises(OptionError, match=r"Gramian needs the gramian. Found the probe .*, which provides norms"):
        compose(Gramian(), probe=probe)
    compose(Gramian(), probe={"name": "exact", "reuse": False})


def many(count: int, outer: Any = GABA, **options: Any) -> Any:
    leaf = nn.Parameter(torch.ones(2))
    criterion = compose(outer, **options)
    criterion.combine({f"t{index}": (index + 1.0) * leaf.sum() for index in range(count)})
    return criterion


def test_a_costly_probe_warns_once_with_cheaper_ones() -> None:
    """Exact norms of eight tasks in every step are worth one warning, which says what would cost less."""
    with pytest.warns(UserWarning, match=r"measures 8 tasks in every window, .* about 5\.7 times a plain step") as caught:
        criterion = many(8)
    assert len(caught) == 1
    for part in ('"rotate": True} costs about 1.7', "every=10 about 1.5", 'probe="representation"', "docs/cost.md"):
        assert part in str(caught[0].message)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        leaf = nn.Parameter(torch.ones(2))
        criterion.combine({f"t{index}": (index + 1.0) * leaf.sum() for index in range(8)})


def test_a_gramian_is_told_of_every_only() -> None:
    """For a weighting that needs the Gramian no cheaper probe will do, but measuring less often does."""
    with pytest.warns(UserWarning, match=r"takes most of it\. With every=10 about 1\.5; see"):
        many(8, Gramian())


@pytest.mark.parametrize(
    ("count", "options"),
    [
        (5, {}),
        (8, {"every": 10}),
        (8, {"probe": {"name": "exact", "rotate": True}}),
        (64, {"outer": "fixed"}),
        (64, {"outer": {"name": "dwa", "window": 1}}),
    ],
)
def test_what_is_cheap_does_not_warn(count: int, options: dict[str, Any]) -> None:
    """Few tasks, turns, rare measurements and weightings of losses pass without a warning."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        many(count, **options)


class Signs(Probe):
    """A third party's probe: the share of positive entries of the gradient at the shared parameters."""

    provides: ClassVar[frozenset[Any]] = frozenset({"norms"})

    def __init__(self, *, scale: float = 1.0) -> None:
        super().__init__()
        self.scale = scale

    def measure(self, tape: Tape, need: Any) -> Measurement | None:
        rows = [
            torch.autograd.grad(tape.losses[i], tape.shared_part().parameters, retain_graph=True) for i in tape.present()
        ]
        shares = [torch.cat([part.reshape(-1) > 0 for part in row]).float().mean() * self.scale for row in rows]
        return Measurement(torch.stack(shares), None, (True,) * len(shares))

    def diagnostics(self) -> Mapping[str, Tensor]:
        return {"scale": torch.tensor(self.scale)}


def test_a_third_party_probe_is_a_class_with_one_method() -> None:
    """It measures, reports, describes itself, is copied and pickled, and has no name for a config."""
    criterion = compose(GABA, tasks=list(KINDS), probe=Signs(scale=2.0))
    model = model_for(KINDS)
    for seed in range(3):
        inputs, targets = batch_for(KINDS, seed=seed)
        criterion(model(inputs), targets).backward()
    assert bool(((criterion.report.norms > 0) & (criterion.report.norms <= 2)).all())
    assert criterion.report.extra["scale"] == 2.0
    assert "Signs(scale=2.0)" in criterion.explain() and "Signs(scale=2.0)" in repr(criterion)
    for twin in (copy.deepcopy(criterion), pickle.loads(pickle.dumps(criterion))):
        assert repr(twin.probe) == "Signs(scale=2.0)"
    with pytest.raises(MtlAxesError, match=r"A probe in a config should be one of 'exact'.*Found Signs\(scale=2.0\)"):
        criterion.config()


def test_rotation_takes_turns() -> None:
    """With three tasks the turns are a, b, c, a, ...; an absent task passes its turn on; every n windows one turn."""
    model = model_for(KINDS)
    criterion = compose(GABA, tasks=list(KINDS), shared=model.trunk, probe=probes.Exact(rotate=True), every=2)
    turns = []
    for step in range(16):
        inputs, targets = batch_for(KINDS, seed=step)
        if step == 8:
            targets = {**targets, "b": None}
        criterion(model(inputs), targets).backward()
        turns.append("".join(name for name, flag in zip("abc", criterion.report.measured.tolist(), strict=True) if flag))
    assert turns == ["a", "", "b", "", "c", "", "a", "", "c", "", "c", "", "a", "", "b", ""]


def test_rotation_shows_the_latest_norms_of_all() -> None:
    """A weighting is shown each task's latest norm, from its first turn on; until then the task is inactive."""
    shown: list[Signals] = []

    class Recorder(OuterWeighting):
        needs: ClassVar[Any] = "norms"

        def forward(self, signals: Signals, /) -> Tensor:
            shown.append(signals)
            return torch.ones_like(signals.losses)

    model = model_for(KINDS, dtype=torch.float64)
    criterion = compose(Recorder(), tasks=list(KINDS), shared=model.trunk, probe=probes.Exact(rotate=True))
    truth = []
    for step in range(7):
        inputs, targets = batch_for(KINDS, seed=step, dtype=torch.float64)
        outputs = model(inputs)
        losses = [(outputs[name] - target).square().mean() for name, target in targets.items()]
        rows = [torch.autograd.grad(loss, list(model.trunk.parameters()), retain_graph=True) for loss in losses]
        truth.append(torch.stack([torch.cat([part.reshape(-1) for part in row]).norm() for row in rows]))
        criterion(outputs, targets)
    for step, signals in enumerate(shown):
        assert signals.active.tolist() == [step >= turn for turn in range(3)]
        for task in range(min(step + 1, 3)):
            latest = step - (step - task) % 3
            torch.testing.assert_close(signals.norms[task], truth[latest][task], rtol=1e-12, atol=0)
        assert signals.elapsed.tolist() == [1.0] * 3
