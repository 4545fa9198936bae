"""Generated scenes: reproducible, complete or absent, and a fair ground truth."""

import colorsys
import itertools

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from regiondh_d2.data.datasets import scenes
from regiondh_d2.data.datasets.scenes import SCENE_CLASSES, generate_scenes, register_scenes
from regiondh_d2.data.voc import load_voc


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return generate_scenes(
        tmp_path_factory.mktemp("scenes") / "s", num_database=60, num_queries=20, seed=3
    )


def files(root):
    return {
        str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()
    }


def test_layout(root):
    for split, count in (("database", 60), ("queries", 20)):
        records = load_voc(root, split, SCENE_CLASSES)
        assert len(records) == count
        for record in records:
            with Image.open(record["file_name"]) as image:
                assert image.size == (record["width"], record["height"])
            assert 1 <= len(record["annotations"]) <= 5
    sizes = {(r["width"], r["height"]) for r in load_voc(root, "database", SCENE_CLASSES)}
    assert sizes == {(192, 144), (144, 192)}
    assert len(SCENE_CLASSES) >= 8
    assert {label for r in records for label in r["image_labels"]} <= set(range(12))


def test_labels_are_realistic(root):
    records = load_voc(root, "database", SCENE_CLASSES)
    counts = [len(r["annotations"]) for r in records]
    assert set(counts) == {1, 2, 3, 4, 5}
    assert all(any(c in r["image_labels"] for r in records) for c in range(len(SCENE_CLASSES)))
    assert any(len(r["image_labels"]) > 1 for r in records)
    difficult = [a["difficult"] for r in records for a in r["annotations"]]
    assert 0 < np.mean(difficult) < 0.2


def test_deterministic_and_a_larger_set_continues(root, tmp_path):
    small, again = (
        files(generate_scenes(tmp_path / name, num_database=4, num_queries=2, seed=3))
        for name in ("a", "b")
    )
    assert again == small
    large = files(root)
    assert all(large[name] == data for name, data in small.items() if name.startswith("JPEGImages"))
    other = files(generate_scenes(tmp_path / "c", num_database=4, num_queries=2, seed=4))
    assert all(other[name] != small[name] for name in small if name.startswith("JPEGImages"))


def test_queries_are_not_in_the_database(root):
    images = [data for name, data in files(root).items() if name.startswith("JPEGImages")]
    assert len(set(images)) == len(images)


def test_reuse_and_refusal(tmp_path):
    arguments = {"num_database": 2, "num_queries": 1}
    (tmp_path / "s").mkdir()  # an empty folder is as good as none
    root = generate_scenes(tmp_path / "s", **arguments)
    stamps = {path: path.stat().st_mtime_ns for path in root.rglob("*")}
    generate_scenes(root, **arguments)
    assert {path: path.stat().st_mtime_ns for path in root.rglob("*")} == stamps
    with pytest.raises(FileExistsError, match="other parameters"):
        generate_scenes(root, **arguments, seed=1)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "photo.jpg").write_bytes(b"")
    with pytest.raises(FileExistsError, match="holds no generated scenes"):
        generate_scenes(tmp_path / "mine", **arguments)


def test_interruption_leaves_nothing(tmp_path, monkeypatch):
    def stop(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(scenes, "_annotation", stop)
    with pytest.raises(KeyboardInterrupt):
        generate_scenes(tmp_path / "s", num_database=2, num_queries=1)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "arguments",
    [
        {"num_database": 0},
        {"num_queries": 0},
        {"image_size": (10, 100)},
        {"image_size": (100,)},
        {"seed": -1},
    ],
)
def test_bad_arguments(tmp_path, arguments):
    with pytest.raises(ValueError):
        generate_scenes(tmp_path / "s", **arguments)


@pytest.mark.parametrize("name", SCENE_CLASSES)
def test_masks_are_tight_and_distinct_from_a_box(name):
    rng = np.random.default_rng(0)
    for _ in range(5):
        mask = scenes.object_mask(name, 60, rng) > 0.5
        assert mask[0].any()
        assert mask[-1].any()
        assert mask[:, 0].any()
        assert mask[:, -1].any()
        assert 0.1 < mask.mean() < 0.85
        assert 30 <= max(mask.shape) <= 90


def test_boxes_are_the_visible_extent(monkeypatch):
    """Paint every object in one flat color each: the box must be that color's extent."""
    colors = {}

    def paint(canvas, mask, rng):
        color = np.float32(colorsys.hsv_to_rgb(len(colors) / 6, 1, 1)) * 255
        colors[len(colors)] = color
        canvas[mask > 0.5] = color

    class Still:
        """A generator without sensor noise, so that colors stay exact."""

        def __init__(self, seed):
            self._rng = np.random.default_rng(seed)

        def __getattr__(self, name):
            return getattr(self._rng, name)

        def normal(self, loc, scale, size=None):
            return np.zeros(size) if size is not None else self._rng.normal(loc, scale)

    monkeypatch.setattr(scenes, "_paint", paint)
    monkeypatch.setattr(scenes, "_background", lambda w, h, rng: np.zeros((h, w, 3), np.float32))
    hidden = 0
    for seed in range(40):
        colors.clear()
        image, objects = scenes._draw_scene(192, 144, Still(seed))
        pixels = np.asarray(image)
        assert len(objects) == len(colors)
        for (_, box, difficult), color in zip(objects, colors.values(), strict=True):
            rows, columns = np.nonzero((pixels == color.astype(np.uint8)).all(axis=2))
            extent = (columns.min() + 1, rows.min() + 1, columns.max() + 1, rows.max() + 1)
            assert box == extent
            hidden += difficult
    assert hidden > 0


def test_color_does_not_tell_the_class(root):
    """Mean colors inside boxes: same-class pairs are no closer than others."""
    features, labels = [], []
    for record in load_voc(root, "database", SCENE_CLASSES):
        with Image.open(record["file_name"]) as image:
            pixels = np.asarray(image, dtype=np.float64)
        for annotation in record["annotations"]:
            x0, y0, x1, y1 = (int(v) for v in annotation["bbox"])
            features.append(pixels[y0:y1, x0:x1].mean(axis=(0, 1)))
            labels.append(annotation["category_id"])
    same, other = [], []
    for (f, a), (g, b) in itertools.combinations(zip(features, labels, strict=True), 2):
        (same if a == b else other).append(np.linalg.norm(f - g))
    assert np.mean(same) > 0.93 * np.mean(other)


def test_register(root):
    name = register_scenes(root, prefix="t_")
    try:
        assert name == "t_scenes_retrieval"
        assert register_scenes(root, prefix="t_") == name
        records = DatasetCatalog.get(name)
        assert [r["role"] for r in records] == ["database"] * 60 + ["query"] * 20
        assert MetadataCatalog.get(name).thing_classes == list(SCENE_CLASSES)
        assert MetadataCatalog.get(name).split == "queries"
        with pytest.raises(ValueError, match="already registered"):
            register_scenes(root.parent, prefix="t_")
    finally:
        for part in (name, "t_regiondh_scenes_database", "t_regiondh_scenes_queries"):
            DatasetCatalog.remove(part)
            MetadataCatalog.remove(part)
    assert {"regiondh_scenes_database", "regiondh_scenes_queries", "scenes_retrieval"} <= set(
        DatasetCatalog.list()
    )


def test_a_full_disk_leaves_no_scenes(tmp_path, full_disk):
    with full_disk(1000), pytest.raises(OSError, match="too large"):
        generate_scenes(tmp_path / "scenes", num_database=1, num_queries=1)
    assert list(tmp_path.iterdir()) == []
