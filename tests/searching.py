"""Indexes of short random codes to search in, and plain loops that say what is found."""

import numpy as np

from builders import code_set, object_codes
from regiondh_d2.retrieval.queries import QueryObject, SearchOptions
from regiondh_d2.retrieval.service import SearchService
from regiondh_d2.structures.packed import pack_codes, unpack_codes

BITS, INSTANCE_BITS = 20, 12
CLASSES = ["cat", "dog", "sofa"]
BOX = QueryObject((1.0, 2.0, 3.0, 4.0))


def make_items(images=60, found=150, **changes):
    """Short codes, so that many distances are equal; the last ten images have no detection."""
    rng = np.random.default_rng(0)
    codes = rng.random((images, BITS)) < 0.3
    values = {
        "image_ids": [f"{i:06d}" for i in range(images)],
        "file_names": [f"photos/{i}.jpg" for i in range(images)],  # from nowhere: not looked at
        "labels": (rng.random((images, 3)) < 0.5).astype(np.uint8),
        "class_names": CLASSES,
        "model_fingerprint": "ab" * 32,
        "instances": object_codes(
            rng.random((found, INSTANCE_BITS)) < 0.3,
            np.sort(rng.integers(0, images - 10, found)),
            boxes=rng.random((found, 4)).astype(np.float32),
            scores=rng.random(found).astype(np.float32),
            classes=rng.choice(3, found, p=[0.08, 0.46, 0.46]),
        ),
    }
    return code_set(codes, **(values | changes))


def search_index(
    folder,
    query,
    topk=10,
    class_name=None,
    rerank=None,
    rerank_by=None,
    **options,
):
    """The result of a search in a folder; arguments as of :class:`SearchOptions`."""
    options = SearchOptions(topk, class_name, rerank, rerank_by, **options)
    return SearchService(folder).search(query, options)


def search_by_class(folder, query, topk=10, rerank=None, rerank_by=None, **options):
    options = SearchOptions(topk, None, rerank, rerank_by, **options)
    return SearchService(folder).search_by_class(query, options)


def queries(count, bits):
    return pack_codes(np.random.default_rng(1).random((count, bits)) < 0.3)


def distances_to(code, codes, bits):
    return np.count_nonzero(unpack_codes(codes, bits) != unpack_codes(code[None], bits), axis=1)


def sort_pairs(distances, allowed, k):
    """(distance, row) pairs of the allowed rows in their order."""
    return sorted((int(d), int(row)) for row, d in enumerate(distances) if allowed[row])[:k]


def best_of_images(pairs, image_of):
    """The first (distance, row) pair of each image, of sorted ones."""
    best = {}
    for distance, row in pairs:
        best.setdefault(int(image_of[row]), (distance, row))
    return list(best.values())


def found_rows(result):
    """(distance, row) pairs of the objects that answer to an object."""
    return [(answer.distance, answer.objects[0].row) for answer in result.answers]


def index_scenes(network, folder, load_tool):
    """Encodes the scenes of a network's fixture into ``codes.h5`` and indexes them in ``index``."""
    start = ["--config-file", network.config, "--input", str(network.scenes)]
    output = ["--output", str(folder / "codes.h5")]
    assert load_tool("extract_codes").main([*start, *output, *network.opts]) == 0
    build = [str(folder / "codes.h5"), "--output", str(folder / "index"), "--engine", "numpy"]
    assert load_tool("build_index").main(build) == 0
    return folder
