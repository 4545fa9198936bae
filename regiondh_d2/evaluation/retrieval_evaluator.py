"""Evaluators in Detectron2's contract: retrieval by codes, and box AP beside it."""

from __future__ import annotations

import dataclasses
import logging
import os
import tempfile
import warnings
import xml.etree.ElementTree as ElementTree
from collections import Counter, OrderedDict, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from urllib.parse import quote

import numpy as np
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import COCOEvaluator, DatasetEvaluator, PascalVOCDetectionEvaluator
from detectron2.evaluation.pascal_voc_evaluation import parse_rec, voc_eval
from detectron2.structures import BoxMode
from detectron2.utils import comm

from ..config import changes_of_image_codes
from ..data.catalog import load_dataset
from ..retrieval.code_store import read_codes, write_codes
from ..structures.codes import (
    CodeFileError,
    CodeSet,
    check_comparable,
    check_holds,
    check_one_file,
    codes_from_outputs,
    join_code_sets,
)
from ..utils.display import display_name
from ..utils.errors import RegionDHError
from ..utils.file_io import refuse_inputs, write_json
from .ranking_metrics import RankingResult, evaluate_ranking
from .same_images import find_same_images

_ROLES = ("query", "database", "both")


@dataclasses.dataclass(frozen=True)
class _Record:
    """What one image leaves behind: small, on the CPU, picklable."""

    image_id: str
    file_name: str
    role: str
    codes: CodeSet


def _of_known_classes(output: dict, count: int) -> dict:
    """An output without detections of classes that the dataset lacks.

    A network may know more classes than a dataset; what it takes for one of these is no answer
    about the others.
    """
    found = output.get("instances")
    if found is None or not found.has("pred_classes"):
        return output
    return {**output, "instances": found[found.pred_classes < count]}


class RetrievalEvaluator(DatasetEvaluator):
    """Measures how well image codes retrieve images that share labels with a query.

    One pass over a retrieval dataset codes queries and database together. Each input dict carries
    ``image_id``, ``file_name``, ``role`` ("query", "database" or "both"), ``image_labels`` (all
    class ids of the image) and ``difficult_labels`` (those that only difficult objects show). Each
    output dict carries ``image_code``, bool (K2,), and if available ``image_activation``, float
    (K2,), and ``instances`` with ``pred_boxes``, ``scores``, ``pred_classes`` and ``pred_codes``,
    bool (R, K1).

    An image with both roles retrieves itself first, unless ``exclude_self`` leaves it out of its
    own ranking; without it, a warning has the number of such queries.
    """

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
                coding them again. Then only queries need to be processed.
            bits: code length of the model, if known, which ``database_codes`` must have.
            config_name, model_fingerprint: written into the code files.
            settings: :func:`..config.code_settings` of the model, which ``database_codes`` must
                have, as far as it decides about image codes; "" if unknown. Written, too.
            instance_min_score: detections below this score are not stored.
            exclude_self: whether a query that is in the database is left out of its own ranking.
            distributed: collect records from all ranks; False if only this rank evaluates.

        Raises:
            CodeFileError: ``database_codes`` cannot be read, lack labels, or are not those of the
                dataset's database images by this model; better now than after the coding.
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
            self._check_database(str(database_codes), bits)
        self._config_name = config_name
        self._model_fingerprint = ""
        self.set_model(model_fingerprint)
        self._instance_min_score = instance_min_score
        self._exclude_self = exclude_self
        self._distributed = distributed
        self._records: list[_Record] = []

    def set_model(self, fingerprint: str) -> None:
        """Say which model is measured, unless that is known: its fingerprint, "" if unknown.

        Raises:
            CodeFileError: the coded database is another model's.
        """
        self._model_fingerprint = self._model_fingerprint or fingerprint
        if self._database is not None and self._model_fingerprint:
            known = dataclasses.replace(self._database, model_fingerprint=self._model_fingerprint)
            check_comparable(known, self._database)

    def _check_database(self, name: str, bits: int | None) -> None:
        """Refuse codes that are not those of the dataset's database images."""
        codes = self._database
        if bits is not None and codes.bits != bits:
            raise CodeFileError(
                f"{name} has codes of {codes.bits} bits, and the model makes {bits}: extract the "
                "database's codes with this model"
            )
        changes = changes_of_image_codes(codes.settings, self._settings)
        if changes:
            raise CodeFileError(
                f"{name} was coded with other settings than the queries would be: {changes[0]}: "
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
        # Known after the loading, at the latest.
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
            if labels != set(np.flatnonzero(codes.labels[row]).tolist()):
                raise CodeFileError(
                    f"{name}: image {display_name(image_id)} has other labels there than in "
                    f"{self._dataset_name} now: extract the codes again, with the same "
                    "TEST.RETRIEVAL.COUNT_DIFFICULT"
                )

    def reset(self) -> None:
        self._records = []

    def process(self, inputs: list[dict], outputs: list[dict]) -> None:
        """Keeps a small record of each image: packed code, labels, kept detections.

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
            class_names = MetadataCatalog.get(self._dataset_name).thing_classes
            codes = codes_from_outputs(
                [_of_known_classes(output, len(class_names))],
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
        """Ranks the database for every query; call it on all ranks.

        Returns:
            On the main process ``{"retrieval": {name: number}}`` with the names of
            :func:`rank_code_sets`; elsewhere, and when
            nothing was processed, an empty dict.

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
                "%s: %d images of the database were coded again; a loader of "
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
            if self._database is None:
                write_codes(self._output_dir / "database.h5", database)
        result, notes = rank_code_sets(query, database, self._topk, exclude_self=self._exclude_self)
        for note in notes:
            self._logger.warning("%s: %s", self._dataset_name, note)
        if self._output_dir is not None:
            write_json(self._output_dir / "metrics.json", result.metrics)
        return OrderedDict(retrieval=dict(result.metrics))

    def _merge(self, records: list[_Record]) -> list[_Record]:
        """One record an image, in the dataset's order whatever the order of arrival."""
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
        return join_code_sets([record.codes for record in records])


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
        exclude_self: whether a query's own image, as :mod:`.same_images` knows it, is left out of
            its ranking.

    Returns:
        The result, with ``num_queries_in_database`` among its metrics, and warnings as lines of
        text, for the caller to show.
    """
    same = find_same_images(query, database)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        result = evaluate_ranking(
            query.codes,
            database.codes,
            query.labels,
            database.labels,
            bits=query.bits,
            topk=topk,
            exclude=same.pairs if exclude_self else None,
            progress=progress,
        )
    result.metrics["num_queries_in_database"] = same.num_queries_in_database
    return result, [*(str(warning.message) for warning in caught), *same.notes(exclude_self)]


class RoleFilter(DatasetEvaluator):
    """Shows another evaluator only the images of one role, such as box AP only the queries."""

    def __init__(self, role: str, evaluator: DatasetEvaluator):
        """
        Args:
            role: "query" or "database"; images of the role "both" pass either way.
            evaluator: the evaluator to feed.

        Raises:
            ValueError: another role.
        """
        if role not in ("query", "database"):
            raise RegionDHError(f"role must be 'query' or 'database', not {role!r}")
        self._roles = (role, "both")
        self._evaluator = evaluator

    def reset(self) -> None:
        self._evaluator.reset()

    def process(self, inputs: list[dict], outputs: list[dict]) -> None:
        pairs = [
            pair for pair in zip(inputs, outputs, strict=True) if pair[0]["role"] in self._roles
        ]
        if pairs:
            self._evaluator.process([given for given, _ in pairs], [output for _, output in pairs])

    def evaluate(self):
        return self._evaluator.evaluate()


class COCOBoxEvaluator(COCOEvaluator):
    """Detectron2's COCO evaluator on what the dataset's reader made of the annotations.

    Detectron2's own opens the JSON file again, which it may not be able to read, and insists on
    ids that are numbers and on an area and a crowd flag of each object.
    """

    def __init__(self, dataset_name: str, output_dir: str | os.PathLike | None = None):
        """
        Args:
            dataset_name: a registered detection dataset in COCO format.
            output_dir: where to write predictions; None writes none.

        Raises:
            RegionDHError: the dataset has a defect, or no classes.
        """
        dicts = load_dataset(dataset_name)
        metadata = MetadataCatalog.get(dataset_name)
        if metadata.get("thing_classes") is None:
            raise RegionDHError(f"dataset {dataset_name!r} has no thing_classes in its metadata")
        # COCO's code sorts the ids of all images, so numbers and text don't go together.
        self._id_type = int if all(isinstance(d["image_id"], int) for d in dicts) else str
        # The base class takes a name whose metadata has a file; both are needed only meanwhile.
        name = f"{dataset_name} as read"
        known = {
            key: metadata.get(key)
            for key in ("thing_classes", "thing_dataset_id_to_contiguous_id")
            if metadata.get(key) is not None
        }
        with tempfile.TemporaryDirectory(prefix="regiondh_coco_eval_") as folder:
            path = os.path.join(folder, "truth.json")
            write_json(path, _coco_content(dicts, self._id_type, **known))
            MetadataCatalog.get(name).set(json_file=path, **known)
            try:
                super().__init__(
                    name,
                    output_dir=None if output_dir is None else os.fspath(output_dir),
                    use_fast_impl=self._id_type is int,
                )
            finally:
                MetadataCatalog.remove(name)

    def process(self, inputs: list[dict], outputs: list[dict]) -> None:
        given = [{**record, "image_id": self._id_type(record["image_id"])} for record in inputs]
        count = len(self._metadata.thing_classes)
        super().process(given, [_of_known_classes(output, count) for output in outputs])


def _coco_content(
    dicts: Sequence[dict],
    id_type: type,
    thing_classes: Sequence[str],
    thing_dataset_id_to_contiguous_id: Mapping[int, int] | None = None,
) -> dict:
    """Dataset dicts in COCO's format, with the categories' own ids, if there are any."""
    category_ids = list(range(len(thing_classes)))
    for category_id, position in (thing_dataset_id_to_contiguous_id or {}).items():
        category_ids[position] = category_id
    annotations = []
    for entry in dicts:
        for annotation in entry.get("annotations", ()):
            box = BoxMode.convert(
                [float(value) for value in annotation["bbox"]],
                annotation["bbox_mode"],
                BoxMode.XYWH_ABS,
            )
            found = {
                "id": len(annotations) + 1,  # 0 would count as no match
                "image_id": id_type(entry["image_id"]),
                "category_id": category_ids[annotation["category_id"]],
                "bbox": list(box),
                "area": annotation.get("area", box[2] * box[3]),
                "iscrowd": int(annotation.get("iscrowd", 0)),
            }
            if isinstance(segmentation := annotation.get("segmentation"), dict):
                counts = segmentation["counts"]
                counts = counts.decode("ascii") if isinstance(counts, bytes) else counts
                found["segmentation"] = {**segmentation, "counts": counts}
            elif segmentation:
                found["segmentation"] = segmentation
            if keypoints := annotation.get("keypoints"):
                found["keypoints"] = [
                    value if place % 3 == 2 else value - 0.5
                    for place, value in enumerate(keypoints)
                ]
                found["num_keypoints"] = sum(visible > 0 for visible in keypoints[2::3])
            annotations.append(found)
    images = [
        {
            "id": id_type(entry["image_id"]),
            "file_name": str(entry["file_name"]),
            "height": entry["height"],
            "width": entry["width"],
        }
        for entry in dicts
    ]
    categories = [
        {"id": i, "name": name} for i, name in zip(category_ids, thing_classes, strict=True)
    ]
    return {"images": images, "categories": categories, "annotations": annotations}


class VOCBoxEvaluator(PascalVOCDetectionEvaluator):
    """Detectron2's PASCAL VOC box AP for any registered dataset with annotations.

    It differs from its base class in two points. The images and their true boxes come from the
    registered dicts, so a split needs no ImageSets file, and coordinates with decimals (VOC 2012
    has some) do not stop it; annotations with ``difficult`` set count neither way. And classes
    without a true box are left out of the mean, where the base class lets each pull it down by a
    zero.
    """

    def __init__(self, dataset_name: str):
        """
        Args:
            dataset_name: registered detection dataset. ``year`` 2007 in its metadata asks for the
                11-point AP, anything else for the area under the curve.
        """
        metadata = MetadataCatalog.get(dataset_name)
        self._dataset_name = dataset_name
        self._class_names = None
        self._is_2007 = metadata.get("year") == 2007
        self._cpu_device = torch.device("cpu")
        self._logger = logging.getLogger(__name__)

    def process(self, inputs: list[dict], outputs: list[dict]) -> None:
        words = [{**given, "image_id": _as_word(given["image_id"])} for given in inputs]
        super().process(words, outputs)

    def evaluate(self) -> OrderedDict:
        """
        Returns:
            On the main process ``{"bbox": {"AP", "AP50", "AP75"}}`` in percent, NaN if no class has
            a true box; elsewhere an empty dict.
        """
        gathered = comm.gather(self._predictions, dst=0)
        if not comm.is_main_process():
            return OrderedDict()
        lines = defaultdict(list)
        for predictions in gathered:
            for class_id, found in predictions.items():
                lines[class_id].extend(found)

        dicts = load_dataset(self._dataset_name)
        present = {
            annotation["category_id"]
            for entry in dicts
            for annotation in entry.get("annotations", ())
            if not annotation.get("difficult", False)
        }
        thresholds = range(50, 100, 5)
        aps = np.zeros((len(present), len(thresholds)))
        # An image is its row and a class its id, since Detectron2's code separates what it reads by
        # blanks, and opens files by the ids: what ids and classes are called must not matter.
        row_of = {_as_word(entry["image_id"]): row for row, entry in enumerate(dicts)}
        with tempfile.TemporaryDirectory(prefix="regiondh_voc_eval_") as folder:
            for row, entry in enumerate(dicts):
                _write_voc_xml(os.path.join(folder, f"{row}.xml"), entry)
            image_set = os.path.join(folder, "images.txt")
            Path(image_set).write_text("\n".join(map(str, range(len(dicts)))))
            for row, class_id in enumerate(sorted(present)):
                if not lines[class_id]:
                    continue
                # Detectron2 fills in the class, and the folder of temporary files may have braces.
                Path(folder, f"{class_id}.txt").write_text(
                    "\n".join(_by_row(lines[class_id], row_of))
                )
                for column, threshold in enumerate(thresholds):
                    aps[row, column] = voc_eval(
                        _literally(folder) + "/{}.txt",
                        _literally(folder) + "/{}.xml",
                        image_set,
                        str(class_id),
                        ovthresh=threshold / 100,
                        use_07_metric=self._is_2007,
                    )[2]
        # It remembers every file it ever read, and these names will not come again.
        parse_rec.cache_clear()
        if not present:
            self._logger.warning("%s has no true boxes: box AP is undefined", self._dataset_name)
            mean = np.full(len(thresholds), np.nan)
        else:
            mean = 100 * aps.mean(axis=0)
        values = {"AP": float(mean.mean()), "AP50": float(mean[0]), "AP75": float(mean[5])}
        return OrderedDict(bbox=values)


def _as_word(image_id: int | str) -> str:
    """An image id without blanks."""
    return quote(str(image_id), safe="", errors="surrogatepass")


def _by_row(lines: Sequence[str], row_of: Mapping[str, int]) -> Iterator[str]:
    """Lines of detections, which begin with an image's id, with its row instead."""
    for line in lines:
        word, blank, rest = line.partition(" ")
        yield f"{row_of[word]}{blank}{rest}"


def _literally(path: str) -> str:
    """A path that ``str.format`` leaves alone."""
    return path.replace("{", "{{").replace("}", "}}")


def _write_voc_xml(path: str, entry: dict) -> None:
    """Writes the boxes of a dataset dict the way ``voc_eval`` reads them."""
    root = ElementTree.Element("annotation")
    for annotation in entry.get("annotations", ()):
        x0, y0, x1, y1 = BoxMode.convert(
            list(annotation["bbox"]), annotation["bbox_mode"], BoxMode.XYXY_ABS
        )
        element = ElementTree.SubElement(root, "object")
        for tag, text in (
            ("name", str(annotation["category_id"])),
            ("pose", ""),
            ("truncated", "0"),
            ("difficult", str(int(annotation.get("difficult", False)))),
        ):
            ElementTree.SubElement(element, tag).text = text
        box = ElementTree.SubElement(element, "bndbox")
        # VOC counts pixels from 1 and includes the last one.
        corners = {"xmin": x0 + 1, "ymin": y0 + 1, "xmax": x1, "ymax": y1}
        for tag, value in corners.items():
            ElementTree.SubElement(box, tag).text = str(round(value))
    ElementTree.ElementTree(root).write(path, encoding="utf-8")
