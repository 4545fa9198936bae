"""Thousands of scenes in four shards, of which two are killed and resumed: the single run's bytes.

It takes minutes, so it runs only where REGIONDH_TEST_SHARDS says how many scenes, as ``make
test-shards`` does. test_shards.py has the same with few images and without a network.
"""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from regiondh_d2.data import generate_scenes

SCENES = int(os.environ.get("REGIONDH_TEST_SHARDS", "0"))
SHARDS, KILLED = 4, (2, 3)
SIZE = (96, 72)
ROOT = Path(__file__).parents[1]

pytestmark = pytest.mark.skipif(not SCENES, reason="takes minutes: make test-shards")


def start(name, *words):
    command = [sys.executable, "-m", "regiondh_cli", name, *map(str, words)]
    return subprocess.Popen(command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)})


def finish(process):
    assert process.wait() == 0


def kill_in_mid_work(process, parts):
    """SIGKILL as soon as two parts of the output are there."""
    while len(list(parts.glob("part-*.h5"))) < 2:
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL


def test_killed_shards_merge_to_the_single_run(random_network, tmp_path):
    scenes = generate_scenes(
        tmp_path / "scenes", num_database=SCENES, num_queries=1, image_size=SIZE
    )
    network = ["--config-file", random_network.config, "--save-every", "0.5"]
    inputs = ["--input", scenes / "JPEGImages", *random_network.opts]

    def extract(output, *options):
        return start("extract-codes", *network, "--output", output, *options, *inputs)

    began = time.monotonic()
    finish(extract(tmp_path / "single.h5"))
    print(f"{SCENES} scenes in a single run: {time.monotonic() - began:.0f} s")
    outputs = [tmp_path / f"codes-{number}.h5" for number in range(1, SHARDS + 1)]
    for number, output in enumerate(outputs, 1):
        shard = ["--shard", f"{number}/{SHARDS}"]
        process = extract(output, *shard)
        if number in KILLED:
            kill_in_mid_work(process, tmp_path / f"{output.name}.parts")
            assert not output.exists()
            process = extract(output, *shard, "--resume")
        finish(process)
    print(f"and in {SHARDS} shards, too: {time.monotonic() - began:.0f} s")
    finish(start("merge-codes", *outputs, "--output", tmp_path / "merged.h5"))
    assert (tmp_path / "merged.h5").read_bytes() == (tmp_path / "single.h5").read_bytes()
