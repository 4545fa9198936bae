"""Runs the application on a port, by uvicorn."""

from __future__ import annotations

import socket

import uvicorn
from starlette.types import ASGIApp

from ..utils.errors import RegionDHError

__all__ = ["listen", "run_server"]

_CONNECTIONS = 512
_IDLE_SECONDS = 20


def listen(host: str, port: int) -> socket.socket:
    """A socket on a host and port; port 0 takes one that is free.

    Raises:
        RegionDHError: the port is taken, or there is no such host.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    found = socket.socket(family)
    found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        found.bind((host, port))
        found.listen(128)
    except OSError as error:
        found.close()
        raise RegionDHError(
            f"--host {host} --port {port}: can't be listened to ({error.strerror}); name another"
        ) from None
    return found


def run_server(app: ASGIApp, listening: socket.socket) -> None:
    """Serve until a signal ends it."""
    config = uvicorn.Config(
        app,
        access_log=False,
        log_level="warning",
        server_header=False,
        proxy_headers=False,
        limit_concurrency=_CONNECTIONS,
        timeout_keep_alive=_IDLE_SECONDS,
        timeout_graceful_shutdown=5,
        ws="none",
    )
    uvicorn.Server(config).run(sockets=[listening])
