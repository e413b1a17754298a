"""What the checks of all axes share: building a strategy, comparing results, and the sentence of a failure."""

from __future__ import annotations

import copy
import io
import math
import pickle
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, Generic, TypeVar, cast

import torch
from torch import Tensor, nn

from mtl_axes.errors import ContractError, OptionError
from mtl_axes.inner import InnerShape, TargetWeight
from mtl_axes.options import constructor_options
from mtl_axes.outer import OuterWeighting
from mtl_axes.registry import Axis, available, create, lookup, name_of

__all__ = ["Case", "can_pickle", "close", "equal", "nameable", "named", "numbers", "raised", "run", "same", "snapshot"]

Strategy = TypeVar("Strategy", bound=nn.Module)
AnyCase = TypeVar("AnyCase", bound="Case[Any]")


class Case(Generic[Strategy]):
    """A strategy under test: builds fresh ones, and states in one sentence which contract does not hold.

    Attributes:
        name: name of the class, for the sentence.
        given: the current input, for the sentence; "" when there is none.
        claim: the contract being checked, for the sentence of an exception.
    """

    def __init__(self, axis: Axis, base: type[Strategy], factory: str | type[Strategy] | Callable[[], Strategy]) -> None:
        self.axis: Axis = axis
        self.build = self._builder(factory)
        self.given = ""
        self.claim = "can be built"
        self.name = factory if isinstance(factory, str) else getattr(factory, "__name__", type(factory).__name__)
        try:
            first, second = self.build(), self.build()
        except Exception as error:
            hint = " Put the options that it needs into the class attribute `example`, or pass a callable that builds it."
            raise ContractError(
                f"{self.name} should be built by its factory: found {raised(error)}."
                f"{hint if isinstance(error, TypeError) else ''}"
            ) from error
        if not isinstance(first, base):
            raise ContractError(f"{self.name} should be a subclass of {base.__name__}: found {type(first).__name__}.")
        self.name = type(first).__name__
        self.require(first is not second, "should be fresh from every call of its factory", "the same object twice")

    def _builder(self, factory: str | type[Strategy] | Callable[[], Strategy]) -> Callable[[], Strategy]:
        if isinstance(factory, str):
            name, options = factory, getattr(lookup(self.axis, factory), "example", {})
            return lambda: cast(Strategy, create(cast(Any, self.axis), name, **copy.deepcopy(dict(options))))
        if isinstance(factory, type):
            cls = factory
            return lambda: cls(**copy.deepcopy(dict(getattr(cls, "example", {}))))
        if callable(factory):
            return factory
        raise OptionError(
            f"The factory should be a class, a registered name or a callable without arguments. Found {factory!r}."
        )

    def require(self, holds: bool, claim: str, found: str) -> None:
        """Raise :class:`ContractError` unless a claim holds."""
        if not holds:
            raise ContractError(self._sentence(claim, found))

    def require_equal(self, result: Tensor, expected: Tensor, claim: str, text: str = "{} and {}") -> None:
        """Require two tensors to agree bit for bit. ``text`` shows them."""
        if not equal(result, expected):
            self.require(False, claim, text.format(*_unequal(result, expected)))

    def require_close(
        self,
        result: Tensor,
        expected: Tensor,
        claim: str,
        text: str = "{} and {}",
        *,
        rtol: float = 1e-9,
        atol: float = 0.0,
    ) -> None:
        """Require two tensors to agree relative to their largest entry. ``text`` shows them."""
        if not close(result, expected, rtol, atol):
            self.require(False, claim, text.format(numbers(result), numbers(expected)))

    def require_finite(self, values: Tensor, claim: str, text: str = "{}") -> None:
        """Require a tensor to be finite. ``text`` shows it."""
        self.require(bool(torch.isfinite(values).all()), claim, text.format(numbers(values)))

    def require_unchanged(self, after: Mapping[str, Any], before: Mapping[str, Any], claim: str, more: str = "") -> None:
        """Require two snapshots to agree bit for bit, dtypes included."""
        self.require(same(after, before), claim, f"a change in {_difference(after, before)}{more}")

    def copies(self, strategy: Strategy) -> Iterator[tuple[str, Strategy]]:
        """Yield copies of a strategy, each with the way in which it was made."""
        self.claim = "should load its state"
        file = io.BytesIO()
        torch.save(strategy.state_dict(), file)
        file.seek(0)
        fresh = self.build()
        fresh.load_state_dict(torch.load(file, weights_only=True))
        yield "load_state_dict", fresh
        self.claim = "should survive deepcopy"
        yield "deepcopy", copy.deepcopy(strategy)
        if can_pickle(strategy):
            self.claim = "should survive pickle"
            yield "pickle", pickle.loads(pickle.dumps(strategy))

    def rebuilt(self, strategy: Strategy) -> Iterator[tuple[str, Strategy]]:
        """Yield a strategy built from the ``repr`` and one from the options of another, each with its source."""
        options: Mapping[str, Any] = cast(Any, strategy).options()
        lost = [name for name in constructor_options(type(strategy)) if name not in options]
        self.about("should keep each option as an attribute of its name, for repr, config and copies")
        self.require(not lost, self.claim, f"no attribute {' and no '.join(lost)}")
        twins: dict[str, Callable[[], Strategy]] = {
            "the repr": lambda: eval(repr(strategy), _constructors(strategy)),
            "options()": lambda: type(strategy)(**options),
        }
        for source, build in twins.items():
            self.about(f"should be built again from {source}", repr(strategy))
            twin = build()
            self.require(repr(twin) == repr(strategy), self.claim, repr(twin))
            yield source, twin

    def _sentence(self, claim: str, found: str) -> str:
        return f"{self.name} {claim}: found {found}{f' for {self.given}' if self.given else ''}."

    def blame(self, error: Exception) -> ContractError:
        """Return the error for an exception that a strategy raised while a claim was checked."""
        return ContractError(self._sentence(self.claim, raised(error)))

    def about(self, claim: str, given: str = "") -> None:
        """Set the contract that is checked next, which the sentence of an exception names."""
        self.claim, self.given = claim, given


def raised(error: Exception) -> str:
    """Return an exception in one line, for a sentence."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:300].rstrip('.')}" if text else type(error).__name__


def named(*checks: Callable[[AnyCase], None]) -> dict[str, Callable[[AnyCase], None]]:
    """Return checks by name: the names of the functions, with spaces."""
    return {check.__name__.replace("_", " "): check for check in checks}


def run(case: AnyCase, checks: Mapping[str, Callable[[AnyCase], None]], skip: Collection[str]) -> None:
    """Run checks by name, each with a fixed seed; the random state is restored afterwards."""
    unknown = set(skip) - set(checks)
    if isinstance(skip, str) or unknown:
        raise OptionError(f"Option `skip` should hold names of {', '.join(checks)}. Found skip={skip!r}.")
    for name, check in checks.items():
        if name in skip:
            continue
        case.about(f"should pass {name!r}")
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            torch.manual_seed(0)
            # A warning for users, such as the cost of a probe, breaks no contract.
            warnings.simplefilter("ignore")
            try:
                check(case)
            except ContractError:
                raise
            except Exception as error:
                raise case.blame(error) from error


def can_pickle(strategy: nn.Module) -> bool:
    """Return whether pickle can find the class of a strategy: never one defined within a function."""
    return "<locals>" not in type(strategy).__qualname__


def _unequal(result: Tensor, expected: Tensor) -> tuple[str, str]:
    """Return the text of two unequal tensors, with as many digits as they need to look unequal, or with their dtypes."""
    for digits in (4, 9, 17):
        one, other = numbers(result, digits), numbers(expected, digits)
        if one != other:
            return one, other
    return f"{one} in {result.dtype}", f"{other} in {expected.dtype}"


def numbers(values: Tensor | Sequence[float] | None, digits: int = 4) -> str:
    """Return the text of numbers, shortened for a sentence."""
    if values is None:
        return "None"
    if not isinstance(values, Tensor):
        return "[" + ", ".join(f"{value:.{digits}g}" for value in values) + "]"
    if values.device.type == "meta":
        return f"a tensor {tuple(values.shape)}"
    if values.ndim == 0:
        return f"{values.item():.{max(digits, 6)}g}"
    rows = values.detach().flatten().tolist()
    shown = ", ".join(str(value) if isinstance(value, bool) else f"{value:.{digits}g}" for value in rows[:8])
    return f"[{shown}{', ...' if len(rows) > 8 else ''}]"


def close(left: Tensor, right: Tensor, rtol: float = 1e-9, atol: float = 0.0) -> bool:
    """Return whether two tensors agree relative to their largest entry; NaN agrees with nothing."""
    if left.shape != right.shape:
        return False
    if not left.numel():
        return True
    left, right = left.detach().double(), right.detach().double()
    size = torch.maximum(left.abs().max(), right.abs().max())
    return bool(((left - right).abs() <= rtol * size + atol).all()) and bool(torch.isfinite(size))


def snapshot(module: nn.Module) -> dict[str, Any]:
    """Return a copy of a module's state: parameters, buffers (persistent or not) and the extra state."""
    state: dict[str, Any] = {name: tensor.detach().clone() for name, tensor in module.named_parameters()}
    state |= {name: tensor.detach().clone() for name, tensor in module.named_buffers()}
    state |= {key: copy.deepcopy(value) for key, value in module.state_dict().items() if not isinstance(value, Tensor)}
    return state


def same(left: Mapping[str, Any], right: Mapping[str, Any]) -> bool:
    """Return whether two snapshots agree bit for bit, dtypes included."""
    return equal(dict(left), dict(right))


def equal(left: Any, right: Any) -> bool:
    """Return whether two nested values agree bit for bit; NaN equals NaN."""
    if isinstance(left, Tensor):
        return (
            isinstance(right, Tensor)
            and left.dtype == right.dtype
            and left.shape == right.shape
            and bool(((left == right) | ((left != left) & (right != right))).all())
        )
    if isinstance(left, Mapping):
        return left.keys() == right.keys() and all(equal(left[key], right[key]) for key in left)
    if isinstance(left, (list, tuple)):
        return len(left) == len(right) and all(equal(a, b) for a, b in zip(left, right, strict=True))
    return bool(left == right)


def _difference(left: Mapping[str, Any], right: Mapping[str, Any]) -> str:
    """Return the names of the entries in which two snapshots differ."""
    keys = sorted({*left, *right})
    return ", ".join(key for key in keys if key not in left or key not in right or not equal(left[key], right[key]))


def nameable(strategy: nn.Module) -> bool:
    """Return whether a config can name a strategy: it is registered, and so is every strategy among its options."""
    bases: tuple[tuple[Axis, type], ...] = (("outer", OuterWeighting), ("inner", InnerShape), ("weight", TargetWeight))
    registered = any(isinstance(strategy, base) and name_of(axis, type(strategy)) is not None for axis, base in bases)
    options: Mapping[str, Any] = cast(Any, strategy).options()
    return registered and all(nameable(value) for value in options.values() if isinstance(value, nn.Module))


def _constructors(strategy: nn.Module) -> dict[str, Any]:
    """Return the classes that the ``repr`` of a strategy may name: its own, its parts' and every registered one."""
    known: dict[str, Any] = {"inf": math.inf, "nan": math.nan}
    axes: tuple[Axis, ...] = ("outer", "inner", "weight")
    for axis in axes:
        for name in available(axis):
            try:
                cls = lookup(axis, name)
            except Exception:  # two plugins with one name: not tested here
                continue
            known[cls.__name__] = cls
    known |= {type(part).__name__: type(part) for part in strategy.modules()}
    return known
