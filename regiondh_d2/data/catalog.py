"""Registration that can be repeated, and loading that can collect every problem.

A *source* is a frozen dataclass that describes a dataset completely and loads it. Two equal sources
are the same dataset, which is what makes registering twice harmless.
"""

from __future__ import annotations

import difflib
from typing import Any, Protocol

from detectron2.data import DatasetCatalog, MetadataCatalog

from ..utils.errors import RegionDHError


class DatasetSource(Protocol):
    """What `register_source` needs of a dataset description."""

    def load(self, problems: list[str] | None = None) -> list[dict]:
        """Return the dataset dicts.

        Args:
            problems: None raises at the first defect. A list receives a line for each instead, and
                what is defective is left out of the result.
        """


_SOURCES: dict[str, DatasetSource] = {}


def register_source(name: str, source: DatasetSource, **metadata: Any) -> None:
    """Register `source` as dataset `name`; a repeated call with an equal source does nothing.

    Args:
        name: the name in Detectron2's catalogs.
        source: the dataset; only its `load` runs, and only when somebody asks for the dicts.
        metadata: attributes for `MetadataCatalog.get(name)`.

    Raises:
        ValueError: the name is taken by a different dataset.
    """
    if name in DatasetCatalog.list():
        if _SOURCES.get(name) == source:
            return
        raise RegionDHError(
            f"dataset name {name!r} is already registered for something else"
            f" ({_SOURCES.get(name, 'by other code')}): choose another name"
        )
    DatasetCatalog.register(name, source.load)
    _SOURCES[name] = source
    MetadataCatalog.get(name).set(**metadata)


def find_source(name: str) -> DatasetSource | None:
    """The source registered under `name` here, or None for a dataset of other code."""
    return _SOURCES.get(name) if name in DatasetCatalog.list() else None


def load_dataset(name: str, problems: list[str] | None = None) -> list[dict]:
    """Load any registered dataset; `problems` as in `DatasetSource.load`.

    Datasets that other code registered cannot collect: they raise whatever they raise.
    """
    source = find_source(name)
    return DatasetCatalog.get(name) if source is None else source.load(problems)


def registered_names() -> list[str]:
    """The names that were registered here, in the order of registration."""
    return [name for name in _SOURCES if find_source(name) is not None]


def require_dataset(name: str, told: str = "dataset") -> None:
    """Check that a dataset is registered, here or by other code.

    Args:
        name: of the dataset.
        told: what the message puts before the name, such as the option.

    Raises:
        RegionDHError: it isn't; the message lists the names that were registered here.
    """
    known = DatasetCatalog.list()
    if name in known:
        return
    near = difflib.get_close_matches(name, known, n=1)
    raise RegionDHError(
        f"{told} {name!r}, which isn't registered; known: {', '.join(registered_names())}, and "
        "Detectron2's own; what registers your own is imported by --import MODULE_OR_FILE"
        f"{f'; did you mean {near[0]}?' if near else ''}"
    )
