"""Region features of a frozen backbone and RPN, cached on disk, so that heads train in minutes.

One HDF5 file a dataset. A *view* is an image at the test resolution, plain or mirrored (mirrored
ones for training sets only, and only where ``INPUT.RANDOM_FLIP`` asks for them). Each view owns a
table of rows: its proposals, its ground-truth boxes and, last, the whole image.
"""

import logging
import os
import time
from pathlib import Path

import h5py
import numpy as np
import torch
from detectron2.data import DatasetCatalog, DatasetMapper
from detectron2.data import transforms as T
from detectron2.data.build import build_batch_data_loader, trivial_batch_collator
from detectron2.data.samplers import InferenceSampler, TrainingSampler
from detectron2.structures import Boxes, Instances
from torch.utils.data import DataLoader, Dataset

from ..checkpoint import model_fingerprint
from ..modeling.box_heads import PooledBoxHead
from ..modeling.roi_heads import with_whole_image_box
from ..retrieval.code_store import replace_when_complete

__all__ = ["CachedRegions", "FeatureCache"]

logger = logging.getLogger(__name__)


class CachedRegions(Dataset):
    """A map dataset over the views of a cache file, in the form that ``RegionDH`` takes.

    Each item is the image's dataset dict without its annotations, with ``region_features`` (R, D)
    float16, ``proposals`` and ``instances``; the latter two carry ``region_index``.
    """

    def __init__(self, path: str | os.PathLike, records: list[dict], mirrored: bool):
        """
        Args:
            path: a file of :class:`FeatureCache`.
            records: the dicts of its dataset, in order.
            mirrored: whether to yield mirrored views too.
        """
        with h5py.File(path) as file:
            self._tables = {name: file[name][()] for name in file}
        self._records = records
        views = np.arange(len(self._tables["record"]))
        self._views = views if mirrored else views[~self._tables["mirrored"]]

    def __len__(self) -> int:
        return len(self._views)

    def __getitem__(self, item: int) -> dict:
        t, view = self._tables, self._views[item]
        record = {k: v for k, v in self._records[t["record"][view]].items() if k != "annotations"}
        first, last = t["first_row"][view : view + 2]
        boxes = torch.from_numpy(t["boxes"][first:last])
        num_proposals, whole_image = int(t["num_proposals"][view]), int(last - first) - 1
        size = tuple(int(v) for v in t["image_size"][view])
        proposals = Instances(size, proposal_boxes=Boxes(boxes[:num_proposals]))
        proposals.objectness_logits = torch.from_numpy(
            t["objectness"][first : first + num_proposals]
        )
        proposals.region_index = torch.arange(num_proposals)
        truth = slice(num_proposals, whole_image)
        instances = Instances(size, gt_boxes=Boxes(boxes[truth]))
        instances.gt_classes = torch.from_numpy(t["gt_class"][first:last][truth].astype(np.int64))
        instances.region_index = torch.arange(num_proposals, whole_image)
        return {
            **record,
            "region_features": torch.from_numpy(t["features"][first:last]),
            "proposals": proposals,
            "instances": instances,
        }


class FeatureCache:
    """A folder of cached region features, all made by the same frozen weights."""

    def __init__(self, cfg):
        self.folder = Path(cfg.MODEL.REGION_DH.FEATURE_CACHE)
        self.mirrored = cfg.INPUT.RANDOM_FLIP != "none"
        self._cfg = cfg
        frozen = cfg.MODEL.REGION_DH.LR_FACTORS
        for part in ("BACKBONE", "PROPOSAL_GENERATOR"):
            if frozen[part] != 0.0:
                raise ValueError(
                    f"MODEL.REGION_DH.FEATURE_CACHE needs a frozen network below the heads: set "
                    f"MODEL.REGION_DH.LR_FACTORS.{part} to 0.0"
                )

    def _path(self, dataset: str) -> Path:
        return self.folder / f"{dataset}.h5"

    def dataset(self, name: str, mirrored: bool) -> CachedRegions:
        return CachedRegions(self._path(name), DatasetCatalog.get(name), mirrored)

    def train_loader(self):
        """An endless loader over the views of ``DATASETS.TRAIN``."""
        datasets = [self.dataset(name, self.mirrored) for name in self._cfg.DATASETS.TRAIN]
        dataset = torch.utils.data.ConcatDataset(datasets)
        seed = max(self._cfg.SEED, 0)
        return build_batch_data_loader(
            dataset, TrainingSampler(len(dataset), seed=seed), self._cfg.SOLVER.IMS_PER_BATCH
        )

    def test_loader(self, name: str):
        dataset = self.dataset(name, mirrored=False)
        return DataLoader(
            dataset,
            batch_size=1,
            sampler=InferenceSampler(len(dataset)),
            collate_fn=trivial_batch_collator,
        )

    @torch.no_grad()
    def ensure(self, model: torch.nn.Module, name: str, mirrored: bool) -> None:
        """Compute the file of a dataset unless it is there.

        Args:
            model: a ``RegionDH`` with its weights loaded.
            name: a registered dataset.
            mirrored: whether mirrored views are needed.

        Raises:
            ValueError: the box head has no pooled features to cache, or a file of this folder was
                made by other weights.
        """
        head = model.roi_heads.box_head
        if not isinstance(head, PooledBoxHead):
            raise ValueError(
                "MODEL.REGION_DH.FEATURE_CACHE works with box heads that pool before their fully "
                "connected layers (LightBoxHead, Res5BoxHead, VGGBoxHead); set it to '' for "
                "another"
            )
        frozen = torch.nn.ModuleList([model.backbone, model.proposal_generator])
        frozen.extend(module for name, module in head.named_children() if name != "fc")
        fingerprint = model_fingerprint(frozen)
        path = self._path(name)
        if path.is_file():
            with h5py.File(path) as file:
                made_by, has_mirrored = file.attrs["fingerprint"], file.attrs["mirrored"]
            if made_by != fingerprint:
                raise ValueError(
                    f"{path} was made by other weights; delete it or name another "
                    "MODEL.REGION_DH.FEATURE_CACHE"
                )
            if has_mirrored or not mirrored:
                return
        training = model.training
        model.eval()
        tables = self._compute(model, name, mirrored)
        model.train(training)
        path.parent.mkdir(parents=True, exist_ok=True)
        with replace_when_complete(path) as partial, h5py.File(partial, "w") as file:
            file.attrs.update(fingerprint=fingerprint, mirrored=mirrored)
            for key, value in tables.items():
                file[key] = value

    def _compute(self, model, name: str, mirrored: bool) -> dict[str, np.ndarray]:
        cfg = self._cfg
        resize = T.ResizeShortestEdge(cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST)
        mappers = [
            DatasetMapper(
                True,
                augmentations=[resize, *([T.RandomFlip(prob=1.0)] if mirror else [])],
                image_format=cfg.INPUT.FORMAT,
            )
            for mirror in ((False, True) if mirrored else (False,))
        ]
        records = DatasetCatalog.get(name)
        views = [(i, m) for i in range(len(records)) for m in range(len(mappers))]
        columns: dict[str, list] = {
            key: []
            for key in (
                "features",
                "boxes",
                "objectness",
                "gt_class",
                "num_proposals",
                "image_size",
            )
        }
        start = time.perf_counter()
        for done, (index, mirror) in enumerate(views, start=1):
            inputs = mappers[mirror](records[index])
            for key, value in _view(model, inputs).items():
                columns[key].append(value)
            if done % 200 == 0 or done == len(views):
                left = (time.perf_counter() - start) / done * (len(views) - done)
                logger.info(f"{name}: cached {done}/{len(views)} views, {left / 60:.1f} min left")
        tables = {
            key: np.stack(value)
            if key in ("num_proposals", "image_size")
            else np.concatenate(value)
            for key, value in columns.items()
        }
        tables["first_row"] = np.cumsum([0] + [len(b) for b in columns["boxes"]])
        tables["record"] = np.array([i for i, _ in views])
        tables["mirrored"] = np.array([bool(m) for _, m in views])
        return tables


def _view(model, inputs: dict) -> dict[str, np.ndarray]:
    """The table of one view: proposals, ground truth and the whole image, in that order."""
    images = model.preprocess_image([inputs])
    features = model.backbone(images.tensor)
    proposals = model.proposal_generator(images, features, None)[0][0]
    truth = inputs["instances"].to(model.device)
    boxes = torch.cat([proposals.proposal_boxes.tensor, truth.gt_boxes.tensor])
    boxes = with_whole_image_box(boxes, proposals.image_size)
    heads = model.roi_heads
    pooled = heads.box_pooler([features[f] for f in heads.box_in_features], [Boxes(boxes)])
    objectness = boxes.new_zeros(len(boxes))
    objectness[: len(proposals)] = proposals.objectness_logits
    classes = torch.full((len(boxes),), -1, dtype=torch.int16)
    classes[len(proposals) : -1] = truth.gt_classes.cpu().to(torch.int16)
    return {
        "features": heads.box_head.pool(pooled).cpu().numpy().astype(np.float16),
        "boxes": boxes.cpu().numpy(),
        "objectness": objectness.cpu().numpy(),
        "gt_class": classes.numpy(),
        "num_proposals": np.array(len(proposals)),
        "image_size": np.array(proposals.image_size),
    }
