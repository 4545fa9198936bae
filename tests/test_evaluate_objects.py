"""tools/evaluate_objects.py with a small network on generated scenes."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog
from detectron2.structures import Boxes, BoxMode, Instances

from regiondh_d2.data import register_scenes
from regiondh_d2.engine import build_cfg
from regiondh_d2.engine.command import load_trained_model
from regiondh_d2.evaluation.object_queries import evaluate_object_queries
from regiondh_d2.retrieval.code_store import read_codes, write_codes
from regiondh_d2.retrieval.images import ImageLoader
from regiondh_d2.structures.packed import pack_codes

DATABASE = "evaluate_objects_regiondh_scenes_database"
QUERIES = "evaluate_objects_regiondh_scenes_queries"


@pytest.fixture(scope="module")
def tool(load_tool):
    return load_tool("evaluate_objects")


@pytest.fixture(scope="module")
def database(random_network, tmp_path_factory, load_tool):
    """The code file of the scenes that are searched in."""
    register_scenes(random_network.scenes, "evaluate_objects_")
    path = tmp_path_factory.mktemp("evaluate_objects") / "database.h5"
    start = ["--config-file", random_network.config, "--dataset", DATABASE, "--output", str(path)]
    assert load_tool("extract_codes").main([*start, *random_network.opts]) == 0
    return path


@pytest.fixture
def encoder(tool, random_network, database):
    cfg = build_cfg(random_network.config, random_network.opts)
    return tool.ObjectEncoder(cfg, QUERIES, True)


@pytest.fixture
def arguments(random_network, database):
    """A function from options to a complete command line."""

    def make(*options, opts=()):
        start = ["--config-file", random_network.config, "--dataset", QUERIES]
        start += ["--database", str(database)]
        return [*start, *options, *random_network.opts, *opts]

    return make


def error_of(capsys):
    (error,) = [line for line in capsys.readouterr().err.splitlines() if "error" in line]
    return error


def test_objects_are_coded_as_the_model_codes_their_boxes(
    tool, encoder, random_network, tmp_path, load_tool
):
    """Against a forward pass for each object, and the code file of the same images."""
    query, objects = encoder.encode(tool.load_records(QUERIES))
    cfg = build_cfg(random_network.config, random_network.opts)
    model, load = load_trained_model(cfg), ImageLoader(cfg)
    row = 0
    for image, record in enumerate(DatasetCatalog.get(QUERIES)):
        inputs = load(record["file_name"])
        scale = inputs["image"].shape[2] / inputs["width"]
        assert scale < 1
        for annotation in record["annotations"]:
            given = Instances(inputs["image"].shape[1:])
            given.pred_boxes = Boxes(torch.tensor([annotation["bbox"]]) * scale)
            with torch.no_grad():
                (coded,) = model.inference([inputs], [given], do_postprocess=False)
            np.testing.assert_array_equal(objects.codes[row], pack_codes(coded.pred_codes)[0])
            np.testing.assert_array_equal(objects.boxes[row], np.float32(annotation["bbox"]))
            assert objects.classes[row] == annotation["category_id"]
            assert objects.image_index[row] == image
            row += 1
    assert row == len(objects.codes) > 3
    assert len(np.unique(objects.codes, axis=0)) > 1

    output = str(tmp_path / "query.h5")
    start = ["--config-file", random_network.config, "--dataset", QUERIES, "--output", output]
    options = ["--batch-size", "1", *random_network.opts]
    assert load_tool("extract_codes").main([*start, *options]) == 0
    file = read_codes(output)
    assert query.model_fingerprint == file.model_fingerprint
    assert query.file_names == file.file_names
    for name in ("codes", "labels"):
        np.testing.assert_array_equal(getattr(query, name), getattr(file, name))
    for name in ("codes", "image_index", "boxes", "classes"):
        expected = getattr(file.instances, name)
        np.testing.assert_array_equal(getattr(query.instances, name), expected)


def test_the_numbers(tool, encoder, database, arguments, tmp_path, capsys):
    out = tmp_path / "objects.json"
    assert tool.main(arguments("--json", str(out))) == 0
    printed = capsys.readouterr()
    assert "warning" not in printed.err
    coded = encoder.encode(tool.load_records(QUERIES))
    metrics = json.loads(out.read_text())
    assert metrics == evaluate_object_queries(*coded, read_codes(database)).metrics
    lines = printed.out.splitlines()
    assert lines[0].startswith(f"{metrics['num_queries']} objects in 3 images, searched in 8 ")
    for line, ranking in zip(lines[2:4], ("objects", "images"), strict=True):
        values = [metrics[f"{ranking}/MAP_all{order}"] for order in tool.COLUMNS.values()]
        assert line.split() == [ranking, *(f"{value:.4f}" for value in values)]


def test_the_numbers_of_a_blend_and_of_places(tool, encoder, database, arguments, tmp_path, capsys):
    out = tmp_path / "objects.json"
    options = ["--blend", "0.5", "--database-dataset", DATABASE, "--json", str(out)]
    assert tool.main(arguments(*options)) == 0
    codes = read_codes(database)
    true = tool.true_objects(DATABASE, codes)
    records = {record["image_id"]: record for record in DatasetCatalog.get(DATABASE)}
    for image, image_id in enumerate(codes.image_ids):
        mine = true.image_index == image
        wanted = records[image_id]["annotations"]
        np.testing.assert_array_equal(true.classes[mine], [a["category_id"] for a in wanted])
        np.testing.assert_allclose(true.boxes[mine], np.float32([a["bbox"] for a in wanted]))
    coded = encoder.encode(tool.load_records(QUERIES))
    expected = evaluate_object_queries(*coded, codes, blend=0.5, true_objects=true).metrics
    metrics = json.loads(out.read_text())
    assert metrics == expected
    lines = capsys.readouterr().out.splitlines()
    row = next(line for line in lines if line.startswith("blend, box on an object  "))
    assert row.split()[-1] == f"{metrics['where/blend/MAP_all']:.4f}"


def test_crowds_are_no_objects_and_boxes_are_converted(tool):
    record = {
        "annotations": [
            {"bbox": [1, 2, 10, 20], "bbox_mode": BoxMode.XYWH_ABS, "category_id": 3},
            {"bbox": [0, 0, 9, 9], "bbox_mode": 0, "category_id": 1, "iscrowd": 1},
        ]
    }
    found = tool.annotated_objects(record, (30, 40))
    assert found.pred_boxes.tensor.tolist() == [[1, 2, 11, 22]]
    assert found.pred_classes.tolist() == [3]
    record["annotations"].pop(0)
    assert len(tool.annotated_objects(record, (30, 40))) == 0


def test_an_image_with_a_crowd_alone(tool, encoder):
    """Its image is encoded, and it has no object."""
    records = tool.load_records(QUERIES)
    crowd = [{**annotation, "iscrowd": 1} for annotation in records[0]["annotations"]]
    query, objects = encoder.encode([{**records[0], "annotations": crowd}, *records[1:]])
    assert len(query) == 3
    assert set(objects.image_index) == {1, 2}


def test_failures_are_one_line_before_the_coding(tool, database, arguments, tmp_path, capsys):
    out = tmp_path / "out.json"
    unlabeled, other = str(tmp_path / "unlabeled.h5"), str(tmp_path / "other.h5")
    codes = read_codes(database)
    write_codes(unlabeled, replace(codes, labels=None))
    write_codes(other, replace(codes, model_fingerprint="e" * 64))
    for options, opts, message in (
        (["--database", "absent.h5"], (), "absent.h5"),
        (["--database", unlabeled], (), "no labels in the database codes"),
        (["--database", other], (), "and the database by eeeeeeeeeeee: encode both with the same"),
        ([], ["MODEL.META_ARCHITECTURE", "GeneralizedRCNN"], "GeneralizedRCNN encodes no objects"),
        (["--dataset", "absent"], (), "absent"),
        (["--database-dataset", QUERIES], (), f"--database-dataset {QUERIES} has no image "),
    ):
        assert tool.main(arguments(*options, "--json", str(out), opts=opts)) == 1
        assert message in error_of(capsys)
    assert not out.exists()
