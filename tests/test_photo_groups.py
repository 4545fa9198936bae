"""The views of groups and copies."""

import pytest

from regiondh_d2.retrieval.groups import group_photos
from regiondh_d2.utils.errors import RegionDHError
from regiondh_d2.web.collection import Cutoffs
from regiondh_d2.web.limits import Limits
from regiondh_d2.web.photo_groups import GroupViews
from web_site import photo_bytes, site


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("groups")
    (folder / "photos").mkdir()
    (folder / "photos" / "07.jpg").write_bytes(photo_bytes(6))  # a copy of photo 6
    with pytest.MonkeyPatch.context() as patch, site(folder, patch) as place:
        patch.setattr(place.search.collection(), "cutoffs", lambda granularity: Cutoffs(0, 1))
        yield place


def test_groups_are_those_of_the_command(place):
    found = group_photos(place.items, 1).groups
    views = GroupViews(place.search)
    page = views.groups(0, 3)
    assert page["total"] == len(found) > 3
    assert page["more"]
    assert page["distance"] == 1
    assert [[x["photo"] for x in group["photos"]] for group in page["groups"]] == [
        [place.ids[row] for row in group.rows] for group in found[:3]
    ]
    assert page["groups"][0]["count"] == len(found[0].rows)
    assert not views.groups(3, 100)["more"]


def test_copies_stand_with_their_first(place):
    page = GroupViews(place.search).copies(0, 10)
    assert [[x["file_name"] for x in group["photos"]] for group in page["groups"]] == [
        ["06.jpg", "07.jpg"]
    ]
    assert (page["total"], page["more"]) == (1, False)
    assert "photos have no thumbnail, so copies" in page["note"]


def test_a_large_index_has_no_such_view(place, monkeypatch):
    monkeypatch.setattr(place.search, "limits", Limits(grouped_photos=5))
    with pytest.raises(RegionDHError, match="at most 5 photos: run `regiondh groups`"):
        GroupViews(place.search).groups(0, 10)
