"""What has become of the photos that codes were made of: a look at files, not at pixels.

A photo is there if its file has the size and time of modification that it had when it was encoded.
Where they differ, the sha256 of its content decides, if that was stored: a file that was copied or
touched is still the same photo. Nothing is known of photos whose root is missing, unreadable or
empty, as the folder of a disk is that isn't plugged in, or that are in a folder that can't be read:
they are away, and neither answered with nor removed.
"""

from __future__ import annotations

import enum
import hashlib
import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass, replace

from ..data.photo_files import is_system_file
from ..structures.codes import UNKNOWN, CodeSet, take_rows
from ..utils.display import display_name
from ..utils.file_io import carries_mark
from ..utils.marks import FOLDER_MARK

__all__ = [
    "PhotoCheck",
    "PhotoState",
    "Pruned",
    "describe_away",
    "file_sha256",
    "prune",
    "root_problem",
    "with_common_root",
]

_CHUNK = 1 << 20


class PhotoState(enum.Enum):
    """What has become of a photo."""

    THERE = "there"
    GONE = "gone"
    CHANGED = "changed"
    AWAY = "away"
    OWN = "own"
    """A picture or in a folder that this package wrote, such as the answers of a search."""


def file_sha256(path: str | os.PathLike) -> bytes:
    """The sha256 of a file's bytes.

    Raises:
        OSError: it can't be read.
    """
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.digest()


def root_problem(root: str) -> str:
    """Why nothing is known of the photos below a folder, in a few words; "" if it can be looked at.

    A folder that holds nothing, or systems' files alone, is what is left of a disk that isn't
    plugged in.
    """
    try:
        with os.scandir(root) as entries:
            if all(is_system_file(entry.name) for entry in entries):
                return "is empty"
    except (FileNotFoundError, NotADirectoryError):
        return "is no folder" if os.path.lexists(root) else "is not there"
    except OSError as error:
        return f"can't be read ({error.strerror})"
    return ""


class PhotoCheck:
    """Tells the states of photos; looks at each file, folder and root once in its life.

    Attributes:
        away: roots of which nothing is known, with the reason; those that were looked at.
    """

    def __init__(self, items: CodeSet):
        self._items = items
        self._states: dict[int, PhotoState] = {}
        self._roots: dict[int, str] = {}
        self._own: dict[str, bool] = {}

    def state(self, row: int) -> PhotoState:
        """The state of a photo.

        A file name that counts from no root and isn't absolute, as in some datasets, can't be
        looked at: such a photo is taken to be there.

        Args:
            row: of the code set.
        """
        row = int(row)
        if row not in self._states:
            self._states[row] = self._look(row)
        return self._states[row]

    @property
    def away(self) -> dict[str, str]:
        return {self._items.roots[i]: reason for i, reason in self._roots.items() if reason}

    def _look(self, row: int) -> PhotoState:
        name, index = self._items.file_names[row], int(self._items.root_index[row])
        root = self._items.roots[index]
        if root:
            if index not in self._roots:
                self._roots[index] = root_problem(root)
            if self._roots[index]:
                return PhotoState.AWAY
        elif not os.path.isabs(name):
            return PhotoState.THERE
        try:
            found = os.stat(name)
        except (FileNotFoundError, NotADirectoryError):
            return PhotoState.AWAY if _is_behind_dead_link(name, root) else PhotoState.GONE
        except ValueError:  # a name that no file can have
            return PhotoState.GONE
        except OSError:
            return PhotoState.AWAY
        if not stat.S_ISREG(found.st_mode):
            return PhotoState.GONE
        if not self._is_as_encoded(row, name, found):
            return PhotoState.CHANGED
        if carries_mark(name) or self._is_in_own_folder(os.path.dirname(name), root):
            return PhotoState.OWN
        return PhotoState.THERE

    def _is_in_own_folder(self, folder: str, root: str) -> bool:
        """Whether a folder below the root is our output, or lies in one."""
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
        except OSError:
            return False


def _is_own_folder(folder: str) -> bool:
    """As :func:`~regiondh_d2.data.photo_files.find_photos` knows its folders."""
    if os.path.lexists(os.path.join(folder, FOLDER_MARK)):
        return True
    return all(os.path.lexists(os.path.join(folder, name)) for name in ("photos.h5", "index"))


def _is_behind_dead_link(path: str, root: str) -> bool:
    """Whether a path leads through a link that leads nowhere, such as to a disk that is away."""
    while len(path) > len(root):
        if os.path.islink(path) and not os.path.exists(path):
            return True
        parent = os.path.dirname(path)
        if parent == path or os.path.isdir(parent):
            return False
        path = parent
    return False


def with_common_root(items: CodeSet) -> CodeSet:
    """The code set with a root for images of absolute names that have none, as in older files.

    It is the deepest folder that all of these lie in. Names that aren't absolute keep the root "".
    """
    rows = [
        row
        for row, (name, root) in enumerate(
            zip(items.file_names, items.root_index.tolist(), strict=True)
        )
        if not items.roots[root] and os.path.isabs(name)
    ]
    if not rows:
        return items
    folders = {os.path.dirname(items.file_names[row]) for row in rows}
    root = os.path.commonpath([min(folders), max(folders)])
    root_index = items.root_index.copy()
    root_index[rows] = len(items.roots)
    return replace(items, roots=[*items.roots, root], root_index=root_index)


@dataclass(frozen=True)
class Pruned:
    """What :func:`prune` left.

    Attributes:
        items: the code set without the rows of photos that have gone.
        gone: file names of these.
        away: roots that nothing is known of, with the reason; their rows stay.
        kept_away: number of rows that stay because nothing is known of their photos.
    """

    items: CodeSet
    gone: Sequence[str]
    away: dict[str, str]
    kept_away: int


def prune(items: CodeSet) -> Pruned:
    """Leave out the rows of photos that have gone, and of nothing else.

    Rows of changed photos stay, since encoding them again replaces them, and so do rows of which
    nothing is known.
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
    """A line about roots of which nothing is known."""
    (root, reason), *others = away.items()
    more = f" and {len(others)} more folders of photos" if others else ""
    return (
        f"{display_name(root)} {reason}{more}: plug the disk in, or tell where the photos are now "
        f"with --root {display_name(root)}=NEW"
    )
