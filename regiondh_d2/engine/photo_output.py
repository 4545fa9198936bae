"""The folder that a search of photos writes its codes, index and picture to."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ..data.photo_files import is_below, is_system_file
from ..utils.display import display_name
from ..utils.errors import OutputExistsError
from ..utils.marks import FOLDER_MARK, mark_folder, mark_of

__all__ = ["check_photo_output", "marked_output"]

OUTPUTS = ("photos.h5", "photos.h5.bak", "photos.h5.parts", "index", "answers.png")


def check_photo_output(output: Path, photos: Path) -> None:
    """Refuses an output folder that others' files are in, or the photos.

    What is in an output folder of ours is never taken for photos.

    Raises:
        OutputExistsError: it is a file, the photos are in it, or something else is.
    """
    name = display_name(output)
    if not os.path.lexists(output):
        return
    if not output.is_dir():
        raise OutputExistsError(f"{name}: is a file; name a folder for the output")
    if is_below(os.path.realpath(photos), os.path.realpath(output)):
        raise OutputExistsError(
            f"{name}: the photos are in this folder; name another, of its own, for the output"
        )
    if mark_of(output) == "photos":
        return
    # Version 0.1 put no mark into it.
    others = [x for x in os.listdir(output) if x not in OUTPUTS and not is_system_file(x)]
    if others:
        raise OutputExistsError(
            f"{name}: holds {display_name(min(others))}, which isn't of this program; name an "
            "empty or a new folder for the output"
        )


@contextmanager
def marked_output(output: Path) -> Iterator[None]:
    """Mark an output folder, so that what is written to it meanwhile is never taken for photos.

    If the block fails and has written nothing there, the mark goes again, and so do the folders
    that were created for it.
    """
    created = [folder for folder in (output, *output.parents) if not folder.exists()]
    before = set() if created else set(os.listdir(output))
    mark_folder(output, "photos")
    try:
        yield
    except BaseException:
        if FOLDER_MARK not in before and set(os.listdir(output)) == before | {FOLDER_MARK}:
            (output / FOLDER_MARK).unlink()
            with suppress(OSError):  # another program has put something there
                for folder in created:
                    folder.rmdir()
        raise
