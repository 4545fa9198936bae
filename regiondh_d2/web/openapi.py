"""The description of the REST interface, as OpenAPI has it."""

from __future__ import annotations

from typing import Any

from regiondh_cli import __version__

__all__ = ["openapi"]


def openapi() -> dict[str, Any]:
    """The document of ``/openapi.json``."""
    photo = _parameter("photo", "path", "the id of a photo of the collection")
    upload = _parameter("upload", "path", "the id of an uploaded photo")
    page = [
        _parameter("limit", "query", "how many, 1 to 200", "integer"),
        _parameter("offset", "query", "how many to pass over", "integer"),
    ]
    of_class = _parameter("class", "query", "only of this detected class")
    options = [
        _parameter("object", "query", "the number of an object, from 1; repeatable", "integer"),
        _parameter("box", "query", "x1,y1,x2,y2 in pixels of the photo; repeatable"),
        of_class,
        *page,
        _parameter(
            "blend", "query", "with objects: how much the photos' distance counts", "number"
        ),
        _parameter("all_objects", "query", "1: a photo may answer more than once"),
        _parameter("fold", "query", "0: copies of a photo are answers of their own"),
    ]
    which = [
        _parameter("photo", "query", "search with this photo of the collection"),
        _parameter("upload", "query", "search with this uploaded photo"),
    ]
    image = {"content": {"image/*": {"schema": {"type": "string", "format": "binary"}}}}
    folder = {"content": {"application/json": {"schema": _FOLDER}}}
    query = {"content": {**image["content"], "application/json": {"schema": _QUERY}}}
    paths = {
        "/api/health": {"get": _operation("The state of the server and the collection")},
        "/api/login": {"post": _operation("Gives a cookie for a token: {token}", 204, 401)},
        "/api/photos": {"get": _operation("Photos of the collection", 422, of=[of_class, *page])},
        "/api/photos/{photo}": {"get": _operation("A photo and its objects", 404, of=[photo])},
        "/api/photos/{photo}/thumbnail": {
            "get": _operation("A picture of 400 pixels at most", 404, 422, of=[photo])
        },
        "/api/photos/{photo}/picture": {
            "get": _operation("A picture of 1280 pixels at most", 404, 422, of=[photo])
        },
        "/api/uploads": {
            "post": _operation("Upload a photo to search with", 201, 408, 413, 422, body=image)
        },
        "/api/uploads/{upload}": {
            "get": _operation("An uploaded photo and its objects", 410, of=[upload]),
            "delete": _operation("Forget an uploaded photo", 204, of=[upload]),
        },
        "/api/uploads/{upload}/picture": {
            "get": _operation("A picture of an uploaded photo", 410, of=[upload])
        },
        "/api/search": {
            "get": _operation(
                "Search with a photo, or with objects in it", 404, 410, 422, of=which + options
            )
        },
        "/api/query": {
            "post": _operation(
                "Upload a photo and search with it, or search by JSON",
                *(404, 408, 410, 413, 422),
                of=options,
                body=query,
            )
        },
        "/api/groups": {"get": _operation("Groups of photos that show the same", 422, of=page)},
        "/api/folders": {
            "get": _operation("Folders that can be added, and how far one is", 404),
            "post": _operation("Add a folder: {root, path}", 202, 404, 422, body=folder),
        },
        "/api/copies": {"get": _operation("Photos with their copies", 422, of=page)},
    }
    info = {"title": "regiondh serve", "version": __version__}
    return {"openapi": "3.1.0", "info": info, "paths": paths}


_REASONS = {
    200: "done",
    201: "done",
    202: "begun",
    204: "done",
    401: "the token is missing or wrong",
    403: "a request on behalf of another site",
    404: "there is no such photo or object",
    408: "the file arrives too slowly",
    410: "the uploaded photo has expired",
    413: "the file is too large",
    421: "an unknown host name",
    422: "a value is wrong, or the photo can't be read",
    503: "too many requests at once",
}

_FOLDER = {
    "type": "object",
    "properties": {"root": {"type": "integer"}, "path": {"type": "string"}},
}

_QUERY = {
    "type": "object",
    "properties": {
        "photo": {"type": "string"},
        "upload": {"type": "string"},
        "objects": {"type": "array", "items": {"type": "integer"}},
        "boxes": {"type": "array", "items": {"type": "array", "items": {"type": "number"}}},
        "class": {"type": "string"},
        "limit": {"type": "integer"},
        "offset": {"type": "integer"},
        "blend": {"type": "number"},
        "all_objects": {"type": "boolean"},
        "fold": {"type": "boolean"},
    },
}


def _parameter(name: str, place: str, text: str, kind: str = "string") -> dict[str, Any]:
    return {
        "name": name,
        "in": place,
        "required": place == "path",
        "description": text,
        "schema": {"type": kind},
    }


def _operation(
    text: str, *statuses: int, of: list | None = None, body: dict | None = None
) -> dict[str, Any]:
    done = [] if any(status < 300 for status in statuses) else [200]
    every = sorted({*done, *statuses, 401, 403, 421, 503})
    operation: dict[str, Any] = {
        "summary": text,
        "responses": {str(status): {"description": _REASONS[status]} for status in every},
    }
    if of:
        operation["parameters"] = of
    if body:
        operation["requestBody"] = body
    return operation
