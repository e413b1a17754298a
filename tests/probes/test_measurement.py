"""What the probes measure: exact norms and Gramian against Jacobians, the others against autograd.grad where tasks read."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from itertools import product
from typing import Any, ClassVar

import pytest
import torch
import torch.nn.functional as F
from probing import GramianRecorder, Recorder, f32, f64, names
from sampling import covering
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from torch.utils._python_dispatch import TorchDispatchMode

from mtl_axes import compose
from mtl_axes.probes import Exact, Lagged, Probe, Representation

TASKS = names(3)


class Trunk(nn.Module):
    """What three tasks share: a small batch, for which ghost norms pay, and layers from it to ten numbers per sample."""

    def inputs(self) -> Tensor:
        """A seeded batch in float64, or integers."""
        return torch.randn(4, 12, generator=torch.Generator().manual_seed(7), dtype=f64)

    def forward(self, x: Tensor) -> Tensor:
        raise NotImplementedError


def layers(*modules: nn.Module) -> Callable[[], Trunk]:
    """A trunk of modules in a row."""

    class Row(Trunk):
        def __init__(self) -> None:
            super().__init__()
            self.row = copy.deepcopy(nn.Sequential(*modules))

        def forward(self, x: Tensor) -> Tensor:
            return self.row(x)

    return Row


class Sequences(Trunk):
    """Linear layers on (batch, time, features), read out at the mean over time."""

    dims: ClassVar[tuple[int, ...]] = (2, 3, 12)
    bias = True

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(12, 16, bias=self.bias), nn.Linear(16, 10, bias=self.bias)

    def inputs(self) -> Tensor:
        return torch.randn(*self.dims, generator=torch.Generator().manual_seed(7), dtype=f64)

    def forward(self, x: Tensor) -> Tensor:
        return self.two(torch.tanh(self.one(x))).reshape(self.dims[0], -1, 10).mean(1)


class Unbiased(Sequences):
    bias = False


class FourDimensions(Sequences):
    dims = (2, 2, 1, 12)


class Unbatched(Trunk):
    """Linear layers on a vector."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(12, 16), nn.Linear(16, 10, bias=False)

    def inputs(self) -> Tensor:
        return super().inputs()[0]

    def forward(self, x: Tensor) -> Tensor:
        return self.two(torch.tanh(self.one(x)))[None]


class Transposed(Sequences):
    """Linear layers on inputs that are transposed, expanded and sliced views, with outputs that are read in part."""

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.tanh(self.one(x.transpose(0, 1)[1:2].expand(2, -1, -1)))
        return self.two(hidden.transpose(0, 1))[:, ::2].sum(1)[:, [0, 0, 1, 5, 3, 2, 9, 8, 8, 8]]


class Tied(Trunk):
    """One Linear layer used twice on matrices and once on a sequence."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.again = nn.Linear(12, 10), nn.Linear(10, 10)

    def forward(self, x: Tensor) -> Tensor:
        z = self.again(torch.tanh(self.again(torch.tanh(self.first(x)))))
        return z + self.again(torch.stack([z.sin(), z.cos()], 1)).sum(1)


class TiedTransposed(Trunk):
    """A weight used as it is, transposed, and elementwise."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(10, 12) / 4), nn.Parameter(torch.randn(10))

    def forward(self, x: Tensor) -> Tensor:
        z = torch.tanh(F.linear(x, self.weight, self.bias))
        return F.linear(torch.tanh(F.linear(z, self.weight.t())) * self.weight.mean(0), self.weight, self.bias)


class Decoder(Trunk):
    """An embedding with LayerNorm whose weight is also that of the Linear layer behind it; tokens repeat."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.norm, self.down = nn.Embedding(7, 10), nn.LayerNorm(10), nn.Linear(7, 10)

    def inputs(self) -> Tensor:
        return torch.tensor([[0, 1, 1], [5, 5, 5], [6, 0, 2], [3, 3, 4]])

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.tanh(self.norm(self.embed(x)))
        return self.down(torch.tanh(F.linear(hidden, self.embed.weight))).sum(1)


class Sparse(Trunk):
    """An embedding with sparse gradients before a Linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.linear = nn.Embedding(7, 20, sparse=True), nn.Linear(20, 10)

    def inputs(self) -> Tensor:
        return torch.tensor([0, 1, 1, 5, 5, 5, 6])

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(torch.tanh(self.embed(x)))


class Convolutions(Trunk):
    """Convolutions with group norm, and a Linear layer on what they see."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.linear = nn.Conv1d(2, 4, 3), nn.GroupNorm(2, 4), nn.Linear(12, 10)

    def inputs(self) -> Tensor:
        return torch.randn(3, 2, 5, generator=torch.Generator().manual_seed(7), dtype=f64)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(torch.tanh(self.norm(self.conv(x))).flatten(1))


class Attention(Trunk):
    """Attention, whose Linear layers are slices of one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(10, 2, batch_first=True)

    def inputs(self) -> Tensor:
        return torch.randn(2, 3, 10, generator=torch.Generator().manual_seed(7), dtype=f64)

    def forward(self, x: Tensor) -> Tensor:
        return self.attention(x, x, x, need_weights=False)[0].sum(1)


class Recurrent(Trunk):
    """An LSTM."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(12, 10, batch_first=True)

    def inputs(self) -> Tensor:
        return torch.randn(2, 3, 12, generator=torch.Generator().manual_seed(7), dtype=f64)

    def forward(self, x: Tensor) -> Tensor:
        return self.lstm(x)[0][:, -1]


class Bilinear(Trunk):
    """Matrix products that are no layers: between activations, of a parameter from the left, and with einsum."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Parameter(torch.randn(3, 4)), nn.Parameter(torch.randn(12, 10) / 4)
        self.linear = nn.Linear(10, 10)

    def forward(self, x: Tensor) -> Tensor:
        z = 0.2 * self.left @ self.linear(torch.tanh(x @ self.right))
        return torch.einsum("bi,ij->bj", z @ z.T @ z, self.linear.weight)


class Stacked(Trunk):
    """Two Linear layers with one weight and each a bias, and one bias in two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(10, 12) / 4)
        self.biases = nn.ParameterList([torch.randn(10), torch.randn(10)])
        self.other = nn.Parameter(torch.randn(10, 10) / 4)

    def forward(self, x: Tensor) -> Tensor:
        one, two = (torch.tanh(F.linear(x + i, self.weight, bias)) for i, bias in enumerate(self.biases))
        return F.linear(one * two, self.other, self.biases[0])


class HalfFrozen(Trunk):
    """Linear layers whose weight or whose bias is frozen."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(12, 16), nn.Linear(16, 10)
        self.one.weight.requires_grad_(False)
        self.two.bias.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        return self.two(torch.tanh(self.one(x)))


class Recomputed(Trunk):
    """Linear layers under activation checkpointing, with an activation in place."""

    def __init__(self) -> None:
        super().__init__()
        self.row = nn.Sequential(nn.Linear(12, 16), nn.ReLU(inplace=True), nn.Linear(16, 10), nn.Tanh(), nn.Linear(10, 10))

    def forward(self, x: Tensor) -> Tensor:
        return torch.utils.checkpoint.checkpoint(self.row, x, use_reentrant=False)


class Single(Trunk):
    """Linear layers on a batch of one sample."""

    def __init__(self) -> None:
        super().__init__()
        self.row = nn.Sequential(nn.Linear(12, 16), nn.Tanh(), nn.Linear(16, 10))

    def inputs(self) -> Tensor:
        return super().inputs()[:1]

    def forward(self, x: Tensor) -> Tensor:
        return self.row(x)


# Torch's own checkpointing warns of itself before 2.6.
pytestmark = pytest.mark.filterwarnings("ignore:.torch.cpu.amp.autocast")
TRUNKS: dict[str, Callable[[], Trunk]] = {
    "linear": layers(nn.Linear(12, 16), nn.Tanh(), nn.Linear(16, 10)),
    "linear without bias": layers(nn.Linear(12, 16, bias=False), nn.Tanh(), nn.Linear(16, 10, bias=False)),
    "wide linear": layers(nn.Linear(12, 2), nn.Tanh(), nn.Linear(2, 40), nn.Tanh(), nn.Linear(40, 10)),
    "reparametrised": layers(parametrizations.weight_norm(nn.Linear(12, 10)), nn.Tanh(), nn.Linear(10, 10)),
    "layer norm": layers(nn.Linear(12, 10), nn.LayerNorm(10), nn.Linear(10, 10)),
    "batch norm": layers(nn.Linear(12, 10), nn.BatchNorm1d(10, track_running_stats=False), nn.Linear(10, 10)),
    "sequences": Sequences,
    "sequences without bias": Unbiased,
    "four dimensions": FourDimensions,
    "unbatched": Unbatched,
    "views": Transposed,
    "tied": Tied,
    "tied, transposed": TiedTransposed,
    "shared weights and biases": Stacked,
    "decoder": Decoder,
    "sparse embedding": Sparse,
    "convolutions": Convolutions,
    "attention": Attention,
    "lstm": Recurrent,
    "products": Bilinear,
    "half frozen": HalfFrozen,
    "checkpointed": Recomputed,
    "one sample": Single,
}


class Model(nn.Module):
    """A trunk, a Linear head per task, and losses whose sizes are 300 times apart; task c reads every other output."""

    def __init__(self, trunk: str, dtype: torch.dtype = f64) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.trunk = TRUNKS[trunk]()
        self.heads = nn.ModuleDict({name: nn.Linear(10, 1) for name in TASKS})
        self.to(dtype)

    def forward(self) -> dict[str, Tensor]:
        x = self.trunk.inputs()
        z = self.trunk(x if x.dtype is torch.int64 else x.to(self.heads["a"].weight.dtype))
        kept = (torch.arange(10) % 2).to(z.dtype)
        out = {name: self.heads[name](torch.tanh(z * kept if name == "c" else z)).squeeze(-1) for name in TASKS}
        return {"a": 3 * (out["a"] - 1).square().mean(), "b": 0.01 * out["b"].exp().sum(), "c": out["c"].sin().mean()}

    def jacobian(self) -> Tensor:
        """Gradients of the losses at the trainable parameters of the trunk, by torch.func."""
        parameters = {name: p for name, p in self.named_parameters() if name.startswith("trunk") and p.requires_grad}
        _, pull = torch.func.vjp(
            lambda values: torch.stack(list(torch.func.functional_call(self, values, ()).values())),
            {name: parameter.detach() for name, parameter in parameters.items()},
        )
        rows = [pull(unit)[0].values() for unit in torch.eye(3, dtype=f64)]
        return torch.stack([torch.cat([part.reshape(-1) for part in row]) for row in rows]).detach()


def by_hand(model: Model) -> Tensor:
    """The Jacobian by torch.autograd.grad, for what torch.func does not know."""
    parameters = [p for p in model.trunk.parameters() if p.requires_grad]
    rows = []
    for loss in model().values():
        row = torch.autograd.grad(loss, parameters, retain_graph=True)
        rows.append(torch.cat([gradient.to_dense().reshape(-1) for gradient in row]))
    return torch.stack(rows)


def jacobian_of(trunk: str) -> Tensor:
    """A Jacobian in float64, from a model whose parameters are those of a float32 model."""
    model = Model(trunk).float().double()
    return by_hand(model) if trunk in ("sparse embedding", "lstm", "checkpointed") else model.jacobian()


WAYS = {
    "direct": {},
    "without reuse": {"reuse": False},
    "ghost": {"ghost": True},
    "ghost without reuse": {"ghost": True, "reuse": False},
}


def measured(trunk: str, dtype: torch.dtype, recorder: Recorder, calls: int = 3, **options: Any) -> Recorder:
    """The recorder after some calls on one batch, each followed by the user's backward."""
    model = Model(trunk).float().to(dtype)
    criterion = compose(recorder, tasks=TASKS, **options)
    for _ in range(calls):
        criterion.combine(model()).backward()
    return recorder


def assert_norms(found: Tensor, jacobian: Tensor, tolerance: float) -> None:
    torch.testing.assert_close(found.to(f64), jacobian.norm(dim=1), rtol=tolerance, atol=0)


def assert_gramian(found: Tensor, jacobian: Tensor, tolerance: float) -> None:
    """Every entry is right to a share of the product of its two norms."""
    size = jacobian.norm(dim=1)
    assert float(((found.to(f64) - jacobian @ jacobian.T).abs() / torch.outer(size, size)).max()) <= tolerance


# In float32 with reuse alone.
STATISTICS = [
    (trunk, way, need, dtype)
    for trunk, way, need, dtype in product(TRUNKS, WAYS, (Recorder, GramianRecorder), (f64, f32))
    if dtype is f64 or "without reuse" not in way
]


@pytest.mark.parametrize(
    ("trunk", "way", "need", "dtype"),
    covering(STATISTICS, strength=2),
    ids=lambda value: value.__name__ if isinstance(value, type) else str(value),
)
def test_exact_statistics_equal_the_jacobian(trunk: str, way: str, need: type[Recorder], dtype: torch.dtype) -> None:
    """Norms and Gramian at the shared parameters are those of the float64 Jacobian, in the first call and with reuse."""
    tolerance = {f32: 1e-5, f64: 1e-12}[dtype]
    jacobian = jacobian_of(trunk)
    norms = jacobian.norm(dim=1)
    assert float(norms.max() / norms.min()) > 3
    for signals in measured(trunk, dtype, need(), probe=Exact(**WAYS[way])).shown:
        assert_norms(signals.norms, jacobian, tolerance)
        if need is GramianRecorder:
            assert_gramian(signals.gramian, jacobian, tolerance)


def test_the_two_references_agree() -> None:
    """Jacobians by torch.func and by torch.autograd are the same, so either can stand for the other."""
    for trunk in set(TRUNKS) - {"sparse embedding", "lstm", "checkpointed"}:
        model = Model(trunk)
        torch.testing.assert_close(model.jacobian(), by_hand(model), rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("way", WAYS)
def test_rounding_where_the_gradients_of_samples_cancel(way: str) -> None:
    """Float32 rounds to a share of the per-sample gradients: of their size directly, of their square with ghosts."""
    generator = torch.Generator().manual_seed(1)
    x = 1e3 + torch.randn(8, 64, generator=generator)
    slopes = torch.randn(3, 8, 8, generator=generator)
    slopes = slopes - slopes.mean(1, keepdim=True)
    layer = nn.Linear(64, 24)
    recorder = GramianRecorder()
    criterion = compose(recorder, probe=Exact(**WAYS[way]), shared=layer)
    for _ in range(2):
        z = layer(x)
        losses = {name: (z[:, 8 * index : 8 * index + 8] * slopes[index]).sum() for index, name in enumerate(TASKS)}
        criterion.combine(losses).backward()
    jacobian = torch.zeros(3, 24, 65, dtype=f64)
    for index, slope in enumerate(slopes.double()):
        jacobian[index, 8 * index : 8 * index + 8, :64] = slope.T @ x.double()
        jacobian[index, 8 * index : 8 * index + 8, 64] = slope.sum(0)
    norms = jacobian.flatten(1).norm(dim=1)
    summed = (slopes.double().square().sum((1, 2)) * 64e6).sqrt()
    assert bool((summed > 300 * norms).all()), "the gradients of the samples should cancel"
    eps = torch.finfo(f32).eps
    for signals in recorder.shown:
        if "ghost" in way:
            assert bool(((signals.norms.double().square() - norms.square()).abs() <= 4 * eps * summed.square()).all())
        else:
            assert bool(((signals.norms.double() - norms).abs() <= 4 * eps * summed).all())
        assert not (signals.gramian - signals.gramian.diag().diag()).any()


class Products(TorchDispatchMode):
    """Counts matrix products of the shape of one of some weights, transposed or not: their gradients, in these models."""

    def __init__(self, weights: Iterable[Tensor]) -> None:
        super().__init__()
        self.shapes = {shape for weight in weights for shape in (weight.shape, weight.T.shape)}
        self.seen = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.seen += func is torch.ops.aten.mm.default and result.shape in self.shapes
        return result


@pytest.mark.parametrize("trunk", ["linear", "linear without bias", "sequences", "checkpointed", "unbatched"])
def test_ghost_norms_take_no_weight_gradient(trunk: str) -> None:
    """Measuring by ghosts computes no gradient at the weights of Linear layers; measured directly it does, once per task."""
    for ghost, count in ((True, 0), (False, 3)):
        model = Model(trunk)
        weights = {id(module.weight): module.weight for module in model.trunk.modules() if isinstance(module, nn.Linear)}
        losses = model()
        with Products(weights.values()) as products:
            compose(Recorder(), tasks=TASKS, probe=Exact(ghost=ghost)).combine(losses)
        assert products.seen == count * len(weights)


HOOKED: dict[str, Callable[[Model], Tensor]] = {
    "weight": lambda model: model.trunk.row[0].weight,
    "bias": lambda model: model.trunk.row[2].bias,
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("where", ["weight", "bias", "hidden layer", "output of the layer", "output of the trunk"])
def test_linear_hooks_are_part_of_the_gradient(where: str, way: str) -> None:
    """A hook that scales a parameter's or an activation's gradient scales it in the norms, as in torch.autograd.grad."""
    recorder, model = GramianRecorder(), Model("linear")

    def scale(tensor: Tensor) -> None:
        tensor.register_hook(lambda gradient: gradient * 3)

    if where in HOOKED:
        scale(HOOKED[where](model))
    else:
        layer = {"hidden layer": 1, "output of the layer": 0, "output of the trunk": 2}[where]
        model.trunk.row[layer].register_forward_hook(lambda module, inputs, output: scale(output))
    criterion = compose(recorder, tasks=TASKS, probe=Exact(**WAYS[way]))
    for _ in range(2):
        criterion.combine(model()).backward()
    jacobian = by_hand(model)
    assert float((jacobian.norm(dim=1) / by_hand(Model("linear")).norm(dim=1)).min()) > 1.01
    for signals in recorder.shown:
        assert_norms(signals.norms, jacobian, 1e-12)
        assert_gramian(signals.gramian, jacobian, 1e-12)


@pytest.mark.parametrize("way", WAYS)
def test_tasks_that_share_in_part_are_measured_where_they_share(way: str) -> None:
    """With a lower and an upper trunk, a task that leaves early has no gradient on the upper one; inner products agree."""
    torch.manual_seed(3)
    lower, upper = nn.Linear(10, 16).double(), nn.Linear(16, 16).double()
    heads = nn.ModuleDict({name: nn.Linear(16, 1).double() for name in TASKS})
    recorder = GramianRecorder()
    criterion = compose(recorder, tasks=TASKS, probe=Exact(**WAYS[way]))

    def losses() -> dict[str, Tensor]:
        first = torch.tanh(lower(torch.linspace(-1, 1, 30, dtype=f64).reshape(3, 10)))
        last = torch.tanh(upper(first))
        return {name: heads[name](first if name == "a" else last).square().sum() for name in TASKS}

    for _ in range(3):
        criterion.combine(losses()).backward()
    rows = []
    for loss in losses().values():
        row = torch.autograd.grad(
            loss, [*lower.parameters(), *upper.parameters()], retain_graph=True, allow_unused=True, materialize_grads=True
        )
        rows.append(torch.cat([gradient.reshape(-1) for gradient in row]))
    for signals in recorder.shown:
        assert_norms(signals.norms, torch.stack(rows), 1e-13)
        assert_gramian(signals.gramian, torch.stack(rows), 1e-13)


@pytest.mark.parametrize("way", WAYS)
def test_given_parameters_are_what_is_measured(way: str) -> None:
    """shared= picks one layer, or one weight of a layer: the norms are those of its gradient alone."""
    for pick in (lambda trunk: trunk.row[2], lambda trunk: [trunk.row[0].weight], lambda trunk: [trunk.row[0].bias]):
        model, recorder = Model("linear"), GramianRecorder()
        criterion = compose(recorder, tasks=TASKS, probe=Exact(**WAYS[way]), shared=pick(model.trunk))
        for _ in range(3):
            criterion.combine(model()).backward()
        chosen = pick(model.trunk)
        parameters = list(chosen.parameters()) if isinstance(chosen, nn.Module) else chosen
        rows = [torch.autograd.grad(loss, parameters, retain_graph=True) for loss in model().values()]
        jacobian = torch.stack([torch.cat([gradient.reshape(-1) for gradient in row]) for row in rows])
        for signals in recorder.shown:
            assert_norms(signals.norms, jacobian, 1e-13)
            assert_gramian(signals.gramian, jacobian, 1e-13)


@pytest.mark.parametrize("every", [1, 2])
def test_rotation_measures_one_task_per_window(every: int) -> None:
    """Window n measures task n // every % K exactly, and shows the latest known norms of the others."""
    recorder = Recorder()
    model = Model("linear")
    criterion = compose(recorder, tasks=TASKS, probe=Exact(rotate=True), every=every)
    latest = torch.ones(3, dtype=f64)
    known = torch.zeros(3, dtype=torch.bool)
    count = 0
    for window in range(8 * every):
        turn = window // every % 3
        row = by_hand(model)
        criterion.combine(model()).backward()
        if window % every == 0:
            latest[turn], known[turn] = row[turn].norm(), True
            count += 1
            assert criterion.report.measured.tolist() == [index == turn for index in range(3)]
            signals = recorder.shown[-1]
            assert signals.active.tolist() == known.tolist()
            torch.testing.assert_close(signals.norms, latest, rtol=1e-13, atol=0)
        assert len(recorder.shown) == count
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(parameter.grad, alpha=-0.01)
        model.zero_grad()


def test_an_absent_task_passes_its_turn_on() -> None:
    """When the task whose turn it is is absent, the next one that is there is measured in its place."""
    recorder = Recorder()
    model = Model("linear")
    criterion = compose(recorder, tasks=TASKS, probe=Exact(rotate=True), shared=model.trunk)
    absent = ["", "b", "a", "a", "", "bc", "ab", "c"]
    expected = ["a", "c", "c", "b", "b", "a", "c", "b"]
    for gone, turn in zip(absent, expected, strict=True):
        criterion.combine({name: None if name in gone else loss for name, loss in model().items()}).backward()
        assert criterion.report.measured.tolist() == [name == turn for name in TASKS]
        assert not recorder.shown[-1].active[[name in gone for name in TASKS]].any()


class Reads:
    """Stands between what is shared and a task's private part: the identity, or a leaf per task and tensor."""

    def __init__(self) -> None:
        self.leaves: dict[tuple[str, int], Tensor] = {}
        self.kept: list[Tensor] = []

    def __call__(self, task: str, shared: Tensor) -> Tensor:
        self.kept.append(shared)
        if (task, id(shared)) not in self.leaves:
            self.leaves[task, id(shared)] = shared.detach().requires_grad_()
        return self.leaves[task, id(shared)]

    def norms(self, losses: dict[str, Tensor]) -> Tensor:
        norms = []
        for name, loss in losses.items():
            leaves = [leaf for (task, _), leaf in self.leaves.items() if task == name]
            gradients = torch.autograd.grad(loss, leaves)
            norms.append(torch.cat([gradient.reshape(-1) for gradient in gradients]).norm())
        return torch.stack(norms)


class Reading(nn.Module):
    """Tasks that read what they share through ``read(task, tensor)``."""

    count = 3

    def __init__(self, dtype: torch.dtype = f64) -> None:
        super().__init__()
        torch.manual_seed(6)
        self.one, self.two, self.three = nn.Linear(4, 6), nn.Linear(6, 6), nn.Linear(6, 6)
        self.heads = nn.ModuleDict({name: nn.Sequential(*self.head()) for name in names(self.count)})
        self.to(dtype)

    def head(self) -> list[nn.Module]:
        return [nn.Linear(6, 1)]

    def trunk(self, seed: int) -> tuple[Tensor, Tensor, Tensor]:
        x = torch.randn(7, 4, generator=torch.Generator().manual_seed(seed), dtype=f64).to(self.one.weight.dtype)
        first = torch.tanh(self.one(x))
        second = torch.tanh(self.two(first))
        return first, second, torch.tanh(self.three(second))

    def loss(self, index: int, out: Tensor) -> Tensor:
        return 7.0**index * (out.squeeze(-1) - index).square().mean()

    def forward(self, seed: int, read: Callable[[str, Tensor], Tensor] = lambda task, z: z) -> dict[str, Tensor]:
        _, _, z = self.trunk(seed)
        return {name: self.loss(index, self.heads[name](read(name, z))) for index, name in enumerate(self.heads)}


class Eight(Reading):
    """Eight tasks."""

    count = 8


class Deep(Reading):
    """Heads of several layers."""

    def head(self) -> list[nn.Module]:
        return [nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 1)]


class Skipping(Reading):
    """Task a also reads the first layer: the direct partial derivatives, what passes through z apart."""

    def forward(self, seed: int, read: Callable[[str, Tensor], Tensor] = lambda task, z: z) -> dict[str, Tensor]:
        first, _, z = self.trunk(seed)
        parts = {"a": lambda: 5 * self.heads["a"](read("a", first)) + self.heads["a"](read("a", z))}
        others = {name: lambda name=name: self.heads[name](read(name, z)) for name in "bc"}
        return {name: self.loss(index, part()) for index, (name, part) in enumerate({**parts, **others}.items())}


class Depths(Reading):
    """A head at every depth, two at the last one."""

    count = 4

    def forward(self, seed: int, read: Callable[[str, Tensor], Tensor] = lambda task, z: z) -> dict[str, Tensor]:
        levels = [*self.trunk(seed), None]
        levels[3] = levels[2]
        return {
            name: self.loss(index, head(read(name, levels[index]))) for index, (name, head) in enumerate(self.heads.items())
        }


class Upper(Reading):
    """Two tasks, of which one goes on through layers of its own: both read the first layer."""

    count = 2

    def forward(self, seed: int, read: Callable[[str, Tensor], Tensor] = lambda task, z: z) -> dict[str, Tensor]:
        first, _, _ = self.trunk(seed)
        upper = torch.tanh(self.three(torch.tanh(self.two(read("b", first)))))
        return {"a": self.loss(0, self.heads["a"](read("a", first))), "b": self.loss(1, self.heads["b"](upper))}


class Partial(Reading):
    """Four tasks in two pairs with a layer each over a common one, and task d with a skip past its pair's layer."""

    count = 4

    def forward(self, seed: int, read: Callable[[str, Tensor], Tensor] = lambda task, z: z) -> dict[str, Tensor]:
        x = torch.randn(7, 4, generator=torch.Generator().manual_seed(seed), dtype=f64).to(self.one.weight.dtype)
        common = torch.tanh(self.one(x))
        left, right = torch.tanh(self.two(common)), torch.tanh(self.three(common))
        out = {name: self.heads[name](read(name, left if name in "ab" else right)) for name in "abcd"}
        out["d"] = out["d"] + 3 * self.heads["d"](read("d", common))
        return {name: self.loss(index, value) for index, (name, value) in enumerate(out.items())}


class Twice(Reading):
    """Task a reads z in two places, task b in slices of it; task c one of two outputs of one node."""

    def forward(self, seed: int, read: Callable[[str, Tensor], Tensor] = lambda task, z: z) -> dict[str, Tensor]:
        _, _, z = self.trunk(seed)
        a = self.heads["a"](read("a", z)) * read("a", z).sin().mean(1, keepdim=True)
        b = self.heads["b"](torch.cat([read("b", z)[:, 3:], read("b", z)[:, :3]], 1))
        return {"a": self.loss(0, a), "b": self.loss(1, b), "c": self.loss(2, self.heads["c"](read("c", z)))}


class Chunked(Reading):
    """Each task reads an output of its own of one split; the heads share nothing else."""

    def head(self) -> list[nn.Module]:
        return [nn.Linear(2, 1)]

    def forward(self, seed: int, read: Callable[[str, Tensor], Tensor] = lambda task, z: z) -> dict[str, Tensor]:
        parts = self.trunk(seed)[2].chunk(3, 1)
        return {
            name: self.loss(index, head(read(name, parts[index]))) for index, (name, head) in enumerate(self.heads.items())
        }


class TwoOutputs(Reading):
    """An LSTM whose sequence one task reads, and whose last state the others."""

    def __init__(self, dtype: torch.dtype = f64) -> None:
        super().__init__(dtype)
        self.lstm = nn.LSTM(4, 6, batch_first=True).to(dtype)

    def forward(self, seed: int, read: Callable[[str, Tensor], Tensor] = lambda task, z: z) -> dict[str, Tensor]:
        x = torch.randn(3, 5, 4, generator=torch.Generator().manual_seed(seed), dtype=f64).to(self.one.weight.dtype)
        sequence, (last, cell) = self.lstm(x)
        return {
            "a": self.loss(0, self.heads["a"](read("a", sequence))),
            "b": self.loss(1, self.heads["b"](read("b", last)[0])),
            "c": self.loss(2, self.heads["c"]((read("c", last) * read("c", cell))[0])),
        }


READINGS = {
    reading.__name__: reading
    for reading in (Reading, Eight, Deep, Skipping, Depths, Upper, Partial, Twice, Chunked, TwoOutputs)
}
every_reading = pytest.mark.parametrize("reading", READINGS)
every_dtype = pytest.mark.parametrize(("dtype", "tolerance"), [(f32, 1e-5), (f64, 1e-12)], ids=["float32", "float64"])


def reference(model: Reading, seed: int) -> Tensor:
    """Norms of the task gradients at what each task reads, everything shared held fixed."""
    reads = Reads()
    return reads.norms(model(seed, reads))


@every_reading
@every_dtype
def test_representation_norms_are_the_direct_partial_derivatives(reading: str, dtype: torch.dtype, tolerance: float) -> None:
    """In its own call, per task, the norm of dL_i/dr over the shared tensors that its private part reads."""
    model, recorder = READINGS[reading](dtype), Recorder()
    criterion = compose(recorder, tasks=names(model.count), probe="representation")
    for call in range(3):
        criterion.combine(model(call)).backward()
        assert len(recorder.shown) == call + 1
        torch.testing.assert_close(recorder.shown[call].norms, reference(model, call), rtol=tolerance, atol=0)
        assert recorder.shown[call].active.all()


@every_reading
@every_dtype
@pytest.mark.parametrize("scale", [1.0, 65536.0])
def test_lagged_norms_are_those_of_the_call_before(reading: str, dtype: torch.dtype, tolerance: float, scale: float) -> None:
    """One window late, per task, the norms at the representation, whatever factor the user's backward starts with."""
    model, recorder = READINGS[reading](dtype), Recorder()
    criterion = compose(recorder, tasks=names(model.count), probe="lagged")
    for call in range(4):
        total = criterion.combine(model(call))
        assert len(recorder.shown) == call
        (scale * total).backward()
    for call, signals in enumerate(recorder.shown):
        torch.testing.assert_close(signals.norms, reference(model, call), rtol=tolerance, atol=0)
        assert signals.active.all()


@pytest.mark.parametrize("probe", ["representation", "lagged"])
def test_a_plain_trunk_and_heads_are_measured_at_z(probe: str) -> None:
    """With one representation and heads on it the norms are those of torch.autograd.grad at it."""
    model, recorder = Deep(), Recorder()
    criterion = compose(recorder, tasks=TASKS, probe=probe)
    expected = []
    for call in range(3):
        z = model.trunk(call)[2]
        losses = {name: model.loss(index, model.heads[name](z)) for index, name in enumerate(TASKS)}
        rows = [torch.autograd.grad(loss, z, retain_graph=True)[0] for loss in losses.values()]
        expected.append(torch.stack([row.norm() for row in rows]))
        criterion.combine(losses).backward()
    assert len(recorder.shown) == (3 if probe == "representation" else 2)
    for signals, norms in zip(recorder.shown, expected, strict=False):
        torch.testing.assert_close(signals.norms, norms, rtol=1e-12, atol=0)


@pytest.mark.parametrize("accumulate", [2, 3])
@pytest.mark.parametrize("scale", [1.0, 65536.0])
def test_lagged_norms_of_a_window_are_the_means_of_its_calls(accumulate: int, scale: float) -> None:
    """The user's division of the loss and the loss scale leave the norms unchanged; the calls of a window are averaged."""
    model, recorder = Deep(), Recorder()
    criterion = compose(recorder, tasks=TASKS, probe="lagged", accumulate=accumulate)
    for call in range(3 * accumulate + 1):
        (scale * criterion.combine(model(call)) / accumulate).backward()
    assert len(recorder.shown) == 3
    for window, signals in enumerate(recorder.shown):
        calls = range(window * accumulate, (window + 1) * accumulate)
        expected = torch.stack([reference(model, call) for call in calls]).mean(0)
        torch.testing.assert_close(signals.norms, expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("every", [2, 3])
def test_lagged_norms_are_recorded_in_every_nth_window(every: int) -> None:
    """With every=n only the backwards of every n-th window are recorded, and the weights move after them."""
    model, recorder = Deep(), Recorder()
    criterion = compose(recorder, tasks=TASKS, probe="lagged", every=every)
    for call in range(2 * every + 2):
        criterion.combine(model(call)).backward()
    assert len(recorder.shown) == 3
    for number, signals in enumerate(recorder.shown):
        torch.testing.assert_close(signals.norms, reference(model, number * every), rtol=1e-12, atol=0)
        assert int(signals.step) == number * every
        assert signals.elapsed.tolist() == [float(every if number else 1)] * 3


@pytest.mark.parametrize("probe", ["representation", "lagged"])
def test_an_absent_task_is_not_measured_at_the_representation(probe: str) -> None:
    """A task without a loss is inactive, and the others have the norms that they have among themselves."""
    model, recorder = Deep(), Recorder()
    criterion = compose(recorder, tasks=TASKS, probe=probe)
    for call in range(4):
        losses = {name: None if name == "b" and call % 2 else loss for name, loss in model(call).items()}
        criterion.combine(losses).backward()
    for call, signals in enumerate(recorder.shown):
        expected = reference(model, call)
        assert signals.active.tolist() == [True, not call % 2, True]
        torch.testing.assert_close(signals.norms[signals.active], expected[signals.active], rtol=1e-12, atol=0)


def test_the_report_shows_the_norms_that_a_call_knows() -> None:
    """Under the lagged probe the report of a call shows the norms of the window before it, under the others its own."""
    for probe, late in (("representation", 0), ("lagged", 1)):
        model = Deep()
        criterion = compose(Recorder(), tasks=TASKS, probe=probe)
        for call in range(3):
            criterion.combine(model(call)).backward()
            if call < late:
                assert criterion.report.norms is None
            else:
                torch.testing.assert_close(criterion.report.norms, reference(model, call - late), rtol=1e-12, atol=0)


@pytest.mark.parametrize(("probe", "late"), [(Representation, 0), (Lagged, 1)])
def test_an_audit_reports_by_what_factors_the_norms_are_off(probe: type[Probe], late: int) -> None:
    """Every n-th measured window: log(cheap / exact) less its mean over the tasks, in the report and in explain()."""
    model = Skipping()
    criterion = compose(Recorder(), tasks=TASKS, probe=probe(audit_every=2), every=2)
    errors = {}
    for call in range(10):
        losses = model(call)
        shared = [*model.one.parameters(), *model.two.parameters(), *model.three.parameters()]
        shared = shared if call % 4 == 0 else []
        rows = [torch.autograd.grad(loss, shared, retain_graph=True) for loss in losses.values()] if shared else []
        if rows:
            exact = torch.stack([torch.cat([part.reshape(-1) for part in row]).norm() for row in rows])
            ratio = (reference(model, call) / exact).log()
            errors[call] = ratio - ratio.mean()
        text = criterion.explain()
        criterion.combine(losses).backward()
        found = criterion.report.extra.get("audit_error")
        last = (call - late) // 4 * 4
        if last < 0:
            assert found is None
            assert "audited in every 2" in text or call == 0
        else:
            torch.testing.assert_close(found, errors[last], rtol=1e-9, atol=1e-12)
            assert f"off by the factors {float(errors[last][0].exp()):.3g}, " in criterion.explain()
    assert max(float(error.abs().max()) for error in errors.values()) > 0.1
    assert not any(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("probe", ["representation", "lagged"])
def test_the_norms_of_narrow_activations_are_summed_in_float32(probe: str) -> None:
    """Losses of a bfloat16 model have float32 norms at the representation, right to what bfloat16 rounds."""
    model, recorder = Deep(torch.bfloat16), Recorder()
    criterion = compose(recorder, tasks=TASKS, probe=probe)
    for call in range(3):
        criterion.combine(model(call)).backward()
    for call, signals in enumerate(recorder.shown):
        assert signals.norms.dtype is f32
        torch.testing.assert_close(signals.norms, reference(model, call).float(), rtol=8e-3, atol=0)
