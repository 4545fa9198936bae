"""Who may ask the server, and the headers of its answers."""

import pytest
from starlette.responses import PlainTextResponse
from starlette.testclient import TestClient

from regiondh_d2.web.guard import COOKIE, Guard, host_name, is_local

TOKEN = "a-token-of-a-test"


def client(**options):
    return TestClient(Guard(PlainTextResponse("done"), **options), "http://127.0.0.1:8000")


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1:8000", 200),
        ("localhost", 200),
        ("[::1]:8000", 200),
        ("LOCALHOST:9", 200),
        ("evil.example", 421),
        ("127.0.0.1.evil.example", 421),
        ("localhost.evil.example:8000", 421),
        ("192.168.0.7", 421),
        ("", 421),
    ],
)
def test_only_known_hosts_are_answered(host, status):
    assert client().get("/", headers={"host": host}).status_code == status


def test_further_hosts_are_named():
    proxied = client(hosts=["photos.example"])
    assert proxied.get("/", headers={"host": "Photos.Example:443"}).status_code == 200
    assert proxied.get("/", headers={"host": "other.example"}).status_code == 421


@pytest.mark.parametrize(
    ("host", "status"), [("192.168.0.7:8000", 200), ("[fe80::1]", 200), ("evil.example", 421)]
)
def test_any_address_is_no_name(host, status):
    assert client(any_address=True).get("/", headers={"host": host}).status_code == status


@pytest.mark.parametrize(
    ("method", "path", "headers", "status"),
    [
        ("POST", "/api/query", {"origin": "http://127.0.0.1:8000"}, 200),
        ("POST", "/api/query", {}, 200),  # no browser
        ("POST", "/api/query", {"origin": "http://evil.example"}, 403),
        ("POST", "/api/query", {"origin": "http://127.0.0.1:9000"}, 403),
        ("POST", "/api/query", {"origin": "null"}, 403),
        ("DELETE", "/api/uploads/x", {"origin": "http://evil.example"}, 403),
        ("GET", "/api/search", {"sec-fetch-site": "cross-site"}, 403),
        ("GET", "/api/photos/x/picture", {"sec-fetch-site": "same-site"}, 403),
        ("GET", "/api/search", {"sec-fetch-site": "same-origin"}, 200),
        ("GET", "/", {"sec-fetch-site": "cross-site"}, 200),  # a link to the page
        ("POST", "/", {"sec-fetch-site": "cross-site"}, 403),
    ],
)
def test_other_sites_can_only_open_the_page(method, path, headers, status):
    assert client().request(method, path, headers=headers).status_code == status


def test_headers_keep_the_page_closed_also_on_errors():
    for answer in (client().get("/"), client().get("/", headers={"host": "evil.example"})):
        policy = answer.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["cross-origin-resource-policy"] == "same-origin"
        assert answer.headers["referrer-policy"] == "no-referrer"


@pytest.mark.parametrize(
    ("path", "headers", "status"),
    [
        ("/", {}, 200),
        ("/static/page.js", {}, 200),
        ("/api/health", {}, 401),
        (f"/api/health?token={TOKEN}", {}, 401),  # never in a link
        ("/api/health", {"authorization": f"Bearer {TOKEN}"}, 200),
        ("/api/health", {"authorization": f"Basic {TOKEN}"}, 401),
        ("/api/health", {"authorization": "Bearer other"}, 401),
        ("/api/health", {"cookie": f"{COOKIE}={TOKEN}"}, 200),
        ("/api/health", {"cookie": f"{COOKIE}=ü"}, 401),
        ("/static/../api/health", {}, 401),
        ("/openapi.json", {}, 401),
    ],
)
def test_a_token_comes_in_a_cookie_or_a_header(path, headers, status):
    headers = {name: value.encode() for name, value in headers.items()}
    assert client(token=TOKEN).get(path, headers=headers).status_code == status


def test_names_of_hosts():
    assert host_name("Example.org:80") == "example.org"
    assert host_name("[::1]:80") == "::1"
    assert is_local("localhost")
    assert not is_local("0.0.0.0")
