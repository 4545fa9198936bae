"""From a network and its config to what extracts codes with it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog

from ..checkpoint import model_fingerprint
from ..config import code_settings
from ..retrieval.extract import CodeExtractor
from ..retrieval.images import ImageLoader
from ..utils.errors import RegionDHError

__all__ = ["classes_of_model", "code_extractor"]


def classes_of_model(cfg: CfgNode) -> list[str]:
    """The class names of the datasets that the model's config names, if they may be its own."""
    names = [*cfg.DATASETS.TEST, *cfg.DATASETS.TRAIN]
    known = [MetadataCatalog.get(name).get("thing_classes") or [] for name in names]
    return next((c for c in known if len(c) == cfg.MODEL.ROI_HEADS.NUM_CLASSES), [])


def code_extractor(
    model: Any,
    cfg: CfgNode,
    *,
    config: str,
    class_names: Sequence[str],
    dataset: str = "",
    instances: bool = True,
    activations: bool = False,
    features: bool = False,
    batch_size: int = 8,
    save_every: float = 30.0,
    log: Callable[[str], None] = print,
) -> CodeExtractor:
    """What extracts codes with a network.

    Args:
        model: a trained network in evaluation mode.
        cfg: its config.
        config: the name of the config's file, for the record.
        class_names: of the network's classes, or none.
        dataset: name of the dataset that is encoded, "" for photos.
        instances: whether detected objects are encoded, too.
        activations, features: whether these are kept beside the codes.
        batch_size: images at once.
        save_every: seconds between two parts of the output.
        log: takes the lines about progress.

    Raises:
        RegionDHError: the network encodes no images.
    """
    if not hasattr(model, "encode_images"):
        raise RegionDHError(
            f"MODEL.META_ARCHITECTURE {cfg.MODEL.META_ARCHITECTURE} encodes no images; use RegionDH"
        )
    attributes = {
        "dataset": dataset,
        "config": config,
        "class_names": class_names,
        "count_difficult": cfg.TEST.RETRIEVAL.COUNT_DIFFICULT,
        "model_fingerprint": model_fingerprint(model),
        "settings": code_settings(
            cfg, activations=activations, features=features, instances=instances
        ),
    }
    return CodeExtractor(
        model.inference if instances else model.encode_images,
        ImageLoader(cfg),
        attributes,
        size_divisibility=model.backbone.size_divisibility,
        batch_size=batch_size,
        num_workers=cfg.DATALOADER.NUM_WORKERS,
        instance_min_score=cfg.TEST.RETRIEVAL.INSTANCE_MIN_SCORE,
        activations=activations,
        features=features,
        save_every=save_every,
        log=log,
    )
