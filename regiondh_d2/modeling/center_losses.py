"""Objectives that draw the code of an image to the centers of its classes (:mod:`.hash_centers`).

Activations are (B, K) in (0, 1) of any float type, labels (B, C) in {0, 1} of any type; the loss is
a float32 scalar, computed in float32 also under autocast. Codes in +-1 are ``u = 2 a - 1`` for
activations ``a``. An image without labels adds nothing.
"""

import torch
import torch.nn.functional as F
from torch import nn

from .hash_centers import majority_centers
from .loss_parts import in_float32, mean

__all__ = ["CSQLoss", "OrthoHashLoss", "csq_loss", "orthohash_loss"]


@in_float32
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
    pairwise term, which isn't in the paper and is left out here.

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
    return mean(cross_entropy) + quantization * mean((codes.abs() - 1.0).square())


@in_float32
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
    return mean(-(targets * log_probabilities).sum(dim=1))


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
