"""The tables of classes that weren't trained on, with a small network on generated scenes."""

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog

from builders import cached_features_opts, registered_scenes
from experiments import objects, unseen_classes
from regiondh_d2.engine import build_cfg
from regiondh_d2.engine.command import load_trained_model
from regiondh_d2.evaluation.object_queries import least_distances
from regiondh_d2.evaluation.ranking_metrics import evaluate_ranking
from regiondh_d2.structures.codes import CodeFileError, CodeSet

PREFIX = "unseen_test_"


@pytest.fixture
def opts(random_network, monkeypatch, tmp_path):
    """Overrides; the first two classes of the scenes stand for those that weren't trained on."""
    monkeypatch.setattr(unseen_classes, "QUERIES", f"{PREFIX}regiondh_scenes_queries")
    monkeypatch.setattr(unseen_classes, "DATABASE", f"{PREFIX}regiondh_scenes_database")
    monkeypatch.setattr(unseen_classes, "CLASSES", ("first", "second"))
    monkeypatch.setattr(unseen_classes, "_HELD_OUT", [0, 1])
    with registered_scenes(random_network.scenes, PREFIX):
        yield [*random_network.opts, *cached_features_opts(tmp_path / "cache")]


def test_the_tables_hold_what_the_codes_give(random_network, opts, monkeypatch, capsys):
    # Eight images are too few to learn codes on.
    monkeypatch.setattr(
        unseen_classes,
        "unsupervised",
        lambda method, q, d, bits, learned=None: (q[:, :9] > 0, d[:, :9] > 0),
    )
    words = ["--config-file", random_network.config, "--fit", unseen_classes.DATABASE, *opts]
    assert unseen_classes.main(words) == 0
    rows = dict(
        line.strip("| ").split(" | ", 1)
        for line in capsys.readouterr().out.splitlines()
        if line.startswith("| ")
    )
    cfg = build_cfg(random_network.config, opts)
    model = load_trained_model(cfg)
    query, annotated = objects.encode(cfg, model, unseen_classes.QUERIES)
    database, _ = objects.encode(cfg, model, unseen_classes.DATABASE)

    def mean(codes, wanted):
        result = evaluate_ranking(
            codes, database.codes, wanted, labels, bits=database.bits, topk=len(database)
        )
        return np.nanmean(result.per_query[f"MAP_all@{len(database)}"])

    for name in ("the detector's features", "fc7 of the detector"):
        assert rows[f"ITQ of {name}, learned on --fit"] == rows[f"ITQ of {name}"]

    labels = database.labels[:, :2]
    shown = query.labels[:, :2].any(axis=1)
    expected = mean(query.codes[shown], query.labels[shown, :2])
    assert rows["Region-DH"].split(" | ")[0] == f"{expected:.3f}"

    kept = annotated.classes < 2
    wanted = np.eye(2, dtype=bool)[annotated.classes[kept]]
    nearest = [
        np.minimum(least_distances(c, database), database.bits) for c in annotated.codes[kept]
    ]
    found = unseen_classes.precisions(np.stack(nearest), wanted, labels)
    assert rows["H1"].split(" | ")[0] == f"{found.mean():.3f}"
    by_class = [found[annotated.classes[kept] == c].mean() for c in range(2)]
    assert rows["H1"].split(" | ")[1:] == [f"{value:.3f}" for value in by_class]
    images = mean(query.codes[annotated.image_index[kept]], wanted)
    assert rows["images alone"].split(" | ")[0] == f"{images:.3f}"


def test_training_images_show_none_of_the_classes(monkeypatch):
    records = [
        {"image_id": str(i), "annotations": [{"category_id": c} for c in classes]}
        for i, classes in enumerate([[0, 14], [5], [14, 17], [14], []])
    ]
    monkeypatch.setattr(unseen_classes, "load_dataset", lambda name: records)
    assert [r["image_id"] for r in unseen_classes.load_training()] == ["0", "3", "4"]
    assert unseen_classes.TRAINING in DatasetCatalog.list()


@pytest.mark.parametrize("method", ["itq", "lsh"])
def test_learned_codes_tell_two_clusters_apart(method):
    pytest.importorskip("faiss")
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(60, 16, generator=generator).numpy()
    x[30:] += 9.0
    q, d = unseen_classes.unsupervised(method, x[::10], x, 8)
    assert q.shape == (6, 8)
    distances = unseen_classes.hamming(q, d)
    assert distances[0, :30].mean() + 1 < distances[0, 30:].mean()
    assert (distances == (q[:, None] != d[None]).sum(axis=2)).all()


def test_codes_learned_on_others_are_those_of_a_database_of_them():
    pytest.importorskip("faiss")
    x = np.random.default_rng(0).normal(size=(60, 16)).astype(np.float32)
    q, d = unseen_classes.unsupervised("itq", x[:5], x[5:20], 8, x[20:])
    expected, _ = unseen_classes.unsupervised("itq", x[:20], x[20:], 8)
    np.testing.assert_array_equal(np.concatenate([q, d]), expected)


def test_order_of_cosines_by_hand():
    database = np.array([[1.0, 0.0], [0.0, 3.0], [2.0, 0.0], [-1.0, 0.0]])
    assert unseen_classes.ranks_by_cosine(np.array([[5.0, 0.0]]), database).tolist() == [
        [0, 1, 0, 2]
    ]


def test_features_of_other_networks_must_be_of_all_images():
    known = np.ones((1, 5), bool), np.ones((1, 8), bool), np.ones((1, 3))
    half = unseen_classes.Half(["1"], *known, *(None,) * 5)
    others = CodeSet(
        np.zeros((1, 1), np.uint8), 8, ["2"], ["2"], features=np.ones((1, 3), np.float16)
    )
    with pytest.raises(CodeFileError, match="lack image 1"):
        unseen_classes.measure_images(half, half, others)
