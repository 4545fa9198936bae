"""Training on two machines, played by two network namespaces that a cable joins.

It changes the network of the machine for a minute, so it runs only where REGIONDH_TEST_NAMESPACES
says so, as .ci/server_tests.py does.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from regiondh_d2.data import generate_scenes

ROOT = Path(__file__).parents[1]
NAMES = [f"rdh-{os.getpid()}-{rank}" for rank in (0, 1)]
CABLE = [f"rdh{os.getpid() % 100000}{end}" for end in "ab"]
ADDRESSES = ["10.77.0.1", "10.77.0.2"]
ITERATIONS = 4

pytestmark = pytest.mark.skipif(
    "REGIONDH_TEST_NAMESPACES" not in os.environ, reason="changes the network: make test-milvus"
)


def ip(*words):
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True)


@pytest.fixture
def machines():
    """Commands that run a program in one of the two, and its end of the cable."""
    if shutil.which("ip") is None:
        pytest.skip("it needs network namespaces, and the program ip is missing")
    made = []
    try:
        try:
            for name in NAMES:
                ip("netns", "add", name)
                made.append(name)
            first, second = (["netns", name] for name in NAMES)
            ip("link", "add", CABLE[0], *first, "type", "veth", "peer", "name", CABLE[1], *second)
            for name, end, address in zip(NAMES, CABLE, ADDRESSES, strict=True):
                ip("-n", name, "addr", "add", f"{address}/24", "dev", end)
                for device in ("lo", end):
                    ip("-n", name, "link", "set", device, "up")
                ip("netns", "exec", name, "true")
        except subprocess.CalledProcessError as error:
            pytest.skip(f"it needs network namespaces: {error.stderr.strip()}")
        yield [(["ip", "netns", "exec", name], end) for name, end in zip(NAMES, CABLE, strict=True)]
    finally:
        for name in made:
            ip("netns", "del", name)  # and its end of the cable


def test_two_machines_train_one_network(machines, tmp_path):
    generate_scenes(tmp_path / "data" / "scenes", num_database=6, num_queries=2)
    outputs = [tmp_path / str(rank) for rank in (0, 1)]
    trainings = []
    for rank, (inside, device) in enumerate(machines):
        words = [
            *("--config-file", "quick_schedules/regiondh_effnetlite0_scenes_instant"),
            *("--num-machines", "2", "--machine-rank", str(rank)),
            *("--dist-url", f"tcp://{ADDRESSES[0]}:29500"),
            *("MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", "", "OUTPUT_DIR", str(outputs[rank])),
            *("SOLVER.MAX_ITER", str(ITERATIONS), "TEST.EVAL_PERIOD", "0"),
            *("DATASETS.TEST", "()"),
        ]
        environment = {
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "DETECTRON2_DATASETS": str(tmp_path / "data"),
            "GLOO_SOCKET_IFNAME": device,  # the name of this machine has no address in there
        }
        with open(tmp_path / f"log-{rank}", "wb") as log:
            command = [*inside, sys.executable, "-m", "regiondh_cli", "train", *words]
            trainings.append(
                subprocess.Popen(
                    command, cwd=ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT
                )
            )
    try:
        status = [training.wait(300) for training in trainings]
    finally:
        for training in trainings:
            training.kill()
    logs = [(tmp_path / f"log-{rank}").read_text() for rank in (0, 1)]
    assert status == [0, 0], "\n".join(logs)[-4000:]
    # Only the first process of all writes the network.
    assert not (outputs[1] / "model_final.pth").exists()
    state = torch.load(outputs[0] / "model_final.pth", weights_only=False)
    assert state["iteration"] == ITERATIONS - 1
