#!/usr/bin/env python
"""Convert weights to a file that MODEL.WEIGHTS takes, under the full names of the models here.

Every tensor is accounted for: written under a name, or listed as left out. With --halve, a
checkpoint of a training becomes the small file that a network is shipped as.
"""

import argparse
import sys

from regiondh_d2.checkpoint import SOURCES, convert_weights, write_weights, zoo
from regiondh_d2.checkpoint.conversion import LAYOUTS
from regiondh_d2.engine.command import add_overwrite_option, run_command
from regiondh_d2.utils.arguments import CommandParser
from regiondh_d2.utils.display import print_line
from regiondh_d2.utils.file_io import check_output_file

EPILOG = f"""regiondh:// sources:
  {", ".join(sorted(SOURCES))}
  timm/NAME and timm/NAME-fpn, for any timm network with pretrained weights
"""


def build_parser() -> argparse.ArgumentParser:
    parser = CommandParser(
        description=__doc__.splitlines()[0],
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "source",
        metavar="SOURCE",
        help="a regiondh:// name, or a file: a state dict of torchvision's VGG16, ResNet or "
        "ResNeXt or of EfficientNet-Lite0, or a .pkl of Detectron2's model zoo; with --halve a "
        "checkpoint of a training",
    )
    parser.add_argument("output", metavar="OUTPUT.pth", help="the file to write")
    parser.add_argument(
        "--layout",
        choices=LAYOUTS,
        default="",
        help="where an ImageNet ResNet of a file goes: c4 (res5 is the box head) or fpn "
        "(default: neither)",
    )
    parser.add_argument(
        "--halve",
        action="store_true",
        help="write a training's network with its matrices in half precision and without the "
        "state of the optimizer, and print the sha256 of the file",
    )
    add_overwrite_option(parser)
    return parser


def run(args: argparse.Namespace) -> None:
    check_output_file(args.output, inputs=[args.source], overwrite=args.overwrite, kind="weights")
    if args.halve:
        count, digest = zoo.halve(args.source, args.output)
        print_line(f"{args.output}: {count} tensors")
        print(f"sha256: {digest}")
        return
    weights = convert_weights(args.source, args.layout)
    write_weights(args.output, weights)
    print_line(f"{args.output}: {len(weights.model)} tensors")
    print_line(f"left out: {', '.join(weights.left_out) or 'nothing'}")


def main(argv: list[str] | None = None) -> int:
    parser = build_parser()
    args = parser.parse_args(argv)
    if not args.output.endswith(".pth"):
        parser.error(f"OUTPUT.pth: {args.output} must end in .pth, by which Detectron2 knows it")
    if args.halve and args.layout:
        parser.error("--layout is for ImageNet weights: leave it out with --halve")
    return run_command(lambda: run(args))


if __name__ == "__main__":
    sys.exit(main())
