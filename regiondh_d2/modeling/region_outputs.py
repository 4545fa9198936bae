"""The outputs of the ROI heads for regions, and the layers for their classes and boxes."""

from dataclasses import dataclass, fields

import torch
from detectron2.config import configurable
from detectron2.modeling.roi_heads import FastRCNNOutputLayers
from detectron2.modeling.roi_heads.fast_rcnn import fast_rcnn_inference
from detectron2.structures import Instances
from torch import nn

from ..utils.errors import RegionDHError, unknown_value_message

__all__ = ["CLASSIFIER_INPUTS", "RegionDHOutputLayers", "RegionOutputs"]

CLASSIFIER_INPUTS = ("h1", "box_features")


class RegionDHOutputLayers(FastRCNNOutputLayers):
    """Fast R-CNN outputs whose class scores may read the H1 activations instead of fc7.

    Boxes always read fc7 (the paper's FC8 "from FC7"); losses are Detectron2's.
    """

    @configurable
    def __init__(self, input_shape, *, classifier_input: str, bits: int, **kwargs):
        """
        Args:
            input_shape: shape of the region features.
            classifier_input: one of :data:`CLASSIFIER_INPUTS`.
            bits: K1, the width of the H1 activations.
            kwargs: see :class:`detectron2.modeling.roi_heads.FastRCNNOutputLayers`.
        """
        super().__init__(input_shape, **kwargs)
        if classifier_input not in CLASSIFIER_INPUTS:
            raise RegionDHError(
                unknown_value_message(
                    "MODEL.REGION_DH.CLASSIFIER_INPUT", classifier_input, CLASSIFIER_INPUTS
                )
            )
        if self.use_sigmoid_ce:
            raise RegionDHError(
                "MODEL.ROI_BOX_HEAD.USE_SIGMOID_CE has no background column, which the fusion "
                "needs to tell objects from background; set it to False"
            )
        self.classifier_input = classifier_input
        if classifier_input == "h1":
            self.cls_score = nn.Linear(bits, self.num_classes + 1)
            nn.init.normal_(self.cls_score.weight, std=0.01)
            nn.init.zeros_(self.cls_score.bias)

    @classmethod
    def from_config(cls, cfg, input_shape):
        node = cfg.MODEL.REGION_DH
        return {
            **super().from_config(cfg, input_shape),
            "classifier_input": node.CLASSIFIER_INPUT,
            "bits": node.BITS_INSTANCE or node.BITS,
        }

    def class_scores(self, features: torch.Tensor, activations: torch.Tensor) -> torch.Tensor:
        """Class logits (R, C + 1), background last, of features (R, D) and activations (R, K1)."""
        return self.cls_score(activations if self.classifier_input == "h1" else features)

    def inference(self, predictions, proposals: list[Instances]):
        """As in the base class, but the kept indices count all proposals of an image.

        Detectron2 drops those whose boxes or scores aren't finite before it numbers what it keeps.
        """
        boxes = self.predict_boxes(predictions, proposals)
        scores = self.predict_probs(predictions, proposals)
        instances, kept = fast_rcnn_inference(
            boxes,
            scores,
            [p.image_size for p in proposals],
            self.test_score_thresh,
            self.test_nms_thresh,
            self.test_topk_per_image,
        )
        finite = [
            (b.isfinite().all(dim=1) & s.isfinite().all(dim=1)).nonzero()[:, 0]
            for b, s in zip(boxes, scores, strict=True)
        ]
        return instances, [rows[index] for rows, index in zip(finite, kept, strict=True)]


@dataclass
class RegionOutputs:
    """Outputs of the heads for regions, one image after the other."""

    pooled: torch.Tensor  # (R, ...), what the box head or its fully connected layers read
    features: torch.Tensor  # (R, D), fc7
    activations: torch.Tensor  # (R, K1) float32, H1
    scores: torch.Tensor  # (R, C + 1) logits

    @property
    def probabilities(self) -> torch.Tensor:
        """(R, C) float32, without the background, Detectron2's last column."""
        return self.scores.float().softmax(dim=1)[:, :-1]

    def split(self, counts: list[int]) -> list["RegionOutputs"]:
        parts = (getattr(self, f.name).split(counts) for f in fields(self))
        return [RegionOutputs(*part) for part in zip(*parts, strict=True)]

    def select(self, index: slice | list[int]) -> "RegionOutputs":
        return RegionOutputs(*(getattr(self, f.name)[index] for f in fields(self)))

    def take(self, rows: torch.Tensor) -> "RegionOutputs":
        """As :meth:`select`, of rows in an int64 tensor, with a faster gradient."""
        return RegionOutputs(*(getattr(self, f.name).index_select(0, rows) for f in fields(self)))
