"""Codes of any images into one code file, on one process or many, resumable whenever it stops.

Every few seconds what has been coded since is saved as a *part*, a small code file in the folder
``<output>.parts``. At the end the parts, and the codes of an older output, become the output, and
the folder goes. So a run that is killed loses seconds, and a row can neither be lost nor doubled:
an image that some file holds is not coded again, and of two rows of an image one is taken.

Only images of equal padded size share a batch, since padding changes features. Batches are planned
from the images' headers before anything is coded, over all images that the older output lacks,
and are saved whole. So they are the same however often a run stops, and for any number of
processes, and so are the codes to the last bit.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from detectron2.data.build import trivial_batch_collator
from detectron2.utils import comm
from torch.utils.data import DataLoader, Dataset

from ..config import parse_settings
from ..structures.codes import (
    CodeFileError,
    CodeSet,
    check_one_file,
    codes_from_outputs,
    join_code_sets,
    take_rows,
)
from ..utils.errors import OutputExistsError, RegionDHError
from ..utils.progress import Progress
from .code_store import read_codes, write_codes
from .images import ImageEntry, ImageLoader, UnreadableImage

__all__ = [
    "CodeExtractor",
    "ExtractionResult",
    "check_output",
    "plan_batches",
]


@dataclass(frozen=True)
class ExtractionResult:
    """What :meth:`CodeExtractor.extract` did.

    Attributes:
        images: number of different images given.
        coded: number of them coded by this run.
        rows: rows of the output, 0 if it was not written.
        unreadable: the images that have no row, in the order given.
        complete: whether the output is there; False if images are unreadable and were not skipped.
    """

    images: int
    coded: int
    rows: int
    unreadable: list[UnreadableImage]
    complete: bool


def plan_batches(
    sizes: Sequence[tuple[int, int] | None], batch_size: int, size_divisibility: int
) -> list[list[int]]:
    """Batches of images whose padded sizes are equal, in the order in which they become full.

    Args:
        sizes: height and width of each image, or None for images to leave out.
        batch_size: the most images of a batch.
        size_divisibility: sides are padded to a multiple of this; below 2 they stay.

    Returns:
        Lists of positions in ``sizes``.
    """
    batches = []
    waiting: dict[tuple[int, int], list[int]] = {}
    for index, size in enumerate(sizes):
        if size is None:
            continue
        key = _padded_size(size, size_divisibility)
        waiting.setdefault(key, []).append(index)
        if len(waiting[key]) == batch_size:
            batches.append(waiting.pop(key))
    return batches + list(waiting.values())


def _padded_size(size: Sequence[int], divisibility: int) -> tuple[int, int]:
    step = max(1, divisibility)
    height, width = (-(-side // step) * step for side in size)
    return height, width


def check_output(output: str | os.PathLike, resume: bool) -> None:
    """Refuses to touch what an earlier run wrote, unless it is to be resumed.

    Raises:
        FileExistsError: the output, or an unfinished one, is there.
        IsADirectoryError: the output is a folder.
    """
    output = Path(output)
    parts = _parts_folder(output)
    if output.is_dir():
        raise OutputExistsError(f"{output} is a folder: name a file to write")
    if resume:
        return
    if output.exists():
        raise OutputExistsError(f"{output} exists: add to it with --resume, or delete it")
    if any(parts.glob("part-*.h5")):
        raise OutputExistsError(
            f"{parts} holds an unfinished extraction: go on with --resume, or delete it"
        )


def _parts_folder(output: Path) -> Path:
    return output.with_name(f"{output.name}.parts")


class CodeExtractor:
    """Codes images with a model and writes their code file."""

    def __init__(
        self,
        code: Callable[[list[dict]], list[dict]],
        load: ImageLoader,
        attributes: Mapping[str, Any],
        *,
        size_divisibility: int,
        batch_size: int = 4,
        num_workers: int = 0,
        instance_min_score: float = 0.3,
        activations: bool = False,
        features: bool = False,
        save_every: float = 30.0,
        report: Callable[[str], None] = print,
    ):
        """
        Args:
            code: a model's ``inference``, or its ``code_images`` where instances have no codes.
            load: reads images as the model takes them.
            attributes: of the code file: ``dataset``, ``config``, ``class_names``,
                ``count_difficult``, ``model_fingerprint`` and ``settings``.
            size_divisibility: sides of batches are padded to a multiple of this by the model.
            batch_size: the most images of a batch.
            num_workers: processes that read images ahead; 0 reads them in this one.
            instance_min_score: detections below this score get no row.
            activations: whether to store the activations before binarisation.
            features: whether to store ``image_feature``, which the model must then give.
            save_every: seconds between parts; 0 saves every batch.
            report: takes lines of progress.
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
        self._report = report

    def extract(
        self,
        images: Sequence[ImageEntry],
        output: str | os.PathLike,
        *,
        resume: bool = False,
        skip_bad: bool = False,
    ) -> ExtractionResult | None:
        """Code images and write their code file; call it on all ranks.

        The rows of the output are in the order of ``images``. Rows of an older output whose images
        are not among them stay before them.

        Args:
            images: what to code. An image of an older output, or of an unfinished one, keeps the
                row it has.
            output: the code file to write.
            resume: whether an output or an unfinished one may be there.
            skip_bad: whether to write the output without the images that can't be read; otherwise
                all others are coded, and their codes wait in parts.

        Returns:
            An :class:`ExtractionResult` on the main process, None elsewhere.

        Raises:
            CodeFileError: earlier codes are by another model, other settings or of another dataset.
            OSError: the output exists already, or cannot be written.
            ValueError: there are no images, an id names two, or the model gives no codes or
                features.
        """
        output = Path(output)
        check_output(output, resume)
        images = _unique(images)
        parts = _Parts(_parts_folder(output))
        is_main = comm.is_main_process()
        with parts.lock() if is_main else nullcontext():
            plan = _on_main_process(lambda: self._plan(images, output, parts))
            mine = plan.batches[comm.get_rank() :: comm.get_world_size()]
            gathered = comm.gather(self._code_batches(images, mine, parts), dst=0)
            if not is_main:
                return None
            bad = dict(plan.unreadable)
            for found in gathered:
                bad.update(found)
            unreadable = [bad[index] for index in sorted(bad)]
            coded = sum(map(len, plan.batches)) - sum(map(len, gathered))
            new = parts.paths()
            sources = [output, *new] if output.exists() else new
            if not sources or (bad and not skip_bad):
                return ExtractionResult(len(images), coded, 0, unreadable, complete=False)
            ids = [image.image_id for index, image in enumerate(images) if index not in bad]
            code_set = _merge([read_codes(path) for path in sources], ids)
            if new:
                parts.become(output, code_set)
            return ExtractionResult(len(images), coded, len(code_set), unreadable, complete=True)

    def _plan(self, images: list[ImageEntry], output: Path, parts: _Parts) -> _Plan:
        """What is left to code.

        Images that a part holds count in the making of batches, so that these are always the same.
        """
        old = set()
        if output.exists():
            code_set = read_codes(output)
            self._check_source(output, code_set)
            old.update(code_set.image_ids)
        saved = set()
        for path in parts.paths():
            try:
                code_set = read_codes(path)
            except CodeFileError:
                self._report(f"{path} is damaged: its images are coded again")
                path.unlink()
                continue
            self._check_source(path, code_set)
            saved.update(code_set.image_ids)

        sizes: list[tuple[int, int] | None] = []
        unreadable = {}
        progress = Progress(self._report, "image headers read", len(images))
        for index, image in enumerate(images):
            size = None
            if image.image_id not in old:
                try:
                    _check_name(image)
                    size = self._load.read_size(image.file_name)
                except UnreadableImage as error:
                    if image.image_id not in saved:
                        unreadable[index] = error
            sizes.append(size)
            progress.step()
        batches = plan_batches(sizes, self._batch_size, self._size_divisibility)
        left = [[i for i in batch if images[i].image_id not in saved] for batch in batches]
        return _Plan([batch for batch in left if batch], unreadable)

    def _check_source(self, path: Path, code_set: CodeSet) -> None:
        """Refuses codes that ours can't stand beside."""
        mend = "name another output, or delete this one to start anew"
        ours = self._attributes["model_fingerprint"]
        if code_set.model_fingerprint != ours:
            raise CodeFileError(
                f"{path} was coded by model {code_set.model_fingerprint[:12] or '(unknown)'}, not "
                f"by this one ({ours[:12]}): {mend}"
            )
        old = parse_settings(code_set.settings)
        new = parse_settings(self._attributes["settings"])
        for name in ("dataset", "count_difficult", "class_names"):
            old[name], new[name] = getattr(code_set, name), self._attributes[name]
        for key in sorted(old.keys() | new.keys()):
            if old.get(key) != new.get(key):
                raise CodeFileError(
                    f"{path} was coded with {key} {old.get(key, '(unknown)')}, which is now "
                    f"{new.get(key, '(unknown)')}: {mend}"
                )

    @torch.no_grad()
    def _code_batches(
        self, images: list[ImageEntry], batches: list[list[int]], parts: _Parts
    ) -> dict[int, UnreadableImage]:
        """Codes batches into parts; returns what is unreadable, by its position in ``images``."""
        loader = DataLoader(
            _Inputs(images, self._load),
            batch_sampler=batches,
            num_workers=self._num_workers,
            collate_fn=trivial_batch_collator,
        )
        unreadable: dict[int, UnreadableImage] = {}
        pending: list[CodeSet] = []
        saved_at = time.monotonic()
        report = self._report if comm.is_main_process() else None
        progress = Progress(report, _share("images coded"), sum(map(len, batches)))
        try:
            for batch in loader:
                loaded = {}
                for index, given in batch:
                    known = unreadable if isinstance(given, UnreadableImage) else loaded
                    known[index] = given
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

    def _code_batch(self, images: list[ImageEntry], loaded: dict[int, dict]) -> list[CodeSet]:
        """A code set for each padded size; there are several where a header told another size."""
        groups: dict[tuple[int, int], list[int]] = {}
        for index, given in loaded.items():
            size = _padded_size(given["image"].shape[-2:], self._size_divisibility)
            groups.setdefault(size, []).append(index)
        code_sets = []
        for group in groups.values():
            entries = [images[index] for index in group]
            labels = [entry.labels for entry in entries]
            code_sets.append(
                codes_from_outputs(
                    self._code([loaded[index] for index in group]),
                    image_ids=[entry.image_id for entry in entries],
                    file_names=[entry.file_name for entry in entries],
                    labels=None if None in labels else labels,
                    instance_min_score=self._instance_min_score,
                    activations=self._activations,
                    features=self._features,
                    **self._attributes,
                )
            )
        return code_sets


@dataclass(frozen=True)
class _Plan:
    """Positions of the images still to code, by batch, and those whose header can't be read."""

    batches: list[list[int]]
    unreadable: dict[int, UnreadableImage]


class _Parts:
    """The folder of an unfinished output. Every file in it is complete or absent."""

    def __init__(self, folder: Path):
        self._folder = folder

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Keeps a second run out of the folder, which goes at the end if it holds no part.

        The system opens the lock of a process that is killed.
        """
        self._folder.mkdir(parents=True, exist_ok=True)
        with open(self._folder / "lock", "w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise BlockingIOError(
                    f"{self._folder} is in use by another run: wait until it ends"
                ) from None
            try:
                yield
            finally:
                if not self.paths():
                    shutil.rmtree(self._folder, ignore_errors=True)

    def paths(self) -> list[Path]:
        return sorted(self._folder.glob("part-*.h5"))

    def add(self, code_set: CodeSet) -> None:
        write_codes(self._folder / f"part-{uuid.uuid4().hex}.h5", code_set)

    def become(self, output: Path, code_set: CodeSet) -> None:
        """Writes the output; the parts are not needed from then on."""
        merged = self._folder / "merged.h5"  # here, so that a killed run leaves nothing elsewhere
        write_codes(merged, code_set)
        os.replace(merged, output)
        shutil.rmtree(self._folder)


class _Inputs(Dataset):
    """Positions of images, with the network's input or why there is none."""

    def __init__(self, images: list[ImageEntry], load: ImageLoader):
        self._images = images
        self._load = load

    def __getitem__(self, index: int) -> tuple[int, dict | UnreadableImage]:
        try:
            return index, self._load(self._images[index].file_name)
        except UnreadableImage as error:
            return index, error.with_traceback(None)


def _share(what: str) -> str:
    world = comm.get_world_size()
    return what if world == 1 else f"{what} by process 1 of {world}"


def _unique(images: Sequence[ImageEntry]) -> list[ImageEntry]:
    """The images without repetitions."""
    if not images:
        raise RegionDHError("there are no images to code")
    first: dict[str, ImageEntry] = {}
    for image in images:
        other = first.setdefault(image.image_id, image)
        check_one_file(image.image_id, other.file_name, image.file_name)
    return list(first.values())


def _check_name(image: ImageEntry) -> None:
    """Code files hold UTF-8, and the name of a file may be any bytes."""
    try:
        (image.image_id + image.file_name).encode("utf-8")
    except UnicodeEncodeError:
        raise UnreadableImage(image.file_name, "its name is not UTF-8: rename it") from None


def _on_main_process(function: Callable[[], Any]) -> Any:
    """The main process's result on all ranks; its exception, too, or the others would wait."""
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


def _merge(code_sets: Sequence[CodeSet], image_ids: Sequence[str]) -> CodeSet:
    """The rows of some images in their order, after the rows of all others; each image once.

    Raises:
        CodeFileError: an image has no row.
    """
    joined = join_code_sets(code_sets)
    row_of: dict[str, int] = {}
    for row, image_id in enumerate(joined.image_ids):
        row_of.setdefault(image_id, row)
    lost = [image_id for image_id in image_ids if image_id not in row_of]
    if lost:
        raise CodeFileError(
            f"{len(lost)} images (first: {lost[0]}) lost their codes, because files of the parts "
            "folder have gone meanwhile: code them with --resume"
        )
    wanted = set(image_ids)
    others = [row for image_id, row in row_of.items() if image_id not in wanted]
    return take_rows(joined, others + [row_of[image_id] for image_id in image_ids])
