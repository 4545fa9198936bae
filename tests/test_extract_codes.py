"""tools/extract_codes.py end to end with a small network: what it writes, says and survives.

REGIONDH_KILLS=10 makes the test with SIGKILL a long one: 1,000 images, killed that many times.
"""

import os
import random
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog
from detectron2.modeling import build_model
from PIL import Image

from builders import registered_scenes
from extraction import held_open
from pictures import save
from programs import start_program
from regiondh_d2.data import generate_scenes, photo_files
from regiondh_d2.engine import build_cfg
from regiondh_d2.retrieval.code_store import read_codes
from regiondh_d2.retrieval.images import ImageLoader
from regiondh_d2.structures.packed import unpack_codes

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "tools" / "extract_codes.py"


@pytest.fixture(scope="module")
def tool(load_tool):
    return load_tool("extract_codes")


@pytest.fixture(scope="module")
def dataset(random_network):
    with registered_scenes(random_network.scenes, "extract_codes_") as name:
        yield name


@pytest.fixture
def arguments(random_network):
    """A function from the images and further options to a complete command line."""

    def make(images, output, *options, opts=()):
        images = images if images[0] == "--dataset" else ["--input", *map(str, images)]
        start = ["--config-file", random_network.config, *images, "--output", str(output)]
        return [*start, *options, *random_network.opts, *opts]

    return make


@pytest.fixture(scope="module")
def undisturbed(tool, random_network, tmp_path_factory):
    """The code file of the scenes' folder."""
    output = tmp_path_factory.mktemp("undisturbed") / "codes.h5"
    images = ["--input", str(random_network.scenes), "--output", str(output), "--batch-size", "2"]
    start = ["--config-file", random_network.config, *images]
    assert tool.main([*start, *random_network.opts]) == 0
    return output


def wait_for_parts(process, output, count):
    """Returns when that many parts are saved, or the process has ended."""
    parts = f"{output.name}.parts/part-*"
    while process.is_alive() and len(list(output.parent.glob(parts))) < count:
        time.sleep(0.005)


def errors_of(capsys):
    return capsys.readouterr().err.splitlines()


def test_what_was_passed_over_is_said(tool, arguments, tmp_path, capsys):
    for name in ("a.png", "raw/b.png"):
        save(tmp_path / "photos" / name)
    for name in ("c.HEIC", "d.txt"):
        (tmp_path / "photos" / name).write_bytes(b"nothing")
    output = tmp_path / "codes.h5"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(photo_files, "can_read_heif", lambda: False)
        assert tool.main(arguments([tmp_path / "photos"], output, "--exclude", "raw")) == 0
    assert capsys.readouterr().out.splitlines()[-1] == (
        "passed over: 1 .heic (needs pi-heif: pip install pi-heif), 1 .txt, 1 excluded"
    )
    assert len(read_codes(output)) == 1


def test_a_dataset(tool, random_network, dataset, arguments, tmp_path, capsys):
    output = tmp_path / "codes.h5"
    assert tool.main(arguments(["--dataset", dataset], output)) == 0
    printed = capsys.readouterr()
    assert f"{output}: 11 rows, 11 of them encoded now" in printed.out
    assert printed.err == ""
    codes = read_codes(output)
    records = DatasetCatalog.get(dataset)
    assert codes.image_ids == [record["image_id"] for record in records]
    assert codes.file_names == [record["file_name"] for record in records]
    labels = [np.flatnonzero(row).tolist() for row in codes.labels]
    assert labels == [record["image_labels"] for record in records]
    assert (codes.dataset, codes.config) == (dataset, Path(random_network.config).name)
    assert (codes.bits, len(codes.class_names), len(codes.model_fingerprint)) == (48, 12, 64)
    assert len(codes.instances.codes) > 0
    np.testing.assert_array_equal(codes.activations > 0.5, unpack_codes(codes.codes, 48))
    saved = torch.load(random_network.weights)["model"]
    weight, bias = (saved[f"roi_heads.image_hash.classifier.{part}"] for part in ("weight", "bias"))
    np.testing.assert_array_equal(codes.class_weights[:-1].T, weight)
    np.testing.assert_array_equal(codes.class_weights[-1], bias)


def test_codes_are_those_of_each_image_alone(random_network, undisturbed):
    cfg = build_cfg(random_network.config, random_network.opts)
    model = build_model(cfg).eval()
    model.load_state_dict(torch.load(random_network.weights)["model"])
    codes = read_codes(undisturbed)
    bits = unpack_codes(codes.codes, codes.bits)
    assert len(codes) == 11
    assert len(np.unique(bits, axis=0)) > 5
    for row, name in enumerate(codes.file_names):
        with torch.no_grad():
            (alone,) = model.inference([ImageLoader(cfg)(name)])
        clear = abs(alone["image_activation"].numpy() - 0.5) > 1e-4
        np.testing.assert_array_equal(bits[row][clear], alone["image_code"].numpy()[clear])


def test_two_processes_write_the_file_of_one(
    tool, random_network, undisturbed, arguments, tmp_path, capfd, forked
):
    output = tmp_path / "codes.h5"
    images = [random_network.scenes]
    with forked():
        assert tool.main(arguments(images, output, "--batch-size", "2", "--num-gpus", "2")) == 0
    assert f"{output}: 11 rows, 11 of them encoded now" in capfd.readouterr().out
    assert output.read_bytes() == undisturbed.read_bytes()


def test_a_failure_of_two_processes_is_one_line(
    tool, random_network, arguments, tmp_path, capfd, forked
):
    opts = ["MODEL.WEIGHTS", str(tmp_path / "absent.pth")]
    images = [random_network.scenes]
    with forked():
        words = arguments(images, tmp_path / "codes.h5", "--num-gpus", "2", opts=opts)
        assert tool.main(words) == 1
    err = capfd.readouterr().err
    (line,) = [line for line in err.splitlines() if "error" in line]
    assert line.startswith(f"error: MODEL.WEIGHTS: {tmp_path / 'absent.pth'}: no such file")
    assert "Traceback" not in err


def test_killed_and_resumed(random_network, undisturbed, arguments, tool, tmp_path):
    """SIGKILL at random moments, then a resumed run by another number of processes."""
    kills = int(os.environ.get("REGIONDH_KILLS", "2"))
    images, expected = [random_network.scenes], undisturbed
    options = ["--batch-size", "2", "--save-every", "0", "--resume"]
    step = 1
    if "REGIONDH_KILLS" in os.environ:
        images, expected = [tmp_path / "scenes"], tmp_path / "expected.h5"
        generate_scenes(tmp_path / "scenes", num_database=1000, num_queries=1)
        assert tool.main(arguments(images, expected, *options)) == 0
        step = 400 // kills
    output = tmp_path / "codes.h5"
    rng = random.Random(0)
    parts = 0
    for _ in range(kills):
        process = start_program([SCRIPT, *arguments(images, output, *options)], cwd=tmp_path)
        wait_for_parts(process, output, parts + rng.randint(1, step))
        time.sleep(rng.random() * 0.05)
        os.killpg(process.pid, signal.SIGKILL)
        process.join()
        assert process.exitcode == -signal.SIGKILL
        parts = len(list((tmp_path / "codes.h5.parts").glob("part-*")))
        assert parts > 0
    assert not output.exists()
    assert tool.main(arguments(images, output, *options)) == 0
    assert output.read_bytes() == expected.read_bytes()
    assert not (tmp_path / "codes.h5.parts").exists()


def test_ctrl_c(random_network, arguments, tmp_path):
    output = tmp_path / "codes.h5"
    options = ["--batch-size", "1", "--save-every", "0"]
    words = [SCRIPT, *arguments([random_network.scenes], output, *options)]
    process = start_program(words, cwd=tmp_path, error=tmp_path / "errors")
    wait_for_parts(process, output, 1)
    os.killpg(process.pid, signal.SIGINT)
    process.join()
    assert process.exitcode == 130
    err = (tmp_path / "errors").read_text()
    assert err.splitlines()[-1] == (
        f"interrupted: continue with the same command and --resume ({output})"
    )
    assert "Traceback" not in err


def test_bad_images(tool, arguments, tmp_path, capsys):
    for name in ("a.png", "b.png"):
        Image.new("RGB", (60, 50)).save(tmp_path / name)
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "half.png").write_bytes((tmp_path / "b.png").read_bytes()[:60])
    output = tmp_path / "codes.h5"
    assert tool.main(arguments([tmp_path], output)) == 1
    first, second, last = errors_of(capsys)
    assert first == f"unreadable: {tmp_path / 'empty.jpg'}: the file is empty"
    assert second.startswith(f"unreadable: {tmp_path / 'half.png'}: damaged or incomplete")
    assert last.startswith("error: 2 of 4 images can't be read; the others are encoded: fix or")
    assert not output.exists()

    assert tool.main(arguments([tmp_path], output, "--resume", "--skip-bad")) == 0
    printed = capsys.readouterr()
    assert printed.err.splitlines() == [first, second]
    assert f"{output}: 2 rows, 0 of them encoded now, 2 unreadable left out" in printed.out
    assert [Path(name).name for name in read_codes(output).file_names] == ["a.png", "b.png"]

    only_bad = arguments([tmp_path / "empty.jpg"], tmp_path / "none.h5", "--skip-bad")
    assert tool.main(only_bad) == 1
    assert errors_of(capsys)[-1] == "error: none of the 1 images can be read"


def test_image_codes_alone_and_other_settings(
    tool, random_network, undisturbed, arguments, tmp_path, capsys
):
    output = tmp_path / "codes.h5"
    images = [random_network.scenes]
    options = ("--no-instances", "--no-activations", "--batch-size", "2")
    assert tool.main(arguments(images, output, *options)) == 0
    codes = read_codes(output)
    assert codes.instances is None
    assert codes.activations is None
    np.testing.assert_array_equal(codes.codes, read_codes(undisturbed).codes)

    assert tool.main(arguments(images, output, "--resume")) == 1
    (error,) = errors_of(capsys)
    assert error.startswith(f"error: {output} was encoded with instances False, which is now True")


def test_features(tool, random_network, arguments, tmp_path, capsys):
    output = tmp_path / "codes.h5"
    images = [random_network.scenes]
    assert tool.main(arguments(images, output, "--features")) == 1
    (error,) = errors_of(capsys)
    assert error.startswith("error: the model gave no image_feature: use a model that has")
    assert os.listdir(tmp_path) == []

    opts = [
        *("MODEL.META_ARCHITECTURE", "ImageHash", "MODEL.ROI_HEADS.NAME", "WholeImageHeads"),
        *("MODEL.PROPOSAL_GENERATOR.NAME", "PrecomputedProposals"),
    ]
    cfg = build_cfg(random_network.config, [*random_network.opts, *opts])
    torch.manual_seed(0)
    model = build_model(cfg).eval()
    torch.save({"model": model.state_dict()}, tmp_path / "whole.pth")
    opts += ["MODEL.WEIGHTS", str(tmp_path / "whole.pth")]
    assert tool.main(arguments(images, output, "--features", opts=opts)) == 0
    codes = read_codes(output)
    assert codes.features.dtype == np.float16
    with torch.no_grad():
        alone = [model.inference([ImageLoader(cfg)(name)])[0] for name in codes.file_names]
    wanted = torch.stack([output["image_feature"] for output in alone])
    np.testing.assert_allclose(codes.features, wanted, rtol=1e-2, atol=1e-3)
    capsys.readouterr()

    assert tool.main(arguments(images, output, "--resume", opts=opts)) == 1
    (error,) = errors_of(capsys)
    assert error.startswith(f"error: {output} was encoded with features True, which is now False")


@pytest.fixture
def one_image(tmp_path):
    Image.new("RGB", (60, 50)).save(tmp_path / "image.png")
    return tmp_path / "image.png"


@pytest.mark.parametrize(
    ("opts", "message"),
    [
        (["MODEL.NO_SUCH_KEY", "1"], "NO_SUCH_KEY"),
        (["MODEL.WEIGHTS", ""], "MODEL.WEIGHTS is empty"),
        (["MODEL.WEIGHTS", "absent.pth"], "absent.pth: no such file"),
        (["MODEL.REGION_DH.BITS", "16"], "(first: roi_heads."),
        (["MODEL.META_ARCHITECTURE", "GeneralizedRCNN"], "GeneralizedRCNN encodes no images"),
    ],
)
def test_wrong_configs(tool, arguments, one_image, tmp_path, capsys, opts, message):
    assert tool.main(arguments([one_image], tmp_path / "codes.h5", opts=opts)) == 1
    (error,) = [line for line in errors_of(capsys) if line.startswith("error: ")]
    assert message in error
    assert os.listdir(tmp_path) == ["image.png"]


def test_weights_without_hash_layers(tool, random_network, arguments, one_image, tmp_path, capsys):
    """Those of a detector would leave the codes random."""
    weights = torch.load(random_network.weights)["model"]
    torch.save(
        {"model": {k: v for k, v in weights.items() if "hash" not in k}}, tmp_path / "detector.pth"
    )
    opts = ["MODEL.WEIGHTS", str(tmp_path / "detector.pth")]
    assert tool.main(arguments([one_image], tmp_path / "codes.h5", opts=opts)) == 1
    error = errors_of(capsys)[-1]
    assert "hash" in error
    assert "must be a checkpoint of this config's trained network" in error


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (["absent"], "absent: no such file or folder"),
        (["."], "no images in ."),
        (["--dataset", "absent"], "'absent', which isn't registered; known:"),
        (["--dataset", "voc_2007_retrieval_train_val"], "VOC2007"),
    ],
)
def test_no_images(tool, arguments, tmp_path, monkeypatch, capsys, images, message):
    monkeypatch.chdir(tmp_path)
    assert tool.main(arguments(images, tmp_path / "codes.h5")) == 1
    (error,) = errors_of(capsys)
    assert message in error


def test_a_dataset_of_other_classes(tool, random_network, dataset, arguments, tmp_path, capsys):
    opts = ["MODEL.ROI_HEADS.NUM_CLASSES", "20"]
    assert tool.main(arguments(["--dataset", dataset], tmp_path / "c.h5", opts=opts)) == 1
    (error,) = errors_of(capsys)
    assert f"{dataset} has 12 classes, but MODEL.ROI_HEADS.NUM_CLASSES is 20" in error


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--input", "a", "--prune"], "--prune works on an existing code file: give --resume, too"),
        (["--input", "a", "--verify"], "--verify works on an existing code file"),
        (["--input", "a", "--root", "a=b"], "--root works on an existing code file"),
        (["--dataset", "a", "--resume", "--prune"], "--prune is for --input, not for --dataset"),
        (["--dataset", "a", "--resume", "--root", "a=b"], "--root is for --input"),
        (["--dataset", "a", "--exclude", "b"], "--exclude is for --input"),
    ],
)
def test_options_without_an_effect(tool, capsys, options, message):
    with pytest.raises(SystemExit) as error:
        tool.main(["--config-file", "config.yaml", "--output", "o.h5", *options])
    assert error.value.code == 2
    assert message in errors_of(capsys)[-1]


def test_photos_that_change(tool, arguments, tmp_path, monkeypatch, capsys):
    """What a second run says of photos that have gone, moved and changed, and of absent folders."""
    photos, other, output = tmp_path / "photos", tmp_path / "other", tmp_path / "codes.h5"
    for path in (photos / "a.png", photos / "b.png", photos / "c.png", other / "d.png"):
        save(path, 50, 60)
    (photos / "notes.txt").touch()
    assert tool.main(arguments([photos, other], output)) == 0
    assert "4 rows, 4 of them encoded now" in capsys.readouterr().out

    monkeypatch.setattr(Image, "open", lambda *_: pytest.fail("an unchanged photo was opened"))
    monkeypatch.setattr(photo_files, "carries_mark", Image.open)
    assert tool.main(arguments([photos, other], output, "--resume")) == 0
    monkeypatch.undo()
    assert "4 rows, 0 of them encoded now" in capsys.readouterr().out

    (photos / "a.png").rename(photos / "z.png")
    (photos / "b.png").unlink()
    save(photos / "new.png", 50, 60).replace(photos / "c.png")
    assert tool.main(arguments([photos, other], output, "--resume")) == 0
    printed = capsys.readouterr()
    assert "4 rows, 1 of them encoded now" in printed.out
    assert "1 of the rows are of photos that have gone: remove them with --resume --" in printed.out
    assert "passed over: 1 .txt" in printed.out
    assert tool.main(arguments([photos, other], output, "--resume", "--prune")) == 0
    out = capsys.readouterr().out
    assert "3 rows, 0 of them encoded now, 1 of photos that have gone removed" in out

    other.rename(tmp_path / "unplugged")
    assert tool.main(arguments([photos, other], output, "--resume", "--prune")) == 0
    printed = capsys.readouterr()
    line = f"{other} is not there: nothing is changed of its 1 rows"
    assert printed.err.splitlines() == [line]
    assert "3 rows, 0 of them encoded now" in printed.out
    assert tool.main(arguments([other], output, "--resume")) == 1
    assert errors_of(capsys) == [f"error: {line} (a disk that isn't plugged in?)"]
    assert len(read_codes(output)) == 3

    move = f"{other}={tmp_path / 'unplugged'}"
    images = [photos, tmp_path / "unplugged"]
    assert tool.main(arguments(images, output, "--resume", "--root", move)) == 0
    assert "3 rows, 0 of them encoded now" in capsys.readouterr().out
    assert sorted(read_codes(output).roots) == sorted(map(str, images))


def test_an_output_that_is_an_input(tool, random_network, arguments, one_image, capsys):
    weights = random_network.weights
    before = (one_image.read_bytes(), weights.read_bytes())
    for output in (one_image, weights):
        assert tool.main(arguments([one_image], output, "--resume")) == 1
        (error,) = errors_of(capsys)
        assert f"{output}: is {output}, which this command reads; an output never" in error
    assert (one_image.read_bytes(), weights.read_bytes()) == before


def test_a_code_file_that_another_program_has_open(tool, arguments, one_image, tmp_path, capsys):
    output = tmp_path / "codes.h5"
    assert tool.main(arguments([one_image], output)) == 0
    capsys.readouterr()
    with held_open(output, "r+"):
        assert tool.main(arguments([one_image], output, "--resume")) == 1
    (error,) = errors_of(capsys)
    assert f"{output}: in use by another program" in error
    assert len(read_codes(output)) == 1


def test_outputs_that_cannot_be_written(tool, arguments, one_image, tmp_path, capsys):
    for output, message in (
        (one_image / "codes.h5", f"{one_image} is no folder"),
        (tmp_path, "is a folder"),
        (one_image, f"{one_image} exists: add to it with --resume"),
    ):
        assert tool.main(arguments([one_image], output)) == 1
        (error,) = errors_of(capsys)
        assert message in error
        assert str(output) in error


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may write everywhere")
def test_no_write_permission(tool, arguments, one_image, tmp_path, capsys):
    (tmp_path / "locked").mkdir(mode=0o500)
    assert tool.main(arguments([one_image], tmp_path / "locked" / "codes.h5")) == 1
    (error,) = errors_of(capsys)
    assert "locked" in error
    assert "Permission denied" in error


@pytest.mark.parametrize(
    "wrong",
    [
        ["--output", "o.h5"],
        ["--input", "a", "--dataset", "b", "--output", "o.h5"],
        ["--input", "a"],
        ["--input", "a", "--output", "o.h5", "--batch-size", "0"],
        ["--input", "a", "--output", "o.h5", "MODEL.DEVICE"],
        ["--input", "a", "--output", "o.h5", "--num-gpus", "none"],
        ["--input", "a", "--output", "o.h5", "--save-every", "-1"],
        ["--input", "a", "--output", "o.h5", "--save-every", "nan"],
        ["--input", "a", "--output", "o.h5", "--save-every", "inf"],
    ],
)
def test_wrong_arguments_exit_2(tool, wrong):
    with pytest.raises(SystemExit) as error:
        tool.main(["--config-file", "config.yaml", *wrong])
    assert error.value.code == 2
