"""Does joint training fit a few images? Means of the image loss, and gradients on the backbone.

    python -m experiments.joint --output FOLDER [--fixed-statistics] [KEY VALUE ...]

trains ``configs/voc07/regiondh_effnetlite0_48_joint.yaml`` for 75 iterations of 8 on the 227 images
of ``regiondh_voc_2007_overfit``, from the detector in the network that comes with the package. It
prints the mean of the image classification loss over every 15 iterations, that of the unweighted
similarity loss, and at the end the norm of the gradient on the backbone of each group of losses.
Interrupted, it goes on from its last checkpoint.
"""

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from detectron2.engine import HookBase
from detectron2.utils.env import seed_all_rng
from detectron2.utils.events import EventStorage
from torch import nn

from regiondh_cli.arguments import CommandParser
from regiondh_d2.engine import RegionDHTrainer, build_cfg
from regiondh_d2.engine.command import run_command

CONFIG = "configs/voc07/regiondh_effnetlite0_48_joint.yaml"
SETTINGS = {
    "DATASETS.TEST": "()",
    "DATASETS.TRAIN": "('regiondh_voc_2007_overfit',)",
    "INPUT.MIN_SIZE_TRAIN": "(192,)",
    "MODEL.REGION_DH.CODE_QUEUE": "0",
    "MODEL.REGION_DH.IMAGE_GRADIENT_SCALE": "0.1",
    "MODEL.WEIGHTS": "regiondh://effnetlite0_voc07_64",  # its hash layers of 64 bits are left out
    "SEED": "0",
    "SOLVER.BASE_LR": "0.02",
    "SOLVER.CHECKPOINT_PERIOD": "5",
    "SOLVER.MAX_ITER": "75",
    "SOLVER.WARMUP_ITERS": "30",
}
IMAGE, SIMILARITY = "loss_cls_image", "loss_similarity_image"
GROUPS = {
    "detection": ("loss_rpn_cls", "loss_rpn_loc", "loss_cls", "loss_box_reg"),
    "image classification": (IMAGE,),
    "similarity": (SIMILARITY,),
}
SPAN = 15  # iterations of a mean
IMAGES = 227


class LossFile(HookBase):
    """Appends the losses of each iteration to a file; after a resume the later line counts."""

    def __init__(self, path: Path):
        self._path = path

    def after_step(self) -> None:
        latest = self.trainer.storage.latest()
        losses = {key: latest[key][0] for key in (IMAGE, SIMILARITY) if key in latest}
        with open(self._path, "a") as file:
            file.write(json.dumps({"iteration": self.trainer.iter, **losses}) + "\n")

    def means(self, key: str) -> list[float]:
        """Of every :data:`SPAN` iterations."""
        lines = [json.loads(line) for line in self._path.read_text().splitlines()]
        values = {line["iteration"]: line[key] for line in lines if key in line}
        ordered = [values[i] for i in sorted(values)]
        return [sum(ordered[i : i + SPAN]) / SPAN for i in range(0, len(ordered), SPAN)]


def fix_statistics(norm: nn.BatchNorm1d) -> None:
    """Standardize by the running statistics in training, too, and leave them as they are."""
    norm.eval()
    norm.train = lambda mode=True: norm  # type: ignore[method-assign]


@torch.no_grad()
def measure_statistics(model, batches: Iterator[list[dict]], number: int) -> None:
    """Set the running statistics of H2's input to those of so many batches."""
    norm = model.roi_heads.image_hash.norm
    momentum, norm.momentum = norm.momentum, 1.0
    means, variances = [], []
    with EventStorage():
        for _ in range(number):
            model(next(batches))
            means.append(norm.running_mean.clone())
            variances.append(norm.running_var.clone())
    norm.momentum = momentum
    norm.running_mean.copy_(torch.stack(means).mean(dim=0))
    between = torch.stack(means).var(dim=0, unbiased=False)
    norm.running_var.copy_(torch.stack(variances).mean(dim=0) + between)


def gradient_norms(model, inputs: list[dict]) -> dict[str, float]:
    """The norm of each group's gradient on the parameters of the backbone."""
    parameters = [p for p in model.backbone.parameters() if p.requires_grad]
    with EventStorage():
        losses = model(inputs)
    norms = {}
    for name, keys in GROUPS.items():
        terms = [losses[key] for key in keys if key in losses]
        if terms and parameters:
            total = torch.stack(terms).sum()
            found = torch.autograd.grad(total, parameters, retain_graph=True, allow_unused=True)
            squares = [g.square().sum() for g in found if g is not None]
            norms[name] = torch.stack(squares).sum().sqrt().item()
    return norms


def build_parser() -> argparse.ArgumentParser:
    parser = CommandParser(prog="python -m experiments.joint", description=__doc__.splitlines()[0])
    parser.add_argument("--config-file", default=CONFIG)
    parser.add_argument("--output", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--fixed-statistics", action="store_true")
    parser.add_overrides()
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    return run_command(lambda: run(args))


def run(args: argparse.Namespace) -> None:
    args.output.mkdir(parents=True, exist_ok=True)
    settings = [word for pair in SETTINGS.items() for word in pair]
    cfg = build_cfg(args.config_file, [*settings, "OUTPUT_DIR", str(args.output), *args.opts])
    seed_all_rng(cfg.SEED)
    trainer = RegionDHTrainer(cfg)
    trainer.resume_or_load(resume=True)
    if args.fixed_statistics:
        if trainer.start_iter == 0:
            number = IMAGES // cfg.SOLVER.IMS_PER_BATCH
            measure_statistics(trainer.model, iter(trainer.data_loader), number)
        fix_statistics(trainer.model.roi_heads.image_hash.norm)
    losses = LossFile(args.output / "losses.jsonl")
    trainer.register_hooks([losses])
    if trainer.start_iter < cfg.SOLVER.MAX_ITER:
        trainer.train()
    print("image classification:", *(f"{x:.2f}" for x in losses.means(IMAGE)))
    weight = cfg.MODEL.REGION_DH.LOSS_WEIGHTS.SIMILARITY
    if weight:
        print("similarity:", *(f"{x / weight:.3f}" for x in losses.means(SIMILARITY)))
    for name, norm in gradient_norms(trainer.model, next(iter(trainer.data_loader))).items():
        print(f"gradient of {name}: {norm:.3g}")


if __name__ == "__main__":
    sys.exit(main())
