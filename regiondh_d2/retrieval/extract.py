"""Codes of any images into one code file, on one process or many, resumable whenever it stops.

Every few seconds the new codes are saved as a *part*, a small code file in the folder
``<output>.parts``. At the end the parts and the codes of an older output are joined into the
output, and the folder is deleted. So a killed run loses a few seconds of work, and no row is lost
or doubled: an image that has a row is not encoded again, and of two rows of an image one is kept.
:mod:`.known_rows` says when two images are the same.

Only images of equal padded size share a batch, since padding changes features. Batches are planned
from the images' headers first, for all images that the older output lacks, and are saved whole. So
batches and codes are the same, to the last bit, after any number of interruptions and with any
number of processes.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.data.build import trivial_batch_collator
from detectron2.utils import comm
from torch.utils.data import DataLoader

from ..data.image_reader import pixels_changed_since_v1
from ..data.photo_files import PhotoScan
from ..structures.code_roots import check_root_count
from ..structures.code_rows import join_code_sets
from ..structures.codes import UNKNOWN, CodeFileError, CodeSet, join_path
from ..structures.model_outputs import codes_from_outputs
from ..utils.display import display_name
from ..utils.progress import Progress
from .code_store import read_codes
from .earlier_codes import check_source, reader_version
from .extraction_parts import Parts, check_output, parts_folder
from .extraction_plan import padded_size, plan_batches, unique_images
from .image_inputs import ImageInputs, LoadedImage
from .images import ImageEntry, ImageLoader, UnreadableImage
from .known_rows import Folders, KnownRows, Source
from .moved_folders import move_roots_once
from .shards import Shard, take_shard

__all__ = ["CodeExtractor", "ExtractionResult"]

EncodeBatches = Callable[
    [Sequence[ImageEntry], Sequence[Sequence[int]], Parts], dict[int, UnreadableImage]
]


@dataclass(frozen=True)
class ExtractionResult:
    """What :meth:`CodeExtractor.extract` did.

    Attributes:
        images: number of different images given.
        coded: number of images encoded by this run.
        rows: rows of the output, 0 if it was not written.
        unreadable: the images without a row, in the order given.
        complete: whether the output was written; False if unreadable images were not skipped.
        gone: number of rows kept although their photos were deleted.
        pruned: number of rows removed because their photos were deleted.
        vanished: names of photos that were deleted during the run; not among ``unreadable``.
    """

    images: int
    coded: int
    rows: int
    unreadable: list[UnreadableImage]
    complete: bool
    gone: int = 0
    pruned: int = 0
    vanished: tuple[str, ...] = ()


class CodeExtractor:
    """Encodes images with a model and writes their code file."""

    def __init__(
        self,
        code: Callable[[list[dict]], list[dict]],
        load: ImageLoader,
        attributes: Mapping[str, Any],
        *,
        size_divisibility: int,
        batch_size: int = 8,
        num_workers: int = 0,
        instance_min_score: float = 0.3,
        activations: bool = False,
        features: bool = False,
        save_every: float = 30.0,
        log: Callable[[str], None] = print,
    ):
        """
        Args:
            code: a model's ``inference``, or its ``encode_images`` if instances have no codes.
            load: reads images as inputs of the model.
            attributes: of the code file: ``dataset``, ``config``, ``class_names``,
                ``count_difficult``, ``model_fingerprint`` and ``settings``, and, if the model has
                it, ``class_weights``.
            size_divisibility: the model pads the sides of a batch to a multiple of this.
            batch_size: the most images of a batch.
            num_workers: processes that read images ahead; 0 reads them in this one.
            instance_min_score: detections below this score get no row.
            activations: whether to store the activations before binarization.
            features: whether to store ``image_feature``; the model must have it.
            save_every: seconds between parts; 0 saves every batch.
            log: takes lines of progress.
        """
        self._code = code
        self._load = load
        self._attributes = dict(attributes)
        self._size_divisibility = size_divisibility
        self._batch_size = batch_size
        self._num_workers = num_workers
        self._instance_min_score = instance_min_score
        self._activations = activations
        self._features = features
        self._save_every = save_every
        self._log = log

    def extract(
        self,
        images: Sequence[ImageEntry],
        output: str | os.PathLike,
        *,
        resume: bool = False,
        skip_bad: bool = False,
        scan: PhotoScan | None = None,
        moves: Sequence[str] = (),
        verify: bool = False,
        prune: bool = False,
        shard: tuple[int, int] | None = None,
        encode: EncodeBatches | None = None,
    ) -> ExtractionResult | None:
        """Encode images and write their code file; call it on all ranks.

        The rows of the output are in the order of ``images``. Rows of an older output whose images
        are not among them stay before them.

        Args:
            images: what to encode. An image of an older output, or of an unfinished one, keeps its
                row, see :mod:`.known_rows`.
            output: the code file to write.
            resume: whether to go on with an existing or unfinished output.
            skip_bad: whether to write the output without the images that can't be read; otherwise
                the codes of all others stay in parts. If such an image has a row of an earlier
                content, the row stays.
            scan: how the images were found, None for those of a dataset.
            moves: texts OLD=NEW, folders of photos that stand elsewhere now.
            verify: whether to read and compare all files, not only those whose size or time of
                modification has changed.
            prune: whether to remove the rows of deleted photos. Rows stay if their folder is not in
                the scan, is missing or empty, or can't be read.
            shard: encode only the shard i of N, as (i, N) from (1, N); see :mod:`.shards`.
            encode: encodes batches elsewhere, as :meth:`encode_batches` does here.

        Returns:
            An :class:`ExtractionResult` on the main process, None elsewhere.

        Raises:
            CodeFileError: earlier codes are from another model, other settings or another dataset.
            OSError: the output exists already, or cannot be written.
            RegionDHError: there are no images, an id names two, or the model gives no codes or
                features.
        """
        output = Path(output)
        check_output(output, resume)
        images = unique_images(images)
        check_root_count(len({image.root for image in images}))
        part: Shard | None = None
        positions: dict[str, int] = {}
        if shard is not None:
            everything = images
            part, taken = _on_main_process(lambda: self._take_shard(everything, *shard))
            images = [everything[i] for i in taken]
            positions = {everything[i].image_id: i for i in taken}
        parts = Parts(parts_folder(output))
        is_main = comm.is_main_process()
        with parts.lock(output) if is_main else nullcontext():
            earlier: _Earlier | None = None

            def make_plan() -> _Plan:
                nonlocal earlier
                earlier = self._earlier(images, output, parts, scan, moves, verify)
                return self._plan(images, earlier.rows)

            plan = _on_main_process(make_plan)
            mine = plan.batches[comm.get_rank() :: comm.get_world_size()]
            bad_here = (encode or self.encode_batches)(images, mine, parts)
            gathered = comm.gather(bad_here, dst=0)
            if not is_main:
                return None
            bad = dict(plan.unreadable)
            for found in gathered:
                bad.update(found)
            # Deleted during the run is the same as deleted before it.
            vanished = {
                index: images[index].file_name
                for index in sorted(bad)
                if scan is not None and not os.path.lexists(images[index].file_name)
            }
            unreadable = [bad[index] for index in sorted(bad) if index not in vanished]
            result = ExtractionResult(
                images=len(images),
                coded=sum(map(len, plan.batches)) - sum(map(len, gathered)),
                rows=0,
                unreadable=unreadable,
                complete=False,
                vanished=tuple(vanished.values()),
            )
            assert earlier is not None  # the main process has made the plan
            new = [read_codes(path) for path in parts.paths() if path not in earlier.parts]
            if not (earlier.rows or new) or (unreadable and not skip_bad):
                return result
            merged = earlier.rows.merge(join_code_sets(new) if new else None, bad, prune=prune)
            code_set = merged.code_set
            if part is not None:
                places = [positions.get(image_id, -1) for image_id in code_set.image_ids]
                code_set = replace(code_set, positions=np.array(places, np.int64), shard=str(part))
            if merged.changed or earlier.is_outdated or earlier.shard != code_set.shard:
                weights = self._attributes.get("class_weights")
                if weights is not None:  # an older output has none
                    code_set = replace(code_set, class_weights=weights)
                parts.finalize(output, code_set)
            parts.remove()
            return replace(
                result,
                rows=len(merged.code_set),
                complete=True,
                gone=merged.gone,
                pruned=merged.pruned,
            )

    def _take_shard(
        self, images: Sequence[ImageEntry], number: int, count: int
    ) -> tuple[Shard, list[int]]:
        """As :func:`.shards.take_shard`, for the batches of this extractor."""
        sizes: list[tuple[int, int] | None] = []
        progress = Progress(self._log, "image headers of all shards read", len(images))
        for image in images:
            try:
                sizes.append(self._load.read_size(image.file_name))
            except UnreadableImage:
                sizes.append(None)
            progress.step()

        def plan(sizes: Sequence[tuple[int, int] | None]) -> list[list[int]]:
            return plan_batches(sizes, self._batch_size, self._size_divisibility)

        return take_shard(images, number, count, sizes, plan)

    def _earlier(
        self,
        images: Sequence[ImageEntry],
        output: Path,
        parts: Parts,
        scan: PhotoScan | None,
        moves: Sequence[str],
        verify: bool,
    ) -> _Earlier:
        """The files of earlier runs: the output and its parts."""
        sources, paths, is_outdated, shard = [], set(), False, ""
        ours = self._attributes["settings"]
        for path in ([output] if output.exists() else []) + parts.paths():
            is_part = path != output
            try:
                code_set = read_codes(path)
            except CodeFileError:
                if not is_part:
                    raise
                self._log(f"{display_name(path)} is damaged: its images are encoded again")
                path.unlink()
                continue
            check_source(path, code_set, self._attributes)
            log = None if is_part else self._log
            moved = move_roots_once(code_set, moves, strict=not is_part, log=log)
            if is_part:
                paths.add(path)
            else:
                shard = code_set.shard
                if code_set.settings != ours or moved is not code_set:
                    is_outdated = True
                elif code_set.class_weights is None:  # from before they were stored
                    is_outdated |= self._attributes.get("class_weights") is not None
            if not is_part and np.any(code_set.size == UNKNOWN):  # version 0.1's
                parts.keep_old(output)
            sources.append(
                Source(
                    replace(moved, settings=ours, positions=None, shard=""),
                    path.stat().st_mtime_ns,
                    is_part=is_part,
                    other_pixels=reader_version(code_set.settings) < reader_version(ours),
                )
            )
        rows = KnownRows(
            sources,
            images,
            folders=None if scan is None else Folders(scan),
            verify=verify,
            pixels_changed=pixels_changed_since_v1,
            log=self._log,
        )
        return _Earlier(rows, paths, is_outdated, shard)

    def _plan(self, images: list[ImageEntry], known: KnownRows) -> _Plan:
        """The images still to encode.

        Images that a part holds are planned into batches, too, so that the batches are always the
        same.
        """
        sizes: list[tuple[int, int] | None] = []
        unreadable = {}
        progress = Progress(self._log, "image headers read", len(images))
        for index, image in enumerate(images):
            size = None
            if not known.is_in_output(index):
                try:
                    size = self._load.read_size(image.file_name)
                except UnreadableImage as error:
                    if not known.is_known(index):
                        unreadable[index] = error
            sizes.append(size)
            progress.step()
        batches = plan_batches(sizes, self._batch_size, self._size_divisibility)
        left = [[i for i in batch if not known.is_known(i)] for batch in batches]
        return _Plan([batch for batch in left if batch], unreadable)

    @torch.no_grad()
    def encode_batches(
        self, images: Sequence[ImageEntry], batches: Sequence[Sequence[int]], parts: Parts
    ) -> dict[int, UnreadableImage]:
        """Encode batches, positions in ``images``, into parts.

        Returns:
            The unreadable images by position.
        """
        loader = DataLoader(
            ImageInputs(list(images), self._load),
            batch_sampler=[list(batch) for batch in batches],
            num_workers=self._num_workers,
            collate_fn=trivial_batch_collator,
        )
        unreadable: dict[int, UnreadableImage] = {}
        pending: list[CodeSet] = []
        saved_at = time.monotonic()
        log = self._log if comm.is_main_process() else None
        progress = Progress(log, _share("images encoded"), sum(map(len, batches)))
        try:
            for batch in loader:
                loaded: dict[int, LoadedImage] = {}
                for index, given in batch:
                    if isinstance(given, UnreadableImage):
                        unreadable[index] = given
                    else:
                        loaded[index] = given
                pending += self._code_batch(images, loaded)
                if pending and time.monotonic() - saved_at >= self._save_every:
                    parts.add(join_code_sets(pending))
                    pending, saved_at = [], time.monotonic()
                progress.step(len(batch))
        finally:
            # Also after Ctrl-C, or when the model fails.
            if pending:
                parts.add(join_code_sets(pending))
        return unreadable

    def _code_batch(
        self, images: Sequence[ImageEntry], loaded: dict[int, LoadedImage]
    ) -> list[CodeSet]:
        """A code set for each padded size; several if a header announced a wrong size."""
        groups: dict[tuple[int, int], list[int]] = {}
        for index, given in loaded.items():
            size = padded_size(given.input["image"].shape[-2:], self._size_divisibility)
            groups.setdefault(size, []).append(index)
        code_sets = []
        for group in groups.values():
            entries = [images[index] for index in group]
            labels = [entry.labels for entry in entries if entry.labels is not None]
            files = [loaded[index] for index in group]
            roots = list(dict.fromkeys(entry.root for entry in entries))
            code_sets.append(
                codes_from_outputs(
                    self._code([file.input for file in files]),
                    image_ids=[entry.image_id for entry in entries],
                    file_names=[_file_name(entry) for entry in entries],
                    labels=labels if len(labels) == len(entries) else None,
                    instance_min_score=self._instance_min_score,
                    activations=self._activations,
                    features=self._features,
                    roots=roots,
                    root_index=np.array([roots.index(e.root) for e in entries], np.uint16),
                    size=np.array([file.size for file in files], np.int64),
                    mtime_ns=np.array([file.mtime_ns for file in files], np.int64),
                    content_sha256=np.array([list(file.sha256) for file in files], np.uint8),
                    thumbnails=np.stack([file.thumbnail for file in files]),
                    **self._attributes,
                )
            )
        return code_sets


@dataclass(frozen=True)
class _Earlier:
    """What earlier runs left: the merged rows, the parts that were read, whether the output must
    be written again, and its shard."""

    rows: KnownRows
    parts: set[Path]
    is_outdated: bool
    shard: str


@dataclass(frozen=True)
class _Plan:
    """Positions of the images still to encode, by batch, and of those without a readable header."""

    batches: list[list[int]]
    unreadable: dict[int, UnreadableImage]


def _file_name(image: ImageEntry) -> str:
    return join_path(image.root, image.relative_path) if image.root else image.file_name


def _share(what: str) -> str:
    world = comm.get_world_size()
    return what if world == 1 else f"{what} by process 1 of {world}"


def _on_main_process(function: Callable[[], Any]) -> Any:
    """The main process's result or exception, on all ranks: without it the others would wait."""
    outcome = None
    if comm.is_main_process():
        try:
            outcome = function()
        except Exception as error:
            outcome = error
    outcome = comm.all_gather(outcome)[0]
    if isinstance(outcome, Exception):
        raise outcome
    return outcome
