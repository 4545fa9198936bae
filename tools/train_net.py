#!/usr/bin/env python
"""Train or evaluate a network: tools/train_net.py --config-file C [--eval-only] [KEY VALUE ...]."""

import argparse
import sys

import regiondh_d2  # noqa: F401  isort: skip  (registers what configs name, and first, to be quiet)
from detectron2.engine import default_argument_parser

from regiondh_d2.engine import RegionDHTrainer, setup_cfg
from regiondh_d2.engine.command import load_trained_model, run_command, run_workers
from regiondh_d2.engine.user_code import add_import_option, import_user_code
from regiondh_d2.utils.errors import RegionDHError


def build_parser() -> argparse.ArgumentParser:
    parser = default_argument_parser()
    add_import_option(parser)
    parser.set_defaults(dist_url=None)
    return parser


def main(args):
    """What every process does."""
    cfg = setup_cfg(args)
    if args.eval_only:
        model = load_trained_model(cfg, resume=args.resume, build=RegionDHTrainer.build_model)
        return RegionDHTrainer.test(cfg, model)
    trainer = RegionDHTrainer(cfg)
    trainer.resume_or_load(resume=args.resume)
    return trainer.train()


def check_processes(args: argparse.Namespace) -> None:
    """Refuse numbers of processes and machines that could not be honoured."""
    for option, value in (("--num-gpus", args.num_gpus), ("--num-machines", args.num_machines)):
        if value < 1:
            raise RegionDHError(
                f"{option} {value}: it counts from 1; to compute on the CPU set MODEL.DEVICE cpu"
            )
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


def run(args: argparse.Namespace) -> None:
    check_processes(args)
    import_user_code(args.imports)
    run_workers(
        main,
        args.num_gpus,
        (args,),
        num_machines=args.num_machines,
        machine_rank=args.machine_rank,
        # On a machine alone a free port is found.
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
