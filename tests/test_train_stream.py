"""The order of training, entered at any batch."""

from itertools import islice

import numpy as np
import pytest
from detectron2.data.samplers import TrainingSampler
from torch.utils.data import Dataset

from regiondh_d2.data.train_stream import grouped_loader, number_from, plain_loader

SHAPES = np.random.default_rng(0).integers(1, 9, (11, 2)).tolist()
RECORDS = [{"index": i, "width": w, "height": h} for i, (w, h) in enumerate(SHAPES)]


def changed(record):
    """A record with what an augmentation of Detectron2 would draw."""
    return {**record, "drawn": np.random.rand()}  # noqa: NPY002


def loader(grouping, workers=0, seed=3):
    return grouped_loader(
        RECORDS,
        changed,
        seed=seed,
        total_batch_size=3,
        aspect_ratio_grouping=grouping,
        num_workers=workers,
    )


@pytest.mark.parametrize("grouping", [True, False])
def test_a_training_goes_on_after_any_batch(grouping):
    batches = list(islice(loader(grouping), 30))
    for seen in (0, 1, 2, 5, 17):
        resumed = loader(grouping)
        resumed.skip(seen)
        assert list(islice(resumed, 30 - seen)) == batches[seen:]
    assert list(islice(loader(grouping, seed=4), 30)) != batches
    if grouping:
        wide = [{r["width"] > r["height"] for r in batch} for batch in batches]
        assert all(len(kinds) == 1 for kinds in wide)
    # Each image is changed anew each time.
    assert len({r["drawn"] for batch in batches for r in batch}) == 90


def test_images_without_a_size_are_read_on():
    records = [{"index": i} for i in range(5)]

    def mapper(record):
        return {**record, "width": 2, "height": record["index"]}

    options = {"total_batch_size": 2, "aspect_ratio_grouping": True, "num_workers": 0}
    resumed = grouped_loader(records, mapper, seed=0, **options)
    resumed.skip(3)
    assert len(list(islice(resumed, 4))) == 4


def test_the_order_is_that_of_detectron2():
    found = [r["index"] for batch in islice(loader(False), 22) for r in batch]
    assert found == list(islice(TrainingSampler(len(RECORDS), seed=3), 66))
    assert sorted(found[:11]) == list(range(11))


def test_mapping_leaves_the_random_numbers_of_others_alone():
    np.random.seed(5)  # noqa: NPY002
    expected = np.random.rand()  # noqa: NPY002
    np.random.seed(5)  # noqa: NPY002
    next(iter(loader(True)))
    assert np.random.rand() == expected  # noqa: NPY002


def test_workers_change_images_in_the_same_way():
    alone = {(r["index"], r["drawn"]) for batch in islice(loader(False), 8) for r in batch}
    shared = {(r["index"], r["drawn"]) for batch in islice(loader(False, 2), 8) for r in batch}
    assert shared == alone


class Numbers(Dataset):
    def __len__(self):
        return 7

    def __getitem__(self, index):
        return index


def test_a_loader_without_changes_goes_on_too():
    batches = list(islice(plain_loader(Numbers(), seed=1, total_batch_size=2), 12))
    resumed = plain_loader(Numbers(), seed=1, total_batch_size=2)
    resumed.skip(5)
    assert list(islice(resumed, 7)) == batches[5:]
    assert sum(batches, [])[:14] == list(islice(TrainingSampler(7, seed=1), 14))


def test_seeds_differ_from_place_to_place():
    seeds = {number_from(s, r, i) for s in range(5) for r in range(3) for i in range(50)}
    assert len(seeds) == 750
    assert number_from(1, 2, 3) == number_from(1, 2, 3) < 2**32
