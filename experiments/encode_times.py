"""Time the encoding of an image by each network of the study, on one thread of the CPU.

It is the CPU time of reading the file and encoding the whole image, without detections, one image
at a time. Weights don't matter but for the proposals that are left, so the networks are new ones.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Sequence
from datetime import date

import torch
from detectron2.modeling import build_model

import regiondh_d2  # noqa: F401  (registers the networks)
from regiondh_cli.arguments import CommandParser
from regiondh_cli.options import positive_int
from regiondh_d2.commands.benchmark import describe_machine
from regiondh_d2.data.catalog import load_dataset
from regiondh_d2.engine.command import run_command
from regiondh_d2.engine.defaults import build_cfg
from regiondh_d2.retrieval.images import ImageLoader
from regiondh_d2.utils.display import print_line
from regiondh_d2.utils.file_io import write_json

from .options import add_study_options, check_study_options
from .rows import read_table


def build_parser() -> argparse.ArgumentParser:
    parser = CommandParser(
        prog="python -m experiments.encode_times", description=__doc__.splitlines()[0]
    )
    add_study_options(parser, rows=None, older_name=None)
    parser.add_argument(
        "--dataset",
        default="regiondh_voc_2007_val",
        metavar="NAME",
        help="whose first images are read (default: %(default)s)",
    )
    parser.add_argument("--images", type=positive_int, default=40, help="(default: 40)")
    return parser


def run(args: argparse.Namespace) -> None:
    results = check_study_options(args)
    configs = dict.fromkeys(row.config for row in read_table(args.table))
    files = [record["file_name"] for record in load_dataset(args.dataset)[: args.images]]
    milliseconds = {}
    for config in configs:
        milliseconds[config] = encode_milliseconds(config, files)
        print_line(f"{config}: {milliseconds[config]:.0f} ms")
    machine = {**describe_machine(), "threads": 1, "date": date.today().isoformat()}
    write_json(
        results.milliseconds_file,
        {"milliseconds": milliseconds, "images": len(files), "machine": machine},
    )


@torch.no_grad()
def encode_milliseconds(config: str, files: Sequence[str]) -> float:
    """The median CPU milliseconds of reading and encoding one of some images.

    Args:
        config: a config file.
        files: images; the first one is encoded once more before, which doesn't count.
    """
    torch.set_num_threads(1)
    cfg = build_cfg(config, ["MODEL.WEIGHTS", "", "MODEL.DEVICE", "cpu"])
    model, load = build_model(cfg).eval(), ImageLoader(cfg)
    model.encode_images([load(files[0])])
    times = []
    for file in files:
        start = time.process_time()
        model.encode_images([load(file)])
        times.append(time.process_time() - start)
    return 1000.0 * statistics.median(times)


def main(argv: Sequence[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    return run_command(lambda: run(args))


if __name__ == "__main__":
    sys.exit(main())
