"""A latent layer for the retrieval of objects, apart from H1 (``MODEL.REGION_DH.OBJECT_CODE``).

Beyond the paper. H1 feeds the fusion, so the loss of the image shapes it. This layer reads the same
region features, is trained on regions alone, and hands nothing back: neither to the fusion nor, by
its gradient, to the features. Where it is on, its codes are those of detections and boxes.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from .hashing import LatentLayer, standardize

__all__ = ["ObjectHashHead", "class_similarity_loss", "sample_by_class"]

ROWS = 512
"""The most regions of a batch that the layer trains on."""


def class_similarity_loss(
    activations: torch.Tensor, classes: torch.Tensor, background: int
) -> torch.Tensor:
    """Mean squared difference between the similarities of codes and those of classes.

    As :func:`.hashing.label_similarity_loss`, for regions: the inner product of two codes in +-1,
    divided by K, is drawn to 1 where both are of one class and to 0 where they aren't. Two regions
    of background are no pair, since they have nothing in common.

    Args:
        activations: (R, K) in (0, 1).
        classes: int64 (R,).
        background: the number of the background among the classes.

    Returns:
        A scalar, the mean over all pairs of different regions; 0 where there is none.
    """
    codes = 2.0 * activations.float() - 1.0
    with torch.autocast(codes.device.type, enabled=False):
        similarity = codes @ codes.t() / codes.shape[1]
    same = classes[:, None] == classes
    empty = classes == background
    pairs = ~(empty[:, None] & empty)
    pairs.fill_diagonal_(False)
    difference = (similarity - same.float())[pairs]
    return difference.square().sum() / max(1, len(difference))


def sample_by_class(classes: torch.Tensor, count: int) -> torch.Tensor:
    """A random choice of rows, without repetition, in which rare classes have a larger share.

    A row is drawn in proportion to 1 / sqrt(n) where n rows are of its class.

    Args:
        classes: int64 (R,), at least 0.
        count: how many; all of them if there are no more.

    Returns:
        int64 (min(count, R),).
    """
    if len(classes) <= count:
        return torch.arange(len(classes), device=classes.device)
    weights = classes.bincount().float().rsqrt()[classes]
    return torch.multinomial(weights, count)


class ObjectHashHead(nn.Module):
    """Standardized region features, a latent layer, and a classifier on it for the training."""

    def __init__(self, input_dim: int, bits: int, num_classes: int, **latent):
        """
        Args:
            input_dim: D, width of the region features.
            bits: code length K1.
            num_classes: C, without the background.
            latent: further arguments of :class:`.hashing.LatentLayer`.
        """
        super().__init__()
        self.num_classes = num_classes
        self.norm = nn.BatchNorm1d(input_dim, affine=False)
        self.latent = LatentLayer(input_dim, bits, **latent)
        self.classifier = nn.Linear(bits, num_classes + 1)
        nn.init.normal_(self.classifier.weight, std=0.01)
        nn.init.zeros_(self.classifier.bias)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Map region features (R, D) to activations (R, K1), float32 in (0, 1)."""
        return self.latent(standardize(self.norm, features.float()))

    def losses(self, features: torch.Tensor, classes: torch.Tensor) -> dict[str, torch.Tensor]:
        """The unweighted losses ``loss_similarity_object``, see :func:`class_similarity_loss`, and
        ``loss_cls_object``, the cross entropy of the classes, of at most :data:`ROWS` regions.

        Args:
            features: (R, D), which get no gradient.
            classes: int64 (R,), C for the background.
        """
        rows = sample_by_class(classes, ROWS)
        classes = classes[rows]
        activations = self(features.detach()[rows])
        with torch.autocast(activations.device.type, enabled=False):
            scores = self.classifier(activations)
            # A sum, since the mean over no region isn't finite.
            entropy = F.cross_entropy(scores, classes, reduction="sum") / max(1, len(rows))
        return {
            "loss_similarity_object": class_similarity_loss(activations, classes, self.num_classes),
            "loss_cls_object": entropy,
        }
