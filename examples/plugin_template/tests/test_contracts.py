"""Every contract of the two strategies: one line each."""

from mtl_axes_template import RMSNorm, Tolerance

from mtl_axes.testing import check_inner, check_outer


def test_the_weighting_keeps_its_contracts() -> None:
    """With its defaults, and with a long memory."""
    check_outer(RMSNorm)
    check_outer(lambda: RMSNorm(beta=0.999))


def test_the_shape_keeps_its_contracts() -> None:
    """With its defaults, and with unequal limits."""
    check_inner(Tolerance)
    check_inner(lambda: Tolerance(over=0.0, under=3.0, softness=0.1))
