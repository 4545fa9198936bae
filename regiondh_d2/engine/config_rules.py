"""The legal values of a config: one table, checked once, before anything is built.

Detectron2 checks only types. A wrong value then fails hours later with a traceback from deep inside
a library, or never.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from detectron2.config import CfgNode, get_cfg

from ..config import add_regiondh_config, flat_items
from ..modeling.hashing import FUSION_NORMS
from ..modeling.losses import HASH_LOSS_REGISTRY
from ..modeling.region_outputs import CLASSIFIER_INPUTS
from ..modeling.roi_heads import (
    FUSION_INPUTS,
    FUSION_ROIS,
    IMAGE_LOSSES,
    WHOLE_IMAGE,
)
from ..utils.errors import RegionDHError
from .gradient_clipping import FULL_MODEL

__all__ = ["RULES", "Rule", "check_values", "default_values", "legal_values"]


@dataclass(frozen=True)
class Rule:
    """Legal values of a key: as words that follow "it takes", and as a test."""

    words: str
    holds: Callable[[Any], bool]


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return _is_whole(value) or (isinstance(value, float) and math.isfinite(value))


def whole(least: int, most: int | None = None) -> Rule:
    """A whole number."""
    words = f"a whole number of at least {least}"
    if most is not None:
        words = f"a whole number from {least} to {most}"
    return Rule(words, lambda v: _is_whole(v) and least <= v and (most is None or v <= most))


def number(least: float = -math.inf, most: float = math.inf, *, above: float = -math.inf) -> Rule:
    """A finite number within these limits and greater than ``above``."""
    limits = []
    if most < math.inf and least > -math.inf:
        limits.append(f"from {least:g} to {most:g}")
    elif least > -math.inf:
        limits.append(f"of at least {least:g}")
    if above > -math.inf:
        limits.append(f"above {above:g}")
        if most < math.inf:
            limits.append(f"to {most:g}")
    words = " ".join(["a number", *limits])
    return Rule(words, lambda v: _is_number(v) and above < v and least <= v <= most)


def one_of(*values: Any) -> Rule:
    """One of these values."""
    words = f"one of {', '.join(map(str, values))}" if len(values) > 1 else f"only {values[0]}"
    return Rule(words, lambda v: any(v == x and type(v) is type(x) for x in values))


def text(empty: bool = True) -> Rule:
    """Text."""
    return Rule(
        "text" if empty else "text, not empty", lambda v: isinstance(v, str) and (empty or v != "")
    )


def several(rule: Rule, length: int | None = None, least: int = 0) -> Rule:
    """A list or tuple whose elements follow a rule."""
    count = f"{length} elements" if length is not None else "elements"
    if length is None and least:
        count = f"{least} or more elements"

    def holds(value: Any) -> bool:
        if not isinstance(value, list | tuple) or not all(map(rule.holds, value)):
            return False
        return len(value) >= least if length is None else len(value) == length

    return Rule(f"a list of {count}, each {rule.words}", holds)


def _is_device(value: Any) -> bool:
    try:
        device = torch.device(value)
    except (RuntimeError, TypeError):
        return False
    # CUDA may be missing altogether; for that there is a fallback.
    devices = torch.cuda.device_count() if device.type == "cuda" else 0
    return devices == 0 or device.index is None or device.index < devices


_SHARE = number(0.0, 1.0)
_POSITIVE_SHARE = number(most=1.0, above=0.0)
_SHARE_BELOW_1 = Rule("a number of at least 0 and below 1", lambda v: _SHARE.holds(v) and v < 1)
_WEIGHT = number(0.0)
_NAMES = several(text(empty=False))
_DATASETS = Rule('a list of names, such as ("zoo_retrieval",)', _NAMES.holds)
_FEATURES = Rule(
    "a list of names of feature maps, at least one, such as ['res4']",
    several(text(empty=False), least=1).holds,
)
_FILES = Rule("a list of file names", _NAMES.holds)
_SIZE = whole(1)
_SIZE_OR_AS_IT_IS = Rule("a size in pixels, or 0 to leave images as they are", whole(0).holds)
_IOU_LABEL = one_of(-1, 0, 1)
_BOX_LOSS = one_of("smooth_l1", "giou", "diou", "ciou")
_BOX_WEIGHTS = Rule(
    "a list of 4 numbers above 0, or of 5 for rotated boxes",
    lambda v: any(several(number(above=0.0), n).holds(v) for n in (4, 5)),
)


def _is_channels(value: Any) -> bool:
    return _is_whole(value) and (value == -1 or value > 0)


_HASH, _RETRIEVAL = "MODEL.REGION_DH.", "TEST.RETRIEVAL."

RULES: dict[str, Rule] = {
    # Ours
    _HASH + "BITS": whole(1),
    _HASH + "BITS_INSTANCE": whole(0),
    _HASH + "BITS_IMAGE": whole(0),
    _HASH + "LATENT_INIT_STD": _WEIGHT,
    _HASH + "LATENT_INIT_BIAS": number(),
    _HASH + "CLASSIFIER_INPUT": one_of(*CLASSIFIER_INPUTS),
    _HASH + "FUSION_ROIS": one_of(*FUSION_ROIS),
    _HASH + "FUSION_NUM_ROIS": whole(0),
    _HASH + "MAX_PIXELS": whole(1),
    _HASH + "FUSION_INPUT": one_of(*FUSION_INPUTS),
    _HASH + "FUSION_NORM": one_of(*FUSION_NORMS),
    _HASH + "FUSION_SCALE": number(above=0.0),
    _HASH + "WHOLE_IMAGE": one_of(*WHOLE_IMAGE),
    _HASH + "IMAGE_LOSS": one_of(*IMAGE_LOSSES),
    _HASH + "IMAGE_ENCODERS": _NAMES,
    _HASH + "IMAGE_ENCODER_SIZES": several(whole(32)),
    _HASH + "IMAGE_ENCODER_FREEZE_AT": whole(0),
    _HASH + "FUSED_DROPOUT": _SHARE_BELOW_1,
    _HASH + "LOSS_WEIGHTS.ALPHA": several(_WEIGHT, 2),
    _HASH + "LOSS_WEIGHTS.BETA": several(_WEIGHT, 3),
    _HASH + "LOSS_WEIGHTS.GAMMA_H1": several(_WEIGHT, 2),
    _HASH + "LOSS_WEIGHTS.GAMMA_H2": several(_WEIGHT, 2),
    _HASH + "LOSS_WEIGHTS.SIMILARITY": _WEIGHT,
    _HASH + "LOSS_WEIGHTS.OBJECT_CODE": several(_WEIGHT, 2),
    _HASH + "LR_FACTORS.BACKBONE": _WEIGHT,
    _HASH + "LR_FACTORS.PROPOSAL_GENERATOR": _WEIGHT,
    _HASH + "LR_FACTORS.BOX_HEAD": _WEIGHT,
    _HASH + "LR_FACTORS.BOX_PREDICTOR": _WEIGHT,
    _HASH + "LR_FACTORS.INSTANCE_HASH": _WEIGHT,
    _HASH + "LR_FACTORS.IMAGE_HASH": _WEIGHT,
    _HASH + "IMAGE_GRADIENT_SCALE": _WEIGHT,
    _HASH + "CODE_QUEUE": whole(0),
    _HASH + "LOSS_WEIGHTS.SIMILARITY_WARMUP": whole(0),
    _HASH + "LR_FACTORS.OBJECT_HASH": _WEIGHT,
    _HASH + "LR_FACTORS.IMAGE_ENCODERS": _WEIGHT,
    "MODEL.TIMM.NAME": text(empty=False),
    "MODEL.TIMM.OUT_INDICES": several(whole(0), least=1),
    "MODEL.TIMM.OUTPUT_STRIDE": one_of(0, 8, 16, 32),
    "MODEL.TIMM.SIZE_DIVISIBILITY": whole(0),
    "MODEL.REGION_DH.LIGHT_HEAD_CONV_DIM": whole(0),
    _RETRIEVAL + "TOPK": whole(1),
    _RETRIEVAL + "INSTANCE_MIN_SCORE": _SHARE,
    # Detectron2's keys that matter for our trainings and evaluations
    "MODEL.DEVICE": Rule("a device that is here: cpu, cuda, cuda:0, ...", _is_device),
    "MODEL.PIXEL_MEAN": several(number(), 3),
    "MODEL.PIXEL_STD": several(number(above=0.0), 3),
    "MODEL.ANCHOR_GENERATOR.OFFSET": _SHARE_BELOW_1,
    "MODEL.ANCHOR_GENERATOR.SIZES": several(several(number(above=0.0), least=1), least=1),
    "MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS": several(several(number(above=0.0), least=1), least=1),
    "MODEL.PROPOSAL_GENERATOR.MIN_SIZE": whole(0),
    "MODEL.RPN.IN_FEATURES": _FEATURES,
    "MODEL.RPN.BATCH_SIZE_PER_IMAGE": whole(1),
    "MODEL.RPN.BOUNDARY_THRESH": Rule("a whole number of pixels, or -1 for none", whole(-1).holds),
    "MODEL.RPN.SMOOTH_L1_BETA": _WEIGHT,
    "MODEL.RPN.BBOX_REG_LOSS_TYPE": _BOX_LOSS,
    "MODEL.RPN.BBOX_REG_WEIGHTS": _BOX_WEIGHTS,
    "MODEL.RPN.CONV_DIMS": several(
        Rule("a whole number of channels, or -1 for those of the features", _is_channels), least=1
    ),
    "MODEL.RPN.IOU_LABELS": several(_IOU_LABEL, 3),
    "MODEL.RPN.POSITIVE_FRACTION": _SHARE,
    "MODEL.RPN.IOU_THRESHOLDS": Rule(
        "a list of 2 numbers above 0 and up to 1, the smaller one first",
        lambda v: several(_POSITIVE_SHARE, 2).holds(v) and v[0] <= v[1],
    ),
    "MODEL.RPN.PRE_NMS_TOPK_TRAIN": whole(1),
    "MODEL.RPN.PRE_NMS_TOPK_TEST": whole(1),
    "MODEL.RPN.POST_NMS_TOPK_TRAIN": whole(1),
    "MODEL.RPN.POST_NMS_TOPK_TEST": whole(1),
    "MODEL.RPN.NMS_THRESH": _SHARE,
    "MODEL.ROI_HEADS.NUM_CLASSES": whole(1),
    "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE": whole(1),
    "MODEL.ROI_HEADS.POSITIVE_FRACTION": _SHARE,
    "MODEL.ROI_HEADS.IOU_LABELS": several(_IOU_LABEL, 2),
    "MODEL.ROI_HEADS.IN_FEATURES": _FEATURES,
    "MODEL.ROI_HEADS.IOU_THRESHOLDS": several(_POSITIVE_SHARE, 1),
    "MODEL.ROI_HEADS.SCORE_THRESH_TEST": _SHARE,
    "MODEL.ROI_HEADS.NMS_THRESH_TEST": _SHARE,
    "MODEL.ROI_BOX_HEAD.BBOX_REG_LOSS_TYPE": _BOX_LOSS,
    "MODEL.ROI_BOX_HEAD.BBOX_REG_WEIGHTS": _BOX_WEIGHTS,
    "MODEL.ROI_BOX_HEAD.SMOOTH_L1_BETA": _WEIGHT,
    "MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION": whole(1),
    "MODEL.ROI_BOX_HEAD.POOLER_SAMPLING_RATIO": whole(0),
    "MODEL.ROI_BOX_HEAD.POOLER_TYPE": one_of(
        "ROIAlignV2", "ROIAlign", "ROIPool", "ROIAlignRotated"
    ),
    "MODEL.ROI_BOX_HEAD.NUM_FC": whole(0, 100),
    "MODEL.ROI_BOX_HEAD.FC_DIM": whole(1),
    "MODEL.ROI_BOX_HEAD.NUM_CONV": whole(0, 100),
    "MODEL.ROI_BOX_HEAD.CONV_DIM": whole(1),
    "INPUT.FORMAT": one_of("RGB", "BGR", "L", "YUV-BT.601"),
    "INPUT.MIN_SIZE_TRAIN": several(_SIZE_OR_AS_IT_IS, least=1),
    "INPUT.MIN_SIZE_TRAIN_SAMPLING": one_of("choice", "range"),
    "INPUT.MAX_SIZE_TRAIN": _SIZE,
    "INPUT.MIN_SIZE_TEST": _SIZE_OR_AS_IT_IS,
    "INPUT.MAX_SIZE_TEST": _SIZE,
    "INPUT.RANDOM_FLIP": one_of("none", "horizontal", "vertical"),
    "INPUT.CROP.TYPE": one_of("relative_range", "relative", "absolute", "absolute_range"),
    "INPUT.CROP.SIZE": several(number(above=0.0), 2),
    "DATASETS.TRAIN": _DATASETS,
    "DATASETS.TEST": _DATASETS,
    "DATASETS.PROPOSAL_FILES_TRAIN": _FILES,
    "DATASETS.PROPOSAL_FILES_TEST": _FILES,
    "DATASETS.PRECOMPUTED_PROPOSAL_TOPK_TRAIN": whole(1),
    "DATASETS.PRECOMPUTED_PROPOSAL_TOPK_TEST": whole(1),
    "DATALOADER.NUM_WORKERS": whole(0),
    "DATALOADER.SAMPLER_TRAIN": one_of(
        "TrainingSampler", "RepeatFactorTrainingSampler", "RandomSubsetTrainingSampler"
    ),
    "DATALOADER.REPEAT_THRESHOLD": _WEIGHT,
    "SEED": whole(-1, 2**31 - 1),  # NumPy's limit, with room for the number of processes
    "SOLVER.IMS_PER_BATCH": whole(1),
    "SOLVER.MAX_ITER": whole(1),
    "SOLVER.BASE_LR": number(above=0.0),
    "SOLVER.BASE_LR_END": _WEIGHT,
    "SOLVER.NUM_DECAYS": whole(1),
    "SOLVER.MOMENTUM": _SHARE,
    "SOLVER.WEIGHT_DECAY": _WEIGHT,
    "SOLVER.WEIGHT_DECAY_NORM": _WEIGHT,
    "SOLVER.WEIGHT_DECAY_BIAS": Rule(
        "a number of at least 0, or None to take WEIGHT_DECAY",
        lambda v: v is None or _WEIGHT.holds(v),
    ),
    "SOLVER.GAMMA": _WEIGHT,
    "SOLVER.STEPS": several(whole(0)),
    "SOLVER.WARMUP_FACTOR": _SHARE,
    "SOLVER.WARMUP_ITERS": whole(0),
    "SOLVER.WARMUP_METHOD": one_of("constant", "linear"),
    "SOLVER.LR_SCHEDULER_NAME": one_of(
        "WarmupMultiStepLR", "WarmupCosineLR", "WarmupStepWithFixedGammaLR"
    ),
    "SOLVER.CHECKPOINT_PERIOD": whole(1),
    "SOLVER.REFERENCE_WORLD_SIZE": whole(0),
    "SOLVER.BIAS_LR_FACTOR": _WEIGHT,
    "SOLVER.CLIP_GRADIENTS.CLIP_TYPE": one_of("value", "norm", FULL_MODEL),
    "SOLVER.CLIP_GRADIENTS.CLIP_VALUE": number(above=0.0),
    "SOLVER.CLIP_GRADIENTS.NORM_TYPE": Rule(
        "a number above 0; inf is the maximum norm",
        lambda v: isinstance(v, int | float) and not isinstance(v, bool) and v > 0,
    ),
    "TEST.EVAL_PERIOD": whole(0),
    "TEST.DETECTIONS_PER_IMAGE": Rule("a whole number, or -1 for no limit", whole(-1).holds),
    "TEST.PRECISE_BN.NUM_ITER": whole(1),
    "TEST.AUG.ENABLED": Rule(
        "only False: there is no test-time augmentation here", lambda v: not v
    ),
    "OUTPUT_DIR": text(empty=False),
    "VIS_PERIOD": whole(0),
}
# May be infinite: the maximum norm.
_INFINITE = ("SOLVER.CLIP_GRADIENTS.NORM_TYPE",)

_LARGEST = 2**63 - 1  # that PyTorch takes

_CACHE = _HASH + "FEATURE_CACHE"
# Keys without effect on cached features, and their neutral values.
_WITHOUT_CACHE = {
    _RETRIEVAL + "DATABASE_CODES": ("",),
    "INPUT.CROP.ENABLED": (False,),
    "INPUT.RANDOM_FLIP": ("none", "horizontal"),
    "DATALOADER.SAMPLER_TRAIN": ("TrainingSampler",),
    "MODEL.LOAD_PROPOSALS": (False,),
}


@cache
def default_values() -> dict[str, Any]:
    """The defaults of all keys, Detectron2's and ours, by dotted name."""
    cfg = get_cfg()
    add_regiondh_config(cfg)
    return dict(flat_items(cfg))


def legal_values(key: str) -> str:
    """The legal values of a key, in words."""
    default = default_values().get(key)
    kinds = {bool: "True or False", int: "a whole number", float: "a number", str: "text"}
    words = kinds.get(type(default), "a list")
    return RULES[key].words if key in RULES else words


def check_values(cfg: CfgNode) -> None:
    """Compare every value of a config with :data:`RULES`.

    Raises:
        RegionDHError: a value is illegal; the message names the key and its legal values.
    """
    defaults, values = default_values(), dict(flat_items(cfg))
    for key, value in values.items():
        nothing = value is None and defaults.get(key) is not None
        if any(isinstance(x, int) and x > _LARGEST for x in _numbers(value)):
            raise RegionDHError(f"{key} is {_shown(value)}: it takes numbers up to {_LARGEST}")
        infinite = key not in _INFINITE and not all(map(math.isfinite, _numbers(value)))
        if nothing or infinite or (key in RULES and not RULES[key].holds(value)):
            raise RegionDHError(f"{key} is {_shown(value)}: it takes {legal_values(key)}")
    objective = values[_HASH + "OBJECTIVE"]
    if objective not in HASH_LOSS_REGISTRY:
        known = ", ".join(name for name, _ in HASH_LOSS_REGISTRY)
        raise RegionDHError(f"{_HASH}OBJECTIVE is {_shown(objective)}: it takes one of {known}")
    if (
        values["INPUT.MIN_SIZE_TRAIN_SAMPLING"] == "range"
        and len(values["INPUT.MIN_SIZE_TRAIN"]) != 2
    ):
        raise RegionDHError(
            f"INPUT.MIN_SIZE_TRAIN is {values['INPUT.MIN_SIZE_TRAIN']}: with "
            "INPUT.MIN_SIZE_TRAIN_SAMPLING range it takes two sizes, the least and the largest"
        )
    if values["SOLVER.LR_SCHEDULER_NAME"] == "WarmupMultiStepLR" and any(
        a >= b for a, b in itertools.pairwise(values["SOLVER.STEPS"])
    ):
        raise RegionDHError(
            f"SOLVER.STEPS is {values['SOLVER.STEPS']}: it takes iterations in ascending order"
        )
    if (
        values["SOLVER.LR_SCHEDULER_NAME"] == "WarmupCosineLR"
        and values["SOLVER.BASE_LR_END"] > values["SOLVER.BASE_LR"]
    ):
        raise RegionDHError(
            f"SOLVER.BASE_LR_END is {values['SOLVER.BASE_LR_END']}: with SOLVER.LR_SCHEDULER_NAME "
            f"WarmupCosineLR it takes at most SOLVER.BASE_LR, {values['SOLVER.BASE_LR']}"
        )
    if values["INPUT.CROP.ENABLED"]:
        relative = values["INPUT.CROP.TYPE"].startswith("relative")
        rule = several(number(most=1.0, above=0.0) if relative else whole(1), 2)
        if not rule.holds(values["INPUT.CROP.SIZE"]):
            raise RegionDHError(
                f"INPUT.CROP.SIZE is {values['INPUT.CROP.SIZE']}: with INPUT.CROP.TYPE "
                f"{values['INPUT.CROP.TYPE']} it takes {'shares' if relative else 'pixels'}, "
                f"{rule.words}"
            )
    for part in ("TRAIN", "TEST") if values["MODEL.LOAD_PROPOSALS"] else ():
        names, files = f"DATASETS.{part}", f"DATASETS.PROPOSAL_FILES_{part}"
        if len(values[names]) != len(values[files]):
            raise RegionDHError(
                f"{files} is {values[files]}: with MODEL.LOAD_PROPOSALS it takes a file for each "
                f"of {names}, {values[names]}"
            )
    for key, neutral in _WITHOUT_CACHE.items():
        if values[_CACHE] and values[key] not in neutral:
            raise RegionDHError(
                f"{key} is {_shown(values[key])}, which has no effect on cached features: set it "
                f"to {_shown(neutral[-1])}, or {_CACHE} to ''"
            )


def _shown(value: Any) -> str:
    return "nothing" if value is None else repr(value)


def _numbers(value: Any) -> Iterator[float]:
    if isinstance(value, int | float):
        yield value
    elif isinstance(value, list | tuple):
        for element in value:
            yield from _numbers(element)
