"""Train Region-DH on generated scenes, compare it with two references, and draw its answers."""

import argparse
import os
import shlex

from ..engine.demo import format_table, run_demo
from ..utils.display import print_line

LAST = "model_final.pth"


def run(args: argparse.Namespace) -> None:
    result = run_demo(
        args.output,
        args.config_file,
        images=args.images,
        queries=args.queries,
        iterations=args.iterations,
        seed=args.seed,
        overwrite=args.overwrite,
        log=lambda line: print(line, flush=True),
    )
    print(f"\n{format_table(result)}\n")
    print_line(f"picture: {result.picture}")
    print_line(f"report: {result.page}")
    index, weights = (os.path.join(args.output, *x) for x in (["index"], ["training", LAST]))
    codes = os.path.join(args.output, "database.h5")
    build = ["regiondh", "build-index", codes, "--output", index]
    network = ["--config-file", args.config_file, "MODEL.WEIGHTS", weights]
    serve = ["regiondh", "serve", "--index", index, *network]
    print_line(f"click through the scenes: {shlex.join(build)} && {shlex.join(serve)}")
