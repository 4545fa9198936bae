"""Box heads: pooled region features in, a feature vector per region out."""

import torch
import torch.nn.functional as F
from detectron2.config import configurable
from detectron2.layers import Conv2d, FrozenBatchNorm2d, ShapeSpec
from detectron2.modeling import ROI_BOX_HEAD_REGISTRY
from torch import nn

__all__ = ["LightBoxHead"]


@ROI_BOX_HEAD_REGISTRY.register()
class LightBoxHead(nn.Module):
    """A box head with few parameters: 1x1 convolution, average pooling, fully connected layers.

    The convolution has the shape of the last one of EfficientNet and MobileNet classifiers
    (``conv_head``), so that its pretrained weights fit; with it, the average over a region that
    covers the whole image is the classifier's own image feature.
    """

    @configurable
    def __init__(self, input_shape: ShapeSpec, *, conv_dim: int, num_fc: int, fc_dim: int):
        """
        Args:
            input_shape: shape of the pooled features.
            conv_dim: width of the 1x1 convolution, 0 for none.
            num_fc: number of fully connected layers.
            fc_dim: their width.
        """
        super().__init__()
        width = input_shape.channels
        self.conv_head = None
        if conv_dim:
            self.conv_head = Conv2d(
                width,
                conv_dim,
                kernel_size=1,
                bias=False,
                norm=FrozenBatchNorm2d(conv_dim, eps=1e-3),  # timm's epsilon for these networks
                activation=F.relu6,
            )
            nn.init.kaiming_normal_(self.conv_head.weight, mode="fan_out", nonlinearity="relu")
            width = conv_dim
        self.pooled_dim = width
        layers = []
        for _ in range(num_fc):
            layers += [nn.Linear(width, fc_dim), nn.ReLU()]
            nn.init.kaiming_uniform_(layers[-2].weight, a=1)
            nn.init.zeros_(layers[-2].bias)
            width = fc_dim
        self.fc = nn.Sequential(*layers)
        self._output_dim = width

    @classmethod
    def from_config(cls, cfg, input_shape):
        return {
            "input_shape": input_shape,
            "conv_dim": cfg.MODEL.TIMM.HEAD_CONV_DIM,
            "num_fc": cfg.MODEL.ROI_BOX_HEAD.NUM_FC,
            "fc_dim": cfg.MODEL.ROI_BOX_HEAD.FC_DIM,
        }

    def pool(self, x: torch.Tensor) -> torch.Tensor:
        """The part before the fully connected layers: (R, C, H, W) to (R, pooled_dim)."""
        if self.conv_head is not None:
            x = self.conv_head(x)
        return x.mean(dim=(2, 3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map pooled features (R, C, H, W) to region features (R, D)."""
        return self.fc(self.pool(x))

    @property
    def output_shape(self) -> ShapeSpec:
        return ShapeSpec(channels=self._output_dim)
