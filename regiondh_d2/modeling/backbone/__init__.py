from .timm import TimmBackbone, build_timm_backbone, build_timm_fpn_backbone
from .vgg import VGG16, build_vgg16_backbone

__all__ = [
    "VGG16",
    "TimmBackbone",
    "build_timm_backbone",
    "build_timm_fpn_backbone",
    "build_vgg16_backbone",
]
