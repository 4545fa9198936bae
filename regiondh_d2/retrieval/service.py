"""The search service: answers queries from a snapshot of an index folder, in many threads.

It needs no network: queries come encoded, from :class:`~regiondh_d2.engine.QueryEncoder` or from
code files. A query is a whole image, one object, or several objects. Answers are in the order of
:mod:`.candidates`:

- An image is compared with images, by H2 codes. At one distance the query and its copies are
    followed by the others in the order of their activations' distance to the query's; by row where
    these are not known. (An index by itself answers by distance and row.) With ``rerank``, that
    many nearest images, by distance and row, are sorted again by a finer distance, ties keeping the
    order above. See :mod:`.second_stage`.
- Grouped by class, an image has answers for each class that the network sees in it: the nearest
    images, by H2 codes, in which an object of the class was detected. An image may answer for
    several classes.
- One object is compared with the detected objects of all images, by H1 codes. An image answers
    once, with its nearest object. With ``all_objects`` every detection is an answer, even if two
    classes were detected at the same place.
- Several objects ask for images with all of them. An image's distance is the sum, over the objects
    of the query, of the distance to the nearest object detected in the image; one detection may be
    the nearest to two of the query's objects. In an image without detections each object of the
    query counts the code length plus one, so such images come last.
- With ``blend`` the distance of the whole images counts beside that of one or several objects. See
    :mod:`.blend`.

With ``max_distance`` there are answers up to a distance only, and perhaps none: nothing is similar
then. With ``fold_duplicates`` the copies of a photo fill one answer, that of the first one.

Photos that were deleted or changed since they were encoded are skipped, and the next ones take
their places. Only the files of possible answers are looked at, during the search, see
:mod:`.photo_state`.
"""

from __future__ import annotations

import os
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path

import numpy as np

from ..utils.display import display_name
from ..utils.errors import RegionDHError, unknown_value_message
from ..utils.paths import as_list, folder_start
from .answers import (
    answers_by_blend,
    answers_to_image,
    answers_to_object,
    answers_to_objects,
    known_labels,
)
from .blend import check_blend
from .candidates import PhotoFilter
from .duplicates import CopyFinder
from .hamming_index import HammingIndex, positive_integer
from .index_file import IndexFileError
from .index_folder import IndexFolder, read_index_folder
from .index_record import RECORD
from .photo_state import PhotoCheck, PhotoState, describe_away
from .queries import Answer, Query, SearchOptions, SearchResult, number_of_class
from .second_stage import RERANKINGS, default_reranking, fine_values
from .thresholds import AUTO, Threshold, calibrate_index, check_distance

__all__ = ["SearchService", "SnapshotHolder"]

_GROWTH = 4  # how many times more answers are asked for where too many are copies
_FOLDERS_KEPT = 16  # how many filters of ``within`` are cached
_NO_OBJECTS = (
    "the index has no detected objects to know classes from; extract the codes with objects"
)
# What a query may lack for a second stage.
_LACKS = {
    "activations": "rerank by activations: the query has none",
    "both": "rerank by both: the query has no activations; rerank by classes",
    "features": "rerank by features: the model gives none for the query; rerank by activations",
}


class SearchService:
    """A snapshot of an index folder: it doesn't change after it was opened.

    Any number of threads may search at once. :class:`SnapshotHolder` has the newest snapshot of a
    folder that grows.

    Attributes:
        folder: the codes, objects, names and indexes. They must not be changed.
    """

    def __init__(self, folder: IndexFolder):
        self.folder = folder
        names = folder.items.file_names
        # The first row of each file name.
        self._row_of_file = {name: len(names) - 1 - i for i, name in enumerate(reversed(names))}
        self._copies = CopyFinder(folder.items)
        self._calibrate = lru_cache(maxsize=None)(partial(calibrate_index, folder.items))
        self._class_filter = lru_cache(maxsize=None)(self._find_class)
        self._folder_filter = lru_cache(_FOLDERS_KEPT)(self._find_below)

    @classmethod
    def open(
        cls, path: str | os.PathLike, engine: str | None = None, moves: Sequence[str] = ()
    ) -> SearchService:
        """The snapshot of a folder as it is now.

        Args:
            path, engine, moves: as for :func:`.index_folder.read_index_folder`, whose errors it
                raises.
        """
        return cls(read_index_folder(path, engine, moves))

    def check(
        self, options: SearchOptions, num_objects: int = 0, *, by_class: bool = False
    ) -> None:
        """Check, before there is a query, that this index can answer a search with these options.

        Args:
            options: what is wanted.
            num_objects: how many objects the query will have; 0 for a whole image.
            by_class: whether it is for :meth:`search_by_class`.

        Raises:
            IndexFileError: the folder lacks the needed index, or has no photo in one of ``within``.
            RegionDHError: no such class, no detected objects to take classes from, ``rerank`` for
                objects or by what the index lacks, ``all_objects`` without exactly one object or
                with ``blend``, ``blend`` without objects, or a number that is too small or too
                large.
        """
        options.check_types()
        positive_integer("topk", options.topk)
        positive_integer("rerank", 1 if options.rerank is None else options.rerank)
        if options.all_objects and num_objects != 1:
            raise RegionDHError(
                "all_objects is for a query of one object: give one box or instance"
            )
        check_blend(options.blend)
        if options.blend and not num_objects:
            raise RegionDHError("blend is for a query of objects: give a box or an instance")
        if options.blend and options.all_objects:
            raise RegionDHError("blend ranks images: search without all_objects")
        if options.rerank is not None:
            self._check_rerank(options.rerank_by, num_objects)
        self.threshold(options, num_objects)
        self._index(num_objects)
        if by_class and self.folder.items.instances is None:
            raise RegionDHError(f"answers by class: {_NO_OBJECTS}")
        if options.class_name is not None:
            if not isinstance(options.class_name, str):
                raise RegionDHError(f"class {options.class_name!r} is no name of a class")
            self._class_filter(options.class_name)
        if options.folders:
            self.rows_below(options.folders)

    def threshold(self, options: SearchOptions, num_objects: int = 0) -> Threshold | None:
        """How the distance of ``max_distance="auto"`` was calibrated; None for any other.

        Args:
            options, num_objects: as of :meth:`check`.

        Raises:
            RegionDHError: ``max_distance`` is neither "auto" nor a whole number of at least 0; or
                is "auto" for several objects, or for an index with too little to calibrate on.
        """
        most = options.max_distance
        if most is None:
            return None
        if most == AUTO:
            if num_objects > 1:
                raise RegionDHError(
                    "max_distance auto is for an image or one object: for several give a number"
                )
            return self._calibrate("instance" if num_objects else "image")
        check_distance(most)
        return None

    def search(self, query: Query, options: SearchOptions | None = None) -> SearchResult:
        """The nearest images or objects; see the module for their order.

        Args:
            query: encoded by the model of the index.
            options: which answers; by default the ten nearest.

        Raises:
            IndexFileError: as :meth:`check`, or none of the photos that would answer can be looked
                at.
            RegionDHError: as :meth:`check`, ``rerank`` by values that the query lacks, or codes of
                another length.
        """
        options = options or SearchOptions()
        self.check(options, len(query.objects))
        if options.rerank is not None:
            options = self._with_reranking(query, options)
        if options.blend and query.image_code is None:
            raise RegionDHError("blend: the query has no code of its image: encode that, too")
        threshold = self.threshold(options, len(query.objects))
        most = options.max_distance
        if threshold is not None:
            most = threshold.distance
        assert not isinstance(most, str)  # check() refuses any other text
        options = replace(options, max_distance=most)
        items, index = self.folder.items, self._index(len(query.objects))
        photos = self._photo_filter(query, options)
        instances, images = None, None
        if options.class_name is not None:
            instances, images = self._class_filter(options.class_name)

        def find(options: SearchOptions) -> list[Answer]:
            if not query.objects:
                return answers_to_image(items, index, query, options, photos, images)
            if options.blend:
                return answers_by_blend(items, index, query, options, photos, instances)
            if len(query.objects) == 1:
                return answers_to_object(items, index, query, options, photos, instances)
            return answers_to_objects(items, index, query, options, photos, instances)

        answers = self._fold(find, options, photos) if options.fold_duplicates else find(options)
        counts = Counter(photos.left_out.values())
        unchecked = sum(answer.row in photos.unchecked for answer in answers)
        away = ""
        if photos.check is not None and (counts[PhotoState.AWAY] or unchecked):
            away = describe_away(photos.check.away)
            if not answers and not counts[PhotoState.GONE] and not counts[PhotoState.CHANGED]:
                raise IndexFileError(away)
        return SearchResult(
            file_name=query.file_name,
            objects=query.objects,
            labels=known_labels(items, query, photos.same),
            class_name=options.class_name,
            searched=len(index),
            bits=index.bits,
            answers=tuple(answers),
            all_objects=options.all_objects,
            gone=counts[PhotoState.GONE],
            changed=counts[PhotoState.CHANGED],
            away=counts[PhotoState.AWAY],
            unchecked=unchecked,
            away_reason=away,
            max_distance=most,
            threshold=threshold,
            folded=options.fold_duplicates,
            blend=options.blend,
            copies_note=self._copies.note if options.fold_duplicates else "",
        )

    def search_by_class(
        self, query: Query, options: SearchOptions | None = None
    ) -> list[SearchResult]:
        """A :meth:`search` for each of the query's classes, restricted to it.

        Args:
            query: of an image.
            options: as there; ``topk`` counts for each class.

        Returns:
            A result for each of ``query.classes``, in their order, with its ``class_name``.

        Raises:
            IndexFileError, RegionDHError: as there.
        """
        options = options or SearchOptions()
        return [self.search(query, replace(options, class_name=name)) for name in query.classes]

    def rows_like(
        self, file_name: str, content_sha256: bytes | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """The rows of the query's own image and its copies.

        A row of the query's file with another content is of an older state of the file and doesn't
        count.

        Args:
            file_name: of the query.
            content_sha256: of the query's file, or None where it is unknown.

        Returns:
            The rows of the same file, and those of other files with the same content, int64,
            ascending.
        """
        contents = self.folder.items.content_sha256
        same_content = set()
        if content_sha256 is not None and contents is not None and len(contents):
            wanted = np.frombuffer(content_sha256, np.uint8)
            near = np.flatnonzero(contents[:, 0] == wanted[0])  # compares one byte of most rows
            same_content.update(near[(contents[near] == wanted).all(axis=1)].tolist())
        same_file = set()
        for name in (os.path.abspath(file_name), os.path.realpath(file_name), file_name):
            row = self._row_of_file.get(name)
            if row is None:
                continue
            known = content_sha256 is not None and contents is not None and contents[row].any()
            if not known or row in same_content:
                same_file.add(row)
        others = same_content - same_file
        return np.array(sorted(same_file), np.int64), np.array(sorted(others), np.int64)

    def rows_below(self, folders: str | os.PathLike | Sequence[str | os.PathLike]) -> np.ndarray:
        """Which images lie in one of these folders, or in this one, bool (N,).

        Raises:
            IndexFileError: no image lies in one of them.
        """
        inside = np.zeros(len(self.folder.items), bool)
        for folder in as_list(folders):
            found = self._folder_filter(os.path.abspath(folder), os.path.realpath(folder))
            if not found.any():
                raise IndexFileError(
                    f"{display_name(folder)}: the index {display_name(self.folder.path)} has no "
                    "photo in this folder; extract codes of it and build the index again"
                )
            inside |= found
        return inside

    def _find_below(self, *places: str) -> np.ndarray:
        """Which images lie in a folder, bool (N,), in any spelling of its name."""
        starts = tuple(folder_start(place) for place in places)
        names = self.folder.items.file_names
        return np.fromiter((name.startswith(starts) for name in names), bool, len(names))

    def _find_class(self, class_name: str) -> tuple[np.ndarray, np.ndarray]:
        """Which instances are of a predicted class, bool (M,), and which images have one, bool
        (N,)."""
        items = self.folder.items
        if items.instances is None:
            raise RegionDHError(f"class {class_name!r}: {_NO_OBJECTS}")
        number = number_of_class(items.class_names, class_name)
        if number is None:
            known = ", ".join(items.class_names) or "the numbers of classes, which have no names"
            raise RegionDHError(f"class {class_name!r} is not known: use one of {known}")
        instances = items.instances.classes == number
        images = np.zeros(len(items), bool)
        images[items.instances.image_index[instances]] = True
        return instances, images

    def _with_reranking(self, query: Query, options: SearchOptions) -> SearchOptions:
        """The options with what to rerank by, which the query has."""
        items, by = self.folder.items, options.rerank_by
        if by is None:
            by = default_reranking(items, has_activations=query.activation is not None)
        if fine_values(query, items, by) is None:
            raise RegionDHError(_LACKS[by])
        return replace(options, rerank_by=by)

    def _check_rerank(self, by: str | None, num_objects: int) -> None:
        if by not in (None, *RERANKINGS):
            raise RegionDHError(unknown_value_message("rerank_by", by, RERANKINGS))
        if num_objects:
            raise RegionDHError("rerank is for whole images: objects have codes alone")
        if by in ("classes", "both") and self.folder.items.class_weights is None:
            raise RegionDHError(
                f"rerank by {by}: the index has no class_weights; extract its codes again with "
                "--resume, which adds them, and build the index again, or rerank by activations"
            )
        if by == "features" and self.folder.items.features is None:
            raise RegionDHError(
                "rerank by features: the index has none; extract its codes with --features"
            )

    def _index(self, num_objects: int) -> HammingIndex:
        return self.folder.index("instance" if num_objects else "image")

    def _fold(
        self,
        find: Callable[[SearchOptions], list[Answer]],
        options: SearchOptions,
        photos: PhotoFilter,
    ) -> list[Answer]:
        """The answers that ``find`` gives, each with its copies, which are no answers then."""
        asked = options.topk
        while True:
            found = find(replace(options, topk=asked))
            copies: set[int] = set()
            answers: list[Answer] = []
            for answer in found:
                if answer.row in copies or len(answers) == options.topk:
                    continue
                rows = self._copies.of(answer.row)
                if photos.inside is not None:
                    rows = rows[photos.inside[rows]]
                copies.update(rows.tolist())
                there = rows[list(photos.take_present(rows, len(rows)))]
                names = tuple(self.folder.items.file_names[row] for row in there)
                answers.append(replace(answer, copies=names))
            if len(answers) == options.topk or len(found) < asked:
                return answers
            asked *= _GROWTH

    def _photo_filter(self, query: Query, options: SearchOptions) -> PhotoFilter:
        items = self.folder.items
        same_file, same_content = self.rows_like(query.file_name, query.content_sha256)
        order = np.full(len(items), 2, np.int8)
        order[same_file], order[same_content] = 0, 1
        same = np.concatenate([same_file, same_content])
        inside = self.rows_below(options.folders) if options.folders else None
        if options.exclude_self:
            inside = np.ones(len(items), bool) if inside is None else inside
            inside[same] = False
        return PhotoFilter(
            same=same,
            order=order,
            inside=inside,
            check=PhotoCheck(items) if options.check_files else None,
        )


class SnapshotHolder:
    """The newest snapshot of an index folder, opened again whenever the folder has changed.

    Snapshots that were handed out before stay valid.

    Args:
        path, engine, moves: as for :meth:`SearchService.open`.
    """

    def __init__(
        self, path: str | os.PathLike, engine: str | None = None, moves: Sequence[str] = ()
    ):
        self._arguments = (path, engine, tuple(moves))
        self._record = Path(path) / RECORD
        self._lock = threading.Lock()
        self._state = self._state_of_record()
        self._service = SearchService.open(*self._arguments)

    def current(self) -> SearchService:
        """The snapshot of the folder as it is now.

        While one thread opens a new generation, the others get the previous snapshot.

        Raises:
            IndexFileError, RegionDHError: the new generation can't be opened, see
                :func:`.index_folder.read_index_folder`. Earlier snapshots stay valid, and the next
                call tries again.
        """
        if self._state_of_record() != self._state and self._lock.acquire(blocking=False):
            try:
                # Taken before reading: if the folder changes meanwhile, the next call sees that.
                state = self._state_of_record()
                if state != self._state:  # otherwise another thread was faster
                    self._service = SearchService.open(*self._arguments)
                    self._state = state
            finally:
                self._lock.release()
        return self._service

    def _state_of_record(self) -> tuple[int, ...] | None:
        """A value that changes with ``index.json``; None if there is none."""
        try:
            status = os.stat(self._record)
        except OSError:
            return None
        return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns
