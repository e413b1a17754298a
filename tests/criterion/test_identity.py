"""The two axes are independent: the bilinear identity on four live criteria, recomputed in numpy.

Of four criteria on one graph, A is fixed x plain, B fixed x shaped, C live x plain, D live x shaped. With weights lambda, mu
and task losses P (plain), S (shaped) each total is bilinear, so that at equal lambda

    (L_D - L_C) - (L_B - L_A) = sum_i (lambda_i - mu_i) (S_i - P_i)

and, because a live weighting reads the shaped gradient, the lambda of C and D differ (the complement).
"""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from sampling import covering
from strategies import (
    INNER_KINDS,
    REPRESENTATIVE,
    SHAPED,
    STANDARD,
    Heads,
    batch_for,
    model_for,
    quick,
    same,
    shaped,
    snapshot,
)

from mtl_axes import MultiTaskCriterion, compose

Array = np.ndarray
f64 = torch.float64


def sigmoid(x: Array) -> Array:
    return np.exp(-np.logaddexp(0, -x))


def softmax(x: Array) -> Array:
    e = np.exp(x - x.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


def mse(p: Array, y: Array) -> tuple[Array, Array]:
    return (p - y) ** 2, 2 * (p - y)


def mae(p: Array, y: Array) -> tuple[Array, Array]:
    return np.abs(p - y), np.sign(p - y)


def huber(p: Array, y: Array, delta: float = 1.0) -> tuple[Array, Array]:
    e = p - y
    return np.where(abs(e) <= delta, e**2 / 2, delta * (abs(e) - delta / 2)), np.clip(e, -delta, delta)


def asymmetric(p: Array, y: Array, over: float = 1.0, under: float = 1.0) -> tuple[Array, Array]:
    factor = np.where(p > y, over, under)
    return factor * (p - y) ** 2, 2 * factor * (p - y)


def quantile(p: Array, y: Array, q: float = 0.5) -> tuple[Array, Array]:
    return np.where(y > p, q * (y - p), (q - 1) * (y - p)), np.where(y > p, -q, 1 - q)


def failure_biased(p: Array, y: Array, r_max: float = 125.0) -> tuple[Array, Array]:
    weight = 1 + np.clip(1 - y / r_max, 0, 1)
    return weight * (p - y) ** 2, 2 * weight * (p - y)


def bce(x: Array, y: Array, pos_weight: float = 1.0) -> tuple[Array, Array]:
    value = pos_weight * y * np.logaddexp(0, -x) + (1 - y) * np.logaddexp(0, x)
    return value, -pos_weight * y * sigmoid(-x) + (1 - y) * sigmoid(x)


def cross_entropy(x: Array, y: Array) -> tuple[Array, Array]:
    p, hot = softmax(x), np.eye(x.shape[1])[y]
    return -np.log((p * hot).sum(1)), p - hot


def focal(x: Array, y: Array, gamma: float = 2.0) -> tuple[Array, Array]:
    if x.ndim == 2:
        probabilities, hot = softmax(x), np.eye(x.shape[1])[y]
        p = (probabilities * hot).sum(1)
        direction = p[:, None] * (hot - probabilities)
    else:
        sign = np.where(y, 1.0, -1.0)
        p = sigmoid(sign * x)
        direction = sign * p * (1 - p)
    slope = gamma * (1 - p) ** (gamma - 1) * np.log(p) - (1 - p) ** gamma / p
    return -((1 - p) ** gamma) * np.log(p), (slope[:, None] if x.ndim == 2 else slope) * direction


NUMPY = {
    "asymmetric": asymmetric,
    "bce": bce,
    "cross_entropy": cross_entropy,
    "failure_biased": failure_biased,
    "focal": focal,
    "huber": huber,
    "mae": mae,
    "mse": mse,
    "quantile": quantile,
}

# Every other shape, and every other weighting, shows the identity among its contracts, by means of torch.
BY_HAND = [(inner, kind) for inner, kind in INNER_KINDS if inner in NUMPY]


def by_hand(
    model: Heads, inputs: torch.Tensor, targets: dict[str, torch.Tensor], shape_of: dict[str, str], options: dict[str, Any]
) -> dict[str, Any]:
    """Forward and backward pass in numpy: {task: (loss, {parameter: gradient})}."""
    p = {name: parameter.detach().numpy() for name, parameter in model.named_parameters()}
    x = inputs.numpy()
    z = np.tanh(x @ p["trunk.weight"].T + p["trunk.bias"])
    result: dict[str, Any] = {}
    for task, shape in shape_of.items():
        out = z @ p[f"heads.{task}.weight"].T + p[f"heads.{task}.bias"]
        multiclass = model.kinds[task] == "multiclass"
        value, slope = NUMPY[shape](out if multiclass else out[:, 0], targets[task].numpy(), **options.get(shape, {}))
        back = (slope if multiclass else slope[:, None]) / len(x)
        through = (back @ p[f"heads.{task}.weight"]) * (1 - z**2)
        gradients = {name: np.zeros_like(values) for name, values in p.items()}
        gradients[f"heads.{task}.weight"], gradients[f"heads.{task}.bias"] = back.T @ z, back.sum(0)
        gradients["trunk.weight"], gradients["trunk.bias"] = through.T @ x, through.sum(0)
        result[task] = value.mean(), gradients
    return result


MU = {"x": 0.3, "y": 0.7}


class Four:
    """The four criteria on one model, trained for some steps on the gradient of D."""

    def __init__(self, outer: str, inner: str, kind: str, steps: int = 6) -> None:
        self.kinds = {"x": kind, "y": "regression"}
        self.plain = {"x": STANDARD[kind], "y": "mse"}
        self.shaped = {"x": inner, "y": "mse"}
        self.model = model_for(self.kinds, dtype=f64)
        shapes = {"plain": {"x": STANDARD[kind], "y": "mse"}, "shaped": {"x": shaped(inner), "y": "mse"}}
        fixed = {"name": "fixed", "weights": MU}
        self.criteria: dict[str, MultiTaskCriterion] = {
            "A": compose(fixed, shapes["plain"]),
            "B": compose(fixed, shapes["shaped"]),
            "C": compose(self.live(outer), shapes["plain"]),
            "D": compose(self.live(outer), shapes["shaped"]),
        }
        for criterion in self.criteria.values():
            criterion.double()
        groups = [group for key in "CD" for group in self.criteria[key].param_groups()]
        optimizer = torch.optim.SGD([{"params": self.model.parameters()}, *groups], lr=1e-3)
        for step in range(steps):
            optimizer.zero_grad()
            totals = self.totals(step)
            if step == 0:
                self.first = {key: snapshot(self.criteria[key].outer) for key in "CD"}
            torch.autograd.backward([totals["C"], totals["D"]])
            optimizer.step()
            assert max(float(total.detach()) for total in totals.values()) < 100, "the four should train and not diverge"
        optimizer.zero_grad()

    @staticmethod
    def live(outer: str) -> Any:
        if outer == "fixed":
            return {"name": "fixed", "weights": {"x": 0.9, "y": 0.4}}
        return quick(outer, window=1) if outer == "dwa" else quick(outer)

    def batch(self, seed: int) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        return batch_for(self.kinds, seed=seed, dtype=f64, scale=2.0)

    def totals(self, seed: int) -> dict[str, torch.Tensor]:
        inputs, targets = self.batch(seed)
        outputs = self.model(inputs)
        return {key: criterion(outputs, targets) for key, criterion in self.criteria.items()}

    def weights(self, key: str) -> dict[str, float]:
        report = self.criteria[key].report
        assert report is not None
        return dict(zip(report.tasks, report.weights.tolist(), strict=True))

    def penalty(self, key: str) -> float:
        penalty = self.criteria[key].outer.penalty()
        return 0.0 if penalty is None else float(penalty.detach().sum())

    def hand(self, seed: int) -> tuple[dict[str, Any], dict[str, Any]]:
        inputs, targets = self.batch(seed)
        plain = by_hand(self.model, inputs, targets, self.plain, {})
        return plain, by_hand(self.model, inputs, targets, self.shaped, SHAPED)

    def gradients(self, total: torch.Tensor) -> dict[str, Array]:
        self.model.zero_grad()
        total.backward(retain_graph=True)
        return {name: parameter.grad.numpy().copy() for name, parameter in self.model.named_parameters()}


def combined(gradients: dict[str, Any], factor: dict[str, float], name: str) -> Array:
    return sum(factor[task] * gradients[task][1][name] for task in factor)


PAIRS = covering(product(REPRESENTATIVE, BY_HAND), times=3)
every_pair = pytest.mark.parametrize(("outer", "inner", "kind"), [(outer, *shape) for outer, shape in PAIRS])


@every_pair
def test_each_total_and_gradient_is_that_of_its_own_weights(outer: str, inner: str, kind: str) -> None:
    """Four live criteria on one graph: total and every .grad are the weighted sums of losses recomputed in numpy."""
    four = Four(outer, inner, kind)
    totals = four.totals(50)
    plain, shaped_ = four.hand(50)
    for key, hand in (("A", plain), ("B", shaped_), ("C", plain), ("D", shaped_)):
        weights = four.weights(key)
        if key in "AB":
            assert weights == MU
        expected = sum(weights[task] * hand[task][0] for task in weights) + four.penalty(key)
        np.testing.assert_allclose(totals[key].item(), expected, rtol=1e-12, atol=1e-12)
        for name, gradient in four.gradients(totals[key]).items():
            np.testing.assert_allclose(gradient, combined(hand, weights, name), rtol=1e-10, atol=1e-12)


@every_pair
def test_the_identity_holds_with_each_criterions_own_weights(outer: str, inner: str, kind: str) -> None:
    """(L_D - L_C) - (L_B - L_A), also its gradient, is sum (lambda_D - mu) S - (lambda_C - mu) P, and the penalties."""
    four = Four(outer, inner, kind)
    totals = four.totals(51)
    left = (totals["D"] - totals["C"]) - (totals["B"] - totals["A"])
    plain, shaped_ = four.hand(51)
    up = {task: weight - MU[task] for task, weight in four.weights("D").items()}
    down = {task: weight - MU[task] for task, weight in four.weights("C").items()}
    right = sum(up[task] * shaped_[task][0] - down[task] * plain[task][0] for task in up)
    scale = sum(shaped_[task][0] + plain[task][0] for task in up)
    np.testing.assert_allclose(
        left.item(), right + four.penalty("D") - four.penalty("C"), rtol=0, atol=1e-13 * max(scale, 1)
    )
    for name, gradient in four.gradients(left).items():
        expected = combined(shaped_, up, name) - combined(plain, down, name)
        np.testing.assert_allclose(gradient, expected, rtol=1e-10, atol=1e-11)


@every_pair
def test_the_identity_holds_at_equal_weights(outer: str, inner: str, kind: str) -> None:
    """With C at the weights of D, (L_D - L_C) - (L_B - L_A) is sum (lambda - mu) (S - P), in value and in every .grad."""
    four = Four(outer, inner, kind)
    totals = four.totals(52)
    lambdas = four.weights("D")
    held = compose({"name": "fixed", "weights": lambdas}, four.plain)
    inputs, targets = four.batch(52)
    at_d = held.double()(four.model(inputs), targets)
    left = (totals["D"] - four.penalty("D") - at_d) - (totals["B"] - totals["A"])
    plain, shaped_ = four.hand(52)
    factor = {task: lambdas[task] - MU[task] for task in lambdas}
    right = sum(factor[task] * (shaped_[task][0] - plain[task][0]) for task in factor)
    scale = sum(shaped_[task][0] + plain[task][0] for task in factor)
    np.testing.assert_allclose(left.item(), right, rtol=0, atol=1e-13 * max(scale, 1))
    for name, gradient in four.gradients(left).items():
        expected = combined(shaped_, factor, name) - combined(plain, factor, name)
        np.testing.assert_allclose(gradient, expected, rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("outer", [name for name in REPRESENTATIVE if name != "fixed" and not quick(name).memoryless])
def test_the_weightings_of_the_four_have_moved(outer: str) -> None:
    """The identity is not tested on weightings at rest: the state of C and D differs from that of their first step."""
    four = Four(outer, "failure_biased", "regression")
    four.totals(53)
    for key in "CD":
        assert not same(snapshot(four.criteria[key].outer), four.first[key])
        weights = list(four.weights(key).values())
        assert abs(weights[0] - weights[1]) > 1e-3


@pytest.mark.parametrize(("inner", "kind"), [pair for pair in BY_HAND if pair[0] not in ("mse", "cross_entropy")])
def test_live_weights_depend_on_the_shape(inner: str, kind: str) -> None:
    """The complement: GABA reads the shaped gradient, so that the weights of C and D differ and are no common lambda."""
    four = Four("gaba", inner, kind)
    four.totals(54)
    assert abs(four.weights("C")["x"] - four.weights("D")["x"]) > 1e-4
