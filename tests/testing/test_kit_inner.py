"""The kit detects broken claims: for each claim, an inner shape or a target weight that breaks it, and the sentence."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

from mtl_axes import InnerShape, TargetWeight, register_inner, registry
from mtl_axes.errors import ContractError, DataError, OptionError
from mtl_axes.inner import CrossEntropy, FailureBias, Quantile
from mtl_axes.tasks.losses import weighted_sum
from mtl_axes.testing import check_inner, check_weight


class Cosh(InnerShape):
    """A sound shape."""

    kinds: ClassVar[Any] = frozenset({"regression"})

    def __init__(self, *, scale: float = 1.0) -> None:
        super().__init__()
        self.scale = scale

    def forward(self, prediction: Tensor, target: Tensor, /) -> Tensor:
        squared = (prediction - target).square()
        return self.scale * squared / (1 + (1 + squared).sqrt())


class Variance(InnerShape):
    """A sound shape that couples the batch: the squared error over the variance of the errors."""

    kinds: ClassVar[Any] = frozenset({"regression"})
    coupling: ClassVar[Any] = "batch"

    def forward(self, prediction: Tensor, target: Tensor, valid: Tensor | None = None, /) -> Tensor:
        square = (prediction - target).square()
        keep = torch.ones_like(square, dtype=torch.bool) if valid is None else valid
        mean = torch.where(keep, square, 0.0).sum() / keep.sum().clamp_min(1)
        return square / (1 + mean)


class Overlap(InnerShape):
    """A sound pooled shape: soft Dice over the entries of a sample."""

    kinds: ClassVar[Any] = frozenset({"binary"})
    pooled: ClassVar[bool] = True

    def forward(self, prediction: Tensor, target: Tensor, valid: Tensor | None = None, /) -> Tensor:
        keep = torch.ones_like(prediction) if valid is None else valid.to(prediction.dtype)
        p, y = prediction.sigmoid() * keep, target.to(prediction.dtype) * keep
        return 1 - (2 * (p * y).flatten(1).sum(1) + 1) / ((p + y).flatten(1).sum(1) + 1)


class Spread(InnerShape):
    """A sound shape with a trailing dimension: a Gaussian's negative log likelihood."""

    kinds: ClassVar[Any] = frozenset({"regression"})
    lower_bound: ClassVar[float | None] = None
    trailing: ClassVar[bool] = True

    def check(self, prediction: Tensor, target: Tensor) -> None:
        if prediction.shape != (*target.shape, 2):
            raise DataError(f"prediction should have the shape {(*target.shape, 2)}. Found {tuple(prediction.shape)}.")

    def sample(self, kind: Any, size: Any, generator: torch.Generator, dtype: torch.dtype, /) -> tuple[Tensor, Tensor]:
        drawn = torch.randn((*size, 3), generator=generator, dtype=torch.float64).to(dtype)
        return drawn[..., :2], drawn[..., 2]

    def forward(self, prediction: Tensor, target: Tensor, /) -> Tensor:
        mean, log_variance = prediction.unbind(-1)
        log_variance = log_variance.clamp(-20.0, 20.0)
        return 0.5 * ((mean - target).square() * (-log_variance).exp() + log_variance)


class Positive(InnerShape):
    """A sound shape of positive numbers alone."""

    kinds: ClassVar[Any] = frozenset({"regression"})
    prediction_range: ClassVar[Any] = (0.0, float("inf"))
    target_range: ClassVar[Any] = (0.0, float("inf"))

    def forward(self, prediction: Tensor, target: Tensor, /) -> Tensor:
        return ((prediction + 1).log() - (target + 1).log()).square()


@pytest.mark.parametrize(
    "sound", [Cosh, Variance, Overlap, Spread, Positive, lambda: Quantile(q=(0.1, 0.9)), lambda: Cosh(scale=3.0)]
)
def test_a_sound_shape_passes(sound: Any) -> None:
    """Shapes that keep their contracts pass: per entry, coupled, pooled, with parameters in a last dimension."""
    check_inner(sound)


def like(base: type[Any] = Cosh, **members: Any) -> Any:
    """A shape like another one, with other members; a class within a function, which pickle is not asked to find."""
    return type("Broken", (base,), {"__qualname__": "like.<locals>.Broken", **members})


def forward(function: Any, base: type[Any] = Cosh, **claims: Any) -> Any:
    """A shape like another one, with another function of prediction and target."""
    return like(base, forward=lambda self, prediction, target, valid=None, /: function(prediction, target), **claims)


def square(prediction: Tensor, target: Tensor) -> Tensor:
    return (prediction - target).square()


def wrong_slope(prediction: Tensor, target: Tensor) -> Tensor:
    return square(prediction, target) + (prediction - prediction.detach())


def in_place(prediction: Tensor, target: Tensor) -> Tensor:
    losses = square(prediction, target)
    target.add_(1.0)
    return losses


def touches_prediction(prediction: Tensor, target: Tensor) -> Tensor:
    losses = square(prediction, target)
    if not prediction.requires_grad:
        prediction.mul_(2.0)
    return losses


def peeks(prediction: Tensor, target: Tensor) -> Tensor:
    return square(prediction, target) if float(prediction.sum()) != 1.5 else prediction


def by_index(prediction: Tensor, target: Tensor) -> Tensor:
    ramp = torch.arange(1.0, len(target) + 1, dtype=prediction.dtype, device=prediction.device)
    return square(prediction, target) * ramp.reshape(-1, *[1] * (target.ndim - 1))


class Counting(Cosh):
    def __init__(self) -> None:
        super().__init__()
        self.calls = 0.0

    def options(self) -> dict[str, Any]:
        return {}

    def forward(self, prediction: Tensor, target: Tensor, /) -> Tensor:
        self.calls += 1.0
        return square(prediction, target) + self.calls


class InTraining(Cosh):
    def forward(self, prediction: Tensor, target: Tensor, /) -> Tensor:
        return square(prediction, target) * (2.0 if self.training else 1.0)


class Lax(Cosh):
    def check(self, prediction: Tensor, target: Tensor) -> None:
        pass


class Leaky(Variance):
    """Counts masked samples in the mean."""

    def forward(self, prediction: Tensor, target: Tensor, valid: Tensor | None = None, /) -> Tensor:
        squared = square(prediction, target)
        return squared / (1 + squared.mean())


class Divides(Variance):
    """Divides by the number of valid samples, also when that is 0."""

    def forward(self, prediction: Tensor, target: Tensor, valid: Tensor | None = None, /) -> Tensor:
        squared = square(prediction, target)
        keep = torch.ones_like(squared, dtype=torch.bool) if valid is None else valid
        return squared / (1 + torch.where(keep, squared, 0.0).sum() / keep.sum())


class CountsMasked(Overlap):
    """Takes masked entries for empty ones that count."""

    def forward(self, prediction: Tensor, target: Tensor, valid: Tensor | None = None, /) -> Tensor:
        p, y = prediction.sigmoid(), target.to(prediction.dtype)
        return 1 - (2 * (p * y).flatten(1).sum(1) + 1) / ((p + y).flatten(1).sum(1) + 1)


class NoMask(Variance):
    """Takes no mask, though it couples."""

    def forward(self, prediction: Tensor, target: Tensor, /) -> Tensor:  # type: ignore[override]
        return square(prediction, target) / (1 + square(prediction, target).mean())


class Unpicklable(Cosh):
    def __init__(self, *, scale: float = 1.0) -> None:
        super().__init__(scale=scale)
        self.hook = lambda: None


class NotKept(Cosh):
    def __init__(self, *, width: float = 1.0) -> None:
        super().__init__(scale=width)
        self._width = width


class Needy(NotKept):
    def __init__(self, width: float) -> None:
        super().__init__(width=width)


class WrongRepr(Cosh):
    def __repr__(self) -> str:
        return "WrongRepr(scale=2.0)"


class WrongOptions(Cosh):
    def options(self) -> dict[str, Any]:
        return {"scale": 3.0}

    def __repr__(self) -> str:
        return "WrongOptions()"


class Loads(Cosh):
    def __init__(self, *, scale: float = 1.0) -> None:
        super().__init__(scale=scale)
        self.register_buffer("factor", torch.ones(()))

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self.factor.fill_(2.0)  # type: ignore[operator]

    def load_state_dict(self, state: Any, strict: bool = True, assign: bool = False) -> Any:
        return super().load_state_dict(state, strict=False)

    def forward(self, prediction: Tensor, target: Tensor, /) -> Tensor:
        return square(prediction, target) * self.factor  # type: ignore[operator]


class Refuses(Cosh):
    def check_values(self, prediction: Tensor, target: Tensor) -> None:
        if bool((target < 0).any()):
            raise DataError("targets should be positive")


class Unseeded(Cosh):
    def sample(self, kind: Any, size: Any, generator: torch.Generator, dtype: torch.dtype, /) -> tuple[Tensor, Tensor]:
        return torch.randn(size, dtype=dtype), torch.randn(size, dtype=dtype)


class Takes(Cosh):
    def check(self, prediction: Tensor, target: Tensor) -> None:
        raise DataError("no")


def flat_root(prediction: Tensor, target: Tensor) -> Tensor:
    """Charbonnier's loss written as a difference of two numbers of 1e6."""
    delta = 1e3
    return delta * ((delta**2 + square(prediction, target)).sqrt() - delta)


def root(prediction: Tensor, target: Tensor) -> Tensor:
    """Right at residuals of size 1, while the square of a small one drowns beside the 1."""
    return (1 + square(prediction, target)).sqrt() - 1


class SteepGradient(torch.autograd.Function):
    """The square, whose gradient is computed by way of a large number."""

    @staticmethod
    def forward(ctx: Any, error: Tensor) -> Tensor:
        ctx.save_for_backward(error)
        return error.square()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
        (error,) = ctx.saved_tensors
        return gradient * 2 * ((error + 1e5) - 1e5)


class Widens(Cosh):
    def forward(self, prediction: Tensor, target: Tensor, /) -> Tensor:
        return square(prediction, target).double()


class Halves(Cosh):
    """Computed in the dtype of the target, which a criterion has widened."""

    def forward(self, prediction: Tensor, target: Tensor, /) -> Tensor:
        return square(prediction, target) if prediction.dtype is torch.float64 else torch.rand_like(prediction) * prediction


BROKEN: dict[str, tuple[Any, str]] = {
    "no kinds": (like(kinds=None), "should claim kinds, a frozenset of regression, binary, multiclass: found None"),
    "kinds": (like(kinds=frozenset({"ordinal"})), "should claim kinds, .*: found frozenset"),
    "coupling declared": (like(coupling="none"), "should claim coupling as 'sample' or 'batch': found 'none'"),
    "pooled declared": (like(pooled=1), "should claim pooled as True or False: found 1"),
    "bound declared": (
        like(lower_bound=0),
        "should claim lower_bound as a finite float, or None for no bound: found 0",
    ),
    "range declared": (like(target_range=(1.0, 0.0)), r"should claim target_range as \(low, high\): found \(1.0, 0.0\)"),
    "takes nothing": (
        Takes,
        r"should take regression targets of some size as its own sample\(\) draws them, .*: found DataError: no for",
    ),
    "unseeded": (Unseeded, r"sample\(\) should draw only from the generator: found other values"),
    "range": (
        like(Spread, target_range=(0.0, 1.0)),
        r"claims target_range=\(0.0, 1.0\): found samples in \[-.*\] for a regression task, prediction \(1, 2\)",
    ),
    "values": (
        Refuses,
        r"check_values\(\) should accept what sample\(\) draws: found DataError: targets should be positive for",
    ),
    "reduces": (forward(lambda p, y: square(p, y).mean()), r"should give one loss per entry \(1,\): found the shape \(\)"),
    "not pooled": (like(Overlap, pooled=False), "should .*: found IndexError"),
    "pools": (
        like(pooled=True, forward=lambda self, p, y, v=None, /: square(p, y)),
        "claims pooled=True, one loss per sample .*: found the shape",
    ),
    "dtype": (Widens, "should give losses in the dtype of the prediction, torch.float32: found torch.float64 for"),
    "finite": (forward(lambda p, y: square(p, y) / 0.0), r"should give finite losses: found \[inf\] for a regression task"),
    "bound": (
        forward(lambda p, y: square(p, y) - 1),
        r"claims lower_bound=0.0: found a loss of -\d.* for a regression task",
    ),
    "large": (forward(lambda p, y: (p - y).exp()), "should .*: found (a loss of|.*inf)"),
    "bound of a large one": (
        forward(lambda p, y: torch.where((p - y).abs() > 1e3, -1.0, square(p, y))),
        "claims lower_bound=0.0: found a loss of -1 for",
    ),
    "nan gradient": (
        forward(lambda p, y: torch.where(p > y, (p - y).sqrt(), 0.0)),
        r"should have finite gradients: found \[.*(nan|inf).*\] for",
    ),
    "no gradient": (
        forward(lambda p, y: square(p.detach(), y)),
        "should give losses with a graph to the prediction: found requires_grad=False",
    ),
    "zero gradient": (
        forward(lambda p, y: square(p.detach(), y) + 0 * p),
        "should have a gradient that reaches the prediction: found zeros everywhere",
    ),
    "wrong gradient": (
        forward(wrong_slope),
        "should have the derivative of its losses as their gradient, or claim detaches=True .*: found GradcheckError",
    ),
    "cancels": (
        forward(flat_root),
        r"should give in float32 the losses of float64, to 0.001 of the largest: found \[.*\] and \[.*\] for a regression",
    ),
    "cancels near 0": (forward(root), "should give in float32 the losses of float64, .*: found"),
    "gradient cancels": (
        forward(lambda p, y: SteepGradient.apply(p - y)),  # type: ignore[no-untyped-call]
        r"should give in float32 the gradients of float64, .*: found \[",
    ),
    "order": (forward(by_index), "should not depend on the order of the samples: found losses"),
    "coupling": (
        forward(lambda p, y: square(p, y) / (1 + square(p, y).mean())),
        "claims coupling='sample': found losses .* in one batch and .* in two",
    ),
    "coupled gradient": (
        forward(lambda p, y: square(p, y) + p.sum() - p.sum().detach() - (p - p.detach())),
        "(claims coupling='sample': found a gradient of the first loss at other samples|.*gradcheck)",
    ),
    "target": (forward(in_place), "should leave the target unchanged: found"),
    "prediction": (forward(touches_prediction), "should leave the prediction unchanged: found"),
    "state": (Counting, "should give the same losses again, even in eval mode: found"),
    "training": (InTraining, "should give the same losses again, even in eval mode: found"),
    "reads": (forward(peeks), "should read no value in check and forward, .*: found"),
    "broadcasts": (Lax, r"check\(\) should raise a DataError for shapes that do not match: found no error for"),
    "leaky mask": (
        Leaky,
        "should treat masked samples as deleted ones: found the loss .* without them for .* masked samples, mask",
    ),
    "no mask": (
        NoMask,
        "claims coupling='batch': forward should take the mask of valid entries as a third argument: found TypeError",
    ),
    "no tensor": (forward(lambda p, y: None), "should return a tensor of losses: found NoneType for"),
    "no forward": (
        like(InnerShape, kinds=frozenset({"regression"})),
        r"found NotImplementedError: Broken should define forward\(prediction, target\) for",
    ),
    "zero error": (
        forward(lambda p, y: square(p, y).sqrt()),
        "should have finite gradients where the prediction is the target: found .*nan",
    ),
    "option not kept": (NotKept, r"should keep each option as an attribute of its name, .*: found no attribute width\.$"),
    "needs options": (Needy, "should be built by its factory: found TypeError: .*'width'. Put the options .* `example`"),
    "entries": (CountsMasked, "should treat (a masked column as a deleted one|masked samples as deleted ones): found"),
    "nothing valid": (Divides, "should stay finite with 0 valid samples: found losses .*nan"),
    "half": (Halves, "should .*: found"),
    "pickle": (Unpicklable, "should survive pickle: found"),
    "load": (Loads, "should give the same losses after load_state_dict: found"),
    "repr": (WrongRepr, "should be built again from the repr: found"),
    "options": (WrongOptions, r"should be built again from options\(\): found"),
}


@pytest.mark.parametrize("what", BROKEN)
def test_a_broken_shape_fails(what: str) -> None:
    """Each broken shape fails with the sentence of its claim, which names the class and shows the input."""
    broken, sentence = BROKEN[what]
    with pytest.raises(ContractError, match=f"^{broken.__name__} .*{sentence}") as caught:
        check_inner(broken)
    text = str(caught.value)
    assert text.endswith(".") and "\n" not in text


def replace_sum(monkeypatch: pytest.MonkeyPatch, replacement: Callable[..., Tensor]) -> None:
    for module in ("criterion", "training"):
        monkeypatch.setattr(f"mtl_axes.{module}.weighted_sum", replacement)


def test_the_sum_of_a_criterion_is_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    """A wrong total or gradient of the mean losses fails with both sides."""
    whole = weighted_sum
    replace_sum(monkeypatch, lambda losses, weights: whole(losses, weights).square())
    with pytest.raises(ContractError, match=r"^Cosh should enter a total bilinearly, .*: found [-.0-9e]+ and"):
        check_inner(Cosh)

    def cut(losses: Any, weights: Tensor) -> Tensor:
        total = whole(losses, weights)
        return total.detach() + 0.5 * (total - total.detach())

    replace_sum(monkeypatch, cut)
    with pytest.raises(ContractError, match="should have the weighted gradient of its mean"):
        check_inner(Cosh)


def test_a_stopped_gradient_is_left_out_by_name() -> None:
    """A shape that stops a gradient on purpose passes without the check of the derivative."""
    stopped = forward(lambda p, y: (1 + square(p, y).detach()) * square(p, y))
    with pytest.raises(ContractError, match="gradcheck"):
        check_inner(stopped)
    check_inner(stopped, skip=["gradcheck"])
    check_inner(like(stopped, detaches=True))


def test_a_registered_shape_goes_through_a_config(monkeypatch: pytest.MonkeyPatch) -> None:
    """Options that are not plain data fail for a registered shape only: other shapes are in no config."""

    class Unplain(Cosh):
        def options(self) -> dict[str, Any]:
            return {"scale": torch.tensor(1.0)}

        def __repr__(self) -> str:
            return "Unplain()"

    monkeypatch.setattr(registry, "_registry", registry.Registry())
    check_inner(Unplain)
    register_inner("unplain")(Unplain)
    with pytest.raises(ContractError, match="should be built again from the config of a criterion: found TypeError"):
        check_inner("unplain")


def test_every_kind_is_tried() -> None:
    """A fault for one of several kinds fails, and the sentence names the kind."""

    class Two(CrossEntropy):
        kinds: ClassVar[Any] = frozenset({"multiclass", "regression"})

        def check(self, prediction: Tensor, target: Tensor) -> None:
            if target.is_floating_point():
                assert prediction.shape == target.shape
            else:
                super().check(prediction, target)

        def check_values(self, prediction: Tensor, target: Tensor) -> None:
            pass

        def forward(self, prediction: Tensor, target: Tensor, /) -> Tensor:
            return super().forward(prediction, target) if not target.is_floating_point() else square(prediction, target) - 9

    with pytest.raises(ContractError, match=r"^Two claims lower_bound=0.0: found a loss of .* for a regression task"):
        check_inner(Two)


class Late(TargetWeight):
    """A sound weight."""

    def __init__(self, *, threshold: float = 0.5) -> None:
        super().__init__()
        self.threshold = threshold

    def forward(self, target: Tensor, /) -> Tensor:
        return 1 + (target <= self.threshold).to(target.dtype)


class Class(TargetWeight):
    """A sound weight of classes."""

    kinds: ClassVar[Any] = frozenset({"multiclass", "binary"})

    def forward(self, target: Tensor, /) -> Tensor:
        return 1.0 + target.float()


@pytest.mark.parametrize("sound", [Late, Class, FailureBias, lambda: FailureBias(2.0), "failure_biased"])
def test_a_sound_weight_passes(sound: Any) -> None:
    """Weights that keep their contracts pass, around the standard loss of each kind."""
    check_weight(sound)


class Relative(Late):
    def forward(self, target: Tensor, /) -> Tensor:
        return target.abs() / target.abs().mean()


class WeightRepr(Late):
    def __repr__(self) -> str:
        return "WeightRepr(threshold=100.0)"


WEIGHTS: dict[str, tuple[Any, str]] = {
    "kinds": (like(Late, kinds=frozenset()), "should claim kinds"),
    "negative": (
        like(Late, forward=lambda self, y, /: y),
        r"should give weights >= 0: found \[.*-.*\] for a regression target",
    ),
    "shape": (
        like(Late, forward=lambda self, y, /: y.abs().mean()),
        r"should give one weight per label .*: found the shape \(\)",
    ),
    "no tensor": (like(Late, forward=lambda self, y, /: 2.0), "should return a tensor of weights: found float for"),
    "no forward": (like(TargetWeight), r"found NotImplementedError: Broken should define forward\(target\) for"),
    "finite": (like(Late, forward=lambda self, y, /: y.abs() / 0), r"should give finite weights: found \[inf\]"),
    "dtype": (
        like(Late, forward=lambda self, y, /: y.abs().float()),
        "should give weights in the dtype of the target: found",
    ),
    "integer": (
        like(Late, forward=lambda self, y, /: y.abs().long()),
        "should give floating point weights: found torch.int64",
    ),
    "relative": (Relative, "should weigh a label on its own, whatever labels are beside it: found weights"),
    "reads": (
        like(Late, forward=lambda self, y, /: y.abs() + 0 * float(y.sum())),
        "should read no value in forward, .*: found",
    ),
    "target": (like(Late, forward=lambda self, y, /: y.abs_()), "should leave the target unchanged: found"),
    "repr": (WeightRepr, "should (give the same weights|have the same repr) after (the repr|options): found"),
}


@pytest.mark.parametrize("what", WEIGHTS)
def test_a_broken_weight_fails(what: str) -> None:
    """Each broken weight fails with the sentence of its claim."""
    broken, sentence = WEIGHTS[what]
    with pytest.raises(ContractError, match=f"^{broken.__name__} .*{sentence}"):
        check_weight(broken)


def test_factories() -> None:
    """A factory returns a fresh strategy of the right base; what is no factory is an error."""
    with pytest.raises(ContractError, match="should be a subclass of InnerShape: found Linear"):
        check_inner(lambda: nn.Linear(1, 1))  # type: ignore[arg-type, return-value]
    with pytest.raises(OptionError, match="should be a class, a registered name or a callable"):
        check_inner(None)  # type: ignore[arg-type]
    with pytest.raises(OptionError, match="should hold names of structure, independent"):
        check_weight(Late, skip=["gradcheck"])
