"""Train Region-DH on generated scenes, compare it with two references, and draw its answers."""

import argparse

from ..engine.demo import format_table, run_demo
from ..utils.display import print_line


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
