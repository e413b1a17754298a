"""What only the author can test: the numbers of the strategies."""

import doctest
import importlib
import math

import pytest
import torch
from mtl_axes_template import RMSNorm, Tolerance

from mtl_axes import Signals, available, compose, create
from mtl_axes.errors import OptionError


def test_the_weights_are_those_of_the_formula() -> None:
    """Two windows by hand: second moments without the start of their average."""
    weighting = RMSNorm(beta=0.9)
    for norms in ([1.0, 2.0, 4.0], [3.0, 2.0, 1.0]):
        weights = weighting(Signals(torch.ones(3, dtype=torch.float64), norms=torch.tensor(norms, dtype=torch.float64)))
    moments = [(0.9 * 0.1 * a**2 + 0.1 * b**2) / (1 - 0.9**2) for a, b in ((1, 3), (2, 2), (4, 1))]
    inverse = [1 / math.sqrt(moment) for moment in moments]
    assert weights.tolist() == pytest.approx([3 * value / sum(inverse) for value in inverse], rel=1e-12)


@pytest.mark.parametrize(
    ("error", "loss"),
    [(0.0, 0.072539), (1.0, 0.347811), (8.0, 7.000000), (-2.0, 0.347811), (-8.0, 6.000003)],
)
def test_the_losses_are_those_of_the_formula(error: float, loss: float) -> None:
    """Flat within the band [-2, 1], s log 2 at each of its ends, and beyond it the excess."""
    shape = Tolerance(over=1.0, under=2.0, softness=0.5)
    assert shape(torch.tensor([error]), torch.tensor([0.0])).item() == pytest.approx(loss, abs=2e-6)


@pytest.mark.parametrize("name", ["shape", "weighting"])
def test_the_examples_in_the_docstrings(name: str) -> None:
    """The examples of the installed package; --doctest-modules would look in src."""
    failed, tried = doctest.testmod(importlib.import_module(f"mtl_axes_template.{name}"))
    assert tried and not failed


def test_both_are_there_by_name() -> None:
    """Installed, the two train together, and a config brings them back."""
    assert "rms_norm" in available("outer") and "tolerance" in available("inner")
    criterion = compose({"name": "rms_norm", "beta": 0.5}, {"name": "tolerance", "over": 2.0}, tasks=["rul", "load"])
    weight = torch.nn.Parameter(torch.tensor([1.0, 2.0]))
    outputs = {"rul": 10 * weight.sum() * torch.ones(4), "load": weight[0] * torch.linspace(0, 1, 4)}
    targets = {"rul": torch.full((4,), 5.0), "load": torch.full((4,), 9.0)}
    criterion(outputs, targets).backward()
    assert criterion.report.weights.sum().item() == pytest.approx(2.0)
    assert criterion.report.weights[0] < criterion.report.weights[1], "the task with the larger gradient weighs less"
    assert repr(compose(**criterion.config()).outer) == "RMSNorm(beta=0.5)"


def test_options_out_of_range() -> None:
    """Both constructors refuse options outside their range."""
    for name, axis, options in (("rms_norm", "outer", {"beta": 1.0}), ("tolerance", "inner", {"softness": 0.0})):
        with pytest.raises(OptionError, match=f"{name}: Option"):
            create(axis, name, **options)
