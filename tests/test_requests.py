"""What a request asks for is checked."""

import pytest
from starlette.datastructures import QueryParams

from regiondh_d2.utils.errors import RegionDHError
from regiondh_d2.web.requests import SearchRequest, page_of


def test_an_address_and_json_ask_for_the_same():
    address = (
        "photo=ab&object=2&object=1&box=1,2,30.5,40&class=dog&limit=5&offset=10&blend=0.5&fold=0"
    )
    values = {
        "photo": "ab",
        "objects": [2, 1],
        "boxes": [[1, 2, 30.5, 40]],
        "class": "dog",
        "limit": 5,
        "offset": 10,
        "blend": 0.5,
        "fold": False,
    }
    wanted = SearchRequest(
        photo="ab",
        objects=(2, 1),
        boxes=((1.0, 2.0, 30.5, 40.0),),
        class_name="dog",
        limit=5,
        offset=10,
        blend=0.5,
        fold=False,
    )
    assert SearchRequest.from_query(QueryParams(address)) == wanted
    assert SearchRequest.from_values(values) == wanted
    assert SearchRequest.from_query(QueryParams("")) == SearchRequest()
    assert wanted.of_upload("xy").upload == "xy"
    assert wanted.of_upload("xy").photo == ""


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"objects": ["a"]}, "objects"),
        ({"objects": [1.5]}, "objects"),
        ({"objects": [True]}, "objects"),
        ({"objects": 3}, "objects"),
        ({"objects": [1] * 21}, "objects"),
        ({"objects": [[1]]}, "objects"),
        ({"boxes": [[1, 2, 3]]}, "box"),
        ({"boxes": ["1,2,3,4"]}, "box"),
        ({"boxes": [[1, 2, 3, "nan"]]}, "box"),
        ({"boxes": [[1, 2, 3, 1e300]]}, "box"),
        ({"boxes": [[1, 2, 3, 10**400]]}, "box"),
        ({"class": 3}, "class"),
        ({"photo": "x" * 201}, "photo"),
        ({"limit": 0}, "limit"),
        ({"limit": 201}, "limit"),
        ({"limit": "many"}, "limit"),
        ({"offset": -1}, "offset"),
        ({"blend": None}, "blend"),
        ({"blend": "inf"}, "blend"),
        ({"fold": "maybe"}, "fold"),
        ({"all_objects": []}, "all_objects"),
        ({"path": "/etc/passwd"}, "path"),
    ],
)
def test_wrong_values_are_named(values, named):
    with pytest.raises(RegionDHError, match=f"^{named}: "):
        SearchRequest.from_values(values)


def test_pages():
    assert page_of({}) == (48, 0)
    assert page_of({"limit": "7", "offset": "14"}) == (7, 14)
