"""The evaluator of retrieval by codes, as Detectron2 runs it."""

from __future__ import annotations

import dataclasses
import logging
import os
import warnings
from collections import Counter, OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm

from ..config import changes_of_image_codes
from ..data.catalog import load_dataset
from ..retrieval.code_store import read_codes, write_codes
from ..structures.code_checks import check_comparable, check_one_file
from ..structures.code_rows import join_code_sets
from ..structures.codes import CodeFileError, CodeSet, check_holds
from ..structures.model_outputs import codes_from_outputs
from ..utils.display import display_name
from ..utils.errors import RegionDHError
from ..utils.file_io import refuse_inputs, write_json
from .box_evaluators import of_known_classes
from .ranking_metrics import RankingResult, evaluate_ranking
from .same_images import find_same_images

_ROLES = ("query", "database", "both")


@dataclasses.dataclass(frozen=True)
class _Record:
    """The record of an image: small, on the CPU, picklable."""

    image_id: str
    file_name: str
    role: str
    codes: CodeSet


class RetrievalEvaluator(DatasetEvaluator):
    """Measures how well image codes retrieve images that share labels with a query.

    One pass over a retrieval dataset encodes queries and database together. Each input dict has
    ``image_id``, ``file_name``, ``role`` ("query", "database" or "both"), ``image_labels`` (all
    class ids of the image) and ``difficult_labels`` (those that only difficult objects show). Each
    output dict has ``image_code``, bool (K2,), and if available ``image_activation``, float (K2,),
    and ``instances`` with ``pred_boxes``, ``scores``, ``pred_classes`` and ``pred_codes``, bool (R,
    K1).

    An image with both roles retrieves itself first, unless ``exclude_self`` leaves it out of its
    own ranking. Otherwise a warning gives the number of such queries.

    Attributes:
        codes: queries and database of the last :meth:`evaluate`; None before it, and always None
            outside the main process.
        ranked: the result of :func:`rank_code_sets` for them, likewise.
    """

    codes: tuple[CodeSet, CodeSet] | None = None
    ranked: tuple[RankingResult, list[str]] | None = None

    def __init__(
        self,
        dataset_name: str,
        *,
        topk: int | Sequence[int] = 1000,
        count_difficult: bool = True,
        output_dir: str | os.PathLike | None = None,
        database_codes: str | os.PathLike | None = None,
        bits: int | None = None,
        config_name: str = "",
        model_fingerprint: str = "",
        settings: str = "",
        instance_min_score: float = 0.3,
        exclude_self: bool = False,
        distributed: bool = True,
    ):
        """
        Args:
            dataset_name: registered retrieval dataset; its metadata has ``thing_classes``.
            topk: cut-off or cut-offs of the metrics.
            count_difficult: whether the classes of ``difficult_labels`` count as labels.
            output_dir: where to write ``<dataset_name>/{query.h5,database.h5,metrics.json}``; None
                writes nothing.
            database_codes: code file of the dataset's database images, to search in instead of
                encoding them again. Then only queries need to be processed.
            bits: code length of the model, if known, which ``database_codes`` must have.
            config_name, model_fingerprint: written into the code files.
            settings: :func:`..config.code_settings` of the model; "" if unknown. Written into the
                code files. ``database_codes`` must have the same, as far as they change image
                codes.
            instance_min_score: detections below this score are not stored.
            exclude_self: whether a query that is in the database is left out of its own ranking.
            distributed: collect records from all ranks; False if only this rank evaluates.

        Raises:
            CodeFileError: ``database_codes`` cannot be read, lack labels, or are not the codes of
                the dataset's database images by this model.
            OutputExistsError: ``database_codes`` would be replaced by the codes of the queries.
        """
        self._logger = logging.getLogger(__name__)
        self._dataset_name = dataset_name
        self._topk = topk
        self._count_difficult = count_difficult
        self._output_dir = None if output_dir is None else Path(output_dir) / dataset_name
        self._settings = settings
        self._database = None
        if database_codes is not None:
            if self._output_dir is not None:
                refuse_inputs(self._output_dir / "query.h5", [database_codes])
            self._database = read_codes(database_codes)
            check_holds(self._database, str(database_codes), "labels")
            self._check_database(self._database, str(database_codes), bits)
        self._config_name = config_name
        self._model_fingerprint = ""
        self._class_weights: np.ndarray | None = None
        self.set_model(model_fingerprint)
        self._instance_min_score = instance_min_score
        self._exclude_self = exclude_self
        self._distributed = distributed
        self._records: list[_Record] = []

    def set_model(self, fingerprint: str, class_weights: np.ndarray | None = None) -> None:
        """Set the fingerprint of the measured model ("" if unknown), unless it is set already.

        Args:
            fingerprint: of the model.
            class_weights: its classifier on the bits, float32 (K2 + 1, C), for the code files. They
                get it if the dataset has as many classes.

        Raises:
            CodeFileError: the database was encoded by another model.
        """
        self._model_fingerprint = self._model_fingerprint or fingerprint
        self._class_weights = class_weights
        if self._database is not None and self._model_fingerprint:
            known = dataclasses.replace(self._database, model_fingerprint=self._model_fingerprint)
            check_comparable(known, self._database)

    def _check_database(self, codes: CodeSet, name: str, bits: int | None) -> None:
        """Check that the codes are those of the dataset's database images."""
        if bits is not None and codes.bits != bits:
            raise CodeFileError(
                f"{name} has codes of {codes.bits} bits, and the model makes {bits}: extract the "
                "database's codes with this model"
            )
        changes = changes_of_image_codes(codes.settings, self._settings)
        if changes:
            raise CodeFileError(
                f"{name} was encoded with other settings than the queries would be: {changes[0]}: "
                "extract the database's codes with this config, or set "
                "TEST.RETRIEVAL.DATABASE_CODES to ''"
            )
        if self._dataset_name not in DatasetCatalog.list():
            return
        records = {
            str(record["image_id"]): record
            for record in load_dataset(self._dataset_name)
            if record["role"] in ("database", "both")
        }
        # Some datasets know their classes only after loading.
        classes = list(MetadataCatalog.get(self._dataset_name).thing_classes)
        if list(codes.class_names) != classes:
            raise CodeFileError(
                f"{name} has other classes than {self._dataset_name}: extract the codes of its "
                "database"
            )
        ids = [str(image_id) for image_id in codes.image_ids]
        of_others = [image_id for image_id in ids if image_id not in records]
        missing = [image_id for image_id in records if image_id not in set(ids)]
        doubles = [image_id for image_id, count in Counter(ids).items() if count > 1]
        for wrong, what in (
            (of_others, f"of the {len(ids)} images in it are not in the database"),
            (missing, f"of the database's {len(records)} images are not in it"),
            (doubles, "images are in it more than once"),
        ):
            if wrong:
                raise CodeFileError(
                    f"{name} does not hold the database of {self._dataset_name}: {len(wrong)} "
                    f"{what} (first: {display_name(wrong[0])}); extract the codes of the database, "
                    "or set TEST.RETRIEVAL.DATABASE_CODES to ''"
                )
        for row, image_id in enumerate(ids):
            record = records[image_id]
            there, here = (
                os.path.basename(str(f)) for f in (codes.file_names[row], record["file_name"])
            )
            if there != here:
                raise CodeFileError(
                    f"{name}: image {display_name(image_id)} is {display_name(there)} there, and "
                    f"{display_name(here)} in {self._dataset_name}: extract the codes of its "
                    "database"
                )
            labels = set(record["image_labels"])
            if not self._count_difficult:
                labels -= set(record.get("difficult_labels", ()))
            if labels != set(np.flatnonzero(codes.column("labels")[row]).tolist()):
                raise CodeFileError(
                    f"{name}: image {display_name(image_id)} has other labels there than in "
                    f"{self._dataset_name} now: extract the codes again, with the same "
                    "TEST.RETRIEVAL.COUNT_DIFFICULT"
                )

    def reset(self) -> None:
        self._records = []

    def process(self, inputs: list[dict], outputs: list[dict]) -> None:
        """Keep a small record of each image: packed code, labels, kept detections.

        Raises:
            ValueError: a dict lacks what retrieval needs.
        """
        for given, output in zip(inputs, outputs, strict=True):
            missing = [key for key in ("image_id", "role", "image_labels") if key not in given]
            if missing:
                raise RegionDHError(
                    f"{self._dataset_name}: an image has no {' and no '.join(missing)}: evaluate a "
                    "dataset registered with register_retrieval_dataset"
                )
            if given["role"] not in _ROLES:
                raise RegionDHError(
                    f"{self._dataset_name}: image {given['image_id']} has role {given['role']!r}, "
                    f"not one of {', '.join(_ROLES)}"
                )
            labels = set(given["image_labels"])
            if not self._count_difficult:
                labels -= set(given.get("difficult_labels", ()))
            image_id, file_name = str(given["image_id"]), str(given.get("file_name", ""))
            class_names = MetadataCatalog.get(self._dataset_name).get("thing_classes")
            if class_names is None:
                raise RegionDHError(
                    f"{self._dataset_name}: its classes are not known: set thing_classes in its "
                    "metadata, or register it with register_retrieval_dataset"
                )
            codes = codes_from_outputs(
                [of_known_classes(output, len(class_names))],
                image_ids=[image_id],
                file_names=[file_name],
                labels=[sorted(labels)],
                class_names=class_names,
                instance_min_score=self._instance_min_score,
                dataset=self._dataset_name,
                config=self._config_name,
                count_difficult=self._count_difficult,
                model_fingerprint=self._model_fingerprint,
                settings=self._settings,
            )
            self._records.append(_Record(image_id, file_name, given["role"], codes))

    def evaluate(self) -> OrderedDict:
        """Rank the database for every query; call it on all ranks.

        Returns:
            On the main process ``{"retrieval": {name: number}}`` with the names of
            :func:`rank_code_sets`; elsewhere, and when nothing was processed, an empty dict.

        Raises:
            ValueError: no query or no database image, two files of one image id, or a database file
                of another model.
        """
        records = self._records
        if self._distributed:
            comm.synchronize()
            gathered = comm.gather(records, dst=0)
            if not comm.is_main_process():
                return OrderedDict()
            records = [record for part in gathered for record in part]
        if not records:
            self._logger.warning(
                "%s: no image was processed, so there is nothing to measure", self._dataset_name
            )
            return OrderedDict()

        records = self._merge(records)
        query = self._code_set([r for r in records if r.role in ("query", "both")], "query")
        database = self._database
        coded_again = sum(r.role == "database" for r in records)
        if database is not None and coded_again:
            self._logger.warning(
                "%s: %d images of the database were encoded again; a loader of "
                "RegionDHTrainer.build_test_loader leaves them out",
                self._dataset_name,
                coded_again,
            )
        if database is None:
            found = [r for r in records if r.role in ("database", "both")]
            database = self._code_set(found, "database")
        for note in check_comparable(query, database):
            self._logger.warning("%s: %s", self._dataset_name, note)

        if self._output_dir is not None:
            write_codes(self._output_dir / "query.h5", query)
            # Those of other codes, if this is cut off.
            (self._output_dir / "metrics.json").unlink(missing_ok=True)
            if self._database is None:
                write_codes(self._output_dir / "database.h5", database)
        self.codes = query, database
        self.ranked = rank_code_sets(query, database, self._topk, exclude_self=self._exclude_self)
        result, notes = self.ranked
        for note in notes:
            self._logger.warning("%s: %s", self._dataset_name, note)
        if self._output_dir is not None:
            write_json(self._output_dir / "metrics.json", result.metrics)
        return OrderedDict(retrieval=dict(result.metrics))

    def _merge(self, records: list[_Record]) -> list[_Record]:
        """One record an image, in the dataset's order."""
        merged: dict[str, _Record] = {}
        for record in records:
            seen = merged.get(record.image_id, record)
            check_one_file(record.image_id, seen.file_name, record.file_name)
            both = seen.role != record.role
            merged[record.image_id] = dataclasses.replace(seen, role="both") if both else seen
        position: dict[str, int] = {}
        if self._dataset_name in DatasetCatalog.list():
            entries = load_dataset(self._dataset_name)
            for row, entry in enumerate(entries):
                position.setdefault(str(entry["image_id"]), row)
            wanted = {
                str(entry["image_id"])
                for entry in entries
                if self._database is None or entry["role"] != "database"
            }
            absent = len(wanted - merged.keys())
            if absent:
                self._logger.warning(
                    "%s: %d of its %d images were not processed",
                    self._dataset_name,
                    absent,
                    len(wanted),
                )
        last = len(position)
        return sorted(merged.values(), key=lambda r: (position.get(r.image_id, last), r.image_id))

    def _code_set(self, records: list[_Record], role: str) -> CodeSet:
        if not records:
            raise RegionDHError(f"{self._dataset_name}: no processed image has the role {role!r}")
        codes = join_code_sets([record.codes for record in records])
        weights = self._class_weights
        if weights is None or weights.shape != (codes.bits + 1, len(codes.class_names)):
            return codes
        return dataclasses.replace(codes, class_weights=weights)


def rank_code_sets(
    query: CodeSet,
    database: CodeSet,
    topk: int | Sequence[int],
    progress: Callable[[int, int], None] | None = None,
    *,
    exclude_self: bool = False,
) -> tuple[RankingResult, list[str]]:
    """:func:`evaluate_ranking` on two labeled code sets of equal length.

    Args:
        query, database, topk, progress: as there.
        exclude_self: whether a query's own image, found as in :mod:`.same_images`, is left out of
            its ranking.

    Returns:
        The result, with ``num_queries_in_database`` among its metrics, and warnings for the caller
        to show, a line each.
    """
    same = find_same_images(query, database)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        result = evaluate_ranking(
            query.codes,
            database.codes,
            query.column("labels"),
            database.column("labels"),
            bits=query.bits,
            topk=topk,
            exclude=same.pairs if exclude_self else None,
            progress=progress,
        )
    result.metrics["num_queries_in_database"] = same.num_queries_in_database
    return result, [*(str(warning.message) for warning in caught), *same.notes(exclude_self)]
