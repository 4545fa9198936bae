"""From nothing to answers in Python: a network that encodes, detects, indexes and searches."""

import copy
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import regiondh_d2
from regiondh_d2.checkpoint import model_fingerprint
from regiondh_d2.checkpoint.zoo import FINGERPRINTS
from regiondh_d2.engine import photo_network
from regiondh_d2.engine.photo_network import PhotoNetwork
from regiondh_d2.retrieval.code_store import read_codes
from regiondh_d2.retrieval.images import UnreadableImage
from regiondh_d2.retrieval.index_file import IndexFileError
from regiondh_d2.utils.errors import InputNotFoundError, OutputExistsError, RegionDHError

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def network(random_network):
    opts = random_network.opts
    at = opts.index("MODEL.WEIGHTS")
    return regiondh_d2.load(
        random_network.config, opts[at + 1], [*opts[:at], *opts[at + 2 :]], "cpu"
    )


@pytest.fixture
def place(random_network, tmp_path, monkeypatch):
    """A working directory with two folders of photos, "mine" and "yours", and ``query.png``."""
    scenes = sorted(random_network.scenes.rglob("*.jpg"))
    for folder, photos in (("mine", scenes[:3]), ("yours", scenes[3:5])):
        (tmp_path / folder).mkdir()
        for i, photo in enumerate(photos):
            shutil.copy(photo, tmp_path / folder / f"{i}.jpg")
    with Image.open(scenes[5]) as image:
        image.save(tmp_path / "query.png")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def names(result):
    return [os.path.relpath(answer.file_name) for answer in result.answers]


def test_the_lines_of_the_documentation(place, monkeypatch, capsys):
    """With the network that comes with the package."""
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs/photos.md").read_text(), re.S)
    (lines,) = [block for block in blocks if "regiondh_d2.load" in block]
    assert len(lines.split("\n\n")[-1].strip().splitlines()) <= 5
    (place / "mine").rename("photos")
    shutil.copy("yours/0.jpg", "query.jpg")
    exec(compile(lines, "photos.md", "exec"), {})
    answers = capsys.readouterr().out.strip().splitlines()[-3:]
    assert {os.path.relpath(line.split(maxsplit=1)[1]) for line in answers} == {
        f"photos/{i}.jpg" for i in range(3)
    }
    assert (place / "output/photos/index/index.json").is_file()


def test_images_in_every_form_have_one_code(network, place):
    with Image.open("query.png") as image:
        image.load()
    array = np.asarray(image)
    content = (place / "query.png").read_bytes()
    with open("query.png", "rb") as file:
        forms = [place / "query.png", "query.png", file, content, image, array]
        found = network.encode(forms)
    one = network.encode("query.png")
    for query in found:
        np.testing.assert_array_equal(query.codes, one.codes)
    assert one.codes.shape == (1, 6)
    assert [query.file_name for query in found[1:]] == [
        *("query.png", "image 3", "image 4", "image 5", "image 6")
    ]
    assert len({query.content_sha256 for query in found[:4]}) == 1
    assert found[4].content_sha256 is None


def test_an_image_of_pillow_is_turned_and_put_on_white(network, place):
    exif = Image.Exif()
    exif[274] = 6
    with Image.open("query.png") as image:
        image.save("turned.png", exif=exif)
    with Image.open("turned.png") as image:
        turned = network.encode(image)
    np.testing.assert_array_equal(turned.activation, network.encode("turned.png").activation)
    clear = Image.open("query.png").convert("RGBA")
    clear.putalpha(100)
    clear.save("clear.png")
    np.testing.assert_array_equal(
        network.encode(clear).activation, network.encode("clear.png").activation
    )


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((4, 4, 3), np.float32), "give RGB pixels as uint8"),
        (np.zeros((4, 4), np.uint8), r"uint8, shape \(4, 4\), is no image"),
        (7, "int is no image: give a path"),
        (b"no image", "the image: not an image of a known format"),
        (Image.new("F", (4, 4)), "the image: signed or 32-bit pixels"),
        (Image.new("RGB", (0, 5)), "the image: it has 0 x 5 pixels"),
    ],
)
def test_what_is_no_image(network, image, message):
    with pytest.raises(RegionDHError, match=message):
        network.encode(image)


def test_a_file_that_is_opened_as_text(network, place):
    (place / "a.txt").write_text("a")
    with open("a.txt") as file, pytest.raises(RegionDHError, match="open it with mode 'rb'"):
        network.encode(file)


def test_detections_are_numbered_as_search_numbers_them(network, place):
    found = network.detect("query.png", min_score=0.0)
    scores = [one.score for one in found]
    assert len(found) > 1
    assert scores == sorted(scores, reverse=True)
    network.index("mine", log=lambda line: None)
    result = network.search("query.png", instance=2)
    assert result.objects == (found[1],)
    least = scores[1]
    assert network.detect("query.png", min_score=least) == [x for x in found if x.score >= least]


def test_folders_share_an_output_and_answer_for_themselves(network, place):
    (place / "mine" / "broken.jpg").write_bytes(b"no image")
    lines = []
    searcher = network.index("mine", "out", log=lines.append)
    assert any("broken.jpg" in line and "unreadable" in line for line in lines)
    assert searcher.notes == []
    assert sorted(names(network.search("query.png"))) == [f"mine/{i}.jpg" for i in range(3)]
    network.index("yours", "out", log=lines.append)
    assert len(read_codes("out/photos.h5")) == 5
    assert sorted(names(network.search("query.png"))) == ["yours/0.jpg", "yours/1.jpg"]
    assert len(network.search("query.png", "out/index").answers) == 5
    for within in (["mine"], "mine", place / "mine"):  # a text isn't its letters
        assert len(network.search("query.png", within=within).answers) == 3
    with pytest.raises(RegionDHError, match="mine holds no photos: nothing is changed"):
        network.index("mine", "out", exclude="*.jpg")


def test_several_queries_have_the_answers_of_each(network, place):
    network.index("mine", log=lambda line: None)
    results = network.search(["mine/1.jpg", place / "query.png"], topk=2)
    assert results == [network.search(one, topk=2) for one in ("mine/1.jpg", place / "query.png")]
    assert (results[0].answers[0].distance, names(results[0])[0]) == (0, "mine/1.jpg")
    assert network.search([]) == []
    with pytest.raises(RegionDHError, match="box and instance are for one query"):
        network.search(["mine/1.jpg", "query.png"], instance=1)


def test_what_is_refused(network, place):
    with pytest.raises(RegionDHError, match="call index"):
        type(network)(network.model, network.cfg).search("query.png")
    with pytest.raises(InputNotFoundError, match="nowhere: no such folder of photos"):
        network.index("nowhere")
    with pytest.raises(InputNotFoundError, match="no such folder of photos"):
        network.index("")  # not the working directory
    with pytest.raises(OutputExistsError, match="the photos are in this folder"):
        network.index("mine", ".")
    (place / "bad").mkdir()
    (place / "bad" / "broken.jpg").write_bytes(b"no image")
    with pytest.raises(RegionDHError, match="no photo in it can be read"):
        network.index("bad", "new/out", log=lambda line: None)
    assert not (place / "new").exists()
    with pytest.raises(IndexFileError, match="absent: no index folder"):
        network.search("query.png", "absent")
    with pytest.raises(UnreadableImage, match="absent.jpg"):
        network.encode("absent.jpg")
    with pytest.raises(InputNotFoundError, match="did you mean voc07/regiondh_effnetlite0_64"):
        regiondh_d2.load("regiondh_effnetlite0_64")
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        regiondh_d2.nothing  # noqa: B018


def test_an_old_index_is_searched_and_grown_with_its_own_network(network, place, monkeypatch):
    """By a network that nobody named; one that was named refuses it."""
    old = "effnetlite0_voc07_64"  # which ``network`` stands for
    monkeypatch.setitem(FINGERPRINTS, model_fingerprint(network.model), old)
    loaded = []
    monkeypatch.setattr(photo_network, "load", lambda *a, **b: loaded.append((a, b)) or network)
    model = copy.deepcopy(network.model)
    model.roi_heads.image_hash.latent.linear.bias.data += 1
    default = PhotoNetwork(model, network.cfg, follows_indexes=True)
    default.index("yours", "new", log=print)
    network.index("mine", "out", log=print)

    lines = []
    searcher = default.index("yours", "out", log=lines.append)
    assert lines[0].startswith(f"out/photos.h5 is by the network {old} and stays with it; `regiond")
    codes = read_codes("out/photos.h5")
    assert (len(codes), codes.model_fingerprint) == (5, model_fingerprint(network.model))
    assert searcher.encoder.model is network.model
    assert loaded == [((old,), {"device": "cpu"})]
    found = default.search("yours/1.jpg").answers
    assert (found[0].distance, os.path.relpath(found[0].file_name)) == (0, "yours/1.jpg")
    assert len(default.search("query.png", "out/index").answers) == 5
    assert len(default.search("query.png", "new/index").answers) == 2

    named = PhotoNetwork(model, network.cfg)
    with pytest.raises(RegionDHError, match="photos.h5 was encoded by model"):
        named.index("yours", "out", log=print)
    with pytest.raises(IndexFileError, match="was encoded by model"):
        named.search("query.png", "out/index")
