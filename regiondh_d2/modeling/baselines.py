"""The baselines of the paper: DLBHC and SSDH, which code whole images, and IAH.

The first two read the whole image: backbone -> fully connected layers -> a latent sigmoid layer,
whose activations are the code -> multi-label class scores. **DLBHC** (Lin, Yang, Hsiao and Chen,
"Deep Learning of Binary Hash Codes for Fast Image Retrieval") trains by classification alone,
**SSDH** (Yang, Lin and Chen, "Supervised Learning of Semantics-Preserving Hash via Deep
Convolutional Neural Networks") by the forcing-binary and bit-balance losses, too. The
classification loss is that of Region-DH, one logistic problem a class, as in its author's code.

What they share with Region-DH they take from its config node: ``BITS``, ``LATENT_INIT_*``,
``NORMALIZE_FUSED``, ``IMAGE_LOSS``, ``OBJECTIVE``, ``LOSS_WEIGHTS`` (``BETA[2]``, ``GAMMA_H2``,
``SIMILARITY``), ``IMAGE_GRADIENT_SCALE``, ``CODE_QUEUE``, ``LR_FACTORS`` and ``FEATURE_CACHE``.

**IAH** (Lai, Yan, Shu, Wei and Yan, "Instance-Aware Hashing for Multi-Label Image Retrieval") codes
images by their regions, as Region-DH does, but fuses features of regions instead of codes; it is
the meta-architecture ``RegionDH`` with :class:`IAHROIHeads`, which says what of it is certain.
"""

import torch
from detectron2.config import configurable
from detectron2.modeling import META_ARCH_REGISTRY, ROI_HEADS_REGISTRY
from detectron2.modeling.poolers import ROIPooler
from detectron2.modeling.roi_heads import StandardROIHeads
from detectron2.structures import Instances
from torch import nn

from ..utils.errors import RegionDHError, unknown_value_message
from .box_heads import PooledBoxHead, RegionReader
from .code_queue import CodeQueue
from .gradients import scale_gradient
from .hashing import (
    ImageCodes,
    ImageHashHead,
    binarize,
    cross_proposal_fusion,
)
from .losses import build_loss
from .meta_arch import RegionDH, per_image
from .pairwise_losses import triplet_loss
from .roi_heads import (
    IMAGE_LOSSES,
    RegionDHROIHeads,
    image_code_losses,
    whole_image_box,
)

__all__ = ["IAHROIHeads", "ImageHash", "WholeImageHeads"]


@ROI_HEADS_REGISTRY.register()
class WholeImageHeads(nn.Module):
    """The box head on one region, the whole image, and a latent layer with its classifier.

    Names of parameters are those of :class:`.roi_heads.RegionDHROIHeads`, so that weights of its
    box head fit.
    """

    @configurable
    def __init__(
        self,
        *,
        box_in_features: list[str],
        box_pooler: ROIPooler,
        box_head: PooledBoxHead,
        image_hash: ImageHashHead,
        image_objective: nn.Module,
        image_loss: str,
        num_classes: int,
        image_gradient_scale: float = 1.0,
        code_queue: CodeQueue | None = None,
    ):
        """
        Args:
            box_in_features, box_pooler, box_head: as of Detectron2's ``StandardROIHeads``.
            image_hash: the latent layer and its classifier.
            image_objective: as of :class:`.roi_heads.RegionDHROIHeads`.
            image_loss: a key of ``IMAGE_LOSSES``.
            num_classes: C.
            image_gradient_scale, code_queue: as of :class:`.roi_heads.RegionDHROIHeads`.

        Raises:
            ValueError: there is no such loss.
        """
        super().__init__()
        if image_loss not in IMAGE_LOSSES:
            raise RegionDHError(
                unknown_value_message("MODEL.REGION_DH.IMAGE_LOSS", image_loss, IMAGE_LOSSES)
            )
        self.box_in_features = box_in_features
        self.box_pooler = box_pooler
        self.box_head = box_head
        self.region_reader = RegionReader(box_in_features, box_pooler, box_head)
        self.image_hash = image_hash
        self.image_objective = image_objective
        self.image_loss = IMAGE_LOSSES[image_loss]
        self.num_classes = num_classes
        self.image_gradient_scale = image_gradient_scale
        self.code_queue = code_queue or CodeQueue(0, image_hash.latent.bits, num_classes)

    @classmethod
    def from_config(cls, cfg, input_shape):
        parts = StandardROIHeads._init_box_head(cfg, input_shape)
        head, node = parts["box_head"], cfg.MODEL.REGION_DH
        if not isinstance(head, PooledBoxHead):
            raise RegionDHError(
                "WholeImageHeads needs a box head that pools before its fully connected layers "
                f"(LightBoxHead, Res5BoxHead, VGGBoxHead), not {cfg.MODEL.ROI_BOX_HEAD.NAME}"
            )
        num_classes, bits = cfg.MODEL.ROI_HEADS.NUM_CLASSES, node.BITS_IMAGE or node.BITS
        return {
            "box_in_features": parts["box_in_features"],
            "box_pooler": parts["box_pooler"],
            "box_head": head,
            "image_hash": ImageHashHead(
                head.output_shape.channels,
                bits,
                num_classes,
                normalize=node.NORMALIZE_FUSED,
                init_std=node.LATENT_INIT_STD,
                init_bias=node.LATENT_INIT_BIAS,
            ),
            "image_objective": build_loss(
                node.OBJECTIVE, bits=bits, num_classes=num_classes, seed=max(cfg.SEED, 0)
            ),
            "image_loss": node.IMAGE_LOSS,
            "num_classes": num_classes,
            "image_gradient_scale": node.IMAGE_GRADIENT_SCALE,
            "code_queue": CodeQueue(node.CODE_QUEUE, bits, num_classes),
        }

    def forward(
        self, features: dict[str, torch.Tensor], image_sizes: list[tuple[int, int]]
    ) -> tuple[torch.Tensor, ImageCodes]:
        """
        Args:
            features: what ``region_reader`` reads, such as feature maps by name.
            image_sizes: (height, width) of each image without its padding.

        Returns:
            What the latent layer reads, float32 (B, D), and the codes.
        """
        device = self.image_hash.classifier.weight.device
        boxes = [whole_image_box(size, device) for size in image_sizes]
        _, x = self.region_reader(features, boxes)
        x = scale_gradient(x.float(), self.image_gradient_scale)
        return x, self.image_hash(x)

    def losses(self, codes: ImageCodes, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        """:func:`.roi_heads.image_code_losses`, by labels (B, C) of 0 and 1."""
        return image_code_losses(self, codes, labels)


def image_labels(batched_inputs: list[dict], num_classes: int) -> torch.Tensor:
    """Labels (B, C) of images, float32: the classes of their ``instances``, or, of an image that
    has none in its dict, its ``image_labels``."""
    labels = torch.zeros(len(batched_inputs), num_classes)
    for row, inputs in zip(labels, batched_inputs, strict=True):
        if "instances" in inputs:
            row[inputs["instances"].gt_classes.cpu()] = 1.0
        else:
            row[torch.tensor(inputs["image_labels"], dtype=torch.int64)] = 1.0
    return labels


@META_ARCH_REGISTRY.register()
class ImageHash(RegionDH):
    """A network that codes whole images and finds no objects.

    DLBHC with ``LOSS_WEIGHTS.GAMMA_H2`` [0, 0], SSDH with the weights of Region-DH. Outputs at test
    are those of :class:`RegionDH` without ``instances``, and ``image_feature``, float32 (D,), what
    the latent layer reads: DLBHC's second stage compares it.
    """

    needs_of_heads = ("losses", "WholeImageHeads")
    learns_from_boxes = False

    @classmethod
    def from_config(cls, cfg):
        if cfg.MODEL.REGION_DH.IMAGE_ENCODERS:
            raise RegionDHError(
                "MODEL.REGION_DH.IMAGE_ENCODERS: ImageHash reads none. RegionDH with "
                "MODEL.REGION_DH.FUSION_NUM_ROIS 0 encodes whole images with them"
            )
        return super().from_config(cfg)

    def forward(self, batched_inputs: list[dict]):
        """As :meth:`RegionDH.forward`; the losses are those of the image."""
        if not self.training:
            return self.inference(batched_inputs)
        features, proposals, sizes = self.propose(batched_inputs)
        return self.weigh(self.head_losses(features, proposals, sizes, batched_inputs))

    def head_losses(self, features, proposals, sizes, batched_inputs) -> dict[str, torch.Tensor]:
        _, codes = self.roi_heads(features, sizes)
        labels = image_labels(batched_inputs, self.roi_heads.num_classes).to(self.device)
        return self.roi_heads.losses(codes, labels)

    def weigh(self, losses: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return self.loss_weights.apply_image(losses)

    def inference(self, batched_inputs, detected_instances=None, do_postprocess: bool = True):
        """As :meth:`RegionDH.inference`, without instances.

        Raises:
            RegionDHError: instances are asked for.
        """
        if detected_instances is not None or not do_postprocess:
            raise RegionDHError("ImageHash has no codes of objects; use RegionDH")
        features, proposals, sizes = self.propose(batched_inputs)
        return self.describe(features, proposals, sizes, batched_inputs)

    encode_images = inference

    def describe(self, features, proposals, sizes, batched_inputs) -> list[dict]:
        image_features, codes = self.roi_heads(features, sizes)
        return [
            {**code, "image_feature": feature}
            for code, feature in zip(per_image(codes), image_features, strict=True)
        ]


@ROI_HEADS_REGISTRY.register()
class IAHROIHeads(RegionDHROIHeads):
    """Instance-aware hashing: a code per image, and a code per class that the image holds.

    To be used with ``FUSION_INPUT`` "box_features" and ``FUSION_NORM`` "mean" (the mean over
    regions of class probabilities times features, one group per class, read by the semantic hash
    layer, here H2), ``OBJECTIVE`` "triplet" and no E1 or E2. The *category-aware* codes come from
    the groups, each divided by its mass: H1 reads them, and each detection carries the code of its
    class, so that all detections of a class in an image have one code.

    Certain are the groups per class, the two kinds of codes, and the ranking of images by shared
    labels. Reconstructed are one H1 for all classes, the division by the mass, the triplet loss on
    the category codes (two are alike if they are of one class), and the margin. Deliberately other
    than IAH are the network, the proposals (an RPN instead of GOP), and class probabilities learned
    from boxes instead of image labels.
    """

    @classmethod
    def from_config(cls, cfg, input_shape):
        if cfg.MODEL.REGION_DH.OBJECT_CODE:
            raise RegionDHError(
                "MODEL.REGION_DH.OBJECT_CODE: IAHROIHeads code objects by their class; set it to "
                "False"
            )
        return super().from_config(cfg, input_shape)

    def _image_losses(self, fused, labels, encoded) -> dict[str, torch.Tensor]:
        """The triplet loss on the category codes of the batch joins that on image codes."""
        losses = super()._image_losses(fused, labels, encoded)
        images, classes = labels.nonzero(as_tuple=True)
        activations = torch.stack([self._category_activations(r) for r in fused])[images, classes]
        one_class = torch.nn.functional.one_hot(classes, self.num_classes)
        losses["loss_similarity_image"] += triplet_loss(activations, one_class)
        return losses

    def _detection_codes(self, found: Instances, regions, fused) -> torch.Tensor:
        return binarize(self._category_activations(fused))[found.pred_classes]

    def _category_activations(self, regions) -> torch.Tensor:
        """Activations (C, K1) of H1 on the mean feature of each class in an image."""
        p, x = regions.probabilities, regions.features
        means = cross_proposal_fusion(p, x, "class_mean").view(self.num_classes, -1)[:, :-1]
        return self.instance_hash(means)
