"""Code sets and folders of scenes for tests: the one place where they are made."""

import contextlib
import hashlib
import os
from pathlib import Path

import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog

from regiondh_d2.data import generate_scenes, register_scenes
from regiondh_d2.structures.codes import CodeSet, InstanceCodes
from regiondh_d2.structures.packed import pack_codes

CLASS_NAMES = ("cat", "dog", "sofa")
FINGERPRINT = "f" * 64  # of a network that does not exist


def _stored(codes, bits):
    """Codes as they are stored, and their length."""
    codes = np.asarray(codes)
    if codes.dtype == np.uint8:
        return codes, bits or 8 * codes.shape[1]
    return pack_codes(codes.astype(bool)), codes.shape[1]


def code_set(codes, bits=None, *, names=None, **columns):
    """A code set of given codes; the images have no labels unless they are given.

    Args:
        codes: N rows of K bits, each True or False, 1 or 0; or packed as uint8 (N, ceil(K / 8)).
        bits: K, where packed codes have other than 8 bits a byte.
        names: N file names, which are the image ids, too. By default the ids are "0", "1" and so
            on, and the names "0.jpg", "1.jpg" and so on, which count from no folder.
        columns: further attributes of a :class:`CodeSet`, or others in place of these.
    """
    codes, bits = _stored(codes, bits)
    numbers = [str(i) for i in range(len(codes))]
    ids, files = (numbers, [f"{i}.jpg" for i in numbers]) if names is None else (names, names)
    if columns.get("labels") is not None:
        columns["labels"] = np.asarray(columns["labels"]).astype(np.uint8)
    values = {"codes": codes, "bits": bits, "image_ids": list(ids), "file_names": files}
    return CodeSet(**(values | columns))


def object_codes(codes, image_index, bits=None, **columns):
    """Codes of detected objects, by default of class 0, with score 0.5 and box (0, 0, 10, 10).

    Args:
        codes, bits: as in :func:`code_set`.
        image_index: M rows of the images that they are in.
        columns: further attributes of :class:`InstanceCodes`, or others in place of these.
    """
    codes, bits = _stored(codes, bits)
    count = len(codes)
    values = {
        "codes": codes,
        "bits": bits,
        "image_index": np.asarray(image_index, np.int64),
        "boxes": np.tile(np.array([0, 0, 10, 10], np.float32), (count, 1)),
        "scores": np.full(count, 0.5, np.float32),
        "classes": np.zeros(count, np.int64),
    }
    return InstanceCodes(**(values | columns))


def random_objects(rng, image_index, bits, *, num_classes=3, density=0.5, **columns):
    """Objects with random codes, boxes, scores and classes.

    Args:
        rng: the generator of the random numbers.
        image_index: M rows of the images that they are in.
        bits: code length.
        num_classes: how many classes there are.
        density: the share of bits that are 1.
        columns: as in :func:`object_codes`.
    """
    count = len(image_index)
    corners = rng.random((count, 2)) * 50
    values = {
        "boxes": np.hstack([corners, corners + 20]).astype(np.float32),
        "scores": rng.random(count).astype(np.float32),
        "classes": rng.integers(0, num_classes, count),
    }
    codes = rng.random((count, bits)) < density
    return object_codes(codes, image_index, **(values | columns))


def random_code_set(rng, count, bits, *, class_names=CLASS_NAMES, density=0.5, **columns):
    """Images with random codes and labels; short codes have many equal distances.

    Args:
        rng: the generator of the random numbers.
        count: how many images.
        bits: code length.
        class_names: an image has each of these classes with probability 1/2.
        density: the share of bits that are 1.
        columns: as in :func:`code_set`.
    """
    values = {
        "labels": rng.random((count, len(class_names))) < 0.5,
        "class_names": list(class_names),
        "model_fingerprint": FINGERPRINT,
    }
    return code_set(rng.random((count, bits)) < density, **(values | columns))


def codes_that_follow_labels(bits):
    """Codes of 17 queries and 60 images that agree a little with their labels of 4 classes.

    Returns:
        Codes of the queries and of the images, bool (17, bits) and (60, bits), and their labels,
        bool (17, 4) and (60, 4). The last query has no label.
    """
    rng = np.random.default_rng(0)
    labels = [rng.random((n, 4)) < 0.3 for n in (17, 60)]
    labels[0][-1] = False
    planes = rng.normal(size=(4, bits))
    codes = [half @ planes + rng.normal(size=(len(half), bits)) > 0.5 for half in labels]
    return *codes, *labels


def photo_code_set(files, codes=None, *, roots, hashed=True, **columns):
    """Codes of files as they are now: each below the first root that it lies in.

    Args:
        files: their paths.
        codes: as in :func:`code_set`; by default 8 bits that count the files.
        roots: the folders that their paths count from.
        hashed: whether the sha256 of their contents is known.
        columns: as in :func:`code_set`.
    """
    names, roots = [os.fspath(file) for file in files], [os.fspath(root) for root in roots]
    codes = np.arange(len(names), dtype=np.uint8)[:, None] if codes is None else codes
    states = [os.stat(name) for name in names]
    contents = [list(hashlib.sha256(Path(name).read_bytes()).digest()) for name in names]
    below = [next(i for i, r in enumerate(roots) if n.startswith(f"{r}/")) for n in names]
    values = {
        "roots": roots,
        "root_index": np.array(below, np.uint16),
        "size": np.array([state.st_size for state in states], np.int64),
        "mtime_ns": np.array([state.st_mtime_ns for state in states], np.int64),
        "content_sha256": np.array(contents, np.uint8) if hashed else None,
    }
    return code_set(codes, names=names, **(values | columns))


def cached_features_opts(folder):
    """Overrides KEY, VALUE, ... that cache the features of a frozen detector in a folder."""
    parts = ("BACKBONE", "PROPOSAL_GENERATOR")
    frozen = [word for part in parts for word in (f"MODEL.REGION_DH.LR_FACTORS.{part}", "0.0")]
    return ["MODEL.REGION_DH.FEATURE_CACHE", str(folder), *frozen]


def train_on_cached_features(cfg, folder, dataset):
    """Set a config to train its heads on features that are cached in a folder.

    Args:
        cfg: of the small network; it is changed.
        folder: of the cache.
        dataset: scenes to train on, which are read with 64 pixels on their shorter side.
    """
    node = cfg.MODEL.REGION_DH
    node.FEATURE_CACHE = str(folder)
    node.LR_FACTORS.BACKBONE = node.LR_FACTORS.PROPOSAL_GENERATOR = 0.0
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = 12
    cfg.INPUT.MIN_SIZE_TEST = 64
    cfg.DATASETS.TRAIN = (dataset,)


@contextlib.contextmanager
def registered():
    """What is registered inside is forgotten at the end."""
    before = set(DatasetCatalog.list())
    try:
        yield
    finally:
        for name in set(DatasetCatalog.list()) - before:
            DatasetCatalog.remove(name)
            if name in MetadataCatalog.list():  # where nothing is known of a dataset
                MetadataCatalog.remove(name)


@contextlib.contextmanager
def registered_scenes(root, prefix, *, database=None, queries=1):
    """Scenes in a folder as a retrieval dataset, registered meanwhile.

    Args:
        root: their folder.
        prefix: of the names of the datasets, so that two tests don't take the same.
        database, queries: how many images to draw; None where the scenes are there already.

    Yields:
        The name of the retrieval dataset.
    """
    if database is not None:
        generate_scenes(root, num_database=database, num_queries=queries)
    with registered():
        yield register_scenes(root, prefix)


def with_squares(inputs, *sizes, seed=0):
    """Give dicts of images random squares, as image encoders read them."""
    import torch

    g = torch.Generator().manual_seed(seed)
    for x in inputs:
        x["squares"] = {
            s: torch.randint(256, (3, s, s), generator=g, dtype=torch.uint8) for s in sizes
        }
    return inputs
