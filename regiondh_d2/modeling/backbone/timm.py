"""Any timm network with ``features_only`` as a Detectron2 backbone, plain or below an FPN."""

import itertools
import math
from collections.abc import Sequence
from typing import Any

import timm
import torch
from detectron2.modeling import BACKBONE_REGISTRY, FPN, Backbone
from detectron2.modeling.backbone.fpn import LastLevelMaxPool
from timm.layers import freeze_batch_norm_2d
from torch import nn

from ...utils.errors import RegionDHError

__all__ = ["TimmBackbone", "TimmFPN", "build_timm_backbone", "build_timm_fpn_backbone"]


class TimmBackbone(Backbone):
    """Stages of a timm network, named ``stage<i>`` after timm's ``out_indices``.

    The network keeps timm's own parameter names below ``model.``, so that a checkpoint of the timm
    classifier loads by prefixing its keys.
    """

    def __init__(
        self,
        name: str,
        *,
        out_indices: Sequence[int] = (4,),
        output_stride: int = 0,
        freeze_at: int = 0,
        freeze_bn: bool = True,
        size_divisibility: int = 32,
    ):
        """
        Args:
            name: a timm model name.
            out_indices: the stages to return, from the input on. What follows the last one
                is left out: it would have parameters without a gradient, which DDP refuses.
            output_stride: 8, 16 or 32 for networks that can be dilated; 0 keeps the network's own.
            freeze_at: the number of stages, from the input on, whose weights and batch norm
                statistics are fixed.
            freeze_bn: turn batch norm into fixed affine layers. timm's own function does it, since
                Detectron2's would drop the activation inside timm's ``BatchNormAct2d``.
            size_divisibility: see :class:`detectron2.modeling.Backbone`.

        Raises:
            ValueError: timm doesn't know the model, or it offers no such features.
        """
        super().__init__()
        if not out_indices or any(a >= b for a, b in itertools.pairwise([-1, *out_indices])):
            raise RegionDHError(
                f"MODEL.TIMM.OUT_INDICES: {list(out_indices)} must name stages in ascending order, "
                f"from 0; timm returns the features of {name!r} in that order alone"
            )
        dilation: dict[str, Any] = {"output_stride": output_stride} if output_stride else {}
        try:
            model = timm.create_model(
                name, features_only=True, out_indices=tuple(out_indices), **dilation
            )
        except (
            RuntimeError,
            TypeError,
            NotImplementedError,
            AssertionError,
            IndexError,
        ) as error:
            raise RegionDHError(
                f"MODEL.TIMM: timm can't build features {list(out_indices)} of {name!r} at output "
                f"stride {output_stride or 'native'} ({error}); `timm.list_models()` lists names"
            ) from error
        _drop_blocks_above(model, out_indices[-1])
        # Convolutions on a CPU, depthwise ones above all, run about 1.4 times faster in this order.
        self.model = model.to(memory_format=torch.channels_last)
        if freeze_bn:
            self.model = freeze_batch_norm_2d(self.model)
        _freeze_stages(self.model, freeze_at)
        self._size_divisibility = size_divisibility
        self._out_features = [f"stage{i}" for i in out_indices]
        # Some transformers (Swin) have their channels last.
        self._channels_last = str(getattr(self.model, "output_fmt", "")).endswith("NHWC")
        info: Any = self.model.feature_info
        self._out_feature_channels = dict(zip(self._out_features, info.channels(), strict=True))
        self._out_feature_strides = dict(zip(self._out_features, info.reduction(), strict=True))

    @property
    def size_divisibility(self) -> int:
        return self._size_divisibility

    @property
    def input_statistics(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Per-channel mean and standard deviation of the input, RGB, in pixel values 0 to 255."""
        config: Any = self.model.default_cfg
        mean, std = (tuple(255.0 * v for v in config[key]) for key in ("mean", "std"))
        return mean, std

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        """Map normalized images (N, 3, H, W) to features (N, C_i, H / stride_i, W / stride_i)."""
        features = self.model(x.contiguous(memory_format=torch.channels_last))
        if self._channels_last:
            features = [f.permute(0, 3, 1, 2) for f in features]
        return dict(zip(self._out_features, features, strict=True))


def _drop_blocks_above(model: nn.Module, stage: int) -> None:
    """Delete the blocks that follow a stage.

    timm does so itself, but for EfficientNet, MobileNetV3 and their kin.
    """
    info: Any = model.feature_info
    count = info.info[stage].get("stage")  # how many blocks the stage needs
    blocks = getattr(model, "blocks", None)
    if count is not None and isinstance(blocks, nn.Sequential):
        del blocks[count:]


def _freeze_stages(model: nn.Module, num_stages: int) -> None:
    """Fix everything up to the end of the given number of stages.

    That is its parameters, and the statistics of its batch norms, which training mode would update.
    """
    if num_stages <= 0:
        return
    info: Any = model.feature_info
    stages = info.info
    if num_stages > len(stages):
        config: Any = model.default_cfg
        raise RegionDHError(
            f"MODEL.BACKBONE.FREEZE_AT: {num_stages}, but {config['architecture']} has "
            f"{len(stages)} stages"
        )
    # A network that timm flattens into a list of modules has underscores where the info has dots;
    # one that it wraps has its modules below "model".
    last = stages[num_stages - 1]["module"]
    targets = (last, last.replace(".", "_"), f"model.{last}")
    inside = False
    for name, module in list(model.named_modules()):  # in the order of the forward pass
        if any(name == t or name.startswith(t + ".") for t in targets):
            inside = True
        elif inside:
            return
        for parameter in module.parameters(recurse=False):
            parameter.requires_grad_(False)
        if isinstance(module, nn.BatchNorm2d | nn.SyncBatchNorm):
            parent, _, leaf = name.rpartition(".")
            model.get_submodule(parent).add_module(leaf, freeze_batch_norm_2d(module))


@BACKBONE_REGISTRY.register()
def build_timm_backbone(cfg, input_shape) -> TimmBackbone:
    """Build the backbone that ``MODEL.TIMM`` and ``MODEL.BACKBONE.FREEZE_AT`` describe.

    Raises:
        ValueError: ``MODEL.PIXEL_MEAN`` or ``MODEL.PIXEL_STD`` isn't the network's own, in which
            case its pretrained weights would see inputs of another distribution.
    """
    backbone = TimmBackbone(
        cfg.MODEL.TIMM.NAME,
        out_indices=cfg.MODEL.TIMM.OUT_INDICES,
        output_stride=cfg.MODEL.TIMM.OUTPUT_STRIDE,
        freeze_at=cfg.MODEL.BACKBONE.FREEZE_AT,
        freeze_bn=cfg.MODEL.TIMM.FREEZE_BN,
        size_divisibility=cfg.MODEL.TIMM.SIZE_DIVISIBILITY,
    )
    step = -1 if cfg.INPUT.FORMAT == "BGR" else 1
    keys = ("PIXEL_MEAN", "PIXEL_STD")
    for key, expected in zip(keys, backbone.input_statistics, strict=True):
        actual = cfg.MODEL[key]
        if any(abs(a - e) > 0.05 for a, e in zip(actual, expected[::step], strict=True)):
            raise RegionDHError(
                f"MODEL.{key}: {list(actual)} isn't what {cfg.MODEL.TIMM.NAME} was trained with; "
                f"set {[round(e, 3) for e in expected[::step]]} (INPUT.FORMAT {cfg.INPUT.FORMAT})"
            )
    return backbone


class TimmFPN(FPN):
    """An FPN over a :class:`TimmBackbone`, whose inputs must suit both."""

    @property
    def size_divisibility(self) -> int:
        return math.lcm(super().size_divisibility, self.bottom_up.size_divisibility or 1)


@BACKBONE_REGISTRY.register()
def build_timm_fpn_backbone(cfg, input_shape) -> TimmFPN:
    """Build an FPN, as ``MODEL.FPN`` describes it, over :func:`build_timm_backbone`.

    Outputs are named ``p<log2 of the stride>``; a last one is the one before, at twice its stride.

    Raises:
        ValueError: ``MODEL.FPN.IN_FEATURES`` aren't the stages of ``MODEL.TIMM.OUT_INDICES``, or
            a stage doesn't have twice the stride of the one before.
    """
    bottom_up = build_timm_backbone(cfg, input_shape)
    shapes = bottom_up.output_shape()
    in_features = list(cfg.MODEL.FPN.IN_FEATURES)
    if in_features != list(shapes):
        raise RegionDHError(
            f"MODEL.FPN.IN_FEATURES: {in_features}, but MODEL.TIMM.OUT_INDICES makes the stages "
            f"{list(shapes)}; name the same in both"
        )
    strides = [shape.stride for shape in shapes.values()]
    if any(b != 2 * a for a, b in itertools.pairwise(strides)):
        raise RegionDHError(
            f"MODEL.TIMM: {in_features} of {cfg.MODEL.TIMM.NAME} have strides {strides}, but an "
            "FPN needs each to be twice the one before; set MODEL.TIMM.OUTPUT_STRIDE to 0, or "
            "choose other MODEL.TIMM.OUT_INDICES"
        )
    top_block = LastLevelMaxPool()
    top_block.in_feature = f"p{strides[-1].bit_length() - 1}"  # "p5" without this
    return TimmFPN(
        bottom_up=bottom_up,
        in_features=in_features,
        out_channels=cfg.MODEL.FPN.OUT_CHANNELS,
        norm=cfg.MODEL.FPN.NORM,
        top_block=top_block,
        fuse_type=cfg.MODEL.FPN.FUSE_TYPE,
    )
