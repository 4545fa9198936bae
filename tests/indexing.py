"""Code sets to index."""

import numpy as np

from builders import code_set, object_codes
from regiondh_d2.structures.packed import pack_codes, unpack_codes

MODEL = "ab" * 32


def random_codes(rng, rows, bits):
    """Few patterns with few flipped bits, so that many distances are equal."""
    patterns = rng.random((10, bits)) < 0.5
    return pack_codes(patterns[rng.integers(0, 10, rows)] ^ (rng.random((rows, bits)) < 0.02))


def make_items(rows=300, found=900, bits=20, instance_bits=48, **changes):
    rng = np.random.default_rng(bits)
    codes = random_codes(rng, rows, bits)
    values = {
        "image_ids": [f"{i:06d}" for i in range(rows)],
        "file_names": [f"bilder/größe {i}.jpg" for i in range(rows)],
        "labels": (rng.random((rows, 3)) < 0.5).astype(np.uint8),
        "class_names": ["cat", "dog", "sofa"],
        "dataset": "some_val",
        "model_fingerprint": MODEL,
        "instances": object_codes(
            random_codes(rng, found, instance_bits),
            np.sort(rng.integers(0, rows, found)),
            instance_bits,
            boxes=rng.random((found, 4)).astype(np.float32),
            scores=rng.random(found).astype(np.float32),
            classes=rng.integers(0, 3, found),
        ),
    }
    return code_set(codes, bits, **(values | changes))


def sort_pairs(query, codes, bits, k):
    """The oracle: rows of one query by a sort of (distance, row) pairs."""
    distances = np.count_nonzero(unpack_codes(codes, bits) != unpack_codes(query, bits), axis=1)
    return [row for _, row in sorted(zip(distances.tolist(), range(len(codes)), strict=True))[:k]]
