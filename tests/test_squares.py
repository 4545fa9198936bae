"""Photos squashed to squares."""

import numpy as np
import torch
from detectron2.utils.env import seed_all_rng

from regiondh_d2.data import StrictMapper
from regiondh_d2.data.squares import squashed
from regiondh_d2.retrieval.images import ImageLoader


def test_a_square_is_the_mean_of_the_pixels_that_it_stands_for():
    rng = np.random.default_rng(0)
    pixels = np.kron(rng.integers(0, 256, (4, 4, 3)), np.ones((3, 5, 1))).astype(np.uint8)
    assert pixels.shape == (12, 20, 3)
    squares = squashed(pixels, [1, 4, 1])
    assert list(squares) == [1, 4]
    assert squares[4].dtype == torch.uint8
    assert squares[4].shape == (3, 4, 4)
    # Pillow's triangle of twice the width: in the middle, 1/8 of the neighbors on each side.
    mean = squares[1].flatten().float().numpy()
    np.testing.assert_allclose(mean, _triangle(pixels).reshape(3), atol=1.0)


def _triangle(pixels):
    """The whole image weighted by a triangle over each axis, as one pixel."""
    for axis in (0, 1):
        count = pixels.shape[axis]
        weights = 1 - np.abs((np.arange(count) + 0.5) / count - 0.5)
        pixels = np.average(pixels, axis=axis, weights=weights)
        pixels = np.expand_dims(pixels, axis)
    return pixels


def test_a_mirrored_square_is_that_of_the_mirrored_photo():
    pixels = np.random.default_rng(1).integers(0, 256, (9, 14, 3), dtype=np.uint8)
    turned = squashed(np.ascontiguousarray(pixels[:, ::-1]), [6])[6]
    torch.testing.assert_close(squashed(pixels, [6], mirrored=True)[6], turned, rtol=0, atol=1)
    assert torch.equal(squashed(pixels, [6], mirrored=True)[6], squashed(pixels, [6])[6].flip(2))


def test_the_mapper_and_the_loader_read_the_whole_photo(tiny_cfg, shared_scenes):
    """Not the image that is scaled for the detector; mirrored where that is."""
    from PIL import Image

    path = str(next(iter(sorted(shared_scenes.rglob("*.jpg")))))
    with Image.open(path) as image:
        pixels = np.asarray(image.convert("RGB"))
    height, width = pixels.shape[:2]
    tiny_cfg.MODEL.REGION_DH.IMAGE_ENCODER_SIZES = [40]
    tiny_cfg.INPUT.MIN_SIZE_TEST = 32
    expected = squashed(pixels, [40])[40]
    assert torch.equal(ImageLoader(tiny_cfg)(path)["squares"][40], expected)
    record = {"file_name": path, "height": height, "width": width}
    assert torch.equal(StrictMapper(tiny_cfg, is_train=False)(record)["squares"][40], expected)
    tiny_cfg.INPUT.MIN_SIZE_TRAIN = (32,)
    seen = set()
    for seed in range(8):
        seed_all_rng(seed)
        mapped = StrictMapper(tiny_cfg, is_train=True)(record)
        plain = StrictMapper(tiny_cfg, is_train=False)(record)["image"]
        mirrored = torch.equal(mapped["image"], plain.flip(2))
        assert mirrored != torch.equal(mapped["image"], plain)
        seen.add(mirrored)
        assert torch.equal(mapped["squares"][40], expected.flip(2) if mirrored else expected)
    assert seen == {True, False}
    tiny_cfg.MODEL.REGION_DH.IMAGE_ENCODER_SIZES = []
    assert "squares" not in ImageLoader(tiny_cfg)(path)
