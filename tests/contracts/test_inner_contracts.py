"""Every registered inner shape and target weight through the conformance kit, by name and off their defaults."""

from __future__ import annotations

import pytest
from strategies import INNERS, SHAPED, WEIGHTS, shaped

from mtl_axes.testing import check_inner, check_weight


@pytest.mark.parametrize("name", INNERS)
def test_a_shape_keeps_its_contracts(name: str) -> None:
    """Every contract that the shape declares, for every kind of task that it serves."""
    check_inner(name)


@pytest.mark.parametrize("name", sorted(set(SHAPED) & set(INNERS)))
def test_a_shape_keeps_its_contracts_off_its_defaults(name: str) -> None:
    """The same with options that differ from the defaults."""
    check_inner(lambda: shaped(name))


@pytest.mark.parametrize("name", WEIGHTS)
def test_a_target_weight_keeps_its_contracts(name: str) -> None:
    """Every contract of a target weight, alone and around the standard loss of each of its kinds."""
    check_weight(name)
