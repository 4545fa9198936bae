"""Encoding with Ray; see ``make test-milvus``, which has an environment with Ray."""

import functools
import importlib.util
import os
import signal
import threading
import time

import pytest

from extraction import fake_model, make_extractor
from pictures import save
from regiondh_d2.data.photo_files import find_photos
from regiondh_d2.engine.ray_workers import encode_with_ray
from regiondh_d2.retrieval.code_store import read_codes
from regiondh_d2.retrieval.extraction_plan import images_to_code
from regiondh_d2.utils.errors import RegionDHError

HAS_RAY = importlib.util.find_spec("ray") is not None
needs_ray = pytest.mark.skipif(not HAS_RAY, reason="ray isn't installed")
OPTIONS = {"batch_size": 3, "activations": True}


@pytest.fixture(scope="module", autouse=HAS_RAY)
def workers_find_these_modules():
    """Workers import what they are given by name."""
    with pytest.MonkeyPatch.context() as patch:
        here = os.path.dirname(__file__)
        patch.setenv("PYTHONPATH", os.pathsep.join([here, os.environ.get("PYTHONPATH", "")]))
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_AUTH_MODE", "disabled")  # or Ray writes a token into the home folder
        patch.setenv("RAY_worker_niceness", "0")  # or other programs keep workers from starting
        yield


@pytest.fixture
def folder(tmp_path):
    """Images of two padded sizes, and one that can't be read."""
    folder = tmp_path / "images"
    for number in range(40):
        save(folder / f"{number:02d}.png", height=20 if number % 3 else 40)
    (folder / "05.png").write_bytes(b"no picture")
    return folder


def slow_extractor(notes):
    """Notes the number of its process in a file, and takes a moment for a batch, so that a second
    worker can start."""

    def model(given):
        end = time.monotonic() + 120
        while len(os.listdir(notes)) < 2 and time.monotonic() < end:
            time.sleep(0.1)
        time.sleep(0.3)
        return fake_model(given)

    (notes / str(os.getpid())).touch()
    return make_extractor(model=model, save_every=1000.0, **OPTIONS)


def wrong_extractor():
    raise RegionDHError("MODEL.WEIGHTS is empty")


def extract(folder, output, make=None):
    scan = find_photos([folder])
    images, _ = images_to_code(scan, [folder], {})
    encode = None
    if make is not None:

        def encode(images, batches, parts):
            return encode_with_ray(
                make, 2, lambda line: None, images, batches, parts.folder, images_of_task=3
            )

    return make_extractor(**OPTIONS).extract(
        images, output, scan=scan, skip_bad=True, encode=encode
    )


@needs_ray
def test_two_workers_of_which_one_is_killed(folder, tmp_path):
    notes = tmp_path / "notes"
    notes.mkdir()
    killed = []

    def kill():
        parts = tmp_path / "codes.h5.parts"
        while len(list(parts.glob("part-*.h5"))) < 2 or len(os.listdir(notes)) < 2:
            time.sleep(0.05)
        killed.append(os.listdir(notes)[0])
        os.kill(int(killed[0]), signal.SIGKILL)

    thread = threading.Thread(target=kill, daemon=True)
    thread.start()
    result = extract(folder, tmp_path / "codes.h5", functools.partial(slow_extractor, notes))
    thread.join(1)
    assert killed
    assert len(os.listdir(notes)) >= 3  # another one took its place
    assert len(result.unreadable) == 1
    assert "05.png" in str(result.unreadable[0])
    extract(folder, tmp_path / "single.h5")
    assert len(read_codes(tmp_path / "codes.h5")) == result.coded == 39
    assert (tmp_path / "codes.h5").read_bytes() == (tmp_path / "single.h5").read_bytes()
    assert not (tmp_path / "codes.h5.parts").exists()


@needs_ray
def test_an_error_of_a_worker_is_told(folder, tmp_path):
    with pytest.raises(RegionDHError, match=r"^MODEL\.WEIGHTS is empty$"):
        extract(folder, tmp_path / "codes.h5", wrong_extractor)


@pytest.mark.skipif(HAS_RAY, reason="ray is installed")
def test_without_ray(load_tool, tmp_path, capsys):
    words = ["--config-file", "c", "--input", str(tmp_path), "--output", str(tmp_path / "o.h5")]
    main = load_tool("extract_codes").main
    assert main([*words, "--ray-workers", "2"]) == 1
    assert "pip install 'regiondh_d2[ray]'" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main([*words, "--ray-workers", "2", "--num-gpus", "2"])
    assert "leave --num-gpus out" in capsys.readouterr().err
