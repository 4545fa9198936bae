"""Outputs of earlier runs: whether an extraction may go on with them."""

import functools
import os
from dataclasses import replace

import pytest

from code_sets import make_photo_set
from extraction import ATTRIBUTES, WEIGHTS, extract_folder, fail_after, save_twelve
from regiondh_d2.retrieval.code_store import read_codes, write_codes
from regiondh_d2.retrieval.earlier_codes import check_nothing_lost, keeps_activations
from regiondh_d2.structures.code_rows import take_rows
from regiondh_d2.structures.codes import CodeFileError
from regiondh_d2.utils.errors import OutputExistsError


@pytest.fixture
def folder(tmp_path):
    return save_twelve(tmp_path / "images")


def test_activations_are_kept_as_the_output_has_them(folder, tmp_path):
    output = tmp_path / "codes.h5"
    assert keeps_activations(output)
    for kept in (False, True):
        settings = f"{ATTRIBUTES['settings']}\nactivations {kept}"
        options = {"activations": kept, "settings": settings}
        with pytest.raises(KeyboardInterrupt):
            extract_folder(folder, output, model=fail_after(1), **options)
        assert keeps_activations(output) == kept  # of the parts
        extract_folder(folder, output, resume=True, **options)
        assert keeps_activations(output) == (read_codes(output).activations is not None) == kept
        output.unlink()
    for kept in (False, True):  # where the settings don't tell
        extract_folder(folder, output, activations=kept)
        assert keeps_activations(output) == kept
        output.unlink()


@pytest.mark.parametrize("finished", [True, False])
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"model_fingerprint": "e" * 64},
            "was encoded by model ffffffffffff, not by this one (eeee",
        ),
        (
            {"settings": "INPUT.FORMAT 'BGR'\ninstances True"},
            "with INPUT.FORMAT 'RGB', which is now",
        ),
        ({"settings": "INPUT.FORMAT 'RGB'"}, "with instances True, which is now (unknown)"),
        ({"dataset": "other"}, "with dataset , which is now other"),
        ({"class_names": ["a", "b"]}, "class_names"),
        ({"count_difficult": False}, "count_difficult"),
        ({"class_weights": 2 * WEIGHTS}, "has other class_weights than this model"),
    ],
)
def test_other_models_and_settings_are_refused(folder, tmp_path, finished, changes, message):
    output = tmp_path / "codes.h5"
    if finished:
        extract_folder(folder, output, class_weights=WEIGHTS)
    else:
        with pytest.raises(KeyboardInterrupt):
            extract_folder(folder, output, model=fail_after(1), class_weights=WEIGHTS)
    before = sorted(os.listdir(tmp_path))
    with pytest.raises(CodeFileError) as error:
        extract_folder(folder, output, resume=True, **changes)
    assert message in str(error.value)
    assert "name another output" in str(error.value)
    assert sorted(os.listdir(tmp_path)) == before
    assert extract_folder(folder, output, resume=True).rows == 12


def test_a_setting_newer_than_the_file_had_its_default(folder, tmp_path):
    output = tmp_path / "codes.h5"
    extract_folder(folder, output)
    run = functools.partial(extract_folder, folder, output, resume=True)
    newer = f"{ATTRIBUTES['settings']}\nMODEL.REGION_DH.FUSION_NUM_ROIS"
    with pytest.raises(CodeFileError, match=r"FUSION_NUM_ROIS 100, which is now 99: name another"):
        run(settings=f"{newer} 99")
    assert run(settings=f"{newer} 100").coded == 0
    assert run(settings=f"{ATTRIBUTES['settings']}\nfeatures False").coded == 0


def test_nothing_is_known_of_settings_that_are_not_told(folder, tmp_path):
    output = tmp_path / "codes.h5"
    extract_folder(folder, output, settings="")
    with pytest.raises(CodeFileError, match=r"was encoded with INPUT\.FORMAT \(unknown\)"):
        extract_folder(folder, output, resume=True)


def test_codes_that_would_get_lost(tmp_path):
    codes, output = make_photo_set(), tmp_path / "codes.h5"
    check_nothing_lost(output, codes)  # there is none
    output.write_bytes(b"damaged")
    check_nothing_lost(output, codes)
    write_codes(output, codes)
    check_nothing_lost(output, codes)
    more = make_photo_set(6)
    check_nothing_lost(output, replace(more, image_ids=[*codes.image_ids, "new"]))
    for changes, message in (
        ({"model_fingerprint": "e" * 64}, "holds codes of another network: name another file, or"),
        ({"activations": None}, "holds activations, which the new file lacks"),
        ({"instances": None}, "holds instances, which the new file lacks"),
    ):
        with pytest.raises(OutputExistsError, match=message):
            check_nothing_lost(output, replace(codes, **changes))
    with pytest.raises(OutputExistsError, match="holds codes of 2 images that the new file lacks"):
        check_nothing_lost(output, take_rows(codes, [0, 2, 4]))
