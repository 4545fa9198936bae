"""Parameters, operations and time of a network, by part: backbone, RPN, RoI head, hash heads.

It needs only a config: weights are random and the image is noise. The number of boxes that pass NMS
depends on both, so measure the time of a trained network with a photo.
"""

import argparse
import os
from collections.abc import Callable, Mapping

import torch

from ..config import square_sizes
from ..data.squares import squashed
from ..engine import build_cfg
from ..engine.analysis import PARTS, count_flops, count_parameters, time_parts
from ..engine.command import load_trained_model
from ..engine.config_names import find_config
from ..engine.defaults import config_inputs
from ..engine.network import build_network
from ..engine.user_code import import_user_code
from ..retrieval.images import ImageLoader
from ..utils.display import print_line
from ..utils.file_io import check_output_file, write_json

# Heading, divisor and format of each task's column.
TASKS = {
    "parameter": ("parameters", 1, ",d"),
    "flop": ("GFLOP", 1e9, ".3f"),
    "time": ("ms", 1e-3, ".1f"),
}
ASPECT = 4 / 3  # of the noise image
UNSCALED = 600  # its height where INPUT.MIN_SIZE_TEST is 0, so that images are not scaled


def load(cfg, image: str | None) -> tuple[torch.nn.Module, dict]:
    """The model in evaluation mode, and an input for it."""
    if image is not None:
        return load_trained_model(cfg), ImageLoader(cfg)(image)
    torch.manual_seed(0)
    height = cfg.INPUT.MIN_SIZE_TEST or UNSCALED
    width = min(round(height * ASPECT), cfg.INPUT.MAX_SIZE_TEST or height * 2)
    noise = torch.randint(256, (3, height, width), dtype=torch.uint8)
    inputs = {"image": noise, "height": height, "width": width}
    if sizes := square_sizes(cfg):
        inputs["squares"] = squashed(noise.permute(1, 2, 0).numpy(), sizes)
    return build_network(cfg).eval(), inputs


def format_table(numbers: Mapping[str, Mapping[str, float]]) -> str:
    """A line per part and one for all, a column with shares per task."""
    lines = [f"{'':10}" + "".join(f"{TASKS[task][0]:>21}" for task in numbers)]
    totals = {task: sum(parts.values()) for task, parts in numbers.items()}
    for part in (*PARTS, "all"):
        line = f"{part:10}"
        for task, parts in numbers.items():
            _, divisor, form = TASKS[task]
            value = parts.get(part, totals[task])
            shown = format(value if divisor == 1 else value / divisor, form)
            line += f"{shown:>15}{100 * value / totals[task]:4.0f} %"
        lines.append(line)
    return "\n".join(lines)


def run(args: argparse.Namespace) -> None:
    import_user_code(args.imports)
    inputs = [args.image, *config_inputs(args.config_file, args.opts)]
    check_output_file(args.json, inputs=inputs, overwrite=args.overwrite, kind="json")
    cfg = build_cfg(args.config_file, args.opts)
    model, sample = load(cfg, args.image)
    work: dict[str, Callable[[], Mapping[str, float]]] = {
        "parameter": lambda: count_parameters(model),
        "flop": lambda: count_flops(model, [sample]),
        "time": lambda: time_parts(model, [sample], args.repeat),
    }
    numbers = {task: work[task]() for task in TASKS if task in args.tasks}
    height, width = sample["image"].shape[1:]
    setting = {
        "config": os.path.basename(find_config(args.config_file)),
        "input": f"{height} x {width}",
        "device": cfg.MODEL.DEVICE,
        "threads": torch.get_num_threads(),
    }
    print_line(", ".join(f"{key} {value}" for key, value in setting.items()))
    print(format_table(numbers))
    if args.json:
        write_json(args.json, {**numbers, "setting": setting}, format="regiondh-costs")
