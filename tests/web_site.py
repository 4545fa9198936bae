"""A collection of photos, and the application that serves it, for the tests of the page."""

import io
import multiprocessing
import socket
import threading
from contextlib import contextmanager
from types import SimpleNamespace

import numpy as np
import uvicorn
from PIL import Image

from builders import object_codes, photo_code_set
from regiondh_d2.retrieval.images import ImageLoader
from regiondh_d2.retrieval.index_folder import write_index_folder
from regiondh_d2.retrieval.queries import Query, QueryObject
from regiondh_d2.retrieval.service import SnapshotHolder
from regiondh_d2.structures.packed import pack_codes
from regiondh_d2.web import decoder as decoder_module
from regiondh_d2.web.app import create_app
from regiondh_d2.web.collection import photo_id
from regiondh_d2.web.decoder import Decoder
from regiondh_d2.web.limits import Limits
from regiondh_d2.web.page_search import PageSearch

MODEL = "ab" * 32
WIDTH, HEIGHT, BITS, PHOTOS = 80, 60, 16, 24
EVIL = '<img src=x onerror="alert(1)">.jpg'  # the name of photo 5
GPS = b"Exif"  # what a picture with metadata holds


def photo_bytes(number=0, size=(WIDTH, HEIGHT), kind="JPEG"):
    """The file of a photo with a position in its EXIF data."""
    image = Image.new("RGB", size, (10 * number % 256, 90, 160))
    exif = Image.Exif()
    exif[0x8825] = {1: "N", 2: (52.0, 30.0, 0.0)}
    file = io.BytesIO()
    image.save(file, kind, exif=exif)
    return file.getvalue()


def code(ones, bits=BITS):
    """The code whose first bits are 1."""
    return np.arange(bits) < ones


def make_items(folder, count=PHOTOS):
    """Photo i has the code of i // 2 ones, a cat whose code is the same, and a dog, 2 further."""
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for i in range(count):
        files.append(folder / (EVIL if i == 5 else f"{i:02}.jpg"))
        if not files[-1].exists():
            files[-1].write_bytes(photo_bytes(i))
    ones = np.arange(count) // 2
    objects = object_codes(
        np.concatenate([[code(n), code(n + 2)] for n in ones]),
        np.repeat(np.arange(count), 2),
        classes=np.tile([0, 1], count),
        scores=np.tile([0.9, 0.5], count).astype(np.float32),
        boxes=np.tile(np.array([[2, 3, 40, 50], [30, 20, 78, 58]], np.float32), (count, 1)),
    )
    return photo_code_set(
        files,
        np.array([code(n) for n in ones]),
        roots=[folder],
        class_names=["cat", "dog"],
        model_fingerprint=MODEL,
        instances=objects,
    )


class FakeEncoder:
    """Sees a cat in each photo; a drawn box is as far as its left edge says."""

    fingerprint = MODEL

    def encode_inputs(self, inputs, file_name, content_sha256=None):
        packed = pack_codes(code(0)[None])
        cat = QueryObject((1.0, 2.0, 30.0, 40.0), "cat", 0.8)
        whole = Query(file_name, packed, content_sha256=content_sha256, classes=("cat",))
        return whole, Query(file_name, packed, (cat,), content_sha256=content_sha256)

    def encode_boxes(self, inputs, box, file_name, content_sha256=None):
        assert inputs["image"].shape[0] == 3
        codes = pack_codes(np.array([code(int(x1)) for x1, *_ in box]))
        return Query(file_name, codes, tuple(map(QueryObject, map(tuple, box))))


@contextmanager
def forked_decoder(patch, limits=None, processes=1):
    """A decoder whose processes are forks of this one, which import nothing anew."""
    patch.setattr(decoder_module, "_context", lambda: multiprocessing.get_context("fork"))
    load = ImageLoader(min_size=40, max_size=100, image_format="BGR")
    decoder = Decoder(load, limits or Limits(), processes)
    decoder.start()
    yield decoder
    decoder.close()


@contextmanager
def site(folder, patch, *, encoder=None, limits=None, **options):
    """A site on photos of a folder, which it makes.

    Yields:
        ``app``; ``search``, the :class:`PageSearch`; ``items``; ``ids`` of the photos; ``index``.
    """
    limits = limits or Limits()
    items = make_items(folder / "photos")
    write_index_folder(folder / "index", items, engine="numpy")
    with forked_decoder(patch, limits) as decoder:
        search = PageSearch(SnapshotHolder(folder / "index"), decoder, encoder, limits)
        yield SimpleNamespace(
            app=create_app(search, **options),
            search=search,
            items=items,
            ids=[photo_id(name) for name in items.file_names],
            index=folder / "index",
        )


@contextmanager
def running(app):
    """The port of a server of the application, in a thread."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen(300)
        config = uvicorn.Config(app, log_level="critical", ws="none", limit_concurrency=512)
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        try:
            yield listening.getsockname()[1]
        finally:
            server.should_exit = True
            thread.join()
