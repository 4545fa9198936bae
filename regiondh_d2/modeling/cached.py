"""The same heads on cached regions: rows of a table stand where a network would pool and compute.

Where the backbone, the RPN and the pooling are frozen, what they make of an image never changes. It
is computed once (``engine/feature_cache.py``) and kept as a *table* an image: proposals, ground
truth and, last, the whole image, a row each. :class:`CachedNetwork` trains and tests the heads of a
network on such tables; the heads themselves don't know.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from detectron2.structures import Boxes, Instances
from torch import nn

from .box_heads import RegionReader
from .image_encoders import ENCODED
from .indexed_boxes import rows_of
from .meta_arch import RegionDH, per_image

__all__ = ["CachedNetwork", "TableReader"]

# Names of the tables among the features, and the keys of an image's dict that hold them.
POOLED, OUTPUTS = "pooled", "outputs"
_KEYS = {POOLED: "region_features", OUTPUTS: "region_outputs"}


class TableReader(RegionReader):
    """Looks regions up where a :class:`RegionReader` pools them."""

    def __init__(self, fc: nn.Module):
        """
        Args:
            fc: the fully connected layers of the box head, from (R, P) to (R, D).
        """
        self._fc = fc

    def __call__(self, features, boxes: list[Boxes]) -> tuple[torch.Tensor, torch.Tensor]:
        """As :meth:`RegionReader.__call__`.

        Args:
            features: ``pooled``, the tables (R, P) of B images, and, if the fully connected layers
                are frozen, ``outputs``, the tables (R, D) of what they make of it.
            boxes: of each image.
        """
        pooled = _look_up(features[POOLED], boxes)
        if OUTPUTS in features:
            return pooled, _look_up(features[OUTPUTS], boxes)
        return pooled, self._fc(pooled)


def _look_up(tables: list[torch.Tensor], boxes: list[Boxes]) -> torch.Tensor:
    return torch.cat([t[rows_of(b)] for t, b in zip(tables, boxes, strict=True)]).float()


class CachedNetwork(nn.Module):
    """A network that takes cached regions in place of images, and gives what it always gives."""

    def __init__(self, model: RegionDH):
        """
        Args:
            model: a ``RegionDH`` or ``ImageHash`` whose box head is a :class:`PooledBoxHead`.
        """
        super().__init__()
        self.model = model

    def forward(self, batched_inputs: list[dict]):
        """As ``model.forward``; the losses of the frozen RPN are 0.

        Args:
            batched_inputs: a dict an image, with ``region_features`` (R, P), and ``proposals`` and
                ``instances`` whose boxes are :class:`IndexedBoxes`; where they are known,
                ``region_outputs`` (R, D); and ``encoded`` (E,) where there are image encoders.
        """
        with self._reading_tables():
            return self._forward(batched_inputs)

    @torch.no_grad()
    def object_codes(self, batched_inputs: list[dict]) -> list[torch.Tensor]:
        """The codes of the ground-truth boxes of each image, bool (T, K1), as of the ``pred_codes``
        of given boxes.

        Args:
            batched_inputs: as of :meth:`forward`; the model is a ``RegionDH``.
        """
        boxes = [x["instances"].gt_boxes.to(self.model.device) for x in batched_inputs]
        given = [
            Instances(x["proposals"].image_size, pred_boxes=b)
            for x, b in zip(batched_inputs, boxes, strict=True)
        ]
        with self._reading_tables():
            coded = self.model.roi_heads.forward_with_given_boxes(
                self._features(batched_inputs), given
            )
        return [instances.pred_codes for instances in coded]

    @torch.no_grad()
    def encode_images(self, batched_inputs: list[dict]) -> list[dict]:
        """Image codes alone, as :meth:`.RegionDH.encode_images`.

        Args:
            batched_inputs: as of :meth:`forward`.
        """
        features = self._features(batched_inputs)
        proposals = [x["proposals"].to(self.model.device) for x in batched_inputs]
        with self._reading_tables():
            if not hasattr(self.model.roi_heads, "forward_hash"):  # a network without objects
                sizes = [p.image_size for p in proposals]
                return self.model.describe(features, proposals, sizes, batched_inputs)
            _, codes = self.model.roi_heads.forward_hash(features, proposals, detect=False)
        return per_image(codes)

    @contextmanager
    def _reading_tables(self) -> Iterator[None]:
        """Has the heads read tables meanwhile; the model itself stays one that takes images."""
        heads = self.model.roi_heads
        reader = heads.region_reader
        heads.region_reader = TableReader(heads.box_head.fc)
        try:
            yield
        finally:
            heads.region_reader = reader

    def _features(self, batched_inputs: list[dict]) -> dict[str, Any]:
        """What a :class:`TableReader` reads, and what image encoders have made of the images."""
        features: dict[str, Any] = {
            name: [x[key].to(self.model.device) for x in batched_inputs]
            for name, key in _KEYS.items()
            if key in batched_inputs[0]
        }
        if ENCODED in batched_inputs[0]:
            encoded = torch.stack([x[ENCODED] for x in batched_inputs])
            features[ENCODED] = encoded.to(self.model.device)
        return features

    def _forward(self, batched_inputs: list[dict]):
        features = self._features(batched_inputs)
        proposals = [x["proposals"].to(self.model.device) for x in batched_inputs]
        sizes = [p.image_size for p in proposals]
        if not self.training:
            return self.model.describe(features, proposals, sizes, batched_inputs)
        losses = self.model.head_losses(features, proposals, sizes, batched_inputs)
        zero = losses["loss_cls_image"].detach() * 0.0
        return self.model.weigh({"loss_rpn_cls": zero, "loss_rpn_loc": zero, **losses})
