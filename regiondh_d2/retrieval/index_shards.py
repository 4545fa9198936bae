"""The shards of an index folder: files of codes that its engine "shards" maps and doesn't read.

The codes also are in the folder's code file. A new generation keeps the files whose codes are still
those of their rows, and writes the others. So a folder that grows gets another file; a small one is
joined with what comes after it, or there would be a file for every photo that was ever added.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..structures.packed import packed_width, pad_columns
from ..utils.display import display_name
from ..utils.errors import RegionDHError
from .engines import SHARD_ROWS, ShardArrays, map_array, width_in_words, write_array
from .hamming_index import positive_integer
from .index_file import IndexFileError
from .index_record import RECORD

__all__ = ["build_shards", "open_shards"]

_BLOCK = 1 << 20  # codes that are compared at once

# A file's name, and how many codes it has.
Shard = tuple[str, int]


def build_shards(
    path: Path,
    earlier: Mapping[str, Any] | None,
    granularity: str,
    codes: np.ndarray,
    bits: int,
    options: Mapping[str, Any],
    generation: int,
) -> tuple[ShardArrays, list[dict[str, Any]]]:
    """The index of a new generation, and the record of its files.

    Args:
        path: the folder.
        earlier: its record before, None if it is new.
        granularity, codes, bits: what to index.
        options: of the engine: ``shard_rows``.
        generation: the number of the new one.

    Raises:
        RegionDHError: ``options`` are wrong.
    """
    unknown = sorted(options.keys() - {"shard_rows"})
    if unknown:
        raise RegionDHError(
            f"engine 'shards' of an index folder does not take {', '.join(unknown)}: its option is "
            "shard_rows"
        )
    most = positive_integer("shard_rows", options.get("shard_rows", SHARD_ROWS))
    kept = _shards_to_keep(path, earlier, granularity, codes, bits, most)
    begin = sum(count for _, count in kept)
    for number, first in enumerate(range(begin, len(codes), most), 1):
        part = codes[first : first + most]
        name = f"{granularity}-{generation}-{number}.npy"
        write_array(path / name, pad_columns(part, width_in_words(packed_width(bits))))
        kept.append((name, len(part)))
    record = [{"file": name, "count": count} for name, count in kept]
    return open_shards(path, record, codes, bits), record


def open_shards(
    path: Path, record: Sequence[Mapping[str, Any]], codes: np.ndarray, bits: int
) -> ShardArrays:
    """The index of the files that a record names.

    Args:
        path: the folder.
        record: as of :func:`build_shards`.
        codes: uint8 (N, B), the codes that it must have.
        bits: their length.

    Raises:
        IndexFileError: a file is missing or damaged, or has other codes than these.
    """
    index = ShardArrays(bits)
    for shard in record:
        first = index.next_row
        shape = (shard["count"], width_in_words(index.width))
        padded = map_array(path / shard["file"], shape, np.uint8, RECORD)
        if not _are_equal(padded, codes[first : first + len(padded)]):
            raise IndexFileError(
                f"{display_name(path / shard['file'])}: has other codes than the code file; build "
                "the index again"
            )
        index.attach(padded)
    if len(index) != len(codes):
        raise IndexFileError(
            f"{display_name(path)}: its shards have {len(index)} codes and its code file "
            f"{len(codes)}; build the index again"
        )
    return index


def _shards_to_keep(
    path: Path,
    earlier: Mapping[str, Any] | None,
    granularity: str,
    codes: np.ndarray,
    bits: int,
    most: int,
) -> list[Shard]:
    """The first shards of the earlier generation that can stay."""
    kept: list[Shard] = []
    level = {} if earlier is None else earlier["levels"].get(granularity, {})
    first, width = 0, width_in_words(packed_width(bits))
    for shard in level.get("shards", ()) if level.get("bits") == bits else ():
        count = shard["count"]
        if count > most or first + count > len(codes):
            break
        try:
            padded = map_array(path / shard["file"], (count, width), np.uint8, RECORD)
        except IndexFileError:
            break
        if not _are_equal(padded, codes[first : first + count]):
            break
        kept.append((shard["file"], count))
        first += count
    # Sizes fall from shard to shard, so their number grows with the logarithm of the codes'.
    while kept and kept[-1][1] < most and kept[-1][1] <= len(codes) - first:
        first -= kept.pop()[1]
    return kept


def _are_equal(padded: np.ndarray, codes: np.ndarray) -> bool:
    """Whether a shard holds these codes, and zeros where it is wider."""
    width = codes.shape[1]
    return len(padded) == len(codes) and all(
        np.array_equal(padded[i : i + _BLOCK, :width], codes[i : i + _BLOCK])
        and not padded[i : i + _BLOCK, width:].any()
        for i in range(0, len(codes), _BLOCK)
    )
