"""Train or evaluate a network."""

import argparse

from ..engine import setup_cfg, trainer_class
from ..engine.command import load_trained_model, run_workers
from ..engine.user_code import import_user_code
from ..utils.errors import RegionDHError


def work(args: argparse.Namespace) -> dict | None:
    """Run in every process."""
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
        work,
        args.num_gpus,
        (args,),
        num_machines=args.num_machines,
        machine_rank=args.machine_rank,
        dist_url=args.dist_url or "auto",
    )
