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

import filecmp
import os
import shutil
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.data.build import trivial_batch_collator
from detectron2.utils import comm
from torch.utils.data import DataLoader, Dataset

from ..config import parse_settings
from ..data.image_reader import pixels_changed_since_v1
from ..data.photo_files import PhotoScan, is_below
from ..structures.code_checks import check_one_file
from ..structures.code_roots import check_root_count
from ..structures.code_rows import join_code_sets
from ..structures.codes import UNKNOWN, CodeFileError, CodeSet, join_path
from ..structures.model_outputs import codes_from_outputs
from ..utils.display import display_name
from ..utils.errors import InputNotFoundError, OutputExistsError, RegionDHError
from ..utils.file_io import file_sha256, replace_when_complete
from ..utils.locks import hold_lock
from ..utils.progress import Progress
from .code_store import read_codes, write_codes
from .images import ImageEntry, ImageLoader, UnreadableImage, entries_of_scan
from .known_rows import Folders, KnownRows, Source
from .moved_folders import move_roots_once
from .photo_state import root_problem
from .shards import Shard, take_shard

__all__ = [
    "CodeExtractor",
    "ExtractionResult",
    "check_output",
    "images_to_code",
    "keeps_activations",
    "known_files",
    "padded_size",
    "parts_folder",
    "plan_batches",
]


_READER = "IMAGE_READER"  # the line of the settings with the version of the image reader


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


def plan_batches(
    sizes: Sequence[tuple[int, int] | None], batch_size: int, size_divisibility: int
) -> list[list[int]]:
    """Batches of images of equal padded size, in the order in which they become full.

    Args:
        sizes: height and width of each image, or None for images to leave out.
        batch_size: the most images of a batch.
        size_divisibility: sides are padded to a multiple of this; 0 and 1 don't pad.

    Returns:
        Lists of positions in ``sizes``.
    """
    batches = []
    waiting: dict[tuple[int, int], list[int]] = {}
    for index, size in enumerate(sizes):
        if size is None:
            continue
        key = padded_size(size, size_divisibility)
        waiting.setdefault(key, []).append(index)
        if len(waiting[key]) == batch_size:
            batches.append(waiting.pop(key))
    return batches + list(waiting.values())


def padded_size(size: Sequence[int], divisibility: int) -> tuple[int, int]:
    """(height, width) to which a model pads an image of some size."""
    step = max(1, divisibility)
    height, width = (-(-side // step) * step for side in size)
    return height, width


def check_output(output: str | os.PathLike, resume: bool) -> None:
    """Check that no earlier run wrote the output or a part of it.

    Raises:
        OutputExistsError: the output, or an unfinished one, is there; or it is a folder.
    """
    output = Path(output)
    name, parts = display_name(output), parts_folder(output)
    if output.is_dir():
        raise OutputExistsError(f"{name} is a folder: name a file to write")
    if resume:
        return
    if output.exists():
        raise OutputExistsError(f"{name} exists: add to it with --resume, or delete it")
    if any(parts.glob("part-*.h5")):
        raise OutputExistsError(
            f"{display_name(parts)} holds an unfinished extraction: go on with --resume, or delete "
            "it"
        )


def parts_folder(output: str | os.PathLike) -> Path:
    """The folder of an unfinished output's parts; for a link, beside the file to which it leads."""
    real = Path(os.path.realpath(output))
    return real.with_name(f"{real.name}.parts")


def _reader(settings: str) -> int:
    """The version of the image reader in the settings."""
    number = parse_settings(settings).get(_READER, "")
    return int(number) if number.isdecimal() else 0


def known_files(output: str | os.PathLike, moves: Sequence[str] = ()) -> dict[str, tuple[int, int]]:
    """Size and time of modification of each file in a code file, by its name.

    Args:
        output: the code file; if it is missing, the result is empty.
        moves: texts OLD=NEW, folders of photos that were moved.

    Raises:
        CodeFileError: the output can't be read, or has no photo in a folder that was moved.
    """
    if not os.path.exists(output):
        return {}
    codes = move_roots_once(read_codes(output), moves)
    known = zip(codes.size.tolist(), codes.mtime_ns.tolist(), strict=True)
    return dict(zip(codes.file_names, known, strict=True))


def keeps_activations(output: str | os.PathLike) -> bool:
    """Whether a run stores activations where nobody says: as an output does with which it goes on,
    or an unfinished one; and always in a new one.

    Raises:
        CodeFileError: the output can't be read.
    """
    output = Path(output)
    if output.exists():
        return _has_activations(read_codes(output))
    for part in sorted(parts_folder(output).glob("part-*.h5")):
        with suppress(CodeFileError):  # of a damaged part the extraction tells
            return _has_activations(read_codes(part))
    return True


def _has_activations(codes: CodeSet) -> bool:
    """Whether activations were asked for; a model may have had none to store."""
    asked = parse_settings(codes.settings).get("activations")
    return codes.activations is not None if asked is None else asked == "True"


def images_to_code(
    scan: PhotoScan, inputs: Sequence[str | os.PathLike], known: Iterable[str]
) -> tuple[list[ImageEntry], list[str]]:
    """The photos of a scan, if there is nothing else to do first.

    If a folder that the output knows is missing or empty, such as that of an unplugged disk, a line
    says so and the run goes on with the other folders.

    Args:
        scan: of ``inputs``.
        inputs: files and folders, as they were given.
        known: the names of the files that have rows in the output.

    Returns:
        The photos, and lines about what is missing.

    Raises:
        InputNotFoundError: an input is missing, and the output has no rows of it.
        RegionDHError: there is no photo.
    """
    known = list(known)
    folders = Folders(scan)
    problems = []
    for given, path in zip(scan.missing, folders.missing, strict=True):
        rows = sum(is_below(name, path) for name in known)
        if not rows:
            raise InputNotFoundError(f"{display_name(given)}: no such file or folder")
        problems.append((given, "is not there", rows))
    for root in folders.empty:
        rows = sum(is_below(name, root) for name in known)
        if rows or scan.images:
            problems.append((root, root_problem(root) or "holds no photos", rows))
    lines = [
        f"{display_name(place)} {problem}: nothing is changed of its {rows} rows"
        if rows
        else f"no images in {display_name(place)}"
        for place, problem, rows in problems
    ]
    if not scan.images and lines:
        raise RegionDHError(f"{'; '.join(lines)} (a disk that isn't plugged in?)")
    return entries_of_scan(replace(scan, missing=[]), inputs), lines


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
        images = _unique(images)
        check_root_count(len({image.root for image in images}))
        part: Shard | None = None
        positions: dict[str, int] = {}
        if shard is not None:
            everything = images
            part, taken = _on_main_process(lambda: self._take_shard(everything, *shard))
            images = [everything[i] for i in taken]
            positions = {everything[i].image_id: i for i in taken}
        parts = _Parts(parts_folder(output))
        is_main = comm.is_main_process()
        with parts.lock(output) if is_main else nullcontext():
            earlier: _Earlier | None = None

            def make_plan() -> _Plan:
                nonlocal earlier
                earlier = self._earlier(images, output, parts, scan, moves, verify)
                return self._plan(images, earlier.rows)

            plan = _on_main_process(make_plan)
            mine = plan.batches[comm.get_rank() :: comm.get_world_size()]
            gathered = comm.gather(self._code_batches(images, mine, parts), dst=0)
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
        parts: _Parts,
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
            self._check_source(path, code_set)
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
                    other_pixels=_reader(code_set.settings) < _reader(ours),
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

    def _check_source(self, path: Path, code_set: CodeSet) -> None:
        """Check that earlier codes may share a file with ours."""
        shown = display_name(path)
        fix = "name another output, or delete this one to start again"
        ours = self._attributes["model_fingerprint"]
        if code_set.model_fingerprint != ours:
            raise CodeFileError(
                f"{shown} was encoded by model {code_set.model_fingerprint[:12] or '(unknown)'}, "
                f"not by this one ({ours[:12]}): {fix}"
            )
        weights = self._attributes.get("class_weights")
        if not (
            weights is None
            or code_set.class_weights is None
            or np.array_equal(weights, code_set.class_weights)
        ):
            raise CodeFileError(f"{shown} has other class_weights than this model: {fix}")
        old = parse_settings(code_set.settings)
        new = parse_settings(self._attributes["settings"])
        for name in ("dataset", "count_difficult", "class_names"):
            old[name], new[name] = getattr(code_set, name), self._attributes[name]
        for key in sorted(old.keys() | new.keys()):
            if key == _READER and _reader(code_set.settings) < _reader(
                self._attributes["settings"]
            ):
                continue  # rows whose pixels changed are encoded again
            if old.get(key) != new.get(key):
                raise CodeFileError(
                    f"{shown} was encoded with {key} {old.get(key, '(unknown)')}, which is now "
                    f"{new.get(key, '(unknown)')}: {fix}"
                )

    @torch.no_grad()
    def _code_batches(
        self, images: list[ImageEntry], batches: list[list[int]], parts: _Parts
    ) -> dict[int, UnreadableImage]:
        """Encode batches into parts; return the unreadable images by position in ``images``."""
        loader = DataLoader(
            _Inputs(images, self._load),
            batch_sampler=batches,
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
                loaded: dict[int, _Loaded] = {}
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

    def _code_batch(self, images: list[ImageEntry], loaded: dict[int, _Loaded]) -> list[CodeSet]:
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
                    **self._attributes,
                )
            )
        return code_sets


@dataclass(frozen=True)
class _Earlier:
    """The merged rows, the parts in use, whether the output must be written, and which shard it
    is."""

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


class _Parts:
    """The folder of an unfinished output. Every file in it is complete."""

    def __init__(self, folder: Path):
        self._folder = folder

    @contextmanager
    def lock(self, output: Path) -> Iterator[None]:
        """Locks the folder against a second run, and deletes it at the end if it holds no part.

        If the process is killed, the system releases the lock.
        """
        self._folder.mkdir(parents=True, exist_ok=True)
        with hold_lock(self._folder / "lock", output):
            try:
                yield
            finally:
                if not self.paths():
                    self._leave()

    def paths(self) -> list[Path]:
        return sorted(self._folder.glob("part-*.h5"))

    def add(self, code_set: CodeSet) -> None:
        write_codes(self._folder / f"part-{uuid.uuid4().hex}.h5", code_set)

    def keep_old(self, output: Path) -> None:
        """Keeps an output of an older version as ``.bak`` until :meth:`become`.

        An existing file of that name stays.
        """
        backup = _backup(output)
        if not os.path.lexists(backup):
            with replace_when_complete(backup) as temporary:
                shutil.copy2(output, temporary)

    def finalize(self, output: Path, code_set: CodeSet) -> None:
        """Write the output; after this the parts are not needed any more."""
        backup = _backup(output)
        is_ours = output.exists() and backup.is_file() and filecmp.cmp(backup, output, False)
        merged = self._folder / "merged.h5"  # here: a killed run leaves nothing elsewhere
        write_codes(merged, code_set)
        os.replace(merged, os.path.realpath(output))
        if is_ours:
            backup.unlink()

    def remove(self) -> None:
        for path in self.paths():
            path.unlink()

    def _leave(self) -> None:
        """Remove the folder with its parts; it stays if it holds anything else."""
        with suppress(OSError):
            for path in self._folder.iterdir():
                if path.name == "lock" or path.name.lstrip(".").startswith(("part-", "merged.h5")):
                    path.unlink()
            self._folder.rmdir()


def _backup(output: Path) -> Path:
    return output.with_name(f"{output.name}.bak")


@dataclass(frozen=True)
class _Loaded:
    """A network's input and its file."""

    input: dict
    size: int
    mtime_ns: int
    sha256: bytes


class _Inputs(Dataset):
    """Positions of images, each with the network's input or the reason why there is none."""

    def __init__(self, images: list[ImageEntry], load: ImageLoader):
        self._images = images
        self._load = load

    def __getitem__(self, index: int) -> tuple[int, _Loaded | UnreadableImage]:
        try:
            return index, self._read(self._images[index].file_name)
        except UnreadableImage as error:
            return index, error.with_traceback(None)

    def _read(self, file_name: str) -> _Loaded:
        """The input with the size, time and hash of its file, all of the same state of the file."""
        for _ in range(3):
            before = _size_and_time(file_name)
            given = self._load(file_name)
            try:
                sha256 = file_sha256(file_name)
            except OSError as error:
                raise UnreadableImage(file_name, error.strerror or str(error)) from error
            if before is not None and before == _size_and_time(file_name):
                return _Loaded(given, *before, sha256)
        raise UnreadableImage(file_name, "another program is writing it")


def _size_and_time(file_name: str) -> tuple[int, int] | None:
    try:
        status = os.stat(file_name)
    except OSError:
        return None
    return status.st_size, status.st_mtime_ns


def _share(what: str) -> str:
    world = comm.get_world_size()
    return what if world == 1 else f"{what} by process 1 of {world}"


def _unique(images: Sequence[ImageEntry]) -> list[ImageEntry]:
    """The images without repetitions."""
    if not images:
        raise RegionDHError("there are no images to encode")
    first: dict[str, ImageEntry] = {}
    for image in images:
        other = first.setdefault(image.image_id, image)
        check_one_file(image.image_id, other.file_name, image.file_name)
    return list(first.values())


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
