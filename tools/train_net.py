#!/usr/bin/env python
"""Train or evaluate a network: tools/train_net.py --config-file C [--eval-only] [KEY VALUE ...]."""

import sys

import regiondh_d2  # noqa: F401  isort: skip  (registers what configs name, and first, to be quiet)
from detectron2.engine import default_argument_parser

from regiondh_d2.checkpoint import RegionDHCheckpointer
from regiondh_d2.engine import RegionDHTrainer, setup_cfg
from regiondh_d2.engine.command import run_command, run_workers


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
    args = default_argument_parser().parse_args()
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
