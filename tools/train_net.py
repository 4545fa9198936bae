#!/usr/bin/env python
"""Train or evaluate a network: tools/train_net.py --config-file C [--eval-only] [KEY VALUE ...]."""

import argparse
import sys

import regiondh_d2  # noqa: F401  isort: skip  (registers what configs name, and first, to be quiet)
from detectron2.engine import default_argument_parser

from regiondh_d2.checkpoint import RegionDHCheckpointer
from regiondh_d2.engine import RegionDHTrainer, setup_cfg
from regiondh_d2.engine.command import positive_int, run_command, run_workers
from regiondh_d2.utils.arguments import CommandParser


def build_parser() -> argparse.ArgumentParser:
    """The options of Detectron2's ``default_argument_parser``."""
    parser = CommandParser(description=__doc__)
    parser.add_argument(
        "--config-file",
        default="",
        metavar="C",
        help="config of the model (default: Detectron2's defaults)",
    )
    parser.add_argument(
        "--resume",
        action="store_true",
        help="go on from the last checkpoint in OUTPUT_DIR, if there is one",
    )
    parser.add_argument("--eval-only", action="store_true", help="evaluate MODEL.WEIGHTS")
    for name, of in (
        ("--num-gpus", "processes on each machine, on CPUs as well"),
        ("--num-machines", "machines"),
    ):
        parser.add_argument(
            name, type=positive_int, default=1, metavar="N", help=f"{of} (default: %(default)s)"
        )
    parser.add_argument(
        "--machine-rank",
        type=int,
        default=0,
        metavar="N",
        help="which one is this, from 0 (default: %(default)s)",
    )
    parser.add_argument(
        "--dist-url",
        default=default_argument_parser().get_default("dist_url"),
        metavar="URL",
        help="with several machines: where processes meet, such as tcp://HOST:PORT of the first "
        "(default: %(default)s)",
    )
    parser.add_overrides()
    return parser


def main(args):
    cfg = setup_cfg(args)
    if args.eval_only:
        model = RegionDHTrainer.build_model(cfg)
        RegionDHCheckpointer(model, cfg.OUTPUT_DIR).resume_or_load(
            cfg.MODEL.WEIGHTS, resume=args.resume
        )
        return RegionDHTrainer.test(cfg, model)
    trainer = RegionDHTrainer(cfg)
    trainer.resume_or_load(resume=args.resume)
    return trainer.train()


if __name__ == "__main__":
    args = build_parser().parse_args()
    sys.exit(
        run_command(
            lambda: run_workers(
                main,
                args.num_gpus,
                (args,),
                num_machines=args.num_machines,
                machine_rank=args.machine_rank,
                # On a machine alone a free port is found.
                dist_url=args.dist_url if args.num_machines > 1 else "auto",
            ),
            interrupted="interrupted: --resume goes on from the last checkpoint",
        )
    )
