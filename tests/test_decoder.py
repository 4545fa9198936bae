"""Files are decoded in other processes, within limits."""

import contextlib
import hashlib
import io
import os
import signal
import struct
import threading
import time
import zlib

import numpy as np
import pytest
from PIL import Image

from regiondh_d2.data.image_reader import UnreadableImage
from regiondh_d2.retrieval.images import ImageLoader
from regiondh_d2.web import decoder as decoder_module
from regiondh_d2.web.limits import Limits
from web_site import GPS, forked_decoder, photo_bytes

OWN_CONTEXT = decoder_module._context  # before a fixture replaces it


@pytest.fixture(scope="module")
def decoder():
    with pytest.MonkeyPatch.context() as patch, forked_decoder(patch) as decoder:
        yield decoder


def png(width, height, data):
    """A PNG of gray pixels whose compressed data are given."""

    def chunk(kind, content):
        check = struct.pack(">I", zlib.crc32(kind + content))
        return struct.pack(">I", len(content)) + kind + content + check

    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    parts = [chunk(b"IHDR", head), chunk(b"IDAT", data), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def test_an_image_is_read_as_the_network_reads_it(decoder, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (60, 80, 3), np.uint8)
    path = tmp_path / "a.png"
    Image.fromarray(pixels).save(path)
    inputs = ImageLoader(min_size=40, max_size=100, image_format="BGR")(str(path))
    for source in (str(path), path.read_bytes()):
        found = decoder.image(source)
        assert np.array_equal(found.inputs, inputs["image"].numpy())
        assert (found.picture.height, found.picture.width) == (60, 80)
        assert found.content_sha256 == hashlib.sha256(path.read_bytes()).digest()


def test_an_image_on_its_side_is_turned_once(decoder):
    exif = Image.Exif()
    exif[274] = 6
    file = io.BytesIO()
    Image.new("RGB", (80, 60), "red").save(file, "JPEG", exif=exif)
    found = decoder.image(file.getvalue())
    assert (found.picture.width, found.picture.height) == (60, 80)
    assert found.inputs.shape == (3, 53, 40)
    with Image.open(io.BytesIO(found.picture.jpeg)) as shown:
        assert shown.size == (60, 80)


def test_pictures_are_small_and_without_metadata(decoder, tmp_path):
    path = tmp_path / "a.jpg"
    path.write_bytes(photo_bytes(size=(2000, 1000)))
    assert GPS in path.read_bytes()
    picture = decoder.picture(str(path), 400)
    assert GPS not in picture.jpeg
    with Image.open(io.BytesIO(picture.jpeg)) as shown:
        assert shown.size == (400, 200)
        assert not shown.getexif()
    assert (picture.width, picture.height) == (2000, 1000)
    assert GPS not in decoder.image(path.read_bytes()).picture.jpeg


def test_sizes_come_from_headers(decoder, tmp_path):
    good, bad = tmp_path / "a.jpg", tmp_path / "b.jpg"
    good.write_bytes(photo_bytes())
    bad.write_bytes(b"nothing")
    paths = [str(good), str(bad), str(tmp_path / "c.jpg")]
    assert decoder.sizes(paths) == [(80, 60), None, None]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "empty"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'><script>1</script></svg>", ""),
        (b"<!doctype html><script>alert(1)</script>", ""),
        (b"\xff\xd8\xff\xe0" + b"\0" * 100, ""),
        (photo_bytes()[:300], ""),
        (png(10_000, 10_000, b""), "too many pixels"),  # 100 megapixels
        (png(2**31 - 1, 2**31 - 1, b""), "too many pixels"),
        (png(100, 100, zlib.compress(bytes(2000))), ""),  # fewer than announced
    ],
)
def test_what_is_no_image_within_limits_is_refused(decoder, content, reason):
    with pytest.raises(UnreadableImage, match=reason or None):
        decoder.image(content)
    assert decoder.image(photo_bytes()).picture.width == 80  # and it goes on


def test_a_bomb_expands_no_further_than_its_header_says(decoder):
    """50 MB of zeros for an image of 100 x 100 pixels."""
    bomb = png(100, 100, zlib.compress(bytes(50_000_000), 1))
    assert len(bomb) < 300_000
    assert decoder.image(bomb).picture.width == 100


def test_memory_is_limited(monkeypatch):
    """In a process as the server's: a fork of this one may have more free memory than the limit."""
    limits = Limits(decode_memory=60_000_000)
    load = ImageLoader(min_size=40, max_size=100, image_format="BGR")
    monkeypatch.setattr(decoder_module, "_context", OWN_CONTEXT)
    decoder = decoder_module.Decoder(load, limits, 1)
    decoder.start()
    with contextlib.closing(decoder):
        big = png(7000, 7000, zlib.compress(bytes(7001 * 7000), 1))  # 147 MB as RGB
        with pytest.raises(UnreadableImage, match="memory|failed"):
            decoder.image(big)
        assert decoder.image(photo_bytes()).picture.width == 80


def test_time_is_limited(monkeypatch):
    monkeypatch.setitem(decoder_module._JOBS, "picture", lambda *_: time.sleep(60))
    limits = Limits(decode_seconds=0.2)
    with forked_decoder(monkeypatch, limits) as decoder:
        with pytest.raises(UnreadableImage, match="more than 0.2 s"):
            decoder.picture("a.jpg", 10)
        assert decoder.image(photo_bytes()).picture.width == 80  # by another process


def test_a_crash_ends_the_process_alone(monkeypatch):
    def crash(*_):
        os.kill(os.getpid(), signal.SIGKILL)

    monkeypatch.setitem(decoder_module._JOBS, "picture", crash)
    with forked_decoder(monkeypatch) as decoder:
        with pytest.raises(UnreadableImage, match="failed"):
            decoder.picture("a.jpg", 10)
        assert decoder.image(photo_bytes()).picture.width == 80


def test_the_process_writes_no_file(monkeypatch, tmp_path):
    def write(*_):
        try:
            (tmp_path / "x").write_bytes(b"y")
        except OSError:
            return {"refused": True, "width": 0, "height": 0}, (b"",)
        return {"width": 1, "height": 1}, (b"",)

    monkeypatch.setitem(decoder_module._JOBS, "picture", write)
    with forked_decoder(monkeypatch) as decoder:
        assert decoder.picture("a.jpg", 10).width == 0


def test_a_slow_image_keeps_no_picture_waiting(monkeypatch, tmp_path):
    monkeypatch.setitem(decoder_module._JOBS, "image", lambda *_: time.sleep(60))
    path = tmp_path / "a.jpg"
    path.write_bytes(photo_bytes())
    with forked_decoder(monkeypatch, Limits(decode_seconds=1.0)) as decoder:

        def read():
            with pytest.raises(UnreadableImage):
                decoder.image(b"")

        thread = threading.Thread(target=read)
        thread.start()
        time.sleep(0.1)
        start = time.monotonic()
        assert decoder.picture(str(path), 10).width == 80
        assert time.monotonic() - start < 0.8
        thread.join()
