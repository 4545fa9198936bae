"""Builds and checks the configs of all commands."""

import argparse
import logging
import os
import re
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import reduce
from pathlib import Path

import torch
import yaml
from detectron2.config import CfgNode, get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.engine import default_setup
from detectron2.modeling import (
    ANCHOR_GENERATOR_REGISTRY,
    BACKBONE_REGISTRY,
    META_ARCH_REGISTRY,
    PROPOSAL_GENERATOR_REGISTRY,
    ROI_BOX_HEAD_REGISTRY,
    ROI_HEADS_REGISTRY,
    RPN_HEAD_REGISTRY,
)
from detectron2.utils import comm
from detectron2.utils.logger import log_first_n, setup_logger

from ..checkpoint import has_last_checkpoint, require_weights
from ..checkpoint.zoo import FOLDER, SHIPPED
from ..config import add_regiondh_config
from ..data.catalog import require_dataset
from ..data.training import check_num_classes
from ..utils.display import display_name
from ..utils.errors import OutputExistsError, RegionDHError
from ..utils.file_io import refuse_inputs
from ..utils.paths import same_file
from .config_file import merge_config_file, merge_overrides
from .config_names import find_config
from .config_rules import check_values
from .network import makes_codes
from .training_folder import check_own_training, config_kept, training_lock
from .training_record import changes_on_resume

__all__ = [
    "Asked",
    "asked_of",
    "build_cfg",
    "check_components",
    "check_datasets",
    "check_training_outputs",
    "config_inputs",
    "dataset_inputs",
    "differing_classes",
    "setup_cfg",
]

# Attribute of a config for data that is in none of its keys.
_ASKED = "_regiondh_asked"

# Reads all values as text, so that no YAML tag is executed.
_TEXT_LOADER = getattr(yaml, "CBaseLoader", yaml.BaseLoader)

# Keys that name a component, its registry, and values that name none.
COMPONENTS = (
    ("MODEL.META_ARCHITECTURE", META_ARCH_REGISTRY, ()),
    ("MODEL.BACKBONE.NAME", BACKBONE_REGISTRY, ()),
    ("MODEL.ANCHOR_GENERATOR.NAME", ANCHOR_GENERATOR_REGISTRY, ()),
    ("MODEL.PROPOSAL_GENERATOR.NAME", PROPOSAL_GENERATOR_REGISTRY, ("PrecomputedProposals",)),
    ("MODEL.RPN.HEAD_NAME", RPN_HEAD_REGISTRY, ()),
    ("MODEL.ROI_HEADS.NAME", ROI_HEADS_REGISTRY, ()),
    ("MODEL.ROI_BOX_HEAD.NAME", ROI_BOX_HEAD_REGISTRY, ("",)),
)


def build_cfg(config_file: str = "", opts: Sequence[str] = ()) -> CfgNode:
    """Detectron2's and our defaults, a config file and overrides, in that order.

    ``MODEL.DEVICE`` falls back to the CPU, with a warning, if CUDA isn't available.

    Args:
        config_file: path of a yaml file, the short name of one that comes with the package
            (:func:`.config_names.find_config`), or "" for the defaults.
        opts: KEY VALUE pairs.

    Raises:
        RegionDHError: the file can't be read, a key is unknown, a value is illegal
            (:data:`.config_rules.RULES`) or names no component, or KEY VALUE pairs are incomplete.
    """
    cfg = get_cfg()
    add_regiondh_config(cfg)
    if config_file:
        merge_config_file(cfg, find_config(config_file))
    merge_overrides(cfg, opts)
    check_values(cfg)
    check_components(cfg)
    if cfg.MODEL.DEVICE.startswith("cuda") and not torch.cuda.is_available():
        # Warn only once, even if a command reads several configs.
        text = "no CUDA device: MODEL.DEVICE falls back to cpu"
        log_first_n(logging.WARNING, text, name=__name__)
        cfg.MODEL.DEVICE = "cpu"
    return cfg


def config_inputs(config_file: str = "", opts: Sequence[str] = ()) -> list[str]:
    """The files of a config: itself, its bases, and their weights.

    For the check of outputs, before anything is built; :func:`build_cfg` reports errors in them.

    Args:
        config_file, opts: as of :func:`build_cfg`.

    Returns:
        Paths, of which some may be absent.
    """
    files: list[str] = []
    weights = {
        str(value)
        for key, value in zip(opts[::2], opts[1::2], strict=False)
        if key == "MODEL.WEIGHTS"
    }
    with suppress(RegionDHError):
        config_file = find_config(config_file) if config_file else ""
    left, seen = [config_file], {os.path.realpath("")}
    while left:
        file = left.pop()
        if os.path.realpath(file) in seen:
            continue
        seen.add(os.path.realpath(file))
        files.append(file)
        try:
            values = yaml.load(Path(file).read_bytes(), Loader=_TEXT_LOADER)
            weights.add(values.get("MODEL", {}).get("WEIGHTS", ""))
            bases = values.get("_BASE_", [])
            bases = [
                os.path.expanduser(base) for base in ([bases] if isinstance(bases, str) else bases)
            ]
        except (OSError, ValueError, AttributeError, TypeError, yaml.YAMLError):
            continue
        left += [os.path.join(os.path.dirname(file), base) for base in bases]
    for name in sorted(weights - {""}):
        scheme, _, source = name.rpartition("://")
        if not scheme:
            files.append(name)
        elif source in SHIPPED:
            files.append(str(FOLDER / f"{source}.pth"))
    return files


def dataset_inputs(names: Iterable[str]) -> list[str]:
    """The annotation files and folders of registered datasets, for the check of outputs."""
    found = []
    for name in names:
        if name not in DatasetCatalog.list():
            continue
        metadata = MetadataCatalog.get(name)
        parts = [*metadata.get("query_datasets", ()), *metadata.get("database_datasets", ())]
        found += dataset_inputs(part for part in parts if part != name)
        if metadata.get("json_file"):
            found.append(os.fspath(metadata.json_file))
        if metadata.get("dirname"):  # in VOC layout
            found += [os.path.join(metadata.dirname, x) for x in ("Annotations", "ImageSets")]
    return found


def check_components(cfg: CfgNode) -> None:
    """Check that every component that a config names is registered.

    Raises:
        ValueError: one isn't; the message lists the known ones.
    """
    for key, registry, others in COMPONENTS:
        name = reduce(getattr, key.split("."), cfg)
        if name not in registry and name not in others:
            known = ", ".join(sorted(known for known, _ in registry))
            raise RegionDHError(f"{key} is {name!r}, which isn't registered; known: {known}")


def check_datasets(cfg: CfgNode) -> None:
    """Check the datasets of a config against its network, without reading them.

    Raises:
        RegionDHError: a dataset isn't registered, has more classes than ``NUM_CLASSES``, or needs
            codes that the network doesn't make; or ``DATABASE_CODES`` has no use.
    """
    for key in ("TRAIN", "TEST"):
        for name in cfg.DATASETS[key]:
            require_dataset(name, f"DATASETS.{key} has")
            check_num_classes(name, cfg.MODEL.ROI_HEADS.NUM_CLASSES)
    retrieval = [
        name
        for name in cfg.DATASETS.TEST
        if MetadataCatalog.get(name).get("evaluator_type", None) == "regiondh_retrieval"
    ]
    if cfg.TEST.RETRIEVAL.DATABASE_CODES and cfg.DATASETS.TEST and not retrieval:
        raise RegionDHError(
            f"TEST.RETRIEVAL.DATABASE_CODES is {cfg.TEST.RETRIEVAL.DATABASE_CODES!r}, and no "
            f"retrieval dataset is in DATASETS.TEST {cfg.DATASETS.TEST}: name one, or set it to ''"
        )
    for name in retrieval:
        if not makes_codes(cfg):
            raise RegionDHError(
                f"DATASETS.TEST has {name!r}, which is measured by image codes, and "
                f"MODEL.META_ARCHITECTURE {cfg.MODEL.META_ARCHITECTURE} makes none: take RegionDH, "
                "or test on a detection dataset"
            )


def differing_classes(cfg: CfgNode) -> list[str]:
    """A line for each dataset of ``DATASETS.TEST`` that gives a class of the network another name
    than ``DATASETS.TRAIN`` does, as far as classes are known without reading the datasets.

    Such an evaluation may be meant: image codes and labels of images stay right.
    """

    def classes_of(name: str) -> list[str]:
        return list(MetadataCatalog.get(name).get("thing_classes") or ())

    lines = []
    known = ((name, found) for name in cfg.DATASETS.TRAIN if (found := classes_of(name)))
    trained, names = next(known, ("", []))
    for name in cfg.DATASETS.TEST:
        pairs = enumerate(zip(names, classes_of(name), strict=False))
        for number, (ours, theirs) in pairs:
            if ours != theirs:
                lines.append(
                    f"DATASETS.TEST {name}: class {number} is {display_name(theirs)!r} there, and "
                    f"{display_name(ours)!r} in DATASETS.TRAIN {trained}: box AP and class names "
                    "of detections mean nothing there"
                )
                break
    return lines


@dataclass(frozen=True)
class Asked:
    """The command line's options for the trainer."""

    eval_only: bool = False
    resume: bool = False


def asked_of(cfg: CfgNode) -> Asked:
    """The options that :func:`setup_cfg` stored in a config."""
    return cfg.__dict__.get(_ASKED, Asked())


def check_training_outputs(cfg: CfgNode, args: argparse.Namespace) -> None:
    """Check that a training or evaluation would not replace its inputs in ``OUTPUT_DIR``.

    Otherwise a run overwrites an earlier one of the same settings, as in Detectron2.

    Args:
        cfg: of the run.
        args: of Detectron2's parser.

    Raises:
        OutputExistsError: a checkpoint would replace ``MODEL.WEIGHTS``, codes would replace
            ``TEST.RETRIEVAL.DATABASE_CODES``, or a log an input.
    """
    folder = Path(cfg.OUTPUT_DIR)
    inputs = [*config_inputs(args.config_file, args.opts), cfg.TEST.RETRIEVAL.DATABASE_CODES]
    inputs += dataset_inputs([*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST])
    files = [folder / name for name in ("log.txt", "metrics.json", "last_checkpoint")]
    files += [folder / "inference" / name / "query.h5" for name in cfg.DATASETS.TEST]
    for file in files:
        refuse_inputs(file, [name for name in inputs if name and not os.path.isdir(name)])
    # A resumed training reads its last checkpoint, not MODEL.WEIGHTS.
    goes_on = getattr(args, "resume", False) and (folder / "last_checkpoint").is_file()
    if getattr(args, "eval_only", False) or goes_on:
        return
    for file in folder.glob("model_*.pth"):
        if _CHECKPOINT.fullmatch(file.name) and same_file(file, cfg.MODEL.WEIGHTS):
            raise OutputExistsError(
                f"MODEL.WEIGHTS {display_name(cfg.MODEL.WEIGHTS)} is in OUTPUT_DIR, where this "
                "training would replace it: set another OUTPUT_DIR, or go on with the training "
                "that wrote it with --resume"
            )


_CHECKPOINT = re.compile(r"model_(final|best|\d{7})\.pth")  # the checkpoints of a training


def setup_cfg(args: argparse.Namespace) -> CfgNode:
    """The config of a training command: :func:`build_cfg`, frozen, after Detectron2's set-up.

    The config stores the options of ``args`` (:func:`asked_of`), so that the trainer can refuse a
    script that ignores them. If the config is read from ``OUTPUT_DIR``, or a network that is
    evaluated was trained there, its file is not replaced.

    With ``args.resume`` a warning lists the differences from the settings with which the network in
    ``OUTPUT_DIR`` was trained. Differences are allowed, as usual with Detectron2: a training may
    continue for longer, or at another rate.

    Raises:
        RegionDHError: as :func:`check_datasets`, :func:`check_training_outputs` and
            :func:`.training_folder.check_own_training`; or ``args`` ask for several processes and
            there is only one; or the file of ``MODEL.WEIGHTS`` is missing; or another training
            writes into ``OUTPUT_DIR``. Nothing is written then.
    """
    setup_logger(name="regiondh_d2", abbrev_name="regiondh")
    cfg = build_cfg(args.config_file, args.opts)
    if args.config_file:  # Detectron2 reads it, too, and doesn't know short names
        args = argparse.Namespace(**{**vars(args), "config_file": find_config(args.config_file)})
    check_datasets(cfg)
    asked = Asked(bool(getattr(args, "eval_only", False)), bool(getattr(args, "resume", False)))
    processes = getattr(args, "num_gpus", 1) * getattr(args, "num_machines", 1)
    if processes > 1 and comm.get_world_size() == 1:
        raise RegionDHError(
            f"--num-gpus and --num-machines ask for {processes} processes, but this script runs in "
            "one: start it by detectron2.engine.launch, or use `regiondh train`, which imports "
            "your datasets with --import MODULE_OR_FILE"
        )
    resumes = asked.resume and has_last_checkpoint(cfg.OUTPUT_DIR)
    # Check paths now; downloads and conversions can wait.
    if cfg.MODEL.WEIGHTS and "://" not in cfg.MODEL.WEIGHTS and not resumes:
        require_weights(cfg.MODEL.WEIGHTS)
    cfg.__dict__[_ASKED] = asked
    cfg.freeze()
    check_training_outputs(cfg, args)
    # Before config.yaml in the folder is replaced.
    changes = []
    if not asked.resume and not asked.eval_only:
        check_own_training(cfg)
    if comm.is_main_process():
        if asked.resume:
            changes = changes_on_resume(cfg)
        if not asked.eval_only and os.path.isdir(cfg.OUTPUT_DIR):
            with training_lock(cfg.OUTPUT_DIR):
                pass  # now, before anything is written; the trainer holds it
    config = Path(cfg.OUTPUT_DIR, "config.yaml")
    given = config_inputs(args.config_file, args.opts)
    # What this run reads, and what an evaluation finds in the folder of a training.
    stays = any(same_file(config, name) for name in given)
    stays |= asked.eval_only and has_last_checkpoint(cfg.OUTPUT_DIR)
    with config_kept(config, stays):
        default_setup(cfg, args)
    # The terminal has a handler already, and a second one would show every line twice.
    setup_logger(cfg.OUTPUT_DIR, name="regiondh_d2", abbrev_name="regiondh", configure_stdout=False)
    for line in differing_classes(cfg):
        logging.getLogger(__name__).warning(line)
    if changes:
        logging.getLogger(__name__).warning(
            f"--resume: the network in {cfg.OUTPUT_DIR} was trained with {'; '.join(changes)}"
        )
    return cfg
