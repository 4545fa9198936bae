"""How a command gets its config: one place for all tools."""

import argparse
import logging
import os
from collections.abc import Sequence
from functools import reduce

import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.data import DatasetCatalog
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

from ..config import add_regiondh_config
from ..data.catalog import registered_names
from ..data.training import check_num_classes
from ..utils.errors import InputNotFoundError, RegionDHError
from .training_record import changes_on_resume

__all__ = ["build_cfg", "check_components", "check_datasets", "setup_cfg"]

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
        FileNotFoundError: there is no such file.
        KeyError: a key isn't known.
        ValueError: a value has the wrong type or names no component, or KEY VALUE pairs are
            incomplete.
    """
    cfg = get_cfg()
    add_regiondh_config(cfg)
    if config_file:
        if not os.path.isfile(config_file):
            raise InputNotFoundError(f"{config_file}: no such config file")
        cfg.merge_from_file(config_file)
    if len(opts) % 2:
        raise RegionDHError(f"overrides come in pairs KEY VALUE; the last one is alone: {opts[-1]}")
    try:
        cfg.merge_from_list(list(opts))
    except AssertionError as error:  # yacs asserts that a key exists
        raise RegionDHError(str(error)) from error
    check_components(cfg)
    if cfg.MODEL.DEVICE.startswith("cuda") and not torch.cuda.is_available():
        # Once, however many configs a command reads.
        text = "no CUDA device: MODEL.DEVICE falls back to cpu"
        log_first_n(logging.WARNING, text, name=__name__)
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
            if name not in DatasetCatalog.list():
                raise RegionDHError(
                    f"DATASETS.{key} has {name!r}, which isn't registered; known: "
                    f"{', '.join(registered_names())}, and Detectron2's own"
                )
            check_num_classes(name, cfg.MODEL.ROI_HEADS.NUM_CLASSES)


def setup_cfg(args: argparse.Namespace) -> CfgNode:
    """The config of a training command: :func:`build_cfg`, frozen, after Detectron2's set-up.

    With ``args.resume`` a warning names all in which it differs from what the network in its
    ``OUTPUT_DIR`` was trained with. That it may differ is usual with Detectron2: a training goes on
    for longer, or at another rate.

    Raises:
        ValueError: also what :func:`check_datasets` finds; nothing is written then.
    """
    setup_logger(name="regiondh_d2", abbrev_name="regiondh")
    cfg = build_cfg(args.config_file, args.opts)
    check_datasets(cfg)
    cfg.freeze()
    # Before the folder's config.yaml is replaced.
    changes = []
    if getattr(args, "resume", False) and comm.is_main_process():
        changes = changes_on_resume(cfg)
    default_setup(cfg, args)
    setup_logger(cfg.OUTPUT_DIR, name="regiondh_d2", abbrev_name="regiondh")
    if changes:
        logging.getLogger(__name__).warning(
            f"--resume: the network in {cfg.OUTPUT_DIR} was trained with {'; '.join(changes)}"
        )
    return cfg
