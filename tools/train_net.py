#!/usr/bin/env python
"""Train or evaluate a network: tools/train_net.py --config-file C [--eval-only] [KEY VALUE ...]."""

import argparse
import sys

import regiondh_d2  # noqa: F401  isort: skip  (registers what configs name, and first, to be quiet)
from regiondh_d2.engine import setup_cfg, trainer_class
from regiondh_d2.engine.command import (
    load_trained_model,
    positive_int,
    run_command,
    run_workers,
)
from regiondh_d2.engine.user_code import add_import_option, import_user_code
from regiondh_d2.utils.arguments import CommandParser
from regiondh_d2.utils.errors import RegionDHError


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
        metavar="URL",
        help="where processes meet, such as tcp://HOST:PORT of the first machine (default: a free "
        "port, on one machine; needed with several)",
    )
    add_import_option(parser)
    parser.add_overrides()
    return parser


def main(args):
    """What every process does."""
    cfg = setup_cfg(args)
    kind = trainer_class(cfg)
    if args.eval_only:
        model = load_trained_model(cfg, resume=args.resume, build=kind.build_model)
        return kind.test(cfg, model)
    trainer = kind(cfg)
    trainer.resume_or_load(resume=args.resume)
    return trainer.train()


def run(args: argparse.Namespace) -> None:
    if not 0 <= args.machine_rank < args.num_machines:
        raise RegionDHError(
            f"--machine-rank {args.machine_rank}: with --num-machines {args.num_machines} the "
            f"machines are numbered from 0 to {args.num_machines - 1}"
        )
    if args.num_machines > 1 and args.dist_url is None:
        raise RegionDHError(
            f"--num-machines {args.num_machines} needs the address of the first machine: "
            "--dist-url tcp://HOST:PORT, the same on all of them"
        )
    import_user_code(args.imports)
    run_workers(
        main,
        args.num_gpus,
        (args,),
        num_machines=args.num_machines,
        machine_rank=args.machine_rank,
        dist_url=args.dist_url or "auto",
    )


if __name__ == "__main__":
    parsed = build_parser().parse_args()
    sys.exit(
        run_command(
            lambda: run(parsed),
            interrupted="interrupted: --resume goes on from the last checkpoint",
        )
    )
