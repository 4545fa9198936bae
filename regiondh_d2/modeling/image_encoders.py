"""Classifiers that read whole photos, beside the detector.

A detector's backbone loses some of what ImageNet taught it, and reads photos at a size that suits
its regions. An *image encoder* is a second network for the image as a whole: a classifier without
its last layer, which reads the photo squashed to a square of a size of its own. It is frozen, or
learns what the image code needs. The mapper and the loader of photos make the squares of the photo
as it was read (``data/squares.py``).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any, Self

import timm
import torch
from detectron2.config import configurable
from timm.layers import freeze_batch_norm_2d
from timm.models import group_parameters
from torch import nn

from ..utils.errors import RegionDHError
from ..utils.shortage import refuse_if_short

__all__ = ["ENCODED", "SQUARES", "ImageEncoder", "ImageEncoders", "encoder_width"]

# In an image's dict: its squares, uint8 (3, S, S), by their side S.
SQUARES = "squares"
# Among the features of a batch, and in the dict of a cached image: what the encoders make of it.
ENCODED = "encoded"


class ImageEncoder(nn.Module):
    """A timm classifier without its last layer: from a square photo to one vector.

    It stays in evaluation mode, and its norms keep their statistics, scales and offsets. The
    network keeps timm's own parameter names below ``model.``.

    Attributes:
        name: of the network in timm.
        size: the side of its squares in pixels.
        width: D, of its vectors.
    """

    _mean: torch.Tensor
    _std: torch.Tensor

    def __init__(
        self,
        name: str,
        size: int,
        *,
        mirrored: bool = False,
        bgr: bool = False,
        learns: bool = False,
        freeze_at: int = 0,
    ):
        """
        Args:
            name: a timm model name.
            size: the side of the squares in pixels.
            mirrored: average the vectors of the photo and of its mirror image.
            bgr: whether the squares' channels are blue, green, red.
            learns: False freezes all of it.
            freeze_at: how many of its groups of layers stay frozen where it learns.

        Raises:
            RegionDHError: timm doesn't know the network, it reads squares of another size only, or
                ``freeze_at`` leaves nothing that learns.
        """
        super().__init__()
        model = _classifier(name)
        config: Any = model.default_cfg
        fixed = config["input_size"][-1] if config.get("fixed_input_size") else size
        if fixed != size:
            raise RegionDHError(
                f"MODEL.REGION_DH.IMAGE_ENCODER_SIZES: {name!r} takes {fixed}, not {size}"
            )
        # As in TimmBackbone: convolutions on a CPU are faster in this order.
        self.model = freeze_batch_norm_2d(model.to(memory_format=torch.channels_last))
        self.name, self.size, self.width = name, size, _width(model)
        self._mirrored, self._bgr = mirrored, bgr
        mean, std = (torch.tensor(config[key]).view(3, 1, 1) * 255.0 for key in ("mean", "std"))
        self.register_buffer("_mean", mean, persistent=False)
        self.register_buffer("_std", std, persistent=False)
        self.requires_grad_(False)
        if learns:
            self._let_learn(freeze_at)
        self.eval()

    def _let_learn(self, freeze_at: int) -> None:
        network: Any = self.model
        groups = group_parameters(network, network.group_matcher(coarse=True))
        learning = [name for group, names in groups.items() if group >= freeze_at for name in names]
        if not learning:
            raise RegionDHError(
                f"MODEL.REGION_DH.IMAGE_ENCODER_FREEZE_AT is {freeze_at}, and {self.name!r} has "
                f"{len(groups)} groups of layers: take a smaller number"
            )
        for name in learning:
            network.get_parameter(name).requires_grad_(True)

    def train(self, mode: bool = True) -> Self:
        """Stays in evaluation mode."""
        return super().train(False)

    def forward(self, squares: torch.Tensor) -> torch.Tensor:
        """Map squares (B, 3, S, S), pixel values 0 to 255, to vectors (B, D) float32."""
        x = (squares.flip(1) if self._bgr else squares).float()
        x = ((x - self._mean) / self._std).contiguous(memory_format=torch.channels_last)
        encoded = self.model(x).float()
        if self._mirrored:
            encoded = (encoded + self.model(x.flip(3)).float()) / 2.0
        return encoded


class ImageEncoders(nn.ModuleList):
    """Image encoders whose vectors are joined."""

    @configurable
    def __init__(self, encoders: Sequence[ImageEncoder]):
        """
        Args:
            encoders: in the order of their vectors.
        """
        super().__init__(encoders)

    @classmethod
    def from_config(cls, cfg):
        node = cfg.MODEL.REGION_DH
        names, sizes = node.IMAGE_ENCODERS, node.IMAGE_ENCODER_SIZES
        if len(names) != len(sizes):
            raise RegionDHError(
                f"MODEL.REGION_DH.IMAGE_ENCODER_SIZES is {list(sizes)}: it takes a size for each "
                f"of MODEL.REGION_DH.IMAGE_ENCODERS, {list(names)}"
            )
        if names and cfg.INPUT.FORMAT not in ("RGB", "BGR"):
            raise RegionDHError(
                f"INPUT.FORMAT is {cfg.INPUT.FORMAT}: MODEL.REGION_DH.IMAGE_ENCODERS take RGB or "
                "BGR"
            )
        options = {
            "mirrored": node.IMAGE_ENCODER_MIRRORED,
            "bgr": cfg.INPUT.FORMAT == "BGR",
            "learns": node.LR_FACTORS.IMAGE_ENCODERS > 0.0,
            "freeze_at": node.IMAGE_ENCODER_FREEZE_AT,
        }
        pairs = zip(names, sizes, strict=True)
        return {"encoders": [ImageEncoder(name, size, **options) for name, size in pairs]}

    def forward(self, batched_inputs: list[dict]) -> torch.Tensor:
        """The joined vectors of images, float32 (B, sum of D).

        Args:
            batched_inputs: a dict an image, with ``squares`` (see :data:`SQUARES`).

        Raises:
            RegionDHError: an image has no square of a size that is needed.
        """
        return torch.cat([encoder(self._batch(encoder, batched_inputs)) for encoder in self], dim=1)

    @staticmethod
    def _batch(encoder: Any, batched_inputs: list[dict]) -> torch.Tensor:
        try:
            squares = [x[SQUARES][encoder.size] for x in batched_inputs]
        except KeyError:
            raise RegionDHError(
                f"an input has no {SQUARES!r} of {encoder.size} pixels, which "
                "MODEL.REGION_DH.IMAGE_ENCODERS read: make inputs with "
                "regiondh_d2.retrieval.images.ImageLoader(cfg) or "
                "regiondh_d2.data.StrictMapper(cfg)"
            ) from None
        return torch.stack(squares).to(encoder._mean.device)


@cache
def encoder_width(name: str) -> int:
    """D, the width of the vectors of an :class:`ImageEncoder`.

    Raises:
        RegionDHError: timm doesn't know the network.
    """
    with torch.device("meta"):
        return _width(_classifier(name))


def _width(model: nn.Module) -> int:
    # Networks with a layer between the pooling and the classifier have another width behind it.
    network: Any = model
    return int(getattr(network, "head_hidden_size", None) or network.num_features)


def _classifier(name: str) -> nn.Module:
    try:
        return timm.create_model(name, num_classes=0)
    except (RuntimeError, TypeError, ValueError) as error:
        refuse_if_short(error)
        raise RegionDHError(
            f"MODEL.REGION_DH.IMAGE_ENCODERS: timm can't build {name!r} ({error}); "
            "`timm.list_models()` lists names"
        ) from error
