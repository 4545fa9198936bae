"""Box heads: pooled region features in, a feature vector per region out; and who reads regions."""

import math
from abc import ABC, abstractmethod
from collections import OrderedDict

import torch
import torch.nn.functional as F
from detectron2.config import configurable
from detectron2.layers import Conv2d, FrozenBatchNorm2d, ShapeSpec
from detectron2.modeling import ROI_BOX_HEAD_REGISTRY
from detectron2.modeling.backbone.resnet import BottleneckBlock, ResNet
from detectron2.modeling.poolers import ROIPooler
from detectron2.structures import Boxes
from fvcore.nn import weight_init
from torch import nn

from ..utils.errors import RegionDHError
from .cpu_layers import CPUROIAlign, on_cpu

__all__ = ["LightBoxHead", "PooledBoxHead", "RegionReader", "Res5BoxHead", "VGGBoxHead"]


class PooledBoxHead(nn.Module, ABC):
    """A box head in two parts: ``pool`` makes a vector of each region, ``fc`` reads the vectors.

    What ``pool`` returns is what can be cached, and what a whole-image region can hand to the image
    hash layer (``MODEL.REGION_DH.WHOLE_IMAGE: pooled``). All modules but ``fc`` belong to ``pool``.

    Attributes:
        fc: from (R, pooled_dim) to (R, D).
        pooled_dim: width of the vectors.
        output_shape: its ``channels`` is D.
    """

    fc: nn.Module
    pooled_dim: int
    output_shape: ShapeSpec

    @abstractmethod
    def pool(self, x: torch.Tensor) -> torch.Tensor:
        """The part before the fully connected layers: (R, C, H, W) to (R, pooled_dim)."""

    def pool_regions(
        self, maps: list[torch.Tensor], boxes: list[Boxes], pooler: ROIPooler
    ) -> torch.Tensor:
        """The vectors of regions of feature maps, (R, pooled_dim), one image after the other.

        Args:
            maps: (B, C, H, W) of each level.
            boxes: of each of the B images.
            pooler: what makes (R, C, H, W) of them.
        """
        return self.pool(pooler(maps, boxes))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map pooled features (R, C, H, W) to region features (R, D)."""
        return self.fc(self.pool(x))


def joined_with_norm(conv: Conv2d) -> tuple[torch.Tensor, torch.Tensor]:
    """Weight and bias of a convolution and the frozen norm behind it, as one convolution.

    It saves a pass over the outputs, which are much larger than the weights.
    """
    norm = conv.norm
    scale = norm.weight * (norm.running_var + norm.eps).rsqrt()
    return conv.weight * scale[:, None, None, None], norm.bias - norm.running_mean * scale


def average(x: torch.Tensor) -> torch.Tensor:
    """The mean of maps (R, C, H, W) over their cells, (R, C).

    The gradient of :func:`torch.mean` is written out for every cell, and that of a sum isn't.
    """
    return x.sum(dim=(2, 3)) / (x.shape[2] * x.shape[3])


@ROI_BOX_HEAD_REGISTRY.register()
class LightBoxHead(PooledBoxHead):
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
        layers: list[nn.Module] = []
        for _ in range(num_fc):
            linear = nn.Linear(width, fc_dim)
            nn.init.kaiming_uniform_(linear.weight, a=1)
            nn.init.zeros_(linear.bias)
            layers += [linear, nn.ReLU()]
            width = fc_dim
        self.fc = nn.Sequential(*layers)
        self.output_shape = ShapeSpec(channels=width)

    @classmethod
    def from_config(cls, cfg, input_shape):
        return {
            "input_shape": input_shape,
            "conv_dim": cfg.MODEL.REGION_DH.LIGHT_HEAD_CONV_DIM,
            "num_fc": cfg.MODEL.ROI_BOX_HEAD.NUM_FC,
            "fc_dim": cfg.MODEL.ROI_BOX_HEAD.FC_DIM,
        }

    def pool(self, x: torch.Tensor) -> torch.Tensor:
        """See :meth:`PooledBoxHead.pool`."""
        if self.conv_head is not None:
            weight, bias = joined_with_norm(self.conv_head)
            x = F.relu6(F.conv2d(x, weight, bias), inplace=True)
        return average(x)

    def pool_regions(
        self, maps: list[torch.Tensor], boxes: list[Boxes], pooler: ROIPooler
    ) -> torch.Tensor:
        """See :meth:`PooledBoxHead.pool_regions`.

        Regions overlap. A 1x1 convolution of the maps and then ROIAlign, which is linear, are the
        same as ROIAlign and then the convolution, and less work for a CPU where the maps have fewer
        cells than the regions have bins.
        """
        cells = sum(len(m) * m.shape[2] * m.shape[3] for m in maps)
        bins = sum(map(len, boxes)) * math.prod(pooler.output_size)
        if (
            self.conv_head is None
            or cells >= bins
            or not on_cpu(maps[0])
            or not all(isinstance(level, CPUROIAlign) for level in pooler.level_poolers)
        ):
            return super().pool_regions(maps, boxes, pooler)
        weight, bias = joined_with_norm(self.conv_head)
        x = pooler([F.conv2d(m, weight) for m in maps], boxes)
        return average(F.relu6(x.add_(bias[:, None, None]), inplace=True))


@ROI_BOX_HEAD_REGISTRY.register()
class VGGBoxHead(PooledBoxHead):
    """fc6 and fc7 of VGG16, each with ReLU and dropout; ``pool`` only flattens.

    With 512 channels, a pooler of 7 x 7 and a width of 4096, ImageNet weights fit.
    """

    @configurable
    def __init__(self, input_shape: ShapeSpec, *, fc_dim: int = 4096, dropout: float = 0.5):
        """
        Args:
            input_shape: shape of the pooled features, with height and width.
            fc_dim: width of both layers.
            dropout: probability of dropping an activation in training.
        """
        super().__init__()
        self.pooled_dim = input_shape.channels * input_shape.height * input_shape.width
        self.fc = nn.Sequential(
            OrderedDict(
                fc6=nn.Linear(self.pooled_dim, fc_dim),
                relu6=nn.ReLU(inplace=True),
                drop6=nn.Dropout(dropout),
                fc7=nn.Linear(fc_dim, fc_dim),
                relu7=nn.ReLU(inplace=True),
                drop7=nn.Dropout(dropout),
            )
        )
        for layer in (self.fc.fc6, self.fc.fc7):
            weight_init.c2_xavier_fill(layer)
        self.output_shape = ShapeSpec(channels=fc_dim)

    @classmethod
    def from_config(cls, cfg, input_shape):
        return {"input_shape": input_shape, "fc_dim": cfg.MODEL.ROI_BOX_HEAD.FC_DIM}

    def pool(self, x: torch.Tensor) -> torch.Tensor:
        """See :meth:`PooledBoxHead.pool`."""
        return x.flatten(1)


@ROI_BOX_HEAD_REGISTRY.register()
class Res5BoxHead(PooledBoxHead):
    """The last stage of a ResNet or ResNeXt and average pooling; ``fc`` is the identity.

    With it a C4 network, whose backbone ends with res4, has the same ROI heads as any other. The
    stage halves a pooler's resolution (14: 7 x 7), and its weights are named ``res5``.
    """

    @configurable
    def __init__(
        self,
        input_shape: ShapeSpec,
        *,
        num_groups: int = 1,
        width_per_group: int = 64,
        norm: str = "FrozenBN",
        stride_in_1x1: bool = True,
    ):
        """
        Args:
            input_shape: shape of the pooled features of res4.
            num_groups, width_per_group: groups of the 3x3 convolutions, and the width of one of
                them in res2; 1 and 64 for a ResNet, 32 and 8 for ResNeXt-32x8d.
            norm: see :func:`detectron2.layers.get_norm`.
            stride_in_1x1: which convolution of the first block has the stride, the first 1x1
                (MSRA's networks) or the 3x3 (torchvision's, and every ResNeXt).
        """
        super().__init__()
        self.pooled_dim = 2 * input_shape.channels
        blocks = ResNet.make_stage(
            BottleneckBlock,
            num_blocks=3,  # of res5 in every ResNet with bottlenecks
            stride_per_block=[2, 1, 1],
            in_channels=input_shape.channels,
            bottleneck_channels=8 * num_groups * width_per_group,  # eight times res2's
            out_channels=self.pooled_dim,
            num_groups=num_groups,
            norm=norm,
            stride_in_1x1=stride_in_1x1,
        )
        self.res5 = nn.Sequential(*blocks)
        self.fc = nn.Identity()
        self.output_shape = ShapeSpec(channels=self.pooled_dim)

    @classmethod
    def from_config(cls, cfg, input_shape):
        node = cfg.MODEL.RESNETS
        if node.DEPTH < 50:
            raise RegionDHError(
                f"Res5BoxHead has bottleneck blocks, which a ResNet of MODEL.RESNETS.DEPTH "
                f"{node.DEPTH} has not; take 50, 101 or 152, or another MODEL.ROI_BOX_HEAD.NAME"
            )
        return {
            "input_shape": input_shape,
            "num_groups": node.NUM_GROUPS,
            "width_per_group": node.WIDTH_PER_GROUP,
            "norm": node.NORM,
            "stride_in_1x1": node.STRIDE_IN_1X1,
        }

    def pool(self, x: torch.Tensor) -> torch.Tensor:
        """See :meth:`PooledBoxHead.pool`."""
        return self.res5(x).mean(dim=(2, 3))


class RegionReader:
    """Reads regions of feature maps: pooling, then the box head.

    Where the features of regions are known already, another reader takes its place; see
    :mod:`.cached`.
    """

    def __init__(self, in_features: list[str], pooler: nn.Module, head: nn.Module):
        """
        Args:
            in_features: names of the feature maps to pool from.
            pooler: from feature maps and boxes to (R, C, H, W), Detectron2's ``ROIPooler``.
            head: from (R, C, H, W) to region features.
        """
        self._in_features = in_features
        self._pooler = pooler
        self._head = head

    def __call__(
        self, features: dict[str, torch.Tensor], boxes: list[Boxes]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """
        Args:
            features: feature maps of B images by name.
            boxes: regions of each image, in pixels of the padded images.

        Returns:
            Of all R regions, one image after the other: what the fully connected layers of a
            :class:`PooledBoxHead` read, (R, P) (of another head what it reads itself), and the
            region features, (R, D).
        """
        maps = [features[name] for name in self._in_features]
        if isinstance(self._head, PooledBoxHead):
            pooled = self._head.pool_regions(maps, boxes, self._pooler)
            return pooled, self._head.fc(pooled)
        pooled = self._pooler(maps, boxes)
        return pooled, self._head(pooled).flatten(1)
