"""References on the codes of a network, and their tables."""

import numpy as np
import pytest

from builders import code_set
from experiments import references
from experiments.documents import fill_document
from experiments.references import main, rank_cosines
from experiments.result_files import ResultFolder
from regiondh_d2.retrieval.code_store import write_codes
from regiondh_d2.utils.errors import RegionDHError

CLASSES = ["cat", "dog", "sofa"]


def test_cosines_are_ranked_with_ties():
    """Two queries by hand: AP over the three images, mean over both orders of a tie."""
    database = np.array([[1.0, 0.0], [3.0, 3.0], [0.0, 2.0]])
    labels = np.array([[1, 0], [1, 1], [0, 1]])
    query, query_labels = np.array([[2.0, 0.0], [5.0, 5.0]]), np.array([[1, 0], [0, 1]])
    found = rank_cosines(query, database, query_labels, labels, (3,))
    # The first query finds image 0, 1, 2; relevant are 0 and 1. The second finds image 1, then 0
    # and 2 in either order; relevant are 1 and 2, at ranks 1 and 2 or 1 and 3.
    expected = [1.0, (1.0 + (1.0 + 2 / 3) / 2) / 2]
    assert found.per_query["MAP@3"] == pytest.approx(expected)


def test_images_without_any_class_have_no_direction():
    zeros = np.zeros((2, 2))
    found = rank_cosines(zeros, np.eye(2), np.eye(2), np.eye(2), (2,))
    assert found.per_query["MAP@2"] == pytest.approx([0.75, 0.75])  # every order is as likely


@pytest.fixture
def files(tmp_path):
    """Codes of 24 queries and 30 images, which follow their labels, with activations."""
    rng = np.random.default_rng(0)
    paths = []
    for name, count in (("query", 24), ("database", 30)):
        labels = rng.random((count, 3)) < 0.4
        labels[:, 0] |= ~labels.any(axis=1)
        bits = np.repeat(labels, 3, axis=1) ^ (rng.random((count, 9)) < 0.1)
        activations = np.where(bits, 0.9, 0.1).astype(np.float16)
        codes = code_set(bits, labels=labels, activations=activations, class_names=CLASSES)
        paths.append(tmp_path / f"{name}.h5")
        write_codes(paths[-1], codes)
    return paths


def test_the_command_measures_references_and_classes(files, tmp_path, monkeypatch, capsys):
    weight = np.repeat(np.eye(3), 3, axis=1) * 4.0
    monkeypatch.setattr(references, "read_classifier", lambda *_: (weight, np.full(3, -6.0)))
    monkeypatch.setattr(references, "CUTOFFS", {"unseen": (5, 20), "seen": (20,)})
    monkeypatch.setattr(references, "STUDY", tmp_path)
    page = tmp_path / "page.md"
    places = "<!-- {} -->\nold\n<!-- end -->\n"
    texts = ("references: unseen", "references: seen", "classes: seen")
    page.write_text("".join(map(places.format, texts)))
    arguments = ["--query", files[0], "--database", files[1], "--results", tmp_path / "results"]
    assert main(list(map(str, arguments))) == 0, capsys.readouterr().err
    text = page.read_text()
    assert "| ranked by | bits | MAP_min@5 | MAP@20 | MAP_min@20 | NDCG@20 | ACG@20 |" in text
    assert text.count("| true labels, cosine | float | ") == 2
    assert "| class probabilities, SimHash, 48 bits | 48 | " in text
    for name in CLASSES:
        assert f"| {name} | " in text
    found = ResultFolder(tmp_path / "results").read_references("seen")
    by_title = {r["title"]: r["metrics"] for r in found["references"] if r["database"] == "seen"}
    assert by_title["true labels, cosine"]["MAP_min@20"] == max(
        metrics["MAP_min@20"] for metrics in by_title.values()
    )
    kept = np.load(tmp_path / "results/per_query/reference_codes_seen.npz")
    assert kept["MAP@20"].mean() == pytest.approx(by_title["codes"]["MAP@20"], abs=1e-3)


def test_what_was_not_measured_is_told(tmp_path):
    results = ResultFolder(tmp_path)
    text = "<!-- classes: seen -->\n<!-- end -->"
    with pytest.raises(RegionDHError, match="references.json: no such file: run python -m"):
        fill_document(text, [], results)
    results.references_file.write_text('{"references": [], "classes": [{"database": "unseen"}]}')
    with pytest.raises(RegionDHError, match="has no references of the database 'seen'"):
        fill_document(text, [], results)
