"""Serve a page to search an index with, and a REST interface."""

import argparse
import importlib.util
import os
import secrets
import threading

from ..checkpoint.zoo import CONFIGS, DEFAULT, network_name
from ..engine.command import load_trained_model
from ..engine.config_names import find_config
from ..engine.defaults import build_cfg
from ..engine.query_encoder import QueryEncoder, query_loader
from ..engine.user_code import import_user_code
from ..retrieval.service import SearchService, SnapshotHolder
from ..utils.display import display_name, print_line
from ..utils.errors import MissingPackageError, RegionDHError

TOKEN_VARIABLE = "REGIONDH_TOKEN"
LEAST_TOKEN = 16  # letters


def config_of(args: argparse.Namespace, service: SearchService) -> str:
    """The config of the network that encoded the index; "" where it isn't known."""
    if args.config_file:
        return args.config_file
    name = network_name(service.folder.items.model_fingerprint)
    return CONFIGS[name] if name else ""


def choose_token(local: bool) -> str | None:
    """The token that requests need: that of the environment, or a new one; None on this machine.

    Raises:
        RegionDHError: the one of the environment is too short.
    """
    given = os.environ.get(TOKEN_VARIABLE, "")
    if given and len(given) < LEAST_TOKEN:
        raise RegionDHError(f"{TOKEN_VARIABLE}: a token has {LEAST_TOKEN} letters at least")
    if given or local:
        return given or None
    return secrets.token_urlsafe(24)


def check_web_packages() -> None:
    """Check that the packages of the page are here.

    Raises:
        MissingPackageError: one isn't.
    """
    for name in ("starlette", "uvicorn"):
        if importlib.util.find_spec(name) is None:
            raise MissingPackageError(f"the page needs {name}: pip install 'regiondh_d2[web]'")


def run(args: argparse.Namespace) -> None:
    check_web_packages()
    from ..web.app import create_app
    from ..web.decoder import Decoder
    from ..web.growth import FolderAdder
    from ..web.guard import is_local
    from ..web.limits import Limits
    from ..web.page_search import PageSearch
    from ..web.server import listen, run_server

    import_user_code(args.imports)
    local = is_local(args.host)
    token = choose_token(local)
    limits = Limits()
    holder = SnapshotHolder(args.index, args.engine, args.root)
    service = holder.current()
    items = service.folder.items
    config = config_of(args, service)
    cfg = build_cfg(find_config(config or CONFIGS[DEFAULT]), args.opts)
    adder = FolderAdder(args.add_below, service.folder, config, args.opts)
    listening = listen(args.host, args.port)
    encoder = None
    load = query_loader(items.settings, cfg)
    decoder = Decoder(load, limits)
    starting = threading.Thread(target=decoder.start)
    starting.start()  # while the network is loaded
    if config:
        encoder = QueryEncoder(load_trained_model(cfg), load, items.class_names)
    else:
        print_line(
            "warning: the index doesn't name its network: name it with --config-file to search "
            "with uploaded photos and drawn boxes"
        )
    search = PageSearch(holder, decoder, encoder, limits)
    search.warm_up()
    app = create_app(search, hosts=args.allow_host, any_address=not local, token=token, adder=adder)
    starting.join()
    port = listening.getsockname()[1]
    host = f"[{args.host}]" if ":" in args.host else args.host
    print_line(f"{len(items)} photos of {display_name(args.index)}; Ctrl-C ends the server")
    if token is not None and not os.environ.get(TOKEN_VARIABLE):
        print_line(f"token, which the page asks for: {token}")
    print(f"page: http://{host}:{port}/", flush=True)
    run_server(app, listening)
