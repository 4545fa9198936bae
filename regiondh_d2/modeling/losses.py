"""Objectives for image codes: what other hashing methods ask of codes, given their images' labels.

Each is a pure function ``loss(activations, labels, ...)`` and, under the name of the method, an
entry of :data:`HASH_LOSS_REGISTRY`, from which :func:`build_loss` makes a module called
as ``objective(activations, labels)``. Activations are (B, K) in (0, 1) of any float type, labels
(B, C) in {0, 1} of any type; the loss is a float32 scalar, computed in float32 also under autocast.

The methods are written for codes ``u`` in +-1. Activations ``a`` take their place as
``u = 2 a - 1``, whose signs are the bits of :func:`.hashing.binarize`; the inner product of two
codes is then ``K - 2 d`` for a Hamming distance ``d``.

Pairwise terms are means over the pairs of different images of a batch, 0 where there is none; the
sources pair an image with itself as well, which only presses its activations away from 0.5, as the
quantization terms do. An image without labels is like no other in the pairwise objectives, and adds
nothing to those with a center per class.
"""

import logging
from collections.abc import Callable
from functools import wraps
from typing import NamedTuple

import torch
import torch.nn.functional as F
from fvcore.common.registry import Registry
from torch import nn

from ..config import current_value
from ..utils.errors import RegionDHError
from .hashing import label_similarity_loss

__all__ = [
    "HASH_LOSS_REGISTRY",
    "CSQLoss",
    "OrthoHashLoss",
    "PairwiseLoss",
    "build_loss",
    "csq_loss",
    "dmssph_loss",
    "dpsh_loss",
    "hadamard_matrix",
    "hash_centers",
    "idhn_loss",
    "isdh_soft_loss",
    "majority_centers",
    "orthohash_loss",
    "triplet_loss",
]

logger = logging.getLogger(__name__)

OBJECTIVE = "MODEL.REGION_DH.OBJECTIVE"

HASH_LOSS_REGISTRY = Registry("HASH_OBJECTIVE")
HASH_LOSS_REGISTRY.__doc__ = """
Builders of objectives for image codes, by the value of ``MODEL.REGION_DH.OBJECTIVE``: called as
``builder(bits=K, num_classes=C, seed=seed)``, they return a module without parameters that maps
activations (B, K) and labels (B, C) to a scalar.
"""


def build_loss(name: str, *, bits: int, num_classes: int, seed: int = 0) -> nn.Module:
    """Build an objective of :data:`HASH_LOSS_REGISTRY`.

    Args:
        name: "cosine" (:func:`.hashing.label_similarity_loss`), "idhn", "isdh_soft", "dmssph",
            "dpsh", "triplet", "csq" or "orthohash", or the name of a builder that was registered
            elsewhere. The former name "isdh" of "idhn" is taken with a warning.
        bits: code length K.
        num_classes: C.
        seed: what is random in an objective follows from it, whatever else draws random numbers.

    Raises:
        ValueError: there is no objective of that name, or the code is too short for its centers.
    """
    if name not in HASH_LOSS_REGISTRY and current_value(OBJECTIVE, name) != name:
        logger.warning(f"{OBJECTIVE} {name} is called {current_value(OBJECTIVE, name)} now")
        name = current_value(OBJECTIVE, name)
    if name not in HASH_LOSS_REGISTRY:
        known = ", ".join(known for known, _ in HASH_LOSS_REGISTRY)
        raise RegionDHError(f"{OBJECTIVE}: {name!r} isn't one of {known}")
    return HASH_LOSS_REGISTRY.get(name)(bits=bits, num_classes=num_classes, seed=seed)


# --------------------------------------------------------------------------------------------------
# Pairs of images


def _in_float32(loss: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    """Hand a loss its tensors in float32, and keep autocast from narrowing what it computes."""

    @wraps(loss)
    def widened(activations: torch.Tensor, *tensors: torch.Tensor, **options) -> torch.Tensor:
        with torch.autocast(activations.device.type, enabled=False):
            return loss(activations.float(), *(x.float() for x in tensors), **options)

    return widened


@_in_float32
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


@_in_float32
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
    """What IDHN and ISDH say of all pairs of a batch, (B, B) each."""

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
        return loss + quantization * _mean((self.codes.abs() - 1.0).abs())


def _instance_similarity(activations: torch.Tensor, labels: torch.Tensor, scale: float) -> _Pairs:
    codes = 2.0 * activations - 1.0
    directions = F.normalize(labels, dim=1)
    product = codes @ codes.t() / codes.shape[1]
    return _Pairs(codes, directions @ directions.t(), product, scale * product)


@_in_float32
def dmssph_loss(
    activations: torch.Tensor,
    labels: torch.Tensor,
    *,
    margin: float = 0.5,
    quantization: float = 0.01,
) -> torch.Tensor:
    """Multi-level similarity: each level of shared labels has a distance of its own.

    **Reconstructed**: of Wu, Lin, Li, Ye and Wang, "Deep Supervised Hashing for Multi-Label and
    Large-Scale Image Retrieval" (DMSSPH), neither code nor formulas were at hand. Known is that it
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
    return loss + quantization * _mean(((2.0 * activations - 1.0).abs() - 1.0).abs())


@_in_float32
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
    return loss + quantization * _mean((codes.abs() - 1.0).square())


@_in_float32
def triplet_loss(
    activations: torch.Tensor, labels: torch.Tensor, *, margin: float = 0.25
) -> torch.Tensor:
    """Triplet ranking loss of IAH: an image that shares more labels is nearer, by a margin.

    Lai, Yan, Shu, Wei and Yan, "Instance-Aware Hashing for Multi-Label Image Retrieval" (IAH). The
    form is that paper's, ``max(0, margin + |a_i - a_j|^2 - |a_i - a_k|^2)`` where image i shares
    more labels with j than with k. **Reconstructed**: its margin and how it draws triplets weren't
    at hand. Here every triplet of the batch counts, and distances are fractions of the bits, so
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
    return _mean((margin + distance[:, :, None] - distance[:, None])[ordered].relu())


def _pair_mean(values: torch.Tensor) -> torch.Tensor:
    """The mean of a (B, B) table without its diagonal."""
    different = ~torch.eye(len(values), dtype=torch.bool, device=values.device)
    return _mean(values[different])


def _mean(values: torch.Tensor) -> torch.Tensor:
    """The mean, or 0 with its graph where there is no value."""
    return values.sum() / max(values.numel(), 1)


# --------------------------------------------------------------------------------------------------
# A center per class


def hadamard_matrix(order: int) -> torch.Tensor:
    """A Hadamard matrix: float32 (order, order) of +-1 with orthogonal rows.

    By Paley's first construction where order - 1 is a prime, else by Sylvester's doubling of the
    matrix of half the order: the powers of two, and among others 12, 20, 24, 40, 48, 72, 80 and 96.

    Raises:
        ValueError: the two constructions don't reach the order.
    """
    if not _has_hadamard(order):
        raise RegionDHError(f"no Hadamard matrix of order {order} by Paley's and Sylvester's ways")
    if order == 1:
        return torch.ones(1, 1)
    if _is_prime(order - 1) and order % 4 == 0:
        return _paley(order - 1)
    half = hadamard_matrix(order // 2)
    return torch.cat([torch.cat([half, half], dim=1), torch.cat([half, -half], dim=1)])


def _has_hadamard(order: int) -> bool:
    if order in (1, 2):
        return True
    return order > 0 and order % 4 == 0 and (_is_prime(order - 1) or _has_hadamard(order // 2))


def _is_prime(number: int) -> bool:
    return number > 1 and all(number % d for d in range(2, int(number**0.5) + 1))


def _paley(prime: int) -> torch.Tensor:
    """The Hadamard matrix of order prime + 1; the prime is 3 modulo 4."""
    squares = {x * x % prime for x in range(1, prime)}
    character = torch.tensor([0.0] + [1.0 if x in squares else -1.0 for x in range(1, prime)])
    x = torch.arange(prime)
    matrix = torch.eye(prime + 1)
    matrix[0, 1:] = 1.0
    matrix[1:, 0] = -1.0
    matrix[1:, 1:] += character[(x - x[:, None]) % prime]
    return matrix


def hash_centers(num_classes: int, bits: int, *, seed: int = 0) -> torch.Tensor:
    """A code per class, far from those of all others: rows of a Hadamard matrix, as in CSQ.

    Any two differ in half of the bits where there is a matrix of order K and C is at most K; up
    to 2K classes the negatives of rows follow. For other K and C the columns of a larger matrix
    are drawn. CSQ takes the first rows as they are, where one code and one bit are constant; here
    the order and the signs of rows and of columns are random, which keeps the distances.

    Args:
        num_classes: C.
        bits: K.
        seed: seed of the choice.

    Returns:
        float32 (C, K) of +-1, rows distinct.

    Raises:
        ValueError: two classes have the same center.
    """
    generator = torch.Generator().manual_seed(seed)
    order = max(bits, (num_classes + 1) // 2)
    while not _has_hadamard(order):
        order += 1
    rows = torch.randperm(order, generator=generator)
    columns = torch.randperm(order, generator=generator)[:bits]
    signs = _random_signs(order, generator)[:, None] * _random_signs(bits, generator)
    basis = hadamard_matrix(order)[rows[:, None], columns] * signs
    centers = torch.cat([basis, -basis])[:num_classes]
    if len(centers.unique(dim=0)) < num_classes:
        raise RegionDHError(
            f"{bits} bits with seed {seed} give two of {num_classes} classes the same hash center; "
            "raise MODEL.REGION_DH.BITS"
        )
    return centers


def _random_signs(number: int, generator: torch.Generator) -> torch.Tensor:
    return 2.0 * torch.randint(2, (number,), generator=generator) - 1.0


def majority_centers(
    labels: torch.Tensor, centers: torch.Tensor, tie_code: torch.Tensor
) -> torch.Tensor:
    """The center of each image: bit by bit what most centers of its classes have.

    Args:
        labels: float (B, C) in {0, 1}.
        centers: (C, K) of +-1.
        tie_code: (K,) of +-1, the bits where there is no majority.

    Returns:
        (B, K) of +-1.
    """
    votes = labels @ centers
    return torch.where(votes == 0, tie_code, votes.sign())


@_in_float32
def csq_loss(
    activations: torch.Tensor,
    labels: torch.Tensor,
    centers: torch.Tensor,
    tie_code: torch.Tensor,
    *,
    quantization: float = 0.05,
) -> torch.Tensor:
    """Central similarity: binary cross entropy of the bits with those of the image's center.

    Yuan et al., "Central Similarity Quantization for Efficient Image and Video Retrieval" (CSQ):
    the two terms of the paper, with the public code's quantization and its weight. That code adds a
    pairwise term, which the paper hasn't and which is left out.

    Args:
        activations: (B, K) in (0, 1).
        labels: (B, C) in {0, 1}. An image without labels adds nothing.
        centers, tie_code: see :func:`majority_centers`.
        quantization: weight of the mean squared distance of ``|u|`` from 1.

    Returns:
        A scalar, the mean over bits and labeled images.
    """
    labeled = labels.any(dim=1)
    targets = (majority_centers(labels[labeled], centers, tie_code) + 1.0) / 2.0
    # The gradient of the logarithm is bounded, so that it stays finite in half precision.
    probabilities = activations[labeled].clamp(1e-6, 1.0 - 1e-6)
    cross_entropy = F.binary_cross_entropy(probabilities, targets, reduction="none")
    codes = 2.0 * activations[labeled] - 1.0
    return _mean(cross_entropy) + quantization * _mean((codes.abs() - 1.0).square())


@_in_float32
def orthohash_loss(
    activations: torch.Tensor,
    labels: torch.Tensor,
    centers: torch.Tensor,
    *,
    scale: float = 8.0,
    margin: float = 0.2,
) -> torch.Tensor:
    """Softmax over the cosines of a code with the classes' codewords, less a margin for its own.

    Hoe et al., "One Loss for All: Deep Hashing with a Single Cosine Similarity based Learning
    Objective" (OrthoHash), with the defaults of its public code. The target of an image is shared
    equally by its labels. **Not the whole method**: the source standardizes its codes by batch norm
    before they are rounded, which balances each bit over the batch. That layer is missing here;
    ``loss_hash_image`` balances the bits within each code only.

    Args:
        activations: (B, K) in (0, 1).
        labels: (B, C) in {0, 1}. An image without labels adds nothing.
        centers: (C, K) of +-1, ideally orthogonal.
        scale: factor on the cosines.
        margin: what a present class's cosine must exceed the others' by.

    Returns:
        A scalar, the mean over the labeled images.
    """
    labeled = labels.any(dim=1)
    labels = labels[labeled]
    # A code of zeros has no direction; the bound keeps its gradient finite in half precision.
    directions = F.normalize(2.0 * activations[labeled] - 1.0, dim=1, eps=1e-3)
    cosines = directions @ F.normalize(centers, dim=1).t()
    log_probabilities = F.log_softmax(scale * (cosines - margin * labels), dim=1)
    targets = labels / labels.sum(dim=1, keepdim=True)
    return _mean(-(targets * log_probabilities).sum(dim=1))


# --------------------------------------------------------------------------------------------------
# Modules


class PairwiseLoss(nn.Module):
    """An objective that needs nothing but activations and labels."""

    def __init__(self, loss: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]):
        super().__init__()
        self.loss = loss

    def forward(self, activations: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return self.loss(activations, labels)


class CSQLoss(nn.Module):
    """:func:`csq_loss` with centers as buffers, so that a checkpoint holds them."""

    def __init__(self, centers: torch.Tensor, tie_code: torch.Tensor):
        super().__init__()
        self.register_buffer("centers", centers)
        self.register_buffer("tie_code", tie_code)

    def forward(self, activations: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return csq_loss(activations, labels, self.centers, self.tie_code)


class OrthoHashLoss(nn.Module):
    """:func:`orthohash_loss` with codewords as a buffer, so that a checkpoint holds them."""

    def __init__(self, centers: torch.Tensor):
        super().__init__()
        self.register_buffer("centers", centers)

    def forward(self, activations: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return orthohash_loss(activations, labels, self.centers)


@HASH_LOSS_REGISTRY.register()
def cosine(**_) -> nn.Module:
    return PairwiseLoss(label_similarity_loss)


@HASH_LOSS_REGISTRY.register()
def idhn(**_) -> nn.Module:
    return PairwiseLoss(idhn_loss)


@HASH_LOSS_REGISTRY.register()
def isdh_soft(**_) -> nn.Module:
    return PairwiseLoss(isdh_soft_loss)


@HASH_LOSS_REGISTRY.register()
def dmssph(**_) -> nn.Module:
    return PairwiseLoss(dmssph_loss)


@HASH_LOSS_REGISTRY.register()
def dpsh(**_) -> nn.Module:
    return PairwiseLoss(dpsh_loss)


@HASH_LOSS_REGISTRY.register()
def triplet(**_) -> nn.Module:
    return PairwiseLoss(triplet_loss)


@HASH_LOSS_REGISTRY.register()
def csq(*, bits: int, num_classes: int, seed: int) -> nn.Module:
    tie_code = _random_signs(bits, torch.Generator().manual_seed(seed))
    return CSQLoss(hash_centers(num_classes, bits, seed=seed), tie_code)


@HASH_LOSS_REGISTRY.register()
def orthohash(*, bits: int, num_classes: int, seed: int) -> nn.Module:
    return OrthoHashLoss(hash_centers(num_classes, bits, seed=seed))
