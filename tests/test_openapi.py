"""The description of the REST interface names what is there."""

import pytest

from regiondh_d2.web.app import _Pages
from regiondh_d2.web.openapi import openapi
from regiondh_d2.web.requests import SearchRequest
from web_site import site


@pytest.fixture(scope="module")
def routes(tmp_path_factory):
    with (
        pytest.MonkeyPatch.context() as patch,
        site(tmp_path_factory.mktemp("openapi"), patch) as place,
    ):
        found = _Pages(place.search, None).app.routes
        return {
            (route.path, method.lower())
            for route in found
            for method in route.methods - {"HEAD"}
            if route.path.startswith("/api/")
        }


def test_every_path_is_described(routes):
    paths = openapi()["paths"]
    assert {(path, method) for path in paths for method in paths[path]} == routes


def test_every_option_of_a_search_is_described():
    parameters = {one["name"] for one in openapi()["paths"]["/api/search"]["get"]["parameters"]}
    names = {name: name for name in SearchRequest.__dataclass_fields__}
    names |= {"objects": "object", "boxes": "box", "class_name": "class"}
    assert parameters == set(names.values())


def test_parameters_of_paths_are_declared():
    for path, operations in openapi()["paths"].items():
        for operation in operations.values():
            declared = {x["name"] for x in operation.get("parameters", ()) if x["in"] == "path"}
            assert declared == {part[1:-1] for part in path.split("/") if part.startswith("{")}
            assert "503" in operation["responses"]
