"""Approximate search with FAISS's inverted lists."""

from __future__ import annotations

import numpy as np

from ...structures.packed import pad_columns
from ...utils.errors import RegionDHError
from ..hamming_index import HammingIndex, positive_integer
from .code_array import width_in_words
from .faiss_threads import import_faiss, search_in_parts

__all__ = ["FaissIVFIndex"]

_BATCH = 1024  # queries of a call


class FaissIVFIndex(HammingIndex):
    """Approximate search by FAISS's ``IndexBinaryIVF``: only the codes of some lists are compared.

    The first codes added train the lists, which hold copies of the codes, with their rows. The
    recall depends on the codes: it is high for clustered codes and lowest for evenly spread ones.
    Measure it with :func:`~regiondh_d2.retrieval.engines.self_recall`. A query whose lists hold
    fewer than k codes is filled up, as FAISS does, with row -1 and distance 2147483647.

    Args:
        bits: code length.
        nlist: number of lists; about the square root of the number of codes is usual.
        nprobe: lists compared with a query, at most ``nlist``; by default 16, or ``nlist`` if that
            is less.
    """

    exact = False

    def __init__(self, bits: int, nlist: int, nprobe: int | None = None) -> None:
        super().__init__(bits)
        self._faiss = import_faiss()
        self.nlist = positive_integer("nlist", nlist)
        self.nprobe = min(16, self.nlist) if nprobe is None else positive_integer("nprobe", nprobe)
        if self.nprobe > self.nlist:
            raise RegionDHError(f"nprobe {self.nprobe} is above nlist {self.nlist}")
        self._padded_width = width_in_words(self.width)
        self._clear({})

    @property
    def codes(self) -> np.ndarray:
        from faiss.contrib.inspect_tools import get_invlist

        # Not by reconstruct_n, which writes outside the array in FAISS 1.13 and older.
        lists = [get_invlist(self._index.invlists, i) for i in range(self.nlist)]
        rows, codes = map(np.concatenate, zip(*lists, strict=True))
        return codes[np.argsort(rows), : self.width]

    def _add(self, codes: np.ndarray, rows: np.ndarray) -> None:
        padded = pad_columns(codes, self._padded_width)
        if not self._index.is_trained:
            if len(codes) < self.nlist:
                raise RegionDHError(
                    f"nlist {self.nlist} needs at least as many codes in the first add, not "
                    f"{len(codes)}: lower nlist or search exactly"
                )
            self._index.train(padded)
        self._index.add_with_ids(padded, rows)

    def _remove(self, rows: np.ndarray) -> None:
        self._index.remove_ids(rows)

    def _clear(self, arrays: dict[str, np.ndarray]) -> None:
        self._quantizer = self._faiss.IndexBinaryFlat(8 * self._padded_width)
        self._index = self._faiss.IndexBinaryIVF(
            self._quantizer, 8 * self._padded_width, self.nlist
        )
        self._index.nprobe = self.nprobe
        centroids = arrays.get("centroids")
        if (
            centroids is not None
            and centroids.dtype == np.uint8
            and centroids.shape == (self.nlist, self._padded_width)
        ):  # otherwise the new codes train it
            self._quantizer.add(centroids)
            self._index.is_trained = True

    def _search(self, codes: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        distances, rows = search_in_parts(
            lambda part: self._index.search(part, k), pad_columns(codes, self._padded_width), _BATCH
        )
        order = np.lexsort((rows, distances))
        return np.take_along_axis(distances, order, 1), np.take_along_axis(rows, order, 1)

    def _trained_arrays(self) -> dict[str, np.ndarray]:
        if not self._index.is_trained:
            return {}
        return {"centroids": self._quantizer.reconstruct_n(0, self.nlist)}
