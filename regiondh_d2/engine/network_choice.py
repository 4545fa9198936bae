"""Which of the networks that come with the package goes with given codes.

Codes of two networks can't be compared. So codes stay with the network that made them, and only
what is made new gets the default network.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from ..checkpoint.zoo import CONFIGS, DEFAULT, network_name
from ..retrieval.earlier_codes import known_fingerprint
from ..retrieval.index_folder import IndexFolder
from ..structures.codes import CodeFileError
from ..utils.display import display_name
from ..utils.errors import RegionDHError

__all__ = ["config_of_index", "earlier_network", "moving_note"]


def config_of_index(folder: IndexFolder) -> str:
    """The short name of the config of the shipped network that encoded an index.

    Raises:
        RegionDHError: another network did.
    """
    name = network_name(folder.items.model_fingerprint)
    if not name:
        raise RegionDHError(
            f"{display_name(folder.path)}: its network doesn't come with the package: give "
            "--config-file and MODEL.WEIGHTS, those with which it was encoded"
        )
    return CONFIGS[name]


def earlier_network(codes: str | os.PathLike) -> str:
    """The shipped network that made a code file, complete or not; "" for the default one or none."""
    name = ""
    with suppress(CodeFileError):  # the extraction will report a damaged file
        name = network_name(known_fingerprint(codes))
    return "" if name == DEFAULT else name


def moving_note(name: str, codes: str | os.PathLike, index: str | os.PathLike) -> str:
    """A line that codes stay with their network, and how to move them to the default one.

    Args:
        name: their network.
        codes: their code file.
        index: the index folder that is made of them.
    """
    line = f"{display_name(codes)} is by the network {name} and stays with it"
    if not Path(index).is_dir():
        return line
    return f"{line}; `regiondh reencode {display_name(index)}` moves it to {DEFAULT}"
