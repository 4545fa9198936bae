"""Groups of photos that show the same, and near duplicates, for the page."""

from __future__ import annotations

import threading
from typing import Any

from ..retrieval.groups import PhotoGroups, group_photos
from ..utils.errors import RegionDHError
from .collection import Collection
from .page_search import PageSearch

__all__ = ["GroupViews"]


class GroupViews:
    """The groups of a collection, found once for each state of it.

    Args:
        search: has the collection.
    """

    def __init__(self, search: PageSearch):
        self._search = search
        self._lock = threading.Lock()
        self._found: tuple[Collection, PhotoGroups] | None = None

    def groups(self, offset: int, limit: int) -> dict[str, Any]:
        """Some of the groups, the largest first.

        Raises:
            RegionDHError: the index is too large, or too little is known to calibrate a distance.
        """
        collection, found = self._find()
        cutoffs = collection.cutoffs("image")
        groups = [list(group.rows) for group in found.groups]
        values = self._describe(groups, offset, limit)
        return {**values, "distance": None if cutoffs is None else cutoffs.similar}

    def copies(self, offset: int, limit: int) -> dict[str, Any]:
        """Some of the photos that there are copies of, with these; raises as :meth:`groups`."""
        _, found = self._find()
        groups = [[row, *copies] for row, copies in found.copies.items()]
        return {**self._describe(groups, offset, limit), "note": found.note}

    def _describe(self, groups: list[list[int]], offset: int, limit: int) -> dict[str, Any]:
        shown = groups[offset : offset + limit]
        return {
            "total": len(groups),
            "groups": [
                {"count": len(rows), "photos": self._search.describe_photos(rows[:_MOST])}
                for rows in shown
            ],
            "more": offset + limit < len(groups),
        }

    def _find(self) -> tuple[Collection, PhotoGroups]:
        collection = self._search.collection()
        most = self._search.limits.grouped_photos
        if len(collection) > most:
            raise RegionDHError(
                f"groups are shown of at most {most} photos: run `regiondh groups` for this index"
            )
        with self._lock:
            if self._found is None or self._found[0] is not collection:
                cutoffs = collection.cutoffs("image")
                distance = -1 if cutoffs is None else cutoffs.similar
                self._found = (collection, group_photos(collection.items, distance))
            return self._found


_MOST = 60  # photos of one group
