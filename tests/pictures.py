"""Random pictures, as arrays and as files."""

import numpy as np
from PIL import Image


def pixels_of(name, height=20, width=30):
    """A random picture that is always the same for a name."""
    rng = np.random.default_rng(list(name.encode()))
    return rng.integers(0, 256, (height, width, 3), dtype=np.uint8)


def plain(color, width=60, height=40):
    """A picture of one color."""
    return Image.new("RGB", (width, height), color)


def save(path, height=20, width=30, **options):
    """The picture of a file's name as that file, in folders made where needed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels_of(path.name, height, width)).save(path, **options)
    return path
