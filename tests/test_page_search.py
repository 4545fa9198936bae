"""What the page asks for becomes calls of the service."""

import numpy as np
import pytest

from regiondh_d2.data.image_reader import UnreadableImage
from regiondh_d2.retrieval.index_file import IndexFileError
from regiondh_d2.retrieval.index_folder import write_index_folder
from regiondh_d2.retrieval.queries import SearchOptions
from regiondh_d2.retrieval.service import SnapshotHolder
from regiondh_d2.utils.errors import RegionDHError
from regiondh_d2.web.collection import Cutoffs, UnknownItemError
from regiondh_d2.web.page_search import ExpiredError, PageSearch
from regiondh_d2.web.requests import SearchRequest
from web_site import EVIL, GPS, PHOTOS, FakeEncoder, make_items, photo_bytes, site


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("page")
    with (
        pytest.MonkeyPatch.context() as patch,
        site(folder, patch, encoder=FakeEncoder()) as place,
    ):
        yield place


def ask(place, **values):
    """The answers to a search, run as the server runs it."""
    request = SearchRequest(**values)
    boxes = place.search.encode_boxes(request, place.search.decode_boxed(request))
    return place.search.search(request, boxes)


def names(result):
    return [answer["file_name"] for answer in result["answers"]]


def test_a_photo_finds_those_of_near_codes_without_itself(place):
    result = ask(place, photo=place.ids[10], limit=5)
    collection = place.search.collection()
    options = SearchOptions(topk=6, exclude_self=True, fold_duplicates=True)
    expected = collection.service.search(collection.query(10), options).answers
    assert [answer["distance"] for answer in result["answers"]] == [
        x.distance for x in expected[:5]
    ]
    assert names(result) == [x.file_name.rpartition("/")[2] for x in expected[:5]]
    assert names(result)[0] == "11.jpg"  # of the same code
    assert "10.jpg" not in names(result)
    assert result["more"]
    assert result["bits"] == 16


def test_an_object_finds_objects_and_their_numbers(place):
    result = ask(place, photo=place.ids[0], objects=(2,), limit=3)
    # The dog of photo 0 has 2 ones, as the dog of photo 1 and the cats of photos 4 and 5.
    assert names(result) == ["01.jpg", "04.jpg", EVIL]
    assert [answer["distance"] for answer in result["answers"]] == [0, 0, 0]
    first, second, _ = (answer["objects"][0] for answer in result["answers"])
    assert (first["number"], first["class_name"], first["box"]) == (2, "dog", (30, 20, 78, 58))
    assert (second["number"], second["class_name"]) == (1, "cat")
    assert (result["answers"][0]["width"], result["answers"][0]["height"]) == (80, 60)
    assert result["answers"][0]["photo"] == place.ids[1]


def test_nothing_tells_where_the_photos_are(place, tmp_path_factory):
    result = ask(place, photo=place.ids[0], objects=(1,))
    described = place.search.describe_photo(place.ids[5])
    assert str(tmp_path_factory.getbasetemp()) not in repr((result, described))
    assert described["file_name"] == EVIL


def test_pages_continue_each_other(place):
    whole = ask(place, photo=place.ids[3], objects=(1,), limit=20)
    parts = [ask(place, photo=place.ids[3], objects=(1,), limit=7, offset=o) for o in (0, 7, 14)]
    assert sum(map(names, parts), [])[:20] == names(whole)
    assert [x["rank"] for x in parts[1]["answers"]] == [*range(8, 15)]
    last = ask(place, photo=place.ids[3], objects=(1,), limit=7, offset=21)
    assert len(last["answers"]) == PHOTOS - 1 - 21
    assert not last["more"]


def test_several_objects_must_all_be_there(place):
    result = ask(place, photo=place.ids[4], objects=(1, 2), limit=3)
    assert names(result)[0] == EVIL  # photo 5 has the same two codes
    assert [found["number"] for found in result["answers"][0]["objects"]] == [1, 2]


def test_a_class_restricts_the_answers(place):
    result = ask(place, photo=place.ids[0], objects=(1,), class_name="dog")
    assert {one["class_name"] for x in result["answers"] for one in x["objects"]} == {"dog"}
    with pytest.raises(RegionDHError, match="unicorn"):
        ask(place, photo=place.ids[0], class_name="unicorn")


def test_blend_weighs_the_scene(place):
    # The dog of photo 0 alone is as near to photo 4, whose code is 2 further away.
    result = ask(place, photo=place.ids[0], objects=(2,), blend=1.0, limit=4)
    assert names(result)[0] == "01.jpg"
    values = [
        (x["distance"], x["image_distance"], x["blended"], x["band"]) for x in result["answers"]
    ]
    assert values[:2] == [(0, 0, 0.0, None), (1, 1, 2.0, None)]
    assert result["cutoffs"] is None
    assert "blended" not in ask(place, photo=place.ids[0], objects=(2,))["answers"][0]


@pytest.mark.parametrize("objects", [(), (1,)])
def test_a_drawn_box_is_one_more_object(place, objects):
    box = (6.0, 5.0, 40.0, 50.0)  # coded by its left edge: 6 ones
    result = ask(place, photo=place.ids[12], objects=objects, boxes=(box,), limit=2)
    assert len(result["objects"]) == 1 + len(objects)
    assert result["objects"][-1]["box"] == box
    assert result["answers"][0]["distance"] == 0
    assert names(result)[0] == "08.jpg"  # the first with an object of 6 ones, its dog


def test_bands(place, monkeypatch):
    collection = place.search.collection()
    monkeypatch.setattr(collection, "cutoffs", lambda granularity: Cutoffs(0, 1))
    result = ask(place, photo=place.ids[0], objects=(1,), limit=6)
    assert [(x["distance"], x["band"]) for x in result["answers"]] == [
        (0, "same"), (1, "similar"), (1, "similar"), (2, "far"), (2, "far"), (3, "far"),
    ]  # fmt: skip
    assert result["cutoffs"] == {"same": 0, "similar": 1}
    both = ask(place, photo=place.ids[0], objects=(1, 2), limit=3)["answers"]
    # Of two objects the farthest counts.
    assert [(x["distance"], x["band"]) for x in both] == [
        (0, "same"),
        (2, "similar"),
        (2, "similar"),
    ]


def test_copies_are_folded(tmp_path, monkeypatch):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "07.jpg").write_bytes(photo_bytes(6))
    with site(tmp_path, monkeypatch) as place:
        folded = ask(place, photo=place.ids[2], limit=10)
        (answer,) = (x for x in folded["answers"] if x["file_name"] == "06.jpg")
        assert answer["copies"] == ["07.jpg"]
        assert "07.jpg" not in names(folded)
        assert "07.jpg" in names(ask(place, photo=place.ids[2], limit=10, fold=False))


def test_uploads_are_encoded_and_searched_with(place):
    image = place.search.decode_upload(photo_bytes(200))
    upload = place.search.encode_upload(image)
    described = place.search.describe_upload(upload.id)
    assert (described["width"], described["height"]) == (80, 60)
    assert described["objects"][0]["class_name"] == "cat"
    assert described["classes"] == ["cat"]
    assert names(ask(place, upload=upload.id, limit=2)) == ["00.jpg", "01.jpg"]
    assert names(ask(place, upload=upload.id, objects=(1,), limit=1)) == ["00.jpg"]
    boxed = ask(place, upload=upload.id, boxes=((4.0, 0.0, 9.0, 9.0),), limit=1)
    assert names(boxed) == ["04.jpg"]
    assert GPS not in upload.image.picture.jpeg
    with pytest.raises(UnknownItemError):
        ask(place, upload=upload.id, objects=(2,))
    place.search.uploads.remove(upload.id)
    with pytest.raises(ExpiredError, match="^expired"):
        ask(place, upload=upload.id)


def test_what_a_request_lacks(place):
    for values in ({}, {"photo": place.ids[0], "upload": "x"}):
        with pytest.raises(RegionDHError, match="photo, upload"):
            ask(place, **values)
    with pytest.raises(UnknownItemError):
        ask(place, photo="../../etc/passwd")
    with pytest.raises(UnknownItemError):
        ask(place, photo=place.ids[0], objects=(99,))
    with pytest.raises(RegionDHError, match="all_objects"):
        ask(place, photo=place.ids[0], all_objects=True)
    with pytest.raises(RegionDHError, match="blend"):
        ask(place, photo=place.ids[0], blend=1.0)


def test_thumbnails_are_kept_up_to_a_number_of_bytes(place, monkeypatch):
    reads = []
    read = place.search.decoder.picture
    monkeypatch.setattr(
        place.search.decoder, "picture", lambda path, side: reads.append(path) or read(path, side)
    )
    place.search._thumbnails.clear()
    size = len(place.search.thumbnail(place.ids[0]).jpeg)
    place.search.thumbnail(place.ids[0])
    assert len(reads) == 1
    limits = type(place.search.limits)(thumbnail_bytes=2 * size + size // 2)
    monkeypatch.setattr(place.search, "limits", limits)
    for one in place.ids[:4]:
        place.search.thumbnail(one)
    assert len(place.search._thumbnails) == 2


def test_without_a_network_only_stored_codes_are_searched_with(place):
    search = PageSearch(
        SnapshotHolder(place.index), place.search.decoder, None, place.search.limits
    )
    request = SearchRequest(photo=place.ids[0], boxes=((1, 2, 3, 4),))
    with pytest.raises(RegionDHError, match="network"):
        search.decode_boxed(request)
    with pytest.raises(RegionDHError, match="network"):
        search.encode_upload(search.decode_upload(photo_bytes()))
    assert search.search(SearchRequest(photo=place.ids[0]), None)["answers"]


def test_the_index_grows_while_it_is_served(tmp_path, monkeypatch):
    with site(tmp_path, monkeypatch, encoder=FakeEncoder()) as place:
        grown = make_items(tmp_path / "photos", PHOTOS + 4)
        write_index_folder(place.index, grown, engine="numpy")
        assert len(place.search.collection()) == PHOTOS + 4
        assert place.search.collection() is place.search.collection()
        assert place.search.collection().row(place.ids[3]) == 3  # ids stay

        record = (place.index / "index.json").read_text()
        (place.index / "index.json").write_text("broken")
        assert len(place.search.collection()) == PHOTOS + 4  # as it was
        (place.index / "index.json").write_text(record)

        other = make_items(tmp_path / "photos")
        other.model_fingerprint = "cd" * 32  # of another network: codes would mean nothing
        write_index_folder(place.index, other, engine="numpy")
        assert len(place.search.collection()) == PHOTOS + 4
        with pytest.raises(IndexFileError, match="model"):
            PageSearch(
                SnapshotHolder(place.index),
                place.search.decoder,
                FakeEncoder(),
                place.search.limits,
            )


def test_a_photo_that_has_gone(tmp_path, monkeypatch):
    with site(tmp_path, monkeypatch, encoder=FakeEncoder()) as place:
        (tmp_path / "photos" / "01.jpg").unlink()
        with pytest.raises(UnreadableImage):
            place.search.thumbnail(place.ids[1])
        assert place.search.describe_photo(place.ids[1])["width"] is None
        result = ask(place, photo=place.ids[0], limit=3)
        assert "01.jpg" not in names(result)
        assert result["gone"] == 1
        assert "left out" in result["notes"][0]
        with pytest.raises(UnreadableImage):
            ask(place, photo=place.ids[1], boxes=((1.0, 1.0, 9.0, 9.0),))


def test_inputs_of_drawn_boxes_are_the_networks(place):
    request = SearchRequest(photo=place.ids[0], boxes=((1.0, 1.0, 9.0, 9.0),))
    image = place.search.decode_boxed(request)
    assert image.inputs.shape == (3, 40, 53)
    assert image.inputs.dtype == np.uint8
    assert place.search.decode_boxed(request) is image  # not read again
    assert place.search.decode_boxed(SearchRequest(photo=place.ids[0])) is None
