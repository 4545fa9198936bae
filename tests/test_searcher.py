"""From images to answers with a small network: queries, and search in a few lines."""

import hashlib
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from builders import code_set, object_codes
from regiondh_d2.config import DEFAULT_MAX_PIXELS
from regiondh_d2.engine import QueryEncoder, RegionDHSearcher, build_cfg
from regiondh_d2.engine.extraction import class_weights_of
from regiondh_d2.retrieval.images import ImageLoader, UnreadableImage
from regiondh_d2.retrieval.index_folder import read_index_folder, write_index_folder
from regiondh_d2.retrieval.queries import SearchOptions
from regiondh_d2.retrieval.service import SearchService
from regiondh_d2.structures.packed import pack_codes, unpack_codes
from searching import CLASSES, index_scenes


@pytest.fixture
def photo(tmp_path):
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (60, 90, 3), dtype=np.uint8)
    Image.fromarray(pixels).resize((180, 120)).save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


@pytest.fixture
def searcher(make_model, photo, tmp_path):
    """An index of that photo alone, at half its size for the network."""
    model = make_model("MODEL.ROI_HEADS.SCORE_THRESH_TEST", "0.0").eval()
    load = ImageLoader(min_size=60, max_size=1000, image_format="RGB")
    with torch.no_grad():
        (output,) = model.inference([load(str(photo))])
    found = output["instances"]
    items = code_set(
        output["image_code"][None].numpy(),
        names=[str(photo)],
        class_names=CLASSES,
        instances=object_codes(
            found.pred_codes.numpy(),
            np.zeros(len(found), np.int64),
            boxes=found.pred_boxes.tensor.numpy(),
            scores=found.scores.numpy(),
            classes=found.pred_classes.numpy(),
        ),
    )
    folder = write_index_folder(tmp_path / "index", items, engine="numpy")
    return RegionDHSearcher(SearchService(folder), QueryEncoder(model, load, CLASSES))


def pooled_boxes(searcher):
    """A list that will hold the boxes given to the RoI pooling, one tensor a call."""
    seen = []
    searcher.encoder.model.roi_heads.box_pooler.register_forward_pre_hook(
        lambda module, args: seen.append(args[1][0].tensor.clone())
    )
    return seen


def test_an_indexed_image_and_its_detections_find_themselves(searcher, photo):
    assert searcher.notes == [
        "the index has no model fingerprint: cannot check that one model made all codes"
    ]
    result = searcher.search(photo)
    assert [(answer.distance, answer.row) for answer in result.answers] == [(0, 0)]
    query = searcher.encode(photo)
    np.testing.assert_array_equal(query.codes, pack_codes(query.activation[None] > 0.5))
    assert searcher.search(photo, rerank=5).answers[0].fine_distance == pytest.approx(
        (np.minimum(query.activation, 1 - query.activation) ** 2).sum(), rel=1e-6
    )
    found = searcher.service.folder.items.instances
    assert len(found.codes) >= 3
    for number in (1, 3):
        result = searcher.search(photo, instance=number)
        (one,) = result.objects
        assert one.score == pytest.approx(np.sort(found.scores)[-number])
        assert one.class_name == CLASSES[found.classes[number - 1]]
        assert one.box == pytest.approx(tuple(found.boxes[number - 1].tolist()))
        assert result.answers[0].distance == 0
    every = searcher.search(photo, instance=1, topk=99, all_objects=True)
    assert len(every.answers) == len(found.codes) > len(result.answers) == 1
    result = searcher.search(photo, instance=[1, 2], box=(10, 10, 90, 90))
    assert [one.score is None for one in result.objects] == [True, False, False]
    assert [one.distance for one in result.answers[0].objects[1:]] == [0, 0]


def test_boxes_reach_the_network_in_its_pixels(searcher, photo):
    """The photo is 180 x 120 pixels, and 90 x 60 for the network."""
    seen = pooled_boxes(searcher)
    query = searcher.encode(photo, [(20, 40, 120, 90), (0, 0, 180, 120)])
    (boxes,) = seen
    assert boxes.tolist() == [[10.0, 20.0, 60.0, 45.0], [0.0, 0.0, 90.0, 60.0]]
    assert [one.box for one in query.objects] == [(20, 40, 120, 90), (0, 0, 180, 120)]
    assert query.codes.shape == (2, 2)
    for row, box in zip(query.codes, [(20, 40, 120, 90), (0, 0, 180, 120)], strict=True):
        np.testing.assert_array_equal(searcher.encode(photo, box).codes[0], row)


def test_what_of_a_box_is_outside_the_image_is_cut_off(searcher, photo):
    query = searcher.encode(photo, [(-10, 40, 500, 90.5), (30, -5, 60, 500)])
    assert [one.box for one in query.objects] == [(0, 40, 180, 90.5), (30, 0, 60, 120)]


@pytest.mark.parametrize(
    ("box", "message"),
    [
        ((200, 0, 250, 50), "box 200,0,250,50 is outside .*photo.png, which has 180 x 120 pixels"),
        ((0, -30, 50, 0), "box 0,-30,50,0 is outside"),
        ((50, 0, 50, 50), "box 50,0,50,50 is empty"),
        ((0, 60, 50, 50), "box 0,60,50,50 is empty"),
        ((0, 0, float("nan"), 50), "box 0,0,nan,50 is empty"),
        ((0, 0, float("inf"), 50), "box 0,0,inf,50 is empty"),
        ((0, 0, 50), r"box \(0, 0, 50\) is not x1, y1, x2, y2"),
        ([], r"box \[\] is not x1, y1, x2, y2"),
        (5, "box 5 is not x1, y1, x2, y2"),
        ("1,2,3,4", "box 1,2,3,4 is not"),
        ([(1, 2, 3, 4), (1, 2)], "is not x1, y1, x2, y2"),
        ({"a": 1}, "is not x1, y1, x2, y2"),
    ],
)
def test_wrong_boxes(searcher, photo, box, message):
    with pytest.raises(ValueError, match=message):
        searcher.search(photo, box)


def test_wrong_detections_and_images(searcher, photo, tmp_path):
    count = len(searcher.service.folder.items.instances.codes)
    for number in (0, count + 1, 1.5, True, "1"):
        shown = f"no detection {number!r}, "
        with pytest.raises(ValueError, match=f"{shown}.* from 1 to {count}; give"):
            searcher.search(photo, instance=number)
    with pytest.raises(ValueError, match=r"instance is \[\]: name a detection"):
        searcher.search(photo, instance=[])
    for score in (-0.1, 1.1, float("nan"), None, "0.3"):
        with pytest.raises(ValueError, match="min_score must be a number from 0 to 1, not"):
            searcher.encoder.detect(photo, score)
    with pytest.raises(UnreadableImage, match=r"absent\.png: No such file"):
        searcher.search(tmp_path / "absent.png")


def test_classes_that_the_model_sees(searcher, photo):
    """Those of a probability of at least 0.5, the most probable first."""
    model = searcher.encoder.model
    real = model.encode_images

    def encode_images(inputs, probabilities):
        (output,) = real(inputs)
        return [{**output, "image_probabilities": torch.tensor(probabilities)}]

    for probabilities, seen in (
        ([0.5, 0.49, 0.9], ("sofa", "cat")),
        ([0.7, 0.7, 0.7], ("cat", "dog", "sofa")),
        ([0.1, 0.2, 0.3], ()),
    ):
        model.encode_images = lambda inputs, p=probabilities: encode_images(inputs, p)
        query = searcher.encode(photo)
        assert query.classes == seen
        assert query.feature is None
        results = searcher.search_by_class(photo, 3)
        assert results == searcher.service.search_by_class(query, SearchOptions(topk=3))
        assert [result.class_name for result in results] == list(seen)
    assert searcher.encode(photo, box=(1, 2, 30, 40)).classes == ()


def test_features_of_models_that_give_them(searcher, photo):
    model, feature = searcher.encoder.model, torch.tensor([1.0, 2.0])
    real = model.encode_images
    model.encode_images = lambda inputs: [{**real(inputs)[0], "image_feature": feature}]
    np.testing.assert_array_equal(searcher.encode(photo).feature, [1, 2])
    items = replace(searcher.service.folder.items, features=np.array([[4, 6]], np.float16))
    searcher.service = SearchService(replace(searcher.service.folder, items=items))
    (answer,) = searcher.search(photo, rerank=1, rerank_by="features").answers
    assert answer.fine_distance == 25


def test_a_rerank_by_classes_takes_the_network_s_own_probabilities(searcher, photo):
    """By the network's sigmoids of the query, and its classifier on the bits of the image. By both,
    which is meant where nothing is named, the cosine of activations and bits counts as much."""
    model = searcher.encoder.model
    with torch.no_grad():
        model.roi_heads.image_hash.classifier.weight.mul_(30)  # so that activations matter
    folder = searcher.service.folder
    items = replace(folder.items, class_weights=class_weights_of(model))
    searcher.service = SearchService(replace(folder, items=items))
    (answer,) = searcher.search(photo, rerank=1, rerank_by="classes").answers
    with torch.no_grad():
        (output,) = model.encode_images([searcher.encoder._load(str(photo))])
        decoded = model.roi_heads.image_hash.classifier(output["image_code"].float()).sigmoid()
        cosine = torch.cosine_similarity(output["image_probabilities"], decoded, dim=0)
        centered = (2 * output[name].float() - 1 for name in ("image_activation", "image_code"))
        of_code = torch.cosine_similarity(*centered, dim=0)
    assert answer.fine_distance == pytest.approx(1 - cosine.item(), abs=1e-6)
    assert answer.fine_distance > 1e-6
    (both,) = searcher.search(photo, rerank=1).answers
    assert both.fine_distance == pytest.approx(1 - (cosine + of_code).item() / 2, abs=1e-6)


def test_a_model_that_codes_no_images(searcher):
    with pytest.raises(ValueError, match="Linear encodes no images; use RegionDH"):
        QueryEncoder(torch.nn.Linear(2, 2), None)


def test_queries_are_encoded_without_an_index(searcher, photo):
    """Names of classes are numbers where none are given."""
    plain = QueryEncoder(searcher.encoder.model, searcher.encoder._load)
    ours, other = searcher.encode(photo, instance=1), plain.encode(photo, instance=1)
    np.testing.assert_array_equal(ours.codes, other.codes)
    assert CLASSES[int(other.objects[0].class_name)] == ours.objects[0].class_name
    assert other.content_sha256 == hashlib.sha256(photo.read_bytes()).digest()


@pytest.fixture(scope="module")
def workspace(random_network, tmp_path_factory, load_tool):
    """A folder with the codes of scenes, and with their index."""
    return index_scenes(random_network, tmp_path_factory.mktemp("search"), load_tool)


def test_from_folder(random_network, workspace):
    config, opts, index = random_network.config, random_network.opts, workspace / "index"
    searcher = RegionDHSearcher.from_folder(index, config, opts, engine="faiss")
    assert searcher.notes == []
    name = searcher.service.folder.items.file_names[4]
    assert searcher.search(name, topk=1).answers[0].file_name == name
    opts = [*opts, "INPUT.MIN_SIZE_TEST", "96"]
    (note,) = RegionDHSearcher.from_folder(index, config, opts).notes
    assert (
        note
        == "the index was encoded with another INPUT.MIN_SIZE_TEST than 96: distances may be off"
    )


def test_queries_are_read_as_the_indexed_images_were(random_network, workspace):
    folder = read_index_folder(workspace / "index")
    settings = folder.items.settings.replace("IMAGE_READER 2", "IMAGE_READER 1")
    settings = settings.replace(f"MAX_PIXELS {DEFAULT_MAX_PIXELS}", "MAX_PIXELS 5000")
    folder = replace(folder, items=replace(folder.items, settings=settings))
    cfg = build_cfg(random_network.config, random_network.opts)
    searcher = RegionDHSearcher.from_cfg(SearchService(folder), cfg)
    assert len(searcher.notes) == 1  # of the older reader alone
    assert "extract_codes.py --resume" in searcher.notes[0]
    name = next(name for name in folder.items.file_names if name.endswith(".jpg"))
    limited = ImageLoader(cfg)
    limited.max_pixels = 5000
    assert not torch.equal(limited(name)["image"], ImageLoader(cfg)(name)["image"])
    expected = searcher.encoder.model.inference([limited(name)])[0]["image_code"]
    assert np.array_equal(unpack_codes(searcher.encode(name).codes, len(expected))[0], expected)
