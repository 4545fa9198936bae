"""Code sets with all that a file can hold, and whether two are equal."""

import numpy as np

from builders import random_code_set, random_objects


def make_code_set(rows=5, bits=12, instances=True, **changes):
    """Codes with all that a file of them can hold."""
    rng = np.random.default_rng(0)
    values = {
        "image_ids": [f"{i:06d}" for i in range(rows)],
        "file_names": [f"images/größe {i}.jpg" for i in range(rows)],
        "class_names": ["cat", "dog", "vögel"],
        "dataset": "some_val",
        "config": "some.yaml",
        "count_difficult": False,
        "settings": "INPUT.FORMAT 'RGB'\ninstances True",
        "activations": rng.random((rows, bits)).astype(np.float16),
        "features": rng.random((rows, 7)).astype(np.float16),
    }
    if instances:
        classes = np.array([0, 2, 1, 1])
        values["instances"] = random_objects(rng, [0, 0, 2, rows - 1], 9, classes=classes)
    return random_code_set(rng, rows, bits, **(values | changes))


def make_photo_set(rows=5, **changes):
    """As :func:`make_code_set`, with all that is known of the files of photos in two folders."""
    rng = np.random.default_rng(1)
    roots = ["/photos", "/mnt/größe \udce9"]
    root_index = np.arange(rows, dtype=np.uint16) % 2
    names = [f"{roots[root]}/sub/{i}.jpg" for i, root in enumerate(root_index)]
    known = {
        "image_ids": names,
        "file_names": names,
        "roots": roots,
        "root_index": root_index,
        "size": rng.integers(0, 1 << 40, rows),
        "mtime_ns": rng.integers(-1, 1 << 62, rows),
        "content_sha256": rng.integers(0, 256, (rows, 32), dtype=np.uint8),
        "class_weights": rng.random((13, 3)).astype(np.float32),
        "thumbnails": rng.integers(0, 256, (rows, 144), dtype=np.uint8),
    }
    return make_code_set(rows, **known | changes)


def assert_same(a, b):
    for name, value in vars(a).items():
        other = getattr(b, name)
        if name == "instances" and value is not None:
            assert_same(value, other)
        elif isinstance(value, np.ndarray):
            np.testing.assert_array_equal(value, other)
            assert value.dtype == other.dtype, name
        else:
            assert value == other, name
