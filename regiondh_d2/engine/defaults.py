"""How a command gets its config: one place for all tools."""

import argparse
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce

import torch
from detectron2.config import CfgNode, get_cfg
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
from detectron2.utils.logger import setup_logger

from ..checkpoint import has_last_checkpoint, require_weights
from ..config import add_regiondh_config
from ..data.catalog import require_dataset
from ..data.training import check_num_classes
from ..utils.errors import RegionDHError
from .config_file import merge_config_file, merge_overrides
from .config_rules import check_values

__all__ = ["Asked", "asked_of", "build_cfg", "check_components", "check_datasets", "setup_cfg"]

# Where a config, which is a dict, remembers what stands in none of its keys.
_ASKED = "_regiondh_asked"

# Keys that name a component, where it is looked up, and values that name none.
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

    ``MODEL.DEVICE`` falls back to the CPU, with a warning, where CUDA isn't available.

    Args:
        config_file: path of a yaml file, or "" for the defaults.
        opts: KEY VALUE pairs.

    Raises:
        RegionDHError: the file can't be read, a key isn't known, or a value isn't one that the key
            takes (:data:`.config_rules.RULES`) or names no component; or KEY VALUE pairs are
            incomplete.
    """
    cfg = get_cfg()
    add_regiondh_config(cfg)
    if config_file:
        merge_config_file(cfg, config_file)
    merge_overrides(cfg, opts)
    check_values(cfg)
    check_components(cfg)
    if cfg.MODEL.DEVICE.startswith("cuda") and not torch.cuda.is_available():
        logging.getLogger(__name__).warning("no CUDA device: MODEL.DEVICE falls back to cpu")
        cfg.MODEL.DEVICE = "cpu"
    return cfg


def check_components(cfg: CfgNode) -> None:
    """Look every part of the network up that a config names.

    Raises:
        ValueError: there is no such part; the text has the known ones.
    """
    for key, registry, others in COMPONENTS:
        name = reduce(getattr, key.split("."), cfg)
        if name not in registry and name not in others:
            known = ", ".join(sorted(known for known, _ in registry))
            raise RegionDHError(f"{key} is {name!r}, which isn't registered; known: {known}")


def check_datasets(cfg: CfgNode) -> None:
    """Compare the datasets of a config with its network, as far as that needs no reading.

    Raises:
        ValueError: a dataset isn't registered, or has more classes than ``NUM_CLASSES``.
    """
    for key in ("TRAIN", "TEST"):
        for name in cfg.DATASETS[key]:
            require_dataset(name, f"DATASETS.{key} has")
            check_num_classes(name, cfg.MODEL.ROI_HEADS.NUM_CLASSES)


@dataclass(frozen=True)
class Asked:
    """What a command line asks of the trainer beside the config."""

    eval_only: bool = False
    resume: bool = False


def asked_of(cfg: CfgNode) -> Asked:
    """What :func:`setup_cfg` found in the arguments, for a config that comes from it."""
    return cfg.__dict__.get(_ASKED, Asked())


def setup_cfg(args: argparse.Namespace) -> CfgNode:
    """The config of a training command: :func:`build_cfg`, frozen, after Detectron2's set-up.

    The config remembers what ``args`` ask for (:func:`asked_of`), so that the trainer can refuse
    a script that does something else.

    Raises:
        RegionDHError: also what :func:`check_datasets` finds; ``args`` ask for several processes
            and this is one alone; or there is no file of ``MODEL.WEIGHTS``. Nothing is written
            then.
    """
    setup_logger(name="regiondh_d2", abbrev_name="regiondh")
    cfg = build_cfg(args.config_file, args.opts)
    check_datasets(cfg)
    asked = Asked(bool(getattr(args, "eval_only", False)), bool(getattr(args, "resume", False)))
    processes = getattr(args, "num_gpus", 1) * getattr(args, "num_machines", 1)
    if processes > 1 and comm.get_world_size() == 1:
        raise RegionDHError(
            f"--num-gpus and --num-machines ask for {processes} processes, but this script runs in "
            "one: start it by detectron2.engine.launch, or use tools/train_net.py, which imports "
            "your datasets with --import MODULE_OR_FILE"
        )
    resumes = asked.resume and has_last_checkpoint(cfg.OUTPUT_DIR)
    # What is downloaded or converted can wait; a path that is wrong cannot.
    if cfg.MODEL.WEIGHTS and "://" not in cfg.MODEL.WEIGHTS and not resumes:
        require_weights(cfg.MODEL.WEIGHTS)
    cfg.__dict__[_ASKED] = asked
    cfg.freeze()
    default_setup(cfg, args)
    setup_logger(cfg.OUTPUT_DIR, name="regiondh_d2", abbrev_name="regiondh")
    return cfg
