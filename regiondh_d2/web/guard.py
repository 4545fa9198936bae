"""Who may ask, checked before anything else is done; and headers that keep the page closed.

- The ``Host`` must be one that was meant, so that no foreign name can be made to point here
    (DNS rebinding).
- A browser's request on behalf of another site is refused, by ``Sec-Fetch-Site`` and ``Origin``,
    unless it opens the page itself.
- With a token, everything but the page's own files needs it, in a cookie or a header; never in a
    link, which would be stored and passed on.
"""

from __future__ import annotations

import hmac
import ipaddress
from collections.abc import Collection
from http.cookies import CookieError, SimpleCookie

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

__all__ = ["COOKIE", "Guard", "host_name", "is_local"]

COOKIE = "regiondh_token"

_LOCAL = ("127.0.0.1", "localhost", "::1")
_SAFE = ("GET", "HEAD")
_OPEN = ("/", "/api/login")  # without a token
_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; "
        "connect-src 'self'; manifest-src 'self'; form-action 'self'; base-uri 'none'; "
        "frame-ancestors 'none'"
    ),
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}


def host_name(host: str) -> str:
    """The name in a ``Host`` header, without the port and the brackets of IPv6."""
    host = host.strip().lower()
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0]


def is_local(name: str) -> bool:
    """Whether a host can be reached from this machine alone."""
    return name in _LOCAL


class Guard:
    """Checks every request, and adds headers to every answer.

    Args:
        app: what is guarded.
        hosts: names that requests may name as the host, beside those of this machine.
        any_address: whether they may name any IP address. No foreign name hides behind one.
        token: that requests need, or None.
    """

    def __init__(
        self,
        app: ASGIApp,
        hosts: Collection[str] = (),
        any_address: bool = False,
        token: str | None = None,
    ):
        self._app = app
        self._hosts = {*_LOCAL, *(host.lower() for host in hosts)}
        self._any_address = any_address
        self._token = token

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_closed(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers[name] = value
            await send(message)

        problem = self._problem(scope)
        if problem is None:
            await self._app(scope, receive, send_closed)
            return
        status, reason = problem
        # What a refused request may carry isn't read.
        refusal = JSONResponse({"error": reason}, status, {"Connection": "close"})
        await refusal(scope, receive, send_closed)

    def _problem(self, scope: Scope) -> tuple[int, str] | None:
        headers = Headers(scope=scope)
        host = headers.get("host", "")
        if not self._is_known(host_name(host)):
            return 421, "this server doesn't answer to that host name (--allow-host adds one)"
        if self._is_foreign(scope, headers, host):
            return 403, "a request on behalf of another site"
        path = scope["path"]
        if self._token is not None and path not in _OPEN and not path.startswith("/static/"):
            given = _bearer(headers) or _cookie(headers)
            if not hmac.compare_digest(given.encode(), self._token.encode()):
                return 401, "the token is missing or wrong"
        return None

    def _is_known(self, name: str) -> bool:
        if name in self._hosts:
            return True
        if not self._any_address:
            return False
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return False
        return True

    @staticmethod
    def _is_foreign(scope: Scope, headers: Headers, host: str) -> bool:
        site, origin = headers.get("sec-fetch-site"), headers.get("origin")
        opens_page = scope["path"] == "/" and scope["method"] in _SAFE
        if site in ("cross-site", "same-site") and not opens_page:
            return True
        if origin is None or (opens_page and scope["method"] in _SAFE):
            return False
        return origin.partition("://")[2].lower() != host.lower()


def _bearer(headers: Headers) -> str:
    kind, _, value = headers.get("authorization", "").partition(" ")
    return value.strip() if kind.lower() == "bearer" else ""


def _cookie(headers: Headers) -> str:
    try:
        cookies = SimpleCookie(headers.get("cookie", ""))
    except CookieError:
        return ""
    return cookies[COOKIE].value if COOKIE in cookies else ""
