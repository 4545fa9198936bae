"""Retrieval datasets: a database and queries from any registered detection datasets.

A retrieval dataset is an ordinary Detectron2 dataset whose dicts have a role, so that a single pass
of `inference_on_dataset` encodes all images of an evaluation.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from detectron2.data import DatasetCatalog, MetadataCatalog

from ..utils.errors import RegionDHError
from .catalog import load_dataset, register_source


@dataclass(frozen=True)
class RetrievalSource:
    """A retrieval dataset; the fields are those of `register_retrieval_dataset`."""

    name: str
    database: tuple[str, ...]
    queries: tuple[str, ...]

    @property
    def parts(self) -> tuple[str, ...]:
        """All detection datasets, each once."""
        return tuple(dict.fromkeys(self.database + self.queries))

    def load(self, problems: list[str] | None = None, notes: list[str] | None = None) -> list[dict]:
        """Load the parts and merge them: the database in its order, then the remaining queries.

        Args:
            problems: None raises at the first defect; a list receives a line for each instead, and
                the defective image is left out.
            notes: of the parts; see `DatasetSource.load`.

        Returns:
            Copies of the parts' dicts, completed by `with_labels`, with `role` ("query", "database"
            or "both").

        Raises:
            ValueError: the parts disagree about their classes or about an image, an image has a
                class id outside the classes, or a side has no image.
        """

        def on_defect(message: str) -> None:
            message = f"retrieval dataset {self.name!r}: {message}"
            if problems is None:
                raise RegionDHError(message)
            problems.append(message)

        dicts = {part: load_dataset(part, problems, notes) for part in self.parts}
        # Some datasets, such as COCO's, know their classes only after loading.
        classes = common_classes(self.parts, on_defect)
        if classes is None:
            if not problems:  # otherwise they are the reason
                on_defect(f"none of {', '.join(self.parts)} has thing_classes in its metadata")
            return []
        MetadataCatalog.get(self.name).thing_classes = classes

        merged: dict[str, dict] = {}  # by the id as text, as in evaluations
        for role, names in (("database", self.database), ("query", self.queries)):
            for name in names:
                for source_record in dicts[name]:
                    record = {**with_labels(source_record), "role": role}
                    image_id = record.get("image_id")
                    if image_id is None or not record.get("file_name"):
                        on_defect(f"an image of {name} has no image_id or no file_name")
                        continue
                    if not all(0 <= label < len(classes) for label in record["image_labels"]):
                        on_defect(
                            f"{record['file_name']} of {name} has class ids"
                            f" {record['image_labels']}, but there are {len(classes)} classes"
                        )
                        continue
                    seen = merged.setdefault(str(image_id), record)
                    for key in ("file_name", "image_labels", "difficult_labels"):
                        if seen[key] != record[key]:
                            on_defect(
                                f"image_id {image_id!r} of {name} occurs twice with different"
                                f" {key}: {seen[key]} and {record[key]}; ids must differ"
                            )
                            break
                    else:
                        if seen["role"] != role:
                            seen["role"] = "both"
            # If there are problems already, they are the reason.
            if not problems and not any(dicts[name] for name in names):
                on_defect(f"its {role} side, {', '.join(names)}, holds no image")
        return list(merged.values())


def register_retrieval_dataset(
    name: str, *, database: str | Sequence[str], queries: str | Sequence[str]
) -> None:
    """Register a retrieval dataset over registered detection datasets.

    The same image on both sides is one dict with the role "both". The metadata has
    `evaluator_type` "regiondh_retrieval", `thing_classes` (for some parts only after the first
    loading), `database_datasets`, `query_datasets` and, with a single query dataset, its `dirname`,
    `year` and `split` if it has them, for Detectron2's VOC evaluator.

    Args:
        name: name of the new dataset. Repeating a registration does nothing.
        database: name or names of the detection datasets to search in.
        queries: name or names of the detection datasets to search with.

    Raises:
        ValueError: a side is empty or names an unknown dataset, the sides are known to have
            different classes, or `name` is taken by another dataset.
    """
    source = RetrievalSource(name, _as_tuple(database), _as_tuple(queries))

    def fail(message: str) -> None:
        raise RegionDHError(f"retrieval dataset {name!r}: {message}")

    for side, names in (("database", source.database), ("queries", source.queries)):
        if not names:
            fail(f"{side} names no dataset")
    for part in source.parts:
        if part not in DatasetCatalog.list():
            fail(f"{part!r} is not a registered dataset: register it first")

    metadata: dict[str, Any] = {
        "database_datasets": source.database,
        "query_datasets": source.queries,
    }
    classes = common_classes(source.parts, fail)
    if classes is not None:
        metadata["thing_classes"] = classes
    if len(source.queries) == 1:
        query_metadata = MetadataCatalog.get(source.queries[0])
        for key in ("dirname", "year", "split", "parent_split"):
            if query_metadata.get(key) is not None:
                metadata[key] = query_metadata.get(key)
    register_source(name, source, evaluator_type="regiondh_retrieval", **metadata)


def _as_tuple(names: str | Sequence[str]) -> tuple[str, ...]:
    return (names,) if isinstance(names, str) else tuple(names)


def common_classes(parts: Sequence[str], fail: Callable[[str], None]) -> list[str] | None:
    """The classes of the parts that know theirs, or None; calls `fail` if they differ."""
    known = {part: MetadataCatalog.get(part).get("thing_classes") for part in parts}
    known = {part: list(names) for part, names in known.items() if names is not None}
    if not known:
        return None
    first, classes = next(iter(known.items()))
    for part, names in known.items():
        if names != classes:
            only = sorted(set(names) ^ set(classes))
            fail(
                f"{first} and {part} have different thing_classes"
                f" ({'only in one: ' + ', '.join(only) if only else 'the order differs'})"
            )
    return classes


def with_labels(record: dict) -> dict:
    """Copy a detection dict, with `image_labels` and `difficult_labels` if it has none.

    Labels come from `annotations`, crowd regions included; then no label counts as difficult.
    """
    record = dict(record)
    if "image_labels" not in record:
        record["image_labels"] = sorted({a["category_id"] for a in record.get("annotations", ())})
    record.setdefault("difficult_labels", [])
    return record
