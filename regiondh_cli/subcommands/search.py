"""Search an index by images, by an object in one, or by several objects at once."""

import argparse

from ..arguments import CommandParser
from ..legal_values import MEMORY_ENGINES
from ..options import (
    add_blend_option,
    add_config_option,
    add_exclude_self_option,
    add_import_option,
    add_max_distance_option,
    add_no_file_check_option,
    add_overwrite_option,
    add_rerank_options,
    add_root_option,
    box,
    check_rerank_options,
    positive_int,
)


def add_arguments(parser: CommandParser) -> None:
    add_config_option(parser, of_index=True)
    parser.add_argument("--index", required=True, metavar="FOLDER", help="the index folder")
    parser.add_argument(
        "--query",
        action="append",
        required=True,
        metavar="IMAGE",
        help="the image to search with, or a folder of images; repeatable. With a folder or "
        "several images --json is a list, an element for each",
    )
    parser.add_argument(
        "--box",
        type=box,
        action="append",
        metavar="X1,Y1,X2,Y2",
        help="search for the object in this box, in pixels of the image; repeated, for images that "
        "hold all the objects",
    )
    parser.add_argument(
        "--instance",
        type=positive_int,
        action="append",
        metavar="N",
        help="search for the N-th detection by score; may be repeated and joined with --box",
    )
    parser.add_argument(
        "--class",
        dest="class_name",
        metavar="NAME",
        help="answer only with detections of this class, or with images that have one",
    )
    parser.add_argument(
        "--all-objects",
        action="store_true",
        help="with one object: answer with all near objects, even several of one image (default: "
        "an image answers once, by its nearest object)",
    )
    parser.add_argument(
        "--group-by-class",
        action="store_true",
        help="answer for each class that the network sees in the image, with a probability of 0.5 "
        "or more: with the K nearest images among those in which an object of the class was "
        "detected; with --json then a list, one for each class",
    )
    parser.add_argument(
        "--topk", type=positive_int, default=10, metavar="K", help="default: %(default)s"
    )
    add_max_distance_option(parser)
    add_blend_option(
        parser,
        "with objects: rank images by the distance of the objects plus W times that of the whole "
        "images, so that surroundings count (0.5 is a good value; default: 0, the objects alone)",
    )
    parser.add_argument(
        "--fold-duplicates",
        action="store_true",
        help="copies of a photo fill one answer, which names them: files of the same content, and, "
        "where the index holds activations or features, files that were saved again",
    )
    add_exclude_self_option(
        parser,
        "leave the query out of its own answers: the same file, or one of the same content",
    )
    add_rerank_options(parser)
    parser.add_argument(
        "--engine",
        choices=MEMORY_ENGINES,
        help="search with this engine (default: that of the index)",
    )
    parser.add_argument(
        "--within",
        action="append",
        default=[],
        metavar="FOLDER",
        help="answer only with photos in this folder; repeatable",
    )
    add_root_option(parser)
    add_no_file_check_option(parser, "answer with")
    parser.add_argument("--save", metavar="GRID.png", help="also draw the query and its answers")
    parser.add_argument("--json", metavar="OUT.json", help="also write the answers")
    add_import_option(parser)
    add_overwrite_option(parser)
    parser.add_overrides()


def check(parser: CommandParser, args: argparse.Namespace) -> None:
    check_rerank_options(parser, args)
    if args.group_by_class and (args.box or args.instance or args.class_name):
        parser.error("--group-by-class is for whole images: without --box, --instance and --class")
    if args.all_objects and len(args.box or ()) + len(args.instance or ()) != 1:
        parser.error("--all-objects is for a query of one object: give one --box or --instance")
    if args.blend and not (args.box or args.instance):
        parser.error("--blend is for a query of objects: give --box or --instance")
    if args.blend and args.all_objects:
        parser.error("--blend ranks images: search without --all-objects")
    if len(args.query) > 1 and (args.box or args.instance):
        parser.error("--box and --instance are for one image: give one --query")
