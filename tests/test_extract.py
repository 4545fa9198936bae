"""Extraction: batches, rows, and files that any interruption leaves right.

A network stands in for the model only where its codes matter; elsewhere a code is a few pixels.
"""

import fcntl
import functools
import io
import itertools
import multiprocessing
import os
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from extraction import ATTRIBUTES, BITS, extract_folder, fake_model, make_extractor
from pictures import pixels_of, save
from regiondh_d2.config import code_settings
from regiondh_d2.retrieval import extract
from regiondh_d2.retrieval.code_store import read_codes
from regiondh_d2.retrieval.extract import keeps_activations, plan_batches
from regiondh_d2.retrieval.images import ImageEntry, ImageLoader, find_images
from regiondh_d2.structures.codes import CodeFileError
from regiondh_d2.structures.packed import unpack_codes
from regiondh_d2.utils.locks import FileInUseError
from regiondh_d2.utils.progress import Progress

WEIGHTS = np.random.default_rng(0).random((BITS + 1, 3)).astype(np.float32)


@pytest.fixture
def folder(tmp_path):
    """Twelve images of two padded sizes."""
    for number in range(12):
        save(tmp_path / "images" / f"{number:02d}.png", height=20 if number % 3 else 40)
    return tmp_path / "images"


# Batches


def test_batches_hold_equal_padded_sizes_in_order():
    sizes = [(32, 64), (30, 33), (65, 64), None, (1, 64), (33, 64), (32, 60), (96, 60)]
    batches = plan_batches(sizes, 3, 32)
    assert batches == [[0, 1, 4], [2, 7], [5], [6]]
    assert plan_batches(sizes[:3], 3, 0) == [[0], [1], [2]]


# Files


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


# Bad images


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


# Resuming


def kill_at_event(number, run):
    """Runs in a process that kills itself at the ``number``-th event; returns whether it did.

    Events are each model call, and the moments before and after every rename, when files are
    complete but have a temporary name, or have just replaced others.
    """

    def target():
        count = 0

        def event():
            nonlocal count
            count += 1
            if count == number:
                os.kill(os.getpid(), signal.SIGKILL)

        def replace(*paths, original=os.replace):
            event()
            original(*paths)
            event()

        def model(inputs):
            event()
            return fake_model(inputs)

        os.replace = replace
        run(model=model)

    process = multiprocessing.get_context("fork").Process(target=target)
    process.start()
    process.join()
    assert process.exitcode in (0, -signal.SIGKILL)
    return process.exitcode != 0


def test_killed_at_every_moment(folder, tmp_path):
    """One run, killed again and again, each time a little later, and resumed every time."""
    extract_folder(folder, tmp_path / "undisturbed.h5")
    output = tmp_path / "codes.h5"
    run = functools.partial(extract_folder, folder, output, resume=True)
    kills = 0
    # The third event is past the first rename, so that every run saves something.
    while kill_at_event(3 + kills, run):
        kills += 1
    assert kills >= 4
    assert output.read_bytes() == (tmp_path / "undisturbed.h5").read_bytes()
    assert sorted(os.listdir(tmp_path)) == ["codes.h5", "images", "undisturbed.h5"]


def test_killed_once_at_any_moment(folder, tmp_path):
    for path in sorted(folder.iterdir())[6:]:  # every moment takes two extractions
        path.unlink()
    extract_folder(folder, tmp_path / "undisturbed.h5")
    expected = (tmp_path / "undisturbed.h5").read_bytes()
    number = 1
    while True:
        output = tmp_path / f"{number}" / "codes.h5"
        if not kill_at_event(number, functools.partial(extract_folder, folder, output)):
            break
        extract_folder(folder, output, resume=True)
        assert output.read_bytes() == expected
        assert os.listdir(output.parent) == ["codes.h5"]
        number += 1
    assert number > 3 * 3  # three batches, each with a model call and two sides of a rename


def test_an_update_that_is_killed_at_every_moment(folder, tmp_path):
    """An edited, a new, a moved and a pruned photo: the old file or the new one, nothing else."""
    extract_folder(folder, tmp_path / "old.h5")
    (folder / "03.png").unlink()
    (folder / "04.png").rename(folder / "moved.png")
    save(folder / "new.png")
    save(folder / "05.png", quality=1, height=24)
    update = functools.partial(extract_folder, folder, resume=True, prune=True, batch_size=1)
    whole = {(tmp_path / "old.h5").read_bytes()}
    for number in itertools.count(1):
        output = tmp_path / f"{number}" / "codes.h5"
        output.parent.mkdir()
        shutil.copy2(tmp_path / "old.h5", output)
        killed = kill_at_event(number, functools.partial(update, output=output))
        found = output.read_bytes()
        assert len(whole | {found}) <= 2
        if found not in whole:
            whole.add(found)
        assert update(output=output).rows == 12
        whole.add(output.read_bytes())
        assert len(whole) == 2
        assert os.listdir(output.parent) == ["codes.h5"]
        if not killed:
            break
    assert number > 2 * 3


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


def fail_after(calls):
    def model(inputs):
        nonlocal calls
        calls -= 1
        if calls < 0:
            raise KeyboardInterrupt
        return fake_model(inputs)

    return model


def test_ctrl_c_saves_what_is_coded(folder, tmp_path):
    """Also what no part holds yet."""
    output = tmp_path / "codes.h5"
    with pytest.raises(KeyboardInterrupt):
        extract_folder(folder, output, model=fail_after(3), save_every=1000.0)
    result = extract_folder(folder, output, resume=True)
    assert (result.coded, result.rows) == (6, 12)


def test_batches_are_the_same_after_an_interruption(tmp_path):
    """Also beside an image that broke off, whose batch was saved without it."""
    for name in "acdefg":
        save(tmp_path / "images" / f"{name}.png")
    whole = save(tmp_path / "images" / "b.png").read_bytes()
    (tmp_path / "images" / "b.png").write_bytes(whole[:700])
    batches = []

    def model(inputs):
        batches.append([tuple(given["image"][0, 0, :5].tolist()) for given in inputs])
        return fake_model(inputs)

    run = functools.partial(extract_folder, tmp_path / "images", skip_bad=True)
    run(tmp_path / "undisturbed.h5", model=model)
    undisturbed, batches[:] = list(batches), []
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "codes.h5", model=fail_after(2))
    run(tmp_path / "codes.h5", model=model, resume=True)
    assert [len(batch) for batch in undisturbed] == [1, 2, 2, 1]
    assert batches == undisturbed[2:]


def test_a_damaged_part_is_coded_again(folder, tmp_path):
    output = tmp_path / "codes.h5"
    with pytest.raises(KeyboardInterrupt):
        extract_folder(folder, output, model=fail_after(3))
    part = sorted((tmp_path / "codes.h5.parts").glob("part-*"))[0]
    part.write_bytes(part.read_bytes()[:100])
    lines = []
    result = extract_folder(folder, output, resume=True, log=lines.append)
    assert result.coded == 8
    assert f"{part} is damaged: its images are encoded again" in lines
    extract_folder(folder, tmp_path / "undisturbed.h5")
    assert output.read_bytes() == (tmp_path / "undisturbed.h5").read_bytes()


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


def test_earlier_work_is_not_replaced_unasked(folder, tmp_path):
    output = tmp_path / "codes.h5"
    with pytest.raises(KeyboardInterrupt):
        extract_folder(folder, output, model=fail_after(1))
    with pytest.raises(FileExistsError, match="unfinished extraction: go on with --resume"):
        extract_folder(folder, output)
    extract_folder(folder, output, resume=True)
    with pytest.raises(FileExistsError, match="add to it with --resume"):
        extract_folder(folder, output)
    with pytest.raises(FileExistsError, match="is a folder"):
        extract_folder(folder, folder, resume=True)


@pytest.mark.parametrize("how", ["complete", "refused", "killed"])
def test_files_of_others_in_the_parts_folder_stay(folder, tmp_path, how):
    """Its name is made of the output's, and anything may be there already."""
    parts = tmp_path / "codes.h5.parts"
    parts.mkdir()
    (parts / "mine.txt").write_text("mine")
    if how == "refused":
        with pytest.raises(RuntimeError, match="no more"):
            extract_folder(folder, tmp_path / "codes.h5", model=refuse)
        assert os.listdir(parts) == ["mine.txt"]
    if how == "killed":
        with pytest.raises(KeyboardInterrupt):
            extract_folder(folder, tmp_path / "codes.h5", model=fail_after(1))
        (parts / ".part-of-a-killed-run.h5.1.tmp").touch()
    assert extract_folder(folder, tmp_path / "codes.h5", resume=True).rows == 12
    assert os.listdir(parts) == ["mine.txt"]


def test_a_parts_folder_that_is_a_link(folder, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "codes.h5.parts").symlink_to(tmp_path / "elsewhere")
    assert extract_folder(folder, tmp_path / "codes.h5").rows == 12
    assert not os.listdir(tmp_path / "elsewhere")


def refuse(inputs):
    raise RuntimeError("no more")


def test_one_run_at_a_time(folder, tmp_path):
    (tmp_path / "codes.h5.parts").mkdir()
    with open(tmp_path / "codes.h5.parts" / "lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(FileInUseError, match="in use by another program"):
            extract_folder(folder, tmp_path / "codes.h5", resume=True)
    assert extract_folder(folder, tmp_path / "codes.h5", resume=True).rows == 12


def test_a_lost_part_is_not_a_lost_row(folder, tmp_path):
    """If files vanish under a running extraction, it says so."""
    output = tmp_path / "codes.h5"

    def model(inputs):
        for part in (tmp_path / "codes.h5.parts").glob("part-*"):
            part.unlink()
        return fake_model(inputs)

    with pytest.raises(CodeFileError, match="10 images .* lost their codes"):
        extract_folder(folder, output, model=model)
    assert extract_folder(folder, output, resume=True).rows == 12


def test_ids_must_be_unique(folder, tmp_path):
    first, second = find_images([folder])[:2]
    twice = ImageEntry(first.image_id, second.file_name)
    with pytest.raises(ValueError, match="names two files"):
        make_extractor().extract([first, twice], tmp_path / "codes.h5")
    result = make_extractor().extract([first, first, second], tmp_path / "codes.h5")
    assert (result.images, result.rows) == (2, 2)
    with pytest.raises(ValueError, match="no images"):
        make_extractor().extract([], tmp_path / "none.h5")


def test_a_full_disk_costs_only_what_is_not_saved(folder, tmp_path, full_disk):
    """It is full when the parts are written, and at last when they become the output."""
    output, parts = tmp_path / "codes.h5", tmp_path / "codes.h5.parts"
    with full_disk(1 << 10), pytest.raises(OSError, match=r"codes\.h5\.parts/part-\w+\.h5"):
        extract_folder(folder, output)
    assert sorted(os.listdir(tmp_path)) == ["images"]

    extract_folder(folder, tmp_path / "undisturbed.h5", features=True)
    size = (tmp_path / "undisturbed.h5").stat().st_size
    with full_disk(size - 1), pytest.raises(OSError, match=r"codes\.h5\.parts/merged\.h5"):
        extract_folder(folder, output, features=True)
    assert {name[:5] for name in os.listdir(parts)} == {"lock", "part-"}
    assert extract_folder(folder, output, features=True, resume=True).coded == 0
    assert output.read_bytes() == (tmp_path / "undisturbed.h5").read_bytes()


def test_progress_tells_the_time_left(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(extract, "Progress", functools.partial(Progress, every=0.0))
    lines = []
    extract_folder(folder, tmp_path / "codes.h5", log=lines.append)
    assert lines[11] == "12 of 12 image headers read, 0.0 min left"
    assert lines[12].startswith("2 of 12 images encoded, ")
    assert lines[-1] == "12 of 12 images encoded, 0.0 min left"


# Settings


def test_settings_are_those_that_decide_about_codes(tiny_cfg):
    before = code_settings(tiny_cfg, instances=True)
    for key, value in (
        ("MODEL.WEIGHTS", "other.pth"),
        ("MODEL.DEVICE", "cuda"),
        ("MODEL.RPN.POST_NMS_TOPK_TRAIN", 5),
        ("MODEL.REGION_DH.LOSS_WEIGHTS.ALPHA", [2.0, 1.0]),
        ("MODEL.REGION_DH.LR_FACTORS.BACKBONE", 0.0),
        ("MODEL.REGION_DH.FEATURE_CACHE", "cache"),
        ("SOLVER.MAX_ITER", 7),
    ):
        tiny_cfg.merge_from_list([key, value])
        assert code_settings(tiny_cfg, instances=True) == before, key
    for key, value in (
        ("MODEL.RPN.POST_NMS_TOPK_TEST", 5),
        ("MODEL.REGION_DH.FUSION_NUM_ROIS", 7),
        ("MODEL.PIXEL_MEAN", [1.0, 2.0, 3.0]),
        ("INPUT.MIN_SIZE_TEST", 64),
        ("TEST.RETRIEVAL.INSTANCE_MIN_SCORE", 0.5),
    ):
        tiny_cfg.merge_from_list([key, value])
        changed = code_settings(tiny_cfg, instances=True)
        assert f"{key} {value!r}" in changed.splitlines()
        assert changed != before
        before = changed
    assert code_settings(tiny_cfg, instances=False) != before
