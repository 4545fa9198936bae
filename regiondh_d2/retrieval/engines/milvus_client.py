"""Calls to a Milvus server: the connection, retries, and errors that say what to do."""

from __future__ import annotations

import functools
import logging
import os
import time
from collections.abc import Callable
from types import ModuleType
from typing import Any, TypeVar

from ...utils.errors import MissingPackageError, RegionDHError

__all__ = ["TOKEN_VARIABLE", "MilvusConnection", "MilvusError", "import_pymilvus"]

TOKEN_VARIABLE = "REGIONDH_MILVUS_TOKEN"
"""The environment variable with the server's token, "user:password": never in a file of ours."""

# Of one call, within which pymilvus repeats it, too. It ignores a limit that is no int, and goes on
# for 75 tries, four minutes.
_CALL_SECONDS = 30
_FIRST_WAIT, _LONGEST_WAIT = 0.2, 5.0  # seconds between two tries

# Parts of messages, in lower case, after which a further try is useless.
_FULL = ("quota", "memory limit", "out of memory", "no space", "disk full", "deny to write")
_NO_ACCESS = ("unauthenticated", "auth check", "permission deny", "privilege")
_WRONG_CALL = ("invalid parameter", "invalid param", "only support", "not support")

T = TypeVar("T")


class MilvusError(RegionDHError):
    """The server can't do what was asked. The message is one line that names it."""


def import_pymilvus() -> ModuleType:
    """The package pymilvus, which logs no errors any more: ours tell them.

    Raises:
        MissingPackageError: it isn't installed.
    """
    try:
        import pymilvus
    except ImportError:
        raise MissingPackageError(
            "engine 'milvus' needs a package that isn't installed: pip install "
            "'regiondh_d2[milvus]'"
        ) from None
    logging.getLogger("pymilvus").setLevel(logging.CRITICAL)
    return pymilvus


class MilvusConnection:
    """A connection that waits for a server that is away, as long as its patience lasts.

    Args:
        uri: "http://host:19530", or a local file for Milvus Lite.
        patience: seconds for which a failed call is tried again.

    Raises:
        MissingPackageError: pymilvus isn't installed.
        MilvusError: no server answers, or it refuses the token.
    """

    def __init__(self, uri: str, patience: float) -> None:
        if not isinstance(uri, str) or not uri:
            raise RegionDHError("engine 'milvus' needs the server's uri, such as http://host:19530")
        if "@" in uri and "://" in uri:
            raise RegionDHError(
                f"uri: give user and password in the environment variable {TOKEN_VARIABLE}, since "
                "the uri is recorded in the index"
            )
        self.uri = uri if "://" in uri else os.path.abspath(uri)
        self.patience = patience
        self.alias = f"regiondh {self.uri}"
        self.pymilvus = import_pymilvus()
        self.call(self._connect)

    def _connect(self, timeout: float) -> None:
        connections = self.pymilvus.connections
        if connections.has_connection(self.alias):
            return
        token = os.environ.get(TOKEN_VARIABLE, "")
        connections.connect(self.alias, uri=self.uri, token=token, timeout=timeout)

    def call(self, function: Callable[..., T], *args: Any, **options: Any) -> T:
        """``function(*args, timeout=..., **options)``, again and again until it succeeds.

        It must be one that may run twice.

        Raises:
            MilvusError: it failed for good, or until the patience ended.
        """
        end = time.monotonic() + self.patience
        wait = _FIRST_WAIT
        while True:
            timeout = max(1, min(_CALL_SECONDS, int(end - time.monotonic())))
            try:
                return function(*args, timeout=timeout, **options)
            except self._failures as error:
                final = self._final_error(error)
                if final is not None:
                    raise final from error
                if time.monotonic() + wait >= end:
                    raise MilvusError(
                        f"Milvus at {self.uri} does not answer ({_reason(error)}): start it, or "
                        "name another uri"
                    ) from error
            time.sleep(wait)
            wait = min(_LONGEST_WAIT, 2 * wait)

    @functools.cached_property
    def _failures(self) -> tuple[type[Exception], ...]:
        import grpc

        return (self.pymilvus.MilvusException, grpc.RpcError, grpc.FutureTimeoutError)

    def _final_error(self, error: Exception) -> MilvusError | None:
        text = str(error).lower()
        where = f"Milvus at {self.uri}"
        if any(part in text for part in _NO_ACCESS):
            return MilvusError(f"{where} refuses access: set {TOKEN_VARIABLE} to user:password")
        if any(part in text for part in _FULL):
            return MilvusError(
                f"{where} is full ({_reason(error)}): give it room, then run the same again; what "
                "it holds already is not sent again"
            )
        if any(part in text for part in _WRONG_CALL) or isinstance(
            error, self.pymilvus.exceptions.ParamError
        ):
            return MilvusError(f"{where} refuses the call ({_reason(error)})")
        return None


def _reason(error: Exception) -> str:
    message = getattr(error, "message", "") or str(error)
    if hasattr(error, "details") and hasattr(error, "code"):  # of gRPC, whose text begins otherwise
        message = f"{error.code().name}: {error.details()}"
    return str(message).strip().splitlines()[0][:200] if str(message).strip() else repr(error)
