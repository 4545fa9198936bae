"""Precomputed proposals, ``DATASETS.PROPOSAL_FILES_TRAIN`` and ``_TEST``."""

from typing import Any

import numpy as np
from detectron2.data import get_detection_dataset_dicts, load_proposals_into_dataset

from ..utils.display import display_name
from ..utils.errors import RegionDHError
from ..utils.shortage import refuse_if_short
from .catalog import adopt

__all__ = ["dicts_with_proposals"]


def dicts_with_proposals(name: str, file: str) -> list[dict[str, Any]]:
    """The dicts of a dataset, with each image's proposals from a file.

    Args:
        name: name of a registered dataset.
        file: a pickle as Detectron2 reads it: a dict with the ``ids`` of images and, for each
            image, ``boxes`` (N, 4) and ``objectness_logits`` (N,).

    Raises:
        OSError: the file can't be opened.
        RegionDHError: it is damaged, or lacks an image.
    """
    adopt(name)
    records = get_detection_dataset_dicts([name], filter_empty=False, check_consistency=False)
    try:
        load_proposals_into_dataset(records, file)
        for record in records:
            boxes, logits = record["proposal_boxes"], record["proposal_objectness_logits"]
            if np.shape(boxes) != (len(logits), 4) or not np.isfinite(boxes).all():
                raise ValueError(f"image {record['image_id']} has no boxes (N, 4) of N proposals")
    except OSError:
        raise
    except Exception as error:  # damaged pickles raise nearly everything
        refuse_if_short(error, memory=False)
        lacks = isinstance(error, KeyError) and len(error.args) == 1
        what = f"it has no {error.args[0]}" if lacks else " ".join(str(error).split())
        raise RegionDHError(
            f"{display_name(file)}: no proposals for the dataset {name} can be read from it "
            f"({what or type(error).__name__}): make the file again, or set "
            "MODEL.LOAD_PROPOSALS to False"
        ) from error
    return records
