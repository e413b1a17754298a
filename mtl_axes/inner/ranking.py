"""Ranking shapes, one loss per list of scores: listnet, pairwise_logistic."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from mtl_axes.errors import DataError
from mtl_axes.inner.base import REGRESSION, InnerShape, Pair, require_same_shape
from mtl_axes.signals import Kind

__all__ = ["ListNet", "PairwiseLogistic"]


class _Lists(InnerShape):
    """The base of ranking shapes: scores and relevances (N, L), one list per sample, with masked padding."""

    kinds = REGRESSION
    pooled = True

    def check(self, prediction: Tensor, target: Tensor) -> None:
        require_same_shape(prediction, target)
        if target.ndim < 2:
            raise DataError(
                "scores and relevances should have the shape (N, L), one list of L items per sample. "
                f"Found target {tuple(target.shape)}. Use unsqueeze(0) for a single list."
            )

    def sample(self, kind: Kind, size: tuple[int, ...], generator: torch.Generator, dtype: torch.dtype, /) -> Pair:
        scores, _ = super().sample(kind, size, generator, dtype)
        return scores, torch.randint(4, scores.shape, generator=generator).to(dtype)


class ListNet(_Lists):
    """ListNet: cross-entropy between the distributions of relevances and of scores over the top item of a list.

    ::

        -sum_j q_j log p_j                      p = softmax(x), q = softmax(y), over the valid items of one list

    Its minimum is the entropy of q, not 0, at scores equal to the relevances up to a constant. Mask padding: masked items
    enter neither softmax.

    Returns:
        (N,) losses >= 0, in nats, from scores and float relevances (N, L). Further dimensions belong to the list.

    Raises:
        DataError: scores and relevances differ in shape, or have only one dimension.

    >>> ListNet()(torch.tensor([[2.0, 0.0, 1.0]]), torch.tensor([[1.0, 0.0, 1.0]]))
    tensor([1.1406])

    References:
        Z. Cao et al., "Learning to Rank: From Pairwise Approach to Listwise Approach", 2007, with the top-one
        probability. Differs from optax's ranking_softmax_loss, whose q are the relevances themselves.
    """

    def forward(self, prediction: Tensor, target: Tensor, valid: Tensor | None = None, /) -> Tensor:
        scores, relevances = prediction.flatten(1), target.to(prediction.dtype).flatten(1)
        if valid is None:
            return -(relevances.softmax(1) * scores.log_softmax(1)).sum(1)
        valid = valid.flatten(1)
        # A softmax over no items is NaN: a list without a valid item, which does not count, keeps all of them.
        keep = valid | ~valid.any(1, keepdim=True)
        q = torch.where(keep, relevances, -torch.inf).softmax(1)
        log_p = torch.where(keep, scores, -torch.inf).log_softmax(1)
        return -torch.where(keep, q * torch.where(keep, log_p, 0.0), 0.0).sum(1)


class PairwiseLogistic(_Lists):
    """Pairwise logistic loss (RankNet, BPR, Bradley-Terry): the more relevant of two items in a list should score higher.

    ::

        mean over pairs with y_i > y_j of log(1 + exp(-(x_i - x_j)))        over the valid items of one list

    Given pairs are lists of two with the relevances (1, 0). A list without two items of different relevance has the loss 0,
    and counts in the mean. Time and memory grow with L^2.

    Returns:
        (N,) losses >= 0, in nats, from scores and relevances (N, L), floats or integers. Further dimensions belong to the
        list.

    Raises:
        DataError: scores and relevances differ in shape, or have only one dimension.

    >>> PairwiseLogistic()(torch.tensor([[2.0, 0.0, 1.0]]), torch.tensor([[2.0, 0.0, 1.0]]))
    tensor([0.2512])

    References:
        C. Burges et al., "Learning to Rank using Gradient Descent", 2005; S. Rendle et al., "BPR: Bayesian Personalized
        Ranking from Implicit Feedback", 2009. Differs from the references, which sum over the pairs of a list, so that a
        list of L different relevances weighs L (L - 1) / 2 times as much as a pair.
    """

    def forward(self, prediction: Tensor, target: Tensor, valid: Tensor | None = None, /) -> Tensor:
        scores, relevances = prediction.flatten(1), target.flatten(1)
        pairs = relevances.unsqueeze(2) > relevances.unsqueeze(1)
        if valid is not None:
            valid = valid.flatten(1)
            pairs = pairs & valid.unsqueeze(2) & valid.unsqueeze(1)
        losses = torch.where(pairs, -F.logsigmoid(scores.unsqueeze(2) - scores.unsqueeze(1)), 0.0)
        return losses.sum((1, 2)) / pairs.sum((1, 2)).clamp_min(1)
