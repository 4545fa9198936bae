"""An index on disk: the codes of a code file, ready to search, with the data that answers show.

===================== ============================================================================
``index.json``        ``format`` "regiondh-index", ``version`` 2, ``engine``, ``options``, ``bits``
                      of an image's code, ``roots`` (the folders of the photos), ``fingerprint`` of
                      the network, ``network`` (its short name, "" where unknown), ``source`` (the
                      code file), ``dataset``; ``levels``: for "image" and "instance", as far as
                      they are indexed, ``bits``, ``count`` and, if the search is approximate, its
                      ``recall@100``; ``files``: the names of the files below;
                      in a server, ``collection`` for each level, and ``previous_collections``;
                      with the engine "shards", for each level ``shards``: the ``file`` and
                      ``count`` of each
``codes-G.h5``        the code file itself: codes, ids, file names, labels, objects
``image-G.npz``       what an approximate search of image codes (H2) needs beside them: its lists
``instance-G.npz``    the same for the codes of detected objects (H1)
``image-G-I.npy``     with the engine "shards": uint8 (count, width in words), the codes of some
                      rows, padded; also ``instance-G-I.npy``
===================== ============================================================================

G is the number of a generation. To change a folder, the files of a new generation are written
beside the old ones, and then ``index.json`` is replaced in one step. So a reader always finds one
complete generation. An opened folder doesn't change, since all of it is in memory, or mapped from
files that nobody changes; a later generation may have shards of an earlier one. Row i of an index
is row i of the codes, or of the objects in them. An exact index in memory and the code set share
one array of codes.

In version 1 the code file is ``items.h5``, and ``image.npz`` and ``instance.npz`` hold the codes a
second time. Such folders can be read, and are replaced when the index is built again.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from ..structures.codes import CodeFileError, CodeSet
from ..utils.display import display_name
from ..utils.errors import RegionDHError, unknown_value_message
from ..utils.file_io import write_json
from .code_store import read_codes, write_codes
from .engines import CodeArrayIndex, MilvusError, MilvusIndex, create_index, self_recall
from .hamming_index import HammingIndex
from .index_file import IndexFileError
from .index_record import (
    FORMAT,
    GRANULARITIES,
    RECORD,
    VERSION,
    check_index_output,
    new_generation,
    read_record,
)
from .index_shards import build_shards, open_shards
from .milvus_collections import (
    attach_collection,
    build_collection,
    drop_collections,
    earlier_collections,
    is_in_server,
)
from .moved_folders import move_roots

__all__ = [
    "GRANULARITIES",
    "IndexChangedError",
    "IndexFolder",
    "read_index_folder",
    "write_index_folder",
]

_RECALL_K = 100
_ATTEMPTS = 20  # to open a folder that is written again and again


class IndexChangedError(IndexFileError):
    """An index isn't the one any more that was to be replaced."""


@dataclass(frozen=True)
class IndexFolder:
    """The contents of an index folder when it was opened.

    Attributes:
        path: the folder.
        record: the contents of ``index.json``, as of version 2.
        items: the indexed images and their instances.
        indexes: by granularity, "image", "instance" or both; their rows are those of ``items`` and
            of its ``instances``.
    """

    path: Path
    record: Mapping[str, Any]
    items: CodeSet
    indexes: Mapping[str, HammingIndex] = field(default_factory=dict)

    def index(self, granularity: str) -> HammingIndex:
        """The index of images, "image", or of detected objects, "instance".

        Raises:
            IndexFileError: the folder has no such index.
        """
        if granularity not in self.indexes:
            raise IndexFileError(
                f"{display_name(self.path)}: has no level {granularity!r}; build it with "
                f"`regiondh build-index --level {granularity}`"
            )
        return self.indexes[granularity]

    def check_model(self, fingerprint: str) -> list[str]:
        """Check that queries were encoded by the model of the index; otherwise distances mean
        nothing.

        Args:
            fingerprint: of the model that encodes the queries, "" if unknown.

        Returns:
            Warnings, one line each; an unknown fingerprint is accepted with a warning.

        Raises:
            IndexFileError: the index is of another model.
        """
        own = self.items.model_fingerprint
        if not own or not fingerprint:
            whose = "the index" if not own else "the query"
            return [f"{whose} has no model fingerprint: cannot check that one model made all codes"]
        if own != fingerprint:
            raise IndexFileError(
                f"{display_name(self.path)}: was encoded by model {own[:12]}, the query by "
                f"{fingerprint[:12]}; use the same weights, or encode the images again and build a "
                "new index"
            )
        return []


def write_index_folder(
    path: str | os.PathLike,
    items: CodeSet,
    *,
    granularities: Sequence[str] | None = None,
    engine: str = "faiss",
    source: str = "",
    network: str = "",
    replaces: Mapping[str, Any] | None = None,
    **options: Any,
) -> IndexFolder:
    """Index a code set in a folder, whole or not at all (an older index of that name stays).

    Args:
        path: the folder; missing ones above it are created.
        items: what to index.
        granularities: some of :data:`GRANULARITIES`; by default all for which ``items`` has codes.
        engine, options: as for :func:`~.engines.create_index`.
        source: name of the code file, for the record.
        network: short name of the network that made the codes, for the record.
        replaces: what :func:`.index_record.read_record` gave of the index to be replaced; an index
            that was written since then stays.

    Returns:
        The written index folder. It keeps the arrays of ``items``.

    Raises:
        IndexFileError: ``items`` lacks codes to index, or ``path`` holds something else.
        IndexChangedError: another index than ``replaces`` is there.
        FileInUseError: another program writes this index.
        MissingPackageError: the engine's package isn't installed.
        RegionDHError: options that don't fit, or code arrays that don't.
    """
    path = Path(path).resolve()
    check_index_output(path)
    if granularities is None:
        granularities = [name for name in GRANULARITIES if _codes_of(items, name) is not None]
    in_server = is_in_server(engine)
    found = {granularity: _codes_of(items, granularity) for granularity in granularities}
    for granularity, value in found.items():
        if value is None:
            raise IndexFileError(
                f"{display_name(source) or 'the code set'}: has no {granularity} codes; extract "
                "the codes again with detected objects, or index the images alone"
            )
    coded = {granularity: value for granularity, value in found.items() if value is not None}
    indexes: dict[str, HammingIndex] = {}
    shards: dict[str, list[dict[str, Any]]] = {}
    if not in_server and engine != "shards":
        for granularity, (codes, bits) in coded.items():
            indexes[granularity] = create_index(bits, engine, **options)
            indexes[granularity].add(codes)
    record = {
        "format": FORMAT,
        "version": VERSION,
        "engine": engine,
        "options": options,
        "bits": int(items.bits),
        "roots": [root for root in items.roots if root],
        "fingerprint": items.model_fingerprint,
        "network": network,
        "source": os.fspath(source),
        "dataset": items.dataset,
    }
    with new_generation(path) as generation:
        if replaces is not None and read_record(path) != replaces:
            raise IndexChangedError(f"{display_name(path)}: was written by another program")
        for granularity, (codes, bits) in coded.items() if in_server else ():
            indexes[granularity] = build_collection(
                items, granularity, codes, bits, options, generation
            )
        if engine == "shards":
            earlier = None
            with suppress(RegionDHError):  # missing, or what is to be replaced is damaged
                earlier = read_record(path)
            for granularity, (codes, bits) in coded.items():
                indexes[granularity], shards[granularity] = build_shards(
                    path, earlier, granularity, codes, bits, options, generation
                )
        record["levels"] = {
            name: _describe(index) | ({"shards": shards[name]} if name in shards else {})
            for name, index in indexes.items()
        }
        unused = _name_collections(path, record, indexes) if in_server else []
        files = {"codes": f"codes-{generation}.h5"}
        write_codes(path / files["codes"], items)
        for granularity, index in indexes.items():
            if index.is_trained:
                files[granularity] = f"{granularity}-{generation}.npz"
                index.save_training(path / files[granularity])
        record["files"] = files
        write_json(path / RECORD, record)
    for index in indexes.values():
        if isinstance(index, MilvusIndex):
            drop_collections(index, unused)
            break
    return IndexFolder(path, record, _share_arrays(items, indexes), indexes)


def _describe(index: HammingIndex) -> dict[str, Any]:
    """The record of a level."""
    described: dict[str, Any] = {"bits": index.bits, "count": len(index)}
    if isinstance(index, MilvusIndex):
        described["collection"] = index.collection
    if not index.exact:
        described[f"recall@{_RECALL_K}"] = self_recall(index, _RECALL_K)
    return described


def _name_collections(
    path: Path, record: dict[str, Any], indexes: Mapping[str, HammingIndex]
) -> list[str]:
    """Complete the record of an index in a server; return the collections that nobody uses then."""
    earlier = read_record(path) if (path / RECORD).is_file() else None
    uris = [index.uri for index in indexes.values() if isinstance(index, MilvusIndex)]
    own, unused = earlier_collections(earlier, uris[0])
    record["options"] = {**record["options"], "uri": uris[0]}
    record["previous_collections"] = own
    return unused


def read_index_folder(
    path: str | os.PathLike, engine: str | None = None, moves: Sequence[str] = ()
) -> IndexFolder:
    """Read an index folder and check that its files belong together.

    Args:
        path: the folder.
        engine: an exact engine to use instead of the folder's, such as "numpy" where FAISS isn't
            installed.
        moves: texts OLD=NEW, folders of photos that were moved; see
            :func:`.moved_folders.move_roots`.

    Raises:
        IndexFileError: no index folder, or one that is damaged, of another version, or mixed.
        CodeFileError: a damaged code file.
        FileInUseError: another program has locked a file.
        MissingPackageError: the engine's package isn't installed.
        RegionDHError: a wrong move.
    """
    path = Path(path)
    record = read_record(path)
    for _ in range(_ATTEMPTS):
        try:
            return _open(path, record, engine, moves)
        except (IndexFileError, CodeFileError):
            # A new generation may have replaced this one meanwhile.
            again = read_record(path)
            if again == record:
                raise
            record = again
    raise IndexFileError(
        f"{display_name(path)}: in use by another program that writes it again and again; wait "
        "until it ends"
    )


def _open(
    path: Path, record: Mapping[str, Any], engine: str | None, moves: Sequence[str]
) -> IndexFolder:
    codes_file = record["files"]["codes"]
    items = read_codes(path / codes_file)
    name = display_name(path)
    if record["fingerprint"] != items.model_fingerprint:
        raise IndexFileError(f"{name}: {RECORD} and {codes_file} are of two models; build it again")
    indexes: dict[str, HammingIndex] = {}
    for granularity, numbers in record["levels"].items():
        found = _codes_of(items, granularity)
        if found is None:
            raise IndexFileError(
                f"{name}: {codes_file} has no {granularity} codes; build the index again"
            )
        codes, bits = found
        if engine is None and record["engine"] == "shards":
            indexes[granularity] = open_shards(path, numbers["shards"], codes, bits)
            continue
        index = _create_as_recorded(path, record, granularity, found, engine)
        if isinstance(index, MilvusIndex):
            indexes[granularity] = index
            continue
        if record["version"] == 1:
            _load_version_1(index, path, granularity, codes, codes_file)
        else:
            if numbers.get("count") != len(codes) or numbers.get("bits") != bits:
                raise IndexFileError(
                    f"{name}: {RECORD} is of {numbers.get('count')} {granularity} codes of "
                    f"{numbers.get('bits')} bits and {codes_file} of {len(codes)} of {bits}; build "
                    "the index again"
                )
            # An exact engine needs only the codes.
            if granularity in record["files"] and not index.exact:
                index.load_training(path / record["files"][granularity])
            index.add(codes)
        indexes[granularity] = index
    items = move_roots(_share_arrays(items, indexes), moves)
    roots = [root for root in items.roots if root]
    record = {**record, "version": VERSION, "bits": int(items.bits), "roots": roots}
    for holder in filter(None, (items, items.instances)):
        for values in vars(holder).values():
            if isinstance(values, np.ndarray):
                values.flags.writeable = False  # threads share them
    return IndexFolder(path, record, items, indexes)


def _create_as_recorded(
    path: Path,
    record: Mapping[str, Any],
    granularity: str,
    found: tuple[np.ndarray, int],
    engine: str | None,
) -> HammingIndex:
    """An empty index of the recorded engine and options, or of ``engine``; one in a server has its
    codes."""
    codes, bits = found
    try:
        if engine is None and is_in_server(record["engine"]):
            collection = record["levels"][granularity].get("collection")
            return attach_collection(codes, bits, record["options"], str(collection))
        if engine is not None:
            return create_index(bits, engine)
        return create_index(bits, record["engine"], **record["options"])
    except (ValueError, TypeError) as error:
        if isinstance(error, (ImportError, MilvusError, IndexFileError)):
            raise
        raise IndexFileError(
            f"{display_name(path / RECORD)}: {error}; build the index again"
        ) from None


def _load_version_1(
    index: HammingIndex, path: Path, granularity: str, codes: np.ndarray, codes_file: str
) -> None:
    """Load the index file of version 1, from which codes may have been removed."""
    name = f"{granularity}.npz"
    index.load(path / name)
    if index.next_row != len(codes):
        raise IndexFileError(
            f"{display_name(path)}: {name} is of {index.next_row} codes and {codes_file} of "
            f"{len(codes)}; build the index again"
        )
    held = index.holds(np.arange(len(codes)))
    if not np.array_equal(index.codes, codes[held]):
        raise IndexFileError(
            f"{display_name(path)}: {name} and {codes_file} hold different codes; build the index "
            "again"
        )


def _share_arrays(items: CodeSet, indexes: Mapping[str, HammingIndex]) -> CodeSet:
    """The code set with the arrays of its indexes, so that no code is in memory twice."""

    def shared(granularity: str, codes: np.ndarray) -> np.ndarray:
        index = indexes.get(granularity)
        if isinstance(index, CodeArrayIndex) and len(index) == len(codes):
            return index.codes
        return codes

    instances = items.instances
    if instances is not None:
        instances = replace(instances, codes=shared("instance", instances.codes))
    return replace(items, codes=shared("image", items.codes), instances=instances)


def _codes_of(items: CodeSet, granularity: str) -> tuple[np.ndarray, int] | None:
    """Packed codes and their length, or None where there are none."""
    if granularity not in GRANULARITIES:
        raise RegionDHError(unknown_value_message("granularity", granularity, GRANULARITIES))
    holder = items if granularity == "image" else items.instances
    return None if holder is None else (holder.codes, holder.bits)
