"""Loaders of training images that continue where a training was interrupted.

Detectron2's loaders start from the beginning when a training is resumed: it sees the first images
again, with other random changes. Here the order and the random changes depend only on the seed and
on an image's place in the order, so a loader can begin at any batch.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import Any

import numpy as np
import torch
from detectron2.data import DatasetFromList
from detectron2.data.build import build_batch_data_loader
from detectron2.data.samplers import TrainingSampler
from detectron2.utils import comm
from torch.utils.data import Dataset, Sampler

__all__ = ["ResumableLoader", "grouped_loader", "ImageStream", "number_from", "plain_loader"]


def number_from(*numbers: int) -> int:
    """A random-looking seed below 2**32, computed from these numbers."""
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])


class ResumableLoader:
    """An endless loader that can skip the batches before a resume."""

    def __init__(self, build: Callable[[int], Iterable[list[dict]]]):
        """
        Args:
            build: makes a loader that begins after a given number of batches.
        """
        self._build = build
        self._first = 0

    def skip(self, batches: int) -> None:
        """Begin after so many batches. Iterators that exist already are not affected."""
        self._first = batches

    def __iter__(self) -> Iterator[list[dict]]:
        # PyTorch draws a seed when a loader begins. It must not change the training's random
        # numbers, since a resumed training begins its loader at another step.
        with torch.random.fork_rng(devices=()):
            batches = iter(self._build(self._first))
            first = next(batches)
        yield first
        yield from batches


class ImageStream(Sampler[tuple[int, int]]):
    """The images of one process in the order of training, without those that were already seen.

    Yields pairs (place in the order, index of the image), endlessly.
    """

    def __init__(self, size: int, seed: int, seen: int = 0, waiting: Sequence[tuple] = ()):
        """
        Args:
            size: number of images.
            seed: seed of Detectron2's endless shuffle, which gives the order.
            seen: how many places of this process to skip.
            waiting: skipped pairs that come first nevertheless, since no batch has had them.
        """
        self._sampler = TrainingSampler(size, seed=seed)
        self._seen, self._waiting = seen, tuple(waiting)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        yield from self._waiting
        yield from islice(enumerate(self._sampler), self._seen, None)


class _SeededImages(Dataset):
    """Mapped records, with random changes that depend on the seed and the place in the order."""

    def __init__(self, records: list[dict], mapper: Callable[[dict], dict], seed: int):
        self._records = DatasetFromList(records, copy=False)
        self._mapper, self._seed, self._rank = mapper, seed, comm.get_rank()

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, item: tuple[int, int]) -> dict:
        place, index = item
        with _seeded(number_from(self._seed, self._rank, place)):
            return self._mapper(self._records[index])


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Seeds NumPy's global random numbers, which Detectron2's augmentations use, for a block."""
    state = np.random.get_state()  # noqa: NPY002
    np.random.seed(seed)  # noqa: NPY002
    try:
        yield
    finally:
        np.random.set_state(state)  # noqa: NPY002


def grouped_loader(
    records: list[dict], mapper: Callable[[dict], dict], *, seed: int, **options: Any
) -> ResumableLoader:
    """Detectron2's training loader, which groups images by aspect ratio, made resumable.

    With ``num_workers`` above 1 the batches after a resume may hold other images, since the workers
    take turns. The order as a whole and the random changes of each image stay the same.

    Args:
        records: dataset dicts. If one has no ``width`` and ``height``, its group isn't known before
            the image is read, and some images are left out after a resume.
        mapper: makes an input of the network from a record.
        seed: seed of the order and of the random changes.
        options: ``total_batch_size``, ``aspect_ratio_grouping`` and ``num_workers``, as of
            ``build_batch_data_loader``.
    """
    dataset = _SeededImages(records, mapper, seed)
    size = options["total_batch_size"] // comm.get_world_size()
    groups = _wide(records) if options["aspect_ratio_grouping"] else None

    def build(batches: int) -> Iterable[list[dict]]:
        seen, waiting = _after(batches, size, seed, groups)
        sampler = ImageStream(len(dataset), seed, seen, waiting)
        return build_batch_data_loader(dataset, sampler, **options)

    return ResumableLoader(build)


def plain_loader(dataset: Dataset, *, seed: int, total_batch_size: int) -> ResumableLoader:
    """An endless, resumable loader over a dataset without random changes.

    Args:
        dataset: its elements are dicts.
        seed: seed of the order.
        total_batch_size: batch size of all processes together.
    """
    size: int = len(dataset)  # type: ignore[arg-type]  # a dataset by index

    def build(batches: int) -> Iterable[list[dict]]:
        seen = batches * (total_batch_size // comm.get_world_size())
        return build_batch_data_loader(dataset, _Indices(size, seed, seen), total_batch_size)

    return ResumableLoader(build)


class _Indices(ImageStream):
    def __iter__(self) -> Iterator[Any]:
        return (index for _, index in super().__iter__())


def _wide(records: list[dict]) -> list[bool] | None:
    """Which of Detectron2's two groups of aspect ratios each image is in; None if a size is
    missing."""
    sizes = [(record.get("width"), record.get("height")) for record in records]
    if not all(width and height for width, height in sizes):
        return None
    return [width > height for width, height in sizes]  # type: ignore[operator]


def _after(
    batches: int, size: int, seed: int, groups: list[bool] | None
) -> tuple[int, list[tuple[int, int]]]:
    """The number of places that were read for so many batches, and those that no batch has had."""
    if groups is None or not batches:
        return batches * size, []
    waiting: dict[bool, list[tuple[int, int]]] = {False: [], True: []}
    for place, index in ImageStream(len(groups), seed):
        members = waiting[groups[index]]
        members.append((place, index))
        if len(members) == size:
            members.clear()
            batches -= 1
            if not batches:
                return place + 1, sorted(waiting[False] + waiting[True])
    raise AssertionError("the order of training is endless")
