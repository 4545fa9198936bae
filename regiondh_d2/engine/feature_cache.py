"""Region features of a frozen backbone and RPN, cached on disk, so that heads train in minutes.

One npz file a dataset: a full disk is then an error, where HDF5 would crash the process. A *view*
is an image at the test resolution, plain or mirrored (mirrored ones for training sets only, and
only where ``INPUT.RANDOM_FLIP`` asks for them). Each view owns a table of rows: its proposals, its
ground-truth boxes and, last, the whole image.

A file says which weights and settings made it (all settings that :func:`..config.feature_settings`
has): those of others are refused. It also has, for each image, the name, size and time of
modification of its file, and its objects. Where any of them changed, the file is made again.

Views that a file of the folder holds, of the same image and the same network, are copied from
there: a database is often the training set, and of a folder of images only some are replaced.

While a file is being computed its views are saved in *parts*, in the folder ``<dataset>.parts``; an
interrupted computation goes on after the last one. Several processes share the parts out: all of
them must see the folder, and each reads the whole file into memory.
"""

import hashlib
import logging
import os
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.data import transforms as T
from detectron2.data.build import trivial_batch_collator
from detectron2.data.samplers import InferenceSampler
from detectron2.structures import Boxes, Instances
from detectron2.utils import comm
from detectron2.utils.file_io import PathManager
from torch.utils.data import ConcatDataset, DataLoader

from ..checkpoint import model_fingerprint
from ..config import changed_settings, feature_settings
from ..data.catalog import load_dataset
from ..data.train_stream import plain_loader
from ..data.training import StrictMapper
from ..modeling.box_heads import PooledBoxHead
from ..modeling.roi_heads import whole_image_box
from ..retrieval.extraction_plan import padded_size
from ..utils.errors import RegionDHError
from ..utils.progress import Progress
from .cache_files import array_names, one_writer, read_arrays, write_arrays
from .cached_regions import CachedRegions
from .encoder_cache import EncoderCache

__all__ = ["FeatureCache"]

logger = logging.getLogger(__name__)

PART = 500  # views
BATCH = 8  # views of one padded size at once: padding would change features
VERSION = 2  # of the files; those of version 1 don't say what they were made with


@dataclass(frozen=True)
class _Network:
    """What made features: the fingerprint of the weights, and :func:`feature_settings`."""

    weights: str
    settings: str


class FeatureCache:
    """A folder of cached region features, all made by the same frozen weights."""

    def __init__(self, cfg):
        if not cfg.MODEL.REGION_DH.FEATURE_CACHE:
            raise RegionDHError(
                "MODEL.REGION_DH.FEATURE_CACHE is empty: name a folder for features"
            )
        self.folder = Path(cfg.MODEL.REGION_DH.FEATURE_CACHE)
        self.mirrored = cfg.INPUT.RANDOM_FLIP != "none"
        self._encoders = EncoderCache(cfg)
        self._cfg = cfg
        frozen = cfg.MODEL.REGION_DH.LR_FACTORS
        for part in ("BACKBONE", "PROPOSAL_GENERATOR", "IMAGE_ENCODERS"):
            if frozen[part] != 0.0:
                raise RegionDHError(
                    f"MODEL.REGION_DH.FEATURE_CACHE needs a frozen network below the heads: set "
                    f"MODEL.REGION_DH.LR_FACTORS.{part} to 0.0"
                )
        if cfg.INPUT.RANDOM_FLIP not in ("none", "horizontal"):
            flip = cfg.INPUT.RANDOM_FLIP
            raise RegionDHError(
                f"INPUT.RANDOM_FLIP is {flip!r}, but MODEL.REGION_DH.FEATURE_CACHE "
                "holds horizontal mirror images: set it to 'horizontal' or 'none'"
            )

    def _path(self, dataset: str) -> Path:
        return self.folder / f"{dataset}.npz"

    def dataset(self, name: str, mirrored: bool) -> CachedRegions:
        encoded = self._encoders.read(name, mirrored)
        return CachedRegions(self._path(name), load_dataset(name), mirrored, encoded)

    def train_loader(self, model: Any):
        """An endless loader over the views of ``DATASETS.TRAIN``.

        Where the box head's fully connected layers are frozen, and always give the same (without
        dropout), ``model``, a ``RegionDH``, computes their outputs here, once.
        """
        datasets = [self.dataset(name, self.mirrored) for name in self._cfg.DATASETS.TRAIN]
        fc = model.roi_heads.box_head.fc
        dropout = any(isinstance(m, torch.nn.Dropout) and m.p > 0 for m in fc.modules())
        if self._cfg.MODEL.REGION_DH.LR_FACTORS.BOX_HEAD == 0.0 and not dropout:
            for dataset in datasets:
                dataset.precompute(fc, model.device)
        views: ConcatDataset = ConcatDataset(datasets)
        seed = max(self._cfg.SEED, 0)
        return plain_loader(views, seed=seed, total_batch_size=self._cfg.SOLVER.IMS_PER_BATCH)

    def test_loader(self, name: str):
        dataset = self.dataset(name, mirrored=False)
        return DataLoader(
            dataset,
            batch_size=1,
            sampler=InferenceSampler(len(dataset)),
            collate_fn=trivial_batch_collator,
        )

    def freeze(self, model: torch.nn.Module) -> None:
        """Freeze the part of a ``RegionDH`` that cached features stand for, in place.

        With several processes a parameter that gets no gradient would stop the training.

        Raises:
            ValueError: the box head has no pooled features to cache.
        """
        _cached_part(model).requires_grad_(False)

    @torch.no_grad()
    def ensure(self, model: torch.nn.Module, name: str, mirrored: bool) -> None:
        """Compute the file of a dataset unless it is there; call it in all processes.

        A file of other images, such as replaced ones, is made again, and what still holds of it is
        copied. The processes share the work and wait for each other, as long as the time-out that
        they were launched with.

        Args:
            model: a ``RegionDH`` with its weights loaded.
            name: a registered dataset.
            mirrored: whether mirrored views are needed.

        Raises:
            RegionDHError: the box head has no pooled features to cache, or a file of this folder is
                damaged, or was made by other weights or settings.
            OSError: an image isn't there, or a file can't be written, for instance because the disk
                is full.
            FileInUseError: another training writes into this folder.
        """
        records = load_dataset(name)
        if model.image_encoders is not None:
            self._encoders.ensure(model.image_encoders, name, mirrored)
        network = _Network(model_fingerprint(_cached_part(model)), feature_settings(self._cfg))
        images = np.array([_image_digest(record) for record in records])
        # One process decides for all: where the folder is a network's, they may see it differently.
        if comm.all_gather(self._has(name, network, images, mirrored))[0]:
            return
        with one_writer(self.folder):
            # Another training may have made it before this one had the lock.
            if not comm.all_gather(self._has(name, network, images, mirrored))[0]:
                self._make(model, name, network, records, images, mirrored)

    def _make(
        self,
        model: torch.nn.Module,
        name: str,
        network: _Network,
        records: list[dict],
        images: np.ndarray,
        mirrored: bool,
    ) -> None:
        """Compute the file of a dataset, in all processes."""
        training = model.training
        model.eval()
        views = [(i, m) for i in range(len(records)) for m in range(2 if mirrored else 1)]
        parts = self.folder / f"{name}.parts"
        source = hashlib.sha256(f"{network} {images.tolist()}".encode()).hexdigest()[:16]
        paths = [
            parts / f"{source}-{'mirrored' if mirrored else 'plain'}-{first:07d}.npz"
            for first in range(0, len(views), PART)
        ]
        missing = [
            (path, views[PART * i : PART * (i + 1)])
            for i, path in enumerate(paths)
            if i % comm.get_world_size() == comm.get_rank() and not path.is_file()
        ]
        count = sum(len(part) for _, part in missing)
        known = self._known_views(network) if missing else {}
        progress = Progress(logger.info, f"views of {name} cached", count, every=30.0)
        for path, part in missing:
            write_arrays(path, self._compute(model, records, images, part, known, progress))
        model.train(training)
        comm.synchronize()
        if comm.is_main_process():
            facts = {"version": VERSION, "images": images, "has_mirrored": mirrored}
            write_arrays(self._path(name), {**_join(paths), **asdict(network), **facts})
            shutil.rmtree(parts)
        comm.synchronize()

    def _has(self, name: str, network: _Network, images: np.ndarray, mirrored: bool) -> bool:
        path = self._path(name)
        if not path.is_file():
            return False
        found = _network_of(path)
        fix = "delete it or name another MODEL.REGION_DH.FEATURE_CACHE"
        if found is None:
            raise RegionDHError(
                f"{path} was made by an older version, which didn't note all settings: {fix}"
            )
        for key, (old, new) in changed_settings(
            found.settings, network.settings, feature_settings
        ).items():
            raise RegionDHError(f"{path} was made with {key} {old}, which is now {new}: {fix}")
        if found.weights != network.weights:
            raise RegionDHError(f"{path} was made by other weights: {fix}")
        facts = read_arrays(path, ("images", "has_mirrored"))
        if not np.array_equal(facts["images"], images):
            changed = len(set(images.tolist()) - set(facts["images"].tolist()))
            logger.warning(
                f"{path} is of other images or objects than {name} has now ({changed} of "
                f"{len(images)} changed): it is made again, and what still holds is copied"
            )
            return False
        return bool(facts["has_mirrored"]) or not mirrored

    def _known_views(self, network: _Network) -> dict[tuple[str, bool], tuple[dict, int]]:
        """Where the views in the files of this network are: by image and whether mirrored, the
        tables and the number of the view in them."""
        known: dict[tuple[str, bool], tuple[dict, int]] = {}
        for path in sorted(self.folder.glob("*.npz")):
            found = _network_of(path)
            if (
                found is not None
                and found.weights == network.weights
                and not changed_settings(found.settings, network.settings, feature_settings)
            ):
                tables = read_arrays(path)
                views = zip(tables["images"][tables["record"]], tables["mirrored"], strict=True)
                known |= {(str(i), bool(m)): (tables, view) for view, (i, m) in enumerate(views)}
        return known

    def _compute(
        self,
        model,
        records: list[dict],
        images: np.ndarray,
        views: list[tuple[int, int]],
        known: dict[tuple[str, bool], tuple[dict, int]],
        progress: Progress,
    ) -> dict[str, np.ndarray]:
        """The tables of some views, each given as the index of its record and whether mirrored."""
        cfg = self._cfg
        resize = T.ResizeShortestEdge(cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST)
        mappers = [
            StrictMapper(
                True,
                augmentations=[resize, *([T.RandomFlip(prob=1.0)] if mirror else [])],
                image_format=cfg.INPUT.FORMAT,
                max_pixels=cfg.MODEL.REGION_DH.MAX_PIXELS,
            )
            for mirror in (False, True)
        ]
        tables: list[dict[str, np.ndarray]] = [{} for _ in views]

        def compute(batch: dict[int, dict]) -> None:
            for i, table in zip(batch, _tables(model, list(batch.values())), strict=True):
                tables[i] = table
            progress.step(len(batch))

        waiting: dict[tuple[int, int], dict[int, dict]] = {}
        for i, (index, mirror) in enumerate(views):
            found = known.get((str(images[index]), bool(mirror)))
            if found:
                tables[i] = _copy(*found)
                progress.step()
                continue
            inputs = mappers[mirror](records[index])
            size = padded_size(inputs["image"].shape[-2:], model.backbone.size_divisibility)
            waiting.setdefault(size, {})[i] = inputs
            if len(waiting[size]) == BATCH:
                compute(waiting.pop(size))
        for batch in waiting.values():
            compute(batch)
        for table, (index, mirror) in zip(tables, views, strict=True):
            table |= {"record": np.array([index]), "mirrored": np.array([bool(mirror)])}
        return {key: np.concatenate([table[key] for table in tables]) for key in tables[0]}


def _cached_part(model) -> torch.nn.ModuleList:
    """The modules that cached features stand for: all below the box head's ``fc``."""
    head = model.roi_heads.box_head
    if not isinstance(head, PooledBoxHead):
        raise RegionDHError(
            "MODEL.REGION_DH.FEATURE_CACHE works with box heads that pool before their fully "
            "connected layers (LightBoxHead, Res5BoxHead, VGGBoxHead); set it to '' for another"
        )
    part = torch.nn.ModuleList([model.backbone])
    if model.proposal_generator is not None:
        part.append(model.proposal_generator)
    part.extend(module for name, module in head.named_children() if name != "fc")
    return part


def _no_proposals(image_size: tuple[int, int], device: torch.device) -> Instances:
    return Instances(
        image_size,
        proposal_boxes=Boxes(torch.zeros(0, 4, device=device)),
        objectness_logits=torch.zeros(0, device=device),
    )


def _no_objects(image_size: tuple[int, int]) -> Instances:
    """The ground truth of an image that has labels alone."""
    return Instances(
        image_size,
        gt_boxes=Boxes(torch.zeros(0, 4)),
        gt_classes=torch.zeros(0, dtype=torch.int64),
    )


def _image_digest(record: dict) -> str:
    """What a view shows, its file as it is now and its objects, as hex digits.

    Raises:
        OSError: the file isn't there.
    """
    objects = [
        (a["category_id"], *a["bbox"], int(a["bbox_mode"]), a.get("iscrowd", 0))
        for a in record.get("annotations", ())
    ]
    name = record["file_name"]
    state = os.stat(PathManager.get_local_path(name))
    what = f"{name} {state.st_size} {state.st_mtime_ns} {objects}"
    return hashlib.sha256(what.encode(errors="surrogateescape")).hexdigest()


def _network_of(path: Path) -> _Network | None:
    """What made the features of a file; None if it is of version 1."""
    if "version" not in array_names(path):
        return None
    found = read_arrays(path, ("weights", "settings"))
    return _Network(str(found["weights"]), str(found["settings"]))


def _join(paths: Sequence[Path]) -> dict[str, np.ndarray]:
    """The tables of all parts, one after the other, and where each view's rows begin."""
    parts = [read_arrays(path) for path in paths]
    tables = {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}
    tables["first_row"] = np.cumsum([0, *tables.pop("num_rows")])
    return tables


def _copy(tables: dict[str, np.ndarray], view: int) -> dict[str, np.ndarray]:
    """The table of one view, as :func:`_tables` gives it."""
    first, last = tables["first_row"][view : view + 2]
    rows = ("features", "boxes", "objectness", "gt_class")
    return {key: tables[key][first:last] for key in rows} | {
        "num_proposals": tables["num_proposals"][view : view + 1],
        "num_rows": np.array([last - first]),
        "image_size": tables["image_size"][view : view + 1],
    }


def _tables(model, inputs: list[dict]) -> list[dict[str, np.ndarray]]:
    """The table of each view: proposals, ground truth and the whole image, in that order."""
    images = model.preprocess_image(inputs)
    features = model.backbone(images.tensor)
    if model.proposal_generator is None:  # whole-image methods
        proposals = [_no_proposals(size, model.device) for size in images.image_sizes]
    else:
        proposals, _ = model.proposal_generator(images, features, None)
    truth = [
        (x["instances"] if "instances" in x else _no_objects(size)).to(model.device)
        for x, size in zip(inputs, images.image_sizes, strict=True)
    ]
    regions = [
        Boxes.cat([p.proposal_boxes, t.gt_boxes]) for p, t in zip(proposals, truth, strict=True)
    ]
    wholes = [whole_image_box(p.image_size, model.device) for p in proposals]
    boxes = [Boxes.cat(pair) for pair in zip(regions, wholes, strict=True)]
    heads = model.roi_heads
    maps = [features[name] for name in heads.box_in_features]
    # Apart: the order of the sums in pooling depends on the number of regions, and the feature of
    # the whole image must not.
    pooled, whole = (
        heads.box_head.pool_regions(maps, part, heads.box_pooler) for part in (regions, wholes)
    )
    parts = zip(pooled.split([len(b) for b in regions]), whole.split(1), strict=True)
    vectors = [torch.cat(pair) for pair in parts]
    return [_table(*view) for view in zip(proposals, truth, boxes, vectors, strict=True)]


def _table(
    proposals: Instances, truth: Instances, boxes: Boxes, pooled: torch.Tensor
) -> dict[str, np.ndarray]:
    objectness = boxes.tensor.new_zeros(len(boxes))
    objectness[: len(proposals)] = proposals.objectness_logits
    classes = torch.full((len(boxes),), -1, dtype=torch.int16)
    classes[len(proposals) : -1] = truth.gt_classes.cpu().to(torch.int16)
    return {
        "features": pooled.cpu().numpy().astype(np.float16),
        "boxes": boxes.tensor.cpu().numpy(),
        "objectness": objectness.cpu().numpy(),
        "gt_class": classes.numpy(),
        "num_proposals": np.array([len(proposals)]),
        "num_rows": np.array([len(boxes)]),
        "image_size": np.array([proposals.image_size]),
    }
