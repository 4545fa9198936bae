"""Measure the encoding of an image by each network of the study, on one thread of the CPU.

It is the CPU time of reading the file and encoding the whole image, without detections, one image
at a time, and the largest resident memory of a process that does nothing else. Weights don't matter
but for the proposals that are left, so the networks are new ones.
"""

import argparse
import multiprocessing
import os
import re
import resource
import statistics
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from datetime import date
from pathlib import Path

import torch
from detectron2.modeling import build_model

import regiondh_d2  # noqa: F401  (registers the networks)
from regiondh_cli.arguments import CommandParser
from regiondh_cli.options import positive_int
from regiondh_d2.commands.benchmark import describe_machine
from regiondh_d2.config import changes_of_image_codes, code_settings
from regiondh_d2.data.catalog import load_dataset
from regiondh_d2.engine.command import prepare_process, run_command
from regiondh_d2.engine.defaults import build_cfg
from regiondh_d2.retrieval.images import ImageLoader
from regiondh_d2.utils.display import print_line
from regiondh_d2.utils.file_io import write_json

from .options import add_study_options, check_study_options
from .rows import Row, read_table


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
    files = [record["file_name"] for record in load_dataset(args.dataset)[: args.images]]
    # By the settings that change how an image is encoded.
    costs: dict[str, tuple[float, float]] = {}
    found: dict[str, dict[str, float]] = {"milliseconds": {}, "megabytes": {}}
    for row in read_table(args.table):
        opts = _encoding_options(row)
        settings = code_settings(build_cfg(row.config, opts))
        same = (known for known in costs if not changes_of_image_codes(known, settings))
        network = next(same, settings)
        if network not in costs:
            costs[network] = _in_new_process(row.config, opts, files)
            print_line(f"{row.name}: {costs[network][0]:.0f} ms, {costs[network][1]:.0f} MB")
        found["milliseconds"][row.name], found["megabytes"][row.name] = costs[network]
    machine = {**describe_machine(), "threads": 1, "date": date.today().isoformat()}
    write_json(results.milliseconds_file, {**found, "images": len(files), "machine": machine})


def encoding_cost(config: str, opts: Sequence[str], files: Sequence[str]) -> tuple[float, float]:
    """What reading and encoding one of some images takes, on one thread.

    Args:
        config, opts: of the network.
        files: images; the first one is encoded once more before, which doesn't count.

    Returns:
        The median CPU time in milliseconds, and this process's largest resident memory until now in
        megabytes (10^6 bytes).
    """
    torch.set_num_threads(1)
    cfg = build_cfg(config, opts)
    model, load = build_model(cfg).eval(), ImageLoader(cfg)
    times = []
    with torch.no_grad():
        model.encode_images([load(files[0])])
        for file in files:
            start = time.process_time()
            model.encode_images([load(file)])
            times.append(time.process_time() - start)
    return 1000.0 * statistics.median(times), _peak_memory() / 1e6


def _peak_memory() -> int:
    """The largest resident memory of this process until now, in bytes."""
    status = Path("/proc/self/status")
    if status.is_file():  # on Linux getrusage counts what the parent held, too
        return 1024 * int(re.findall(r"VmHWM:\s*(\d+) kB", status.read_text())[0])
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _encoding_options(row: Row) -> list[str]:
    """The options of a row's network, with new weights. Bits change neither time nor memory."""
    options = row.runs()[0].options(Path("output"))
    return [*options, "MODEL.REGION_DH.BITS", "48", "MODEL.WEIGHTS", "", "MODEL.DEVICE", "cpu"]


def _in_new_process(config: str, opts: Sequence[str], files: Sequence[str]) -> tuple[float, float]:
    # A process's largest memory never falls, so each network needs its own.
    os.environ["PYTHONWARNINGS"] = "ignore::FutureWarning"  # of importing PyTorch
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, context, initializer=prepare_process) as pool:
        return pool.submit(encoding_cost, config, opts, files).result()


def main(argv: Sequence[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    return run_command(lambda: run(args))


if __name__ == "__main__":
    sys.exit(main())
