"""The web application: paths, what each answers, and the statuses of errors."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import logging
import os
from collections.abc import Awaitable, Callable, Collection, Coroutine
from contextlib import asynccontextmanager
from functools import partial
from importlib import resources
from typing import Any, TypeVar

from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from regiondh_cli import __version__

from ..utils.errors import RegionDHError
from .collection import UnknownItemError
from .decoder import PICTURE_SIDE
from .growth import FolderAdder
from .guard import COOKIE, Guard
from .lanes import BusyError, Lane
from .limits import Limits
from .openapi import openapi
from .page_search import ExpiredError, PageSearch
from .photo_groups import GroupViews
from .requests import SearchRequest, page_of

__all__ = ["create_app"]

_LOG = logging.getLogger(__name__)

T = TypeVar("T")

_UPLOADS_AT_ONCE = 8
_LOOK_SECONDS = 0.25  # how often a waiting request looks whether its client is still there
_JSON_BYTES = 100_000
_CLIENT_LEFT = 499
_TYPES = {"html": "text/html", "css": "text/css", "js": "text/javascript", "svg": "image/svg+xml"}
_CACHED = {"Cache-Control": "private, max-age=3600"}


class _HTTPError(Exception):
    """An answer other than 200.

    Attributes:
        status, reason: of it.
    """

    def __init__(self, status: int, reason: str):
        super().__init__(reason)
        self.status, self.reason = status, reason


class _JSON(JSONResponse):
    """JSON in ASCII, as :func:`.file_io.write_json` writes it: the name of a file may be any bytes,
    and then it is no UTF-8."""

    def render(self, content: Any) -> bytes:
        return json.dumps(content, allow_nan=False, separators=(",", ":")).encode("ascii")


def create_app(
    search: PageSearch,
    *,
    hosts: Collection[str] = (),
    any_address: bool = False,
    token: str | None = None,
    adder: FolderAdder | None = None,
) -> ASGIApp:
    """The application, guarded.

    Args:
        search: answers.
        hosts, any_address, token: as of :class:`.guard.Guard`.
        adder: adds folders, or None where that isn't allowed.
    """
    return Guard(_Pages(search, token, adder).app, hosts, any_address, token)


class _Pages:
    """The endpoints."""

    def __init__(self, search: PageSearch, token: str | None, adder: FolderAdder | None = None):
        self._search, self._token, self._adder = search, token, adder
        waiting = search.limits.waiting
        # Thumbnails of a whole page are asked for at once.
        self._pictures = Lane("pictures", 2, 8 * waiting)
        self._decoding = Lane("decoding", 1, waiting)
        self._network = Lane("network", 1, waiting)
        self._searches = Lane("searches", 2, waiting)
        self._slow = Lane("groups", 1, 4)
        self._groups = GroupViews(search)
        self._receiving = 0
        self._static = _static_files()
        get, post = ["GET"], ["POST"]
        routes = [
            Route("/", partial(self._file, "index.html"), methods=get),
            Route("/static/{name}", self._static_file, methods=get),
            Route("/openapi.json", self._openapi, methods=get),
            Route("/api/health", self._health, methods=get),
            Route("/api/login", self._login, methods=post),
            Route("/api/photos", self._photos, methods=get),
            Route("/api/photos/{photo}", self._photo, methods=get),
            Route("/api/photos/{photo}/thumbnail", self._thumbnail, methods=get),
            Route("/api/photos/{photo}/picture", self._picture, methods=get),
            Route("/api/uploads", self._add_upload, methods=post),
            Route("/api/uploads/{upload}", self._upload, methods=["GET", "DELETE"]),
            Route("/api/uploads/{upload}/picture", self._upload_picture, methods=get),
            Route("/api/search", self._get_search, methods=get),
            Route("/api/query", self._query, methods=post),
            Route("/api/groups", self._show_groups, methods=get),
            Route("/api/copies", self._show_copies, methods=get),
            Route("/api/folders", self._folders, methods=["GET", "POST"]),
        ]
        handlers: dict[Any, Callable[[Request, Any], Awaitable[Response]]] = {
            _HTTPError: _refuse,
            BusyError: _busy,
            RegionDHError: _wrong,
            ClientDisconnect: _left,
            404: _not_found,
            405: _not_found,
            Exception: _defect,
        }

        @asynccontextmanager
        async def lifespan(app: Starlette):
            yield
            for lane in self._lanes():
                lane.close()
            if adder is not None:
                adder.close()
            search.decoder.close()

        self.app = Starlette(routes=routes, exception_handlers=handlers, lifespan=lifespan)

    def _lanes(self) -> list[Lane]:
        return [self._pictures, self._decoding, self._network, self._searches, self._slow]

    # The page's own files

    async def _file(self, name: str, request: Request) -> Response:
        content, media_type, tag = self._static[name]
        headers = {"ETag": tag, "Cache-Control": "no-cache"}
        if request.headers.get("if-none-match") == tag:
            return Response(status_code=304, headers=headers)
        return Response(content, media_type=media_type, headers=headers)

    async def _static_file(self, request: Request) -> Response:
        name = request.path_params["name"]
        if name not in self._static:
            raise _HTTPError(404, "there is no such file")
        return await self._file(name, request)

    async def _openapi(self, request: Request) -> Response:
        return _JSON(openapi())

    # The state of the server, and who may ask

    async def _health(self, request: Request) -> Response:
        def describe() -> dict[str, Any]:
            collection, limits = self._search.collection(), self._search.limits
            items = collection.items
            return {
                "status": "ok",
                "version": __version__,
                "photos": len(collection),
                "objects": 0 if items.instances is None else len(items.instances.codes),
                "bits": items.bits,
                "object_bits": None if items.instances is None else items.instances.bits,
                "classes": collection.class_counts(),
                "network": self._search.encoder is not None,
                "adds_folders": bool(self._adder and self._adder.roots),
                "upload_bytes": limits.upload_bytes,
                "upload_hours": limits.upload_hours,
                "waiting": {lane.name: lane.pending for lane in self._lanes()},
            }

        return _JSON(await self._run(request, self._searches, describe))

    async def _login(self, request: Request) -> Response:
        values = await _read_json(request)
        given = values.get("token")
        if self._token is None:
            return Response(status_code=204)
        if not isinstance(given, str) or not hmac.compare_digest(
            os.fsencode(given), os.fsencode(self._token)
        ):
            raise _HTTPError(401, "the token is wrong")
        response = Response(status_code=204)
        response.set_cookie(COOKIE, self._token, httponly=True, samesite="strict", path="/")
        return response

    # Photos

    async def _photos(self, request: Request) -> Response:
        limit, offset = page_of(request.query_params)
        class_name = request.query_params.get("class", "")

        def describe() -> dict[str, Any]:
            collection = self._search.collection()
            rows = range(len(collection))
            chosen = collection.rows_with(class_name).tolist() if class_name else rows
            shown = list(chosen[offset : offset + limit])
            return {
                "total": len(chosen),
                "photos": self._search.describe_photos(shown),
                "more": offset + limit < len(chosen),
            }

        return _JSON(await self._run(request, self._searches, describe))

    async def _photo(self, request: Request) -> Response:
        one = request.path_params["photo"]
        describe = self._search.describe_photo
        return _JSON(await self._run(request, self._searches, describe, one))

    async def _thumbnail(self, request: Request) -> Response:
        one = request.path_params["photo"]
        picture = await self._run(request, self._pictures, self._search.thumbnail, one)
        return Response(picture.jpeg, media_type="image/jpeg", headers=_CACHED)

    async def _picture(self, request: Request) -> Response:
        one, show = request.path_params["photo"], self._search.picture
        picture = await self._run(request, self._pictures, show, one, PICTURE_SIDE)
        return Response(picture.jpeg, media_type="image/jpeg", headers=_CACHED)

    # Uploads

    async def _add_upload(self, request: Request) -> Response:
        upload = await self._receive(request)
        return _JSON(self._search.describe_upload(upload), 201)

    async def _upload(self, request: Request) -> Response:
        one = request.path_params["upload"]
        if request.method == "DELETE":
            self._search.uploads.remove(one)
            return Response(status_code=204)
        return _JSON(self._search.describe_upload(one))

    async def _upload_picture(self, request: Request) -> Response:
        upload = self._search.upload(request.path_params["upload"])
        return Response(upload.image.picture.jpeg, media_type="image/jpeg", headers=_CACHED)

    async def _receive(self, request: Request) -> str:
        """The id of the photo that a request carries."""
        if self._search.encoder is None:
            raise _HTTPError(422, "uploads need the network, which wasn't named at start")
        if self._receiving >= _UPLOADS_AT_ONCE:
            raise BusyError
        self._receiving += 1
        try:
            limits = self._search.limits
            content = await _read_body(request, limits.upload_bytes, limits)
            if not content:
                raise _HTTPError(422, "the request has no photo in its body")
            decode, encode = self._search.decode_upload, self._search.encode_upload
            image = await self._run(request, self._decoding, decode, content)
            upload = await self._run(request, self._network, encode, image)
        finally:
            self._receiving -= 1
        return upload.id

    # Searches

    async def _get_search(self, request: Request) -> Response:
        wanted = SearchRequest.from_query(request.query_params)
        return _JSON(await self._answer(request, wanted))

    async def _query(self, request: Request) -> Response:
        if not request.headers.get("content-type", "").startswith("application/json"):
            wanted = SearchRequest.from_query(request.query_params)
            wanted = wanted.of_upload(await self._receive(request))
        else:
            values = await _read_json(request)
            wanted = SearchRequest.from_values(values)
        values = await self._answer(request, wanted)
        if wanted.upload:
            values["upload"] = self._search.describe_upload(wanted.upload)
        return _JSON(values)

    async def _answer(self, request: Request, wanted: SearchRequest) -> dict[str, Any]:
        boxes = None
        if wanted.boxes:
            decode, encode = self._search.decode_boxed, self._search.encode_boxes
            image = await self._run(request, self._decoding, decode, wanted)
            boxes = await self._run(request, self._network, encode, wanted, image)
        return await self._run(request, self._searches, self._search.search, wanted, boxes)

    # Groups

    async def _show_groups(self, request: Request) -> Response:
        return await self._show(request, self._groups.groups)

    async def _show_copies(self, request: Request) -> Response:
        return await self._show(request, self._groups.copies)

    # Folders

    async def _folders(self, request: Request) -> Response:
        if self._adder is None or not self._adder.roots:
            raise _HTTPError(404, "folders can't be added: start the server with --add-below")
        if request.method == "POST":
            values = await _read_json(request)
            root, path = values.get("root"), values.get("path", "")
            if not isinstance(root, int) or not isinstance(path, str):
                raise _HTTPError(422, "root, path: give a number and a text")
            self._adder.start(root, path)
            return _JSON(self._adder.state(), 202)
        folders = await self._run(request, self._slow, self._adder.folders)
        return _JSON({**self._adder.state(), "folders": folders})

    async def _show(self, request: Request, describe: Callable[..., Any]) -> Response:
        limit, offset = page_of(request.query_params)
        return _JSON(await self._run(request, self._slow, describe, offset, limit))

    @staticmethod
    async def _run(request: Request, lane: Lane, function: Callable[..., T], *arguments: Any) -> T:
        """Call a function in a lane, as long as the client waits for it."""
        return await _while_there(request, lane.run(function, *arguments))


async def _while_there(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """The result of some work, which is canceled when the client leaves."""
    task = asyncio.ensure_future(work)
    try:
        while not (await asyncio.wait({task}, timeout=_LOOK_SECONDS))[0]:
            if await request.is_disconnected():
                raise ClientDisconnect
        return task.result()
    finally:
        task.cancel()


async def _read_body(request: Request, most: int, limits: Limits) -> bytes:
    """The body of a request.

    Raises:
        _HTTPError: it is too large, or too slow.
    """
    too_large = _HTTPError(413, f"the file is larger than {most / 1e6:g} MB")
    length = request.headers.get("content-length", "0")
    if not length.isdecimal() or int(length) > most:
        raise too_large
    parts, total = [], 0
    try:
        async with asyncio.timeout(limits.upload_seconds):
            async for part in request.stream():
                total += len(part)
                if total > most:
                    raise too_large
                parts.append(part)
    except TimeoutError:
        raise _HTTPError(408, f"the file took longer than {limits.upload_seconds:g} s") from None
    return b"".join(parts)


async def _read_json(request: Request) -> dict[str, Any]:
    if not request.headers.get("content-type", "").startswith("application/json"):
        raise _HTTPError(415, "send application/json")
    content = await _read_body(request, _JSON_BYTES, Limits(upload_seconds=10.0))
    try:
        values = json.loads(content)
        os.fsencode(json.dumps(values, ensure_ascii=False))  # an error for halves of characters
    except (ValueError, RecursionError):
        raise _HTTPError(422, "the body is no JSON") from None
    if not isinstance(values, dict):
        raise _HTTPError(422, "the body is no JSON object")
    return values


def _static_files() -> dict[str, tuple[bytes, str, str]]:
    """The files of the page by name, each with its type and tag: nothing else can be asked for."""
    found = {}
    for file in (resources.files(__package__) / "static").iterdir():
        media_type = _TYPES.get(file.name.rpartition(".")[2])
        if media_type is not None:
            content = file.read_bytes()
            tag = f'"{hashlib.sha256(content).hexdigest()[:16]}"'
            found[file.name] = (content, media_type, tag)
    return found


# Errors


async def _refuse(request: Request, error: Any) -> Response:
    # What is still to come of a body that was refused isn't read.
    headers = {"Connection": "close"} if error.status in (408, 413) else None
    return _JSON({"error": error.reason}, error.status, headers)


async def _busy(request: Request, error: Any) -> Response:
    reason = "too many requests at once: try again in a moment"
    return _JSON({"error": reason}, 503, {"Retry-After": "2"})


async def _wrong(request: Request, error: Any) -> Response:
    status = 422
    if isinstance(error, UnknownItemError):
        status = 404
    elif isinstance(error, ExpiredError):
        status = 410
    return _JSON({"error": str(error)}, status)


async def _left(request: Request, error: Any) -> Response:
    return Response(status_code=_CLIENT_LEFT)


async def _not_found(request: Request, error: Any) -> Response:
    reason = {404: "there is nothing here", 405: "not with this method"}[error.status_code]
    return _JSON({"error": reason}, error.status_code, error.headers)


async def _defect(request: Request, error: Any) -> Response:
    # Starlette raises the error again, and the server's log has its traceback.
    return _JSON({"error": "the server failed; its log says why"}, 500)
