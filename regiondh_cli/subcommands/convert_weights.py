"""Convert weights to a file that MODEL.WEIGHTS takes, under the full names of the models here.

Every tensor is either written or listed as left out. With --halve, a checkpoint of a training
becomes a small file for shipping.
"""

import argparse

from ..arguments import CommandParser
from ..legal_values import LAYOUTS, WEIGHT_SOURCES
from ..options import add_overwrite_option

PARSER = {
    "epilog": f"""regiondh:// sources:
  {", ".join(WEIGHT_SOURCES)}
  timm/NAME and timm/NAME-fpn, for any timm network with pretrained weights
""",
    "formatter_class": argparse.RawDescriptionHelpFormatter,
}


def add_arguments(parser: CommandParser) -> None:
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


def check(parser: CommandParser, args: argparse.Namespace) -> None:
    if not args.output.endswith(".pth"):
        parser.error(f"OUTPUT.pth: {args.output} must end in .pth, or Detectron2 can't load it")
    if args.halve and args.layout:
        parser.error("--layout is for ImageNet weights: leave it out with --halve")
