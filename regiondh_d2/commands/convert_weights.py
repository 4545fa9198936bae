"""Convert weights to a file that MODEL.WEIGHTS takes, under the full names of the models here.

Every tensor is either written or listed as left out. With --halve, a checkpoint of a training
becomes a small file for shipping.
"""

import argparse

from ..checkpoint import convert_weights, write_weights, zoo
from ..utils.display import print_line
from ..utils.file_io import check_output_file


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
