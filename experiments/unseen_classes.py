"""Searches for classes that the hash layers never saw, on cached features, as two tables.

Importing this registers :data:`TRAINING`, the images of train that show none of :data:`CLASSES`, on
which a network trains. ``python -m experiments.unseen_classes`` then searches the images of these
classes in one half of val for those in the other half.
"""

import argparse
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog

import regiondh_d2  # noqa: F401  (registers the datasets)
from regiondh_cli.arguments import CommandParser
from regiondh_cli.options import add_config_option
from regiondh_d2.data.catalog import load_dataset
from regiondh_d2.data.voc import VOC_CLASSES
from regiondh_d2.engine import build_cfg
from regiondh_d2.engine.command import load_trained_model, run_command
from regiondh_d2.engine.feature_cache import FeatureCache
from regiondh_d2.evaluation.ranking_metrics import evaluate_distances
from regiondh_d2.evaluation.reference_codes import feature_codes
from regiondh_d2.modeling.cached import CachedNetwork
from regiondh_d2.modeling.indexed_boxes import rows_of
from regiondh_d2.retrieval.code_store import read_codes
from regiondh_d2.structures.codes import CodeFileError, CodeSet, check_holds
from regiondh_d2.structures.packed import unpack_codes

CLASSES = ("bus", "cow", "dog", "motorbike", "sofa")
TRAINING = "regiondh_voc_2007_train_without_five"
QUERIES, DATABASE = "regiondh_voc_2007_valb", "regiondh_voc_2007_vala"
BLEND = 0.5

_HELD_OUT = [VOC_CLASSES.index(name) for name in CLASSES]


def load_training() -> list[dict]:
    """The records of train without the images of :data:`CLASSES`."""
    return [r for r in load_dataset("regiondh_voc_2007_train") if not labels_of(r).any()]


def labels_of(record: dict) -> np.ndarray:
    """Which of :data:`CLASSES` an image shows, bool (5,); difficult objects count."""
    return np.isin(_HELD_OUT, [a["category_id"] for a in record["annotations"]])


if TRAINING not in DatasetCatalog.list():
    DatasetCatalog.register(TRAINING, load_training)
    MetadataCatalog.get(TRAINING).set(thing_classes=list(VOC_CLASSES))


class Half(NamedTuple):
    """A half of val: N images, their M detections, and T annotated objects of :data:`CLASSES`."""

    ids: list[str]
    labels: np.ndarray  # bool (N, 5)
    codes: np.ndarray  # bool (N, K2), of the images
    pooled: np.ndarray  # float (N, P), of the whole images
    detections: torch.Tensor  # (M, D), fc7
    image_of_detection: np.ndarray  # ascending
    objects: torch.Tensor  # (T, D), fc7
    image_of_object: np.ndarray
    classes: np.ndarray  # of the objects, 0 to 4


def build_parser() -> argparse.ArgumentParser:
    parser = CommandParser(
        prog="python -m experiments.unseen_classes", description=__doc__.splitlines()[0]
    )
    add_config_option(parser)
    parser.add_argument(
        "--features",
        metavar="CODES.h5",
        help="a code file with other features of all these images, for further rows",
    )
    parser.add_argument(
        "--fit",
        metavar="NAME",
        help=f"a dataset, such as {TRAINING}, that ITQ also learns codes on, without labels, "
        "instead of on the database; --features must hold its images, too",
    )
    parser.add_overrides()
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    return run_command(lambda: run(args))


@torch.no_grad()
def run(args: argparse.Namespace) -> None:
    cfg = build_cfg(args.config_file, args.opts)
    others = None
    if args.features:
        others = read_codes(args.features)
        check_holds(others, args.features, "features")
    model: Any = load_trained_model(cfg)
    query, database = (read_half(cfg, model, name) for name in (QUERIES, DATABASE))
    fit = read_half(cfg, model, args.fit) if args.fit else None
    codes = {"fc7 of the detector": None, "H1": model.roi_heads.instance_hash}
    if model.roi_heads.object_hash is not None:
        codes["OBJECT_CODE"] = model.roi_heads.object_hash
    shown = query.labels.any(axis=1).sum(), database.labels.any(axis=1).sum()
    print(
        f"{shown[0]} images and {len(query.objects)} objects of {', '.join(CLASSES)} searched in "
        f"{len(database.ids)} images, {shown[1]} of these classes\n"
    )
    print_table("images", *measure_images(query, database, others, fit))
    print()
    print_table("objects", *measure_objects(query, database, codes, fit))


def read_half(cfg, model: Any, name: str) -> Half:
    """What a network sees in the images of a dataset."""
    cache = FeatureCache(cfg)
    cache.ensure(model, name, mirrored=False)
    network, fc = CachedNetwork(model).eval(), model.roi_heads.box_head.fc
    records = load_dataset(name)
    codes, pooled, detections, objects, classes = [], [], [], [], []
    for (inputs,) in cache.test_loader(name):
        (output,) = network([inputs])
        found, true, table = output["instances"], inputs["instances"], inputs["region_features"]
        sure = found.scores >= cfg.TEST.RETRIEVAL.INSTANCE_MIN_SCORE
        wanted = true[torch.isin(true.gt_classes, torch.tensor(_HELD_OUT))]
        codes.append(output["image_code"].cpu().numpy())
        pooled.append(table[-1].float().numpy())
        detections.append(
            fc(table[found.pred_regions[sure].cpu().unique()].to(model.device).float())
        )
        objects.append(fc(table[rows_of(wanted.gt_boxes)].to(model.device).float()))
        classes.append(np.searchsorted(_HELD_OUT, wanted.gt_classes.numpy()))

    def images_of(parts: list) -> np.ndarray:
        return np.repeat(np.arange(len(parts)), [len(part) for part in parts])

    return Half(
        ids=[str(record["image_id"]) for record in records],
        labels=np.stack([labels_of(record) for record in records]),
        codes=np.stack(codes),
        pooled=np.stack(pooled),
        detections=torch.cat(detections),
        image_of_detection=images_of(detections),
        objects=torch.cat(objects),
        image_of_object=images_of(objects),
        classes=np.concatenate(classes),
    )


Result = tuple[np.ndarray, dict[str, np.ndarray]]
"""The classes (Q, 5) of all queries, and for each method the average precision (Q,)."""


def measure_images(
    query: Half, database: Half, others: CodeSet | None, fit: Half | None = None
) -> Result:
    """Searches with whole images: an image is relevant that shares one of the classes.

    Args:
        query, database: the halves.
        others: with other features of all images; None for none.
        fit: images on which ITQ learns, too; None for none.

    Raises:
        CodeFileError: ``others`` lacks an image.
    """
    rows = np.flatnonzero(query.labels.any(axis=1))
    labels = query.labels[rows]
    found = {"Region-DH": hamming(query.codes[rows], database.codes)}
    halves = (query, database, *([fit] if fit else []))
    features = {"the detector's": [half.pooled for half in halves]}
    if others is not None:
        table = dict(zip(others.image_ids, others.column("features"), strict=True))
        missing = {i for half in halves for i in half.ids} - set(table)
        if missing:
            raise CodeFileError(f"the features lack image {min(missing)}: extract those of val")
        features["the other"] = [
            np.stack([table[i] for i in half.ids], dtype=float) for half in halves
        ]
    for name, (q, d, *learned) in features.items():
        q = q[rows]
        found[f"{name} features, cosine"] = ranks_by_cosine(q, d)
        for method in ("itq", "lsh"):
            pair = unsupervised(method, q, d, query.codes.shape[1])
            found[f"{method.upper()} of {name} features"] = hamming(*pair)
        for x in learned:
            pair = unsupervised("itq", q, d, query.codes.shape[1], x)
            found[f"ITQ of {name} features, learned on --fit"] = hamming(*pair)
    return labels, {
        name: precisions(distances, labels, database.labels) for name, distances in found.items()
    }


def measure_objects(
    query: Half, database: Half, layers: dict[str, Any], fit: Half | None = None
) -> Result:
    """Searches with objects, by the nearest detection: an image is relevant that shows the class.

    Args:
        query, database: the halves.
        layers: by name, a latent layer on fc7; None for fc7 itself, which is also coded by ITQ and
            LSH.
        fit: images on whose detections ITQ learns, too; None for none.
    """
    labels = np.eye(len(CLASSES), dtype=bool)[query.classes]
    images = hamming(query.codes[query.image_of_object], database.codes)
    q, d = (x.cpu().numpy() for x in (query.objects, database.detections))
    found = {"images alone": images}

    def nearest(distances: np.ndarray, missing: float) -> np.ndarray:
        least = np.full((len(distances), len(database.ids)), missing, distances.dtype)
        seen, first = np.unique(database.image_of_detection, return_index=True)
        least[:, seen] = np.minimum.reduceat(distances, first, axis=1)
        return least

    def add(name: str, q: np.ndarray, d: np.ndarray) -> None:
        bits = q.shape[1]
        objects = nearest(hamming(q, d), bits)
        found[name] = objects
        found[f"{name} + {BLEND:g} x images"] = ordinal(objects + BLEND * images)

    for name, layer in layers.items():
        if layer is None:
            found[f"{name}, cosine"] = ordinal(nearest(-normalized(q) @ normalized(d).T, 1.0))
            for method in ("itq", "lsh"):
                add(
                    f"{method.upper()} of {name}",
                    *unsupervised(method, q, d, query.codes.shape[1]),
                )
            if fit:
                learned = fit.detections.cpu().numpy()
                pair = unsupervised("itq", q, d, query.codes.shape[1], learned)
                add(f"ITQ of {name}, learned on --fit", *pair)
        else:
            add(
                name,
                *((layer(x) >= 0.5).cpu().numpy() for x in (query.objects, database.detections)),
            )
    return labels, {
        name: precisions(distances, labels, database.labels) for name, distances in found.items()
    }


def unsupervised(
    method: str,
    query: np.ndarray,
    database: np.ndarray,
    bits: int,
    learned: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Codes (Q, K) and (N, K), bool, of features, learned on those of the database, or on others,
    (L, D)."""

    def code_set(features: np.ndarray) -> CodeSet:
        names = [str(row) for row in range(len(features))]
        codes = np.zeros((len(features), 1), np.uint8)
        return CodeSet(codes, 8, names, names, features=features.astype(np.float16))

    learned = database if learned is None else learned
    coded, _ = feature_codes(
        code_set(np.concatenate([query, database])), code_set(learned), bits, method
    )
    codes = unpack_codes(coded.codes, bits)
    return codes[: len(query)], codes[len(query) :]


def hamming(query: np.ndarray, database: np.ndarray) -> np.ndarray:
    """Distances (Q, N) of codes, bool (Q, K) and (N, K)."""
    q, d = (2.0 * codes.astype(np.float32) - 1.0 for codes in (query, database))
    return np.rint((q.shape[1] - q @ d.T) / 2).astype(np.int64)


def normalized(features: np.ndarray) -> np.ndarray:
    """Vectors of length 1."""
    return features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)


def ranks_by_cosine(query: np.ndarray, database: np.ndarray) -> np.ndarray:
    """Whole numbers in the order of the cosine distances, for each query."""
    return ordinal(-normalized(query) @ normalized(database).T)


def ordinal(distances: np.ndarray) -> np.ndarray:
    """Whole numbers from 0 in the order of a query's distances, equal where these are equal."""
    ranks = [np.unique(row, return_inverse=True)[1] for row in distances]
    return np.stack(ranks)


def precisions(distances: np.ndarray, wanted: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The average precision of each query over the whole database, as an expectation over ties."""
    result = evaluate_distances(distances, wanted, labels, topk=len(labels))
    return result.per_query[f"MAP_all@{len(labels)}"]


def print_table(title: str, classes: np.ndarray, found: dict[str, np.ndarray]) -> None:
    """A row for each method: the mean over all queries, then over those of each class."""
    print(f"| {title} | all | " + " | ".join(CLASSES) + " |")
    print("|---|---|" + "---|" * len(CLASSES))
    for name, values in found.items():
        means = [np.nanmean(values), *(np.nanmean(values[rows]) for rows in classes.T)]
        print(f"| {name} | " + " | ".join(f"{mean:.3f}" for mean in means) + " |")


if __name__ == "__main__":
    sys.exit(main())
