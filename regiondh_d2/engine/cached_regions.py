"""The dataset that a file of cached region features is read as."""

import os
from collections.abc import Sequence

import numpy as np
import torch
from detectron2.structures import Instances
from torch.utils.data import Dataset

from ..data.training import has_labels_alone
from ..modeling.image_encoders import ENCODED
from ..modeling.indexed_boxes import IndexedBoxes
from .cache_files import read_arrays

__all__ = ["CachedRegions"]

ROWS = 10_000  # of features that are put through frozen layers at once


class CachedRegions(Dataset):
    """A map dataset over the views of a cache file, in the form that ``RegionDH`` takes.

    Each item is the image's dataset dict without its annotations, with ``region_features`` (R, D)
    float16, ``proposals`` and ``instances``, whose boxes are :class:`IndexedBoxes`. After
    :meth:`precompute` there is ``region_outputs`` (R, F) float16, too; and where there are image
    encoders, ``encoded`` (E,) float32.
    """

    def __init__(
        self,
        path: str | os.PathLike,
        records: list[dict],
        mirrored: bool,
        encoded: Sequence[np.ndarray] = (),
    ):
        """
        Args:
            path: a file of :class:`~.feature_cache.FeatureCache`.
            records: the dicts of its dataset, in order.
            mirrored: whether to yield mirrored views too.
            encoded: what image encoders make of the plain images, (N, E), and, for mirrored views,
                of the mirrored ones.

        Raises:
            ValueError: the file is damaged.
        """
        self._tables = read_arrays(path)
        self._records = records
        self._encoded = encoded
        views = np.arange(len(self._tables["record"]))
        self._views = views if mirrored else views[~self._tables["mirrored"]]

    @torch.no_grad()
    def precompute(self, layers: torch.nn.Module, device: torch.device) -> None:
        """Run frozen layers once on all rows, instead of in every iteration.

        Args:
            layers: from features (R, D) to outputs (R, F).
            device: where they are.
        """
        features = self._tables["features"]
        chunks = (
            torch.from_numpy(features[i : i + ROWS]).to(device, torch.float32)
            for i in range(0, len(features), ROWS)
        )
        outputs = [layers(chunk).cpu().numpy().astype(np.float16) for chunk in chunks]
        self._tables["outputs"] = np.concatenate(outputs)

    def __len__(self) -> int:
        return len(self._views)

    def __getitem__(self, item: int) -> dict:
        t, view = self._tables, self._views[item]
        record = {k: v for k, v in self._records[t["record"][view]].items() if k != "annotations"}
        first, last = t["first_row"][view : view + 2]
        boxes = torch.from_numpy(t["boxes"][first:last])
        num_proposals, whole_image = int(t["num_proposals"][view]), int(last - first) - 1
        size = tuple(int(v) for v in t["image_size"][view])
        boxes = IndexedBoxes(boxes, torch.arange(len(boxes)))
        proposals = Instances(size, proposal_boxes=boxes[:num_proposals])
        proposals.objectness_logits = torch.from_numpy(
            t["objectness"][first : first + num_proposals]
        )
        truth = slice(num_proposals, whole_image)
        instances = Instances(size, gt_boxes=boxes[truth])
        instances.gt_classes = torch.from_numpy(t["gt_class"][first:last][truth].astype(np.int64))
        inputs = {
            **record,
            "region_features": torch.from_numpy(t["features"][first:last]),
            "proposals": proposals,
        }
        if not has_labels_alone(self._records[t["record"][view]]):
            inputs["instances"] = instances
        if self._encoded:
            vectors = self._encoded[int(t["mirrored"][view])]
            inputs[ENCODED] = torch.from_numpy(vectors[t["record"][view]])
        if "outputs" in t:
            inputs["region_outputs"] = torch.from_numpy(t["outputs"][first:last])
        return inputs
