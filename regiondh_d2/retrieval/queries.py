"""Queries, the options of a search, and its answers."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from ..utils.errors import RegionDHError
from ..utils.paths import as_list
from .thresholds import Threshold

__all__ = [
    "Answer",
    "Box",
    "FoundObject",
    "Query",
    "QueryObject",
    "SearchOptions",
    "SearchResult",
    "name_of_class",
    "number_of_class",
]

Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class QueryObject:
    """An object to search for.

    Attributes:
        box: XYXY, pixels of the original image.
        class_name, score: predicted by the detector; None for a given box.
    """

    box: Box
    class_name: str | None = None
    score: float | None = None


@dataclass(frozen=True)
class Query:
    """An encoded query.

    Attributes:
        file_name: the query's image.
        codes: packed uint8, (1, B) of the image or (Q, B1) of Q objects in it.
        objects: those objects, or none for the image as a whole.
        activation: float (K,), before binarization of the image's code, or None where unknown.
        feature: float (D,), features of the image, or None where the model has none.
        classes: names of the classes that the model sees in the image, the most probable first.
        class_scores: float (C,), the image classifier's logits, or None where unknown.
        content_sha256: of the query's file, or None where it is unknown.
        image_code: packed uint8 (1, B), of the image that the objects are in, or None where it is
            unknown; a ``blend`` needs it.
    """

    file_name: str
    codes: np.ndarray
    objects: tuple[QueryObject, ...] = ()
    activation: np.ndarray | None = None
    feature: np.ndarray | None = None
    classes: tuple[str, ...] = ()
    content_sha256: bytes | None = None
    class_scores: np.ndarray | None = None
    image_code: np.ndarray | None = None


@dataclass(frozen=True)
class SearchOptions:
    """Which answers are wanted.

    Attributes:
        topk: how many. There are fewer only if fewer match, or the index is approximate.
        class_name: restricts the answers to objects of this predicted class, or, for an image, to
            images in which one was detected.
        rerank: how many of the nearest images to rerank; at least ``topk``. None doesn't rerank.
        rerank_by: what to rerank by, one of :data:`~.second_stage.RERANKINGS`; None for what
            :func:`~.second_stage.default_reranking` says.
        all_objects: for a query of one object, whether every near object is an answer, even several
            of one image.
        within: a folder or several; restricts the answers to photos in them.
        check_files: whether to look at the files of answers and leave out those that were deleted
            or changed since they were encoded.
        max_distance: the largest distance of an answer, in bits; "auto" for the one that
            :func:`~.thresholds.calibrate_index` finds. None takes answers from any distance.
        exclude_self: whether to leave the query itself out: the same file, or one of the same
            content.
        fold_duplicates: whether the copies of a photo, see :mod:`.duplicates`, fill one answer.
        blend: for a query of objects, how much the distance of the whole images counts beside that
            of the objects, see :mod:`.blend`; 0 for not at all.
    """

    topk: int = 10
    class_name: str | None = None
    rerank: int | None = None
    rerank_by: str | None = None
    all_objects: bool = False
    within: str | os.PathLike | Sequence[str | os.PathLike] = ()
    check_files: bool = True
    max_distance: int | str | None = None
    exclude_self: bool = False
    fold_duplicates: bool = False
    blend: float = 0.0

    @property
    def folders(self) -> list[str | os.PathLike]:
        """``within`` as a list; empty for no restriction."""
        return [] if self.within is None else as_list(self.within)

    def check_types(self) -> None:
        """Check what would be taken for something else than was meant.

        Raises:
            RegionDHError: a switch is neither True nor False, a folder is no path or has no name,
                or ``rerank_by`` has no ``rerank``.
        """
        for name in _SWITCHES:
            if not isinstance(value := getattr(self, name), bool):  # "no" would be True
                raise RegionDHError(f"{name} must be True or False, not {value!r}")
        if self.within is not None and not isinstance(self.within, Iterable | os.PathLike):
            raise RegionDHError(f"within must be a folder or several, not {self.within!r}")
        for folder in self.folders:
            if not isinstance(folder, str | os.PathLike) or not os.fspath(folder):
                raise RegionDHError(f"within must be a folder or several, not {folder!r}")
        if self.rerank is None and self.rerank_by is not None:
            raise RegionDHError("rerank_by needs rerank, how many of the nearest images to rerank")


_SWITCHES = ("all_objects", "check_files", "exclude_self", "fold_duplicates")


@dataclass(frozen=True)
class FoundObject:
    """A detected object of the database.

    Attributes:
        box: XYXY, pixels of the original image.
        class_name, score: predicted by the detector.
        distance: to the query's object.
        row: its row among the instances of the index.
    """

    box: Box
    class_name: str
    score: float
    distance: int
    row: int


@dataclass(frozen=True)
class Answer:
    """An image of the database, or an object in it.

    Attributes:
        distance: to the query; with a ``blend`` that of the objects alone.
        image_id, file_name: of the image.
        row: the image's row in the index.
        labels: names of the image's labels, or None where they are unknown.
        objects: one for each object of the query, its nearest; None where the image has none.
        fine_distance: what a ``rerank`` ordered by: a squared distance, or, by classes, 1 minus the
            cosine of class probabilities.
        copies: names of the image's copies that were folded into this answer.
        image_distance: with a ``blend``, the distance of the whole images.
        blended: with a ``blend``, what the answers are ordered by.
    """

    distance: int
    image_id: str
    file_name: str
    row: int
    labels: tuple[str, ...] | None
    objects: tuple[FoundObject | None, ...] = ()
    fine_distance: float | None = None
    copies: tuple[str, ...] = ()
    image_distance: int | None = None
    blended: float | None = None


@dataclass(frozen=True)
class SearchResult:
    """Answers to a query, the nearest first.

    Attributes:
        file_name, objects: of the :class:`Query`.
        labels: known labels of the query, or None: those of its image, if the index has the image
            with labels; for objects their classes, if these are among the image's labels.
        class_name: the class that the answers are restricted to, or None.
        searched: how many images or objects the index holds.
        bits: length of the codes compared.
        answers: at most as many as were asked for.
        all_objects: whether an image may answer more than once.
        gone, changed: how many photos were left out because their file was deleted, or has changed
            since it was encoded. Only photos that would have been answers count.
        away: how many were left out because they can't be looked at: their folder can't be read, or
            is missing or empty, such as that of an unplugged disk.
        unchecked: how many answers can't be looked at and have no recorded root either, as in codes
            of datasets and of version 0.1, which may have been made on another machine.
        away_reason: a line about the folders of these photos, "" where there are none.
        max_distance: the largest distance that was allowed, or None for any.
        threshold: how it was calibrated, or None if it was given.
        folded: whether copies were folded into one answer.
        blend: how much the distance of the whole images counted, 0 for not at all.
        copies_note: a line about photos whose copies can't be told well, or "".
    """

    file_name: str
    objects: tuple[QueryObject, ...]
    labels: tuple[str, ...] | None
    class_name: str | None
    searched: int
    bits: int
    answers: tuple[Answer, ...]
    all_objects: bool = False
    gone: int = 0
    changed: int = 0
    away: int = 0
    unchecked: int = 0
    away_reason: str = ""
    max_distance: int | None = None
    threshold: Threshold | None = None
    folded: bool = False
    blend: float = 0.0
    copies_note: str = ""

    def notes(self) -> list[str]:
        """Lines about photos that were left out or couldn't be checked, and what to do."""
        lines = []
        count = self.gone + self.changed
        if count:
            one = count == 1
            lines.append(
                f"{count} photo{' has' if one else 's have'} gone or changed since "
                f"{'it was' if one else 'they were'} encoded: left out; to bring the index up to "
                "date, run extract-codes --resume and build-index --prune"
            )
        if self.away:
            lines.append(
                f"{self.away} photo{'s' if self.away > 1 else ''} left out, of which nothing is "
                f"known now: {self.away_reason}"
            )
        if self.unchecked:
            lines.append(f"whether these photos are still there is not known: {self.away_reason}")
        if self.copies_note:
            lines.append(self.copies_note)
        return lines

    def as_dict(self) -> dict[str, Any]:
        """The same as plain values, for JSON.

        What only some options give has a key only with them: ``max_distance``, ``threshold`` (its
        ``distance``, ``rate`` and ``pairs``), ``blend``, and an answer's ``copies``,
        ``image_distance`` and ``blended``.
        """
        values = asdict(self)
        del values["copies_note"]
        if self.max_distance is None:
            del values["max_distance"]
        if self.threshold is None:
            del values["threshold"]
        lacking = [] if values.pop("folded") else ["copies"]
        if not self.blend:
            del values["blend"]
            lacking += ["image_distance", "blended"]
        for answer in values["answers"]:
            for key in lacking:
                del answer[key]
        return values


def name_of_class(names: Sequence[str], class_id: int) -> str:
    """A class's name, or its number where there are no names."""
    return names[class_id] if len(names) else str(class_id)


def number_of_class(names: Sequence[str], name: str) -> int | None:
    """The inverse of :func:`name_of_class`, or None if there is no such class."""
    if not len(names):
        return int(name) if name.isdecimal() and len(name) < 10 else None
    return list(names).index(name) if name in names else None
