"""Photos whose folders were moved: ``--root OLD=NEW``."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence

from ..data.photo_files import is_below
from ..structures.code_roots import move_root
from ..structures.codes import CodeFileError, CodeSet
from ..utils.display import display_name
from ..utils.errors import InputNotFoundError, RegionDHError
from ..utils.paths import folder_start

__all__ = ["move_roots", "move_roots_once"]


def move_roots(items: CodeSet, moves: Sequence[str]) -> CodeSet:
    """The code set after folders of photos were moved.

    Args:
        items: the codes.
        moves: texts OLD=NEW: the folder of photos before and after its move.

    Raises:
        RegionDHError: a text isn't OLD=NEW, there is no folder NEW, or no photo was in OLD.
    """
    for move in moves:
        old, new = _split_move(move, items)
        if not os.path.isdir(new):
            raise InputNotFoundError(
                f"--root {display_name(move)}: there is no folder {display_name(new)}; give "
                "OLD=NEW, where the photos were and where they are"
            )
        items = move_root(items, old, os.path.realpath(new))
    return items


def move_roots_once(
    items: CodeSet,
    moves: Sequence[str],
    *,
    strict: bool = True,
    log: Callable[[str], None] | None = None,
) -> CodeSet:
    """As :func:`move_roots`, but repeating a move is no error.

    A repeated move can't be told from a mistyped OLD with photos in NEW already, so it is logged.

    Args:
        items, moves: as there.
        strict: whether to refuse a move if no photo is in NEW either.
        log: takes a line for each move that moves nothing; None takes none.

    Raises:
        RegionDHError: as there, if ``strict``.
    """
    for move in moves:
        try:
            items = move_roots(items, [move])
        except CodeFileError:
            news = _all_new(move)
            if strict and not any(is_below(name, new) for name in items.file_names for new in news):
                raise
            if log is not None:
                log(
                    f"--root {display_name(move)}: no photo was in "
                    f"{display_name(_split_move(move, items)[0])}, and some are in the new folder "
                    "already: nothing is moved"
                )
    return items


def _split_move(move: str, items: CodeSet) -> tuple[str, str]:
    """OLD and NEW of a text. If names contain "=", OLD is the first one that has photos."""
    places = [i for i, letter in enumerate(move) if letter == "="]
    splits = [(move[:i], move[i + 1 :]) for i in places if i and i + 1 < len(move)]
    if not splits:
        raise RegionDHError(f"--root {display_name(move)}: is not OLD=NEW, two folders")
    for old, new in splits:
        for place in (os.path.abspath(old), os.path.realpath(old)):
            start = folder_start(place)
            if any(name.startswith(start) for name in items.file_names):
                return place, new
    return os.path.abspath(splits[0][0]), splits[0][1]


def _all_new(move: str) -> list[str]:
    """The folders that may be NEW in OLD=NEW, since names may contain "="."""
    return [os.path.realpath(move[i + 1 :]) for i, letter in enumerate(move) if letter == "="]
