"""Print the contents of datasets, and every problem.

The folder of the datasets is $DETECTRON2_DATASETS, or datasets where that is not set.
"""

import argparse

from ..arguments import CommandParser
from ..options import add_import_option

PARSER = {
    "epilog": """The folder of the datasets is $DETECTRON2_DATASETS (default: datasets). It holds:
  VOC2007/{Annotations,ImageSets/Main,JPEGImages}   and VOC2012/ alike, without VOCdevkit/ above
  coco/{annotations,train2017,val2017}
  scenes/                                           of regiondh prepare-scenes
datasets/README.md of the source says where they come from, and how to add your own.

Exit status: 0 without problems, 1 with any, 2 for an unknown name.""",
    "formatter_class": argparse.RawDescriptionHelpFormatter,
}


def add_arguments(parser: CommandParser) -> None:
    parser.add_argument(
        "names", nargs="*", help="registered datasets (default: all shipped ones that are here)"
    )
    parser.add_argument(
        "--images", action="store_true", help="also open every image and compare its size"
    )
    add_import_option(parser)
    # Only the library knows the names.
    parser.set_defaults(refuse=parser.error)
