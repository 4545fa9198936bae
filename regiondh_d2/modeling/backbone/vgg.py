"""VGG16 without its last pooling layer, at stride 16."""

import torch
from detectron2.modeling import BACKBONE_REGISTRY, Backbone
from fvcore.nn import weight_init
from torch import nn

from ...utils.errors import RegionDHError

__all__ = ["VGG16", "build_vgg16_backbone"]

# Widths of the convolutions in each of the five stages.
STAGES = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))


class VGG16(Backbone):
    """conv1_1 to conv5_3 of VGG16; its only output is ``conv5_3`` (after the ReLU), at stride 16.

    Layers are numbered as in torchvision's ``vgg16().features``, whose pool5 is left out: with it
    the stride would be 32. Pooling rounds down, so that any input of at least 16 x 16 pixels works.
    """

    def __init__(self, *, freeze_at: int = 2):
        """
        Args:
            freeze_at: the number of stages, from the input on, whose weights are fixed; as with
                Detectron2's ResNet, 2 fixes conv1 and conv2.

        Raises:
            ValueError: there are no so many stages.
        """
        super().__init__()
        if not 0 <= freeze_at <= len(STAGES):
            raise RegionDHError(
                f"MODEL.BACKBONE.FREEZE_AT: {freeze_at}, but VGG16 has {len(STAGES)} stages"
            )
        layers: list[nn.Module] = []
        channels = 3
        for number, widths in enumerate(STAGES, start=1):
            if number > 1:
                layers.append(nn.MaxPool2d(kernel_size=2, stride=2))
            for width in widths:
                conv = nn.Conv2d(channels, width, kernel_size=3, padding=1)
                weight_init.c2_msra_fill(conv)
                conv.requires_grad_(number > freeze_at)
                layers += [conv, nn.ReLU(inplace=True)]
                channels = width
        self.features = nn.Sequential(*layers)
        self._out_features = ["conv5_3"]
        self._out_feature_channels = {"conv5_3": channels}
        self._out_feature_strides = {"conv5_3": 2 ** (len(STAGES) - 1)}

    @property
    def size_divisibility(self) -> int:
        # Rounding down would leave up to 15 pixels at the border without a cell of their own, and
        # nothing at all of a smaller image.
        return self._out_feature_strides["conv5_3"]

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        """Map normalized images (N, 3, H, W) to features (N, 512, H // 16, W // 16)."""
        return {"conv5_3": self.features(x)}


@BACKBONE_REGISTRY.register()
def build_vgg16_backbone(cfg, input_shape) -> VGG16:
    """Build VGG16 with the stages fixed that ``MODEL.BACKBONE.FREEZE_AT`` counts."""
    return VGG16(freeze_at=cfg.MODEL.BACKBONE.FREEZE_AT)
