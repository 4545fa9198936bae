"""Extraction: rows, bad images, and updates of an output.

A network stands in for the model only where its codes matter; elsewhere a code is a few pixels.
"""

import dataclasses
import functools
import io
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from extraction import (
    ATTRIBUTES,
    BITS,
    WEIGHTS,
    extract_folder,
    fake_model,
    make_extractor,
    save_twelve,
)
from pictures import pixels_of, save
from regiondh_d2.data.image_reader import read_image
from regiondh_d2.data.thumbnails import thumbnail
from regiondh_d2.retrieval import extract
from regiondh_d2.retrieval.code_store import read_codes, write_codes
from regiondh_d2.retrieval.images import ImageEntry, ImageLoader, find_images
from regiondh_d2.structures.packed import unpack_codes
from regiondh_d2.utils.progress import Progress


@pytest.fixture
def folder(tmp_path):
    return save_twelve(tmp_path / "images")


def test_rows_are_in_input_order_and_hold_what_the_model_says(folder, tmp_path):
    result = extract_folder(folder, tmp_path / "new" / "codes.h5", batch_size=5, activations=True)
    assert (result.images, result.coded, result.rows, result.complete) == (12, 12, 12, True)
    codes = read_codes(tmp_path / "new" / "codes.h5")
    assert codes.file_names == [str(folder / f"{number:02d}.png") for number in range(12)]
    assert codes.image_ids == codes.file_names
    for name, value in ATTRIBUTES.items():
        assert getattr(codes, name) == value
    expected = np.stack(
        [
            pixels_of(f"{number:02d}.png", height=20 if number % 3 else 40)[0, :BITS, 0] > 127
            for number in range(12)
        ]
    )
    np.testing.assert_array_equal(unpack_codes(codes.codes, BITS), expected)
    np.testing.assert_array_equal(codes.activations, expected)
    assert codes.labels is None
    np.testing.assert_array_equal(codes.instances.image_index, np.arange(12))
    np.testing.assert_array_equal(unpack_codes(codes.instances.codes, BITS), ~expected)
    heights = [20 if number % 3 else 40 for number in range(12)]
    np.testing.assert_array_equal(codes.instances.boxes, [[0, 0, 30, h] for h in heights])
    assert os.listdir(tmp_path / "new") == ["codes.h5"]


def test_labels_of_a_dataset_are_stored(folder, tmp_path):
    entries = [
        ImageEntry(str(number), str(folder / f"{number:02d}.png"), labels)
        for number, labels in enumerate([(0, 2), (), (1,)])
    ]
    make_extractor().extract(entries, tmp_path / "codes.h5")
    np.testing.assert_array_equal(
        read_codes(tmp_path / "codes.h5").labels, [[1, 0, 1], [0, 0, 0], [0, 1, 0]]
    )


def test_thumbnails_are_stored_and_an_output_without_them_grows(folder, tmp_path):
    output = tmp_path / "codes.h5"
    extract_folder(folder, output)
    codes = read_codes(output)
    expected = [thumbnail(read_image(name).pixels) for name in codes.file_names]
    np.testing.assert_array_equal(codes.thumbnails, expected)
    write_codes(output, dataclasses.replace(codes, thumbnails=None))  # of an earlier version
    save(folder / "new.png")
    extract_folder(folder, output, resume=True)
    grown = read_codes(output)
    assert grown.thumbnails.any(axis=1).tolist() == [False] * 12 + [True]


def test_codes_are_those_of_each_image_alone(folder, tmp_path, make_model):
    """A real network: every bit that rounding cannot turn, and every box, to a hundredth pixel."""
    model = make_model("MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.0).eval()
    loader = ImageLoader(min_size=64, max_size=96, image_format="RGB")
    extractor = make_extractor(
        model.inference, loader=loader, batch_size=8, activations=True, instance_min_score=0.0
    )
    extractor.extract(find_images([folder]), tmp_path / "codes.h5")
    codes = read_codes(tmp_path / "codes.h5")
    bits = unpack_codes(codes.codes, codes.bits)
    certain = 0
    for row, name in enumerate(codes.file_names):
        with torch.no_grad():
            (alone,) = model.inference([loader(name)])
        activation = alone["image_activation"].numpy()
        clear = abs(activation - 0.5) > 1e-4
        certain += clear.sum()
        np.testing.assert_array_equal(bits[row][clear], alone["image_code"].numpy()[clear])
        np.testing.assert_allclose(codes.activations[row], activation, atol=1e-3)
        mine = codes.instances.image_index == row
        # A region that was kept for several classes has one row: the first, of its best class.
        regions = alone["instances"].pred_regions.numpy()
        first = np.sort(np.unique(regions, return_index=True)[1])
        boxes = alone["instances"].pred_boxes.tensor.numpy()[first]
        assert mine.sum() == len(boxes) > 0
        np.testing.assert_allclose(codes.instances.boxes[mine], boxes, atol=1e-2)
    assert certain > 0.9 * bits.size
    assert 0 < bits.mean() < 1


def test_image_codes_alone(folder, tmp_path, make_model):
    loader = ImageLoader(min_size=64, max_size=96, image_format="RGB")
    model = make_model().eval()
    for name in ("inference", "encode_images"):
        make_extractor(getattr(model, name), loader=loader).extract(
            find_images([folder]), tmp_path / f"{name}.h5"
        )
    both, alone = (read_codes(tmp_path / f"{name}.h5") for name in ("inference", "encode_images"))
    np.testing.assert_array_equal(both.codes, alone.codes)
    assert alone.instances is None


def test_a_size_that_the_header_did_not_tell(tmp_path):
    """A PNG whose orientation stands behind its pixels: its batch is encoded in two."""
    for name in ("a.png", "b.png"):
        save(tmp_path / name, 30, 40)
    exif = Image.Exif()
    exif[274] = 6
    data = (tmp_path / "b.png").read_bytes()
    with_exif = io.BytesIO()
    Image.open(tmp_path / "b.png").save(with_exif, "png", exif=exif)
    with_exif = with_exif.getvalue()
    start = with_exif.index(b"eXIf") - 4
    length = 12 + int.from_bytes(with_exif[start : start + 4], "big")
    end = data.index(b"IEND") - 4
    (tmp_path / "b.png").write_bytes(data[:end] + with_exif[start : start + length] + data[end:])
    assert extract_folder(tmp_path, tmp_path / "codes.h5").coded == 2
    codes = read_codes(tmp_path / "codes.h5")
    np.testing.assert_array_equal(codes.instances.boxes, [[0, 0, 40, 30], [0, 0, 30, 40]])


def test_reading_in_another_process_changes_nothing(folder, tmp_path):
    (folder / "bad.png").write_bytes(b"")
    save(folder / "half.png").write_bytes((folder / "00.png").read_bytes()[:700])
    for workers in (0, 1):
        output = tmp_path / f"{workers}.h5"
        result = extract_folder(folder, output, num_workers=workers, skip_bad=True)
        assert [Path(error.file_name).name for error in result.unreadable] == [
            "bad.png",
            "half.png",
        ]
    assert (tmp_path / "0.h5").read_bytes() == (tmp_path / "1.h5").read_bytes()


@pytest.fixture
def with_bad(folder):
    """The folder with an image whose header can't be read, and one that breaks off later."""
    (folder / "03a.jpg").write_bytes(b"")
    (folder / "05a.png").write_bytes(save(folder / "05a.png").read_bytes()[:700])
    return folder


def test_bad_images_are_left_out_if_asked(with_bad, tmp_path):
    result = extract_folder(with_bad, tmp_path / "codes.h5", skip_bad=True)
    assert [Path(error.file_name).name for error in result.unreadable] == ["03a.jpg", "05a.png"]
    assert (result.rows, result.complete) == (12, True)
    assert len(read_codes(tmp_path / "codes.h5")) == 12


def test_bad_images_cost_no_codes(with_bad, tmp_path):
    """Everything else is encoded and waits until the images are fixed, or are to be left out."""
    output = tmp_path / "codes.h5"
    result = extract_folder(with_bad, output)
    assert (result.coded, result.rows, result.complete) == (12, 0, False)
    assert len(result.unreadable) == 2
    assert not output.exists()
    save(with_bad / "03a.jpg")
    result = extract_folder(with_bad, output, resume=True, skip_bad=True)
    assert (result.coded, result.rows, len(result.unreadable)) == (1, 13, 1)
    assert [Path(n).name for n in read_codes(output).file_names[3:6]] == [
        "03.png",
        "03a.jpg",
        "04.png",
    ]


def test_nothing_but_bad_images(tmp_path):
    (tmp_path / "a.jpg").touch()
    result = extract_folder(tmp_path, tmp_path / "codes.h5", skip_bad=True)
    assert (result.complete, len(result.unreadable)) == (False, 1)
    assert os.listdir(tmp_path) == ["a.jpg"]


@pytest.mark.skipif(os.name != "posix", reason="file names are bytes on POSIX alone")
@pytest.mark.parametrize("name", [b"\xff.png", b"line\nbreak \x1b[31m.png", "日本 🦊.png".encode()])
def test_names_that_are_any_bytes(tmp_path, name):
    path = os.fsencode(tmp_path / "images") + b"/" + name
    os.makedirs(tmp_path / "images")
    os.rename(save(tmp_path / "a.png"), path)
    for resume in (False, True):
        result = extract_folder(tmp_path / "images", tmp_path / "codes.h5", resume=resume)
        assert (result.rows, result.unreadable) == (1, [])
        assert [os.fsencode(n) for n in read_codes(tmp_path / "codes.h5").file_names] == [path]


def test_new_files_are_added_and_old_ones_not_coded_again(folder, tmp_path):
    output = tmp_path / "codes.h5"
    stored = {"activations": True, "features": True}
    extract_folder(folder, output, **stored)
    old = read_codes(output)
    save(folder / "00a.png")
    save(folder / "deep" / "er" / "x.png")
    calls = []

    def model(inputs):
        calls.extend(inputs)
        return fake_model(inputs)

    result = extract_folder(folder, output, model=model, resume=True, **stored)
    assert (result.coded, result.rows, len(calls)) == (2, 14, 2)
    new = read_codes(output)
    assert new.image_ids == [entry.image_id for entry in find_images([folder])]
    kept = [new.image_ids.index(image_id) for image_id in old.image_ids]
    np.testing.assert_array_equal(new.codes[kept], old.codes)
    np.testing.assert_array_equal(new.activations[kept], old.activations)
    np.testing.assert_array_equal(new.features[kept], old.features)
    np.testing.assert_array_equal(new.instances.boxes[kept], old.instances.boxes)
    extract_folder(folder, tmp_path / "fresh.h5", **stored)
    assert output.read_bytes() == (tmp_path / "fresh.h5").read_bytes()


def test_the_classifier_is_stored_and_added_to_an_older_output(folder, tmp_path):
    """Nothing is encoded for that; a run without a classifier keeps it."""
    output = tmp_path / "codes.h5"
    extract_folder(folder, output)
    assert read_codes(output).class_weights is None
    for given in (WEIGHTS, None):
        result = extract_folder(folder, output, resume=True, class_weights=given)
        assert (result.coded, result.rows) == (0, 12)
        np.testing.assert_array_equal(read_codes(output).class_weights, WEIGHTS)
    before = output.stat()
    extract_folder(folder, output, resume=True, class_weights=WEIGHTS)
    assert output.stat() == before
    save(folder / "00a.png")
    extract_folder(folder, output, resume=True, class_weights=None)
    np.testing.assert_array_equal(read_codes(output).class_weights, WEIGHTS)


def test_features_are_stored_where_they_are_wanted(folder, tmp_path):
    extract_folder(folder, tmp_path / "without.h5")
    assert read_codes(tmp_path / "without.h5").features is None
    extract_folder(folder, tmp_path / "with.h5", features=True)
    codes = read_codes(tmp_path / "with.h5")
    wanted = [
        pixels_of(f"{n:02d}.png", height=20 if n % 3 else 40)[0, :5, 0] / 255 for n in range(12)
    ]
    np.testing.assert_allclose(codes.features, wanted, rtol=1e-3)

    def model(inputs):
        return [
            {k: v for k, v in out.items() if k != "image_feature"} for out in fake_model(inputs)
        ]

    with pytest.raises(ValueError, match="the model gave no image_feature"):
        extract_folder(folder, tmp_path / "none.h5", model=model, features=True)
    assert sorted(os.listdir(tmp_path)) == ["images", "with.h5", "without.h5"]


def test_rows_of_other_images_stay(folder, tmp_path):
    output = tmp_path / "codes.h5"
    extract_folder(folder, output)
    more = save(tmp_path / "more" / "a.png").parent
    assert extract_folder(more, output, resume=True).rows == 13
    names = [str(folder / f"{n:02d}.png") for n in range(12)] + [str(more / "a.png")]
    assert read_codes(output).image_ids == names


def test_a_finished_output_is_left_alone(folder, tmp_path):
    output = tmp_path / "codes.h5"
    extract_folder(folder, output)
    before = output.stat()
    result = extract_folder(folder, output, resume=True)
    assert (result.coded, result.rows, result.complete) == (0, 12, True)
    after = output.stat()
    assert (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns)
    assert sorted(os.listdir(tmp_path)) == ["codes.h5", "images"]


def test_progress_tells_the_time_left(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(extract, "Progress", functools.partial(Progress, every=0.0))
    lines = []
    extract_folder(folder, tmp_path / "codes.h5", log=lines.append)
    assert lines[11] == "12 of 12 image headers read, 0.0 min left"
    assert lines[12].startswith("2 of 12 images encoded, ")
    assert lines[-1] == "12 of 12 images encoded, 0.0 min left"
