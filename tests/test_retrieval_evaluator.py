"""The evaluator of retrieval, fed with small fake outputs."""

import json
import random
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import Boxes, Instances
from detectron2.utils import comm

from regiondh_d2.config import code_settings
from regiondh_d2.evaluation import RetrievalEvaluator, evaluate_ranking, retrieval_evaluator
from regiondh_d2.retrieval.code_store import read_codes, write_codes
from regiondh_d2.structures.code_checks import check_comparable
from regiondh_d2.structures.codes import CodeFileError
from regiondh_d2.structures.packed import pack_codes, unpack_codes

CLASSES = ["cat", "dog", "horse"]
BITS, INSTANCE_BITS = 10, 6
ROLES = ["database"] * 8 + ["query"] * 5 + ["both"] * 2


@pytest.fixture
def dataset():
    """A registered dataset, not in the order of its ids, and what a model might put out."""
    rng = np.random.default_rng(0)
    inputs, outputs = [], []
    ids = rng.permutation(len(ROLES))
    for image_id, role in zip(ids, ROLES, strict=True):
        labels = sorted(rng.choice(3, size=int(rng.integers(1, 4)), replace=False).tolist())
        inputs.append(
            {
                "image_id": f"{image_id:06d}",
                "file_name": f"images/{image_id:06d}.jpg",
                "role": role,
                "image_labels": labels,
                "difficult_labels": labels[1:],
            }
        )
        count = int(rng.integers(0, 4))
        instances = Instances(
            (100, 200),
            pred_boxes=Boxes(torch.rand(count, 4) * 100),
            scores=torch.linspace(0.9, 0.1, count),
            pred_classes=torch.randint(0, 3, (count,)),
            pred_codes=torch.rand(count, INSTANCE_BITS) < 0.5,
        )
        outputs.append(
            {
                "image_code": torch.from_numpy(rng.random(BITS) < 0.5),
                "image_activation": torch.rand(BITS),
                "image_scores": torch.rand(3),
                "instances": instances,
            }
        )
    name = "fake_retrieval_for_evaluator_tests"
    DatasetCatalog.register(name, lambda: inputs)
    MetadataCatalog.get(name).set(thing_classes=CLASSES, evaluator_type="regiondh_retrieval")
    yield SimpleNamespace(name=name, inputs=inputs, outputs=outputs)
    DatasetCatalog.remove(name)
    MetadataCatalog.remove(name)


def feed(evaluator, dataset, order=None, rows=None):
    """Process rows in batches of two."""
    order = list(range(len(dataset.inputs))) if order is None else order
    evaluator.reset()
    for begin in range(0, len(order), 2):
        batch = order[begin : begin + 2]
        evaluator.process([dataset.inputs[i] for i in batch], [dataset.outputs[i] for i in batch])
    return evaluator.evaluate()


def expected_metrics(dataset, topk, drop_difficult=False):
    def select(role):
        rows = [i for i, given in enumerate(dataset.inputs) if given["role"] in (role, "both")]
        labels = np.zeros((len(rows), 3), np.uint8)
        for row, i in enumerate(rows):
            dropped = dataset.inputs[i]["difficult_labels"] if drop_difficult else []
            labels[row, [c for c in dataset.inputs[i]["image_labels"] if c not in dropped]] = 1
        return pack_codes(np.stack([dataset.outputs[i]["image_code"] for i in rows])), labels

    query, query_labels = select("query")
    database, database_labels = select("database")
    found = evaluate_ranking(query, database, query_labels, database_labels, bits=BITS, topk=topk)
    return found.metrics | {"num_queries_in_database": ROLES.count("both")}


def test_metrics_and_files(dataset, tmp_path):
    evaluator = RetrievalEvaluator(
        dataset.name, topk=5, output_dir=tmp_path, config_name="c.yaml", model_fingerprint="f" * 64
    )
    results = feed(evaluator, dataset)
    assert list(results) == ["retrieval"]
    assert results["retrieval"] == expected_metrics(dataset, 5)
    assert all(isinstance(value, (float, int)) for value in results["retrieval"].values())
    folder = tmp_path / dataset.name
    assert json.loads((folder / "metrics.json").read_text()) == results["retrieval"]

    for role, size in (("query", 7), ("database", 10)):
        codes = read_codes(folder / f"{role}.h5")
        rows = [i for i, given in enumerate(dataset.inputs) if given["role"] in (role, "both")]
        assert len(codes) == size
        assert codes.bits == BITS
        assert list(codes.image_ids) == [dataset.inputs[i]["image_id"] for i in rows]
        assert codes.class_names == CLASSES
        assert (codes.dataset, codes.config) == (dataset.name, "c.yaml")
        assert codes.model_fingerprint == "f" * 64
        found = codes.instances
        assert found.bits == INSTANCE_BITS
        assert (found.scores >= 0.3).all()
        for row, i in enumerate(rows):
            output = dataset.outputs[i]
            np.testing.assert_array_equal(
                unpack_codes(codes.codes[row : row + 1], BITS)[0], output["image_code"]
            )
            np.testing.assert_allclose(codes.activations[row], output["image_activation"], 1e-3)
            kept = output["instances"][output["instances"].scores >= 0.3]
            mine = found.image_index == row
            np.testing.assert_array_equal(found.boxes[mine], kept.pred_boxes.tensor)
            np.testing.assert_array_equal(
                unpack_codes(found.codes[mine], INSTANCE_BITS), kept.pred_codes
            )


def test_arrival_order_and_duplicates_change_nothing(dataset, tmp_path):
    first = feed(RetrievalEvaluator(dataset.name, topk=5, output_dir=tmp_path / "a"), dataset)
    order = [*range(len(ROLES)), 0, 3, 12]
    random.Random(0).shuffle(order)
    evaluator = RetrievalEvaluator(dataset.name, topk=5, output_dir=tmp_path / "b")
    assert feed(evaluator, dataset, order) == first
    assert feed(evaluator, dataset, order) == first  # reset() forgets
    for role in ("query", "database"):
        a, b = (read_codes(tmp_path / x / dataset.name / f"{role}.h5") for x in "ab")
        assert a.image_ids == b.image_ids
        np.testing.assert_array_equal(a.codes, b.codes)


def test_difficult_labels_can_be_left_out(dataset):
    results = feed(RetrievalEvaluator(dataset.name, topk=5, count_difficult=False), dataset)
    assert results["retrieval"] == expected_metrics(dataset, 5, drop_difficult=True)
    assert results["retrieval"] != expected_metrics(dataset, 5)


def test_records_of_all_ranks_are_joined(dataset, monkeypatch):
    """Three ranks, one of which saw nothing: what the main process does, and the others."""
    complete = feed(RetrievalEvaluator(dataset.name, topk=5), dataset)
    other = RetrievalEvaluator(dataset.name, topk=5)
    other.process(dataset.inputs[6:], dataset.outputs[6:])
    evaluator = RetrievalEvaluator(dataset.name, topk=5)
    evaluator.process(dataset.inputs[:8], dataset.outputs[:8])
    monkeypatch.setattr(comm, "gather", lambda data, dst: [data, [], other._records])
    assert evaluator.evaluate() == complete
    monkeypatch.setattr(comm, "is_main_process", lambda: False)
    assert evaluator.evaluate() == {}


def test_code_files_hold_the_classifier_of_the_dataset_s_classes(dataset, tmp_path):
    for classes, stored in ((3, True), (4, False)):
        weights = np.random.default_rng(0).random((BITS + 1, classes)).astype(np.float32)
        evaluator = RetrievalEvaluator(dataset.name, output_dir=tmp_path)
        evaluator.set_model("f" * 64, weights)
        feed(evaluator, dataset)
        for role in ("query", "database"):
            found = read_codes(tmp_path / dataset.name / f"{role}.h5").class_weights
            assert np.array_equal(found, weights) if stored else found is None


def test_a_coded_database_replaces_the_images(dataset, tmp_path):
    feed(RetrievalEvaluator(dataset.name, output_dir=tmp_path, model_fingerprint="a"), dataset)
    path = tmp_path / dataset.name / "database.h5"
    queries = [i for i, role in enumerate(ROLES) if role != "database"]
    evaluator = RetrievalEvaluator(dataset.name, topk=5, database_codes=path, model_fingerprint="a")
    assert feed(evaluator, dataset, queries)["retrieval"] == expected_metrics(dataset, 5)

    with pytest.raises(CodeFileError, match="same model"):
        RetrievalEvaluator(dataset.name, database_codes=path, model_fingerprint="b")
    unknown = RetrievalEvaluator(dataset.name, database_codes=path)
    with pytest.raises(CodeFileError, match="same model"):
        unknown.set_model("b")
    with pytest.raises(CodeFileError, match="no such file"):
        RetrievalEvaluator(dataset.name, database_codes=tmp_path / "absent.h5")
    write_codes(tmp_path / "bare.h5", replace(read_codes(path), labels=None))
    with pytest.raises(CodeFileError, match=r"no labels in .*bare\.h5: extract the codes from"):
        RetrievalEvaluator(dataset.name, database_codes=tmp_path / "bare.h5")


def test_a_database_file_of_other_images_is_refused_before_the_coding(dataset, tmp_path):
    feed(RetrievalEvaluator(dataset.name, output_dir=tmp_path, model_fingerprint="a"), dataset)
    codes = read_codes(tmp_path / dataset.name / "database.h5")
    names = [f"elsewhere/{name.rpartition('/')[2]}" for name in codes.file_names]
    labels = codes.labels.copy()
    labels[3] = 1 - labels[3]
    first = codes.image_ids[0]
    for change, message in (
        ({"class_names": [*CLASSES[:2], "cow"]}, "other classes than"),
        ({"image_ids": ["x", *codes.image_ids[1:]]}, r"1 of the 10 images .*first: x"),
        (
            {"file_names": ["x.jpg", *names[1:]]},
            rf"image {first} is x\.jpg there, and {first}\.jpg",
        ),
        ({"labels": labels}, rf"image {codes.image_ids[3]} has other labels"),
        (
            {"image_ids": [codes.image_ids[1], *codes.image_ids[1:]]},
            rf"1 of the database's 10 images are not in it \(first: {first}\)",
        ),
    ):
        write_codes(tmp_path / "other.h5", replace(codes, **change))
        with pytest.raises(CodeFileError, match=message) as error:
            RetrievalEvaluator(dataset.name, database_codes=tmp_path / "other.h5")
        assert "other.h5" in str(error.value)
        assert "\n" not in str(error.value)
    # Folders may have moved, and the order of rows is free.
    write_codes(tmp_path / "moved.h5", replace(codes, file_names=names))
    RetrievalEvaluator(dataset.name, database_codes=tmp_path / "moved.h5", bits=BITS)
    with pytest.raises(CodeFileError, match=rf"codes of {BITS} bits, and the model makes 48"):
        RetrievalEvaluator(dataset.name, database_codes=tmp_path / "moved.h5", bits=48)
    # What counted difficult objects is no database for labels without them.
    with pytest.raises(CodeFileError, match="COUNT_DIFFICULT"):
        RetrievalEvaluator(
            dataset.name, database_codes=tmp_path / "moved.h5", count_difficult=False
        )


@pytest.mark.parametrize(
    "changed",
    [["INPUT.MIN_SIZE_TEST", 128], ["MODEL.TIMM.OUTPUT_STRIDE", 8]],
    ids=["size", "stride"],
)
def test_a_database_coded_with_other_settings_is_refused(dataset, tmp_path, tiny_cfg, changed):
    settings = code_settings(tiny_cfg)
    feed(RetrievalEvaluator(dataset.name, output_dir=tmp_path, settings=settings), dataset)
    path = tmp_path / dataset.name / "database.h5"
    assert read_codes(path).settings == settings
    # Neither detections nor how it was trained matter, nor what else is stored.
    other = ["MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.5, "MODEL.REGION_DH.LATENT_INIT_STD", 0.1]
    tiny_cfg.merge_from_list(other)
    alike = code_settings(tiny_cfg, instances=False)
    assert RetrievalEvaluator(dataset.name, database_codes=path, settings=alike)
    assert RetrievalEvaluator(dataset.name, database_codes=path)
    tiny_cfg.merge_from_list(changed)
    with pytest.raises(
        CodeFileError, match=rf"database\.h5 was encoded with .*{changed[0]} \d+ and"
    ):
        RetrievalEvaluator(dataset.name, database_codes=path, settings=code_settings(tiny_cfg))
    query = replace(read_codes(path), settings=code_settings(tiny_cfg))
    (note,) = [n for n in check_comparable(query, read_codes(path)) if "settings" in n]
    assert changed[0] in note


def test_a_coded_database_needs_all_queries_and_no_other_image(dataset, tmp_path, caplog):
    feed(RetrievalEvaluator(dataset.name, output_dir=tmp_path), dataset)
    path = tmp_path / dataset.name / "database.h5"
    caplog.clear()
    queries = [i for i, role in enumerate(ROLES) if role != "database"]
    feed(RetrievalEvaluator(dataset.name, topk=5, database_codes=path), dataset, queries)
    assert "not processed" not in caplog.text
    assert "encoded again" not in caplog.text
    feed(RetrievalEvaluator(dataset.name, topk=5, database_codes=path), dataset, [0, *queries[1:]])
    assert "1 of its 7 images were not processed" in caplog.text
    assert "1 images of the database were encoded again" in caplog.text


def test_queries_that_are_in_the_database_are_counted_and_left_out_on_request(dataset, caplog):
    """The two images of both roles find themselves at distance 0, whatever the codes are."""
    plain = feed(RetrievalEvaluator(dataset.name, topk=1), dataset)["retrieval"]
    assert "2 of 7 queries are in the database and find themselves first" in caplog.text
    caplog.clear()
    evaluator = RetrievalEvaluator(dataset.name, topk=1, exclude_self=True)
    found = feed(evaluator, dataset)["retrieval"]
    assert "find themselves" not in caplog.text
    assert plain["num_queries_in_database"] == found["num_queries_in_database"] == 2

    rows = {role: [i for i, r in enumerate(ROLES) if r in (role, "both")] for role in
            ("query", "database")}  # fmt: skip
    codes = pack_codes(np.stack([output["image_code"] for output in dataset.outputs]))
    labels = np.zeros((len(ROLES), 3), np.uint8)
    for row, given in enumerate(dataset.inputs):
        labels[row, given["image_labels"]] = 1
    values = []
    for query in rows["query"]:
        others = [i for i in rows["database"] if i != query]
        one = evaluate_ranking(
            codes[[query]], codes[others], labels[[query]], labels[others], bits=BITS, topk=1
        )
        values.append(one.metrics["P@1"])
    assert found["P@1"] == pytest.approx(np.mean(values))


def test_a_network_that_knows_more_classes_than_the_dataset(dataset, tmp_path):
    """What it takes for one of those is no object of the dataset, and stops no writing."""
    extra = Instances(
        (100, 200),
        pred_boxes=Boxes(torch.rand(2, 4) * 100),
        scores=torch.tensor([0.9, 0.8]),
        pred_classes=torch.tensor([11, 1]),
        pred_codes=torch.rand(2, INSTANCE_BITS) < 0.5,
    )
    dataset.outputs[8]["instances"] = extra
    feed(RetrievalEvaluator(dataset.name, topk=5, output_dir=tmp_path), dataset)
    found = read_codes(tmp_path / dataset.name / "query.h5").instances
    assert found.classes[found.image_index == 0].tolist() == [1]


def test_nothing_processed_warns(dataset, caplog):
    assert feed(RetrievalEvaluator(dataset.name), dataset, []) == {}
    assert "no image was processed" in caplog.text


def test_incomplete_passes_and_large_k_warn(dataset, caplog):
    feed(RetrievalEvaluator(dataset.name, topk=1000), dataset, [0, 1, 2, 8, 9])
    assert "10 of its 15 images were not processed" in caplog.text
    assert "is above the database's 3 items" in caplog.text


@pytest.mark.parametrize("rows", [[0, 1, 2], [8, 9, 10]], ids=["query", "database"])
def test_a_missing_role_is_an_error(dataset, request, rows):
    with pytest.raises(ValueError, match="no processed image has the role"):
        feed(RetrievalEvaluator(dataset.name), dataset, rows)


@pytest.mark.parametrize(
    ("drop", "change", "message"),
    [
        ("role", {}, "no role: evaluate a dataset registered with"),
        ("image_labels", {}, "no image_labels"),
        (None, {"role": "gallery"}, "has role 'gallery'"),
        (None, {"image_id": "000001", "file_name": "other.jpg"}, "names two files"),
    ],
)
def test_bad_inputs_are_one_clear_line(dataset, drop, change, message):
    given = {key: value for key, value in dataset.inputs[0].items() if key != drop} | change
    dataset.inputs.append(given)
    dataset.outputs.append(dataset.outputs[0])
    with pytest.raises(ValueError, match=message) as error:
        feed(RetrievalEvaluator(dataset.name), dataset)
    assert "\n" not in str(error.value)


def test_a_model_without_codes_is_an_error(dataset):
    del dataset.outputs[0]["image_code"]
    with pytest.raises(ValueError, match="no image_code"):
        feed(RetrievalEvaluator(dataset.name), dataset)


def test_wrong_outputs_are_one_clear_line(dataset):
    right = dict(dataset.outputs[0])
    for change, message in (
        ({"image_code": torch.rand(BITS)}, "image_code with other values than 0 and 1"),
        ({"image_code": torch.ones(BITS + 1)}, "bits"),
    ):
        dataset.outputs[0] = right | change
        with pytest.raises(ValueError, match=message) as error:
            feed(RetrievalEvaluator(dataset.name), dataset)
        assert "\n" not in str(error.value)
    dataset.outputs[0] = right
    evaluator = RetrievalEvaluator(dataset.name)
    MetadataCatalog.remove(dataset.name)
    with pytest.raises(ValueError, match="its classes are not known: set thing_classes"):
        feed(evaluator, dataset)
    MetadataCatalog.get(dataset.name)  # which the fixture removes


def test_an_evaluation_that_was_cut_off_leaves_no_metrics_of_other_codes(
    dataset, tmp_path, monkeypatch
):
    evaluator = RetrievalEvaluator(dataset.name, output_dir=tmp_path)
    feed(evaluator, dataset)
    metrics = tmp_path / dataset.name / "metrics.json"
    before = metrics.read_bytes()

    def fail_for(ending):
        def write(path, codes):
            if str(path).endswith(ending):
                raise OSError("disk full")
            write_codes(path, codes)

        monkeypatch.setattr(retrieval_evaluator, "write_codes", write)
        with pytest.raises(OSError, match="disk full"):
            feed(evaluator, dataset)

    fail_for("query.h5")
    assert metrics.read_bytes() == before
    fail_for("database.h5")
    assert not metrics.exists()


def test_outputs_without_instances_or_activations(dataset, tmp_path):
    for output in dataset.outputs:
        del output["instances"], output["image_activation"]
    feed(RetrievalEvaluator(dataset.name, output_dir=tmp_path), dataset)
    codes = read_codes(tmp_path / dataset.name / "query.h5")
    assert codes.instances is None
    assert codes.activations is None


def test_codes_and_ranking_of_the_last_evaluation(dataset, tmp_path):
    evaluator = RetrievalEvaluator(dataset.name, output_dir=tmp_path)
    assert evaluator.codes is evaluator.ranked is None
    metrics = feed(evaluator, dataset)["retrieval"]
    result, notes = evaluator.ranked
    assert result.metrics == metrics
    assert "are in the database and find themselves first" in " ".join(notes)
    for codes, name in zip(evaluator.codes, ("query", "database"), strict=True):
        written = read_codes(tmp_path / dataset.name / f"{name}.h5")
        assert list(codes.image_ids) == list(written.image_ids)
        assert np.array_equal(codes.codes, written.codes)
