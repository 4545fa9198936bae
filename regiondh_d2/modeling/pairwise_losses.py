"""Objectives that compare the codes of the images of a batch, by pairs or triplets.

Each is a function ``loss(activations, labels, ...)``; :mod:`.losses` lists them by the names of
their methods. Activations are (B, K) in (0, 1) of any float type, labels (B, C) in {0, 1} of any
type; the loss is a float32 scalar, computed in float32 also under autocast.

The methods are written for codes ``u`` in +-1. Here ``u = 2 a - 1`` for activations ``a``; the
signs of ``u`` are the bits of :func:`.hashing.binarize`, and the inner product of two codes is
``K - 2 d`` for a Hamming distance ``d``.

Pairwise terms are means over the pairs of different images of a batch, 0 where there is none. The
sources pair an image with itself as well, which only presses its activations away from 0.5, as the
quantization terms do. An image without labels is similar to no other.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from .loss_parts import in_float32, mean

__all__ = [
    "PairwiseLoss",
    "dmssph_loss",
    "dpsh_loss",
    "idhn_loss",
    "isdh_soft_loss",
    "triplet_loss",
]


@in_float32
def idhn_loss(
    activations: torch.Tensor,
    labels: torch.Tensor,
    *,
    scale: float = 5.0,
    soft_weight: float = 0.1,
    quantization: float = 0.1,
) -> torch.Tensor:
    """Soft pairwise similarity: cross entropy on hard pairs, weighted squared error on soft ones.

    Zhang, Zou, Lin, Chen and Wang, "Improved Deep Hashing with Soft Pairwise Similarity for
    Multi-label Image Retrieval" (IDHN), the later version of :func:`isdh_soft_loss`. The similarity
    ``s`` of two images is the cosine of their label vectors. A pair is hard where they share no
    label or all of them; its logit is ``scale`` times the mean product of the codes' bits. In a
    soft pair that mean, taken to [0, 1], is to be ``s``.

    Args:
        activations: (B, K) in (0, 1).
        labels: (B, C) in {0, 1}.
        scale: the largest logit of a hard pair.
        soft_weight: weight of the squared error, for each bit.
        quantization: weight of the mean distance of ``|u|`` from 1.

    Returns:
        A scalar.
    """
    pairs = _instance_similarity(activations, labels, scale)
    bits = activations.shape[1]
    squared_error = soft_weight * bits * ((pairs.product + 1.0) / 2.0 - pairs.similarity).square()
    return pairs.loss(pairs.cross_entropy, squared_error, quantization)


@in_float32
def isdh_soft_loss(
    activations: torch.Tensor,
    labels: torch.Tensor,
    *,
    scale: float = 5.0,
    hard_weight: float = 10.0,
    quantization: float = 0.1,
) -> torch.Tensor:
    """Instance similarity: weighted cross entropy on hard pairs, squared error on soft ones.

    The authors of :func:`idhn_loss`, "Instance Similarity Deep Hashing for Multi-Label Image
    Retrieval" (ISDH, the first version of arXiv 1803.02987), with the weights of its public code.
    Hard pairs and their logit are those of IDHN. In a soft pair the logistic function of the logit
    ``scale <u_i, u_j> / K`` is to be the similarity ``s``.

    Args:
        activations: (B, K) in (0, 1).
        labels: (B, C) in {0, 1}.
        scale: the largest logit of a pair.
        hard_weight: weight of the cross entropy.
        quantization: weight of the mean distance of ``|u|`` from 1.

    Returns:
        A scalar.
    """
    pairs = _instance_similarity(activations, labels, scale)
    squared_error = (pairs.similarity - pairs.logit.sigmoid()).square()
    return pairs.loss(hard_weight * pairs.cross_entropy, squared_error, quantization)


class _Pairs(NamedTuple):
    """What IDHN and ISDH compute for all pairs of a batch, (B, B) each."""

    codes: torch.Tensor  # (B, K) in (-1, 1)
    similarity: torch.Tensor
    product: torch.Tensor
    logit: torch.Tensor

    @property
    def cross_entropy(self) -> torch.Tensor:
        return F.softplus(self.logit) - self.similarity * self.logit

    def loss(self, hard: torch.Tensor, soft: torch.Tensor, quantization: float) -> torch.Tensor:
        # Cosines of label vectors are compared with a tolerance, as in the sources.
        is_hard = (self.similarity < 0.01) | (self.similarity > 0.99)
        loss = _pair_mean(torch.where(is_hard, hard, soft))
        return loss + quantization * mean((self.codes.abs() - 1.0).abs())


def _instance_similarity(activations: torch.Tensor, labels: torch.Tensor, scale: float) -> _Pairs:
    codes = 2.0 * activations - 1.0
    directions = F.normalize(labels, dim=1)
    product = codes @ codes.t() / codes.shape[1]
    return _Pairs(codes, directions @ directions.t(), product, scale * product)


@in_float32
def dmssph_loss(
    activations: torch.Tensor,
    labels: torch.Tensor,
    *,
    margin: float = 0.5,
    quantization: float = 0.01,
) -> torch.Tensor:
    """Multi-level similarity: each level of shared labels has a distance of its own.

    **Reconstructed**: we have neither the code nor the formulas of Wu, Lin, Li, Ye and Wang, "Deep
    Supervised Hashing for Multi-Label and Large-Scale Image Retrieval" (DMSSPH). We know that it
    constrains pairs directly, keeps levels of similarity apart, and separates dissimilar pairs.
    Here the contrastive loss of DSH (Liu, Wang, Shan and Chen), in which similar pairs coincide and
    dissimilar ones keep a margin, is given levels: the distance for a pair is the margin times one
    minus the share of common labels (those of both images among those of either). A pair that is
    too close pays the lack; one that is too far pays the excess, unless it shares nothing. With
    one label an image this is DSH's loss, divided by 2K.

    Args:
        activations: (B, K) in (0, 1).
        labels: (B, C) in {0, 1}.
        margin: distance of images that share nothing, as a fraction of the bits (DSH: one half).
        quantization: weight of the mean distance of ``|u|`` from 1 (DSH's).

    Returns:
        A scalar.
    """
    # |u_i - u_j|^2 / 4K: between codes, the Hamming distance over K.
    distance = (activations[:, None] - activations).square().mean(dim=2)
    shared = labels @ labels.t()
    counts = labels.sum(dim=1)
    either = counts[:, None] + counts - shared
    wanted = margin * (1.0 - shared / either.clamp(min=1.0))
    lack, excess = (wanted - distance).relu(), (distance - wanted).relu()
    loss = _pair_mean(lack + excess * (shared > 0))
    return loss + quantization * mean(((2.0 * activations - 1.0).abs() - 1.0).abs())


@in_float32
def dpsh_loss(
    activations: torch.Tensor, labels: torch.Tensor, *, quantization: float = 0.1
) -> torch.Tensor:
    """Pairwise likelihood: half the inner product of two codes is the logit of being similar.

    Li, Wang and Kang, "Feature Learning based Deep Supervised Hashing with Pairwise Labels" (DPSH).
    Images are similar where they share at least one label. The codes there aren't bounded; here
    the logit lies in (-K / 2, K / 2). The published code weights sums over the training set, so the
    default weight is that of the mean over bits in the DeepHash-pytorch collection.

    Args:
        activations: (B, K) in (0, 1).
        labels: (B, C) in {0, 1}.
        quantization: weight of the mean squared distance of ``u`` from its sign.

    Returns:
        A scalar.
    """
    codes = 2.0 * activations - 1.0
    logit = codes @ codes.t() / 2.0
    similar = (labels @ labels.t() > 0).float()
    loss = _pair_mean(F.softplus(logit) - similar * logit)
    return loss + quantization * mean((codes.abs() - 1.0).square())


@in_float32
def triplet_loss(
    activations: torch.Tensor, labels: torch.Tensor, *, margin: float = 0.25
) -> torch.Tensor:
    """Triplet ranking loss of IAH: an image that shares more labels is nearer, by a margin.

    Lai, Yan, Shu, Wei and Yan, "Instance-Aware Hashing for Multi-Label Image Retrieval" (IAH). The
    form is that paper's, ``max(0, margin + |a_i - a_j|^2 - |a_i - a_k|^2)`` where image i shares
    more labels with j than with k. **Reconstructed**: we don't know its margin or how it draws
    triplets. Here every triplet of the batch counts, and distances are fractions of the bits, so
    that the margin doesn't depend on their number.

    Args:
        activations: (B, K) in (0, 1).
        labels: (B, C) in {0, 1}.
        margin: as a fraction of the bits.

    Returns:
        A scalar, the mean over the triplets; 0 where there is none.
    """
    distance = (activations[:, None] - activations).square().mean(dim=2)
    shared = labels @ labels.t()
    different = ~torch.eye(len(shared), dtype=torch.bool, device=shared.device)
    ordered = different[:, :, None] & different[:, None] & (shared[:, :, None] > shared[:, None])
    return mean((margin + distance[:, :, None] - distance[:, None])[ordered].relu())


def _pair_mean(values: torch.Tensor) -> torch.Tensor:
    """The mean of a (B, B) table without its diagonal."""
    different = ~torch.eye(len(values), dtype=torch.bool, device=values.device)
    return mean(values[different])


class PairwiseLoss(nn.Module):
    """An objective that needs nothing but activations and labels."""

    def __init__(self, loss: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]):
        super().__init__()
        self.loss = loss

    def forward(self, activations: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return self.loss(activations, labels)
