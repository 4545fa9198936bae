"""How long the page's answers take, and how much it loads, on an index of random codes."""

from __future__ import annotations

import gc
import http.client
import importlib.util
import os
import re
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import uvicorn
from PIL import Image

from ..retrieval.images import ImageLoader
from ..retrieval.index_folder import write_index_folder
from ..retrieval.service import SnapshotHolder
from ..structures.codes import CodeSet, InstanceCodes
from .app import create_app
from .collection import photo_id
from .decoder import Decoder
from .limits import Limits
from .page_search import PageSearch
from .server import listen

__all__ = ["time_page"]

_OBJECTS = 3  # of a photo
_CLASSES = 20
_SIZE = (500, 375)
_LINKS = 1000  # names of one file, of which a file system allows a limited number
_ANSWERS = 48


def time_page(photos: int, queries: int, bits: int) -> dict[str, Any]:
    """Serve random codes of generated photos, and click on objects.

    Args:
        photos: of the index; each has three objects of 20 classes, and a file.
        queries: how many clicks, each on the first object of another photo.
        bits: length of the codes.

    Returns:
        Milliseconds from a request to its answers over HTTP, ``median_ms`` and ``p95_ms``; bytes of
        the page's own files, ``page_bytes``, and with the first list of photos, ``first_bytes``;
        bytes in memory of the server, ``memory_bytes``, and of the processes that read files,
        ``reader_bytes``, where the system tells them.
    """
    with tempfile.TemporaryDirectory(prefix="regiondh-page-") as temporary:
        folder = Path(temporary)
        names = _write_photos(folder / "photos", photos)
        engine = "faiss" if importlib.util.find_spec("faiss") else "numpy"
        write_index_folder(folder / "index", _make_items(names, folder, bits), engine=engine)
        gc.collect()
        load = ImageLoader(min_size=300, max_size=500, image_format="BGR")
        decoder = Decoder(load, Limits())
        decoder.start()
        search = PageSearch(SnapshotHolder(folder / "index"), decoder, None, Limits())
        search.warm_up()
        listening = listen("127.0.0.1", 0)
        config = uvicorn.Config(create_app(search), log_level="critical", ws="none")
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        try:
            port = listening.getsockname()[1]
            client = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
            numbers: dict[str, float] = dict(_first_load(client))
            rows = np.random.default_rng(1).choice(photos, queries + 1, replace=False)
            times = [_click(client, photo_id(names[row])) for row in rows][1:]  # without warming up
            numbers["median_ms"] = float(np.median(times))
            numbers["p95_ms"] = float(np.percentile(times, 95))
            numbers["memory_bytes"] = _memory("self")
            numbers["reader_bytes"] = sum(map(_memory, map(str, decoder.process_ids())))
        finally:
            server.should_exit = True
            thread.join()
            listening.close()
    return {"photos": photos, "objects": _OBJECTS * photos, "engine": engine, **numbers}


def _write_photos(folder: Path, count: int) -> list[str]:
    """Files of photos: few different ones, each under many names."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    names: list[str] = []
    for start in range(0, count, _LINKS):
        small = rng.integers(0, 256, (15, 20, 3), dtype=np.uint8)
        first = folder / f"{start:07}.jpg"
        Image.fromarray(small).resize(_SIZE).save(first)
        names.append(str(first))
        for number in range(start + 1, min(start + _LINKS, count)):
            names.append(str(folder / f"{number:07}.jpg"))
            os.link(first, names[-1])
    return names


def _make_items(names: list[str], folder: Path, bits: int) -> CodeSet:
    """Codes of photos whose objects are near to others of their class."""
    rng = np.random.default_rng(0)
    count, width = len(names), -(-bits // 8)
    of_class = rng.integers(0, 256, (_CLASSES, width), dtype=np.uint8)

    def codes(classes: np.ndarray) -> np.ndarray:
        noise = np.full((len(classes), width), 255, np.uint8)
        for _ in range(3):  # each bit is flipped with probability 1/8
            noise &= rng.integers(0, 256, noise.shape, dtype=np.uint8)
        return of_class[classes] ^ noise

    classes = rng.integers(0, _CLASSES, (count, _OBJECTS))
    corner = rng.random((count * _OBJECTS, 2)) * [300, 200]
    states = [os.stat(name) for name in names]
    return CodeSet(
        codes=codes(classes[:, 0]),
        bits=8 * width,
        image_ids=names,
        file_names=names,
        class_names=[f"class {i}" for i in range(_CLASSES)],
        roots=[str(folder / "photos")],
        size=np.array([state.st_size for state in states], np.int64),
        mtime_ns=np.array([state.st_mtime_ns for state in states], np.int64),
        content_sha256=rng.integers(0, 256, (count, 32), dtype=np.uint8),
        instances=InstanceCodes(
            codes=codes(classes.ravel()),
            bits=8 * width,
            image_index=np.repeat(np.arange(count), _OBJECTS),
            boxes=np.hstack([corner, corner + 150]).astype(np.float32),
            scores=rng.random(count * _OBJECTS).astype(np.float32),
            classes=classes.ravel(),
        ),
    )


def _get(client: http.client.HTTPConnection, path: str) -> bytes:
    client.request("GET", path)
    answer = client.getresponse()
    content = answer.read()
    if answer.status != 200:
        raise RuntimeError(f"{path}: status {answer.status}: {content[:200]!r}")
    return content


def _click(client: http.client.HTTPConnection, one: str) -> float:
    start = time.perf_counter()
    _get(client, f"/api/search?photo={one}&object=1&limit={_ANSWERS}")
    return 1000 * (time.perf_counter() - start)


def _first_load(client: http.client.HTTPConnection) -> dict[str, int]:
    """Bytes of the page, of its scripts and styles; and of its first list, without pictures."""
    page = _get(client, "/").decode()
    waiting, known, total = ["index.html"], {"index.html"}, 0
    while waiting:
        name = waiting.pop()
        text = page if name == "index.html" else _get(client, f"/static/{name}").decode()
        total += len(text.encode())
        for found in re.findall(r'"(?:/static|\.)/([\w.]+\.\w+)"', text):
            if found not in known:
                known.add(found)
                waiting.append(found)
    lists = len(_get(client, "/api/health")) + len(_get(client, "/api/photos?limit=60"))
    return {"page_bytes": total, "first_bytes": total + lists}


def _memory(process: str) -> int:
    """The resident bytes of a process; 0 where the system doesn't tell."""
    try:
        text = Path(f"/proc/{process}/status").read_text(encoding="utf-8")
    except OSError:
        return 0
    found = re.search(r"^VmRSS:\s*(\d+) kB", text, re.MULTILINE)
    return 1024 * int(found[1]) if found else 0
