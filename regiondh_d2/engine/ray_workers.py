"""Encoding images with Ray Data: the workers of a cluster, each with its own copy of the network.

A worker encodes a few batches at a time and writes them as a part of the output, into a folder that
all machines must see, as they must see the images. So a worker that is killed loses these batches:
Ray starts another one, which encodes them again. Batches are those of a run without Ray, and so are
the codes.
"""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from ..retrieval.extract import CodeExtractor
from ..retrieval.extraction_parts import Parts
from ..retrieval.images import ImageEntry, UnreadableImage
from ..utils.errors import MissingPackageError, RegionDHError
from ..utils.progress import Progress

__all__ = ["encode_with_ray", "import_ray"]

_IMAGES = (
    64  # of a task at least, unless there are fewer: some seconds, which a killed worker loses
)


def import_ray() -> ModuleType:
    """The package ray, with Ray Data.

    Raises:
        MissingPackageError: it isn't installed.
    """
    try:
        import ray
        import ray.data
    except ImportError:
        raise MissingPackageError(
            "--ray-workers needs a package that isn't installed: pip install 'regiondh_d2[ray]'"
        ) from None
    return ray


def encode_with_ray(
    make_extractor: Callable[[], CodeExtractor],
    workers: int,
    log: Callable[[str], None],
    images: Sequence[ImageEntry],
    batches: Sequence[Sequence[int]],
    folder: Path,
    *,
    gpus: float = 0,
    images_of_task: int = _IMAGES,
) -> dict[int, UnreadableImage]:
    """Encode batches of images into parts, as :meth:`.CodeExtractor.encode_batches`.

    It joins the cluster that RAY_ADDRESS names, or starts one on this machine.

    Args:
        make_extractor: makes a worker's extractor; a function that a worker can import.
        workers: how many.
        log: takes lines of progress.
        images, batches: what to encode, and positions in it.
        folder: of the parts.
        gpus: GPUs of a worker.
        images_of_task: the least number of images that a task has.

    Returns:
        The unreadable images by position.

    Raises:
        MissingPackageError: Ray isn't installed.
        RegionDHError: a worker's, such as for missing weights.
    """
    ray = import_ray()
    tasks = _tasks(images, batches, images_of_task)
    unreadable: dict[int, UnreadableImage] = {}
    if not tasks:
        return unreadable
    progress = Progress(log, "images encoded", sum(map(len, batches)))
    is_ours = not ray.is_initialized()
    if is_ours:
        # A cluster of our own has room for all workers and Ray Data itself, whatever its cores.
        own = {} if os.environ.get("RAY_ADDRESS") else {"num_cpus": workers + 1}
        ray.init(log_to_driver=False, include_dashboard=False, **own)
    try:
        ray.data.DataContext.get_current().enable_progress_bars = False
        # A block for each task: Ray repeats whole blocks.
        found = ray.data.from_items(
            [{"task": task} for task in tasks], override_num_blocks=len(tasks)
        )
        found = found.map_batches(
            _Worker,
            fn_constructor_args=(make_extractor, folder),
            batch_size=1,
            compute=ray.data.ActorPoolStrategy(size=min(workers, len(tasks))),
            num_cpus=1,
            num_gpus=gpus,
        )
        for row in found.iter_rows():
            if row["error"]:
                raise RegionDHError(row["error"])
            unreadable.update(pickle.loads(row["unreadable"]))
            progress.step(int(row["images"]))
    finally:
        if is_ours:
            ray.shutdown()
    return unreadable


class _Worker:
    """Holds the network; called by Ray with a task, and again with the next one."""

    def __init__(self, make_extractor: Callable[[], CodeExtractor], folder: Path) -> None:
        self._make_extractor, self._parts = make_extractor, Parts(folder)
        self._extractor: CodeExtractor | None = None

    def __call__(self, given: dict[str, np.ndarray]) -> dict[str, list[Any]]:
        """Encode the tasks of a block.

        Returns:
            For each its unreadable images, pickled, and its number of images; and the user's error,
            or "". Ray would wrap an exception in text of its own.
        """
        unreadable, counts, errors = [], [], []
        for task in given["task"]:
            places, images, batches = pickle.loads(task)
            found, told = {}, ""
            try:
                if self._extractor is None:
                    self._extractor = self._make_extractor()
                found = self._extractor.encode_batches(images, batches, self._parts)
            except RegionDHError as error:
                told = str(error)
            unreadable.append(pickle.dumps({places[i]: error for i, error in found.items()}))
            counts.append(len(images))
            errors.append(told)
        return {"unreadable": unreadable, "images": counts, "error": errors}


def _tasks(
    images: Sequence[ImageEntry], batches: Sequence[Sequence[int]], least: int
) -> list[bytes]:
    """Whole batches with the entries of their images, pickled: a task each."""
    tasks: list[bytes] = []
    group: list[Sequence[int]] = []
    for number, batch in enumerate(batches, 1):
        group.append(batch)
        places = [i for taken in group for i in taken]
        if len(places) >= least or number == len(batches):
            numbers = iter(range(len(places)))
            moved = [[next(numbers) for _ in taken] for taken in group]
            tasks.append(pickle.dumps((places, [images[i] for i in places], moved)))
            group = []
    return tasks
