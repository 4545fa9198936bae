"""Matches the rows of earlier extractions with the images of this run.

An image keeps its row while its file has the same path, size and time of modification; such a file
is not read. Otherwise the sha256 of its content decides: a row of the same content is kept, moved
from a deleted file, or copied; a new content is encoded. Images of a dataset are identified by
their id instead of their path, and never take the row of another id.

Version 0.1 stored neither size nor time nor content. Its rows are kept if the photo is not newer
than the code file, and the missing values are filled in.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cache

import numpy as np

from ..data.photo_files import PhotoScan, is_below, lies_in_any
from ..structures.code_rows import join_code_sets, take_rows
from ..structures.codes import UNKNOWN, CodeFileError, CodeSet, join_path
from ..utils.file_io import file_sha256
from ..utils.progress import Progress
from ..utils.shortage import refuse_if_short
from .images import ImageEntry
from .photo_state import root_problem

__all__ = ["Folders", "KnownRows", "MergedRows", "Source", "with_roots"]

SHA256_BYTES = 32
# Version 0.1 read these formats as we do, since they have neither transparency nor 16 bits.
_ALWAYS_READ_ALIKE = (".jpg", ".jpeg", ".jpe", ".jfif")


@dataclass(frozen=True)
class Source:
    """A code file of an earlier run.

    Attributes:
        code_set: its codes.
        written_ns: when it was written; its photos were encoded before.
        is_part: whether it is a part of an unfinished output.
        other_pixels: whether its images were read by another version of the reader, see
            ``pixels_changed``.
    """

    code_set: CodeSet
    written_ns: int
    is_part: bool = False
    other_pixels: bool = False


class Folders:
    """The folders of a run, and the state of photos that it did not find."""

    def __init__(self, scan: PhotoScan):
        self._scan = scan
        seen = {photo.root for photo in scan.images}
        self.missing = [os.path.realpath(os.path.abspath(name)) for name in scan.missing]
        self.empty = [root for root in scan.roots if root not in seen]
        self._away = {*self.missing, *self.empty}
        self._seen = [root for root in scan.roots if root in seen]
        self._named = {photo.path for photo in scan.images} | set(self.missing)
        self._second_names = {path for path, _ in scan.links if scan.could_see(path)}

    def root_of(self, path: str) -> str:
        """The given folder that contains a path, else the folder of the file."""
        roots = (*self._seen, *self.empty)
        return next((r for r in roots if is_below(path, r)), os.path.dirname(path))

    def is_known_gone(self, path: str) -> bool:
        """Whether a photo of this run's folders was deleted, so that its row may be pruned.

        False if it may only be hidden: its folder can't be read, is missing, or has no photo at
        all.
        """
        if self.is_out_of_sight(path) or not _has_gone(path):
            return False
        return path in self._named or any(is_below(path, root) for root in self._seen)

    def is_out_of_sight(self, path: str) -> bool:
        """Whether the state of a photo can't be known."""
        return lies_in_any(os.path.dirname(path), self._away) or not self._scan.could_see(path)

    def is_second_name(self, path: str) -> bool:
        """Whether the run found the file under another name, or would have."""
        return lies_in_any(path, self._second_names)


def _has_gone(path: str) -> bool:
    try:
        return not stat.S_ISREG(os.stat(path).st_mode)
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return True
    except OSError:
        return False


@dataclass(frozen=True)
class MergedRows:
    """The result of :meth:`KnownRows.merge`.

    Attributes:
        code_set: the rows of the output.
        changed: whether they differ from the output's rows in more than their order.
        gone: number of rows kept although their photos were deleted.
        pruned: number of rows removed because their photos were deleted.
    """

    code_set: CodeSet
    changed: bool
    gone: int
    pruned: int


class KnownRows:
    """The rows of an output and of its parts, and their images."""

    def __init__(
        self,
        sources: Sequence[Source],
        images: Sequence[ImageEntry],
        *,
        folders: Folders | None = None,
        verify: bool = False,
        pixels_changed: Callable[[str], bool] = lambda path: False,
        log: Callable[[str], None] | None = None,
    ):
        """
        Args:
            sources: the output and its parts; the parts last.
            images: the images to encode. No id twice.
            folders: where the images come from, or None for a dataset.
            verify: whether to read files even if their sizes and times are unchanged.
            pixels_changed: whether a file's pixels differ from those that the reader of sources
                with ``other_pixels`` gave.
            log: takes lines of progress.
        """
        self._images = images
        self._folders = folders
        self._verify = verify
        self._pixels_changed = cache(pixels_changed)
        self._hashes: dict[str, bytes] = {}
        self._real_folder = cache(os.path.realpath)
        self._rows = join_code_sets([s.code_set for s in sources]) if sources else None
        counts = [len(source.code_set) for source in sources]

        def of_rows(name: str, dtype: type) -> np.ndarray:
            values: np.ndarray = np.array([getattr(source, name) for source in sources], dtype)
            return np.repeat(values, np.array(counts, np.int64))

        self._written = of_rows("written_ns", np.int64)
        self._in_part = of_rows("is_part", bool)
        self._other_pixels = of_rows("other_pixels", bool)
        self._taken: set[int] = set()  # rows moved to another file name

        self._keys: list[str] = []
        if self._rows is not None:
            names = zip(self._rows.image_ids, self._rows.file_names, strict=True)
            self._keys = [self._key(image_id, name) for image_id, name in names]
        self._image_keys = [self._key(image.image_id, image.file_name) for image in images]
        self._row_of: list[int | None] = [None] * len(images)
        if self._rows is not None:
            progress = Progress(log, "photos compared with their codes", len(images))
            self._match_places(progress)
            if folders is not None:
                self._match_contents(folders)

    def __len__(self) -> int:
        return len(self._keys)

    @property
    def _known(self) -> CodeSet:
        """The rows, for whoever has the number of one."""
        assert self._rows is not None
        return self._rows

    def is_in_output(self, index: int) -> bool:
        """Whether an image has a row in the output, so that it is in no batch.

        Rows of the parts don't count. So the batches depend only on the output and the images.
        """
        row = self._row_of[index]
        return row is not None and not self._in_part[row]

    def is_known(self, index: int) -> bool:
        """Whether an image has a row."""
        return self._row_of[index] is not None

    def _key(self, image_id: str, file_name: str) -> str:
        """What identifies an image: its id in a dataset, else the real path of its file."""
        if self._folders is None:
            return image_id
        folder, name = os.path.split(file_name)
        return os.path.join(self._real_folder(folder), name)

    def _match_places(self, progress: Progress) -> None:
        rows_of: dict[str, list[int]] = {}
        for row, key in enumerate(self._keys):
            rows_of.setdefault(key, []).append(row)
        for index, (image, key) in enumerate(zip(self._images, self._image_keys, strict=True)):
            rows = rows_of.get(key, ())
            self._row_of[index] = next((r for r in rows if self._is_as_encoded(r, image)), None)
            progress.step()

    def _is_as_encoded(self, row: int, image: ImageEntry) -> bool:
        if self._other_pixels[row] and self._pixels_changed(image.file_name):
            return False
        size, time = int(self._known.size[row]), int(self._known.mtime_ns[row])
        if image.size == UNKNOWN:  # a missing file of a dataset
            return True
        if size == UNKNOWN:
            return image.mtime_ns <= (self._written[row] if time == UNKNOWN else time)
        known = self._content(row)
        if (size, time) == (image.size, image.mtime_ns):
            # Read it even if there is nothing to compare with, for the next run.
            return not self._verify or self._hash(image) == known or not known
        return bool(known) and size == image.size and self._hash(image) == known

    def _content(self, row: int) -> bytes:
        """The sha256 of the file of a row, b"" where unknown."""
        contents = self._known.content_sha256
        return b"" if contents is None or not contents[row].any() else contents[row].tobytes()

    def _hash(self, image: ImageEntry) -> bytes:
        """The sha256 of a file, b"" if it can't be read."""
        if image.file_name not in self._hashes:
            try:
                self._hashes[image.file_name] = file_sha256(image.file_name)
            except OSError as error:
                refuse_if_short(error)
                self._hashes[image.file_name] = b""
        return self._hashes[image.file_name]

    def _match_contents(self, folders: Folders) -> None:
        """Give images without a row the row of another path with the same content."""
        left = [index for index, row in enumerate(self._row_of) if row is None]
        rows_of: dict[bytes, list[int]] = {}
        sizes = set()
        for row in range(len(self._keys)):
            if left and (known := self._content(row)):
                rows_of.setdefault(known, []).append(row)
                sizes.add(int(self._known.size[row]))
        kept = {row for row in self._row_of if row is not None}
        present = set(self._image_keys)
        for index in left:
            image = self._images[index]
            # A file is read only if a row has its size.
            rows = rows_of.get(self._hash(image), ()) if image.size in sizes else ()
            rows = [row for row in rows if self._is_readable_alike(row, image)]
            movable = [
                row
                for row in rows
                if row not in self._taken
                and row not in kept
                and self._keys[row] not in present
                and self._has_moved(row, image, folders)
            ]
            copies = [row for row in rows if not self._in_part[row]]
            name = os.path.basename(image.file_name)
            same_name = [r for r in movable if os.path.basename(self._keys[r]) == name]
            chosen = next(iter((*same_name, *movable, *copies)), None)
            self._row_of[index] = chosen
            if chosen is not None and chosen in movable:
                self._taken.add(chosen)

    def _is_readable_alike(self, row: int, image: ImageEntry) -> bool:
        return not (self._other_pixels[row] and self._pixels_changed(image.file_name))

    def _has_moved(self, row: int, image: ImageEntry, folders: Folders) -> bool:
        """Whether the file of a row was deleted or moved, and isn't only hidden."""
        name = self._known.file_names[row]
        if folders.is_out_of_sight(name):
            return False
        if not _has_gone(name):
            # For example on a file system where "A.jpg" and "a.jpg" are the same.
            return os.path.samefile(name, image.file_name)
        root = self._known.roots[self._known.root_index[row]]
        problem = root_problem(root) if root else ""
        return not problem or not os.path.lexists(root)

    def merge(
        self, new: CodeSet | None, failed: Iterable[int], *, prune: bool = False
    ) -> MergedRows:
        """The rows of the output: those of other images, then those of the given images in order.

        Args:
            new: the rows encoded by this run; they replace known ones.
            failed: positions of images without a new row because they can't be read. A row of an
                earlier content stays, with that content's size and time.
            prune: whether rows of deleted photos are left out.

        Raises:
            CodeFileError: an image has no row.
        """
        known = len(self._keys)
        joined = join_code_sets([s for s in (self._rows, new) if s is not None])
        row_of = list(self._row_of)
        fresh = {image_id: known + i for i, image_id in enumerate(new.image_ids)} if new else {}
        failed = set(failed)
        indexes = [index for index in range(len(self._images)) if index not in failed]
        for index in indexes:
            row_of[index] = fresh.get(self._images[index].image_id, row_of[index])
        rows_of_images = [row for i in indexes if (row := row_of[i]) is not None]
        lost = [self._images[i].image_id for i in indexes if row_of[i] is None]
        if lost:
            raise CodeFileError(
                f"{len(lost)} images (first: {lost[0]}) lost their codes, because files in the "
                "parts folder were deleted meanwhile: encode them with --resume"
            )

        others, gone, pruned = self._other_rows({self._image_keys[i] for i in indexes}, prune)
        rows = [*others, *rows_of_images]
        taken = take_rows(joined, rows)
        merged = self._with_places_of_others(taken, others)
        merged = self._with_images(merged, len(others), indexes, fresh.keys())
        output = np.flatnonzero(~self._in_part)
        changed = (
            any(row >= known or self._in_part[row] for row in rows)
            or sorted(rows) != output.tolist()
            or not _same_files(merged, taken)
        )
        return MergedRows(merged, changed, gone, pruned)

    def _other_rows(self, keys: set[str], prune: bool) -> tuple[list[int], int, int]:
        """The rows of other images, once each, and how many photos of them are gone or pruned."""
        others, gone, pruned = [], 0, 0
        seen = set(keys)
        for row, key in enumerate(self._keys):
            if row in self._taken or key in seen:
                continue
            seen.add(key)
            if self._folders is not None:
                name = self._known.file_names[row]
                if self._folders.is_second_name(name):
                    continue
                if self._folders.is_known_gone(name):
                    if prune:
                        pruned += 1
                        continue
                    gone += 1
            others.append(row)
        return others, gone, pruned

    def _with_places_of_others(self, merged: CodeSet, others: Sequence[int]) -> CodeSet:
        """Fill in root, size and time of version 0.1's photos that this run does not look at.

        Unknown values are set so that the photo is encoded again when a run looks at it: no size,
        and the latest possible time of modification.
        """
        if self._folders is None:
            return merged
        size, mtime_ns = merged.size.copy(), merged.mtime_ns.copy()
        roots = [merged.roots[i] for i in merged.root_index]
        for position, row in enumerate(others):
            name = merged.file_names[position]
            if not roots[position] and os.path.isabs(name):
                roots[position] = self._folders.root_of(name)
            if self._other_pixels[row] and self._may_be_read_otherwise(name):
                size[position], mtime_ns[position] = UNKNOWN, 0
            elif size[position] == mtime_ns[position] == UNKNOWN:
                found = _status(name)
                if found is not None and found.st_mtime_ns <= self._written[row]:
                    size[position], mtime_ns[position] = found.st_size, found.st_mtime_ns
                else:
                    mtime_ns[position] = self._written[row]
        return replace(with_roots(merged, roots), size=size, mtime_ns=mtime_ns)

    def _may_be_read_otherwise(self, name: str) -> bool:
        if name.lower().endswith(_ALWAYS_READ_ALIKE):
            return False
        return _has_gone(name) or self._pixels_changed(name)

    def _with_images(
        self, merged: CodeSet, start: int, indexes: Sequence[int], fresh: Iterable[str]
    ) -> CodeSet:
        """Give the rows from ``start`` on the names, sizes, times and labels of their images."""
        ids, names = list(merged.image_ids), list(merged.file_names)
        roots = [merged.roots[i] for i in merged.root_index]
        size, mtime_ns = merged.size.copy(), merged.mtime_ns.copy()
        contents = merged.content_sha256
        contents = (
            np.zeros((len(merged), SHA256_BYTES), np.uint8) if contents is None else contents.copy()
        )
        labels = None if merged.labels is None else merged.labels.copy()
        for position, index in enumerate(indexes, start):
            image = self._images[index]
            place = join_path(image.root, image.relative_path) if image.root else image.file_name
            # A row at its own place keeps its root: the folder that was given first.
            if names[position] != place or not roots[position]:
                names[position], roots[position] = place, image.root
            ids[position] = image.image_id
            if image.image_id in fresh:  # the state that was read counts
                continue
            if image.size != UNKNOWN:
                size[position], mtime_ns[position] = image.size, image.mtime_ns
            if found := self._hashes.get(image.file_name):
                contents[position] = np.frombuffer(found, np.uint8)
            if labels is not None and image.labels is not None:
                labels[position] = 0
                labels[position, list(image.labels)] = 1
        return replace(
            with_roots(replace(merged, image_ids=ids, file_names=names), roots),
            size=size,
            mtime_ns=mtime_ns,
            content_sha256=contents if contents.any() else None,
            labels=labels,
        )


def _status(path: str) -> os.stat_result | None:
    try:
        return os.stat(path)
    except (OSError, ValueError):
        return None


def with_roots(code_set: CodeSet, roots: Sequence[str]) -> CodeSet:
    """The code set with a root for each row, in ascending order of their first rows."""
    distinct = list(dict.fromkeys(roots)) or [""]
    position = {root: i for i, root in enumerate(distinct)}
    index = np.array([position[root] for root in roots], np.int64)
    return replace(code_set, roots=distinct, root_index=index)


def _same_files(a: CodeSet, b: CodeSet) -> bool:
    """Whether two code sets of the same rows have the same files and labels."""
    arrays = ("size", "mtime_ns", "content_sha256", "labels")
    return (
        list(a.image_ids) == list(b.image_ids)
        and list(a.file_names) == list(b.file_names)
        and a.relative_paths == b.relative_paths
        and all(np.array_equal(getattr(a, name), getattr(b, name)) for name in arrays)
    )
