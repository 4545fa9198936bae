"""Object queries against plain loops, and against every order of the ties."""

from dataclasses import replace
from itertools import permutations

import numpy as np
import pytest

from builders import random_code_set, random_objects
from regiondh_d2.evaluation import object_queries
from regiondh_d2.evaluation.object_places import TrueObjects
from regiondh_d2.evaluation.object_queries import (
    class_recall,
    evaluate_object_queries,
    least_distances,
    object_recall,
)
from regiondh_d2.structures.codes import CodeFileError

BITS, INSTANCE_BITS = 3, 4
CLASSES = ["cat", "dog", "sofa", "bus"]


def make_instances(rng, image_index, classes, **changes):
    values = {"scores": np.ones(len(classes), np.float32), "classes": np.array(classes, np.int64)}
    return random_objects(rng, image_index, INSTANCE_BITS, density=0.4, **(values | changes))


def make_codes(rng, labels, instances, **changes):
    values = {"labels": labels, "class_names": CLASSES, "instances": instances}
    return random_code_set(rng, len(labels), BITS, density=0.4, **(values | changes))


@pytest.fixture
def sets():
    """Three images with five objects, the last of a class that none of the seven images of the
    database has; its images 2 and 6 have no detection, and detections aren't in their order."""
    rng = np.random.default_rng(5)
    detected = make_instances(rng, [1, 0, 0, 2], [1, 0, 2, 0])
    query = make_codes(rng, [[1, 0, 1, 0], [0, 1, 0, 0], [1, 0, 0, 1]], detected)
    objects = make_instances(rng, [0, 0, 1, 2, 2], [0, 2, 1, 0, 3])
    found = make_instances(rng, [5, 0, 3, 1, 0, 4, 3, 5, 1], [0, 0, 1, 2, 1, 2, 0, 0, 1])
    labels = [
        *([1, 1, 0, 0], [0, 0, 1, 0], [1, 0, 0, 0], [0, 1, 0, 0]),
        *([0, 0, 1, 0], [1, 0, 1, 0], [0, 1, 0, 0]),
    ]
    return query, objects, make_codes(rng, labels, found)


def unpack(codes, bits):
    return np.unpackbits(codes, axis=-1, count=bits)


def loop_distances(code, database):
    """The least distances by a loop over images and detections."""
    found = database.instances
    least = []
    for image in range(len(database)):
        distances = [
            int((unpack(found.codes[i], INSTANCE_BITS) != unpack(code, INSTANCE_BITS)).sum())
            for i in range(len(found.codes))
            if found.image_index[i] == image
        ]
        least.append(min(distances, default=INSTANCE_BITS + 1))
    return np.array(least)


def average_precisions(distances, relevant):
    """AP over all orders of the database's rows, ties in the order of the rows."""
    orders = np.array(list(permutations(range(len(distances)))))
    ranked = np.take_along_axis(orders, distances[orders].argsort(axis=1, kind="stable"), axis=1)
    hits = relevant[ranked]
    precision = hits.cumsum(axis=1) / np.arange(1, len(distances) + 1)
    return (hits * precision).sum(axis=1) / relevant.sum()


def test_both_rankings_over_all_orders_of_the_ties(sets):
    query, objects, database = sets
    result = evaluate_object_queries(query, objects, database)
    tied = False
    for i in range(4):
        relevant = database.labels[:, objects.classes[i]]
        code = unpack(query.codes[objects.image_index[i]], BITS)
        for ranking, distances in (
            ("objects", loop_distances(objects.codes[i], database)),
            ("images", (unpack(database.codes, BITS) != code).sum(axis=1)),
        ):
            values = average_precisions(distances, relevant)
            for order, expected in (
                ("", values.mean()),
                ("-optimistic", values.max()),
                ("-pessimistic", values.min()),
                ("-index_order", values[0]),
            ):
                name = f"{ranking}/MAP_all{order}"
                assert result.per_query[name][i] == pytest.approx(expected, abs=1e-12), name
            tied |= values.min() < values.max()
    assert tied
    metrics = result.metrics
    for name, values in result.per_query.items():
        assert np.isnan(values[4])
        assert metrics[name] == pytest.approx(values[:4].mean())
        # Only the image of the third object has one class.
        assert metrics[f"several_classes/{name}"] == pytest.approx(values[[0, 1, 3]].mean())
    assert len(result.per_query) == 8
    assert metrics["num_queries"] == 4
    assert metrics["several_classes/num_queries"] == 3
    assert metrics["num_queries_without_relevant"] == 1
    assert metrics["num_database"] == 7


def test_the_blend_over_all_orders_of_the_ties(sets):
    query, objects, database = sets
    result = evaluate_object_queries(query, objects, database, blend=0.3)
    plain = evaluate_object_queries(query, objects, database)
    tied = False
    for i in range(4):
        relevant = database.labels[:, objects.classes[i]]
        code = unpack(query.codes[objects.image_index[i]], BITS)
        by_image = (unpack(database.codes, BITS) != code).sum(axis=1)
        by_object = np.minimum(loop_distances(objects.codes[i], database), INSTANCE_BITS)
        values = average_precisions(10 * by_object + 3 * by_image, relevant)
        assert result.per_query["blend/MAP_all"][i] == pytest.approx(values.mean(), abs=1e-12)
        assert result.per_query["blend/MAP_all-pessimistic"][i] == pytest.approx(values.min())
        tied |= values.min() < values.max()
    assert tied
    assert {k: v for k, v in result.metrics.items() if "blend" not in k} == plain.metrics
    with pytest.raises(ValueError, match="blend must be a number from 0 to 1000"):
        evaluate_object_queries(query, objects, database, blend=-1)


def test_the_means_of_classes(sets):
    query, objects, database = sets
    result = evaluate_object_queries(query, objects, database)
    values = result.per_query["objects/MAP_all"]
    classes = np.unique(objects.classes[:4])
    assert 1 < len(classes) < 4
    expected = np.mean([values[:4][objects.classes[:4] == c].mean() for c in classes])
    assert result.metrics["class_mean/objects/MAP_all"] == pytest.approx(expected)


@pytest.mark.parametrize("exclude_self", [False, True])
def test_where_over_all_orders_of_the_ties(sets, exclude_self):
    """Every third detection is on an object of its image's first label, the others on none."""
    query, objects, database = sets
    query.image_ids[0] = database.image_ids[0] = "shared"
    found = database.instances
    found.boxes = np.array([[100 * m, 0, 100 * m + 9, 9] for m in range(9)], np.float32)
    rows = np.arange(0, 9, 3)
    first_label = database.labels.argmax(axis=1)[found.image_index[rows]]
    true = TrueObjects(found.image_index[rows], found.boxes[rows], first_label)
    result = evaluate_object_queries(
        query, objects, database, blend=0.3, true_objects=true, exclude_self=exclude_self
    )
    met = 0
    for i in range(4):
        kept = np.ones(7, bool)
        if exclude_self and objects.image_index[i] == 0:
            kept[0] = False
        wanted = objects.classes[i]
        relevant = database.labels[:, wanted] == 1
        distances = [np.count_nonzero(unpack(c ^ objects.codes[i], 4)) for c in found.codes]
        placed = np.zeros(7, bool)
        for image in range(7):
            mine = [(distances[m], m) for m in np.flatnonzero(found.image_index == image)]
            on_object = bool(mine) and min(mine)[1] % 3 == 0
            placed[image] = on_object and database.labels[image].argmax() == wanted
        met += placed[relevant].sum()
        code = unpack(query.codes[objects.image_index[i]], BITS)
        by_image = (unpack(database.codes, BITS) != code).sum(axis=1)
        by_object = loop_distances(objects.codes[i], database)
        blended = 10 * np.minimum(by_object, INSTANCE_BITS) + 3 * by_image
        for ranking, ranked in (("objects", by_object), ("blend", blended)):
            hits = (placed & relevant)[kept]
            expected = 0.0
            if hits.any():
                precisions = average_precisions(ranked[kept], hits).mean()
                expected = precisions * hits.sum() / relevant[kept].sum()
            value = result.per_query[f"where/{ranking}/MAP_all"][i]
            assert value == pytest.approx(expected, abs=1e-12)
            assert value <= result.per_query[f"{ranking}/MAP_all"][i] + 1e-12
    assert met > 1
    assert {"where/blend/MAP_all", "class_mean/where/objects/MAP_all"} <= result.metrics.keys()


def test_images_without_detections_are_last(sets):
    _, objects, database = sets
    for code in objects.codes:
        distances = least_distances(code, database)
        assert distances.tolist() == loop_distances(code, database).tolist()
        assert distances[[2, 6]].tolist() == [INSTANCE_BITS + 1] * 2


def test_no_image_of_several_classes(sets):
    query, objects, database = sets
    query = replace(query, labels=np.eye(3, 4, dtype=np.uint8))
    metrics = evaluate_object_queries(query, objects, database).metrics
    assert metrics["several_classes/num_queries"] == 0
    assert "objects/MAP_all" in metrics
    assert "several_classes/objects/MAP_all" not in metrics


def test_progress_is_told(sets):
    seen = []
    result = evaluate_object_queries(*sets, progress=lambda *done: seen.append(done))
    assert seen[-1] == (5, 5)
    assert result.metrics == evaluate_object_queries(*sets).metrics


def test_the_recall_of_objects():
    """IoU of [0, 0, 20, 20] moved right by 5, 7 and 0 pixels: .6, .481 and 1."""
    rng = np.random.default_rng(0)
    true = np.tile(np.array([0, 0, 20, 20], np.float32), (5, 1))
    objects = make_instances(rng, [0, 1, 2, 2, 4], [0, 0, 0, 1, 0], boxes=true)
    moved = true[:4] + np.array([[5], [7], [0], [0]], np.float32) * [1, 0, 1, 0]
    detected = make_instances(rng, [0, 1, 2, 3], [0, 0, 1, 0], boxes=moved.astype(np.float32))
    # Met; too far; another class; met; a detection in another image.
    assert object_recall(objects, detected) == pytest.approx(2 / 5)
    nothing = make_instances(rng, [], [])
    assert object_recall(objects, nothing) == 0


def test_the_recall_of_labels(sets):
    """Against a loop over the labels of all images."""
    for codes in (sets[0], sets[2]):
        pairs = set(zip(codes.instances.image_index, codes.instances.classes, strict=True))
        hits = [
            (image, label) in pairs
            for image in range(len(codes))
            for label in range(4)
            if codes.labels[image, label]
        ]
        assert 0 < sum(hits) < len(hits)
        assert class_recall(codes) == pytest.approx(sum(hits) / len(hits))


def test_recalls_are_among_the_metrics(sets):
    query, objects, database = sets
    metrics = evaluate_object_queries(query, objects, database).metrics
    assert metrics["query/object_recall"] == object_recall(objects, query.instances)
    assert metrics["query/class_recall"] == class_recall(query)
    assert metrics["database/class_recall"] == class_recall(database)


@pytest.mark.parametrize(
    ("role", "changes", "message"),
    [
        (0, {"labels": None}, "no labels in the query codes"),
        (2, {"labels": None}, "no labels in the database codes"),
        (0, {"instances": None}, "no detected objects in the query codes"),
        (2, {"instances": None}, "no detected objects in the database codes"),
        (2, {"model_fingerprint": "e" * 64}, "the database by eeeeeeeeeeee: encode both with"),
        (1, {"bits": 8}, "the objects have 8 bits and those of the database 4: encode both"),
    ],
)
def test_codes_that_do_not_fit(sets, role, changes, message):
    sets = list(sets)
    sets[role] = replace(sets[role], **changes)
    with pytest.raises(CodeFileError, match=message):
        evaluate_object_queries(*sets)


def test_nothing_to_search_with(sets):
    query, _, database = sets
    nothing = make_instances(np.random.default_rng(0), [], [])
    with pytest.raises(ValueError, match="no annotated objects to search with"):
        evaluate_object_queries(query, nothing, database)


def test_a_missing_fingerprint_is_told(sets):
    query, objects, database = sets
    (note,) = object_queries.check_object_queries(
        replace(query, model_fingerprint=""), objects, database
    )
    assert "a model fingerprint is missing" in note


def test_objects_without_the_image_that_they_are_in(sets):
    """As with a database that lacks the image; two images of the queries are in the database."""
    query, objects, database = sets
    for row, other in ((0, 2), (2, 5)):
        database.file_names[other] = query.file_names[row]
        database.image_ids[other] = query.image_ids[row]
    for row, name in enumerate(query.file_names[1:2] + database.file_names[:1]):
        database.file_names[row] = f"other/{name}"
    for row in (1, 3, 4, 6):
        database.file_names[row] = f"other/{row}.jpg"
        database.image_ids[row] = f"other {row}"
    database.image_ids[0] = "other 0"
    plain = evaluate_object_queries(query, objects, database)
    found = evaluate_object_queries(query, objects, database, exclude_self=True)
    assert plain.metrics["num_queries_in_database"] == 4
    assert found.metrics["num_queries_in_database"] == 4
    own = {0: 2, 2: 5}
    for i in range(4):
        kept = np.ones(7, bool)
        if objects.image_index[i] in own:
            kept[own[objects.image_index[i]]] = False
        relevant = database.labels[kept, objects.classes[i]]
        if not relevant.any():
            assert np.isnan(found.per_query["images/MAP_all"][i])
            continue
        code = unpack(query.codes[objects.image_index[i]], BITS)
        by_image = (unpack(database.codes, BITS) != code).sum(axis=1)[kept]
        by_object = loop_distances(objects.codes[i], database)[kept]
        for ranking, distances in (("images", by_image), ("objects", by_object)):
            values = average_precisions(distances, relevant)
            name = f"{ranking}/MAP_all"
            assert found.per_query[name][i] == pytest.approx(values.mean())
            assert found.per_query[f"{name}-pessimistic"][i] == pytest.approx(values.min())
    assert found.metrics["images/MAP_all"] != plain.metrics["images/MAP_all"]
