"""Finds the photos in folders.

No image is silently left out: :func:`find_photos` also returns what it passed over and why. It
reads only the first and last bytes of a file, to recognize images by content and pictures drawn by
this package.

* Links to folders and files are followed, except links back to a folder above them.
* Each file counts once (by device and inode). Of several names, one without links is preferred,
    then one in the first given input, then the first one found: files before folders, in
    alphabetical order.
* The root of a photo is the outermost given folder above it, with all links resolved. So the
    spelling and the order of the inputs don't change a photo's identity.
"""

from __future__ import annotations

import os
import stat
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatch
from functools import cached_property

from ..utils.display import display_name
from ..utils.errors import RegionDHError
from ..utils.file_io import carries_mark
from ..utils.marks import FOLDER_MARK
from ..utils.paths import as_list, is_below
from ..utils.shortage import refuse_if_short
from .image_formats import (
    HEIF_ENDINGS,
    HEIF_HINT,
    IMAGE_ENDINGS,
    SIGNATURE_BYTES,
    can_read_heif,
    format_by_content,
)

__all__ = ["Photo", "PhotoScan", "find_photos", "is_system_file"]

# Files and folders of systems and programs, in lower case.
_SYSTEM_NAMES = frozenset(
    {
        *("thumbs.db", "ehthumbs.db", "ehthumbs_vista.db", "desktop.ini", "icon\r"),
        *("@eadir", "#recycle", "#snapshot", "@recycle", "@recently-snapshot", "__macosx"),
        *("$recycle.bin", "system volume information", "lost+found"),
        *(".ds_store", ".spotlight-v100", ".trashes", ".fseventsd", ".directory", ".nomedia"),
    }
)
# Every output folder of ours holds one of these.
_OWN_NAMES = frozenset({FOLDER_MARK, "index.json", "scenes.json", "scenes"})
_SHOWN_TYPES = 8


@dataclass(frozen=True)
class Photo:
    """A file that is an image, by its ending or its first bytes.

    Attributes:
        root: the folder to which ``relative_path`` is relative, links resolved.
        relative_path: path below ``root``, with "/" between folders.
        size: bytes.
        mtime_ns: time of modification.
    """

    root: str
    relative_path: str
    size: int
    mtime_ns: int

    @property
    def path(self) -> str:
        return os.path.join(self.root, self.relative_path)


@dataclass
class PhotoScan:
    """The result of :func:`find_photos`.

    Attributes:
        images: the photos, in the order of the inputs, then files before folders, by name.
        roots: the searched folders, links resolved, without subfolders of others.
        missing: the inputs that don't exist, as given.
        passed_over: number of files that are not readable images, by ending in lower case; "" for
            no ending, "special" for pipes and the like.
        unreadable_folders: folders that can't be listed; photos in them are unknown.
        excluded: files and folders left out by ``exclude``.
        links: names that were not followed, with the reason: a broken link, a link back, or a
            second name of a file or folder.
        own: pictures and folders that this package wrote.
        hidden: number of hidden files and folders, without those of systems.
    """

    images: list[Photo] = field(default_factory=list)
    roots: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    passed_over: Counter[str] = field(default_factory=Counter)
    unreadable_folders: list[str] = field(default_factory=list)
    excluded: list[str] = field(default_factory=list)
    links: list[tuple[str, str]] = field(default_factory=list)
    own: list[str] = field(default_factory=list)
    hidden: int = 0

    def could_see(self, path: str) -> bool:
        """Whether a photo at a path would have been found.

        False in folders that can't be listed, and behind broken links, such as to an unplugged
        disk.
        """
        return not lies_in_any(path, self._closed)

    @cached_property
    def _closed(self) -> set[str]:
        return {*self.unreadable_folders, *(p for p, why in self.links if why == _NOWHERE)}

    def summary(self) -> list[str]:
        """At most two lines about what was left out."""
        parts = []
        if self.passed_over:
            parts.append(_counts_by_type(self.passed_over))
        for count, what in (
            (len(self.excluded), "excluded"),
            (len(self.own), "of this program's own output"),
            (self.hidden, "hidden"),
            (len(self.links), "further names of the same files or links that lead nowhere"),
        ):
            if count:
                parts.append(f"{count} {what}")
        lines = [f"passed over: {', '.join(parts)}"] if parts else []
        if self.unreadable_folders:
            shown = ", ".join(map(display_name, self.unreadable_folders[:3]))
            more = len(self.unreadable_folders) - 3
            lines.append(
                f"folders that can't be read: {shown}{f' and {more} more' if more > 0 else ''}"
            )
        return lines


_NOWHERE = "a link that leads nowhere"


def _counts_by_type(counts: Counter[str]) -> str:
    # The most frequent first, ties by name.
    order = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    texts = []
    for ending, count in order[:_SHOWN_TYPES]:
        kind = display_name(ending) if ending else "without an ending"
        note = f" ({HEIF_HINT})" if ending in HEIF_ENDINGS and not can_read_heif() else ""
        texts.append(f"{count} {kind}{note}")
    rest = sum(count for _, count in order[_SHOWN_TYPES:])
    return ", ".join(texts + ([f"{rest} of other types"] if rest else []))


def is_system_file(name: str) -> bool:
    """Whether a file or folder of this name is always ignored: hidden, or a system's.

    Args:
        name: without folders.
    """
    return name.startswith(".") or name.lower() in _SYSTEM_NAMES


def lies_in_any(path: str, folders: Collection[str]) -> bool:
    """As :func:`~regiondh_d2.utils.paths.is_below`, for any of many folders."""
    while path not in folders:
        path, last = os.path.dirname(path), path
        if path == last:
            return False
    return True


def find_photos(
    inputs: Sequence[str | os.PathLike],
    exclude: Sequence[str] = (),
    is_known: Callable[[Photo], bool] | None = None,
) -> PhotoScan:
    """Find the photos among files and folders, and what was passed over.

    A given file is taken with any ending, unless it is a picture of this package or a system's
    file. A given folder is searched even if it is hidden or an output of this package. Inside
    folders, hidden and systems' files and folders are ignored.

    Args:
        inputs: files and folders.
        exclude: patterns of :mod:`fnmatch`, in which ``*`` matches any text, "/" included. A file
            or folder is left out, with all its contents, if a pattern matches its name or its path
            below the root. A "/" at the end of a pattern is ignored.
        is_known: whether a photo is known from an earlier scan. Others are opened briefly, to see
            whether this package drew them.

    Returns:
        A :class:`PhotoScan`. Missing inputs are in its ``missing``; they raise no error.

    Raises:
        RegionDHError: a pattern is empty.
    """
    return _Scanner(exclude, is_known).scan(inputs)


@dataclass(frozen=True)
class _Place:
    """A folder or file to look at: its path, the root of its photos, and its place in the order."""

    path: str
    root: str
    order: tuple


class _Scanner:
    def __init__(self, exclude: Sequence[str], is_known: Callable[[Photo], bool] | None):
        self._patterns = [
            pattern.removeprefix("./").rstrip("/") for pattern in map(str, as_list(exclude))
        ]
        if not all(self._patterns):
            raise RegionDHError("--exclude: the pattern is empty: give a name such as 'raw*'")
        self._is_known = is_known or (lambda photo: False)
        self._heif = can_read_heif()
        self._result = PhotoScan()
        self._found: list[tuple[tuple, Photo]] = []
        self._files: dict[tuple[int, int], str] = {}  # by device and inode, with the name kept
        self._folders: set[tuple[int, int]] = set()
        self._links: list[_Place] = []  # links to folders and files, for later

    def scan(self, inputs: Sequence[str | os.PathLike]) -> PhotoScan:
        result = self._result
        given = []
        for name in [os.fspath(path) for path in as_list(inputs)]:
            if os.path.isdir(name):
                given.append((os.path.realpath(name), True))
            elif os.path.exists(name):
                folder, name = os.path.split(os.path.abspath(name))
                given.append((os.path.join(os.path.realpath(folder), name), False))
            else:
                result.missing.append(name)
        folders = dict.fromkeys(path for path, is_folder in given if is_folder)
        result.roots = [
            path for path in folders if not any(is_below(path, f) for f in folders if f != path)
        ]
        for position, (path, is_folder) in enumerate(given):
            if os.path.basename(path).lower() in _SYSTEM_NAMES:
                continue
            place = path if is_folder else os.path.dirname(path)
            root = next((root for root in result.roots if is_below(place, root)), place)
            if is_folder:
                self._walk(_Place(path, root, (position,)))
            elif not self._is_excluded(path, root):
                self._take_named_file(_Place(path, root, (position,)))
        # Links last, so that a name without links is preferred.
        while self._links:
            links, self._links = sorted(self._links, key=lambda link: link.order), []
            for link in links:
                self._follow(link)
        result.images = [photo for _, photo in sorted(self._found, key=lambda item: item[0])]
        return result

    def _walk(self, start: _Place) -> None:
        """Search a folder without following links."""
        stack = [start]
        while stack:
            folder = stack.pop()
            try:
                with os.scandir(folder.path) as listing:
                    entries = sorted(listing, key=lambda entry: entry.name)
                status = os.stat(folder.path)
            except OSError as error:
                refuse_if_short(error)
                self._result.unreadable_folders.append(folder.path)
                continue
            key = (status.st_dev, status.st_ino)
            if key in self._folders:
                continue
            if folder.order[1:] and _is_own_folder(folder.path, {e.name for e in entries}):
                self._result.own.append(folder.path)
                continue
            self._folders.add(key)
            stack += reversed(list(self._look_through(folder, entries)))

    def _look_through(self, folder: _Place, entries: list[os.DirEntry]) -> Iterator[_Place]:
        """Collect the photos among a folder's entries, and yield its subfolders."""
        for entry in entries:
            name = entry.name
            if is_system_file(name):
                self._result.hidden += _is_hidden_by_people(name)
                continue
            if self._is_excluded(entry.path, folder.root):
                continue
            if entry.is_symlink():
                self._links.append(_Place(entry.path, folder.root, (*folder.order, (1, name))))
            elif entry.is_dir(follow_symlinks=False):
                yield _Place(entry.path, folder.root, (*folder.order, (1, name)))
            else:
                self._take_found_file(_Place(entry.path, folder.root, (*folder.order, (0, name))))

    def _follow(self, link: _Place) -> None:
        try:
            status = os.stat(link.path)
        except OSError:
            self._result.links.append((link.path, _NOWHERE))
            return
        if not stat.S_ISDIR(status.st_mode):
            *order, (_, name) = link.order
            self._take_found_file(_Place(link.path, link.root, (*order, (0, name))))
            return
        target = os.path.realpath(link.path)
        if is_below(os.path.realpath(os.path.dirname(link.path)), target):
            self._result.links.append((link.path, "a link back to a folder that it lies in"))
        elif (status.st_dev, status.st_ino) in self._folders:
            self._result.links.append((link.path, f"the same folder as {target}"))
        else:
            self._walk(link)

    def _is_excluded(self, path: str, root: str) -> bool:
        names = (os.path.basename(path), _below(path, root))
        excluded = any(fnmatch(name, pattern) for name in names for pattern in self._patterns)
        if excluded:
            self._result.excluded.append(path)
        return excluded

    def _take_named_file(self, file: _Place) -> None:
        status = os.stat(file.path)
        if stat.S_ISREG(status.st_mode):
            self._take(file, status)
        else:
            self._result.passed_over["special"] += 1

    def _take_found_file(self, file: _Place) -> None:
        try:
            status = os.stat(file.path)
        except (FileNotFoundError, NotADirectoryError):  # deleted since the folder was listed
            return
        except OSError:  # names may be listed, and the files not looked at
            folder = os.path.dirname(file.path)
            if folder not in self._result.unreadable_folders:
                self._result.unreadable_folders.append(folder)
            return
        if not stat.S_ISREG(status.st_mode):
            self._result.passed_over["special"] += 1
        elif self._is_image(file.path):
            self._take(file, status)
        else:
            self._result.passed_over[_ending(file.path)] += 1

    def _is_image(self, path: str) -> bool:
        ending = _ending(path)
        if ending in IMAGE_ENDINGS:
            return True
        if ending in HEIF_ENDINGS:
            return self._heif
        kind = format_by_content(_head(path), os.path.basename(path))
        return self._heif if kind == "HEIF" else kind is not None

    def _take(self, file: _Place, status: os.stat_result) -> None:
        key = (status.st_dev, status.st_ino)
        first = self._files.get(key)
        if first is not None:
            if first != file.path:
                self._result.links.append((file.path, f"the same file as {first}"))
            return
        self._files[key] = file.path
        photo = Photo(file.root, _below(file.path, file.root), status.st_size, status.st_mtime_ns)
        if not self._is_known(photo) and carries_mark(file.path):
            self._result.own.append(file.path)
        else:
            self._found.append((file.order, photo))


def _ending(path: str) -> str:
    return os.path.splitext(path)[1].lower()


def _below(path: str, root: str) -> str:
    return os.path.relpath(path, root).replace(os.sep, "/")


def _head(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read(SIGNATURE_BYTES)
    except OSError as error:
        refuse_if_short(error)
        return b""


def _is_hidden_by_people(name: str) -> bool:
    """Whether a file is hidden, but not as a system's file."""
    return not name.startswith("._") and name.lower() not in _SYSTEM_NAMES


def _is_own_folder(path: str, names: set[str]) -> bool:
    """Whether a folder with these entries is an output of this package.

    Version 0.1's search_photos left no mark: its folder is recognized by the code file and the
    index.
    """
    if {"photos.h5", "index"} <= names:
        return True
    return not _OWN_NAMES.isdisjoint(names) and carries_mark(path)
