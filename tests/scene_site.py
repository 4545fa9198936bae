"""Scenes with their true objects as a collection, served to a browser.

The code of an object is that of its class with a few bits flipped; that of a scene is where most of
its objects agree. So the answers are what a good network would give.
"""

import hashlib
import os
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BoxMode

from builders import object_codes, photo_code_set, registered_scenes
from regiondh_d2.data import generate_scenes
from regiondh_d2.retrieval.index_folder import write_index_folder
from regiondh_d2.retrieval.queries import Query, QueryObject
from regiondh_d2.retrieval.service import SnapshotHolder
from regiondh_d2.structures.packed import pack_codes
from regiondh_d2.web.app import create_app
from regiondh_d2.web.limits import Limits
from regiondh_d2.web.page_search import PageSearch
from web_site import forked_decoder, running

BITS = 48
FLIPPED = 0.03  # of the bits of an object
MODEL = "ab" * 32
SIZE = (360, 270)


class SceneCodes:
    """Codes of scenes by their true objects.

    Args:
        dicts: of the scenes, as Detectron2 has them.
        classes: their names.
    """

    def __init__(self, dicts, classes):
        rng = np.random.default_rng(0)
        self.classes = list(classes)
        self.files = [os.path.abspath(record["file_name"]) for record in dicts]
        self.boxes, self.labels, self.codes, self.wholes = [], [], [], []
        of_class = rng.random((len(classes), BITS)) < 0.5
        for record in dicts:
            found = record["annotations"]
            boxes = [BoxMode.convert(x["bbox"], x["bbox_mode"], BoxMode.XYXY_ABS) for x in found]
            labels = np.array([x["category_id"] for x in found])
            codes = of_class[labels] ^ (rng.random((len(labels), BITS)) < FLIPPED)
            self.boxes.append(np.array(boxes, np.float32))
            self.labels.append(labels)
            self.codes.append(codes)
            self.wholes.append(codes.mean(axis=0) > 0.5)
        self.of_content = {self.content(i): i for i in range(len(self.files))}

    def content(self, i):
        return hashlib.sha256(Path(self.files[i]).read_bytes()).digest()

    def items(self, rows, root):
        """The code set of some scenes."""
        labels = np.concatenate([self.labels[i] for i in rows])
        objects = object_codes(
            np.concatenate([self.codes[i] for i in rows]),
            np.repeat(np.arange(len(rows)), [len(self.labels[i]) for i in rows]),
            boxes=np.concatenate([self.boxes[i] for i in rows]),
            classes=labels,
            scores=np.linspace(0.95, 0.6, len(labels), dtype=np.float32),
        )
        return photo_code_set(
            [self.files[i] for i in rows],
            np.array([self.wholes[i] for i in rows]),
            roots=[root],
            class_names=self.classes,
            model_fingerprint=MODEL,
            instances=objects,
        )


class SceneEncoder:
    """Knows the scenes by their content; a drawn box is the object that it overlaps most."""

    fingerprint = MODEL

    def __init__(self, codes):
        self.codes = codes
        self.last = 0

    def encode_inputs(self, inputs, file_name, content_sha256=None):
        known = self.codes
        i = self.last = known.of_content.get(content_sha256, 0)
        objects = tuple(
            QueryObject(tuple(box), known.classes[label], 0.9 - 0.05 * n)
            for n, (box, label) in enumerate(
                zip(known.boxes[i].tolist(), known.labels[i], strict=True)
            )
        )
        whole = Query(file_name, pack_codes(known.wholes[i][None]), content_sha256=content_sha256)
        codes = pack_codes(known.codes[i])
        return whole, Query(file_name, codes, objects, content_sha256=content_sha256)

    def encode_boxes(self, inputs, box, file_name, content_sha256=None):
        i = self.last
        centers = (self.codes.boxes[i][:, :2] + self.codes.boxes[i][:, 2:]) / 2
        codes = []
        for x1, y1, x2, y2 in box:
            away = np.abs(centers - [(x1 + x2) / 2, (y1 + y2) / 2]).sum(axis=1)
            codes.append(self.codes.codes[i][away.argmin()])
        objects = tuple(QueryObject(tuple(one)) for one in box)
        return Query(file_name, pack_codes(np.array(codes)), objects)


@contextmanager
def scene_server(folder, patch, count=90):
    """A server of scenes.

    Yields:
        ``url``; ``upload``, a file that isn't in the collection, its ``objects``, names of classes,
        and their ``boxes``, its ``size``; ``search``, the :class:`PageSearch`.
    """
    with registered_scenes(folder / "scenes", "page_", database=None) as name:
        generate_scenes(folder / "scenes", num_database=count, num_queries=4, image_size=SIZE)
        dicts = DatasetCatalog.get(name)
        codes = SceneCodes(dicts, MetadataCatalog.get(name).thing_classes)
        rows = [i for i, record in enumerate(dicts) if record["role"] == "database"]
        others = [i for i, record in enumerate(dicts) if record["role"] == "query"]
        items = codes.items(rows, folder / "scenes" / "JPEGImages")
    write_index_folder(folder / "index", items, engine="numpy")
    with forked_decoder(patch) as decoder:
        holder = SnapshotHolder(folder / "index")
        search = PageSearch(holder, decoder, SceneEncoder(codes), Limits(upload_bytes=300_000))
        upload = max(others, key=lambda i: len(codes.labels[i]))
        with running(create_app(search)) as port:
            yield SimpleNamespace(
                url=f"http://127.0.0.1:{port}",
                upload=codes.files[upload],
                objects=[codes.classes[label] for label in codes.labels[upload]],
                boxes=codes.boxes[upload],
                size=(dicts[upload]["width"], dicts[upload]["height"]),
                search=search,
            )
