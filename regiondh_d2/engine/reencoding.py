"""Moves an index to another network.

The photos of the index are encoded into a code file, as an extraction does it: resumable, with
parts. Then the code file that the index was built from is replaced, and after it the index, each in
one step. So the old index answers until the end, and a run that is killed at any point leaves an
index and a code file that are whole; the next run goes on from there.

The new codes are collected in

- ``<index>.reencode.h5`` if the index was built from a code file that is still there, of the same
  network, and holds all photos of the index. All photos of that file are encoded, and it is
  replaced. In the end the collection is deleted.
- that code file itself, if it is of the new network already, as after a run that was killed between
  the two steps;
- otherwise ``<index>.h5``, which stays.

What changes the index or its code file meanwhile, such as added photos, isn't lost: it is looked at
before each step, and what is new is encoded, too.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.config import CfgNode

from ..checkpoint import model_fingerprint
from ..checkpoint.zoo import network_name
from ..retrieval.code_store import read_codes, write_codes
from ..retrieval.extract import ExtractionResult
from ..retrieval.extraction_parts import Parts, parts_folder
from ..retrieval.images import ImageEntry, UnreadableImage
from ..retrieval.index_folder import (
    IndexChangedError,
    IndexFolder,
    read_index_folder,
    write_index_folder,
)
from ..retrieval.index_record import check_index_output, read_record
from ..retrieval.moved_folders import move_roots_once
from ..retrieval.photo_state import PhotoCheck, PhotoState, describe_away
from ..structures.code_rows import take_rows
from ..structures.codes import UNKNOWN, CodeFileError, CodeSet
from ..utils.display import display_name
from ..utils.errors import RegionDHError
from ..utils.file_io import check_output_file
from .extraction import classes_of_model, code_extractor

__all__ = ["IndexReencoder", "Reencoded"]

_ATTEMPTS = 10  # while other programs add photos


@dataclass(frozen=True)
class Reencoded:
    """What :meth:`IndexReencoder.run` did.

    Attributes:
        photos: number of photos in the index.
        network: the new network's short name, "" if it doesn't come with the package.
        codes: the code file that the index was built from.
        gone: names of deleted photos, which were left out.
        unreadable: photos that were left out because they can't be read.
    """

    photos: int
    network: str
    codes: str
    gone: tuple[str, ...]
    unreadable: tuple[UnreadableImage, ...]


@dataclass(frozen=True)
class _Plan:
    """What is encoded, and where to.

    Attributes:
        items: the old codes of all photos to encode.
        output: the code file that collects the new codes.
        replaced: the code file that they replace; "" for none.
        names: the names of the photos in ``replaced`` before any was moved.
    """

    items: CodeSet
    output: Path
    replaced: str = ""
    names: tuple[str, ...] = ()


class IndexReencoder:
    """Moves indexes to a network."""

    def __init__(
        self,
        model: Any,
        cfg: CfgNode,
        config: str,
        *,
        skip_bad: bool = False,
        batch_size: int = 8,
        save_every: float = 30.0,
        log: Callable[[str], None] = print,
    ):
        """
        Args:
            model: the new network, trained, in evaluation mode.
            cfg: its config.
            config: the name of the config's file, for the record.
            skip_bad: whether to leave out photos that can't be read.
            batch_size: images at once.
            save_every: seconds between two parts of the new codes.
            log: takes the lines about progress.
        """
        self._model = model
        self._cfg = cfg
        self._config = config
        self._skip_bad = skip_bad
        self._batch_size = batch_size
        self._save_every = save_every
        self._log = log
        self._fingerprint = model_fingerprint(model)

    def run(self, index: str | os.PathLike, moves: Sequence[str] = ()) -> Reencoded | None:
        """Move an index.

        Args:
            index: the index folder.
            moves: texts OLD=NEW, folders of photos that were moved.

        Returns:
            What was done; None if the index is of this network already.

        Raises:
            IndexFileError, CodeFileError: no index, or a damaged one.
            FileInUseError: another program writes it, or encodes its photos.
            RegionDHError: photos can't be read, can't be looked at, or all have gone; labels of
                other classes than the network's; or an unfinished extraction into the code file.
        """
        path = Path(index).resolve()
        for _ in range(_ATTEMPTS):
            check_index_output(path)
            record = read_record(path)
            folder = read_index_folder(path, "numpy", moves)
            if folder.record["files"] != record["files"]:
                continue
            if folder.items.model_fingerprint == self._fingerprint:
                self._drop_collection(path)
                return None
            found = self._move(folder, record, moves)
            if found is not None:
                return found
        raise RegionDHError(
            f"{display_name(path)}: other programs add photos again and again; wait until they end"
        )

    def _move(
        self, folder: IndexFolder, record: dict[str, Any], moves: Sequence[str]
    ) -> Reencoded | None:
        """One attempt; None if photos were added meanwhile."""
        plan = self._plan(folder, moves)
        kept, gone = _photos_there(plan.items, folder.path)
        result = self._encode(plan, kept)
        new = read_codes(plan.output)
        row_of = {image_id: row for row, image_id in enumerate(new.image_ids)}

        def taken(items: CodeSet, rows: Sequence[int]) -> CodeSet:
            ids = (items.image_ids[row] for row in rows)
            return take_rows(new, [row_of[one] for one in ids if one in row_of])

        if plan.replaced:
            with Parts(parts_folder(plan.replaced)).lock(Path(plan.replaced)):
                if tuple(read_codes(plan.replaced).file_names) != plan.names:
                    return None
                write_codes(os.path.realpath(plan.replaced), taken(plan.items, kept))
        there = {plan.items.image_ids[row] for row in kept}
        rows = [row for row, one in enumerate(folder.items.image_ids) if one in there]
        codes = plan.replaced or str(plan.output)
        try:
            written = write_index_folder(
                folder.path,
                taken(folder.items, rows),
                granularities=list(record["levels"]),
                engine=record["engine"],
                source=codes,
                network=network_name(self._fingerprint),
                replaces=record,
                **record["options"],
            )
        except IndexChangedError:
            return None
        self._drop_collection(folder.path)
        return Reencoded(
            photos=len(written.items),
            network=str(written.record["network"]),
            codes=codes,
            gone=tuple(plan.items.file_names[row] for row in gone),
            unreadable=tuple(result.unreadable),
        )

    def _drop_collection(self, index: Path) -> None:
        """Delete the collected codes, which are in the index and its code file now."""
        with suppress(CodeFileError):  # there is none, or another program's file
            if read_codes(_collection(index)).model_fingerprint == self._fingerprint:
                _collection(index).unlink()

    def _plan(self, folder: IndexFolder, moves: Sequence[str]) -> _Plan:
        items = folder.items
        source = _source_of(folder)
        codes = _codes_of_index(source, items, moves)
        fingerprint = None if codes is None else codes.model_fingerprint
        if fingerprint == self._fingerprint:
            plan = _Plan(items, Path(source))
        elif codes is not None and fingerprint == items.model_fingerprint:
            if any(parts_folder(source).glob("part-*.h5")):
                raise RegionDHError(
                    f"{display_name(source)}: its extraction is unfinished: go on with it "
                    "(extract-codes --resume) and build the index again first"
                )
            names = tuple(read_codes(source).file_names)
            plan = _Plan(codes, _collection(folder.path), source, names)
        else:
            plan = _Plan(items, folder.path.with_name(f"{folder.path.name}.h5"))
        check_output_file(plan.output, overwrite=None, kind="codes")
        return plan

    def _encode(self, plan: _Plan, rows: Sequence[int]) -> ExtractionResult:
        """Encode photos into the output, as far as they aren't in it.

        Raises:
            RegionDHError: photos can't be read, or have labels of other classes.
        """
        items = plan.items
        class_names = classes_of_model(self._cfg)
        if items.labels is not None and list(items.class_names) != class_names:
            raise RegionDHError(
                f"the photos have labels of {len(items.class_names)} classes, which aren't those "
                "of the network: take a network that was trained with these classes"
            )
        cfg = self._cfg.clone()
        cfg.defrost()
        cfg.TEST.RETRIEVAL.COUNT_DIFFICULT = bool(items.count_difficult)
        extractor = code_extractor(
            self._model,
            cfg,
            config=self._config,
            class_names=class_names,
            dataset=items.dataset,
            instances=items.instances is not None,
            activations=items.activations is not None,
            batch_size=self._batch_size,
            save_every=self._save_every,
            log=self._log,
        )
        images = _entries(items, rows)
        result = extractor.extract(images, plan.output, resume=True, skip_bad=self._skip_bad)
        assert result is not None  # it is, on the main process
        bad = len(result.unreadable)
        if not result.complete or bad == len(images):
            raise RegionDHError(
                f"{bad} of {len(images)} photos can't be read, first {result.unreadable[0]}; the "
                "others are encoded: repair or delete those and run this again, or leave them out "
                "with --skip-bad"
            )
        return result


def _collection(index: Path) -> Path:
    return index.with_name(f"{index.name}.reencode.h5")


def _source_of(folder: IndexFolder) -> str:
    """The code file that an index was built from; its name may count from another folder than the
    current one, and then the file is looked for beside the index."""
    source = str(folder.record.get("source") or "")
    beside = folder.path.with_name(os.path.basename(source) or folder.path.name)
    return str(beside) if not os.path.isfile(source) and beside.is_file() else source


def _codes_of_index(source: str, items: CodeSet, moves: Sequence[str]) -> CodeSet | None:
    """The code file that an index was built from; None if it isn't there, or lacks photos."""
    if not os.path.isfile(source):
        return None
    try:
        codes = move_roots_once(read_codes(source), moves)
    except CodeFileError:
        return None
    return codes if set(items.image_ids) <= set(codes.image_ids) else None


def _photos_there(items: CodeSet, index: Path) -> tuple[list[int], list[int]]:
    """The rows of photos that are there, changed or not, and of those that were deleted.

    Raises:
        RegionDHError: photos can't be looked at, or all were deleted.
    """
    check = PhotoCheck(items)
    states = [check.state(row) for row in range(len(items))]
    if PhotoState.AWAY in states:
        raise RegionDHError(
            f"{states.count(PhotoState.AWAY)} photos can't be encoded now: "
            f"{describe_away(check.away)}"
        )
    gone = [row for row, state in enumerate(states) if state is PhotoState.GONE]
    if len(gone) == len(items):
        raise RegionDHError(
            f"{display_name(index)}: all {len(items)} photos have gone; nothing would be left"
        )
    kept = [row for row, state in enumerate(states) if state is not PhotoState.GONE]
    return kept, gone


def _entries(items: CodeSet, rows: Sequence[int]) -> list[ImageEntry]:
    """The photos of some rows, as they are now."""
    paths = items.relative_paths
    entries = []
    for row in rows:
        name = items.file_names[row]
        root = items.roots[int(items.root_index[row])]
        labels = None
        if items.labels is not None:
            labels = tuple(np.flatnonzero(items.labels[row]).tolist())
        size = mtime_ns = UNKNOWN
        with suppress(OSError):  # the extraction will tell of it
            status = os.stat(name)
            size, mtime_ns = status.st_size, status.st_mtime_ns
        entries.append(
            ImageEntry(
                image_id=items.image_ids[row],
                file_name=name,
                labels=labels,
                root=root,
                relative_path=paths[row] if root else "",
                size=size,
                mtime_ns=mtime_ns,
            )
        )
    return entries
