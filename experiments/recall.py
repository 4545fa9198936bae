"""Which objects a detector finds, by their size: recall of its proposals and of its detections.

    python -m experiments.recall --config-file CONFIG --dataset NAME [KEY VALUE ...]

An object is found by a box with an intersection over union of at least 0.5; by a detection only if
its class is right, too. All proposals of an image count, and all detections that the config keeps.
Objects marked difficult don't count, as in box AP50. Sizes are COCO's: areas in pixels of the image
file. Runs on cached features (``MODEL.REGION_DH.FEATURE_CACHE``), which are made if they are
missing.
"""

import argparse
import math
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from detectron2.structures import Boxes, BoxMode, pairwise_iou

import regiondh_d2  # noqa: F401  (registers the datasets)
from regiondh_cli.arguments import CommandParser
from regiondh_cli.options import add_config_option, add_import_option
from regiondh_d2.data.catalog import load_dataset, require_dataset
from regiondh_d2.engine import build_cfg
from regiondh_d2.engine.command import load_trained_model, run_command
from regiondh_d2.engine.feature_cache import FeatureCache
from regiondh_d2.engine.user_code import import_user_code
from regiondh_d2.modeling.cached import CachedNetwork
from regiondh_d2.utils.errors import RegionDHError

__all__ = ["SIZES", "found_objects", "recall_table"]

# Areas from the first number on, below the second one.
SIZES = {"small": (0, 32**2), "medium": (32**2, 96**2), "large": (96**2, math.inf)}
IOU = 0.5


def build_parser() -> argparse.ArgumentParser:
    parser = CommandParser(prog="python -m experiments.recall", description=__doc__.splitlines()[0])
    add_config_option(parser)
    parser.add_argument("--dataset", required=True, metavar="NAME", help="a dataset with boxes")
    add_import_option(parser)
    parser.add_overrides()
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    return run_command(lambda: run(args))


def run(args: argparse.Namespace) -> None:
    import_user_code(args.imports)
    require_dataset(args.dataset, "--dataset")
    cfg = build_cfg(args.config_file, args.opts)
    found = list(found_objects(cfg, load_trained_model(cfg), args.dataset))
    if not found:
        raise RegionDHError(f"{args.dataset} has no objects that count: name one with boxes")
    print(recall_table(np.array(found)))


@torch.no_grad()
def found_objects(cfg, model: Any, name: str) -> Iterator[tuple[float, bool, bool]]:
    """Of each object of a dataset: its area, whether a proposal finds it, and a detection.

    Args:
        cfg, model: a config with a ``FEATURE_CACHE``, and its ``RegionDH``.
        name: a registered dataset with boxes.
    """
    cache, network = FeatureCache(cfg), CachedNetwork(model).eval()
    cache.ensure(model, name, mirrored=False)
    for record, inputs in zip(load_dataset(name), cache.test_loader(name), strict=True):
        boxes, classes = _objects(record)
        if not len(boxes):
            continue
        proposals = inputs[0]["proposals"]
        height, width = proposals.image_size
        proposed = Boxes(proposals.proposal_boxes.tensor.clone())
        proposed.scale(inputs[0]["width"] / width, inputs[0]["height"] / height)
        detected = network(inputs)[0]["instances"].to("cpu")
        by_proposal = _is_found(boxes, proposed)
        by_detection = _is_found(boxes, detected.pred_boxes, classes, detected.pred_classes)
        yield from zip(
            boxes.area().tolist(), by_proposal.tolist(), by_detection.tolist(), strict=True
        )


def _objects(record: dict) -> tuple[Boxes, torch.Tensor]:
    """The boxes (T, 4), in pixels of the file, and classes (T,) of the objects that count."""
    objects = [
        o
        for o in record["annotations"]
        if not o.get("difficult", False) and not o.get("iscrowd", 0)
    ]
    boxes = [BoxMode.convert(o["bbox"], o["bbox_mode"], BoxMode.XYXY_ABS) for o in objects]
    return (
        Boxes(torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)),
        torch.tensor([o["category_id"] for o in objects], dtype=torch.int64),
    )


def _is_found(
    objects: Boxes,
    boxes: Boxes,
    classes: torch.Tensor | None = None,
    box_classes: torch.Tensor | None = None,
) -> torch.Tensor:
    """Which of T objects are found by any of the boxes, bool (T,)."""
    fits = pairwise_iou(objects, boxes) >= IOU
    if classes is not None:
        fits &= classes[:, None] == box_classes
    return fits.any(dim=1)


def recall_table(found: np.ndarray) -> str:
    """A table in Markdown, a row a size.

    Args:
        found: (T, 3), what :func:`found_objects` gives.
    """
    lines = ["| objects | number | found by proposals | found by detections |", "|---|---|---|---|"]
    for title, (least, below) in {**SIZES, "all": (0, math.inf)}.items():
        rows = found[(found[:, 0] >= least) & (found[:, 0] < below), 1:]
        shares = [f"{share:.3f}" for share in rows.mean(axis=0)] if len(rows) else ["", ""]
        lines.append(f"| {title} | {len(rows)} | {' | '.join(shares)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
