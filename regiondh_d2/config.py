"""Every config key of the package, with its default, its legal values and where it comes from.

Keys live in nodes of our own (``MODEL.REGION_DH``, ``MODEL.TIMM``, ``TEST.RETRIEVAL``), never in
Detectron2's, so that a newer Detectron2 can't give one of them another meaning.
"""

import ast
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from fnmatch import fnmatchcase
from functools import cache
from typing import Any

from detectron2.config import CfgNode as CN
from detectron2.config import get_cfg

__all__ = [
    "DEFAULT_MAX_PIXELS",
    "RENAMED_KEYS",
    "RENAMED_VALUES",
    "add_regiondh_config",
    "changed_settings",
    "code_settings",
    "current_value",
    "feature_settings",
    "flat_items",
    "max_pixels",
    "parse_settings",
    "recorded_max_pixels",
    "square_sizes",
    "training_settings",
]

# Version 0.1 refused every image of more pixels, as Pillow does by default.
DEFAULT_MAX_PIXELS = 178_956_970

# The version of data/image_reader.py. Raise it whenever a file gives other pixels than before.
# Version 0.1 had 1, and its code files don't name it.
_IMAGE_READER = 2

# Keys that version 0.1 named otherwise. Old config files, KEY VALUE pairs and settings of code
# files still have the old names.
RENAMED_KEYS = {"MODEL.TIMM.HEAD_CONV_DIM": "MODEL.REGION_DH.LIGHT_HEAD_CONV_DIM"}

# Values that had another name, by key. Old configs, checkpoints, code files and results of the
# study still have it. What was called "isdh" is the loss of IDHN.
RENAMED_VALUES = {"MODEL.REGION_DH.OBJECTIVE": {"isdh": "idhn"}}

# Three places ask whether two configs mean the same: code files (do these settings give the same
# rows?), feature caches (the same features?) and checkpoints (the same training?). Every key
# counts, so that none is forgotten, except those listed below. "*" matches any text.

# Where files are, and which device computes.
_PLACES = (
    "CUDNN_BENCHMARK",
    "DATALOADER.NUM_WORKERS",
    "MODEL.DEVICE",
    "MODEL.REGION_DH.FEATURE_CACHE",
    "MODEL.WEIGHTS",  # their contents count, and each of the three stores a hash of them
    "OUTPUT_DIR",
    "VERSION",
    "VIS_PERIOD",
)
# Evaluation: changes neither a network nor a code.
_EVALUATION = (
    "DATASETS.TEST",
    "TEST.AUG.*",
    "TEST.EVAL_PERIOD",
    "TEST.EXPECTED_RESULTS",
    "TEST.KEYPOINT_OKS_SIGMAS",
    "TEST.RETRIEVAL.BOX_AP",
    "TEST.RETRIEVAL.COUNT_DIFFICULT",  # code files have an attribute of this name
    "TEST.RETRIEVAL.DATABASE_CODES",
    "TEST.RETRIEVAL.EXCLUDE_SELF",
    "TEST.RETRIEVAL.TOPK",
)
# Training: all of it is in the weights.
_TRAINING = (
    "*_TRAIN",
    "DATALOADER.*",
    "DATASETS.*",
    "FLOAT32_PRECISION",
    "GLOBAL.*",
    "INPUT.CROP.*",
    "INPUT.MASK_FORMAT",
    "INPUT.MIN_SIZE_TRAIN_SAMPLING",
    "INPUT.RANDOM_FLIP",
    "MODEL.REGION_DH.CODE_QUEUE",
    "MODEL.REGION_DH.FUSED_DROPOUT",
    "MODEL.REGION_DH.IMAGE_ENCODER_FREEZE_AT",
    "MODEL.REGION_DH.IMAGE_GRADIENT_SCALE",
    "MODEL.REGION_DH.LOSS_WEIGHTS.*",
    "MODEL.REGION_DH.LR_FACTORS.*",
    "SEED",
    "SOLVER.*",
    "TEST.PRECISE_BN.*",
)
# Everything above the pooled features of regions.
_HEADS = (
    "MODEL.REGION_DH.BITS*",
    "MODEL.REGION_DH.CLASSIFIER_INPUT",
    "MODEL.REGION_DH.FUSION_*",
    "MODEL.REGION_DH.IMAGE_ENCODER*",  # their outputs have files of their own
    "MODEL.REGION_DH.IMAGE_LOSS",
    "MODEL.REGION_DH.LATENT_INIT_*",
    "MODEL.REGION_DH.NORMALIZE_FUSED",
    "MODEL.REGION_DH.OBJECTIVE",
    "MODEL.REGION_DH.OBJECT_CODE",
    "MODEL.REGION_DH.WHOLE_IMAGE",
    "MODEL.ROI_BOX_HEAD.BBOX_REG_*",
    "MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG",
    "MODEL.ROI_BOX_HEAD.*FED_LOSS*",
    "MODEL.ROI_BOX_HEAD.FC_DIM",
    "MODEL.ROI_BOX_HEAD.NUM_FC",
    "MODEL.ROI_BOX_HEAD.SMOOTH_L1_BETA",
    "MODEL.ROI_BOX_HEAD.TRAIN_ON_PRED_BOXES",
    "MODEL.ROI_BOX_HEAD.USE_SIGMOID_CE",
    "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE",
    "MODEL.ROI_HEADS.IOU_*",
    "MODEL.ROI_HEADS.NAME",
    "MODEL.ROI_HEADS.NMS_THRESH_TEST",
    "MODEL.ROI_HEADS.NUM_CLASSES",
    "MODEL.ROI_HEADS.POSITIVE_FRACTION",
    "MODEL.ROI_HEADS.PROPOSAL_APPEND_GT",
    "MODEL.ROI_HEADS.SCORE_THRESH_TEST",
    "TEST.*",
)
# How often a training is saved, and how its codes are stored.
_SAVING = ("SOLVER.CHECKPOINT_PERIOD", "TEST.DETECTIONS_PER_IMAGE", "TEST.RETRIEVAL.*")
# Settings of a code file that change detections only, or training only.
_NOT_OF_IMAGE_CODES = (
    "*LOSS*",
    "MODEL.REGION_DH.LATENT_INIT_*",
    "MODEL.REGION_DH.OBJECTIVE",
    "MODEL.REGION_DH.OBJECT_CODE",
    "MODEL.ROI_HEADS.NMS_THRESH_TEST",
    "MODEL.ROI_HEADS.SCORE_THRESH_TEST",
    "TEST.DETECTIONS_PER_IMAGE",
    "TEST.RETRIEVAL.INSTANCE_MIN_SCORE",
)

_NOT_OF_CODES = (*_PLACES, *_EVALUATION, *_TRAINING)
_NOT_OF_FEATURES = (*_NOT_OF_CODES, *_HEADS)
_NOT_OF_TRAINING = (*_PLACES, *_EVALUATION, *_SAVING)


def add_regiondh_config(cfg: CN) -> None:
    """Add the keys of regiondh_d2 to a Detectron2 config, in place."""
    _add_region_dh(cfg)
    _add_timm(cfg)
    _add_retrieval(cfg)
    for old, new in RENAMED_KEYS.items():
        if not cfg.key_is_renamed(old):
            cfg.register_renamed_key(old, new)


def _add_region_dh(cfg: CN) -> None:
    cfg.MODEL.REGION_DH = node = CN()

    # Code length. One key sets both lengths; the other two override it where they are not 0.
    node.BITS = 48
    node.BITS_INSTANCE = 0  # K1, one code per region (H1)
    node.BITS_IMAGE = 0  # K2, one code per image (H2)

    # The light box head ("LightBoxHead"): one 1x1 convolution (0: none) before average pooling.
    # 1280 is the width of EfficientNet-Lite0's conv_head, whose ImageNet weights then fit.
    node.LIGHT_HEAD_CONV_DIM = 0

    # Initial weights of the two latent layers: a normal distribution of this standard deviation
    # (the paper: 0.005), and a constant bias.
    node.LATENT_INIT_STD = 0.005
    node.LATENT_INIT_BIAS = 0.0
    # What the instance classifier reads: "h1" (the paper: the activations of H1) or "box_features"
    # (fc7, so that H1 is beside the classifier, not below it).
    node.CLASSIFIER_INPUT = "h1"

    # Cross-proposal fusion. Which regions are fused, in training and at test alike:
    # "topk": the first FUSION_NUM_ROIS proposals of the RPN by objectness, before sampling.
    # "sampled": the sampled RoIs in training and every proposal at test (the author's code).
    node.FUSION_ROIS = "topk"
    node.FUSION_NUM_ROIS = 100
    # What is fused: the activations of H1 (the paper), or fc7 ("box_features"), as IAH does.
    node.FUSION_INPUT = "h1"
    # "sum": P^T A1 (the paper). "mean": that divided by the number of regions.
    # "class_mean": (P^T A1) / sum_i p_ic for each class c, joined with max_i p_ic.
    # "class_presence": the latter, the mean's deviation from 0.5 scaled by max_i p_ic.
    # "class_summary": that without its K1 columns, of which the mean absolute value is left: two
    # values for each class.
    node.FUSION_NORM = "sum"
    # A factor on the fusion matrix, before NORMALIZE_FUSED: a sum over many regions is far above 1,
    # and with plain gradient steps H2 then hardly learns.
    node.FUSION_SCALE = 1.0
    # A region that covers the whole image: "none" (the paper), "region" (one more fused region),
    # "row" (its H1 activations as one more row of the fusion matrix, unmixed with the others), or
    # "feature" (its box-head features beside the fusion matrix), or "pooled" (what the box head's
    # fully connected layers read of it; LightBoxHead, Res5BoxHead and VGGBoxHead only).
    node.WHOLE_IMAGE = "none"
    # True standardizes what H2 reads, each dimension by its running mean and variance.
    node.NORMALIZE_FUSED = False
    # The share of the fused values, and of these alone, that H2 doesn't see in training: dropped at
    # random after NORMALIZE_FUSED. H2 otherwise learns the regions of few images by heart, where it
    # reads IMAGE_ENCODERS, too.
    node.FUSED_DROPOUT = 0.0
    # Beyond the paper: classifiers of timm's ("tf_efficientnet_lite2") that read the whole photo
    # for H2, beside the fused regions and WHOLE_IMAGE. Each reads the photo as it was read from its
    # file, squashed to a square with sides of IMAGE_ENCODER_SIZES pixels. A training whose
    # MODEL.WEIGHTS lack them takes their ImageNet weights. They are frozen unless
    # LR_FACTORS.IMAGE_ENCODERS lets them learn. Where nothing but them and H2 learns, and H2 reads
    # no region (FUSION_NUM_ROIS 0, WHOLE_IMAGE "none"), training doesn't run the detector.
    node.IMAGE_ENCODERS = []
    node.IMAGE_ENCODER_SIZES = []
    # True averages what they make of the photo and of its mirror image, in twice the time.
    node.IMAGE_ENCODER_MIRRORED = False
    # So many of their groups of layers stay frozen where they learn, counted from the photo on: the
    # stem is the first, then come the stages (timm's `group_matcher(coarse=True)`).
    node.IMAGE_ENCODER_FREEZE_AT = 0
    # False stops the gradient of the image branch at the fusion, not at what IMAGE_ENCODERS give.
    node.FUSION_GRADIENT = True
    # Beyond the paper (1.0): a factor on the gradient with which the image branch reaches what the
    # box head reads and gives of the fused regions and of the whole image. H1, H2 and the
    # classifiers learn at the full rate; the box head and the backbone, where this gradient may be
    # many times that of detection, by this share of it.
    node.IMAGE_GRADIENT_SCALE = 1.0

    # The image classification loss: "logistic" (one binary problem per class, summed over classes)
    # or "softmax" (cross entropy with the normalized multi-label vector).
    node.IMAGE_LOSS = "logistic"

    # Beyond the paper: what LOSS_WEIGHTS.SIMILARITY weights, an objective for the codes of images
    # given their labels (see modeling/losses.py). "cosine": the inner products of codes are
    # drawn to the cosines of label vectors. Other methods': "idhn", "isdh_soft", "dmssph"
    # (reconstructed), "dpsh", "triplet" (IAH's, reconstructed), "csq" or "orthohash" (without its
    # batch norm); the last two draw a center per class from SEED, 0 if that is -1.
    node.OBJECTIVE = "cosine"
    # So many codes of earlier batches, without their gradient, which OBJECTIVE compares with those
    # of a batch, too. 0: the batch alone.
    node.CODE_QUEUE = 0

    # Beyond the paper: True codes detections and boxes by a latent layer of their own instead of
    # H1, which feeds the fusion. It reads the standardized fc7, trains on the sampled regions by
    # LOSS_WEIGHTS.OBJECT_CODE, and gives no gradient to what it reads. Where every other part is
    # frozen (LR_FACTORS), the other losses aren't computed.
    node.OBJECT_CODE = False

    # Weights of Equations 3 to 7. They multiply once, in the meta-architecture; Detectron2's own
    # loss weights stay 1 (setting both is refused).
    node.LOSS_WEIGHTS = CN()
    node.LOSS_WEIGHTS.ALPHA = [1.0, 1.0]  # loss_rpn_loc, loss_box_reg
    node.LOSS_WEIGHTS.BETA = [1.0, 1.0, 1.0]  # loss_rpn_cls, loss_cls, loss_cls_image
    # Forcing-binary (E1) and bit-balance (E2) terms of each latent layer. The author's code gives
    # 0.05 and 10 to the terms of both layers; read literally, the paper gives 0.05 to H1 and 10 to
    # H2, which is [0.05, 0.05] and [10.0, 10.0] here.
    node.LOSS_WEIGHTS.GAMMA_H1 = [0.05, 10.0]
    node.LOSS_WEIGHTS.GAMMA_H2 = [0.05, 10.0]
    # Beyond the paper: the weight of OBJECTIVE.
    node.LOSS_WEIGHTS.SIMILARITY = 0.0
    # In so many iterations that weight grows linearly to its value. 0: it is there at once.
    node.LOSS_WEIGHTS.SIMILARITY_WARMUP = 0
    # Of OBJECT_CODE: inner products of codes drawn to 1 for two regions of one class and to 0 for
    # others; cross entropy of a classifier on the codes.
    node.LOSS_WEIGHTS.OBJECT_CODE = [30.0, 1.0]

    # Factors on SOLVER.BASE_LR for each part of the network; 0 freezes a part.
    node.LR_FACTORS = CN()
    node.LR_FACTORS.BACKBONE = 1.0
    node.LR_FACTORS.PROPOSAL_GENERATOR = 1.0
    node.LR_FACTORS.BOX_HEAD = 1.0
    node.LR_FACTORS.BOX_PREDICTOR = 1.0
    node.LR_FACTORS.INSTANCE_HASH = 1.0
    node.LR_FACTORS.IMAGE_HASH = 1.0
    node.LR_FACTORS.OBJECT_HASH = 1.0
    node.LR_FACTORS.IMAGE_ENCODERS = 0.0  # their norms keep ImageNet's statistics all the same

    # The most pixels of an image that are read. A larger JPEG is decoded at a half, a quarter or an
    # eighth of its width and height; a larger image of another format is refused.
    node.MAX_PIXELS = DEFAULT_MAX_PIXELS

    # A folder for cached region features. Where it is set, the backbone and the RPN must be frozen
    # (factors 0); the features of each training image are computed once, and the heads train on
    # them. An interrupted computation goes on; several processes must all see the folder.
    node.FEATURE_CACHE = ""


def _add_timm(cfg: CN) -> None:
    cfg.MODEL.TIMM = node = CN()
    # Any timm model that supports `features_only`.
    node.NAME = "tf_efficientnet_lite0"
    # Which of its stages to return, as in timm's `out_indices`; "stage<i>" names stage i.
    node.OUT_INDICES = [4]
    # 32, 16 or 8 where the model supports dilation; 0 keeps the model's own.
    node.OUTPUT_STRIDE = 16
    # Input sides are padded to a multiple of this. Networks with "same" padding (tf_*) need it:
    # their padding depends on the input size.
    node.SIZE_DIVISIBILITY = 32
    # Batch norm as fixed affine layers, as Detectron2 does for small batches.
    node.FREEZE_BN = True


def _add_retrieval(cfg: CN) -> None:
    cfg.TEST.RETRIEVAL = node = CN()
    # Cut-off k of the ranking metrics.
    node.TOPK = 1000
    # Whether objects marked difficult count as labels (the paper's numbers imply that they do).
    node.COUNT_DIFFICULT = True
    # A code file of the database to search instead of encoding the database again ("": encode it).
    node.DATABASE_CODES = ""
    # True leaves a query that is in the database, too, out of its own ranking. Otherwise it finds
    # itself first, and a warning says how many do.
    node.EXCLUDE_SELF = False
    # Detections below this score get no row among the instance codes of a code file.
    node.INSTANCE_MIN_SCORE = 0.3
    # Box AP on the queries beside the retrieval metrics, where they are one dataset in VOC layout
    # or COCO format.
    node.BOX_AP = True


def current_value(key: str, value: Any) -> Any:
    """The present name of a key's value (:data:`RENAMED_VALUES`); most values have only one."""
    names = RENAMED_VALUES.get(key, {})
    return names.get(value, value) if isinstance(value, str) else value


def max_pixels(cfg: CN) -> int:
    """``MODEL.REGION_DH.MAX_PIXELS``; its default for a config without our keys."""
    return cfg.MODEL.get("REGION_DH", {}).get("MAX_PIXELS", DEFAULT_MAX_PIXELS)


def square_sizes(cfg: CN) -> tuple[int, ...]:
    """The sides of the squares that the image encoders of a config read; none without our keys."""
    return tuple(cfg.MODEL.get("REGION_DH", {}).get("IMAGE_ENCODER_SIZES", ()))


def code_settings(cfg: CN, **options: Any) -> str:
    """The settings that change the rows of a code file beside the weights, a line "KEY VALUE" each.

    Args:
        cfg: the model's config.
        options: further settings, such as whether there are codes of instances.
    """
    return _settings(cfg, _NOT_OF_CODES, options)


def feature_settings(cfg: CN) -> str:
    """The settings that change cached region features, in the form of :func:`code_settings`."""
    return _settings(cfg, _NOT_OF_FEATURES, {})


def training_settings(cfg: CN) -> str:
    """The settings that change a trained network, in the form of :func:`code_settings`.

    ``FEATURE_CACHE`` counts as set or not; its folder doesn't matter.
    """
    cached = {"MODEL.REGION_DH.FEATURE_CACHE": bool(cfg.MODEL.REGION_DH.FEATURE_CACHE)}
    return _settings(cfg, _NOT_OF_TRAINING, cached)


def parse_settings(text: str, kind: Callable[[CN], str] = code_settings) -> dict[str, str]:
    """The settings in a text, as a dict.

    A key that the text lacks was added after the text was written. It gets its default, since older
    versions worked as that default does. An empty text gives an empty dict.

    Args:
        text: what ``kind`` gave, of this version or of an older one.
        kind: :func:`code_settings`, :func:`feature_settings` or :func:`training_settings`.
    """
    return {**_default_settings(kind), "IMAGE_READER": "1", **_values(text)} if text else {}


def recorded_max_pixels(settings: str, otherwise: int = DEFAULT_MAX_PIXELS) -> int:
    """The pixel limit with which images were read, from the settings of their code file.

    Args:
        settings: what :func:`code_settings` gave; "" if unknown.
        otherwise: what to return where the settings hold no usable limit.
    """
    value = parse_settings(settings).get("MODEL.REGION_DH.MAX_PIXELS", "")
    return int(value) if value.isdecimal() and int(value) else otherwise


def changed_settings(
    old: str, new: str, kind: Callable[[CN], str] = code_settings
) -> dict[str, tuple[str, str]]:
    """The old and the new value of each key in which two texts of one kind differ, by key."""
    before, now = parse_settings(old, kind), parse_settings(new, kind)
    unknown = "(unknown)"
    return {
        key: (before.get(key, unknown), now.get(key, unknown))
        for key in sorted(before.keys() | now.keys())
        if before.get(key) != now.get(key)
    }


def changes_of_image_codes(old: str, new: str) -> list[str]:
    """The differences between two texts of :func:`code_settings` that change image codes, a phrase
    each.

    There are none if one text is empty, since nothing is known then.
    """
    if not (old and new):
        return []
    return [
        f"{key} {a} and {b}"
        for key, (a, b) in changed_settings(old, new).items()
        # Options that add columns have no dot in their names.
        if ("." in key or key == "IMAGE_READER")
        and not any(fnmatchcase(key, pattern) for pattern in _NOT_OF_IMAGE_CODES)
    ]


@cache
def _default_settings(kind: Callable[[CN], str]) -> dict[str, str]:
    cfg = get_cfg()
    add_regiondh_config(cfg)
    options = {"features": False} if kind is code_settings else {}
    return _values(kind(cfg, **options))


def _settings(cfg: CN, exceptions: Sequence[str], options: dict[str, Any]) -> str:
    keys = {
        key: current_value(key, _same_as_from_yaml(value))
        for key, value in flat_items(cfg)
        if not any(fnmatchcase(key, pattern) for pattern in exceptions)
    }
    keys = {"IMAGE_READER": _IMAGE_READER, **keys, **options}
    return "\n".join(f"{key} {value!r}" for key, value in sorted(keys.items()))


def _values(text: str) -> dict[str, str]:
    values = dict(line.partition(" ")[::2] for line in text.splitlines())
    for key, value in values.items():
        if value.startswith("(["):  # older texts
            with suppress(ValueError, SyntaxError):
                values[key] = repr(_same_as_from_yaml(ast.literal_eval(value)))
    values = {RENAMED_KEYS.get(key, key): value for key, value in values.items()}
    for key, names in RENAMED_VALUES.items():
        texts = {repr(old): repr(new) for old, new in names.items()}
        if key in values:
            values[key] = texts.get(values[key], values[key])
    return values


def _same_as_from_yaml(value: Any) -> Any:
    """Nested tuples. YAML has no tuples, so a config.yaml gives lists."""
    if not isinstance(value, tuple):
        return value
    return tuple(_same_as_from_yaml(tuple(x) if isinstance(x, list) else x) for x in value)


def flat_items(node: CN, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every key of a config, dotted, and its value."""
    for key, value in node.items():
        if isinstance(value, CN):
            yield from flat_items(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
