"""The outputs of a model as a code set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..utils.display import display_name
from ..utils.errors import RegionDHError
from .code_rows import concatenate_instances
from .codes import CodeSet, InstanceCodes
from .packed import pack_codes

__all__ = ["codes_from_outputs"]


def codes_from_outputs(
    outputs: Sequence[Mapping[str, Any]],
    *,
    image_ids: Sequence[str],
    file_names: Sequence[str],
    labels: Sequence[Sequence[int]] | None = None,
    class_names: Sequence[str] = (),
    instance_min_score: float = 0.3,
    activations: bool = True,
    features: bool = False,
    **attributes: Any,
) -> CodeSet:
    """A model's outputs as a code set on the CPU.

    Args:
        outputs: a dict for each image with ``image_code``, bool (K,), and if available
            ``image_activation``, float (K,), ``image_feature``, float (D,), and ``instances`` with
            ``pred_boxes``, ``scores``, ``pred_classes`` and ``pred_codes``, bool (R, K1). Where
            they also have ``pred_regions``, int (R,), a region that was kept for several classes
            gets one row, with its best class.
        image_ids, file_names: a string for each image.
        labels: the class ids of each image, or None where unknown.
        class_names: the names of all classes.
        instance_min_score: detections below this score get no row.
        activations: whether to keep ``image_activation``, if there is one.
        features: whether to keep ``image_feature``.
        attributes: other fields of :class:`CodeSet`.

    Raises:
        RegionDHError: an output has no ``image_code``, or no ``image_feature`` although
            ``features`` is set; a code holds anything but 0 and 1, or another number of bits than
            the others; or there is no class of some label.
    """
    if not all("image_code" in output for output in outputs):
        raise RegionDHError("the model gave no image_code: use a model that hashes images")
    if features and not all("image_feature" in output for output in outputs):
        raise RegionDHError(
            "the model gave no image_feature: use a model that has features of whole images, such "
            "as ImageHash, or store none"
        )
    activations = activations and all("image_activation" in output for output in outputs)

    def stack(key: str) -> np.ndarray:
        rows = [output[key].float().cpu().numpy() for output in outputs]
        if len({row.shape for row in rows}) > 1:
            shapes = " and ".join(sorted({str(row.shape) for row in rows}))
            raise RegionDHError(f"the model gave {key} of shapes {shapes}, not of one")
        return np.stack(rows)

    codes = _bits("image_code", stack("image_code"))
    multi_hot = None
    if labels is not None:
        multi_hot = np.zeros((len(outputs), len(class_names)), np.uint8)
        for row, classes in enumerate(labels):
            wrong = [c for c in classes if not 0 <= c < len(class_names)]
            if wrong:
                raise RegionDHError(
                    f"{display_name(image_ids[row])} has label {wrong[0]}, and there are "
                    f"{len(class_names)} classes, numbered from 0"
                )
            multi_hot[row, list(classes)] = 1
    return CodeSet(
        codes=pack_codes(codes),
        bits=codes.shape[1],
        image_ids=list(image_ids),
        file_names=list(file_names),
        labels=multi_hot,
        class_names=list(class_names),
        activations=stack("image_activation").astype(np.float16) if activations else None,
        features=stack("image_feature").astype(np.float16) if features else None,
        instances=_keep_instances(
            [output.get("instances") for output in outputs], instance_min_score
        ),
        **attributes,
    )


def _bits(name: str, values: np.ndarray) -> np.ndarray:
    """Values of 0 and 1 as bool; others, such as activations or -1 and 1, would all be True."""
    if values.dtype != bool and not np.isin(values, (0, 1)).all():
        raise RegionDHError(
            f"the model gave {name} with other values than 0 and 1: give bits, such as activations "
            ">= 0.5"
        )
    return values.astype(bool)


def _keep_instances(found: Sequence[Any], min_score: float) -> InstanceCodes | None:
    """The detections of all images as one table; None if no image has instance codes."""
    parts = []
    for row, instances in enumerate(found):
        if instances is None or not instances.has("pred_codes"):
            continue
        instances = instances[instances.scores >= min_score].to("cpu")
        instances = instances[_best_of_each_region(instances)]
        codes = _bits("pred_codes", instances.pred_codes.numpy())
        parts.append(
            InstanceCodes(
                codes=pack_codes(codes),
                bits=codes.shape[1],
                image_index=np.full(len(codes), row, np.int64),
                boxes=instances.pred_boxes.tensor.float().numpy(),
                scores=instances.scores.float().numpy(),
                classes=instances.pred_classes.numpy(),
            )
        )
    return concatenate_instances(parts) if parts else None


def _best_of_each_region(instances: Any) -> np.ndarray:
    """The rows of an image's detections to keep, int64, ascending.

    Of the detections of a region that have the same code, it keeps the one with the highest score;
    of equal scores, the first. IAH makes another code for each class, so all of its detections
    stay.
    """
    if not instances.has("pred_regions"):
        return np.arange(len(instances))
    regions = instances.pred_regions.numpy()[:, None]
    codes = pack_codes(instances.pred_codes.numpy().astype(bool))
    order = np.argsort(-instances.scores.float().numpy(), kind="stable")
    _, first = np.unique(np.hstack([regions, codes])[order], axis=0, return_index=True)
    return np.sort(order[first])
