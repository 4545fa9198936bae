"""How a command gets its config: one place for all tools."""

import argparse
import logging
import os
from collections.abc import Sequence

import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.engine import default_setup
from detectron2.utils.logger import setup_logger

from ..config import add_regiondh_config

__all__ = ["build_cfg", "setup_cfg"]


def build_cfg(config_file: str = "", opts: Sequence[str] = ()) -> CfgNode:
    """Detectron2's and our defaults, a config file and overrides, in that order.

    ``MODEL.DEVICE`` falls back to the CPU, with a warning, where CUDA isn't available.

    Args:
        config_file: path of a yaml file, or "" for the defaults.
        opts: KEY VALUE pairs.

    Raises:
        FileNotFoundError: there is no such file.
        KeyError: a key isn't known.
        ValueError: a value has the wrong type, or KEY VALUE pairs are incomplete.
    """
    cfg = get_cfg()
    add_regiondh_config(cfg)
    if config_file:
        if not os.path.isfile(config_file):
            raise FileNotFoundError(f"{config_file}: no such config file")
        cfg.merge_from_file(config_file)
    if len(opts) % 2:
        raise ValueError(f"overrides come in pairs KEY VALUE; the last one is alone: {opts[-1]}")
    try:
        cfg.merge_from_list(list(opts))
    except AssertionError as error:  # yacs asserts that a key exists
        raise KeyError(str(error)) from error
    if cfg.MODEL.DEVICE.startswith("cuda") and not torch.cuda.is_available():
        logging.getLogger(__name__).warning("no CUDA device: MODEL.DEVICE falls back to cpu")
        cfg.MODEL.DEVICE = "cpu"
    return cfg


def setup_cfg(args: argparse.Namespace) -> CfgNode:
    """The config of a training command: :func:`build_cfg`, frozen, after Detectron2's set-up."""
    setup_logger(name="regiondh_d2", abbrev_name="regiondh")
    cfg = build_cfg(args.config_file, args.opts)
    cfg.freeze()
    default_setup(cfg, args)
    setup_logger(cfg.OUTPUT_DIR, name="regiondh_d2", abbrev_name="regiondh")
    return cfg
