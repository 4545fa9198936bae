"""From a network and its config to what extracts codes with it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from torch import nn

from ..checkpoint import model_fingerprint
from ..config import code_settings
from ..retrieval.extract import CodeExtractor
from ..retrieval.images import ImageLoader
from ..utils.errors import RegionDHError

__all__ = ["class_weights_of", "classes_of_model", "code_extractor"]


def classes_of_model(cfg: CfgNode) -> list[str]:
    """The class names of the datasets that the model's config names, if they may be its own."""
    names = [*cfg.DATASETS.TEST, *cfg.DATASETS.TRAIN]
    known = [MetadataCatalog.get(name).get("thing_classes") or [] for name in names]
    return next((c for c in known if len(c) == cfg.MODEL.ROI_HEADS.NUM_CLASSES), [])


def class_weights_of(model: Any) -> np.ndarray | None:
    """The classifier that a network's image head has on its activations, as code files store it.

    Args:
        model: any network.

    Returns:
        float32 (K2 + 1, C), bias last, or None if the network has no linear classifier there.
    """
    head = getattr(getattr(model, "roi_heads", None), "image_hash", None)
    classifier = getattr(head, "classifier", None)
    if not isinstance(classifier, nn.Linear) or classifier.bias is None:
        return None
    weight, bias = (part.detach().float().cpu() for part in (classifier.weight, classifier.bias))
    return np.concatenate([weight.numpy().T, bias.numpy()[None]])


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
    class_weights = class_weights_of(model)
    if class_weights is not None and len(class_names) not in (0, class_weights.shape[1]):
        class_weights = None  # of other classes than the detector's, which the file names
    attributes = {
        "dataset": dataset,
        "config": config,
        "class_names": class_names,
        "count_difficult": cfg.TEST.RETRIEVAL.COUNT_DIFFICULT,
        "model_fingerprint": model_fingerprint(model),
        "settings": code_settings(
            cfg, activations=activations, features=features, instances=instances
        ),
        "class_weights": class_weights,
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
