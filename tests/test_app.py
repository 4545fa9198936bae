"""The server's paths and statuses, and what hostile clients get."""

import asyncio
import http.client
import json
import re
import resource
import socket
import time
from collections import Counter
from importlib import resources

import pytest
from starlette.testclient import TestClient

from regiondh_d2.web.app import create_app
from regiondh_d2.web.guard import COOKIE
from regiondh_d2.web.limits import Limits
from web_site import EVIL, GPS, PHOTOS, FakeEncoder, photo_bytes, running, site

LIMITS = Limits(upload_bytes=100_000, upload_seconds=0.4, waiting=16)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("app")
    with (
        pytest.MonkeyPatch.context() as patch,
        site(folder, patch, encoder=FakeEncoder(), limits=LIMITS) as place,
    ):
        yield place


@pytest.fixture(scope="module")
def client(place):
    return TestClient(place.app, "http://127.0.0.1:8000", raise_server_exceptions=False)


@pytest.fixture(scope="module")
def port(place):
    with running(place.app) as port:
        yield port


def static_names():
    folder = resources.files("regiondh_d2.web") / "static"
    return sorted(file.name for file in folder.iterdir())


# What the page is made of


def test_the_page_needs_only_its_own_files(client):
    page = client.get("/")
    assert page.headers["content-type"].startswith("text/html")
    texts = {name: client.get(f"/static/{name}") for name in static_names()}
    named = set(re.findall(r'"/static/([\w.]+)"', page.text)) - {"."}
    for name, answer in texts.items():
        assert answer.status_code == 200
        named |= (
            set(re.findall(r'from "\./(\w+\.js)"', answer.text)) if name.endswith("js") else set()
        )
        assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", answer.text), name
        assert "innerHTML" not in answer.text
    assert named == set(texts) - {"index.html"}
    assert "<script>" not in page.text
    assert " style=" not in page.text


def test_files_are_asked_for_again_only_if_they_changed(client):
    first = client.get("/static/page.css")
    again = client.get("/static/page.css", headers={"if-none-match": first.headers["etag"]})
    assert again.status_code == 304
    assert not again.content


def test_all_texts_of_the_page_are_in_one_file(client):
    known = set(re.findall(r"^  (\w+):", client.get("/static/texts.js").text, re.MULTILINE))
    used = set(re.findall(r'data-(?:text|label)="(\w+)"', client.get("/").text))
    for name in static_names():
        used |= set(re.findall(r"\bT\.(\w+)", client.get(f"/static/{name}").text))
    assert used <= known
    assert known - used <= {"same", "similar", "far"}  # by the names of bands


# REST


def test_health(client):
    values = client.get("/api/health").json()
    assert values["status"] == "ok"
    assert (values["photos"], values["objects"], values["bits"]) == (PHOTOS, 2 * PHOTOS, 16)
    assert values["classes"] == {"cat": PHOTOS, "dog": PHOTOS}


def test_photos(client, place):
    page = client.get("/api/photos", params={"limit": 5, "offset": 20}).json()
    assert [one["photo"] for one in page["photos"]] == place.ids[20:]
    assert (page["total"], page["more"]) == (PHOTOS, False)
    assert client.get("/api/photos", params={"class": "dog"}).json()["total"] == PHOTOS
    assert client.get("/api/photos", params={"class": "x"}).status_code == 404
    assert client.get("/api/photos", params={"limit": "x"}).status_code == 422
    photo = client.get(f"/api/photos/{place.ids[5]}")
    assert photo.json()["file_name"] == EVIL
    assert photo.headers["content-type"] == "application/json"
    assert [one["class_name"] for one in photo.json()["objects"]] == ["cat", "dog"]


@pytest.mark.parametrize("kind", ["thumbnail", "picture"])
def test_pictures_are_encoded_anew(client, place, kind):
    picture = client.get(f"/api/photos/{place.ids[0]}/{kind}")
    assert picture.headers["content-type"] == "image/jpeg"
    assert picture.content[:2] == b"\xff\xd8"
    assert GPS not in picture.content
    assert "max-age" in picture.headers["cache-control"]


def test_an_upload_and_a_search_with_it(client):
    sent = client.post(
        "/api/uploads", content=photo_bytes(), headers={"content-type": "image/jpeg"}
    )
    assert sent.status_code == 201
    upload = sent.json()["upload"]
    assert client.get(f"/api/uploads/{upload}").json() == sent.json()
    picture = client.get(f"/api/uploads/{upload}/picture")
    assert GPS not in picture.content
    found = client.get("/api/search", params={"upload": upload, "object": 1, "limit": 1})
    assert found.json()["answers"][0]["file_name"] == "00.jpg"
    assert client.delete(f"/api/uploads/{upload}").status_code == 204
    for path in (f"/api/uploads/{upload}", f"/api/search?upload={upload}"):
        gone = client.get(path)
        assert gone.status_code == 410
        assert gone.json()["error"].startswith("expired")


def test_a_query_in_one_call(client, place):
    found = client.post("/api/query?object=1&limit=2", content=photo_bytes())
    assert [x["file_name"] for x in found.json()["answers"]] == ["00.jpg", "01.jpg"]
    assert found.json()["upload"]["objects"][0]["class_name"] == "cat"
    values = {"photo": place.ids[0], "objects": [2], "boxes": [[3, 1, 9, 9]], "limit": 2}
    found = client.post("/api/query", json=values).json()
    assert len(found["objects"]) == 2
    address = f"/api/search?photo={place.ids[0]}&object=2&box=3,1,9,9&limit=2"
    assert client.get(address).json() == found


def test_groups_and_copies(client):
    assert client.get("/api/groups").json()["total"] >= 0
    found = client.get("/api/copies").json()
    assert found.pop("note").startswith("24 of 24 photos have no thumbnail")
    assert found == {"total": 0, "groups": [], "more": False}


def test_a_token_is_given_once_and_kept_in_a_cookie(tmp_path, monkeypatch):
    with site(tmp_path, monkeypatch, token="secret-of-a-test") as place:
        client = TestClient(place.app, "http://127.0.0.1:8000")
        assert client.get("/").status_code == 200
        assert client.get("/api/health").status_code == 401
        assert client.post("/api/login", json={"token": "other"}).status_code == 401
        assert client.post("/api/login", json={"token": 3}).status_code == 401
        given = client.post("/api/login", json={"token": "secret-of-a-test"})
        cookie = given.headers["set-cookie"]
        assert cookie.startswith(f"{COOKIE}=")
        assert "HttpOnly" in cookie
        assert "SameSite=strict" in cookie
        assert client.get("/api/health").status_code == 200
        refused = client.post("/api/uploads", content=photo_bytes())
        assert refused.status_code == 422  # this one has no network


# Hostile clients


@pytest.mark.parametrize(
    "path",
    [
        "/static/../app.py",
        "/static/..%2fapp.py",
        "/static/%2e%2e/%2e%2e/etc/passwd",
        "/static/....//app.py",
        "/../../etc/passwd",
        "/api/photos/..%2f..%2fetc%2fpasswd",
        "/api/photos/..%2f..%2fetc%2fpasswd/picture",
        "/api/photos/%00/thumbnail",
        "/api/uploads/../../etc/passwd/picture",
        "/api/photos//etc/passwd",
    ],
)
def test_no_path_leads_to_a_file(port, path):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    connection.request("GET", path)  # as it is: nothing is resolved on the way
    answer = connection.getresponse()
    assert answer.status in (404, 410)
    assert b"root:" not in answer.read()


@pytest.mark.parametrize(
    ("content", "status"),
    [
        (b"", 422),
        (b"<svg xmlns='http://www.w3.org/2000/svg'><script>alert(1)</script></svg>", 422),
        (photo_bytes()[:200], 422),
        (b"x" * 100_001, 413),
    ],
)
def test_uploads_that_are_no_photo(client, content, status):
    answer = client.post("/api/uploads", content=content, headers={"content-type": "image/png"})
    assert answer.status_code == status
    assert answer.json()["error"]


@pytest.mark.parametrize(
    ("content", "kind", "status"),
    [
        (b"{", "application/json", 422),
        (b"[]", "application/json", 422),
        (b"[" * 90_000, "application/json", 422),
        (b'{"photo": ' + b"1" * 5000 + b"}", "application/json", 422),
        (b" " * 100_001, "application/json", 413),
    ],
)
def test_json_that_is_no_query(client, content, kind, status):
    answer = client.post("/api/query", content=content, headers={"content-type": kind})
    assert answer.status_code == status


def test_methods_and_paths_that_are_not_there(client):
    assert client.post("/api/search").status_code == 405
    assert client.get("/api/nothing").json() == {"error": "there is nothing here"}
    assert client.request("OPTIONS", "/api/query").status_code == 405  # no CORS


def test_a_defect_tells_nothing(client, place, monkeypatch):
    def fail(*_):
        raise ZeroDivisionError("secret")

    monkeypatch.setattr(place.search, "describe_photo", fail)
    answer = client.get(f"/api/photos/{place.ids[0]}")
    assert answer.status_code == 500
    assert "secret" not in answer.text
    assert client.get("/api/health").status_code == 200


def post(port, headers):
    """A connection on which the head of an upload was sent."""
    connection = socket.create_connection(("127.0.0.1", port), timeout=10)
    head = ["POST /api/uploads HTTP/1.1", f"Host: 127.0.0.1:{port}", *headers, "", ""]
    connection.sendall("\r\n".join(head).encode())
    return connection


def status_of(connection):
    with connection, connection.makefile("rb") as answer:
        return int(answer.readline().split()[1])


def test_a_stream_of_two_gigabytes_is_refused_at_its_head(port):
    assert status_of(post(port, ["Content-Length: 2000000000"])) == 413


def test_a_stream_of_unknown_length_is_cut_at_the_limit(port):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    connection = post(port, ["Transfer-Encoding: chunked"])
    chunk = b"10000\r\n" + b"x" * 0x10000 + b"\r\n"
    sent = 0
    try:
        while sent < 2_000_000_000:
            connection.sendall(chunk)
            sent += len(chunk)
    except OSError:
        pass  # the server closed it
    assert sent < 20_000_000
    connection.close()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # KiB


def test_a_slow_upload_is_ended(port):
    connection = post(port, ["Content-Length: 1000"])
    connection.sendall(b"x")
    assert status_of(connection) == 408


def test_uploads_of_other_sites_are_refused_before_they_are_read(port):
    foreign = ["Origin: http://evil.example", "Content-Length: 50000"]
    assert status_of(post(port, foreign)) == 403
    connection = socket.create_connection(("127.0.0.1", port), timeout=10)
    connection.sendall(b"GET /api/photos HTTP/1.1\r\nHost: evil.example\r\n\r\n")
    assert status_of(connection) == 421


async def ask_many(port, path, count):
    """The statuses of requests that are sent at once."""

    async def ask():
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(
            f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n".encode()
        )
        answer = await reader.read()
        writer.close()
        return int(answer.split()[1]), answer

    return await asyncio.gather(*(ask() for _ in range(count)))


def test_of_many_queries_at_once_some_wait_and_some_are_told_to_come_back(port, place, monkeypatch):
    search = place.search.search
    monkeypatch.setattr(place.search, "search", lambda *a: time.sleep(0.02) or search(*a))
    path = f"/api/search?photo={place.ids[0]}&object=1"
    answers = asyncio.run(ask_many(port, path, 200))
    counts = Counter(status for status, _ in answers)
    assert set(counts) == {200, 503}
    assert counts[200] >= 2 + LIMITS.waiting  # those that run and those that wait
    assert all(b"retry-after" in answer.lower() for status, answer in answers if status == 503)
    assert asyncio.run(ask_many(port, "/api/health", 1))[0][0] == 200


def test_a_slow_query_keeps_no_picture_waiting(port, place, monkeypatch):
    monkeypatch.setattr(place.search, "encode_boxes", lambda *_: time.sleep(1.0))
    boxed = socket.create_connection(("127.0.0.1", port), timeout=10)
    path = f"/api/search?photo={place.ids[0]}&box=1,1,9,9"
    boxed.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
    time.sleep(0.1)
    start = time.monotonic()
    for path in (f"/api/photos/{place.ids[1]}/thumbnail", f"/api/search?photo={place.ids[1]}"):
        assert asyncio.run(ask_many(port, path, 1))[0][0] == 200
    assert time.monotonic() - start < 0.8
    boxed.close()


def test_a_client_that_leaves_frees_its_place(port, place, monkeypatch):
    ran = []

    def encode(request, image):
        ran.append(request)
        time.sleep(0.6)

    monkeypatch.setattr(place.search, "encode_boxes", encode)
    path = f"/api/search?photo={place.ids[0]}&box=1,1,9,9"
    connections = [socket.create_connection(("127.0.0.1", port), timeout=10) for _ in range(10)]
    for connection in connections:
        connection.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
    time.sleep(0.15)
    for connection in connections:
        connection.close()
    deadline = time.monotonic() + 5
    while True:
        waiting = json.loads(
            asyncio.run(ask_many(port, "/api/health", 1))[0][1].split(b"\r\n\r\n")[1]
        )
        if waiting["waiting"]["network"] == 0:
            break
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert len(ran) < 4  # of ten: the others never ran


def test_folders_are_added_only_where_that_was_allowed(client, place, monkeypatch):
    assert client.get("/api/folders").status_code == 404
    assert client.post("/api/folders", json={"root": 0}).status_code == 404

    class Adder:
        roots, started = ["photos"], []

        def state(self):
            return {"state": "idle", "line": ""}

        def folders(self):
            return [{"root": 0, "path": "", "name": "photos"}]

        def start(self, root, path):
            self.started.append((root, path))

    adder = Adder()
    other = TestClient(create_app(place.search, adder=adder), "http://127.0.0.1")
    assert other.get("/api/health").json()["adds_folders"]
    assert other.get("/api/folders").json()["folders"][0]["name"] == "photos"
    assert other.post("/api/folders", json={"root": 0, "path": "a"}).status_code == 202
    assert other.post("/api/folders", json={"root": "0"}).status_code == 422
    assert other.post("/api/folders", content=b"{}").status_code == 415  # no form of another site
    assert adder.started == [(0, "a")]


# Texts that are no UTF-8


def test_a_name_that_is_not_utf8(client, place, monkeypatch):
    """One such file must not hide the list of all."""
    name = "gr\udcf6\udcdfe.jpg"
    monkeypatch.setattr("regiondh_d2.web.collection.Collection.name", lambda self, row: name)
    for path in ("/api/photos", f"/api/photos/{place.ids[3]}", f"/api/search?photo={place.ids[0]}"):
        answer = client.get(path)
        assert answer.status_code == 200
        found = answer.json()
        first = (found.get("photos") or found.get("answers") or [found])[0]
        assert first["file_name"] == name


@pytest.mark.parametrize("text", ["\\ud800", "\\udfff"])
@pytest.mark.parametrize("path", ["/api/query", "/api/login"])
def test_halves_of_characters(client, path, text):
    for body in (f'{{"{text}": 1}}', f'{{"token": "{text}"}}', f'{{"photo": ["{text}"]}}'):
        answer = client.post(path, content=body, headers={"content-type": "application/json"})
        assert answer.status_code == 422
        assert answer.json() == {"error": "the body is no JSON"}
