"""Extraction with a model whose code is a few pixels, and files that others have open."""

import contextlib
import subprocess
import sys

import numpy as np
import torch
from detectron2.structures import Boxes, Instances

from pictures import save
from regiondh_d2.data.photo_files import find_photos
from regiondh_d2.retrieval.earlier_codes import known_files
from regiondh_d2.retrieval.extract import CodeExtractor
from regiondh_d2.retrieval.extraction_plan import images_to_code
from regiondh_d2.retrieval.images import ImageLoader

ATTRIBUTES = {
    "dataset": "",
    "config": "some.yaml",
    "class_names": ["a", "b", "c"],
    "count_difficult": True,
    "model_fingerprint": "f" * 64,
    "settings": "INPUT.FORMAT 'RGB'\ninstances True",
}
BITS = 16
WEIGHTS = np.random.default_rng(0).random((BITS + 1, 3)).astype(np.float32)
RUN_OPTIONS = ("resume", "skip_bad", "moves", "verify", "prune", "shard")


def code_of(image):
    """The code of an input (3, H, W): whether pixels of the first row are bright."""
    return image[0, 0, :BITS] > 127


def fake_model(inputs):
    """Codes and, for every image, one detection whose box is the image's size."""
    assert len({tuple(-(-side // 32) for side in x["image"].shape[1:]) for x in inputs}) == 1
    outputs = []
    for given in inputs:
        code = code_of(given["image"])
        size = (given["height"], given["width"])
        instances = Instances(size)
        instances.pred_boxes = Boxes([[0.0, 0.0, size[1], size[0]]])
        instances.scores = torch.tensor([0.5])
        instances.pred_classes = torch.tensor([1])
        instances.pred_codes = ~code[None]
        outputs.append(
            {
                "image_code": code,
                "image_activation": code * 1.0,
                "image_feature": given["image"][0, 0, :5] / 255,
                "instances": instances,
            }
        )
    return outputs


def fail_after(calls):
    """As :func:`fake_model`, but Ctrl-C after so many calls."""

    def model(inputs):
        nonlocal calls
        calls -= 1
        if calls < 0:
            raise KeyboardInterrupt
        return fake_model(inputs)

    return model


def make_extractor(model=fake_model, save_every=0.0, log=lambda line: None, **changes):
    options = {"size_divisibility": 32, "batch_size": 2, "save_every": save_every}
    attributes = (*ATTRIBUTES, "class_weights")
    options |= {name: changes.pop(name) for name in list(changes) if name not in attributes}
    loader = options.pop("loader", ImageLoader(min_size=0, max_size=0, image_format="RGB"))
    return CodeExtractor(model, loader, ATTRIBUTES | changes, log=log, **options)


def save_twelve(folder):
    """Twelve images of two padded sizes."""
    for number in range(12):
        save(folder / f"{number:02d}.png", height=20 if number % 3 else 40)
    return folder


def extract_folder(folder, output, **options):
    """Codes of a folder, or of several; the run's own options, and the rest the extractor's."""
    run = {name: options.pop(name) for name in RUN_OPTIONS if name in options}
    inputs = folder if isinstance(folder, list) else [folder]
    scan = find_photos(inputs, options.pop("exclude", ()))
    known = known_files(output, run.get("moves", ())) if output.is_file() else {}
    images, _ = images_to_code(scan, inputs, known)
    return make_extractor(**options).extract(images, output, scan=scan, **run)


HOLD = """
import sys, h5py
file = h5py.File(sys.argv[1], sys.argv[2])
print("open", flush=True)
sys.stdin.read()
"""


@contextlib.contextmanager
def held_open(path, mode):
    """Another program that has the file open."""
    command = [sys.executable, "-c", HOLD, str(path), mode]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as process:
        assert process.stdout.readline() == "open\n"
        yield process
        process.stdin.close()
