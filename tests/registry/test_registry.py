"""The registry of one process: names, decorators, errors about names and options, and strategies on their own."""

from __future__ import annotations

import re
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import mtl_axes.inner
import mtl_axes.outer
from mtl_axes import (
    InnerShape,
    OuterWeighting,
    Signals,
    available,
    compose,
    create,
    register_inner,
    register_outer,
    registry,
)
from mtl_axes.errors import MtlAxesError, OptionError, PluginError, UnknownNameError
from mtl_axes.inner import FailureBias, FailureBiased, Reweighted
from mtl_axes.outer import GABA

INNERS = ("asymmetric", "bce", "cross_entropy", "failure_biased", "focal", "huber", "mae", "mse", "quantile")
OUTERS = ("dwa", "fixed", "gaba", "gradnorm", "uncertainty")
NAMES = [("inner", name) for name in INNERS] + [("outer", name) for name in OUTERS]


@pytest.fixture(autouse=True)
def own_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    """A registry of its own for each test, so that no name leaks into another."""
    monkeypatch.setattr(registry, "_registry", registry.Registry())


class Cubic(InnerShape):
    kinds: ClassVar[Any] = frozenset({"regression"})

    def __init__(self, *, power: float = 3.0) -> None:
        super().__init__()
        self.power = power

    def forward(self, prediction: Tensor, target: Tensor, /) -> Tensor:
        return (prediction - target).abs() ** self.power


class Even(OuterWeighting):
    def forward(self, signals: Signals, /) -> Tensor:
        return torch.full_like(signals.losses, 2.0)


# ---- names


def test_built_in_names() -> None:
    """The built-in strategies are there under their names, sorted, and each name gives its class."""
    assert set(INNERS) <= set(available("inner")) and set(OUTERS) <= set(available("outer"))
    assert list(available("inner")) == sorted(available("inner"))
    assert type(create("outer", "gaba")) is GABA
    assert type(create("inner", "failure_biased")) is FailureBiased


@pytest.mark.parametrize("axis", ["middle", "", None, "Outer"])
def test_unknown_axis(axis: Any) -> None:
    """An error about an axis that does not exist names those that do."""
    with pytest.raises(OptionError, match=rf'The axis should be "outer", "inner" or "weight"\. Found {axis!r}\.'):
        available(axis)
    with pytest.raises(OptionError, match='The axis should be "outer", "inner" or "weight"'):
        create(axis, "mse")


@pytest.mark.parametrize(
    ("axis", "name", "hint"),
    [
        ("inner", "hubber", "Did you mean 'huber'?"),
        ("inner", "cross_entrpy", "Did you mean 'cross_entropy'?"),
        ("outer", "grad_norm", "Did you mean 'gradnorm'?"),
        ("outer", "MSE", "Known:"),
        ("outer", "focal", "'focal' is a name of the inner axis."),
        ("inner", "gradnorm", "'gradnorm' is a name of the outer axis."),
        (
            "inner",
            "ramp",
            'Join it with a shape: {"name": "reweighted", "base": "mse", "weight": "ramp"}.',
        ),
        ("outer", "UPGrad", "Did you mean 'upgrad'"),
    ],
)
def test_unknown_name(axis: Any, name: str, hint: str) -> None:
    """An unknown name is answered with near matches or with the other axis, and with every name that there is."""
    with pytest.raises(UnknownNameError) as caught:
        create(axis, name)
    text = str(caught.value)
    assert text.startswith(f"No {axis} strategy is named {name!r}.")
    assert hint in text
    assert f"Known: {', '.join(available(axis))}." in text
    assert "plugin" not in text


@pytest.mark.parametrize(
    ("axis", "name", "options", "message"),
    [
        ("inner", "huber", {"delt": 1.0}, r"'huber' takes the options delta\. Found 'delt'\. Did you mean 'delta'\?"),
        ("inner", "asymmetric", {"late": 2.0}, r"'asymmetric' takes the options over, under\. Found 'late'\.$"),
        ("inner", "mse", {"delta": 1.0}, r"'mse' takes the options \(none\)\. Found 'delta'\.$"),
        (
            "outer",
            "gaba",
            {"floors": 0.1},
            r"takes the options beta, floor, warmup, form\. Found 'floors'\. Did you mean 'floor'\?",
        ),
        (
            "outer",
            "fixed",
            {"weight": [1.0]},
            r"'fixed' takes the options weights\. Found 'weight'\. Did you mean 'weights'\?",
        ),
    ],
)
def test_unknown_option(axis: Any, name: str, options: dict[str, Any], message: str) -> None:
    """An unknown option is answered with the options that there are and the nearest of them."""
    with pytest.raises(OptionError, match=message):
        create(axis, name, **options)


# ---- decorators


def test_an_option_that_is_needed() -> None:
    """A strategy without the options that it needs says which, and how they are passed."""
    with pytest.raises(
        OptionError, match=r"^'ema' needs the option base\. Found beta\. Pass \{\"name\": \"ema\", \"base\": \.\.\.\}"
    ):
        create("outer", "ema", beta=0.9)


def test_registered_class_works_by_name_in_compose() -> None:
    """A decorated class is known by its name at once: to available, create, compose and config."""
    register_inner("cubic")(Cubic)
    register_outer("even")(Even)
    assert "cubic" in available("inner") and "even" in available("outer")
    criterion = compose("even", {"name": "cubic", "power": 1.0}, tasks=["a"])
    total = criterion({"a": torch.tensor([3.0], requires_grad=True)}, {"a": torch.tensor([7.0])})
    assert total.item() == 8.0
    assert criterion.config()["inner"] == {"name": "cubic", "power": 1.0}
    assert criterion.config()["outer"] == {"name": "even"}
    assert compose(**criterion.config()).config() == criterion.config()


def test_decorator_returns_the_class() -> None:
    """The decorators give the class back, so that it can be used under its own name too."""
    assert register_inner("cubic")(Cubic) is Cubic
    assert register_outer("even")(Even) is Even


def test_the_same_class_defined_again_replaces_the_first() -> None:
    """Running a notebook cell again registers the new class of the same name in place of the old one."""

    def cell(factor: float) -> type[InnerShape]:
        @register_inner("redefined")
        class Redefined(InnerShape):
            kinds: ClassVar[Any] = frozenset({"regression"})

            def forward(self, prediction: Tensor, target: Tensor, /) -> Tensor:
                return factor * (prediction - target).abs()

        return Redefined

    cell(1.0)
    second = cell(2.0)
    assert type(create("inner", "redefined")) is second
    assert create("inner", "redefined")(torch.ones(1), torch.zeros(1)).item() == 2.0


def test_another_class_under_a_taken_name_is_an_error() -> None:
    """Two classes cannot have one name; the error says which one has it, and the first stays."""
    register_inner("cubic")(Cubic)

    class Other(Cubic):
        pass

    with pytest.raises(PluginError, match=r"The inner name 'cubic' is taken by .*Cubic\. Choose another name\."):
        register_inner("cubic")(Other)
    assert type(create("inner", "cubic")) is Cubic


@pytest.mark.parametrize(("axis", "name"), NAMES)
def test_built_in_names_are_reserved(axis: str, name: str) -> None:
    """No decorator can take a built-in name."""
    before = type(create(axis, name))  # type: ignore[call-overload]
    register, cls = (register_inner, Cubic) if axis == "inner" else (register_outer, Even)
    with pytest.raises(PluginError, match=rf"The {axis} name '{name}' is taken by built-in"):
        register(name)(cls)  # type: ignore[arg-type]
    assert type(create(axis, name)) is before  # type: ignore[call-overload]


def test_one_name_may_be_on_both_axes() -> None:
    """The axes have separate names."""
    register_inner("mine")(Cubic)
    register_outer("mine")(Even)
    assert (type(create("inner", "mine")), type(create("outer", "mine"))) == (Cubic, Even)


def test_what_is_not_a_strategy_is_refused() -> None:
    """Only subclasses of the axis's base class can be registered, under non-empty names."""
    with pytest.raises(
        PluginError, match=r"Strategy 'x' should be a subclass of mtl_axes\.InnerShape\. Found <class .*Even'>"
    ):
        register_inner("x")(Even)
    with pytest.raises(
        PluginError, match=r"Strategy 'x' should be a subclass of mtl_axes\.OuterWeighting\. Found <function"
    ):
        register_outer("x")(lambda signals: signals)  # type: ignore[type-var]
    with pytest.raises(PluginError, match=r"A strategy's name should be a non-empty string\. Found ''\."):
        register_inner("")(Cubic)
    assert "x" not in available("inner") and "x" not in available("outer")


def test_config_of_an_unregistered_strategy() -> None:
    """A criterion whose strategy has no name cannot be written as a config, and says how to give it one."""
    with pytest.raises(MtlAxesError, match=r"Cubic\(power=3.0\) is not registered .*Use register_inner\('a_name'\)"):
        compose(inner=Cubic()).config()


def test_a_config_that_is_not_strict_tells_of_a_strategy_without_a_name() -> None:
    """Its repr stands for it, without an address; what has a name has it, and where all have one it is the same config."""

    class Holding(OuterWeighting):
        def __init__(self, held: object) -> None:
            super().__init__()
            self.held = held

        def forward(self, signals: Signals, /) -> torch.Tensor:
            return self.current.clone()

    told = compose(Holding(object()), {"a": Cubic(), "b": "mse"}, missing="ignore").config(strict=False)
    assert told["outer"] == {"class": "Holding(held=<object object>)"}
    assert told["inner"] == {"a": {"class": "Cubic(power=3.0)"}, "b": {"name": "mse"}}
    assert told["missing"] == "ignore"
    named = compose("gaba", "huber", probe="lagged", every=2)
    assert named.config(strict=False) == named.config()


def test_config_of_a_strategy_built_from_an_object() -> None:
    """To register the class of one that wraps an object would not help, also where a stage wraps it; a list is no object."""

    class Wrapping(OuterWeighting):
        needs: ClassVar[Any] = "losses"

        def __init__(self, given: object) -> None:
            super().__init__()
            self.given = given

        def forward(self, signals: Signals, /) -> torch.Tensor:
            return self.current.clone()

    for outer in (Wrapping(torch.ones(2)), Wrapping([object()]), create("outer", "ema", base=Wrapping(print))):
        with pytest.raises(MtlAxesError, match=r"^Wrapping\(.*has an object as its `given`: a weighting built") as caught:
            compose(outer).config()
        assert "register" not in str(caught.value)
    for given in (None, 1.5, "mean", ["a", 2], {"a": [1.0]}, create("outer", "gaba")):
        with pytest.raises(MtlAxesError, match=r"Use register_outer\('a_name'\) on its class"):
            compose(Wrapping(given)).config()


# ---- strategies on their own


def rebuilt(strategy: nn.Module) -> Any:
    names = {**vars(mtl_axes.inner), **vars(mtl_axes.outer), "Cubic": Cubic, "Even": Even}
    return eval(repr(strategy), names)


@pytest.mark.parametrize(("axis", "name"), NAMES)
def test_repr_is_the_constructor_call(axis: Any, name: str) -> None:
    """Evaluating the repr of a strategy builds an equal one."""
    strategy: Any = create(axis, name)
    again = rebuilt(strategy)
    assert type(again) is type(strategy)
    assert repr(again) == repr(strategy)
    assert again.options() == strategy.options()


@pytest.mark.parametrize(
    ("axis", "name", "options"),
    [
        ("inner", "asymmetric", {"over": 2.5, "under": 0.0}),
        ("inner", "bce", {"pos_weight": 3.0}),
        ("inner", "failure_biased", {"r_max": 1.0}),
        ("inner", "focal", {"gamma": 0.5, "alpha": 0.25}),
        ("inner", "focal", {"gamma": 1.0, "alpha": (0.2, 0.3, 0.5)}),
        ("inner", "huber", {"delta": 7.0}),
        ("inner", "quantile", {"q": (0.1, 0.9)}),
        ("outer", "dwa", {"temperature": 1.5, "window": 3}),
        ("outer", "fixed", {"weights": [0.5, 2.0]}),
        ("outer", "fixed", {"weights": {"rul": 0.5, "health": 2.0}}),
        ("outer", "gaba", {"beta": 0.5, "floor": 0.1, "warmup": 7, "form": "inverse"}),
        ("outer", "gradnorm", {"alpha": 0.0, "lr": 0.1}),
        ("outer", "uncertainty", {"variant": "revised"}),
    ],
)
def test_options_come_back(axis: Any, name: str, options: dict[str, Any]) -> None:
    """options() returns what the constructor was given, and the repr carries every one of them."""
    strategy: Any = create(axis, name, **options)
    assert strategy.options() == options
    assert rebuilt(strategy).options() == options
    assert strategy.__class__(**strategy.options()).options() == options


def test_repr_of_nested_shapes() -> None:
    """The repr of a reweighted shape rebuilds its base and its weight."""
    shape = Reweighted(create("inner", "huber", delta=2.0), FailureBias(r_max=50.0))
    assert repr(shape) == "Reweighted(base=Huber(delta=2.0), weight=FailureBias(r_max=50.0))"
    prediction, target = torch.tensor([1.0, 90.0]), torch.tensor([20.0, 70.0])
    assert torch.equal(rebuilt(shape)(prediction, target), shape(prediction, target))


def test_numpy_numbers_become_plain_ones() -> None:
    """A numpy number is taken as an option and comes back as a plain one, so that repr and config stay literal."""
    strategy: Any = create("outer", "gaba", beta=np.float64(0.9))
    assert repr(strategy) == "GABA(beta=0.9, floor=0.05, warmup=100, form='complement')"
    assert type(strategy.options()["beta"]) is float


@pytest.mark.parametrize("name", OUTERS)
def test_an_outer_weighting_works_without_a_criterion(name: str) -> None:
    """Called on signals, a bare weighting binds itself and returns K weights, which weights() gives again."""
    weighting = create("outer", name)
    weights = weighting(Signals(torch.tensor([1.0, 4.0, 0.5]), norms=torch.tensor([3.0, 1.0, 2.0])))
    assert weights.shape == (3,)
    assert torch.equal(weights, weighting.weights())
    assert bool((weights > 0).all())
    assert [task.name for task in weighting.tasks] == ["0", "1", "2"]


@pytest.mark.parametrize("name", INNERS)
def test_an_inner_shape_works_without_a_criterion(name: str) -> None:
    """Called on a prediction and a target, a bare shape returns one loss per target entry."""
    shape = create("inner", name)
    kind = sorted(shape.kinds)[0]
    prediction = torch.tensor([[2.0, -1.0, 0.5], [0.1, 0.2, 0.3]]) if kind == "multiclass" else torch.tensor([0.5, 2.0])
    target = {"multiclass": torch.tensor([0, 2]), "binary": torch.tensor([True, False])}.get(kind, torch.tensor([1.0, 3.0]))
    losses = shape(prediction, target)
    assert losses.shape == target.shape
    assert bool((losses > 0).all())


def test_a_constructor_that_fails_keeps_its_reason() -> None:
    """A third party's own check in a constructor reaches the user with the strategy's name."""

    @register_inner("fussy")
    class Fussy(Cubic):
        def __init__(self, *, power: float = 3.0) -> None:
            if power > 3:
                raise OptionError(f"Option `power` should be at most 3. Found {power}.")
            super().__init__(power=power)

    with pytest.raises(OptionError, match=r"fussy: Option `power` should be at most 3\. Found 4\."):
        create("inner", "fussy", power=4)


@pytest.mark.parametrize(("name", "option"), [("lr_annealing", "main"), ("cosine_gate", "main"), ("ema", "base")])
def test_a_missing_option_is_named(name: str, option: str) -> None:
    """A strategy that cannot be made from its name alone says what it needs, and how to write it."""
    text = f'\'{name}\' needs the option {option}. Found none. Pass {{"name": "{name}", "{option}": ...}}'
    message = re.escape(text)
    with pytest.raises(OptionError, match=message):
        create("outer", name)
    with pytest.raises(OptionError, match=message):
        compose(name)
