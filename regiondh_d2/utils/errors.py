"""Errors that users cause and can fix: commands print one line, without a traceback."""

from collections.abc import Iterable

__all__ = [
    "InputNotFoundError",
    "MissingPackageError",
    "OutputExistsError",
    "RegionDHError",
    "unknown_value_message",
]


class RegionDHError(ValueError):
    """Something that a user gave cannot be used.

    The message is one line: it names the file, the key or the value, and says what to do. Commands
    print it without a traceback, as they do for an ``OSError`` with a path, a missing package and a
    training that diverged. Any other exception is a defect of this package and shows its traceback.
    """


class InputNotFoundError(RegionDHError, FileNotFoundError):
    """A file or folder to read does not exist."""


class OutputExistsError(RegionDHError, FileExistsError):
    """A file or folder to write exists already and must not be replaced."""


class MissingPackageError(RegionDHError, ImportError):
    """An optional package is not installed."""


def unknown_value_message(key: str, value: object, known: Iterable[str]) -> str:
    """The message about an illegal value of a key or an option."""
    return f"{key}: {value!r} isn't one of {', '.join(known)}"
