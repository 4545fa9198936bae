"""The engines that search by Hamming distance, and :func:`create_index`, which makes an index.

To add an engine, write a subclass of :class:`~regiondh_d2.retrieval.hamming_index.HammingIndex`, or
of :class:`CodeArrayIndex`, which lacks only the search, and name it in :data:`ENGINES`. Import its
packages when an index is made. The tests run for all :data:`ENGINES`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from ...utils.errors import RegionDHError
from ..hamming_index import HammingIndex
from .code_array import CodeArrayIndex, width_in_words
from .faiss_engine import FaissIndex
from .faiss_ivf_engine import FaissIVFIndex
from .milvus_client import MilvusError
from .milvus_engine import MilvusIndex
from .numpy_engine import NumpyIndex
from .recall import self_recall
from .shard_search import ShardArrays
from .shards_engine import SHARD_ROWS, ShardedIndex, map_array, write_array

__all__ = [
    "ENGINES",
    "SHARD_ROWS",
    "CodeArrayIndex",
    "Engine",
    "FaissIVFIndex",
    "FaissIndex",
    "MilvusError",
    "MilvusIndex",
    "NumpyIndex",
    "ShardArrays",
    "ShardedIndex",
    "create_index",
    "map_array",
    "self_recall",
    "width_in_words",
    "write_array",
]


class Engine(NamedTuple):
    """How to make an index of an engine.

    Attributes:
        create: from the code length and the options to an empty index.
        options: names of the options that ``create`` takes.
        is_stored: whether the index keeps its codes itself, in a server or in files, under a name
            that the options give; others hold the codes in memory, and need no option.
    """

    create: Callable[..., HammingIndex]
    options: tuple[str, ...] = ()
    is_stored: bool = False


def _create_faiss(
    bits: int, nlist: int | None = None, nprobe: int | None = None
) -> FaissIndex | FaissIVFIndex:
    if nlist is not None:
        return FaissIVFIndex(bits, nlist, nprobe)
    if nprobe is not None:
        raise RegionDHError("engine 'faiss' does not take nprobe without nlist")
    return FaissIndex(bits)


ENGINES: dict[str, Engine] = {
    "faiss": Engine(_create_faiss, ("nlist", "nprobe")),
    "numpy": Engine(NumpyIndex),
    "milvus": Engine(
        MilvusIndex,
        (
            *("uri", "collection", "nlist", "nprobe", "consistency", "patience"),
            *("owner", "must_exist"),
        ),
        is_stored=True,
    ),
    "shards": Engine(ShardedIndex, ("path", "shard_rows", "threads"), is_stored=True),
}


def create_index(bits: int, engine: str = "faiss", **options: Any) -> HammingIndex:
    """An empty index.

    Args:
        bits: code length.
        engine: a key of :data:`ENGINES`: "faiss" (needs the package faiss-cpu), "numpy", "milvus"
            (a server, needs pymilvus) or "shards" (files). All are exact and give the same answers.
        options: for "faiss" and "milvus", ``nlist`` and ``nprobe`` search approximately, see
            :class:`FaissIVFIndex`; :class:`MilvusIndex` and :class:`ShardedIndex` tell theirs. An
            index of these two has the codes that are there already.

    Raises:
        ImportError: the engine's package isn't installed.
        ValueError: wrong bits, engine or options, or what is stored can't be used.
    """
    if engine not in ENGINES:
        raise RegionDHError(f"engine {engine!r} is not known: use {' or '.join(ENGINES)}")
    create, known, _ = ENGINES[engine]
    unknown = sorted(options.keys() - set(known))
    if unknown:
        raise RegionDHError(
            f"engine {engine!r} does not take {', '.join(unknown)}: "
            + (f"its options are {', '.join(known)}" if known else "it has no options")
        )
    return create(bits, **options)
