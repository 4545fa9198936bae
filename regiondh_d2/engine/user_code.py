"""Imports users' modules, which register datasets and components, before a command needs them.

``--import`` and the environment variable :data:`VARIABLE` name them. Names from ``--import`` are
added to the variable, so that worker processes and commands run by a command import them, too.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import os
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

from regiondh_cli.legal_values import IMPORT_VARIABLE

from ..utils.display import display_name
from ..utils.errors import InputNotFoundError, RegionDHError

__all__ = ["VARIABLE", "import_user_code"]

VARIABLE = IMPORT_VARIABLE

# The files imported here; modules imported by name are in sys.modules.
_FILES: dict[str, ModuleType] = {}


def import_user_code(names: Sequence[str] = ()) -> None:
    """Import modules and files by name, each once, after those of :data:`VARIABLE`.

    During the import the file's folder (for a module, the current folder) comes first in the search
    path, and afterwards last, so that no file there can hide a module of a library.

    Args:
        names: dotted names of modules, or paths of ``.py`` files.

    Raises:
        RegionDHError: one is missing, isn't Python, or fails; the message names the file and the
            failing line.
    """
    listed = [name for name in os.environ.get(VARIABLE, "").split(os.pathsep) if name]
    for name in listed:
        _import(name, f"{VARIABLE} {display_name(name)}")
    for name in names:
        told = f"--import {display_name(name)}"
        if os.pathsep in name:
            raise RegionDHError(
                f"{told}: a name with {os.pathsep!r} in it cannot be handed on to other processes; "
                "rename the file or its folder"
            )
        _import(name, told)
        if name not in listed:
            # Absolute, since another process may have another current folder.
            listed.append(os.path.abspath(name) if _is_file_name(name) else name)
    if listed:
        os.environ[VARIABLE] = os.pathsep.join(dict.fromkeys(listed))


def _is_file_name(name: str) -> bool:
    separators = (os.sep, os.altsep or os.sep)
    return name.endswith(".py") or any(separator in name for separator in separators)


def _import(name: str, told: str) -> None:
    try:
        if _is_file_name(name):
            _import_file(Path(name).expanduser(), told)
        else:
            _import_module(name, told)
    except RegionDHError as error:
        if isinstance(error, _NotImportedError):
            raise
        raise _failure(error, told) from error
    except (Exception, SystemExit) as error:
        raise _failure(error, told) from error


class _NotImportedError(InputNotFoundError):
    """There is nothing to import under a name."""


def _import_module(name: str, told: str) -> None:
    with _first_on_path(os.getcwd()):
        try:
            importlib.import_module(name)
        except ModuleNotFoundError as error:
            # If an import inside the module fails, that is another error.
            if error.name is None or not f"{name}.".startswith(f"{error.name}."):
                raise
        except (TypeError, ValueError):  # for names such as "", ".zoo"
            if name and all(part.isidentifier() for part in name.split(".")):
                raise
        else:
            return
    raise _NotImportedError(
        f"{told}: no such module in {display_name(os.getcwd())} or among the installed ones; name "
        "a file by its path, ending in .py"
    )


def _import_file(path: Path, told: str) -> None:
    if not path.is_file():
        what = "a folder" if path.is_dir() else "no such file"
        raise _NotImportedError(f"{told}: {what}; name a Python file, ending in .py, or a module")
    if path.suffix != ".py":
        raise _NotImportedError(f"{told}: not the name of a Python file, which ends in .py")
    key = os.path.realpath(path)
    if key in _FILES or any(_file_of(module) == key for module in list(sys.modules.values())):
        return
    name = path.stem
    if name in sys.modules:  # don't replace a library's module
        name = f"{name}_{hashlib.sha256(os.fsencode(key)).hexdigest()[:8]}"
    specification = importlib.util.spec_from_file_location(name, key)
    # As of any name that ends in .py.
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    sys.modules[name] = module  # before it runs, as `import` does
    try:
        with _first_on_path(os.path.dirname(os.path.abspath(path))):
            specification.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    _FILES[key] = module


def _file_of(module: ModuleType) -> str | None:
    # The command itself can't be imported as a module.
    if getattr(module, "__name__", "") in ("__main__", "__mp_main__"):
        return None
    file = getattr(module, "__file__", None)
    return os.path.realpath(file) if isinstance(file, str) else None


@contextmanager
def _first_on_path(folder: str) -> Iterator[None]:
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        sys.path.remove(folder)
        if folder not in sys.path:
            sys.path.append(folder)


def _failure(error: BaseException, told: str) -> RegionDHError:
    """The message about an exception in a user's module, with its place."""
    place = ""
    if isinstance(error, SyntaxError) and error.filename:
        place = f"{display_name(error.filename)}, line {error.lineno}: "
    else:
        frames = [
            frame
            for frame in traceback.extract_tb(error.__traceback__)
            if _is_users(frame.filename)
        ]
        if frames:
            # The deepest line in the user's code, even if a library that it calls failed.
            own = os.path.dirname(frames[0].filename)
            frame = [f for f in frames if f.filename.startswith(own)][-1]
            place = f"{display_name(frame.filename)}, line {frame.lineno}: "
    if isinstance(error, SystemExit):
        what = "it ends the program; leave to the command what only a script should do"
    else:
        text = error.msg if isinstance(error, SyntaxError) else str(error)
        what = f"{type(error).__name__}: {' '.join(str(text).split())}"
    return RegionDHError(f"{told}: {place}{what}")


def _is_users(file: str) -> bool:
    """Whether a file in a traceback is the user's: not Python's, a library's or this package's."""
    package = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    standard = os.path.dirname(os.__file__)
    return not (file.startswith((package, standard, "<frozen")) or "site-packages" in file)
