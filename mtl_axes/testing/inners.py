"""The contracts of an inner shape, one function each, run for every kind of task that it serves."""

from __future__ import annotations

import copy
import io
import json
import math
import pickle
from collections.abc import Callable, Iterator
from typing import Any, ClassVar, Final

import torch
from torch import Tensor, nn

from mtl_axes.composition import compose
from mtl_axes.errors import DataError
from mtl_axes.inner import InnerShape
from mtl_axes.registry import name_of
from mtl_axes.signals import Kind
from mtl_axes.testing.case import Case, close, constructors, equal, numbers

__all__ = ["INNER_CHECKS", "InnerCase"]

KINDS: Final[tuple[Kind, ...]] = ("regression", "binary", "multiclass")
_SIZES = ((1,), (7,), (4, 3), (2, 3, 4))
_POOLED = ((1, 4), (7, 5), (4, 3, 5))
_ROUNDING = 1e-12

f64: Final = torch.float64


class InnerCase(Case[InnerShape]):
    """A shape under test.

    Attributes:
        kind: the kind of task that it is tried on at the moment.
        kinds: those that it serves.
    """

    kind: Kind

    def __init__(self, factory: Any) -> None:
        super().__init__("inner", InnerShape, factory)
        kinds = getattr(self.build(), "kinds", None)
        served = isinstance(kinds, frozenset) and bool(kinds) and kinds <= set(KINDS)
        self.require(served, f"should claim kinds, a frozenset of {', '.join(KINDS)}", repr(kinds))
        self.kinds: tuple[Kind, ...] = tuple(kind for kind in KINDS if kind in kinds)  # type: ignore[operator]
        self._sizes: dict[Kind, list[tuple[int, ...]]] = {}

    def sample(
        self, size: tuple[int, ...], seed: int = 0, dtype: torch.dtype = f64, shape: InnerShape | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return a prediction and a target of the kind of the moment, and have them told in whatever fails next."""
        shape = self.build() if shape is None else shape
        generator = torch.Generator().manual_seed(seed)
        prediction, target = shape.sample(self.kind, size, generator, dtype)
        self.tell(prediction, target)
        return prediction, target

    def tell(self, prediction: Tensor, target: Tensor, more: str = "") -> None:
        """Remember the input for the sentence of a failure."""
        self.given = (
            f"a {self.kind} task, prediction {tuple(prediction.shape)} = {numbers(prediction)}, "
            f"target {tuple(target.shape)} = {numbers(target)}{more}"
        )

    def sizes(self) -> list[tuple[int, ...]]:
        """Return the sizes of targets that the shape takes, of those of vectors, matrices and images."""
        known = self._sizes.get(self.kind)
        if known is None:
            shape = self.build()
            known = [size for size in (_POOLED if shape.pooled else _SIZES) if self._takes(shape, size)]
            self.require(
                bool(known),
                f"should take {self.kind} targets of some size as its own sample() draws them",
                "a DataError for each",
            )
            self._sizes[self.kind] = known
        return known

    def _takes(self, shape: InnerShape, size: tuple[int, ...]) -> bool:
        try:
            prediction, target = self.sample(size, shape=shape)
            shape.check(prediction, target)
        except DataError:
            return False
        return True

    def usual(self) -> tuple[int, ...]:
        """Return the size that checks use which need one only: several samples."""
        return next((size for size in self.sizes() if size[0] > 2), self.sizes()[-1])

    def several(self, seed: int = 0, dtype: torch.dtype = f64) -> tuple[Tensor, Tensor]:
        """Return several samples."""
        return self.sample(self.usual(), seed, dtype)


def per_kind(check: Callable[[InnerCase], None]) -> Callable[[InnerCase], None]:
    """Run a check for each kind of task."""

    def each(case: InnerCase) -> None:
        claim = case.claim
        for kind in case.kinds:
            case.kind = kind
            case.about(claim, f"a {kind} task")
            check(case)

    return each


def expected_size(shape: InnerShape, target: Tensor) -> torch.Size:
    """Return the shape of the losses: the target's, or (N,) when they are pooled."""
    return target.shape[:1] if shape.pooled else target.shape


def declarations(case: InnerCase) -> None:
    """Claims have values that the contract knows."""
    shape = case.build()
    case.require(shape.coupling in ("sample", "batch"), "should claim coupling as 'sample' or 'batch'", repr(shape.coupling))
    for claim in ("pooled", "trailing"):
        value = getattr(shape, claim)
        case.require(isinstance(value, bool), f"should claim {claim} as True or False", repr(value))
    bound = shape.lower_bound
    case.require(
        bound is None or (isinstance(bound, float) and math.isfinite(bound)),
        "should claim lower_bound as a finite float, or None where there is none",
        repr(bound),
    )
    for claim in ("target_range", "prediction_range"):
        value = getattr(shape, claim)
        holds = isinstance(value, tuple) and len(value) == 2 and value[0] < value[1]
        case.require(holds, f"should claim {claim} as (low, high)", repr(value))


def sampling(case: InnerCase) -> None:
    """Its own sample() draws what it takes: seeded, of the dtype, within its ranges, and passed by both checks."""
    shape = case.build()
    for size in case.sizes():
        prediction, target = case.sample(size, shape=shape)
        again = case.sample(size, shape=shape)
        case.require(
            equal(prediction, again[0]) and equal(target, again[1]),
            "sample() should draw from the generator alone",
            "other values for the same seed",
        )
        case.require(prediction.dtype is f64, "sample() should draw predictions of the dtype", str(prediction.dtype))
        case.require(target.shape[:1] == (size[0],), "sample() should draw as many targets as asked for", str(target.shape))
        if case.kind == "regression":
            for what, values, bounds in (
                ("target", target, shape.target_range),
                ("prediction", prediction, shape.prediction_range),
            ):
                low, high = float(values.min()), float(values.max())
                holds = bounds[0] <= low and high <= bounds[1]
                case.require(holds, f"claims {what}_range={bounds}", f"samples in [{low:g}, {high:g}]")
        case.claim = "check_values() should pass what sample() draws"
        shape.check_values(prediction, target)


def structure(case: InnerCase) -> None:
    """A shape does not reduce: one finite loss per entry, or per sample when pooled, in the prediction's dtype."""
    shape = case.build()
    for size in case.sizes():
        for dtype in (f64, torch.float32):
            prediction, target = case.sample(size, dtype=dtype, shape=shape)
            losses = shape(prediction, target)
            wanted = expected_size(shape, target)
            claim = (
                "claims pooled=True, so that it gives one loss per sample"
                if shape.pooled
                else "should give one loss per entry"
            )
            case.require(losses.shape == wanted, f"{claim} {tuple(wanted)}", f"the shape {tuple(losses.shape)}")
            case.require(losses.dtype is dtype, "should give losses in the dtype of the prediction", str(losses.dtype))
            case.require(bool(torch.isfinite(losses).all()), "should give finite losses", numbers(losses))


def lower_bound(case: InnerCase) -> None:
    """No loss lies below the bound, for ordinary and for large predictions."""
    shape = case.build()
    bound = shape.lower_bound
    if bound is None:
        return
    for scale in _scales(shape, case.kind):
        for seed in range(4):
            prediction, target = case.several(seed)
            prediction = prediction * scale
            case.tell(prediction, target)
            losses = shape(prediction, target)
            least = float(losses.min())
            size = float(losses.abs().max())
            case.require(
                least >= bound - _ROUNDING * max(1.0, size), f"claims lower_bound={bound}", f"a loss of {least:.6g}"
            )


def _scales(shape: InnerShape, kind: Kind) -> tuple[float, ...]:
    low, high = shape.prediction_range if kind == "regression" else (-math.inf, math.inf)
    # What is bounded from both sides cannot be large, and what is bounded away from 0 cannot be multiplied.
    return (1.0, 1e4) if (low <= 0 or low == -math.inf) and high == math.inf else (1.0,)


def gradients(case: InnerCase) -> None:
    """Gradients are finite for ordinary and for large predictions, and reach the prediction."""
    shape = case.build()
    for scale in _scales(shape, case.kind):
        for size in case.sizes():
            prediction, target = case.sample(size, shape=shape)
            prediction = (scale * prediction).requires_grad_()
            case.tell(prediction, target)
            losses = shape(prediction, target)
            case.require(
                bool(torch.isfinite(losses).all()), "should give finite losses for large predictions", numbers(losses)
            )
            case.require(losses.requires_grad, "should give losses with a graph to the prediction", "none")
            (gradient,) = torch.autograd.grad(losses.sum(), prediction)
            case.require(bool(torch.isfinite(gradient).all()), "should have finite gradients", numbers(gradient))
            if scale == 1.0 and size[0] > 2:
                case.require(bool(gradient.any()), "should have a gradient that reaches the prediction", "zeros everywhere")


def gradcheck(case: InnerCase) -> None:
    """The gradient is that of the losses: against differences, in float64."""
    shape = case.build()
    prediction, target = case.several()
    leaf = prediction.requires_grad_()
    case.claim = "should have the derivative of its losses as their gradient (gradcheck)"
    torch.autograd.gradcheck(lambda value: shape(value, target), (leaf,), fast_mode=False)


def order(case: InnerCase) -> None:
    """Permuting the samples permutes the losses."""
    shape = case.build()
    prediction, target = case.several()
    index = torch.randperm(len(target), generator=torch.Generator().manual_seed(3))
    found, expected = shape(prediction[index], target[index]), shape(prediction, target)[index]
    case.require(
        close(found, expected, 1e-9),
        "should not depend on the order of the samples",
        f"losses {numbers(found)} where the permutation {index.tolist()} gives {numbers(expected)}",
    )


def coupling(case: InnerCase) -> None:
    """coupling="sample" says that samples are independent: those of two batches have the losses of one."""
    shape = case.build()
    if shape.coupling != "sample":
        return
    (first, target), (second, other) = case.several(0), case.several(1)
    case.tell(torch.cat([first, second]), torch.cat([target, other]))
    leaf = torch.cat([first, second]).requires_grad_()
    together = shape(leaf, torch.cat([target, other]))
    apart = torch.cat([shape(first, target), shape(second, other)])
    case.require(
        close(together, apart, 1e-12),
        "claims coupling='sample'",
        f"losses {numbers(together)} in one batch and {numbers(apart)} in two",
    )
    (gradient,) = torch.autograd.grad(together[0].sum(), leaf)
    others = gradient[1:]
    case.require(
        not bool(others.any()),
        "claims coupling='sample'",
        f"a gradient of the first loss at other samples, {numbers(others)}",
    )


def inputs(case: InnerCase) -> None:
    """Prediction and target are left alone, and no call changes the next."""
    shape = case.build()
    prediction, target = case.several()
    kept = prediction.clone(), target.clone()
    first = shape(prediction, target)
    case.require(equal(prediction, kept[0]), "should leave the prediction alone", numbers(prediction))
    case.require(equal(target, kept[1]), "should leave the target alone", numbers(target))
    shape(*case.several(4))
    shape.eval()
    case.tell(prediction, target)
    again = shape(prediction, target)
    case.require(
        equal(again, first),
        "should give the same losses again, in eval mode too",
        f"{numbers(again)} after {numbers(first)}",
    )


def values(case: InnerCase) -> None:
    """check and forward read no value: they run on the meta device, where there are none."""
    shape = case.build()
    prediction, target = (tensor.to("meta") for tensor in case.several())
    case.claim = "should read no value in check and forward, which would wait for the device"
    shape.to("meta")
    shape.check(prediction, target)
    losses = shape(prediction, target)
    case.require(losses.device.type == "meta", case.claim, f"losses on {losses.device}")
    if shape.masks:
        valid = torch.ones(target.shape, dtype=torch.bool, device="meta")
        case.require(shape(prediction, target, valid).shape == losses.shape, case.claim, "another shape with a mask")


def broadcasting(case: InnerCase) -> None:
    """Shapes match exactly: (N, 1) against (N,), or another number of samples, is an error."""
    shape = case.build()
    prediction, target = case.several()
    for wrong in (target.unsqueeze(-1), target[:-1], target[:1], target.unsqueeze(0)):
        case.given = f"a {case.kind} task, prediction {tuple(prediction.shape)}, target {tuple(wrong.shape)}"
        try:
            shape.check(prediction, wrong)
        except DataError:
            continue
        case.require(False, "check() should refuse shapes that do not match with a DataError", "none")


def masks(case: InnerCase) -> None:
    """In a criterion a mask equals deletion, in value and gradient, and what lies at masked places does not matter."""
    prediction, target = case.several()
    count = len(target)
    keep = torch.arange(count) % 3 != 1
    for garbage in (False, True):
        leaf, other = prediction.clone(), target.clone()
        if garbage:
            leaf[~keep] = torch.nan
            if other.is_floating_point():
                other[~keep] = torch.nan
            elif other.dtype is not torch.bool:
                other[~keep] = -100
        what = "NaN at masked places" if garbage else "masked samples"
        case.tell(prediction, target, f", {what}, mask {numbers(keep)}")
        total, gradient = _total(case, leaf, other, keep)
        wanted, slope = _total(case, prediction[keep], target[keep], None)
        claim = "should treat masked samples as deleted ones"
        case.require(close(total, wanted, 1e-9), claim, f"the loss {numbers(total)} and {numbers(wanted)} without them")
        case.require(close(gradient[keep], slope, 1e-9), claim, f"gradients {numbers(gradient[keep])} and {numbers(slope)}")
        rest = gradient[~keep]
        case.require(not bool(rest.any()), claim, f"gradients {numbers(rest)} at masked places")


def _total(case: InnerCase, prediction: Tensor, target: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return the total of a criterion with this task alone, and its gradient."""
    leaf = prediction.clone().requires_grad_()
    criterion = compose("fixed", {"task": case.build()})
    total = criterion((leaf,), (target,), mask=mask)
    (gradient,) = torch.autograd.grad(total, leaf)
    return total.detach(), gradient


def entries(case: InnerCase) -> None:
    """Masks of single entries: their values do not matter; a column masked throughout is a column deleted."""
    shape = case.build()
    for size in case.sizes():
        if len(size) < 2 or size[0] < 2 or (shape.coupling == "batch" and not shape.pooled):
            continue
        prediction, target = case.sample(size, shape=shape)
        if target.shape != torch.Size(size):
            continue
        dim = target.ndim - 1
        within = _dimension(prediction, target, shape, dim)
        valid = torch.ones(target.shape, dtype=torch.bool)
        valid.select(dim, 1).fill_(False)
        here = torch.tensor([index for index in range(size[-1]) if index != 1])
        less, fewer = prediction.index_select(within, here), target.index_select(dim, here)
        try:
            shape.check(less, fewer)
        except DataError:
            continue  # one whose number of entries is fixed
        spoiled, other = prediction.clone(), target.clone()
        spoiled.select(within, 1).fill_(torch.nan)
        if other.is_floating_point():
            other.select(dim, 1).fill_(torch.nan)
        case.tell(prediction, target, ", NaN in a masked column")
        total, gradient = _total(case, spoiled, other, valid)
        wanted, slope = _total(case, less, fewer, None)
        claim = "should treat a masked column as a deleted one"
        case.require(close(total, wanted, 1e-9), claim, f"the loss {numbers(total)} and {numbers(wanted)} without it")
        found = gradient.index_select(within, here)
        case.require(close(found, slope, 1e-9), claim, f"gradients {numbers(found)} and {numbers(slope)}")


def _dimension(prediction: Tensor, target: Tensor, shape: InnerShape, dim: int) -> int:
    """Return the dimension of the prediction that belongs to a dimension of the target: classes are at 1, parameters last."""
    return dim if prediction.ndim == target.ndim or shape.trailing else dim + 1


def valid_entries(case: InnerCase) -> None:
    """A shape that couples entries leaves masked ones out by itself, down to a batch where nothing counts."""
    shape = case.build()
    if not shape.masks:
        return
    prediction, target = case.several()
    keep = torch.arange(len(target)) % 3 != 1
    valid = keep.reshape(-1, *[1] * (target.ndim - 1)).expand(target.shape).contiguous()
    hidden, other = _zeroed(prediction, target, valid, shape)
    case.tell(hidden, other, f", valid {numbers(keep)}")
    found, expected = shape(hidden, other, valid)[keep], shape(prediction[keep], target[keep])
    claim = "should leave out what is not valid, as if it were deleted"
    case.require(close(found, expected, 1e-9), claim, f"losses {numbers(found)} and {numbers(expected)} without it")
    whole = torch.ones_like(valid)
    case.tell(prediction, target, ", all valid")
    found, expected = shape(prediction, target, whole), shape(prediction, target)
    told = "should take a mask of True throughout for none"
    case.require(close(found, expected, 1e-9), told, f"losses {numbers(found)} and {numbers(expected)}")
    for first in (0, 1):
        some = torch.zeros_like(valid)
        some[:first] = True
        hidden, other = _zeroed(prediction, target, some, shape)
        case.tell(hidden, other, f", {first} valid samples")
        leaf = hidden.requires_grad_()
        losses = shape(leaf, other, some)
        (gradient,) = torch.autograd.grad(losses.sum(), leaf, allow_unused=True)
        finite = bool(torch.isfinite(losses).all()) and (gradient is None or bool(torch.isfinite(gradient).all()))
        told = f"should stay finite with {first} valid samples"
        case.require(finite, told, f"losses {numbers(losses)} and gradients {numbers(gradient)}")


def _zeroed(prediction: Tensor, target: Tensor, valid: Tensor, shape: InnerShape) -> tuple[Tensor, Tensor]:
    """Return what a criterion hands over: 0 where an entry does not count."""
    keep = valid.unsqueeze(-1 if shape.trailing else 1) if prediction.ndim > valid.ndim else valid
    return torch.where(keep, prediction, 0.0), torch.where(valid, target, torch.zeros((), dtype=target.dtype))


def half(case: InnerCase) -> None:
    """A criterion computes shapes in float32 or wider, whatever the dtype of the model."""
    prediction, target = case.several(dtype=torch.float32)
    narrow = prediction.bfloat16()
    case.tell(narrow, target, " in bfloat16")
    total, gradient = _total(case, narrow, target, None)
    wanted, _ = _total(case, narrow.float(), target, None)
    claim = "should be computed in float32 by a criterion, for a prediction in bfloat16"
    case.require(total.dtype is torch.float32, claim, str(total.dtype))
    case.require(equal(total, wanted), claim, f"the loss {numbers(total)} and {numbers(wanted)} in float32")
    case.require(gradient.dtype is torch.bfloat16, claim, f"a gradient in {gradient.dtype}")


def copies(case: InnerCase) -> None:
    """deepcopy, pickle and load_state_dict keep the function."""
    shape = case.build()
    prediction, target = case.several()
    expected = shape(prediction, target)
    file = io.BytesIO()
    torch.save(shape.state_dict(), file)
    file.seek(0)
    case.claim = "should load its state"
    fresh = case.build()
    fresh.load_state_dict(torch.load(file, weights_only=True))
    twins = {"load_state_dict": fresh}
    case.claim = "should survive deepcopy"
    twins["deepcopy"] = copy.deepcopy(shape)
    # A class within a function is one that pickle cannot find, whatever it does.
    if "<locals>" not in type(shape).__qualname__:
        case.claim = "should survive pickle"
        twins["pickle"] = pickle.loads(pickle.dumps(shape))
    for how, twin in twins.items():
        found = twin(prediction, target)
        case.require(
            equal(found, expected), f"should give the same losses after {how}", f"{numbers(found)} and {numbers(expected)}"
        )


def rebuilt(case: InnerCase) -> None:
    """The repr is the constructor call, and the options are its arguments."""
    shape = case.build()
    prediction, target = case.several()
    expected = shape(prediction, target)
    case.claim = f"should have the constructor call as its repr, {shape!r}"
    twins = {"the repr": eval(repr(shape), constructors(shape))}
    case.claim = "should have the constructor's arguments as its options"
    twins["options()"] = type(shape)(**shape.options())
    for what, twin in twins.items():
        found = twin(prediction, target)
        case.require(repr(twin) == repr(shape), f"should be built again from {what}", repr(twin))
        case.require(
            equal(found, expected), f"should be built again from {what}", f"losses {numbers(found)} and {numbers(expected)}"
        )


class _Plain(InnerShape):
    """A quarter of the squared prediction: a shape that goes with every prediction, to stand beside another one."""

    kinds: ClassVar[frozenset[Kind]] = frozenset(KINDS)

    def check(self, prediction: Tensor, target: Tensor) -> None:
        pass

    def forward(self, prediction: Tensor, target: Tensor, /) -> Tensor:
        extra = prediction.ndim - target.ndim
        square = prediction.square() / 4
        # Which dimension holds more than one number per entry does not matter for a mean over all of them.
        return (
            square.movedim(1, -1).mean(-1)
            if extra > 0 and square.movedim(1, -1).shape[:-1] == target.shape
            else (square.mean(-1) if extra > 0 else square)
        )


def in_criterion(case: InnerCase) -> None:
    """In a criterion total and gradient are those of the mean losses, and the two axes enter the total bilinearly."""
    prediction, target = case.several()
    case.claim = "should go into a criterion"
    scale = nn.Parameter(torch.ones((), dtype=f64))
    outputs = {
        "x": prediction * scale,
        "y": prediction.flatten(1).sum(1) * scale if prediction.ndim > 1 else prediction * scale,
    }
    targets = {"x": target, "y": torch.linspace(-1, 1, len(target), dtype=f64)}
    plain: dict[str, Any] = {"x": _Plain(), "y": "mse"}
    shaped: dict[str, Any] = {"x": case.build(), "y": "mse"}
    live = compose({"name": "gaba", "warmup": 0, "beta": 0.5}, shaped)
    whole = live(outputs, targets)
    assert live.report is not None
    weights = live.report.weights
    fixed = [0.3, 0.7]
    at_live = compose({"name": "fixed", "weights": weights.tolist()}, plain)(outputs, targets)
    first = compose({"name": "fixed", "weights": fixed}, plain)(outputs, targets)
    second = compose({"name": "fixed", "weights": fixed}, {**shaped, "x": case.build()})(outputs, targets)
    mean = case.build()(outputs["x"], target).mean()
    beside = _Plain()(outputs["x"], target).mean()
    left = (whole - at_live) - (second - first)
    right = (weights[0] - fixed[0]) * (mean - beside)
    size = 1 + float((mean.abs() + beside.abs()).detach())
    case.require(
        abs(float(left.detach()) - float(right.detach())) <= 1e-9 * size,
        "should enter a total bilinearly, (L_D - L_C) - (L_B - L_A) = (lambda - mu) (S - P)",
        f"{float(left.detach()):.12g} and {float(right.detach()):.12g}",
    )
    rest = (outputs["y"] - targets["y"]).square().mean()
    (found,) = torch.autograd.grad(whole, scale, retain_graph=True)
    (wanted,) = torch.autograd.grad(weights[0] * mean + weights[1] * rest, scale)
    case.require(
        close(found, wanted, 1e-8, 1e-12),
        "should have the weighted gradient of its mean as its part of the total's",
        f"{numbers(found)} and {numbers(wanted)}",
    )


def config(case: InnerCase) -> None:
    """A registered shape is named in the config of a criterion, plain data that builds the same criterion."""
    shape = case.build()
    if name_of("inner", type(shape)) is None:
        return
    prediction, target = case.several()
    criterion = compose("fixed", {"task": shape})
    case.claim = "should be built again from the config of a criterion"
    twin = compose(**json.loads(json.dumps(criterion.config())))
    case.require(twin.config() == criterion.config(), case.claim, repr(twin.shapes))
    left, right = (each((prediction,), (target,)) for each in (criterion, twin))
    case.require(equal(left, right), case.claim, f"the totals {numbers(left)} and {numbers(right)}")


def checks() -> Iterator[tuple[str, Callable[[InnerCase], None]]]:
    """Name the checks, in the order in which they run."""
    yield "declarations", declarations
    for name, check in {
        "sampling": sampling,
        "structure": structure,
        "lower bound": lower_bound,
        "gradients": gradients,
        "gradcheck": gradcheck,
        "order": order,
        "coupling": coupling,
        "inputs": inputs,
        "values": values,
        "broadcasting": broadcasting,
        "masks": masks,
        "entries": entries,
        "valid entries": valid_entries,
        "half": half,
        "copies": copies,
        "rebuilt": rebuilt,
        "in a criterion": in_criterion,
        "config": config,
    }.items():
        yield name, per_kind(check)


INNER_CHECKS: Final[dict[str, Callable[[InnerCase], None]]] = dict(checks())
