"""Pictures are decoded in processes of their own, with limits of time and memory.

A file that makes a library crash, hang, or take all memory ends such a process and nothing else.
What a process gives back is read as JSON and bytes, never unpickled. Pictures are encoded anew, so
nothing of the file but its pixels gets out: no EXIF data, no position.
"""

from __future__ import annotations

import hashlib
import io
import json
import multiprocessing
import queue
import signal
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

from ..data.image_reader import UnreadableImage, read_image_size, read_rgb
from ..retrieval.images import ImageLoader
from .limits import Limits

__all__ = ["PICTURE_SIDE", "THUMBNAIL_SIDE", "DecodedImage", "Decoder", "Picture"]

THUMBNAIL_SIDE, PICTURE_SIDE = 400, 1280  # pixels of the longer side

_QUALITY = 85
_JOBS_A_PROCESS = 500  # then a new one takes its place, so that no memory leaks for long
_START_SECONDS = 120.0  # a process imports PyTorch first

# What a process gives back: values for JSON, and arrays or bytes.
_Result = tuple[Any, Sequence[bytes]]


@dataclass(frozen=True)
class Picture:
    """A picture to show.

    Attributes:
        jpeg: without metadata.
        width, height: of the upright image in the file, in pixels.
    """

    jpeg: bytes
    width: int
    height: int


@dataclass(frozen=True)
class DecodedImage:
    """An image that is ready for the network.

    Attributes:
        inputs: uint8 (3, H, W), as the network takes it.
        content_sha256: of the file.
        picture: to show.
    """

    inputs: np.ndarray
    content_sha256: bytes
    picture: Picture


class Decoder:
    """Reads image files in other processes, which start when they are needed.

    Any number of threads may ask.
    """

    def __init__(self, load: ImageLoader, limits: Limits, processes: int = 2):
        """
        Args:
            load: reads images as those of the index were read; its pixel limit is lowered to that
                of ``limits``.
            limits: of pixels, time and memory.
            processes: how many read pictures and sizes; one more reads images for the network.
        """
        small = ImageLoader(
            min_size=load.min_size,
            max_size=load.max_size,
            image_format=load.image_format,
            max_pixels=min(load.max_pixels, limits.pixels),
        )
        self._all = [_Worker(small, limits) for _ in range(processes + 1)]
        # An upload that takes long to read keeps no picture of the collection waiting.
        self._for_images: queue.LifoQueue[_Worker] = queue.LifoQueue()
        self._for_pictures: queue.LifoQueue[_Worker] = queue.LifoQueue()
        for worker in self._all[1:]:
            self._for_pictures.put(worker)
        self._for_images.put(self._all[0])

    def image(self, source: str | bytes) -> DecodedImage:
        """An image for the network and the page.

        Args:
            source: a path, or the content of a file.

        Raises:
            UnreadableImage: it can't be read within the limits.
        """
        values, (inputs, jpeg) = self._ask("image", source)
        picture = Picture(jpeg, int(values["width"]), int(values["height"]))
        shape = tuple(map(int, values["shape"]))
        pixels = np.frombuffer(inputs, np.uint8).reshape(shape).copy()
        return DecodedImage(pixels, bytes.fromhex(values["sha256"]), picture)

    def picture(self, path: str, side: int) -> Picture:
        """A file's picture, its longer side at most ``side`` pixels; raises as :meth:`image`."""
        values, (jpeg,) = self._ask("picture", path, side)
        return Picture(jpeg, int(values["width"]), int(values["height"]))

    def sizes(self, paths: Sequence[str]) -> list[tuple[int, int] | None]:
        """Width and height of files' upright images, from their headers; None if unreadable."""
        values, _ = self._ask("sizes", list(paths))
        return [None if size is None else (int(size[0]), int(size[1])) for size in values]

    def start(self) -> None:
        """Start the processes now, so that the first picture needn't wait."""
        for worker in self._all:
            worker.start()

    def process_ids(self) -> list[int]:
        """Of the processes that run."""
        return [worker.process.pid for worker in self._all if worker.process is not None]

    def close(self) -> None:
        """End the processes."""
        for worker in self._all:
            worker.stop()

    def _ask(self, kind: str, source: Any, *arguments: Any) -> _Result:
        workers = self._for_images if kind == "image" else self._for_pictures
        worker = workers.get()
        try:
            return worker.ask(kind, source, *arguments)
        finally:
            workers.put(worker)


class _Worker:
    """A process, started again after it was ended."""

    def __init__(self, load: ImageLoader, limits: Limits):
        self._load, self._limits = load, limits
        self.process: Any = None
        self._connection: Connection | None = None
        self._done = 0

    def ask(self, kind: str, source: Any, *arguments: Any) -> _Result:
        name = source if isinstance(source, str) else "the image"
        if self._connection is None or self._done >= _JOBS_A_PROCESS:
            self.start()
        connection = self._connection
        assert connection is not None
        self._done += 1
        try:
            connection.send((kind, source, *arguments))
            if not connection.poll(self._limits.decode_seconds):
                self.stop()
                raise UnreadableImage(
                    name, f"reading it takes more than {self._limits.decode_seconds:g} s"
                )
            answer = json.loads(connection.recv_bytes())
            parts = [connection.recv_bytes() for _ in range(answer["parts"])]
        except (EOFError, OSError) as error:
            self.stop()
            raise UnreadableImage(name, "the library that reads it failed") from error
        if "unreadable" in answer:
            raise UnreadableImage(name, str(answer["unreadable"]))
        return answer["values"], parts

    def stop(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None
        if self.process is not None:
            self.process.kill()
            self.process.join()
            self.process = None

    def start(self) -> None:
        self.stop()
        context: Any = _context()
        ours, theirs = context.Pipe()
        self.process = context.Process(
            target=_serve, args=(theirs, self._load, self._limits.decode_memory), daemon=True
        )
        self.process.start()
        theirs.close()
        self._connection, self._done = ours, 0
        if not ours.poll(_START_SECONDS) or ours.recv_bytes() != b"ready":
            self.stop()
            raise RuntimeError("the process that reads pictures doesn't start")


def _context() -> Any:
    """How processes start: as copies of one that has imported all, and that no thread runs in."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    return context


# In the process


def _serve(connection: Connection, load: ImageLoader, memory: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the server ends it
    _limit_process(memory)
    connection.send_bytes(b"ready")
    with suppress(EOFError, OSError):  # the server has gone
        while True:
            kind, *arguments = connection.recv()
            answer: dict[str, Any]
            try:
                values, parts = _JOBS[kind](load, *arguments)
                answer = {"values": values, "parts": len(parts)}
            except UnreadableImage as error:
                answer, parts = {"unreadable": error.reason, "parts": 0}, ()
            except MemoryError:
                answer, parts = {"unreadable": "reading it takes too much memory", "parts": 0}, ()
            connection.send_bytes(json.dumps(answer).encode())
            for part in parts:
                connection.send_bytes(part)


def _limit_process(memory: int) -> None:
    """Limits memory to some bytes more than now, and forbids writing files."""
    if sys.platform != "linux":
        return
    import resource

    with open("/proc/self/statm") as file:
        now = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (now + memory, now + memory))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _read_image(load: ImageLoader, source: str | bytes) -> _Result:
    if isinstance(source, str):
        try:
            with open(source, "rb") as file:
                content = file.read()
        except OSError as error:
            raise UnreadableImage(source, error.strerror or "can't be read") from error
    else:
        content = source
    rgb, size = read_rgb(content, load.max_pixels)
    # As an array, which nothing is done to: it is upright already.
    inputs = load.load_picture(np.asarray(rgb))["image"].numpy()
    rgb.thumbnail((PICTURE_SIDE, PICTURE_SIDE))
    sha256 = hashlib.sha256(content).hexdigest()
    values = {"width": size.width, "height": size.height, "shape": inputs.shape, "sha256": sha256}
    return values, (inputs.tobytes(), _jpeg(rgb))


def _read_picture(load: ImageLoader, path: str, side: int) -> _Result:
    try:
        # A JPEG is decoded at a smaller size then, which is much faster.
        rgb, size = read_rgb(path, min(load.max_pixels, 4 * side * side))
    except UnreadableImage:
        rgb, size = read_rgb(path, load.max_pixels)
    rgb.thumbnail((side, side))
    return {"width": size.width, "height": size.height}, (_jpeg(rgb),)


def _read_sizes(load: ImageLoader, paths: list[str]) -> _Result:
    sizes: list[tuple[int, int] | None] = []
    for path in paths:
        try:
            size = read_image_size(path, load.max_pixels)
        except UnreadableImage:
            sizes.append(None)
        else:
            sizes.append((size.width, size.height))
    return sizes, ()


def _jpeg(rgb: Any) -> bytes:
    file = io.BytesIO()
    rgb.save(file, "JPEG", quality=_QUALITY, exif=b"", icc_profile=None, comment=b"")
    return file.getvalue()


_JOBS: dict[str, Callable[..., _Result]] = {
    "image": _read_image,
    "picture": _read_picture,
    "sizes": _read_sizes,
}
