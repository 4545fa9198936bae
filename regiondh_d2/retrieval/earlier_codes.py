"""What an earlier extraction left in its output, and whether another may go on with it."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from ..config import parse_settings
from ..structures.codes import CodeFileError, CodeSet
from ..utils.display import display_name
from ..utils.errors import OutputExistsError
from .code_store import read_codes
from .extraction_parts import parts_folder
from .moved_folders import move_roots_once

__all__ = [
    "check_nothing_lost",
    "check_source",
    "keeps_activations",
    "known_files",
    "known_fingerprint",
    "reader_version",
]

_READER = "IMAGE_READER"  # the line of the settings with the version of the image reader
# The parts of a code file that it may lack.
_OPTIONAL = ("labels", "activations", "features", "instances", "thumbnails", "class_weights")


def known_files(output: str | os.PathLike, moves: Sequence[str] = ()) -> dict[str, tuple[int, int]]:
    """Size and time of modification of each file in a code file, by its name.

    Args:
        output: the code file; if it is missing, the result is empty.
        moves: texts OLD=NEW, folders of photos that were moved.

    Raises:
        CodeFileError: the output can't be read, or has no photo in a folder that was moved.
    """
    if not os.path.exists(output):
        return {}
    codes = move_roots_once(read_codes(output), moves)
    known = zip(codes.size.tolist(), codes.mtime_ns.tolist(), strict=True)
    return dict(zip(codes.file_names, known, strict=True))


def known_fingerprint(output: str | os.PathLike) -> str:
    """The fingerprint of the network that made an output, finished or not; "" if there is none.

    Raises:
        CodeFileError: the output can't be read.
    """
    earlier = _first_codes(output)
    return "" if earlier is None else earlier.model_fingerprint


def check_nothing_lost(output: str | os.PathLike, codes: CodeSet) -> None:
    """Check that codes may replace a code file, which may be the work of hours.

    Args:
        output: the code file; one that is missing or damaged holds nothing to lose.
        codes: what will replace it.

    Raises:
        OutputExistsError: it has codes of another network, or images or columns that ``codes``
            lack.
    """
    if not os.path.isfile(output):
        return
    try:
        before = read_codes(output)
    except CodeFileError:
        return
    lost = ""
    images = set(before.image_ids) - set(codes.image_ids)
    columns = [
        name
        for name in _OPTIONAL
        if getattr(before, name) is not None and getattr(codes, name) is None
    ]
    if before.model_fingerprint != codes.model_fingerprint:
        lost = "codes of another network"
    elif images:
        lost = f"codes of {len(images)} images that the new file lacks, such as {min(images)}"
    elif columns:
        lost = f"{columns[0]}, which the new file lacks"
    if lost:
        raise OutputExistsError(
            f"{display_name(output)}: holds {display_name(lost)}: name another file, or replace it "
            "with --overwrite"
        )


def keeps_activations(output: str | os.PathLike) -> bool:
    """Whether an extraction stores activations if no option says so.

    A new output gets them. A run that goes on with an output, finished or not, does what the
    earlier run did.

    Raises:
        CodeFileError: the output can't be read.
    """
    earlier = _first_codes(output)
    return True if earlier is None else _has_activations(earlier)


def _first_codes(output: str | os.PathLike) -> CodeSet | None:
    """The codes of an output, or of a part of an unfinished one; None if there are none."""
    output = Path(output)
    if output.exists():
        return read_codes(output)
    for part in sorted(parts_folder(output).glob("part-*.h5")):
        with suppress(CodeFileError):  # the extraction will report a damaged part
            return read_codes(part)
    return None


def _has_activations(codes: CodeSet) -> bool:
    """Whether activations were asked for; a model may have had none to store."""
    asked = parse_settings(codes.settings).get("activations")
    return codes.activations is not None if asked is None else asked == "True"


def check_source(path: Path, code_set: CodeSet, attributes: Mapping[str, Any]) -> None:
    """Check that earlier codes may share a file with those of this run.

    Args:
        path: the file of the earlier codes.
        code_set: the earlier codes.
        attributes: of this run's code file, see :class:`.extract.CodeExtractor`.

    Raises:
        CodeFileError: they are of another model, other settings or another dataset.
    """
    shown = display_name(path)
    fix = "name another output, or delete this one to start again"
    ours = attributes["model_fingerprint"]
    if code_set.model_fingerprint != ours:
        raise CodeFileError(
            f"{shown} was encoded by model {code_set.model_fingerprint[:12] or '(unknown)'}, "
            f"not by this one ({ours[:12]}): {fix}"
        )
    weights = attributes.get("class_weights")
    if not (
        weights is None
        or code_set.class_weights is None
        or np.array_equal(weights, code_set.class_weights)
    ):
        raise CodeFileError(f"{shown} has other class_weights than this model: {fix}")
    old = parse_settings(code_set.settings)
    new = parse_settings(attributes["settings"])
    for name in ("dataset", "count_difficult", "class_names"):
        old[name], new[name] = getattr(code_set, name), attributes[name]
    for key in sorted(old.keys() | new.keys()):
        if key == _READER and reader_version(code_set.settings) < reader_version(
            attributes["settings"]
        ):
            continue  # rows whose pixels changed are encoded again
        if old.get(key) != new.get(key):
            raise CodeFileError(
                f"{shown} was encoded with {key} {old.get(key, '(unknown)')}, which is now "
                f"{new.get(key, '(unknown)')}: {fix}"
            )


def reader_version(settings: str) -> int:
    """The version of the image reader in the settings, 0 where it has none."""
    number = parse_settings(settings).get(_READER, "")
    return int(number) if number.isdecimal() else 0
