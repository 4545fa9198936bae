"""Code sets: columns that are there or not."""

import pytest

from code_sets import make_code_set
from regiondh_d2.structures.codes import CodeFileError, check_holds


@pytest.mark.parametrize(
    ("lacking", "line"),
    [
        ("labels", "no labels in d.h5: extract the codes from a labeled dataset"),
        ("activations", "no activations in d.h5: extract the codes with --activations"),
        ("features", "no features in d.h5: extract the codes with --features"),
        ("instances", "no detected objects in d.h5: extract the codes with objects"),
    ],
)
def test_check_holds(lacking, line):
    names = ("labels", "activations", "features", "instances")
    check_holds(make_code_set(), "d.h5", *names)
    code_set = make_code_set(**{lacking: None})
    check_holds(code_set, "d.h5", *(name for name in names if name != lacking))
    with pytest.raises(CodeFileError) as error:
        check_holds(code_set, "d.h5", *names)
    assert str(error.value) == line


@pytest.mark.parametrize("name", ["labels", "activations", "features"])
def test_a_column_is_there_or_an_error(name):
    code_set = make_code_set()
    assert code_set.column(name) is getattr(code_set, name)
    setattr(code_set, name, None)
    with pytest.raises(CodeFileError, match=f"^no {name} in the codes: extract the codes "):
        code_set.column(name)


def test_objects_are_there_or_an_error():
    code_set = make_code_set()
    assert code_set.objects() is code_set.instances
    code_set.instances = None
    with pytest.raises(CodeFileError, match="^no detected objects in the codes: extract "):
        code_set.objects()
