"""Move an index to another network: encode its photos again, and replace it when all is there."""

import argparse
import os
import sys
from pathlib import Path

from ..checkpoint.zoo import CONFIGS, DEFAULT
from ..engine.command import load_trained_model
from ..engine.config_names import find_config
from ..engine.defaults import build_cfg
from ..engine.reencoding import IndexReencoder
from ..engine.user_code import import_user_code
from ..retrieval.index_record import read_record
from ..utils.display import display_name, print_line
from ..utils.errors import RegionDHError, unknown_value_message


def config_of(args: argparse.Namespace) -> str:
    """The file of the new network's config.

    Raises:
        RegionDHError: there is no such network or config.
    """
    if args.config_file:
        return find_config(args.config_file)
    name = args.network or DEFAULT
    if name not in CONFIGS:
        raise RegionDHError(unknown_value_message("network", name, tuple(CONFIGS)))
    return find_config(CONFIGS[name])


def run(args: argparse.Namespace) -> None:
    import_user_code(args.imports)
    config = config_of(args)
    cfg = build_cfg(config, args.opts)
    read_record(Path(args.index))  # an error before the network is loaded
    reencoder = IndexReencoder(
        load_trained_model(cfg),
        cfg,
        os.path.basename(config),
        skip_bad=args.skip_bad,
        batch_size=args.batch_size,
        save_every=args.save_every,
        log=lambda line: print_line(line),
    )
    found = reencoder.run(args.index, args.root)
    name = display_name(args.index)
    if found is None:
        print_line(f"{name}: is of this network already; nothing to do")
        return
    for error in found.unreadable:
        print_line(f"unreadable, left out: {error}", sys.stderr)
    for photo in found.gone:
        print_line(f"gone, left out: {display_name(photo)}", sys.stderr)
    print_line(f"{name}: {found.photos} photos, encoded by {found.network or config}")
    print_line(f"their code file: {display_name(found.codes)}")
