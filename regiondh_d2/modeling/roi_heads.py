"""ROI heads of Region-DH: detection, a code per region (H1), fusion, and a code per image (H2)."""

import torch
from detectron2.config import configurable
from detectron2.modeling import ROI_HEADS_REGISTRY
from detectron2.modeling.roi_heads import StandardROIHeads
from detectron2.structures import Boxes, Instances
from torch import nn
from torch.nn.utils.rnn import pad_sequence

from ..utils.errors import RegionDHError, unknown_value_message
from .box_heads import PooledBoxHead, RegionReader
from .code_queue import CodeQueue
from .gradients import scale_gradient
from .hashing import (
    FUSION_NORMS,
    ImageCodes,
    ImageHashHead,
    LatentLayer,
    binarize,
    bit_balance_loss,
    cross_proposal_fusion,
    forcing_binary_loss,
    fusion_width,
    multi_label_logistic_loss,
    multi_label_softmax_loss,
)
from .image_encoders import ENCODED, encoder_width
from .indexed_boxes import join_regions, number_regions
from .losses import build_loss
from .object_hash import ObjectHashHead
from .region_outputs import RegionDHOutputLayers, RegionOutputs

__all__ = ["RegionDHROIHeads", "image_code_losses"]

FUSION_ROIS = ("topk", "sampled")
WHOLE_IMAGE = ("none", "region", "row", "feature", "pooled")
# What of the whole image stands beside the fusion, as the name in RegionOutputs.
BESIDE = {"row": "activations", "feature": "features", "pooled": "pooled"}
FUSION_INPUTS = ("h1", "box_features")
# The losses of the heads without an OBJECT_CODE.
LOSSES = (
    *("loss_cls", "loss_box_reg", "loss_hash_instance_binary", "loss_hash_instance_balance"),
    *("loss_hash_image_binary", "loss_hash_image_balance", "loss_cls_image"),
    "loss_similarity_image",
)
IMAGE_LOSSES = {"logistic": multi_label_logistic_loss, "softmax": multi_label_softmax_loss}


@ROI_HEADS_REGISTRY.register()
class RegionDHROIHeads(StandardROIHeads):
    """Standard box heads plus the latent layers H1 and H2 and the fusion between them.

    The box head runs once per batch, on the rows that detection needs and those that the fusion
    needs.
    """

    @configurable
    def __init__(
        self,
        *,
        instance_hash: LatentLayer,
        image_hash: ImageHashHead,
        image_objective: nn.Module,
        fusion_rois: str = "topk",
        fusion_num_rois: int = 100,
        fusion_input: str = "h1",
        fusion_norm: str = "sum",
        fusion_scale: float = 1.0,
        whole_image: str = "none",
        fusion_gradient: bool = True,
        image_encoders: bool = False,
        image_loss: str = "logistic",
        image_gradient_scale: float = 1.0,
        code_queue: CodeQueue | None = None,
        object_hash: ObjectHashHead | None = None,
        object_code_alone: bool = False,
        **kwargs,
    ):
        """
        Args:
            instance_hash: H1, from region features to K1 activations.
            image_hash: H2 and its classifier.
            image_objective: a loss of image activations (B, K2) and labels (B, C); see
                :func:`.losses.build_loss`.
            fusion_rois, fusion_num_rois, fusion_input, fusion_norm, fusion_scale, whole_image,
                fusion_gradient, image_loss: see the keys of the same names in
                :mod:`regiondh_d2.config`.
            image_encoders: whether H2 reads what image encoders make of the image, too: the
                features ``encoded``, (B, D).
            image_gradient_scale: as the key of the same name.
            code_queue: what gives ``image_objective`` codes of earlier batches; None for none.
            object_hash: what codes detections and boxes in place of H1, if anything.
            object_code_alone: whether training computes the losses of ``object_hash`` alone,
                because nothing else is trained; the others are 0.
            kwargs: see :class:`detectron2.modeling.roi_heads.StandardROIHeads`.

        Raises:
            ValueError: an option has a value that isn't known.
        """
        super().__init__(**kwargs)
        for key, value, known in (
            ("FUSION_ROIS", fusion_rois, FUSION_ROIS),
            ("FUSION_INPUT", fusion_input, FUSION_INPUTS),
            ("FUSION_NORM", fusion_norm, FUSION_NORMS),
            ("WHOLE_IMAGE", whole_image, WHOLE_IMAGE),
            ("IMAGE_LOSS", image_loss, tuple(IMAGE_LOSSES)),
        ):
            if value not in known:
                raise RegionDHError(unknown_value_message(f"MODEL.REGION_DH.{key}", value, known))
        if fusion_num_rois < 0:
            raise RegionDHError(f"MODEL.REGION_DH.FUSION_NUM_ROIS: {fusion_num_rois} is below 0")
        self.region_reader = RegionReader(self.box_in_features, self.box_pooler, self.box_head)
        self.instance_hash = instance_hash
        self.image_hash = image_hash
        self.image_objective = image_objective
        self.fusion_rois = fusion_rois
        self.fusion_num_rois = fusion_num_rois
        self.fusion_input = fusion_input
        self.fusion_norm = fusion_norm
        self.fusion_scale = fusion_scale
        self.whole_image = whole_image
        self.fusion_gradient = fusion_gradient
        self.image_encoders = image_encoders
        self.image_loss = IMAGE_LOSSES[image_loss]
        self.image_gradient_scale = image_gradient_scale
        self.code_queue = code_queue or CodeQueue(0, image_hash.latent.bits, self.num_classes)
        self.object_hash = object_hash
        self.object_code_alone = object_code_alone

    @classmethod
    def from_config(cls, cfg, input_shape):
        _refuse_other_heads(cfg)
        ret = super().from_config(cfg, input_shape)
        node = cfg.MODEL.REGION_DH
        shape = ret["box_head"].output_shape
        features = shape.channels * (shape.height or 1) * (shape.width or 1)
        bits_instance = node.BITS_INSTANCE or node.BITS
        bits_image = node.BITS_IMAGE or node.BITS
        num_classes = cfg.MODEL.ROI_HEADS.NUM_CLASSES
        latent = {"init_std": node.LATENT_INIT_STD, "init_bias": node.LATENT_INIT_BIAS}
        columns = bits_instance if node.FUSION_INPUT == "h1" else features
        fused = fusion_width(num_classes, columns, node.FUSION_NORM)
        two_parts = isinstance(ret["box_head"], PooledBoxHead)
        pooled = ret["box_head"].pooled_dim if two_parts else 0
        if node.WHOLE_IMAGE == "pooled" and not two_parts:
            raise RegionDHError(
                "MODEL.REGION_DH.WHOLE_IMAGE 'pooled' needs a box head that pools before its fully "
                "connected layers (LightBoxHead, Res5BoxHead, VGGBoxHead), not "
                f"{cfg.MODEL.ROI_BOX_HEAD.NAME}"
            )
        beside = {"row": bits_instance, "feature": features, "pooled": pooled}
        whole = beside.get(node.WHOLE_IMAGE, 0) + sum(map(encoder_width, node.IMAGE_ENCODERS))
        trained = [part for part, factor in node.LR_FACTORS.items() if factor]
        return {
            **ret,
            "box_predictor": RegionDHOutputLayers(cfg, shape),
            "instance_hash": LatentLayer(features, bits_instance, **latent),
            "image_hash": ImageHashHead(
                fused + whole,
                bits_image,
                num_classes,
                normalize=node.NORMALIZE_FUSED,
                dropout=node.FUSED_DROPOUT,
                dropout_dim=fused,
                **latent,
            ),
            "image_objective": build_loss(
                node.OBJECTIVE, bits=bits_image, num_classes=num_classes, seed=max(cfg.SEED, 0)
            ),
            "fusion_rois": node.FUSION_ROIS,
            "fusion_num_rois": node.FUSION_NUM_ROIS,
            "fusion_input": node.FUSION_INPUT,
            "fusion_norm": node.FUSION_NORM,
            "fusion_scale": node.FUSION_SCALE,
            "whole_image": node.WHOLE_IMAGE,
            "fusion_gradient": node.FUSION_GRADIENT,
            "image_encoders": bool(node.IMAGE_ENCODERS),
            "image_loss": node.IMAGE_LOSS,
            "image_gradient_scale": node.IMAGE_GRADIENT_SCALE,
            "code_queue": CodeQueue(node.CODE_QUEUE, bits_image, num_classes),
            "object_hash": ObjectHashHead(features, bits_instance, num_classes, **latent)
            if node.OBJECT_CODE
            else None,
            "object_code_alone": node.OBJECT_CODE and trained == ["OBJECT_HASH"],
        }

    def forward(self, images, features, proposals, targets=None):
        """As :class:`detectron2.modeling.roi_heads.ROIHeads`; at test the image codes are dropped.

        Returns:
            In training the sampled proposals and the unweighted losses ``loss_cls``,
            ``loss_box_reg``, ``loss_cls_image``, ``loss_similarity_image`` and, for each of the
            layers ``instance`` and ``image``, ``loss_hash_<layer>_binary`` (E1) and
            ``loss_hash_<layer>_balance`` (E2); with an ``object_hash`` its losses, too. At test the
            detections, with ``pred_codes``, and an empty dict.
        """
        if not self.training:
            instances, _ = self.forward_hash(features, proposals, detect=True)
            return instances, {}
        if hasattr(images, ENCODED):  # by RegionDH
            features = {**features, ENCODED: getattr(images, ENCODED)}
        if targets is None:
            raise RegionDHError("training needs ground truth: the inputs have no 'instances'")
        labels = multi_hot_labels(targets, self.num_classes)
        proposals, targets = number_regions(proposals, targets)
        sampled = self.label_and_sample_proposals(proposals, targets)
        fused = proposals if self.fusion_rois == "topk" else sampled
        return sampled, self._losses(features, sampled, fused, labels)

    def _losses(self, features, sampled, fused, labels) -> dict[str, torch.Tensor]:
        detected = [p.proposal_boxes for p in sampled]
        if self.object_code_alone:
            _, x = self.region_reader(features, detected)
            return dict.fromkeys(LOSSES, x.new_zeros(())) | self._object_losses(x, sampled)
        fused = [self._fusable_boxes(p)[self._fused_index(len(p))] for p in fused]
        boxes, detected_rows, fused_rows = join_regions(detected, fused)
        regions = self._regions(features, boxes)
        detection = regions.take(detected_rows)
        image_branch = self._image_branch(regions.take(fused_rows))
        fused = image_branch.split([len(b) for b in fused])

        deltas = self.box_predictor.bbox_pred(detection.features)
        losses = self.box_predictor.losses((detection.scores, deltas), sampled)
        losses["loss_hash_instance_binary"] = forcing_binary_loss(detection.activations)
        losses["loss_hash_instance_balance"] = bit_balance_loss(detection.activations)
        losses |= self._object_losses(detection.features, sampled)
        return losses | self._image_losses(fused, labels, self._encoded(features))

    def _image_branch(self, regions: RegionOutputs) -> RegionOutputs:
        """Regions for the fusion, whose gradient on the way to the box head and the backbone is
        multiplied by ``image_gradient_scale``; on H1 and the classifier it stays."""
        if self.image_gradient_scale == 1.0:
            return regions
        parts = (regions.pooled, regions.features)
        return self._outputs(*(scale_gradient(x, self.image_gradient_scale) for x in parts))

    def _object_losses(self, features, sampled: list[Instances]) -> dict[str, torch.Tensor]:
        if self.object_hash is None:
            return {}
        return self.object_hash.losses(features, torch.cat([p.gt_classes for p in sampled]))

    def _image_losses(self, fused: list[RegionOutputs], labels, encoded) -> dict[str, torch.Tensor]:
        return image_code_losses(self, self._fuse(fused, encoded), labels)

    @property
    def reads_regions(self) -> bool:
        """Whether H2 reads regions or the whole image by the detector, not encoders alone."""
        fuses = self.fusion_rois != "topk" or self.fusion_num_rois > 0
        return fuses or self.whole_image != "none" or not self.image_encoders

    def image_losses(self, encoded: torch.Tensor, targets: list[Instances]):
        """The unweighted losses of :meth:`forward`, those of regions 0, by what image encoders
        make of B images, (B, D), alone; to be used where H2 reads no region."""
        labels = multi_hot_labels(targets, self.num_classes)
        losses = self._image_losses(self._no_regions(len(encoded)), labels, [encoded.float()])
        return dict.fromkeys(LOSSES, encoded.new_zeros(())) | losses

    def image_codes(self, encoded: torch.Tensor) -> ImageCodes:
        """The codes of images as of :meth:`forward_hash`, by the same alone."""
        return self._fuse(self._no_regions(len(encoded)), [encoded.float()])

    def _no_regions(self, images: int) -> list[RegionOutputs]:
        weight = self.box_predictor.bbox_pred.weight
        x = weight.new_zeros(0, weight.shape[1])
        return [self._outputs(x, x)] * images

    def forward_hash(
        self, features: dict[str, torch.Tensor], proposals: list[Instances], detect: bool = True
    ) -> tuple[list[Instances] | None, ImageCodes]:
        """Inference: the codes of images and, if asked for, their detections.

        Args:
            features: feature maps by name.
            proposals: per image, with ``proposal_boxes``, by descending objectness; may be empty.
            detect: False skips NMS, box decoding and every region that isn't fused.

        Returns:
            ``(instances, codes)``: per image the detections (``pred_boxes``, ``scores``,
            ``pred_classes``, ``pred_codes``, bool (R, K1), the code of the proposal behind the
            detection, and ``pred_regions``, int64 (R,), which proposal that is), or None without
            ``detect``; and the codes of all images, also of those without any detection or
            proposal.
        """
        boxes = [self._fusable_boxes(p) for p in proposals]
        fused_index = [self._fused_index(len(p)) for p in proposals]
        encoded = self._encoded(features)
        if not detect:
            boxes = [b[index] for b, index in zip(boxes, fused_index, strict=True)]
            regions = self._regions(features, boxes)
            return None, self._fuse(regions.split([len(b) for b in boxes]), encoded)
        images = self._regions(features, boxes).split([len(b) for b in boxes])
        fused = [r.select(index) for r, index in zip(images, fused_index, strict=True)]
        codes = self._fuse(fused, encoded)

        images = [r.select(slice(len(p))) for r, p in zip(images, proposals, strict=True)]
        scores = torch.cat([r.scores for r in images])
        deltas = self.box_predictor.bbox_pred(torch.cat([r.features for r in images]))
        instances, kept = self.box_predictor.inference((scores, deltas), proposals)
        for found, index, r, f in zip(instances, kept, images, fused, strict=True):
            found.pred_codes = self._detection_codes(found, r.take(index), f)
            found.pred_regions = index
        return instances, codes

    def _detection_codes(self, found: Instances, regions: RegionOutputs, fused: RegionOutputs):
        """Codes (R, K1) of the R detections of an image, from the regions behind them."""
        del found, fused
        return binarize(self._code_activations(regions))

    def _code_activations(self, regions: RegionOutputs) -> torch.Tensor:
        """What is rounded to the codes of objects, (R, K1)."""
        if self.object_hash is None:
            return regions.activations
        return self.object_hash(regions.features)

    def forward_with_given_boxes(self, features, instances: list[Instances]) -> list[Instances]:
        """Add ``pred_codes`` to instances with known ``pred_boxes``."""
        boxes = [x.pred_boxes for x in instances]
        activations = self._code_activations(self._regions(features, boxes))
        for found, a in zip(instances, activations.split([len(b) for b in boxes]), strict=True):
            found.pred_codes = binarize(a)
        return instances

    def _fusable_boxes(self, proposals: Instances) -> Boxes:
        """The proposals of an image, then a whole-image region where the option asks for it."""
        boxes = proposals.proposal_boxes
        if self.whole_image == "none":
            return boxes
        return type(boxes).cat([boxes, whole_image_box(proposals.image_size, boxes.device)])

    def _fused_index(self, num_proposals: int) -> list[int]:
        """Which of :meth:`_fusable_boxes` are fused."""
        fused = num_proposals
        if self.fusion_rois == "topk":
            fused = min(fused, self.fusion_num_rois)
        return [*range(fused), *([] if self.whole_image == "none" else [num_proposals])]

    def _regions(self, features, boxes: list[Boxes]) -> RegionOutputs:
        """Run the box head and H1 on the regions of each image."""
        return self._outputs(*self.region_reader(features, boxes))

    def _outputs(self, pooled: torch.Tensor, x: torch.Tensor) -> RegionOutputs:
        """H1 and the classifier on what :class:`RegionReader` gives."""
        activations = self.instance_hash(x)
        scores = self.box_predictor.class_scores(x, activations)
        return RegionOutputs(pooled, x, activations, scores)

    def _encoded(self, features: dict[str, torch.Tensor]) -> list[torch.Tensor]:
        """What the image encoders make of the images, (B, D), if there are any."""
        if not self.image_encoders:
            return []
        if ENCODED not in features:
            raise RegionDHError(
                "MODEL.REGION_DH.IMAGE_ENCODERS need MODEL.META_ARCHITECTURE RegionDH"
            )
        return [features[ENCODED].float()]

    def _fuse(self, images: list[RegionOutputs], encoded: list[torch.Tensor]) -> ImageCodes:
        """Fuse the regions of each image, join what is beside them, and hash the result."""
        beside: list[torch.Tensor] = []
        if self.whole_image in BESIDE:  # the last region of each image isn't fused, but joined
            whole = [getattr(r, BESIDE[self.whole_image])[-1].float() for r in images]
            beside = [torch.stack(whole)]
            images = [r.select(slice(-1)) for r in images]
        p = [r.probabilities for r in images]
        x = [r.activations if self.fusion_input == "h1" else r.features for r in images]
        fused = cross_proposal_fusion(
            pad_sequence(p, batch_first=True),
            pad_sequence(x, batch_first=True),
            self.fusion_norm,
            counts=torch.tensor([len(rows) for rows in p], device=p[0].device),
        )
        fused = torch.cat([self.fusion_scale * fused, *beside], dim=1)
        if not self.fusion_gradient:
            fused = fused.detach()
        return self.image_hash(torch.cat([fused, *encoded], dim=1))


def image_code_losses(heads, codes: ImageCodes, labels: torch.Tensor) -> dict[str, torch.Tensor]:
    """The unweighted losses of image codes: ``loss_hash_image_binary`` (E1),
    ``loss_hash_image_balance`` (E2), ``loss_cls_image`` and ``loss_similarity_image``.

    Args:
        heads: with ``image_loss``, ``image_objective`` and ``code_queue``, as
            :class:`RegionDHROIHeads` has them.
        codes: of B images.
        labels: (B, C) of 0 and 1.
    """
    return {
        "loss_hash_image_binary": forcing_binary_loss(codes.activations),
        "loss_hash_image_balance": bit_balance_loss(codes.activations),
        "loss_cls_image": heads.image_loss(codes.scores, labels),
        "loss_similarity_image": heads.image_objective(
            *heads.code_queue(codes.activations, labels)
        ),
    }


def multi_hot_labels(targets: list[Instances], num_classes: int) -> torch.Tensor:
    """Labels (B, C) of images, float32, from the ``gt_classes`` of their objects."""
    labels = torch.zeros(len(targets), num_classes, device=targets[0].gt_classes.device)
    for row, target in zip(labels, targets, strict=True):
        row[target.gt_classes] = 1.0
    return labels


def whole_image_box(image_size: tuple[int, int], device: torch.device) -> Boxes:
    """One box that covers an image of size (height, width) without its padding."""
    height, width = image_size
    return Boxes(torch.tensor([[0.0, 0.0, width, height]], device=device))


def _refuse_other_heads(cfg) -> None:
    """The losses are those of boxes alone."""
    for node, key in (
        (cfg.MODEL, "MASK_ON"),
        (cfg.MODEL, "KEYPOINT_ON"),
        (cfg.MODEL.ROI_BOX_HEAD, "TRAIN_ON_PRED_BOXES"),
    ):
        if node[key]:
            raise RegionDHError(f"RegionDHROIHeads has no {key}; set it to False")
