"""Every registered inner shape, through every contract that it declares, for every kind of task that it serves."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from strategies import CLASSES, INNER_KINDS, INNERS, KINDS, shaped
from torch import Tensor

from mtl_axes import InnerShape, compose, create
from mtl_axes.errors import DataError

every_shape = pytest.mark.parametrize("name", INNERS)
every_kind = pytest.mark.parametrize(("name", "kind"), INNER_KINDS)


def samples(
    kind: str, *, size: tuple[int, ...] = (7,), dtype: torch.dtype = torch.float64, seed: int = 0
) -> tuple[Tensor, Tensor]:
    """A prediction and a target of a kind."""
    generator = torch.Generator().manual_seed(seed)
    prediction = 3 * torch.randn(size, generator=generator, dtype=dtype)
    noise = torch.randn(size, generator=generator, dtype=dtype)
    if kind == "regression":
        return prediction, 2 * noise
    if kind == "binary":
        return prediction, noise > 0
    logits = 3 * torch.randn(size[0], CLASSES, *size[1:], generator=generator, dtype=dtype)
    return logits, (noise.abs() * 2).long().clamp_max(CLASSES - 1)


@every_kind
@pytest.mark.parametrize("size", [(1,), (7,), (4, 3), (2, 3, 4)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_one_finite_loss_per_target_entry(name: str, kind: str, size: tuple[int, ...], dtype: torch.dtype) -> None:
    """A shape does not reduce: one finite loss per entry of the target, not below its bound, in the prediction's dtype."""
    shape = shaped(name)
    prediction, target = samples(kind, size=size, dtype=dtype)
    losses = shape(prediction, target)
    assert losses.shape == target.shape
    assert losses.dtype == dtype
    assert bool(torch.isfinite(losses).all())
    assert shape.lower_bound is None or bool((losses >= shape.lower_bound).all())


@every_kind
def test_gradients_are_finite_and_reach_the_prediction(name: str, kind: str) -> None:
    """The gradient is finite for ordinary and for very large predictions, and not zero."""
    shape = shaped(name)
    for scale in (1.0, 1e4):
        prediction, target = samples(kind)
        prediction = (scale * prediction).requires_grad_()
        (gradient,) = torch.autograd.grad(shape(prediction, target).sum(), prediction)
        assert bool(torch.isfinite(gradient).all())
        assert bool(gradient.any())


@every_kind
def test_a_sample_depends_on_itself_alone(name: str, kind: str) -> None:
    """With coupling "sample" the loss and the gradient of a sample ignore every other sample."""
    shape = shaped(name)
    if shape.coupling != "sample":
        pytest.skip("couples the samples of a batch")
    prediction, target = samples(kind)
    other, other_target = samples(kind, seed=1)
    other[2], other_target[2] = prediction[2], target[2]
    assert torch.equal(shape(prediction, target)[2], shape(other, other_target)[2])
    leaf = prediction.requires_grad_()
    (gradient,) = torch.autograd.grad(shape(leaf, target)[2], leaf)
    gradient[2] = 0
    assert not bool(gradient.any())


@every_kind
def test_permuting_the_samples_permutes_the_losses(name: str, kind: str) -> None:
    """The order of the samples carries no meaning."""
    shape = shaped(name)
    prediction, target = samples(kind)
    order = torch.randperm(7, generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(shape(prediction[order], target[order]), shape(prediction, target)[order], rtol=1e-12, atol=0)


@every_kind
def test_inputs_are_left_alone(name: str, kind: str) -> None:
    """A shape changes neither its prediction nor its target, and keeps no state between calls."""
    shape = shaped(name)
    prediction, target = samples(kind)
    kept = prediction.clone(), target.clone()
    first = shape(prediction, target)
    assert torch.equal(prediction, kept[0]) and torch.equal(target, kept[1])
    shape(*samples(kind, seed=4))
    assert torch.equal(shape(prediction, target), first)


@every_kind
def test_a_shape_reads_no_value(name: str, kind: str) -> None:
    """Check and forward run on the meta device, where reading a value is an error."""
    shape = shaped(name)
    prediction, target = (tensor.to("meta") for tensor in samples(kind))
    shape.check(prediction, target)
    assert shape(prediction, target).shape == target.shape


@every_kind
def test_broadcasting_is_refused(name: str, kind: str) -> None:
    """A target with one more dimension of size 1 is an error and not an N x N loss."""
    prediction, target = samples(kind)
    with pytest.raises(DataError, match=r"shape|class dimension"):
        shaped(name).check(prediction, target.unsqueeze(-1))


@every_shape
def test_declarations_are_of_the_contract(name: str) -> None:
    """Kinds, coupling and bound are those that the contract knows."""
    shape = shaped(name)
    assert isinstance(shape, InnerShape)
    assert shape.kinds and shape.kinds <= set(KINDS)
    assert shape.coupling in ("sample", "batch")
    assert shape.lower_bound is None or isinstance(shape.lower_bound, float)


@every_shape
def test_repr_and_options_build_the_same_shape(name: str) -> None:
    """The repr is the constructor call, and the options are its arguments."""
    shape = shaped(name)
    rebuilt = eval(repr(shape), {type(shape).__name__: type(shape)})
    again = create("inner", name, **shape.options())
    assert repr(rebuilt) == repr(again) == repr(shape)
    prediction, target = samples(next(kind for kind in KINDS if kind in shape.kinds))
    assert torch.equal(rebuilt(prediction, target), shape(prediction, target))


@every_shape
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda shape: pickle.loads(pickle.dumps(shape))])
def test_a_copy_computes_the_same(name: str, copied) -> None:
    """deepcopy, pickle and load_state_dict keep the function."""
    shape = shaped(name)
    prediction, target = samples(next(kind for kind in KINDS if kind in shape.kinds))
    twin = copied(shape)
    twin.load_state_dict(shape.state_dict())
    assert torch.equal(twin(prediction, target), shape(prediction, target))


@every_kind
def test_config_names_the_shape(name: str, kind: str) -> None:
    """A criterion with this shape has a config that builds the same criterion, before and after its first call."""
    criterion = compose("fixed", {"task": shaped(name)})
    for _ in range(2):
        twin = compose(**criterion.config())
        assert repr(twin.shapes) == repr(criterion.shapes)
        assert criterion.config()["inner"] == {"task": {"name": name, **shaped(name).options()}}
        prediction, target = samples(kind)
        assert torch.equal(criterion((prediction,), (target,)), twin((prediction,), (target,)))


@every_kind
def test_half_precision_predictions_are_widened(name: str, kind: str) -> None:
    """The criterion computes shapes in float32 or wider whatever the model's dtype."""
    prediction, target = samples(kind, dtype=torch.float32)
    criterion = compose("fixed", {"task": shaped(name)})
    total = criterion((prediction.bfloat16(),), (target,))
    assert total.dtype == torch.float32
    assert torch.equal(total, criterion((prediction.bfloat16().float(),), (target,)))
