"""Latent hash layers, cross-proposal fusion and the hash losses.

Notation of the Region-DH paper (Fotso Mtope and Wei): N regions of an image, C foreground classes,
K1 and K2 bits; an *activation* is a sigmoid output in (0, 1), a *code* its binarization. Everything
here computes in float32, also under autocast: a threshold at 0.5 and squared deviations from it
don't bear half precision.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from ..utils.errors import RegionDHError

__all__ = [
    "FUSION_NORMS",
    "ImageCodes",
    "ImageHashHead",
    "LatentLayer",
    "binarize",
    "bit_balance_loss",
    "cross_proposal_fusion",
    "forcing_binary_loss",
    "fusion_width",
    "label_similarity_loss",
    "multi_label_logistic_loss",
    "multi_label_softmax_loss",
    "standardize",
    "update_statistics",
]

FUSION_NORMS = ("sum", "mean", "class_mean", "class_presence", "class_summary")


def binarize(activations: torch.Tensor) -> torch.Tensor:
    """Codes of activations (Equations 1 and 2): bit j is set where activation j is at least 0.5.

    The paper's sign function is read as +-1, as in SSDH; with its literal {0, 1} the codes would
    take the values 0.5 and 1.

    Args:
        activations: float tensor of any shape.

    Returns:
        A bool tensor of the same shape.
    """
    return activations >= 0.5


def forcing_binary_loss(activations: torch.Tensor) -> torch.Tensor:
    """E1 (Equation 8): minus the mean squared deviation of the activations from 0.5.

    Mean over the bits and over the rows, as in the author's code; a sum over regions would grow
    with their number.

    Args:
        activations: (N, K) in (0, 1). N may be 0.

    Returns:
        A scalar in [-0.25, 0], least when every activation is 0 or 1.
    """
    if activations.numel() == 0:
        return activations.sum() * 0.0
    return -(activations.float() - 0.5).square().mean()


def bit_balance_loss(activations: torch.Tensor) -> torch.Tensor:
    """E2 (Equation 9): mean over rows of the squared deviation of a row's mean from 0.5.

    It balances the bits within each code, not one bit over the batch.

    Args:
        activations: (N, K) in (0, 1). N may be 0.

    Returns:
        A scalar in [0, 0.25], 0 when half of every row's activation mass is on.
    """
    if activations.numel() == 0:
        return activations.sum() * 0.0
    return (activations.float().mean(dim=1) - 0.5).square().mean()


def multi_label_logistic_loss(scores: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Image classification loss: a logistic loss per class, summed over classes.

    The author's code has a two-way softmax per class, which is the same family of models.

    Args:
        scores: (B, C) logits.
        targets: (B, C) in {0, 1}.

    Returns:
        A scalar, the mean over the images.
    """
    if scores.numel() == 0:
        return scores.sum() * 0.0
    loss = F.binary_cross_entropy_with_logits(scores.float(), targets.float(), reduction="sum")
    return loss / len(scores)


def multi_label_softmax_loss(scores: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """The other reading of the paper: cross entropy between a softmax and the normalized labels.

    Args:
        scores: (B, C) logits.
        targets: (B, C) in {0, 1}. An image without labels adds nothing.

    Returns:
        A scalar, the mean over the images.
    """
    if scores.numel() == 0:
        return scores.sum() * 0.0
    targets = targets.float()
    targets = targets / targets.sum(dim=1, keepdim=True).clamp(min=1.0)
    return -(targets * F.log_softmax(scores.float(), dim=1)).sum() / len(scores)


def label_similarity_loss(activations: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Mean squared difference between the similarities of codes and those of labels.

    Beyond the paper. The target of two images is the cosine of their label vectors, the instance
    similarity of ISDH (Zhang et al.); what meets it is the inner product of their codes in +-1,
    divided by K, which is linear in the Hamming distance. Images that share a part of their labels
    thus come to lie between those that share all and those that share none.

    Args:
        activations: (B, K) in (0, 1).
        labels: (B, C) in {0, 1}. An image without labels is like no other.

    Returns:
        A scalar, the mean over all pairs of different images; 0 where there is none.
    """
    codes = 2.0 * activations.float() - 1.0
    num_images, bits = codes.shape
    if num_images < 2:
        return codes.sum() * 0.0
    directions = F.normalize(labels.float(), dim=1)
    with torch.autocast(codes.device.type, enabled=False):
        difference = codes @ codes.t() / bits - directions @ directions.t()
    different = ~torch.eye(num_images, dtype=torch.bool, device=codes.device)
    return difference[different].square().mean()


def fusion_width(num_classes: int, bits: int, norm: str) -> int:
    """Number of columns that :func:`cross_proposal_fusion` returns."""
    columns = {"class_mean": bits + 1, "class_presence": bits + 1, "class_summary": 2}
    return num_classes * columns.get(norm, bits)


def cross_proposal_fusion(
    probabilities: torch.Tensor,
    activations: torch.Tensor,
    norm: str = "sum",
    counts: torch.Tensor | None = None,
    eps: float = 1e-6,
) -> torch.Tensor:
    """Fuse the regions of an image into one row per class ("cross-proposal fusion").

    With P the (N, C) class probabilities without the background and A the (N, K) activations of H1:
    "sum" gives P^T A (the paper), "mean" P^T A / N (as IAH does), and "class_mean" the mean of the
    activations weighted by each class's probabilities, joined with the class's largest probability,
    which tells absent classes from present ones. "class_presence" also scales the mean's deviation
    from 0.5 by that probability, since the mean of an absent class is only noise. "class_summary"
    replaces the K scaled deviations of a class by the mean of their absolute values.

    Args:
        probabilities: (N, C) float of an image, background column dropped, or (B, N, C) of B
            images. An image with fewer than N regions has zeros in its last rows.
        activations: (N, K) or (B, N, K) float.
        norm: one of :data:`FUSION_NORMS`.
        counts: (B,), how many regions each image has; N without it.
        eps: keeps the weights of the class means finite.

    Returns:
        (C * K,) or (B, C * K) float32, row-major, or C * (K + 1) for the class means, and
        C * 2 for their summary. Zeros for an image without regions.
    """
    probabilities, activations = probabilities.float(), activations.float()
    *images, num_regions, num_classes = probabilities.shape
    if num_regions == 0:
        width = fusion_width(num_classes, activations.shape[-1], norm)
        # The sums keep the graph, so that images without regions still reach every parameter.
        zero = 0.0 * (probabilities.sum() + activations.sum())
        return activations.new_zeros(*images, width) + zero
    with torch.autocast(activations.device.type, enabled=False):
        fused = probabilities.transpose(-2, -1) @ activations
    if norm == "mean":
        number = num_regions if counts is None else counts.clamp(min=1)[:, None, None]
        fused = fused / number
    elif norm in ("class_mean", "class_presence", "class_summary"):
        presence = probabilities.amax(dim=-2)[..., None]
        fused = fused / (probabilities.sum(dim=-2)[..., None] + eps)
        if norm != "class_mean":
            fused = (fused - 0.5) * presence
        if norm == "class_summary":
            fused = fused.abs().mean(dim=-1, keepdim=True)
        fused = torch.cat([fused, presence], dim=-1)
    elif norm != "sum":
        raise RegionDHError(f"fusion norm {norm!r}: expected one of {', '.join(FUSION_NORMS)}")
    return fused.flatten(-2)


class LatentLayer(nn.Module):
    """A latent hash layer: linear, then sigmoid (SSDH's; Region-DH's H1 and H2)."""

    def __init__(
        self, input_dim: int, bits: int, *, init_std: float = 0.005, init_bias: float = 0.0
    ):
        """
        Args:
            input_dim: width of the input.
            bits: code length K.
            init_std: standard deviation of the initial weights (the paper: 0.005).
            init_bias: initial bias. 0 starts each bit undecided; the published SSDH networks use 1.
        """
        super().__init__()
        self.linear = nn.Linear(input_dim, bits)
        nn.init.normal_(self.linear.weight, std=init_std)
        nn.init.constant_(self.linear.bias, init_bias)

    @property
    def bits(self) -> int:
        return self.linear.out_features

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (N, D) features to (N, K) float32 activations in (0, 1)."""
        with torch.autocast(x.device.type, enabled=False):
            return self.linear(x.float()).sigmoid()


class ImageCodes(NamedTuple):
    """What H2 says of a batch of B images."""

    activations: torch.Tensor  # (B, K2) float32 in (0, 1); binarize for the codes
    scores: torch.Tensor  # (B, C) float32 logits


class ImageHashHead(nn.Module):
    """H2 and the multi-label classifier on top of it."""

    def __init__(
        self,
        input_dim: int,
        bits: int,
        num_classes: int,
        *,
        normalize: bool = False,
        dropout: float = 0.0,
        dropout_dim: int = 0,
        **latent,
    ):
        """
        Args:
            input_dim: width of the fused image representation.
            bits: code length K2.
            num_classes: C.
            normalize: standardize each input dimension by running statistics first. The fused
                values differ in scale by orders of magnitude, between classes and between the
                fusion matrix and a whole-image feature, and a plain gradient step hardly moves H2.
            dropout, dropout_dim: in training, the share of the first ``dropout_dim`` input
                dimensions that is dropped, after ``normalize``.
            latent: further arguments of :class:`LatentLayer`.
        """
        super().__init__()
        self.norm = nn.BatchNorm1d(input_dim, affine=False) if normalize else None
        self.latent = LatentLayer(input_dim, bits, **latent)
        self.dropout, self.dropout_dim = dropout, dropout_dim
        self.classifier = nn.Linear(bits, num_classes)
        nn.init.normal_(self.classifier.weight, std=0.01)
        nn.init.zeros_(self.classifier.bias)

    def forward(self, x: torch.Tensor) -> ImageCodes:
        """Map (B, input_dim) to :class:`ImageCodes`."""
        if self.norm is not None:
            x = standardize(self.norm, x.float())
        if self.training and self.dropout:
            first, others = x.tensor_split([self.dropout_dim], dim=1)
            x = torch.cat([F.dropout(first, self.dropout), others], dim=1)
        activations = self.latent(x)
        with torch.autocast(x.device.type, enabled=False):
            return ImageCodes(activations, self.classifier(activations))


def standardize(norm: nn.BatchNorm1d, x: torch.Tensor) -> torch.Tensor:
    """``x`` (B, D) by the statistics of the batch in training, by the running ones at test.

    One row alone (B = 1) has a mean but no variance. In training it updates the running statistics,
    and is standardized by them, as they are then.
    """
    mean, var, momentum = norm.running_mean, norm.running_var, norm.momentum
    assert mean is not None  # of a layer that tracks statistics
    assert var is not None
    assert momentum is not None
    training = norm.training and len(x) > 0
    if training and len(x) == 1:
        update_statistics(mean, var, x[0].detach(), momentum)
        # Copies: the next row changes the buffers, maybe before this one's gradient.
        mean, var, training = mean.clone(), var.clone(), False
    return F.batch_norm(x, mean, var, training=training, momentum=momentum, eps=norm.eps)


@torch.no_grad()
def update_statistics(
    mean: torch.Tensor, var: torch.Tensor, x: torch.Tensor, momentum: float
) -> None:
    """Let one more sample into exponentially weighted running statistics, in place.

    The mean moves towards the sample by ``momentum`` a, as in batch norm. The variance moves
    towards (1 - a / 2) d^2, d being the sample's deviation from the mean before: of independent
    samples of variance s^2 that mean has the variance a / (2 - a) s^2, so that the expectation of
    d^2 is 2 / (2 - a) s^2, and the running variance is right on average.

    Args:
        mean, var: (D,) float, the running statistics.
        x: (D,) float, the sample.
        momentum: a, in (0, 1].
    """
    deviation = x - mean
    mean.add_(deviation, alpha=momentum)
    var.lerp_((1.0 - momentum / 2.0) * deviation.square(), momentum)
