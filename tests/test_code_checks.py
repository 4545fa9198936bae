"""Which code sets can be compared; test_code_store.py has those whose arrays don't fit together."""

import numpy as np
import pytest

from code_sets import make_code_set, make_photo_set
from regiondh_d2.structures.code_checks import check_comparable
from regiondh_d2.structures.codes import CodeFileError


def test_check_comparable():
    ours = make_code_set()
    assert check_comparable(ours, make_code_set(rows=9)) == []
    for changes, message in (
        ({"bits": 16}, "12 bits and the database 16"),
        ({"class_names": ["dog", "cat", "vögel"]}, "labels of different classes"),
        ({"model_fingerprint": "cd" * 32}, "encode both with the same model"),
    ):
        with pytest.raises(CodeFileError, match=message):
            check_comparable(ours, make_code_set(**changes))
    first, second = (make_photo_set(class_weights=np.full((13, 3), x, "f4")) for x in (1, 2))
    assert check_comparable(ours, first) == check_comparable(first, first) == []
    with pytest.raises(CodeFileError, match="other class_weights than the database, so two models"):
        check_comparable(first, second)
    (note,) = check_comparable(ours, make_code_set(model_fingerprint=""))
    assert "fingerprint is missing" in note
    (note,) = check_comparable(ours, make_code_set(count_difficult=True))
    assert "difficult" in note
