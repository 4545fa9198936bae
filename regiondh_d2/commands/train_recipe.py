"""Train a network from the start by a recipe: several trainings, one after the other."""

import argparse
import logging
import shlex

from detectron2.utils.logger import setup_logger

from regiondh_cli.main import subcommand_parser

from ..engine.recipe import RecipeRun, find_recipe, read_recipe
from ..engine.user_code import import_user_code
from ..utils.display import print_line
from . import train

LOGGERS = ("detectron2", "fvcore", "regiondh_d2")


def run(args: argparse.Namespace) -> None:
    import_user_code(args.imports)
    recipe = read_recipe(find_recipe(args.recipe))
    shared = ["--num-gpus", str(args.num_gpus)]
    shared += [word for name in args.imports for word in ("--import", name)]

    def train_step(words: list[str]) -> None:
        close_logs()
        train.run(subcommand_parser("train").parse_args([*shared, *words]))

    steps = RecipeRun(
        recipe, args.output, opts=args.opts, train=train_step, log=lambda line: print_line(line)
    )
    minutes = steps.minutes()
    print_line(f"about {sum(minutes.values()):.0f} minutes on this machine, if nothing else runs:")
    for name, number in minutes.items():
        print_line(f"  {name:24} {f'{number:.0f}' if number else 'done'}")
    if args.estimate:
        return
    steps.run()
    use = ["--config-file", recipe.network, "MODEL.WEIGHTS", str(steps.network)]
    print_line(f"the network: {steps.network}; use it with {shlex.join(use)}")


def close_logs() -> None:
    """Take the log files of the step before from the loggers, or they would get the next one's
    lines, too."""
    for name in LOGGERS:
        logger = logging.getLogger(name)
        for handler in logger.handlers[:]:
            handler.flush()
            logger.removeHandler(handler)
    setup_logger.cache_clear()  # which otherwise sets up nothing that it has set up before
