"""Serve a page to search an index with, and a REST interface.

Only this machine can reach the page, unless --host names another address. Then everybody needs a
token, which is printed at start, or taken from REGIONDH_TOKEN.
"""

from ..arguments import CommandParser
from ..legal_values import MEMORY_ENGINES
from ..options import add_config_option, add_import_option, add_root_option, whole_number

INTERRUPTED = "ended"


def add_arguments(parser: CommandParser) -> None:
    parser.add_argument("--index", required=True, metavar="FOLDER", help="the index folder")
    add_config_option(parser, of_index=True)
    parser.add_argument("--host", default="127.0.0.1", help="address (default: %(default)s)")
    parser.add_argument(
        "--port",
        type=whole_number(0, 65535),
        default=8000,
        metavar="N",
        help="port; 0 takes a free one (default: %(default)s)",
    )
    parser.add_argument(
        "--allow-host",
        action="append",
        default=[],
        metavar="NAME",
        help="a host name under which the page is reached, such as that of a proxy; repeatable",
    )
    parser.add_argument(
        "--add-below",
        action="append",
        default=[],
        metavar="FOLDER",
        help="a folder that users of the page may add to the index, and any folder in it; "
        "repeatable (default: none)",
    )
    parser.add_argument(
        "--engine",
        choices=MEMORY_ENGINES,
        help="search with this engine (default: that of the index)",
    )
    add_root_option(parser)
    add_import_option(parser)
    parser.add_overrides()
