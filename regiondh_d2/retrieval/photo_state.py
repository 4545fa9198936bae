"""The state of photos since they were encoded, from their files, not their pixels.

A photo is there if its file still has the same size and time of modification. If they differ, the
sha256 of its content decides, if it was stored: a copied or touched file is still the same photo.
Photos are "away", and never removed, if their root is missing, unreadable or empty (such as the
folder of an unplugged disk), or if their folder can't be read. Codes of version 0.1 and of
evaluations have no roots; the deepest common folder of their images is used instead.
"""

from __future__ import annotations

import enum
import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from ..data.photo_files import is_system_file
from ..structures.code_rows import take_rows
from ..structures.codes import UNKNOWN, CodeSet
from ..utils.display import display_name
from ..utils.file_io import carries_mark, file_sha256
from ..utils.marks import FOLDER_MARK
from ..utils.shortage import refuse_if_short

__all__ = [
    "PhotoCheck",
    "PhotoState",
    "Pruned",
    "describe_away",
    "prune",
    "root_problem",
]


class PhotoState(enum.Enum):
    """The state of a photo since it was encoded."""

    THERE = "there"
    GONE = "gone"
    CHANGED = "changed"
    AWAY = "away"
    OWN = "own"
    """A picture or in a folder that this package wrote, such as the answers of a search."""


def root_problem(root: str) -> str:
    """Why the photos below a folder can't be looked at, in a few words; "" if they can.

    A folder that is empty but for systems' files may be that of an unplugged disk.
    """
    try:
        with os.scandir(root) as entries:
            if all(is_system_file(entry.name) for entry in entries):
                return "is empty"
    except (FileNotFoundError, NotADirectoryError):
        return "is no folder" if os.path.lexists(root) else "is not there"
    except OSError as error:
        refuse_if_short(error)
        return f"can't be read ({error.strerror})"
    return ""


class PhotoCheck:
    """Finds the states of photos. It looks only once at each file, folder and root.

    Attributes:
        away: roots and folders found so far that can't be looked at, with the reason.
    """

    def __init__(self, items: CodeSet):
        self._items = items
        self._states: dict[int, PhotoState] = {}
        self._roots: dict[str, str] = {}  # the reason why it can't be looked at, or ""
        self._own: dict[str, bool] = {}
        self._closed: dict[str, str] = {}  # folders below roots, with the reason

    def state(self, row: int) -> PhotoState:
        """The state of a photo.

        A relative file name without a root, as in some datasets, can't be looked at: we assume that
        the photo is there.

        Args:
            row: of the code set.
        """
        row = int(row)
        if row not in self._states:
            self._states[row] = self._look(row)
        return self._states[row]

    @property
    def away(self) -> dict[str, str]:
        roots = {root: reason for root, reason in self._roots.items() if reason}
        return {**roots, **self._closed}

    def root(self, row: int) -> str:
        """The root of a photo; "" where none was recorded."""
        return self._items.roots[int(self._items.root_index[row])]

    @cached_property
    def _common_folder(self) -> str:
        return _common_folder(self._items)

    def _look(self, row: int) -> PhotoState:
        name, root = self._items.file_names[row], self.root(row)
        if not root:
            if not os.path.isabs(name):
                return PhotoState.THERE
            root = self._common_folder
        if root not in self._roots:
            self._roots[root] = root_problem(root)
        if self._roots[root]:
            return PhotoState.AWAY
        try:
            found = os.stat(name)
        except (FileNotFoundError, NotADirectoryError):
            link = _dead_link(name, root)
            if not link:
                return PhotoState.GONE
            self._closed[link] = "is a link that leads nowhere"
            return PhotoState.AWAY
        except ValueError:  # an impossible file name
            return PhotoState.GONE
        except OSError as error:
            self._closed[os.path.dirname(name)] = f"can't be read ({error.strerror})"
            return PhotoState.AWAY
        if not stat.S_ISREG(found.st_mode):
            return PhotoState.GONE
        if not self._is_as_encoded(row, name, found):
            return PhotoState.CHANGED
        if carries_mark(name) or self._is_in_own_folder(os.path.dirname(name), root):
            return PhotoState.OWN
        return PhotoState.THERE

    def _is_in_own_folder(self, folder: str, root: str) -> bool:
        """Whether a folder below the root is, or lies in, an output of ours."""
        if not root or len(folder) <= len(root):
            return False
        if folder not in self._own:
            self._own[folder] = _is_own_folder(folder) or self._is_in_own_folder(
                os.path.dirname(folder), root
            )
        return self._own[folder]

    def _is_as_encoded(self, row: int, name: str, found: os.stat_result) -> bool:
        size, time = int(self._items.size[row]), int(self._items.mtime_ns[row])
        if size not in (UNKNOWN, found.st_size):
            return False
        if time in (UNKNOWN, found.st_mtime_ns):
            return True
        contents = self._items.content_sha256
        if contents is None or not contents[row].any():
            return False
        try:
            return file_sha256(name) == contents[row].tobytes()
        except OSError as error:
            refuse_if_short(error)
            return False


def _is_own_folder(folder: str) -> bool:
    """As :func:`~regiondh_d2.data.photo_files.find_photos` identifies folders."""
    if os.path.lexists(os.path.join(folder, FOLDER_MARK)):
        return True
    return all(os.path.lexists(os.path.join(folder, name)) for name in ("photos.h5", "index"))


def _dead_link(path: str, root: str) -> str:
    """The broken link in the path of a missing file, such as one to an unplugged disk; "" if none.

    Links above the root don't count.
    """
    while len(path) > len(root):
        if os.path.islink(path):
            return path
        parent = os.path.dirname(path)
        if parent == path or os.path.isdir(parent):
            return ""
        path = parent
    return ""


def _common_folder(items: CodeSet) -> str:
    """The deepest common folder of the images with absolute names and no root; "" if none."""
    folders = {
        os.path.dirname(name)
        for name, root in zip(items.file_names, items.root_index.tolist(), strict=True)
        if not items.roots[root] and os.path.isabs(name)
    }
    return os.path.commonpath([min(folders), max(folders)]) if folders else ""


@dataclass(frozen=True)
class Pruned:
    """The result of :func:`prune`.

    Attributes:
        items: the code set without the rows of deleted photos.
        gone: file names of the deleted photos.
        away: roots that can't be looked at, with the reason; their rows stay.
        kept_away: number of rows that stay because their photos can't be looked at.
    """

    items: CodeSet
    gone: Sequence[str]
    away: dict[str, str]
    kept_away: int


def prune(items: CodeSet) -> Pruned:
    """Leave out the rows of deleted photos, and no others.

    Rows of changed photos stay, since encoding them again replaces them, and so do rows whose
    photos can't be looked at.
    """
    check = PhotoCheck(items)
    states = [check.state(row) for row in range(len(items))]
    kept = [row for row, state in enumerate(states) if state is not PhotoState.GONE]
    gone = [items.file_names[row] for row, state in enumerate(states) if state is PhotoState.GONE]
    return Pruned(
        take_rows(items, kept) if gone else items,
        gone,
        check.away,
        states.count(PhotoState.AWAY),
    )


def describe_away(away: dict[str, str]) -> str:
    """A line about roots that can't be looked at."""
    (root, reason), *others = away.items()
    more = f", and {len(others)} more such folders" if others else ""
    return (
        f"{display_name(root)} {reason}{more}: plug the disk in or make it readable, or tell where "
        f"the photos are now with --root {display_name(root)}=NEW"
    )
