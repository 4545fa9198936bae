"""Conditions for a Milvus server can't end the parentheses that they are put in."""

import pytest

from regiondh_d2.retrieval.engines import MilvusIndex
from regiondh_d2.retrieval.engines.milvus_conditions import check_condition
from regiondh_d2.utils.errors import RegionDHError


@pytest.mark.parametrize(
    "where",
    [
        "class_id == 3",
        "(class_id == 3) or (score > 0.5)",
        'image_id == "a)b"',
        r"image_id == 'it\'s (here'",
        r'image_id in ["\\", "(("]',
    ],
)
def test_whole_expressions(where):
    check_condition(where)


@pytest.mark.parametrize(
    ("where", "half"),
    [
        ("class_id == 3) or (row < 0", "parenthesis"),
        ("(class_id == 3", "parenthesis"),
        ("class_id == 3)", "parenthesis"),
        ('image_id == "a', "quote"),
        (r'image_id == "a\"', "quote"),
        ("image_id == 'a\" or (", "quote"),
        (3, "as text"),
    ],
)
def test_halves(where, half):
    index = MilvusIndex.__new__(MilvusIndex)  # no server is asked
    with pytest.raises(RegionDHError, match=half):
        index.search(None, 1, where)
