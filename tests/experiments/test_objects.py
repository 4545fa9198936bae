"""The table of object queries on cached features, with a small network on generated scenes."""

import json

import numpy as np
import pytest

from builders import cached_features_opts
from experiments import objects
from regiondh_d2.commands.evaluate_objects import ObjectEncoder, load_records, true_objects
from regiondh_d2.data import register_scenes
from regiondh_d2.engine import build_cfg
from regiondh_d2.engine.command import load_trained_model
from regiondh_d2.evaluation.object_queries import evaluate_object_queries
from regiondh_d2.structures.packed import unpack_codes

DATABASE = "objects_test_regiondh_scenes_database"
QUERIES = "objects_test_regiondh_scenes_queries"


@pytest.fixture
def opts(random_network, tmp_path):
    """Overrides of the config, with a folder for cached features."""
    register_scenes(random_network.scenes, "objects_test_")
    return [*random_network.opts, *cached_features_opts(tmp_path / "cache")]


def test_the_table_and_what_it_is_of(random_network, opts, tmp_path, capsys):
    out = tmp_path / "out.json"
    options = ["--config-file", random_network.config, "--queries", QUERIES]
    options += ["--database", DATABASE, "--blend", "0.25", "1", "--json", str(out)]
    assert objects.main([*options, *opts]) == 0
    printed = capsys.readouterr().out.splitlines()

    cfg = build_cfg(random_network.config, opts)
    model = load_trained_model(cfg)
    query, annotated = objects.encode(cfg, model, QUERIES)
    database, _ = objects.encode(cfg, model, DATABASE)
    from_images, expected = ObjectEncoder(cfg, QUERIES, True).encode(load_records(QUERIES))
    np.testing.assert_array_equal(annotated.classes, expected.classes)
    np.testing.assert_array_equal(annotated.image_index, expected.image_index)
    np.testing.assert_allclose(annotated.boxes, expected.boxes, atol=1e-3)
    np.testing.assert_array_equal(query.labels, from_images.labels)
    assert query.file_names == from_images.file_names
    for one, other, bits in (
        (query.codes, from_images.codes, query.bits),
        (annotated.codes, expected.codes, expected.bits),
    ):  # cached features are in half precision, so that a bit may differ
        assert (unpack_codes(one, bits) != unpack_codes(other, bits)).mean() < 0.01

    found = json.loads(out.read_text())
    true = true_objects(DATABASE, database)
    for value in (0.25, 1.0):
        again = evaluate_object_queries(
            query, annotated, database, blend=value, true_objects=true
        ).metrics
        assert {name: found[str(value)][name] for name in again} == pytest.approx(again)
    assert printed[0].startswith(f"{again['num_queries']} objects, ")
    assert [line.split(" | ")[0] for line in printed[3:]] == [
        *("| objects", "| images", "| objects + 0.25 x images", "| objects + 1 x images"),
    ]
    cells = printed[-1].strip("| ").split(" | ")[1:]
    names = [f"{prefix}blend/MAP_all" for prefix in objects.MEASURES.values()]
    assert cells == [f"{found['1.0'][name]:.3f}" for name in names]
