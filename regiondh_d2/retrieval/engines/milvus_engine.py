"""Search in a Milvus server, with the same answers as the embedded engines.

A server returns exact distances, but rows of equal distance in any order, and at the end of the
list any of them. So more than k are fetched, until the distance rises, and are ordered by
(distance, row) here. A server returns 16,384 rows at most; where even these end within a group of
equal distances, the rows are divided in two halves, which are searched apart, and so on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ...structures.packed import check_packed
from ...utils.errors import RegionDHError
from ..hamming_index import HammingIndex, positive_integer
from .milvus_client import MilvusConnection, MilvusError
from .milvus_conditions import check_condition
from .milvus_rows import FIELDS, TEXT_BYTES, code_bytes, columns_of

__all__ = ["FIELDS", "MilvusIndex"]

_LIMIT = 16_384  # rows that a server returns for a query, or of a page
_ANSWERS = 1 << 18  # rows that are asked for at once, of all queries together
_COMPARISONS = 1 << 28  # of codes, in one call: a second of a core, far from a call's time limit
_EXTRA = 64  # rows that are fetched beyond 2 * k at first
_GROWTH = 4
_BATCH = 16_000  # rows sent at once: one page, so that what has arrived is read back in one call
_SIGN = "regiondh_d2 codes"  # begins the description of every collection of ours
_NO_ROW, _FAR = -1, np.iinfo(np.int32).max  # as FAISS fills up an approximate answer

# Entities with negative rows hold the state: -1 the next row, in ``image``, and -2 - r for each
# removed row r.
_STATE = -1


class MilvusIndex(HammingIndex):
    """Codes in a collection of a Milvus server, which stay there when the index is forgotten.

    If the collection exists, the index has its codes. A row is added exactly once, whatever fails:
    an :meth:`add` that was cut off is repeated with the same codes, and those that have arrived are
    compared and not sent again. Calls that fail since the server is away are repeated for a while.

    The index is for one writer: one that has missed what another one added refuses to add. Any
    number of processes may search.

    Args:
        bits: code length.
        uri: of the server, "http://host:19530", or a local file for Milvus Lite.
        collection: its name.
        nlist, nprobe: search approximately, as Milvus's BIN_IVF_FLAT does; see
            :class:`~.faiss_ivf_engine.FaissIVFIndex`. By default the search is exact (BIN_FLAT).
        consistency: Milvus's level of consistency for searches; with another than "Strong" they may
            miss codes that were just added.
        patience: seconds for which a failed call is tried again.
        owner: a text that the collection keeps; an existing one must have the same.
        must_exist: whether a missing collection is an error, instead of being created.

    Raises:
        MissingPackageError: pymilvus isn't installed.
        MilvusError: no answer, no access, or a collection of other codes.
    """

    def __init__(
        self,
        bits: int,
        uri: str = "",
        collection: str = "",
        nlist: int | None = None,
        nprobe: int | None = None,
        consistency: str = "Strong",
        patience: float = 60.0,
        owner: str = "",
        must_exist: bool = False,
    ) -> None:
        super().__init__(bits)
        if not collection:
            raise RegionDHError("engine 'milvus' needs the name of a collection")
        if nprobe is not None and nlist is None:
            raise RegionDHError("engine 'milvus' does not take nprobe without nlist")
        self.exact = nlist is None
        self.nlist = None if nlist is None else positive_integer("nlist", nlist)
        self.nprobe = 16 if nprobe is None else positive_integer("nprobe", nprobe)
        self.collection = collection
        self._consistency, self._owner = consistency, owner
        self._connection = MilvusConnection(uri, patience)
        self.uri = self._connection.uri
        self._open(must_exist)

    # ----------------------------------------------------------------------------------------------
    # The collection

    def _open(self, must_exist: bool = False) -> None:
        """Attach to the collection, or create it."""
        utility, alias = self._connection.pymilvus.utility, self._connection.alias
        call = self._connection.call
        if not call(utility.has_collection, self.collection, using=alias):
            if must_exist:
                raise MilvusError(
                    f"Milvus at {self.uri} has no collection {self.collection}: build the index "
                    "again, or name the server that has it"
                )
            call(self._create)
        self._remote = call(self._attach)
        if self._remote.description != self._description:
            raise MilvusError(
                f"Milvus at {self.uri}: collection {self.collection} is not one of "
                f"{self.bits} bits with these codes (its description: "
                f"{self._remote.description!r}): name another collection"
            )
        call(self._load)
        self._next_row = self._written_state = self._read_state()
        removed = [-2 - row for row in self._few_rows(-1 - self._next_row, _STATE)]
        self._removed = np.unique(np.array(removed, np.int64))
        held = self._count(f"row >= 0 and row < {self._next_row}")
        if held > len(self) and len(self._removed):  # cut off within a removal
            self._delete_rows(self._removed)

    @property
    def _description(self) -> str:
        kind = "BIN_FLAT" if self.exact else f"BIN_IVF_FLAT nlist {self.nlist}"
        return f"{_SIGN}, {self.bits} bits, {kind}, {self._owner or 'no owner'}"

    def _create(self, timeout: float) -> None:
        milvus = self._connection.pymilvus
        kinds = milvus.DataType
        fields = [
            milvus.FieldSchema("row", kinds.INT64, is_primary=True, auto_id=False),
            milvus.FieldSchema("code", kinds.BINARY_VECTOR, dim=8 * self.width),
        ]
        for name, (kind, _) in FIELDS.items():
            size = {"max_length": TEXT_BYTES} if kind == "VARCHAR" else {}
            fields.append(milvus.FieldSchema(name, kinds[kind], **size))
        schema = milvus.CollectionSchema(fields, description=self._description)
        milvus.Collection(
            self.collection,
            schema,
            using=self._connection.alias,
            consistency_level=self._consistency,
            timeout=timeout,
        )

    def _attach(self, timeout: float) -> Any:
        milvus = self._connection.pymilvus
        return milvus.Collection(self.collection, using=self._connection.alias, timeout=timeout)

    def _load(self, timeout: float) -> None:
        if not self._remote.has_index(timeout=timeout, index_name="code"):
            kind = "BIN_FLAT" if self.exact else "BIN_IVF_FLAT"
            params = {} if self.exact else {"nlist": self.nlist}
            self._remote.create_index(
                "code",
                {"index_type": kind, "metric_type": "HAMMING", "params": params},
                timeout=timeout,
                index_name="code",
            )
        self._remote.load(timeout=timeout)

    def drop(self, collection: str | None = None) -> None:
        """Delete a collection from the server, if it is there and one of ours.

        Args:
            collection: its name; by default that of this index, which can't be used any more.
        """
        milvus, alias = self._connection.pymilvus, self._connection.alias
        call, name = self._connection.call, collection or self.collection
        if call(milvus.utility.has_collection, name, using=alias):
            there = call(milvus.Collection, name, using=alias)
            if there.description.startswith(_SIGN):
                call(milvus.utility.drop_collection, name, using=alias)

    # ----------------------------------------------------------------------------------------------
    # Adding and removing

    def add(
        self, codes: np.ndarray, fields: Mapping[str, Sequence[Any]] | None = None
    ) -> np.ndarray:
        """As :meth:`HammingIndex.add`; each row may have values of :data:`FIELDS`.

        Raises:
            MilvusError: another process has added codes since this index was opened.
        """
        self._fields = dict(fields or {})
        wrong = [n for n, v in self._fields.items() if n not in FIELDS or len(v) != len(codes)]
        if wrong:
            raise RegionDHError(
                f"field {wrong[0]} must be one of {', '.join(FIELDS)}, with a value a code"
            )
        first = self._next_row
        self._check_one_writer()
        rows = super().add(codes)
        if len(rows):
            try:
                self._write_state()
            except BaseException:
                self._next_row = first  # so that what failed can be tried again
                raise
        return rows

    def load(self, path) -> None:
        self._fields = {}
        super().load(path)
        self._write_tombstones(self._removed)
        self._write_state()

    def _add(self, codes: np.ndarray, rows: np.ndarray) -> None:
        # Rows of a load that was cut off.
        is_rest = self._count(f"row >= {rows[0]}") > 0
        for begin in range(0, len(rows), _BATCH):
            batch = slice(begin, begin + _BATCH)
            if not (is_rest and self._has_arrived(codes[batch], rows[batch])):
                self._send(codes, rows, batch, again=is_rest)
        if is_rest:
            self._delete(f"row > {rows[-1]}")
        # A server that was away for a moment may have taken a batch twice.
        if self._count(f"row >= {rows[0]}") != len(rows):
            for begin in range(0, len(rows), _BATCH):
                batch = slice(begin, begin + _BATCH)
                if not self._has_arrived(codes[batch], rows[batch]):
                    self._send(codes, rows, batch, again=True)
        self._connection.call(self._remote.flush)
        if not self.exact:
            utility = self._connection.pymilvus.utility
            self._connection.call(
                utility.wait_for_index_building_complete,
                self.collection,
                index_name="code",
                using=self._connection.alias,
            )

    def _send(self, codes: np.ndarray, rows: np.ndarray, batch: slice, again: bool) -> None:
        """Send a batch, exactly once."""
        sent = rows[batch]
        fields = {name: values[batch] for name, values in self._fields.items()}
        columns = columns_of(sent, codes[batch], fields)
        within = f"row >= {sent[0]} and row <= {sent[-1]}"

        def insert(timeout: float) -> None:
            nonlocal again
            if again and self._count(within):
                self._delete(within)
            again = True  # a failed insertion may have arrived all the same
            self._remote.insert(columns, timeout=timeout)

        self._connection.call(insert)

    def _has_arrived(self, codes: np.ndarray, rows: np.ndarray) -> bool:
        within = f"row >= {rows[0]} and row <= {rows[-1]}"
        if self._count(within) != len(rows):
            return False
        found = self._query(within, ["code"])
        by_row = {int(entity["row"]): code_bytes(entity) for entity in found}
        return all(
            by_row.get(row) == code.tobytes()
            for row, code in zip(rows.tolist(), codes, strict=True)
        )

    def _remove(self, rows: np.ndarray) -> None:
        self._write_tombstones(rows)  # first: opened again, the index removes what is left
        self._delete_rows(rows)

    def _delete_rows(self, rows: np.ndarray) -> None:
        for begin in range(0, len(rows), _BATCH):
            self._delete(f"row in {rows[begin : begin + _BATCH].tolist()}")

    def _clear(self, arrays: dict[str, np.ndarray]) -> None:
        self.drop()
        self._open()

    def _check_one_writer(self) -> None:
        """An error if another process has added codes since this index knows the collection: they
        would be taken for the rest of an :meth:`add` that was cut off."""
        # A state whose writing failed may have arrived all the same.
        if self._read_state() not in (self._next_row, self._written_state):
            raise MilvusError(
                f"Milvus at {self.uri}: another process has added to collection {self.collection} "
                "meanwhile: open the index again, and let one process add at a time"
            )

    def _read_state(self) -> int:
        state = self._query(f"row == {_STATE}", ["image"])
        return int(state[0]["image"]) if state else 0

    def _write_state(self) -> None:
        self._written_state = self._next_row
        self._upsert([_STATE], [self._next_row])

    def _write_tombstones(self, rows: np.ndarray) -> None:
        for begin in range(0, len(rows), _BATCH):
            part = rows[begin : begin + _BATCH].tolist()
            self._upsert([-2 - row for row in part], part)

    def _upsert(self, rows: list[int], images: list[int]) -> None:
        columns: list[Any] = [rows, [bytes(self.width)] * len(rows), images]
        columns += [
            [default] * len(rows) for name, (_, default) in FIELDS.items() if name != "image"
        ]
        self._connection.call(self._remote.upsert, columns)

    # ----------------------------------------------------------------------------------------------
    # Searching

    def search(self, codes: np.ndarray, k: int, where: str = "") -> tuple[np.ndarray, np.ndarray]:
        """As :meth:`HammingIndex.search`, of rows that meet a condition on the server.

        Args:
            codes, k: as there.
            where: a boolean expression of Milvus on :data:`FIELDS`, such as ``class_id == 3``; ""
                for all rows.

        Returns:
            As there; fewer than k columns if fewer rows meet the condition.
        """
        if not where:
            return super().search(codes, k)
        check_condition(where)
        codes = check_packed("codes", codes, self.bits)
        k = min(positive_integer("k", k), len(self))
        if not len(codes) or not k:
            return super().search(codes, max(1, k))
        return self._search(codes, k, where)

    def _search(self, codes: np.ndarray, k: int, where: str = "") -> tuple[np.ndarray, np.ndarray]:
        if self.exact:
            found = self._nearest(codes, k, 0, self._next_row, where)
        else:
            found = self._ask(codes, min(k, _LIMIT), 0, self._next_row, where)
            found = [_ordered(*pair, k) for pair in found]
        if self.exact and not where:
            self._check_all_there(min(len(rows) for _, rows in found), k)
        width = max(len(rows) for _, rows in found) if where else k
        distances = np.full((len(codes), width), _FAR, np.int32)
        rows = np.full((len(codes), width), _NO_ROW, np.int64)
        for i, (near, places) in enumerate(found):
            distances[i, : len(near)], rows[i, : len(near)] = near, places
        return distances, rows

    def _check_all_there(self, found: int, k: int) -> None:
        """An error if the server has lost codes: fewer than k were found, though none of these were
        removed by another process since this index was opened."""
        if found == k or self._consistency != "Strong":
            return
        removed = self._count(f"row >= {-1 - self._next_row} and row < {_STATE}")
        if found < min(k, self._next_row - removed):
            raise MilvusError(
                f"Milvus at {self.uri}: collection {self.collection} has lost some of its "
                f"{self._next_row - removed} codes: build the index again"
            )

    def _nearest(
        self, codes: np.ndarray, k: int, begin: int, end: int, where: str
    ) -> list[tuple[np.ndarray, np.ndarray]]:
        """Distances and rows of the k nearest in ``begin <= row < end``, for each query."""
        found: list[Any] = [None] * len(codes)
        open_ones = np.arange(len(codes))
        # A call and a row cost much more than a comparison. Twice k mostly reaches the next
        # distance at once: of codes of 64 bits, with k = 1000, among 2,500 as among 10 million.
        asked = min(_LIMIT, 2 * k + _EXTRA)
        while len(open_ones) and k <= asked:
            answers = self._ask(codes[open_ones], asked, begin, end, where)
            for i, (distances, rows) in zip(open_ones.tolist(), answers, strict=True):
                all_there = len(rows) < asked or asked >= end - begin
                if all_there or distances[-1] > distances[k - 1]:
                    found[i] = _ordered(distances, rows, k)
            open_ones = np.array([i for i in open_ones.tolist() if found[i] is None], np.int64)
            if asked == _LIMIT:
                break
            asked = min(_LIMIT, _GROWTH * asked)
        if len(open_ones):
            if end - begin <= _LIMIT:  # k is above the limit, but there are no more rows
                answers = self._ask(codes[open_ones], _LIMIT, begin, end, where)
                halves = [[pair] for pair in answers]
            else:
                middle = (begin + end) // 2
                parts = [
                    self._nearest(codes[open_ones], k, *place, where)
                    for place in ((begin, middle), (middle, end))
                ]
                halves = [list(pair) for pair in zip(*parts, strict=True)]
            for i, pairs in zip(open_ones.tolist(), halves, strict=True):
                distances, rows = (np.concatenate(values) for values in zip(*pairs, strict=True))
                found[i] = _ordered(distances, rows, k)
        return found

    def _ask(
        self, codes: np.ndarray, asked: int, begin: int, end: int, where: str
    ) -> list[tuple[np.ndarray, np.ndarray]]:
        """The server's answers, ``asked`` at most for each query, by ascending distance."""
        within = f"row >= {begin} and row < {end}"
        if where:
            within = f"({where}) and {within}"
        params = {} if self.exact else {"nprobe": min(self.nprobe, self.nlist or 1)}
        step = max(1, min(_ANSWERS // asked, _COMPARISONS // max(1, end - begin)))
        found = []
        for first in range(0, len(codes), step):
            hits = self._connection.call(
                self._remote.search,
                [code.tobytes() for code in codes[first : first + step]],
                "code",
                {"metric_type": "HAMMING", "params": params},
                limit=asked,
                expr=within,
                consistency_level=self._consistency,
            )
            for of_query in hits:
                distances = np.rint(np.array(of_query.distances, np.float64)).astype(np.int32)
                found.append((distances, np.array(of_query.ids, np.int64)))
        return found

    @property
    def codes(self) -> np.ndarray:
        """All codes held, uint8 (N, width), by ascending row, fetched from the server."""
        found = {}
        for first in range(0, self._next_row, _LIMIT):
            last = min(first + _LIMIT, self._next_row)
            for entity in self._query(f"row >= {first} and row < {last}", ["code"]):
                found[int(entity["row"])] = code_bytes(entity)
        data = b"".join(found[row] for row in sorted(found))
        return np.frombuffer(data, np.uint8).reshape(-1, self.width)

    # ----------------------------------------------------------------------------------------------
    # Calls

    def _few_rows(self, begin: int, end: int) -> list[int]:
        """The rows in ``begin <= row < end`` that have an entity, where most have none."""
        within = f"row >= {begin} and row < {end}"
        count = self._count(within)
        if count > _LIMIT:
            middle = (begin + end) // 2
            return self._few_rows(begin, middle) + self._few_rows(middle, end)
        return [int(entity["row"]) for entity in self._query(within, [])] if count else []

    def _query(self, within: str, fields: list[str]) -> list[dict]:
        return self._connection.call(
            self._remote.query,
            within,
            output_fields=["row", *fields],
            consistency_level="Strong",
        )

    def _count(self, within: str) -> int:
        found = self._connection.call(
            self._remote.query,
            within,
            output_fields=["count(*)"],
            consistency_level="Strong",
        )
        return int(found[0]["count(*)"])

    def _delete(self, within: str) -> None:
        self._connection.call(self._remote.delete, within)


def _ordered(distances: np.ndarray, rows: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    order = np.lexsort((rows, distances))[:k]
    return distances[order], rows[order]
